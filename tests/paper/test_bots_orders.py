"""Tests a bot's orders at the paper venue through the real ccxt, sync and async, pointed at it by `ccxt_config`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import ccxt
import ccxt.async_support
import pytest

from ledger_sizer.paper import PaperControl, PaperServer, ccxt_config
from ledger_sizer.paper.control import DEFAULT_PASSPHRASE, DEFAULT_SECRET
from tests.support.paper_clients import PERP, SPOT, VENUES

D = Decimal
KNOWN = {"acknowledged": True}
"""Bybit asks the caller of `fetch_order` to know that it finds the newest 500 orders only."""


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        yield running


@pytest.fixture(params=VENUES)
def control(server: PaperServer, request: pytest.FixtureRequest) -> Iterator[PaperControl]:
    control = PaperControl(server.url, request.param, f"key-{request.node.name}")
    control.open_account()
    yield control
    control.price("BTC", D(50_000))
    control.fills(at_once=True)
    control.clear_faults()


def bot_at(module: Any, server: PaperServer, control: PaperControl) -> Any:
    """Return a ccxt client as a bot makes one, floats and all."""
    credentials = {"apiKey": control.api_key, "secret": DEFAULT_SECRET, "password": DEFAULT_PASSPHRASE}
    return getattr(module, control.venue)({**credentials, **ccxt_config(control.venue, server.url)})


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """Return a client of each venue with its markets, filled as they are needed."""
    return {}


@pytest.fixture
def bot(server: PaperServer, control: PaperControl, loaded: dict[str, Any]) -> Any:
    client = bot_at(ccxt, server, control)
    if control.venue not in loaded:
        client.load_markets()
        loaded[control.venue] = client
    client.set_markets_from_exchange(loaded[control.venue])
    return client


@pytest.fixture(params=[SPOT, PERP])
def symbol(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def amount_of(bot: Any, symbol: str, quantity: float) -> float:
    """Convert coins to what the bot orders."""
    return float(bot.amount_to_precision(symbol, quantity / (bot.market(symbol)["contractSize"] or 1)))


def state(control: PaperControl) -> dict[str, Any]:
    found: dict[str, Any] = control.state()["accounts"][control.api_key]
    return found


def by_client_id(bot: Any, symbol: str, name: str) -> dict[str, Any]:
    """Fetch an order by the client's own id, as each exchange wants to be asked."""
    parameters = {"orderLinkId": name} if bot.id == "bybit" else {"clientOrderId": name}
    order: dict[str, Any] = bot.fetch_order("", symbol, {**KNOWN, **parameters})
    return order


def test_limit_order_when_it_rests_is_partly_filled_and_cancelled_then_every_list_and_both_ids_tell_it(
    bot: Any, control: PaperControl, symbol: str
) -> None:
    whole, half = amount_of(bot, symbol, 0.02), amount_of(bot, symbol, 0.01)
    placed = bot.create_order(symbol, "limit", "buy", whole, 48_000, {"clientOrderId": "mine1"})
    assert [order["id"] for order in bot.fetch_open_orders(symbol)] == [placed["id"]]
    control.fill(placed["id"], D("0.01"))
    fetched = bot.fetch_order(placed["id"], symbol, KNOWN)
    assert (fetched["status"], fetched["filled"], fetched["average"]) == ("open", half, 48_000)
    assert by_client_id(bot, symbol, "mine1")["id"] == placed["id"]
    bot.cancel_order(placed["id"], symbol)
    assert bot.fetch_open_orders(symbol) == []
    ended = by_client_id(bot, symbol, "mine1")
    assert (ended["status"], ended["filled"]) == ("canceled", half)
    assert [order["id"] for order in bot.fetch_canceled_orders(symbol)] == [placed["id"]]
    trades = bot.fetch_my_trades(symbol)
    assert [(trade["order"], trade["amount"], trade["price"]) for trade in trades] == [(placed["id"], half, 48_000)]
    with pytest.raises(ccxt.OrderNotFound):
        bot.cancel_order(placed["id"], symbol)
    with pytest.raises(ValueError, match="canceled"):
        control.fill(placed["id"])


