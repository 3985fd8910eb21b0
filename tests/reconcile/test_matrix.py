"""Every kind of drift under every policy, on both databases: found, classified, counted, acted upon, resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Leg, ReconcileSettings
from ledger_sizer.exchanges.snapshot import UnreadRow
from ledger_sizer.model.choices import DRIFT_KINDS, DRIFT_POLICIES
from ledger_sizer.reconcile import drifts
from tests.conftest import NewDatabase
from tests.support.accounts import PERP, Desk, balance, long, short
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS
from tests.support.ledgers import TAGS, assert_verified, figures, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal
Arrange = Callable[[Desk], Any]

# By kind: how it arises from 0.02 BTC hedged on both sides, how it ends, and the excess that must be counted, in USD.
DRIFTS: dict[str, tuple[Arrange, Arrange, Decimal]] = {}


def drift(counted: str, undo: Arrange) -> Callable[[Arrange], Arrange]:
    def keep(function: Arrange) -> Arrange:
        DRIFTS[function.__name__] = (function, undo, D(counted))
        return function

    return keep


def agree(desk: Desk) -> None:
    desk.account.shows(short("0.02"), BTC="0.02")


@drift("0", undo=agree)
def fetch_failed(desk: Desk) -> None:
    desk.account.positions = None


@drift("500", undo=agree)
def quantity_differs(desk: Desk) -> None:
    desk.account.shows(short("0.03"), BTC="0.02")


@drift("4000", undo=agree)
def unknown_position(desk: Desk) -> None:
    desk.account.shows(short("0.02"), long("2", "ETH/USDT:USDT", "2000"), BTC="0.02")


@drift("0", undo=agree)
def missing_position(desk: Desk) -> None:
    desk.account.shows(BTC="0.02")


@drift("1000", undo=agree)
def side_flipped(desk: Desk) -> None:
    desk.account.shows(long("0.02"), BTC="0.02")


@drift("0", undo=agree)
def legs_unequal(desk: Desk) -> None:
    desk.account.shows(short("0.01"), BTC="0.02")


@drift("0", undo=agree)
def balance_below_holds(desk: Desk) -> None:
    desk.ledger.reserve(key="hold", tags=TAGS, ttl_seconds=5000)
    desk.account.balances = (balance("USDT", "900"), balance("BTC", "0.02"))


@drift("500", undo=agree)
def late_fill(desk: Desk) -> None:
    reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.03"), BTC="0.02")


@drift("0", undo=lambda desk: desk.clock.advance(4000))
def expired_hold(desk: Desk) -> None:
    reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()


@drift("0", undo=lambda desk: setattr(desk.account, "unread", ()))
def unreadable(desk: Desk) -> None:
    desk.account.unread = (UnreadRow("ETH/USDT:USDT", "blank fields"),)


@drift("1.5", undo=agree)
def interest(desk: Desk) -> None:
    desk.account.shows(short("0.02"), BTC="0.02003")


HAS_EXCESS = {kind for kind, (_, _, counted) in DRIFTS.items() if counted}
ALLOWED = [
    (kind, policy)
    for kind in DRIFT_KINDS
    for policy in DRIFT_POLICIES
    if policy not in ("adopt", "close") or kind in HAS_EXCESS
]


@pytest.fixture
def desk_with(new_database: NewDatabase, clock: FakeClock) -> Iterator[Callable[..., Desk]]:
    """Make a desk whose ledger and exchange agree on one hedged position."""
    made: list[Desk] = []

    def make(engine_kind: str, **settings: Any) -> Desk:
        desk = Desk(new_database(engine_kind), clock, **settings)
        made.append(desk)
        desk.ledger.set_cap(key="cap", cap=D(50000))
        reserve_btc(desk.ledger, "r", ttl_seconds=30)
        desk.ledger.confirm(key="c", position_id="main-2", quantity=D("0.02"), price=D(50000))
        agree(desk)
        assert desk.run().findings == ()
        return desk

    yield make
    for desk in made:
        desk.close()


def test_list_drifts_when_a_kind_is_added_then_the_matrix_has_it() -> None:
    assert tuple(DRIFTS) == DRIFT_KINDS


@pytest.mark.parametrize("engine_kind", ENGINE_KINDS)
@pytest.mark.parametrize(("kind", "policy"), ALLOWED)
def test_reconcile_when_a_drift_is_there_then_its_policy_is_carried_out_and_it_ends_with_its_cause(
    desk_with: Callable[..., Desk], engine_kind: str, kind: str, policy: str
) -> None:
    others = {f"policy_{one}": "record" for one in DRIFT_KINDS}
    desk = desk_with(engine_kind, stale_after_seconds=None, **{**others, f"policy_{kind}": policy})
    arrange, undo, counted = DRIFTS[kind]
    arrange(desk)
    held = figures(desk.ledger)

    first = next(one for one in desk.run().live if one.kind == kind and (one.excess or not counted))
    assert (first.state, first.policy) == ("open", policy)
    assert figures(desk.ledger, "external=exchange") == (0, counted), "counted at once, whatever the policy"
    assert figures(desk.ledger)[0] == held[0], "holds are untouched"
    assert desk.ledger.reserve(key="before", tags=TAGS, dry_run=True).reason != "unreconciled"

    report = desk.run()
    said = [one for one in desk.ledger.history() if one.binding == first.name and one.command == "remark"]
    events = {desk.ledger.explain(one.seq or 0).data["request"]["event"] for one in said}
    denied = desk.ledger.reserve(key="after", tags=TAGS, dry_run=True).reason == "unreconciled"
    assert denied == (policy == "freeze")
    if policy == "adopt":
        assert "adopted" in events
        assert drifts.get_drift(desk.engine, first.id).state == "resolved"
        assert figures(desk.ledger, "external=exchange") == (0, 0)
        # After a flip of the short, the coins are still there: two longs, which hedge nothing, so both count.
        assert figures(desk.ledger)[1] == 1000 + counted
        assert [one for one in desk.run().live if one.kind == kind and one.excess] == []
        assert_verified(desk.ledger)
        return
    second = next(one for one in report.live if one.id == first.id)
    assert second.state == "confirmed"
    assert second.requested == ("close" if policy == "close" else None)
    expected = {"record": set(), "close": {"confirmed", "close_requested"}}.get(policy, {"confirmed"})
    assert events == expected

    # Existing holds can be managed, whatever drifted.
    assert desk.ledger.extend(
        key="x", position_id=str(desk.ledger.reserve(key="y", portfolio="other").position_id)
    ).granted

    undo(desk)
    if kind == "balance_below_holds":
        desk.ledger.release(key="give", position_id=desk.ledger.positions("main", state="held")[0].position_id)
    report = desk.run()
    assert first.id in [one.id for one in report.resolved]
    assert figures(desk.ledger, "external=exchange") == (0, 0)
    assert desk.ledger.reserve(key="end", tags=TAGS, dry_run=True).granted
    assert_verified(desk.ledger)


@pytest.mark.parametrize("policy", ["adopt", "close"])
@pytest.mark.parametrize("kind", [kind for kind in DRIFT_KINDS if kind not in HAS_EXCESS])
def test_set_policy_when_the_kind_has_nothing_to_adopt_or_close_then_it_is_refused_by_name(
    kind: str, policy: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"policy_{kind} cannot be '{policy}'"):
        ReconcileSettings(**{f"policy_{kind}": policy})


@pytest.mark.parametrize("engine_kind", ENGINE_KINDS)
@pytest.mark.parametrize("kind", DRIFT_KINDS)
def test_act_when_an_operator_decides_then_it_stands_in_the_chain_and_the_drift_follows(
    desk_with: Callable[..., Desk], engine_kind: str, kind: str
) -> None:
    desk = desk_with(engine_kind, confirmations=1, **{f"policy_{kind}": "freeze"})
    arrange, _, counted = DRIFTS[kind]
    arrange(desk)
    found = next(one for one in desk.run().live if one.kind == kind and (one.excess or not counted))
    assert desk.ledger.reserve(key="no", tags=TAGS).reason == "unreconciled"
    ignored = desk.reconciler.operator.ignore(found.id, reason="known")
    assert (ignored.state, ignored.actor, ignored.reason) == ("acknowledged", "embedded:embedded", "known")
    note = desk.ledger.explain(desk.ledger.history(command="remark")[0].seq or 0).data["request"]["note"]
    assert note == "known"
    for one in desk.run().live:
        if one.live:
            desk.reconciler.operator.ignore(one.id, reason="known too")
    report = desk.run()
    assert [one for one in report.live if one.live] == []
    assert figures(desk.ledger, "external=exchange") == (0, 0)
    assert desk.ledger.reserve(key="yes", tags=TAGS, dry_run=True).reason != "unreconciled"
    assert_verified(desk.ledger)


def test_ignore_when_the_difference_changes_later_then_it_is_a_drift_again(desk_with: Callable[..., Desk]) -> None:
    desk = desk_with("sqlite", confirmations=1)
    desk.account.shows(short("0.02"), BTC="0.52")
    (found, _) = desk.run().live
    for one in desk.run().live:
        desk.reconciler.operator.ignore(one.id, reason="savings")
    assert all(one.state == "acknowledged" for one in desk.run(3).live)
    desk.account.shows(short("0.02"), BTC="0.62")
    report = desk.run()
    assert found.id in [one.id for one in report.resolved]
    (again,) = [one for one in report.live if one.kind == found.kind]
    assert (again.state, again.excess) == ("confirmed", D("0.6"))


def test_adopt_when_the_exchange_shows_less_then_the_newest_positions_are_released_until_it_fits(
    desk_with: Callable[..., Desk],
) -> None:
    desk = desk_with("sqlite", confirmations=1)
    legs = [Leg("bybit", PERP, "swap", "sell", D("0.5"), D(100))]
    for n in range(2):
        desk.ledger.adopt(key=f"a{n}", quantity=D("0.5"), price=D(100), tags=TAGS, legs=legs)
    desk.account.shows(short("0.27"), BTC="0.02")
    found = next(one for one in desk.run().live if one.kind == "quantity_differs")
    done = desk.reconciler.operator.adopt(found.id, reason="closed by hand")
    assert done.state == "resolved"
    open_now = [one.quantity for one in desk.ledger.positions("main", state="open")]
    assert open_now == [D("0.02"), D("0.25")]
    assert desk.run().findings == ()
    assert_verified(desk.ledger)
