"""What a desk does at its ledger: on one thread, in the order in which it was asked."""

import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Any, NamedTuple, Protocol

from ledger_sizer.adapters.wishes import DenialMemory, Wish, log
from ledger_sizer.model.commands import AnyCommand, Extend, Release, Reserve
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Exposure, Page, Position
from ledger_sizer.model.errors import Forbidden, InvalidRequest, NotFound, SchemaOutdated, WrongState
from ledger_sizer.model.tags import Tags

Book = Mapping[str, tuple[Decimal, Decimal]]
"""What a bot has open: coins and average entry price, USD per coin, by market or position id."""

NOTHING = Decimal(0)

_REFUSALS = (InvalidRequest, Forbidden, NotFound, WrongState, SchemaOutdated)
"""The ledger is there, and no retry helps."""

_STOPS = ("halted", "reducing", "unreconciled")
"""Denials that concern also what is held by now: no order may be placed on it."""


class DeskLedger(Protocol):
    """What a desk needs of a `Ledger` or a `LedgerClient`."""

    def run(self, command: AnyCommand, /) -> Decision:
        """Return the decision of one command."""

    def positions(self, portfolio: str | None = None, **filters: Any) -> Page[Position]:
        """Return positions."""

    def exposure(self, portfolio: str = "main") -> Exposure:
        """Return the exposure of a portfolio."""

    def settle(
        self, tags: Tags, book: Book, resting: Iterable[str] = (), portfolio: str = "main", *, as_of: datetime | None
    ) -> Collection[Decision]:
        """Bring what the ledger holds under these tags to match the book."""

    def close(self) -> None:
        """Close the connections."""


class Declared(NamedTuple):
    """What `Desk.settle` was called with."""

    book: Book
    resting: Collection[str]
    as_of: datetime | None


class _Hold(NamedTuple):
    """A hold of a market. thread: of the caller who was told of it; None where nobody was: the answer came too late.

    fresh_until: half of its life is left then, by the desk's clock.
    """

    position_id: str
    thread: int | None
    fresh_until: float


