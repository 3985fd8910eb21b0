"""Measures how long the dashboard takes to open with many open positions: one client, sequential requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import httpx
from rich.console import Console

from benchmarks.measure import NS_PER_MS, percentile_ms
from benchmarks.ours import OURS
from benchmarks.report import new_table, print_conditions, progress, write_json
from benchmarks.servers import Database, Engine, Host, machine_conditions, open_hosts, scratch
from ledger_sizer import AppSettings, LedgerSettings, ServiceSettings
from ledger_sizer.api import create_app
from ledger_sizer.api.server import listen, make_server, url_of
from ledger_sizer.service.bootstrap import running_components


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters. sizes: open positions. pages: how often the page is opened."""

    engines: tuple[Engine, ...]
    sizes: tuple[int, ...]
    pages: int
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Point:
    """Milliseconds from the request to the last byte of the page. first_ms: the first page after the start."""

    engine: Engine
    open_positions: int
    first_ms: float
    median_ms: float
    worst_ms: float
    page_kib: float


def run(plan: Plan, console: Console, json_file: Path | None) -> None:
    """Load each size, open the page, print the table, and write the same figures as JSON where asked."""
    with open_hosts(plan.engines, 1, plan.folder) as hosts:
        conditions = machine_conditions(plan.folder)
        for host in hosts:
            conditions |= host.conditions()
        conditions["cell"] = f"{plan.pages} pages one after another over loopback, no live updates meanwhile"
        points = [point for host in hosts for point in _points(plan, host)]
    print_conditions(console, conditions)
    table = new_table("Opening the dashboard", ["engine"], ["open positions", "first ms", "median", "worst", "KiB"])
    for point in points:
        table.add_row(
            point.engine, f"{point.open_positions:,}", f"{point.first_ms:.0f}", f"{point.median_ms:.0f}",
            f"{point.worst_ms:.0f}", f"{point.page_kib:.0f}",
        )  # fmt: skip
    console.print(table)
    if json_file is not None:
        rows: list[dict[str, Any]] = [asdict(point) for point in points]
        write_json(json_file, conditions, rows)


def _points(plan: Plan, host: Host) -> Iterator[Point]:
    with progress(len(plan.sizes)) as step:
        for size in plan.sizes:
            step(f"{host.engine}: beside {size:,} open positions")
            with scratch(host) as database:
                OURS.prepare(database, size)
                host.settle(database)
                yield _opened(host.engine, database, size, plan.pages)


def _opened(engine: Engine, database: Database, size: int, pages: int) -> Point:
    with _serving(database) as url, httpx.Client(base_url=url, timeout=60) as client:
        taken_ns = []
        length = 0
        for _ in range(pages + 1):
            begun = perf_counter_ns()
            page = client.get("/").raise_for_status()
            taken_ns.append(perf_counter_ns() - begun)
            length = len(page.content)
    ordered = sorted(taken_ns[1:])
    return Point(
        engine, size, taken_ns[0] / NS_PER_MS, percentile_ms(ordered, 0.5), ordered[-1] / NS_PER_MS, length / 1024
    )


@contextmanager
def _serving(database: Database) -> Iterator[str]:
    settings = AppSettings(ledger=LedgerSettings(database_url=database.url), service=ServiceSettings(port=0))
    with running_components(settings) as parts, listen(settings.service) as listening:
        app = create_app(
            parts.ledger, settings.service, reads_engine=parts.reads, keys=parts.keys, metrics=parts.metrics
        )
        listening.listen(128)
        server = make_server(app, settings.service)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield url_of(listening)
        finally:
            server.should_exit = True
            thread.join()
