"""What a bot asked for, and the denials that answer it again for a while."""

import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.telemetry import get_logger

log = get_logger("ledger_sizer.desk")


class Wish(NamedTuple):
    """What `Desk.ask` was called with. thread: of the caller."""

    symbol: str
    usd: Decimal
    at_least: Decimal
    name: str | None
    thread: int

    @classmethod
    def of(cls, symbol: str, usd: object, at_least: object, name: str | None) -> "Wish":
        """Return what the calling thread wishes. Raises `InvalidRequest`."""
        wish = cls(symbol, usd_of(usd, "usd"), usd_of(at_least, "at_least"), name, threading.get_ident())
        if not isinstance(symbol, str):
            raise InvalidRequest(f"symbol must be text, got {symbol!r:.100}", field="symbol")
        if wish.usd < wish.at_least:
            raise InvalidRequest(f"at_least {wish.at_least} is more than usd {wish.usd}", field="at_least")
        return wish

    @property
    def identity(self) -> tuple[str, str | None]:
        """What an ask must have in common with one before it to be the same wish."""
        return self.symbol, self.name

    def clearly_smaller(self, other: "Wish") -> bool:
        """Whether it is content with so much less that another's denial says nothing about it: a tenth less."""
        with exact_arithmetic():
            return self.usd * 10 < other.usd * 9 or self.at_least * 10 < other.at_least * 9


class DenialMemory:
    """The last denial of each market. The log tells one where it is another than the last, not each time.

    seconds: how long a denial answers the wish again. clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._denied: dict[str, tuple[float, Wish]] = {}
        self._told: dict[str, tuple[str | None, ...]] = {}

    def answers(self, wish: Wish) -> bool:
        """Whether the wish was denied a moment ago, and is not a smaller one."""
        with self._lock:
            until, denied = self._denied.get(wish.symbol, (0.0, wish))
            return self._clock() < until and not wish.clearly_smaller(denied)

    def note(self, wish: Wish, reason: str, binding: str | None = None) -> None:
        """Remember a denial, and tell it."""
        self.remember(wish)
        self.tell(wish, reason, binding)

    def remember(self, wish: Wish) -> None:
        """Let the wish be answered from memory from now on."""
        with self._lock:
            self._denied[wish.symbol] = (self._clock() + self._seconds, wish)

    def tell(self, wish: Wish, reason: str, binding: str | None = None) -> None:
        """Log a denial without remembering it."""
        if self._is_news(wish.symbol, (reason, binding)):
            log.info("desk.denied", symbol=wish.symbol, reason=reason, binding=binding)

    def tell_refused(self, call: str, error: Exception, symbol: str | None = None) -> None:
        """Log what is wrong with a call, so that no retry of it helps. call: the method of `Desk`."""
        if self._is_news(symbol or call, (call, str(error))):
            log.error("desk.refused", call=call, symbol=symbol, error=str(error))

    def _is_news(self, about: str, what: tuple[str | None, ...]) -> bool:
        with self._lock:
            news = self._told.get(about) != what
            self._told[about] = what
        return news

    def granted(self, symbol: str) -> None:
        """Forget the denial of a market that was granted."""
        with self._lock:
            self._denied.pop(symbol, None)
            self._told.pop(symbol, None)

    def settled(self, *, changed: bool) -> None:
        """Let every wish be asked anew where something changed: there may be room now."""
        with self._lock:
            self._told.pop("settle", None)
            if changed:
                self._denied.clear()

    def freed(self) -> None:
        """Let every wish be asked anew: there may be room now."""
        with self._lock:
            self._denied.clear()


def usd_of(value: object, name: str) -> Decimal:
    """Return USD exactly as it is written; a framework's float by its shortest text."""
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float | str):
        raise InvalidRequest(f"{name} must be a number of USD, got {value!r:.100}", field=name)
    try:
        return value if isinstance(value, Decimal) else Decimal(str(value))
    except ArithmeticError:
        raise InvalidRequest(f"{name} must be a number of USD, got {value!r:.100}", field=name) from None


def without_floats(book: Any) -> Any:
    """Return a book whose figures are as exact as they were written."""
    if not isinstance(book, Mapping):
        return book  # `Settle` says what is wrong
    return {market: _exact(entry) for market, entry in book.items()}


def _exact(entry: Any) -> Any:
    if not isinstance(entry, tuple | list):
        return entry
    return tuple([Decimal(str(figure)) if isinstance(figure, float) else figure for figure in entry])
