"""Tests the synthetic market and the random numbers: reproducible, and realistic."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from hashlib import sha256

import pytest

from ledger_sizer.exchanges.known_markets import MARKETS
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.replay.order_outcomes import OrderOutcome, fill_price, incident, order_outcome, partial_quantity
from ledger_sizer.replay.random_numbers import SeededRandom, random_below
from ledger_sizer.replay.synthetic_market import BARS_MAX, generated_bars
from ledger_sizer.rules.sizing import round_to_step
from tests.support.market_histories import csv_lines, flat_candle

INTEREST = Decimal("0.0001")


def test_generate_when_seed_is_the_same_then_bars_are_the_same_on_every_python() -> None:
    text = "\n".join(csv_lines(generated_bars(7, 100)))
    assert sha256(text.encode()).hexdigest() == "0fa2c91ee8766b7361d48eeb70ff7676e512eb7b4db0e0d307ec196c2d48d8f5"


def test_generate_when_more_bars_are_asked_then_the_first_stay_the_same() -> None:
    assert list(generated_bars(5, 60))[:30] == list(generated_bars(5, 30))


def test_generate_when_seed_is_another_then_bars_are_others() -> None:
    assert list(generated_bars(5, 5)) != list(generated_bars(6, 5))


@pytest.mark.parametrize("count", [0, -3, BARS_MAX + 1])
def test_generate_when_count_is_out_of_range_then_it_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"bars must be 1 to 20000 for a generated market, got {count}"):
        generated_bars(1, count)


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_generate_when_it_runs_half_a_year_then_it_is_like_a_market(seed: int) -> None:
    bars = list(generated_bars(seed, 540))
    quotes = [quote for bar in bars for quote in bar.quotes]
    assert {len(bar.quotes) for bar in bars} == {len(MARKETS)}
    for quote in quotes:
        market = MARKETS[quote.key]
        for candle, instrument in ((quote.spot, market.spot), (quote.perp, market.perp)):
            assert candle.low <= min(candle.open, candle.close) <= max(candle.open, candle.close) <= candle.high
            assert all(
                round_to_step(price, instrument.tick_size) == price
                for price in (candle.open, candle.high, candle.low, candle.close)
            )
        assert abs(quote.perp.open / quote.spot.open - 1) < Decimal("0.005"), "the perpetual follows the spot price"
    rates = [quote.rate for quote in quotes]
    assert sum(rate == INTEREST for rate in rates) > len(rates) // 4, "the plateau of the interest rate"
    assert any(rate > Decimal("0.0003") for rate in rates), "greed"
    assert any(rate < 0 for rate in rates), "fear"
    assert all(abs(rate) < Decimal("0.01") for rate in rates)


def test_roll_when_seed_is_the_same_then_numbers_are_pinned() -> None:
    random = SeededRandom(7)
    assert [random.below(1000) for _ in range(6)] == [323, 150, 650, 72, 535, 365]
    assert [random.normal(100) for _ in range(4)] == [-163, -71, -136, 100]
    assert [random_below(1000, 7, "fate", name) for name in "abcdef"] == [883, 655, 42, 298, 376, 669]


def test_roll_when_many_times_then_range_mean_and_spread_fit() -> None:
    random = SeededRandom(1)
    assert {random.below(3) for _ in range(200)} == {0, 1, 2}
    draws = [random.normal(1000) for _ in range(4000)]
    assert abs(sum(draws)) / len(draws) < 60
    assert 900 < (sum(draw * draw for draw in draws) / len(draws)) ** 0.5 < 1100


def test_draw_when_arguments_are_the_same_then_what_was_drawn_before_does_not_matter() -> None:
    first = random_below(10**6, 7, "x")
    random_below(10**6, 7, "y")
    assert random_below(10**6, 7, "x") == first
    assert random_below(10**6, 8, "x") != first


def test_meet_fate_when_orders_are_many_then_all_fates_happen_in_their_shares() -> None:
    met = Counter(order_outcome(7, f"order-{number}") for number in range(20_000))
    shares = {fate: round(count / 20, 0) for fate, count in met.items()}
    expected = {
        OrderOutcome.FILLED: 850,
        OrderOutcome.PARTIAL: 60,
        OrderOutcome.FAILED: 40,
        OrderOutcome.SLOW: 20,
        OrderOutcome.CRASHED: 15,
        OrderOutcome.LATE: 15,
    }
    assert shares.keys() == expected.keys()
    assert all(abs(shares[fate] - share) < 10 for fate, share in expected.items())


def test_begin_incident_when_bars_are_many_then_both_modes_happen_for_a_while() -> None:
    begun = [incident(7, "okx", str(number)) for number in range(5000)]
    found = [one for one in begun if one is not None]
    assert {mode for mode, _ in found} == {"halted", "reducing"}
    assert {bars for _, bars in found} == {1, 2, 3, 4, 5, 6}
    assert 5 <= len(found) <= 60


def test_fill_when_price_stands_still_then_that_is_the_price() -> None:
    assert fill_price(7, "a", flat_candle("50000"), Decimal("0.1")) == 50000


def test_fill_when_bar_is_wide_then_price_is_on_a_tick_and_within_five_basis_points() -> None:
    candle = next(quote.perp for bar in generated_bars(7, 3) for quote in bar.quotes if quote.key == ("bybit", "BTC"))
    prices = {fill_price(7, str(number), candle, Decimal("0.1")) for number in range(300)}
    assert len(prices) > 5
    for price in prices:
        assert candle.low <= price <= candle.high
        assert abs(price / candle.open - 1) <= Decimal("0.00051")
        assert round_to_step(price, Decimal("0.1")) == price


def test_fill_in_part_when_quantity_has_parts_then_it_is_a_smaller_multiple_of_the_step() -> None:
    market = MARKETS["okx", "BTC"]
    parts = {partial_quantity(7, str(number), Decimal("0.0210"), market) for number in range(60)}
    assert parts == {Decimal("0.0052"), Decimal("0.0105"), Decimal("0.0157")}


def test_fill_in_part_when_quantity_is_one_step_then_all_of_it_fills() -> None:
    market = MARKETS["binance", "BTC"]
    assert {partial_quantity(7, str(number), Decimal("0.001"), market) for number in range(60)} == {Decimal("0.001")}
