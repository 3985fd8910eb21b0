"""A ccxt exchange under a desk, sync and async, at a paper venue."""

from __future__ import annotations

import contextlib
import inspect
from decimal import Decimal
from typing import Any

from ledger_sizer import Ledger
from ledger_sizer.adapters.ccxt import DeskExchange
from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.paper.control import DEFAULT_KEY
from tests.support.paper_clients import async_trader_at, trader_at

CAP = Decimal(1000)
FACES = ("sync", "async")


class At:
    """A venue of a server, with exchanges of both faces there."""

    def __init__(self, server: PaperServer, venue: str, ledger: Ledger, stack: contextlib.AsyncExitStack) -> None:
        self.venue, self.url, self.ledger, self._stack = venue, server.url, ledger, stack
        self._account = server.venues.dialects[venue].exchange.accounts[DEFAULT_KEY]
        self.control = PaperControl(server.url, venue)

    def open(self, face: str = "sync", ledger: Any = None, **more: Any) -> Any:
        """Open an exchange under a desk; without slippage and with no window, unless given."""
        client = (async_trader_at if face == "async" else trader_at)(self.venue, self.url)
        if face == "async":
            self._stack.push_async_callback(client.close)
        options = {"tags": {"bot": "a"}, "slippage": Decimal(0), "window_seconds": 0.0, **more}
        return DeskExchange(client, self.ledger if ledger is None else ledger, **options)

    @property
    def orders(self) -> list[Any]:
        """The orders that the venue took, oldest first."""
        return list(self._account.orders.values())

    def figures(self) -> tuple[Decimal, Decimal]:
        """Return what is held and what is open, USD."""
        whole = self.ledger.exposure().whole
        return whole.held, whole.open


async def done(answer: Any) -> Any:
    """Return the answer of either face."""
    return await answer if inspect.isawaitable(answer) else answer


def amount_of(venue: str, coins: str) -> float:
    """Return what to order of the perpetual: OKX counts contracts of 0.01 BTC."""
    return float(Decimal(coins) * 100) if venue == "okx" else float(coins)