def test_order_when_the_answer_is_lost_then_the_client_order_id_finds_it(
    bot: Any, control: PaperControl, symbol: str
) -> None:
    control.fault("lost_answer", "order", seconds=0.05, method="POST")
    with pytest.raises(ccxt.NetworkError):
        bot.create_order(symbol, "market", "buy", amount_of(bot, symbol, 0.02), None, {"clientOrderId": "lost1"})
    found = by_client_id(bot, symbol, "lost1")
    assert (found["status"], found["filled"]) == ("closed", amount_of(bot, symbol, 0.02))
    assert [order["id"] for order in bot.fetch_closed_orders(symbol)] == [found["id"]]
    assert sum(trade["amount"] for trade in bot.fetch_my_trades(symbol)) == found["filled"]
    with pytest.raises(ccxt.OrderNotFound):
        by_client_id(bot, symbol, "never")


def stop_of(bot: Any, order: dict[str, Any], symbol: str) -> dict[str, Any]:
    found: dict[str, Any] = bot.fetch_order(order["id"], symbol, {**KNOWN, "stop": True})
    return found


@pytest.mark.parametrize("kind", ["market", "limit"])
def test_stop_loss_on_exchange_when_the_price_falls_then_it_sells(
    bot: Any, control: PaperControl, symbol: str, kind: str
) -> None:
    amount = amount_of(bot, symbol, 0.02)
    bot.create_order(symbol, "market", "buy", amount)
    parameters = {"stopLossPrice": 47_000, **({"reduceOnly": True} if symbol == PERP else {})}
    limit = 46_000 if kind == "limit" else None
    stop = bot.create_order(symbol, kind, "sell", amount, limit, parameters)
    assert stop_of(bot, stop, symbol)["status"] == "open"
    control.price("BTC", D(47_500))
    assert [order["trigger"] for order in state(control)["orders"]] == ["47000"]
    control.price("BTC", D(46_500))
    assert stop_of(bot, stop, symbol)["status"] == "closed"
    assert state(control)["positions"] == []
    assert [trade["side"] for trade in bot.fetch_my_trades(symbol)] == ["buy", "sell"]


def test_stop_loss_on_exchange_when_it_is_cancelled_or_too_high_then_nothing_is_sold(
    bot: Any, control: PaperControl, symbol: str
) -> None:
    amount = amount_of(bot, symbol, 0.02)
    bot.create_order(symbol, "market", "buy", amount)
    parameters = {"reduceOnly": True} if symbol == PERP else {}
    with pytest.raises(ccxt.ExchangeError):
        bot.create_order(symbol, "market", "sell", amount, None, {"stopLossPrice": 51_000, **parameters})
    stop = bot.create_order(symbol, "market", "sell", amount, None, {"stopLossPrice": 47_000, **parameters})
    bot.cancel_order(stop["id"], symbol, {"stop": True})
    control.price("BTC", D(40_000))
    assert stop_of(bot, stop, symbol)["status"] == "canceled"
    assert [trade["side"] for trade in bot.fetch_my_trades(symbol)] == ["buy"]


def test_reduce_only_orders_when_the_position_is_closed_before_then_they_end_unfilled(
    bot: Any, control: PaperControl
) -> None:
    amount, half = amount_of(bot, PERP, 0.02), amount_of(bot, PERP, 0.01)
    bot.create_order(PERP, "market", "buy", amount)
    bot.create_order(PERP, "market", "sell", amount, None, {"stopLossPrice": 47_000, "reduceOnly": True})
    exit_order = bot.create_order(PERP, "limit", "sell", amount, 52_000, {"reduceOnly": True})
    bot.create_order(PERP, "market", "sell", half, None, {"reduceOnly": True})
    control.price("BTC", D(53_000))
    assert bot.fetch_order(exit_order["id"], PERP, KNOWN)["filled"] == half, "what was left, and no short position"
    assert state(control)["positions"] == []
    control.price("BTC", D(40_000))
    assert (state(control)["positions"], state(control)["open_orders"]) == ([], [])


