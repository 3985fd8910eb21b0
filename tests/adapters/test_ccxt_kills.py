"""`DeskExchange` dies before and after each of its calls; a new one makes the ledger equal to the exchange."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from ledger_sizer import Ledger
from ledger_sizer.adapters.ccxt import DeskExchange
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.paper_clients import PERP, SPOT, trader_at

pytestmark = pytest.mark.one_engine

D = Decimal
WATCHED = {
    "create_order", "cancel_order", "fetch_order", "fetch_open_orders", "fetch_canceled_and_closed_orders",
    "reserve", "fill", "release", "lookup", "position", "positions", "decision", "extend",
}  # fmt: skip


class Killed(BaseException):
    """The process died here."""


class Mortal:
    """Passes calls on, and dies at one of them: before it is carried out, or before its answer is read."""

    def __init__(self, of: Any, life: Iterator[int], dies_at: int, *, after: bool) -> None:
        self.__dict__.update(_of=of, _life=life, _dies_at=dies_at, _after=after)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if name not in WATCHED:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            dies = next(self._life) == self._dies_at
            if dies and not self._after:
                raise Killed
            answer = found(*args, **kwargs)
            if dies:
                raise Killed
            return answer

        return call

    def create_order(self, *args: Any, **kwargs: Any) -> Any:
        """Place an order; also looked up on the class."""
        return self.__getattr__("create_order")(*args, **kwargs)


def trade(exchange: DeskExchange) -> None:
    """Open and close in both markets, leave one order resting and cancel another."""
    exchange.create_order(SPOT, "market", "buy", 0.01)
    exchange.create_order(PERP, "market", "sell", 0.006)
    exchange.create_order(SPOT, "limit", "buy", 0.002, 40000)
    exchange.create_order(SPOT, "market", "sell", 0.004)
    order = exchange.create_order(SPOT, "limit", "buy", 0.003, 41000)
    exchange.create_order(PERP, "market", "buy", 0.002)
    exchange.cancel_order(order["id"], SPOT)


def require_equal(ledger: Ledger, portfolio: str, venue: Any) -> None:
    """Check that the ledger has open what the account has, and holds what rests there."""
    account = venue.accounts[portfolio]
    spot = D(account.wallets["spot"].get("BTC", 0))
    perp = sum((-position.quantity for position in account.positions.values()), D(0))
    resting = sum((order.quantity * order.price for order in account.orders.values() if order.state == "open"), D(0))
    exposure = ledger.exposure(portfolio)
    assert (exposure.held, exposure.open) == (resting, (spot + perp) * 50_000), portfolio


@pytest.mark.parametrize("after", [False, True])
def test_restart_when_killed_at_any_call_then_the_ledger_equals_the_exchange(database_url: str, after: bool) -> None:
    with PaperServer() as server, Ledger.open(database_url) as ledger:
        venue = server.venues.dialects["bybit"].exchange
        client = trader_at("bybit", server.url)
        client.load_markets()
        lived = False
        for dies_at in count(1):
            client.apiKey = name = f"p{dies_at}"
            PaperControl(server.url, "bybit", name).open_account()
            ledger.set_cap(key="cap", portfolio=name, cap=D(2000))
            life = count(1)
            mortals = [Mortal(one, life, dies_at, after=after) for one in (client, ledger)]
            options: dict[str, Any] = {"tags": {"bot": "a"}, "portfolio": name, "slippage": D(0), "window_seconds": 0}
            try:
                trade(DeskExchange(*mortals, **options))
                lived = True
            except Killed:
                pass
            for _ in range(2):
                DeskExchange(client, ledger, **options).catch_up()
                require_equal(ledger, name, venue)
            if lived:
                break
        assert dies_at > 25
        assert ledger.verify().ok
