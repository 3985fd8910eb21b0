"""Positions whose legs are at several accounts: each leg is compared at its own, and the hedge across all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, Leg, LegPlan, WrongState
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.reconciliation import Drift
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, long, short
from tests.support.ledgers import BTC_PRICE, figures, position_of

pytestmark = pytest.mark.one_engine

D = Decimal
TAGS = {"strategy": "perp-perp"}


def rules(venue: str, symbol: str = PERP, step: str = "0.001") -> InstrumentInfo:
    return InstrumentInfo(symbol, D(step), D(1000), D(step), listed_as=f"{venue}:{symbol}")


def plans(*legs: tuple[str, str]) -> list[LegPlan]:
    """Return plans of the perpetual, as (venue, side) or (venue/account, side)."""
    return [
        LegPlan(rules(place.partition("/")[0]), side, account=place.partition("/")[2] or None)  # type: ignore[arg-type]
        for place, side in legs
    ]  # fmt: skip


def reserve(desk: Desk, key: str, legs: Sequence[LegPlan], usd: int = 1000, **more: Any) -> Decision:
    wish = {"tags": TAGS, "price": BTC_PRICE, "amount_usd": D(usd), "ttl_seconds": 5000, **more}
    if wish.get("until_known"):
        del wish["ttl_seconds"]
    return desk.ledger.reserve(key=key, legs=legs, **wish)


def confirm(desk: Desk, position: str, quantity: str = "0.02", **more: Any) -> None:
    key = f"confirm/{position}/{desk.ledger.exposure('main').seq}"
    desk.ledger.confirm(key=key, position_id=position, quantity=D(quantity), price=BTC_PRICE, **more)


def leg(venue: str, side: str, quantity: str = "0.02", symbol: str = PERP) -> Leg:
    kind = "swap" if ":" in symbol else "spot"
    return Leg(venue, symbol, kind, side, D(quantity), BTC_PRICE)  # type: ignore[arg-type]


def told(drifts: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Return kind, subject and state of drifts, without those of holds that only ended."""
    return sorted((one.kind, one.subject, one.state) for one in drifts if one.kind != "expired_hold")


def adopt_all(desk: Desk, drifts: Sequence[Drift]) -> None:
    for drift in drifts:
        if drift.kind != "legs_unequal":
            desk.reconciler.operator.adopt(drift.id, reason="as it is", price=BTC_PRICE)


@pytest.fixture
def two(new_desk: NewDesk) -> Callable[..., Desk]:
    """A desk over one account at bybit and one at okx."""

    def opened(**reconcile: Any) -> Desk:
        desk = new_desk([WrittenAccount("bybit"), WrittenAccount("okx")], **reconcile)
        desk.ledger.set_cap(key="cap", cap=D(1_000_000))
        return desk

    return opened


def open_pair(desk: Desk, key: str = "pair") -> str:
    """Open 0.02 BTC long at bybit and short at okx, known to both exchanges."""
    held = position_of(reserve(desk, key, plans(("bybit", "buy"), ("okx", "sell"))))
    confirm(desk, held)
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.02"))
    return held


def opened(desk: Desk) -> list[Position]:
    page = desk.ledger.positions("main", state="open", limit=100)
    return [one for one in page if "external" not in one.tags]


# --- a hedge across two venues --------------------------------------------------------------------


