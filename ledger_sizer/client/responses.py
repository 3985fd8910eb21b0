"""Parses HTTP responses into values or errors. No response that is not a grant can be read as one.

A response that is not fully understood is an error: a body that is not JSON, an HTML page of a proxy, a status that
contradicts its body, or the answer to another request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.errors import Closed, Denied, InvalidRequest, LedgerError, Unavailable
from ledger_sizer.wire.problems import PROBLEMS, error_of
from ledger_sizer.wire.responses import decision_from_json
from ledger_sizer.wire.strict_json import read_json

T = TypeVar("T")

_SUCCESSES = (200, 201)
_RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_RETRY_AFTER_SECONDS_MAX = 86_400.0


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """No response: the connection failed, broke or timed out. what: the transport's error text."""

    what: str

    def error(self, method: str, path: str) -> LedgerError:
        """Return the error to raise when there is no further retry."""
        hint = "is the service running, and is this its address?"
        if method != "GET":
            hint = "whether it took effect is not known, the same key settles it"
        return Unavailable(f"no answer to {method} {path}: {self.what}; {hint}")


def retry_after_seconds(reply: Response) -> float | None:
    """Return the seconds of `Retry-After`, at most a day. None without the header, or where it is no whole number."""
    text = reply.headers.get("retry-after", "").strip()
    return min(float(text), _RETRY_AFTER_SECONDS_MAX) if text.isascii() and text.isdigit() else None


def worth_retrying(outcome: Response | ConnectionLost, error: LedgerError) -> bool:
    """Whether a retry may help. Never after a denial, nor after another error that the service says is final."""
    if isinstance(outcome, ConnectionLost):
        return True
    if isinstance(error, NotUnderstood):
        return outcome.status in _RETRYABLE_STATUSES or outcome.status < 400
    return error.retryable


class NotUnderstood(Unavailable):
    """The response is not one of a ledger-sizer service, so the outcome is unknown."""


def value_of(reply: Response, convert: Callable[[Any], T]) -> T:
    """Return the converted body of a successful response, or raise the error of any other."""
    if reply.status not in _SUCCESSES:
        raise _response_error(reply)
    return _convert(reply, _convert(reply, reply.body, read_json), convert)


def decision_of(reply: Response, command: AnyCommand) -> Decision:
    """Return the decision about `command`: granted or applied with a 2xx, denied with a 409; or raise the error."""
    if reply.status in _SUCCESSES:
        decision = value_of(reply, decision_from_json)
        return _validated(decision, command, reply, denied=False)
    error = _response_error(reply)
    if isinstance(error, Denied) and reply.status == 409:
        return _validated(error.decision, command, reply, denied=True)
    raise error


def results_of(reply: Response, commands: Sequence[AnyCommand], *, atomic: bool) -> list[Result]:
    """Return one result for each command of a batch, in order. Raises the error that ended the whole batch."""
    denied = False
    if atomic and reply.status == 409:
        error = _response_error(reply)
        if not isinstance(error, Denied):
            raise error
        denied = True
        items = value_of(replace(reply, status=200), _results)
    else:
        items = value_of(reply, _results)
    if len(items) != len(commands):
        raise _not_understood(reply, f"{len(items)} results for {len(commands)} commands")
    results = [_result(reply, item, command) for item, command in zip(items, commands, strict=True)]
    if atomic and not _as_a_whole(results, denied=denied):
        raise _not_understood(reply, "an atomic batch was neither done nor refused as a whole")
    return results


def _as_a_whole(results: Sequence[Result], *, denied: bool) -> bool:
    """Whether an atomic group was done or denied as a whole. In a denied one, replays of earlier grants may stand."""
    decisions = [result for result in results if isinstance(result, Decision)]
    refused = [decision for decision in decisions if decision.outcome == "denied"]
    new = [decision for decision in decisions if decision.outcome != "denied" and not decision.replayed]
    return len(decisions) == len(results) and bool(refused) == denied and not (denied and new)


def _results(form: Any) -> list[Any]:
    items = form.get("results") if isinstance(form, Mapping) else None
    if not isinstance(items, list):
        raise InvalidRequest("it holds no results")
    return items


def _result(reply: Response, item: Any, command: AnyCommand) -> Result:
    """Return one result of a batch: the decision about its command, or its error."""
    decision = item.get("decision") if isinstance(item, Mapping) else None
    if isinstance(decision, Mapping) and item.get("status") in _SUCCESSES:
        return _validated(_convert(reply, decision, decision_from_json), command, reply, denied=False)
    problem = item.get("problem") if isinstance(item, Mapping) else None
    if isinstance(problem, Mapping) and _is_known(problem, item.get("status")):
        error = _convert(reply, problem, error_of)
        return (
            _validated(error.decision, command, reply, denied=True)
            if isinstance(error, Denied)
            else _closed_as_unavailable(error)
        )
    raise _not_understood(reply, "one of its results is neither a decision nor a problem")


def _validated(decision: Decision, command: AnyCommand, reply: Response, *, denied: bool) -> Decision:
    """Return the decision if it is complete and about `command`. Raises `NotUnderstood` otherwise."""
    asked = (command.verb, command.key, command.portfolio)
    if (decision.command, decision.key, decision.portfolio) != asked:
        raise _not_understood(reply, f"it answers {decision.command} {decision.key!r}, not {asked}")
    outcomes = ("denied",) if denied else ("granted", "applied")
    if decision.outcome not in outcomes or (decision.reason is None) == denied:
        raise _not_understood(reply, f"it says {decision.outcome!r} for reason {decision.reason!r}")
    dry_run = isinstance(command, Reserve) and command.dry_run
    if decision.granted and command.verb == "reserve":
        lasts = decision.expires_at is not None or decision.until_known
        # More of a position adds nothing to what counts where its other side stays the larger one.
        held = decision.budget is not None and (decision.budget > 0 or command.number is not None) and lasts
        if not held or (decision.position_id is None) != dry_run:
            raise _not_understood(reply, "it grants without saying what")
    if (decision.seq is None) != dry_run or not isinstance(decision.replayed, bool):
        raise _not_understood(reply, "it is not recorded")
    return decision


def _response_error(reply: Response) -> LedgerError:
    """Return the error of an unsuccessful response: the service's own, or `NotUnderstood`."""
    try:
        problem = read_json(reply.body)
    except InvalidRequest:
        problem = None
    if not isinstance(problem, Mapping) or not _is_known(problem, reply.status):
        return _not_understood(reply, "it is no problem report of a ledger-sizer service")
    return _closed_as_unavailable(_convert(reply, problem, error_of))


def _is_known(problem: Mapping[str, Any], status: Any) -> bool:
    """Whether this version knows the problem's code, and `status` is the one of that code."""
    row = PROBLEMS.get(str(problem.get("code")))
    return row is not None and row.status == status


def _closed_as_unavailable(error: LedgerError) -> LedgerError:
    """Turn the service's `Closed` into `Unavailable`; return other errors unchanged."""
    # The service is stopping, not this client: another replica, or the restarted service, will answer.
    return Unavailable(str(error)) if isinstance(error, Closed) else error


def _convert(reply: Response, form: Any, convert: Callable[[Any], T]) -> T:
    try:
        return convert(form)
    except (LedgerError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise _not_understood(reply, str(error)) from None


def _not_understood(reply: Response, why: str) -> NotUnderstood:
    kind = reply.headers.get("content-type", "no content type")[:60]
    size = len(reply.body)
    return NotUnderstood(
        f"the answer was not understood ({why}; HTTP {reply.status}, {kind}, {size} bytes); the same key settles it"
    )
