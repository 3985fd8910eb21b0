"""`python -m benchmarks throughput`, `curve`, `service`, `reconcile`, `drifts`, `audit`, `scale`, `memory` ..."""

from __future__ import annotations

import signal
import sys
import warnings
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import audit, curve, drifts, memory, pools, reconcile, rows, scale, service, throughput
from benchmarks.measure import BenchmarkError, Pace
from benchmarks.servers import Engine

ENGINES: dict[str, tuple[Engine, ...]] = {
    "sqlite": ("sqlite",),
    "postgresql": ("postgresql",),
    "both": ("sqlite", "postgresql"),
}
WARMUP_SHARE = 0.2
SHORT_SECONDS = 0.4
SHORT_SIZES = (10, 1_000)
CURVE_CALLERS = 64
SHORT_SERVICE_CALLERS = (1, 64)
SHORT_SERVICE_BATCH_CALLERS = (4,)
SHORT_SERVICE_SECONDS = 1.0  # one pair of batch calls may take 0.1 s
SHORT_DECISIONS = 20_000
SHORT_ROWS = 4_000
SHORT_SCALE = (200, 1_200, 2_000)
SHORT_PAIRS = 2
SHORT_DRIFTS = 200


def _throughput(given: Namespace) -> None:
    """Compare reserve+release pairs per second and their latencies: by hand, on a hot row, with ledger_sizer."""
    throughput.run(throughput.Plan(**_paced(given), callers=given.callers, forms=given.forms))


def _curve(given: Namespace) -> None:
    """Measure 64 callers beside 10 to 1,000,000 open positions and as many decisions."""
    sizes = SHORT_SIZES if given.short else tuple(sorted(given.sizes))
    curve.run(curve.Plan(**_paced(given), sizes=sizes, callers=CURVE_CALLERS))


def _service(given: Namespace) -> None:
    """Compare the HTTP service with one written by hand: throughput, latency, start and memory."""
    callers = SHORT_SERVICE_CALLERS if given.short else given.callers
    batch_callers = SHORT_SERVICE_BATCH_CALLERS if given.short else given.batch_callers
    service.run(service.Plan(**_paced(given, SHORT_SERVICE_SECONDS), callers=callers, batch_callers=batch_callers))


def _audit(given: Namespace) -> None:
    """Measure looking back at a million decisions: pages, filters, exports, the dashboard, verification, archive."""
    audit.run(audit.Plan(**_shared(given), decisions=SHORT_DECISIONS if given.short else given.decisions))


def _scale(given: Namespace) -> None:
    """Measure very many portfolios, scopes and live holds: verification, exposure, pages, metrics."""
    if given.short:
        given.portfolios, given.scopes, given.holds = SHORT_SCALE
    sizes = {"portfolios": given.portfolios, "scopes": given.scopes, "holds": given.holds}
    scale.run(scale.Plan(**_shared(given), **sizes))


def _rows(given: Namespace) -> None:
    """Compare forms of the table of decisions: what storing and reading cost, as columns or as one text."""
    length = SHORT_ROWS if given.short else given.rows
    rows.run(rows.Plan(**_paced(given), rows=length))


def _pools(given: Namespace) -> None:
    """Compare the CPU of commands of a portfolio without pools and of one with three guaranteed pools."""
    pools.run(pools.Plan(**_shared(given), pairs=SHORT_PAIRS if given.short else given.pairs))


def _memory(given: Namespace) -> None:
    """Compare deciding alone with a ledger in memory and with one in a SQLite file: CPU of a command."""
    shared = {**_shared(given), "engines": ("sqlite",)}
    memory.run(memory.Plan(**shared, rounds=SHORT_PAIRS if given.short else given.rounds))


def _reconcile(given: Namespace) -> None:
    """Measure a reconciliation of many positions, and what reservations feel of it."""
    plan = reconcile.Plan(
        **_shared(given),
        positions=500 if given.short else given.positions,
        seconds=SHORT_SECONDS * 3 if given.short else given.seconds,
        rounds=1 if given.short else given.rounds,
        own_process=given.own_process,
    )
    reconcile.run(plan)


def _drifts(given: Namespace) -> None:
    """Compare the adoption of one drift with one bulk adoption of thousands."""
    drifts.run(drifts.Plan(**_shared(given), drifts=SHORT_DRIFTS if given.short else given.drifts))


def _shared(given: Namespace) -> dict[str, Any]:
    """Return the fields of every plan."""
    return {"engines": ENGINES[given.engine], "folder": given.dir, "json_file": given.json}