class DeskCalls:
    """The calls of one desk. `declare` and `declare_free` may be called by any thread, the others by one at a time.

    open_ledger: opens it, or raises. unwanted: whether the caller of the present call has given up.
    """

    def __init__(
        self,
        open_ledger: Callable[[], DeskLedger],
        tags: Tags,
        portfolio: str,
        *,
        ttl_seconds: int | None,
        denials: DenialMemory,
        clock: Callable[[], float],
        unwanted: Callable[[], bool],
    ) -> None:
        self._open_ledger = open_ledger
        self._opened: DeskLedger | None = None
        self._tags = tags
        self._portfolio = portfolio
        self._ttl_seconds = ttl_seconds
        self._denials = denials
        self._clock = clock
        self._unwanted = unwanted
        self._lock = threading.Lock()
        self._declared: Declared | None = None
        self._refused: Declared | None = None
        self._to_free: dict[str, None] = {}
        self._unanswered: dict[str, Reserve] = {}
        self._holds: dict[str, _Hold] = {}
        self._key_start = f"desk:{secrets.token_hex(8)}"
        self._key_numbers = count(1)

    @property
    def ledger(self) -> DeskLedger:
        """The ledger, opened on first use."""
        if self._opened is None:
            self._opened = self._open_ledger()
        return self._opened

    def close(self) -> None:
        """Close the ledger, if it was opened."""
        if self._opened is not None:
            self._opened.close()

    # What the ledger is to know.

    def declare(self, declared: Declared) -> None:
        """Let the next `catch_up` settle this book, in place of one before it."""
        with self._lock:
            self._declared = declared

    def declare_free(self, symbol: str) -> None:
        """Let the next `catch_up` free the holds of a market."""
        with self._lock:
            self._to_free[symbol] = None

    def catch_up(self, declared: Declared | None = None) -> bool:
        """Send what the ledger does not know yet. Return whether it took this book; a newer one counts as well."""
        for symbol in list(self._to_free):
            try:
                self._free(symbol)
            except _REFUSALS as error:
                log.error("desk.release_refused", symbol=symbol, error=str(error))
            with self._lock:
                self._to_free.pop(symbol, None)
        latest = self._declared
        if latest is not None:
            try:
                self._settle(latest)
            except _REFUSALS as error:
                self._refused = latest
                log.error("desk.settle_refused", error=str(error))
            with self._lock:
                if self._declared is latest:
                    self._declared = None
        return declared is None or declared is not self._refused

    def _settle(self, declared: Declared) -> None:
        changed = self.ledger.settle(self._tags, declared.book, declared.resting, self._portfolio, as_of=declared.as_of)
        if changed:
            self._denials.freed()

    def _free(self, symbol: str) -> None:
        for position in self._positions("live", symbol):
            if position.pending:
                try:
                    self.ledger.run(Release(key=self._new_key(), position_id=position.position_id, held_only=True))
                except WrongState:
                    continue  # it ended by itself
                self._denials.freed()
        self._holds.pop(symbol, None)

    # Holds.

    def ask(self, wish: Wish) -> Decimal:
        """Return what is held for the wish now, USD; 0 where that is denied."""
        try:
            self.catch_up()
            unanswered = self._unanswered.get(wish.symbol)
            if unanswered is not None:  # its hold, if it got one, is found below
                self._reserve(unanswered, wish)
            held = self._held(wish.symbol)
            amount = None if held is None else self._from_hold(held, wish)
            return self._from_new_hold(wish) if amount is None else amount
        except _REFUSALS as error:
            self._denials.note(wish, error.code, error=str(error))
            return NOTHING

    def _from_hold(self, held: Position, wish: Wish) -> Decimal | None:
        """Return what the hold of an earlier ask gives; None where it has ended by now."""
        known = self._holds.get(wish.symbol)
        if known is not None and known.position_id != held.position_id:
            known = None
        if known is not None and known.thread not in (None, wish.thread):
            self._denials.tell(wish.symbol, "in_use", held.position_id)
            return NOTHING
        now = self.ledger.run(self.reserve_command(wish, dry_run=True))
        if now.reason in _STOPS:
            self._denials.note(wish, now.reason, now.binding)
            return NOTHING
        if known is not None and self._clock() < known.fresh_until:
            self._holds[wish.symbol] = known._replace(thread=wish.thread)
        else:
            longer = Extend(key=self._new_key(), position_id=held.position_id, ttl_seconds=self._ttl_seconds)
            try:
                self._note_hold(self.ledger.run(longer), wish)
            except WrongState:
                return None
        amount = min(held.held, wish.usd)
        if amount < wish.at_least:
            self._denials.tell(wish.symbol, "hold_too_small", held.position_id)
            return NOTHING
        self._denials.granted(wish.symbol)
        return amount

    def _from_new_hold(self, wish: Wish) -> Decimal:
        if self._unwanted():
            return NOTHING
        decision = self._reserve(self.reserve_command(wish), wish)
        return min(decision.budget or NOTHING, wish.usd) if decision.granted else NOTHING

    def _reserve(self, command: Reserve, wish: Wish) -> Decision:
        """Reserve. Until the answer is known, the next ask of the market sends the same command under the same key."""
        self._unanswered[wish.symbol] = command
        try:
            decision = self.ledger.run(command)
        except _REFUSALS:
            del self._unanswered[wish.symbol]
            raise
        del self._unanswered[wish.symbol]
        if decision.granted:
            self._note_hold(decision, wish)
            self._denials.granted(wish.symbol)
        else:
            self._denials.note(wish, decision.reason or "denied", decision.binding)
        return decision

    def _note_hold(self, decision: Decision, wish: Wish) -> None:
        life = 0.0
        if decision.expires_at is not None:
            life = (decision.expires_at - decision.decided_at).total_seconds()
        thread = None if self._unwanted() else wish.thread
        self._holds[wish.symbol] = _Hold(decision.position_id or "", thread, self._clock() + life / 2)

    def _held(self, symbol: str) -> Position | None:
        """Return the hold of a market of which nothing has filled, and no order is known to rest."""
        return next((one for one in self._positions("held", symbol) if not one.until_known), None)

    def _positions(self, state: str, symbol: str) -> Collection[Position]:
        tags = {**self._tags, "symbol": symbol}
        try:
            return self.ledger.positions(self._portfolio, state=state, tags=tags).items
        except NotFound:  # nobody used the portfolio yet
            return ()

    def reserve_command(self, wish: Wish, *, dry_run: bool = False) -> Reserve:
        """Return the command of a wish. Raises `InvalidRequest`."""
        if wish.at_least > wish.usd:
            raise InvalidRequest(f"at_least {wish.at_least} is more than usd {wish.usd}", field="at_least")
        return Reserve(
            key=self._new_key(),
            portfolio=self._portfolio,
            tags={**self._tags, "symbol": wish.symbol},
            amount_usd=wish.usd,
            min_notional_usd=wish.at_least or None,
            ttl_seconds=self._ttl_seconds,
            dry_run=dry_run,
        )

    def _new_key(self) -> str:
        return f"{self._key_start}:{next(self._key_numbers)}"
