"""`Desk`: the ledger for calls inside a trading loop. It never raises and never waits long.

    desk = Desk("http://127.0.0.1:8321", tags={"bot": "a"})
    usd = desk.ask("BTC/USDT", 100)      # what may be put on it; 0 on a denial or an outage
    desk.settle({"BTC/USDT": (Decimal("0.002"), Decimal(50000))})      # what the bot has open now

Fail closed: whatever goes wrong, the answer is 0 and the log says why, once.
"""

import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime
from decimal import Decimal
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Self, TypeVar, cast

from ledger_sizer.adapters.bounded_calls import BoundedCalls, NoAnswer
from ledger_sizer.adapters.connections import client_of, open_ledger
from ledger_sizer.adapters.desk_calls import NOTHING, DeskCalls, DeskLedger
from ledger_sizer.adapters.wishes import DenialMemory, Wish, log, without_floats
from ledger_sizer.model.commands import Reserve
from ledger_sizer.model.errors import InvalidRequest, Unavailable
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.settle import GivenBook, Settle
from ledger_sizer.model.tags import EXTERNAL_TAG, GivenTags, tags_of

if TYPE_CHECKING:
    from pydantic import SecretStr

    from ledger_sizer.client import LedgerClient
    from ledger_sizer.ledger.ledger import Ledger

T = TypeVar("T")

BACK_OFF_SECONDS = 5.0
"""How long calls are answered at once after the ledger failed, before one tries again."""


