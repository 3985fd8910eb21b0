"""Tests `DeskExchange` on the real ccxt clients, sync and async, at the paper venues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import ccxt
import pytest

from ledger_sizer import Denied, Unavailable
from ledger_sizer.adapters import ccxt_records
from ledger_sizer.adapters.ccxt import DeskUnavailable, FateUnknown, OrderDenied
from ledger_sizer.client import LedgerClient, RetryPolicy
from tests.support.ccxt_desks import FACES, At, amount_of, done
from tests.support.paper_clients import PERP, SPOT, VENUES

pytestmark = pytest.mark.one_engine

D = Decimal
Open = Callable[..., At]


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


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, face: str) -> asyncio.Event:
    """Let the next call of a method arrive, and no answer come: Ctrl-C, or a wait that is to be cancelled."""
    arrived, real = asyncio.Event(), getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    async def waiting(*args: Any, **kwargs: Any) -> Any:
        await real(*args, **kwargs)
        arrived.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(owner, name, waiting if face == "async" else interrupted)
    return arrived


async def give_up(exchange: Any, arrived: asyncio.Event) -> None:
    """Begin to buy, and end before an answer comes, as a caller does who is cancelled or interrupted."""

    async def buy() -> None:
        task = asyncio.ensure_future(exchange.create_order(SPOT, "limit", "buy", 0.01, 40000))
        await arrived.wait()
        task.cancel()
        await task

    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        await buy()


@pytest.mark.parametrize("face", FACES)
async def test_order_when_its_caller_is_cancelled_then_a_repeat_sends_no_second(
    at: Open, face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at()
    exchange = here.open(face)
    await done(exchange.load_markets())
    with monkeypatch.context() as patch:
        await give_up(exchange, interrupt(patch, exchange._exchange, "create_order", face))
    assert (len(here.orders), here.figures()) == (1, (400, 0))
    order = await done(exchange.create_order(SPOT, "limit", "buy", 0.01, 40000))
    assert [one.id for one in here.orders] == [order["id"]]
    assert here.figures() == (400, 0)


@pytest.mark.parametrize("face", FACES)
async def test_order_when_its_caller_is_cancelled_while_it_reserves_then_nothing_is_sent_and_the_hold_is_freed(
    at: Open, face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at()
    exchange = here.open(face)
    await done(exchange.load_markets())
    method = "reserve_async" if face == "async" else "reserve"
    with monkeypatch.context() as patch:
        await give_up(exchange, interrupt(patch, here.ledger, method, face))
    assert (here.orders, here.figures()) == ([], (400, 0))
    await done(exchange.catch_up())
    assert here.figures() == (0, 0)


async def test_close_when_the_ledger_is_away_and_a_row_has_no_contracts_then_the_others_are_read(
    at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at()
    with LedgerClient("http://127.0.0.1:9", patience=RetryPolicy(attempts_max=1)) as away:
        exchange = here.open(ledger=away)
        here.open().create_order(PERP, "market", "buy", 0.01)
        rows = exchange.fetch_positions([PERP])
        monkeypatch.setattr(exchange._exchange, "fetch_positions", lambda *_: [{**rows[0], "contracts": None}, *rows])
        exchange.create_order(PERP, "market", "sell", 0.01)
    assert [order.side for order in here.orders] == ["buy", "sell"]


async def test_order_when_ccxt_sends_it_twice_then_the_refused_duplicate_is_no_refusal(at: Open) -> None:
    here = at()
    exchange = here.open()
    exchange.load_markets()
    exchange.options["maxRetriesOnFailure"] = 1
    here.control.fault("lost_answer", "order/create", seconds=0.05)
    order = exchange.create_order(SPOT, "market", "buy", 0.01)
    assert order["id"] == here.orders[0].id
    assert here.figures() == (0, 500)


@pytest.mark.parametrize("face", FACES)
async def test_order_when_refused_while_another_error_is_handled_then_it_is_a_refusal(at: Open, face: str) -> None:
    here = at()
    exchange = here.open(face)
    try:
        raise ccxt.RequestTimeout("of something else")
    except ccxt.RequestTimeout:
        with pytest.raises(ccxt.InvalidOrder):
            await done(exchange.create_order(SPOT, "limit", "buy", 0.00002, 50000))
    assert here.figures() == (0, 0)


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
