"""Shortest forms of histories that once went wrong. Most were found by `tests.lockstep`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from ledger_sizer import (
    AppSettings,
    Confirm,
    DynamicSizingSettings,
    Halt,
    InvalidRequest,
    Ledger,
    Reserve,
    Resume,
    SetCap,
)
from ledger_sizer.model.commands import AnyCommand, Reconciled
from tests.support.clock import FakeClock
from tests.support.interfaces import Name
from tests.support.ledgers import assert_verified, opened


@pytest.mark.parametrize(
    "neighbour",
    [SetCap(key="b", scope="venue=x", cap=Decimal(5)), Halt(key="b", scope="venue=x"), Resume(key="b")],
    ids=lambda command: command.verb,
)
def test_verify_when_administration_was_denied_with_its_atomic_group_then_nothing_is_wrong(
    database_url: str, neighbour: AnyCommand
) -> None:
    with Ledger.open(database_url) as ledger:
        denied = ledger.submit([Reserve(key="a", available_balance=Decimal(0)), neighbour], atomic=True)
        assert [answer.reason for answer in denied] == ["insufficient_balance", "group_denied"]
        assert ledger.verify().findings == ()
        assert ledger.exposure().status == "active"
        assert ledger.exposure().scope("venue=x").cap is None


def test_reserve_when_the_raw_budget_is_zero_too_then_the_denial_still_names_what_denied_it(database_url: str) -> None:
    """Score 0 at a minimum fraction of 0 gives a raw budget of 0, which ties with every constraint."""
    sizing = DynamicSizingSettings(enabled=True, min_allocation_fraction=Decimal(0))
    with Ledger.open(database_url, settings=AppSettings(sizing=sizing)) as ledger:
        poor = ledger.reserve(key="poor", signal_score=Decimal(0), available_balance=Decimal(0))
        assert (poor.reason, poor.binding) == ("insufficient_balance", "available_balance")
        ledger.set_cap(key="cap", scope="venue=x", cap=Decimal(0))
        full = ledger.reserve(key="full", signal_score=Decimal(0), tags={"venue": "x"})
        assert (full.reason, full.binding) == ("cap_exceeded", "venue=x")


def test_reserve_when_the_balance_is_below_a_full_scope_then_the_denial_names_the_scope(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        ledger.set_cap(key="cap", scope="venue=x", cap=Decimal(0))
        denied = ledger.reserve(key="key", available_balance=Decimal(-3), tags={"venue": "x"})
        assert (denied.reason, denied.binding) == ("cap_exceeded", "venue=x")


def test_confirm_when_another_ledger_already_answered_the_same_key_then_it_is_a_replay(
    database_url: str, clock: FakeClock
) -> None:
    """The other ledger decides on its cached state, gets the same decision, and only then learns that it is late."""
    with Ledger.open(database_url, clock=clock) as ours, Ledger.open(database_url, clock=clock) as theirs:
        position = ours.reserve(key="reserve").position_id
        assert position is not None
        theirs.extend(key="extend", position_id=position)
        fill = Confirm(key="fill", position_id=position, quantity=Decimal(1), price=Decimal(3))
        first, second = ours.run(fill), theirs.run(fill)
        assert first.record == second.record
        assert (first.replayed, second.replayed) == (False, True)


@pytest.mark.parametrize("scope", ["portfolio", "venue=x"])
def test_verify_when_a_portfolio_has_only_ever_been_given_a_cap_then_nothing_is_wrong(
    database_url: str, scope: str
) -> None:
    with Ledger.open(database_url) as ledger:
        ledger.set_cap(key="cap", scope=scope, cap=Decimal(5))
        assert ledger.verify().findings == ()


def test_reserve_when_a_tag_is_an_enum_member_then_it_counts_in_the_scope_of_its_text(database_url: str) -> None:
    with opened(database_url, FakeClock()) as ledger:
        ledger.set_cap(key="cap", cap=Decimal(100), scope=Name.SCOPE)
        granted = ledger.reserve(key=Name.BYBIT, portfolio=Name.MAIN, tags={Name.VENUE: Name.BYBIT})
        assert (granted.budget, granted.binding, granted.key) == (Decimal(100), "venue=bybit", "bybit")
        assert ledger.reserve(key="plain", tags={"venue": "bybit"}).reason == "cap_exceeded"
        assert ledger.reserve(key="bybit", tags={"venue": "bybit"}).hash == granted.hash, "the key is its text"
        ledger.halt(key="halt", mode=Name.HALTED)  # type: ignore[arg-type]
        ledger.remark(key="remark", about=Name.BYBIT, event=Name.BYBIT)
        assert ledger.exposure().status == "halted"
        assert [scope.scope for scope in ledger.exposure().scopes] == ["portfolio", "venue=bybit"]
        assert_verified(ledger)


def test_reconciled_when_the_time_does_not_exist_in_utc_then_it_is_refused_by_name() -> None:
    first = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    with pytest.raises(InvalidRequest, match="fresh_until"):
        Reconciled(key="1", fresh_until=first)
