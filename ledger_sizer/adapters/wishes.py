"""What a bot asked for, and the denials that answer it again for a while."""

import threading
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.telemetry import get_logger

log = get_logger("ledger_sizer.desk")


class Wish(NamedTuple):
    """What `Desk.ask` was called with. thread: of the caller."""

    symbol: str
    usd: Decimal
    at_least: Decimal
    thread: int

    def clearly_smaller(self, other: "Wish") -> bool:
        """Whether it is content with so much less that another's denial says nothing about it: a tenth less."""
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

    def note(self, wish: Wish, reason: str, binding: str | None = None, error: str | None = None) -> None:
        """Remember a denial, and tell it."""
        with self._lock:
            self._denied[wish.symbol] = (self._clock() + self._seconds, wish)
        self.tell(wish.symbol, reason, binding, error)

    def tell(self, symbol: str, reason: str, binding: str | None = None, error: str | None = None) -> None:
        """Log a denial without remembering it. error: what is wrong with the request, where that is the reason."""
        with self._lock:
            if self._told.get(symbol) == (reason, binding, error):
                return
            self._told[symbol] = (reason, binding, error)
        if error is None:
            log.info("desk.denied", symbol=symbol, reason=reason, binding=binding)
        else:
            log.error("desk.refused", symbol=symbol, reason=reason, error=error)

    def granted(self, symbol: str) -> None:
        """Forget the denial of a market that was granted."""
        with self._lock:
            self._denied.pop(symbol, None)
            self._told.pop(symbol, None)

    def freed(self) -> None:
        """Let every wish be asked anew: there may be room now."""
        with self._lock:
            self._denied.clear()


def usd_of(value: object, name: str) -> Decimal:
    """Return USD exactly as it is written; a framework's float by its shortest text."""
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float | str):
        raise InvalidRequest(f"{name} must be a number of USD, got {value!r:.100}", field=name)
    return value if isinstance(value, Decimal) else Decimal(str(value))
