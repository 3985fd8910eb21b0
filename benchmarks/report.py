"""Output of all commands: the conditions, a progress bar, tables, and the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks.measure import Figures

WIDTH = 124


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


def write_json(path: Path, conditions: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write conditions and figures as JSON."""
    document = {"conditions": dict(conditions), "rows": [dict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
