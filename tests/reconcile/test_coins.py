"""Markets that count many coins in one unit are compared in coins; average prices that do not end are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from ledger_sizer import InstrumentInfo, InvalidRequest, Leg, LegPlan
from ledger_sizer.exchanges.instrument_refresh import refresh_rules
from ledger_sizer.exchanges.positions import _merge_positions
from ledger_sizer.exchanges.snapshot import VenueBalance, VenuePosition, rounded_price
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.accounts import PERP, NewDesk, WrittenAccount, short
from tests.support.ledgers import TAGS, position_of
from tests.support.paper_clients import VENUES, account_at, now_us, trader_at

pytestmark = pytest.mark.one_engine

D = Decimal
PEPE_PERP, COINS, PRICE = "1000PEPE/USDT:USDT", D(100_000_000), D("0.00001")
PEPE_TAGS = {**TAGS, "symbol": "PEPE"}
PEPE = {
    "tags": PEPE_TAGS,
    "price": PRICE,
    "spot_instrument": InstrumentInfo("PEPE/USDT", D(1), D(10**12), D(1), D(1)),
    "perp_instrument": InstrumentInfo(PEPE_PERP, D(1), D(10**8), D(1), D(5), multiplier=D(1000)),
}
THIRDS = (
    VenuePosition(PERP, "short", D("0.01"), D(50_000), D(50_100)),
    VenuePosition(PERP, "short", D("0.02"), D(51_000), D(50_100)),
)
"""Cross and isolated margin of one market, listed apart: the average entry price is 152000 / 3."""


def thousands(units: str) -> VenuePosition:
    return VenuePosition(PEPE_PERP, "short", D(units), D("0.01"), D("0.01"), False)


@pytest.mark.parametrize(
    ("symbol", "multiplier", "coins", "price"),
    [
        (PERP, None, "5", "0.02"),
        (PEPE_PERP, None, "5000", "0.00002"),
        ("1MBABYDOGE/USDT:USDT", None, "5000000", "0.00000002"),
        ("SHIB1000/USDT:USDT", None, "5000", "0.00002"),
        ("KPEPE/USDC:USDC", 1000, "5000", "0.00002"),
        (PEPE_PERP, 1, "5", "0.02"),
    ],
)
def test_coins_when_one_unit_is_many_coins_then_quantity_and_price_are_converted(
    symbol: str, multiplier: int | None, coins: str, price: str
) -> None:
    position = VenuePosition(symbol, "short", D(5), D("0.02"), multiplier=multiplier)
    assert (position.coins, position.coin_price) == (D(coins), D(price))
    assert VenuePosition(symbol, "short", D(5)).coin_price is None
    assert VenueBalance("1000SATS", D(1), D(2), D(3)).coins == 3000


@pytest.mark.parametrize(
    ("price", "rounded"),
    [
        (D(152_000) / 3, "50666.666666666666666666"),
        (D("1E-18"), "1E-18"),
        (D("1.5E-19"), "1.5E-19"),
        (D("1.23456789E-30"), "1.234567E-30"),
        (D("1E-40"), None),
        (D(0), None),
        (D(-1), None),
    ],
)
def test_round_price_when_it_has_more_digits_than_a_leg_takes_then_it_is_floored(
    price: Decimal, rounded: str | None
) -> None:
    assert rounded_price(price) == (None if rounded is None else D(rounded))


def test_market_when_its_name_has_a_factor_then_its_base_is_the_coin() -> None:
    assert [Market("v", "a", name, "long").base for name in (PEPE_PERP, "1000SATS", "BTC", PERP)] == [
        "PEPE", "SATS", "BTC", "BTC",
    ]  # fmt: skip


# --- hedges and excesses in coins --------------------------------------------------------------------------------


def test_reconcile_when_a_hedge_of_a_multiplied_contract_is_shown_then_both_sides_agree(new_desk: NewDesk) -> None:
    desk = new_desk()
    held = position_of(desk.ledger.reserve(key="a", **PEPE))
    desk.ledger.confirm(key="b", position_id=held, quantity=COINS, price=PRICE)
    assert desk.ledger.exposure("main").open == 1000
    desk.account.shows(thousands("100000"), PEPE=str(COINS))
    assert desk.run(2).live == ()
    desk.account.shows(thousands("100"), PEPE=str(COINS))
    (drift,) = [one for one in desk.run(2).live if one.part == "positions"]
    assert (drift.subject, drift.ledger_quantity, drift.venue_quantity) == (PEPE_PERP, COINS, D(100_000))


def test_reconcile_when_nobody_knows_a_multiplied_position_then_it_counts_its_usd_once(new_desk: NewDesk) -> None:
    desk = new_desk()
    desk.ledger.set_cap(key="cap", cap=D(10_000))
    desk.account.shows(thousands("100000"))
    (drift,) = desk.run(2).live
    assert (drift.kind, drift.excess, drift.price) == ("unknown_position", COINS, PRICE)
    assert desk.ledger.exposure("main").open == 1000
    (external,) = desk.ledger.positions("main").items
    assert external.tags["symbol"] == "PEPE"
    assert [(leg.symbol, leg.quantity, leg.price) for leg in external.legs] == [(PEPE_PERP, COINS, PRICE)]


def test_reconcile_when_a_wallet_lists_a_multiplied_coin_then_it_is_compared_in_coins(new_desk: NewDesk) -> None:
    desk = new_desk()
    leg = Leg("bybit", "1000SATS/USDT", "spot", "buy", D(5_000_000), D("0.0000002"))
    tags = {**TAGS, "symbol": "SATS"}
    desk.ledger.adopt(key="a", quantity=leg.quantity, price=D("0.0000002"), tags=tags, legs=[leg])
    desk.account.shows(**{"1000SATS": "5000"})
    assert desk.run(2).live == ()


def test_reconcile_when_a_baseline_is_of_a_multiplied_coin_then_it_is_in_units_of_the_wallet(new_desk: NewDesk) -> None:
    desk = new_desk(baselines={"bybit/main/1000SATS": D(5000)})
    desk.account.shows(**{"1000SATS": "5000"})
    assert desk.run(2).live == ()
    desk.account.shows(**{"1000SATS": "5001"})
    (drift,) = desk.run(2).live
    assert (drift.subject, drift.excess) == ("1000SATS", 1000)


def test_reconcile_when_nobody_knows_a_dated_future_then_its_leg_is_a_future(new_desk: NewDesk) -> None:
    desk = new_desk()
    desk.account.shows(short("0.02", "BTC/USDT:USDT-301227"))
    desk.run(2)
    (external,) = desk.ledger.positions("main").items
    assert [(leg.symbol, leg.kind, leg.side) for leg in external.legs] == [("BTC/USDT:USDT-301227", "future", "sell")]
    assert desk.run(2).run.outcome == "good"


# --- average prices ----------------------------------------------------------------------------------------------


def test_reconcile_when_an_average_entry_price_does_not_end_then_it_is_counted_at_once(new_desk: NewDesk) -> None:
    desk = new_desk()
    (merged,) = _merge_positions(THIRDS)
    assert merged.entry_price == D("50666.666666666666666666")
    desk.account.shows(merged)
    report = desk.run(2)
    assert report.run.outcome == "good"
    assert desk.ledger.exposure("main").open == D("1520")
    assert desk.ledger.exposure("main").whole.frozen


def test_reconcile_when_an_exchange_writes_endless_digits_then_another_portfolio_is_looked_at_too(
    new_desk: NewDesk,
) -> None:
    odd, sound = WrittenAccount("okx", portfolio="carry"), WrittenAccount("bybit")
    desk = new_desk([odd, sound])
    odd.shows(VenuePosition(PERP, "short", D("0.03"), D("50666." + "6" * 60)))
    sound.shows(short("1", "ETH/USDT:USDT", "3000"))
    for _ in range(2):
        desk.clock.advance(60)
        desk.reconciler.run()
    assert [desk.ledger.exposure(name).open for name in ("carry", "main")] == [D("1520"), D(3000)]


def test_reconcile_when_the_ledger_refuses_what_one_account_shows_then_the_other_portfolios_go_on(
    new_desk: NewDesk,
) -> None:
    odd, sound = WrittenAccount("okx", portfolio="carry"), WrittenAccount("bybit")
    desk = new_desk([odd, sound])
    odd.shows(VenuePosition(f"{'B' * 200}/USDT:USDT", "short", D("0.03"), D(50_000)))
    sound.shows(short("1", "ETH/USDT:USDT", "3000"))
    for _ in range(2):
        desk.clock.advance(60)
        with pytest.raises(InvalidRequest, match="symbol must have 1 to 128 characters"):
            desk.reconciler.run()
    assert desk.ledger.exposure("main").open == 3000


# --- at the paper venue ------------------------------------------------------------------------------------------


@pytest.fixture
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


@pytest.mark.parametrize("venue", VENUES)
def test_trade_when_markets_count_in_other_units_then_orders_fill_as_told_and_both_sides_agree(
    paper: PaperServer, new_desk: NewDesk, venue: str
) -> None:
    key = SecretStr(f"life-{venue}")
    PaperControl(paper.url, venue, key.get_secret_value()).open_account()
    account, trader = account_at(venue, paper.url, api_key=key), trader_at(venue, paper.url, api_key=key)
    desk = new_desk([account])
    refresh_rules(desk.engine, account)
    trader.load_markets()
    pepe = "PEPE/USDT:USDT" if venue == "okx" else "1000PEPE/USDT:USDT"
    pairs = {"PEPE": (PRICE, "PEPE/USDT", pepe), "BTC": (D(50_000), PERP, "BTC/USDT:USDT-301227")}
    for asset, (price, bought, sold) in pairs.items():
        legs = [LegPlan(f"{venue}:{bought}", "buy"), LegPlan(f"{venue}:{sold}", "sell")]
        grant = desk.ledger.reserve(key=asset, amount_usd=D(900), price=price, legs=legs)
        assert (grant.granted, grant.reason) == (True, None)
        for leg in grant.legs:
            trader.create_order(leg.symbol, "market", leg.side, f"{leg.order_amount:f}")
        assert grant.quantity is not None
        desk.ledger.confirm(key=f"{asset}/c", position_id=position_of(grant), quantity=grant.quantity, price=price)
        assert desk.run(2).live == ()
    shown = {one.symbol: one for one in account.snapshot(now_us).positions or ()}
    assert {shown[pepe].coins * PRICE, shown[PERP].coins * 50_000} == {D(900)}
    for asset, (_, bought, sold) in pairs.items():
        for leg in desk.ledger.lookup(asset).legs:  # type: ignore[union-attr]
            back = "sell" if leg.side == "buy" else "buy"
            options = {"reduceOnly": True} if ":" in leg.symbol else {}
            trader.create_order(leg.symbol, "market", back, f"{leg.order_amount:f}", None, options)
        desk.ledger.release(key=f"{asset}/r", position_id=str(desk.ledger.lookup(asset).position_id))  # type: ignore[union-attr]
        assert desk.run(2).live == (), (asset, bought, sold)
    assert account.snapshot(now_us).positions == ()
    account.close()
