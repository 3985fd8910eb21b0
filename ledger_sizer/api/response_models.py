"""The JSON responses as pydantic models, for the OpenAPI document only; `wire` writes the JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ledger_sizer.model.reconciliation import DriftKind, DriftPolicy
from ledger_sizer.wire.problems import PROBLEMS, TYPE_PREFIX

DecimalOut = Annotated[str, StringConstraints(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
TimeOut = Annotated[
    str, StringConstraints(pattern=r"Z$"), Field(json_schema_extra={"format": "date-time"})
]  # fmt: skip


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DecisionForm(_Form):
    """The answer to one command. The last five only in full; `request` and `trace` are texts that hold JSON."""

    portfolio: str
    seq: int | None = Field(description="Place in the portfolio's audit chain; null for a dry run.")
    command: str
    key: str
    outcome: Literal["granted", "denied", "applied"]
    reason: str | None
    granted: bool
    replayed: bool
    position_id: str | None
    budget: DecimalOut | None = Field(description="USD granted and held.")
    quantity: DecimalOut | None = Field(description="Base units granted, filled or closed.")
    fraction: DecimalOut | None
    raw_budget: DecimalOut | None
    headroom_before: DecimalOut | None
    exposure_before: DecimalOut
    exposure_after: DecimalOut
    binding: str | None = Field(description="The scope or constraint that decided.")
    expires_at: TimeOut | None
    decided_at: TimeOut
    hash: str | None = Field(description="Its link in the audit chain.")
    held_change: DecimalOut = "0"
    open_change: DecimalOut = "0"
    tags: str = Field("{}", description="A text that holds JSON.")
    request: str = Field("{}", description="What was asked: a text that holds JSON, as hashed.")
    trace: str = Field("{}", description="What the rules saw: a text that holds JSON, as hashed.")


class DecisionPage(_Form):
    """One page of decisions; `cursor` continues it."""

    items: list[DecisionForm]
    cursor: str | None


class LegOut(_Form):
    """One side of a position."""

    venue: str
    symbol: str
    kind: Literal["spot", "swap"]
    side: Literal["buy", "sell"]
    quantity: DecimalOut
    price: DecimalOut | None


class PositionForm(_Form):
    """A position."""

    position_id: str
    portfolio: str
    state: Literal["held", "open", "closed", "released", "expired"]
    tags: dict[str, str]
    held: DecimalOut
    open: DecimalOut
    notional: DecimalOut
    quantity: DecimalOut | None
    price: DecimalOut | None
    legs: list[LegOut]
    expires_at: TimeOut | None
    opened_at: TimeOut
    updated_at: TimeOut
    updated_seq: int
    origin: str | None = Field(description="The expired position whose late fill this is.")


class PositionPage(_Form):
    """One page of positions; `cursor` continues it."""

    items: list[PositionForm]
    cursor: str | None


class Names(_Form):
    """Names of portfolios."""

    items: list[str]
    cursor: None


class _Figures(_Form):
    cap: DecimalOut | None
    held: DecimalOut
    open: DecimalOut
    exposure: DecimalOut
    headroom: DecimalOut | None
    overage: DecimalOut
    status: Literal["active", "reducing", "halted"]
    frozen: bool = Field(description="New reservations are denied because of a drift.")
    fresh_until: TimeOut | None = Field(description="From then on they are denied because nobody compared since.")


class ScopeForm(_Figures):
    """One scope's cap and exposure, USD."""

    scope: str


class ExposureForm(_Figures):
    """A portfolio's exposure, USD: the whole, then every scope."""

    portfolio: str
    seq: int
    scopes: list[ScopeForm]


class HeadForm(_Form):
    """The last decision of one portfolio's audit chain."""

    seq: int
    hash: str


class HeadsForm(_Form):
    """Chain heads by portfolio."""

    heads: dict[str, HeadForm]


class PortfolioLineForm(_Figures):
    """One portfolio among all, USD."""

    portfolio: str


class PortfolioLinePage(_Form):
    """One page of portfolios."""

    items: list[PortfolioLineForm]
    cursor: str | None


class CountedPositions(PositionPage):
    """A page of a portfolio's positions, and how many there are in all."""

    count: int


class ExposurePointForm(_Form):
    """Exposure and cap right after one decision, USD."""

    at: TimeOut
    seq: int
    exposure: DecimalOut
    cap: DecimalOut | None
    low: DecimalOut = Field(description="The lowest exposure since the point before.")
    high: DecimalOut = Field(description="The highest exposure since the point before.")


