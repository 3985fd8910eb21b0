"""Runs an example bot, kills it at each step, and starts it again: `python -m tests.support.killed_bot URL PAPER NAME`.

A step is the moment before a call to the ledger, or before one to an exchange about an order. Each life is a process
of its own that is killed with SIGKILL. The bot that is killed at step n trades in the portfolio `p<n>` and with the
account `p<n>` of each paper venue; its second life finds other prices. NAME: `spot_perp` or `perp_perp`. Prints a
line of JSON for each step.

BTC is entered and left, of ETH the second leg is refused, SOL stays open, and XRP finds no money.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import hedge_bot  # type: ignore[import-not-found]  # noqa: E402
import running  # type: ignore[import-not-found]  # noqa: E402

from ledger_sizer import AppSettings, Ledger, LedgerSettings  # noqa: E402
from ledger_sizer.client import AsyncLedgerClient  # noqa: E402
from ledger_sizer.paper import PaperControl  # noqa: E402
from tests.support.programs import say  # noqa: E402

hedge_bot.LOOK_SECONDS = 0.02

CAP_USD = Decimal(602)
"""Two positions leave less of it than the smallest order of a third costs."""
COINS = ("BTC", "ETH", "SOL", "XRP")
VENUES = {"spot_perp": ("bybit",), "perp_perp": ("bybit", "binance")}
PAYING = {"spot_perp": "bybit", "perp_perp": "binance"}
LOOKS = ("fetch_open_orders", "fetch_canceled_and_closed_orders", "fetch_order", "create_order")
PAYS = Decimal("0.0003")


def settings() -> Any:
    """Return the settings of the ledger."""
    return AppSettings(ledger=LedgerSettings(client="bot"))


class Stepping:
    """Calls the methods of a ledger, with a step before each."""

    def __init__(self, of: Any, step: Callable[[], None]) -> None:
        self._of, self._step = of, step

    def __getattr__(self, name: str) -> Any:
        return stepping(getattr(self._of, name), self._step)


def stepping(call: Any, step: Callable[[], None]) -> Any:
    """Return the call with a step before it."""

    async def stepped(*arguments: Any, **named: Any) -> Any:
        step()
        answer = call(*arguments, **named)
        return await answer if inspect.isawaitable(answer) else answer

    return stepped


class Bot(hedge_bot.HedgeBot):  # type: ignore[misc]
    """The example's bot with funding rates of the test's own. cycle: counts from 1."""

    cycle = 1
    paying = ""

    async def rate(self, venue: str, symbol: str) -> Decimal:
        """Pay for all coins in the first cycle, and for all but BTC in the second."""
        place = COINS.index(symbol.partition("/")[0])
        pays = venue == self.paying and (place > 0 or self.cycle == 1)
        return PAYS * (9 - place) if pays else Decimal(0)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """Open a ledger in this process, or a client of a service."""
    if url.startswith("http"):
        async with AsyncLedgerClient(url) as client:
            yield client
    else:
        with Ledger.open(url, settings=settings()) as ledger:
            yield ledger


async def exchange_at(venue: str, paper: str, name: str, life: int, step: Callable[[], None]) -> Any:
    """Open the exchange with this account. Of ETH it refuses to sell perpetuals."""
    exchange = await running.open_exchange(venue, paper)
    exchange.apiKey = name
    placed, quoted = exchange.create_order, exchange.fetch_ticker

    async def create_order(symbol: str, kind: str, side: str, amount: str, price: Any, params: dict[str, Any]) -> Any:
        if symbol == "ETH/USDT:USDT" and side == "sell" and "reduceOnly" not in params:
            raise ccxt.InsufficientFunds("refused by the test")
        return await placed(symbol, kind, side, amount, price, params)

    async def fetch_ticker(symbol: str) -> Any:
        ticker = await quoted(symbol)
        return {**ticker, "last": str(Decimal(ticker["last"]) * (Decimal(1) - Decimal("0.003") * (life - 1)))}

    exchange.create_order, exchange.fetch_ticker = create_order, fetch_ticker
    for method in LOOKS:
        setattr(exchange, method, stepping(getattr(exchange, method), step))
    return exchange


async def live(url: str, paper: str, shape: str, name: str, life: int, kill_at: int) -> None:
    """Trade two cycles, or until the step at which the process is killed; 0: not at all."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    example = importlib.import_module(shape)
    async with opened(url) as ledger:
        exchanges = {venue: await exchange_at(venue, paper, name, life, step) for venue in VENUES[shape]}
        bot = Bot(Stepping(ledger, step), exchanges, {"bot": "a"}, 0.05, name)
        bot.paying = PAYING[shape]
        try:
            for bot.cycle in (1, 2):
                look = running.Look([*VENUES[shape]], [*COINS], Decimal(300), "p1")
                await example.cycle(bot, look)
        finally:
            for exchange in exchanges.values():
                await exchange.close()


def run(url: str, paper: str, shape: str, name: str, life: int, kill_at: int) -> int:
    """Run one life in a process of its own. Return how it ended: 0, or the signal below zero."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException), contextlib.redirect_stdout(sys.stderr):
            asyncio.run(live(url, paper, shape, name, life, kill_at))
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill the bot at each step until a life has fewer steps than that."""
    url, paper, shape = sys.argv[1:4]
    kill_at, first = 0, -signal.SIGKILL
    while first == -signal.SIGKILL:
        kill_at += 1
        name = f"p{kill_at}"
        for venue in VENUES[shape]:
            PaperControl(paper, venue, name).open_account(balances={"USDT": Decimal(100_000)})
        asyncio.run(_capped(url, name))
        first = run(url, paper, shape, name, 1, kill_at)
        second = run(url, paper, shape, name, 2, 0)
        say(name=name, first=first, second=second)


async def _capped(url: str, name: str) -> None:
    async with opened(url) as ledger:
        await ledger.set_cap_async(key="cap", portfolio=name, cap=CAP_USD)


if __name__ == "__main__":
    main()
