"""More of a position: a reserve in every respect. Its denial leaves the position as it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import (
    Adopt,
    Decision,
    InstrumentInfo,
    InvalidRequest,
    KeyReused,
    Ledger,
    Leg,
    LegPlan,
    NotFound,
    Release,
    Reserve,
    WrongState,
)
from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import LegFills
from ledger_sizer.model.tags import NO_TAGS
from ledger_sizer.rules.filling import grow_position
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, TAGS, assert_verified, figures, position_of, reserve_btc
from tests.support.markets import record_markets

D = Decimal
BTC = D(50000)
BYBIT, OKX = LegPlan("bybit:BTC/USDT:USDT", "buy"), LegPlan("okx:BTC/USDT:USDT", "sell")
PAIR = {"price": BTC, "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}


@pytest.fixture(autouse=True)
def known_markets(ledger: Ledger, database_url: str) -> None:
    record_markets(database_url)


def held(ledger: Ledger, usd: int = 400, **request: Any) -> str:
    """Hold a hedge at bybit and okx by name."""
    asked = {"legs": [BYBIT, OKX], "price": BTC, "amount_usd": D(usd), **request}
    return position_of(ledger.reserve(key="first", **asked))


def opened(ledger: Ledger, usd: int = 400, **request: Any) -> str:
    name = held(ledger, usd, **request)
    ledger.confirm(key="fill", position_id=name, quantity=D(usd) / BTC, price=BTC)
    return name


def more(ledger: Ledger, name: str, key: str = "more", **request: Any) -> Decision:
    return ledger.reserve(**{"key": key, "position_id": name, "price": BTC, "amount_usd": D(200), **request})


def whole(ledger: Ledger, name: str) -> Any:
    return ledger.position(name), ledger.exposure().scopes


# --- what it adds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legs", [None, [BYBIT, OKX], [OKX, BYBIT]])
def test_reserve_when_more_of_an_open_position_is_asked_then_its_own_legs_are_ordered(
    ledger: Ledger, legs: list[LegPlan] | None
) -> None:
    name = opened(ledger)
    decision = more(ledger, name, legs=legs)
    assert (decision.position_id, decision.budget, decision.quantity) == (name, 200, D("0.004"))
    assert {(leg.venue, leg.side, leg.order_amount) for leg in decision.legs} == {
        ("bybit", "buy", D("0.004")), ("okx", "sell", D("0.4")),
    }  # fmt: skip
    assert [figures(ledger, scope) for scope in ("portfolio", "venue=bybit", "venue=okx")] == [(200, 400)] * 3
    position = ledger.position(name)
    assert (position.state, position.quantity, position.unfilled) == ("open", D("0.008"), D("0.004"))
    ledger.confirm(key="2", position_id=name, quantity=D("0.004"), price=D(56000))
    position = ledger.position(name)
    assert (position.quantity, position.price, position.cost) == (D("0.012"), D(52000), 624)
    assert figures(ledger) == (0, 624)
    assert_verified(ledger)


def test_reserve_when_more_of_a_held_position_is_asked_then_both_are_planned(ledger: Ledger) -> None:
    name = held(ledger)
    decision = more(ledger, name, price=D(60000))
    assert (decision.budget, decision.quantity) == (180, D("0.003"))
    assert decision.legs[0].price == 60000, "of this grant, not of both"
    position = ledger.position(name)
    assert (position.quantity, position.unfilled, position.held) == (D("0.011"), D("0.011"), 580)
    ledger.confirm(key="2", position_id=name, quantity=D("0.011"), price=BTC)
    assert figures(ledger) == (0, 550)
    assert_verified(ledger)


def test_reserve_when_more_of_a_pair_is_asked_then_its_rules_and_fee_are_those_of_its_reservation(
    ledger: Ledger,
) -> None:
    name = position_of(reserve_btc(ledger, "1", spot_fee_rate=D("0.001"), amount_usd=D(500)))
    decision = more(ledger, name, amount_usd=D(500))
    spot, contract = decision.legs
    assert (spot.quantity, contract.quantity) == (D("0.0091"), D("0.009"))
    assert figures(ledger) == (900, 0)
    assert_verified(ledger)


@pytest.mark.parametrize("state", ["held", "open"])
def test_reserve_when_more_of_a_plain_budget_is_asked_then_it_is_added(ledger: Ledger, state: str) -> None:
    name = position_of(ledger.reserve(key="1", amount_usd=D(100)))
    if state == "open":
        ledger.confirm(key="fill", position_id=name, quantity=D(1), price=D(80))
    decision = more(ledger, name)
    assert (decision.budget, decision.quantity, decision.legs) == (200, None, ())
    counted = (300, 0) if state == "held" else (200, 80)
    assert figures(ledger) == counted
    ledger.confirm(key="2", position_id=name, quantity=D(1), price=D(50), rest="hold")
    assert figures(ledger) == ((250, 50) if state == "held" else (150, 130)), "the rest of the hold stays"
    ledger.release(key="3", position_id=name, quantity=D("0.5"))
    assert ledger.exposure().held == (250 if state == "held" else 150)
    assert_verified(ledger)


def test_reserve_when_an_adopted_position_is_to_grow_then_its_legs_are_named(ledger: Ledger) -> None:
    leg = Leg("okx", "BTC/USDT:USDT", "swap", "sell", D("0.01"), BTC)
    name = position_of(ledger.adopt(key="1", quantity=D("0.01"), price=BTC, legs=[leg], tags={"symbol": "BTC"}))
    with pytest.raises(InvalidRequest, match="asked none, it has sell okx:BTC/USDT:USDT") as refused:
        more(ledger, name)
    assert refused.value.field == "legs"
    assert more(ledger, name, legs=[OKX]).quantity == D("0.004")
    assert figures(ledger) == (200, 500)
    assert_verified(ledger)


def test_reserve_when_a_late_fill_is_to_grow_then_its_legs_are_those_of_the_hold(
    ledger: Ledger, clock: FakeClock
) -> None:
    name = held(ledger, ttl_seconds=10)
    clock.advance(10)
    late = position_of(ledger.confirm(key="late", position_id=name, quantity=D("0.008"), price=BTC))
    decision = more(ledger, late)
    assert (decision.position_id, [leg.order_amount for leg in decision.legs]) == (late, [D("0.004"), D("0.4")])
    assert figures(ledger) == (200, 400)
    assert_verified(ledger)


def test_reserve_when_two_accounts_are_at_one_market_then_each_gets_its_own_order(ledger: Ledger) -> None:
    legs = [BYBIT, replace(BYBIT, side="sell", account="b"), replace(BYBIT, side="sell", account="a")]
    name = opened(ledger, legs=legs)
    decision = more(ledger, name, legs=legs)
    assert [leg.account for leg in decision.legs] == [None, "b", "a"]
    position = ledger.position(name)
    assert [(leg.account, leg.unfilled) for leg in position.legs] == [
        (None, D("0.002")), ("b", D("0.002")), ("a", D("0.002")),
    ]  # fmt: skip
    assert_verified(ledger)


def test_grow_when_a_version_before_held_it_then_its_hold_stays_and_the_grant_is_added() -> None:
    """Its legs say no value of what is planned, so each is worth what the position holds."""
    old = [Leg("bybit", "BTC/USDT:USDT", "swap", side, D("0.018"), None) for side in ("buy", "sell")]
    position = Position("main", 1, "held", NO_TAGS, 930 * 10**8, 0, D("0.018"), None, tuple(old), 100)
    orders = [replace(leg, quantity=D("0.002"), fills=LegFills(D("0.002"), D(100))) for leg in old]
    grown = grow_position(position, D("0.002"), orders, 100 * 10**8, 50)
    assert (grown.held, grown.open, grown.quantity, grown.expires_us) == (1030, 0, D("0.02"), 100)


def test_reserve_when_it_grows_then_the_later_expiry_stands(ledger: Ledger, clock: FakeClock) -> None:
    name = held(ledger, ttl_seconds=100)
    assert more(ledger, name, "2", ttl_seconds=10).expires_at == clock.now() + timedelta(seconds=100)
    assert more(ledger, name, "3", ttl_seconds=200).expires_at == clock.now() + timedelta(seconds=200)
    assert more(ledger, name, "4", until_known=True, amount_usd=D(100)).until_known
    assert more(ledger, name, "5", amount_usd=D(100), ttl_seconds=5).until_known
    clock.advance(10**6)
    ledger.reserve(key="any")
    assert ledger.position(name).state == "held"


def test_reserve_when_the_added_hold_expires_then_what_is_open_stays(ledger: Ledger, clock: FakeClock) -> None:
    name = opened(ledger)
    more(ledger, name, ttl_seconds=10)
    clock.advance(10)
    ledger.reserve(key="any", amount_usd=D(1))
    assert ledger.position(name).state == "open"
    assert figures(ledger) == (1, 400)
    ledger.confirm(key="late", position_id=name, quantity=D("0.004"), price=BTC)
    assert figures(ledger) == (1, 600)
    assert_verified(ledger)


# --- what bounds it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [held, opened])
@pytest.mark.parametrize(
    ("request_", "budget", "binding"),
    [
        ({"amount_usd": D(900)}, 600, "max_position_size_usd"),
        ({"amount_usd": None}, 600, "max_position_size_usd"),
        ({"amount_usd": None, "signal_score": D(1)}, 600, "max_position_size_usd"),
        ({"amount_usd": D(900), "max_position_usd": D(650)}, 250, "max_position_usd"),
        ({"amount_usd": D(900), "available_balance": D(100)}, 100, "available_balance"),
    ],
)
def test_reserve_when_it_grows_then_the_maximum_counts_held_and_open(
    ledger: Ledger, make: Any, request_: dict[str, Any], budget: int, binding: str
) -> None:
    name = make(ledger)
    decision = more(ledger, name, **request_)
    assert (decision.budget, decision.binding) == (budget, binding)
    assert ledger.exposure().exposure == 400 + budget
    assert_verified(ledger)


DENIED: dict[str, tuple[dict[str, Any], str, str]] = {
    "full": ({"scope": "venue=okx", "cap": D(400)}, "cap_exceeded", "venue=okx"),
    "nearly full": ({"scope": "venue=okx", "cap": D(440)}, "cap_exceeded", "venue=okx"),
    "halted": ({"halt": "venue=bybit"}, "halted", "venue=bybit"),
    "the desk is halted": ({"halt": "*"}, "halted", "desk"),
    "frozen": ({"freeze": "venue=bybit"}, "unreconciled", "venue=bybit"),
    "as large as it may be": ({"max_position_usd": D(400)}, "below_min_qty", "max_position_usd"),
    "above what it may be": ({"max_position_usd": D(300)}, "below_min_qty", "max_position_usd"),
    "too small": ({"min_notional_usd": D(201)}, "below_min_notional", "amount_usd"),
}


@pytest.mark.parametrize("make", [held, opened])
@pytest.mark.parametrize("name", DENIED)
def test_reserve_when_more_is_denied_then_the_position_is_as_it_was(ledger: Ledger, make: Any, name: str) -> None:
    position = make(ledger)
    given, reason, binding = DENIED[name]
    request = dict(given)
    if "cap" in request:
        ledger.set_cap(key="cap", scope=request.pop("scope"), cap=request.pop("cap"))
    if halt := request.pop("halt", None):
        ledger.halt(key="halt", **({"portfolio": "*"} if halt == "*" else {"scope": halt}))
    if freeze := request.pop("freeze", None):
        ledger.freeze(key="freeze", scope=freeze)
    before = whole(ledger, position)
    tried = more(ledger, position, dry_run=True, **request)
    decision = more(ledger, position, **request)
    assert (decision.outcome, decision.reason, decision.binding) == ("denied", reason, binding)
    assert (tried.reason, tried.binding) == (reason, binding)
    assert (decision.position_id, decision.budget, decision.legs) == (position, None, ())
    assert whole(ledger, position) == before
    assert_verified(ledger)


# --- what is refused ---------------------------------------------------------------------------------------------

FUTURE = LegPlan("bybit:BTC/USDT:USDT-261225", "sell")
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str, str | None]] = {
    "fewer legs": ({"legs": [BYBIT]}, InvalidRequest, "it has buy bybit:BTC/USDT:USDT, sell okx:BTC", "legs"),
    "more legs": ({"legs": [BYBIT, OKX, FUTURE]}, InvalidRequest, "sell bybit:BTC/USDT:USDT-261225", "legs"),
    "another side": ({"legs": [replace(BYBIT, side="sell"), replace(OKX, side="buy")]}, InvalidRequest,
                     "asked buy okx", "legs"),
    "another venue": ({"legs": [replace(BYBIT, instrument="venue1:BTC/USDT:USDT"), OKX]}, InvalidRequest,
                      "asked buy venue1:BTC", "legs"),
    "another account": ({"legs": [replace(BYBIT, account="sub"), OKX]}, InvalidRequest, "USDT in sub", "legs"),
    "the short form": ({"spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}, InvalidRequest, "legs are not",
                       "legs"),
    "no price": ({"price": None}, InvalidRequest, "price is missing: legs.0 has none", "price"),
    "other tags": ({"tags": {"venue": "gate"}}, InvalidRequest, "a leg is at bybit", "tags.venue"),
    "a tag too many": ({"tags": {"strategy": "x"}}, InvalidRequest, "leave tags out", "tags"),
    "another portfolio": ({"portfolio": "other"}, InvalidRequest, "not of the portfolio 'other'", "position_id"),
    "no position": ({"position_id": "main-99"}, NotFound, "main-99", None),
    "no portfolio": ({"position_id": "nobody-1"}, NotFound, "nobody-1", None),
    "not an id": ({"position_id": "main"}, InvalidRequest, "position_id", "position_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_reserve_when_it_does_not_fit_the_position_then_it_is_refused_and_nothing_recorded(
    ledger: Ledger, name: str
) -> None:
    position = opened(ledger)
    request, error, words, field = REFUSED[name]
    before = whole(ledger, position)
    for dry_run in (True, False):
        with pytest.raises(error, match=words) as refused:
            more(ledger, position, dry_run=dry_run, **request)
        assert getattr(refused.value, "field", None) == field
    assert whole(ledger, position) == before
    assert more(ledger, position).seq == 3, "nothing is recorded and the key is unused"


@pytest.mark.parametrize("state", ["released", "expired", "closed"])
def test_reserve_when_the_position_is_over_then_no_more_of_it_is_granted(
    ledger: Ledger, clock: FakeClock, state: str
) -> None:
    name = opened(ledger) if state == "closed" else held(ledger, ttl_seconds=10)
    if state == "expired":
        clock.advance(10)
    else:
        ledger.release(key="end", position_id=name)
    with pytest.raises(WrongState, match="reserve without position_id"):
        more(ledger, name)
    assert ledger.position(name).state == state


# --- retries, dry runs, groups -----------------------------------------------------------------------------------


def test_reserve_when_more_is_asked_again_with_its_key_then_it_is_a_replay(ledger: Ledger) -> None:
    name = opened(ledger)
    first = more(ledger, name)
    again = more(ledger, name)
    assert (again.replayed, again.seq, again.legs) == (True, first.seq, first.legs)
    with pytest.raises(KeyReused):
        more(ledger, name, amount_usd=D(201))
    assert figures(ledger) == (200, 400)


def test_reserve_when_more_is_tried_then_it_tells_the_same_and_changes_nothing(ledger: Ledger) -> None:
    name = opened(ledger)
    before = whole(ledger, name)
    tried = more(ledger, name, dry_run=True)
    assert whole(ledger, name) == before
    decision = more(ledger, name)
    assert (tried.budget, tried.quantity, tried.legs, tried.binding) == (
        decision.budget, decision.quantity, decision.legs, decision.binding,
    )  # fmt: skip
    assert (tried.seq, tried.position_id, tried.exposure_after) == (None, None, decision.exposure_after)


def test_reserve_when_legs_are_tried_then_it_tells_the_same_and_changes_nothing(ledger: Ledger) -> None:
    asked: dict[str, Any] = {"key": "1", "legs": [BYBIT, OKX], "price": BTC, "tags": {"strategy": "a"}}
    ledger.set_cap(key="cap", scope="venue=okx", cap=D(300))
    tried, decision = ledger.reserve(**asked, dry_run=True), ledger.reserve(**asked)
    assert (tried.budget, tried.binding, tried.legs) == (decision.budget, "venue=okx", decision.legs)
    assert len(tried.legs) == 2
    assert ledger.reserve(**{**asked, "key": "2"}, dry_run=True).reason == "cap_exceeded"
    assert figures(ledger, "venue=okx") == (300, 0)


def test_submit_atomic_when_a_swap_to_more_is_denied_then_nothing_of_it_happens(ledger: Ledger) -> None:
    name = opened(ledger)
    ledger.set_cap(key="cap", cap=D(400))
    before = whole(ledger, name)
    group = [
        Adopt(key="a", quantity=D("0.001"), price=BTC, tags=TAGS),
        Reserve(key="b", position_id=name, legs=[BYBIT, OKX], price=BTC, amount_usd=D(100)),
    ]
    results = [one.reason for one in ledger.submit(group, atomic=True) if isinstance(one, Decision)]
    assert results == ["group_denied", "cap_exceeded"]
    assert whole(ledger, name) == before
    group = [
        Release(key="c", position_id=name, quantity=D("0.004")),
        Reserve(key="d", position_id=name, legs=[BYBIT, OKX], price=BTC, amount_usd=D(200)),
    ]
    assert [one.outcome for one in ledger.submit(group, atomic=True) if isinstance(one, Decision)] == [
        "applied", "granted"
    ]  # fmt: skip
    assert figures(ledger) == (200, 200)
    assert_verified(ledger)


def test_reserve_when_the_position_has_tags_of_its_own_writing_then_more_needs_none(ledger: Ledger) -> None:
    name = opened(ledger, tags={"symbol": "BTC/USDT", "venue": ["bybit", "okx", "gate"], "strategy": "a"})
    assert more(ledger, name).granted
    assert more(ledger, name, "2", tags={"strategy": "a", "venue": ["bybit", "okx"]}).granted
    assert figures(ledger, "venue=gate") == (400, 400)
    assert_verified(ledger)


def test_reserve_when_the_rules_given_name_no_venue_then_that_of_the_position_is_meant(ledger: Ledger) -> None:
    rules = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"))
    name = opened(ledger, legs=[LegPlan(rules, "sell")], tags={"venue": "gate"})
    assert more(ledger, name, legs=[LegPlan(rules, "sell")]).legs[0].venue == "gate"
    assert more(ledger, name, "own").legs[0].venue == "gate"
