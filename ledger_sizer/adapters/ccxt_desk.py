"""What `DeskExchange` does around each order, as steps that a sync and an async face carry out alike.

A hold is written before its order is sent and never ends by time (`until_known`): whatever dies in between, its money
stays held until the exchange was asked by client order id. So the ledger's records and the exchange's are enough to
begin anew; nothing else is kept.
"""

import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import ccxt

from ledger_sizer.adapters.ccxt_errors import DeskUnavailable, FateUnknown, OrderDenied, OrderEnded
from ledger_sizer.adapters.ccxt_orders import (
    Asked,
    OnExchange,
    OnLedger,
    Size,
    Steps,
    client_order_id,
    find_steps,
    given_client_id,
    kind_of,
    needs_ticker,
    number,
    recent_orders,
    reduces,
    seen_of,
    size_of,
    unit_of,
)
from ledger_sizer.adapters.ccxt_records import Order, OrderRecords, log
from ledger_sizer.exchanges.client import error_text
from ledger_sizer.model.choices import Side
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError, Unavailable
from ledger_sizer.model.legs import Leg, LegPlan
from ledger_sizer.model.tags import Tags
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.verbs.unknown_outcome import outcome_unknown

_LOOKS_MAX = 20
"""Most orders that one call looks up besides its own work."""

_UNWATCHED_SECONDS = 60.0
"""Age of the last look at a resting order at which the next call looks itself."""

_REFUSED = ("rejected", "canceled", "cancelled", "expired")
_AT_ONCE = ("IOC", "FOK")
_NOTHING = Decimal(0)


