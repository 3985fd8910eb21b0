"""Builds HTTP responses from JSON, decisions and errors."""

import time
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from ledger_sizer.model.commands import Reserve
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.errors import Denied, LedgerError
from ledger_sizer.telemetry import get_logger
from ledger_sizer.wire.problems import MEDIA_TYPE, problem_of
from ledger_sizer.wire.responses import decision_to_json

log = get_logger(__name__)

RETRY_AFTER_SECONDS = 1
_CLOSING_STATUSES = (408, 413)
Headers = list[tuple[bytes, bytes]]


class PreparedResponse(Response):
    """A response with a complete body and encoded headers, for speed: all hot calls answer with it."""

    def __init__(self, body: bytes, status: int, headers: Headers) -> None:
        # Without Starlette's constructor, which encodes and searches all headers for each response.
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [*headers, (b"content-length", b"%d" % len(body))]


def json_response(form: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> PreparedResponse:
    """Return JSON as a response that no cache may store: it shows the state of somebody's money."""
    return PreparedResponse(to_json(form), status, [*_JSON, *_encode_headers(headers)] if headers else _JSON)


def problem_response(error: LedgerError, *, headers: Mapping[str, str] | None = None, **more: Any) -> PreparedResponse:
    """Return an error as problem details, with the headers of its status. more: further fields of the problem."""
    log_untold(error)
    problem = {**problem_of(error), **more}
    status: int = problem["status"]
    extra = dict(headers or {})
    if status == 503:
        extra["Retry-After"] = str(RETRY_AFTER_SECONDS)
    elif status == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="ledger-sizer"'
    elif status in _CLOSING_STATUSES:
        # The unread rest of the body must not be taken for the next request.
        extra["Connection"] = "close"
    return PreparedResponse(to_json(problem), status, [*_PROBLEM, *_encode_headers(extra)])


def log_untold(error: LedgerError) -> None:
    """Log a message that the caller is not told; in an outage, where every request has one, one a second."""
    global _logged_at  # noqa: PLW0603 - of this process, as the log is
    if error.told == str(error) or time.monotonic() - _logged_at < 1:
        return
    _logged_at = time.monotonic()
    log.warning("http.refused", code=error.code, error=str(error))


_logged_at = -1.0


def status_of(decision: Decision) -> int:
    """Return 201 for a recorded reservation, 409 for a denial, 200 for everything else."""
    if decision.record.outcome == "denied":
        return 409
    return 201 if decision.record.command == Reserve.verb and decision.seq is not None else 200


def decision_response(decision: Decision, *, full: bool) -> PreparedResponse:
    """Return a granted or applied decision with 2xx, a denial as a problem with the full decision."""
    status = status_of(decision)
    if status == 409:
        response = problem_response(Denied(decision))
    else:
        response = PreparedResponse(to_json(decision_to_json(decision, full=full)), status, _JSON)
    if status == 201:
        response.raw_headers.append((b"location", f"/v1/positions/{decision.position_id}".encode()))
    if decision.replayed:
        response.raw_headers.append((b"idempotency-replayed", b"true"))
    return response


def _encode_headers(headers: Mapping[str, str]) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


_NO_STORE = (b"cache-control", b"no-store")
_JSON: Headers = [_NO_STORE, (b"content-type", b"application/json")]
_PROBLEM: Headers = [_NO_STORE, (b"content-type", MEDIA_TYPE.encode())]
