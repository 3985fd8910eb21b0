"""nautilus_trader: strategies that ask the ledger before an order that opens something.

    class Mine(DeskStrategy):                         # instead of Strategy
        ...

    ledger = ledger_of(engine, cap=Decimal(1500))     # a backtest: one ledger in memory for all its strategies

A live node has no `ledger_of`: its strategies name the ledger in their config (`desk_ledger="http://..."`) or class.

An order that opens something is asked for before it is submitted: all of it or nothing. What the ledger does not
grant, or cannot answer, is denied with nautilus's own `OrderDenied`. What closes always passes. Fills, cancels, rejects
and expiries reach the ledger by the strategy's own events, before the strategy hears of them.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from nautilus_trader.backtest.engine import BacktestEngine
from nautilus_trader.common.component import LiveClock
from nautilus_trader.config import StrategyConfig
from nautilus_trader.core.uuid import UUID4
from nautilus_trader.model.events import OrderDenied, OrderEvent, OrderInitialized
from nautilus_trader.model.identifiers import InstrumentId, PositionId
from nautilus_trader.model.orders import Order, OrderList
from nautilus_trader.trading.strategy import Strategy

from ledger_sizer.adapters.bounded_calls import BoundedCalls, NoAnswer
from ledger_sizer.adapters.connections import open_ledger
from ledger_sizer.adapters.nautilus_desk import Call, NotGranted, StrategyDesk
from ledger_sizer.config import AppSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError, Unavailable

ENDPOINT = "LedgerSizer.ledger"
"""Where the strategies of a backtest ask for its ledger, on the engine's own message bus."""

_AWAY_SECONDS = 3.0
"""How long no strategy waits for a ledger that did not answer one of them."""

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
    _shared_of(bus)
    bus.send(ENDPOINT, ledger)
    if cap is not None:
        ledger.set_cap(key="ledger_of", portfolio=portfolio, cap=cap, max_position_usd=cap)
    return ledger


class _LiveLedger:
    """A ledger named by its URL, called on a thread of its own: a call keeps the node no longer than its patience.

    All strategies of a node share it. For a while after a call that failed the others fail at once.
    """

    def __init__(self, url: str, api_key: str | None, patience_seconds: float) -> None:
        self._open: Callable[[], Any] = partial(open_ledger, url, api_key, patience_seconds)
        self._ledger: Any = None
        self._calls = BoundedCalls(patience_seconds, "ledger-nautilus")
        self._away_until = 0.0
        self.users = 0
        """Strategies that use it and have not closed it."""

    def __call__(self, work: Callable[[Any], Any]) -> Any:
        """Return what `work` answers. Raises `Unavailable` where it takes too long, and what it raises."""
        if time.monotonic() < self._away_until:
            raise Unavailable("the ledger did not answer a moment ago")
        try:
            return self._calls.call(lambda: work(self._opened()))
        except NoAnswer:
            self._away_until = time.monotonic() + _AWAY_SECONDS
            raise Unavailable(f"no answer within {self._calls.patience_seconds} s") from None
        except (Unavailable, Busy):
            self._away_until = time.monotonic() + _AWAY_SECONDS
            raise
        except LedgerError:
            raise
        except Exception as error:  # a defect of the ledger must not stop a node that has positions
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """One strategy is done with it. The last one closes the ledger, after the calls that wait."""
        self.users -= 1
        if self.users:
            return
        if self._ledger is not None:
            with suppress(NoAnswer, LedgerError):
                self._calls.call(self._ledger.close)
        self._calls.close()

    def _opened(self) -> Any:
        if self._ledger is None:
            self._ledger = self._open()
        return self._ledger


class _Asked:
    """A strategy's question for its ledger. call: the answer. url, api_key, patience_seconds: of a live one."""

    def __init__(self, url: str | None, api_key: str | None, patience_seconds: float) -> None:
        self.url = url
        self.api_key = api_key
        self.patience_seconds = patience_seconds
        self.call: Call | None = None


class _Shared:
    """What the strategies of one engine or node share: the backtest's ledger, or live ones. It stands on their bus."""

    def __init__(self) -> None:
        self._ledger: Ledger | None = None
        self._live: dict[tuple[str, str | None], _LiveLedger] = {}

    def __call__(self, message: "Ledger | _Asked") -> None:
        """Keep a ledger for the backtest, or answer a strategy's question."""
        if not isinstance(message, _Asked):
            self._ledger = message
        elif self._ledger is not None:
            message.call = partial(_call_directly, self._ledger)
        elif message.url is not None:
            key = (message.url, message.api_key)
            if key not in self._live or not self._live[key].users:
                self._live[key] = _LiveLedger(*key, message.patience_seconds)
            message.call = self._live[key]
            self._live[key].users += 1


def _call_directly(ledger: Ledger, work: Callable[[Any], Any]) -> Any:
    answer = work(ledger)
    if getattr(answer, "replayed", False):
        raise InvalidRequest("this ledger has the orders of an earlier run; call ledger_of(engine) before each run")
    return answer


def _shared_of(bus: Any) -> None:
    """Put what strategies share on the bus, where it is not there yet."""
    if ENDPOINT not in bus.endpoints():
        bus.register(ENDPOINT, _Shared())


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
    _call: Call | None = None

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
        if isinstance(self._call, _LiveLedger):  # in a backtest nothing is lost on the way
            self.clock.set_timer(
                _SETTLE_TIMER, timedelta(seconds=self._setting("settle_seconds")), callback=self._settle_now
            )
        super()._start()

    def _stop(self) -> None:
        if _SETTLE_TIMER in self.clock.timer_names:
            self.clock.cancel_timer(_SETTLE_TIMER)
        super()._stop()

    def _reset(self) -> None:
        self._disconnect()
        super()._reset()

    def _dispose(self) -> None:
        self._disconnect()
        super()._dispose()

    def _disconnect(self) -> None:
        call, self._call, self._desk = self._call, None, None
        if isinstance(call, _LiveLedger):
            call.close()

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
            self._call = self._ledger_calls()
            self._desk = StrategyDesk(self, self._call, self._setting("portfolio"), self._setting("slippage"))
        return self._desk

    def _ledger_calls(self) -> Call:
        asked = _Asked(self._setting("ledger"), self._setting("api_key"), self._setting("patience_seconds"))
        _shared_of(self.msgbus)
        self.msgbus.send(ENDPOINT, asked)
        live = isinstance(self.clock, LiveClock)
        if asked.call is None or isinstance(asked.call, _LiveLedger) > live:
            cure = 'give it desk_ledger="http://..."' if live else "call ledger_of(engine) before the backtest"
            raise InvalidRequest(f"{self.id} has no ledger: {cure}", field="desk_ledger")
        return asked.call

    def _setting(self, name: str) -> Any:
        given = getattr(self.config, f"desk_{name}", None)
        return getattr(self, f"desk_{name}") if given is None else given
