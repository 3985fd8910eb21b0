"""What a leg says to order, ordered at the paper venues with the real ccxt client: contracts, fees, costs, accounts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, Ledger, LegPlan
from ledger_sizer.model.errors import WrongState
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper import PaperServer
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine, own_logging
from tests.support.ledgers import position_of
from tests.support.paper_clients import PERP, SPOT, VENUES, trader_at
from tests.support.paper_desks import Fill, TradingDesk

pytestmark = pytest.mark.one_engine

D = Decimal
DAY = 86_400
FEE = D("0.001")


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=FEE, swap_fee_rate=D("0.0005")) as running:
        yield running


OpenDesk = Callable[..., TradingDesk]


@pytest.fixture
def open_desk(
    server: PaperServer, database_url: str, clock: FakeClock, request: pytest.FixtureRequest
) -> Iterator[OpenDesk]:
    """Open a desk with these accounts, (venue, name)."""
    desks: list[TradingDesk] = []

    def opened(*accounts: tuple[str, str], **options: Any) -> TradingDesk:
        desks.append(TradingDesk(database_url, clock, server, accounts, request.node.name, options))
        return desks[-1]

    yield opened
    for desk in desks:
        desk.close()


def _confirmed(desk: TradingDesk, granted: Decision, fills: list[Fill]) -> None:
    """Tell all fills of a grant at once: the granted quantity at the price of the last leg, each leg as it filled."""
    assert granted.quantity is not None
    desk.ledger.confirm(
        key=f"{granted.key}/fill", position_id=position_of(granted), quantity=granted.quantity, price=fills[-1].price,
        legs=[fill.as_leg for fill in fills],
    )  # fmt: skip


def _held_at_venue(desk: TradingDesk, venue: str, account: str = "main") -> dict[str, Decimal]:
    """Return the derivative positions of an account, in the base units of their markets."""
    control = desk.controls[venue, account]
    positions = control.state()["accounts"][control.api_key]["positions"]
    return {position["symbol"]: D(position["quantity"]) for position in positions}


# --- contracts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("venue", VENUES)
def test_order_when_a_grant_is_ordered_as_its_legs_say_then_the_venue_shows_the_granted_quantity(
    open_desk: OpenDesk, venue: str
) -> None:
    desk = open_desk((venue, "main"))
    granted = desk.ledger.reserve(
        key="a", price=D("0.5"), spot_instrument=f"{venue}:XRP/USDT", perp_instrument=f"{venue}:XRP/USDT:USDT"
    )
    sold = granted.legs[1]
    # A contract of OKX is 1,000 XRP here, elsewhere one.
    assert (granted.quantity, sold.order_amount) == (D(4000), D(4) if venue == "okx" else D(4000))
    assert desk.order(sold).coins == 4000
    assert _held_at_venue(desk, venue) == {"XRP/USDT:USDT": D(-4000)}


@pytest.mark.parametrize("venue", VENUES)
def test_trade_when_the_contract_counts_in_other_units_than_the_spot_market_then_it_is_hedged_exactly_and_closed(
    open_desk: OpenDesk, venue: str
) -> None:
    """PEPE: 1000PEPE at Bybit and Binance, contracts of ten million at OKX."""
    desk = open_desk((venue, "main"))
    perp = "PEPE/USDT:USDT" if venue == "okx" else "1000PEPE/USDT:USDT"
    granted = desk.ledger.reserve(
        key="a", price=D("0.00001"), ttl_seconds=DAY, amount_usd=D(1_050),
        legs=[LegPlan(f"{venue}:PEPE/USDT", "buy", fee_rate=FEE), LegPlan(f"{venue}:{perp}", "sell")],
    )  # fmt: skip
    assert granted.quantity is not None
    assert granted.quantity * D("0.00001") <= 1_050
    assert desk.ledger.position(position_of(granted)).tags["symbol"] == "PEPE"
    fills = [desk.order(leg) for leg in granted.legs]
    assert fills[1].coins == granted.quantity
    assert fills[1].price == D("0.00001")
    held = _held_at_venue(desk, venue)[perp]
    assert held * (1 if venue == "okx" else 1_000) == -granted.quantity
    _confirmed(desk, granted, fills)
    desk.require_agreement()
    position = desk.ledger.position(position_of(granted))
    assert (position.quantity, position.open, position.held) == (
        granted.quantity, granted.quantity * D("0.00001"), 0,
    )  # fmt: skip
    for fill in fills:
        desk.order(fill.leg, _sellable(desk, fill), back=True)
    desk.ledger.release(key="exit", position_id=position_of(granted))
    desk.require_flat()


def _sellable(desk: TradingDesk, fill: Fill) -> Decimal:
    """Return the coins of a fill that can be traded back: after its fee, whole steps."""
    trader = desk.traders[fill.leg.venue, fill.leg.account]
    with exact_arithmetic():
        unit = fill.leg.quantity / fill.leg.order_amount
        step = D(trader.market(fill.leg.symbol)["precision"]["amount"]) * unit
        return (fill.coins - fill.fee) // step * step


# --- fees in base ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short_form", [True, False], ids=["pair", "spot"])
@pytest.mark.parametrize("venue", VENUES)
def test_trade_when_the_fee_is_taken_in_coins_then_what_is_left_covers_the_grant_and_both_sides_agree(
    open_desk: OpenDesk, venue: str, short_form: bool
) -> None:
    desk = open_desk((venue, "main"))
    spot, perp = f"{venue}:{SPOT}", f"{venue}:{PERP}"
    legs: dict[str, Any] = (
        {"spot_instrument": spot, "perp_instrument": perp, "spot_fee_rate": FEE}
        if short_form else {"legs": [LegPlan(spot, "buy", fee_rate=FEE)]}
    )  # fmt: skip
    granted = desk.ledger.reserve(key="a", price=D(50_000), ttl_seconds=DAY, amount_usd=D(1_000), **legs)
    assert granted.quantity is not None
    fills = [desk.order(leg) for leg in granted.legs]
    bought = fills[0].coins - fills[0].fee
    assert granted.quantity <= bought <= granted.quantity * D("1.002")
    assert fills[0].cost <= 1_000
    desk.require_no_drift()
    _confirmed(desk, granted, fills)
    desk.require_agreement()
    for fill in fills:
        desk.order(fill.leg, _sellable(desk, fill), back=True)
    desk.ledger.release(key="exit", position_id=position_of(granted))
    desk.require_flat()


# --- market buys by cost -----------------------------------------------------------------------------------------


def test_trade_when_a_market_buy_takes_its_cost_then_the_leg_says_it_and_the_venue_buys_that_to_a_cent(
    open_desk: OpenDesk,
) -> None:
    desk = open_desk(("okx", "main"), tgtCcy="quote_ccy")
    granted = desk.ledger.reserve(
        key="a", price=D(50_000), ttl_seconds=DAY, amount_usd=D(900),
        legs=[LegPlan(f"okx:{SPOT}", "buy", fee_rate=FEE), LegPlan(f"okx:{PERP}", "sell")],
    )  # fmt: skip
    bought, sold = granted.legs
    assert bought.order_cost == bought.quantity * 50_000
    assert sold.order_cost is None
    fills = [desk.order(leg) for leg in granted.legs]
    assert 0 <= bought.order_cost - fills[0].cost <= D("0.01")  # ccxt cuts a cost to the market's price step
    _confirmed(desk, granted, fills)
    desk.require_agreement()


# --- accounts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("venue", VENUES)
def test_trade_when_the_legs_are_in_two_accounts_of_a_venue_then_each_is_compared_with_its_own(
    open_desk: OpenDesk, venue: str
) -> None:
    desk = open_desk((venue, "long"), (venue, "short"))
    granted = desk.ledger.reserve(
        key="a", price=D(50_000), ttl_seconds=DAY, amount_usd=D(900),
        legs=[LegPlan(f"{venue}:{PERP}", "buy", account="long"), LegPlan(f"{venue}:{PERP}", "sell", account="short")],
    )  # fmt: skip
    for share in (D("0.01"), D("0.008")):
        fills = [desk.order(leg, share) for leg in granted.legs]
        desk.require_no_drift()
        desk.ledger.confirm(
            key=f"fill/{share}", position_id=position_of(granted), quantity=share, price=D(50_000),
            legs=[fill.as_leg for fill in fills], rest="hold",
        )  # fmt: skip
        desk.require_agreement()
    assert _held_at_venue(desk, venue, "long") == {PERP: D("0.018")}
    assert _held_at_venue(desk, venue, "short") == {PERP: D("-0.018")}
    assert desk.ledger.position(position_of(granted)).held == 0
    for leg in granted.legs:
        desk.order(leg, back=True)
    desk.ledger.release(key="exit", position_id=position_of(granted))
    desk.require_flat()


# --- fills of one order in parts, and late ones --------------------------------------------------------------------


@pytest.mark.parametrize("venue", VENUES)
def test_fill_when_one_order_fills_in_parts_and_the_last_comes_after_the_hold_expired_then_all_of_it_counts(
    open_desk: OpenDesk, venue: str
) -> None:
    desk = open_desk((venue, "main"))
    granted = desk.ledger.reserve(
        key="a", price=D(50_000), ttl_seconds=3_600, amount_usd=D(900), legs=[LegPlan(f"{venue}:{PERP}", "sell")]
    )
    (leg,) = granted.legs
    control, trader = desk.controls[venue, "main"], desk.traders[venue, "main"]
    control.fills(at_once=False)
    try:
        sent = trader.create_order(leg.symbol, "market", leg.side, float(leg.order_amount))
        desk.require_no_drift()
        for coins in (D("0.005"), D("0.004")):
            control.fill(sent["id"], coins)
            desk.require_no_drift()
            _tell_sum(desk, granted, desk.fill_of(leg, sent))
            desk.require_agreement()
        position = desk.ledger.position(position_of(granted))
        assert (position.state, position.quantity, position.held) == ("open", D("0.009"), 450)
        desk.desk.clock.advance(3_600)
        desk.ledger.sweep()
        assert desk.ledger.position(position_of(granted)).held == 0
        control.fill(sent["id"])
        _tell_sum(desk, granted, desk.fill_of(leg, sent))
    finally:
        control.fills(at_once=True)
    desk.require_agreement()
    position = desk.ledger.position(position_of(granted))
    assert (position.quantity, position.open) == (D("0.018"), 900)
    desk.order(leg, back=True)
    desk.ledger.release(key="exit", position_id=position_of(granted))
    desk.require_flat()


def _tell_sum(desk: TradingDesk, granted: Decision, fill: Fill) -> None:
    desk.ledger.fill(
        key=f"sum/{fill.coins}", position_id=position_of(granted), filled_quantity=fill.coins, price=fill.price
    )


@pytest.mark.parametrize("symbol", ["BTC", SPOT])
def test_fill_when_a_hold_without_legs_names_its_market_by_a_tag_then_its_fill_is_in_flight(
    open_desk: OpenDesk, symbol: str
) -> None:
    desk = open_desk(("bybit", "main"))
    desk.ledger.reserve(
        key="a", tags={"venue": "bybit", "strategy": "a", "symbol": symbol}, amount_usd=D(500), ttl_seconds=DAY
    )
    desk.traders["bybit", "main"].create_order(SPOT, "limit", "buy", 0.01, 50_000)
    desk.require_no_drift()


def test_fill_when_one_leg_fills_and_the_other_is_refused_then_the_hold_waits_for_it_until_it_is_given_back(
    open_desk: OpenDesk,
) -> None:
    desk = open_desk(("bybit", "main"), ("okx", "main"))
    granted = desk.ledger.reserve(
        key="a", price=D(50_000), ttl_seconds=DAY, amount_usd=D(900),
        legs=[LegPlan(f"bybit:{PERP}", "buy"), LegPlan(f"okx:{PERP}", "sell")],
    )  # fmt: skip
    bought, _ = granted.legs
    fill = desk.order(bought)
    position_id = position_of(granted)
    desk.ledger.confirm(
        key="bought", position_id=position_id, quantity=fill.coins, price=fill.price, legs=[fill.as_leg], rest="hold"
    )
    desk.require_agreement()  # unhedged, and its hedge is on its way
    position = desk.ledger.position(position_id)
    assert (position.pending, position.held, position.open) == (True, 0, 900)
    desk.ledger.release(key="gave up", position_id=position_id, held_only=True)
    desk.order(bought, back=True)
    desk.ledger.release(key="exit", position_id=position_id)
    with pytest.raises(WrongState):
        desk.ledger.release(key="exit again", position_id=position_id)
    desk.require_flat()


# --- as a user runs it -------------------------------------------------------------------------------------------


def test_reconcile_when_it_is_run_as_a_command_over_several_accounts_then_a_life_agrees_at_every_step(
    server: PaperServer, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts are settings, the rules come by `instruments refresh`, and no part of the desk is shared."""
    secrets = {"api_key": "paper", "api_secret": "paper-secret", "password": "paper-passphrase", "base_url": server.url}
    accounts = [{"id": venue, **secrets} for venue in ("bybit", "okx")]
    monkeypatch.setenv("EXCHANGE_ACCOUNTS", json.dumps(accounts))
    monkeypatch.setenv("RECONCILE_GRACE_SECONDS", "0")
    monkeypatch.setenv("RECONCILE_CONFIRMATIONS", "1")
    command_line = CommandLine(capsys, database_url)

    def require_agreement() -> None:
        with own_logging():
            done = command_line("reconcile")
        assert (done.code, "no differences" in done.out) == (0, True), done

    with own_logging():
        command_line.json("instruments", "refresh", "bybit", "okx")
    traders = {venue: trader_at(venue, server.url) for venue in ("bybit", "okx")}
    with Ledger.open(database_url) as ledger:
        granted = ledger.reserve(
            key="a", price=D(50_000), ttl_seconds=600,
            legs=[LegPlan(f"bybit:{PERP}", "buy"), LegPlan(f"okx:{PERP}", "sell")],
        )  # fmt: skip
        for leg in granted.legs:
            traders[leg.venue].create_order(leg.symbol, "market", leg.side, float(leg.order_amount))
        require_agreement()
        ledger.fill(key="b", position_id=position_of(granted), filled_quantity=D("0.02"), price=D(50_000))
        require_agreement()
        for leg in granted.legs:
            back = "sell" if leg.side == "buy" else "buy"
            traders[leg.venue].create_order(leg.symbol, "market", back, float(leg.order_amount))
        ledger.release(key="c", position_id=position_of(granted))
        require_agreement()
        assert ledger.exposure().exposure == 0
        assert ledger.verify().ok
