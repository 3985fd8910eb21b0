"""Measures reads of a long history: pages, filters, exports, verification, archive (figures in docs/performance.md)."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx
from rich.table import Table

from benchmarks.history import PORTFOLIO, RARE_SYMBOL, fill
from benchmarks.measure import BenchmarkError
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, progress, run_plan
from benchmarks.servers import Database, Engine, Host, scratch
from benchmarks.service import serving
from ledger_sizer.model.choices import ExportForm

if TYPE_CHECKING:
    from ledger_sizer import Ledger

REPEATS = 20
FORMS: dict[ExportForm, str] = {"csv": "text/csv", "ndjson": "application/x-ndjson"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters. decisions: length of the history."""

    decisions: int


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. rows: that the measured call returned or read."""

    engine: Engine
    what: str
    rows: int
    value: float
    unit: str


def run(plan: Plan) -> None:
    """Measure and report all figures of the plan."""
    history = (
        f"{plan.decisions:,} decisions asked of the ledger and committed by it; pages of 100, the slowest of "
        f"{REPEATS} after one to warm up"
    )
    run_plan(plan, 4, {"history": history}, partial(_rows, plan), _table, asdict)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    for host in hosts:
        yield from _rows_on(plan, host)


def _rows_on(plan: Plan, host: Host) -> Iterator[Row]:
    from ledger_sizer import Ledger
    from ledger_sizer.storage.database import upgrade

    with scratch(host) as database, tempfile.TemporaryDirectory(prefix="ledger-audit-") as folder:
        upgrade(database.url)
        with progress(plan.decisions) as step, Ledger.open(database.url) as ledger:
            step(f"{host.engine}: making {plan.decisions:,} decisions")
            begun = perf_counter()
            last = fill(ledger, plan.decisions)
            yield Row(host.engine, "made", last, last / (perf_counter() - begun), "decisions/s")
        host.settle(database)
        with Ledger.open(database.url) as ledger:
            yield from _pages(host.engine, ledger)
            yield from _overviews(host.engine, ledger)
            yield from _exports(host.engine, ledger, last)
            yield from _exports_through_interfaces(host.engine, database, last, Path(folder))
            yield from _verifications(host.engine, ledger, database, last, Path(folder))


def _pages(engine: Engine, ledger: Ledger) -> Iterator[Row]:
    """Measure one page per filter: the slowest of `REPEATS` reads."""
    first = ledger.decision(1, PORTFOLIO)
    last = ledger.history(PORTFOLIO, limit=1)[0]
    middle = first.decided_at + (last.decided_at - first.decided_at) / 2
    busy = ledger.decision((last.seq or 0) // 2, PORTFOLIO).record.position or 1
    filters_by_name: dict[str, dict[str, Any]] = {
        "first page": {},
        "rare symbol": {"symbol": RARE_SYMBOL},
        "symbol of nothing": {"symbol": "NOTHING"},
        "rare command": {"command": "halt"},
        "command never used": {"command": "extend"},
        "denied": {"outcome": "denied"},
        "reason never given": {"reason": "reducing"},
        "rare, before the middle": {"symbol": RARE_SYMBOL, "until": middle},
        "from the middle, oldest first": {"since": middle, "ascending": True},
        "symbol, strategy and outcome": {"symbol": "ETH", "strategy": "basis", "outcome": "granted"},
        "one position": {"position_id": f"{PORTFOLIO}-{busy}"},
    }
    for what, filters in filters_by_name.items():

        def read(filters: dict[str, Any] = filters) -> int:
            return len(ledger.history(PORTFOLIO, **filters))

        rows, slowest_ms = _slowest(read)
        yield Row(engine, what, rows, slowest_ms, "ms")


def _slowest(read: Callable[[], int]) -> tuple[int, float]:
    rows, slowest = read(), 0.0
    for _ in range(REPEATS):
        begun = perf_counter()
        read()
        slowest = max(slowest, perf_counter() - begun)
    return rows, slowest * 1000


def _exports(engine: Engine, ledger: Ledger, last: int) -> Iterator[Row]:
    """Measure full exports without writing them, and how much the peak memory grew in the second half."""
    for form in FORMS:
        for full in (False, True):
            what = f"export {form.upper()}{', every field' if full else ''}"
            rows, half_kib, begun = 0, 0, perf_counter()
            for part in ledger.export(PORTFOLIO, form, full=full):
                rows += part.count(b"\n")
                half_kib = _peak_kib() if rows < last // 2 else half_kib
            seconds = perf_counter() - begun
            yield _export_row(engine, what, form, rows, last, seconds)
            yield Row(engine, f"{what}: more memory", rows, (_peak_kib() - half_kib) / 1024, "MiB")


def _exports_through_interfaces(engine: Engine, database: Database, last: int, folder: Path) -> Iterator[Row]:
    """Measure full exports by the command line (its start included) and over HTTP to a client that only counts rows.

    Measures the dashboard's page there too.
    """
    for form in FORMS:
        target = folder / f"history.{form}"
        command = [sys.executable, "-m", "ledger_sizer", "history", "--export", form, "--out", str(target)]
        begun = perf_counter()
        subprocess.run([*command, "--portfolio", PORTFOLIO, "--database-url", database.url], check=True)
        seconds = perf_counter() - begun
        with target.open("rb") as file:
            rows = sum(1 for _ in file)
        target.unlink()
        yield _export_row(engine, f"export {form.upper()}, every field, command line", form, rows, last, seconds)
    with serving("ours", database) as service:
        for form, media_type in FORMS.items():
            url = f"http://127.0.0.1:{service.port}/v1/decisions?full=true&portfolio={PORTFOLIO}"
            begun = perf_counter()
            with httpx.stream("GET", url, headers={"Accept": media_type}, timeout=60) as answer:
                answer.raise_for_status()
                rows = sum(part.count(b"\n") for part in answer.iter_raw())
            seconds = perf_counter() - begun
            yield _export_row(engine, f"export {form.upper()}, every field, over HTTP", form, rows, last, seconds)
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
            length, slowest_ms = _slowest(lambda: len(client.get("/").raise_for_status().content))
        yield Row(engine, "dashboard page over HTTP, bytes", length, slowest_ms, "ms")


def _export_row(engine: Engine, what: str, form: str, rows: int, last: int, seconds: float) -> Row:
    rows -= form == "csv"  # the header line
    if rows != last:
        raise BenchmarkError(f"{what} on {engine} wrote {rows} of {last} decisions")
    return Row(engine, what, rows, rows / seconds, "rows/s")


def _overviews(engine: Engine, ledger: Ledger) -> Iterator[Row]:
    """Measure the dashboard's overview, whose exposure series covers this whole history."""
    from ledger_sizer.model.overview import OverviewQuery

    for what in ("first", "second"):
        overview, seconds = _timed(lambda: ledger.overview(OverviewQuery(PORTFOLIO)))
        yield Row(engine, f"overview, {what} look", len(overview.detail.line.points), seconds * 1000, "ms")


