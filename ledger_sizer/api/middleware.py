"""The outermost middleware: request ids, bound on concurrent requests, metrics, spans, unexpected errors as problems.

Plain ASGI, because it runs for every request. It calls the endpoints of the hot commands directly: the framework's
routing costs more than the endpoints themselves.
"""

import itertools
import re
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger_sizer.api.commands import HotPathRouter
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.responses import PreparedResponse, problem_response
from ledger_sizer.model.caller import caller_var
from ledger_sizer.model.errors import Busy, Closed, InternalError
from ledger_sizer.telemetry import get_logger, request_id_var

log = get_logger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
# Unique without random bytes from the system at every request: that call releases the interpreter's lock.
_PROCESS_PREFIX = secrets.token_hex(10)
_request_numbers = itertools.count(1)
_UNMATCHED = "(none)"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceMiddleware:
    """Serves every request of the app."""

    def __init__(self, app: ASGIApp, service: ServiceContext, hot_paths: HotPathRouter) -> None:
        self._app = app
        self._service = service
        self._hot_paths = hot_paths
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        token = request_id_var.set(request_id)
        # The task of a pipelined request inherits the context of the request before it.
        caller_var.set(None)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        tracing = self._service.tracing
        span = None if tracing is None else tracing.begin(scope["headers"], request_id)
        self._in_progress += 1
        try:
            response = self._refusal(scope["path"])
            if response is None and (endpoint := self._hot_paths.find(scope)) is not None:
                response = await endpoint.handle(scope, receive)
            if response is None:
                await self._app(scope, receive, send_with_id)
            else:
                status = response.status_code
                response.raw_headers.append((b"x-request-id", request_id.encode()))
                await response(scope, receive, send)
        except ClientDisconnect:
            status = 499
        except Exception:
            log.exception("http.failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # part of the response is sent: breaking the connection shows that it is incomplete
            error = InternalError(f"the service met a defect; its log has request {request_id}")
            await problem_response(error)(scope, receive, send_with_id)
        finally:
            self._in_progress -= 1
            method, route = scope["method"] if scope["method"] in _METHODS else "OTHER", _route(scope)
            self._service.metrics.count_request(method, route, status, time.perf_counter() - started)
            if tracing is not None and span is not None:
                tracing.end(span, method, route, status)
            request_id_var.reset(token)

    def _refusal(self, path: str) -> PreparedResponse | None:
        """Return a 503 while overloaded or stopping. Always served: /healthz; while stopping also: /readyz."""
        concurrency_max = self._service.settings.concurrency_max
        if self._in_progress > concurrency_max and path != "/healthz":
            return problem_response(
                Busy(f"{concurrency_max} requests are in progress; nothing was recorded, retry with the same key")
            )
        if self._service.stopping.is_set() and path not in ("/healthz", "/readyz"):
            closed = Closed("the service is stopping; nothing was recorded, retry with the same key")
            return problem_response(closed, headers={"Connection": "close"})
        return None


def _route(scope: Scope) -> str:
    """Return the path as declared. FastAPI puts the route into the scope, plain Starlette routes only the endpoint."""
    for declared in (scope.get("endpoint"), scope.get("route")):
        if path := getattr(declared, "path", None):
            return str(path)
    return _UNMATCHED


def _request_id(scope: Scope) -> str:
    """Return the caller's id if it has only safe characters, else a new one: it is copied to logs and headers."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return f"{_PROCESS_PREFIX}{next(_request_numbers):012x}"