class OrderDesk:
    """The orders of one bot at one account. Its methods are steps; see `ccxt_orders.Steps`."""

    def __init__(
        self, client: Any, tags: Tags, portfolio: str, account: str | None, slippage: Decimal, window_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """client: the ccxt exchange. window_seconds: age at which an order that is not found was never taken."""
        self._client, self._tags, self._portfolio, self._account = client, tags, portfolio, account
        self._slippage, self._window_seconds, self._clock = slippage, window_seconds, clock
        self._owner = f"{portfolio} {account or ''} {tags.text}"
        self._records = OrderRecords(client, tags, portfolio, account, self._owner, clock)
        self._begun = False

    def note(self, orders: Iterable[Mapping[str, Any]]) -> Steps[None]:
        """Record what orders show, those of this desk among them."""
        return self._records.note(orders)

    # --- placing -------------------------------------------------------------------------------------------------

    def create(self, method: str, asked: Asked, args: Callable[[Mapping[str, Any]], tuple[Any, ...]]) -> Steps[Any]:
        """Place an order with `method(*args(params))`, after asking the ledger for what it opens."""
        before = sys.exception()  # a call within the handling of another error
        yield from self._records.load_markets()
        params = {name: value for name, value in asked.params.items() if name != "wish"}
        client_id, named = self._client_id(asked, params)
        if not given_client_id(params):
            params["clientOrderId"] = client_id
        if named:
            earlier = yield from self._placed_earlier(client_id, asked)
            if earlier is not None:
                return earlier
        yield from self.catch_up(best_effort=True)
        order = self._records.orders.get(client_id)
        if order is None:
            opens = yield from self._opens(asked, params)
            position_id = (yield from self._ask(client_id, opens, asked.side)) if opens else None
            order = Order(client_id, asked.symbol, asked.side, position_id, self._clock())
            self._records.orders[client_id] = order
        order.sent = self._clock()
        order.at_once = asked.kind == "market" or params.get("timeInForce") in _AT_ONCE
        try:
            try:
                answer = yield OnExchange(method, args(params))
            except Exception as error:  # noqa: BLE001 - whatever it is, a hold must not be lost
                answer = yield from self._after_failure(order, asked, error, before)
            return (yield from self._placed(order, answer))
        except GeneratorExit:  # the caller was cancelled, and the order may be on its way
            self._records.unresolved[_text_of(asked)] = client_id
            raise

    def _client_id(self, asked: Asked, params: Mapping[str, Any]) -> tuple[str, bool]:
        """Return the order's client order id, and whether the wish may have been placed before."""
        given, wish = given_client_id(params), asked.params.get("wish")
        if given is not None:
            return given, given not in self._records.orders or not self._records.orders[given].known
        if wish is not None:
            return client_order_id(self._client.id, "wish", wish, owner=self._owner), True
        unresolved = self._records.unresolved.get(_text_of(asked))
        if unresolved in self._records.orders:
            return unresolved, True
        return client_order_id(self._client.id, secrets.token_hex(16), owner=self._owner), False

    def _placed_earlier(self, client_id: str, asked: Asked) -> Steps[Any]:
        """Return the order that this wish got before; None where it may be placed now.

        Raises `OrderDenied` where it was denied, `OrderEnded` where its hold was freed, `FateUnknown` while an order
        of it may be on its way.
        """
        order = self._records.orders.get(client_id)
        if order is None:
            decision = yield from self._ledger("lookup", f"order/{client_id}", self._portfolio)
            opens = reduces(asked, kind_of(self._client.market(asked.symbol))) is False
            if decision is None and (opens or "wish" not in asked.params):
                return None  # what opens is reserved first; of an id of the caller's own the exchange takes one order
            if decision is not None:
                order = yield from self._records.order_of(client_id, decision, asked.symbol)
        found = yield from find_steps(self._client.id, asked.symbol, client_id)
        if found is not None:
            order = order or (yield from self._records.closing_order(client_id, asked.symbol, asked.side))
            return (yield from self._placed(order, found))
        if order is None:
            return None
        age = self._clock() - order.sent
        if age < self._window_seconds:
            raise FateUnknown(f"order {client_id} may be on its way; ask again in {self._window_seconds - age:.0f} s")
        if order.position_id is not None:
            position = yield from self._ledger("position", order.position_id)
            if not position.pending:
                self._records.end(order)
                raise OrderEnded(f"the hold of order {client_id} was freed: {position.position_id} is {position.state}")
        return None

    def _opens(self, asked: Asked, params: dict[str, Any]) -> Steps[Size | None]:
        """Return what an order can open; None for one that closes, which is made reduce-only where it can be."""
        market = self._client.market(asked.symbol)
        kind = kind_of(market)
        closes = reduces(asked, kind)
        if closes is None:
            closes = yield from self._closes_own(asked, unit_of(self._client.id, market))
            if closes:
                params["reduceOnly"] = True
        if closes:
            return None
        ticker = (yield OnExchange("fetch_ticker", (asked.symbol,))) if needs_ticker(asked) else {}
        return size_of(self._client, market, asked, ticker, self._slippage)

    def _closes_own(self, asked: Asked, unit: Decimal) -> Steps[bool]:
        """Whether a contract order is covered by what this bot has open the other way."""
        try:
            opposite = yield from self._records.open_positions(asked.symbol, "sell" if asked.side == "buy" else "buy")
        except (Unavailable, Busy) as error:
            if (yield from self._account_covers(asked)):
                return True
            raise DeskUnavailable(f"the ledger is away, and {asked.symbol} may open: {error}") from error
        with exact_arithmetic():
            held = sum([position.quantity or _NOTHING for position in opposite], _NOTHING)
            coins = Decimal(str(asked.amount)) * unit
        if 0 < held < coins:
            raise InvalidRequest(
                f"amount {asked.amount} closes {decimal_text(held)} coins and opens the other way with the rest: send "
                "two orders, the first with reduceOnly",
                field="amount",
            )
        return held > 0

    def _account_covers(self, asked: Asked) -> Steps[bool]:
        """Whether the account has that much open the other way. Reduce-only, the order then opens nothing."""
        rows = yield OnExchange("fetch_positions", ([asked.symbol],))
        side = "short" if asked.side == "buy" else "long"
        amount = Decimal(str(asked.amount))
        return any(row["side"] == side and (number(row["contracts"]) or _NOTHING) >= amount for row in rows)

    def _ask(self, client_id: str, size: Size, side: Side) -> Steps[str]:
        """Reserve what an order can open; return the name of the position. Raises `OrderDenied`, `DeskUnavailable`."""
        try:
            yield from self._begin()
            decision = yield OnLedger("reserve", kwargs={
                "key": f"order/{client_id}", "portfolio": self._portfolio, "tags": self._tags.to_json(),
                "amount_usd": size.usd, "price": size.price,
                "legs": [LegPlan(size.rules, side, account=self._account)],
                "until_known": True, "reference": client_id,
            })  # fmt: skip
        except GeneratorExit:  # the caller was cancelled
            self._records.never_sent[client_id] = None
            raise
        except (Unavailable, Busy) as error:
            self._records.never_sent[client_id] = None
            raise DeskUnavailable(f"no order was sent, because the ledger is away: {error}") from error
        if not decision.granted:
            raise OrderDenied(decision)
        if decision.replayed and not (yield from self._ledger("position", decision.position_id)).pending:
            raise OrderEnded(f"the hold of order {client_id} ended before: {decision.position_id}")
        return str(decision.position_id)

    def _after_failure(
        self, order: Order, asked: Asked, error: Exception, before: BaseException | None
    ) -> Steps[Any]:  # fmt: skip
        """Return the order though its call failed, or raise the error. A refused order gives its money back."""
        unknown = outcome_unknown(error, before)
        try:
            # Also after a refusal: ccxt may have sent the order twice, and the second was the duplicate.
            found = yield from find_steps(self._client.id, order.symbol, order.client_id)
        except ccxt.BaseError:
            pass  # the hold stays; the next call asks again
        else:
            if found is not None and (unknown or found.get("status") not in _REFUSED):
                return found
            if not unknown:
                yield from self._records.free(order)
                raise error
        log.warning("order.fate_unknown", order=order.client_id, symbol=order.symbol, error=_text(error))
        if not unknown:
            raise error
        self._records.unresolved[_text_of(asked)] = order.client_id
        if isinstance(error, ccxt.NetworkError):
            raise error
        raise FateUnknown(f"order {order.client_id} may be live: {_text(error)}") from error

    def _placed(self, order: Order, answer: Any) -> Steps[Any]:
        """Record what a placed order shows, and return it. An order that does not rest is asked for its fill."""
        self._records.resolve(order)
        if answer.get("id"):
            self._records.ids[str(answer["id"])] = order.client_id
        seen = self._records.seen(order, answer)
        if seen.filled is None and order.at_once:
            try:
                shown = yield from find_steps(self._client.id, order.symbol, order.client_id)
            except ccxt.BaseError:
                shown = None
            answer = {**answer, **{name: one for name, one in (shown or {}).items() if one is not None}}
        yield from self._records.record(order, answer)
        return answer

    # --- finding again -------------------------------------------------------------------------------------------

    def catch_up(self, *, best_effort: bool = False, all_orders: bool = False) -> Steps[None]:
        """Tell what is untold, free what was never sent, and ask for the orders whose fate is not known.

        best_effort: an exchange or a ledger that is away is asked again with the next call, and only orders that are
        overdue are looked at, unless `all_orders`.
        """
        every = all_orders or not best_effort
        try:
            yield from self._begin()
            for client_id in [*self._records.never_sent]:
                decision = yield OnLedger("lookup", (f"order/{client_id}", self._portfolio))
                if decision is not None and decision.granted:
                    yield from self._records.release_hold(client_id, decision.position_id)
                self._records.never_sent.pop(client_id, None)
            for order in [*self._records.orders.values()]:
                if order.untold is not None:
                    yield from self._records.record(order, order.untold)
            unknown = [one for one in self._records.orders.values() if every or self._is_due(one)]
            for order in unknown[: None if every else _LOOKS_MAX]:
                yield from self._look(order)
        except (LedgerError, ccxt.BaseError) as error:
            if not best_effort:
                raise
            log.warning("orders.not_caught_up", error=_text(error))

    def _is_due(self, order: Order) -> bool:
        """Whether to ask for an order that nobody asked for: its fate is not known, or it rests unwatched."""
        return not order.known or order.at_once or self._clock() - order.looked >= _UNWATCHED_SECONDS

    def _look(self, order: Order) -> Steps[None]:
        """Ask what became of an order. One that is not found after the window was never taken."""
        found = yield from find_steps(self._client.id, order.symbol, order.client_id)
        if found is not None:
            self._records.resolve(order)
            yield from self._records.record(order, found)
        elif not order.known and self._clock() - order.sent >= self._window_seconds:
            yield from self._records.free(order)

    def _begin(self) -> Steps[None]:
        """Find the orders of an earlier run: holds by tags, and closes among the recent orders of what is open."""
        if self._begun:
            return
        yield from self._records.load_markets()
        live = yield from self._records.positions("live")
        for position in live:
            if position.pending:
                decision = yield OnLedger("decision", (position.number, self._portfolio))
                client_id = decision.key.removeprefix("order/")
                if client_id != decision.key and client_id not in self._records.orders:
                    yield from self._records.order_of(client_id, decision, position.legs[0].symbol)
        self._begun = True
        opened: dict[str, int] = {}
        for position in live:
            if position.state == "open":
                opened.setdefault(position.legs[0].symbol, int(position.opened_at.timestamp() * 1000))
        for symbol, since_ms in opened.items():
            try:
                yield from self._records.note((yield from recent_orders(symbol, since_ms)))
            except ccxt.BaseError as error:
                log.warning("orders.not_listed", symbol=symbol, error=_text(error))

    def settle(self, book: Any, resting: Iterable[str]) -> Steps[Any]:
        """Bring the ledger in line with a book; None: with what the account shows of this bot's markets."""
        yield from self.catch_up()
        live = yield from self._records.positions("live")
        legs = {position.legs[0].symbol: position.legs[0] for position in live}
        if book is None:
            book = yield from self._account_book(legs)
        rests = {*resting, *[order.symbol for order in self._records.orders.values() if order.position_id is not None]}
        tags = self._tags.having("venue", [self._client.id]).to_json()
        return (yield OnLedger("settle", (tags, book, sorted(rests), self._portfolio)))

    def _account_book(self, legs: Mapping[str, Leg]) -> Steps[dict[str, Any]]:
        book: dict[str, Any] = {}
        markets = {symbol: self._client.market(symbol) for symbol in legs}
        contracts = [symbol for symbol, market in markets.items() if market.get("contract")]
        for row in (yield OnExchange("fetch_positions", (contracts,))) if contracts else ():
            market = self._client.market(row["symbol"])
            seen = seen_of(
                {"filled": row["contracts"], "average": row["entryPrice"]}, market, unit_of(self._client.id, market)
            )
            if seen.filled:
                side = "sell" if row["side"] == "short" else "buy"
                book[row["symbol"]] = (seen.filled, seen.price, side)
        if len(contracts) < len(markets):
            totals = (yield OnExchange("fetch_balance"))["total"]
            for symbol, leg in legs.items():
                coins = Decimal(str(totals.get(markets[symbol]["base"]) or 0))
                if symbol not in contracts and coins:
                    book[symbol] = (coins, leg.price or (yield OnExchange("fetch_ticker", (symbol,)))["last"])
        return book

    def _ledger(self, method: str, *args: Any) -> Steps[Any]:
        """Call the ledger before an order is sent. Raises `DeskUnavailable`."""
        try:
            return (yield OnLedger(method, args))
        except (Unavailable, Busy) as error:
            raise DeskUnavailable(f"no order was sent, because the ledger is away: {error}") from error


def _text_of(asked: Asked) -> str:
    return repr((*asked[:5], sorted(asked.params.items(), key=str)))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error_text(error)}"
