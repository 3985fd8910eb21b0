"""What came back over HTTP, as a value or as an error that cannot be mistaken for a grant.

Whatever is not understood completely is an error: a body that is no JSON, a page of some proxy, a status that
contradicts its body, or the answer to somebody else's request.
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

_DONE = (200, 201)
_SAFE_TO_REPEAT = frozenset({408, 425, 429, 500, 502, 503, 504})
_RETRY_AFTER_SECONDS_MAX = 86_400.0


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer that arrived whole. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """No answer: the connection could not be made, broke, or took too long. what: the transport's own words."""

    what: str

    def error(self, method: str, path: str) -> LedgerError:
        """The error to raise once patience is over."""
        told = "is the service running, and is this its address?"
        if method != "GET":
            told = "whether it took effect is not known, the same key settles it"
        return Unavailable(f"no answer to {method} {path}: {self.what}; {told}")


def retry_after_seconds(reply: Response) -> float | None:
    """The pause the service asked for, in seconds; None without one. A date, or nonsense, counts as none."""
    text = reply.headers.get("retry-after", "").strip()
    return min(float(text), _RETRY_AFTER_SECONDS_MAX) if text.isascii() and text.isdigit() else None


def worth_retrying(outcome: Response | ConnectionLost, error: LedgerError) -> bool:
    """Whether asking again may help. Never after a denial, or after a refusal that the service explained."""
    if isinstance(outcome, ConnectionLost) or isinstance(error, NotUnderstood):
        return isinstance(outcome, ConnectionLost) or outcome.status in _SAFE_TO_REPEAT or outcome.status < 400
    return error.retryable


class NotUnderstood(Unavailable):
    """What answered makes no sense as a ledger-sizer service, so nothing is known of the outcome."""


def value_of(reply: Response, convert: Callable[[Any], T]) -> T:
    """What a successful reply holds, converted; or raise the error it tells."""
    if reply.status not in _DONE:
        raise _told(reply)
    return _read(reply, _read(reply, reply.body, read_json), convert)


def decision_of(reply: Response, command: AnyCommand) -> Decision:
    """The decision a reply holds: granted or applied with a 2xx, denied with a 409, and about this very command."""
    if reply.status in _DONE:
        decision = value_of(reply, decision_from_json)
        return _checked(decision, command, reply, denied=False)
    error = _told(reply)
    if isinstance(error, Denied) and reply.status == 409:
        return _checked(error.decision, command, reply, denied=True)
    raise error


def results_of(reply: Response, commands: Sequence[AnyCommand], *, atomic: bool) -> list[Result]:
    """A batch's answer: one result for every command, in order. What ended the whole batch is raised."""
    denied = False
    if atomic and reply.status == 409:
        error = _told(reply)
        if not isinstance(error, Denied):
            raise error
        denied = True
        items = value_of(replace(reply, status=200), _results)
    else:
        items = value_of(reply, _results)
    if len(items) != len(commands):
        raise NotUnderstood(_what_arrived(reply, f"{len(items)} results for {len(commands)} commands"))
    results = [_result(reply, item, command) for item, command in zip(items, commands, strict=True)]
    if atomic and any((result.outcome == "denied") != denied or isinstance(result, LedgerError) for result in results):
        raise NotUnderstood(_what_arrived(reply, "an atomic batch was neither done nor refused as a whole"))
    return results


def _results(form: Any) -> list[Any]:
    items = form.get("results") if isinstance(form, Mapping) else None
    if not isinstance(items, list):
        raise InvalidRequest("it holds no results")
    return items


def _result(reply: Response, item: Any, command: AnyCommand) -> Result:
    """One place of a batch's answer: the decision of its command, or the error it met."""
    decision = item.get("decision") if isinstance(item, Mapping) else None
    if isinstance(decision, Mapping) and item.get("status") in _DONE:
        return _checked(_read(reply, decision, decision_from_json), command, reply, denied=False)
    problem = item.get("problem") if isinstance(item, Mapping) else None
    if isinstance(problem, Mapping) and _is_known(problem, item.get("status")):
        error = _read(reply, problem, error_of)
        return _checked(error.decision, command, reply, denied=True) if isinstance(error, Denied) else _ours(error)
    raise NotUnderstood(_what_arrived(reply, "one of its results is neither a decision nor a problem"))


def _checked(decision: Decision, command: AnyCommand, reply: Response, *, denied: bool) -> Decision:
    """The decision, if it answers `command` and is whole; everything else is not understood."""
    asked = (command.verb, command.key, command.portfolio)
    if (decision.command, decision.key, decision.portfolio) != asked:
        raise NotUnderstood(_what_arrived(reply, f"it answers {decision.command} {decision.key!r}, not {asked}"))
    outcomes = ("denied",) if denied else ("granted", "applied")
    if decision.outcome not in outcomes or (decision.reason is None) == denied:
        raise NotUnderstood(_what_arrived(reply, f"it says {decision.outcome!r} for reason {decision.reason!r}"))
    dry_run = isinstance(command, Reserve) and command.dry_run
    if decision.granted and command.verb == "reserve":
        held = decision.budget is not None and decision.budget > 0 and decision.expires_at is not None
        if not held or (decision.position_id is None) != dry_run:
            raise NotUnderstood(_what_arrived(reply, "it grants without saying what"))
    if (decision.seq is None) != dry_run or not isinstance(decision.replayed, bool):
        raise NotUnderstood(_what_arrived(reply, "it is not recorded"))
    return decision


def _told(reply: Response) -> LedgerError:
    """The error of a reply that is no success: the service's own, or that it was not understood."""
    try:
        problem = read_json(reply.body)
    except InvalidRequest:
        problem = None
    if not isinstance(problem, Mapping) or not _is_known(problem, reply.status):
        return NotUnderstood(_what_arrived(reply, "it is no problem report of a ledger-sizer service"))
    return _ours(_read(reply, problem, error_of))


def _is_known(problem: Mapping[str, Any], status: Any) -> bool:
    """Whether it is a problem of this version's table, under the status that belongs to it."""
    row = PROBLEMS.get(str(problem.get("code")))
    return row is not None and row.status == status


def _ours(error: LedgerError) -> LedgerError:
    """An error as the caller of this client should see it."""
    # The service is stopping, not this client: another replica, or its next start, will answer.
    return Unavailable(str(error)) if isinstance(error, Closed) else error


def _read(reply: Response, form: Any, convert: Callable[[Any], T]) -> T:
    try:
        return convert(form)
    except (LedgerError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise NotUnderstood(_what_arrived(reply, str(error))) from None


def _what_arrived(reply: Response, why: str) -> str:
    kind = reply.headers.get("content-type", "no content type")[:60]
    size = len(reply.body)
    return f"the answer was not understood ({why}; HTTP {reply.status}, {kind}, {size} bytes); the same key settles it"
