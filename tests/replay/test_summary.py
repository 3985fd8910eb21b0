"""Tests the replay's plan (what is refused), clock and text summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal

import pytest

from ledger_sizer import InvalidRequest
from ledger_sizer.replay import Plan, Report, Source, default_venue_cap, generated_source, replay
from ledger_sizer.replay.cycle import SimulatedClock
from ledger_sizer.replay.summary import lines

NewDatabase = Callable[..., str]


def play(source: Source, url: str, plan: Plan) -> Report:
    return replay(source, plan, url, timer=time.perf_counter)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"cap": Decimal(0)}, "cap must be above 0, got 0"),
        ({"venue_cap": Decimal(-1)}, "venue_cap must be above 0, got -1"),
        ({"max_position": Decimal("NaN")}, "max_position must be a finite number"),
        ({"cap": 5000.0}, "cap must be a Decimal, got float 5000.0"),
        ({"seed": -1}, "seed must be 0 or above, got -1"),
        ({"bots": 0}, "bots must be 1 to 200, got 0"),
    ],
)
def test_plan_when_a_figure_makes_no_sense_then_it_is_refused(changed: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        Plan(**changed)  # type: ignore[arg-type]


def test_plan_when_cap_is_any_then_three_venues_have_more_room_than_the_portfolio() -> None:
    assert default_venue_cap(Decimal(5000)) == 2000
    assert default_venue_cap(Decimal("0.01")) == Decimal("0.004")


def test_move_clock_when_it_would_go_back_then_it_refuses() -> None:
    source = generated_source(1, 2)
    clock = SimulatedClock(source.last)
    with pytest.raises(AssertionError, match="time would go back"):
        clock.move_to(source.first)
    assert clock() == source.last


def test_render_when_replay_is_done_then_lines_fit_and_name_every_figure(new_database: NewDatabase) -> None:
    report = play(generated_source(7, 120), new_database("sqlite"), Plan(bots=20))
    shown = [text for _, text in lines(report)]
    assert max(len(text) for text in shown) <= 80
    text = "\n".join(shown)
    for portfolio in report.portfolios:
        assert portfolio.head[1] in text
        assert f"{portfolio.figures.funding:,.4f}"[:-2] in text, "rounded down to cents"
        assert f"{portfolio.figures.entries:,}" in text
    assert "generated market, seed 7" in text
    assert "and 4 more, see --json" in text
    assert f"Verified: {report.decisions:,} decisions and {report.positions:,} positions" in text


def test_render_when_figures_are_long_then_columns_stay_apart(new_database: NewDatabase) -> None:
    plan = Plan(cap=Decimal(12_345_678_901), venue_cap=Decimal(2_345_678_901), max_position=Decimal(9_876_543))
    report = play(generated_source(7, 60), new_database("sqlite"), plan)
    (row,) = [text for _, text in lines(report) if text.startswith("  venue=okx")]
    name, cap, *figures = row.split()
    assert (name, cap) == ("venue=okx", "2,345,678,901.00")
    assert len(figures) == 4
