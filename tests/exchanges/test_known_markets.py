"""Tests the instrument rules of the replay and the demo against recorded responses of the exchanges."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.config import TradingSettings
from ledger_sizer.exchanges.known_markets import MARKETS, VENUES, Market
from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.rules.sizing import PositionSizer, round_to_step
from tests.support.market_histories import shared_data


def recorded(venue: str, name: str) -> list[dict[str, Any]]:
    path = shared_data() / "venues" / venue / name
    if not path.exists():
        pytest.skip(f"the recorded answers of the exchanges are not here: {path}")
    answer = json.loads(path.read_text())
    found: list[dict[str, Any]] = answer["result"]["list"] if venue == "bybit" else answer["data"]
    return found


def figures(rules: dict[str, str], *names: str) -> list[Decimal]:
    return [Decimal(rules[name]) for name in names]


@pytest.mark.parametrize("coin", ["BTC", "ETH"])
@pytest.mark.parametrize(
    ("file", "step", "minimum_value"),
    [
        ("http_get_instruments_spot.json", "basePrecision", "minOrderAmt"),
        ("http_get_instruments_linear.json", "qtyStep", "minNotionalValue"),
    ],
)
def test_compare_rules_when_bybit_answered_then_they_are_the_recorded_ones(
    coin: str, file: str, step: str, minimum_value: str
) -> None:
    (answer,) = [rules for rules in recorded("bybit", file) if rules["symbol"] == f"{coin}USDT"]
    market = MARKETS["bybit", coin]
    ours = market.spot if "spot" in file else market.perp
    rules = answer["lotSizeFilter"]
    assert [ours.min_qty, ours.max_qty, ours.qty_step, ours.min_notional] == figures(
        rules, "minOrderQty", "maxOrderQty", step, minimum_value
    )
    (tick_size,) = figures(answer["priceFilter"], "tickSize")
    assert round_to_step(tick_size, ours.tick_size) == tick_size, "a price on the recorded tick is on ours"


@pytest.mark.parametrize("coin", ["BTC", "ETH"])
@pytest.mark.parametrize(
    ("file", "name"), [("http_get_instruments_spot.json", "USD"), ("http_get_instruments_swap.json", "USDT-SWAP")]
)
def test_compare_rules_when_okx_answered_then_they_are_the_recorded_ones(coin: str, file: str, name: str) -> None:
    (answer,) = [rules for rules in recorded("okx", file) if rules["instId"] == f"{coin}-{name}"]
    market = MARKETS["okx", coin]
    ours = market.perp if "swap" in file else market.spot
    assert [ours.min_qty, ours.max_qty, ours.qty_step, ours.tick_size] == figures(
        answer, "minSz", "maxLmtSz", "lotSz", "tickSz"
    )
    if "swap" in file:
        assert (answer["ctType"], answer["ctValCcy"]) == ("linear", coin)
        assert ours.contract_size == Decimal(answer["ctVal"])


def test_list_markets_when_replay_knows_them_then_each_venue_has_both_coins() -> None:
    assert set(MARKETS) == {(venue, coin) for venue in VENUES for coin in ("BTC", "ETH")}
    assert VENUES == ("binance", "bybit", "okx")
    for (venue, coin), market in MARKETS.items():
        assert market.key == (venue, coin)
        assert market.spot.contract_size == 1
        assert market.spot.symbol == f"{coin}/USDT"
        assert market.perp.symbol == f"{coin}/USDT:USDT"


@pytest.mark.parametrize(
    ("venue", "coin", "step", "min_qty"),
    [
        ("binance", "BTC", "0.001", "0.001"),
        ("binance", "ETH", "0.001", "0.001"),
        ("bybit", "BTC", "0.001", "0.001"),
        ("bybit", "ETH", "0.01", "0.01"),
        ("okx", "BTC", "0.0001", "0.0001"),  # a hundredth of a contract of 0.01 BTC
        ("okx", "ETH", "0.001", "0.001"),  # a hundredth of a contract of 0.1 ETH
    ],
)
def test_match_quantity_when_spend_rises_then_both_legs_accept_every_size(
    venue: str, coin: str, step: str, min_qty: str
) -> None:
    market = MARKETS[venue, coin]
    price = Decimal("41234.5") if coin == "BTC" else Decimal("2345.67")
    assert market.step == Decimal(step)
    smallest, sizer = None, PositionSizer(TradingSettings())
    for spend in range(1, 1000, 7):
        quantity = sizer.calculate_matching_quantity(price, Decimal(spend), market.spot, market.perp)
        if quantity is None:
            assert smallest is None, "a larger sum is never refused where a smaller one was not"
            continue
        smallest = smallest or quantity
        assert quantity * price <= spend
        assert_accepted(market.spot, quantity, price)
        assert_accepted(market.perp, quantity, price)
    assert smallest is not None
    assert smallest >= Decimal(min_qty)


def assert_accepted(instrument: InstrumentInfo, quantity: Decimal, price: Decimal) -> None:
    """The exchange's own checks of an order, in the exchange's own unit."""
    own = quantity / instrument.contract_size
    assert instrument.min_qty <= own <= instrument.max_qty
    assert round_to_step(own, instrument.qty_step) == own
    assert quantity * price >= instrument.min_notional


def test_make_market_when_steps_differ_then_its_step_is_their_common_multiple() -> None:
    spot = InstrumentInfo("A/USDT", Decimal(1), Decimal(100), Decimal("0.2"))
    perp = InstrumentInfo("A/USDT:USDT", Decimal(1), Decimal(100), Decimal(3), contract_size=Decimal("0.1"))
    assert Market("venue", "A", spot, perp).step == Decimal("0.6")
