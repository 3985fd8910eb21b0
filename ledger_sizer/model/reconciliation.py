"""Types of reconciliation: kinds of drift, policies, findings, drifts and runs."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from ledger_sizer.model.choices import DriftKind, DriftPolicy, DriftState, RunOutcome
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.names import position_id
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import exact_arithmetic

EXTERNAL = "exchange"
"""Value of the tag `external`. What an exchange shows beyond the ledger counts in the scope `external=exchange`."""

QUOTE = "quote"
"""Subject of drifts about the free quote balance."""

Part = Literal["account", "positions", "balances", "both", "ledger"]


class Market(NamedTuple):
    """One side of a derivative market (`BTC/USDT:USDT`), or a spot asset (`BTC`), at one account.

    Long and short are two markets, because in hedge mode an account has both.
    """

    venue: str
    account: str
    subject: str
    side: str

    @property
    def is_swap(self) -> bool:
        """Whether it is a derivative market, by the form of its unified name. Everything else is an asset."""
        return ":" in self.subject

    @property
    def opposite(self) -> "Market":
        """The other side of the same market."""
        return self._replace(side="short" if self.side == "long" else "long")

    @property
    def base(self) -> str:
        """The coin. A factor in the name is not part of it: of `1000PEPE/USDT:USDT` and of `1000PEPE` it is `PEPE`."""
        return split_factor(self.subject.partition("/")[0])[1]

    @property
    def quote(self) -> str:
        """The quote currency of a derivative market; empty for an asset."""
        return self.subject.partition("/")[2].partition(":")[0]


QUANTITY_KINDS: frozenset[DriftKind] = frozenset(
    {"unknown_position", "quantity_differs", "missing_position", "side_flipped", "late_fill", "interest"}
)
"""Kinds that concern the quantity in a market. One difference may change from one of them to another."""

EXCESS_KINDS = QUANTITY_KINDS - {"missing_position"}
"""Kinds in which the exchange may show more than the ledger. Only an excess can be adopted by a policy, or closed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference found by one comparison.

    ledger_quantity, venue_quantity: base units (USD where the subject is `quote`). excess: base units that the exchange
    shows beyond what the ledger counts, 0 where it shows less. price: USD per base unit at which the excess counts,
    None where no price is known. venues: those that it concerns, where the market names none.
    """

    market: Market
    kind: DriftKind
    ledger_quantity: Decimal | None
    venue_quantity: Decimal | None
    detail: str
    excess: Decimal = Decimal(0)
    price: Decimal | None = None
    venues: tuple[str, ...] = ()

    @property
    def difference(self) -> Decimal | None:
        """See `difference_of`."""
        return difference_of(self)

    @property
    def usd(self) -> Decimal | None:
        """See `usd_of`."""
        return usd_of(self)

    def scopes_to_freeze(self, by: str) -> str:
        """Return the scopes that it freezes, parted by commas: the portfolio, or by `venue` those of its venues."""
        venues = (self.market.venue,) if self.market.venue else self.venues
        return ",".join(f"venue={venue}" for venue in venues) if by == "venue" and venues else PORTFOLIO_SCOPE

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """The identity of a drift: findings with the same key are sightings of the same drift."""
        market = self.market
        return (market.venue, market.account, market.subject, market.side, self.kind)


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference tracked across runs: `open -> confirmed -> resolved`, or `acknowledged` by a person.

    sightings: number of runs that saw it. For an acknowledged drift that recent runs saw less of: how many more such
    runs until it is resolved. position: number of the external position that counts its excess. revision: how often it
    was counted. requested: what the orchestrator was asked to do. frozen_scope: the scope it froze, or several parted
    by commas. actor, reason: who decided about it last, and why.
    """

    id: int
    portfolio: str
    venue: str
    account: str
    subject: str
    side: str
    kind: DriftKind
    state: DriftState
    policy: DriftPolicy
    sightings: int
    ledger_quantity: Decimal | None
    venue_quantity: Decimal | None
    excess: Decimal
    price: Decimal | None
    detail: str
    position: int | None
    revision: int
    requested: str | None
    frozen_scope: str | None
    first_run: int
    last_run: int
    opened_us: int
    updated_us: int
    ended_us: int | None
    actor: str | None
    reason: str | None

    @property
    def name(self) -> str:
        """Its name in the audit chain."""
        return f"drift-{self.id}"

    @property
    def title(self) -> str:
        """Description without quantities, which may change: a repeated command must be equal to the first."""
        place = f" at {self.venue}/{self.account}" if self.venue else ""
        return f"{self.name}, {self.kind}: {self.subject}{f' {self.side}' if self.side else ''}{place}"

    @property
    def where(self) -> str:
        """Venue, account, market and side."""
        account = f"{self.venue}/{self.account}" if self.account else self.venue
        return " ".join(part for part in (account, self.subject, self.side) if part)

    @property
    def shortfall(self) -> Decimal:
        """Coins that the ledger holds and the exchange does not: all of them if the signs differ."""
        ledger, venue = self.ledger_quantity or Decimal(0), self.venue_quantity or Decimal(0)
        if self.kind not in QUANTITY_KINDS or self.kind == "late_fill":
            return Decimal(0)
        with exact_arithmetic():
            return abs(ledger) if ledger * venue < 0 else max(abs(ledger) - abs(venue), Decimal(0))

    @property
    def difference(self) -> Decimal | None:
        """See `difference_of`."""
        return difference_of(self)

    @property
    def usd(self) -> Decimal | None:
        """See `usd_of`."""
        return usd_of(self)

    @property
    def market(self) -> Market:
        """The market it is about."""
        return Market(self.venue, self.account, self.subject, self.side)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """See `Finding.key`."""
        return (self.venue, self.account, self.subject, self.side, self.kind)

    @property
    def live(self) -> bool:
        """Whether it still differs and is not acknowledged."""
        return self.state in ("open", "confirmed")

    @property
    def frozen_scopes(self) -> tuple[str, ...]:
        """The scopes it froze."""
        return tuple(self.frozen_scope.split(",")) if self.frozen_scope else ()

    @property
    def freezes(self) -> bool:
        """Whether it still requires its scope to be frozen."""
        return self.live and self.frozen_scope is not None and stops_grants(self.policy, self)

    @property
    def part(self) -> Part:
        """The part of a snapshot that must be known before it can be called gone."""
        if self.kind == "fetch_failed":
            return "account"
        if self.kind == "balance_below_holds":
            return "both"
        if self.kind == "legs_unequal":
            return "both" if self.account else "ledger"
        of_positions = self.market.is_swap or self.kind in ("expired_hold", "unreadable")
        return "positions" if of_positions else "balances"

    @property
    def position_id(self) -> str | None:
        """Name of the external position that counts its excess."""
        return None if self.position is None else position_id(self.portfolio, self.position)

    @property
    def opened_at(self) -> datetime:
        """When it was first seen."""
        return from_us(self.opened_us)

    @property
    def updated_at(self) -> datetime:
        """When it last changed."""
        return from_us(self.updated_us)

    @property
    def ended_at(self) -> datetime | None:
        """When it was resolved; None before."""
        return None if self.ended_us is None else from_us(self.ended_us)


