"""Compares the adoption of one drift with one bulk adoption of thousands, in one ledger.

The ledger has as many positions as there are drifts, and the exchange shows twice of each, which every adoption has to
read. Beside a second, smaller bulk one caller reserves and releases: its slowest pair tells what others feel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from statistics import median

from rich.table import Table

from benchmarks.measure import BenchmarkError
from benchmarks.reconcile import open_position
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, run_plan
from benchmarks.servers import Engine, Host, scratch
from ledger_sizer import AppSettings, Ledger, ReconcileSettings
from ledger_sizer.config import DynamicSizingSettings
from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance, VenuePosition
from ledger_sizer.model.drift_outcomes import DriftOutcomes
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.storage.database import make_engine, upgrade

D = Decimal
SINGLES = 3
BESIDE_SHARE = 5
"""A fifth more drifts are adopted beside a caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters. drifts: of the bulk; the ledger has a fifth more, each of a position of its own."""

    drifts: int


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of one adoption (median of three), of a dry run and of the bulk; and how bulk and one compare.

    pair_ms_alone, pair_ms_beside: the slowest pair of reservation and release without and during another bulk.
    """

    engine: Engine
    drifts: int
    one_seconds: float
    dry_run_seconds: float
    bulk_seconds: float
    ratio: float
    pair_ms_alone: float
    pair_ms_beside: float


def run(plan: Plan) -> None:
    """Measure and report all engines of the plan."""
    run_plan(plan, 1, {}, partial(_rows, plan), partial(_table, plan), asdict)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    for host in hosts:
        with scratch(host) as database:
            upgrade(database.url)
            yield _measured(host.engine, database.url, plan.drifts, plan.drifts // BESIDE_SHARE + SINGLES)


def _table(plan: Plan, rows: list[Row]) -> Table:
    table = new_table(
        f"Adopting 1 drift, and {plan.drifts:,} in one call, where each is of a position of its own. "
        "Seconds; the slowest pair of a caller beside another such call, ms.",
        ("engine",),
        ("one", "dry run", "bulk", "bulk / one", "pair alone", "pair beside"),
    )
    for row in rows:
        table.add_row(
            row.engine, f"{row.one_seconds:.2f}", f"{row.dry_run_seconds:.2f}", f"{row.bulk_seconds:.2f}",
            f"{row.ratio:.1f}x", f"{row.pair_ms_alone:.0f}", f"{row.pair_ms_beside:.0f}",
        )  # fmt: skip
    return table


class _Account:
    """An account that shows twice of what the ledger has."""

    venue, account, portfolio = "bybit", "main", "main"

    def __init__(self, count: int) -> None:
        self._positions = tuple(VenuePosition(f"C{n}/USDT:USDT", "short", D(2), D(10)) for n in range(count))

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """Return the same positions, with the present time."""
        moment, balances = now_us(), (VenueBalance("USDT", D(10**9), D(0), D(10**9)),)
        return Snapshot(self.venue, self.account, moment, moment, self._positions, balances)


def _measured(engine: Engine, url: str, drifts: int, more: int) -> Row:
    count = drifts + more
    settings = AppSettings(
        sizing=DynamicSizingSettings(max_portfolio_exposure=D(10**9)),
        reconcile=ReconcileSettings(grace_seconds=0, stale_after_seconds=None, confirmations=1),
        log_level="ERROR",
    )
    writes = make_engine(url)
    with Ledger.open(url, settings=settings) as ledger:
        for start in range(0, count, 1000):
            ledger.submit([open_position(n) for n in range(start, min(start + 1000, count))])
        operator_of = Reconciler(ledger, writes, LocalInspector(writes, [_Account(count)], settings), settings)
        (report,) = operator_of.run()
        ids = [drift.id for drift in report.live]
        operator = operator_of.operator
        ones = [_timed(partial(operator.act, "adopt", one, reason="bench")) for one in ids[:SINGLES]]
        rest, beside = ids[SINGLES : SINGLES + drifts], ids[SINGLES + drifts :]
        dry = _timed(lambda: operator.act_all("adopt", rest, reason="bench", dry_run=True))
        found: list[DriftOutcomes] = []
        bulk = _timed(lambda: found.append(operator.act_all("adopt", rest, reason="bench")))
        if found[0].refused or len(found[0].items) != drifts:
            raise BenchmarkError(f"{found[0].refused} of {drifts} adoptions were refused")
        # The drifts freeze the portfolio: another one's reservations meet the same writer.
        pair_alone = _slowest_pair(ledger, lambda: time.sleep(1))
        pair_beside = _slowest_pair(ledger, lambda: operator.act_all("adopt", beside, reason="bench"))
    writes.dispose()
    one = median(ones)
    return Row(engine, drifts, one, dry, bulk, bulk / one, pair_alone, pair_beside)


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _slowest_pair(ledger: Ledger, work: Callable[[], object]) -> float:
    """Return the slowest pair, ms, of a caller who reserves and releases while `work` runs."""
    over = threading.Event()
    slowest = [0.0]

    def pairs() -> None:
        n = 0
        while not over.is_set():
            begun = time.perf_counter()
            n += 1
            name = f"{begun}/{n}"
            held = ledger.reserve(key=f"r/{name}", portfolio="other")
            ledger.release(key=f"x/{name}", position_id=str(held.position_id))
            slowest[0] = max(slowest[0], (time.perf_counter() - begun) * 1000)
            time.sleep(0.005)

    caller = threading.Thread(target=pairs)
    caller.start()
    try:
        work()
    finally:
        over.set()
        caller.join()
    return slowest[0]
