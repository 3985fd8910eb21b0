"""One-way mode: an exchange shows the net of several strategies, so the ledger is compared by its net too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer import Leg
from ledger_sizer.exchanges.snapshot import VenuePosition
from ledger_sizer.paper.control import PaperControl
from ledger_sizer.paper.server import PaperServer
from tests.support.accounts import PERP, Desk, NewDesk, long, short
from tests.support.ledgers import BTC_PERP, BTC_SPOT, figures
from tests.support.paper_clients import VENUES, account_at

pytestmark = pytest.mark.one_engine

D = Decimal


def net(position: VenuePosition) -> VenuePosition:
    """Return the same position in one-way mode."""
    return replace(position, hedged=False)


def adopt(desk: Desk, key: str, side: str, quantity: str, *, kind: str = "swap") -> str:
    """Adopt a position of one leg at 100 USD, and return its id."""
    symbol = PERP if kind == "swap" else "BTC/USDT"
    leg = Leg("bybit", symbol, kind, side, D(quantity), D(100))  # type: ignore[arg-type]
    decision = desk.ledger.adopt(
        key=key, quantity=D(quantity), price=D(100), tags={"venue": "bybit", "strategy": key}, legs=[leg]
    )
    return str(decision.position_id)


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """One strategy is short 1 BTC, another is long 0.4, and the account is in one-way mode: short 0.6."""
    desk = new_desk(confirmations=1, stale_after_seconds=None)
    desk.ledger.set_cap(key="cap", cap=D(1000))
    adopt(desk, "carry", "sell", "1")
    adopt(desk, "trend", "buy", "0.4")
    desk.account.shows(net(short("0.6", price="100")))
    return desk


Found = tuple[str, str, Decimal | None, Decimal | None]


def found(desk: Desk) -> set[Found]:
    """Run, and return (kind, side, ledger quantity, venue quantity) of the live drifts."""
    return {(one.kind, one.side, one.ledger_quantity, one.venue_quantity) for one in desk.run().live}


def test_reconcile_when_strategies_are_opposite_in_one_way_mode_then_their_net_agrees(desk: Desk) -> None:
    report = desk.run(times=2)
    assert (report.findings, report.run.found) == ((), {"agrees": 1})
    assert desk.ledger.reserve(key="next", dry_run=True).granted


def test_reconcile_when_the_net_is_spot_hedged_too_then_all_agrees(desk: Desk) -> None:
    adopt(desk, "spot", "buy", "0.6", kind="spot")
    desk.account.shows(net(short("0.6", price="100")), BTC="0.6")
    assert desk.run().findings == ()
    desk.account.shows(net(short("0.5", price="100")), BTC="0.6")
    assert {one[0] for one in found(desk)} == {"quantity_differs", "legs_unequal"}


def test_reconcile_when_the_exchange_nets_more_then_the_excess_counts_and_can_be_adopted(desk: Desk) -> None:
    desk.account.shows(net(short("0.9", price="100")))
    assert found(desk) == {("quantity_differs", "short", D("0.6"), D("0.9"))}
    assert figures(desk.ledger, "external=exchange") == (0, 30)
    (drift,) = desk.run().live
    desk.reconciler.operator.adopt(drift.id, reason="a third strategy's")
    assert found(desk) == set()
    assert figures(desk.ledger) == (0, 170)


def test_reconcile_when_the_exchange_nets_less_then_it_differs_and_can_be_adopted(desk: Desk) -> None:
    desk.account.shows(net(short("0.5", price="100")))
    assert found(desk) == {("quantity_differs", "short", D("0.6"), D("0.5"))}
    (drift,) = desk.run().live
    desk.reconciler.operator.adopt(drift.id, reason="closed by hand")
    assert found(desk) == set()
    assert figures(desk.ledger) == (0, 130)


def test_reconcile_when_the_net_is_on_the_other_side_then_it_is_flipped(desk: Desk) -> None:
    desk.account.shows(net(long("0.3", price="100")))
    assert found(desk) == {("side_flipped", "short", D("0.6"), D(0)), ("side_flipped", "long", D(0), D("0.3"))}
    assert figures(desk.ledger, "external=exchange") == (0, 30)


def test_reconcile_when_the_strategies_cancel_out_then_any_position_is_unknown(desk: Desk) -> None:
    adopt(desk, "more", "buy", "0.6")
    assert found(desk) == {("unknown_position", "short", D(0), D("0.6"))}


@pytest.mark.parametrize(
    ("shown", "of_the_long"),
    [
        # in hedge mode, or an exchange that does not say
        ([short("0.6", price="100")], "missing_position"),
        # cross and isolated margin: no net
        ([net(short("0.6", price="100")), net(long("0.1", price="100"))], "quantity_differs"),
    ],
)
def test_reconcile_when_the_exchange_shows_no_net_then_both_sides_are_compared_apart(
    desk: Desk, shown: list[VenuePosition], of_the_long: str
) -> None:
    desk.account.shows(*shown)
    apart = {(kind, side, ledger) for kind, side, ledger, _ in found(desk)}
    assert apart >= {("quantity_differs", "short", D(1)), (of_the_long, "long", D("0.4"))}


def test_reconcile_when_the_exchange_shows_nothing_then_both_sides_are_missing(desk: Desk) -> None:
    desk.account.shows()
    assert {one for one in found(desk) if one[0] != "legs_unequal"} == {
        ("missing_position", "short", D(1), D(0)), ("missing_position", "long", D("0.4"), D(0)),
    }  # fmt: skip


def test_reconcile_when_one_side_moved_lately_then_neither_is_judged(desk: Desk) -> None:
    trend = next(one.position_id for one in desk.ledger.positions("main") if one.tags["strategy"] == "trend")
    desk.clock.advance(55)
    desk.ledger.release(key="x", position_id=trend)
    report = desk.run(seconds=5)
    assert (report.findings, report.run.found) == ((), {"moving": 1})
    assert found(desk) == {("quantity_differs", "short", D(1), D("0.6"))}


# --- fills under way -------------------------------------------------------------------------------------------------


@pytest.fixture
def filling(new_desk: NewDesk) -> Desk:
    """A strategy is long 0.4 BTC, and another's hold may sell 0.7 at any moment, against spot."""
    desk = new_desk(confirmations=1, stale_after_seconds=None)
    adopt(desk, "trend", "buy", "0.4")
    held = desk.ledger.reserve(
        key="carry", price=D(100), available_balance=D(70), spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP,
        tags={"venue": "bybit", "strategy": "carry"}, ttl_seconds=600,
    )  # fmt: skip
    assert held.quantity == D("0.7")
    return desk


