"""Freezes and stale reconciliation: grants stop, closing continues, and the audit chain records why."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from ledger_sizer import Ledger, NotFound
from tests.support.clock import START, FakeClock
from tests.support.ledgers import TAGS, assert_verified, position_of

pytestmark = pytest.mark.one_engine

D = Decimal
SCOPES = ["portfolio", "venue=bybit"]


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """Flat sizing (1000 USD a position, cap 5000), with one hold and one open position."""
    ledger.reserve(key="held", tags=TAGS, ttl_seconds=500)
    ledger.reserve(key="open", tags=TAGS, ttl_seconds=500)
    ledger.confirm(key="fill", position_id="main-2", quantity=D(1), price=D(900))
    return ledger


@pytest.mark.parametrize("scope", SCOPES)
def test_freeze_when_a_scope_is_frozen_then_only_new_holds_in_it_are_denied_until_it_thaws(
    ledger: Ledger, scope: str
) -> None:
    frozen = ledger.freeze(key="freeze", scope=scope, note="drift-1")
    assert (frozen.outcome, frozen.binding) == ("applied", scope)
    denied = ledger.reserve(key="1", tags=TAGS)
    assert (denied.outcome, denied.reason, denied.binding) == ("denied", "unreconciled", scope)
    elsewhere = ledger.reserve(key="2", tags={"venue": "okx"})
    assert elsewhere.granted == (scope != "portfolio")
    assert ledger.exposure().scope(scope).frozen
    assert "agree with the exchange" in ledger.explain(denied.seq or 0).text

    assert ledger.extend(key="3", position_id="main-1", ttl_seconds=900).granted
    assert ledger.release(key="4", position_id="main-2").outcome == "applied"
    assert ledger.confirm(key="5", position_id="main-1", quantity=D(1), price=D(1)).outcome == "applied"

    ledger.thaw(key="thaw", scope=scope)
    assert ledger.reserve(key="6", tags=TAGS).granted
    assert_verified(ledger)


def test_freeze_when_an_operator_halts_and_resumes_then_the_freeze_stays(ledger: Ledger) -> None:
    ledger.freeze(key="freeze")
    ledger.halt(key="halt")
    assert ledger.reserve(key="1").reason == "halted"
    ledger.resume(key="resume")
    assert ledger.reserve(key="2").reason == "unreconciled"
    ledger.set_cap(key="cap", cap=D(9000))
    assert ledger.reserve(key="3").reason == "unreconciled"
    ledger.halt(key="halt again")
    ledger.thaw(key="thaw")
    assert ledger.reserve(key="4").reason == "halted"
    assert_verified(ledger)


@pytest.mark.parametrize("scope", SCOPES)
def test_reserve_when_trust_has_ended_then_it_is_denied_from_that_moment_without_anybody_doing_anything(
    ledger: Ledger, clock: FakeClock, scope: str
) -> None:
    ledger.reconciled(key="run 1", scope=scope, fresh_until=START + timedelta(seconds=60))
    clock.advance(D("59.999999"))
    assert ledger.reserve(key="1", tags=TAGS).granted
    clock.advance(D("0.000001"))
    denied = ledger.reserve(key="2", tags=TAGS)
    assert (denied.reason, denied.binding) == ("unreconciled", scope)
    assert ledger.exposure().scope(scope).fresh_until == START + timedelta(seconds=60)
    assert ledger.reserve(key="dry", tags=TAGS, dry_run=True).reason == "unreconciled"
    assert ledger.release(key="3", position_id="main-2").outcome == "applied"
    ledger.reconciled(key="run 2", scope=scope, fresh_until=START + timedelta(seconds=120))
    assert ledger.reserve(key="4", tags=TAGS).granted
    ledger.reconciled(key="run 3", scope=scope, fresh_until=None)
    clock.advance(10_000)
    assert ledger.reserve(key="5", tags=TAGS).granted
    assert_verified(ledger)


def test_reconciled_when_the_portfolio_is_new_then_it_is_made_and_starts_untrusted_at_that_time(
    ledger: Ledger, clock: FakeClock
) -> None:
    ledger.reconciled(key="start", portfolio="new", fresh_until=START)
    assert ledger.reserve(key="1", portfolio="new").reason == "unreconciled"
    with pytest.raises(NotFound):
        ledger.freeze(key="freeze", portfolio="unheard-of")


def test_remark_when_recorded_then_it_stands_in_the_chain_and_changes_no_figure(ledger: Ledger) -> None:
    before = ledger.exposure()
    said = ledger.remark(key="1", about="drift-7", event="close_requested", note="ops: by hand")
    after = ledger.exposure()
    assert (said.outcome, said.binding, said.exposure_before) == ("applied", "drift-7", said.exposure_after)
    assert after.scopes == before.scopes
    assert ledger.reserve(key="2", tags=TAGS).granted
    assert position_of(ledger.decision(1)) == "main-1"
    assert_verified(ledger)
