"""Frozen domain types: positions, exposure, pages, history filters and verify reports.

Public figures are `Decimal` (USD, base units) and aware UTC `datetime`. As stored, fields that end in `_e8` are whole
1e-8 USD and fields that end in `_us` are microseconds since 1970-01-01 UTC.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

from ledger_sizer.model.choices import PositionState, Status
from ledger_sizer.model.errors import WrongState
from ledger_sizer.model.fills import Fills
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.names import position_id
from ledger_sizer.model.pools import DefaultCap, Pool, left_to_all
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, Tags
from ledger_sizer.model.times import UNTIL_KNOWN_US, from_us
from ledger_sizer.model.units import exact_arithmetic, usd


class Position(NamedTuple):
    """A position and its state: `held -> open -> closed`, `held -> released` or `held -> expired`.

    An open one may hold more.
    quantity: coins granted (held) or open now (open); None for a plain budget hold.
    price: average entry price in USD per coin, of the perpetual beside a spot leg, once filled.
    opened_us, updated_us, updated_seq: of the decisions that made it and that changed it last.
    origin: number of the ended position whose late fill this one records.
    fills: what quantity and price do not say; None where they say all.
    reference: the last that a decision about it gave.
    """

    portfolio: str
    number: int
    state: PositionState
    tags: Tags
    held_e8: int = 0
    open_e8: int = 0
    quantity: Decimal | None = None
    price: Decimal | None = None
    legs: tuple[Leg, ...] = ()
    expires_us: int | None = None
    opened_us: int = 0
    updated_us: int = 0
    updated_seq: int = 0
    origin: int | None = None
    fills: Fills | None = None
    reference: str | None = None

    @property
    def position_id(self) -> str:
        """Name of the position, e.g. `main-17`: its portfolio and the seq of the decision that created it."""
        return position_id(self.portfolio, self.number)

    @property
    def held(self) -> Decimal:
        """USD held for it: what may still fill; 0 unless it is pending."""
        return usd(self.held_e8)

    @property
    def open(self) -> Decimal:
        """USD it counts while open: the larger of what is bought and what is sold; beside spot the perpetual alone."""
        return usd(self.open_e8)

    @property
    def filled(self) -> Decimal | None:
        """Coins filled by all entries, closes not subtracted; None where versions before did not keep it."""
        if self.fills is not None and self.fills.filled is not None:
            return self.fills.filled
        if self.state == "open":
            return self.quantity
        return None if self.state == "closed" else Decimal(0)

    @property
    def unfilled(self) -> Decimal | None:
        """Coins granted and not filled; None for the hold of a plain budget."""
        if self.fills is None and self.state == "held":
            return self.quantity
        unfilled = None if self.fills is None else self.fills.unfilled
        return Decimal(0) if unfilled is None and not self.pending else unfilled

    @property
    def cost(self) -> Decimal:
        """USD that the open quantity cost, exact; a partial close takes its share."""
        if self.fills is not None and self.fills.cost is not None:
            return self.fills.cost
        if self.state != "open" or self.quantity is None or self.price is None:
            return Decimal(0)
        with exact_arithmetic():
            return self.quantity * self.price

    @property
    def until_known(self) -> bool:
        """Whether its hold never ends by time: an order is out and its fate not known."""
        return self.expires_us == UNTIL_KNOWN_US and self.live

    @property
    def notional(self) -> Decimal:
        """USD it counts against its caps, held or open."""
        return usd(self.held_e8 + self.open_e8)

    @property
    def live(self) -> bool:
        """Whether it is held or open. The other states are final."""
        return self.state in ("held", "open")

    @property
    def pending(self) -> bool:
        """Whether it may still fill: it is live and its hold has an expiry. It may also be open already.

        In SQL: `tables.PENDING`.
        """
        return self.expires_us is not None and self.live

    def is_due(self, now_us: int) -> bool:
        """Return True if its hold is overdue."""
        return self.expires_us is not None and self.expires_us <= now_us and self.pending

    @property
    def expires_at(self) -> datetime | None:
        """When the hold expires; None unless it is pending, and where it never ends by time."""
        if self.expires_us is None or self.expires_us == UNTIL_KNOWN_US or not self.pending:
            return None
        return from_us(self.expires_us)

    @property
    def opened_at(self) -> datetime:
        """When the position was reserved (or recorded, for a late fill or an adopted one)."""
        return from_us(self.opened_us)

    @property
    def updated_at(self) -> datetime:
        """When it last changed."""
        return from_us(self.updated_us)

    def stamped(self, opened_us: int, updated_us: int, updated_seq: int) -> "Position":
        """Return the position with these times. Faster than `changed`: every decision stamps one."""
        times = (opened_us, updated_us, updated_seq)
        return tuple.__new__(Position, (*self[:_TIMES], *times, *self[_TIMES + len(times) :]))

    def changed(self, **changes: Any) -> "Position":
        """Return the position with these fields changed: `_replace`, faster."""
        values: list[Any] = [*self]
        for name, value in changes.items():
            values[_PLACES[name]] = value
        return tuple.__new__(Position, values)

    def require_pending(self, verb: str) -> None:
        """Raise `WrongState` unless the position has a hold."""
        if not self.pending:
            self.require("held", verb)

    def require(self, state: PositionState, verb: str) -> None:
        """Raise `WrongState` unless the position is in `state`."""
        if self.state != state:
            raise WrongState(
                f"cannot {verb} {self.position_id}: {self.state} since seq {self.updated_seq}, {verb} needs {state}"
            )


_PLACES = {name: place for place, name in enumerate(Position._fields)}
_TIMES = _PLACES["opened_us"]
assert Position._fields[_TIMES : _TIMES + 3] == ("opened_us", "updated_us", "updated_seq")


@dataclass(frozen=True, slots=True)
class ScopeExposure:
    """Cap and exposure of one scope, USD. `cap` and `headroom` are None for a scope without a cap.

    cap: the one that counts: its own, else the default of its tag name. cap_from: the scope of that default, such as
    `venue=*`; None where the cap is its own. frozen: reservations are denied because ledger and exchange differ.
    fresh_until: from then on they are denied because the last comparison is too old; None where that is not enforced.
    guarantee: what it can always have; None without one. max_position_usd: the most that one position of it may be,
    instead of the settings' maximum; None without one. share_of_equity: the fraction of the accounts' equity that the
    cap follows; None where it follows none. frozen_note: why it is frozen. free_balance, promised: of an exchange
    account what was free when it was seen last, and what grants and fills used since; None of any other scope.
    """

    scope: str
    cap: Decimal | None
    held: Decimal
    open: Decimal
    status: Status
    frozen: bool = False
    fresh_until: datetime | None = None
    cap_from: str | None = None
    guarantee: Decimal | None = None
    max_position_usd: Decimal | None = None
    share_of_equity: Decimal | None = None
    frozen_note: str | None = None
    free_balance: Decimal | None = None
    promised: Decimal | None = None

    @property
    def exposure(self) -> Decimal:
        """held + open."""
        with exact_arithmetic():
            return self.held + self.open

    @property
    def headroom(self) -> Decimal | None:
        """cap - exposure, never below 0; None without a cap."""
        if self.cap is None:
            return None
        with exact_arithmetic():
            return max(self.cap - self.exposure, Decimal(0))

    @property
    def overage(self) -> Decimal:
        """USD above the cap. Facts (fills, a lowered cap) may exceed it, grants never do."""
        if self.cap is None:
            return Decimal(0)
        with exact_arithmetic():
            return max(self.exposure - self.cap, Decimal(0))

    @property
    def kept(self) -> Decimal:
        """What requests outside of it must leave for it: guarantee - exposure, never below 0; 0 without a guarantee."""
        with exact_arithmetic():
            return max((self.guarantee or Decimal(0)) - self.exposure, Decimal(0))

    def unreconciled(self, now: datetime) -> bool:
        """Return whether reservations are denied at `now` because it differs from the exchange, or may differ."""
        return self.frozen or (self.fresh_until is not None and self.fresh_until <= now)


@dataclass(frozen=True, slots=True)
class Exposure:
    """A portfolio's exposure at `seq`.

    scopes: the whole portfolio first, then one row per tag. pools: its guaranteed scopes. defaults: its default caps.
    These two are complete also where `scopes` is a page.
    """

    portfolio: str
    seq: int
    scopes: tuple[ScopeExposure, ...]
    pools: tuple[Pool, ...] = ()
    defaults: tuple[DefaultCap, ...] = ()

    @property
    def whole(self) -> ScopeExposure:
        """Row of the whole portfolio."""
        return next(row for row in self.scopes if row.scope == PORTFOLIO_SCOPE)

    @property
    def cap(self) -> Decimal | None:
        """The portfolio's cap, USD."""
        return self.whole.cap

    @property
    def held(self) -> Decimal:
        """USD in live reservations."""
        return self.whole.held

    @property
    def open(self) -> Decimal:
        """USD in open positions."""
        return self.whole.open

    @property
    def exposure(self) -> Decimal:
        """held + open, USD."""
        return self.whole.exposure

    @property
    def headroom(self) -> Decimal | None:
        """USD left below the cap."""
        return self.whole.headroom

    @property
    def overage(self) -> Decimal:
        """USD above the cap."""
        return self.whole.overage

    @property
    def status(self) -> Status:
        """`active`, `reducing` or `halted`."""
        return self.whole.status

    @property
    def frozen(self) -> bool:
        """Whether reservations are denied because ledger and exchange differ."""
        return self.whole.frozen

    @property
    def fresh_until(self) -> datetime | None:
        """From then on they are denied because the last comparison is too old."""
        return self.whole.fresh_until

    @property
    def max_position_usd(self) -> Decimal | None:
        """The most that one position may be, USD, instead of the settings' maximum; None where that counts."""
        return self.whole.max_position_usd

    @property
    def share_of_equity(self) -> Decimal | None:
        """The fraction of the accounts' equity that the portfolio's cap follows; None where it follows none."""
        return self.whole.share_of_equity

    @property
    def frozen_note(self) -> str | None:
        """Why the portfolio is frozen."""
        return self.whole.frozen_note

    @property
    def shared(self) -> Decimal | None:
        """What a request outside of every pool could still have: headroom less what is kept for the pools, USD."""
        return left_to_all(self.headroom, self.pools)

    def scope(self, name: str) -> ScopeExposure:
        """Return one scope by name (`venue=bybit`). An unused scope counts zero; its cap is the default's, if any."""
        for row in self.scopes:
            if row.scope == name:
                return row
        unused = ScopeExposure(name, None, Decimal(0), Decimal(0), "active")
        for default in self.defaults:
            if name.startswith(default.scope[:-1]):
                return replace(unused, cap=default.cap, cap_from=None if name == default.scope else default.scope)
        return unused


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing. `cursor` gets the next page (None: this is the last); added rows do not invalidate it."""

    items: tuple[T, ...]
    cursor: str | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        return self.items[index]


class HistoryFilters(TypedDict, total=False):
    """Filters of a listing of decisions. Every given filter must match; None is not given.

    symbol, strategy: values of the tags of these names. command: a verb, or `expire`. outcome: `granted`, `denied` or
    `applied`. reason: one of `DENIAL_REASONS`. actor: as `Decision.actor` names it. key: an idempotency key; it is
    found if it is the caller's own client's, or by an admin. position_id: one of the listed portfolio. since
    (inclusive), until (exclusive): aware datetimes. ascending: oldest first; the default is newest first.
    """

    symbol: str | None
    strategy: str | None
    command: str | None
    outcome: str | None
    reason: str | None
    actor: str | None
    key: str | None
    position_id: str | None
    since: datetime | None
    until: datetime | None
    ascending: bool


@dataclass(frozen=True, slots=True)
class ExposurePage:
    """A part of a portfolio's exposure: the whole portfolio, on every page, and some of its scopes by name.

    cursor: continues it; None after the last.
    """

    exposure: Exposure
    cursor: str | None


def require_history_filters(given: Mapping[str, object]) -> None:
    """Raise `TypeError` for an unknown filter, as Python does for an unknown keyword."""
    known = HistoryFilters.__annotations__
    for name in given.keys() - known.keys():
        raise TypeError(f"decisions cannot be filtered by {name!r}, only by {', '.join(known)}")
