"""Around every request: its id, how many at once, what is counted, and errors turned into problems.

Pure ASGI and outermost, because it runs for every call. The commands are answered right here, by the same endpoints
that the app's routes lead to: the framework's way to them costs more than the endpoints themselves.
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
from ledger_sizer.model.errors import Busy, Closed, InternalError
from ledger_sizer.telemetry import get_logger, request_id_var

log = get_logger(__name__)

_GOOD_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
# Unique without asking the system for random bytes at every request, which gives the interpreter's lock away.
_PROCESS = secrets.token_hex(10)
_numbers = itertools.count(1)
_UNMATCHED = "(none)"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceMiddleware:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, service: ServiceContext, shortcut: HotPathRouter) -> None:
        self._app = app
        self._service = service
        self._shortcut = shortcut
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        token = request_id_var.set(request_id)
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
            if response is None and (endpoint := self._shortcut.find(scope)) is not None:
                response = await endpoint.answer(scope, receive)
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
                raise  # part of the answer is out: break the connection off, so that it is not taken for whole
            error = InternalError(f"the service met a defect; its log has request {request_id}")
            await problem_response(error)(scope, receive, send_with_id)
        finally:
            self._in_progress -= 1
            method, route = scope["method"] if scope["method"] in _METHODS else "OTHER", _route(scope)
            self._service.metrics.answered(method, route, status, time.perf_counter() - started)
            if tracing is not None and span is not None:
                tracing.end(span, method, route, status)
            request_id_var.reset(token)

    def _refusal(self, path: str) -> PreparedResponse | None:
        """The answer where nothing more may begin now; liveness is always told, readiness also while stopping."""
        most = self._service.settings.concurrency_max
        if self._in_progress > most and path != "/healthz":
            return problem_response(
                Busy(f"{most} requests are in progress; nothing was recorded, retry with the same key")
            )
        if self._service.stopping.is_set() and path not in ("/healthz", "/readyz"):
            closed = Closed("the service is stopping; nothing was recorded, retry with the same key")
            return problem_response(closed, headers={"Connection": "close"})
        return None


def _route(scope: Scope) -> str:
    """The path as it was declared: FastAPI tells the route, a plain route only its endpoint."""
    for teller in (scope.get("endpoint"), scope.get("route")):
        if path := getattr(teller, "path", None):
            return str(path)
    return _UNMATCHED


def _request_id(scope: Scope) -> str:
    """The caller's own id where it is plain, else a new one: it is written to logs and headers as it stands."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GOOD_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return f"{_PROCESS}{next(_numbers):012x}"
