"""The JSON responses as pydantic models, for the OpenAPI document only; `wire` writes the JSON."""

import operator
from datetime import datetime
from decimal import Decimal
from functools import reduce
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from ledger_sizer.model.asset_policies import AssetRule
from ledger_sizer.model.choices import MarketKind, Outcome, Side, Status
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Exposure, Page, Position, ScopeExposure
from ledger_sizer.model.fills import Fills
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.net import Net, NetAsset, NetPlace
from ledger_sizer.model.overview import (
    DeskHalt,
    Detail,
    ExposureLine,
    ExposurePoint,
    Overview,
    PortfolioLine,
    Reconciliation,
)
from ledger_sizer.model.pools import DefaultCap, Pool
from ledger_sizer.model.reconciliation import Drift, Finding, Report, Run
from ledger_sizer.model.renames import RenamedCoin
from ledger_sizer.model.tags import Tags
from ledger_sizer.wire import net, overviews, reconciliation, responses
from ledger_sizer.wire.codec import Codec
from ledger_sizer.wire.problems import PROBLEMS, TYPE_PREFIX

DecimalOut = Annotated[str, StringConstraints(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
TimeOut = Annotated[
    str, StringConstraints(pattern=r"Z$"), Field(json_schema_extra={"format": "date-time"})
]  # fmt: skip


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OrderOut(_Form):
    """What to order for one leg of a grant."""

    venue: str
    account: str | None
    symbol: str
    kind: MarketKind
    side: Side
    quantity: DecimalOut = Field(description="Coins, the fee in base included.")
    price: DecimalOut = Field(description="USD per coin that it was sized at.")
    order_amount: DecimalOut = Field(
        description="The same in what that exchange's orders count: contracts, multiplied units or coins."
    )
    order_cost: DecimalOut | None = Field(
        description="USD to give instead of the amount, where a market buy takes its cost; null elsewhere."
    )


class DecisionForm(_Form):
    """The answer to one command. The last five only in full.

    In the order in which they come, compact and in ASCII, `tags`, `request` and `trace` are the texts that are hashed.
    """

    portfolio: str
    seq: int | None = Field(description="Place in the portfolio's audit chain; null for a dry run.")
    command: str
    key: str
    outcome: Outcome
    reason: str | None
    granted: bool
    replayed: bool
    position_id: str | None
    budget: DecimalOut | None = Field(description="USD granted and held: what the orders can cost.")
    quantity: DecimalOut | None = Field(description="Coins granted, filled or closed.")
    fraction: DecimalOut | None
    raw_budget: DecimalOut | None
    headroom_before: DecimalOut | None
    exposure_before: DecimalOut
    exposure_after: DecimalOut
    binding: str | None = Field(
        description="The scope or constraint that decided; of `group_denied` the key of the neighbour that was denied."
    )
    expires_at: TimeOut | None = Field(description="Null also where the hold never ends by time.")
    until_known: bool = Field(description="The hold never ends by time: the fate of an order is not known.")
    decided_at: TimeOut
    actor: str | None = Field(description="Who asked; null in decisions of versions that did not record it.")
    client: str | None = Field(description="The client that the key belongs to.")
    reference: str | None = Field(description="The caller's own text for the trade or order.")
    hash: str | None = Field(description="Its link in the audit chain.")
    legs: list[OrderOut] = Field(description="Of a granted reservation with legs: what to order.")
    held_change: DecimalOut = "0"
    open_change: DecimalOut = "0"
    tags: dict[str, Any] = Field({}, description="Of the position it concerns.")
    request: dict[str, Any] = Field({}, description="What was asked, decimals as text.")
    trace: dict[str, Any] = Field({}, description="What the rules saw; whole numbers are 1e-8 USD.")


class ExplanationForm(_Form):
    """Why a decision came out as it did."""

    text: str = Field(description="For people, several lines.")
    portfolio: str
    seq: int
    command: str
    key: str
    outcome: Outcome
    reason: str | None
    binding: str | None
    position_id: str | None
    decided_at: TimeOut
    expires_at: TimeOut | None
    until_known: bool
    reference: str | None
    request: dict[str, Any] = Field(description="What was asked, decimals as text.")
    fraction: DecimalOut | None
    raw_budget: DecimalOut | None
    budget: DecimalOut | None
    quantity: DecimalOut | None
    steps: list[dict[str, Any]] = Field(description="Of the sizing: `step`, `value`, `words`.")
    scopes: list[dict[str, Any]] = Field(description="Each as it was before the decision, USD.")
    others: list[dict[str, Any]] = Field(
        description="Default caps that applied (`scope`, `cap`), and what was kept for others (`scope`, `guarantee`, "
        "`exposure`, `kept`), USD."
    )
    after: dict[str, Any] | None = Field(description="The scope that it set, as it left it, USD.")
    largest_grantable: dict[str, Any] | None = Field(description="The most that any score could have been granted.")
    settings_version: str | None = Field(description="Equal settings have equal versions.")
    policy: dict[str, Any] | None = Field(description="The settings that applied.")
    match: dict[str, Any] | None = Field(description="How the quantity came about.")
    note: str | None
    group: dict[str, Any] | None = Field(description="Of an atomic group: `denied_by`, the neighbour that was denied.")
    held_change: DecimalOut = Field(description="USD held more for its position, below zero for less.")
    open_change: DecimalOut
    legs: list[OrderOut] = Field(description="Of a granted reservation with legs: what to order.")
    position: dict[str, Any] | None = Field(
        description="After a fill of several, a close, more of it or a new price: quantity, price, cost, filled, "
        "unfilled, expires_at, until_known."
    )
    moved: dict[str, Any] | None = Field(description="The tags of its position before (`from`) and after (`to`).")
    late_fill_of: dict[str, Any] | None = Field(
        description="Of a late fill: `position_id` of the ended position, and its `state` then."
    )
    exposure_before: DecimalOut
    exposure_after: DecimalOut
    hash: str


class LegOut(_Form):
    """One side of a position. What is not set is left out after `price`."""

    venue: str
    symbol: str
    kind: MarketKind
    side: Side
    quantity: DecimalOut = Field(description="Coins filled; coins planned while `price` is null.")
    price: DecimalOut | None = Field(description="Average entry price, USD per coin.")
    account: str = ""
    unit: DecimalOut = Field("1", description="Coins in one unit of the exchange's order.")
    by_cost: bool = Field(False, description="A market buy there takes its cost, not an amount.")
    unfilled: DecimalOut = Field("0", description="Coins planned and not filled.")
    unfilled_usd: DecimalOut = Field("0", description="Their value at the price of the grant.")
    cost: DecimalOut = Field("0", description="Of what is filled, exact, where quantity x price is not.")
    value: DecimalOut = Field("0", description="USD that it counts, where that is not the cost.")


class FillsOut(_Form):
    """What the quantity and the price of a position do not say. What is not set is left out."""

    unfilled: DecimalOut = Field("0", description="Coins granted and not filled.")
    filled: DecimalOut = Field("0", description="Coins filled by all entries, closes not subtracted.")
    filled_usd: DecimalOut = Field("0", description="What these cost.")
    cost: DecimalOut = Field("0", description="What the open coins cost, exact.")
    value: DecimalOut = Field("0", description="USD that they count, where priced anew.")
    more: bool = Field(False, description="A fill may still come after the hold is over.")


_TYPES: dict[Any, Any] = {
    Decimal: DecimalOut,
    datetime: TimeOut,
    Tags: dict[str, str | list[str]],
    Decision: DecisionForm,
    Leg: LegOut,
    Fills: FillsOut,
}
"""Types in the document, by the type of a field. The models made below are added to it."""


def _type_of(hint: Any) -> Any:
    """Return the type in the document of what a codec writes for an annotated type."""
    if hint in _TYPES:
        return _TYPES[hint]
    if isinstance(hint, UnionType):
        return reduce(operator.or_, map(_type_of, get_args(hint)))
    return GenericAlias(list, _type_of(get_args(hint)[0])) if get_origin(hint) is tuple else hint


def form_of(kind: Any, doc: str, *codecs: Codec[Any], name: str = "", **more: Any) -> type[BaseModel]:
    """Make the model of a class from the codecs that write it, and from further fields."""
    hints = {name: hint for codec in codecs for name, hint in codec.hints.items()}
    docs = {name: text for codec in codecs for name, text in codec.docs.items()}
    fields = {name: (_type_of(hint), Field(description=docs.get(name))) for name, hint in hints.items()}
    model: type[BaseModel] = create_model(
        name or f"{kind.__name__}Form", __base__=_Form, __module__=__name__, __doc__=doc, **{**fields, **more}
    )
    _TYPES[kind] = model
    return model


def _page(name: str, kind: Any, doc: str) -> type[BaseModel]:
    """Make the model of a page of a class's models."""
    fields: dict[str, Any] = {"items": GenericAlias(list, _TYPES[kind]), "cursor": str | None}
    model: type[BaseModel] = create_model(name, __base__=_Form, __module__=__name__, __doc__=doc, **fields)
    _TYPES[Page[kind]] = model
    return model


DecisionPage = _page("DecisionPage", Decision, "One page of decisions; `cursor` continues it.")
PositionForm = form_of(Position, "A position.", responses.POSITION)
PositionPage = _page("PositionPage", Position, "One page of positions; `cursor` continues it.")
ScopeForm = form_of(
    ScopeExposure, "One scope's cap and exposure, USD.", responses.FIGURES, responses.SCOPE, name="ScopeForm"
)
PoolForm = form_of(Pool, "A guaranteed scope, USD.", responses.POOL)
DefaultCapForm = form_of(
    DefaultCap, "The cap of every value of a tag name that has none of its own, USD.", responses.DEFAULT_CAP
)
ExposureForm = form_of(
    Exposure,
    "A portfolio's exposure, USD. `scopes`: the whole, then a page of the others by name; `cursor` continues it.",
    responses.FIGURES,
    responses.EXPOSURE,
    cursor=str | None,
)
NetPlaceForm = form_of(NetPlace, "One coin at one account, in coins.", net.PLACE)
NetAssetForm = form_of(NetAsset, "One coin over all accounts.", net.ASSET)
NetForm = form_of(Net, "What a portfolio, or the desk, has of each coin over all accounts.", net.NET)
PortfolioLineForm = form_of(PortfolioLine, "One portfolio among all, USD.", responses.FIGURES, portfolio=str)
PortfolioLinePage = _page("PortfolioLinePage", PortfolioLine, "One page of portfolios.")


class CountedPositions(PositionPage):  # type: ignore[misc,valid-type]
    """A page of a portfolio's positions, and how many there are in all."""

    count: int


_TYPES[overviews.CountedPositions] = CountedPositions
ExposurePointForm = form_of(ExposurePoint, "Exposure and cap right after one decision, USD.", overviews.POINT)
ExposureLineForm = form_of(
    ExposureLine,
    """Exposure over time. The first point may be older than `since`.

    `exact_from`: up to then what lies between the points was not read yet; null when `low` and `high` miss nothing.
    """,
    overviews.LINE,
)
RunForm = form_of(Run, "One run of the reconciliation.", reconciliation.RUN)
RunPage = _page("RunPage", Run, "One page of runs; `cursor` continues it.")
FindingForm = form_of(Finding, "One difference that a comparison saw.", reconciliation.FINDING)
RenamedForm = form_of(RenamedCoin, "What the decision about a renamed coin did.", reconciliation.RENAMED)
DriftForm = form_of(Drift, "A difference with a life.", reconciliation.FINDING, reconciliation.DRIFT)
DriftPage = _page("DriftPage", Drift, "One page of drifts; `cursor` continues it.")
AssetRuleForm = form_of(AssetRule, "Whose money the assets of a pattern are.", reconciliation.ASSET_RULE)
ReportForm = form_of(Report, "A run, what it found, and what became of the drifts.", reconciliation.REPORT)
ReconciliationForm = form_of(
    Reconciliation,
    "The last run and the drifts that are not resolved; without any run `run_at` and `outcome` are null.",
    overviews.RECONCILIATION,
)
DetailForm = form_of(Detail, "One portfolio in full.", overviews.DETAIL)
DeskHaltForm = form_of(
    DeskHalt,
    "A halt of all portfolios together. A key bound to portfolios is not told since when, by whom and why.",
    overviews.DESK_HALT,
)
OverviewForm = form_of(
    Overview, "A ledger at one moment; `detail` is null while there is no portfolio.", overviews.OVERVIEW
)


class ReportList(_Form):
    """The runs of one call, one for each portfolio."""

    items: list[ReportForm]  # type: ignore[valid-type]


class AssetRuleList(_Form):
    """The policies of assets: decided ones first, and of each source the most specific first."""

    items: list[AssetRuleForm]  # type: ignore[valid-type]


class Names(_Form):
    """Names of portfolios."""

    items: list[str]
    cursor: None


class DeskForm(_Form):
    """The status of all portfolios together. What set it is told to keys of all portfolios; null if nothing did."""

    status: Literal[get_args(Status)]  # type: ignore[valid-type]
    seq: int | None = Field(description="Of the halt or resume that set it, in the chain of portfolio `*`.")
    since: TimeOut | None
    actor: str | None
    note: str | None


class SettledForm(_Form):
    """The decisions that brought the ledger in line with the book, in order; none where nothing had to change."""

    items: list[DecisionForm]


class ReleasedForm(_Form):
    """The decisions of the holds that were freed. While `cursor` is not null, call again with it."""

    items: list[DecisionForm]
    cursor: str | None


class SweepForm(_Form):
    """How many overdue holds were freed; `more`: call again, there may be others."""

    freed: int
    more: bool


class ProblemForm(_Form):
    """RFC 9457 problem details. `code` is stable and what programs look at."""

    type: Annotated[str, StringConstraints(pattern=f"^{TYPE_PREFIX}[a-z_]+$")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    code: Literal[tuple(PROBLEMS)]  # type: ignore[valid-type]
    detail: str
    field: str = Field("", description="The argument at fault.")
    seq: int | None = Field(None, description="Of the decision that a reused key got, where it is the caller's own.")
    position_id: str | None = Field(None, description="Of the position that this decision is about.")
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
