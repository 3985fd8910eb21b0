"""`python -m campaign`: faults by the list, and one table of what they did to acknowledged decisions."""

from __future__ import annotations

import signal
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from rich.console import Console

from campaign import report
from campaign.postgresql import programs_of
from campaign.processes import CampaignError
from campaign.rounds import Round, all_rounds
from campaign.run import Plan, run

ABOUT = """\
Break real services and real databases on purpose, and audit the ledger after every round.

A round starts `ledger-sizer serve` processes on a SQLite file or on PostgreSQL servers of its own. Clients trade
over HTTP, send each key until it is answered, and keep every answer. The round injects its fault a few times, and
waits each time for the next granted answer. Then the auditor compares: every acknowledged decision is stored exactly
once as it was told; seq has no gap; no grant is above a cap; no hold ended early or never; `ledger-sizer verify`
agrees.

Nothing outside a temporary folder is touched. The status is 0 if nothing was lost, doubled or otherwise wrong.
"""
EXAMPLES = """\
examples:
  python -m campaign                                      each round once (about half an hour)
  python -m campaign --short                              the rounds of CI, briefly (about 2 minutes)
  python -m campaign --minutes 60 --json campaign.json    all rounds, again and again, for an hour
  python -m campaign --minutes 60 --markdown docs/failure-model.md
  python -m campaign --rounds failover,kill-service-sqlite --seed 7
  python -m campaign --list
"""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "python -m campaign", description=ABOUT, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=_minutes, metavar="N", help="repeat the rounds until N minutes are over")
    parser.add_argument("--short", action="store_true", help="the rounds of CI, with few repetitions")
    parser.add_argument("--rounds", type=_names, metavar="NAME,...", help="only these rounds, in this order")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of everything random (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the rounds, and end")
    parser.add_argument("--postgresql", type=int, default=18, metavar="N", help="major version (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table between this page's marks too")
    parser.add_argument("--dir", type=_folder, metavar="FOLDER", help="of the databases; must be on a disk")
    parser.add_argument("--keep", action="store_true", help="keep the folders of good rounds too")
    return parser


def _minutes(text: str) -> float:
    if not 0 < float(text) <= 10_000:
        raise ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def _names(text: str) -> list[str]:
    known = all_rounds()
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ArgumentTypeError(f"unknown round {unknown[0]!r}; --list shows all")
    return names


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r} is no folder")
    return Path(text)


def _chosen(given: Namespace) -> list[Round]:
    known = all_rounds()
    if given.rounds:
        return [known[name] for name in given.rounds]
    return [one for one in known.values() if one.short or not given.short]


def main() -> int:
    """Run the campaign. Returns 0 if all promises were kept, 1 if not."""
    # SIGTERM would leave services and servers running, so exit through the context managers instead.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    given = _parser().parse_args()
    shown, progress = Console(width=None if sys.stdout.isatty() else 140), Console(stderr=True)
    rounds = _chosen(given)
    if given.list:
        shown.print(report.list_table(rounds))
        return 0
    begun = time.monotonic()

    def say(text: str) -> None:
        progress.print(f"{time.monotonic() - begun:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    try:
        if given.markdown:
            report.around_the_table(given.markdown)  # before the campaign, not after an hour of it
        plan = Plan(
            rounds, given.minutes, given.seed, given.short, programs_of(given.postgresql), given.dir, given.keep
        )
        outcomes = run(plan, say)
    except CampaignError as error:
        progress.print(f"campaign: {error}", style="red", markup=False)
        return 1
    result = report.summed_up(rounds, outcomes, plan, time.monotonic() - begun, given.postgresql)
    shown.print(report.table(result))
    for line in report.broken(outcomes):
        shown.print(line, style="red", markup=False, soft_wrap=True)
    if given.json:
        given.json.write_text(report.as_json(result, outcomes), encoding="utf-8")
    if given.markdown:
        report.write_into(given.markdown, report.as_markdown(result))
    return 0 if all(outcome.is_clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
