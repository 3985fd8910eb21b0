"""Holds of unknown fate, late fills, and legs that are counted in thousands."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from ledger_sizer import InstrumentInfo, LegPlan, WrongState
from tests.reconcile.planned_legs import adopt_all, confirm, opened, plans, reserve, told
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, long, short
from tests.support.ledgers import figures, position_of

pytestmark = pytest.mark.one_engine

D = Decimal


# --- holds whose orders' fate is unknown, and late fills -------------------------------------------


def test_adopt_when_the_exchange_shows_the_fill_of_a_hold_of_unknown_fate_then_it_is_confirmed(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = position_of(reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell")), until_known=True))
    report = desk.run(2)
    assert (report.findings, report.run.found) == ((), {"until_known": 1}), "it stays held, and is counted in each run"
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.02"))
    live = desk.run(2).live
    assert told(live) == [("late_fill", PERP, "confirmed")] * 2
    assert figures(desk.ledger) == (D(1000), D(0)), "its hold counts it, and nothing counts it twice"
    adopt_all(desk, live)
    position = desk.ledger.position(held)
    assert (position.state, position.quantity, position.until_known) == ("open", D("0.02"), False)
    assert figures(desk.ledger) == (D(0), D(1000))
    assert desk.run(2).findings == ()


def test_reconcile_when_late_fills_are_adopted_by_policy_then_a_hold_of_unknown_fate_is_decided_by_itself(
    two: Callable[..., Desk],
) -> None:
    desk = two(policy_late_fill="adopt")
    held = position_of(reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell")), until_known=True))
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.01"))
    desk.run(3)
    position = desk.ledger.position(held)
    assert [(one.venue, one.filled, one.unfilled) for one in position.legs] == [
        ("bybit", D("0.02"), D(0)), ("okx", D("0.01"), D("0.01")),
    ]  # fmt: skip
    assert position.until_known, "the rest is as unknown as before"


@pytest.mark.parametrize("ended", ["expired", "released"])
def test_adopt_when_a_hold_that_is_over_filled_late_then_the_fill_is_the_holds_own(
    two: Callable[..., Desk], ended: str
) -> None:
    desk = two()
    held = position_of(reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell")), ttl_seconds=5))
    if ended == "released":
        desk.ledger.release(key="given up", position_id=held)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.accounts[0].shows(long("0.02"))
    live = desk.run(2).live
    assert told(live) == [("late_fill", PERP, "confirmed")]
    adopt_all(desk, live)
    (late,) = opened(desk)
    assert (late.state, late.origin, late.tags["strategy"]) == ("open", int(held.rpartition("-")[2]), "perp-perp")
    assert told(desk.run(2).live) == [("legs_unequal", late.position_id, "confirmed")], "half of a hedge"
    desk.accounts[1].shows(short("0.02"))
    adopt_all(desk, desk.run(2).live)
    assert [(one.venue, one.filled) for one in opened(desk)[0].legs] == [("bybit", D("0.02")), ("okx", D("0.02"))]
    assert desk.run(2).findings == ()


def test_adopt_when_the_rest_of_an_open_position_filled_late_then_the_position_gets_it(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = position_of(reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell"))))
    confirm(desk, held, "0.01", rest="hold")
    desk.ledger.release(key="cancelled", position_id=held, held_only=True)
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.025"))
    live = [one for one in desk.run(2).live if one.venue]
    assert [(one.venue, one.kind) for one in live] == [("bybit", "late_fill"), ("okx", "quantity_differs")]
    adopt_all(desk, live[:1])
    position = desk.ledger.position(held)
    assert [(one.venue, one.filled) for one in position.legs] == [("bybit", D("0.02")), ("okx", D("0.01"))]


def test_adopt_when_the_bot_confirmed_the_late_fill_meanwhile_then_it_is_refused(two: Callable[..., Desk]) -> None:
    desk = two()
    held = position_of(reserve(desk, "one", plans(("bybit", "buy")), ttl_seconds=5))
    desk.ledger.release(key="given up", position_id=held)
    desk.accounts[0].shows(long("0.02"))
    (drift,) = desk.run().live
    confirm(desk, held)
    with pytest.raises(WrongState, match="the ledger moved"):
        desk.reconciler.operator.adopt(drift.id, reason="as it is")
    assert desk.run(2).findings == ()


# --- in coins, whatever a venue counts in ----------------------------------------------------------


def in_thousands(desk: Desk, symbol: str, base: str) -> str:
    """Reserve and confirm 1e8 coins: spot bought, and sold as `symbol`, which counts `base`."""
    spot = InstrumentInfo(f"{base}/USDT", D(1), D(10**12), D(1), listed_as=f"binance:{base}/USDT")
    perp = InstrumentInfo(symbol, D(1), D(10**9), D(1), multiplier=1000, listed_as=f"binance:{symbol}")
    legs = [LegPlan(spot, "buy"), LegPlan(perp, "sell")]
    granted = reserve(desk, "pair", legs, price=D("0.00001"), tags={"strategy": "funding"})
    assert granted.quantity == D(10**8)
    held = position_of(granted)
    desk.ledger.confirm(key="c", position_id=held, quantity=D(10**8), price=D("0.00001"))
    return held


@pytest.mark.parametrize(("base", "symbol"), [("SHIB", "1000SHIB/USDT:USDT"), ("PEPE", "1000PEPE/USDT:USDT")])
def test_reconcile_when_a_venue_counts_in_thousands_then_both_sides_are_compared_in_coins(
    new_desk: NewDesk, base: str, symbol: str
) -> None:
    desk = new_desk([WrittenAccount("binance")])
    held = in_thousands(desk, symbol, base)
    desk.account.shows(short("100000", symbol, "0.01"), **{base: "100000000"})
    assert desk.run(2).findings == ()
    desk.account.shows(short("99000", symbol, "0.01"), **{base: "100000000"})
    report = desk.run(2)
    assert told(report.live) == [("quantity_differs", symbol, "confirmed")]
    assert report.live[0].shortfall == D(10**6), "coins, not thousands"
    adopt_all(desk, report.live)
    assert told(desk.run(2).live) == [("legs_unequal", opened(desk)[1].position_id, "confirmed")]
    assert desk.ledger.position(held).quantity == D(99_000_000)


def test_adopt_when_an_unknown_contract_counts_in_thousands_then_its_leg_and_its_value_are_in_coins(
    new_desk: NewDesk,
) -> None:
    desk = new_desk([WrittenAccount("binance")], confirmations=1)
    desk.account.shows(short("100", "1000PEPE/USDT:USDT", "0.01"))
    (drift,) = desk.run().live
    assert (drift.excess, drift.price) == (D(100_000), D("0.00001"))
    assert figures(desk.ledger, "external=exchange") == (D(0), D(1))
    adopt_all(desk, [drift])
    (position,) = opened(desk)
    assert (position.tags["symbol"], position.legs[0].quantity) == ("PEPE", D(100_000))
    assert desk.run().findings == ()


def test_reconcile_when_a_balance_counts_in_thousands_then_it_is_compared_in_coins(new_desk: NewDesk) -> None:
    desk = new_desk([WrittenAccount("binance")])
    sats = InstrumentInfo("1000SATS/USDT", D(1), D(10**9), D(1), multiplier=1000, listed_as="binance:1000SATS/USDT")
    held = position_of(reserve(desk, "sats", [LegPlan(sats, "buy")], price=D("0.0000001"), usd=10, tags={}))
    desk.ledger.confirm(key="c", position_id=held, quantity=D(10**8), price=D("0.0000001"))
    desk.account.shows(**{"1000SATS": "100000"})
    assert desk.run(2).findings == ()
