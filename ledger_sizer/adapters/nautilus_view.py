"""What a nautilus strategy has: its orders that are out and its positions, as nautilus's cache shows them."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from nautilus_trader.model.enums import OrderSide
from nautilus_trader.model.events import OrderFilled
from nautilus_trader.model.identifiers import ClientOrderId, InstrumentId, PositionId, StrategyId, Venue
from nautilus_trader.model.orders import Order

from ledger_sizer.adapters.nautilus_orders import (
    OPEN_SIDE,
    ZERO,
    Book,
    book_of,
    facing,
    filled_of,
    market_of,
    not_countable,
)

_EXTERNAL = StrategyId("EXTERNAL")
"""Whom nautilus gives what it finds at an exchange and no strategy claims (`external_order_claims`)."""


@dataclass(slots=True)
class Out:
    """An order that is out.

    closing: how much of its quantity closes. freed_usd: what that frees. asked_usd: what was asked for the rest.
    hold: the position in the ledger for the rest. told: whether it was told of a fill.
    """

    instrument: Any
    side: OrderSide
    quantity: Decimal
    reduce_only: bool
    position_id: PositionId | None
    closing: Decimal
    freed_usd: Decimal = ZERO
    asked_usd: Decimal = ZERO
    hold: str | None = None
    told: bool = False

    @property
    def opens(self) -> bool:
        """Whether a part of it opens."""
        return self.closing < self.quantity


class StrategyView:
    """One strategy's orders and positions. out: the orders that are out, by their names."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self.out: dict[ClientOrderId, Out] = {}

    def take_up(self) -> None:
        """Find the orders that are out, after a restart."""
        cache = self._strategy.cache
        orders = cache.orders(strategy_id=self._strategy.id)
        for order in sorted(orders, key=lambda one: (one.ts_init, str(one.client_order_id))):
            name, instrument = order.exec_spawn_id or order.client_order_id, cache.instrument(order.instrument_id)
            if not order.is_closed and name not in self.out and instrument is not None:
                whole = cache.order(name) or order
                quantity = whole.quantity.as_decimal()
                closing, _ = self.closing(whole, quantity, whole.position_id)
                self.out[name] = Out(instrument, whole.side, quantity, whole.is_reduce_only, whole.position_id, closing)

    def orders_of(self, name: ClientOrderId) -> list[Order]:
        """Return an order as it is now, with those that an execution algorithm made of it."""
        order = self._strategy.cache.order(name)
        if order is None:
            return []
        if order.exec_spawn_id is None:
            return [order]
        orders: list[Order] = self._strategy.cache.orders_for_exec_spawn(name)
        return orders

    def closing(self, order: Order, quantity: Decimal, position_id: PositionId | None) -> tuple[Decimal, Decimal]:
        """Return how much of an order closes what the strategy has, and at which price that was opened, at least.

        A child order closes what its parent will have opened; its price is 0, because nothing is free before.
        """
        if order.is_reduce_only:
            return quantity, ZERO
        parent = self.out.get(order.parent_order_id) if order.parent_order_id is not None else None
        if parent is not None and parent.side != order.side:
            return min(quantity, parent.quantity), ZERO
        linked = order.linked_order_ids or ()
        outstanding = [
            max(one.closing - filled_of(self.orders_of(name))[0], ZERO)
            for name, one in self.out.items()
            if (one.instrument.id, one.side, one.reduce_only) == (order.instrument_id, order.side, False)
            and name not in (order.client_order_id, *linked)  # of linked ones only one can fill
        ]
        against = self._facing(order, position_id)
        has = sum((one.quantity.as_decimal() for one in against), ZERO) - sum(outstanding, ZERO)
        price = min((Decimal(str(one.avg_px_open)) for one in against), default=ZERO)
        return min(quantity, max(has, ZERO)), price

    def opened_by(self, fill: OrderFilled) -> Decimal | None:
        """Return how much of a fill, that nautilus has taken in, opened; the rest has closed. None: it is not known."""
        position, filled = self._strategy.cache.position(fill.position_id), fill.last_qty.as_decimal()
        if position is None:
            return None
        part = position.last_event.last_qty.as_decimal()
        if part != filled:  # nautilus splits a fill that turns a position; a netted position has the part that opens
            opened: Decimal = part if position.is_open else filled - part
            return opened
        return filled if position.is_open and position.side == OPEN_SIDE[fill.order_side] else ZERO

    def left_over(self, instrument_id: InstrumentId) -> list[tuple[Out, Order, Decimal]]:
        """Return the orders of a market that close less than they did when they were submitted, and how much less.

        What they were to close has been closed by a reduce-only order.
        """
        found, taken = [], dict[Any, Decimal]()
        for name, one in self.out.items():
            order = self._strategy.cache.order(name)
            if one.instrument.id != instrument_id or one.reduce_only or order is None or order.is_closed:
                continue
            closing = one.closing - filled_of(self.orders_of(name))[0]
            if closing <= 0 or order.parent_order_id in self.out:
                continue
            has = sum((had.quantity.as_decimal() for had in self._facing(order, one.position_id)), ZERO)
            group = one.side, one.position_id
            if not any(linked in self.out for linked in order.linked_order_ids or ()):
                has = max(has - taken.get(group, ZERO), ZERO)  # of linked ones only one can fill
            can = min(closing, has)
            taken[group] = taken.get(group, ZERO) + can
            if can < closing:
                found.append((one, order, closing - can))
        return found

    def _facing(self, order: Order, position_id: PositionId | None) -> list[Any]:
        strategy = self._strategy
        positions = strategy.cache.positions_open(instrument_id=order.instrument_id, strategy_id=strategy.id)
        return facing(order, positions, position_id, strategy.oms_type)

    def venues(self) -> list[Venue]:
        """Return the venues whose markets nautilus has loaded, in order."""
        return sorted({one.id.venue for one in self._strategy.cache.instruments()}, key=str)

    def book(self, venue: Venue) -> Book:
        """Return what the strategy has open at a venue."""
        return self._book(self._strategy.cache.positions_open(venue=venue, strategy_id=self._strategy.id))

    def found(self, venue: Venue) -> Book:
        """Return what nautilus found open at a venue, after a restart, and gives to no strategy."""
        return self._book(self._strategy.cache.positions_open(venue=venue, strategy_id=_EXTERNAL))

    def resting(self, venue: Venue) -> list[str]:
        """Return the markets where orders are out that open something, or that nautilus gives to no strategy."""
        cache = self._strategy.cache
        opening = [one.instrument for one in self.out.values() if one.opens and one.instrument.id.venue == venue]
        found = [cache.instrument(one.instrument_id) for one in cache.orders_open(venue=venue, strategy_id=_EXTERNAL)]
        return sorted({market_of(instrument) for instrument in (*opening, *found) if instrument is not None})

    def _book(self, positions: Iterable[Any]) -> Book:
        pairs = [(one, self._strategy.cache.instrument(one.instrument_id)) for one in positions]
        return book_of([pair for pair in pairs if pair[1] is not None and not_countable(pair[1]) is None])