def test_reconcile_when_two_perpetuals_of_two_venues_are_planned_then_each_leg_is_under_way_at_its_own(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell")))
    assert [(one.venue, one.kind, one.side) for one in held.legs] == [("bybit", "swap", "buy"), ("okx", "swap", "sell")]
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.02"))
    report = desk.run(2)
    assert (report.findings, report.run.found) == ((), {"in_flight": 2})
    desk.accounts[1].shows(long("0.02"))
    assert told(desk.run().live) == [("unknown_position", PERP, "open")], "nobody planned to be long at okx"


def test_reconcile_when_a_position_at_two_venues_is_confirmed_then_it_agrees(two: Callable[..., Desk]) -> None:
    desk = two()
    open_pair(desk)
    report = desk.run(2)
    assert report.findings == ()
    assert report.run.found == {"agrees": 2}


def test_reconcile_when_legs_are_given_with_the_confirm_of_a_plain_hold_then_both_venues_agree(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    tags = {**TAGS, "symbol": "BTC/USDT", "venue": ["bybit", "okx"]}
    held = position_of(desk.ledger.reserve(key="plain", tags=tags, amount_usd=D(1000), ttl_seconds=500))
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.02"))
    assert desk.run().findings == (), "one long and one short of its size, at these venues"
    confirm(desk, held, legs=[leg("bybit", "buy"), leg("okx", "sell")])
    assert desk.run(2).findings == ()


def test_reconcile_when_one_venue_deleverages_its_leg_then_the_hedge_across_venues_is_told_until_it_is_equal(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    open_pair(desk)
    desk.accounts[0].shows(long("0.005"))
    report = desk.run(2)
    assert told(report.live) == [("legs_unequal", "BTC", "confirmed"), ("quantity_differs", PERP, "confirmed")]
    (unequal,) = [one for one in report.live if one.kind == "legs_unequal"]
    assert "bybit/main and okx/main hold 0.005 long and 0.02 short" in unequal.detail
    desk.accounts[1].positions = None
    assert ("legs_unequal", "BTC", "confirmed") in told(desk.run().live), "one side is unknown, so it is not over"
    desk.accounts[1].shows(short("0.005"))
    assert [one.kind for one in desk.run().findings] == ["quantity_differs"] * 2


def test_adopt_when_one_venue_deleveraged_its_leg_then_the_naked_rest_is_told_until_it_is_hedged(
    two: Callable[..., Desk],
) -> None:
    desk = two(policy_legs_unequal="freeze")
    held = open_pair(desk)
    desk.accounts[0].shows(long("0.005"))
    adopt_all(desk, desk.run(2).live)
    kept = next(one for one in opened(desk) if one.position_id != held)
    assert kept.tags["venue"] == "okx", "it counts no more at bybit"
    assert [(one.venue, one.side, one.quantity) for one in kept.legs] == [("okx", "sell", D("0.015"))]
    report = desk.run(2)
    assert told(report.live) == [("legs_unequal", kept.position_id, "confirmed")]
    assert desk.ledger.exposure("main").whole.frozen
    desk.ledger.adopt(
        key="hedge", quantity=D("0.015"), price=BTC_PRICE, tags=TAGS, legs=[leg("bybit", "buy", "0.015")]
    )  # fmt: skip
    desk.accounts[0].shows(long("0.02"))
    assert desk.run(2).live == ()
    assert not desk.ledger.exposure("main").whole.frozen


def test_ignore_when_a_naked_rest_is_accepted_then_it_freezes_nothing_until_it_changes(
    two: Callable[..., Desk],
) -> None:
    desk = two(policy_legs_unequal="freeze")
    held = open_pair(desk)
    desk.accounts[0].shows(long("0.005"))
    adopt_all(desk, desk.run(2).live)
    (naked,) = desk.run(2).live
    desk.reconciler.operator.ignore(naked.id, reason="it is meant to be short")
    assert [one.state for one in desk.run().live] == ["acknowledged"]
    assert not desk.ledger.exposure("main").whole.frozen
    kept = next(one.position_id for one in opened(desk) if one.position_id != held)
    desk.ledger.release(key="part", position_id=kept, quantity=D("0.005"))
    desk.accounts[1].shows(short("0.015"))
    assert told(desk.run(2).live) == [("legs_unequal", kept, "confirmed")]


def test_reconcile_when_positions_of_one_side_were_meant_so_then_nothing_is_told(two: Callable[..., Desk]) -> None:
    desk = two()
    confirm(desk, position_of(reserve(desk, "long", plans(("bybit", "buy")))))
    sold = position_of(reserve(desk, "spot", [LegPlan(rules("okx", "ETH/USDT"), "sell")], price=D(2000)))
    desk.ledger.confirm(key="sold", position_id=sold, quantity=D("0.5"), price=D(2000))
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(ETH="-0.5")
    assert desk.run(2).findings == ()


def test_reconcile_when_savings_are_sold_by_a_hold_then_the_missing_coins_are_under_way(
    new_desk: NewDesk,
) -> None:
    desk = new_desk([WrittenAccount("okx")], baselines={"okx/main/ETH": "5"})
    desk.account.shows(ETH="5")
    sold = position_of(reserve(desk, "spot", [LegPlan(rules("okx", "ETH/USDT"), "sell")], price=D(2000)))
    desk.account.shows(ETH="4.5")
    assert (desk.run(2).findings, desk.run().run.found) == ((), {"in_flight": 1})
    desk.account.shows(ETH="4.4")
    assert told(desk.run().live) == [("unknown_position", "ETH", "open")], "0.1 more than it may sell"
    desk.account.shows(ETH="5.5")
    assert told(desk.run().live) == [("unknown_position", "ETH", "confirmed")], "a sale explains no purchase"
    desk.account.shows(ETH="4.5")
    desk.ledger.confirm(key="sold", position_id=sold, quantity=D("0.5"), price=D(2000))
    assert desk.run().findings == ()


def test_reconcile_when_a_position_has_three_legs_then_each_is_at_its_venue_and_its_shape_is_its_plan(
    new_desk: NewDesk,
) -> None:
    accounts = [WrittenAccount("bybit"), WrittenAccount("okx"), WrittenAccount("gate")]
    desk = new_desk(accounts)
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    future = "BTC/USDT:USDT-270326"
    legs = [
        LegPlan(rules("bybit"), "buy"), LegPlan(rules("okx"), "sell"), LegPlan(rules("gate", future), "sell"),
    ]  # fmt: skip
    held = position_of(reserve(desk, "three", legs))
    quantity = desk.ledger.position(held).quantity
    confirm(desk, held, str(quantity))
    accounts[0].shows(long(str(quantity)))
    accounts[1].shows(short(str(quantity)))
    accounts[2].shows(short(str(quantity), future))
    assert desk.run(2).findings == ()
    accounts[2].shows()
    assert told(desk.run(2).live) == [("legs_unequal", "BTC", "confirmed"), ("missing_position", future, "confirmed")]


# --- fills that trickle in ------------------------------------------------------------------------


def test_reconcile_when_one_leg_filled_and_the_other_is_under_way_then_it_is_unequal_once_the_rest_is_over(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = position_of(reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell")), ttl_seconds=900))
    confirm(desk, held, legs=[leg("bybit", "buy")], rest="hold")
    desk.accounts[0].shows(long("0.02"))
    assert desk.run(2).findings == ()
    desk.accounts[1].shows(short("0.01"))
    assert (desk.run(2).findings, desk.run().run.found) == ((), {"agrees": 1, "in_flight": 1})
    confirm(desk, held, "0.01", legs=[leg("okx", "sell", "0.01")], rest="hold")
    assert desk.run(2).findings == ()
    desk.accounts[1].shows(short("0.025"))
    assert told(desk.run().live) == [("legs_unequal", "BTC", "open"), ("quantity_differs", PERP, "open")], "too much"
    desk.accounts[1].shows(short("0.01"))
    desk.clock.advance(900)
    desk.ledger.sweep()
    assert told(desk.run(2).live) == [("legs_unequal", held, "confirmed")]


def test_reconcile_when_a_leg_never_filled_and_its_rest_is_over_then_the_other_one_is_told_naked(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = position_of(reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell"))))
    confirm(desk, held, legs=[leg("bybit", "buy")])
    desk.accounts[0].shows(long("0.02"))
    assert told(desk.run(2).live) == [("legs_unequal", held, "confirmed")]


def test_reconcile_when_a_large_position_fills_in_parts_then_a_fill_excuses_no_more_than_itself(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = position_of(reserve(desk, "large", plans(("bybit", "buy")), usd=100_000, max_position_usd=None))
    whole = desk.ledger.position(held).quantity
    assert whole is not None
    confirm(desk, held, str(whole - D("0.002")), rest="hold")
    desk.run()
    desk.clock.advance(55)
    confirm(desk, held, "0.001", rest="hold")
    desk.accounts[0].shows(long(str(whole + D("0.010"))))
    (drift,) = desk.run(seconds=5).live
    assert drift.excess == D("0.009"), "0.011 more than the ledger, of which 0.001 just moved and 0.001 is under way"


def test_reconcile_when_a_hold_is_extended_again_and_again_then_a_drift_beside_it_is_confirmed_all_the_same(
    two: Callable[..., Desk],
) -> None:
    desk = two()
    held = position_of(reserve(desk, "long", plans(("bybit", "buy"))))
    confirm(desk, held, "0.01", rest="hold")
    desk.accounts[0].shows(long("0.5"))
    for turn in range(3):
        desk.ledger.extend(key=f"extend/{turn}", position_id=held, ttl_seconds=5000)
        report = desk.run()
    assert told(report.live) == [("quantity_differs", PERP, "confirmed")]


# --- accounts -------------------------------------------------------------------------------------


def test_reconcile_when_legs_name_their_accounts_then_each_is_compared_at_its_own(new_desk: NewDesk) -> None:
    accounts = [WrittenAccount("bybit", "main"), WrittenAccount("bybit", "sub"), WrittenAccount("okx", "main")]
    desk = new_desk(accounts)
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    held = position_of(reserve(desk, "pair", plans(("bybit/sub", "buy"), ("okx", "sell"))))
    accounts[1].shows(long("0.02"))
    assert (desk.run().findings, desk.run().run.found) == ((), {"in_flight": 1})
    confirm(desk, held)
    accounts[2].shows(short("0.02"))
    assert desk.run(2).findings == ()
    accounts[1].shows()
    accounts[0].shows(long("0.02"))
    found = {(one.market.account, one.kind) for one in desk.run().findings if one.kind != "legs_unequal"}
    assert found == {("main", "unknown_position"), ("sub", "missing_position")}


@pytest.mark.parametrize(("by", "frozen"), [("portfolio", ["portfolio"]), ("venue", ["venue=bybit", "venue=okx"])])
def test_reconcile_when_a_hedge_across_venues_freezes_then_it_freezes_both_and_thaws_both(
    two: Callable[..., Desk], by: str, frozen: list[str]
) -> None:
    desk = two(policy_legs_unequal="freeze", policy_quantity_differs="alert", freeze_scope=by)
    open_pair(desk)
    desk.accounts[0].shows(long("0.005"))
    desk.run(2)
    assert [one.scope for one in desk.ledger.exposure("main").scopes if one.frozen] == frozen
    desk.accounts[0].shows(long("0.02"))
    desk.run()
    assert [one.scope for one in desk.ledger.exposure("main").scopes if one.frozen] == []
    desk.accounts[1].shows()
    desk.run(2)
    assert [one.scope for one in desk.ledger.exposure("main").scopes if one.frozen] == frozen


def test_reconcile_when_holds_are_at_two_venues_then_each_needs_its_own_orders_money(two: Callable[..., Desk]) -> None:
    desk = two()
    reserve(desk, "pair", plans(("bybit", "buy"), ("okx", "sell")))
    desk.accounts[1].balances = ()
    (drift,) = desk.run().live
    assert (drift.kind, drift.venue, drift.ledger_quantity) == ("balance_below_holds", "okx", D(1000))


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
