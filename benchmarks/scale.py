"""Measures the edges of a desk: very many portfolios, scopes and live holds (bounds in docs/scaling.md).

Each call runs in a process of its own, which tells its time and how much its memory grew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.measure import BenchmarkError
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, progress, run_plan
from benchmarks.servers import Database, Engine, Host, scratch

if TYPE_CHECKING:
    from ledger_sizer import Ledger

REPEATS = 5
AT_ONCE = 1000
TTL_SECONDS = 86_400
SPEND_USD = Decimal(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters: how many portfolios of three holds each; scopes of one portfolio; holds of one portfolio."""

    portfolios: int
    scopes: int
    holds: int


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the best of `REPEATS` (`verify`: one), and what the peak memory of its process grew by."""

    engine: Engine
    what: str
    ms: float
    grown_mib: float


def run(plan: Plan) -> None:
    """Measure and report all figures of the plan."""
    sizes = (
        f"{plan.portfolios:,} portfolios of 3 holds; a portfolio of {plan.scopes:,} scopes; one of {plan.holds:,} "
        f"holds; the best of {REPEATS}, `verify` once; memory beyond that of the opened ledger"
    )
    run_plan(plan, 3, {"sizes": sizes}, partial(_rows, plan), _table, asdict)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    sizes = (
        (f"{plan.portfolios:,} portfolios", plan.portfolios * 3, lambda n: (f"p{n // 3}", n % 3)),
        (f"{plan.scopes:,} scopes", plan.scopes, lambda n: ("main", n)),
        (f"{plan.holds:,} holds", plan.holds, lambda n: ("main", n % 50)),
    )
    for host in hosts:
        for (name, count, place), calls in zip(sizes, (OF_PORTFOLIOS, OF_SCOPES, OF_HOLDS), strict=True):
            with scratch(host) as database:
                _fill(database, f"{host.engine}: {name}", count, place)
                host.settle(database)
                for call in calls:
                    yield Row(host.engine, f"{name}: {call}", *_measured(database, call))


def _fill(database: Database, name: str, count: int, place: Callable[[int], tuple[str, int]]) -> None:
    """Make holds. place: the portfolio of the n-th, and the number of its symbol."""
    from ledger_sizer import Ledger, Reserve, SetCap
    from ledger_sizer.storage.database import upgrade

    upgrade(database.url)
    with progress(count) as step, Ledger.open(database.url) as ledger:
        step(name)
        ledger.submit([SetCap(key="cap", portfolio="main", cap=Decimal(10**9))])
        for start in range(0, count, AT_ONCE):
            asks = []
            for n in range(start, min(start + AT_ONCE, count)):
                portfolio, symbol = place(n)
                tags = {"venue": "bybit", "symbol": f"C{symbol}"}
                ask = Reserve(
                    key=f"h{n}", portfolio=portfolio, tags=tags, available_balance=SPEND_USD, ttl_seconds=TTL_SECONDS
                )
                asks.append(ask)
            answers = ledger.submit(asks)
            if not all(getattr(answer, "granted", False) for answer in answers):
                raise BenchmarkError(f"{name}: not everything was granted: {answers[0]}")


def _verify(ledger: Ledger, **arguments: Any) -> object:
    report = ledger.verify(**arguments)
    if not report.ok:
        raise BenchmarkError(f"verify: {report.first}")
    return report


def _exposure_json(ledger: Ledger) -> bytes:
    from pydantic_core import to_json

    from ledger_sizer.wire.responses import exposure_page_to_json

    return to_json(exposure_page_to_json(ledger.exposure_page()))


def _metrics(ledger: Ledger) -> bytes:
    from ledger_sizer.service.metrics import Metrics

    metrics = Metrics()
    metrics.watch(ledger, ledger._queries.engine)
    return metrics.text()


def _reserve(ledger: Ledger, *, dry_run: bool = False) -> object:
    key = f"{perf_counter()}"
    return ledger.reserve(key=key, tags={"symbol": "C1"}, available_balance=Decimal(10), dry_run=dry_run)


CALLS: dict[str, Callable[[Ledger], object]] = {
    "verify": _verify,
    "verify from the heads": lambda ledger: _verify(ledger, since=ledger.heads()),
    "heads": lambda ledger: ledger.heads(),
    "exposure, a page as JSON": _exposure_json,
    "exposure, all": lambda ledger: ledger.exposure(),
    "metrics": _metrics,
    "overview": lambda ledger: ledger.overview(),
    "reserve": _reserve,
    "dry run": partial(_reserve, dry_run=True),
    "sweep, nothing due": lambda ledger: ledger.sweep(),
    "positions, first page held": lambda ledger: ledger.positions("main", state="held"),
    "positions, of no such tag": lambda ledger: ledger.positions("main", state="live", tags={"symbol": "no"}),
}
OF_PORTFOLIOS = ("verify", "verify from the heads", "heads", "metrics", "overview", "sweep, nothing due")
OF_SCOPES = ("exposure, a page as JSON", "exposure, all", "metrics", "overview", "reserve", "verify")
OF_HOLDS = (
    "reserve", "dry run", "sweep, nothing due", "positions, first page held", "positions, of no such tag",
    "exposure, a page as JSON", "metrics", "overview", "verify from the heads", "verify",
)  # fmt: skip


def _measured(database: Database, call: str) -> tuple[float, float]:
    """Make a call in a process of its own. Returns its milliseconds, and the MiB that the process grew by."""
    command = [sys.executable, "-m", "benchmarks.scale", database.url, call]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BenchmarkError(f"{call}: {ran.stderr.strip()[-500:]}")
    ms, grown_mib = json.loads(ran.stdout)
    return ms, grown_mib


def _measure_here(url: str, call: str) -> None:
    from ledger_sizer import Ledger

    with Ledger.open(url) as ledger:
        ledger.portfolios()
        before_kib, best = _peak_kib(), float("inf")
        for _ in range(1 if call == "verify" else REPEATS):
            begun = perf_counter()
            CALLS[call](ledger)
            best = min(best, perf_counter() - begun)
        grown_kib = _peak_kib() - before_kib
    print(json.dumps([best * 1000, grown_kib / 1024]))


def _peak_kib() -> int:
    """Return this process's peak memory. `getrusage` would count that of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def _table(rows: list[Row]) -> Table:
    table = new_table("At scale.", ("engine", "what"), ("ms", "grown MiB"))
    for row in rows:
        table.add_row(row.engine, row.what, f"{row.ms:,.1f}", f"{row.grown_mib:,.0f}")
    return table


if __name__ == "__main__":
    _measure_here(*sys.argv[1:])