def _verifications(engine: Engine, ledger: Ledger, database: Database, last: int, folder: Path) -> Iterator[Row]:
    """Measure `exposure --as-of` the middle, `verify` before and after archiving, and archiving."""
    begun = perf_counter()
    ledger.exposure(PORTFOLIO, as_of=last // 2)
    yield Row(engine, "exposure as of the middle", last // 2, (perf_counter() - begun) * 1000, "ms")
    yield _verify_row(engine, ledger, "verify", last)
    head = ledger.decision(last * 9 // 10, PORTFOLIO)
    report, seconds = _timed(lambda: ledger.verify(since={PORTFOLIO: (head.seq or 0, head.hash or "")}))
    yield Row(engine, "verify the last tenth, from a trusted head", report.decisions, seconds * 1000, "ms")
    moved, seconds = _timed(lambda: _archive(database, folder))
    yield Row(engine, "archive", moved.decisions, moved.decisions / seconds, "decisions/s")
    yield _verify_row(engine, ledger, "verify, all archived", last)
    rows, slowest_ms = _slowest(lambda: len(ledger.history(PORTFOLIO)))
    yield Row(engine, "first page, all archived", rows, slowest_ms, "ms")


def _archive(database: Database, folder: Path) -> Any:
    """Archive without waiting for the key window, which `Ledger.archive` would refuse."""
    from ledger_sizer.history.archiver import archive
    from ledger_sizer.storage.database import make_engine

    reads, writes, now = make_engine(database.url, read_only=True), make_engine(database.url), datetime.now(UTC)
    try:
        return archive(reads, writes, now, now, folder, PORTFOLIO)
    finally:
        reads.dispose()
        writes.dispose()


def _verify_row(engine: Engine, ledger: Ledger, what: str, last: int) -> Row:
    report, seconds = _timed(partial(ledger.verify, PORTFOLIO))
    if not report.ok or report.decisions != last:
        raise BenchmarkError(f"{what} on {engine}: {report.first}, {report.decisions} of {last} decisions")
    return Row(engine, what, last, last / seconds, "decisions/s")


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = perf_counter()
    return call(), perf_counter() - begun


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _table(rows: list[Row]) -> Table:
    table = new_table("Looking back.", ("engine", "what"), ("rows", "figure", "unit"))
    for row in rows:
        table.add_row(row.engine, row.what, f"{row.rows:,}", f"{row.value:,.1f}", row.unit)
    return table
