"""Tests `DeskExchange` on the real ccxt clients, sync and async, at the paper venues."""

from __future__ import annotations

import contextlib
import inspect
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt
import pytest

from ledger_sizer import Denied, InvalidRequest, Ledger, Unavailable
from ledger_sizer.adapters import ccxt_records
from ledger_sizer.adapters.ccxt import DeskExchange, DeskUnavailable, FateUnknown, OrderDenied, client_order_id
from ledger_sizer.client import LedgerClient, RetryPolicy
from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.paper.control import DEFAULT_KEY
from tests.support.paper_clients import PERP, SPOT, VENUES, async_trader_at, trader_at

pytestmark = pytest.mark.one_engine

D = Decimal
CAP = D(1000)
FACES = ("sync", "async")
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "bots" / "ccxt.md"


@pytest.fixture
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with Ledger.open(database_url) as opened:
        opened.set_cap(key="cap", cap=CAP)
        yield opened


class At:
    """A venue of the server, with exchanges of both faces there."""

    def __init__(self, server: PaperServer, venue: str, ledger: Ledger, stack: contextlib.AsyncExitStack) -> None:
        self.venue, self.url, self.ledger, self._stack = venue, server.url, ledger, stack
        self._account = server.venues.dialects[venue].exchange.accounts[DEFAULT_KEY]
        self.control = PaperControl(server.url, venue)

    def open(self, face: str = "sync", ledger: Any = None, **more: Any) -> Any:
        client = (async_trader_at if face == "async" else trader_at)(self.venue, self.url)
        if face == "async":
            self._stack.push_async_callback(client.close)
        options = {"tags": {"bot": "a"}, "slippage": D(0), "window_seconds": 0.0, **more}
        return DeskExchange(client, self.ledger if ledger is None else ledger, **options)

    @property
    def orders(self) -> list[Any]:
        """The orders that the venue took, oldest first."""
        return list(self._account.orders.values())

    def figures(self) -> tuple[Decimal, Decimal]:
        """Return what is held and what is open, USD."""
        whole = self.ledger.exposure().whole
        return whole.held, whole.open


Open = Callable[..., At]


@pytest.fixture
async def at(server: PaperServer, ledger: Ledger) -> AsyncIterator[Open]:
    async with contextlib.AsyncExitStack() as stack:
        yield lambda venue="bybit": At(server, venue, ledger, stack)