class Desk:
    """Asks the ledger for one bot, under the bot's own tags. Safe from several threads; not across a fork.

    The ledger is called on a thread of the desk's own, one call at a time and in order. A caller waits
    `patience_seconds` at most; what ends later is found by the next call. While the ledger is known to be away,
    callers wait for nothing.
    """

    def __init__(
        self,
        ledger: "Ledger | LedgerClient | str",
        *,
        tags: GivenTags | None = None,
        portfolio: str = "main",
        patience_seconds: float | None = 1.0,
        repeat_seconds: float = 60.0,
        ttl_seconds: int | None = None,
        api_key: "str | SecretStr | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ledger: an open `Ledger` or `LedgerClient`, or a URL: `sqlite:///FILE`, `postgresql://...`, `http://...`.

        tags: what tells this bot's positions from all others. Two desks with the same tags are one bot: what one
        settles closes the other's. Without any, `bot` is the ledger's client (`LEDGER_CLIENT`).
        patience_seconds: how long a call may keep its caller; None: as long as it takes, for backtests.
        repeat_seconds: how long a denial answers the same wish again. ttl_seconds: life of its holds; None for the
        ledger's default. api_key: for an HTTP service. clock: monotonic seconds.

        Raises `InvalidRequest`, and what a ledger raises that cannot be opened; one that is away is opened later.
        """
        if patience_seconds is not None and not (_is_number(patience_seconds) and patience_seconds > 0):
            raise InvalidRequest(
                f"patience_seconds must be above 0, or None, got {patience_seconds!r}", field="patience_seconds"
            )
        if not (_is_number(repeat_seconds) and repeat_seconds >= 0):
            raise InvalidRequest(f"repeat_seconds must be 0 or more, got {repeat_seconds!r}", field="repeat_seconds")
        if not isinstance(ledger, str) and (not hasattr(ledger, "settle") or iscoroutinefunction(ledger.settle)):
            raise InvalidRequest(
                f"ledger must be a Ledger, a LedgerClient or a URL, got {ledger!r:.100}", field="ledger"
            )
        self.portfolio = portfolio_name(portfolio)
        self.tags = tags_of(tags if tags is not None else {"bot": client_of(ledger)})
        if not self.tags or "symbol" in self.tags or EXTERNAL_TAG in self.tags:
            raise InvalidRequest(
                f"tags must name the bot, such as {{'bot': 'a'}}, without symbol and external, got {self.tags!r}",
                field="tags",
            )
        Reserve(key="check", tags=self.tags, ttl_seconds=ttl_seconds)
        self._clock = clock
        self._lock = threading.Lock()
        self._away: str | None = None
        self._try_again_at = 0.0
        self._denials = DenialMemory(repeat_seconds, clock)
        self._calls = BoundedCalls(patience_seconds, "ledger-desk")
        self._at_ledger = DeskCalls(
            lambda: (
                open_ledger(ledger, api_key, patience_seconds)
                if isinstance(ledger, str)
                else cast("DeskLedger", ledger)
            ),
            self.tags,
            self.portfolio,
            ttl_seconds=ttl_seconds,
            denials=self._denials,
            clock=clock,
            unwanted=lambda: self._calls.overdue,
        )
        self._owned = isinstance(ledger, str)
        self._closed = False
        try:
            _ = self._at_ledger.ledger
        except Unavailable as error:
            self._outage_began(_text_of(error))
        except Exception:
            self._calls.close()
            raise

    def ask(
        self,
        symbol: str,
        usd: Decimal | int | float | str,
        at_least: Decimal | int | float | str = 0,
        *,
        wish: str | None = None,
    ) -> Decimal:
        """Return what may be put on a market now, USD: at most `usd`, at least `at_least`, or else 0.

        The answer is held for this bot. Asked again while that hold lives and nothing of it has filled, it is the same
        wish: the same hold answers, for its time anew. Another thread than the one that got it is answered 0.
        wish: a name for the order to come, such as its client id, for a bot that has several orders out in one market:
        each name has its own hold, whichever thread asks.
        """
        try:
            asked = Wish.of(symbol, usd, at_least, wish)
            self._at_ledger.reserve_command(asked)  # raises for a bad symbol or figure
        except Exception as error:  # noqa: BLE001 - a desk never raises
            self._denials.tell_refused("ask", error, str(symbol))
            return NOTHING
        if self._denials.answers(asked):
            return NOTHING
        return self._attempt(lambda: self._at_ledger.ask(asked), NOTHING)

    def settle(self, book: GivenBook, resting: Collection[str] = (), *, as_of: datetime | None = None) -> bool:
        """Declare what the bot has open, and the markets where entry orders of it rest (see `Ledger.settle`).

        book: `{market: (quantity, price)}`, coins and their average entry price; a float counts as its shortest text.
        True: the ledger equals the book. False: not yet, and the log says why. A book that met an outage is sent again
        with the next call of the desk, whichever that is; a newer book takes its place.
        """
        try:
            declared = Settle(self.tags, without_floats(book), resting, self.portfolio, as_of)
        except Exception as error:  # noqa: BLE001 - a desk never raises
            self._denials.tell_refused("settle", error)
            return False
        self._at_ledger.declare(declared)
        return self._attempt(lambda: self._at_ledger.catch_up(declared), False)

    def release(self, symbol: str, *, wish: str | None = None) -> None:
        """Free the holds of a market, when no entry order of the bot is live there any more. What filled stays open.

        wish: free only the hold of this name.
        Where it met an outage it is done with the next call that reaches the ledger, before anything else.
        """
        self._at_ledger.declare_free(str(symbol), wish)
        self._attempt(self._at_ledger.catch_up, False)

    def close(self) -> None:
        """Stop answering. Holds stay until they end. Closes a ledger that the desk opened itself."""
        if self._closed:
            return
        self._closed = True
        if self._owned:
            try:
                self._calls.call(self._at_ledger.close)
            except Exception as error:  # noqa: BLE001 - a desk never raises
                log.warning("desk.not_closed", error=_text_of(error))
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attempt(self, work: Callable[[], T], otherwise: T) -> T:
        """Return what `work` returns, done on the desk's thread; `otherwise` where that fails or takes too long."""
        if self._closed:
            self._outage_began("the desk is closed", back_off=False)
            return otherwise
        with self._lock:
            away = self._away is not None and (self._calls.overdue or self._clock() < self._try_again_at)
        if away:
            return otherwise
        try:
            return self._calls.call(lambda: self._guarded(work, otherwise))
        except NoAnswer:
            self._outage_began(f"no answer within {self._calls.patience_seconds} s", back_off=False)
            return otherwise

    def _guarded(self, work: Callable[[], T], otherwise: T) -> T:
        """Do the work, on the desk's thread, and note whether the ledger is there."""
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - a desk never raises
            self._outage_began(_text_of(error))
            return otherwise
        self._outage_ended()
        return result

    def _outage_began(self, why: str, *, back_off: bool = True) -> None:
        with self._lock:
            began = self._away is None
            self._away = why
            if back_off:
                self._try_again_at = self._clock() + BACK_OFF_SECONDS
        if began:
            log.warning("desk.outage_began", why=why)

    def _outage_ended(self) -> None:
        with self._lock:
            ended, self._away = self._away is not None, None
        if ended:
            log.warning("desk.outage_ended")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
