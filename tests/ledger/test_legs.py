"""Reservations of any legs: one to sixteen, by name or by rules, at any venues and accounts; what is no position."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, InstrumentInfo, InvalidRequest, Ledger, LegPlan
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, assert_verified, figures, position_of
from tests.support.markets import MARKETS, record_markets, rules_of

D = Decimal
BTC = D(50000)
BYBIT, OKX = LegPlan("bybit:BTC/USDT:USDT", "buy"), LegPlan("okx:BTC/USDT:USDT", "sell")
OF_BYBIT = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"))
"""Rules of one's own, without a venue."""


@pytest.fixture(autouse=True)
def known_markets(ledger: Ledger, database_url: str) -> None:
    record_markets(database_url)


def ask(ledger: Ledger, *legs: LegPlan, key: str = "k", price: Decimal | None = BTC, **request: Any) -> Decision:
    return ledger.reserve(key=key, legs=legs, price=price, **request)


def orders(decision: Decision) -> list[tuple[Any, ...]]:
    return [(leg.venue, leg.symbol, leg.kind, leg.side, leg.quantity, leg.order_amount) for leg in decision.legs]


# --- what may be asked -------------------------------------------------------------------------------------------


def test_reserve_when_one_leg_is_asked_then_it_counts_itself_in_its_venue(ledger: Ledger) -> None:
    for number, side in enumerate(("buy", "sell"), 1):
        decision = ask(ledger, LegPlan("okx:BTC/USDT:USDT", side), key=side)
        assert (decision.quantity, decision.budget, decision.binding) == (D("0.02"), 1000, "max_position_size_usd")
        assert orders(decision) == [("okx", "BTC/USDT:USDT", "swap", side, D("0.02"), 2)]
        assert decision.legs[0].price == BTC
        assert dict(ledger.position(position_of(decision)).tags) == {"venue": "okx", "symbol": "BTC"}
        assert figures(ledger, "venue=okx") == figures(ledger, "symbol=BTC") == (1000 * number, 0)
    assert_verified(ledger)


def test_reserve_when_spot_alone_is_asked_then_the_fee_in_base_is_ordered_too(ledger: Ledger) -> None:
    decision = ask(ledger, LegPlan("gate:BTC/USDT", "buy", fee_rate=D("0.001")))
    (order,) = decision.legs
    assert (decision.quantity, order.quantity, order.order_amount) == (D("0.01998"), D("0.02"), D("0.02"))
    assert order.order_cost == 1000, "a market buy there takes its cost"
    assert decision.budget == 1000


@pytest.mark.parametrize("venue", ["okx", "bybit"])
def test_reserve_when_two_perpetuals_are_asked_then_the_hedge_counts_once(ledger: Ledger, venue: str) -> None:
    other = OKX if venue == "okx" else LegPlan("bybit:BTC/USDC:USDC", "sell")
    decision = ask(ledger, BYBIT, other, tags={"strategy": "funding"})
    assert [(leg.venue, leg.side, leg.quantity) for leg in decision.legs] == [
        ("bybit", "buy", D("0.02")), (venue, "sell", D("0.02"))
    ]  # fmt: skip
    assert figures(ledger) == (1000, 0)
    for scope in {"venue=bybit", f"venue={venue}"}:
        assert figures(ledger, scope) == (1000, 0)
    assert_verified(ledger)


@pytest.mark.parametrize(("venue", "cap"), [("bybit", 300), ("okx", 250)])
def test_reserve_when_a_venue_of_one_leg_is_nearly_full_then_it_binds_both(
    ledger: Ledger, venue: str, cap: int
) -> None:
    ledger.set_cap(key="cap", scope=f"venue={venue}", cap=D(cap))
    decision = ask(ledger, BYBIT, OKX, price=D(50000))
    assert (decision.budget, decision.binding) == (D(cap), f"venue={venue}")
    full = ask(ledger, BYBIT, OKX, key="2")
    assert (full.reason, full.binding) == ("cap_exceeded", f"venue={venue}")
    ledger.halt(key="halt", scope=f"venue={venue}")
    assert ask(ledger, BYBIT, OKX, key="3").reason == "halted"


