"""Builds the ASGI application: routes, error handlers, middleware."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from ledger_sizer import __version__
from ledger_sizer.api import (
    audit,
    commands,
    dashboard_routes,
    events,
    health,
    reads,
    reconciliation,
    release_all,
    settle,
)
from ledger_sizer.api.auth import Authenticator
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.deadline import Deadline
from ledger_sizer.api.middleware import ServiceMiddleware
from ledger_sizer.api.openapi import openapi_of
from ledger_sizer.api.responses import problem_response
from ledger_sizer.config import ServiceSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.errors import InvalidRequest, LedgerError, NotFound
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.service.api_keys import KeyRing
from ledger_sizer.service.bootstrap import is_loopback
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.service.tracing import Tracing
from ledger_sizer.wire.problems import MethodNotAllowed
from ledger_sizer.wire.requests import NON_FIELDS


def create_app(
    ledger: Ledger,
    settings: ServiceSettings,
    *,
    reads_engine: Engine,
    keys: KeyRing,
    metrics: Metrics,
    tracing: Tracing | None = None,
    reconciler: Reconciler | None = None,
) -> FastAPI:
    """Build the application for an open ledger. `app.state.service` is the `ServiceContext` of its routes.

    reads_engine: a read-only engine on the same database. keys: the API keys that are accepted. reconciler: without
    one, drifts and runs can only be read. tracing: creates a span for each request; None for no spans.
    """
    access = Authenticator(keys, on_loopback=is_loopback(settings.host))
    service = ServiceContext(
        ledger,
        reads_engine,
        settings,
        access,
        metrics,
        Deadline(settings.answer_timeout_seconds),
        reconciler=reconciler,
        tracing=tracing,
    )
    app = FastAPI(
        title="ledger-sizer",
        version=__version__,
        description="The capital desk for trading bots: reserve, confirm and release exposure under caps. Decimals are "
        "strings. Errors are RFC 9457 problem details with a stable `code`.",
        redoc_url=None,
        # A redirect of `/v1/positions/` would repeat a POST at another path, so a wrong path is 404.
        redirect_slashes=False,
        # The spans of `service.tracing` also cover the commands, which never reach the framework.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    # Flat, so that `app.routes` lists every route: the authorization tests iterate over it.
    endpoints = commands.make_endpoints(service)
    app.router.routes.extend(commands.routes(endpoints))
    app.router.routes.extend(dashboard_routes.routes(service))
    for router in (
        reads.router, reads.decision_router, reads.chain_router, audit.router, release_all.router, settle.router,
        reconciliation.router, events.router, health.router,
    ):  # fmt: skip
        app.router.routes.extend(router(service).routes)
    app.add_exception_handler(LedgerError, _on_ledger_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]
    # Not `add_middleware`: that would put the framework's own layers around it, which slow down the hot calls.
    app.middleware_stack = ServiceMiddleware(app.build_middleware_stack(), service, commands.HotPathRouter(endpoints))
    return app


async def _on_ledger_error(_request: Request, error: Any) -> Response:
    return problem_response(error)


async def _on_invalid(request: Request, error: Any) -> Response:
    """Convert FastAPI's first error in a path or query to this package's error."""
    if request.method not in _allowed(request):  # /drifts/adopt fits /drifts/{drift_id}, and takes no GET
        return _refuse_method(request)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:] if part not in NON_FIELDS) or str(first["loc"][0])
    what = "is not a parameter here" if first["type"] == "extra_forbidden" else first["msg"]
    return problem_response(InvalidRequest(f"{field}: {what}, got {first.get('input')!r:.100}", field=field))


async def _on_http(request: Request, error: Any) -> Response:
    """Convert Starlette's own errors: unknown path, wrong method."""
    if error.status_code == 405:
        return _refuse_method(request)
    if error.status_code == 404:
        return problem_response(NotFound(f"there is no {request.url.path[:200]!r}; see /docs"))
    return problem_response(InvalidRequest(str(error.detail)))


def _refuse_method(request: Request) -> Response:
    allowed = _allowed(request)
    refusal = MethodNotAllowed(f"{request.url.path[:200]} takes {', '.join(allowed)}, not {request.method[:20]}")
    return problem_response(refusal, headers={"Allow": ", ".join(allowed)})


def _allowed(request: Request) -> list[str]:
    """Return the methods of a path: of the routes that are exactly it, else of those that it fits into."""
    fitting = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    exact = [route for route in fitting if route.path == request.url.path]
    return sorted({method for route in exact or fitting for method in getattr(route, "methods", None) or ()})
