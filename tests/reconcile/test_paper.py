"""The whole cycle with the real ccxt client at the paper venues: trade, agree, then every kind of drift."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.model.choices import DRIFT_KINDS
from ledger_sizer.paper.control import DEFAULT_PASSPHRASE, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from tests.support.accounts import PERP, Desk
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, assert_verified, figures
from tests.support.paper_clients import unthrottled

pytestmark = pytest.mark.one_engine

D = Decimal
VENUES = ("bybit", "binance", "okx")


@pytest.fixture(scope="module")
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


class Cycle:
    """One venue with a hedged position of 0.02 BTC that was reserved, ordered there and confirmed."""

    def __init__(self, url: str, clock: FakeClock, server: PaperServer, venue: str, name: str) -> None:
        self.venue = venue
        self.control = PaperControl(server.url, venue, name)
        self.control.open_account()
        given = ExchangeAccountSettings(
            id=venue, api_key=name, api_secret=DEFAULT_SECRET, password=DEFAULT_PASSPHRASE, base_url=server.url
        )
        self.account = unthrottled(ExchangeAccount(given))
        self.desk = Desk(url, clock, [self.account], confirmations=1, stale_after_seconds=None)
        self.price = D(self.control.state()["prices"]["BTC"])
        self.tags = {"venue": venue, "symbol": "BTC"}
        self.late: Any = None
        self.withdrawn: dict[str, Decimal] = {}
        self.reserved = self.desk.ledger.reserve(
            key="r", tags=self.tags, price=self.price, spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP
        )
        quantity = self.reserved.quantity
        assert quantity is not None
        self.quantity = quantity
        self.spot_and_perp(quantity)
        self.desk.ledger.confirm(
            key="c", position_id=str(self.reserved.position_id), quantity=quantity, price=self.price
        )

    def spot_and_perp(self, quantity: Decimal) -> None:
        """Buy spot and sell the perpetual, through ccxt as a bot does."""
        client = self.account._client
        client.load_markets()
        contracts = quantity / D(client.market(PERP)["contractSize"])
        client.create_order("BTC/USDT", "limit", "buy", float(quantity), float(self.price))
        client.create_order(PERP, "market", "sell", float(contracts))

    def held_for(self, ttl_seconds: int, key: str) -> Any:
        """Reserve on both markets."""
        held = self.desk.ledger.reserve(
            key=key, tags=self.tags, price=self.price, spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP,
            ttl_seconds=ttl_seconds,
        )  # fmt: skip
        assert held.granted, held.reason
        return held

    def close(self) -> None:
        self.desk.close()
        self.account.close()


@pytest.fixture(params=VENUES)
def cycle(request: pytest.FixtureRequest, database_url: str, clock: FakeClock, paper: PaperServer) -> Iterator[Cycle]:
    made = Cycle(database_url, clock, paper, request.param, f"{request.node.name}-key")
    yield made
    made.close()


def kinds(report: Any) -> set[str]:
    return {drift.kind for drift in report.live}


def test_reconcile_when_a_cycle_was_traded_then_both_sides_agree(cycle: Cycle) -> None:
    report = cycle.desk.run()
    assert (report.run.outcome, report.findings) == ("good", ())
    assert report.run.found["agrees"] == 2
    assert figures(cycle.desk.ledger) == (0, cycle.quantity * cycle.price)


OPTIONS = {"binance": "BTC-311226-90000-C", "bybit": "BTC-26DEC31-90000-C", "okx": "BTC-USD-311226-90000-C"}

# By kind of drift: how it arises at the venue, how it ends, and what it counts meanwhile, in USD.

Step = Callable[[Cycle], Any]
DRIFTS: dict[str, tuple[Step, Step, Callable[[Cycle], Decimal]]] = {}


def drift(*, undo: Step, counts: Callable[[Cycle], Decimal] = lambda _: D(0)) -> Callable[[Step], Step]:
    def keep(step: Step) -> Step:
        DRIFTS[step.__name__] = (step, undo, counts)
        return step

    return keep


@drift(undo=lambda cycle: cycle.control.clear_faults())
def fetch_failed(cycle: Cycle) -> None:
    cycle.control.fault("hollow", times=None)


@drift(undo=lambda cycle: cycle.control.close(PERP, D("0.01")), counts=lambda cycle: D("0.01") * cycle.price)
def quantity_differs(cycle: Cycle) -> None:
    cycle.control.open(PERP, "short", D("0.01"))


@drift(
    undo=lambda cycle: cycle.control.close("ETH/USDT:USDT"),
    counts=lambda cycle: D(cycle.control.state()["prices"]["ETH"]),
)
def unknown_position(cycle: Cycle) -> None:
    cycle.control.open("ETH/USDT:USDT", "long", D(1))


@drift(undo=lambda cycle: cycle.control.open(PERP, "short", cycle.quantity))
def missing_position(cycle: Cycle) -> None:
    cycle.control.liquidate(PERP)


@drift(undo=lambda cycle: cycle.control.flip(PERP), counts=lambda cycle: cycle.quantity * cycle.price)
def side_flipped(cycle: Cycle) -> None:
    cycle.control.flip(PERP)


@drift(undo=lambda cycle: cycle.control.open(PERP, "short", D("0.01")))
def legs_unequal(cycle: Cycle) -> None:
    cycle.control.close(PERP, D("0.01"))


def money_back(cycle: Cycle) -> None:
    for wallet, units in cycle.withdrawn.items():
        cycle.control.deposit("USDT", units, wallet)
    (hold,) = cycle.desk.ledger.positions("main", state="held")
    cycle.desk.ledger.release(key="no order", position_id=hold.position_id)


@drift(undo=money_back)
def balance_below_holds(cycle: Cycle) -> None:
    """Somebody withdraws the money that a hold was granted on. 150 USDT stay, of which 100 are margin."""
    cycle.desk.ledger.reserve(key="to come", tags=cycle.tags, ttl_seconds=3600)
    wallets = cycle.control.state()["accounts"][cycle.control.api_key]["wallets"]
    own = wallets if cycle.venue == "binance" else {"spot": wallets["spot"]}
    cycle.withdrawn = {wallet: D(assets["USDT"]) - 150 for wallet, assets in own.items()}
    for wallet, units in cycle.withdrawn.items():
        cycle.control.deposit("USDT", -units, wallet)


def confirmed_late(cycle: Cycle) -> None:
    cycle.desk.ledger.confirm(
        key="fill", position_id=str(cycle.late.position_id), quantity=cycle.late.quantity, price=cycle.price
    )


@drift(undo=confirmed_late, counts=lambda cycle: 2 * cycle.late.quantity * cycle.price)
def late_fill(cycle: Cycle) -> None:
    """Both orders fill after their hold expired. Both legs count until somebody confirms them."""
    cycle.late = cycle.held_for(30, "late")
    cycle.desk.clock.advance(31)
    cycle.desk.ledger.sweep()
    cycle.spot_and_perp(cycle.late.quantity)


@drift(undo=lambda cycle: cycle.desk.clock.advance(3600))
def expired_hold(cycle: Cycle) -> None:
    cycle.held_for(5, "forgotten")
    cycle.desk.clock.advance(6)
    cycle.desk.ledger.sweep()


@drift(undo=lambda cycle: cycle.control.option(OPTIONS[cycle.venue], D(-1)))
def unreadable(cycle: Cycle) -> None:
    cycle.control.option(OPTIONS[cycle.venue], D(1))


@drift(undo=lambda cycle: cycle.control.deposit("BTC", D("-0.00006")), counts=lambda cycle: D("0.00006") * cycle.price)
def interest(cycle: Cycle) -> None:
    cycle.control.deposit("BTC", D("0.00006"))


def test_list_drifts_when_a_kind_is_added_then_the_cycle_has_it() -> None:
    assert tuple(DRIFTS) == DRIFT_KINDS


def test_reconcile_when_the_exchange_changes_behind_our_back_then_each_kind_is_named_counted_and_cleared(
    cycle: Cycle,
) -> None:
    """On one account, each kind of drift arises, has its default effect, and ends."""
    desk = cycle.desk
    assert desk.run().findings == ()
    for kind, (inject, undo, counts) in DRIFTS.items():
        inject(cycle)
        report = desk.run()
        found = [one for one in report.live if one.kind == kind]
        assert found, f"{kind}: {report.findings}"
        assert {one.state for one in found} == {"confirmed"}, kind
        assert figures(desk.ledger, "external=exchange") == (0, counts(cycle)), kind
        policies = {one.policy for one in report.live}
        denied = desk.ledger.reserve(key=f"no/{kind}", tags=cycle.tags, dry_run=True).reason == "unreconciled"
        assert denied == ("freeze" in policies), f"{kind}: {policies}"
        undo(cycle)
        report = desk.run()
        assert report.live == (), f"{kind} stays"
        assert {one.id for one in found} <= {one.id for one in report.resolved}, kind
        assert figures(desk.ledger, "external=exchange") == (0, 0), kind
        assert desk.ledger.reserve(key=f"yes/{kind}", tags=cycle.tags, dry_run=True).granted, kind
    assert_verified(desk.ledger)


def test_reconcile_when_coins_arrive_that_nobody_ordered_then_they_count_until_they_leave(cycle: Cycle) -> None:
    desk, control = cycle.desk, cycle.control
    desk.run()
    control.deposit("BTC", D(1))
    report = desk.run()
    assert {(drift.kind, drift.subject, drift.excess) for drift in report.live} == {
        ("quantity_differs", "BTC", D(1)), ("legs_unequal", "BTC", D(0)),
    }  # fmt: skip
    control.deposit("BTC", D(-1))
    assert kinds(desk.run()) == set()
    assert_verified(desk.ledger)


def test_reconcile_when_the_exchange_does_not_answer_then_nothing_is_taken_for_flat(cycle: Cycle) -> None:
    cycle.desk.run()
    before = figures(cycle.desk.ledger)
    cycle.control.fault("hollow", times=None)
    try:
        report = cycle.desk.run()
    finally:
        cycle.control.clear_faults()
    assert report.run.outcome == "failed"
    assert kinds(report) == {"fetch_failed"}
    assert figures(cycle.desk.ledger) == before
    assert kinds(cycle.desk.run()) == set()


def test_reconcile_when_an_order_fills_while_its_hold_lives_then_it_is_no_drift(cycle: Cycle) -> None:
    held = cycle.held_for(60, "filling")
    cycle.spot_and_perp(held.quantity)
    report = cycle.desk.run(seconds=20)
    assert (report.findings, report.run.found["in_flight"]) == ((), 2)
