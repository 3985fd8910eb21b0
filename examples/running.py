"""Runs the examples: their arguments, the ledger and the exchanges (paper or real), and the loop of cycles."""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any, NamedTuple

import ccxt.async_support
from hedge_bot import HedgeBot, note

from ledger_sizer import Ledger, LedgerError
from ledger_sizer.client import AsyncLedgerClient
from ledger_sizer.paper import ccxt_config
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_PASSPHRASE, DEFAULT_SECRET


class Look(NamedTuple):
    """What one cycle looks at. usd: asked for a position. period: a coin is entered once in it."""

    venues: list[str]
    coins: list[str]
    usd: Decimal
    period: str


Cycle = Callable[[HedgeBot, Look], Awaitable[None]]


def run(cycle: Cycle, about: str | None, *, strategy: str, venues: str) -> None:
    """Read the arguments and trade until the cycles are over. Open positions stay open, for the next run."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", default=f"sqlite:///{strategy}.db", help="database URL, or address of the service")
    parser.add_argument("--bot", default="a", help="its name: its positions have it as a tag (a)")
    parser.add_argument("--venues", default=venues, help=f"ccxt's names, joined by commas ({venues})")
    parser.add_argument("--coins", default="BTC,ETH,SOL", help="what it trades (BTC,ETH,SOL)")
    parser.add_argument("--usd", default="300", help="asked for a position, USD (300)")
    parser.add_argument("--paper", help="address of the paper venue, such as http://127.0.0.1:8400; real money without")
    parser.add_argument("--cycles", type=int, default=0, help="looks at the rates until it ends; 0: for ever (0)")
    parser.add_argument("--seconds", type=float, default=60, help="from one look to the next (60)")
    parser.add_argument("--period", type=float, default=8 * 3600, help="a coin is entered once in it, s (28800)")
    parser.add_argument("--window", type=float, default=10, help="how long an exchange may take a sent order, s (10)")
    asyncio.run(_trade(cycle, strategy, parser.parse_args()))


async def _trade(cycle: Cycle, strategy: str, given: argparse.Namespace) -> None:
    venues = given.venues.split(",")
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(given.ledger))
        exchanges = {}
        for venue in venues:
            exchanges[venue] = await open_exchange(venue, given.paper)
            stack.push_async_callback(exchanges[venue].close)
        bot = HedgeBot(ledger, exchanges, {"strategy": strategy, "bot": given.bot}, given.window)
        done = 0
        while not given.cycles or done < given.cycles:
            period = f"{given.period:g}s-{int(time.time() // given.period)}"
            try:
                await cycle(bot, Look(venues, given.coins.split(","), Decimal(given.usd), period))
            except (ccxt.BaseError, LedgerError, OSError, RuntimeError) as error:
                # What was begun is in the ledger, and the next cycle resumes it. A URL's query has a signature.
                note(type(error).__name__, str(error).partition("?")[0][:200])
            done += 1
            await asyncio.sleep(given.seconds)


def open_ledger(where: str) -> Any:
    """Open a ledger in this process, or a client of the service. A bot's API key is LEDGER_SIZER_API_KEY."""
    if where.startswith("http"):
        return AsyncLedgerClient(where, api_key=os.environ.get("LEDGER_SIZER_API_KEY"))
    return Ledger.open(where)


async def open_exchange(venue: str, paper_url: str | None) -> Any:
    """Open a ccxt exchange at the paper venue; None: the real one, with BYBIT_API_KEY, BYBIT_API_SECRET and so on."""
    if paper_url is not None:
        keys = {"apiKey": DEFAULT_KEY, "secret": DEFAULT_SECRET, "password": DEFAULT_PASSPHRASE}
        exchange = getattr(ccxt.async_support, venue)({**ccxt_config(venue, paper_url), **keys})  # type: ignore[arg-type]
    else:
        names = {"apiKey": "API_KEY", "secret": "API_SECRET", "password": "API_PASSWORD"}
        keys = {name: os.environ.get(f"{venue.upper()}_{end}", "") for name, end in names.items()}
        exchange = getattr(ccxt.async_support, venue)(keys)
    exchange.number = str  # exact figures, no floats
    await exchange.load_markets()
    return exchange
