"""What a nautilus strategy tells the ledger and asks of it: holds for its orders, fills, ends of orders, its book.

The name of a position in the ledger is kept for each order that is out. A fill is told of the order's own position, what
closes is told by the whole book (`settle`). Where a call failed the book is declared again as soon as a call gets through.
Every key is made of the trader, the strategy and nautilus's client order id, so that a backtest repeated writes the
same chain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from nautilus_trader.model.events import OrderFilled
from nautilus_trader.model.identifiers import ClientOrderId, InstrumentId, PositionId, Venue
from nautilus_trader.model.orders import Order

from ledger_sizer.adapters.nautilus_orders import (
    ZERO,
    above,
    below,
    book_of,
    closes,
    coins_of,
    filled_of,
    limit_of,
    market_of,
    not_countable,
    notional_usd,
    order_quantity,
    price_of,
    venue_of,
)
from ledger_sizer.model.errors import LedgerError

Call = Callable[[Callable[[Any], Any]], Any]
"""Runs a function of the ledger and returns its answer, or raises a `LedgerError`."""


class NotGranted(Exception):
    """An order is not to be submitted; the text says why."""


@dataclass(slots=True)
class _Out:
    """An order that is out. closing: how much of its quantity closes. hold: the position in the ledger for the rest."""

    order: Order
    closing: Decimal
    hold: str | None = None


@dataclass(frozen=True, slots=True)
class _Grant:
    """What the ledger holds for a wish."""

    position_id: str
    usd: Decimal


class StrategyDesk:
    """The ledger's side of one strategy."""

    def __init__(self, strategy: Any, call: Call, portfolio: str, slippage: Decimal) -> None:
        """slippage: what is asked for more where no limit bounds an order's price, a fraction."""
        self._strategy = strategy
        self._call = call
        self._portfolio = portfolio
        self._slippage = slippage
        self._tags = {"bot": str(strategy.trader_id), "strategy": str(strategy.id)}
        self._out: dict[ClientOrderId, _Out] = {}
        self._budgets: dict[InstrumentId, _Grant] = {}
        self._wishes = 0
        self._behind = False

    # Asking.

    def admit(self, orders: Sequence[Order], position_id: PositionId | None) -> None:
        """Hold what some orders open, or raise `NotGranted`: then nothing is held."""
        admitted: list[_Out] = []
        try:
            for order in orders:
                admitted.append(self._admitted(order, position_id))
                self._out[order.client_order_id] = admitted[-1]
        except NotGranted:
            for one in admitted:
                self._forget(one.order.client_order_id)
            raise

    def admit_change(self, order: Order, quantity: Any, price: Any) -> None:
        """Hold what an order costs more with another quantity or price, or raise `NotGranted`."""
        out, instrument = self._out.get(order.client_order_id), self._strategy.cache.instrument(order.instrument_id)
        if out is None or out.hold is None:
            return
        old_price = price_of(order, self._strategy.cache) or ZERO
        new_price = old_price if price is None else price.as_decimal()
        old, new = order_quantity(order, old_price), order.quantity if quantity is None else quantity
        old_usd = notional_usd(instrument, max(old - out.closing, ZERO), old_price)
        more = notional_usd(instrument, max(new.as_decimal() - out.closing, ZERO), max(new_price, old_price)) - old_usd
        if more > 0:
            key = f"{order.client_order_id}/{new}@{new_price}"
            self._reserve(key, above(more, self._slippage), above(more, self._slippage), position_id=out.hold)

    def budget(self, instrument_id: InstrumentId, wanted_usd: Decimal) -> Decimal:
        """Return what may be put on a market, USD, and hold it for the next entry order there."""
        self._drop_budget(instrument_id)
        self._wishes += 1
        key = f"budget/{self._strategy.clock.timestamp_ns()}/{self._wishes}"
        try:
            tags = self._tags_of(self._countable(instrument_id))
            granted = self._reserve(key, above(wanted_usd, self._slippage), ZERO, tags=tags)
        except NotGranted as denied:
            self._strategy.log.info(f"No budget for {instrument_id}: {denied}")
            return ZERO
        self._budgets[instrument_id] = granted
        return below(granted.usd, self._slippage)

    def _admitted(self, order: Order, position_id: PositionId | None) -> _Out:
        closing = self._closing(order, position_id)
        quantity: Decimal = order.quantity.as_decimal()
        if closing >= quantity and not order.is_quote_quantity:
            return _Out(order, closing)
        instrument = self._countable(order.instrument_id)
        price = price_of(order, self._strategy.cache)
        if price is None:
            raise NotGranted(f"no price of {order.instrument_id} is known; subscribe to its quotes, trades or bars first")
        opening = order_quantity(order, price) - closing
        if opening <= 0:
            return _Out(order, closing)
        usd = notional_usd(instrument, opening, price)
        if limit_of(order) is None:
            usd = above(usd, self._slippage)
        budget = self._budgets.get(order.instrument_id)
        if budget is not None and usd <= budget.usd:
            return _Out(order, closing, self._budgets.pop(order.instrument_id).position_id)
        self._drop_budget(order.instrument_id)
        granted = self._reserve(str(order.client_order_id), usd, usd, tags=self._tags_of(instrument))
        return _Out(order, closing, granted.position_id)

    def _closing(self, order: Order, position_id: PositionId | None) -> Decimal:
        """Return how much of an order closes what the strategy has, or what its parent order will have opened."""
        quantity = order.quantity.as_decimal()
        parent = self._out.get(order.parent_order_id) if order.parent_order_id is not None else None
        if parent is not None and parent.order.side != order.side:
            return min(quantity, parent.order.quantity.as_decimal())
        if order.is_quote_quantity and not order.is_reduce_only:
            price = price_of(order, self._strategy.cache)
            quantity = ZERO if price is None else order_quantity(order, price)
        cache, linked = self._strategy.cache, order.linked_order_ids or ()
        outstanding = [
            max(one.closing - one.order.filled_qty.as_decimal(), ZERO)
            for name, one in self._out.items()
            if one.order.instrument_id == order.instrument_id
            and one.order.side == order.side
            and not one.order.is_reduce_only
            and name not in linked
        ]
        positions = cache.positions_open(instrument_id=order.instrument_id, strategy_id=self._strategy.id)
        return closes(order, quantity, positions, position_id, self._strategy.oms_type, sum(outstanding, ZERO))

    def _countable(self, instrument_id: InstrumentId) -> Any:
        instrument = self._strategy.cache.instrument(instrument_id)
        if instrument is None:
            raise NotGranted(f"no instrument {instrument_id} in the cache")
        why_not = not_countable(instrument)
        if why_not is not None:
            raise NotGranted(why_not)
        return instrument

    def _tags_of(self, instrument: Any) -> dict[str, str]:
        return {**self._tags, "venue": venue_of(instrument), "symbol": market_of(instrument)}

    def _reserve(self, key: str, usd: Decimal, at_least: Decimal, **place: Any) -> _Grant:
        request = {
            "key": self._key(key), "portfolio": self._portfolio, "amount_usd": usd, "until_known": True, **place
        }  # fmt: skip
        if at_least:
            request["min_notional_usd"] = at_least
        try:
            decision = self._call(lambda ledger: ledger.reserve(**request))
        except LedgerError as error:
            self._behind = True  # it may have been held all the same: the next settle gives it back
            raise NotGranted(f"the ledger gave no answer: {error}") from error
        if not decision.granted:
            raise NotGranted(f"{decision.reason} ({decision.binding}): {usd} USD were asked for")
        return _Grant(decision.position_id, decision.budget)

    # Telling.

    def hear(self, event: Any) -> None:
        """Tell the ledger what an event of one of the strategy's orders changes."""
        order = self._strategy.cache.order(event.client_order_id)
        name = event.client_order_id if order is None else order.exec_spawn_id or order.client_order_id
        out = self._out.get(name)
        spawned = self._spawned(name, order)
        ended = all(one.is_closed for one in spawned)
        if isinstance(event, OrderFilled):
            if out is not None and out.hold is not None:
                self._tell_fill(out, spawned, ended, event)
            if out is None or out.hold is None or out.closing > 0:
                self.settle([event.instrument_id.venue])
        if ended:
            self._forget(name)
        if self._behind:
            self.settle()

    def _spawned(self, name: ClientOrderId, order: Order | None) -> list[Order]:
        if order is None:
            return []
        if order.exec_spawn_id is None:
            return [order]
        spawned: list[Order] = self._strategy.cache.orders_for_exec_spawn(name)
        return spawned

    def _tell_fill(self, out: _Out, orders: Sequence[Order], ended: bool, event: OrderFilled) -> None:
        instrument = self._strategy.cache.instrument(event.instrument_id)
        filled, price = filled_of(orders)
        opened = filled - out.closing
        if opened <= 0:
            return
        request = {
            "key": self._key(f"{out.order.client_order_id}/fill/{filled}"),
            "position_id": out.hold,
            "filled_quantity": coins_of(instrument, opened),
            "price": price,
            "rest": "free" if ended else "hold",
        }
        if self._tell(lambda ledger: ledger.fill(**request)) and ended:
            out.hold = None

    def _forget(self, name: ClientOrderId) -> None:
        """An order has ended: free what is still held for it."""
        out = self._out.pop(name, None)
        if out is not None and out.hold is not None:
            self._give_back(f"{name}/end", out.hold)

    def _drop_budget(self, instrument_id: InstrumentId) -> None:
        budget = self._budgets.pop(instrument_id, None)
        if budget is not None:
            self._give_back(f"budget/{budget.position_id}/back", budget.position_id)

    def _give_back(self, key: str, position_id: str) -> None:
        request = {"key": self._key(key), "position_id": position_id, "held_only": True}
        self._tell(lambda ledger: ledger.release(**request))

    def settle(self, venues: Sequence[Venue] | None = None) -> None:
        """Declare the strategy's whole book at some venues, or at all that it knows."""
        strategy = self._strategy
        if venues is None:
            venues = sorted({one.id.venue for one in strategy.cache.instruments()}, key=str)
            self._behind = False
        for venue in venues:
            positions = strategy.cache.positions_open(venue=venue, strategy_id=strategy.id)
            pairs = [(one, strategy.cache.instrument(one.instrument_id)) for one in positions]
            book = book_of([(one, market) for one, market in pairs if not_countable(market) is None])
            waiting = [one.order.instrument_id for one in self._out.values() if one.hold or one.closing == 0]
            waiting += [one for one in self._budgets]
            resting = sorted({market_of(strategy.cache.instrument(one)) for one in waiting if one.venue == venue})
            tags = {**self._tags, "venue": str(venue).lower()}
            self._tell(lambda ledger: ledger.settle(tags, book, resting, self._portfolio))  # noqa: B023 - called at once

    def start(self) -> None:
        """Take up the orders that are out, after a restart, and declare the book."""
        for order in self._strategy.cache.orders(strategy_id=self._strategy.id):
            if not order.is_closed and order.client_order_id not in self._out:
                self._out[order.client_order_id] = _Out(order, self._closing(order, order.position_id))
        self.settle()

    def _tell(self, work: Callable[[Any], Any]) -> bool:
        try:
            self._call(work)
        except LedgerError as error:
            if not self._behind:
                self._strategy.log.error(f"The ledger was not told, its book is declared again later: {error}")
            self._behind = True
            return False
        return True

    def _key(self, rest: str) -> str:
        return f"{self._strategy.trader_id}/{self._strategy.id}/{rest}"
