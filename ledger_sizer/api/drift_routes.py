"""Routes that decide about many drifts in one call."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ledger_sizer.api import drift_models
from ledger_sizer.api.auth import require_portfolio_access, require_unbound
from ledger_sizer.api.context import Admin, ServiceContext
from ledger_sizer.api.request_body import body_schema, parse_body
from ledger_sizer.api.responses import json_response
from ledger_sizer.model.choices import DriftFilter, DriftKind
from ledger_sizer.model.drift_outcomes import DRIFTS_MAX
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.reconcile import drifts, listings
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.wire.reconciliation import outcomes_to_json
from ledger_sizer.wire.requests import Body, LabelText, PortfolioText, TagsForm

DriftNumber = Annotated[int, Field(ge=1, le=10**18 - 1)]


class DecideManyBody(Body):
    """Which drifts, and why: `ids`, or `all` to which the action applies, as far as they match every filter given."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    dry_run: bool = Field(False, description="Only tell what would be done.")
    ids: Annotated[list[DriftNumber], Field(min_length=1, max_length=DRIFTS_MAX)] | None = None
    all: bool = False
    portfolio: PortfolioText | None = None
    state: DriftFilter | None = Field(None, description="Without it: live ones.")
    kind: DriftKind | None = None
    venue: LabelText | None = None
    account: LabelText | None = None
    symbol: LabelText | None = Field(None, description="A market, an asset, or the coin of markets.")

    tags: TagsForm = Field(
        default_factory=dict, description="Of adopt: tags of the positions; venue, account and symbol are filled in."
    )
    pair: bool = Field(True, description="Of adopt: whether what hedges one of them is adopted with it.")

    @property
    def chosen(self) -> listings.DriftChoice:
        """The filters, as the listing takes them."""
        return listings.DriftChoice(self.state, self.kind, self.venue, self.account, self.symbol)


def add_bulk_decisions(routes: APIRouter, service: ServiceContext) -> None:
    """Add the routes that adopt, ignore or close many drifts."""

    async def decide(request: Request, caller: ApiKey, action: str) -> Response:
        body = await parse_body(request, DecideManyBody)
        require_unbound(caller, "a drift")
        reconciler = service.require_reconciler()

        def act() -> Any:
            ids = _ids(service, caller, action, body)
            return reconciler.operator.act_all(
                action, ids, reason=body.reason, tags=body.tags, pair=body.pair, dry_run=body.dry_run
            )

        return json_response(outcomes_to_json(await run_in_threadpool(act)))

    form, schema = drift_models.DriftOutcomesForm, body_schema(DecideManyBody)

    @routes.post("/drifts/adopt", response_model=form, openapi_extra=schema)
    async def adopt_drifts(request: Request, caller: Admin) -> Response:
        """Make the ledger say what the exchange shows, for many drifts; each is decided independently."""
        return await decide(request, caller, "adopt")

    @routes.post("/drifts/ignore", response_model=form, openapi_extra=schema)
    async def ignore_drifts(request: Request, caller: Admin) -> Response:
        """Let many differences stand as they are, until they change."""
        return await decide(request, caller, "ignore")

    @routes.post("/drifts/close", response_model=form, openapi_extra=schema)
    async def close_drifts(request: Request, caller: Admin) -> Response:
        """Ask whoever trades to close many differences at the exchange."""
        return await decide(request, caller, "close")


def _ids(service: ServiceContext, caller: ApiKey, action: str, body: DecideManyBody) -> list[int]:
    """Return the drifts that are meant. Raises `Forbidden` for one of a portfolio that the key may not see."""
    filters = [body.portfolio, body.state, body.kind, body.venue, body.account, body.symbol]
    if (body.ids is None) != body.all:
        raise InvalidRequest("give ids, or all=true with filters", field="ids")
    if body.ids is not None:
        if any(one is not None for one in filters):
            raise InvalidRequest("filters are for all=true; with ids every drift is named", field="ids")
        for portfolio in sorted({drift.portfolio for drift in drifts.read_drifts(service.reads, body.ids)}):
            require_portfolio_access(caller, portfolio)
        return body.ids
    if body.portfolio is not None:
        require_portfolio_access(caller, body.portfolio)
    of = caller.portfolios if body.portfolio is None else (body.portfolio,)
    return listings.drifts_to_decide(service.reads, action, body.chosen, of)
