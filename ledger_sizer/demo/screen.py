"""Shows a running demonstration: a live screen on a terminal, a line every few seconds elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ledger_sizer.dashboard.formatting import money
from ledger_sizer.dashboard.overview_screen import render_overview
from ledger_sizer.demo.run import Snapshot

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

LINE_EVERY_SECONDS = 5
_NOTE_ROWS = 3
"""Rows of a screen for the bots, on a narrow terminal two, and for what happens at the venue."""


@contextmanager
def live(console: "Console") -> Iterator[Callable[[Snapshot], None]]:
    """Show snapshots on a terminal, each in place of the previous one."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, transient=True) as display:
        yield lambda snapshot: display.update(render_snapshot(snapshot, console.width, console.height), refresh=True)


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
    detail = snapshot.detail
    whole = detail.whole
    return (
        f"{snapshot.seconds:5.1f} s  exposure {money(whole.exposure)} of {money(whole.cap)} USD "
        f"(held {money(whole.held)}, open {money(whole.open)}), {detail.held_count} holds, "
        f"{sum(snapshot.alive.values())} of {len(snapshot.alive)} bots alive, {detail.seq} decisions"
        + ("" if snapshot.reconciliation is None else f"; at the venue: {snapshot.reconciliation}")
    )


def render_snapshot(snapshot: Snapshot, width: int, height: int) -> "RenderableType":
    """Format a snapshot as a screen: the overview, and the bots below its title."""
    from rich.text import Text

    left = "until Ctrl-C" if snapshot.seconds_left is None else f"{snapshot.seconds_left:.0f} s left"
    notes = [_bots(snapshot)]
    if snapshot.reconciliation is not None:
        notes.append(Text.assemble(("at the paper venue  ", "dim"), snapshot.reconciliation))
    return render_overview(
        snapshot.overview, title="ledger-sizer demo", source=f"{snapshot.url}  {left}", width=width,
        height=height - _NOTE_ROWS, below_title=notes,
    )  # fmt: skip


def _bots(snapshot: Snapshot) -> "Text":
    """Name the bots, with the number of their starts where there was more than one, and how they died."""
    from rich.text import Text

    text = Text("bots", "dim")
    for name, alive in snapshot.alive.items():
        starts = snapshot.run_numbers[name]
        text.append(f"  {name}" if starts == 1 else f"  {name} x{starts}", "green" if alive else "bold red")
    died = ", ".join(f"{number} {how}" for how, number in sorted(snapshot.deaths.items())) or "none died yet"
    return text.append(f"   {died}; {snapshot.replays} answers replayed", "default")
