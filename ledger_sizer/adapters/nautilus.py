"""nautilus_trader: strategies that ask the ledger before an order that opens something.

    class Mine(DeskStrategy):                         # instead of Strategy
        ...

    ledger = ledger_of(engine, cap=Decimal(1500))     # a backtest: one ledger in memory for all its strategies

A live node has no `ledger_of`: its strategies name the ledger in their config (`desk_ledger="http://..."`) or class.

An order that opens something is asked for before it is submitted: all of it or nothing. What the ledger does not
grant, or cannot answer, is denied with nautilus's own `OrderDenied`. What closes always passes. Fills, cancels, rejects
and expiries reach the ledger by the strategy's own events, before the strategy hears of them.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from nautilus_trader.backtest.engine import BacktestEngine
from nautilus_trader.config import StrategyConfig
from nautilus_trader.core.uuid import UUID4
from nautilus_trader.model.events import OrderDenied, OrderEvent, OrderInitialized
from nautilus_trader.model.identifiers import InstrumentId, PositionId
from nautilus_trader.model.orders import Order, OrderList
from nautilus_trader.trading.strategy import Strategy

from ledger_sizer.adapters.bounded_calls import BoundedCalls, NoAnswer
from ledger_sizer.adapters.desk import _opened
from ledger_sizer.adapters.nautilus_desk import Call, NotGranted, StrategyDesk
from ledger_sizer.config import AppSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.errors import InvalidRequest, Unavailable

_ENDPOINT = "LedgerSizer.ledger"
"""Where the strategies of a backtest ask for its ledger, on the engine's own message bus."""

_SETTLE_TIMER = "desk-settle"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = 10
"""Priority on the bus: the ledger is told before the strategy hears of an event, and may submit another order."""


class DeskConfig(StrategyConfig, frozen=True, kw_only=True):  # type: ignore[misc, call-arg]
    """A config with the ledger's settings. Without it they are taken from attributes of the strategy's class.

    desk_ledger: of a live node: `http://...`, `sqlite:///...` or `postgresql://...`. desk_api_key: for HTTP.
    desk_patience_seconds: how long a call may hold the node up. desk_settle_seconds: how often a live node declares its
    book. desk_slippage: what is asked for more where no limit bounds an order's price, a fraction.
    """

    desk_ledger: str | None = None
    desk_api_key: str | None = None
    desk_portfolio: str | None = None
    desk_patience_seconds: float | None = None
    desk_settle_seconds: float | None = None
    desk_slippage: Decimal | None = None


