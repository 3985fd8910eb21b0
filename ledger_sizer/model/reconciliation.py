"""The words of reconciliation: kinds of drift, policies, findings and drifts."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple, get_args

from ledger_sizer.model.domain import from_us

DriftKind = Literal[
    "fetch_failed", "quantity_differs", "unknown_position", "missing_position", "side_flipped", "legs_unequal",
    "balance_below_holds", "late_fill", "expired_hold",
]  # fmt: skip
"""What may differ between the ledger and the exchange; docs/reconciliation.md tells what each means."""

DriftPolicy = Literal["record", "alert", "freeze", "adopt", "close"]
"""What a confirmed drift does: stand in the list; tell others; also stop new reservations; also become a position of
the ledger; also ask the orchestrator to close it."""

KINDS: tuple[DriftKind, ...] = get_args(DriftKind)
POLICIES: tuple[DriftPolicy, ...] = get_args(DriftPolicy)

DriftState = Literal["open", "confirmed", "acknowledged", "resolved"]
"""`open`: seen, not often enough yet. `confirmed`: seen in enough runs. `acknowledged`: a person says it is known and
may stay as it is. `resolved`: not there any more, or taken over."""
STATES: tuple[DriftState, ...] = get_args(DriftState)

EXTERNAL = "exchange"
"""Value of the tag `external`: what an exchange shows beyond the ledger counts in the scope `external=exchange`."""

QUOTE = "quote"
"""The subject of drifts about the free quote balance."""

Trigger = Literal["start", "interval", "demand"]

Part = Literal["account", "positions", "balances", "both", "ledger"]


class Market(NamedTuple):
    """Something that can be held: a derivative market (`BTC/USDT:USDT`) or, for spot, an asset (`BTC`); and its side.

    Long and short are apart, because in hedge mode an account has both.
    """

    venue: str
    account: str
    subject: str
    side: str

    @property
    def is_swap(self) -> bool:
        """A derivative market, by the form of its unified name; everything else is an asset."""
        return ":" in self.subject

    @property
    def opposite(self) -> "Market":
        """The same market's other side."""
        return self._replace(side="short" if self.side == "long" else "long")

    @property
    def base(self) -> str:
        """The asset it is about."""
        return self.subject.partition("/")[0]

    @property
    def quote(self) -> str:
        """The currency a derivative market is quoted in; empty for an asset."""
        return self.subject.partition("/")[2].partition(":")[0]


QUANTITY_KINDS: frozenset[DriftKind] = frozenset(
    {"unknown_position", "quantity_differs", "missing_position", "side_flipped", "late_fill"}
)
"""Kinds that say how much of a market there is. One difference may pass from one of them to another."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference that one comparison saw.

    ledger_quantity, venue_quantity: base units (USD where the subject is `quote`). excess: what the exchange shows
    beyond what the ledger counts, base units, 0 where it shows less. price: USD per base unit to count it at, None
    where nobody knows one.
    """

    market: Market
    kind: DriftKind
    ledger_quantity: Decimal | None
    venue_quantity: Decimal | None
    detail: str
    excess: Decimal = Decimal(0)
    price: Decimal | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two sightings the same drift."""
        market = self.market
        return (market.venue, market.account, market.subject, market.side, self.kind)


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference with a life: `open -> confirmed -> resolved`, or `acknowledged` by a person.

    sightings: runs that saw it; of an acknowledged one that runs saw less of lately, how many more of them it outlasts.
    position: number of the external position that counts its excess. revision: how often it was counted. requested:
    what the orchestrator was asked to do. frozen_scope: the scope it froze. actor, reason: who decided about it last,
    and why.
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
        """How the audit chain calls it."""
        return f"drift-{self.id}"

    @property
    def title(self) -> str:
        """What it is, without the figures, which may change: for commands that are sent again and must be equal."""
        place = f" at {self.venue}/{self.account}" if self.venue else ""
        return f"{self.name}, {self.kind}: {self.subject}{f' {self.side}' if self.side else ''}{place}"

    @property
    def market(self) -> Market:
        """What it is about."""
        return Market(self.venue, self.account, self.subject, self.side)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """See `Finding.key`."""
        return (self.venue, self.account, self.subject, self.side, self.kind)

    @property
    def live(self) -> bool:
        """Whether it still differs and nobody has said that it may."""
        return self.state in ("open", "confirmed")

    @property
    def freezes(self) -> bool:
        """Whether it asks that its scope be frozen, still."""
        return self.live and self.frozen_scope is not None and stops_grants(self.policy, self)

    @property
    def part(self) -> Part:
        """Which part of a snapshot has to be known to say that it is gone."""
        if self.kind == "fetch_failed":
            return "account"
        if self.kind == "balance_below_holds":
            return "both"
        if self.kind == "legs_unequal":
            return "both" if self.account else "ledger"
        return "positions" if self.market.is_swap or self.kind == "expired_hold" else "balances"

    @property
    def opened_at(self) -> datetime:
        """When it was first seen."""
        return from_us(self.opened_us)


def stops_grants(policy: DriftPolicy, about: Finding | Drift) -> bool:
    """Whether a confirmed drift freezes: where its policy says so, and under any where its excess cannot be counted."""
    return policy == "freeze" or (about.excess > 0 and about.price is None)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the reconciliation for one portfolio.

    trigger: `start`, `interval` or `demand`. outcome: `good` (every account was fetched whole), `partial`, `failed`.
    fetched: one entry for each account. found: counts by name, and by kind of drift. id: 0 for a dry run.
    """

    id: int
    portfolio: str
    trigger: str
    outcome: Literal["good", "partial", "failed"]
    started_us: int
    finished_us: int
    epoch: int
    fetched: tuple[dict[str, object], ...]
    found: dict[str, int]

    @property
    def duration_seconds(self) -> Decimal:
        """From the first request to the record."""
        return Decimal(self.finished_us - self.started_us).scaleb(-6)


@dataclass(frozen=True, slots=True)
class Report:
    """A run, what it found, and what became of the drifts (nothing, in a dry run)."""

    run: Run
    findings: tuple[Finding, ...]
    live: tuple[Drift, ...] = ()
    confirmed: tuple[Drift, ...] = ()
    resolved: tuple[Drift, ...] = ()
