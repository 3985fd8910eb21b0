"""Measures the ledger's throughput against its size. It should not depend on the number of positions.

Each size is loaded once. Every round measures a copy, so that no round starts with the decisions of the previous one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from time import perf_counter
from typing import Any

from rich.table import Table

from benchmarks.measure import Figures
from benchmarks.ours import OURS
from benchmarks.report import PacedPlan, in_rounds, median_round, new_table, progress, run_plan
from benchmarks.servers import Database, Engine, Host, scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(PacedPlan):
    """Parameters. sizes: open positions, ascending. callers: concurrent callers."""

    sizes: tuple[int, ...]
    callers: int


@dataclass(frozen=True, slots=True)
class Point:
    """The median round at one size. ratio: its throughput / that of the smallest size."""

    engine: Engine
    open_positions: int
    figures: Figures
    preload_seconds: float
    ratio: float


def run(plan: Plan) -> None:
    """Load every size, measure them in turn, and report."""

    def points(hosts: list[Host]) -> Iterator[Point]:
        for host in hosts:
            yield from _points(plan, host)

    cell = f"{plan.callers} awaiting callers, {plan.pace_text}"
    run_plan(plan, plan.callers, {"cell": cell}, points, _table, _as_json)


def _points(plan: Plan, host: Host) -> Iterator[Point]:
    preload_seconds: dict[int, float] = {}
    with ExitStack() as stack:
        loaded: dict[int, Database] = {}
        with progress(len(plan.sizes)) as step:
            for size in plan.sizes:
                step(f"{host.engine}: loading {size:,} open positions")
                loaded[size] = stack.enter_context(scratch(host))
                begun = perf_counter()
                OURS.prepare(loaded[size], size)
                preload_seconds[size] = perf_counter() - begun
                host.settle(loaded[size])

        def measure(host: Host, size: int) -> Figures:
            with scratch(host, loaded[size]) as database:
                host.settle(database)
                figures = OURS.run(database, plan.callers, plan.pace).figures()
                OURS.check(database, size)
            return figures

        base: float | None = None
        for size, rounds in in_rounds([(host, size) for size in plan.sizes], plan.rounds, measure):
            figures = median_round(rounds)
            base = base or figures.pairs_per_second
            yield Point(host.engine, size, figures, preload_seconds[size], figures.pairs_per_second / base)


def _table(points: list[Point]) -> Table:
    table = new_table(
        "Reserve and release beside what the ledger already holds. Latencies in ms.",
        ("engine",),
        ("open positions", "pairs/s", "of the smallest", "pair p50", "pair p99", "pair max", "loaded in s"),
    )
    for _, members in groupby(points, key=lambda point: point.engine):
        for point in members:
            table.add_row(
                point.engine,
                f"{point.open_positions:,}",
                f"{point.figures.pairs_per_second:,.0f}",
                f"{point.ratio:.2f}x",
                f"{point.figures.pair_p50_ms:,.2f}",
                f"{point.figures.pair_p99_ms:,.2f}",
                f"{point.figures.pair_max_ms:,.0f}",
                f"{point.preload_seconds:,.1f}",
            )
        table.add_section()
    return table


def _as_json(point: Point) -> dict[str, Any]:
    return {
        "engine": point.engine,
        "open_positions": point.open_positions,
        "ratio": point.ratio,
        "preload_seconds": point.preload_seconds,
        **asdict(point.figures),
    }
