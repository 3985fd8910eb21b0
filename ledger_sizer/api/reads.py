"""Read-only routes: portfolios, exposure, positions, decisions, overview. They never wait for the writer."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ledger_sizer.api import audit_models, response_models
from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import Reader, ServiceContext
from ledger_sizer.api.export import EXPORTS, export_response, negotiate_media_type
from ledger_sizer.api.responses import json_response
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.caller import ACTOR_LENGTH_MAX
from ledger_sizer.model.choices import Outcome, PositionFilter
from ledger_sizer.model.command_base import parse_time
from ledger_sizer.model.commands import VERBS
from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import (
    PORTFOLIO_OR_DESK_PATTERN,
    PORTFOLIO_PATTERN,
    POSITION_PATTERN,
    SEQ_MAX,
    split_position_id,
)
from ledger_sizer.model.overview import HOURS_MAX, ROWS_MAX, OverviewQuery
from ledger_sizer.model.tags import TAG_NAME, TAG_VALUES_MAX, TAGS_MAX, is_dimension
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.views.paging import EXPOSURE_LIMIT_MAX, LIMIT_MAX
from ledger_sizer.wire.codec import page_to_json
from ledger_sizer.wire.net import net_to_json
from ledger_sizer.wire.overviews import overview_to_json
from ledger_sizer.wire.requests import KeyText, LabelText, MomentText, PortfolioOrDeskText, PortfolioText
from ledger_sizer.wire.responses import (
    decision_to_json,
    desk_to_json,
    explanation_to_json,
    exposure_page_to_json,
    heads_to_json,
    position_to_json,
)

PortfolioInPath = Annotated[str, Path(pattern=PORTFOLIO_PATTERN, examples=["main"])]
PortfolioOrDeskInPath = Annotated[str, Path(pattern=PORTFOLIO_OR_DESK_PATTERN, examples=["main", "*"])]
PositionInPath = Annotated[str, Path(pattern=POSITION_PATTERN, examples=["main-17"])]
SeqInPath = Annotated[int, Path(ge=1, le=SEQ_MAX)]
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]
_TAGS_MAX = TAGS_MAX * TAG_VALUES_MAX
TagText = Annotated[str, StringConstraints(pattern=rf"^{TAG_NAME}=.{{1,128}}$")]


class _Filters(BaseModel):
    """Query parameters. Unknown ones are refused, because a filter that is ignored shows too much."""

    model_config = ConfigDict(extra="forbid")


class PositionFilters(_Filters):
    """Query of `GET /v1/positions`."""

    portfolio: PortfolioText | None = None
    state: PositionFilter | None = None
    tag: Annotated[list[TagText], Query(max_length=_TAGS_MAX, description="Like venue=bybit; all must match.")] = []
    key: Annotated[
        KeyText | None, Query(description="Of a decision about the position; your own, or any for admins.")
    ] = None
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}:[0-9]{1,18}$")] = None
    limit: Limit = 100


class ExposureFilters(_Filters):
    """Query of the exposure route."""

    as_of: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")] | MomentText | None,
        Query(description="A seq (after that decision), or a time; now when not given."),
    ] = None

    dimension: Annotated[
        str | None, Query(pattern=rf"^{TAG_NAME}$", description="Only scopes of this tag name, and the whole.")
    ] = None
    cursor: Annotated[TagText | None, Query(description="A scope: of the page before.")] = None
    limit: Annotated[int, Query(ge=1, le=EXPOSURE_LIMIT_MAX, description="Scopes of a page, beside the whole.")] = (
        LIMIT_MAX
    )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Ledger.exposure_page`."""
        is_seq = self.as_of is not None and self.as_of.isdigit()
        as_of = None if self.as_of is None else int(self.as_of) if is_seq else parse_time(self.as_of, "as_of")
        return {**self.model_dump(), "as_of": as_of}