def test_reserve_when_spot_perpetual_and_future_are_asked_then_the_larger_side_is_bought(ledger: Ledger) -> None:
    decision = ask(
        ledger, LegPlan("bybit:BTC/USDT", "buy"), BYBIT, LegPlan("bybit:BTC/USDT:USDT-261225", "sell"),
    )  # fmt: skip
    assert (decision.quantity, decision.budget) == (D("0.01"), 1000), "two legs are bought, and both count"
    assert [leg.kind for leg in decision.legs] == ["spot", "swap", "future"]
    assert figures(ledger) == (1000, 0)


def test_reserve_when_sixteen_legs_are_asked_then_each_venue_counts_it(ledger: Ledger) -> None:
    sides = ["buy", "sell"] * 8
    legs = [LegPlan(f"venue{number}:BTC/USDT:USDT", side) for number, side in enumerate(sides)]
    decision = ask(ledger, *legs, price=D(100))
    assert (decision.quantity, decision.budget) == (D("1.25"), 1000)
    assert len(decision.legs) == 16
    assert figures(ledger, "venue=venue15") == (1000, 0)
    ledger.confirm(key="fill", position_id=position_of(decision), quantity=D("1.25"), price=D(100))
    assert figures(ledger) == (0, 1000)
    assert_verified(ledger)


def test_reserve_when_one_market_is_used_in_two_accounts_then_they_are_two_legs(ledger: Ledger) -> None:
    decision = ask(ledger, replace(BYBIT, account="long"), replace(BYBIT, side="sell", account="short"))
    assert [(leg.account, leg.side) for leg in decision.legs] == [("long", "buy"), ("short", "sell")]
    assert [leg.account for leg in ledger.position(position_of(decision)).legs] == ["long", "short"]


@pytest.mark.parametrize("of", [list, tuple, deque])
def test_reserve_when_legs_are_any_sequence_then_they_are_taken(ledger: Ledger, of: Any) -> None:
    assert ledger.reserve(key="k", price=BTC, legs=of([BYBIT, OKX])).granted


def test_reserve_when_the_rules_name_no_venue_then_that_of_the_tags_is_the_legs(ledger: Ledger) -> None:
    decision = ask(ledger, LegPlan(OF_BYBIT, "sell"), tags={"venue": "bybit"})
    assert decision.legs[0].venue == "bybit"
    assert ask(ledger, LegPlan(OF_BYBIT, "sell"), key="2").legs[0].venue == ""


def test_reserve_when_legs_have_prices_of_their_own_then_no_other_is_needed(ledger: Ledger) -> None:
    decision = ask(ledger, replace(BYBIT, price=D(50000)), replace(OKX, price=D(49000)), price=None)
    assert [leg.price for leg in decision.legs] == [50000, 49000]
    assert (decision.quantity, decision.budget) == (D("0.02"), 1000)


def test_reserve_when_a_market_has_a_name_in_another_script_then_it_is_as_good(ledger: Ledger) -> None:
    decision = ask(ledger, LegPlan("okx:币安人生/USDT:USDT", "sell"), price=D("0.2"))
    assert decision.quantity == 5000
    assert figures(ledger, "symbol=币安人生") == (1000, 0)


def test_reserve_when_its_fate_is_not_known_then_it_never_expires(ledger: Ledger, clock: FakeClock) -> None:
    decision = ask(ledger, BYBIT, until_known=True)
    assert (decision.until_known, decision.expires_at) == (True, None)
    clock.advance(10**7)
    ask(ledger, BYBIT, key="2")
    assert ledger.position(position_of(decision)).state == "held"
    with pytest.raises(InvalidRequest, match="not both") as refused:
        ask(ledger, BYBIT, key="3", until_known=True, ttl_seconds=5)
    assert refused.value.field == "ttl_seconds"


# --- one asset, in units that are known --------------------------------------------------------------------------