async def done(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


def amount_of(venue: str, coins: str) -> float:
    """Return what to order of the perpetual: OKX counts contracts of 0.01 BTC."""
    return float(D(coins) * 100) if venue == "okx" else float(coins)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("venue", VENUES)
async def test_order_when_opened_and_closed_then_the_ledger_counts_what_the_venue_has(
    at: Open, venue: str, face: str
) -> None:
    here = at(venue)
    exchange = here.open(face)
    order = await done(exchange.create_order(SPOT, "market", "buy", 0.01))
    assert D(str(order["filled"])) == D("0.01")
    assert here.figures() == (0, 500)
    await done(exchange.create_order(PERP, "market", "sell", amount_of(venue, "0.005")))
    assert here.figures() == (0, 750)
    await done(exchange.create_order(SPOT, "market", "sell", 0.004))
    assert here.figures() == (0, 550)
    await done(exchange.create_order(PERP, "market", "buy", amount_of(venue, "0.005")))
    await done(exchange.createOrder(SPOT, "market", "sell", 0.006))
    assert here.figures() == (0, 0)
    assert all(position.state == "closed" for position in here.ledger.positions(tags={"venue": venue}))
    assert here.ledger.verify().ok


@pytest.mark.parametrize("face", FACES)
async def test_order_when_denied_then_it_is_not_sent_and_both_kinds_of_handler_see_it(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    with pytest.raises(OrderDenied) as denied:
        await done(exchange.create_limit_buy_order(SPOT, 0.021, 50000))
    assert isinstance(denied.value, ccxt.InsufficientFunds)
    assert isinstance(denied.value, Denied)
    assert here.orders == []
    assert here.figures() == (0, 0)


@pytest.mark.parametrize("face", FACES)
async def test_close_when_halted_and_full_then_it_passes(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    await done(exchange.create_order(PERP, "market", "buy", 0.01))
    here.ledger.halt(key="halt", portfolio="main")
    here.ledger.set_cap(key="less", cap=D(1))
    with pytest.raises(OrderDenied):
        await done(exchange.create_order(PERP, "market", "buy", 0.001))
    await done(exchange.create_order(PERP, "market", "sell", 0.004))
    await done(exchange.create_order(PERP, "market", "sell", 0.006, None, {"reduceOnly": True}))
    assert here.figures() == (0, 0)
    assert all(order.reduce_only for order in here.orders[1:]), "what closes can never open"


@pytest.mark.parametrize("face", FACES)
async def test_limit_order_when_it_rests_fills_partly_and_is_cancelled_then_the_hold_follows(
    at: Open, face: str
) -> None:
    here = at()
    exchange = here.open(face)
    order = await done(exchange.create_order(SPOT, "limit", "buy", 0.01, 40000))
    assert here.figures() == (400, 0)
    (hold,) = here.ledger.positions(state="until_known")
    assert hold.reference == here.orders[0].client_id
    here.control.fill(order["id"], D("0.004"))
    await done(exchange.fetch_open_orders(SPOT))
    assert here.figures() == (240, 160)
    await done(exchange.cancel_order(order["id"], SPOT))
    assert here.figures() == (0, 160)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("venue", VENUES)
async def test_order_when_its_answer_is_lost_then_it_is_found_by_its_client_order_id(
    at: Open, venue: str, face: str
) -> None:
    here = at(venue)
    exchange = here.open(face)
    await done(exchange.load_markets())
    here.control.fault("lost_answer", "order", seconds=0.05)
    order = await done(exchange.create_order(SPOT, "market", "buy", 0.01))
    assert D(str(order["filled"])) == D("0.01")
    assert len(here.orders) == 1
    assert here.figures() == (0, 500)


@pytest.mark.parametrize("face", FACES)
async def test_order_when_its_fate_is_unknown_then_the_money_stays_held_and_a_repeat_sends_no_second(
    at: Open, face: str
) -> None:
    here = at()
    exchange = here.open(face, window_seconds=60)
    await done(exchange.load_markets())
    here.control.fault("lost_answer", "order/create", seconds=0.05)
    here.control.fault("outage", "order/realtime", times=1)
    with pytest.raises(ccxt.NetworkError):
        await done(exchange.create_order(SPOT, "market", "buy", 0.01))
    assert here.figures() == (500, 0)
    order = await done(exchange.create_order(SPOT, "market", "buy", 0.01))
    assert order["id"] == here.orders[0].id
    assert len(here.orders) == 1
    assert here.figures() == (0, 500)
    await done(exchange.create_order(SPOT, "market", "buy", 0.01))
    assert len(here.orders) == 2, "an order that was answered is another wish"


async def test_order_when_it_never_arrived_then_it_is_not_sent_again_within_the_window_and_freed_after(
    at: Open,
) -> None:
    here = at()
    exchange = here.open(window_seconds=60)
    exchange.load_markets()
    here.control.fault("timeout", "order/create", seconds=0.05)
    with pytest.raises(ccxt.NetworkError):
        exchange.create_order(SPOT, "market", "buy", 0.01)
    with pytest.raises(FateUnknown):
        exchange.create_order(SPOT, "market", "buy", 0.01)
    assert here.figures() == (500, 0)
    assert here.orders == []
    here.open(window_seconds=0).catch_up()
    assert here.figures() == (0, 0)


@pytest.mark.parametrize("face", FACES)
async def test_order_when_the_exchange_refuses_it_then_the_money_is_free_at_once(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    with pytest.raises(ccxt.ExchangeError):
        await done(exchange.create_order(SPOT, "limit", "buy", 0.00002, 50000))
    assert here.figures()[0] == 0


@pytest.mark.parametrize("face", FACES)
async def test_order_when_the_ledger_is_away_then_nothing_opens_and_what_closes_passes(at: Open, face: str) -> None:
    here = at()
    away = LedgerClient("http://127.0.0.1:9", timeout_seconds=0.2, patience=RetryPolicy(attempts_max=1))
    exchange = here.open(face, away)
    with pytest.raises(DeskUnavailable) as error:
        await done(exchange.create_order(SPOT, "market", "buy", 0.01))
    assert isinstance(error.value, ccxt.NetworkError)
    assert isinstance(error.value, Unavailable)
    assert here.orders == []
    here.control.open(PERP, "long", D("0.01"))
    await done(exchange.create_order(PERP, "market", "sell", 0.004, None, {"reduceOnly": True}))
    await done(exchange.create_order(PERP, "market", "sell", 0.006))
    with pytest.raises(DeskUnavailable):
        await done(exchange.create_order(PERP, "market", "sell", 0.006))
    assert [order.reduce_only for order in here.orders] == [True, True]


async def test_fill_when_the_ledger_is_away_then_it_is_told_later(at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    here = at()
    exchange = here.open()

    def away(**_: Any) -> None:
        raise Unavailable("the database is away")

    with monkeypatch.context() as outage:
        outage.setattr(here.ledger, "fill", away)
        exchange.create_order(SPOT, "market", "buy", 0.01)
    assert here.figures() == (500, 0)
    exchange.catch_up()
    assert here.figures() == (0, 500)


async def test_resting_order_when_it_is_watched_then_its_hold_is_told_to_be_alive(
    at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at()
    exchange = here.open("async")
    order = await exchange.create_order(SPOT, "limit", "buy", 0.01, 40000)
    (hold,) = here.ledger.positions(state="until_known")
    monkeypatch.setattr(ccxt_records, "RESTS_SECONDS", 0.0)
    exchange.watch_orders = exchange.fetch_open_orders
    (watched,) = await exchange.watch_orders(SPOT)
    assert watched["id"] == order["id"]
    assert here.ledger.position(hold.position_id).updated_at > hold.updated_at


async def test_order_when_nobody_used_the_portfolio_yet_then_it_is_granted(at: Open) -> None:
    here = at()
    here.open(portfolio="new").create_order(SPOT, "market", "buy", 0.001)
    assert here.ledger.exposure("new").open == 50


# --- a restart ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("venue", VENUES)
async def test_restart_when_orders_were_out_then_what_became_of_them_is_asked_for(at: Open, venue: str) -> None:
    here = at(venue)
    first = here.open()
    here.control.fills(at_once=False)
    first.create_order(SPOT, "limit", "buy", 0.004, 50000)
    first.create_order(SPOT, "limit", "buy", 0.006, 40000)
    assert here.figures() == (440, 0)
    here.control.fill(here.orders[0].id)
    here.open().catch_up()
    assert here.figures() == (240, 200)


async def test_restart_when_a_close_was_not_told_then_it_is_found_among_the_recent_orders(at: Open) -> None:
    here = at()
    first = here.open()
    first.create_order(SPOT, "market", "buy", 0.01)
    here.control.fills(at_once=False)
    first.create_order(SPOT, "market", "sell", 0.004)
    assert here.figures() == (0, 500)
    here.control.fills(at_once=True)
    for _ in range(2):
        here.open().catch_up()
        assert here.figures() == (0, 300), "it is told once"


async def test_wish_when_it_is_asked_again_after_a_restart_then_it_gets_its_order(at: Open) -> None:
    here = at()
    wish = {"wish": "20260101T08/BTC"}
    first = here.open().create_order(SPOT, "market", "buy", 0.01, None, wish)
    here.control.price("BTC", D(50100))
    again = here.open().create_order(SPOT, "market", "buy", 0.01, None, wish)
    assert again["id"] == first["id"]
    assert len(here.orders) == 1
    assert here.figures() == (0, 500)


async def test_close_when_its_wish_is_asked_again_after_a_restart_then_it_is_told_once(at: Open) -> None:
    here = at()
    here.open().create_order(SPOT, "market", "buy", 0.01)
    wish = {"wish": "20260101T16/BTC/exit"}
    for _ in range(2):
        here.open().create_order(SPOT, "market", "sell", 0.004, None, wish)
        assert here.figures() == (0, 300)
    assert len(here.orders) == 2


async def test_order_when_it_was_found_and_rests_then_the_same_call_is_another_order(at: Open) -> None:
    here = at()
    exchange = here.open(window_seconds=60)
    exchange.load_markets()
    here.control.fault("lost_answer", "order/create", seconds=0.05)
    for number in (1, 2):
        exchange.create_order(SPOT, "limit", "buy", 0.005, 40000)
        assert len(here.orders) == number
    assert here.figures() == (400, 0)


async def test_settle_when_the_account_changed_by_hand_then_the_ledger_follows(at: Open) -> None:
    here = at()
    exchange = here.open()
    exchange.create_order(SPOT, "market", "buy", 0.01)
    exchange.create_order(PERP, "market", "sell", 0.005)
    here.control.close(PERP, D("0.002"))
    here.control.deposit("BTC", D("-0.01"))
    exchange.settle()
    assert here.figures() == (0, 150)
    assert exchange.settle() == []


# --- what is asked -----------------------------------------------------------------------------------------------


async def test_order_when_contracts_have_a_size_and_a_factor_then_coins_and_dollars_are_right(at: Open) -> None:
    okx, bybit = at("okx"), at("bybit")
    okx.open().create_order(PERP, "limit", "buy", 1, 40000)
    (hold,) = okx.ledger.positions(state="held", tags={"venue": "okx"})
    assert (hold.quantity, hold.held) == (D("0.01"), 400)
    bybit.open().create_order("1000PEPE/USDT:USDT", "market", "buy", 1000)
    (position,) = okx.ledger.positions(state="open", tags={"venue": "bybit"})
    assert (position.quantity, position.price, position.open) == (1_000_000, D("0.00001"), 10)


async def test_short_when_its_limit_is_below_the_market_then_it_is_held_at_the_markets_price(at: Open) -> None:
    here = at()
    with pytest.raises(OrderDenied):
        here.open().create_order(PERP, "limit", "sell", 0.03, 30000)
    assert here.orders == []


@pytest.mark.parametrize("face", FACES)
async def test_market_buy_when_it_is_given_its_cost_then_the_cost_is_held(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    with pytest.raises(OrderDenied):
        await done(exchange.create_market_buy_order_with_cost(SPOT, 1001))
    await done(exchange.createMarketBuyOrderWithCost(SPOT, 100))
    assert here.figures() == (0, 100)


async def test_order_when_it_closes_and_opens_then_it_is_refused_with_the_cure(at: Open) -> None:
    here = at()
    exchange = here.open()
    exchange.create_order(PERP, "market", "buy", 0.01)
    with pytest.raises(InvalidRequest, match="two orders"):
        exchange.create_order(PERP, "market", "sell", 0.015)
    assert len(here.orders) == 1


@pytest.mark.parametrize("face", FACES)
async def test_edit_when_an_order_grows_then_the_rest_is_asked_for(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    order = await done(exchange.create_order(SPOT, "limit", "buy", 0.01, 40000))
    await done(exchange.edit_order(order["id"], SPOT, "limit", "buy", 0.012, 41000))
    assert here.figures() == (492, 0)
    assert [one.state for one in here.orders] == ["canceled", "open"]


async def test_call_when_it_places_orders_by_a_way_of_its_own_then_it_is_refused(at: Open) -> None:
    exchange = at("binance").open()
    with pytest.raises(ccxt.NotSupported):
        exchange.edit_spot_order("1", SPOT, "limit", "buy", 1, 1)
    with pytest.raises(ccxt.NotSupported):
        exchange.create_orders_ws([])
    exchange.verbose = False
    assert exchange.id == "binance"


@pytest.mark.parametrize(
    ("change", "field"), [({"tags": {}}, "tags"), ({"slippage": D(2)}, "slippage"), ({"portfolio": "a b"}, "portfolio")]
)
async def test_open_when_a_setting_is_wrong_then_it_is_named(at: Open, change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        at().open(**change)
    assert error.value.field == field


def test_program_of_the_page_when_run_then_it_trades_within_the_cap(server: PaperServer, tmp_path: Path) -> None:
    program = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1]
    program = program.replace("http://127.0.0.1:8400", server.url).replace("ledger.db", f"{tmp_path}/ledger.db")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.set_cap(key="cap", cap=CAP)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == "closed"
        assert len(done.stdout.split()) == 2
        assert ledger.exposure().open == 250


def test_client_order_id_when_made_then_it_keeps_every_exchanges_rules() -> None:
    made = client_order_id("okx", "main", "20260101T08/BTC", owner="bot=a")
    assert made == client_order_id("okx", "main", "20260101T08/BTC", owner="bot=a")
    assert made != client_order_id("okx", "main", "20260101T16/BTC", owner="bot=a")
    assert len(made) == 32
    assert made.isalnum()
    assert len(client_order_id("gate", "a")) == 28
    assert int(client_order_id("dydx", "a")) < 2**32
    assert int(client_order_id("woo", "a")) < 2**63
