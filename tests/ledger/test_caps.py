"""Caps, halts and reductions of the portfolio or of one tag, and adopted positions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import pytest

from ledger_sizer import InvalidRequest, Ledger, Leg, NotFound
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures, opened, position_of

pytestmark = pytest.mark.one_engine

D = Decimal
Mode = Literal["halted", "reducing"]
SCOPES = ["portfolio", "venue=bybit", "symbol=BTC"]


# --- caps --------------------------------------------------------------------------------------------------------


def test_set_cap_when_applied_then_the_decision_tells_and_grants_follow(ledger: Ledger) -> None:
    done = ledger.set_cap(key="cap", cap=D(700))
    assert (done.outcome, done.granted, done.binding, done.seq) == ("applied", False, "portfolio", 1)
    assert (done.position_id, done.budget, done.exposure_after) == (None, None, 0)
    assert ledger.exposure().cap == 700
    assert ledger.reserve(key="1").budget == 700
    ledger.set_cap(key="cap/2", cap=D("900.00000001"))
    assert ledger.reserve(key="2").budget == D("200.00000001")
    assert_verified(ledger)


@pytest.mark.parametrize("scope", SCOPES)
def test_set_cap_when_below_the_exposure_then_the_excess_is_overage_and_blocks_until_it_is_gone(
    ledger: Ledger, scope: str
) -> None:
    ledger.reserve(key="1", tags=TAGS)
    ledger.confirm(key="2", position_id="main-1", quantity=D(10), price=D(100))
    ledger.reserve(key="3", tags=TAGS)
    ledger.set_cap(key="cap", scope=scope, cap=D(1500))
    row = ledger.exposure().scope(scope)
    assert (row.cap, row.held, row.open, row.headroom, row.overage) == (1500, 1000, 1000, 0, 500)
    denied = ledger.reserve(key="4", tags=TAGS)
    assert (denied.reason, denied.binding) == ("cap_exceeded", scope)
    assert ledger.exposure().scope(scope).overage == 500
    ledger.release(key="5", position_id="main-1", quantity=D(5))
    assert ledger.exposure().scope(scope).overage == 0
    assert ledger.reserve(key="6", tags=TAGS).reason == "cap_exceeded", "exactly at the cap"
    ledger.release(key="7", position_id="main-1", quantity=D(1))
    assert ledger.reserve(key="8", tags=TAGS).budget == 100
    assert_verified(ledger)


def test_set_cap_when_raised_again_then_the_overage_is_gone_at_once(ledger: Ledger) -> None:
    ledger.reserve(key="1")
    ledger.set_cap(key="2", cap=D(0))
    assert (ledger.exposure().overage, ledger.exposure().headroom) == (1000, 0)
    ledger.set_cap(key="3", cap=D(1200))
    assert (ledger.exposure().overage, ledger.exposure().headroom) == (0, 200)
    assert ledger.reserve(key="4").budget == 200


def test_set_cap_when_a_tags_cap_is_removed_then_it_is_only_counted(ledger: Ledger) -> None:
    ledger.set_cap(key="1", scope="venue=bybit", cap=D(100))
    ledger.reserve(key="2", tags=TAGS)
    ledger.set_cap(key="3", scope="venue=bybit", cap=None)
    row = ledger.exposure().scope("venue=bybit")
    assert (row.cap, row.headroom, row.overage, row.held) == (None, None, 0, 100)
    assert ledger.reserve(key="4", tags=TAGS).budget == 1000
    assert_verified(ledger)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"cap": None}, "cap"),
        ({"cap": D(-1)}, "cap"),
        ({"cap": 5.0}, "cap"),
        ({"cap": D("NaN")}, "cap"),
        ({"cap": D("92233720368.54775808")}, "cap"),
        ({"cap": D(1), "scope": "venue"}, "scope"),
        ({"cap": D(1), "scope": "venue="}, "scope"),
        ({"cap": D(1), "scope": "=bybit"}, "scope"),
        ({"cap": D(1), "scope": "Venue=bybit"}, "scope"),
        ({"cap": D(1), "scope": "portfolio=main"}, "scope"),
        ({"cap": D(1), "scope": "venue=a\nb"}, "scope"),
        ({"cap": D(1), "scope": None}, "scope"),
    ],
)
def test_set_cap_when_it_makes_no_sense_then_the_field_is_named_and_nothing_changes(
    ledger: Ledger, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ledger.set_cap(key="1", **arguments)
    assert refused.value.field == field
    assert ledger.portfolios() == []


# --- halts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mode", ["halted", "reducing"])
def test_halt_when_a_scope_stands_still_then_only_its_grants_are_denied_until_it_resumes(
    ledger: Ledger, scope: str, mode: Mode
) -> None:
    before = ledger.reserve(key="0", tags=TAGS)
    done = ledger.halt(key="halt", scope=scope, mode=mode, note="funding feed is stale")
    assert (done.outcome, done.binding) == ("applied", scope)
    assert ledger.exposure().scope(scope).status == mode
    assert ledger.exposure().status == (mode if scope == "portfolio" else "active")
    denied = ledger.reserve(key="1", tags=TAGS)
    assert (denied.reason, denied.binding) == (mode, scope)
    elsewhere = ledger.reserve(key="2", tags={"venue": "okx", "symbol": "ETH"})
    assert elsewhere.granted is (scope != "portfolio")
    assert ledger.reserve(key="1", tags=TAGS).reason == mode
    resumed = ledger.resume(key="resume", scope=scope)
    assert (resumed.outcome, resumed.binding) == ("applied", scope)
    assert ledger.exposure().scope(scope).status == "active"
    assert ledger.reserve(key="3", tags=TAGS).granted
    assert ledger.reserve(key="1", tags=TAGS).reason == mode, "a no stays a no for its key"
    assert before.granted
    assert_verified(ledger)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mode", ["halted", "reducing"])
def test_close_when_the_scope_is_halted_or_reducing_then_it_passes_all_the_same(
    ledger: Ledger, clock: FakeClock, scope: str, mode: Mode
) -> None:
    first, second, third = (position_of(ledger.reserve(key=f"{n}", tags=TAGS)) for n in range(3))
    late = position_of(ledger.reserve(key="late", tags=TAGS, ttl_seconds=1))
    ledger.confirm(key="fill/0", position_id=first, quantity=D(9), price=D(100))
    ledger.set_cap(key="cap", scope=scope, cap=D(1))
    ledger.halt(key="halt", scope=scope, mode=mode)
    clock.advance(1)
    facts = [
        ledger.confirm(key="fill/1", position_id=second, quantity=D(11), price=D(100)),
        ledger.confirm(key="fill/late", position_id=late, quantity=D(1), price=D(100)),
        ledger.release(key="exit/0", position_id=first, quantity=D(4)),
        ledger.release(key="exit/0b", position_id=first),
        ledger.release(key="exit/1", position_id=second),
        ledger.release(key="exit/2", position_id=third),
        ledger.adopt(key="adopt", quantity=D(1), price=D(7), tags=TAGS),
    ]
    assert [fact.outcome for fact in facts] == ["applied"] * 7
    assert figures(ledger, scope) == (0, D(107))
    assert_verified(ledger)


@pytest.mark.parametrize(("mode", "granted"), [("halted", False), ("reducing", True)])
@pytest.mark.parametrize("scope", SCOPES)
def test_extend_when_a_scope_stands_still_then_halted_refuses_and_reducing_allows(
    ledger: Ledger, clock: FakeClock, scope: str, mode: Mode, granted: bool
) -> None:
    held = ledger.reserve(key="1", tags=TAGS, ttl_seconds=10)
    ledger.halt(key="halt", scope=scope, mode=mode)
    answer = ledger.extend(key="2", position_id=position_of(held), ttl_seconds=100)
    assert answer.granted is granted
    if not granted:
        assert (answer.outcome, answer.reason, answer.binding) == ("denied", "halted", scope)
        assert answer.position_id == held.position_id
        assert ledger.position("main-1").expires_at == held.expires_at
    clock.advance(10)
    assert ledger.sweep() == (0 if granted else 1)
    assert_verified(ledger)


def test_halt_when_two_scopes_stand_still_then_each_is_resumed_by_itself(ledger: Ledger) -> None:
    ledger.set_cap(key="0", cap=D(5000))
    ledger.halt(key="1", scope="venue=bybit", mode="reducing")
    ledger.halt(key="2")
    assert ledger.reserve(key="3", tags=TAGS).binding == "portfolio"
    ledger.resume(key="4")
    denied = ledger.reserve(key="5", tags=TAGS)
    assert (denied.reason, denied.binding) == ("reducing", "venue=bybit")
    ledger.halt(key="6", scope="venue=bybit", mode="halted")
    assert ledger.reserve(key="7", tags=TAGS).reason == "halted"
    ledger.resume(key="8", scope="venue=bybit")
    assert ledger.reserve(key="9", tags=TAGS).granted


def test_halt_when_the_ledger_is_opened_again_then_it_still_stands(database_url: str, clock: FakeClock) -> None:
    with opened(database_url, clock) as ledger:
        ledger.set_cap(key="1", scope="symbol=BTC", cap=D(10))
        ledger.halt(key="2", scope="venue=bybit", note="leave it")
    with opened(database_url, clock) as ledger:
        assert ledger.reserve(key="3", tags=TAGS).reason == "halted"
        ledger.resume(key="4", scope="venue=bybit", note="all is well")
        assert ledger.reserve(key="5", tags=TAGS).budget == 10


@pytest.mark.parametrize("verb", ["halt", "resume"])
def test_halt_when_there_is_no_such_portfolio_then_it_is_not_found(ledger: Ledger, verb: str) -> None:
    with pytest.raises(NotFound, match="no portfolio 'mian'"):
        getattr(ledger, verb)(key="1", portfolio="mian")
    assert ledger.portfolios() == [], "a mistyped name must not make a portfolio and halt that one"


@pytest.mark.parametrize(
    ("verb", "arguments", "field"),
    [
        ("halt", {"mode": "active"}, "mode"),
        ("halt", {"mode": "stopped"}, "mode"),
        ("halt", {"scope": "everything"}, "scope"),
        ("halt", {"note": "a\x00b"}, "note"),
        ("halt", {"note": "x" * 501}, "note"),
        ("resume", {"scope": ""}, "scope"),
        ("resume", {"note": ""}, "note"),
        ("resume", {"portfolio": "no such name!"}, "portfolio"),
    ],
)
def test_halt_when_it_makes_no_sense_then_the_field_is_named(
    ledger: Ledger, verb: str, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        getattr(ledger, verb)(key="1", **arguments)
    assert refused.value.field == field
    assert ledger.portfolios() == []


# --- adopt -------------------------------------------------------------------------------------------------------


def test_adopt_when_a_position_is_found_then_it_counts_like_any_other(ledger: Ledger, clock: FakeClock) -> None:
    legs = [Leg("bybit", "BTC/USDT", "spot", "buy", D("0.1"), D("50000.5"))]
    done = ledger.adopt(
        key="1", quantity=D("0.1"), price=D("50000.5"), tags=TAGS, legs=legs, note="found at the exchange"
    )
    assert (done.outcome, done.granted, done.position_id, done.quantity) == ("applied", False, "main-1", D("0.1"))
    assert (done.exposure_before, done.exposure_after) == (0, D("5000.05"))
    position = ledger.position("main-1")
    assert (position.state, position.open, position.price, position.origin) == (
        "open",
        D("5000.05"),
        D("50000.5"),
        None,
    )
    assert (position.legs, position.opened_at) == (tuple(legs), clock.now())
    assert figures(ledger, "symbol=BTC") == (0, D("5000.05"))
    assert ledger.exposure().overage == D("0.05"), "no cap can refuse a fact"
    assert ledger.reserve(key="2").reason == "cap_exceeded"
    assert ledger.release(key="3", position_id="main-1").exposure_after == 0
    assert_verified(ledger)


def test_adopt_when_the_portfolio_is_new_then_it_comes_into_being(ledger: Ledger) -> None:
    ledger.adopt(key="1", portfolio="found", quantity=D(2), price=D(3))
    assert ledger.portfolios() == ["found"]
    exposure = ledger.exposure("found")
    assert (exposure.open, exposure.cap) == (6, 5000)


async def test_steer_async_when_awaited_then_it_is_the_same_as_blocking(ledger: Ledger) -> None:
    await ledger.set_cap_async(key="1", cap=D(100))
    await ledger.halt_async(key="2", scope="venue=bybit", mode="reducing")
    assert ledger.exposure().cap == 100
    assert ledger.exposure().scope("venue=bybit").status == "reducing"
    await ledger.resume_async(key="3", scope="venue=bybit")
    await ledger.adopt_async(key="4", quantity=D(1), price=D(40))
    assert (ledger.reserve(key="5", tags=TAGS)).budget == 60