def test_fills_when_only_limit_buys_are_held_back_then_others_fill_and_the_next_can_be_refused(
    bot: Any, control: PaperControl, symbol: str
) -> None:
    amount = amount_of(bot, symbol, 0.02)
    control.fills(at_once=False, kind="limit", side="buy", symbol=symbol)
    bot.create_order(symbol, "market", "buy", amount)
    waiting = bot.create_order(symbol, "limit", "buy", amount, 50_000)
    assert [order["id"] for order in bot.fetch_open_orders(symbol)] == [waiting["id"]]
    bot.create_order(symbol, "limit", "sell", amount, 50_000)
    control.cancel(waiting["id"])
    assert bot.fetch_order(waiting["id"], symbol, KNOWN)["status"] == "canceled"
    control.reject("insufficient")
    with pytest.raises(ccxt.InsufficientFunds):
        bot.create_order(symbol, "market", "buy", amount)
    bot.create_order(symbol, "market", "buy", amount)
    assert [trade["side"] for trade in bot.fetch_my_trades(symbol)] == ["buy", "sell", "buy"]


@pytest.mark.parametrize(
    ("in_force", "price", "filled"), [("IOC", 48_000, 0), ("IOC", 50_000, 1), ("FOK", 48_000, 0), ("PO", 50_000, 0)]
)
def test_limit_order_when_it_may_not_rest_or_not_take_then_it_ends_at_once(
    bot: Any, control: PaperControl, symbol: str, in_force: str, price: float, filled: int
) -> None:
    amount = amount_of(bot, symbol, 0.02)
    order = bot.create_order(symbol, "limit", "buy", amount, price, {"timeInForce": in_force})
    ended = bot.fetch_order(order["id"], symbol, KNOWN)
    assert ended["status"] in (("closed",) if filled else ("canceled", "expired"))
    assert ended["filled"] == filled * amount
    assert state(control)["open_orders"] == []


def test_order_when_it_is_edited_then_it_fills_at_the_new_limit(bot: Any, control: PaperControl, symbol: str) -> None:
    amount = amount_of(bot, symbol, 0.02)
    order = bot.create_order(symbol, "limit", "buy", amount, 45_000)
    bot.edit_order(order["id"], symbol, "limit", "buy", amount, 48_000)
    control.price("BTC", D(47_000))
    assert [trade["price"] for trade in bot.fetch_my_trades(symbol)] == [47_000]
    assert state(control)["open_orders"] == []


def test_leverage_when_it_is_set_with_isolated_margin_then_the_position_has_both(
    bot: Any, control: PaperControl
) -> None:
    bot.set_margin_mode("isolated", PERP, {} if bot.id != "okx" else {"lever": 5})
    bot.set_leverage(5, PERP, {} if bot.id != "okx" else {"mgnMode": "isolated"})
    leverage = bot.fetch_leverage(PERP, {} if bot.id != "okx" else {"marginMode": "isolated"})
    assert leverage["longLeverage"] == 5
    parameters = {"tdMode": "isolated"} if bot.id == "okx" else {}
    bot.create_order(PERP, "market", "buy", amount_of(bot, PERP, 0.02), None, parameters)
    assert state(control)["positions"] == [
        {"symbol": PERP, "slot": "net", "quantity": "0.02", "entry_price": "50000", "margin": "isolated"}
    ]  # fmt: skip
    (position,) = bot.fetch_positions([PERP])
    assert (position["side"], position["initialMargin"]) == ("long", 200)
    assert position["liquidationPrice"] == 40_250
    reduce = {"reduceOnly": True, **parameters}
    bot.create_order(PERP, "market", "sell", amount_of(bot, PERP, 0.02), None, reduce)
    assert state(control)["positions"] == []


