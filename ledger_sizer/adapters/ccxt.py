"""`DeskExchange`: a ccxt exchange whose orders ask the ledger first. In place of the exchange, in two lines:

    from ledger_sizer.adapters.ccxt import DeskExchange
    exchange = DeskExchange(ccxt.bybit({...}), "http://127.0.0.1:8321", tags={"bot": "a"})

It takes ccxt's sync exchanges and those of `ccxt.async_support` and `ccxt.pro`, and is sync or async as they are.
"""

import asyncio
import inspect
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import ccxt
from pydantic import SecretStr

from ledger_sizer.adapters.ccxt_desk import OrderDesk
from ledger_sizer.adapters.ccxt_errors import DeskUnavailable, FateUnknown, OrderDenied, OrderEnded
from ledger_sizer.adapters.ccxt_orders import (
    Asked,
    OnExchange,
    OnLedger,
    Seen,
    Steps,
    client_order_id,
    find_steps,
    seen_of,
    unit_of,
)
from ledger_sizer.adapters.connections import client_of, open_ledger
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.tags import GivenTags, tags_of
from ledger_sizer.verbs.unknown_outcome import outcome_unknown

__all__ = [
    "DeskExchange", "DeskUnavailable", "FateUnknown", "OrderDenied", "OrderEnded", "Seen", "client_order_id",
    "find_order", "outcome_unknown", "seen_of", "unit_of",
]  # fmt: skip

PATIENCE_SECONDS = 1.0
"""How long an order waits for the service, where the ledger is given as its address."""

_READS = frozenset({
    "fetch_order", "fetch_open_order", "fetch_closed_order", "fetch_orders", "fetch_open_orders",
    "fetch_closed_orders", "fetch_canceled_orders", "fetch_canceled_and_closed_orders",
    "fetch_order_with_client_order_id", "watch_orders", "watch_orders_for_symbols",
})  # fmt: skip
"""Methods whose answers show orders; also with `_ws`."""

_PLACES_ORDERS = re.compile(r"(create|edit)_(\w+_)?orders?(_\w+)?")
_NO_ORDERS = re.compile(r"\w+_(request|from_parts|settlement_data|nonce|appendix)")
_OWN = frozenset({"_exchange", "_ledger", "_desk", "_is_async", "_closes_ledger"})


