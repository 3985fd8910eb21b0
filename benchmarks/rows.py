"""Compares forms of the table of decisions (`row_forms`): what storing a decision and reading it cost in each.

All forms store the same decisions, which the ledger made, in the same commits and in turns.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

from rich.table import Table

from benchmarks import throughput
from benchmarks.history import fill
from benchmarks.measure import BenchmarkError, Pace
from benchmarks.ours import OURS
from benchmarks.report import Plan as SharedPlan
from benchmarks.report import new_table, progress, run_plan
from benchmarks.row_forms import LAYOUTS, Stored, opened
from benchmarks.row_reads import READS, Columns, Reader, Texts
from benchmarks.servers import Engine, Host
from ledger_sizer.storage.database import upgrade
from ledger_sizer.storage.write_store import DECISION_COLUMNS

BATCHES = {1: 100, 16: 50, 64: 40}
"""Rows of a commit, and commits of a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SharedPlan):
    """Parameters. rows: of the long table. rounds: each form stores the same rows. pace: of whole commands."""

    rows: int
    rounds: int
    pace: Pace


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of each form. cpu: of this process, and of the PostgreSQL backend if it runs on this machine.

    ratio: CPU compared with `wide` in the same round, the median.
    """

    engine: Engine
    what: str
    unit: str
    cpu: dict[str, float]
    wall: dict[str, float]
    ratio: dict[str, float]


Spent = dict[str, list[tuple[float, float]]]
"""CPU and wall time of each form, one of each round."""


def run(plan: Plan) -> None:
    """Measure and report all figures of the plan."""
    forms = (
        f"{plan.rounds} rounds in turns; decisions asked of the ledger; actor, client, reference: 20 characters each"
    )
    run_plan(plan, 4, {"forms": forms}, partial(_figures, plan), _table, asdict)


def _figures(plan: Plan, hosts: list[Host]) -> Iterator[Row]:
    from ledger_sizer import Ledger

    with tempfile.TemporaryDirectory(prefix="ledger-rows-", dir=plan.folder) as folder, progress(3) as step:
        path = Path(folder) / "source.db"
        step("making decisions")
        upgrade(f"sqlite:///{path}")
        with Ledger.open(f"sqlite:///{path}") as ledger:
            fill(ledger, plan.rows + 2 * plan.rounds * sum(size * count for size, count in BATCHES.items()))
        for host in hosts:
            step(f"{host.engine}: storing and reading")
            yield from _figures_on(plan, host, path)


def _figures_on(plan: Plan, host: Host, path: Path) -> Iterator[Row]:
    with ExitStack() as stack:
        tables = {layout: stack.enter_context(opened(host, layout)) for layout in LAYOUTS}
        source = stack.enter_context(closing(sqlite3.connect(path)))
        rows = source.execute(f"SELECT {', '.join(DECISION_COLUMNS)} FROM decisions ORDER BY seq")
        yield from _writes(plan, tables, rows, "empty table").values()
        before = {layout: table.bytes() for layout, table in tables.items()}
        for _ in range(0, plan.rows, 1000):
            some = rows.fetchmany(1000)
            for table in tables.values():
                table.store(some)
        for table in tables.values():
            table.settle()
        size = {layout: (table.bytes() - before[layout]) / plan.rows for layout, table in tables.items()}
        yield Row(host.engine, "size", "B/row", size, {}, {layout: size[layout] / size["wide"] for layout in size})
        stored = _writes(plan, tables, rows, f"{plan.rows:,} rows")
        yield from stored.values()
        for table in tables.values():
            table.settle()
        yield from _reads(min(plan.rounds, 5), tables)
    for callers in BATCHES if host.engine == "sqlite" else ():
        cell = throughput.Cell("sqlite", OURS, callers)
        us = median(
            throughput.measure(host, cell, plan.pace).cpu_us_per_command or 0 for _ in range(min(plan.rounds, 3))
        )
        share = {layout: 100 * cpu / us for layout, cpu in stored[callers].cpu.items()}
        yield Row("sqlite", f"of a command's {us:.0f} us, {callers} callers", "%", share, {}, {})


def _writes(plan: Plan, tables: dict[str, Stored], rows: sqlite3.Cursor, where: str) -> dict[int, Row]:
    """Store the same batches in every form, and each round in another order. Returns the figures by batch."""
    taken: dict[int, Spent] = {size: {layout: [] for layout in LAYOUTS} for size in BATCHES}
    for turn in range(plan.rounds):
        for size, count in BATCHES.items():
            batches = [rows.fetchmany(size) for _ in range(count)]
            for layout in [*LAYOUTS[turn % 3 :], *LAYOUTS[: turn % 3]]:
                spent = [tables[layout].store(batch) for batch in batches]
                cpu, wall = (sum(one) / 1e3 / size / count for one in zip(*spent, strict=True))
                taken[size][layout].append((cpu, wall))
    engine = tables["wide"].engine
    return {size: _row(engine, f"{where}, {size} a commit", "us/row", spent) for size, spent in taken.items()}


def _row(engine: Engine, what: str, unit: str, taken: Spent) -> Row:
    cpu = {layout: mean(one[0] for one in rounds) for layout, rounds in taken.items()}
    wall = {layout: mean(one[1] for one in rounds) for layout, rounds in taken.items()}
    pairs = {layout: zip(rounds, taken["wide"], strict=True) for layout, rounds in taken.items()}
    return Row(
        engine, what, unit, cpu, wall, {layout: median(a[0] / b[0] for a, b in of) for layout, of in pairs.items()}
    )


def _reads(rounds: int, tables: dict[str, Stored]) -> Iterator[Row]:
    wide, narrow = tables["wide"], tables["narrow"]
    readers: tuple[Reader, Reader] = (Columns(wide), Texts(narrow))
    ((last,),) = wide.read("SELECT max(seq) FROM decisions")
    for what, call in READS.items():
        answers = [call(reader, last) for reader in readers]
        if answers[0] != answers[1]:
            raise BenchmarkError(f"{what}: the forms answer {answers[0]!r:.200} and {answers[1]!r:.200}")
        taken: Spent = {"wide": [], "narrow": []}
        for _ in range(rounds):
            for table, reader in zip((wide, narrow), readers, strict=True):
                cpu, wall = table.timed(partial(call, reader, last))
                taken[table.layout].append((cpu / 1e6, wall / 1e6))
        yield _row(wide.engine, f"{last:,} rows, {what}", "ms", taken)


def _table(rows: list[Row]) -> Table:
    numbers = [name for layout in LAYOUTS for name in (layout, "wall", "ratio")]
    title = "CPU of each form, its wall time, and the ratio of its CPU to that of wide (the median of the rounds)."
    table = new_table(title, ("engine", "what", "unit"), [*numbers[:2], *numbers[3:]])
    for row in rows:
        cells: list[str] = []
        for layout in LAYOUTS:
            found = [of.get(layout) for of in (row.cpu, row.wall)]
            cells += ["-" if one is None else f"{one:,.{1 if one < 100 else 0}f}" for one in found]
            if layout != "wide":
                cells.append(f"{row.ratio[layout]:.2f}x" if layout in row.ratio else "-")
        table.add_row(row.engine, row.what, row.unit, *cells)
    return table