class ExposureLineForm(_Form):
    """Exposure over time. The first point may be older than `since`.

    `exact_from`: up to then what lies between the points was not read yet; null when `low` and `high` miss nothing.
    """

    since: TimeOut
    exact_from: TimeOut | None
    points: list[ExposurePointForm]


class DriftLineForm(_Form):
    """One difference between the ledger and the exchange that is not resolved. `GET /v1/drifts` has all of it."""

    id: int
    kind: str
    state: Literal["open", "confirmed", "acknowledged"]
    where: str
    ledger_quantity: DecimalOut | None
    venue_quantity: DecimalOut | None
    excess: DecimalOut
    detail: str
    opened_at: TimeOut
    frozen_scope: str | None
    requested: str | None


class ReconciliationForm(_Form):
    """The last run and the drifts that are not resolved; without any run `run_at` and `outcome` are null."""

    run_at: TimeOut | None
    outcome: Literal["good", "partial", "failed"] | None
    drift_count: int
    drifts: list[DriftLineForm]


class DetailForm(_Form):
    """One portfolio in full."""

    portfolio: str
    seq: int
    scopes: list[ScopeForm] = Field(description="The whole first, then those with a cap, then by exposure.")
    scopes_left_out: int
    held: CountedPositions = Field(description="Live reservations, the soonest to end first.")
    open: CountedPositions = Field(description="Open positions, newest first.")
    decisions: DecisionPage
    line: ExposureLineForm
    reconciliation: ReconciliationForm


class OverviewForm(_Form):
    """A ledger at one moment; `detail` is null while there is no portfolio."""

    read_at: TimeOut
    portfolios: PortfolioLinePage
    detail: DetailForm | None


class ProblemForm(_Form):
    """RFC 9457 problem details. `code` is stable and what programs look at."""

    type: Annotated[str, StringConstraints(pattern=f"^{TYPE_PREFIX}[a-z_]+$")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    code: Literal[tuple(PROBLEMS)]  # type: ignore[valid-type]
    detail: str
    field: str = Field("", description="The argument at fault.")
    decision: DecisionForm | None = Field(None, description="The whole decision of a denial.")
    results: list["BatchResult"] = Field([], description="The answers of an atomic batch that was denied.")


class BatchResult(_Form):
    """One answer of a batch: the status it would have had alone, and its decision or its problem."""

    status: int
    decision: DecisionForm | None = None
    problem: ProblemForm | None = None


class BatchForm(_Form):
    """The answers of a batch, in the order of its commands."""

    results: list[BatchResult]


class RunForm(_Form):
    """One run of the reconciliation."""

    id: int | None = Field(description="Null for a dry run.")
    portfolio: str
    trigger: str
    outcome: Literal["good", "partial", "failed"]
    started_at: TimeOut
    finished_at: TimeOut
    duration_seconds: DecimalOut
    epoch: int
    fetched: list[dict[str, Any]]
    found: dict[str, int] = Field(description="Counts, by kind of drift among others.")


class RunPage(_Form):
    """One page of runs; `cursor` continues it."""

    items: list[RunForm]
    cursor: str | None


class FindingForm(_Form):
    """One difference that a comparison saw."""

    venue: str
    account: str
    subject: str = Field(description="A market, an asset, or what else it is about.")
    side: str
    kind: DriftKind
    ledger_quantity: DecimalOut | None
    venue_quantity: DecimalOut | None
    excess: DecimalOut = Field(description="Base units at the exchange beyond what the ledger counts.")
    price: DecimalOut | None
    detail: str


class DriftForm(FindingForm):
    """A difference with a life."""

    id: int
    portfolio: str
    state: Literal["open", "confirmed", "acknowledged", "resolved"]
    policy: DriftPolicy
    sightings: int
    position_id: str | None = Field(description="The external position that counts its excess.")
    revision: int
    requested: str | None = Field(description="What the orchestrator was asked to do.")
    frozen_scope: str | None
    first_run: int
    last_run: int
    opened_at: TimeOut
    updated_at: TimeOut
    ended_at: TimeOut | None
    actor: str | None
    reason: str | None


class DriftPage(_Form):
    """One page of drifts; `cursor` continues it."""

    items: list[DriftForm]
    cursor: str | None


class ReportForm(_Form):
    """A run, what it found, and what became of the drifts."""

    run: RunForm
    findings: list[FindingForm]
    live: list[DriftForm]
    resolved: list[DriftForm]


class ReportList(_Form):
    """The runs of one call, one for each portfolio."""

    items: list[ReportForm]


class HealthForm(_Form):
    """Liveness and readiness."""

    status: Literal["ok", "ready", "not_ready"]
    checks: dict[str, Any] = {}
