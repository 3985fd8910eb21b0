"""The net of each coin over all accounts: bought, sold, what the exchanges show, and since when it is naked."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from sqlalchemy import text

from ledger_sizer import Leg
from ledger_sizer.exchanges.snapshot import VenuePosition
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.reconcile.listings import list_drifts
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, adopt, long, short
from tests.support.ledgers import BTC_PRICE, position_of

D = Decimal


def two_venues(new_desk: NewDesk) -> Desk:
    """A desk with a hedge of two perpetuals, 0.02 BTC long at bybit and short at okx, which the accounts show too."""
    desk = new_desk([WrittenAccount("bybit"), WrittenAccount("okx")], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    legs = [
        Leg("bybit", PERP, "swap", "buy", D("0.02"), BTC_PRICE),
        Leg("okx", PERP, "swap", "sell", D("0.02"), D(50_100)),
    ]
    tags = {"strategy": "funding", "symbol": "BTC"}
    desk.ledger.adopt(key="pair", quantity=D("0.02"), price=BTC_PRICE, tags=tags, legs=legs)
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(VenuePosition(PERP, "short", D("0.02"), D(50_100), D(51_000)))
    return desk


def test_net_when_a_hedge_is_at_two_venues_then_it_is_hedged_with_the_quantities_of_both(new_desk: NewDesk) -> None:
    desk = two_venues(new_desk)
    (btc,) = desk.ledger.net().assets
    assert (btc.shown, btc.exchange_price, desk.ledger.net().run_at) == (None, None, None), "nobody looked yet"
    desk.run()
    (btc,) = desk.ledger.net("main").assets
    assert (btc.asset, btc.bought, btc.sold, btc.net, btc.shown) == ("BTC", D("0.02"), D("0.02"), 0, 0)
    assert (btc.hedged, btc.naked_usd, btc.naked_since, btc.exchange_price) == (True, 0, None, 51_000)
    places = [(one.venue, one.account, one.bought, one.sold, one.net, one.shown) for one in btc.accounts]
    assert places == [
        ("bybit", "main", D("0.02"), 0, D("0.02"), D("0.02")), ("okx", "main", 0, D("0.02"), D("-0.02"), D("-0.02"))
    ]  # fmt: skip


def test_net_when_a_liquidation_is_seen_and_then_adopted_then_the_naked_coins_are_shown_from_its_first_sight_on(
    new_desk: NewDesk,
) -> None:
    desk = two_venues(new_desk)
    desk.run()
    desk.accounts[1].shows()
    report = desk.run()
    first = report.run.finished_at
    (btc,) = desk.ledger.net().assets
    assert (btc.net, btc.shown, btc.hedged, btc.naked_since) == (0, D("0.02"), False, first)
    assert btc.naked_usd == 1000, "the ledger has it hedged still, the exchange does not"
    (unequal,) = [one for one in report.live if one.kind == "legs_unequal"]
    (gone,) = [one for one in report.live if one.kind == "missing_position"]
    desk.clock.advance(600)
    decided = desk.clock()
    desk.reconciler.operator.act("adopt", gone.id, reason="liquidated")
    (btc,) = desk.ledger.net().assets
    assert (btc.bought, btc.sold, btc.net_usd, btc.naked_usd, btc.naked_since) == (D("0.02"), 0, 1000, 1000, decided)
    report = desk.run(2)
    (told,) = report.live
    assert (told.kind, told.state) == ("legs_unequal", "confirmed")
    ended = {one.id: one.reason for one in _all_drifts(desk) if one.state == "resolved"}
    assert ended[unequal.id] == f"it is drift {told.id} about {told.subject} now", "not gone: it has another name"
    hedge = [Leg("okx", PERP, "swap", "sell", D("0.02"), BTC_PRICE)]
    desk.ledger.adopt(key="hedge", quantity=D("0.02"), price=BTC_PRICE, tags={"symbol": "BTC"}, legs=hedge)
    desk.accounts[1].shows(short("0.02"))
    desk.run(2)
    (btc,) = desk.ledger.net().assets
    assert (btc.hedged, btc.naked_usd, desk.run().live) == (True, 0, ())


def _all_drifts(desk: Desk) -> list[Drift]:
    return list(list_drifts(desk.engine))


@pytest.mark.one_engine
def test_reconcile_when_another_strategy_trades_the_coin_of_a_naked_position_then_that_is_no_hedge(
    new_desk: NewDesk,
) -> None:
    desk = two_venues(new_desk)
    desk.accounts[1].shows(short("0.005"))
    report = desk.run()
    for one in report.live:
        if one.kind == "quantity_differs":
            desk.reconciler.operator.act("adopt", one.id, reason="deleveraged")
    sold = [Leg("okx", PERP, "swap", "sell", D("0.015"), BTC_PRICE)]
    tags = {"symbol": "BTC", "strategy": "momentum"}
    other = desk.ledger.adopt(key="momentum", quantity=D("0.015"), price=BTC_PRICE, tags=tags, legs=sold)
    desk.accounts[1].shows(short("0.02"))
    report = desk.run(2)
    assert [one.kind for one in report.live] == ["legs_unequal"], "the bot of momentum closes its own when it likes"
    desk.ledger.retag(key="ours", position_id=position_of(other), tags={"strategy": "funding"})
    assert desk.run(2).live == ()


@pytest.mark.one_engine
def test_net_when_positions_differ_in_what_they_name_then_each_is_counted_where_it_belongs(new_desk: NewDesk) -> None:
    desk = new_desk([WrittenAccount("bybit"), WrittenAccount("bybit", "sub")], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    adopt(desk, "pair")
    desk.ledger.adopt(key="plain", quantity=D(3), price=D(2000), tags={"symbol": "ETH/USDT"})
    desk.ledger.adopt(key="nameless", quantity=D(1), price=D(10))
    many = [Leg("bybit", "1000PEPE/USDT:USDT", "swap", "buy", D(2_000_000), D("0.00001"), account="sub")]
    desk.ledger.adopt(key="many", quantity=D(2_000_000), price=D("0.00001"), tags={}, legs=many)
    aliased = [
        Leg("hyperliquid", "UBTC/USDC", "spot", "buy", D(1), D(50_000)),
        Leg("hyperliquid", "BTC/USDC:USDC", "swap", "sell", D("0.99"), D(50_000)),
    ]
    desk.ledger.adopt(key="alias", quantity=D(1), price=D(50_000), tags={}, legs=aliased)
    found = {one.asset: one for one in desk.ledger.net().assets}
    assert {*found} == {"PEPE", "", "BTC", "ETH"}
    assert (found["ETH"].without_legs, found["ETH"].net, found["ETH"].accounts, found["ETH"].price) == (3, 0, (), 2000)
    assert (found[""].without_legs, found[""].hedged) == (1, True)
    assert [(one.venue, one.account, one.net) for one in found["PEPE"].accounts] == [("bybit", "sub", 2_000_000)]
    assert (found["BTC"].bought, found["BTC"].sold, found["BTC"].hedged) == (D("1.02"), D("1.01"), True)
    assert next(iter(found)) == "PEPE", "what is naked comes first"


@pytest.mark.one_engine
def test_net_when_an_account_is_added_later_then_legs_that_name_none_stay_where_they_were(new_desk: NewDesk) -> None:
    first = new_desk([WrittenAccount("bybit")], confirmations=1)
    first.ledger.set_cap(key="cap", cap=D(100_000))
    first.run()
    adopt(first, "pair")
    first.account.shows(short("0.02"), BTC="0.02")
    first.run()
    desk = new_desk([first.account, WrittenAccount("bybit", "sub")], confirmations=1)
    assert desk.run().live == ()
    (btc,) = desk.ledger.net().assets
    assert [(one.account, one.net, one.shown) for one in btc.accounts] == [("main", 0, 0)]
    assert btc.shown == 0


@pytest.mark.one_engine
def test_net_when_only_the_exchange_has_it_then_it_is_counted_and_marked(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    desk.run()
    desk.run()
    (eth,) = desk.ledger.net().assets
    assert (eth.asset, eth.net, eth.external, eth.shown, eth.naked_usd) == ("ETH", 2, 2, 2, 4000)
    assert eth.accounts[0].external == 2
    assert [one.external for one in desk.ledger.net("*").assets] == [2], "the desk is all portfolios"
    assert desk.ledger.net("nobody").assets == ()


@pytest.mark.one_engine
def test_net_when_a_part_of_the_hedge_was_closed_then_it_is_naked_since_that_close(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    for name, kind, side in (("BTC/USDT", "spot", "buy"), (PERP, "swap", "sell")):
        leg = Leg("bybit", name, kind, side, D("0.02"), BTC_PRICE)  # type: ignore[arg-type]
        desk.ledger.adopt(key=side, quantity=D("0.02"), price=BTC_PRICE, tags={}, legs=[leg])
        desk.clock.advance(60)
    desk.ledger.adopt(key="other", quantity=D(1), price=D(2000), tags={"symbol": "ETH"})
    assert [one.hedged for one in desk.ledger.net().assets] == [True, True]
    closed = desk.clock()
    desk.ledger.release(key="part", position_id="main-3", quantity=D("0.01"))
    desk.clock.advance(60)
    desk.ledger.adopt(key="more", quantity=D("0.01"), price=BTC_PRICE, tags={},
                      legs=[Leg("bybit", PERP, "swap", "buy", D("0.005"), BTC_PRICE)])  # fmt: skip
    (btc, _) = desk.ledger.net().assets
    assert (btc.net, btc.naked_since) == (D("0.015"), closed), "what came later made it no more naked than it was"


@pytest.mark.one_engine
def test_net_when_coins_at_the_exchange_are_known_to_be_others_then_they_make_nothing_naked(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1, baselines={"bybit/main/BTC": D(3)})
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    adopt(desk, "pair")
    desk.account.shows(short("0.02"), BTC="3.02")
    desk.run()
    assert (desk.ledger.net().assets[0].shown, desk.ledger.net().assets[0].hedged) == (0, True), "a baseline"
    desk.account.shows(short("0.02"), long("1"), BTC="8.02")
    for drift in desk.run().live:
        if drift.excess:
            desk.reconciler.operator.act("ignore", drift.id, reason="savings")
    desk.run()
    (btc,) = desk.ledger.net().assets
    assert (btc.net, btc.shown, btc.hedged, btc.external) == (0, 0, True, 0), "a person accepted what is beyond"


def test_runs_when_there_are_several_then_only_the_last_keeps_what_was_shown_and_no_list_shows_it(
    new_desk: NewDesk,
) -> None:
    desk = two_venues(new_desk)
    reports = [desk.run() for _ in range(3)]
    assert all("shown" not in entry for report in reports for entry in report.run.fetched)
    with desk.engine.connect() as connection:
        rows = connection.execute(text("SELECT fetched FROM reconciliations ORDER BY id")).scalars().all()
    kept = [["shown" in entry for entry in json.loads(row)] for row in rows]
    assert kept == [[False, False], [False, False], [True, True]]
    desk.accounts[0].positions = None
    desk.run()
    (btc,) = desk.ledger.net().assets
    assert (btc.shown, btc.accounts[0].shown, btc.accounts[1].shown) == (None, None, D("-0.02"))
    assert btc.hedged, "what was not seen is not known to be naked"
