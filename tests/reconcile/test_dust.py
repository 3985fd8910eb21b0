"""Dust: a spot remainder of fees taken in coins is no drift. A difference worth trading is."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import partial

import pytest

from ledger_sizer import Leg
from ledger_sizer.paper.control import PaperControl
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.reconcile import inspection, ledger_reads
from ledger_sizer.reconcile.ledger_reads import last_prices
from tests.support.accounts import PERP, Desk, NewDesk, short
from tests.support.ledgers import TAGS, assert_verified, figures, reserve_btc
from tests.support.paper_clients import account_at

pytestmark = pytest.mark.one_engine

D = Decimal
SPOT = "BTC/USDT"
VENUES = ("bybit", "binance", "okx")
FEE_RATE = D("0.001")
PRICE = D(50_000)


@pytest.fixture(scope="module")
def paper() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=FEE_RATE) as server:
        yield server


@pytest.fixture
def open_desk(new_desk: NewDesk) -> NewDesk:
    """Opens desks that confirm at the first sighting, one after the other on the same database."""
    return partial(new_desk, confirmations=1, stale_after_seconds=None)


@pytest.mark.parametrize("venue", VENUES)
def test_reconcile_when_cycles_leave_dust_then_trading_goes_on_and_two_dollars_are_still_found(
    open_desk: NewDesk, paper: PaperServer, venue: str, request: pytest.FixtureRequest
) -> None:
    """Cycles through ccxt as a bot trades them: it buys spot plus the fee, and sells the hedged quantity."""
    control = PaperControl(paper.url, venue, request.node.name)
    control.open_account()
    account = account_at(venue, paper.url, api_key=control.api_key)
    rules = {one.symbol: one.instrument for one in account.instruments()}
    client = account._client
    desk = open_desk([account])
    for cycle in range(2):
        held = desk.ledger.reserve(
            key=f"{cycle}", tags={"venue": venue}, price=PRICE, spot_instrument=rules[SPOT],
            perp_instrument=rules[PERP], spot_fee_rate=FEE_RATE,
        )  # fmt: skip
        assert held.granted, held.reason
        quantity, position = held.quantity, str(held.position_id)
        assert quantity is not None
        ordered = next(leg.quantity for leg in desk.ledger.position(position).legs if leg.kind == "spot")
        contracts = quantity / D(client.market(PERP)["contractSize"])
        client.create_order(SPOT, "limit", "buy", f"{ordered:f}", f"{PRICE:f}")
        client.create_order(PERP, "market", "sell", f"{contracts:f}")
        desk.ledger.confirm(key=f"{cycle}/fill", position_id=position, quantity=quantity, price=PRICE)
        assert desk.run().findings == ()
        client.create_order(SPOT, "limit", "sell", f"{quantity:f}", f"{PRICE:f}")
        client.create_order(PERP, "market", "buy", f"{contracts:f}", None, {"reduceOnly": True})
        desk.ledger.release(key=f"{cycle}/exit", position_id=position)
        report = desk.run()
        assert (report.findings, report.run.found) == ((), {"within_tolerance": 1})
    left = account.snapshot(lambda: 0).balances or ()
    assert 0 < next(one.total for one in left if one.asset == "BTC") < D("0.00002"), "there is dust"
    control.deposit("BTC", 2 / PRICE)
    (found,) = desk.run().live
    assert (found.kind, found.subject, found.policy) == ("unknown_position", "BTC", "freeze")
    assert figures(desk.ledger, "external=exchange")[1] > 2
    assert_verified(desk.ledger)
    account.close()


# --- how much is dust ------------------------------------------------------------------------------------------------


def traded(desk: Desk) -> Desk:
    """Buy BTC at 50,000 USD, sell it again, and return the desk."""
    position = str(reserve_btc(desk.ledger, "r").position_id)
    desk.ledger.confirm(key="c", position_id=position, quantity=D("0.02"), price=PRICE)
    desk.ledger.release(key="x", position_id=position)
    return desk


@pytest.mark.parametrize(
    ("left", "dust_usd", "drifts"),
    [
        ("0.00001999", "1", 0),
        ("0.00002", "1", 1),  # a dollar is no dust
        ("-0.00001999", "1", 0),
        ("-0.00002", "1", 1),
        ("0.00009999", "5", 0),
        ("0.00000001", "0", 1),  # switched off
    ],
)
def test_reconcile_when_a_spot_balance_differs_then_it_is_dust_below_the_limit_alone(
    open_desk: NewDesk, left: str, dust_usd: str, drifts: int
) -> None:
    desk = traded(open_desk(dust_usd=D(dust_usd), baselines={"bybit/main/BTC": D(1)}))
    desk.account.shows(BTC=str(1 + D(left)))
    report = desk.run()
    assert len(report.live) == drifts
    assert report.run.found.get("within_tolerance", 0) == 1 - drifts


def test_reconcile_when_a_perpetual_differs_by_little_then_it_is_a_drift(open_desk: NewDesk) -> None:
    """Only fees leave dust, and only coins. A perpetual is a position that somebody opened, however small."""
    desk = traded(open_desk())
    desk.account.shows(short("0.00001"))
    assert [one.kind for one in desk.run().live] == ["unknown_position"]


def test_reconcile_when_nobody_ever_traded_the_asset_then_it_is_a_drift(open_desk: NewDesk) -> None:
    desk = traded(open_desk())
    desk.account.shows(DOGE="0.00001")
    assert [one.subject for one in desk.run().live] == ["DOGE"]


def test_reconcile_when_dust_lies_beside_a_small_hedge_then_its_legs_are_equal(open_desk: NewDesk) -> None:
    desk = open_desk()
    legs = [
        Leg("bybit", SPOT, "spot", "buy", D("0.0004"), PRICE), Leg("bybit", PERP, "swap", "sell", D("0.0004"), PRICE),
    ]  # fmt: skip
    desk.ledger.adopt(key="a", quantity=D("0.0004"), price=PRICE, tags=TAGS, legs=legs)
    desk.account.shows(short("0.0004"), BTC="0.000419")
    assert desk.run().findings == ()
    desk.account.shows(short("0.0004"), BTC="0.00042")
    assert {one.kind for one in desk.run().live} == {"quantity_differs", "legs_unequal"}


def test_reconcile_when_an_acknowledged_balance_moves_by_dust_then_it_stays_acknowledged(open_desk: NewDesk) -> None:
    desk = traded(open_desk())
    desk.account.shows(BTC="0.0001")
    (found,) = desk.run().live
    desk.reconciler.operator.ignore(found.id, reason="savings")
    desk.account.shows(BTC="0.000119")
    assert [(one.id, one.state) for one in desk.run().live] == [(found.id, "acknowledged")]
    desk.account.shows(BTC="0.00012")
    (anew,) = desk.run().live
    assert anew.id != found.id


# --- what it is worth ------------------------------------------------------------------------------------------------


def test_reconcile_when_the_trade_is_long_past_then_its_price_still_tells_dust(
    open_desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[set[str]] = []
    monkeypatch.setattr(
        inspection, "last_prices", lambda *asked: (looked.append(set(asked[2])), last_prices(*asked))[1]
    )
    desk = traded(open_desk())
    desk.account.shows(BTC="0.00001", DOGE="1")
    assert [one.subject for one in desk.run().live] == ["DOGE"]
    desk.clock.advance(10 * desk.settings.reconcile.expired_seconds)
    assert [one.subject for one in desk.run(times=3).live] == ["DOGE"]
    assert looked == [{"DOGE"}], "the price of BTC is known from earlier looks, and one look back for DOGE is enough"
    anew = open_desk()
    anew.account.shows(BTC="0.00001", DOGE="1")
    assert [one.subject for one in anew.run(times=2).live] == ["DOGE"]
    assert looked[1:] == [{"BTC", "DOGE"}]


def test_last_prices_when_an_asset_was_traded_then_the_newest_trade_counts_and_nothing_else(
    open_desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    assert last_prices(desk.engine, "main", {"BTC"}) == {}
    for key, asset, price in (("a", "ETH", 2000), ("b", "BTC", 100), ("c", "BTC", 200)):
        leg = Leg("bybit", f"{asset}/USDT", "spot", "buy", D(1), D(price))
        desk.ledger.adopt(key=key, quantity=D(1), price=D(price), tags=TAGS, legs=[leg])
    reserve_btc(desk.ledger, "held", price=D(300))
    desk.account.shows(short("1", "SOL/USDT:USDT", "150"), ETH="1", BTC="1")
    assert figures(desk.ledger, "portfolio")[1] == 2300
    desk.run()
    assert figures(desk.ledger, "external=exchange") == (0, 150)
    assert last_prices(desk.engine, "main", {"BTC", "ETH", "SOL", "XRP"}) == {"BTC": D(200), "ETH": D(2000)}
    monkeypatch.setattr(ledger_reads, "_LOOKBACK", 4)
    assert last_prices(desk.engine, "main", {"BTC", "ETH"}) == {"BTC": D(200)}, "so many positions back"
