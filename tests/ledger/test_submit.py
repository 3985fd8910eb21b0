"""Submit many commands: independent, each with its own answer in its place; or atomic, all of them or none."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import (
    Adopt,
    Confirm,
    Decision,
    Extend,
    Halt,
    InvalidRequest,
    KeyReused,
    Ledger,
    LedgerError,
    NotFound,
    Release,
    Reserve,
    Resume,
    SetCap,
    WrongState,
)
from ledger_sizer.model.decisions import Result
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures

D = Decimal


def told(results: list[Result]) -> list[tuple[str, str | None]]:
    return [(result.outcome, result.reason) for result in results]


GRANTED = ("granted", None)
APPLIED = ("applied", None)


# --- independent -------------------------------------------------------------------------------------------------


def test_submit_when_commands_are_independent_then_each_is_answered_in_its_place(ledger: Ledger) -> None:
    ledger.reserve(key="used", tags=TAGS)
    results = ledger.submit(
        [
            Reserve(key="1", tags=TAGS),
            Confirm(key="2", position_id="main-99", quantity=D(1), price=D(1)),
            Reserve(key="3", min_notional_usd=D(1001)),
            Reserve(key="used"),
            Release(key="5", position_id="nobody-1"),
            Extend(key="6", position_id="main-1", ttl_seconds=900),
            Release(key="7", position_id="main-1", quantity=D(1)),
            Release(key="8", position_id="main-1"),
            Extend(key="9", position_id="main-1"),
            SetCap(key="10", cap=D(2000)),
            Reserve(key="11", portfolio="other"),
        ]
    )
    kinds = [type(result) for result in results]
    assert kinds == [
        Decision, NotFound, Decision, KeyReused, NotFound, Decision, InvalidRequest, Decision, WrongState, Decision,
        Decision,
    ]  # fmt: skip
    assert [result.granted for result in results] == [
        True, False, False, False, False, True, False, False, False, False, True
    ]  # fmt: skip
    assert [getattr(result, "seq", None) for result in results] == [2, None, 3, 1, None, 4, None, 5, None, 6, 1]
    assert results[2].reason == "below_min_notional"
    assert [(result.outcome, result.reason) for result in (results[1], results[3])] == [
        ("error", "not_found"), ("error", "idempotency_key_reused")
    ]  # fmt: skip
    for result in results:
        if isinstance(result, LedgerError):
            with pytest.raises(type(result)):
                result.raise_for_denial()
    assert figures(ledger) == (1000, 0)
    assert_verified(ledger)


def test_submit_when_a_cap_is_wanted_by_many_then_it_is_filled_in_order_and_exactly(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", cap=D(3500))
    results = ledger.submit([Reserve(key=f"{n}", tags=TAGS) for n in range(7)])
    assert told(results) == [GRANTED] * 4 + [("denied", "cap_exceeded")] * 3
    assert [result.budget for result in results if isinstance(result, Decision)] == [
        1000,
        1000,
        1000,
        500,
        None,
        None,
        None,
    ]
    assert [result.seq for result in results if isinstance(result, Decision)] == list(range(2, 9))
    assert ledger.exposure().headroom == 0


def test_submit_when_a_command_builds_on_the_one_before_then_it_finds_what_that_left(ledger: Ledger) -> None:
    """A position is named after the seq of its reservation, so one submit can contain all its commands."""
    results = ledger.submit(
        [
            Reserve(key="1", tags=TAGS),
            Extend(key="2", position_id="main-1", ttl_seconds=900),
            Confirm(key="3", position_id="main-1", quantity=D(3), price=D(100)),
            Release(key="4", position_id="main-1", quantity=D(1)),
            Release(key="5", position_id="main-1"),
            Release(key="6", position_id="main-1"),
        ]
    )
    assert told(results) == [GRANTED, GRANTED, APPLIED, APPLIED, APPLIED, ("error", "wrong_state")]
    assert ledger.position("main-1").state == "closed"
    assert_verified(ledger)


def test_submit_when_it_is_larger_than_a_batch_then_it_is_answered_whole(ledger: Ledger) -> None:
    size = ledger.settings.ledger.batch_size_max * 3 + 1
    results = ledger.submit([Adopt(key=f"{n}", quantity=D(1), price=D(1)) for n in range(size)])
    assert [result.seq for result in results if isinstance(result, Decision)] == list(range(1, size + 1))
    assert ledger.exposure().open == size
    assert_verified(ledger)


@pytest.mark.parametrize("atomic", [False, True])
def test_submit_when_there_is_nothing_then_the_answer_is_nothing(ledger: Ledger, atomic: bool) -> None:
    assert ledger.submit([], atomic=atomic) == []
    assert ledger.portfolios() == []


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("bad", [{"key": "1"}, None, "reserve", Reserve, Reserve(key="dry", dry_run=True)])
def test_submit_when_something_is_no_command_then_nothing_of_it_happens(ledger: Ledger, bad: Any, atomic: bool) -> None:
    with pytest.raises(InvalidRequest, match="submit"):
        ledger.submit([Reserve(key="1"), bad], atomic=atomic)
    assert ledger.portfolios() == []


# --- atomic ------------------------------------------------------------------------------------------------------


def group(first_ttl: int = 60) -> list[Any]:
    return [
        Reserve(key="spot", tags={"venue": "bybit"}, ttl_seconds=first_ttl),
        Reserve(key="perp", tags={"venue": "okx"}),
    ]


def test_submit_atomic_when_all_fit_then_all_take_effect(ledger: Ledger) -> None:
    results = ledger.submit(group(), atomic=True)
    assert told(results) == [GRANTED, GRANTED]
    assert [result.seq for result in results if isinstance(result, Decision)] == [1, 2]
    assert figures(ledger) == (2000, 0)
    assert figures(ledger, "venue=okx") == (1000, 0)
    assert_verified(ledger)


@pytest.mark.parametrize("denied", [0, 1])
def test_submit_atomic_when_one_is_denied_then_all_are_and_nothing_is_held(ledger: Ledger, denied: int) -> None:
    venue = ("bybit", "okx")[denied]
    ledger.set_cap(key="cap", scope=f"venue={venue}", cap=D(0))
    before = ledger.exposure().scopes
    results = ledger.submit(group(), atomic=True)
    expected = [("denied", "group_denied"), ("denied", "group_denied")]
    expected[denied] = ("denied", "cap_exceeded")
    assert told(results) == expected
    own = results[denied]
    assert isinstance(own, Decision)
    assert own.binding == f"venue={venue}"
    assert [result.position_id for result in results if isinstance(result, Decision)] == [None, None]
    assert ledger.exposure().scopes == before
    assert len(ledger.positions("main")) == 0
    assert [decision.seq for decision in ledger.history("main", outcome="denied", ascending=True)] == [2, 3]
    assert_verified(ledger)


def test_submit_atomic_when_it_was_denied_then_it_stays_denied_for_its_keys(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=okx", cap=D(0))
    first = ledger.submit(group(), atomic=True)
    ledger.set_cap(key="cap/2", scope="venue=okx", cap=D(1000))
    again = ledger.submit(group(), atomic=True)
    assert told(again) == told(first) == [("denied", "group_denied"), ("denied", "cap_exceeded")]
    assert all(isinstance(result, Decision) and result.replayed for result in again)
    alone = ledger.run(group()[0])
    assert (alone.reason, alone.replayed) == ("group_denied", True)
    assert_verified(ledger)


def test_submit_atomic_when_it_was_granted_then_a_repeat_is_the_same_grant(ledger: Ledger) -> None:
    first = ledger.submit(group(), atomic=True)
    again = ledger.submit(group(), atomic=True)
    assert [result.record for result in again if isinstance(result, Decision)] == [
        result.record for result in first if isinstance(result, Decision)
    ]
    assert all(isinstance(result, Decision) and result.replayed for result in again)
    assert figures(ledger) == (2000, 0)


def test_submit_atomic_when_members_share_a_cap_then_they_see_each_other(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", cap=D(1500))
    fits = [Reserve(key="1"), Reserve(key="2")]
    assert [result.budget for result in ledger.submit(fits, atomic=True) if isinstance(result, Decision)] == [1000, 500]
    ledger.release(key="r1", position_id="main-2")
    ledger.release(key="r2", position_id="main-3")
    too_much = [Reserve(key=f"3/{n}") for n in range(3)]
    assert told(ledger.submit(too_much, atomic=True)) == [
        ("denied", "group_denied"), ("denied", "group_denied"), ("denied", "cap_exceeded")
    ]  # fmt: skip
    assert figures(ledger) == (0, 0)
    assert ledger.reserve(key="4").budget == 1000, "the group left nothing behind"
    assert_verified(ledger)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Confirm(key="bad", position_id="main-99", quantity=D(1), price=D(1)), NotFound),
        (Release(key="bad", position_id="nobody-1"), NotFound),
        (Release(key="bad", position_id="main-1", quantity=D(1)), InvalidRequest),
        (Extend(key="bad", position_id="main-2"), WrongState),
        (Reserve(key="used"), KeyReused),
        (Halt(key="bad", portfolio="nobody"), NotFound),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_submit_atomic_when_one_is_an_error_then_it_is_raised_and_nothing_is_recorded(
    ledger: Ledger, bad: Any, error: type[LedgerError], place: int
) -> None:
    ledger.reserve(key="used", tags=TAGS)
    ledger.release(key="gone", position_id=str(ledger.reserve(key="2").position_id))
    before = (ledger.exposure(), tuple(ledger.history("main")))
    commands = group()
    commands.insert(place, bad)
    with pytest.raises(error) as raised:
        ledger.submit(commands, atomic=True)
    assert type(raised.value) is error
    assert (ledger.exposure(), tuple(ledger.history("main"))) == before
    assert told(ledger.submit(group(), atomic=True)) == [GRANTED, GRANTED], "their keys stayed unused"
    assert_verified(ledger)


def test_submit_atomic_when_denied_then_facts_and_orders_in_it_have_no_effect_either(ledger: Ledger) -> None:
    ledger.reserve(key="1", tags=TAGS)
    ledger.reserve(key="2", tags=TAGS)
    ledger.confirm(key="3", position_id="main-2", quantity=D(1), price=D(10))
    before = (ledger.exposure().scopes, tuple(ledger.positions("main")))
    results = ledger.submit(
        [
            Confirm(key="a", position_id="main-1", quantity=D(1), price=D(10)),
            Release(key="b", position_id="main-2"),
            SetCap(key="c", cap=D(1)),
            Halt(key="d", scope="venue=bybit"),
            Resume(key="e"),
            Adopt(key="f", quantity=D(1), price=D(1), tags={"venue": "new"}),
            Reserve(key="g"),
        ],
        atomic=True,
    )
    assert told(results) == [("denied", "group_denied")] * 6 + [("denied", "cap_exceeded")]
    assert (ledger.exposure().scopes, tuple(ledger.positions("main"))) == before
    assert_verified(ledger)


def test_submit_atomic_when_two_portfolios_are_meant_then_both_move_or_neither(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", portfolio="b", cap=D(1500))
    pair = [Reserve(key="1", portfolio="a"), Reserve(key="1", portfolio="b")]
    assert told(ledger.submit(pair, atomic=True)) == [GRANTED, GRANTED]
    pair = [Reserve(key="2", portfolio="a"), Reserve(key="2", portfolio="b", min_notional_usd=D(501))]
    assert told(ledger.submit(pair, atomic=True)) == [("denied", "group_denied"), ("denied", "cap_exceeded")]
    assert [ledger.exposure(name).held for name in ("a", "b")] == [1000, 1000]
    assert_verified(ledger)


def test_submit_atomic_when_denied_or_wrong_then_what_expired_is_freed_all_the_same(
    ledger: Ledger, clock: FakeClock
) -> None:
    ledger.submit(group(first_ttl=10), atomic=True)
    clock.advance(10)
    denied = [Reserve(key="a"), Reserve(key="b", min_notional_usd=D(5000))]
    assert told(ledger.submit(denied, atomic=True))[0] == ("denied", "group_denied")
    assert figures(ledger) == (1000, 0)
    clock.advance(50)
    with pytest.raises(NotFound):
        ledger.submit([Reserve(key="c"), Release(key="d", position_id="main-99")], atomic=True)
    assert figures(ledger) == (0, 0)
    assert_verified(ledger)


@pytest.mark.parametrize("atomic", [False, True])
async def test_submit_async_when_awaited_then_it_is_the_same_as_blocking(ledger: Ledger, atomic: bool) -> None:
    ledger.set_cap(key="cap", scope="venue=okx", cap=D(0))
    results = await ledger.submit_async(group(), atomic=atomic)
    expected = [("denied", "group_denied") if atomic else GRANTED, ("denied", "cap_exceeded")]
    assert told(results) == expected
    assert await ledger.submit_async([]) == []
    with pytest.raises(InvalidRequest, match="submit takes command objects"):
        await ledger.submit_async([None])  # type: ignore[list-item]
