"""Sums up the outcomes: a table for the terminal, JSON, and Markdown between the marks of a page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from campaign.processes import CampaignError
from campaign.rounds import Round
from campaign.run import Plan
from campaign.stage import Outcome

BEGIN = "<!-- results: begin, written by `python -m campaign --markdown` -->"
END = "<!-- results: end -->"
COLUMNS = (
    "round",
    "times",
    "faults",
    "acknowledged",
    "lost",
    "doubled",
    "problems",
    "slowest recovery",
    "longest wait",
)


@dataclass(frozen=True)
class Line:
    """One round over all its repetitions; the last line is all rounds. Times are seconds."""

    name: str
    times: int
    faults: int
    acknowledged: int
    lost: int
    doubled: int
    problems: int
    slowest_recovery: float | None
    longest_wait: float
    skipped: str | None = None

    def cells(self) -> list[str]:
        """Return the texts of the columns."""
        if self.skipped:
            return [self.name, "skipped", *[""] * 7]
        counts = (self.times, self.faults, self.acknowledged, self.lost, self.doubled, self.problems)
        recovery = "" if self.slowest_recovery is None else f"{self.slowest_recovery:.1f} s"
        return [self.name, *[f"{count:,}" for count in counts], recovery, f"{self.longest_wait:.1f} s"]


@dataclass(frozen=True)
class Result:
    """The whole campaign. conditions: what a reader needs to judge it."""

    conditions: dict[str, str]
    lines: list[Line]


def summed_up(
    rounds: Sequence[Round], outcomes: Sequence[Outcome], plan: Plan, seconds: float, postgresql: int
) -> Result:
    """Sum up outcomes by round, in the order of `rounds`."""
    played = {one.name: [outcome for outcome in outcomes if outcome.name == one.name] for one in rounds}
    lines = [_line(name, found) for name, found in played.items() if found]
    lines.append(_line("all", [outcome for outcome in outcomes if not outcome.skipped]))
    minutes = f"{seconds / 60:.0f}" if seconds > 600 else f"{seconds / 60:.1f}"
    conditions = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "ran for": f"{minutes} minutes, seed {plan.seed}{', short' if plan.short else ''}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "PostgreSQL": str(postgresql),
        "not reached": ", ".join(name for name, found in played.items() if not found) or "none",
    }
    return Result(conditions, lines)


def _line(name: str, outcomes: Sequence[Outcome]) -> Line:
    recoveries = [seconds for outcome in outcomes for seconds in outcome.recoveries]
    return Line(
        name=name,
        times=len(outcomes),
        faults=sum(outcome.faults for outcome in outcomes),
        acknowledged=sum(outcome.acknowledged for outcome in outcomes),
        lost=sum(len(outcome.lost) for outcome in outcomes),
        doubled=sum(len(outcome.doubled) for outcome in outcomes),
        problems=sum(len(outcome.problems) for outcome in outcomes),
        slowest_recovery=max(recoveries, default=None),
        longest_wait=max((outcome.slowest for outcome in outcomes), default=0.0),
        skipped=next((outcome.skipped for outcome in outcomes if outcome.skipped), None),
    )


def table(result: Result) -> Table:
    """Return the table for the terminal."""
    shown = Table(title="Acknowledged decisions under faults", caption="; ".join(_conditions(result)))
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "round" else "right")
    for line in result.lines:
        shown.add_row(*line.cells(), end_section=line is result.lines[-2] if len(result.lines) > 1 else False)
    for line in result.lines:
        if line.skipped:
            shown.add_row(f"{line.name} skipped: {line.skipped}")
    return shown


def list_table(rounds: Sequence[Round]) -> Table:
    """Return the table of rounds: name, whether it is in the short campaign, fault."""
    shown = Table("round", "short", "fault")
    for one in rounds:
        shown.add_row(one.name, "yes" if one.short else "", one.fault)
    return shown


def broken(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield a line for everything that was wrong, of each kind and round the first few."""
    for outcome in outcomes:
        for kind, found in (("LOST", outcome.lost), ("DOUBLED", outcome.doubled), ("PROBLEM", outcome.problems)):
            for text in found[:5]:
                yield f"{kind} {outcome.name}: {text}"
            if len(found) > 5:
                yield f"{kind} {outcome.name}: and {len(found) - 5} more"


def as_json(result: Result, outcomes: Sequence[Outcome]) -> str:
    """Return everything as one JSON document."""
    form = {**asdict(result), "outcomes": [asdict(outcome) for outcome in outcomes]}
    return json.dumps(form, indent=2) + "\n"


def as_markdown(result: Result) -> str:
    """Return conditions and table as Markdown."""
    rows = [list(COLUMNS), ["---", *["--:"] * (len(COLUMNS) - 1)], *[line.cells() for line in result.lines]]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    skipped = "\n".join(f"* `{line.name}` was skipped: {line.skipped}" for line in result.lines if line.skipped)
    return f"{'; '.join(_conditions(result))}.\n\n{text}\n" + (f"\n{skipped}\n" if skipped else "")


def around_the_table(page: Path) -> tuple[str, str]:
    """Return what stands before and after the marks of a page. Raises `CampaignError` where it has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CampaignError(f"{page} has no marks {BEGIN} and {END}")
    return before, after


def write_into(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page. Raises `CampaignError` where it has none."""
    before, after = around_the_table(page)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def _conditions(result: Result) -> list[str]:
    return [f"{name}: {value}" for name, value in result.conditions.items()]
