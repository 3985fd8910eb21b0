"""The whole cycle with the real ccxt client at the paper venues: trade, agree, then drift in every way they can."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.paper.control import DEFAULT_PASSPHRASE, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from tests.accounts import PERP, Desk
from tests.clocks import FakeClock
from tests.desk import BTC_PERP, BTC_SPOT, assert_verified, figures

D = Decimal
VENUES = ("bybit", "binance", "okx")


@pytest.fixture(scope="module")
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


class Cycle:
    """One venue: a hedged position of 0.02 BTC that was reserved, ordered at the venue and confirmed."""

    def __init__(self, url: str, clock: FakeClock, server: PaperServer, venue: str, name: str) -> None:
        self.venue = venue
        self.control = PaperControl(server.url, venue, name)
        self.control.open_account()
        given = ExchangeAccountSettings(
            id=venue, api_key=name, api_secret=DEFAULT_SECRET, password=DEFAULT_PASSPHRASE, base_url=server.url
        )
        self.account = ExchangeAccount(given)
        self.desk = Desk(url, clock, [self.account], confirmations=1)
        self.price = D(self.control.state()["prices"]["BTC"])
        self.tags = {"venue": venue, "symbol": "BTC"}
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


def test_reconcile_when_the_exchange_changes_behind_our_back_then_each_drift_is_named_counted_and_cleared(
    cycle: Cycle,
) -> None:
    desk, control = cycle.desk, cycle.control
    desk.run()

    control.open("ETH/USDT:USDT", "long", D(1))
    report = desk.run()
    assert kinds(report) == {"unknown_position"}
    assert figures(desk.ledger, "external=exchange")[1] == D(control.state()["prices"]["ETH"])
    assert desk.ledger.reserve(key="no", tags=cycle.tags).reason == "unreconciled"
    control.close("ETH/USDT:USDT")
    assert kinds(desk.run()) == set()
    assert figures(desk.ledger, "external=exchange") == (0, 0)

    control.close(PERP, D("0.01"))
    assert kinds(desk.run()) == {"quantity_differs", "legs_unequal"}
    control.liquidate(PERP)
    assert kinds(desk.run()) == {"missing_position", "legs_unequal"}
    assert figures(desk.ledger)[1] == cycle.quantity * cycle.price, "counted until somebody decides"
    control.open(PERP, "long", cycle.quantity)
    assert "side_flipped" in kinds(desk.run())
    control.close(PERP)
    control.open(PERP, "short", cycle.quantity)
    assert kinds(desk.run()) == set()

    control.deposit("BTC", D(1))
    report = desk.run()
    assert {(drift.kind, drift.subject, drift.excess) for drift in report.live} == {
        ("quantity_differs", "BTC", D(1)), ("legs_unequal", "BTC", D(0)),
    }  # fmt: skip
    control.deposit("BTC", D(-1))
    assert kinds(desk.run()) == set()
    assert desk.ledger.reserve(key="again", tags=cycle.tags).granted
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


def test_reconcile_when_a_hold_expires_and_fills_late_then_it_is_called_so_and_counted(cycle: Cycle) -> None:
    late = cycle.desk.ledger.reserve(
        key="late", tags=cycle.tags, price=cycle.price, spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP,
        ttl_seconds=30,
    )  # fmt: skip
    assert late.quantity is not None
    cycle.desk.run(seconds=20)
    cycle.spot_and_perp(late.quantity)
    assert kinds(cycle.desk.run(seconds=5)) == set(), "the hold covers it"
    cycle.desk.ledger.sweep()
    cycle.desk.clock.advance(30)
    cycle.desk.ledger.sweep()
    report = cycle.desk.run()
    assert kinds(report) == {"late_fill"}
    assert figures(cycle.desk.ledger)[1] >= 2 * cycle.quantity * cycle.price
    cycle.desk.ledger.confirm(key="fill", position_id=str(late.position_id), quantity=late.quantity, price=cycle.price)
    assert kinds(cycle.desk.run()) == set()
    assert_verified(cycle.desk.ledger)
