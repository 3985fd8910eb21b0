"""Route that frees what a dead bot held."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ledger_sizer.api import response_models
from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import ServiceContext, Trader
from ledger_sizer.api.request_body import KEY_HEADER, body_schema, header, idempotency_key, parse_body
from ledger_sizer.api.responses import json_response
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import PORTFOLIO_PATTERN
from ledger_sizer.model.release_all import ReleaseAll
from ledger_sizer.wire.requests import RELEASE_ALL_BODY, KeyText
from ledger_sizer.wire.responses import decision_to_json

PortfolioInPath = Annotated[str, Path(pattern=PORTFOLIO_PATTERN, examples=["main"])]


class ReleaseAllBody(RELEASE_ALL_BODY):  # type: ignore[misc, valid-type]
    """Which holds."""

    key: KeyText | None = Field(None, description="Instead of the header, which cannot carry every key.")
    cursor: str | None = Field(None, pattern=r"^[0-9]{1,18}:[0-9]{1,18}$", description="Of the answer before.")


class FullParameter(BaseModel):
    """Whether decisions are answered whole."""

    model_config = ConfigDict(extra="forbid")

    full: Annotated[bool, Query(description="With request, trace and tags.")] = False


_KEY_PARAMETER: dict[str, Any] = {
    "name": KEY_HEADER, "in": "header", "required": False,
    "description": "One per intention; the key of each decision begins with it. Else `key` in the body.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[!-9;-~]([ -9;-~]*[!-9;-~])?$"},
}  # fmt: skip


def router(service: ServiceContext) -> APIRouter:
    """Return the route."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")

    @routes.post(
        "/portfolios/{portfolio}/release_all",
        response_model=response_models.ReleasedForm,
        openapi_extra={**body_schema(ReleaseAllBody), "x-role": "trade", "parameters": [_KEY_PARAMETER]},
    )
    async def release_all(
        portfolio: PortfolioInPath, request: Request, parameters: Annotated[FullParameter, Query()], caller: Trader
    ) -> Response:
        """Free the holds of all live positions that carry these tags, and close nothing.

        Each is a decision of its own, a release under `<key>/<position_id>`: asked again with the same key it frees
        what is left. Holds that never end by time are left alone unless `unknown` is true. At most 1,000 in one call:
        while `cursor` is not null there may be others, call again with it.
        """
        body = await parse_body(request, ReleaseAllBody)
        asked = ReleaseAll(key=_key(request, body.key), portfolio=portfolio, **body.arguments())
        require_portfolio_access(caller, asked.portfolio)
        found = await service.deadline.wait_for(service.ledger.next_released_page(asked, body.cursor))
        items = [decision_to_json(decision, full=parameters.full) for decision in found.decisions]
        return json_response({"items": items, "cursor": found.cursor})

    return routes


def _key(request: Request, in_body: str | None) -> str:
    """Return the key of the header, or of the body where there is no header. Raises `InvalidRequest` for both."""
    if in_body is None:
        return idempotency_key(request.scope)
    if header(request.scope, b"idempotency-key") is not None:
        raise InvalidRequest(f"the key stands in the header {KEY_HEADER} and in the body; send it once", field="key")
    return in_body
