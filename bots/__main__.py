"""`python -m bots`: the rounds of the real bots, and one table of what they showed."""

from __future__ import annotations

import importlib
import signal
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

from rich.console import Console

from bots import report
from bots.report import Result
from bots.rounds import Outcome, Round

ABOUT = """\
Run real bots on the ledger: freqtrade and ccxt at the paper venue, nautilus at its own simulated exchange.

A round starts the bots under one cap, disturbs them (kills, outages, late and partial fills), and compares at the
end: was the cap held at the exchange at every moment, and does the ledger equal the exchange? A round whose framework
is not installed is skipped. Nothing outside a temporary folder is touched. The status is 1 if a round failed.
"""
EXAMPLES = """\
examples:
  python -m bots                                     all rounds
  python -m bots --short                             the rounds of CI, briefly
  python -m bots freqtrade                           each round with this in its name
  python -m bots "nautilus-live" --short             this one, briefly
  python -m bots --write docs/bots/results.md        all rounds, and the table as a page
  python -m bots --list
"""
IN_SHORT = ("freqtrade, spot, restless", "nautilus-backtest")
"""Names of the rounds that `--short` alone runs: those of CI."""


def all_rounds() -> list[Round]:
    """Return the rounds of every framework: `ROUNDS` of each module whose name ends in `_rounds`."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("*_rounds.py"))
    return [one for name in modules for one in importlib.import_module(f"bots.{name}").ROUNDS]


def chosen(rounds: Sequence[Round], names: Sequence[str], *, short: bool) -> list[Round]:
    """Return the rounds with one of `names` in their name; without names all, or those of CI."""
    if names:
        return [one for one in rounds if any(name in one.name for name in names)]
    return [one for one in rounds if one.name in IN_SHORT or not short]


def missing(one: Round) -> str:
    """Return the packages that a round needs and that are not installed, "" for none."""
    return ", ".join(name for name in one.needs if find_spec(name) is None)


def play(one: Round, say: Callable[[str], None], *, short: bool) -> Result:
    """Run one round in a folder of its own, which stays if it failed."""
    if lacking := missing(one):
        say(f"{one.name}: skipped, {lacking} is not installed")
        return Result(one.name, None, 0.0, {}, f"{lacking} is not installed")
    say(f"{one.name} ...")
    folder = Path(tempfile.mkdtemp(prefix="ledger-bots-"))
    begun = time.monotonic()
    try:
        outcome = one.run(folder, short)
    except Exception as error:  # noqa: BLE001 - the other rounds run all the same, and this one counts as failed
        traceback.print_exc()
        outcome = Outcome(False, {}, f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - begun
    if outcome.ok:
        rmtree(folder, ignore_errors=True)
        say(f"{one.name}: passed in {seconds:.0f} s")
        return Result(one.name, True, seconds, outcome.figures, "")
    say(f"{one.name}: FAILED, {outcome.why}; its files are in {folder}")
    return Result(one.name, False, seconds, outcome.figures, outcome.why)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "python -m bots", description=ABOUT, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only rounds with this in their name")
    parser.add_argument("--short", action="store_true", help="the rounds of CI, or the named ones, briefly")
    parser.add_argument("--list", action="store_true", help="list the rounds, and end")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to this page too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds. Returns 0 if none failed, 1 if one did, 2 for a name that no round has."""
    given = _parser().parse_args(arguments)
    shown, progress = Console(width=None if sys.stdout.isatty() else 140), Console(stderr=True)
    rounds = chosen(all_rounds(), given.names, short=given.short)
    if given.list:
        shown.print(report.list_table([(one, missing(one), one.name in IN_SHORT) for one in rounds]))
        return 0
    if not rounds:
        progress.print("bots: no round has that in its name; --list shows all", style="red")
        return 2
    begun = time.monotonic()

    def say(text: str) -> None:
        progress.print(f"{time.monotonic() - begun:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    results = [play(one, say, short=given.short) for one in rounds]
    conditions = report.conditions(rounds, short=given.short)
    shown.print(report.table(results, conditions))
    if given.write:
        given.write.write_text(report.as_page(results, conditions), encoding="utf-8")
    return int(any(result.passed is False for result in results))


if __name__ == "__main__":
    # SIGTERM would leave bots and services running, so exit through the context managers instead.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
