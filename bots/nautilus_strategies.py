"""Two strategies of nautilus that want more than there is, written for any base: `Strategy`, or `DeskStrategy`."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from typing import Any

from nautilus_trader.model.data import Bar, BarType
from nautilus_trader.model.enums import OrderSide, TimeInForce
from nautilus_trader.model.instruments import Instrument

BARS = 5
"""Bars of the moving average."""


def strategies_on(base: type[Any], markets: list[tuple[Instrument, BarType]], size_usd: Decimal) -> list[Any]:
    """Return a trend follower and a ladder, each in all markets. size_usd: of one entry."""

    class Trading(base):  # type: ignore[misc]
        """What both do: a bar at a time, entries of a fixed size in USD."""

        def __init__(self) -> None:
            super().__init__()
            self.bars = dict.fromkeys([instrument.id for instrument, _ in markets], 0)

        def on_start(self) -> None:
            for _, bar_type in markets:
                self.subscribe_bars(bar_type)

        def on_stop(self) -> None:
            """Leave all as it is: the ledger is compared with what is open then."""

        def on_bar(self, bar: Bar) -> None:
            instrument = self.cache.instrument(bar.bar_type.instrument_id)
            self.bars[instrument.id] += 1
            self.trade(instrument, bar, self.bars[instrument.id])

        def trade(self, instrument: Instrument, bar: Bar, number: int) -> None:
            raise NotImplementedError

        def quantity(self, instrument: Instrument, price: Any) -> Any:
            return instrument.make_qty(size_usd / price.as_decimal())

        def market(self, instrument: Instrument, side: OrderSide, quantity: Any, **more: Any) -> None:
            self.submit_order(self.order_factory.market(instrument.id, side, quantity, **more))

    class Trend(Trading):
        """Adds in the direction of the trend, turns with it in one order, takes some profit now and then."""

        def on_start(self) -> None:
            self.closes: dict[Any, deque[Any]] = {instrument.id: deque(maxlen=BARS) for instrument, _ in markets}
            super().on_start()

        def trade(self, instrument: Instrument, bar: Bar, number: int) -> None:
            closes = self.closes[instrument.id]
            closes.append(bar.close.as_decimal())
            net, quantity = self.portfolio.net_position(instrument.id), self.quantity(instrument, bar.close)
            positions = self.cache.positions_open(instrument_id=instrument.id, strategy_id=self.id)
            net = sum((one.signed_decimal_qty() for one in positions), Decimal(0))
            up = closes[-1] >= sum(closes) / len(closes)
            side = OrderSide.BUY if up else OrderSide.SELL
            if number % 9 == 0 and net:
                half = instrument.make_qty(max(abs(net) / 2, instrument.size_increment.as_decimal()))
                self.market(instrument, OrderSide.SELL if net > 0 else OrderSide.BUY, half, reduce_only=True)
            elif net and (net > 0) != up:
                self.market(instrument, side, instrument.make_qty(abs(net) + quantity.as_decimal()))
            elif number % 2 == 0:
                self.market(instrument, side, quantity)

    class Ladder(Trading):
        """Rests three bids below the market, a bracket now and then, and closes all from time to time."""

        def trade(self, instrument: Instrument, bar: Bar, number: int) -> None:
            price, quantity = bar.close.as_decimal(), self.quantity(instrument, bar.close)
            if number % 4 == 1:
                self.cancel_all_orders(instrument.id)
                for below in ("0.997", "0.99", "0.98"):
                    bid = instrument.make_price(price * Decimal(below))
                    self.submit_order(self.order_factory.limit(instrument.id, OrderSide.BUY, quantity, bid))
            if number % 10 == 3:
                self.submit_order_list(
                    self.order_factory.bracket(
                        instrument.id, OrderSide.BUY, quantity, time_in_force=TimeInForce.GTC,
                        sl_trigger_price=instrument.make_price(price * Decimal("0.95")),
                        tp_price=instrument.make_price(price * Decimal("1.03")),
                    )
                )  # fmt: skip
            if number % 25 == 0:
                self.cancel_all_orders(instrument.id)
                self.close_all_positions(instrument.id)

    return [Trend(), Ladder()]
