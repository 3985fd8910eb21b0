"""Compares the HTTP service with a hand-written one: pairs per second, latencies, start time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table

from benchmarks import hand_service
from benchmarks.baselines import PORTFOLIO, RESERVED_USD
from benchmarks.load import LoadRun
from benchmarks.measure import BenchmarkError, Figures, Pace
from benchmarks.ours import OURS
from benchmarks.report import PacedPlan, in_rounds, median_round, new_table, run_plan
from benchmarks.servers import Database, Engine, Host, scratch

OPEN_POSITIONS = 1_000
BATCH_COMMANDS = 100
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0
LOAD_SECONDS_SPARE = 120.0
LOG_TAIL_BYTES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(PacedPlan):
    """Parameters. callers, batch_callers: numbers of clients that send single and batch calls."""

    callers: tuple[int, ...]
    batch_callers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table. service: `hand` or `ours`. commands: per HTTP call."""

    engine: Engine
    service: str
    callers: int
    commands: int = 1

    def __str__(self) -> str:
        return f"{self.engine}: {self.service}, {self.callers} clients, {self.commands} a call"


@dataclass(frozen=True, slots=True)
class Round:
    """Figures of one run of a cell. idle_mb: resident memory before the first request; None where unknown."""

    figures: Figures
    ready_seconds: float
    idle_mb: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A cell's median round, and the spread of its throughput over all rounds."""

    cell: Cell
    round: Round
    pairs_per_second_min: float
    pairs_per_second_max: float

    @property
    def pairs_per_second(self) -> float:
        """Reserve+release pairs; a batch call has many."""
        return self.round.figures.pairs_per_second * self.cell.commands


@dataclass(frozen=True, slots=True)
class Running:
    """A service under test."""

    port: int
    ready_seconds: float
    idle_mb: float | None


def run(plan: Plan) -> None:
    """Measure and report all cells of the plan."""
    cell = (
        f"{plan.pace_text}, a fresh database with {OPEN_POSITIONS:,} open positions, "
        "service and load in one process each"
    )
    run_plan(plan, hand_service.POOL_SIZE, {"cell": cell}, partial(_rows, plan), _table, _as_json)


def _cells(plan: Plan, engine: Engine) -> Iterator[Cell]:
    for callers in plan.callers:
        yield Cell(engine, "hand", callers)
        yield Cell(engine, "ours", callers)
    for callers in plan.batch_callers:
        yield Cell(engine, "ours", callers, BATCH_COMMANDS)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    cells = [(host, cell) for host in hosts for cell in _cells(plan, host.engine)]
    for cell, rounds in in_rounds(cells, plan.rounds, partial(measure, pace=plan.pace)):
        speeds = [one.figures.pairs_per_second * cell.commands for one in rounds]
        median = median_round([one.figures for one in rounds])
        chosen = next(one for one in rounds if one.figures is median)
        yield Row(cell, chosen, min(speeds), max(speeds))


def measure(host: Host, cell: Cell, pace: Pace) -> Round:
    """Measure one cell with its own database and service process, and check the result."""
    with scratch(host) as database:
        token = _prepare(cell, database)
        host.settle(database)
        with serving(cell.service, database) as service:
            figures = _load(
                LoadRun(
                    service.port, cell.service, cell.callers, cell.commands,
                    pace.warmup_seconds, pace.measured_seconds, token,
                )
            )  # fmt: skip
        _check(cell, database)
    return Round(figures, service.ready_seconds, service.idle_mb)


def _prepare(cell: Cell, database: Database) -> str:
    """Fill the database; return the API key for our service."""
    if cell.service == "hand":
        hand_service.prepare(database.url, OPEN_POSITIONS)
        return ""
    from ledger_sizer import Ledger
    from ledger_sizer.service.api_keys import create_key
    from ledger_sizer.storage.database import make_engine

    OURS.prepare(database, OPEN_POSITIONS)
    with Ledger.open(database.url) as ledger:
        # Headroom for exactly what all clients hold at once: a leaked hold ends in a denial.
        room_usd = cell.callers * cell.commands * RESERVED_USD
        cap_usd = ledger.exposure(PORTFOLIO).open + room_usd
        ledger.set_cap(key="bench/cap", portfolio=PORTFOLIO, cap=cap_usd)
        settings = ledger.settings.ledger
    engine = make_engine(database.url, settings)
    try:
        return create_key(engine, "benchmark", "trade").token
    finally:
        engine.dispose()


