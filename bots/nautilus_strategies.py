"""Two strategies of nautilus that want more than there is, for any base: `Strategy`, or `DeskStrategy`."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from typing import Any

from nautilus_trader.model.data import Bar, BarType
from nautilus_trader.model.enums import OrderSide, TimeInForce
from nautilus_trader.model.instruments import Instrument

AVERAGED_BARS = 5


class _Trading:
    """What both do: a bar at a time in each market, with entries of a fixed size in USD."""

    markets: list[tuple[Instrument, BarType]]
    size_usd: Decimal

    def on_start(self: Any) -> None:
        self.bars = dict.fromkeys([instrument.id for instrument, _ in self.markets], 0)
        self.closes = {one.id: deque[Decimal](maxlen=AVERAGED_BARS) for one, _ in self.markets}
        for _, bar_type in self.markets:
            self.subscribe_bars(bar_type)

    def on_stop(self) -> None:
        """Leave all as it is: the ledger is compared with what is open then."""

    def on_bar(self: Any, bar: Bar) -> None:
        instrument = self.cache.instrument(bar.bar_type.instrument_id)
        self.bars[instrument.id] += 1
        self.closes[instrument.id].append(bar.close.as_decimal())
        quantity = instrument.make_qty(self.size_usd / bar.close.as_decimal())
        self.trade(instrument, bar.close.as_decimal(), quantity, self.bars[instrument.id])

    def market(self: Any, instrument: Instrument, side: OrderSide, quantity: Any, **more: Any) -> None:
        self.submit_order(self.order_factory.market(instrument.id, side, quantity, **more))


class Trend(_Trading):
    """Adds in the direction of the trend, turns with it in one order, takes some profit now and then."""

    def trade(self: Any, instrument: Instrument, price: Decimal, quantity: Any, number: int) -> None:
        """Act on a bar."""
        closes = self.closes[instrument.id]
        positions = self.cache.positions_open(instrument_id=instrument.id, strategy_id=self.id)
        net = sum((one.signed_decimal_qty() for one in positions), Decimal(0))
        up = price >= sum(closes) / len(closes)
        side = OrderSide.BUY if up else OrderSide.SELL
        if number % 9 == 0 and net:
            half = instrument.make_qty(max(abs(net) / 2, instrument.size_increment.as_decimal()))
            self.market(instrument, OrderSide.SELL if net > 0 else OrderSide.BUY, half, reduce_only=True)
        elif net and (net > 0) != up:
            self.market(instrument, side, instrument.make_qty(abs(net) + quantity.as_decimal()))
        elif number % 2 == 0:
            self.market(instrument, side, quantity)


class Ladder(_Trading):
    """Rests three bids below the market, a bracket now and then, and closes all from time to time."""

    def trade(self: Any, instrument: Instrument, price: Decimal, quantity: Any, number: int) -> None:
        """Act on a bar."""
        if number % 4 == 1:
            self.cancel_all_orders(instrument.id)
            for share in ("0.997", "0.99", "0.98"):
                bid = instrument.make_price(price * Decimal(share))
                self.submit_order(self.order_factory.limit(instrument.id, OrderSide.BUY, quantity, bid))
        if number % 10 == 3:
            bracket = self.order_factory.bracket(
                instrument.id,
                OrderSide.BUY,
                quantity,
                time_in_force=TimeInForce.GTC,
                sl_trigger_price=instrument.make_price(price * Decimal("0.95")),
                tp_price=instrument.make_price(price * Decimal("1.03")),
            )
            self.submit_order_list(bracket)
        if number % 25 == 0:
            self.cancel_all_orders(instrument.id)
            self.close_all_positions(instrument.id)


def strategies_on(base: type[Any], markets: list[tuple[Instrument, BarType]], size_usd: Decimal) -> list[Any]:
    """Return a `Trend` and a `Ladder` on a base, each in all markets. size_usd: of one entry."""
    settings = {"markets": markets, "size_usd": size_usd}
    return [type(kind.__name__, (kind, base), settings)() for kind in (Trend, Ladder)]
