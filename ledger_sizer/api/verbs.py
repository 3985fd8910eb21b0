"""The calls that change something: one route for each verb, and the batch.

They are plain Starlette routes, not FastAPI operations: the same models do the reading, and the hot calls cost less
than half (see docs/decisions). `schema` adds them to the OpenAPI.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ledger_sizer.api.access import allow
from ledger_sizer.api.answering import decision_response, json_response, problem_response, status_of
from ledger_sizer.api.intake import idempotency_key, read_body
from ledger_sizer.api.service import Service
from ledger_sizer.batch import AnyCommand, Result
from ledger_sizer.errors import Denied, InvalidRequest, LedgerError, Unavailable
from ledger_sizer.keys import ApiKey, Role
from ledger_sizer.records import Decision
from ledger_sizer.wire.answers import Json, decision_to_json
from ledger_sizer.wire.batches import read_batch
from ledger_sizer.wire.bodies import BODIES, CommandBody, validated
from ledger_sizer.wire.problems import Forbidden, problem_of
from ledger_sizer.wire.reading import read_object

ROLE_OF: dict[str, Role] = {
    "reserve": "trade",
    "confirm": "trade",
    "release": "trade",
    "extend": "trade",
    "set_cap": "admin",
    "halt": "admin",
    "resume": "admin",
    "adopt": "admin",
    "freeze": "admin",
    "thaw": "admin",
    "reconciled": "admin",
    "remark": "admin",
}
"""The role each verb needs."""
assert ROLE_OF.keys() == BODIES.keys(), "every verb needs a role"

BATCH_PATH = "/v1/batch"

Answer = Callable[[Scope, Receive], Awaitable[Response]]


def routes(service: Service) -> list[Route]:
    """A route for each verb, and the batch."""
    made = [
        _route(body.path, _verb_endpoint(service, body, ROLE_OF[verb]), body.method, verb)
        for verb, body in BODIES.items()
    ]
    return [*made, _route(BATCH_PATH, _batch_endpoint(service), "POST", "batch")]


class _Endpoint:
    """An ASGI endpoint that turns the ledger's errors into problems. path: what `edge` counts under.

    Not a function of a request, because Starlette wraps those in layers that the hot calls would pay for.
    """

    def __init__(self, path: str, answer: Answer) -> None:
        self.path = path
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope, receive)
        except LedgerError as error:
            response = problem_response(error)
        await response(scope, receive, send)


def _route(path: str, answer: Answer, method: str, name: str) -> Route:
    return Route(path, _Endpoint(path, answer), methods=[method], name=name)


def _verb_endpoint(service: Service, model: type[CommandBody], role: Role) -> Answer:
    async def answer(scope: Scope, receive: Receive) -> Response:
        caller = await service.access.require(scope, role)
        key = idempotency_key(scope)
        full = _wants_full(scope["query_string"])
        body = await read_body(scope, receive, service.settings)
        command = validated(model, read_object(body)).to_command(key, **scope["path_params"])
        allow(caller, command.portfolio)
        return decision_response(await _answered(service, service.ledger.run_async(command)), full=full)

    return answer


async def _answered(service: Service, answer: Awaitable[Any]) -> Any:
    """The ledger's answer, or an error that says it may still come."""
    seconds = service.settings.answer_timeout_seconds
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise Unavailable(f"no answer within {seconds} s; retry with the same key, it settles what happened") from None


def _wants_full(query: bytes) -> bool:
    if not query:
        return False
    if query in (b"full=true", b"full=false"):
        return query == b"full=true"
    raise InvalidRequest(f"the only parameter here is full=true, got {query[:80]!r}", field="full")


def _batch_endpoint(service: Service) -> Answer:
    async def answer(scope: Scope, receive: Receive) -> Response:
        caller = await service.access.require(scope, "trade")
        full = _wants_full(scope["query_string"])
        batch = read_batch(read_object(await read_body(scope, receive, service.settings)))
        for item in batch.items:
            if not isinstance(item, InvalidRequest):
                _allow_command(caller, item)
        return await _batch(service, batch.items, atomic=batch.atomic, full=full)

    return answer


def _allow_command(caller: ApiKey, command: AnyCommand) -> None:
    if not caller.may(ROLE_OF[command.verb]):
        raise Forbidden(f"{command.verb} {command.key!r} needs the role {ROLE_OF[command.verb]!r}; nothing was done")
    allow(caller, command.portfolio)


async def _batch(service: Service, items: list[AnyCommand | InvalidRequest], *, atomic: bool, full: bool) -> Response:
    """Run what could be read; what could not stands as an error in its place, or fails an atomic batch whole."""
    commands = [item for item in items if not isinstance(item, InvalidRequest)]
    wrong = next((item for item in items if isinstance(item, InvalidRequest)), None)
    if atomic and wrong is not None:
        raise wrong
    answers = iter(await _answered(service, service.ledger.submit_async(commands, atomic=atomic)))
    results: list[Result] = [item if isinstance(item, InvalidRequest) else next(answers) for item in items]
    forms = [_result_form(result, full) for result in results]
    denied = next((r for r in results if isinstance(r, Decision) and r.outcome == "denied"), None)
    if atomic and denied is not None:
        # `raise_for_status()` must protect a careless caller here too: nothing of this batch took effect.
        return problem_response(Denied(_first_cause(results) or denied), results=forms)
    return json_response({"results": forms})


def _first_cause(results: list[Result]) -> Decision | None:
    """The denial that denied the others."""
    decisions = (result for result in results if isinstance(result, Decision) and result.outcome == "denied")
    return next((decision for decision in decisions if decision.reason != "group_denied"), None)


def _result_form(result: Result, full: bool) -> Json:
    """One answer of a batch: its status, and the decision or the problem it would have been alone."""
    if isinstance(result, LedgerError):
        problem = problem_of(result)
        return {"status": problem["status"], "problem": problem}
    if result.outcome == "denied":
        problem = problem_of(Denied(result))
        return {"status": 409, "problem": problem}
    return {"status": status_of(result), "decision": decision_to_json(result, full=full)}