def test_reserve_when_one_leg_is_multiplied_then_each_is_told_in_its_unit(ledger: Ledger) -> None:
    spot, perp = LegPlan("binance:PEPE/USDT", "buy"), LegPlan("binance:1000PEPE/USDT:USDT", "sell")
    given = {"spot_instrument": spot.instrument, "perp_instrument": perp.instrument}
    long, short = (
        ask(ledger, spot, perp, price=D("0.00001")), ledger.reserve(key="s", price=D("0.00001"), **given),
    )  # fmt: skip
    for decision in (long, short):
        assert orders(decision) == [
            ("binance", "PEPE/USDT", "spot", "buy", 10**8, 10**8),
            ("binance", "1000PEPE/USDT:USDT", "swap", "sell", 10**8, 10**5),
        ]
        assert (decision.budget, decision.quantity) == (1000, 10**8)
    assert figures(ledger, "symbol=PEPE") == (2000, 0)
    held = ledger.position(position_of(long))
    assert [leg.unit for leg in held.legs] == [None, 1000]
    ledger.confirm(key="fill", position_id=held.position_id, quantity=D(10**8), price=D("0.00001"))
    assert [leg.unit for leg in ledger.position(held.position_id).legs] == [None, 1000]
    assert_verified(ledger)


def test_reserve_when_two_names_are_one_coin_then_saying_so_makes_it_a_hedge(ledger: Ledger) -> None:
    spot, perp = LegPlan("hyperliquid:UBTC/USDC", "buy"), LegPlan("hyperliquid:BTC/USDC:USDC", "sell")
    with pytest.raises(InvalidRequest, match="of BTC and UBTC/USDC of UBTC"):
        ask(ledger, spot, perp)
    decision = ask(ledger, replace(spot, asset="BTC"), perp)
    assert decision.quantity == D("0.02")
    assert figures(ledger, "symbol=BTC") == (1000, 0)
    named = ask(ledger, replace(spot, asset="BTC"), perp, key="2", tags={"symbol": "UBTC/USDC"})
    assert named.granted


