"""Route that brings the ledger in line with a bot's book."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ledger_sizer.api import response_models
from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import ServiceContext, Trader
from ledger_sizer.api.release_all import FullParameter, PortfolioInPath
from ledger_sizer.api.request_body import body_schema, parse_body
from ledger_sizer.api.responses import json_response
from ledger_sizer.wire.requests import SETTLE_BODY
from ledger_sizer.wire.responses import decision_to_json


def router(service: ServiceContext) -> APIRouter:
    """Return the route."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")

    @routes.post(
        "/portfolios/{portfolio}/settle",
        response_model=response_models.SettledForm,
        openapi_extra={**body_schema(SETTLE_BODY), "x-role": "trade"},
    )
    async def settle(
        portfolio: PortfolioInPath, request: Request, parameters: Annotated[FullParameter, Query()], caller: Trader
    ) -> Response:
        """Bring what the ledger has under these tags in line with the bot's book, in one locked batch.

        It takes no idempotency key: what is equal changes nothing, so that it may be sent again after a lost answer.
        The answer lists the decisions that were made, none where nothing had to change. An error about one market does
        not keep the others from being settled.
        """
        asked = (await parse_body(request, SETTLE_BODY)).to_request(portfolio)
        require_portfolio_access(caller, asked.portfolio)
        settling = service.ledger.settle_async(
            asked.tags, asked.book, asked.resting, asked.portfolio, as_of=asked.as_of, reference=asked.reference
        )
        decisions = await service.deadline.wait_for(settling)
        return json_response({"items": [decision_to_json(one, full=parameters.full) for one in decisions]})

    return routes
