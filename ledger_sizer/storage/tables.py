"""Defines the schema as typed SQLAlchemy models, shared by migrations, queries and the write stores' SQL.

The database itself refuses a breach: counters cannot go below zero, exposure cannot exceed the cap without being
recorded as overage, a position's amounts must fit its state, and decisions can be neither updated nor deleted.
Positions and decisions have no foreign key to their portfolio. Every write is guarded by the portfolio's row (its
chain head must match), and a check of each row took a visible share of a batch (docs/decisions/0004).
Money is whole 1e-8 USD in BIGINT (`_e8`), time is whole microseconds since 1970 UTC in BIGINT (`_us`), prices and
quantities are exact decimal text, structures are canonical JSON text.
"""

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from ledger_sizer.model.command_base import SYSTEM_KEY_PREFIX
from ledger_sizer.storage.table_base import Base, Key, index_where


class PortfolioRow(Base):
    """One portfolio of capital, with the head of its audit chain. Writers lock this row.

    The row `DESK_ID` is the desk: it holds nothing, its chain records what concerns all portfolios, and the status of
    its one scope is the desk's. Its created_us is the time since which every decision names its actor.
    """

    __tablename__ = "portfolios"
    __table_args__ = (CheckConstraint("last_seq >= 0", name="last_seq"),)

    id: Mapped[int] = mapped_column(Key, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    last_seq: Mapped[int]
    last_hash: Mapped[str]
    last_us: Mapped[int]
    created_us: Mapped[int]


DESK_ID = 0
"""Id of the desk's row, named `names.DESK`. Migrations make it."""

NO_DESK = "halted"
"""The desk's status where somebody deleted its scope's row: deleting it must not lift a halt."""


SHARED = "guarantee_e8 IS NOT NULL OR scope LIKE '%=*' OR since_seq IS NOT NULL"
"""SQL of `ScopeState.shared`. A database uses the index of such scopes only if a statement repeats this condition."""


class ScopeRow(Base):
    """The counters of one scope: of the whole portfolio (`portfolio`) or of one tag (`venue=bybit`).

    Of the settings see `scope_settings.ScopeSettings`.
    """

    __tablename__ = "scopes"
    __table_args__ = (
        *(CheckConstraint(f"{name}_e8 >= 0", name=name) for name in ("held", "open", "overage")),
        *(
            CheckConstraint(f"{name}_e8 IS NULL OR {name}_e8 >= 0", name=name)
            for name in ("cap", "guarantee", "margin", "promised")
        ),
        *(CheckConstraint(f"{name}_e8 IS NULL OR {name}_e8 > 0", name=name) for name in ("max_position", "share")),
        CheckConstraint("cap_e8 IS NULL OR held_e8 + open_e8 <= cap_e8 + overage_e8", name="within_cap"),
        CheckConstraint("cap_e8 IS NOT NULL OR scope <> 'portfolio'", name="portfolio_capped"),
        CheckConstraint("status IN ('active', 'reducing', 'halted')", name="status"),
        CheckConstraint("frozen IN (0, 1)", name="frozen"),
        Index("ix_scopes_shared", "portfolio_id", **index_where(SHARED)),
    )

    portfolio_id: Mapped[int] = mapped_column(ForeignKey("portfolios.id"), primary_key=True)
    scope: Mapped[str] = mapped_column(primary_key=True)
    cap_e8: Mapped[int | None]
    held_e8: Mapped[int]
    open_e8: Mapped[int]
    overage_e8: Mapped[int]
    status: Mapped[str]
    frozen: Mapped[int] = mapped_column(server_default=text("0"))
    fresh_until_us: Mapped[int | None]
    guarantee_e8: Mapped[int | None]
    max_position_e8: Mapped[int | None]
    share_e8: Mapped[int | None]
    frozen_note: Mapped[str | None]
    since_seq: Mapped[int | None]
    free_e8: Mapped[int | None]
    margin_e8: Mapped[int | None]
    promised_e8: Mapped[int | None]


PENDING = "state IN ('held', 'open') AND expires_us IS NOT NULL"
"""SQL of `Position.pending`. A database uses the index of expiries only if a statement repeats this condition."""

OF_A_CALLER = f"substr(key, 1, {len(SYSTEM_KEY_PREFIX)}) <> '{SYSTEM_KEY_PREFIX}'"
"""SQL of a decision whose key is a caller's, not the ledger's own."""

_ENDED = "state IN ('closed', 'expired')"
_LIVE_ORIGIN = "origin IS NOT NULL AND state IN ('held', 'open')"


class PositionRow(Base):
    """One position. number: seq of the decision that made it. origin: number of the ended position it fills late.

    fills: what its fills add up to, in canonical JSON; NULL where the other columns say it (see `fills.Fills`).
    reference: the last that a decision about it gave.
    """

    __tablename__ = "positions"
    __table_args__ = (
        CheckConstraint("state IN ('held', 'open', 'closed', 'released', 'expired')", name="state"),
        CheckConstraint(f"held_e8 >= 0 AND (held_e8 = 0 OR ({PENDING}))", name="held"),
        CheckConstraint("open_e8 >= 0 AND (open_e8 > 0) = (state = 'open')", name="open"),
        CheckConstraint("state <> 'held' OR expires_us IS NOT NULL", name="expires"),
        CheckConstraint("state <> 'open' OR (quantity IS NOT NULL AND price IS NOT NULL)", name="filled"),
        Index("ix_positions_open", "portfolio_id", "number", **index_where("state = 'open'")),
        Index("ix_positions_expiry", "portfolio_id", "expires_us", **index_where(PENDING)),
        Index("ix_positions_ended", "portfolio_id", "updated_us", **index_where(_ENDED)),
        Index("ix_positions_origin", "portfolio_id", "origin", **index_where("origin IS NOT NULL")),
        Index("uq_positions_live_origin", "portfolio_id", "origin", unique=True, **index_where(_LIVE_ORIGIN)),
    )  # fmt: skip

    portfolio_id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    tags: Mapped[str]
    held_e8: Mapped[int]
    open_e8: Mapped[int]
    quantity: Mapped[str | None]
    price: Mapped[str | None]
    legs: Mapped[str]
    expires_us: Mapped[int | None]
    opened_us: Mapped[int]
    updated_us: Mapped[int]
    updated_seq: Mapped[int]
    origin: Mapped[int | None]
    fills: Mapped[str | None]
    reference: Mapped[str | None]


class DecisionRow(Base):
    """One decision, append-only. hash: covers every other column of the row and the hash of the row before."""

    __tablename__ = "decisions"
    __table_args__ = (
        CheckConstraint("seq >= 1", name="seq"),
        CheckConstraint("outcome IN ('granted', 'denied', 'applied')", name="outcome"),
        CheckConstraint("(outcome = 'denied') = (reason IS NOT NULL)", name="reason"),
        Index("uq_decisions_portfolio_id_key", "portfolio_id", "key", unique=True),
    )

    portfolio_id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    command: Mapped[str]
    key: Mapped[str]
    outcome: Mapped[str]
    reason: Mapped[str | None]
    position: Mapped[int | None]
    tags: Mapped[str]
    budget_e8: Mapped[int | None]
    quantity: Mapped[str | None]
    fraction: Mapped[str | None]
    raw_budget: Mapped[str | None]
    held_delta_e8: Mapped[int]
    open_delta_e8: Mapped[int]
    headroom_e8: Mapped[int | None]
    exposure_e8: Mapped[int]
    binding: Mapped[str | None]
    expires_us: Mapped[int | None]
    decided_us: Mapped[int]
    request: Mapped[str]
    trace: Mapped[str]
    actor: Mapped[str | None]
    client: Mapped[str | None]
    reference: Mapped[str | None]
    hash: Mapped[str]


class ArchiveRow(Base):
    """The manifest of one archive file: decisions `from_seq` to `to_seq`, and the final positions they ended.

    Rows may leave the live tables only if a manifest covers them. last_hash: of the chain at `to_seq`. sha256: of the
    file. from_us, to_us: times of its first and last decision.
    """

    __tablename__ = "archives"
    __table_args__ = (
        CheckConstraint("from_seq >= 1 AND to_seq >= from_seq", name="range"),
        CheckConstraint("to_us >= from_us", name="times"),
        CheckConstraint("positions >= 0", name="positions"),
        CheckConstraint("length(sha256) = 64", name="sha256"),
    )

    portfolio_id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=False)
    from_seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    to_seq: Mapped[int]
    from_us: Mapped[int]
    to_us: Mapped[int]
    last_hash: Mapped[str]
    positions: Mapped[int]
    file: Mapped[str]
    sha256: Mapped[str]
    created_us: Mapped[int]