def ledger_of(
    engine: BacktestEngine,
    *,
    cap: Decimal | None = None,
    portfolio: str = "main",
    settings: AppSettings | None = None,
) -> Ledger:
    """Return a new ledger in memory with the engine's clock. Every `DeskStrategy` of the engine uses it from now on.

    cap: the most that the portfolio, and each position of it, may be, USD; the settings' figures when None.
    """
    clock, bus = engine.kernel.clock, engine.kernel.msgbus
    ledger = Ledger.in_memory(
        clock=lambda: _EPOCH + timedelta(microseconds=clock.timestamp_ns() // 1000), settings=settings
    )
    if _ENDPOINT not in bus.endpoints():
        bus.register(_ENDPOINT, _Shared())
    bus.send(_ENDPOINT, ledger)
    if cap is not None:
        ledger.set_cap(key="ledger_of", portfolio=portfolio, cap=cap, max_position_usd=cap)
    return ledger


class _Shared:
    """The ledger of one engine: keeps the one that is sent, and adds it to a list that is sent."""

    ledger: Ledger | None = None

    def __call__(self, message: "Ledger | list[Ledger]") -> None:
        if not isinstance(message, list):
            self.ledger = message
        elif self.ledger is not None:
            message.append(self.ledger)


class _LiveLedger:
    """A ledger named by its URL, called on a thread of its own: a call keeps the node no longer than its patience."""

    def __init__(self, url: str, api_key: str | None, patience_seconds: float) -> None:
        self._open = lambda: _opened(url, api_key, patience_seconds)
        self._ledger: Any = None
        self._calls = BoundedCalls(patience_seconds, "ledger-nautilus")

    def __call__(self, work: Callable[[Any], Any]) -> Any:
        """Return what `work` answers. Raises `Unavailable` where it takes too long, and what it raises."""
        try:
            return self._calls.call(lambda: work(self._opened()))
        except NoAnswer:
            raise Unavailable(f"no answer within {self._calls.patience_seconds} s") from None

    def close(self) -> None:
        """Close the ledger, after the calls that wait."""
        if self._ledger is not None:
            with suppress(NoAnswer):
                self._calls.call(self._ledger.close)
        self._calls.close()

    def _opened(self) -> Any:
        if self._ledger is None:
            self._ledger = self._open()
        return self._ledger


class DeskStrategy(Strategy):  # type: ignore[misc]
    """A strategy of nautilus whose entries are asked of the ledger.

    They are held under the tags `bot` (the trader's id), `strategy` (the strategy's id), `venue` and `symbol`.
    """

    desk_ledger: str | None = None
    desk_api_key: str | None = None
    desk_portfolio = "main"
    desk_patience_seconds = 1.0
    desk_settle_seconds = 60.0
    desk_slippage = Decimal("0.001")

    _desk: StrategyDesk | None = None
    _live: _LiveLedger | None = None

    def desk_budget(self, instrument_id: InstrumentId, wanted_usd: Decimal) -> Decimal:
        """Return how much of `wanted_usd` may be put on a market now, USD; 0 where nothing is left, or no answer came.

        It is held. The next entry order of this market uses it, if it costs no more; another call gives it back.
        """
        return self._connected().budget(instrument_id, wanted_usd)

    def submit_order(
        self, order: Order, position_id: PositionId | None = None, client_id: Any = None, params: Any = None
    ) -> None:
        """Submit an order, or deny it where the ledger does not grant what it opens."""
        if self._admits([order], position_id):
            super().submit_order(order, position_id, client_id, params)

    def submit_order_list(
        self, order_list: OrderList, position_id: PositionId | None = None, client_id: Any = None, params: Any = None
    ) -> None:
        """Submit a list of orders, or deny all of them."""
        if self._admits(order_list.orders, position_id):
            super().submit_order_list(order_list, position_id, client_id, params)

    def modify_order(
        self,
        order: Order,
        quantity: Any = None,
        price: Any = None,
        trigger_price: Any = None,
        client_id: Any = None,
        params: Any = None,
    ) -> None:
        """Modify an order. It stays as it is where the ledger does not grant what it would cost more."""
        try:
            self._connected().admit_change(order, quantity, trigger_price if price is None else price)
        except NotGranted as denied:
            self.log.warning(f"{order.client_order_id} stays as it is: {denied}")
            return
        super().modify_order(order, quantity, price, trigger_price, client_id, params)

    def register(self, trader_id: Any, portfolio: Any, msgbus: Any, cache: Any, clock: Any) -> None:
        """Register with a trader, as nautilus does."""
        super().register(trader_id, portfolio, msgbus, cache, clock)
        msgbus.subscribe(f"events.order.{self.id}", self._hear, _FIRST)

    def _start(self) -> None:
        self._connected().start()
        if self._live is not None:  # in a backtest nothing is lost on the way
            self.clock.set_timer(
                _SETTLE_TIMER, timedelta(seconds=self._setting("settle_seconds")), callback=self._settle_now
            )
        super()._start()

    def _stop(self) -> None:
        if _SETTLE_TIMER in self.clock.timer_names:
            self.clock.cancel_timer(_SETTLE_TIMER)
        super()._stop()

    def _reset(self) -> None:
        self._desk = None
        super()._reset()

    def _dispose(self) -> None:
        if self._live is not None:
            self._live.close()
        super()._dispose()

    def _settle_now(self, _event: Any) -> None:
        self._connected().settle()

    def _hear(self, event: OrderEvent) -> None:
        if self._desk is not None and not isinstance(event, OrderInitialized):
            self._desk.hear(event)

    def _admits(self, orders: list[Order], position_id: PositionId | None) -> bool:
        if any(self.cache.order_exists(order.client_order_id) for order in orders):
            return True  # nautilus denies a second order of one name
        try:
            self._connected().admit(orders, position_id)
        except NotGranted as denied:
            for order in orders:
                self._deny(order, f"ledger: {denied}")
            return False
        return True

    def _deny(self, order: Order, reason: str) -> None:
        """Deny an order as nautilus's own risk engine does."""
        topic = f"events.order.{order.strategy_id}"
        self.msgbus.publish(topic, order.init_event)
        self.cache.add_order(order)
        denied = OrderDenied(
            trader_id=order.trader_id,
            strategy_id=order.strategy_id,
            instrument_id=order.instrument_id,
            client_order_id=order.client_order_id,
            reason=reason,
            event_id=UUID4(),
            ts_init=self.clock.timestamp_ns(),
        )
        self.msgbus.send("ExecEngine.process", denied)

    def _connected(self) -> StrategyDesk:
        """Return the strategy's desk, connected at its first use. Raises `InvalidRequest` where no ledger is named."""
        if self._desk is None:
            self._desk = StrategyDesk(self, self._ledger_calls(), self._setting("portfolio"), self._setting("slippage"))
        return self._desk

    def _ledger_calls(self) -> Call:
        found: list[Ledger] = []
        if _ENDPOINT in self.msgbus.endpoints():
            self.msgbus.send(_ENDPOINT, found)
        if found:
            return lambda work: work(found[0])
        url = self._setting("ledger")
        if url is None:
            raise InvalidRequest(
                f"{self.id} has no ledger: call ledger_of(engine) before a backtest, or give a live strategy "
                'desk_ledger="http://..."',
                field="desk_ledger",
            )
        if self._live is None:
            self._live = _LiveLedger(url, self._setting("api_key"), self._setting("patience_seconds"))
        return self._live

    def _setting(self, name: str) -> Any:
        given = getattr(self.config, f"desk_{name}", None)
        return getattr(self, f"desk_{name}") if given is None else given
