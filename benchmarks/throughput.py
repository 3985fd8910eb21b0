"""Compares throughput and latency of reserve and release pairs across all forms, in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.baselines import HAND_WRITTEN, HOT_ROW, Form
from benchmarks.measure import Figures, Pace
from benchmarks.ours import OURS, OURS_BLOCKING, OURS_RANDOM, OURS_SIZED
from benchmarks.report import median_round, new_table, print_conditions, progress, write_json
from benchmarks.rows import ROWS
from benchmarks.servers import Engine, Host, machine_conditions, open_hosts, scratch

OPEN_POSITIONS = 1_000
REFERENCE = HAND_WRITTEN.name
FORMS: dict[str, Form] = {
    "hand-written": HAND_WRITTEN,
    "hot-row": HOT_ROW,
    "ours": OURS,
    "ours-sync": OURS_BLOCKING,
    "ours-sized": OURS_SIZED,
    "ours-random-keys": OURS_RANDOM,
    "rows": ROWS,
}
# Sync calls are for a bot with one cycle. A bot with many concurrent cycles uses the async methods.
LONE_CALLER_FORMS = frozenset({OURS_BLOCKING.name, ROWS.name})


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters. Rounds repeat the whole list of cells, so that a slow minute of the machine affects every form."""

    engines: tuple[Engine, ...]
    callers: tuple[int, ...]
    forms: tuple[str, ...]
    pace: Pace
    rounds: int
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table."""

    engine: Engine
    form: Form
    callers: int


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a cell: its median round by throughput, and the spread over all rounds."""

    cell: Cell
    figures: Figures
    pairs_per_second_min: float
    pairs_per_second_max: float


def run(plan: Plan, console: Console, json_file: Path | None) -> None:
    """Run the plan, print the table, and write the same figures as JSON where asked."""
    with open_hosts(plan.engines, max(plan.callers), plan.folder) as hosts:
        conditions = machine_conditions(plan.folder)
        for host in hosts:
            conditions |= host.conditions()
        conditions["cell"] = (
            f"{plan.pace.warmup_seconds:g} s warm-up, {plan.pace.measured_seconds:g} s measured, "
            f"median of {plan.rounds} round(s), a fresh database with {OPEN_POSITIONS:,} open positions"
        )
        rows = list(_rows(plan, hosts))
    print_conditions(console, conditions)
    console.print(_table(rows))
    if json_file is not None:
        write_json(json_file, conditions, [_as_json(row) for row in rows])


def _cells(plan: Plan, engine: Engine) -> Iterator[Cell]:
    for callers in plan.callers:
        for name in plan.forms:
            if callers == 1 or FORMS[name].name not in LONE_CALLER_FORMS:
                yield Cell(engine, FORMS[name], callers)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    cells = [(host, cell) for host in hosts for cell in _cells(plan, host.engine)]
    measured: list[list[Figures]] = [[] for _ in cells]
    with progress(len(cells) * plan.rounds) as step:
        for _ in range(plan.rounds):
            for (host, cell), rounds in zip(cells, measured, strict=True):
                step(f"{cell.engine}: {cell.form.name}, {cell.callers} callers")
                rounds.append(measure(host, cell, plan.pace))
    for (_, cell), rounds in zip(cells, measured, strict=True):
        speeds = [figures.pairs_per_second for figures in rounds]
        yield Row(cell, median_round(rounds), min(speeds), max(speeds))


def measure(host: Host, cell: Cell, pace: Pace) -> Figures:
    """Measure one cell on its own database, and check the result."""
    with scratch(host) as database:
        cell.form.prepare(database, OPEN_POSITIONS)
        host.settle(database)
        figures = cell.form.run(database, cell.callers, pace).figures()
        cell.form.check(database, OPEN_POSITIONS)
    return figures


def _table(rows: list[Row]) -> Table:
    table = new_table(
        "One reserve and its release, each answered once it is durable. Latencies in ms, CPU in us per command.",
        ("engine", "form"),
        ("callers", "pairs/s", "vs hand", "pair p50", "pair p99", "pair max", "call p50", "call p99", "CPU us"),
    )
    reference = {
        (row.cell.engine, row.cell.callers): row.figures.pairs_per_second
        for row in rows
        if row.cell.form.name == REFERENCE
    }
    for group, members in groupby(rows, key=lambda row: (row.cell.engine, row.cell.callers)):
        base = reference.get(group)
        for row in members:
            figures = row.figures
            table.add_row(
                row.cell.engine,
                row.cell.form.name,
                str(row.cell.callers),
                f"{figures.pairs_per_second:,.0f}",
                f"{figures.pairs_per_second / base:.1f}x" if base else "-",
                f"{figures.pair_p50_ms:,.2f}",
                f"{figures.pair_p99_ms:,.2f}",
                f"{figures.pair_max_ms:,.0f}",
                f"{figures.call_p50_ms:,.2f}",
                f"{figures.call_p99_ms:,.2f}",
                f"{figures.cpu_us_per_command:,.0f}" if figures.cpu_us_per_command else "-",
            )
        table.add_section()
    return table


def _as_json(row: Row) -> dict[str, Any]:
    return {
        "engine": row.cell.engine,
        "form": row.cell.form.name,
        "callers": row.cell.callers,
        **asdict(row.figures),
        "pairs_per_second_min": row.pairs_per_second_min,
        "pairs_per_second_max": row.pairs_per_second_max,
    }
