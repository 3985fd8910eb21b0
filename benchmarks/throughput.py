"""Compares throughput and latency of reserve and release pairs across all forms, in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

from rich.table import Table

from benchmarks.baselines import HAND_WRITTEN, HOT_ROW, Form
from benchmarks.measure import Figures, Pace
from benchmarks.ours import OURS, OURS_BLOCKING, OURS_RANDOM, OURS_SIZED
from benchmarks.report import PacedPlan, in_rounds, median_round, new_table, run_plan
from benchmarks.servers import Engine, Host, scratch

OPEN_POSITIONS = 1_000
REFERENCE = HAND_WRITTEN.name
FORMS: dict[str, Form] = {
    "hand-written": HAND_WRITTEN,
    "hot-row": HOT_ROW,
    "ours": OURS,
    "ours-sync": OURS_BLOCKING,
    "ours-sized": OURS_SIZED,
    "ours-random-keys": OURS_RANDOM,
}
# Sync calls are for a bot with one cycle. A bot with many concurrent cycles uses the async methods.
LONE_CALLER_FORMS = frozenset({OURS_BLOCKING.name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(PacedPlan):
    """Parameters. callers: numbers of concurrent callers. forms: names in `FORMS`."""

    callers: tuple[int, ...]
    forms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table."""

    engine: Engine
    form: Form
    callers: int

    def __str__(self) -> str:
        return f"{self.engine}: {self.form.name}, {self.callers} callers"


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of a cell: its median round by throughput, and the spread over all rounds."""

    cell: Cell
    figures: Figures
    pairs_per_second_min: float
    pairs_per_second_max: float


def run(plan: Plan) -> None:
    """Measure and report all cells of the plan."""
    cell = f"{plan.pace_text}, a fresh database with {OPEN_POSITIONS:,} open positions"
    run_plan(plan, max(plan.callers), {"cell": cell}, partial(_rows, plan), _table, _as_json)


def _cells(plan: Plan, engine: Engine) -> Iterator[Cell]:
    for callers in plan.callers:
        for name in plan.forms:
            if callers == 1 or FORMS[name].name not in LONE_CALLER_FORMS:
                yield Cell(engine, FORMS[name], callers)


def _rows(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    cells = [(host, cell) for host in hosts for cell in _cells(plan, host.engine)]
    for cell, rounds in in_rounds(cells, plan.rounds, partial(measure, pace=plan.pace)):
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