def test_position_mode_when_it_is_switched_then_hedged_orders_work_and_a_switch_with_a_position_is_refused(
    bot: Any, control: PaperControl
) -> None:
    bot.set_position_mode(True, PERP)
    if bot.id != "bybit":
        assert bot.fetch_position_mode(PERP)["hedged"] is True
    bot.create_order(PERP, "market", "sell", amount_of(bot, PERP, 0.02), None, {"hedged": True})
    assert [row["slot"] for row in state(control)["positions"]] == ["short"]
    with pytest.raises(ccxt.ExchangeError):
        bot.set_position_mode(False, PERP)


def test_async_client_when_a_bot_trades_with_it_then_it_works_as_the_sync_one(
    server: PaperServer, control: PaperControl, symbol: str
) -> None:
    async def trade() -> tuple[Any, ...]:
        client = bot_at(ccxt.async_support, server, control)
        try:
            await client.load_markets()
            amount = amount_of(client, symbol, 0.02)
            order = await client.create_order(symbol, "limit", "buy", amount, 50_000)
            ended, ticker, candles, balance = await asyncio.gather(
                client.fetch_order(order["id"], symbol, KNOWN), client.fetch_ticker(symbol),
                client.fetch_ohlcv(symbol, "5m", limit=2), client.fetch_balance(),
            )  # fmt: skip
            return ended["status"], ended["filled"] == amount, ticker["last"], len(candles), "USDT" in balance["total"]
        finally:
            await client.close()

    assert asyncio.run(trade()) == ("closed", True, 50_000, 2, True)


def test_funding_when_it_was_paid_then_the_history_of_payments_tells_it(bot: Any, control: PaperControl) -> None:
    control.funding(PERP, D("-0.75"))
    control.funding("ETH/USDT:USDT", D(2))
    since = bot.milliseconds() - 60_000
    # ccxt hands on Bybit's fee, which is above 0 when it was paid.
    amount = 0.75 if bot.id == "bybit" else -0.75
    assert [(one["symbol"], one["amount"]) for one in bot.fetch_funding_history(PERP, since)] == [(PERP, amount)]


def test_orders_when_several_are_placed_and_cancelled_in_one_call_then_each_has_its_own_answer(
    bot: Any, control: PaperControl
) -> None:
    amount = amount_of(bot, PERP, 0.02)
    order = {"symbol": PERP, "type": "limit", "side": "buy", "price": 45_000}
    answers = bot.create_orders([{**order, "amount": amount}, {**order, "amount": amount * 100_000_000}])
    (placed,) = state(control)["orders"]
    assert {answer["status"] for answer in answers if answer["id"] != placed["id"]} == {"rejected"}
    assert len(answers) == 2
    bot.cancel_orders([placed["id"]], PERP)
    assert state(control)["orders"] == []


def test_transfer_when_a_bot_moves_money_then_the_other_wallet_has_it(bot: Any, control: PaperControl) -> None:
    trading = "unified" if bot.id == "bybit" else "spot"
    bot.transfer("USDT", 1_000, trading, "funding")
    assert D(state(control)["wallets"]["spot"]["USDT"]) == 99_000
    assert D(state(control)["wallets"]["funding"]["USDT"]) == 1_000
    with pytest.raises(ccxt.ExchangeError):
        bot.transfer("USDT", 5_000, "funding", trading)


def test_order_when_it_carries_a_stop_loss_of_its_own_then_it_is_refused(bot: Any, control: PaperControl) -> None:
    if bot.id == "binance":
        pytest.skip("Binance's orders carry none")
    with pytest.raises(ccxt.ExchangeError):
        bot.create_order(
            PERP, "limit", "buy", amount_of(bot, PERP, 0.02), 45_000, {"stopLoss": {"triggerPrice": 40_000}}
        )
    assert state(control)["orders"] == []