def _check(cell: Cell, database: Database) -> None:
    if cell.service == "ours":
        OURS.check(database, OPEN_POSITIONS)
    elif (left := hand_service.position_counts(database.url)) != (OPEN_POSITIONS, 0):
        raise BenchmarkError(f"the hand-written service left (open, held) = {left} on {database.engine}")


@contextmanager
def serving(name: str, database: Database) -> Iterator[Running]:
    """Run a service process, until it has drained."""
    if name == "hand":
        command, ready_path = ["-m", "benchmarks.hand_service", database.url], "/openapi.json"
    else:
        command, ready_path = ["-m", "ledger_sizer", "serve", "--port", "0"], "/readyz"
    own = {"SIZING_ENABLED": "true", "LEDGER_DATABASE_URL": database.url, "LOG_LEVEL": "WARNING"}
    started = perf_counter()
    child = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, env={**os.environ, **own}, text=True
    )  # fmt: skip
    try:
        url = _address(child, name)
        _await_ready(url + ready_path)
        yield Running(urlsplit(url).port or 0, perf_counter() - started, _resident_mb(child.pid))
        child.terminate()
        child.wait(STOP_SECONDS_MAX)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _address(child: subprocess.Popen[str], name: str) -> str:
    """Return the address that the service prints when it listens."""
    assert child.stdout is not None
    watchdog = threading.Timer(START_SECONDS_MAX, child.kill)
    watchdog.start()
    try:
        line = child.stdout.readline()
    finally:
        watchdog.cancel()
    if "http://" not in line:
        raise BenchmarkError(f"the service {name!r} did not start: {line!r}; its log stands above")
    return line.split()[-1]


def _await_ready(url: str) -> None:
    end = perf_counter() + START_SECONDS_MAX
    while perf_counter() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()
            return
        except (urllib.error.URLError, OSError):
            sleep(0.01)
    raise BenchmarkError(f"{url} was not ready within {START_SECONDS_MAX:g} s")


def _resident_mb(process: int) -> float | None:
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def _load(load_run: LoadRun) -> Figures:
    """Run the load generator in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(load_run))],
        capture_output=True,
        text=True,
        check=False,
        timeout=load_run.warmup_seconds + load_run.measured_seconds + LOAD_SECONDS_SPARE,
    )
    if done.returncode != 0:
        raise BenchmarkError(
            f"{load_run.service} with {load_run.callers} clients: {done.stderr.strip()[-LOG_TAIL_BYTES:]}"
        )
    return Figures(**json.loads(done.stdout))


_NAMES = {"hand": "by hand", "ours": "ledger"}


def _table(rows: list[Row]) -> Table:
    table = new_table(
        "Reserve and release over HTTP, keep-alive, each answered once it is durable. Latencies in ms.",
        ("engine", "service"),
        (
            "clients", "a call", "pairs/s", "cmds/s", "vs hand", "pair p50", "pair p99", "call p50", "call p99",
            "ready s", "idle MB",
        ),
    )  # fmt: skip
    reference = {
        (row.cell.engine, row.cell.callers): row.pairs_per_second for row in rows if row.cell.service == "hand"
    }
    for _, members in groupby(rows, key=lambda row: (row.cell.engine, row.cell.callers, row.cell.commands)):
        for row in members:
            cell, figures = row.cell, row.round.figures
            base = reference.get((cell.engine, cell.callers))
            table.add_row(
                cell.engine,
                _NAMES[cell.service],
                str(cell.callers),
                str(cell.commands),
                f"{row.pairs_per_second:,.0f}",
                f"{2 * row.pairs_per_second:,.0f}",
                f"{row.pairs_per_second / base:.1f}x" if base else "-",
                f"{figures.pair_p50_ms:,.1f}",
                f"{figures.pair_p99_ms:,.1f}",
                f"{figures.call_p50_ms:,.1f}",
                f"{figures.call_p99_ms:,.1f}",
                f"{row.round.ready_seconds:.2f}",
                "-" if row.round.idle_mb is None else f"{row.round.idle_mb:.0f}",
            )
        table.add_section()
    return table


def _as_json(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.cell),
        **asdict(row.round.figures),
        "pairs_per_second": row.pairs_per_second,
        "commands_per_second": 2 * row.pairs_per_second,
        "ready_seconds": row.round.ready_seconds,
        "idle_mb": row.round.idle_mb,
        "pairs_per_second_min": row.pairs_per_second_min,
        "pairs_per_second_max": row.pairs_per_second_max,
    }
