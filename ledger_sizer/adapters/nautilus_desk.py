"""What a nautilus strategy tells the ledger and asks of it: holds for its orders, fills, ends of orders, its book.

Each order that is out has a hold of its own, which its fills are told of and its end frees. What closes is told by the
whole book (`settle`). After a call that failed, and after a restart, nobody knows which hold an order has: then only
the book is declared, until no order of that market is out.

Every key is made of the trader, the strategy and nautilus's client order id, so that the same backtest writes the same
chain again.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple

from nautilus_trader.model.enums import OrderSide
from nautilus_trader.model.events import OrderFilled
from nautilus_trader.model.identifiers import ClientOrderId, InstrumentId, PositionId, Venue
from nautilus_trader.model.orders import Order

from ledger_sizer.adapters.nautilus_orders import (
    ZERO,
    Book,
    above,
    below,
    coins_of,
    filled_of,
    market_of,
    not_countable,
    notional_usd,
    order_quantity,
    part_of,
    price_of,
    venue_of,
)
from ledger_sizer.adapters.nautilus_view import Out, StrategyView
from ledger_sizer.model.choices import Side
from ledger_sizer.model.errors import Forbidden, InvalidRequest, LedgerError, NotFound, WrongState
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import parse_symbol
from ledger_sizer.model.units import decimal_text, exact_arithmetic

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RETRY_NS = 5_000_000_000
"""How long after a call that failed the next one is tried, but for questions."""

Call = Callable[[Callable[[Any], Any]], Any]
"""Runs a function of the ledger and returns its answer, or raises a `LedgerError`."""


class NotGranted(Exception):
    """An order is not to be submitted; the text says why."""


class _Grant(NamedTuple):
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
        self._view = StrategyView(strategy)
        self._budgets: dict[InstrumentId, _Grant] = {}
        self._wishes = 0
        self._by_book: set[InstrumentId] = set()
        """Markets of which only the book is told: which hold belongs to which order is not known there."""
        self._behind_since_ns: int | None = None

    # Asking.

    def admit(self, orders: Sequence[Order], position_id: PositionId | None) -> None:
        """Hold what some orders open, or raise `NotGranted`: then none of it is held."""
        admitted: list[ClientOrderId] = []
        try:
            for order in orders:
                self._view.out[order.client_order_id] = self._admitted(order, position_id)
                admitted.append(order.client_order_id)
        except NotGranted:
            for name in admitted:
                self._forget(name)
            raise

    def admit_change(self, order: Order, quantity: Any, price: Any) -> None:
        """Hold what an order costs more with another quantity or price, or raise `NotGranted`."""
        out = self._view.out.get(order.client_order_id)
        if out is None or out.reduce_only:
            return
        known = price_of(order, self._strategy.cache) or ZERO
        new_price = known if price is None else max(price.as_decimal(), known)
        new = out.quantity if quantity is None else max(quantity.as_decimal(), out.quantity)
        if not out.opens:
            out.closing, _ = self._view.closing(order, new, order.position_id)
        self._ask_more(out, order, self._cost(out, new, new_price, limited=order.has_price))
        out.quantity = new

    def _ask_more(self, out: Out, order: Order, usd: Decimal) -> None:
        """Hold what an order that is out costs more than was asked for it, or raise `NotGranted`."""
        if usd <= out.asked_usd:
            return
        with exact_arithmetic():
            more = usd - out.asked_usd
        self._wishes += 1
        key = f"{order.client_order_id}/{self._strategy.clock.timestamp_ns()}/{self._wishes}"
        exact = out.hold is not None and self._is_exact(out.instrument.id)
        place = {"position_id": out.hold} if exact else {"tags": self._tags_of(out.instrument)}
        granted = self._reserve(key, more, more, until_known=True, **place)
        out.hold = out.hold or granted.position_id
        out.asked_usd = usd

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

    def _admitted(self, order: Order, position_id: PositionId | None) -> Out:
        instrument, price = self._strategy.cache.instrument(order.instrument_id), price_of(order, self._strategy.cache)
        if instrument is None:
            raise NotGranted(f"no instrument {order.instrument_id} is known")
        quantity: Decimal = order.quantity.as_decimal()
        if order.is_quote_quantity and price is not None:
            quantity = order_quantity(order, price)
        closing, closing_price = self._view.closing(order, quantity, position_id)
        out = Out(instrument, order.side, quantity, order.is_reduce_only, position_id, closing)
        if not out.opens:
            return out
        self._countable(order.instrument_id)
        if price is None:
            raise NotGranted(f"no price of {order.instrument_id} is known; subscribe to its quotes, trades or bars")
        out.freed_usd = notional_usd(instrument, closing, closing_price)
        out.asked_usd = usd = self._cost(out, quantity, price, limited=order.has_price)
        if usd:
            out.hold = self._from_budget(order, usd) or self._reserve_for(order, usd, self._tags_of(instrument))
        return out

    def _reserve_for(self, order: Order, usd: Decimal, tags: dict[str, str]) -> str:
        name = str(order.client_order_id)
        return self._reserve(name, usd, usd, until_known=True, tags=tags, reference=name).position_id

    def _cost(self, out: Out, quantity: Decimal, price: Decimal, *, limited: bool) -> Decimal:
        """Return what an order adds to the strategy's exposure, USD. limited: a limit bounds its price."""
        with exact_arithmetic():
            usd = notional_usd(out.instrument, max(quantity - out.closing, ZERO), price)
            usd = usd if limited else above(usd, self._slippage)
            return max(usd - out.freed_usd, ZERO)  # an order that turns a position closes it first

    def _from_budget(self, order: Order, usd: Decimal) -> str | None:
        """Return the hold of this market's budget for an order that costs no more; None where it is to be asked for."""
        budget = self._budgets.get(order.instrument_id)
        if budget is None:
            return None
        if usd <= budget.usd:
            del self._budgets[order.instrument_id]
            key = self._key(f"{order.client_order_id}/budget")
            request = {"key": key, "position_id": budget.position_id, "until_known": True}
            try:
                self._call(lambda ledger: ledger.extend(**request))
            except LedgerError:  # it has ended, or the ledger is away: the next question tells
                return None
            return budget.position_id
        self._drop_budget(order.instrument_id)
        return None

    def _countable(self, instrument_id: InstrumentId) -> Any:
        instrument = self._strategy.cache.instrument(instrument_id)
        why_not = f"no instrument {instrument_id} is known" if instrument is None else not_countable(instrument)
        if why_not is not None:
            raise NotGranted(why_not)
        return instrument

    def _tags_of(self, instrument: Any) -> dict[str, str]:
        return {**self._tags, "venue": venue_of(instrument), "symbol": market_of(instrument)}

    def _reserve(self, key: str, usd: Decimal, at_least: Decimal, **place: Any) -> _Grant:
        self.catch_up()
        if self._behind_since_ns is not None:
            raise NotGranted("the ledger is away, or does not take this strategy's book; its error is in the log")
        request = {"key": self._key(key), "portfolio": self._portfolio, "amount_usd": usd, **place}
        if at_least:
            request["min_notional_usd"] = at_least
        try:
            decision = self._call(lambda ledger: ledger.reserve(**request))
        except (InvalidRequest, Forbidden, NotFound, WrongState) as error:
            raise NotGranted(str(error)) from error
        except LedgerError as error:
            self._fell_behind(error)  # it may be held all the same, for no order: the next book gives it back
            raise NotGranted(f"the ledger gave no answer: {error}") from error
        if not decision.granted:
            raise NotGranted(f"{decision.reason} ({decision.binding}); {decimal_text(usd)} USD were asked for")
        return _Grant(decision.position_id, decision.budget)

    # Telling.

    def hear(self, event: Any) -> None:
        """Tell the ledger what an event of one of the strategy's orders changes."""
        order, market = self._strategy.cache.order(event.client_order_id), event.instrument_id
        name = event.client_order_id if order is None else order.exec_spawn_id or order.client_order_id
        out, filled = self._view.out.get(name), isinstance(event, OrderFilled)
        ended = all(one.is_closed for one in self._view.orders_of(name))
        if not filled and (out is None or not ended):
            return
        told = self._tell_fill(out, name, event, ended) if filled else True
        if out is not None and ended:
            self._forget(name)
        if self._behind_since_ns is not None:
            self.catch_up()
        elif not told or market in self._by_book:
            self._settle([market.venue])
        if filled:
            self._check_exits(market)

    def _is_exact(self, market: InstrumentId) -> bool:
        """Whether it is known which hold belongs to which order of a market."""
        return self._behind_since_ns is None and market not in self._by_book

    def _check_exits(self, market: InstrumentId) -> None:
        """Ask for exits whose position another order has closed: they open one. Cancel those that are not granted."""
        for out, order, opens in self._view.left_over(market):
            with exact_arithmetic():
                out.freed_usd = part_of(out.freed_usd, out.closing - opens, out.closing)
                out.closing -= opens
            price = price_of(order, self._strategy.cache) or ZERO
            try:
                self._ask_more(out, order, self._cost(out, out.quantity, price, limited=order.has_price))
            except NotGranted as denied:
                self._strategy.log.warning(f"{order.client_order_id} has nothing to close any more: {denied}")
                self._strategy.cancel_order(order)

    def _tell_fill(self, out: Out | None, name: ClientOrderId, fill: OrderFilled, ended: bool) -> bool:
        """Tell what a fill opened, of its order's own hold where it has one. Return whether that is all it did."""
        opened, market = self._view.opened_by(fill), fill.instrument_id
        if not opened or out is None or not_countable(out.instrument) is not None:
            return False
        turns = out.closing > 0 or opened < fill.last_qty.as_decimal()
        if self._behind_since_ns is not None or (not self._is_exact(market) and out.hold is not None):
            return False
        if out.hold is None and not turns:
            return False
        coins, price = coins_of(out.instrument, opened), fill.last_px.as_decimal()
        if opened < fill.last_qty.as_decimal() and not self._tell(partial(self._declare, market.venue, market, coins)):
            return False  # what was there is closed first
        filled, _ = filled_of(self._view.orders_of(name))
        request = {"key": self._key(f"{name}/fill/{filled}"), "quantity": coins, "price": price}
        if out.hold is None:
            request |= {"portfolio": self._portfolio, "tags": self._tags_of(out.instrument)}
            request |= {"legs": _legs(out, coins, price), "note": f"{name} turned a position"}
            return self._tell(lambda: self._call(lambda ledger: ledger.adopt(**request)))
        request |= {"position_id": out.hold, "rest": "free" if ended else "hold"}
        request |= {"legs": None if out.told else _legs(out, coins, price)}
        if not self._tell(lambda: self._call(lambda ledger: ledger.confirm(**request))):
            return False
        out.told = True
        out.hold = None if ended else out.hold
        return True

    def _forget(self, name: ClientOrderId) -> None:
        """An order has ended: free what is still held for it."""
        out = self._view.out.pop(name)
        if out.hold is not None and out.instrument.id not in self._by_book:
            self._give_back(f"{name}/end", out.hold)

    def _drop_budget(self, instrument_id: InstrumentId) -> None:
        budget = self._budgets.pop(instrument_id, None)
        if budget is not None:
            self._give_back(f"budget/{budget.position_id}/back", budget.position_id)

    def _give_back(self, key: str, position_id: str) -> None:
        request = {"key": self._key(key), "position_id": position_id, "held_only": True}

        def release(ledger: Any) -> None:
            with suppress(WrongState):  # it holds nothing any more
                ledger.release(**request)

        self._tell(lambda: self._call(release))

    def start(self) -> None:
        """Take up the orders that are out, after a restart, and declare the book."""
        self._view.take_up()
        self._by_book |= {one.instrument.id for one in self._view.out.values() if one.hold is None}
        self.settle()

    def settle(self) -> None:
        """Declare the strategy's whole book, at every venue that it knows."""
        self._settle(self._view.venues())

    def catch_up(self) -> None:
        """Declare the book again after a call that failed, but not at once after it."""
        since_ns = self._behind_since_ns
        if since_ns is not None and self._strategy.clock.timestamp_ns() >= since_ns + _RETRY_NS:
            self.settle()

    def _settle(self, venues: Sequence[Venue]) -> None:
        if all(self._tell(partial(self._declare, venue)) for venue in venues):
            if self._behind_since_ns is not None:
                self._strategy.log.info("The ledger has the book again.")
            self._behind_since_ns = None
            self._by_book &= {one.instrument.id for one in self._view.out.values()}

    def _declare(self, venue: Venue, market: InstrumentId | None = None, without: Decimal = ZERO) -> None:
        """Declare the book of a venue. without: coins of a market that are told later."""
        tags = {**self._tags, "venue": str(venue).lower()}
        resting = self._view.resting(venue)
        book = {**self._own_of(self._view.found(venue), tags), **self._view.book(venue)}
        if market is not None:
            name = market_of(self._strategy.cache.instrument(market))
            coins, price, side = book.pop(name, (ZERO, ZERO, ""))
            if coins > without:
                with exact_arithmetic():
                    book[name] = coins - without, price, side
        # Every order that is out is known, so that a hold without one, however young, is of no use.
        now = _EPOCH + timedelta(microseconds=self._strategy.clock.timestamp_ns() // 1000)
        self._call(lambda ledger: ledger.settle(tags, book, resting, self._portfolio, as_of=now))

    def _own_of(self, found: Book, tags: dict[str, str]) -> Book:
        """Return what the ledger has of this strategy where nautilus found something, and at most as much."""
        own: Book = {}
        for market, (coins, price, side) in found.items():
            page = self._call(methodcaller("positions", self._portfolio, state="open", tags={**tags, "symbol": market}))
            with exact_arithmetic():
                has = sum([one.quantity for one in page.items if one.quantity is not None], ZERO)
            if has:
                own[market] = min(has, coins), price, side
        return own

    def _tell(self, work: Callable[[], Any]) -> bool:
        """Do what tells the ledger something; return whether it was told."""
        try:
            work()
        except LedgerError as error:
            self._fell_behind(error)
            return False
        return True

    def _fell_behind(self, error: LedgerError) -> None:
        """A call failed: which order has which hold is not known any more; the book is declared again later."""
        if self._behind_since_ns is None:
            self._strategy.log.error(f"The ledger gave no answer; no entries until the book is declared again: {error}")
        self._behind_since_ns = self._strategy.clock.timestamp_ns()
        self._by_book |= {one.instrument.id for one in self._view.out.values()}

    def _key(self, rest: str) -> str:
        return f"{self._strategy.trader_id}/{self._strategy.id}/{rest}"


def _legs(out: Out, coins: Decimal, price: Decimal) -> list[Leg] | None:
    """Return the leg that filled, where the market's name says what it is."""
    symbol = market_of(out.instrument)
    said = parse_symbol(symbol)
    side: Side = "buy" if out.side == OrderSide.BUY else "sell"
    return None if said is None else [Leg(venue_of(out.instrument), symbol, said.kind, side, coins, price)]
