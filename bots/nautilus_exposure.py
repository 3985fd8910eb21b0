"""What is at risk at nautilus's simulated exchange, from the exchange's own events."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

ZERO = Decimal(0)


@dataclass(slots=True)
class Exposure:
    """What is at risk at the simulated exchange, from its own events, looked at after every one.

    What closes, closes the oldest entry first, as in the ledger. (nautilus averages instead: after a partial close its
    figure is a little higher or lower.) highest: the most that was open, or could be open if all buys or all sales of
    a market filled, USD. looks: how often.
    """

    cache: Any
    entries: dict[Any, list[tuple[Decimal, Decimal]]] = field(default_factory=dict)
    highest: Decimal = ZERO
    looks: int = 0

    def look(self, event: Any) -> None:
        """Take in a fill; sum up what every strategy has, or could have, in every market."""
        if type(event).__name__ == "OrderFilled":
            signed = event.last_qty.as_decimal() * (1 if event.is_buy else -1)
            self._fill((event.instrument_id, event.strategy_id), signed, event.last_px.as_decimal())
        orders = self._orders()
        keys = {*self.entries, *orders}
        self.highest = max(self.highest, sum((self._worst(key, orders.get(key, [])) for key in keys), ZERO))
        self.looks += 1

    @property
    def open(self) -> Decimal:
        """What is open, at its entry prices, USD."""
        return sum((abs(coins) * price for one in self.entries.values() for coins, price in one), ZERO)

    def resting(self) -> Decimal:
        """Return what the orders that are out would cost at their limits, USD."""
        return sum((abs(coins) * price for one in self._orders().values() for coins, price in one), ZERO)

    def _orders(self) -> dict[Any, list[tuple[Decimal, Decimal]]]:
        """Return coins and limit of the orders that are out, but for those that only reduce, by market and strategy."""
        found: dict[Any, list[tuple[Decimal, Decimal]]] = {}
        orders = {one.client_order_id: one for one in (*self.cache.orders_open(), *self.cache.orders_inflight())}
        for one in orders.values():  # one that is being cancelled is in both lists
            if one.has_price and not one.is_reduce_only:
                coins = one.leaves_qty.as_decimal() * (1 if one.is_buy else -1)
                found.setdefault((one.instrument_id, one.strategy_id), []).append((coins, one.price.as_decimal()))
        return found

    def _worst(self, key: Any, orders: list[tuple[Decimal, Decimal]]) -> Decimal:
        entries = self.entries.get(key, [])
        net, has = (
            sum((coins for coins, _ in entries), ZERO),
            sum((abs(coins) * price for coins, price in entries), ZERO),
        )
        worst = has
        for sign in (1, -1):
            side = [(abs(one), price) for one, price in orders if one * sign > 0]
            coins, cost = sum((one for one, _ in side), ZERO), sum((one * price for one, price in side), ZERO)
            against = min(max(-net * sign, ZERO), coins)  # closes first
            if coins:
                left = has if net * sign >= 0 else has * (abs(net) - against) / abs(net)
                worst = max(worst, left + cost * (coins - against) / coins)
        return worst

    def _fill(self, key: Any, coins: Decimal, price: Decimal) -> None:
        entries = self.entries.setdefault(key, [])
        while coins and entries and (entries[0][0] > 0) != (coins > 0):
            oldest, paid = entries.pop(0)
            left = oldest + coins
            if (left > 0) == (oldest > 0) and left:
                entries.insert(0, (left, paid))
            coins = left if (left > 0) == (coins > 0) else ZERO
        if coins:
            entries.append((coins, price))
