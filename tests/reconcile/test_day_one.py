"""Accounts as people have them, at the paper venues through the real clients: leftovers, lent coins, fees, tags."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import LegPlan
from ledger_sizer.exchanges.instrument_refresh import refresh_rules
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.accounts import PERP, Desk, NewDesk
from tests.support.ledgers import figures, position_of
from tests.support.paper_clients import account_at, trader_at

pytestmark = pytest.mark.one_engine

D = Decimal
PRICE = D(50_000)


@pytest.fixture
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


class Place:
    """One account at a paper venue: what the desk reads, what a bot trades with, what the test changes."""

    def __init__(self, paper: PaperServer, venue: str, name: str) -> None:
        self.venue = venue
        self.control = PaperControl(paper.url, venue, name)
        self.control.open_account()
        self.account: Any = account_at(venue, paper.url, api_key=self.control.api_key)
        self.trader: Any = trader_at(venue, paper.url, api_key=self.control.api_key)
        self.trader.load_markets()

    def order(self, leg: Any) -> None:
        self.trader.create_order(leg.symbol, "market", leg.side, f"{leg.order_amount:f}")


@pytest.fixture
def open_desk(new_desk: NewDesk, paper: PaperServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens a desk over an account at each of these venues."""
    places: list[Place] = []

    def make(*venues: str, **reconcile: Any) -> tuple[Desk, list[Place]]:
        places.extend(Place(paper, venue, f"{request.node.name[:40]}-{venue}") for venue in venues)
        desk = new_desk([one.account for one in places], grace_seconds=0, **reconcile)
        desk.ledger.set_cap(key="cap", cap=D(100_000))
        for place in places:
            refresh_rules(desk.engine, place.account)
        return desk, places

    yield make
    for place in places:
        place.account.close()


def test_reconcile_when_an_account_is_seen_for_the_first_time_then_its_leftovers_stop_nothing(open_desk: Any) -> None:
    desk, (place,) = open_desk("binance")
    for asset, units in {"LDUSDT": "5000", "LDBTC": "0.5", "FDUSD": "1500", "OLD1": "0.00041", "OLD2": "3"}.items():
        place.control.deposit(asset, D(units))
    report = desk.run(2)
    assert (report.live, report.run.fetched[0]["listed"]["count"]) == ((), 4)
    assert desk.ledger.reserve(key="r", tags={"venue": "binance", "symbol": "ETH"}).granted


def test_reconcile_when_a_bots_coins_are_moved_to_earn_then_they_are_still_its_own(open_desk: Any) -> None:
    desk, (place,) = open_desk("binance")
    legs = [LegPlan("binance:BTC/USDT", "buy"), LegPlan(f"binance:{PERP}", "sell")]
    grant = desk.ledger.reserve(key="r", amount_usd=D(1000), price=PRICE, legs=legs)
    for leg in grant.legs:
        place.order(leg)
    desk.ledger.confirm(key="c", position_id=position_of(grant), quantity=grant.quantity, price=PRICE)
    assert desk.run(2).live == ()
    place.control.deposit("BTC", -grant.quantity)
    place.control.deposit("LDBTC", grant.quantity + D("0.00001"))
    assert desk.run(2).live == ()
    assert figures(desk.ledger) == (0, 1000)


@pytest.mark.parametrize("tag", ["BTC", "BTC/USDT", PERP])
@pytest.mark.parametrize("venues", [("bybit",), ("bybit", "okx")])
def test_reconcile_when_a_hold_names_its_coin_by_any_name_then_its_fills_are_explained_and_counted_once(
    open_desk: Any, venues: tuple[str, ...], tag: str
) -> None:
    """A hold without instruments, filled as perpetual against perpetual across venues, or as spot and perpetual."""
    desk, places = open_desk(*venues)
    tags = {"strategy": "s", "symbol": tag, "venue": list(venues)}
    held = position_of(desk.ledger.reserve(key="r", amount_usd=D(1000), price=PRICE, tags=tags, ttl_seconds=600))
    places[-1].control.open(PERP, "short", D("0.02"))
    if len(places) == 1:
        places[0].control.deposit("BTC", D("0.02"))
    else:
        places[0].control.open(PERP, "long", D("0.02"))
    assert (desk.run(2).live, figures(desk.ledger)) == ((), (1000, 0))
    desk.ledger.extend(key="u", position_id=held, until_known=True)
    late = [one for one in desk.run(2).live if one.kind == "late_fill"]
    assert len(late) == 2
    assert all(held in one.detail for one in late)
    assert (figures(desk.ledger), figures(desk.ledger, "external=exchange")) == ((1000, 0), (0, 0))


@pytest.mark.parametrize(("venue", "market"), [("binance", "1000PEPE/USDT:USDT"), ("okx", "PEPE/USDT:USDT")])
def test_reconcile_when_a_single_leg_is_opened_by_hand_then_it_counts_with_the_bots_own_symbol(
    open_desk: Any, venue: str, market: str
) -> None:
    desk, (place,) = open_desk(venue)
    grant = desk.ledger.reserve(
        key="r", amount_usd=D(100), price=D("0.00001"), legs=[LegPlan(f"{venue}:{market}", "buy")]
    )
    (leg,) = grant.legs
    place.order(leg)
    desk.ledger.confirm(key="c", position_id=position_of(grant), quantity=grant.quantity, price=D("0.00001"))
    assert desk.run(2).live == ()
    place.order(leg)
    (drift,) = desk.run(2).live
    assert (drift.kind, drift.excess) == ("quantity_differs", grant.quantity)
    (own, external) = desk.ledger.positions("main", state="open").items
    assert own.tags["symbol"] == external.tags["symbol"] == "PEPE"
    assert figures(desk.ledger, "symbol=PEPE") == (0, 200)


def test_confirm_when_a_late_fill_names_its_hold_then_it_is_not_counted_beside_it(open_desk: Any) -> None:
    desk, (place,) = open_desk("bybit")
    legs = [LegPlan("bybit:BTC/USDT", "buy"), LegPlan(f"bybit:{PERP}", "sell")]
    grant = desk.ledger.reserve(key="r", amount_usd=D(1000), price=PRICE, legs=legs, ttl_seconds=30)
    desk.clock.advance(31)
    desk.ledger.sweep()
    for leg in grant.legs:
        place.order(leg)
    assert {one.kind for one in desk.run(2).live} == {"late_fill"}
    desk.ledger.confirm(key="c", position_id=position_of(grant), quantity=grant.quantity, price=PRICE)
    assert desk.run().live == ()
    assert (figures(desk.ledger), figures(desk.ledger, "external=exchange")) == ((0, 1000), (0, 0))
