"""A position that is open and still holds more: every rule about holds, and what `verify` computes from its decisions.

Each test starts from a state that has one, as fills told one by one leave it.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import AppSettings, Confirm, Extend, Fill, Halt, InvalidRequest, Leg, Release, WrongState
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.decisions import GENESIS_HASH, DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.fills import Fills
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import tags_of
from ledger_sizer.rules.batch import Group, decide_batch, expire_due
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.write_store import position_row
from ledger_sizer.verify.position_fold import FoldedPosition, fold_position

D = Decimal
POLICY = Policy.of(AppSettings())
TAGS = tags_of({"venue": "bybit"})
LEG = Leg("bybit", "BTC/USDT:USDT", "swap", "sell", D(4), D(10))
REST = Position(
    portfolio="main", number=1, state="open", tags=TAGS, held_e8=60, open_e8=40 * 10**8, quantity=D(4), price=D(10),
    legs=(LEG,), expires_us=1000, opened_us=1, updated_us=2, updated_seq=2, fills=Fills(more=True),
)  # fmt: skip


def state_with(position: Position) -> PortfolioState:
    state = PortfolioState(1, "main", 2, GENESIS_HASH, 2)
    for name in TAGS.scopes:
        state.scopes[name] = ScopeState(name, ScopeSettings(cap_e8=10**12), position.held_e8, position.open_e8)
    state.add_position(position)
    return state


def folded(position: Position) -> FoldedPosition:
    return FoldedPosition(*position_row(1, position)[1:])


def require_same_fold(before: Position, state: PortfolioState, records: list[DecisionRecord]) -> Position:
    """Require that verify computes from the decisions what the rules made of the position, which is returned."""
    expected: FoldedPosition | None = folded(before)
    for record in records:
        expected = fold_position(expected, record)
    after = state.positions[before.number]
    assert folded(after) == expected
    for name in TAGS.scopes:
        assert (state.scopes[name].held_e8, state.scopes[name].open_e8) == (after.held_e8, after.open_e8)
    return after


def run(state: PortfolioState, command: AnyCommand, now_us: int = 10) -> Any:
    ((answer,),) = decide_batch({"main": state}, [Group([command])], now_us, POLICY)
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.mark.parametrize(
    ("state", "expires_us", "pending"),
    [
        ("held", 9, True), ("open", 9, True), ("open", None, False),
        ("expired", 9, False), ("released", None, False), ("closed", None, False),
    ],
)  # fmt: skip
def test_ask_position_when_it_is_live_and_has_an_expiry_then_it_is_pending(
    state: Any, expires_us: int | None, pending: bool
) -> None:
    position = REST._replace(state=state, held_e8=0, expires_us=expires_us)
    assert position.pending is pending
    assert (position.expires_at is not None) is pending
    assert [position.is_due(now_us) for now_us in (8, 9, 10)] == [False, pending, pending]


def test_confirm_when_an_older_version_planned_the_legs_then_a_part_may_fill_as_well() -> None:
    plan = replace(LEG, price=None)
    held = REST._replace(state="held", held_e8=40 * 10**8, open_e8=0, price=None, legs=(plan,), fills=None)
    state = state_with(held)
    part = run(state, Confirm(key="c", position_id="main-1", quantity=D(1), price=D(11), rest="hold")).record
    after = require_same_fold(held, state, [part])
    assert (after.quantity, after.unfilled, after.open_e8, after.held_e8) == (D(1), D(3), 11 * 10**8, 30 * 10**8)


def test_fill_when_an_older_version_closed_the_position_then_it_is_refused_because_nobody_knows_what_filled() -> None:
    closed = REST._replace(state="closed", held_e8=0, open_e8=0, quantity=D(0), expires_us=None, fills=None)
    with pytest.raises(WrongState, match="cannot fill main-1: it was closed by a version that did not keep"):
        run(state_with(closed), Fill(key="f", position_id="main-1", filled_quantity=D(4), price=D(10)))


@pytest.mark.parametrize("held_e8", [60, 0])
def test_expire_when_a_part_is_open_then_only_the_rest_goes(held_e8: int) -> None:
    before = REST._replace(held_e8=held_e8)
    state = state_with(before)
    assert expire_due(state, 999) == []
    (expired,) = expire_due(state, 1000)
    assert (expired.command, expired.key) == ("expire", "ledger:expire:1:3")
    assert (expired.held_delta_e8, expired.open_delta_e8, expired.quantity) == (-held_e8, 0, None)
    after = require_same_fold(before, state, [expired])
    assert after == before._replace(held_e8=0, expires_us=None, updated_us=1000, updated_seq=3)
    assert expire_due(state, 2000) == []


def test_expire_when_one_position_expires_again_then_each_expiry_has_a_key_of_its_own() -> None:
    state = state_with(REST)
    first = expire_due(state, 1000)
    state.add_position(state.positions[1]._replace(expires_us=3000))
    second = expire_due(state, 3000)
    state.add_position(state.positions[1]._replace(state="held", expires_us=5000))
    last = expire_due(state, 5000)
    assert [one.key for one in (*first, *second, *last)] == [
        "ledger:expire:1:3",
        "ledger:expire:1:4",
        "ledger:expire:1",
    ]


def test_release_when_a_part_is_open_then_all_is_closed_and_the_hold_freed() -> None:
    state = state_with(REST)
    closed = run(state, Release(key="r", position_id="main-1")).record
    assert (closed.held_delta_e8, closed.open_delta_e8, closed.quantity) == (-60, -REST.open_e8, "4")
    after = require_same_fold(REST, state, [closed])
    assert (after.state, after.held_e8, after.open_e8, after.expires_us) == ("closed", 0, 0, None)


def test_release_when_held_only_then_what_is_open_stays() -> None:
    state = state_with(REST)
    freed = run(state, Release(key="r", position_id="main-1", held_only=True)).record
    assert (freed.held_delta_e8, freed.open_delta_e8, freed.quantity) == (-60, 0, None)
    after = require_same_fold(REST, state, [freed])
    assert after == REST._replace(held_e8=0, expires_us=None, updated_us=10, updated_seq=3)
    with pytest.raises(WrongState, match="cannot release the hold of main-1: open since seq 3"):
        run(state, Release(key="r2", position_id="main-1", held_only=True))


def test_release_when_held_only_names_a_quantity_then_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="quantity is for closing part of an open position"):
        run(state_with(REST), Release(key="r", position_id="main-1", held_only=True, quantity=D(1)))


def test_release_when_a_quantity_is_given_then_it_is_closed_of_what_is_open_and_the_hold_stays() -> None:
    state = state_with(REST)
    part = run(state, Release(key="r", position_id="main-1", quantity=D(1))).record
    after = require_same_fold(REST, state, [part])
    assert (after.state, after.held_e8, after.open_e8, after.expires_us) == ("open", 60, 30 * 10**8, 1000)
    assert (after.quantity, after.legs[0].quantity) == (D(3), D(3))
    rest = run(state, Release(key="r2", position_id="main-1", quantity=D(3))).record
    after = require_same_fold(REST, state, [part, rest])
    assert (after.state, after.held_e8, after.open_e8, after.expires_us) == ("held", 60, 0, 1000)
    assert after.quantity == 0
    (expired,) = expire_due(state, 1000)
    assert require_same_fold(REST, state, [part, rest, expired]).state == "expired"


def test_extend_when_a_part_is_open_then_only_the_expiry_moves() -> None:
    state = state_with(REST)
    extended = run(state, Extend(key="e", position_id="main-1", ttl_seconds=1)).record
    assert (extended.outcome, extended.budget_e8, extended.expires_us) == ("granted", 60, 1_000_010)
    after = require_same_fold(REST, state, [extended])
    assert after == REST._replace(expires_us=1_000_010, updated_us=10, updated_seq=3)
    run(state, Halt(key="h"))
    denied = run(state, Extend(key="e2", position_id="main-1", ttl_seconds=9)).record
    assert (denied.outcome, denied.reason, denied.expires_us) == ("denied", "halted", None)
    assert state.positions[1] == after


def test_extend_when_nothing_is_pending_then_it_is_refused() -> None:
    state = state_with(REST._replace(held_e8=0, expires_us=None))
    with pytest.raises(WrongState, match="cannot extend main-1: open since seq 2, extend needs held"):
        run(state, Extend(key="e", position_id="main-1"))
