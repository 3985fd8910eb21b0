"""What the rounds showed: a table for the terminal, and the same as a page of Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from rich.table import Table

from bots.rounds import Round

HEADER = """\
# What the real bots showed

Written by `make bots ARGS="--write docs/bots/results.md"`. Each round runs real bots under one cap, disturbs them, and
passes if the exchange never had more than the cap and the ledger equals the exchange at the end. The rounds without
the ledger are the control: they pass if the same bots go above the cap.
"""


class Result(NamedTuple):
    """One round. passed: None where it was skipped. figures: what it measured. why: it failed or was skipped."""

    name: str
    passed: bool | None
    seconds: float
    figures: dict[str, str]
    why: str

    @property
    def word(self) -> str:
        """Return the result in a word."""
        return "skipped" if self.passed is None else "passed" if self.passed else "FAILED"

    def cells(self) -> list[str]:
        """Return the texts of the columns."""
        told = [f"{name} {figure}" for name, figure in self.figures.items()]
        return [self.name, self.word, f"{self.seconds:.0f} s", "; ".join([*([self.why] if self.why else []), *told])]


COLUMNS = ("round", "result", "took", "figures")


def conditions(rounds: Sequence[Round], *, short: bool) -> str:
    """Return what a reader needs to judge the table: the date, the versions, the machine."""
    packages = sorted({name for one in rounds for name in one.needs})
    facts = [
        f"date: {datetime.now(UTC):%Y-%m-%d}",
        *[f"{name} {_version(name)}" for name in packages],
        f"Python {platform.python_version()}",
        f"machine: {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
    ]
    return "; ".join([*facts, "short rounds"] if short else facts)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def table(results: Sequence[Result], told: str) -> Table:
    """Return the table for the terminal. told: the conditions."""
    shown = Table(*COLUMNS, title="Real bots under one cap", caption=told)
    for result in results:
        shown.add_row(*result.cells(), style="red" if result.passed is False else None)
    return shown


def list_table(rounds: Sequence[tuple[Round, str, bool]]) -> Table:
    """Return the table of rounds, each with what it lacks here and whether CI runs it."""
    shown = Table("round", "short", "needs", "not installed")
    for one, lacking, in_short in rounds:
        shown.add_row(one.name, "yes" if in_short else "", ", ".join(one.needs), lacking)
    return shown


def as_page(results: Sequence[Result], told: str) -> str:
    """Return the page. told: the conditions."""
    rows = [list(COLUMNS), ["---", "---", "--:", "---"], *[result.cells() for result in results]]
    lines = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return f"{HEADER}\n{told[0].upper()}{told[1:]}.\n\n{lines}\n"
