"""Measures the ledger's throughput against its size. It should not depend on the number of positions.

Each size is loaded once. Every round measures a copy, so that no round starts with the decisions of the previous one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figures, Pace
from benchmarks.ours import OURS
from benchmarks.report import median_round, new_table, print_conditions, progress, write_json
from benchmarks.servers import Database, Engine, Host, machine_conditions, open_hosts, scratch


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters. sizes: open positions, ascending. callers: concurrent callers."""

    engines: tuple[Engine, ...]
    sizes: tuple[int, ...]
    callers: int
    pace: Pace
    rounds: int
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Point:
    """The median round at one size. ratio: its throughput / that of the smallest size."""

    engine: Engine
    open_positions: int
    figures: Figures
    preload_seconds: float
    ratio: float


def run(plan: Plan, console: Console, json_file: Path | None) -> None:
    """Load every size, measure them in turn, print the table, and write the same figures as JSON where asked."""
    with open_hosts(plan.engines, plan.callers, plan.folder) as hosts:
        conditions = machine_conditions(plan.folder)
        for host in hosts:
            conditions |= host.conditions()
        conditions["cell"] = (
            f"{plan.callers} awaiting callers, {plan.pace.warmup_seconds:g} s warm-up, "
            f"{plan.pace.measured_seconds:g} s measured, median of {plan.rounds} round(s)"
        )
        points = [point for host in hosts for point in _points(plan, host)]
    print_conditions(console, conditions)
    console.print(_table(points))
    if json_file is not None:
        write_json(json_file, conditions, [_as_json(point) for point in points])


def _points(plan: Plan, host: Host) -> Iterator[Point]:
    measured: dict[int, list[Figures]] = {size: [] for size in plan.sizes}
    preload_seconds: dict[int, float] = {}
    with ExitStack() as stack, progress(len(plan.sizes) * (1 + plan.rounds)) as step:
        loaded: dict[int, Database] = {}
        for size in plan.sizes:
            step(f"{host.engine}: loading {size:,} open positions")
            loaded[size] = stack.enter_context(scratch(host))
            begun = perf_counter()
            OURS.prepare(loaded[size], size)
            preload_seconds[size] = perf_counter() - begun
            host.settle(loaded[size])
        for _ in range(plan.rounds):
            for size in plan.sizes:
                step(f"{host.engine}: {plan.callers} callers beside {size:,} open positions")
                with scratch(host, loaded[size]) as database:
                    host.settle(database)
                    measured[size].append(OURS.run(database, plan.callers, plan.pace).figures())
                    OURS.check(database, size)
    base = median_round(measured[plan.sizes[0]]).pairs_per_second
    for size, rounds in measured.items():
        figures = median_round(rounds)
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
