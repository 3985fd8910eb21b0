"""Measures a reconciliation of many positions, and its effect on the latency of reservations.

The set-up is that of the service: callers on an event loop, the ledger's writer, the scheduler's thread that runs the
reconciliation, and the inspection process. Runs follow each other without a pause, so that every pair measured "beside
runs" overlaps one. The account's snapshot is made beforehand: the figures exclude the exchange's response time.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from statistics import median
from typing import Any

from pydantic import SecretStr
from rich.table import Table

from benchmarks.measure import BenchmarkError
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, run_plan
from benchmarks.servers import Engine, Host, scratch
from ledger_sizer import Adopt, AppSettings, Ledger, Leg, ReconcileSettings
from ledger_sizer.config import DynamicSizingSettings, ExchangeSettings
from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance, VenuePosition
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.reconcile.inspection import Inspector, LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.reconcile.worker_process import WorkerInspector
from ledger_sizer.storage.database import make_engine, upgrade

D = Decimal
CALLERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters. positions: open in the ledger, and as many at the exchange. seconds: of one half of a round.

    own_process: inspect in a process of its own, the service's default.
    """

    positions: int
    seconds: float
    rounds: int
    own_process: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """Median run times in seconds, and latencies of pairs without (alone) and during runs (beside), in milliseconds.

    p99_ratios: of each round, so that the spread can be seen.
    """

    run_seconds: float
    run_seconds_beside_load: float
    p50_ms_alone: float
    p99_ms_alone: float
    p50_ms_beside: float
    p99_ms_beside: float
    pairs_alone: int
    pairs_beside: int
    p99_ratios: list[float]


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak resident MiB: the service's parts without an exchange, with a reconciled one, and the inspection process."""

    memory_mib: float
    memory_with_exchange_mib: float
    memory_of_process_mib: float


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one engine. memory: of the service, the same in every row."""

    engine: Engine
    figures: Figures
    memory: Memory


def run(plan: Plan) -> None:
    """Measure and report all engines of the plan."""
    run_plan(
        plan, CALLERS, {}, partial(_rows, plan), partial(_table, plan),
        lambda row: {"engine": row.engine, **asdict(row.figures), **asdict(row.memory)},
    )  # fmt: skip


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    memory = measure_memory()
    for host in hosts:
        with scratch(host) as database:
            upgrade(database.url)
            yield Row(host.engine, measure(database.url, plan), memory)


def _table(plan: Plan, rows: list[Row]) -> Table:
    table = new_table(
        f"Reconciling {plan.positions:,} positions with {plan.positions:,} at the exchange, without its answer's time; "
        f"{CALLERS} callers reserve and release. Seconds and ms.",
        ("engine",),
        ("run", "run beside load", "pair p50", "beside runs", "pair p99", "beside runs", "p99 ratio", "of rounds"),
    )
    for row in rows:
        one = row.figures
        table.add_row(
            row.engine, f"{one.run_seconds:.2f}", f"{one.run_seconds_beside_load:.2f}", f"{one.p50_ms_alone:.2f}",
            f"{one.p50_ms_beside:.2f}", f"{one.p99_ms_alone:.2f}", f"{one.p99_ms_beside:.2f}",
            f"{one.p99_ms_beside / one.p99_ms_alone:.2f}x", f"{min(one.p99_ratios):.2f} to {max(one.p99_ratios):.2f}",
        )  # fmt: skip
    memory = rows[0].memory
    table.caption = (
        f"Memory of the service's parts: {memory.memory_mib:.0f} MiB; with one exchange reconciled: "
        f"{memory.memory_with_exchange_mib:.0f} MiB, and {memory.memory_of_process_mib:.0f} MiB of the process that "
        "looks."
    )
    table.caption_justify = "left"
    return table


class Account:
    """An account that answers at once, with one position for each of the ledger's."""

    venue, account, portfolio = "bybit", "main", "main"

    def __init__(self, count: int) -> None:
        self._positions = tuple(VenuePosition(f"C{n}/USDT:USDT", "short", D(1), D(10)) for n in range(count))
        self._balances = (VenueBalance("USDT", D(10**9), D(0), D(10**9)),)

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """Return the same balances and positions, with the present time."""
        moment = now_us()
        return Snapshot(self.venue, self.account, moment, moment, self._positions, self._balances)


def settle_memory() -> None:
    """Collect garbage and freeze, as the service does after its start."""
    gc.collect()
    gc.freeze()


def open_accounts(count: int, _settings: ExchangeSettings) -> list[Account]:
    """Open this account in the inspection process, instead of an exchange's."""
    return [Account(count)]