def stops_grants(policy: DriftPolicy, drift: Finding | Drift) -> bool:
    """Whether a confirmed drift freezes: by its policy, or under any policy if its excess has no price to count at."""
    return policy == "freeze" or (drift.excess > 0 and drift.price is None)


def difference_of(one: Finding | Drift) -> Decimal | None:
    """Return what the second quantity is more than the first, in their unit; None where there are no quantities."""
    if one.ledger_quantity is None or one.venue_quantity is None:
        return None
    with exact_arithmetic():
        return one.venue_quantity - one.ledger_quantity


def usd_of(one: Finding | Drift) -> Decimal | None:
    """Return what the difference is worth, USD, at its price; None where there is no price."""
    difference = difference_of(one)
    if difference is None or (one.price is None and one.kind != "balance_below_holds"):
        return None
    with exact_arithmetic():
        return abs(difference) * (Decimal(1) if one.price is None else one.price)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the reconciliation for one portfolio.

    trigger: `start`, `interval` or `demand`. outcome: `good` (every account was fetched completely), `partial`,
    `failed`. fetched: one entry per account. found: counts by name and by kind of drift. id: 0 for a dry run.
    """

    id: int
    portfolio: str
    trigger: str
    outcome: RunOutcome
    started_us: int
    finished_us: int
    epoch: int
    fetched: tuple[dict[str, Any], ...]
    found: dict[str, int]

    @property
    def started_at(self) -> datetime:
        """When it began."""
        return from_us(self.started_us)

    @property
    def finished_at(self) -> datetime:
        """When it was recorded."""
        return from_us(self.finished_us)

    @property
    def duration_seconds(self) -> Decimal:
        """Time from the first request to the record."""
        return Decimal(f"{self.finished_us - self.started_us}E-6")


@dataclass(frozen=True, slots=True)
class Report:
    """A run, its findings, and how they changed the drifts (not at all in a dry run)."""

    run: Run
    findings: tuple[Finding, ...]
    live: tuple[Drift, ...] = ()
    confirmed: tuple[Drift, ...] = ()
    resolved: tuple[Drift, ...] = ()
