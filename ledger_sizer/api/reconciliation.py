"""Routes for reconciliation runs and drifts: list them, start a run, decide about a drift."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ledger_sizer.api import drift_models, response_models
from ledger_sizer.api.auth import require_portfolio_access, require_unbound
from ledger_sizer.api.context import Admin, Reader, ServiceContext
from ledger_sizer.api.drift_routes import add_bulk_decisions
from ledger_sizer.api.request_body import body_schema, parse_body
from ledger_sizer.api.responses import json_response
from ledger_sizer.model.choices import DriftFilter, DriftKind
from ledger_sizer.model.renames import RenamedCoin
from ledger_sizer.reconcile import drifts, listings
from ledger_sizer.reconcile.drift_report import read_report
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.views.paging import LIMIT_MAX
from ledger_sizer.wire.activity import drift_activity_to_json
from ledger_sizer.wire.codec import page_to_json
from ledger_sizer.wire.reconciliation import (
    drift_to_json,
    renamed_to_json,
    report_of_drift_to_json,
    report_to_json,
    rule_to_json,
    run_to_json,
)
from ledger_sizer.wire.requests import AmountText, Body, LabelText, PortfolioText, TagsForm

DriftInPath = Annotated[int, Path(ge=1, le=10**18 - 1)]


class RunBody(Body):
    """Ask for a run now."""

    dry_run: bool = Field(False, description="Only look: nothing is recorded, counted or frozen.")


class ReasonBody(Body):
    """Why; kept with the drift and in the audit chain, beside the name of the API key."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class AdoptDriftBody(ReasonBody):
    """Why, at which price where the exchange named none, and as what."""

    price: AmountText | None = Field(None, description="USD per base unit.")
    tags: TagsForm = Field(
        default_factory=dict, description="Tags of the position; its venue, account and symbol are filled in."
    )
    pair: bool = Field(True, description="Whether what hedges it there is adopted with it, as one position.")


class RenameBody(ReasonBody):
    """Which coin has which name now, how many new ones for one old, and why."""

    coin: LabelText = Field(description="The old name.", examples=["FTM"])
    asset: LabelText = Field(description="The new name.", examples=["S"])
    ratio: AmountText = Field("1", description="New coins for one old coin.")
    portfolio: PortfolioText = "main"
    venue: LabelText | None = Field(None, description="Only positions with a leg there.")
    force: bool = Field(False, description="Also where the last run saw something else.")


class IgnoreDriftBody(ReasonBody):
    """Why; and whether the asset of the drift is decided once, as what."""

    asset: bool = Field(False, description="Decide about the asset of this account, whatever its quantity.")
    policy: Literal["cash", "fees", "ignore"] | None = Field(
        None, description="With `asset`: what it is. `ignore` where nothing is said."
    )


class PolicyFilters(BaseModel):
    """Query of `GET /v1/asset-policies`."""

    model_config = ConfigDict(extra="forbid")

    portfolio: PortfolioText | None = None


class _Filters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    portfolio: PortfolioText | None = None
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 100


class RunFilters(_Filters):
    """Query of `GET /v1/reconciliations`."""


class DriftFilters(_Filters):
    """Query of `GET /v1/drifts`."""

    state: DriftFilter | None = None
    kind: DriftKind | None = None
    venue: LabelText | None = None
    account: LabelText | None = None
    symbol: LabelText | None = Field(None, description="A market, an asset, or the coin of markets.")

    @property
    def chosen(self) -> listings.DriftChoice:
        """The filters, as the listing takes them."""
        return listings.DriftChoice(self.state, self.kind, self.venue, self.account, self.symbol)