class DecisionFilters(_Filters):
    """Query of `GET /v1/decisions`."""

    portfolio: PortfolioOrDeskText = "main"
    symbol: LabelText | None = None
    strategy: LabelText | None = None
    command: Literal[VERBS] | None = None  # type: ignore[valid-type]
    outcome: Outcome | None = None
    reason: Literal[DENIAL_REASONS] | None = None  # type: ignore[valid-type]
    actor: Annotated[str | None, Query(min_length=1, max_length=ACTOR_LENGTH_MAX, description="Who asked.")] = None
    key: Annotated[
        KeyText | None, Query(description="An idempotency key; found if your own, by keys that read or steer any.")
    ] = None
    position_id: Annotated[str | None, Query(pattern=POSITION_PATTERN)] = None
    since: Annotated[MomentText | None, Query(description="Inclusive.")] = None
    until: Annotated[MomentText | None, Query(description="Exclusive.")] = None
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Rows of a page; an export has all.")] = 100
    ascending: bool = False
    full: Annotated[bool, Query(description="With request, trace and tags.")] = False

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Ledger.history`, without cursor and limit."""
        chosen = self.model_dump(exclude={"cursor", "limit", "full"})
        for name in ("since", "until"):
            if chosen[name] is not None:
                chosen[name] = parse_time(chosen[name], name)
        return chosen


SeqCursor = Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")]


class OverviewFilters(_Filters):
    """Query of `GET /v1/overview`: the portfolio to show in full (default: the first), and the cursors of its lists."""

    portfolio: PortfolioText | None = None
    rows: Annotated[int, Query(ge=1, le=ROWS_MAX, description="Of each list.")] = 25
    hours: Annotated[int, Query(ge=1, le=HOURS_MAX, description="Of the line of exposure.")] = 24
    held_cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}:[0-9]{1,18}$")] = None
    open_cursor: SeqCursor = None
    decisions_cursor: SeqCursor = None
    portfolios_cursor: PortfolioText | None = None

    def query_for(self, caller: ApiKey) -> OverviewQuery:
        """Return the overview query, restricted to the caller's portfolios. Raises `Forbidden`."""
        if self.portfolio is not None:
            require_portfolio_access(caller, self.portfolio)
        return OverviewQuery(**self.model_dump(), only=caller.portfolios)


class FullFilter(_Filters):
    """Query of one decision; full by default."""

    full: Annotated[bool, Query(description="With request, trace and tags.")] = True


def router(service: ServiceContext) -> APIRouter:
    """Return the read-only routes of the present: portfolios and positions."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")
    ledger = service.ledger

    @routes.get("/portfolios", response_model=response_models.Names)
    async def list_portfolios(caller: Reader) -> Response:
        """Names of the portfolios this key may see."""
        names = await run_in_threadpool(ledger.portfolios)
        return json_response({"items": [name for name in names if caller.may_touch(name)], "cursor": None})

    @routes.get("/portfolios/{portfolio}/exposure", response_model=response_models.ExposureForm)
    async def get_exposure(
        portfolio: PortfolioInPath, filters: Annotated[ExposureFilters, Query()], caller: Reader
    ) -> Response:
        """Cap, held, open, headroom, status of a portfolio (on every page) and of its scopes, now or in the past."""
        require_portfolio_access(caller, portfolio)
        found = await run_in_threadpool(ledger.exposure_page, portfolio, **filters.arguments())
        return json_response(exposure_page_to_json(found))

    @routes.get("/portfolios/{portfolio}/net", response_model=response_models.NetForm)
    async def get_net(portfolio: PortfolioOrDeskInPath, caller: Reader) -> Response:
        """Each coin of a portfolio, or of the desk (`*`), over all accounts: bought, sold, net, whether hedged."""
        require_portfolio_access(caller, portfolio)
        return json_response(net_to_json(await run_in_threadpool(ledger.net, portfolio)))

    @routes.get("/overview", response_model=response_models.OverviewForm)
    async def get_overview(filters: Annotated[OverviewFilters, Query()], caller: Reader) -> Response:
        """All portfolios, and one in full: scopes, reservations, positions, decisions. All of it at one moment."""
        return json_response(overview_to_json(await run_in_threadpool(ledger.overview, filters.query_for(caller))))

    @routes.get("/positions", response_model=response_models.PositionPage)
    async def list_positions(filters: Annotated[PositionFilters, Query()], caller: Reader) -> Response:
        """Positions, oldest first."""
        portfolio = _portfolio_of(caller, filters.portfolio)
        chosen = filters.model_dump(exclude={"portfolio", "tag"})
        page = await run_in_threadpool(ledger.positions, portfolio, tags=_parse_tags(filters.tag), **chosen)
        return json_response(page_to_json(page, position_to_json))

    @routes.get("/positions/{position_id}", response_model=response_models.PositionForm)
    async def get_position(position_id: PositionInPath, caller: Reader) -> Response:
        """One position."""
        require_portfolio_access(caller, position_id.rpartition("-")[0])
        return json_response(position_to_json(await run_in_threadpool(ledger.position, position_id)))

    return routes


def decision_router(service: ServiceContext) -> APIRouter:
    """Return the read-only routes of the decisions."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")
    ledger = service.ledger

    @routes.get("/decisions", response_model=response_models.DecisionPage, responses={200: {"content": EXPORTS}})
    async def list_decisions(
        request: Request, filters: Annotated[DecisionFilters, Query()], caller: Reader
    ) -> Response:
        """The sizing history, newest first; as CSV or NDJSON all of it from the cursor on, streamed."""
        require_portfolio_access(caller, filters.portfolio)
        arguments = filters.arguments()
        kind = negotiate_media_type(request.headers.get("accept"))
        if kind != "application/json":
            return await export_response(ledger, kind, arguments, cursor=filters.cursor, full=filters.full)
        page = await run_in_threadpool(ledger.history, **arguments, cursor=filters.cursor, limit=filters.limit)
        return json_response(page_to_json(page, lambda decision: decision_to_json(decision, full=filters.full)))

    @routes.get("/decisions/{portfolio}/{seq}", response_model=response_models.DecisionForm)
    async def get_decision(
        portfolio: PortfolioOrDeskInPath, seq: SeqInPath, filters: Annotated[FullFilter, Query()], caller: Reader
    ) -> Response:
        """One decision by its place in the portfolio's audit chain."""
        require_portfolio_access(caller, portfolio)
        decision = await run_in_threadpool(ledger.decision, seq, portfolio)
        return json_response(decision_to_json(decision, full=filters.full))

    @routes.get("/decisions/{portfolio}/{seq}/explanation", response_model=response_models.ExplanationForm)
    async def explain_decision(portfolio: PortfolioOrDeskInPath, seq: SeqInPath, caller: Reader) -> Response:
        """Why a decision came out as it did: the request, each step of the sizing, each scope, what bound it."""
        require_portfolio_access(caller, portfolio)
        return json_response(explanation_to_json(await run_in_threadpool(ledger.explain, seq, portfolio)))

    @routes.get("/positions/{position_id}/explanation", response_model=response_models.ExplanationForm)
    async def explain_position(position_id: PositionInPath, caller: Reader) -> Response:
        """Why the decision that made a position came out as it did."""
        require_portfolio_access(caller, split_position_id(position_id)[0])
        return json_response(explanation_to_json(await run_in_threadpool(ledger.explain, position_id)))

    return routes


def chain_router(service: ServiceContext) -> APIRouter:
    """Return the routes that are about all portfolios: the hash chains' heads, and the desk."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")

    @routes.get("/heads", response_model=audit_models.HeadsForm)
    async def get_heads(request: Request) -> Response:
        """The audit chains' heads. Kept elsewhere, they show later that history was not rewritten."""
        caller = await service.access.require(request.scope, "read")
        heads = await run_in_threadpool(service.ledger.heads)
        return json_response(heads_to_json({name: head for name, head in heads.items() if caller.may_touch(name)}))

    @routes.get("/desk", response_model=response_models.DeskForm)
    async def get_desk(request: Request) -> Response:
        """The status of all portfolios together. Keys bound to portfolios are not told who set it, when and why."""
        caller = await service.access.require(request.scope, "read")
        status, change = await run_in_threadpool(service.ledger.desk)
        return json_response(desk_to_json(status, change if caller.portfolios is None else None))

    return routes


def _portfolio_of(caller: ApiKey, asked: str | None) -> str | None:
    """Return the portfolio to list; a key for one portfolio need not name it. Raises `InvalidRequest`, `Forbidden`."""
    if asked is None and caller.portfolios is not None:
        if len(caller.portfolios) > 1:
            raise InvalidRequest(f"this key is for {', '.join(caller.portfolios)}; name one", field="portfolio")
        return caller.portfolios[0]
    if asked is not None:
        require_portfolio_access(caller, asked)
    return asked


def _parse_tags(texts: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not is_dimension(name):
            raise InvalidRequest(f"tag must be like venue=bybit, got {text!r:.100}", field="tag")
        found.setdefault(name, []).append(label_text(value, "tag"))
    return found
