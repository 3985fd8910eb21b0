"""Writes results: tables on a terminal, aligned plain text elsewhere, one JSON document with `--json`.

Figures keep every digit. The figures of a column share one number of decimals, so that their decimal points align.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ledger_sizer.cli.errors import Failure
from ledger_sizer.model.units import decimal_text

if TYPE_CHECKING:
    from rich.console import Console

    from ledger_sizer.model.domain import Position

Cell = str | int | Decimal | datetime | None

_STYLES = {
    "granted": "green",
    "ok": "green",
    "denied": "red",
    "halted": "red",
    "reducing": "yellow",
    "held": "yellow",
    "open": "green",
    "closed": "dim",
    "released": "dim",
    "expired": "dim",
}
"""Styles of outcomes and states; any other text is plain."""

_GAP = 2
ALWAYS = 10
"""The priority of columns that are wrapped rather than hidden."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    priority: a terminal too narrow for all columns shows those with the highest, and always those at ALWAYS.
    usd: figures are money and have at least two decimals. right: aligns text right, as figures always are.
    alert: shows what is neither 0 nor absent in red.
    """

    title: str
    priority: int = 9
    usd: bool = False
    right: bool = False
    alert: bool = False


def on_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def write(text: str) -> None:
    """Write one or more plain lines to standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Write a line to standard error, where it never mixes with data."""
    sys.stderr.write(f"{text}\n")


def write_file(parts: Iterable[bytes], path: str | None) -> None:
    """Write the parts as they come, to a file or standard output. A file gets its name only when complete."""
    if path is None:
        for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(target)
    except OSError as error:
        raise Failure("unwritable", f"cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def write_json(document: Any) -> None:
    """Write one JSON document, in ASCII, which every output encoding can represent."""
    write(json.dumps(document, indent=2))


def write_json_list(items: Iterable[Any], cursor: Callable[[], str | None]) -> None:
    """Write `{"items": [...], "cursor": ...}`, one item a line, as they come: a long history needs no memory.

    Writes nothing before the first item is there, so that a refused request leaves standard output empty.
    """
    prefix = '{"items": [\n'
    for item in items:
        sys.stdout.write(prefix + json.dumps(item))
        prefix = ",\n"
    end = prefix if prefix.startswith("{") else "\n"
    write(f'{end}], "cursor": {json.dumps(cursor())}}}')


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 hold`, `2 holds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def end_of_hold(position: "Position") -> Cell:
    """Return when the hold of a position ends; None without one."""
    return "when known" if position.until_known else position.expires_at


def headline(text: str, outcome: str) -> None:
    """Write the first line of a result, in the colour of its outcome."""
    if on_terminal():
        from rich.text import Text

        _console().print(Text(text, style=f"bold {_STYLES.get(outcome, '')}".strip()), soft_wrap=True)
    else:
        write(text)


def details(pairs: Sequence[tuple[str, Cell]]) -> None:
    """Write names and values below a headline. Leaves out absent values."""
    shown = [(name, _cell_text(value, 0)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    if not on_terminal():
        for name, text in shown:
            write(f"{name:<{width}}  {text}")
        return
    from rich.text import Text

    for name, text in shown:
        line = Text.assemble("  ", (f"{name:<{width}}  ", "dim"), (text, _STYLES.get(text, "")))
        _console().print(line, soft_wrap=True)


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, empty: str) -> None:
    """Write rows below their titles, or `empty` where there are none."""
    if not rows:
        write(empty)
        return
    texts = [_column_texts(column, cells) for column, cells in zip(columns, zip(*rows, strict=True), strict=True)]
    right = [
        column.right or any(isinstance(row[number], int | Decimal) for row in rows)
        for number, column in enumerate(columns)
    ]
    if on_terminal():
        _rich_table(columns, texts, right)
    else:
        _plain_table(columns, texts, right)


def _column_texts(column: Column, cells: Sequence[Cell]) -> list[str]:
    """Return the texts of one column, its figures with one number of decimals."""
    figures = [cell for cell in cells if isinstance(cell, Decimal)]
    places = max(chain([2 if column.usd else 0], (_decimal_places(figure) for figure in figures)))
    return [_cell_text(cell, places) for cell in cells]


def _decimal_places(value: Decimal) -> int:
    return len(decimal_text(value).partition(".")[2])


def _cell_text(cell: Cell, places: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, datetime):
        moment = cell.astimezone(UTC).replace(tzinfo=None)
        return f"{moment:%Y-%m-%d %H:%M:%S}Z" if on_terminal() else f"{moment.isoformat()}Z"
    return figure(cell, places) if isinstance(cell, Decimal) else str(cell)


def figure(value: Decimal, places: int = 0) -> str:
    """Format every digit of `value`, at least `places` decimals, and thousands separators on a terminal."""
    whole, _, fraction = decimal_text(value).partition(".")
    if on_terminal() and whole != "-0":
        whole = f"{int(whole):,}"
    fraction = f"{fraction:0<{places}}"
    return f"{whole}.{fraction}" if fraction else whole


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(len(line) for text in (column.title, *cells) for line in text.split("\n"))
        for column, cells in zip(columns, texts, strict=True)
    ]


def _plain_table(columns: Sequence[Column], texts: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = _widths(columns, texts)
    titles = [column.title.replace(" ", "_") for column in columns]
    for row in [titles, *zip(*texts, strict=True)]:
        cells = [
            f"{text:>{width}}" if flush else f"{text:<{width}}"
            for text, width, flush in zip(row, widths, right, strict=True)
        ]
        write((" " * _GAP).join(cells).rstrip())


def _rich_table(columns: Sequence[Column], texts: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console()
    shown = _columns_that_fit(columns, _widths(columns, texts), console.width)
    grid = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold", pad_edge=False)
    for number in shown:
        justify: Literal["left", "right"] = "right" if right[number] else "left"
        grid.add_column(Text(columns[number].title), justify=justify, overflow="fold", no_wrap=right[number])
    for row in zip(*texts, strict=True):
        grid.add_row(*[Text(row[number], style=_style(columns[number], row[number])) for number in shown])
    console.print(grid)
    hidden = [column.title for number, column in enumerate(columns) if number not in shown]
    if hidden:
        note(f"not shown on {console.width} columns: {', '.join(hidden)}")


def _style(column: Column, text: str) -> str:
    if column.alert:
        return "red" if text.strip("0.") not in {"", "-"} else "dim"
    return "dim" if text == "-" else _STYLES.get(text, "")


def _columns_that_fit(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Return the numbers of the columns to show: by priority, while there is room."""
    shown: list[int] = []
    for number in sorted(range(len(columns)), key=lambda number: -columns[number].priority):
        needed = sum(widths[other] + _GAP for other in shown) + widths[number]
        if needed <= room or columns[number].priority >= ALWAYS:
            shown.append(number)
    return sorted(shown)


@contextmanager
def progress_bar(
    description: str, *, total: int | None = None, unit: str = "", as_json: bool
) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show a progress bar on standard error. Yields the function that updates it: (description, done, total).

    Yields None with `--json`, and where standard error is not a terminal.
    """
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn(unit)] if unit else []),
    ]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)
