"""What is at risk at nautilus's simulated exchange, from the exchange's own events."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(slots=True)
class Exposure:
    """What is at risk at the simulated exchange, from its own events, looked at after every one.

    What closes, closes the oldest entry first, as in the ledger. (nautilus averages instead: after a partial close its
    figure is a little higher or lower.) highest: the most that was open and could still open, USD. looks: how often.
    """

    cache: Any
    entries: dict[Any, list[tuple[Decimal, Decimal]]] = field(default_factory=dict)
    highest: Decimal = Decimal(0)
    looks: int = 0

    def look(self, event: Any) -> None:
        """Take in a fill; sum up all entries that are open, and what orders may still open, at their limit."""
        if type(event).__name__ == "OrderFilled":
            signed = event.last_qty.as_decimal() * (1 if event.is_buy else -1)
            self._fill((event.instrument_id, event.strategy_id), signed, event.last_px.as_decimal())
        worth = sum((abs(coins) * price for key in self.entries.values() for coins, price in key), Decimal(0))
        worth += self.resting()
        self.highest = max(self.highest, worth)
        self.looks += 1

    def resting(self) -> Decimal:
        """Return what the orders that are out may still open, at their limit, USD."""
        worth = Decimal(0)
        orders = {one.client_order_id: one for one in (*self.cache.orders_open(), *self.cache.orders_inflight())}
        for order in orders.values():  # one that is being cancelled is in both lists
            net = sum((one for one, _ in self.entries.get((order.instrument_id, order.strategy_id), ())), Decimal(0))
            against = abs(net) if (net > 0) != order.is_buy else Decimal(0)
            if not order.is_reduce_only and order.has_price:
                worth += max(order.leaves_qty.as_decimal() - against, Decimal(0)) * order.price.as_decimal()
        return worth

    def _fill(self, key: Any, coins: Decimal, price: Decimal) -> None:
        entries = self.entries.setdefault(key, [])
        while coins and entries and (entries[0][0] > 0) != (coins > 0):
            oldest, paid = entries.pop(0)
            left = oldest + coins
            if (left > 0) == (oldest > 0) and left:
                entries.insert(0, (left, paid))
            coins = left if (left > 0) == (coins > 0) else Decimal(0)
        if coins:
            entries.append((coins, price))
