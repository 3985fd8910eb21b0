"""Runs a plan and reports it: the conditions, a progress bar, a table, and the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks.measure import Figures, Pace
from benchmarks.servers import Engine, Host, machine_conditions, open_hosts

WIDTH = 124

CellT = TypeVar("CellT")
RoundT = TypeVar("RoundT")
RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Parameters of every command. folder: of the databases; None for the system's temporary folder."""

    engines: tuple[Engine, ...]
    folder: Path | None = None
    json_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedPlan(Plan):
    """A plan of timed cells."""

    pace: Pace
    rounds: int = 1

    @property
    def pace_text(self) -> str:
        """How long each cell takes."""
        return (
            f"{self.pace.warmup_seconds:g} s warm-up, {self.pace.measured_seconds:g} s measured, "
            f"median of {self.rounds} round(s)"
        )


def run_plan(
    plan: Plan,
    callers_max: int,
    own_conditions: Mapping[str, str],
    measure: Callable[[list[Host]], Iterable[RowT]],
    table: Callable[[list[RowT]], Table],
    as_json: Callable[[RowT], Mapping[str, Any]],
) -> None:
    """Measure on the plan's hosts, print conditions and table, write the same figures as JSON where asked.

    own_conditions: of this command, shown below those of the machine and the databases.
    """
    with open_hosts(plan.engines, callers_max, plan.folder) as hosts:
        conditions = machine_conditions(plan.folder)
        for host in hosts:
            conditions |= host.conditions()
        conditions |= own_conditions
        rows = list(measure(hosts))
    console = new_console()
    print_conditions(console, conditions)
    console.print(table(rows))
    if plan.json_file is not None:
        document = {"conditions": conditions, "rows": [dict(as_json(row)) for row in rows]}
        plan.json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def in_rounds(
    cells: Sequence[tuple[Host, CellT]], rounds: int, measure: Callable[[Host, CellT], RoundT]
) -> Iterator[tuple[CellT, list[RoundT]]]:
    """Measure every cell once a round, and yield each with its rounds. The progress bar shows a cell as its text.

    Rounds repeat the whole list of cells, so that a slow minute of the machine affects every form.
    """
    measured: list[list[RoundT]] = [[] for _ in cells]
    with progress(len(cells) * rounds) as step:
        for _ in range(rounds):
            for (host, cell), own in zip(cells, measured, strict=True):
                step(str(cell))
                own.append(measure(host, cell))
    for (_, cell), own in zip(cells, measured, strict=True):
        yield cell, own


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on standard error. Yields a function that starts the next step, with its name."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn between steps only: a refresh thread would compete with the measured callers.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        begun = 0

        def step(description: str) -> None:
            nonlocal begun
            bar.update(task, description=description, completed=begun, refresh=True)
            begun += 1

        yield step


def print_conditions(console: Console, conditions: Mapping[str, str]) -> None:
    """Print one line per condition."""
    grid = Table.grid(padding=(0, 2))
    for name, value in conditions.items():
        grid.add_row(Text(name, style="bold"), Text(value))
    console.print(grid)


def new_table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """Create a table: text columns first, then number columns, none cut or wrapped."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def new_console() -> Console:
    """Return a console at least `WIDTH` wide: a small terminal wraps lines, but no figure is cut."""
    return Console(width=max(WIDTH, Console().width))


def median_round(rounds: Sequence[Figures]) -> Figures:
    """Return the round with the median throughput (the lower of two), with its own latencies."""
    return sorted(rounds, key=lambda figures: figures.pairs_per_second)[(len(rounds) - 1) // 2]
