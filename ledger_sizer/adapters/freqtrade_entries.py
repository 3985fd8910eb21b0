"""Each entry of a freqtrade bot, from the wish over its order to the end of that order.

An entry is *asked* (it has a hold), *sending*, *out* (the exchange gave its order an id), or *lost*: nobody knows
whether its order arrived. While it is sending, out or lost, its pair counts among those where orders rest.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Any

from freqtrade.constants import NON_OPEN_EXCHANGE_STATES
from freqtrade.exceptions import DependencyException, InvalidOrderException
from freqtrade.persistence import Trade

from ledger_sizer.adapters import freqtrade_book as book
from ledger_sizer.adapters.desk import Desk
from ledger_sizer.adapters.freqtrade_book import SentOrder
from ledger_sizer.model.units import exact_arithmetic

log = logging.getLogger(__name__)

_FORGOTTEN_SECONDS = 60.0
"""After this long another thread's entry is over, whatever became of it."""

_LOOK_SECONDS = 10.0
"""Between two looks for a lost order, and before the first: an exchange may list an order late."""

_CLOCKS_SECONDS = 10
"""How far this machine's clock may be ahead of the exchange's."""

_ROUNDED = Decimal("1e-10")

_TRIM_MAX = Decimal("0.2")
"""An order that would have to be lowered by more than this to fit its grant, slippage aside, is not sent."""


@dataclass(slots=True, eq=False)
class _Entry:
    pair: str
    name: str
    granted: Decimal
    stage: str = "asked"
    thread: int = field(default_factory=threading.get_ident)
    began: float = field(default_factory=time.monotonic)
    order_id: str | None = None
    sent: SentOrder | None = None
    look_at: float = 0.0
    told: set[str] = field(default_factory=set)
    restored: bool = False
    seen: bool = False