@pytest.mark.parametrize("filled", ["0", "0.1", "0.3", "0.5", "0.7"])
def test_reconcile_when_a_hold_is_filling_against_a_position_then_it_is_no_drift(filling: Desk, filled: str) -> None:
    """The net shrinks, and ends up on the other side."""
    left = D("0.4") - D(filled)
    filling.account.shows(net((long if left > 0 else short)(str(abs(left)), price="100")), BTC=filled)
    assert filling.run(times=2).findings == ()


def test_reconcile_when_a_hold_may_explain_an_older_difference_then_its_drift_is_neither_seen_nor_over(
    desk: Desk,
) -> None:
    desk.account.shows(net(short("0.5", price="100")))
    (before,) = desk.run().live
    desk.ledger.thaw(key="t")
    adopt(desk, "turn", "buy", "2")
    desk.ledger.reserve(
        key="sell", price=D(100), available_balance=D(70), spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP,
        tags={"venue": "bybit"}, ttl_seconds=600,
    )  # fmt: skip
    desk.account.shows(net(long("1", price="100")), BTC="0.4")
    report = desk.run()
    assert (report.findings, [one.id for one in report.live]) == ((), [before.id])


def test_reconcile_when_a_hold_cannot_have_made_the_net_then_it_is_a_drift(filling: Desk) -> None:
    filling.account.shows(net(short("0.4", price="100")))
    assert found(filling) == {("side_flipped", "long", D("0.4"), D(0))}
    filling.account.shows(net(long("0.5", price="100")))
    assert found(filling) == {("quantity_differs", "long", D("0.4"), D("0.5"))}


# --- the real client at the paper venues -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


@pytest.mark.parametrize("venue", VENUES)
@pytest.mark.parametrize("hedged", [False, True], ids=["one-way", "hedge"])
def test_reconcile_when_strategies_trade_one_market_then_both_modes_of_an_account_agree(
    new_desk: NewDesk, paper: PaperServer, venue: str, hedged: bool, request: pytest.FixtureRequest
) -> None:
    control = PaperControl(paper.url, venue, request.node.name)
    control.open_account(hedged=hedged)
    key = SecretStr(control.api_key)
    account = account_at(venue, paper.url, api_key=key)
    desk = new_desk([account], confirmations=1, stale_after_seconds=None)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    for name, side, quantity in (("carry", "sell", D("0.05")), ("trend", "buy", D("0.02"))):
        control.open(PERP, "short" if side == "sell" else "long", quantity)
        legs = [Leg(venue, PERP, "swap", side, quantity, D(50_000))]  # type: ignore[arg-type]
        desk.ledger.adopt(key=name, quantity=quantity, price=D(50_000), tags={"venue": venue}, legs=legs)
    seen = account.snapshot(lambda: 0).positions or ()
    assert {(one.side, one.quantity, one.hedged) for one in seen} == (
        {("short", D("0.05"), True), ("long", D("0.02"), True)} if hedged else {("short", D("0.03"), False)}
    )
    assert desk.run().findings == ()
    control.open(PERP, "short", D("0.01"))
    more = [(one.kind, one.side, one.excess) for one in desk.run().live if one.kind != "legs_unequal"]
    assert more == [("quantity_differs", "short", D("0.01"))]
    account.close()
