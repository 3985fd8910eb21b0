"""Shows a running demonstration: a live screen on a terminal, a line every few seconds elsewhere."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING

from ledger_sizer.demo.bots import BOTS
from ledger_sizer.demo.run import Snapshot
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import ScopeExposure

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

LINE_EVERY_SECONDS = 5
_BAR_WIDTH = 28
_OUTCOME_STYLES = {"granted": "green", "denied": "red", "applied": "dim"}


@contextmanager
def live(console: "Console") -> Iterator[Callable[[Snapshot], None]]:
    """Show snapshots on a terminal, each in place of the previous one."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as display:
        yield lambda snapshot: display.update(render_snapshot(snapshot), refresh=True)


@contextmanager
def lines(write: Callable[[str], None]) -> Iterator[Callable[[Snapshot], None]]:
    """Write snapshots as lines, the first at once and then one every `LINE_EVERY_SECONDS`."""
    due = 0.0

    def show(snapshot: Snapshot) -> None:
        nonlocal due
        if snapshot.seconds >= due:
            due = snapshot.seconds + LINE_EVERY_SECONDS
            write(line(snapshot))

    yield show


def line(snapshot: Snapshot) -> str:
    """Format a snapshot as one line."""
    exposure = snapshot.exposure
    alive = sum(snapshot.alive.values())
    return (
        f"{snapshot.seconds:5.1f} s  exposure {_money(exposure.exposure)} of {_money(exposure.cap)} USD "
        f"(held {_money(exposure.held)}, open {_money(exposure.open)}), {len(snapshot.held)} holds, "
        f"{alive} of {len(snapshot.alive)} bots alive, {exposure.seq} decisions"
        + ("" if snapshot.reconciliation is None else f"; at the venue: {snapshot.reconciliation}")
    )


def render_snapshot(snapshot: Snapshot) -> "RenderableType":
    """Format a snapshot as a screen."""
    from rich.console import Group
    from rich.text import Text

    left = "until Ctrl-C" if snapshot.seconds_left is None else f"{snapshot.seconds_left:.0f} s left"
    title = Text.assemble(("ledger-sizer demo", "bold"), f"  {snapshot.url}  eight bots, one cap  ", (left, "cyan"))
    blank = Text("")
    venue = Text("" if snapshot.reconciliation is None else f"ledger and paper venue: {snapshot.reconciliation}")
    parts = (_scopes(snapshot), venue, _bots(snapshot), _holds(snapshot), _last(snapshot))
    return Group(title, *(piece for part in parts for piece in (blank, part)))


def _table(*titles: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def _scopes(snapshot: Snapshot) -> "Table":
    table = _table("scope", "held + open", "exposure", "cap", "headroom")
    for scope in snapshot.exposure.scopes:
        if scope.cap is not None:
            table.add_row(scope.scope, _bar(scope), _money(scope.exposure), _money(scope.cap), _money(scope.headroom))
    return table


def _bar(scope: ScopeExposure) -> str:
    """Draw a bar: open capital solid, held capital hatched, headroom dotted."""
    cap = scope.cap or Decimal(1)
    opened = min(int(scope.open * _BAR_WIDTH / cap), _BAR_WIDTH)
    used = min(int(scope.exposure * _BAR_WIDTH / cap), _BAR_WIDTH)
    colour = "red" if scope.overage else "green"
    return f"[{colour}]{'█' * opened}[/][yellow]{'▒' * (used - opened)}[/][dim]{'·' * (_BAR_WIDTH - used)}[/]"


def _bots(snapshot: Snapshot) -> "Table":
    table = _table("bot", "", "life", "habit")
    for name, profile in BOTS.items():
        state = "[green]alive[/]" if snapshot.alive[name] else "[red]dead[/]"
        table.add_row(name, state, str(snapshot.run_numbers[name]), f"[dim]{profile.about}[/]")
    died = ", ".join(f"{number} {how}" for how, number in sorted(snapshot.deaths.items())) or "none died yet"
    table.add_row("", "", "", f"{died}; {snapshot.replays} answers replayed")
    return table


def _holds(snapshot: Snapshot) -> "Table":
    table = _table("hold", "bot", "USD", "time left")
    for position in snapshot.held[-6:]:
        left = (position.expires_at - snapshot.now).total_seconds() if position.expires_at else 0.0
        shown = f"{left:4.1f} s" if left > 0 else "[red]over[/]"
        table.add_row(position.position_id, position.tags.get("strategy", "-"), _money(position.held), shown)
    return table


def _last(snapshot: Snapshot) -> "Table":
    table = _table("#", "command", "bot", "outcome", "why", "USD", "exposure after")
    for decision in snapshot.decisions:
        style = _OUTCOME_STYLES[decision.outcome]
        table.add_row(
            str(decision.seq),
            decision.command,
            json.loads(decision.record.tags or "{}").get("strategy", "-"),
            f"[{style}]{decision.outcome}[/]",
            _why(decision),
            _money(decision.budget),
            _money(decision.exposure_after),
        )
    return table


def _why(decision: Decision) -> str:
    why = f"{decision.reason}: " if decision.reason else ""
    return f"{why}{decision.binding}" if decision.binding else why.rstrip(": ")


def _money(value: Decimal | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
