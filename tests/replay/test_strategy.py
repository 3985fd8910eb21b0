"""Tests the strategy of the replay's bots against figures computed by hand."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.replay.strategy import BOTS_MAX, Strategy, basis_points, read_signal, smoothed_rate, strategies

STRATEGY = Strategy("by hand", 4, Decimal("0.0002"), Decimal("0.0001"), Decimal("0.0003"))


def rates(*basis_points_: str) -> tuple[Decimal, ...]:
    return tuple(Decimal(value) / 10_000 for value in basis_points_)


@pytest.mark.parametrize(
    ("history", "window_bars", "expected"),
    [
        (rates("1", "2", "3"), 3, "0.0002"),
        (rates("1", "2", "3"), 2, "0.00025"),
        (rates("9", "9", "1"), 1, "0.0001"),
        (rates("1", "1", "2"), 3, "0.000133333333"),
        (rates("-1", "-1", "-2"), 3, "-0.000133333334"),
    ],
)
def test_smooth_when_window_is_full_then_mean_is_rounded_down(
    history: tuple[Decimal, ...], window_bars: int, expected: str
) -> None:
    assert smoothed_rate(history, window_bars) == Decimal(expected)


def test_smooth_when_window_is_not_full_then_there_is_no_rate() -> None:
    assert smoothed_rate(rates("1", "2"), 3) is None
    assert read_signal(STRATEGY, rates("5", "5", "5")) is None


@pytest.mark.parametrize(
    ("history", "score"),
    [
        (("2", "2", "2", "2"), "0.5"),  # level (2 - 1) / (3 - 1), every rate above 0
        (("4", "4", "2", "-2"), "0.375"),  # the same level x 3 of 4
        (("4", "4", "0", "0"), "0.25"),  # a rate of 0 is not above 0
        (("3", "3", "3", "3"), "1"),
        (("9", "9", "9", "9"), "1"),  # above full_rate
        (("20", "20", "-1", "-1"), "0.5"),  # level 1 x 2 of 4
        (("1", "1", "1", "1"), "0"),  # at the exit rate
        (("-5", "-5", "-5", "-5"), "0"),
        (("9", "2", "2", "2", "2"), "0.5"),  # rates before the window do not count
        (("1.5", "1.6", "1.7", "1.9"), "0.3375"),  # (1.675 - 1) / 2
    ],
)
def test_score_when_rates_are_known_then_it_is_level_times_persistence(history: tuple[str, ...], score: str) -> None:
    signal = read_signal(STRATEGY, rates(*history))
    assert signal is not None
    assert signal.score == Decimal(score)


@pytest.mark.parametrize(
    ("level_thousandths", "score"), [(333, "0.333"), (300, "0.3"), (700, "0.7"), (999, "0.999"), (1, "0.001")]
)
def test_score_when_it_is_exact_then_no_digit_is_lost(level_thousandths: int, score: str) -> None:
    strategy = Strategy("thirds", 3, Decimal("0.0001"), Decimal(0), Decimal("0.0003"))
    rate = Decimal("0.0003") * level_thousandths / 1000
    signal = read_signal(strategy, (rate, rate, rate))
    assert signal is not None
    assert signal.score == Decimal(score)


def test_score_when_level_is_a_third_then_it_is_rounded_down() -> None:
    strategy = Strategy("thirds", 3, Decimal("0.0001"), Decimal(0), Decimal("0.0003"))
    signal = read_signal(strategy, rates("1", "1", "1"))
    assert signal is not None
    assert signal.score == Decimal("0.3333")


@pytest.mark.parametrize(
    ("rate", "enters", "leaves"),
    [("2", True, False), ("1.9999", False, False), ("1", False, False), ("0.9999", False, True), ("-1", False, True)],
)
def test_decide_when_rate_stands_at_a_threshold_then_entry_includes_it_and_exit_does_not(
    rate: str, enters: bool, leaves: bool
) -> None:
    signal = read_signal(STRATEGY, rates(rate, rate, rate, rate))
    assert signal is not None
    assert (signal.enters, signal.leaves) == (enters, leaves)


_RATES = st.lists(st.decimals("-0.01", "0.01", places=8), min_size=4, max_size=8)


@given(_RATES)
def test_score_when_rates_are_any_then_it_is_a_legal_signal_score(history: list[Decimal]) -> None:
    signal = read_signal(STRATEGY, history)
    assert signal is not None
    assert 0 <= signal.score <= 1
    assert not (signal.enters and signal.leaves)
    assert not signal.enters or signal.score > 0


@given(_RATES, st.decimals("0", "0.01", places=8))
def test_score_when_the_last_rate_rises_then_it_never_falls(history: list[Decimal], rise: Decimal) -> None:
    before = read_signal(STRATEGY, history)
    after = read_signal(STRATEGY, [*history[:-1], history[-1] + rise])
    assert before is not None
    assert after is not None
    assert after.score >= before.score


@pytest.mark.parametrize(
    ("entry", "exit_", "full"),
    [("0.0001", "0.0001", "0.0003"), ("0.0004", "0.0001", "0.0003"), ("0.0001", "-0.0001", "0.0003")],
)
def test_make_strategy_when_thresholds_cross_then_it_is_refused(entry: str, exit_: str, full: str) -> None:
    with pytest.raises(InvalidRequest, match="rates must rise"):
        Strategy("crossed", 3, Decimal(entry), Decimal(exit_), Decimal(full))


def test_make_strategies_when_many_are_asked_then_each_is_another() -> None:
    made = strategies(BOTS_MAX)
    assert len({strategy.name for strategy in made}) == BOTS_MAX
    ways = {(strategy.window_bars, strategy.entry_rate, strategy.exit_rate) for strategy in made}
    assert len(ways) == BOTS_MAX
    assert made[:8] == strategies(8)


@pytest.mark.parametrize("count", [0, -1, BOTS_MAX + 1])
def test_make_strategies_when_count_is_out_of_range_then_it_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"bots must be 1 to 200, got {count}"):
        strategies(count)


def test_show_rate_when_it_is_in_basis_points_then_text_is_short() -> None:
    assert basis_points(Decimal("0.000105")) == "1.05"
    assert basis_points(Decimal("0.0002")) == "2"
