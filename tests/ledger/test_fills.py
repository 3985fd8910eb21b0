"""Fills told one by one, late ones, more of a position, and what a close takes: each figure by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, InvalidRequest, Ledger, Leg, LegPlan, WrongState
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified, figures, position_of, reserve_btc

D = Decimal
A = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(100), D("0.001"), D(5), venue="bybit")
B = InstrumentInfo("BTC/USDT:USDT", D(1), D(10000), D(1), contract_size=D("0.001"), venue="okx")


def hedge(ledger: Ledger, key: str = "h", **request: Any) -> str:
    """Hold 0.02 BTC bought at bybit against 0.02 BTC sold at okx, at 50,000 USD: 1000 USD."""
    legs = [LegPlan(A, "buy"), LegPlan(B, "sell")]
    return position_of(ledger.reserve(key=key, price=D(50000), legs=legs, **request))


def bought(quantity: str, price: str) -> Leg:
    return Leg("bybit", "BTC/USDT:USDT", "swap", "buy", D(quantity), D(price))


def sold(quantity: str, price: str) -> Leg:
    return Leg("okx", "BTC/USDT:USDT", "swap", "sell", D(quantity), D(price))


def test_confirm_when_the_rest_is_held_then_each_fill_adds_and_the_hold_shrinks(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    assert figures(ledger) == (1000, 0)
    ledger.confirm(key="1", position_id=name, quantity=D("0.008"), price=D(50000), rest="hold", reference="order-7")
    assert figures(ledger) == (600, 400)
    position = ledger.position(name)
    assert (position.state, position.quantity, position.unfilled, position.reference) == (
        "open", D("0.008"), D("0.012"), "order-7",
    )  # fmt: skip
    ledger.confirm(key="2", position_id=name, quantity=D("0.002"), price=D(55000), rest="hold")
    assert figures(ledger) == (500, 510)
    assert (ledger.position(name).price, ledger.position(name).cost) == (D(51000), 510)
    ledger.confirm(key="3", position_id=name, quantity=D("0.01"), price=D(51000), rest="hold")
    position = ledger.position(name)
    assert (position.held, position.open, position.pending, position.filled) == (0, 1020, False, D("0.02"))
    assert position.reference == "order-7"
    assert_verified(ledger)


def test_confirm_when_the_rest_is_freed_then_nothing_more_may_fill(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    ledger.confirm(key="1", position_id=name, quantity=D("0.008"), price=D(50000), rest="hold")
    ledger.confirm(key="2", position_id=name, quantity=D("0.002"), price=D(50000), rest="free")
    assert figures(ledger) == (0, 500)
    with pytest.raises(WrongState, match="needs held"):
        ledger.confirm(key="3", position_id=name, quantity=D("0.001"), price=D(50000))
    assert_verified(ledger)


@pytest.mark.parametrize("how", ["expired", "released"])
def test_confirm_when_the_rest_is_over_then_a_later_fill_still_adds(ledger: Ledger, clock: FakeClock, how: str) -> None:
    name = position_of(reserve_btc(ledger, "r", ttl_seconds=10))
    ledger.confirm(key="1", position_id=name, quantity=D("0.008"), price=D(50000), rest="hold")
    if how == "expired":
        clock.advance(10)
        assert ledger.sweep() == 1
    else:
        ledger.release(key="x", position_id=name, held_only=True)
    assert figures(ledger) == (0, 400)
    assert ledger.position(name).state == "open"
    ledger.confirm(key="2", position_id=name, quantity=D("0.012"), price=D(50000))
    assert figures(ledger) == (0, 1000)
    assert_verified(ledger)


@pytest.mark.parametrize("how", ["expired", "released"])
def test_confirm_when_the_hold_is_over_then_late_fills_make_one_position(
    ledger: Ledger, clock: FakeClock, how: str
) -> None:
    name = hedge(ledger, ttl_seconds=10)
    if how == "expired":
        clock.advance(10)
        ledger.sweep()
    else:
        ledger.release(key="x", position_id=name)
    late = ledger.confirm(key="1", position_id=name, quantity=D("0.01"), price=D(50000), rest="hold")
    again = ledger.confirm(key="2", position_id=name, quantity=D("0.01"), price=D(52000), rest="hold")
    assert late.position_id == again.position_id != name
    position = ledger.position(position_of(late))
    assert (position.origin, position.quantity, position.price, position.held) == (1, D("0.02"), D(51000), 0)
    assert [(leg.venue, leg.side, leg.quantity) for leg in position.legs] == [
        ("bybit", "buy", D("0.02")), ("okx", "sell", D("0.02")),
    ]  # fmt: skip
    ledger.release(key="3", position_id=position.position_id)
    third = ledger.confirm(key="4", position_id=name, quantity=D("0.001"), price=D(50000))
    assert third.position_id not in (name, late.position_id)
    with pytest.raises(WrongState, match=f"its late fill is recorded already, as {third.position_id}"):
        ledger.confirm(key="5", position_id=name, quantity=D("0.001"), price=D(50000))
    assert_verified(ledger)


def test_confirm_when_legs_fill_apart_then_each_side_counts_what_it_has(ledger: Ledger) -> None:
    name = hedge(ledger)
    ledger.confirm(key="1", position_id=name, quantity=D("0.02"), price=D(50000), legs=[bought("0.02", "50000")],
                   rest="hold")  # fmt: skip
    position = ledger.position(name)
    assert (position.held, position.open, position.pending) == (0, 1000, True), "leg A is filled, B is not"
    ledger.confirm(key="2", position_id=name, quantity=D("0.015"), price=D(50100), legs=[sold("0.015", "50100")],
                   rest="hold")  # fmt: skip
    position = ledger.position(name)
    # Sold: 0.015 x 50100 = 751.5, and 0.005 x 50000 = 250 to come: 1001.5, more than the 1000 bought.
    assert (position.held, position.open, position.quantity) == (D("1.5"), 1000, D("0.02"))
    ledger.confirm(key="3", position_id=name, quantity=D("0.005"), price=D(50100), legs=[sold("0.005", "50100")],
                   rest="hold")  # fmt: skip
    position = ledger.position(name)
    assert (position.held, position.open, position.pending) == (0, 1002, False)
    assert_verified(ledger)


def test_confirm_when_a_spot_leg_fills_without_its_contract_then_it_counts_itself(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    spot = Leg("", "BTC/USDT", "spot", "buy", D("0.02"), D(49900))
    ledger.confirm(key="1", position_id=name, quantity=D("0.02"), price=D(49900), legs=[spot], rest="hold")
    assert figures(ledger) == (2, 998)
    ledger.release(key="2", position_id=name, held_only=True)
    assert figures(ledger) == (0, 998), "the spot coins are there, unhedged"
    assert [leg.symbol for leg in ledger.position(name).legs] == ["BTC/USDT"]
    assert_verified(ledger)


def test_confirm_when_a_budget_has_no_legs_then_the_hold_shrinks_by_what_fills_cost(ledger: Ledger) -> None:
    name = position_of(ledger.reserve(key="r"))
    ledger.confirm(key="1", position_id=name, quantity=D(3), price=D(200), rest="hold")
    assert figures(ledger) == (400, 600)
    ledger.confirm(key="2", position_id=name, quantity=D(3), price=D(200), rest="hold")
    assert figures(ledger) == (0, 1200), "beyond the hold it is a fact"
    assert ledger.position(name).pending
    assert_verified(ledger)


def test_confirm_when_a_leg_is_elsewhere_then_venue_is_extended_in_that_decision(ledger: Ledger) -> None:
    name = position_of(ledger.reserve(key="r", tags={"venue": "bybit"}))
    ledger.confirm(key="1", position_id=name, quantity=D("0.01"), price=D(50000), legs=[sold("0.01", "50000")])
    assert ledger.position(name).tags == {"venue": ("bybit", "okx")}
    assert figures(ledger, "venue=bybit") == figures(ledger, "venue=okx") == figures(ledger) == (0, 500)
    assert ledger.exposure(as_of=1).scope("venue=okx").exposure == 0
    assert ledger.exposure(as_of=2).scope("venue=okx").open == 500
    assert_verified(ledger)


def test_fill_when_it_is_told_again_and_again_then_only_what_is_new_is_recorded(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    ledger.fill(key="1", position_id=name, filled_quantity=D("0.005"), price=D(50000))
    assert figures(ledger) == (750, 250)
    same = ledger.fill(key="2", position_id=name, filled_quantity=D("0.005"), price=D(50000))
    less = ledger.fill(key="3", position_id=name, filled_quantity=D("0.004"), price=D(50000))
    assert (same.quantity, less.quantity, figures(ledger)) == (0, 0, (750, 250))
    # 0.02 at 50,750 on average: the new 0.015 cost 1015 - 250 = 765 USD.
    more = ledger.fill(key="4", position_id=name, filled_quantity=D("0.02"), price=D(50750))
    assert (more.quantity, figures(ledger)) == (D("0.015"), (0, 1015))
    ledger.release(key="5", position_id=name, quantity=D("0.01"))
    assert ledger.fill(key="6", position_id=name, filled_quantity=D("0.02"), price=D(50750)).quantity == 0
    over = ledger.fill(key="7", position_id=name, filled_quantity=D("0.021"), price=D(50750))
    assert (over.position_id, over.quantity) == (name, D("0.001"))
    assert figures(ledger) == (0, D("558.25"))
    assert_verified(ledger)


def test_fill_when_the_hold_is_over_then_it_follows_to_the_late_position(ledger: Ledger, clock: FakeClock) -> None:
    name = hedge(ledger, ttl_seconds=10)
    clock.advance(10)
    ledger.sweep()
    late = ledger.fill(key="1", position_id=name, filled_quantity=D("0.01"), price=D(50000))
    assert ledger.fill(key="2", position_id=name, filled_quantity=D("0.01"), price=D(50000)).quantity == 0
    more = ledger.fill(key="3", position_id=name, filled_quantity=D("0.015"), price=D(50000))
    assert (more.position_id, more.quantity, figures(ledger)) == (late.position_id, D("0.005"), (0, 750))
    ledger.release(key="4", position_id=position_of(late))
    assert ledger.fill(key="5", position_id=name, filled_quantity=D("0.015"), price=D(50000)).quantity == 0
    anew = ledger.fill(key="6", position_id=name, filled_quantity=D("0.016"), price=D(50000))
    assert anew.position_id not in (name, late.position_id)
    assert figures(ledger) == (0, 50)
    assert_verified(ledger)


def test_fill_when_the_position_is_closed_then_what_is_new_is_a_position_of_its_own(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    ledger.confirm(key="1", position_id=name, quantity=D("0.018"), price=D(50000))
    ledger.release(key="2", position_id=name)
    assert ledger.fill(key="3", position_id=name, filled_quantity=D("0.018"), price=D(50000)).quantity == 0
    found = ledger.fill(key="4", position_id=name, filled_quantity=D("0.02"), price=D(50000))
    assert (found.quantity, ledger.position(position_of(found)).origin) == (D("0.002"), 1)
    assert_verified(ledger)


def test_release_when_a_part_is_closed_then_it_takes_its_share_of_the_exact_cost(ledger: Ledger) -> None:
    name = position_of(ledger.reserve(key="r"))
    ledger.confirm(key="1", position_id=name, quantity=D(1), price=D(100), rest="hold")
    ledger.confirm(key="2", position_id=name, quantity=D(2), price=D("100.5"))
    position = ledger.position(name)
    assert (position.cost, position.price) == (301, D("100.333333333333333333")), "301 / 3 does not end"
    ledger.release(key="3", position_id=name, quantity=D(1))
    assert ledger.position(name).cost == D("200.666666666666666667"), "rounded up to 1e-18"
    assert figures(ledger) == (0, D("200.66666667"))
    ledger.release(key="4", position_id=name, quantity=D(2))
    assert (ledger.position(name).state, figures(ledger)) == ("closed", (0, 0))
    assert_verified(ledger)


def test_release_when_it_is_open_and_holds_then_all_of_it_ends(ledger: Ledger) -> None:
    name = hedge(ledger)
    ledger.confirm(key="1", position_id=name, quantity=D("0.01"), price=D(50000), rest="hold")
    closed = ledger.release(key="2", position_id=name, quantity=D("0.01"))
    assert (closed.quantity, ledger.position(name).state, figures(ledger)) == (D("0.01"), "held", (500, 0))
    ledger.confirm(key="3", position_id=name, quantity=D("0.01"), price=D(50000), rest="hold")
    assert (ledger.position(name).state, figures(ledger)) == ("open", (0, 500))
    ledger.release(key="4", position_id=name)
    assert (ledger.position(name).state, ledger.position(name).filled, figures(ledger)) == ("closed", D("0.02"), (0, 0))
    assert_verified(ledger)


def test_reserve_when_a_position_is_named_then_its_confirm_raises_quantity_and_average_price(ledger: Ledger) -> None:
    name = hedge(ledger, amount_usd=D(500))
    ledger.confirm(key="1", position_id=name, quantity=D("0.01"), price=D(50000))
    more = ledger.reserve(key="2", position_id=name, price=D(60000), amount_usd=D(300))
    assert (more.granted, more.position_id, more.quantity, more.budget) == (True, name, D("0.005"), 300)
    assert [(leg.venue, leg.quantity, leg.order_amount) for leg in more.legs] == [
        ("bybit", D("0.005"), D("0.005")), ("okx", D("0.005"), 5),
    ]  # fmt: skip
    assert figures(ledger) == (300, 500)
    ledger.confirm(key="3", position_id=name, quantity=D("0.005"), price=D(62000))
    position = ledger.position(name)
    assert (position.quantity, position.price, position.cost, position.open) == (D("0.015"), D(54000), 810, 810)
    assert_verified(ledger)


def test_reserve_when_more_is_denied_then_the_position_stays_as_it_is(ledger: Ledger) -> None:
    name = hedge(ledger)
    ledger.confirm(key="1", position_id=name, quantity=D("0.02"), price=D(50000))
    before = ledger.position(name)
    denied = ledger.reserve(key="2", position_id=name, price=D(50000))
    assert (denied.reason, denied.binding, denied.position_id) == ("below_min_qty", "max_position_size_usd", name)
    ledger.halt(key="3")
    assert ledger.reserve(key="4", position_id=name, price=D(50000)).reason == "halted"
    assert ledger.position(name) == before
    assert_verified(ledger)


def test_retag_when_the_new_scope_has_room_then_all_of_it_moves_in_one_decision(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    ledger.confirm(key="1", position_id=name, quantity=D("0.01"), price=D(50000), rest="hold")
    ledger.set_cap(key="2", scope="desk=two", cap=D(999))
    denied = ledger.retag(key="3", position_id=name, tags={"desk": "two"})
    assert (denied.reason, denied.binding) == ("cap_exceeded", "desk=two")
    ledger.set_cap(key="4", scope="desk=two", cap=D(1000))
    moved = ledger.retag(key="5", position_id=name, tags={"desk": "two"})
    assert moved.granted
    assert ledger.position(name).tags == {"desk": "two", "symbol": "BTC", "venue": "bybit"}
    assert figures(ledger, "desk=two") == figures(ledger) == figures(ledger, "venue=bybit") == (500, 500)
    assert figures(ledger, "strategy=funding") == (0, 0)
    for seq, held in ((5, 0), (6, 500)):
        assert ledger.exposure(as_of=seq).scope("desk=two").held == held
        assert ledger.exposure(as_of=seq).scope("strategy=funding").held == 500 - held
    ledger.halt(key="6", scope="strategy=funding")
    assert ledger.retag(key="7", position_id=name, tags={"strategy": "funding"}).reason == "halted"
    assert_verified(ledger)


def test_reprice_when_the_price_rose_then_it_counts_more_and_costs_the_same(ledger: Ledger) -> None:
    name = position_of(reserve_btc(ledger, "r"))
    ledger.confirm(key="1", position_id=name, quantity=D("0.02"), price=D(50000))
    ledger.set_cap(key="2", cap=D(1100))
    ledger.reprice(key="3", position_id=name, price=D(60000))
    position = ledger.position(name)
    assert (position.open, position.cost, position.price) == (1200, 1000, D(50000))
    assert ledger.exposure().overage == 100
    ledger.release(key="4", position_id=name, quantity=D("0.005"))
    assert (ledger.position(name).open, ledger.position(name).cost) == (900, 750)
    ledger.reserve(key="5", position_id=name, amount_usd=D(100), price=D(50000))
    ledger.confirm(key="6", position_id=name, quantity=D("0.002"), price=D(50000))
    assert (ledger.position(name).open, ledger.position(name).cost) == (1000, 850)
    assert_verified(ledger)


def test_confirm_when_a_late_fill_meets_a_halted_and_full_scope_then_it_is_recorded_with_overage(
    ledger: Ledger,
) -> None:
    name = hedge(ledger)
    ledger.release(key="1", position_id=name)
    ledger.set_cap(key="2", scope="venue=okx", cap=D(600))
    ledger.halt(key="3")
    ledger.confirm(key="4", position_id=name, quantity=D("0.02"), price=D(50000))
    assert ledger.exposure().scope("venue=okx").overage == 400
    assert_verified(ledger)


def test_confirm_when_the_rest_is_no_word_for_it_then_the_field_is_named_and_the_key_unused(ledger: Ledger) -> None:
    name = hedge(ledger)
    with pytest.raises(InvalidRequest, match="rest must be 'free' or 'hold', got 'keep'") as refused:
        ledger.confirm(key="1", position_id=name, quantity=D("0.02"), price=D(50000), rest="keep")  # type: ignore[arg-type]
    assert refused.value.field == "rest"
    assert not ledger.confirm(key="1", position_id=name, quantity=D("0.02"), price=D(50000)).replayed