def _paced(given: Namespace, short_seconds: float = SHORT_SECONDS) -> dict[str, Any]:
    """Return the fields of a plan of timed cells."""
    seconds = short_seconds if given.short else given.seconds
    pace = Pace(warmup_seconds=seconds * WARMUP_SHARE, measured_seconds=seconds)
    return {**_shared(given), "pace": pace, "rounds": 1 if given.short else given.rounds}


def _parser() -> ArgumentParser:
    about = "Measure ledger_sizer on real databases. Without a command: throughput, with its defaults."
    parser = ArgumentParser("python -m benchmarks", description=about)
    shared = ArgumentParser(add_help=False)
    shared.add_argument("--engine", choices=ENGINES, default="both", help="databases to run on")
    shared.add_argument("--short", action="store_true", help="under a minute: shows that it runs, not how fast")
    shared.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    shared.add_argument("--dir", type=_folder, metavar="FOLDER", help="of the databases; must be on a disk")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[Namespace], None]) -> ArgumentParser:
        about = str(run.__doc__)
        added = commands.add_parser(
            run.__name__[1:],
            parents=[shared],
            help=about,
            description=about,
            formatter_class=ArgumentDefaultsHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    def timed_command(run: Callable[[Namespace], None], seconds: float, rounds: int) -> ArgumentParser:
        added = command(run)
        about = "measured per cell; a fifth more warms it up"
        added.add_argument("--seconds", type=_seconds, default=seconds, metavar="N", help=about)
        about = "of every cell; the median is shown"
        added.add_argument("--rounds", type=_at_least(1), default=rounds, metavar="N", help=about)
        return added

    added = timed_command(_throughput, seconds=5.0, rounds=1)
    added.add_argument("--callers", type=_numbers, default="1,16,64", help="numbers of concurrent callers")
    added.add_argument("--forms", type=_forms, default=",".join(throughput.FORMS), help="forms to run")
    added = timed_command(_curve, seconds=5.0, rounds=3)
    added.add_argument("--sizes", type=_numbers, default="10,1000,100000,1000000", help="open positions to load")
    added = timed_command(_service, seconds=5.0, rounds=1)
    added.add_argument("--callers", type=_numbers, default="1,16,64", help="numbers of keep-alive clients")
    added.add_argument(
        "--batch-callers", type=_numbers, default="4,64", help="numbers of clients that send batch calls"
    )
    added = command(_audit)
    added.add_argument(
        "--decisions", type=_at_least(2_000), default=1_000_000, metavar="N", help="length of the history"
    )
    added = command(_scale)
    for name, size in (("portfolios", 10_000), ("scopes", 60_000), ("holds", 200_000)):
        added.add_argument(f"--{name}", type=_at_least(1), default=size, metavar="N", help=f"number of {name}")
    added = timed_command(_rows, seconds=3.0, rounds=10)
    added.add_argument("--rows", type=_at_least(2_000), default=200_000, metavar="N", help="length of the long table")
    added = command(_pools)
    added.add_argument("--pairs", type=_at_least(1), default=10, metavar="N", help="of turns, one of each portfolio")
    added = command(_memory)
    added.add_argument("--rounds", type=_at_least(1), default=20, metavar="N", help="of turns, each of every form")
    added = timed_command(_reconcile, seconds=10.0, rounds=3)
    added.add_argument("--positions", type=_at_least(1), default=10_000, metavar="N", help="open on each side")
    added.add_argument(
        "--own-process", action=BooleanOptionalAction, default=True, help="look in a process of its own, as the service"
    )
    added = command(_drifts)
    added.add_argument("--drifts", type=_at_least(10), default=3_000, metavar="N", help="number of drifts")
    return parser


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r} is no folder")
    return Path(text)


def _seconds(text: str) -> float:
    if float(text) < 0.1:
        raise ArgumentTypeError(f"must be 0.1 or more, got {text}")
    return float(text)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"must be a whole number from {least} on, got {text!r}")
        return int(text)

    return number


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"{text!r} is not a list of positive whole numbers such as 1,16,64")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _forms(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in throughput.FORMS]
    if unknown:
        raise ArgumentTypeError(f"unknown form {unknown[0]!r}; known: {', '.join(throughput.FORMS)}")
    return names


def main() -> None:
    """Run a command. A cell that fails its check ends the program with status 1 and an error message."""
    # SIGTERM would leave the private server running, so exit through the context managers instead.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    # The private server's library warns about a desktop folder that is not needed here.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    given = _parser().parse_args(sys.argv[1:] or ["throughput"])
    try:
        given.run(given)
    except BenchmarkError as error:
        Console(stderr=True).print(f"benchmark: {error}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
