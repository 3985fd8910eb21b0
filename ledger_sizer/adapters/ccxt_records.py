"""The orders of a desk: what each holds, what of it was told to the ledger, and telling the rest."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from typing import Any

from ledger_sizer.adapters.ccxt_errors import OrderDenied
from ledger_sizer.adapters.ccxt_orders import (
    OnExchange,
    OnLedger,
    Seen,
    Steps,
    is_owned,
    seen_of,
    told_client_id,
    unit_of,
)
from ledger_sizer.model.choices import Side
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import LedgerError, WrongState
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.tags import Tags
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.telemetry import get_logger

log = get_logger("ledger_sizer.ccxt")

_DONE_MAX = 20_000
"""Most ended orders that are remembered, so that a listing of orders is not looked up again."""

RESTS_SECONDS = 600.0
"""How often the ledger is told that a resting order is alive; less than the age at which its hold is alerted."""

_NOTHING = Decimal(0)


@dataclass(slots=True)
class Order:
    """An order of this desk. position_id: its hold; None for an order that closes.

    told: coins that the ledger knows of; parts: how many times a close was told. sent, looked: when it was sent and
    seen, monotonic seconds. known: whether the exchange has shown it. at_once: it does not rest. untold: what the
    ledger has yet to be told. rests: when the ledger was told last that it is alive.
    """

    client_id: str
    symbol: str
    side: Side
    position_id: str | None
    sent: float
    told: Decimal = _NOTHING
    parts: int = 0
    known: bool = False
    at_once: bool = False
    untold: Mapping[str, Any] | None = None
    looked: float = 0.0
    rests: float = 0.0

    def __post_init__(self) -> None:
        self.rests = self.sent


class OrderRecords:
    """The orders of one desk by client order id, and what the ledger knows of them.

    ids: client order ids by the exchange's own. never_sent: whose hold is to be freed. unresolved: client order ids by
    the text of a wish whose call failed with an unknown outcome.
    """

    def __init__(
        self, client: Any, tags: Tags, portfolio: str, account: str | None, owner: str, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        """owner: whose mark is in the client order ids of this desk."""
        self._client, self._tags, self._portfolio, self._account = client, tags, portfolio, account
        self._owner, self._clock = owner, clock
        self.orders: dict[str, Order] = {}
        self.ids: dict[str, str] = {}
        self.never_sent: dict[str, None] = {}
        self.unresolved: dict[str, str] = {}
        self._done: dict[str, None] = {}

    def note(self, orders: Iterable[Mapping[str, Any]]) -> Steps[None]:
        """Record what orders show, those of this desk among them."""
        for answer in orders:
            client_id = told_client_id(answer) or self.ids.get(str(answer.get("id")), "")
            if not client_id or client_id in self._done:
                continue
            order = self.orders.get(client_id)
            if order is None and answer.get("symbol"):
                try:
                    order = yield from self._remembered(client_id, answer)
                except LedgerError as error:
                    log.warning("order.not_recorded", order=client_id, error=str(error))
                    continue
            if order is not None:
                self.resolve(order)
                yield from self.record(order, answer)

    def _remembered(self, client_id: str, answer: Mapping[str, Any]) -> Steps[Order | None]:
        """Return an order that an earlier run placed; None for one of somebody else."""
        yield from self.load_markets()
        decision = yield OnLedger("lookup", (f"order/{client_id}", self._portfolio))
        if decision is not None and decision.granted:
            return (yield from self.order_of(client_id, decision, str(answer["symbol"])))
        if decision is not None or not is_owned(self._client.id, client_id, self._owner):
            self.forget(client_id)
            return None
        return (yield from self.closing_order(client_id, str(answer["symbol"]), answer["side"]))

    def closing_order(self, client_id: str, symbol: str, side: Side) -> Steps[Order]:
        """Return an order that closes, with what of it the ledger was told."""
        order = Order(client_id, symbol, side, None, self._clock())
        for part in count():
            told = yield OnLedger("lookup", (_close_key(client_id, part), self._portfolio))
            if told is None:
                break
            with exact_arithmetic():
                order.told, order.parts = order.told + (told.quantity or _NOTHING), part + 1
        self.orders[client_id] = order
        return order

    def order_of(self, client_id: str, decision: Decision, symbol: str) -> Steps[Order]:
        """Return the order of a grant, as the ledger knows it."""
        if not decision.granted:
            raise OrderDenied(decision)
        position = yield OnLedger("position", (decision.position_id,))
        order = Order(client_id, symbol, decision.legs[0].side, position.position_id, self._clock())
        order.told = position.filled or _NOTHING
        order.sent -= max(time.time() - position.updated_at.timestamp(), 0)
        self.orders[client_id] = order
        return order

    def seen(self, order: Order, answer: Mapping[str, Any]) -> Seen:
        """Return what an answer about an order shows."""
        market = self._client.market(order.symbol)
        return seen_of({"side": order.side, **answer}, market, unit_of(self._client.id, market))

    def record(self, order: Order, answer: Mapping[str, Any]) -> Steps[None]:
        """Tell the ledger what an order shows. What meets an outage is told later; the order itself stands."""
        order.looked = self._clock()
        seen = self.seen(order, answer)
        if seen.filled is None:
            return
        try:
            if order.position_id is None:
                yield from self._close(order, seen)
            else:
                yield from self._fill(order, order.position_id, seen)
                if not seen.final and order.looked - order.rests >= RESTS_SECONDS:
                    yield from self._still_rests(order, order.position_id)
        except LedgerError as error:
            order.untold = answer
            log.warning("order.untold", order=order.client_id, symbol=order.symbol, error=str(error))
            return
        order.untold = None
        if seen.final:
            self.end(order)

    def _fill(self, order: Order, position_id: str, seen: Seen) -> Steps[None]:
        assert seen.filled is not None
        key, rest = f"order/{order.client_id}", "free" if seen.final else "hold"
        if seen.filled > order.told:
            figures = f"{decimal_text(seen.filled)}@{decimal_text(seen.price or _NOTHING)}:{rest}"
            price = seen.price or (yield OnLedger("decision", (_number(position_id), self._portfolio))).legs[0].price
            yield OnLedger("fill", kwargs={
                "key": f"{key}/{figures}"[:200], "position_id": position_id, "filled_quantity": seen.filled,
                "price": price, "rest": rest, "reference": order.client_id,
            })  # fmt: skip
            order.told = seen.filled
        elif seen.final:
            yield from self.release_hold(order.client_id, position_id)

    def _still_rests(self, order: Order, position_id: str) -> Steps[None]:
        """Tell that an order is alive, so that its hold is not alerted as one of unknown fate."""
        with suppress(WrongState):
            yield OnLedger("extend", kwargs={
                "key": f"order/{order.client_id}/rests/{int(time.time())}", "position_id": position_id,
                "until_known": True, "reference": order.client_id,
            })  # fmt: skip
        order.rests = order.looked

    def _close(self, order: Order, seen: Seen) -> Steps[None]:
        """Close what an order closed beyond what was told, the oldest of this bot's positions first."""
        assert seen.filled is not None
        while seen.filled > order.told:
            opposite = yield from self.open_positions(order.symbol, "sell" if order.side == "buy" else "buy")
            key = _close_key(order.client_id, order.parts)
            before = yield OnLedger("lookup", (key, self._portfolio))  # its answer may have been lost
            if before is None:
                if not opposite:
                    log.warning("order.closes_more_than_known", order=order.client_id, symbol=order.symbol)
                    order.told = seen.filled
                    return
                with exact_arithmetic():
                    quantity = min(seen.filled - order.told, opposite[0].quantity or _NOTHING)
                before = yield OnLedger("release", kwargs={
                    "key": key, "position_id": opposite[0].position_id, "quantity": quantity,
                    "reference": order.client_id,
                })  # fmt: skip
            with exact_arithmetic():
                order.told += before.quantity or _NOTHING
            order.parts += 1

    def free(self, order: Order) -> Steps[None]:
        """Give back what an order held that the exchange refused, now or, in an outage, later."""
        if order.position_id is None:
            self.end(order)
            return
        try:
            yield from self.release_hold(order.client_id, order.position_id)
        except LedgerError as error:
            log.warning("order.not_released", order=order.client_id, error=str(error))
            self.never_sent[order.client_id] = None
        self.end(order)

    def release_hold(self, client_id: str, position_id: str) -> Steps[None]:
        """Free what an order holds; where it holds nothing any more, that is well."""
        with suppress(WrongState):  # it holds nothing any more
            yield OnLedger("release", kwargs={
                "key": f"order/{client_id}/free", "position_id": position_id, "held_only": True,
                "reference": client_id,
            })  # fmt: skip

    def end(self, order: Order) -> None:
        """Note that an order is over."""
        self.resolve(order)
        self.orders.pop(order.client_id, None)
        self.ids = {own: one for own, one in self.ids.items() if one != order.client_id}
        self.forget(order.client_id)

    def resolve(self, order: Order) -> None:
        """Note that the exchange has shown an order: the same call again is another wish."""
        order.known = True
        self.unresolved = {wish: one for wish, one in self.unresolved.items() if one != order.client_id}

    def forget(self, client_id: str) -> None:
        """Remember an order that is over, or another's, so that it is not looked up again."""
        self._done[client_id] = None
        while len(self._done) > _DONE_MAX:
            del self._done[next(iter(self._done))]

    def positions(self, state: str) -> Steps[list[Position]]:
        """Return this desk's positions of one leg at this account, oldest first."""
        found: list[Position] = []
        cursor = None
        while True:
            page = yield OnLedger("positions", (self._portfolio,), {
                "state": state, "tags": self._tags.to_json(), "cursor": cursor, "limit": 1000
            })  # fmt: skip
            found += [one for one in page if len(one.legs) == 1 and self._is_here(one.legs[0])]
            cursor = page.cursor
            if cursor is None:
                return found

    def _is_here(self, leg: Leg) -> bool:
        return leg.venue == self._client.id and leg.account == self._account

    def open_positions(self, symbol: str, side: Side) -> Steps[list[Position]]:
        """Return the open positions of one market and side, oldest first."""
        found = yield from self.positions("open")
        return [one for one in found if one.legs[0].symbol == symbol and one.legs[0].side == side and one.quantity]

    def load_markets(self) -> Steps[None]:
        """Load the markets once."""
        if not self._client.markets:
            yield OnExchange("load_markets")


def _number(position_id: str) -> int:
    return int(position_id.rpartition("-")[2])


def _close_key(client_id: str, part: int) -> str:
    return f"order/{client_id}/close/{part}"