NO_POSITION: dict[str, tuple[dict[str, Any], str, str]] = {
    "two assets": ({"legs": [BYBIT, LegPlan("bybit:ETH/USDT:USDT", "sell")]}, "legs.1", "ETH/USDT:USDT is of ETH"),
    "a market twice": ({"legs": [BYBIT, replace(BYBIT, side="sell")]}, "legs.1", "one leg a market"),
    "no multiplier in given rules": (
        {"legs": [LegPlan(InstrumentInfo("1000SHIB/USDT:USDT", D(1), D(10), D(1)), "buy")]},
        "legs.0.instrument.multiplier", "give multiplier=1000",
    ),
    "inverse": ({"legs": [LegPlan("bybit:BTC/USD:BTC", "buy")]}, "legs.0.instrument.settle", "inverse contract"),
    "no multiplier": (
        {"legs": [LegPlan("binance:SHIB/USDT", "buy"), LegPlan("binance:1000SHIB/USDT:USDT", "sell")]},
        "legs.1.instrument", "counts 1000 SHIB a unit",
    ),
    "unlisted": ({"legs": [BYBIT, LegPlan("bybit:NO/USDT", "buy")]}, "legs.1.instrument", "instruments refresh bybit"),
    "closed": ({"legs": [BYBIT, LegPlan("bybit:OLD/USDT:USDT", "buy")]}, "legs.1.instrument", "not open for trading"),
    "unknown kind": (
        {"legs": [LegPlan(replace(OF_BYBIT, symbol="BTCUSDT", kind=None, base=None, quote=None, settle=None), "buy")]},
        "legs.0.instrument.kind", "give kind=",
    ),
    "spot sold": ({"spot_instrument": "bybit:BTC/USDT", "perp_instrument": "gate:BTC/USDT"}, "perp_instrument",
                  "must be a contract"),
    "swapped": ({"spot_instrument": "bybit:BTC/USDT:USDT", "perp_instrument": "bybit:BTC/USDT"}, "perp_instrument",
                "must be a contract"),
    "short form of two assets": ({"spot_instrument": "bybit:BTC/USDT", "perp_instrument": "bybit:ETH/USDT:USDT"},
                                 "perp_instrument", "ETH/USDT:USDT is of ETH"),
    "short form, inverse": ({"spot_instrument": "bybit:BTC/USDT", "perp_instrument": "bybit:BTC/USD:BTC"},
                            "perp_instrument.settle", "inverse contract"),
    "both forms": ({"legs": [BYBIT], "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}, "legs", "not both"),
    "half a short form": ({"spot_instrument": "bybit:BTC/USDT"}, "perp_instrument", "for one leg give legs="),
    "fee of a sale": ({"legs": [LegPlan("bybit:BTC/USDT", "sell", fee_rate=D("0.001"))]}, "legs.0.fee_rate",
                      "is for a spot buy"),
    "fee of a contract": ({"legs": [OKX, replace(BYBIT, fee_rate=D("0.001"))]}, "legs.1.fee_rate", "is for a spot buy"),
    "fee of the short form": ({"legs": [BYBIT], "spot_fee_rate": D("0.001")}, "spot_fee_rate", "LegPlan"),
    "price of 1000 coins": ({"legs": [BYBIT, replace(OKX, price=D(100001))]}, "legs.1.price", "multiplier 1 and"),
    "price of a thousandth": ({"legs": [replace(BYBIT, price=D("24999.99"))]}, "legs.0.price", "USD per coin"),
    "prices apart": ({"price": None, "legs": [replace(BYBIT, price=D(50)), replace(OKX, price=D(50000))]},
                     "legs.1.price", "not near that of legs.0, 50"),
    "no price": ({"price": None, "legs": [replace(BYBIT, price=BTC), OKX]}, "price", "legs.1 has none"),
    "another venue": ({"legs": [BYBIT, OKX], "tags": {"venue": "bybit"}}, "tags.venue", "a leg is at okx"),
    "another symbol": ({"legs": [BYBIT, OKX], "tags": {"symbol": "ETH"}}, "tags.symbol", "the legs are of BTC"),
    "symbol that begins alike": ({"legs": [BYBIT], "tags": {"symbol": "BTCDOM"}}, "tags.symbol", "are of BTC"),
    "amount and score": ({"amount_usd": D(5), "signal_score": D(1)}, "amount_usd", "not both"),
    "amount of 64 bits": ({"amount_usd": D(10) ** 12}, "amount_usd", "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_POSITION)
def test_reserve_when_it_is_no_position_then_the_field_is_named_and_nothing_recorded(ledger: Ledger, name: str) -> None:
    request, field, words = NO_POSITION[name]
    for dry_run in (True, False):
        with pytest.raises(InvalidRequest, match=words) as refused:
            ledger.reserve(**{"key": "k", "price": BTC, "dry_run": dry_run, **request})
        assert refused.value.field == field
        assert len(str(refused.value)) < 500
    assert ask(ledger, BYBIT).seq == 1, "nothing is recorded and the key is unused"


@pytest.mark.parametrize(
    "symbol", ["BTC", "btc", "BTC/USDT", "BTCUSDT", "BTC/USDT:USDT", "BTC-PERP", ["BTC", "BTCUSD"]]
)
def test_reserve_when_the_symbol_is_of_the_legs_in_any_writing_then_it_stays(ledger: Ledger, symbol: Any) -> None:
    decision = ask(ledger, BYBIT, OKX, tags={"symbol": symbol, "venue": ["okx", "bybit"]})
    assert ledger.position(position_of(decision)).tags == {
        "symbol": symbol if isinstance(symbol, str) else tuple(symbol),
        "venue": ("bybit", "okx"),
    }


@pytest.mark.parametrize("price", [D(25000), D(100000)])
def test_reserve_when_a_price_is_just_within_twice_the_other_then_it_is_taken(ledger: Ledger, price: Decimal) -> None:
    assert ask(ledger, BYBIT, replace(OKX, price=price)).granted


# --- retries -----------------------------------------------------------------------------------------------------


def test_reserve_when_rules_of_a_leg_changed_since_then_a_retry_is_the_same_request(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    first = ask(ledger, BYBIT, OKX)
    changed = [rules_of("okx", "BTC/USDT:USDT", "1", contract_size=D("0.01"), min_notional=D(7))]
    record_markets(database_url, [*[one for one in MARKETS if one.venue == "okx"][1:], *changed], now_us=2)
    with Ledger.open(database_url, clock=clock) as other:
        again = ask(other, BYBIT, OKX)
        assert (again.replayed, again.seq, again.legs) == (True, first.seq, first.legs)
        closed = [rules_of("okx", "BTC/USDT:USDT", "1", active=False)]
        record_markets(database_url, [*[one for one in MARKETS if one.venue == "okx"][1:], *closed], now_us=3)
    with Ledger.open(database_url, clock=clock) as other:
        assert ask(other, BYBIT, OKX).replayed
        with pytest.raises(InvalidRequest, match="not open for trading"):
            ask(other, BYBIT, OKX, key="new")