class DeskExchange:
    """A ccxt exchange whose orders ask the ledger for what they open, and tell it what filled.

    Everything else is the exchange's. An order that closes is never asked for. `create_order` takes `wish` in its
    `params`: a name of what is wanted, such as `20260101T08/BTC`. The same wish, asked again after a crash, gets the
    order that it got before. Without one, a call that is repeated after an error of unknown outcome is the same wish.
    """

    def __init__(
        self, exchange: Any, ledger: Any, *, tags: GivenTags | None = None, portfolio: str = "main",
        account: str | None = None, slippage: Decimal | float = Decimal("0.001"), window_seconds: float = 10.0,
        api_key: str | SecretStr | None = None,
    ) -> None:  # fmt: skip
        """exchange: a ccxt exchange. ledger: a `Ledger`, a client of the service, or the URL of either.

        tags: of this bot, such as `{"bot": "a"}`: under these its positions are found again, so no two bots have the
        same. Without any, `bot` is the ledger's client (`LEDGER_CLIENT`). account: its name at the
        venue, where the ledger knows several. slippage: fraction above the ticker that a market buy is held at.
        window_seconds: an order that is not found is taken to have never arrived at this age; at least as long as the
        exchange accepts a request (its receive window). api_key: of the service.
        """
        self._exchange = exchange
        is_async = self._is_async = _is_async(exchange)
        self._closes_ledger = isinstance(ledger, str)
        self._ledger = (
            open_ledger(ledger, api_key, PATIENCE_SECONDS, is_async=is_async) if isinstance(ledger, str) else ledger
        )
        if not is_async and inspect.iscoroutinefunction(getattr(self._ledger, "reserve", None)):
            raise InvalidRequest("ledger is an async client and exchange is not: give LedgerClient", field="ledger")
        bot = tags_of({"bot": client_of(ledger)} if tags is None else tags)
        if not bot:
            raise InvalidRequest("tags is empty: name the bot, such as tags={'bot': 'a'}", field="tags")
        if not 0 <= slippage < 1:
            raise InvalidRequest(f"slippage is a fraction below 1, got {slippage}", field="slippage")
        self._desk = OrderDesk(
            exchange, bot, portfolio_name(portfolio), account, Decimal(str(slippage)), window_seconds
        )

    # --- orders --------------------------------------------------------------------------------------------------

    def create_order(
        self, symbol: str, type: str, side: str, amount: Any, price: Any = None,  # noqa: A002 - ccxt's names
        params: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Place an order; what it opens is reserved first. See ccxt.

        Raises ccxt's errors, among them `OrderDenied` (an `InsufficientFunds`) where the ledger grants no money, and
        `DeskUnavailable` (an `ExchangeNotAvailable`) where it is away: then nothing was sent.
        """
        return self._carried_out(self._create("create_order", symbol, type, side, amount, price, params))

    def create_order_ws(
        self, symbol: str, type: str, side: str, amount: Any, price: Any = None,  # noqa: A002 - ccxt's names
        params: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Place an order over a WebSocket. See `create_order`."""
        return self._carried_out(self._create("create_order_ws", symbol, type, side, amount, price, params))

    def create_orders(self, orders: Iterable[Mapping[str, Any]], params: Mapping[str, Any] | None = None) -> Any:
        """Place orders one after the other, each with a hold of its own. The first error is raised."""
        return self._carried_out(self._create_all(orders, params or {}))

    def create_market_buy_order_with_cost(
        self, symbol: str, cost: Any, params: Mapping[str, Any] | None = None
    ) -> Any:  # fmt: skip
        """Buy for so much of the quote currency."""
        asked = Asked(symbol, "market", "buy", None, None, {**(params or {}), "cost": cost})
        name = "create_market_buy_order_with_cost"
        return self._carried_out(self._desk.create(name, asked, lambda sent: (symbol, cost, _without(sent, "cost"))))

    def create_market_order_with_cost(
        self, symbol: str, side: str, cost: Any, params: Mapping[str, Any] | None = None
    ) -> Any:  # fmt: skip
        """Buy or sell for so much of the quote currency."""
        if side == "buy":
            return self.create_market_buy_order_with_cost(symbol, cost, params)
        asked = Asked(symbol, "market", "sell", None, None, {**(params or {}), "cost": cost})
        name = "create_market_order_with_cost"
        return self._carried_out(
            self._desk.create(name, asked, lambda sent: (symbol, side, cost, _without(sent, "cost")))
        )

    def edit_order(
        self, id: str, symbol: str, type: str, side: str, amount: Any = None, price: Any = None,  # noqa: A002 - as above
        params: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Cancel an order and place another instead, which is asked for anew. What filled meanwhile is kept."""
        return self._carried_out(self._edit(id, symbol, type, side, amount, price, params))

    def settle(self, book: Any = None, resting: Iterable[str] = ()) -> Any:
        """Bring the ledger in line with a book (see `Ledger.settle`); return the decisions about it.

        book: None for what the account shows in this bot's markets, which is right where the account is this bot's
        alone. Raises what the exchange and the ledger raise.
        """
        return self._carried_out(self._desk.settle(book, resting))

    def catch_up(self) -> Any:
        """Ask for every order that is not over, and record what it shows. `create_order` does so where it is due."""
        return self._carried_out(self._desk.catch_up())

    def close(self) -> Any:
        """Close the exchange, and the ledger where it was given as a URL."""
        return self._carried_out(self._close())

    # --- steps ---------------------------------------------------------------------------------------------------

    def _create(
        self, method: str, symbol: str, kind: str, side: str, amount: Any, price: Any, params: Mapping[str, Any] | None
    ) -> Steps[Any]:
        if side not in ("buy", "sell"):
            raise InvalidRequest(f"side must be buy or sell, got {side!r}", field="side")
        asked = Asked(symbol, kind, "buy" if side == "buy" else "sell", amount, price, params or {})
        return (
            yield from self._desk.create(method, asked, lambda sent: (symbol, kind, side, amount, price, dict(sent)))
        )

    def _create_all(self, orders: Iterable[Mapping[str, Any]], params: Mapping[str, Any]) -> Steps[list[Any]]:
        placed = []
        for one in orders:
            more = {**params, **(one.get("params") or {})}
            placed.append((yield from self._create(
                "create_order", one["symbol"], one["type"], one["side"], one.get("amount"), one.get("price"), more
            )))  # fmt: skip
        return placed

    def _edit(
        self,
        order_id: str,
        symbol: str,
        kind: str,
        side: str,
        amount: Any,
        price: Any,
        params: Mapping[str, Any] | None,
    ) -> Steps[Any]:
        yield from self._then_catch_up("cancel_order", (order_id, symbol), {})
        return (yield from self._create("create_order", symbol, kind, side, amount, price, params))

    def _seeing(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[Any]:
        """Call a method whose answer shows orders, and record them."""
        answer = yield OnExchange(method, args, kwargs)
        orders = answer if isinstance(answer, list) else [answer]
        yield from self._desk.note([one for one in orders if isinstance(one, Mapping)])
        return answer

    def _then_catch_up(self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[Any]:
        """Call a method that ends orders, and ask what they filled."""
        try:
            answer = yield from self._seeing(method, args, kwargs)
        except Exception:  # an order that could not be cancelled may have filled
            yield from self._desk.catch_up(best_effort=True, all_orders=True)
            raise
        yield from self._desk.catch_up(best_effort=True, all_orders=True)
        return answer

    def _close(self) -> Steps[None]:
        if hasattr(self._exchange, "close"):
            yield OnExchange("close")
        if self._closes_ledger:
            yield OnLedger("close")

    # --- delegation ----------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Return what the exchange has under this name; its methods that place orders, bound to this object."""
        snake = re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f"_{found[1].lower()}", name)
        if snake != name and snake in vars(DeskExchange):
            return getattr(self, snake)
        plain = snake.removesuffix("_ws")
        found = getattr(self._exchange, name)
        if plain in _READS:
            return lambda *args, **kwargs: self._carried_out(self._seeing(name, args, kwargs))
        if plain.startswith("cancel_") and "order" in plain:
            return lambda *args, **kwargs: self._carried_out(self._then_catch_up(name, args, kwargs))
        if _PLACES_ORDERS.fullmatch(plain) and not _NO_ORDERS.fullmatch(plain) and callable(found):
            return self._placing(name, snake)
        return found

    def _placing(self, name: str, snake: str) -> Any:
        """Return a convenience method of ccxt's (`create_limit_buy_order`), which calls our `create_order`."""
        common = getattr(ccxt.Exchange, snake, None)
        if common is None or snake in ("edit_orders", "edit_order_ws", "create_orders_ws", "create_twap_order"):
            raise ccxt.NotSupported(f"{name} would place orders around the ledger; use create_order")
        return getattr(type(self._exchange), name).__get__(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._exchange, name, value)

    def __dir__(self) -> Iterable[str]:
        return {*object.__dir__(self), *dir(self._exchange)}

    def __repr__(self) -> str:
        return f"DeskExchange({self._exchange!r})"

    def __enter__(self) -> "DeskExchange":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "DeskExchange":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _carried_out(self, steps: Steps[Any]) -> Any:
        carry_out = _carry_out_async if self._is_async else _carry_out
        return carry_out(steps, self._exchange, self._ledger)


def find_order(exchange: Any, symbol: str, client_id: str) -> Any:
    """Return the order with this client order id, as ccxt does; None where the exchange has none.

    For an exchange of `ccxt.async_support` it is awaited. Raises ccxt's errors where the exchange does not answer.
    """
    carry_out = _carry_out_async if _is_async(exchange) else _carry_out
    return carry_out(find_steps(exchange.id, symbol, client_id), exchange, None)


def _is_async(exchange: Any) -> bool:
    return inspect.iscoroutinefunction(type(exchange).create_order)


# --- carrying out steps ------------------------------------------------------------------------------------------


def _carry_out(steps: Steps[Any], exchange: Any, ledger: Any) -> Any:
    advance = partial(next, steps)
    while True:
        try:
            step = advance()
        except StopIteration as end:
            return end.value
        try:
            target = exchange if isinstance(step, OnExchange) else ledger
            answer = getattr(target, step.method)(*step.args, **step.kwargs)
        except Exception as error:  # noqa: BLE001 - the steps decide what it means
            advance = partial(steps.throw, error)
        except BaseException:
            steps.close()  # interrupted: they note what may be on its way
            raise
        else:
            advance = partial(steps.send, answer)


async def _carry_out_async(steps: Steps[Any], exchange: Any, ledger: Any) -> Any:
    advance = partial(next, steps)
    while True:
        try:
            step = advance()
        except StopIteration as end:
            return end.value
        try:
            answer = await _called(step, exchange, ledger)
        except Exception as error:  # noqa: BLE001 - as above
            advance = partial(steps.throw, error)
        except BaseException:
            steps.close()  # cancelled: as above
            raise
        else:
            advance = partial(steps.send, answer)


async def _called(step: OnExchange | OnLedger, exchange: Any, ledger: Any) -> Any:
    """Call without blocking the loop: what is not async runs in a thread."""
    if isinstance(step, OnExchange):
        answer = getattr(exchange, step.method)(*step.args, **step.kwargs)
        return await answer if inspect.isawaitable(answer) else answer
    method = getattr(ledger, f"{step.method}_async", None) or getattr(ledger, step.method)
    if inspect.iscoroutinefunction(method):
        return await method(*step.args, **step.kwargs)
    return await asyncio.to_thread(method, *step.args, **step.kwargs)


def _without(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {one: value for one, value in params.items() if one != name}
