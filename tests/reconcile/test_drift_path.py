"""The life of one drift: seen, counted at once, confirmed, frozen, gone, thawed; all of it in the chain."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import InstrumentInfo, Leg
from tests.support.accounts import PERP, Desk, NewDesk, short
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal
ETH_SPOT = InstrumentInfo("ETH/USDT", D("0.001"), D(100), D("0.001"))
ETH_PERP = InstrumentInfo("ETH/USDT:USDT", D("0.001"), D(100), D("0.001"))


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """One hedged position of 0.02 BTC, and an account that shows it."""
    desk = new_desk()
    reserve_btc(desk.ledger, "r", ttl_seconds=30)
    desk.ledger.confirm(key="c", position_id="main-1", quantity=D("0.02"), price=D(50000))
    desk.account.shows(short("0.02"), BTC="0.02")
    return desk


def test_reconcile_when_both_sides_agree_then_the_run_is_good_and_grants_are_trusted_for_a_while(desk: Desk) -> None:
    report = desk.run()
    assert (report.run.outcome, report.findings, report.live) == ("good", (), ())
    assert report.run.found == {"agrees": 2}
    assert desk.ledger.reserve(key="1", tags=TAGS).granted
    desk.clock.advance(299)
    assert desk.ledger.reserve(key="2", tags=TAGS).granted
    desk.clock.advance(1)
    assert desk.ledger.reserve(key="3", tags=TAGS).reason == "unreconciled"
    desk.account.shows(short("0.02"), BTC="0.02")
    desk.run()
    assert desk.ledger.reserve(key="4", tags=TAGS).granted
    assert_verified(desk.ledger)


def test_reconcile_when_the_exchange_shows_more_then_it_counts_at_once_and_freezes_when_confirmed(desk: Desk) -> None:
    desk.account.shows(short("0.02"), short("1", "ETH/USDT:USDT", "2000"), BTC="0.02")
    first = desk.run()
    (drift,) = first.live
    assert (drift.kind, drift.state, drift.excess, drift.subject) == ("unknown_position", "open", 1, "ETH/USDT:USDT")
    assert figures(desk.ledger) == (0, D(3000))
    assert figures(desk.ledger, "external=exchange") == (0, D(2000))
    assert desk.ledger.reserve(key="1", tags=TAGS).granted

    (drift,) = desk.run().live
    assert (drift.state, drift.sightings) == ("confirmed", 2)
    assert desk.ledger.reserve(key="2", tags=TAGS).reason == "unreconciled"
    assert figures(desk.ledger, "external=exchange") == (0, D(2000)), "counted once"

    desk.account.shows(short("0.02"), short("1.5", "ETH/USDT:USDT", "2000"), BTC="0.02")
    desk.run()
    assert figures(desk.ledger, "external=exchange") == (0, D(3000)), "and as what it is now"

    desk.account.shows(short("0.02"), BTC="0.02")
    report = desk.run()
    (gone,) = report.resolved
    assert (gone.id, gone.state, gone.actor, gone.reason) == (
        drift.id,
        "resolved",
        "reconcile",
        "not there any more",
    )
    assert figures(desk.ledger, "external=exchange") == (0, 0)
    assert desk.ledger.reserve(key="3", tags=TAGS).granted
    said = [
        (one.command, one.binding)
        for one in desk.ledger.history(ascending=True)
        if one.command in ("freeze", "thaw", "remark")
    ]
    assert said == [("freeze", "portfolio"), ("remark", "drift-1"), ("thaw", "portfolio"), ("remark", "drift-1")]
    assert_verified(desk.ledger)


def test_reconcile_when_a_command_lands_while_it_fetches_then_its_market_is_not_judged(desk: Desk) -> None:
    reserve_btc(desk.ledger, "r2", ttl_seconds=500)

    def fill() -> None:
        desk.ledger.confirm(key="c2", position_id="main-3", quantity=D("0.01"), price=D(50000))

    desk.account.on_fetch = fill  # the snapshot shows the moment before
    report = desk.run()
    assert report.findings == ()
    assert report.run.found == {"moving": 2}
    desk.account.on_fetch = lambda: None
    assert [one.kind for one in desk.run().findings] == ["quantity_differs", "quantity_differs"]


def test_reconcile_when_a_position_is_at_two_venues_then_each_account_answers_for_its_leg(desk: Desk) -> None:
    legs = [Leg("okx", "BTC/USDT", "spot", "buy", D(1), D(10)), Leg("bybit", PERP, "swap", "sell", D(1), D(10))]
    desk.ledger.adopt(key="a", quantity=D(1), price=D(10), legs=legs)
    desk.account.shows(short("1.02"), BTC="0.02")
    report = desk.run()
    assert report.findings == ()
    assert report.run.found == {"agrees": 2, "unplaced": 1}


@pytest.mark.parametrize("place", [{"venue": "okx"}, {"venue": "bybit", "account": "other"}])
@pytest.mark.parametrize("expired", [False, True])
def test_reconcile_when_a_hold_is_for_another_venue_then_it_explains_nothing_here(
    desk: Desk, place: dict[str, str], expired: bool
) -> None:
    """It is neither a fill in flight nor a late fill: the position is unknown, and freezes."""
    for key, instruments in (("plain", {}), ("named", {"spot_instrument": ETH_SPOT, "perp_instrument": ETH_PERP})):
        desk.ledger.reserve(
            key=key, tags={**place, "symbol": "ETH"}, price=D(2000), ttl_seconds=5 if expired else 500, **instruments
        )
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.02"), short("0.1", "ETH/USDT:USDT", "2000"), BTC="0.02")
    assert [one.kind for one in desk.run().findings] == ["unknown_position"]


def test_reconcile_when_a_hold_names_no_venue_then_it_may_be_filled_anywhere(desk: Desk) -> None:
    desk.ledger.reserve(key="plain", tags={"symbol": "ETH"}, price=D(2000), ttl_seconds=500)
    desk.account.shows(short("0.02"), short("0.1", "ETH/USDT:USDT", "2000"), BTC="0.02")
    assert desk.run().findings == ()


@pytest.mark.parametrize(("before", "after"), [("portfolio", "venue"), ("venue", "portfolio")])
def test_reconcile_when_the_freeze_scope_is_set_anew_during_a_freeze_then_it_ends_with_its_drift(
    new_desk: NewDesk, before: str, after: str
) -> None:
    first = new_desk(confirmations=1, freeze_scope=before)
    first.account.shows(short("1"))
    first.run()
    second = new_desk(confirmations=1, freeze_scope=after)
    second.account.shows(short("1"))
    second.run()
    scopes = {"portfolio": "portfolio", "venue": "venue=bybit"}
    frozen = {row.scope for row in second.ledger.exposure("main").scopes if row.frozen}
    assert frozen == {scopes[before]}, "a drift freezes one scope, as long as it lasts"
    assert second.ledger.reserve(key="no", tags=TAGS).reason == "unreconciled"
    second.account.shows()
    second.run()
    assert {row.scope for row in second.ledger.exposure("main").scopes if row.frozen} == set()
    assert second.ledger.reserve(key="yes", tags=TAGS).granted


def test_reconcile_when_nothing_schedules_it_then_a_run_by_hand_starts_no_trust_that_would_end(
    new_desk: NewDesk, clock: FakeClock
) -> None:
    by_hand = new_desk(enabled=False)
    assert by_hand.run().run.outcome == "good"
    clock.advance(3600)
    assert by_hand.ledger.reserve(key="1", tags=TAGS).granted
    assert by_hand.ledger.exposure("main").whole.fresh_until is None
    scheduled = new_desk()
    scheduled.run()
    clock.advance(3600)
    assert by_hand.ledger.reserve(key="2", tags=TAGS).reason == "unreconciled"
    by_hand.run()
    assert by_hand.ledger.reserve(key="3", tags=TAGS).granted, "a trust that there is, it renews"


def test_reconcile_when_the_excess_has_no_price_then_it_freezes_even_where_the_policy_is_to_record(
    new_desk: NewDesk,
) -> None:
    """An excess that cannot be counted would bypass the cap. The freeze ends when it is ignored or gone."""
    desk = new_desk(confirmations=1, policy_unknown_position="record")
    desk.ledger.set_cap(key="cap", cap=D(5000))
    desk.account.shows(DOGE="1000000")
    (drift,) = desk.run().live
    assert (drift.policy, drift.price, drift.frozen_scope) == ("record", None, "portfolio")
    assert desk.ledger.reserve(key="no", tags=TAGS).reason == "unreconciled"
    assert list(desk.ledger.history(command="remark")) == [], "nobody is told, as the policy says"
    desk.reconciler.operator.ignore(drift.id, reason="an airdrop")
    assert desk.ledger.reserve(key="yes", tags=TAGS).reason is None
