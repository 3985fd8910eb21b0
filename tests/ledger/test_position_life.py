"""States of a position: filled, partly closed, released; and facts that exceed a cap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, InvalidRequest, Ledger, Leg, NotFound, WrongState
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, dynamic_settings, figures, position_of, reserve_btc

pytestmark = [pytest.mark.one_engine, pytest.mark.settings(dynamic_settings())]

D = Decimal
SCOPES = ("portfolio", "venue=bybit", "symbol=BTC", "strategy=funding")


def filled(ledger: Ledger, key: str = "1", **fill: Any) -> Decision:
    """A reservation of 930 USD, 0.018 BTC, filled at 50,010 unless told otherwise."""
    held = reserve_btc(ledger, key, signal_score=D("0.9"))
    arguments: dict[str, Any] = {"quantity": D("0.018"), "price": D(50010)}
    return ledger.confirm(key=f"{key}/fill", position_id=position_of(held), **(arguments | fill))


# --- confirm -----------------------------------------------------------------------------------------------------


def test_confirm_when_filled_below_the_hold_then_the_rest_is_freed_at_once(ledger: Ledger, clock: FakeClock) -> None:
    held = reserve_btc(ledger, "1", signal_score=D("0.9"))
    clock.advance(3)
    done = ledger.confirm(key="1/fill", position_id="main-1", quantity=D("0.018"), price=D(50010))
    assert (done.outcome, done.reason, done.granted, done.seq) == ("applied", None, False, 2)
    assert (done.position_id, done.quantity, done.budget) == ("main-1", D("0.018"), None)
    assert (done.exposure_before, done.exposure_after) == (D(900), D("900.18"))
    assert done.raise_for_denial() is done
    for scope in SCOPES:
        assert figures(ledger, scope) == (D(0), D("900.18")), scope
    position = ledger.position("main-1")
    assert (position.state, position.held, position.open, position.notional) == ("open", 0, D("900.18"), D("900.18"))
    assert (position.quantity, position.price, position.expires_at) == (D("0.018"), D(50010), None)
    assert (position.opened_at, position.updated_at) == (held.decided_at, done.decided_at)
    clock.advance(10_000)
    assert ledger.sweep() == 0, "an open position does not expire"
    assert_verified(ledger)


@pytest.mark.parametrize(("given", "spot_price"), [({"spot_price": D(49990)}, D(49990)), ({}, D(50010))])
def test_confirm_when_prices_are_given_then_spot_was_bought_and_the_perp_sold_at_its_own(
    ledger: Ledger, given: dict[str, Any], spot_price: Decimal
) -> None:
    filled(ledger, **given)
    position = ledger.position("main-1")
    assert position.legs == (
        Leg("bybit", "BTC/USDT", "spot", "buy", D("0.018"), spot_price),
        Leg("bybit", "BTC/USDT:USDT", "swap", "sell", D("0.018"), D(50010)),
    )
    assert position.open == D("900.18"), "notional is the perp's leg alone"


def test_confirm_when_legs_are_given_then_they_are_recorded_with_the_price_where_one_is_missing(ledger: Ledger) -> None:
    legs = [
        Leg("okx", "BTC/USDT", "spot", "buy", D("0.017"), D("50001.5")),
        Leg("", "BTC-USDT-SWAP", "swap", "sell", D("0.0179"), None),
    ]
    filled(ledger, legs=legs)
    spot, perp = ledger.position("main-1").legs
    assert (spot, perp) == (legs[0], replace(legs[1], price=D(50010)))
    assert_verified(ledger)


def test_confirm_when_the_hold_had_no_instruments_then_there_are_no_legs(ledger: Ledger) -> None:
    ledger.reserve(key="1", signal_score=D("0.9"))
    ledger.confirm(key="2", position_id="main-1", quantity=D(2), price=D(400))
    position = ledger.position("main-1")
    assert (position.open, position.quantity, position.legs) == (D(800), D(2), ())


@pytest.mark.parametrize(
    ("quantity", "price", "notional"),
    [
        ("0.333333333", "3.0000000001", "1.00000000"),
        ("0.000000001", "0.000000001", "0.00000001"),
        ("1E-30", "1E-30", "0.00000001"),
        ("12.5", "8", "100"),
        ("1E+1", "1.0E+2", "1000"),
        ("12345.123456789", "1.000000001", "12345.12346914"),
    ],
)
def test_confirm_when_the_notional_is_not_whole_then_it_is_counted_rounded_up(
    ledger: Ledger, quantity: str, price: str, notional: str
) -> None:
    ledger.reserve(key="1")
    ledger.confirm(key="2", position_id="main-1", quantity=D(quantity), price=D(price))
    assert figures(ledger) == (0, D(notional))
    position = ledger.position("main-1")
    assert (position.quantity, position.price) == (D(quantity), D(price)), "kept to the last digit"


def test_confirm_when_filled_above_the_hold_then_the_fact_counts(ledger: Ledger) -> None:
    done = filled(ledger, quantity=D("0.02"), price=D(51000))
    assert done.exposure_after == 1020
    assert ledger.exposure().overage == 0
    assert ledger.reserve(key="2", signal_score=D(1)).granted


@pytest.mark.parametrize("scope", SCOPES)
def test_confirm_when_filled_above_a_cap_then_the_excess_is_overage_and_blocks_grants(
    ledger: Ledger, scope: str
) -> None:
    ledger.set_cap(key="cap", scope=scope, cap=D(940))
    held = reserve_btc(ledger, "1", signal_score=D("0.9"))
    done = ledger.confirm(key="2", position_id=position_of(held), quantity=D("0.019"), price=D(50000))
    assert done.outcome == "applied"
    row = ledger.exposure().scope(scope)
    assert (row.open, row.overage, row.headroom) == (D(950), D(10), D(0))
    denied = reserve_btc(ledger, "3", signal_score=D(0))
    assert (denied.reason, denied.binding) == ("cap_exceeded", scope)
    assert ledger.release(key="4", position_id=position_of(held), quantity=D("0.001")).outcome == "applied"
    row = ledger.exposure().scope(scope)
    assert (row.open, row.overage, row.headroom) == (D(900), D(0), D(40))
    assert ledger.reserve(key="5", tags=TAGS, signal_score=D(0)).budget == 40, "what is gone blocks no more"
    assert_verified(ledger)


def test_confirm_when_exposure_would_not_fit_64_bits_then_it_is_refused_and_nothing_moves(ledger: Ledger) -> None:
    ledger.reserve(key="1")
    for quantity in (D("92233720368.54775808"), D("1E+20")):
        with pytest.raises(InvalidRequest, match=r"does not fit|would not fit"):
            ledger.confirm(key="2", position_id="main-1", quantity=quantity, price=D(1))
    ledger.confirm(key="2", position_id="main-1", quantity=D("92233720368.54775807"), price=D(1))
    with pytest.raises(InvalidRequest, match="exposure of portfolio would not fit"):
        ledger.adopt(key="3", quantity=D("0.00000001"), price=D(1))
    assert ledger.exposure().open == D("92233720368.54775807")
    assert ledger.reserve(key="4").reason == "cap_exceeded"
    assert_verified(ledger)


# --- a fill after the hold expired -------------------------------------------------------------------------------


def test_confirm_when_the_hold_has_expired_then_the_fill_is_recorded_as_a_position_of_its_own(
    ledger: Ledger, clock: FakeClock
) -> None:
    reserve_btc(ledger, "1", signal_score=D("0.9"), ttl_seconds=10)
    clock.advance(11)
    late = ledger.confirm(key="2", position_id="main-1", quantity=D("0.018"), price=D(50000), spot_price=D(49999))
    assert (late.outcome, late.position_id, late.seq) == ("applied", "main-3", 3)
    assert (late.exposure_before, late.exposure_after) == (D(0), D(900))
    expired, position = ledger.position("main-1"), ledger.position("main-3")
    assert (expired.state, expired.held, expired.open) == ("expired", 0, 0)
    assert (position.state, position.open, position.origin) == ("open", D(900), 1)
    assert dict(position.tags) == TAGS
    assert [(leg.symbol, leg.quantity, leg.price) for leg in position.legs] == [
        ("BTC/USDT", D("0.018"), D(49999)), ("BTC/USDT:USDT", D("0.018"), D(50000))
    ]  # fmt: skip
    assert [decision.command for decision in ledger.history("main", ascending=True)] == ["reserve", "expire", "confirm"]
    assert_verified(ledger)


def test_confirm_when_a_late_fill_does_not_fit_then_it_is_overage_and_blocks_grants(
    ledger: Ledger, clock: FakeClock
) -> None:
    ledger.set_cap(key="cap", scope="venue=bybit", cap=D(1000))
    late = reserve_btc(ledger, "1", signal_score=D("0.9"), ttl_seconds=10)
    clock.advance(10)
    other = reserve_btc(ledger, "2", signal_score=D(1))
    assert other.budget == 1000, "the expired hold was free for others"
    recorded = ledger.confirm(key="3", position_id=position_of(late), quantity=D("0.018"), price=D(50000))
    row = ledger.exposure().scope("venue=bybit")
    assert (row.held, row.open, row.overage) == (D(1000), D(900), D(900))
    assert reserve_btc(ledger, "4").binding == "venue=bybit"
    assert_verified(ledger)
    ledger.release(key="5", position_id=position_of(recorded))
    assert ledger.exposure().scope("venue=bybit").overage == 0
    assert_verified(ledger)


def test_confirm_when_a_late_fill_comes_twice_then_only_a_replay_is_answered(ledger: Ledger, clock: FakeClock) -> None:
    reserve_btc(ledger, "1", ttl_seconds=10)
    clock.advance(10)
    fill: dict[str, Any] = {"position_id": "main-1", "quantity": D("0.01"), "price": D(50000)}
    first = ledger.confirm(key="2", **fill)
    again = ledger.confirm(key="2", **fill)
    assert (again.replayed, again.hash, again.position_id) == (True, first.hash, first.position_id)
    with pytest.raises(WrongState, match="main-1: its late fill is recorded already, as main-3"):
        ledger.confirm(key="3", **fill)
    assert ledger.exposure().open == 500
    ledger.release(key="4", position_id=position_of(first))
    with pytest.raises(WrongState, match="recorded already"):
        ledger.confirm(key="5", **fill)
    assert_verified(ledger)


# --- release -----------------------------------------------------------------------------------------------------


def test_release_when_it_is_held_then_the_hold_is_given_back_whole(ledger: Ledger) -> None:
    held = reserve_btc(ledger, "1", signal_score=D("0.9"))
    done = ledger.release(key="2", position_id=position_of(held))
    assert (done.outcome, done.position_id, done.exposure_after) == ("applied", "main-1", 0)
    for scope in SCOPES:
        assert figures(ledger, scope) == (0, 0), scope
    position = ledger.position("main-1")
    assert (position.state, position.held, position.expires_at) == ("released", 0, None)
    assert_verified(ledger)


def test_release_when_open_without_a_quantity_then_all_of_it_is_closed(ledger: Ledger) -> None:
    filled(ledger)
    done = ledger.release(key="exit", position_id="main-1")
    assert (done.outcome, done.quantity) == ("applied", D("0.018"))
    assert (done.exposure_before, done.exposure_after) == (D("900.18"), D(0))
    position = ledger.position("main-1")
    assert (position.state, position.quantity, position.open, position.price) == ("closed", 0, 0, D(50010))
    assert [leg.quantity for leg in position.legs] == [D("0.018")] * 2, "a closed position shows what it was"


def test_release_when_closed_in_parts_then_each_part_frees_its_share(ledger: Ledger) -> None:
    filled(ledger)
    part = ledger.release(key="exit/1", position_id="main-1", quantity=D("0.005"))
    assert (part.quantity, part.exposure_after) == (D("0.005"), D("650.13"))
    position = ledger.position("main-1")
    assert (position.state, position.quantity, position.open) == ("open", D("0.013"), D("650.13"))
    assert [leg.quantity for leg in position.legs] == [D("0.013"), D("0.013")]
    ledger.release(key="exit/2", position_id="main-1", quantity=D("0.0129999"))
    assert ledger.position("main-1").open == D("0.005001")
    with pytest.raises(InvalidRequest, match=r"cannot close 0\.0000002 of main-1: only 0\.0000001 is open"):
        ledger.release(key="exit/3", position_id="main-1", quantity=D("0.0000002"))
    last = ledger.release(key="exit/3", position_id="main-1", quantity=D("0.0000001"))
    assert last.exposure_after == 0
    assert ledger.position("main-1").state == "closed"
    assert_verified(ledger)


def test_release_when_parts_do_not_divide_evenly_then_nothing_is_left_over_or_lost(ledger: Ledger) -> None:
    ledger.reserve(key="1", tags=TAGS)
    ledger.confirm(key="2", position_id="main-1", quantity=D(1), price=D("777.77777777777"))
    for n in range(6):
        ledger.release(key=f"part/{n}", position_id="main-1", quantity=D("0.142857142857142857"))
        left = 1 - (n + 1) * D("0.142857142857142857")
        assert D(0) <= ledger.exposure().open - left * D("777.77777777777") < D("0.00000001"), (
            "rounded up, by less than a unit"
        )
    ledger.release(key="rest", position_id="main-1")
    for scope in SCOPES:
        assert figures(ledger, scope) == (0, 0)
    assert_verified(ledger)


def test_release_when_legs_differ_in_quantity_then_each_keeps_its_share(ledger: Ledger) -> None:
    legs = [Leg("a", "S", "spot", "buy", D(10), D(3)), Leg("b", "P", "swap", "sell", D("9.9"), D(3))]
    ledger.reserve(key="1")
    ledger.confirm(key="2", position_id="main-1", quantity=D(10), price=D(3), legs=legs)
    ledger.release(key="3", position_id="main-1", quantity=D("2.5"))
    assert [leg.quantity for leg in ledger.position("main-1").legs] == [D("7.5"), D("7.425")]
    assert_verified(ledger)


def test_release_when_a_quantity_is_asked_of_a_hold_then_it_is_refused(ledger: Ledger) -> None:
    reserve_btc(ledger, "1")
    with pytest.raises(InvalidRequest, match="main-1 is held: release all of it") as refused:
        ledger.release(key="2", position_id="main-1", quantity=D("0.001"))
    assert refused.value.field == "quantity"
    assert ledger.position("main-1").state == "held"


# --- verbs that do not fit ---------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[Ledger, str], Decision]] = {
    "confirm": lambda ledger, name: ledger.confirm(key="x", position_id=name, quantity=D(1), price=D(1)),
    "release": lambda ledger, name: ledger.release(key="x", position_id=name),
    "extend": lambda ledger, name: ledger.extend(key="x", position_id=name),
}


def brought_to(state: str, ledger: Ledger, clock: FakeClock) -> str:
    """A position in this state, and its name."""
    name = position_of(reserve_btc(ledger, "to/1", signal_score=D("0.9"), ttl_seconds=10))
    if state in ("open", "closed"):
        ledger.confirm(key="to/2", position_id=name, quantity=D("0.018"), price=D(50000))
    if state in ("closed", "released"):
        ledger.release(key="to/3", position_id=name)
    if state == "expired":
        clock.advance(10)
        ledger.sweep()
    assert ledger.position(name).state == state
    return name


@pytest.mark.parametrize(
    ("state", "verb"),
    [
        ("open", "confirm"),
        ("open", "extend"),
        *(("closed", verb) for verb in VERBS),
        *((state, verb) for state in ("released", "expired") for verb in ("release", "extend")),
    ],
)
def test_use_verb_when_the_state_does_not_allow_it_then_nothing_is_recorded(
    ledger: Ledger, clock: FakeClock, state: str, verb: str
) -> None:
    name = brought_to(state, ledger, clock)
    before = (ledger.position(name), ledger.exposure())
    with pytest.raises(WrongState, match=f"cannot {verb} {name}: {state} since seq") as refused:
        VERBS[verb](ledger, name)
    assert refused.value.code == "wrong_state"
    assert (ledger.position(name), ledger.exposure()) == before
    assert ledger.reserve(key="x").replayed is False, "the key stays unused"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["main-2", "main-999999999999999999", "main-0", "nobody-1"])
def test_use_verb_when_there_is_no_such_position_then_it_is_not_found(ledger: Ledger, verb: str, name: str) -> None:
    reserve_btc(ledger, "1")
    with pytest.raises(NotFound, match=r"no (position|portfolio) '(main|nobody)"):
        VERBS[verb](ledger, name)
    assert ledger.portfolios() == ["main"]
    assert len(ledger.history("main")) == 1


async def test_use_verbs_async_when_awaited_then_the_position_lives_the_same_life(ledger: Ledger) -> None:
    held = await ledger.reserve_async(key="1", tags=TAGS)
    name = position_of(held)
    await ledger.extend_async(key="2", position_id=name, ttl_seconds=600)
    await ledger.confirm_async(key="3", position_id=name, quantity=D(2), price=D(100))
    assert ledger.exposure().open == 200
    await ledger.release_async(key="4", position_id=name, quantity=D(1))
    done = await ledger.release_async(key="5", position_id=name)
    assert (done.exposure_before, done.exposure_after) == (D(100), D(0))
    with pytest.raises(WrongState):
        await ledger.extend_async(key="6", position_id=name)
    assert_verified(ledger)