def router(service: ServiceContext) -> APIRouter:
    """Return the routes for runs and drifts."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")

    @routes.get("/reconciliations", response_model=response_models.RunPage)
    async def list_reconciliations(filters: Annotated[RunFilters, Query()], caller: Reader) -> Response:
        """Runs, newest first: when, what was fetched, what was found."""
        of = _portfolios(caller, filters.portfolio)
        page = await run_in_threadpool(
            lambda: listings.list_runs(service.reads, portfolios=of, cursor=filters.cursor, limit=filters.limit)
        )
        return json_response(page_to_json(page, run_to_json))

    @routes.post(
        "/reconciliations",
        response_model=response_models.ReportList,
        openapi_extra=body_schema(RunBody, required=False),
    )
    async def reconcile(request: Request, caller: Admin) -> Response:
        """Compare now, for every portfolio that has an account. 503 while another run is under way."""
        body = await parse_body(request, RunBody)
        reconciler = service.require_reconciler()
        for portfolio in reconciler.portfolios:
            require_portfolio_access(caller, portfolio)
        reports = await run_in_threadpool(lambda: reconciler.run("demand", dry_run=body.dry_run))
        return json_response({"items": [report_to_json(report) for report in reports]})

    @routes.get("/drifts", response_model=response_models.DriftPage)
    async def list_drifts(filters: Annotated[DriftFilters, Query()], caller: Reader) -> Response:
        """Drifts, newest first."""
        of = _portfolios(caller, filters.portfolio)
        page = await run_in_threadpool(
            lambda: listings.list_drifts(
                service.reads, portfolios=of, chosen=filters.chosen, cursor=filters.cursor, limit=filters.limit
            )
        )  # fmt: skip
        return json_response(page_to_json(page, drift_to_json))

    @routes.get("/drifts/{drift_id:int}", response_model=drift_models.DriftReportForm)
    async def drift(drift_id: DriftInPath, caller: Reader) -> Response:
        """One drift in full: what it means, what the ledger has there, what happened to it, what to do next."""
        owner = (await run_in_threadpool(drifts.get_drift, service.reads, drift_id)).portfolio
        require_portfolio_access(caller, owner)
        return json_response(report_of_drift_to_json(await run_in_threadpool(read_report, service.reads, drift_id)))

    @routes.get(
        "/drifts/{drift_id}/activity",
        response_model=drift_models.DriftActivityForm,
        openapi_extra={"x-role": "admin"},
    )
    async def drift_activity(drift_id: DriftInPath, caller: Admin) -> Response:
        """Ask the exchange what explains a drift: fills, liquidations, transfers, funding since the last good run."""
        reconciler = service.require_reconciler()
        require_portfolio_access(caller, (await run_in_threadpool(drifts.get_drift, service.reads, drift_id)).portfolio)
        found = await run_in_threadpool(reconciler.activity, drift_id)
        return json_response(drift_activity_to_json(found))

    _add_decisions(routes, service)
    add_bulk_decisions(routes, service)
    _add_asset_policies(routes, service)
    return routes


def _add_asset_policies(routes: APIRouter, service: ServiceContext) -> None:
    """Add the routes that list whose money each asset is, and take a decision about one back."""

    @routes.get("/asset-policies", response_model=response_models.AssetRuleList)
    async def list_asset_policies(filters: Annotated[PolicyFilters, Query()], caller: Reader) -> Response:
        """Whose money each asset is: decided about drifts, from settings, by default."""
        of = _portfolios(caller, filters.portfolio)
        rules = await run_in_threadpool(service.require_reconciler().asset_rules, of)
        return json_response({"items": [rule_to_json(rule) for rule in rules]})

    @routes.post(
        "/asset-policies/{policy_id}/take-back",
        response_model=response_models.AssetRuleForm,
        openapi_extra=body_schema(ReasonBody),
    )
    async def take_back_asset_policy(request: Request, policy_id: DriftInPath, caller: Admin) -> Response:
        """End a decided policy. What the exchange shows is compared again from the next run on."""
        body = await parse_body(request, ReasonBody)
        require_unbound(caller, "a policy")
        operator = service.require_reconciler().operator
        rule = await run_in_threadpool(operator.decided_policy, policy_id)
        require_portfolio_access(caller, str(rule.portfolio))
        await run_in_threadpool(lambda: operator.take_back(policy_id, reason=body.reason))
        return json_response(rule_to_json(rule))


def _add_decisions(routes: APIRouter, service: ServiceContext) -> None:
    """Add the routes that adopt, ignore or close a drift."""

    async def decide(caller: ApiKey, action: str, drift_id: int, body: ReasonBody) -> Response:
        require_unbound(caller, "a drift")
        reconciler = service.require_reconciler()
        require_portfolio_access(caller, (await run_in_threadpool(drifts.get_drift, service.reads, drift_id)).portfolio)
        more: dict[str, Any] = {}
        if isinstance(body, AdoptDriftBody):
            price = None if body.price is None else Decimal(body.price)
            more = {"price": price, "tags": body.tags, "pair": body.pair}
        elif isinstance(body, IgnoreDriftBody):
            more = {"asset": body.asset, "policy": body.policy}

        def act() -> Any:
            return reconciler.operator.act(action, drift_id, reason=body.reason, **more)

        return json_response(drift_to_json(await run_in_threadpool(act)))

    @routes.post("/drifts/rename", response_model=response_models.RenamedForm, openapi_extra=body_schema(RenameBody))
    async def rename_coin(request: Request, caller: Admin) -> Response:
        """Say that a coin has another name: its open positions get it, with what they count, their tags and age."""
        body = await parse_body(request, RenameBody)
        require_unbound(caller, "a renamed coin")
        require_portfolio_access(caller, body.portfolio)
        reconciler = service.require_reconciler()

        def rename() -> RenamedCoin:
            return reconciler.operator.rename(**{**body.model_dump(), "ratio": Decimal(body.ratio)})

        return json_response(renamed_to_json(await run_in_threadpool(rename)))

    @routes.post(
        "/drifts/{drift_id}/adopt", response_model=response_models.DriftForm, openapi_extra=body_schema(AdoptDriftBody)
    )
    async def adopt_drift(request: Request, drift_id: DriftInPath, caller: Admin) -> Response:
        """Make the ledger say what the exchange shows, with both sides of a hedge in one position."""
        return await decide(caller, "adopt", drift_id, await parse_body(request, AdoptDriftBody))

    @routes.post(
        "/drifts/{drift_id}/ignore",
        response_model=response_models.DriftForm,
        openapi_extra=body_schema(IgnoreDriftBody),
    )
    async def ignore_drift(request: Request, drift_id: DriftInPath, caller: Admin) -> Response:
        """Let the difference stand as it is, until it changes; or decide whose money the asset is, once."""
        return await decide(caller, "ignore", drift_id, await parse_body(request, IgnoreDriftBody))

    @routes.post(
        "/drifts/{drift_id}/close", response_model=response_models.DriftForm, openapi_extra=body_schema(ReasonBody)
    )
    async def close_drift(request: Request, drift_id: DriftInPath, caller: Admin) -> Response:
        """Ask whoever trades to close it at the exchange: an event `remark` with `close_requested`."""
        return await decide(caller, "close", drift_id, await parse_body(request, ReasonBody))


def _portfolios(caller: ApiKey, asked: str | None) -> tuple[str, ...] | None:
    """Return the portfolio asked for, else those of the key (None: all). Raises `Forbidden`."""
    if asked is None:
        return caller.portfolios
    require_portfolio_access(caller, asked)
    return (asked,)
