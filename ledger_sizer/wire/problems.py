"""Converts errors to RFC 9457 problem details (`application/problem+json`) and back, by one table of codes.

    {"type": "urn:ledger-sizer:problem:cap_exceeded", "title": "The cap leaves too little", "status": 409,
     "code": "cap_exceeded", "detail": "...", "decision": {...}}

Programs decide by `code`, which is stable. `field` names the argument at fault where there is one, `seq` and
`position_id` tell what a reused key did before, `decision` is the whole decision of a denial, `results` are the results
of an atomic batch that was denied.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ledger_sizer.model.denials import DENIALS
from ledger_sizer.model.errors import (
    Busy,
    Closed,
    Denied,
    Forbidden,
    InternalError,
    InvalidRequest,
    KeyReused,
    LedgerError,
    NotFound,
    SchemaOutdated,
    Unavailable,
    WrongState,
)
from ledger_sizer.wire.responses import decision_from_json, decision_to_json

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ledger-sizer:problem:"


class Unauthenticated(LedgerError):
    """The service needs an API key, and the request has none that it knows."""

    code = "unauthenticated"


class MethodNotAllowed(LedgerError):
    """The path exists, but not with this HTTP method."""

    code = "method_not_allowed"


class NotAcceptable(LedgerError):
    """This path has none of the media types in the `Accept` header."""

    code = "not_acceptable"


class RequestTimeout(LedgerError):
    """The request's body did not arrive in time; nothing was recorded."""

    code = "request_timeout"
    retryable = True


class PayloadTooLarge(LedgerError):
    """The request's body is larger than the service reads; send it in parts."""

    code = "payload_too_large"


class UnsupportedMediaType(LedgerError):
    """The request's body is not declared as JSON."""

    code = "unsupported_media_type"


class TooManyRequests(LedgerError):
    """This client, or all together, tried this too often. retry_after: seconds until another try is looked at."""

    code = "too_many_requests"

    def __init__(self, message: str, *, retry_after: int = 60) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Problem(NamedTuple):
    """One row of the table: HTTP status, fixed title, and the Python exception."""

    status: int
    title: str
    exception: type[LedgerError]


PROBLEMS: Mapping[str, Problem] = {
    "invalid_request": Problem(422, "The request is wrong in itself", InvalidRequest),
    "idempotency_key_reused": Problem(422, "The idempotency key answered another request", KeyReused),
    "not_found": Problem(404, "There is no such thing", NotFound),
    "wrong_state": Problem(409, "The present state does not allow this", WrongState),
    **{reason: Problem(409, title, Denied) for reason, (title, _) in DENIALS.items()},
    "unauthenticated": Problem(401, "An API key is needed", Unauthenticated),
    "forbidden": Problem(403, "The API key does not allow this", Forbidden),
    "method_not_allowed": Problem(405, "The path does not take this method", MethodNotAllowed),
    "not_acceptable": Problem(406, "No representation is acceptable", NotAcceptable),
    "request_timeout": Problem(408, "The request did not arrive in time", RequestTimeout),
    "payload_too_large": Problem(413, "The body is too large", PayloadTooLarge),
    "unsupported_media_type": Problem(415, "The body must be JSON", UnsupportedMediaType),
    "too_many_requests": Problem(429, "Too many tries", TooManyRequests),
    "internal_error": Problem(500, "A defect of the service", InternalError),
    "busy": Problem(503, "Too much is waiting; retry with the same key", Busy),
    "unavailable": Problem(503, "The database is away; retry with the same key", Unavailable),
    "closed": Problem(503, "The service is stopping; retry with the same key", Closed),
    "schema_outdated": Problem(503, "The database is not at this version's migration", SchemaOutdated),
}
"""All error codes of the service. The code of a denial is its reason."""


def problem_of(error: LedgerError) -> dict[str, Any]:
    """Convert an error to a problem; its `status` is the HTTP status. A denial includes its full decision.

    `detail` is what the error tells callers, which may be less than its message.
    """
    code = error.reason if isinstance(error, Denied) else error.code
    if code not in PROBLEMS:
        code = "internal_error"
    problem = problem_form(code, error.told)
    if isinstance(error, InvalidRequest | Forbidden) and error.field is not None:
        problem["field"] = error.field
    if isinstance(error, KeyReused) and error.seq is not None:
        problem |= {"seq": error.seq, "position_id": error.position_id}
    if isinstance(error, Denied):
        problem["decision"] = decision_to_json(error.decision, full=True)
    return problem


def problem_form(code: str, detail: str) -> dict[str, Any]:
    """Return the problem with this code and detail."""
    row = PROBLEMS[code]
    return {
        "type": f"{TYPE_PREFIX}{code}",
        "title": row.title,
        "status": row.status,
        "code": code,
        "detail": detail,
    }


def error_of(problem: Mapping[str, Any]) -> LedgerError:
    """Convert a problem to the exception to raise.

    A denial becomes `Denied` with its decision. A code that this version does not know becomes `InternalError`, which
    is not retryable.
    """
    code, detail = problem.get("code"), str(problem.get("detail", ""))
    decision = problem.get("decision")
    if isinstance(decision, Mapping):
        return Denied(decision_from_json(decision))
    row = PROBLEMS.get(code) if isinstance(code, str) else None
    if row is None or row.exception is Denied:
        return InternalError(f"the service answered {code!r}: {detail}")
    if row.exception is InvalidRequest or row.exception is Forbidden:
        field = problem.get("field")
        return row.exception(detail, field=field if isinstance(field, str) else None)
    if row.exception is KeyReused:
        seq, position_id = problem.get("seq"), problem.get("position_id")
        return KeyReused(
            detail,
            seq=seq if type(seq) is int else None,
            position_id=position_id if isinstance(position_id, str) else None,
        )
    return row.exception(detail)