class FacetRow(Base):
    """One combination of values that history can be filtered by. Triggers insert it, per block of 1024 decisions."""

    __tablename__ = "facets"
    __table_args__ = (
        Index("uq_facets_portfolio_id_tags_command_outcome_reason_actor", "portfolio_id", "tags", "command", "outcome",
              "reason", "actor", unique=True),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(Key, Identity(), primary_key=True)
    portfolio_id: Mapped[int] = mapped_column(Key)
    tags: Mapped[str]
    command: Mapped[str]
    outcome: Mapped[str]
    reason: Mapped[str]
    """Empty if the decision has none, not NULL, so that the unique index finds equal combinations. So is `actor`."""
    actor: Mapped[str] = mapped_column(server_default=text("''"))


class FacetBlockRow(Base):
    """One block that contains a facet. Block n is decisions 1024 (n - 1) + 1 to 1024 n of the facet's portfolio."""

    __tablename__ = "facet_blocks"
    __table_args__ = (CheckConstraint("block >= 1", name="block"),)

    facet_id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=False)
    block: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ApiKeyRow(Base):
    """One API key of the service. Only the hash of its token is stored. A revoked key stays as a record.

    client: owner of the idempotency keys that it sends, shared by API keys of one name; NULL: the key's own id. tags:
    to which it is bound, in canonical JSON; NULL: to none.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("role IN ('read', 'trade', 'admin')", name="role"),
        CheckConstraint("length(token_hash) = 64", name="token_hash"),
        CheckConstraint("revoked_us IS NULL OR revoked_us >= created_us", name="revoked"),
    )

    key_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    portfolios: Mapped[str | None]
    client: Mapped[str | None]
    token_hash: Mapped[str]
    created_us: Mapped[int]
    revoked_us: Mapped[int | None]
    tags: Mapped[str | None]


class LeaseRow(Base):
    """Who may run a kind of scheduled work now. epoch: grows with every new owner and fences off the owner before."""

    __tablename__ = "leases"
    __table_args__ = (CheckConstraint("epoch >= 1", name="epoch"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    until_us: Mapped[int]
    epoch: Mapped[int]


class ReconciliationRow(Base):
    """One reconciliation run for one portfolio: when, what it fetched, what it found. epoch: of its lease."""

    __tablename__ = "reconciliations"
    __table_args__ = (
        CheckConstraint("outcome IN ('good', 'partial', 'failed')", name="outcome"),
        CheckConstraint("finished_us >= started_us", name="finished"),
        Index("ix_reconciliations_portfolio", "portfolio", "id"),
    )

    id: Mapped[int] = mapped_column(Key, Identity(), primary_key=True)
    portfolio: Mapped[str]
    trigger: Mapped[str]
    outcome: Mapped[str]
    started_us: Mapped[int]
    finished_us: Mapped[int]
    epoch: Mapped[int]
    fetched: Mapped[str]
    found: Mapped[str]


class DriftRow(Base):
    """One difference between the ledger and the exchange, from its first sighting to its end.

    position: the external position that counts the missing quantity. revision: grows with each change of what is
    counted or requested, so that every command about the drift has its own key. frozen_scope: the scope it froze.
    """

    __tablename__ = "drifts"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'confirmed', 'acknowledged', 'resolved')", name="state"),
        CheckConstraint("(state = 'resolved') = (ended_us IS NOT NULL)", name="ended"),
        CheckConstraint("state <> 'acknowledged' OR (actor IS NOT NULL AND reason IS NOT NULL)", name="acknowledged"),
        CheckConstraint("sightings >= 1", name="sightings"),
        Index("uq_drifts_live", "portfolio", "venue", "account", "subject", "side", "kind", unique=True,
              **index_where("state <> 'resolved'")),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(Key, Identity(), primary_key=True)
    portfolio: Mapped[str]
    venue: Mapped[str]
    account: Mapped[str]
    subject: Mapped[str]
    side: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    policy: Mapped[str]
    sightings: Mapped[int]
    ledger_quantity: Mapped[str | None]
    venue_quantity: Mapped[str | None]
    excess: Mapped[str | None]
    price: Mapped[str | None]
    detail: Mapped[str]
    position: Mapped[int | None]
    revision: Mapped[int]
    requested: Mapped[str | None]
    frozen_scope: Mapped[str | None]
    first_run: Mapped[int]
    last_run: Mapped[int]
    opened_us: Mapped[int]
    updated_us: Mapped[int]
    ended_us: Mapped[int | None]
    actor: Mapped[str | None]
    reason: Mapped[str | None]


class AssetPolicyRow(Base):
    """What a person decided an asset of an account to be. pattern: `venue/account/ASSET`, each part may be `*`."""

    __tablename__ = "asset_policies"
    __table_args__ = (
        CheckConstraint("policy IN ('position', 'cash', 'fees', 'ignore')", name="policy"),
        Index("uq_asset_policies_portfolio_pattern", "portfolio", "pattern", unique=True),
    )

    id: Mapped[int] = mapped_column(Key, Identity(), primary_key=True)
    portfolio: Mapped[str]
    pattern: Mapped[str]
    policy: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str]
    decided_us: Mapped[int]


class AlertRow(Base):
    """One pending webhook delivery (the outbox): inserted with its run, deleted when delivered or given up.

    due_us: time of the next attempt. A sender moves it forward before it tries.
    """

    __tablename__ = "alerts"
    __table_args__ = (CheckConstraint("attempts >= 0", name="attempts"),)

    id: Mapped[int] = mapped_column(Key, Identity(), primary_key=True)
    delivery: Mapped[str]
    body: Mapped[str]
    attempts: Mapped[int]
    due_us: Mapped[int]


class InstrumentRow(Base):
    """The rules of one market as an exchange published them, valid from `since_us` until `until_us` (NULL: still).

    rules: canonical JSON, or NULL for a market that cannot be used; `refused` then says why.
    """

    __tablename__ = "instruments"
    __table_args__ = (
        CheckConstraint("kind IN ('spot', 'swap', 'future')", name="kind"),
        CheckConstraint("(rules IS NULL) = (refused IS NOT NULL)", name="refused"),
        CheckConstraint("until_us IS NULL OR until_us > since_us", name="until"),
        Index("uq_instruments_present", "venue", "symbol", unique=True, **index_where("until_us IS NULL")),
    )  # fmt: skip

    venue: Mapped[str] = mapped_column(primary_key=True)
    symbol: Mapped[str] = mapped_column(primary_key=True)
    since_us: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    until_us: Mapped[int | None]
    kind: Mapped[str]
    active: Mapped[bool]
    rules: Mapped[str | None]
    refused: Mapped[str | None]
