"""Pools: moves of positions, what is left that is too little for an order, and what traces show. Figures by hand."""

from __future__ import annotations

import json
from decimal import Decimal

from ledger_sizer import InstrumentInfo, LegPlan, Release
from tests.support.pools import OUTSIDE, A, B, Desk, guaranteed, others, said

D = Decimal


# --- moves -------------------------------------------------------------------------------------------------------


def test_retag_when_it_moves_into_a_pool_then_it_takes_what_was_kept_for_it() -> None:
    desk = guaranteed(a=300)
    moving = desk.take(200)
    assert desk.ask(1000).budget == 500
    assert said(desk.retag(moving, A)) == ("granted", None, "tags")
    assert desk.ask(1000).budget == 200, "a lacks 100 now"


def test_retag_when_it_leaves_a_pool_then_what_the_pool_would_lack_must_be_free() -> None:
    desk = guaranteed(a=300)
    moving = desk.take(200, A)
    outside = desk.take(700)
    denied = desk.retag(moving, OUTSIDE)
    assert said(denied) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert others(denied) == [], "both scopes of the move are its own"
    desk.do(Release(key="free", position_id=outside))
    assert desk.retag(moving, OUTSIDE).granted
    assert desk.ask(1000).budget == 500


def test_retag_when_the_pool_keeps_its_guarantee_without_it_then_it_may_leave() -> None:
    desk = guaranteed(a=300)
    moving = desk.take(200, A)
    desk.take(300, A)
    desk.take(500)
    assert desk.retag(moving, OUTSIDE).granted, "the pool still uses 300"


def test_retag_when_it_moves_from_pool_to_pool_then_both_guarantees_hold() -> None:
    desk = guaranteed(a=300, b=300)
    moving = desk.take(200, A)
    desk.take(400)  # 400 are free, and a lacks 100, b 300
    assert desk.retag(moving, B).granted, "a lacks 300 then, b 100"
    desk.take(100, B)
    assert said(desk.ask(1)) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert said(desk.ask(1, B)) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert desk.retag(moving, A).granted
    assert [desk.ask(1000, tags).budget for tags in (A, B)] == [100, 200]


def test_retag_when_an_entered_scope_has_a_default_cap_or_a_largest_position_then_they_hold() -> None:
    desk = Desk()
    moving = desk.take(200, A)
    desk.limit("desk=*", cap=300)
    desk.limit("venue=okx", max_position_usd=199)
    assert said(desk.retag(moving, {"bot": "a", "venue": "okx"})) == (
        "denied", "cap_exceeded", "max_position_usd:venue=okx",
    )  # fmt: skip
    first = desk.take(150, {"desk": "d"})
    denied = desk.retag(moving, {"desk": "d"})
    assert said(denied) == ("denied", "cap_exceeded", "desk=d")
    assert [row[0] for row in others(denied)] == ["desk=*"]
    desk.do(Release(key="free", position_id=first))
    moved = desk.retag(moving, {"desk": "d"})
    assert (moved.outcome, [row[0] for row in others(moved)]) == ("granted", ["desk=*"])
    assert desk.ask(500, {"desk": "d"}).budget == 100


def test_retag_when_its_scopes_are_over_their_limits_then_it_may_stay_in_them() -> None:
    desk = Desk()
    moving = desk.take(200, {"bot": "a", "venue": "okx"})
    desk.limit("venue=*", cap=100)
    desk.limit("bot=a", max_position_usd=50)
    assert desk.retag(moving, {"bot": "a", "venue": "okx", "desk": "d"}).granted, "it newly enters only desk=d"


# --- what is left is too little ----------------------------------------------------------------------------------

_STEP = D("0.1")
LEGS = [
    LegPlan(InstrumentInfo("ETH/USDT", _STEP, D(100), _STEP, D(5)), "buy"),
    LegPlan(InstrumentInfo("ETH/USDT:USDT", _STEP, D(100), _STEP, D(5)), "sell"),
]


def test_reserve_when_what_a_guarantee_leaves_is_below_the_minimum_then_the_guarantee_is_named() -> None:
    desk = guaranteed(a=950)
    assert said(desk.ask(100, min_notional_usd=D(60))) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert said(desk.ask(40, min_notional_usd=D(60))) == ("denied", "below_min_notional", "amount_usd")
    # 50 USD are left; one step of the legs is 0.1 ETH, 300 USD.
    legs = {"price": D(3000), "legs": LEGS}
    assert said(desk.ask(400, **legs)) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert said(desk.ask(200, **legs)) == ("denied", "below_min_qty", "guarantee:bot=a"), "it would not do either"
    inside = desk.ask(400, A, **legs)
    assert [inside.budget, inside.quantity] == [300, D("0.1")]


def test_reserve_when_what_a_default_cap_leaves_is_below_the_minimum_then_the_scope_is_named() -> None:
    desk = Desk()
    desk.limit("venue=*", cap=50)
    okx = {"venue": "okx"}
    assert said(desk.ask(100, okx, min_notional_usd=D(60))) == ("denied", "cap_exceeded", "venue=okx")
    assert said(desk.ask(400, okx, price=D(3000), legs=LEGS)) == ("denied", "cap_exceeded", "venue=okx")


def test_reserve_when_a_largest_position_is_below_the_minimum_then_no_cap_is_named() -> None:
    desk = Desk()
    desk.limit("bot=a", max_position_usd=50)
    assert said(desk.ask(100, A, min_notional_usd=D(60))) == (
        "denied", "below_min_notional", "max_position_usd:bot=a",
    )  # fmt: skip


# --- traces ------------------------------------------------------------------------------------------------------


def test_reserve_when_it_depends_on_other_scopes_then_its_trace_shows_them_as_it_found_them() -> None:
    desk = guaranteed(a=300)
    desk.limit("bot=a", cap=400, max_position_usd=250)
    desk.limit("venue=*", cap=100)
    desk.take(20, A)
    got = desk.ask(50, {"venue": "okx"})
    limits = {"guarantee_e8": 300 * 10**8, "max_position_e8": 250 * 10**8}
    assert others(got) == [
        ["bot=a", 400 * 10**8, 20 * 10**8, 0, "active", 0, None, limits],
        ["venue=*", 100 * 10**8, 0, 0, "active"],
    ]
    own = json.loads(desk.ask(50, A).trace)
    assert own["scopes"][1] == ["bot=a", 400 * 10**8, 20 * 10**8, 0, "active", 0, None, limits]
    assert "others" not in own


def test_set_cap_when_pools_exist_then_its_trace_has_the_scope_before_and_after_alone() -> None:
    desk = guaranteed(a=300)
    trace = json.loads(desk.limit("bot=a", cap=400, guarantee=None).trace)
    assert trace == {
        "scopes": [["bot=a", None, 0, 0, "active", 0, None, {"guarantee_e8": 300 * 10**8}]],
        "after": ["bot=a", 400 * 10**8, 0, 0, "active"],
    }
