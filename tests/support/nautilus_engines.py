"""Backtests of nautilus whose strategies do what a test scripts, at the ticks it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig
from nautilus_trader.core.uuid import UUID4
from nautilus_trader.model.currencies import BTC, USDT
from nautilus_trader.model.data import QuoteTick
from nautilus_trader.model.enums import AccountType, LiquiditySide, OmsType, OrderSide, OrderType
from nautilus_trader.model.events import OrderEvent, OrderFilled
from nautilus_trader.model.identifiers import AccountId, ClientOrderId, PositionId, StrategyId, TradeId, VenueOrderId
from nautilus_trader.model.instruments import Instrument
from nautilus_trader.model.objects import Money
from nautilus_trader.model.position import Position
from nautilus_trader.test_kit.providers import TestInstrumentProvider

from ledger_sizer import Ledger, Unavailable
from ledger_sizer.adapters.nautilus import DeskStrategy

BTCUSDT = TestInstrumentProvider.btcusdt_perp_binance()
START_NS = 1_704_067_200 * 10**9
"""2024-01-01."""

BUY, SELL = OrderSide.BUY, OrderSide.SELL

Step = Callable[["Scripted"], Any]


class Scripted(DeskStrategy):
    """Runs the step of a tick when that tick comes (the first is 0), and keeps the events of its orders."""

    def __init__(self, steps: Mapping[int, Step], instrument: Instrument = BTCUSDT, config: Any = None) -> None:
        super().__init__(config)
        self.steps, self.instrument = steps, instrument
        self.ticks = -1
        self.heard: list[OrderEvent] = []

    def on_start(self) -> None:
        self.subscribe_quote_ticks(self.instrument.id)

    def on_stop(self) -> None:
        pass

    def on_reset(self) -> None:
        self.ticks = -1

    def on_quote_tick(self, _tick: QuoteTick) -> None:
        self.ticks += 1
        self.steps.get(self.ticks, lambda _: None)(self)

    def on_order_event(self, event: OrderEvent) -> None:
        self.heard.append(event)

    def market(self, side: OrderSide, quantity: str, **more: Any) -> Any:
        """Submit a market order, and return it."""
        position_id = more.pop("position_id", None)
        order = self.order_factory.market(self.instrument.id, side, self.instrument.make_qty(Decimal(quantity)), **more)
        self.submit_order(order, position_id)
        return order

    def limit(self, side: OrderSide, quantity: str, price: int, **more: Any) -> Any:
        """Submit a limit order, and return it."""
        order = self.order_factory.limit(
            self.instrument.id, side, self.instrument.make_qty(Decimal(quantity)), self.instrument.make_price(price),
            **more,
        )  # fmt: skip
        self.submit_order(order)
        return order

    @property
    def denials(self) -> list[str]:
        """Reasons of the orders that were denied."""
        return [event.reason for event in self.heard if type(event).__name__ == "OrderDenied"]


class Gate:
    """The ledger behind a line that can be cut."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise Unavailable("the line is cut")
        return getattr(self.ledger, name)


@contextmanager
def engine_of(
    *strategies: Any,
    prices: Sequence[int],
    oms: OmsType = OmsType.NETTING,
    instrument: Instrument = BTCUSDT,
    size: int = 100,
) -> Iterator[BacktestEngine]:
    """Yield an engine with these strategies: one quote a second at each price, the ask 1 USD above."""
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
    engine.add_venue(
        instrument.id.venue,
        oms,
        AccountType.MARGIN,
        [Money(1_000_000, USDT), Money(100, BTC)],
        default_leverage=Decimal(10),
    )
    engine.add_instrument(instrument)
    quantity = instrument.make_qty(size)
    for number, bid in enumerate(prices):
        ns = START_NS + number * 10**9
        bid_price, ask_price = instrument.make_price(bid), instrument.make_price(bid + 1)
        engine.add_data([QuoteTick(instrument.id, bid_price, ask_price, quantity, quantity, ns, ns)])
    for strategy in strategies:
        engine.add_strategy(strategy)
    try:
        yield engine
    finally:
        engine.dispose()


def found_open(engine: BacktestEngine, quantity: str) -> None:
    """Make an engine's cache have a long position that no strategy claims, as a live node does after a restart."""
    fill = OrderFilled(
        trader_id=engine.trader_id,
        strategy_id=StrategyId("EXTERNAL"),
        instrument_id=BTCUSDT.id,
        client_order_id=ClientOrderId("O-1"),
        venue_order_id=VenueOrderId("V-1"),
        account_id=AccountId("BINANCE-001"),
        trade_id=TradeId("T-1"),
        position_id=PositionId("P-1"),
        order_side=BUY,
        order_type=OrderType.MARKET,
        last_qty=BTCUSDT.make_qty(Decimal(quantity)),
        last_px=BTCUSDT.make_price(10_001),
        currency=USDT,
        commission=Money(0, USDT),
        liquidity_side=LiquiditySide.TAKER,
        event_id=UUID4(),
        ts_event=START_NS,
        ts_init=START_NS,
    )
    engine.kernel.cache.add_position(Position(BTCUSDT, fill), OmsType.NETTING)
