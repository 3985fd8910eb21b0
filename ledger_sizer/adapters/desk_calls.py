"""What a desk does at its ledger: on one thread, in the order in which it was asked."""

import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Any, NamedTuple, Protocol

from ledger_sizer.adapters.wishes import DenialMemory, Wish
from ledger_sizer.model.commands import AnyCommand, Extend, Release, Reserve
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Exposure, Page, Position
from ledger_sizer.model.errors import Forbidden, InvalidRequest, NotFound, SchemaOutdated, WrongState
from ledger_sizer.model.settle import GivenBook, Settle
from ledger_sizer.model.tags import GivenTags, Tags

NOTHING = Decimal(0)

_REFUSALS = (InvalidRequest, Forbidden, NotFound, WrongState, SchemaOutdated)
"""The ledger is there, and no retry helps."""

_HOLDS_MAX = 10_000

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
        self,
        tags: GivenTags,
        book: GivenBook,
        resting: Collection[str],
        portfolio: str,
        *,
        as_of: datetime | None,
    ) -> Collection[Decision]:
        """Bring what the ledger holds under these tags to match the book."""

    def lookup(self, key: str, portfolio: str = "main") -> Decision | None:
        """Return the decision that a key got."""

    def close(self) -> None:
        """Close the connections."""


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
        self._declared: Settle | None = None
        self._refused: Settle | None = None
        self._to_free: dict[tuple[str, str | None], None] = {}
        self._unanswered: dict[tuple[str, str | None], Reserve] = {}
        self._holds: dict[tuple[str, str | None], _Hold] = {}
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

    def declare(self, declared: Settle) -> None:
        """Let the next `catch_up` settle this, in place of one before it."""
        with self._lock:
            self._declared = declared

    def declare_free(self, symbol: str, name: str | None) -> None:
        """Let the next `catch_up` free the holds of a market, or of one wish."""
        with self._lock:
            self._to_free[symbol, name] = None

    def catch_up(self, declared: Settle | None = None, asked: Wish | None = None) -> bool:
        """Send what the ledger does not know yet. Return whether it took this book; a newer one counts as well.

        asked: the wish that is asked for now.
        """
        for symbol, name in list(self._to_free):
            try:
                self._free(symbol, name)
            except _REFUSALS as error:
                self._denials.tell_refused("release", error, symbol)
            with self._lock:
                self._to_free.pop((symbol, name), None)
        latest = self._declared
        if latest is not None:
            try:
                self._settle(latest)
            except _REFUSALS as error:
                self._refused = latest
                self._denials.tell_refused("settle", error)
            with self._lock:
                if self._declared is latest:
                    self._declared = None
        for symbol, name in list(self._unanswered):
            if name is not None and (asked is None or asked.identity != (symbol, name)):
                self._give_up((symbol, name))
        return declared is None or declared is not self._refused

    def _give_up(self, identity: tuple[str, str | None]) -> None:
        """Free what a named wish may have got though its answer was lost: nobody may ask for that name again."""
        found = self.ledger.lookup(self._unanswered[identity].key, self._portfolio)
        if found is not None and found.granted:
            self._free_hold(found.position_id or "")
        del self._unanswered[identity]

    def _settle(self, request: Settle) -> None:
        changed = self.ledger.settle(
            request.tags, request.book, request.resting, request.portfolio, as_of=request.as_of
        )
        self._denials.settled(changed=bool(changed))

    def _free(self, symbol: str, name: str | None) -> None:
        for position in self._positions("live", symbol):
            if position.pending and name in (None, position.reference):
                self._free_hold(position.position_id)

    def _free_hold(self, position_id: str) -> None:
        with suppress(WrongState):  # it ended by itself
            self.ledger.run(Release(key=self._new_key(), position_id=position_id, held_only=True))
            self._denials.freed()

    # Holds.

    def ask(self, wish: Wish) -> Decimal:
        """Return what is held for the wish now, USD; 0 where that is denied."""
        try:
            self.catch_up(asked=wish)
            unanswered = self._unanswered.get(wish.identity)
            if unanswered is not None:  # its hold, if it got one, is found below
                self._reserve(unanswered, wish)
            held = self._held(wish)
            amount = None if held is None else self._from_hold(held, wish)
            return self._from_new_hold(wish) if amount is None else amount
        except _REFUSALS as error:
            self._denials.remember(wish)
            self._denials.tell_refused("ask", error, wish.symbol)
            return NOTHING

    def _from_hold(self, held: Position, wish: Wish) -> Decimal | None:
        """Return what the hold of an earlier ask gives; None where it has ended by now."""
        if held.until_known:
            self._denials.tell(wish, "order_out", held.position_id)
            return NOTHING
        known = self._holds.get(wish.identity)
        if known is not None and known.position_id != held.position_id:
            known = None
        if wish.name is None and known is not None and known.thread not in (None, wish.thread):
            self._denials.tell(wish, "in_use", held.position_id)
            return NOTHING
        now = self.ledger.run(self.reserve_command(wish, dry_run=True))
        if now.reason in _STOPS:
            self._denials.note(wish, now.reason, now.binding)
            return NOTHING
        if known is not None and self._clock() < known.fresh_until:
            self._holds[wish.identity] = known._replace(thread=self._thread_of(wish))
        else:
            longer = Extend(key=self._new_key(), position_id=held.position_id, ttl_seconds=self._ttl_seconds)
            try:
                self._note_hold(self.ledger.run(longer), wish)
            except WrongState:
                return None
        amount = min(held.held, wish.usd)
        if amount < wish.at_least:
            self._denials.tell(wish, "hold_too_small", held.position_id)
            return NOTHING
        self._denials.granted(wish.symbol)
        return amount

    def _from_new_hold(self, wish: Wish) -> Decimal:
        if self._unwanted():
            return NOTHING
        decision = self._reserve(self.reserve_command(wish), wish)
        if not decision.granted:
            return NOTHING
        if wish.name is not None and self._unwanted():
            self._free_hold(decision.position_id or "")  # the next ask may have another name
        return decision.budget or NOTHING

    def _reserve(self, command: Reserve, wish: Wish) -> Decision:
        """Reserve. Until the answer is known, the next ask of the market sends the same command under the same key."""
        self._unanswered[wish.identity] = command
        try:
            decision = self.ledger.run(command)
        except _REFUSALS:
            del self._unanswered[wish.identity]
            raise
        del self._unanswered[wish.identity]
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
        self._holds.pop(wish.identity, None)  # the newest stand last
        self._holds[wish.identity] = _Hold(decision.position_id or "", self._thread_of(wish), self._clock() + life / 2)
        while len(self._holds) > _HOLDS_MAX:
            del self._holds[next(iter(self._holds))]

    def _thread_of(self, wish: Wish) -> int | None:
        """Return the thread that is told of a hold; None where it has gone."""
        return None if self._unwanted() else wish.thread

    def _held(self, wish: Wish) -> Position | None:
        """Return the wish's hold, of which nothing has filled.

        Where an order is known to rest, a wish without a name is another one.
        """
        for position in self._positions("held", wish.symbol):
            if position.reference == wish.name and not (wish.name is None and position.until_known):
                return position
        return None

    def _positions(self, state: str, symbol: str) -> Collection[Position]:
        tags = {**self._tags, "symbol": symbol}
        try:
            return self.ledger.positions(self._portfolio, state=state, tags=tags).items
        except NotFound:  # nobody used the portfolio yet
            return ()

    def reserve_command(self, wish: Wish, *, dry_run: bool = False) -> Reserve:
        """Return the command of a wish. Raises `InvalidRequest`."""
        return Reserve(
            key=self._new_key(),
            portfolio=self._portfolio,
            tags={**self._tags, "symbol": wish.symbol},
            amount_usd=wish.usd,
            min_notional_usd=wish.at_least or None,
            ttl_seconds=self._ttl_seconds,
            reference=wish.name,
            dry_run=dry_run,
        )

    def _new_key(self) -> str:
        return f"{self._key_start}:{next(self._key_numbers)}"