@contextmanager
def prepared(url: str, count: int, *, own_process: bool) -> Iterator[tuple[Ledger, Reconciler]]:
    """Open a ledger with `count` open positions, and a reconciler that finds them all at the exchange."""
    settings = AppSettings(
        sizing=DynamicSizingSettings(max_portfolio_exposure=D(10**9)),
        reconcile=ReconcileSettings(grace_seconds=0, stale_after_seconds=None),
        exchange=ExchangeSettings(api_key=SecretStr("none"), api_secret=SecretStr("none")),
        log_level="WARNING",
    )
    engine, reads = make_engine(url), make_engine(url, read_only=True)
    with Ledger.open(url, settings=settings) as ledger, ExitStack() as at_the_end:
        for start in range(0, count, 1000):
            ledger.submit([open_position(n) for n in range(start, min(start + 1000, count))])
        look: Inspector = LocalInspector(reads, [Account(count)], settings)
        if own_process:
            look = at_the_end.enter_context(closing(WorkerInspector(url, settings, partial(open_accounts, count))))
        reconciler = Reconciler(ledger, engine, look, settings)
        reconciler.run()  # starts the process
        settle_memory()
        yield ledger, reconciler
    engine.dispose()
    reads.dispose()


def open_position(n: int) -> Adopt:
    leg = Leg("bybit", f"C{n}/USDT:USDT", "swap", "sell", D(1), D(10))
    return Adopt(key=f"open/{n}", quantity=D(1), price=D(10), tags={"venue": "bybit", "symbol": f"C{n}"}, legs=[leg])


def measure(url: str, plan: Plan) -> Figures:
    """Measure runs alone; then, in rounds, pairs alone and pairs during consecutive runs."""
    quiet: list[float] = []
    busy: list[float] = []
    beside: list[float] = []
    ratios: list[float] = []
    with prepared(url, plan.positions, own_process=plan.own_process) as (ledger, reconciler):
        alone = [_timed(reconciler) for _ in range(3)]
        _load(ledger, plan.seconds / 4, lambda: time.sleep(0.01))  # warms up
        for _ in range(plan.rounds):
            one = _load(ledger, plan.seconds, lambda: time.sleep(0.01))
            other = _load(ledger, plan.seconds, lambda: beside.append(_timed(reconciler)))
            quiet += one
            busy += other
            ratios.append(_percentile(other, 99) / _percentile(one, 99))
    return Figures(
        median(alone), median(beside), _percentile(quiet, 50), _percentile(quiet, 99), _percentile(busy, 50),
        _percentile(busy, 99), len(quiet), len(busy), ratios,
    )  # fmt: skip


def _timed(reconciler: Reconciler) -> float:
    begun = time.perf_counter()
    (report,) = reconciler.run()
    if report.findings or report.run.outcome != "good":
        raise BenchmarkError(f"both sides agree, yet the run found {report.run.found}")
    return time.perf_counter() - begun


def _load(ledger: Ledger, seconds: float, meanwhile: Callable[[], object]) -> list[float]:
    """Return the latencies in milliseconds of pairs sent by `CALLERS` tasks of one event loop, as in the service.

    Calls `meanwhile` repeatedly in another thread, as the service's scheduler does.
    """
    end = time.perf_counter() + seconds
    beside = threading.Thread(target=_until, args=(end, meanwhile))
    beside.start()
    found = asyncio.run(_callers(ledger, end))
    beside.join()
    return found


def _until(end: float, work: Callable[[], object]) -> None:
    while time.perf_counter() < end:
        work()


async def _callers(ledger: Ledger, end: float) -> list[float]:
    name = f"{time.perf_counter_ns()}"
    found = await asyncio.gather(*(_pairs(ledger, end, f"{name}/{n}") for n in range(CALLERS)))
    return [value for one in found for value in one]


async def _pairs(ledger: Ledger, end: float, name: str) -> list[float]:
    latencies = []
    n = 0
    while (begun := time.perf_counter()) < end:
        n += 1
        held = await ledger.reserve_async(key=f"r/{name}/{n}", tags={"venue": "bybit"})
        await ledger.release_async(key=f"x/{name}/{n}", position_id=str(held.position_id))
        latencies.append((time.perf_counter() - begun) * 1000)
    return latencies


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


_SIZES = """
import sys, tempfile
from pathlib import Path
from pydantic import SecretStr
from ledger_sizer.api import create_app
from ledger_sizer.service.bootstrap import running_components
from ledger_sizer.config import AppSettings, ExchangeSettings, LedgerSettings

def mib(process):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

url, given = sys.argv[1], {}
if url:
    given = {"exchange": ExchangeSettings(
        api_key=SecretStr("paper"), api_secret=SecretStr("paper-secret"), base_url=url)}
with tempfile.TemporaryDirectory() as folder:
    settings = AppSettings(ledger=LedgerSettings(database_url=f"sqlite:///{folder}/ledger.db"), **given)
    with running_components(settings, with_jobs=False) as parts:
        looks = None
        if url:
            (report,) = parts.reconciler.run()
            assert report.run.outcome == "good", report.run
            looks = parts.reconciler.inspector.process_id
        print(mib("self"), mib(looks) if looks else 0)
"""


def measure_memory() -> Memory:
    """Measure in processes of their own. Linux only. The paper venue has 11 markets; a real one has thousands."""
    with PaperServer() as paper:
        sizes = []
        for url in ("", paper.url):
            ran: Any = subprocess.run([sys.executable, "-c", _SIZES, url], capture_output=True, text=True, check=True)
            sizes.append([float(text) for text in ran.stdout.split()])
    (without, _), (service, looks) = sizes
    return Memory(without, service, looks)
