"""Default caps, guarantees and largest positions, figures by hand: what is granted, and which of them may be set.

The rules alone, without a database. Amounts are USD.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Adopt, Confirm, Halt, Release, Reserve
from ledger_sizer.model.errors import InvalidRequest
from tests.support.pools import OUTSIDE, A, B, C, Desk, cut, guaranteed, others, said

D = Decimal


# --- what is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "left", "binding"),
    [
        (OUTSIDE, 350, "guarantee:bot=c"),
        ({}, 350, "guarantee:bot=c"),
        (A, 410, "guarantee:bot=c"),
        (B, 350, "guarantee:bot=c"),
        (C, 650, "guarantee:bot=a"),
        ({"bot": ["a", "c"]}, 710, "portfolio"),
        ({"bot": ["a", "x"]}, 410, "guarantee:bot=c"),
        ({"bot": "c", "venue": "okx"}, 650, "guarantee:bot=a"),
    ],
)
def test_reserve_when_pools_are_guaranteed_then_it_leaves_what_those_outside_of_it_lack(
    tags: Any, left: int, binding: str
) -> None:
    desk = guaranteed(a=100, b=200, c=300)
    desk.take(40, A)
    desk.take(250, B)
    # 1000 - 290 = 710 are free; a lacks 60, b nothing, c 300.
    got = desk.ask(900, tags)
    assert cut(got) == (left, binding)
    assert got.headroom_before == 710
    assert desk.ask("0.00000001", tags).reason == "cap_exceeded"


@pytest.mark.parametrize(
    ("lacks", "named"), [((5, 9, 9), "b"), ((9, 9, 5), "a"), ((1, 2, 3), "c"), ((0, 1, 0), "b")]
)  # fmt: skip
def test_reserve_when_several_guarantees_bind_then_the_one_that_keeps_most_is_named_of_equals_the_first(
    lacks: tuple[int, int, int], named: str
) -> None:
    got = guaranteed(**dict(zip("abc", lacks, strict=True))).ask(1000)
    assert cut(got) == (1000 - sum(lacks), f"guarantee:bot={named}")
    assert [row[0] for row in others(got)] == [f"bot={bot}" for bot, lack in zip("abc", lacks, strict=True) if lack]


def test_reserve_when_a_guarantee_is_used_or_zero_then_nothing_is_kept_and_nothing_told() -> None:
    desk = guaranteed(a=100, b=0)
    desk.take(100, A)
    got = desk.ask(900)
    assert cut(got) == (900, "amount_usd")
    assert others(got) == []


def test_reserve_when_facts_used_what_was_kept_then_outsiders_get_nothing_and_the_pool_what_is_left() -> None:
    desk = guaranteed(a=300)
    desk.do(Adopt(key="fact", quantity=D(9), price=D(100), tags=OUTSIDE))
    assert said(desk.ask(1)) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert cut(desk.ask(150, A)) == (100, "portfolio")
    assert said(desk.ask(1)) == ("denied", "cap_exceeded", "portfolio"), "the cap is what is full now"


def test_reserve_when_a_pool_is_halted_then_its_money_is_still_kept() -> None:
    desk = guaranteed(a=300)
    desk.do(Halt(key="halt", scope="bot=a"))
    assert said(desk.ask(10, A)) == ("denied", "halted", "bot=a")
    assert desk.ask(1000).budget == 700


def test_set_guarantee_when_the_money_is_lent_out_then_it_comes_back_to_the_pool_first() -> None:
    desk = Desk()
    lent = desk.take(800)
    assert desk.limit("bot=a", guarantee=500).outcome == "applied"
    assert said(desk.ask(1)) == ("denied", "cap_exceeded", "guarantee:bot=a")
    assert desk.ask(500, A).budget == 200
    desk.do(Release(key="back", position_id=lent))
    # 800 are free, 300 of them kept.
    assert [desk.ask(1000, tags).budget for tags in ({}, A)] == [500, 300]


def test_reserve_when_a_pool_may_have_less_than_its_guarantee_then_its_cap_holds() -> None:
    desk = guaranteed(a=300)
    desk.limit("bot=a", cap=50)
    got = desk.ask(100, A)
    assert cut(got) == (50, "bot=a")
    assert desk.ask(1000).budget == 700, "what is guaranteed and cannot be used is kept all the same"


def test_reserve_when_a_guarantee_is_lowered_or_removed_then_the_rest_is_everybodys() -> None:
    desk = guaranteed(a=300, b=200)
    desk.limit("bot=a", guarantee=100)
    assert desk.ask(1000).budget == 700
    desk.limit("bot=b", guarantee=None)
    assert desk.ask(1000).budget == 200
    assert said(desk.ask(1)) == ("denied", "cap_exceeded", "guarantee:bot=a")


def test_release_and_fill_when_nothing_is_left_then_they_are_recorded_all_the_same() -> None:
    desk = guaranteed(a=300)
    held = desk.take(700)
    filled = desk.do(Confirm(key="more", position_id=held, quantity=D(8), price=D(100)))
    assert (filled.outcome, others(filled)) == ("applied", [])
    assert filled.exposure_after == 800
    assert desk.do(Release(key="exit", position_id=held)).outcome == "applied"


# --- which guarantees may be set ---------------------------------------------------------------------------------


def test_set_cap_when_guarantees_would_exceed_the_cap_then_it_is_refused_with_the_figures() -> None:
    desk = guaranteed(a=300, b=700)
    records = len(desk.state.new_decisions)
    for scope, limits, field in (
        ("bot=c", {"guarantee": "0.00000001"}, "guarantee"),
        ("bot=b", {"guarantee": "700.00000001"}, "guarantee"),
        ("portfolio", {"cap": "999.99999999"}, "cap"),
    ):
        with pytest.raises(InvalidRequest, match=r"1000(\.00000001)? USD.*bot=a 300, bot=b 700") as refused:
            desk.limit(scope, **limits)
        assert refused.value.field == field
    assert len(desk.state.new_decisions) == records
    assert desk.limit("bot=c", guarantee=0).outcome == "applied"
    assert desk.limit("portfolio", cap=1000).outcome == "applied"


def test_set_cap_when_guarantees_are_of_another_tag_name_then_it_is_refused_and_names_both() -> None:
    desk = guaranteed(a=300)
    with pytest.raises(InvalidRequest, match=r"venue=okx does not go with that of bot=a.*remove those of bot") as no:
        desk.limit("venue=okx", guarantee=1)
    assert no.value.field == "guarantee"
    assert desk.limit("venue=okx", guarantee=0).outcome == "applied", "which guarantees nothing"
    desk.limit("bot=a", guarantee=None)
    assert desk.limit("venue=okx", guarantee=1).outcome == "applied"
    with pytest.raises(InvalidRequest, match="bot=a does not go with that of venue=okx"):
        desk.limit("bot=a", guarantee=1)


def test_set_cap_when_it_takes_back_a_guarantee_of_an_overcommitted_cap_then_it_passes() -> None:
    desk = guaranteed(a=600, b=400)
    scope = desk.state.scopes["portfolio"]
    scope.settings = scope.settings._replace(cap_e8=800 * 10**8)  # such as where the cap follows what is there
    assert desk.limit("bot=b", guarantee=300).outcome == "applied"
    with pytest.raises(InvalidRequest, match="to 901 USD, above its cap 800"):
        desk.limit("bot=b", guarantee=301)
    assert desk.limit("portfolio", cap=850).outcome == "applied"
    with pytest.raises(InvalidRequest, match="cap 849 of portfolio 'main' is below the sum of its guarantees, 900"):
        desk.limit("portfolio", cap=849)
    assert said(desk.ask(1)) == ("denied", "cap_exceeded", "guarantee:bot=a")


def test_set_cap_when_a_portfolio_has_the_most_guarantees_then_one_more_is_refused_and_a_change_is_not() -> None:
    desk = Desk()
    for number in range(100):
        desk.limit(f"bot={number}", guarantee=1)
    with pytest.raises(InvalidRequest, match="has 100 guarantees, the most that it may have"):
        desk.limit("bot=one-more", guarantee=1)
    assert desk.limit("bot=7", guarantee=2).outcome == "applied"
    assert desk.limit("bot=one-more", guarantee=0).outcome == "applied", "nothing is kept for it"
    desk.limit("bot=8", guarantee=None)
    assert desk.limit("bot=one-more", guarantee=1).outcome == "applied"


# --- default caps ------------------------------------------------------------------------------------------------


def test_reserve_when_a_venue_has_no_cap_then_the_default_holds_for_each_and_an_own_cap_wins() -> None:
    desk = Desk()
    desk.limit("venue=*", cap=100)
    desk.limit("venue=okx", cap=150)  # above the default
    desk.limit("venue=gate", cap=30)  # below it
    for venue, room in (("bybit", 100), ("okx", 150), ("gate", 30), ("deribit", 100)):
        got = desk.ask(500, {"venue": venue})
        assert cut(got) == (room, f"venue={venue}")
        assert said(desk.ask(1, {"venue": venue})) == ("denied", "cap_exceeded", f"venue={venue}")
        by_default = venue in ("bybit", "deribit")
        assert others(got) == ([["venue=*", 100 * 10**8, 0, 0, "active"]] if by_default else [])
    assert desk.ask(600).budget == 600, "no default for those without a venue"
    desk.limit("venue=okx", cap=None)  # of which 150 are used: the default holds now
    desk.limit("venue=bybit", cap=110)
    assert said(desk.ask(1, {"venue": "okx"})) == ("denied", "cap_exceeded", "venue=okx")
    assert desk.ask(500, {"venue": "bybit"}).budget == 10


@pytest.mark.parametrize(
    ("venues", "left", "binding"),
    [
        (["bybit", "okx"], 60, "venue=bybit"),
        (["gate", "okx"], 100, "venue=gate"),
        (["deribit", "okx"], 70, "venue=deribit"),
    ],
)
def test_reserve_when_a_tag_has_several_values_then_the_default_holds_for_each_without_its_own(
    venues: list[str], left: int, binding: str
) -> None:
    desk = Desk()
    desk.limit("venue=*", cap=100)
    desk.limit("venue=okx", cap=150)
    desk.take(40, {"venue": "bybit"})
    desk.take(30, {"venue": ["deribit", "okx"]})
    got = desk.ask(500, {"venue": venues})
    assert cut(got) == (left, binding)


def test_set_cap_when_the_default_is_below_what_counts_or_removed_then_grants_follow() -> None:
    desk = Desk()
    held = desk.take(80, {"venue": "bybit"})
    desk.limit("venue=*", cap=50)
    assert said(desk.ask(1, {"venue": "bybit"})) == ("denied", "cap_exceeded", "venue=bybit")
    filled = desk.do(Confirm(key="fill", position_id=held, quantity=D(1), price=D(90)))
    assert filled.outcome == "applied", "a fact is never refused"
    desk.limit("venue=*", cap=None)
    got = desk.ask(900, {"venue": "bybit"})
    assert (*cut(got), others(got)) == (900, "amount_usd", [])
    desk.limit("venue=*", cap=0)
    assert said(desk.ask(1, {"venue": "okx"})) == ("denied", "cap_exceeded", "venue=okx")


def test_reserve_when_defaults_and_guarantees_meet_then_the_least_binds_and_all_are_told() -> None:
    desk = guaranteed(a=300)
    desk.limit("bot=*", cap=200)
    desk.limit("venue=*", cap=900)
    got = desk.ask(1000, {"bot": "x", "venue": "okx"})
    assert cut(got) == (200, "bot=x")
    assert [row[0] for row in others(got)] == ["bot=*", "bot=a", "venue=*"]
    inside = desk.ask(1000, {"bot": "a", "venue": "okx"})
    assert cut(inside) == (200, "bot=a"), "the default caps a guaranteed scope too"
    assert desk.ask(1000, {"venue": "gate"}).budget == 500  # 1000 - 400, less the 100 that a lacks


# --- the largest position ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "tags", "most", "binding"),
    [
        ({}, A, 1000, "max_position_size_usd"),
        ({"bot=a": 300, "venue=okx": 200}, {"bot": "a", "venue": "okx"}, 200, "max_position_usd:venue=okx"),
        ({"bot=a": 200, "venue=okx": 200}, {"bot": "a", "venue": "okx"}, 200, "max_position_usd:bot=a"),
        ({"portfolio": 150, "bot=a": 300}, A, 150, "max_position_usd:portfolio"),
        ({"portfolio": 300, "bot=a": 150}, A, 150, "max_position_usd:bot=a"),
        ({"bot=a": 2500}, A, 2500, "max_position_usd:bot=a"),
        ({"bot=a": 300}, B, 1000, "max_position_size_usd"),
        ({"bot=a": 300, "bot=b": 250}, {"bot": ["a", "b"]}, 250, "max_position_usd:bot=b"),
    ],
)
def test_reserve_when_scopes_have_largest_positions_then_the_smallest_replaces_the_settings(
    limits: dict[str, int], tags: Any, most: int, binding: str
) -> None:
    desk = Desk()
    desk.limit("portfolio", cap=5000)
    for scope, usd in limits.items():
        desk.limit(scope, max_position_usd=usd)
    got = desk.ask(4000, tags)
    assert cut(got) == (most, binding)
    lower = desk.ask(4000, tags, max_position_usd=D(120))
    assert cut(lower) == (120, "max_position_usd")
    higher = desk.ask(1500, tags, max_position_usd=D(4000))
    assert higher.budget == min(most, 1500), "a request's own only lowers"


@pytest.mark.parametrize(("own", "base"), [(None, 2000), (500, 500), (3000, 2000)])
def test_reserve_when_a_scope_has_a_largest_position_then_the_scores_fraction_is_of_it(
    own: int | None, base: int
) -> None:
    desk = Desk()
    desk.limit("portfolio", cap=5000)
    desk.limit("bot=a", max_position_usd=2000)
    got = desk.do(
        Reserve(key="k", signal_score=D("0.5"), tags=A, max_position_usd=None if own is None else D(own))
    )  # fmt: skip
    # 0.3 + (1 - 0.3) x 0.5 = 0.65
    assert [got.fraction, got.raw_budget, got.budget] == [D("0.65"), base * D("0.65"), base * D("0.65")]
    flat = desk.do(Reserve(key="flat", tags=A))
    assert cut(flat) == (2000, "max_position_usd:bot=a")


def test_grow_when_a_scope_has_a_largest_position_then_what_the_position_counts_is_less_of_it() -> None:
    desk = Desk()
    desk.limit("bot=a", max_position_usd=300)
    position = desk.take(200, A)
    desk.do(Confirm(key="fill", position_id=position, quantity=D(1), price=D(150), rest="hold"))
    more = desk.ask(500, position_id=position)
    assert cut(more) == (100, "max_position_usd:bot=a")
    none = desk.ask(500, position_id=position)
    assert said(none) == ("denied", "below_min_notional", "max_position_usd:bot=a")
    desk.limit("bot=a", max_position_usd=None)
    assert desk.ask(500, position_id=position).budget == 500


def test_grow_when_guarantees_of_others_bind_then_it_gets_what_they_leave() -> None:
    desk = guaranteed(a=300, b=100)
    position = desk.take(200, A)
    more = desk.ask(900, position_id=position)
    assert cut(more) == (700, "guarantee:bot=b")