class Entries:
    """The entries of one bot. Safe from several threads: freqtrade enters from its loop and from its REST API."""

    def __init__(self, desk: Desk, exchange: Any, *, slippage: float, dry_run: bool) -> None:
        self.desk = desk
        self._exchange = exchange
        self._slippage = Decimal(str(slippage))
        self._dry_run = dry_run
        self._lock = threading.Lock()
        self._level = threading.Lock()
        self._entries: list[_Entry] = []
        if not dry_run:
            for sent in book.written_down():
                lost = _Entry(sent.pair, sent.name, Decimal(0), "lost", sent=sent, restored=True)
                self._entries.append(lost)

    # Sizing.

    def ask(self, pair: str, stake: float, least: float, leverage: float | None, *, new: bool) -> float:
        """Return the stake that the ledger grants, at most `stake`, at least `least`, or else 0. Never raises."""
        try:
            return self._ask(pair, stake, least, leverage, new=new)
        except Exception:
            log.exception("%s: no entry, for asking the ledger failed", pair)
            return 0

    def _ask(self, pair: str, stake: float, least: float, leverage: float | None, *, new: bool) -> float:
        self.give_up(pair)
        if not new or self._has(pair):
            # An order of this pair may have ended just now. What it leaves is to be free for the next.
            Trade.commit()
            self.settle()
        if not new:
            leverage = book.leverage_of(pair)
        if leverage is None:
            log.error("%s: no entry, its leverage is not known", pair)
            return 0
        with exact_arithmetic():
            times = Decimal(str(leverage))
            usd = Decimal(str(stake)) * times
            name = secrets.token_hex(6)
            granted = self.desk.ask(pair, usd, Decimal(str(least)) * times, wish=name)
            if not granted:
                log.debug("%s: the ledger grants nothing of %s USD", pair, usd)
                return 0
            with self._lock:
                self._entries.append(_Entry(pair, name, granted))
            log.info("%s: the ledger grants %s of %s USD", pair, granted, usd)
            return stake if granted >= usd else _float_below(granted / times)

    def give_up(self, pair: str) -> None:
        """Give back what this thread was granted for a pair and has sent no order for."""
        entry = self._own(pair)
        if entry is not None:
            self._end(entry)

    # Orders.

    def send(self, create_order: Callable[..., Any], order: dict[str, Any]) -> Any:
        """Send an entry order within its grant. Raises `DependencyException` where there is none."""
        pair = order["pair"]
        entry = self._own(pair)
        if entry is None:
            raise DependencyException(f"The ledger granted no entry in {pair}: the order is not sent.")
        order = {**order, "amount": self._fitting(entry, order)}
        entry.sent = SentOrder(pair, entry.name, order["side"], order["amount"], order["rate"], datetime.now(UTC))
        entry.stage = "sending"
        try:
            if not self.settle():
                raise DependencyException(f"The ledger is away: the order for {pair} is not sent.")
            if not self._dry_run:
                book.write_down(entry.sent)
        except BaseException:
            self._end(entry)
            raise
        try:
            answer = create_order(**order)
        except InvalidOrderException:  # the exchange refused it
            self._end(entry)
            raise
        except BaseException:
            entry.look_at = time.monotonic() + _LOOK_SECONDS
            entry.stage = "lost"
            log.warning("%s: nobody knows whether the order arrived; %s USD stay held", pair, entry.granted)
            raise
        entry.order_id = str(answer["id"])
        entry.stage = "out"
        return answer

    def _fitting(self, entry: _Entry, order: dict[str, Any]) -> float:
        """Return the coins of an order, lowered where its price is rounded up or may slip beyond the grant."""
        with exact_arithmetic():
            price = worst = Decimal(str(order["rate"]))
            if order["ordertype"] == "market":
                worst = price * (1 + self._slippage)
            else:
                price = worst = Decimal(str(self._exchange.price_to_precision(entry.pair, order["rate"])))
            amount, most = Decimal(str(order["amount"])), entry.granted / worst
            if amount < most * (1 - _ROUNDED):
                return float(order["amount"])
            if amount <= most * (1 + _ROUNDED):  # a stake is a float: what it lost must not cost a whole step
                return float(most)
            if entry.granted < amount * price * (1 - _TRIM_MAX):
                self._end(entry)
                raise DependencyException(
                    f"The ledger granted {entry.granted} USD, the order for {entry.pair} needs {amount * price}: "
                    "it is not sent."
                )
            return _float_below(most)

    # The level.

    def settle(self, *, look: bool = False) -> bool:
        """Bring the ledger in line with freqtrade's database. Return whether it is. Never raises.

        look: also ask the exchange for lost orders, which may take long.
        """
        try:
            with self._level:
                return self._settle(look=look)
        except Exception:
            log.exception("The trades could not be declared to the ledger")
            return False

    def _settle(self, *, look: bool) -> bool:
        with self._lock:
            entries = list(self._entries)
        if look:
            for entry in entries:
                if entry.stage == "lost" and time.monotonic() >= entry.look_at:
                    self._look_for(entry)
        over = [entry for entry in entries if self._is_over(entry)]
        opened, resting = book.read_book()
        live = {entry.pair for entry in entries if entry.stage != "asked" and entry not in over}
        if not self.desk.settle(opened, resting | live):
            return False
        for entry in over:
            # A fill counts for the oldest hold of its market, whichever order it is of. So beside another order that is
            # out, the hold of the one that ended may be what covers the other.
            if entry.stage == "asked" or entry.pair not in resting | live:
                self._end(entry)
        return True

    def _is_over(self, entry: _Entry) -> bool:
        """Whether no order of an entry is out any more, nor will be."""
        if entry.stage in ("sending", "lost"):
            return False
        if entry.stage == "never arrived":
            return True
        # A thread that is here again has ended what it did before.
        left = entry.thread == threading.get_ident() or time.monotonic() - entry.began > _FORGOTTEN_SECONDS
        if entry.order_id is None:
            return left
        is_open = book.order_state(entry.pair, entry.order_id)
        if is_open is not None:
            entry.seen = True
            return not is_open
        if entry.seen:  # freqtrade deletes a trade whose only order was cancelled unfilled
            return True
        if left:  # what freqtrade does between the order and its database failed
            entry.stage, entry.look_at = "lost", 0.0
        return False

    def _look_for(self, entry: _Entry) -> None:
        """Look for a lost order at the exchange: freqtrade knows it, or it is not there, or it stays lost."""
        sent = entry.sent
        if sent is None:
            return
        entry.look_at = time.monotonic() + _LOOK_SECONDS
        if entry.order_id is not None and self._ended_unfilled(entry):
            entry.stage = "never arrived"
            return
        begin = sent.since - timedelta(seconds=_CLOCKS_SECONDS)
        known = book.known_orders(entry.pair, sent.side, begin)
        if entry.restored:  # freqtrade may have written the order down just before the end
            taken = {one.order_id for one in self._entries}
            for order_id, amount in known.items():
                if order_id not in taken and (amount is None or self._is_alike(sent, sent.side, amount)):
                    entry.order_id, entry.stage = order_id, "out"
                    return
        try:
            orders = self._exchange.fetch_orders(entry.pair, begin)
        except Exception as error:  # noqa: BLE001 - whatever it is, the order's fate stays unknown
            log.warning("%s: cannot look for an order of unknown fate: %s", entry.pair, error)
            return
        alike = [
            order
            for order in orders
            if str(order["id"]) not in known and self._is_alike(sent, order["side"], order["amount"] or 0)
        ]
        alive = [order for order in alike if order["status"] == "open" or order.get("filled")]
        for order in alive:
            if order["id"] in entry.told:
                continue
            entry.told.add(order["id"])
            log.error(
                "%s: order %s of %s coins was sent and freqtrade does not know it (%s). Its USD stay held. "
                "Cancel it, or sell what it bought, at the exchange",
                entry.pair, order["id"], order["amount"], order["status"],
            )  # fmt: skip
        if not alive:
            entry.stage = "never arrived"

    def _ended_unfilled(self, entry: _Entry) -> bool:
        """Whether the exchange says that the order of an entry ended without a fill."""
        try:
            order = self._exchange.fetch_order(entry.order_id, entry.pair)
        except Exception:  # noqa: BLE001 - it is looked for in the list next
            return False
        return bool(order["status"] in NON_OPEN_EXCHANGE_STATES and not order.get("filled"))

    def _is_alike(self, sent: SentOrder, side: str, amount: float) -> bool:
        """Whether an order of this side and of so many coins may be the one that was sent."""
        coins = self._exchange.amount_to_contract_precision(sent.pair, sent.amount)
        return bool(side == sent.side and abs(amount - coins) <= coins * 1e-6)

    # Book-keeping.

    def _own(self, pair: str) -> _Entry | None:
        me = threading.get_ident()
        with self._lock:
            for entry in self._entries:
                if entry.pair == pair and entry.thread == me and entry.stage == "asked":
                    return entry
        return None

    def _has(self, pair: str) -> bool:
        with self._lock:
            return any(entry.pair == pair for entry in self._entries)

    def _end(self, entry: _Entry) -> None:
        """Forget an entry and free what is held of it. Its fills are with the ledger."""
        with self._lock:
            if entry in self._entries:
                self._entries.remove(entry)
        self.desk.release(entry.pair, wish=entry.name)
        if entry.sent is not None and not self._dry_run:
            book.forget(entry.name)


def _float_below(exact: Decimal) -> float:
    """Return a float that is not above a Decimal: cut to 12 digits."""
    with exact_arithmetic():
        digits = exact.adjusted() - 11
        return float(exact.quantize(Decimal(1).scaleb(digits), rounding=ROUND_DOWN))
