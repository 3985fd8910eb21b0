"""The calls that change something: one endpoint for each verb, and the batch.

They are plain ASGI endpoints, not FastAPI operations: the same models do the reading, and the hot calls cost a fraction
(see docs/decisions). `openapi` documents them, `routes` adds them, and `HotPathRouter` lets `middleware` answer them
before the framework begins its work.
"""

from collections.abc import Awaitable, Callable, Iterable

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.request_body import idempotency_key, read_body
from ledger_sizer.api.responses import PreparedResponse, decision_response, json_response, problem_response, status_of
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.errors import Denied, InvalidRequest, LedgerError
from ledger_sizer.service.api_keys import ApiKey, Role
from ledger_sizer.wire.batch import read_batch
from ledger_sizer.wire.problems import Forbidden, problem_of
from ledger_sizer.wire.requests import BODIES, CommandBody, validated
from ledger_sizer.wire.responses import Json, decision_to_json
from ledger_sizer.wire.strict_json import read_object

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

Answer = Callable[[Scope, Receive], Awaitable[PreparedResponse]]


class Endpoint:
    """What answers one verb, or the batch. path: as declared, which is what `edge` counts under."""

    def __init__(self, name: str, method: str, path: str, answer: Answer) -> None:
        self.name = name
        self.method = method
        self.path = path
        self._answer = answer

    async def answer(self, scope: Scope, receive: Receive) -> PreparedResponse:
        """The response to a request; an error of the ledger is a problem."""
        try:
            return await self._answer(scope, receive)
        except LedgerError as error:
            return problem_response(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same as an ASGI application, which is how a route of the app calls it."""
        response = await self.answer(scope, receive)
        await response(scope, receive, send)


def endpoints(service: ServiceContext) -> list[Endpoint]:
    """One for each verb, and the batch."""
    made = [
        Endpoint(verb, body.method, body.path, _verb_answer(service, body, ROLE_OF[verb]))
        for verb, body in BODIES.items()
    ]
    return [*made, Endpoint("batch", "POST", BATCH_PATH, _batch_answer(service))]


def routes(made: Iterable[Endpoint]) -> list[Route]:
    """The endpoints as routes of the app, which knows them for its OpenAPI and for what is wrong with a request."""
    return [Route(one.path, one, methods=[one.method], name=one.name) for one in made]


class HotPathRouter:
    """Finds the endpoint of a hot call: by its path, or by the verb after the name of a position.

    What it does not find, such as a path that is not there or another method, is for the app's own router to answer.
    """

    def __init__(self, made: Iterable[Endpoint]) -> None:
        self._by_path = {(one.method, one.path): one for one in made if "{" not in one.path}
        self._by_verb = {one.path.removeprefix(_OF_POSITION): one for one in made if one.path.startswith(_OF_POSITION)}

    def find(self, scope: Scope) -> Endpoint | None:
        """The endpoint, with `endpoint` and `path_params` set as the router would."""
        method, path = scope["method"], scope["path"]
        parameters = {}
        endpoint = self._by_path.get((method, path))
        if endpoint is None and method == "POST" and path.startswith(_POSITIONS):
            position_id, _, verb = path[len(_POSITIONS) :].partition("/")
            endpoint = self._by_verb.get(verb) if position_id else None
            parameters = {"position_id": position_id}
        if endpoint is not None:
            scope["endpoint"], scope["path_params"] = endpoint, parameters
        return endpoint


_POSITIONS = "/v1/positions/"
_OF_POSITION = f"{_POSITIONS}{{position_id}}/"


def _verb_answer(service: ServiceContext, model: type[CommandBody], role: Role) -> Answer:
    async def answer(scope: Scope, receive: Receive) -> PreparedResponse:
        caller = await service.access.require(scope, role)
        key = idempotency_key(scope)
        full = _wants_full(scope["query_string"])
        body = await read_body(scope, receive, service.settings.body_bytes_max)
        command = validated(model, read_object(body)).to_command(key, **scope["path_params"])
        require_portfolio_access(caller, command.portfolio)
        return decision_response(await service.deadline.of(service.ledger.run_async(command)), full=full)

    return answer


def _wants_full(query: bytes) -> bool:
    if not query:
        return False
    if query in (b"full=true", b"full=false"):
        return query == b"full=true"
    raise InvalidRequest(f"the only parameter here is full=true, got {query[:80]!r}", field="full")


def _batch_answer(service: ServiceContext) -> Answer:
    async def answer(scope: Scope, receive: Receive) -> PreparedResponse:
        caller = await service.access.require(scope, "trade")
        full = _wants_full(scope["query_string"])
        batch = read_batch(read_object(await read_body(scope, receive, service.settings.body_bytes_max)))
        for item in batch.items:
            if not isinstance(item, InvalidRequest):
                _allow_command(caller, item)
        return await _batch(service, batch.items, atomic=batch.atomic, full=full)

    return answer


def _allow_command(caller: ApiKey, command: AnyCommand) -> None:
    if not caller.may(ROLE_OF[command.verb]):
        raise Forbidden(f"{command.verb} {command.key!r} needs the role {ROLE_OF[command.verb]!r}; nothing was done")
    require_portfolio_access(caller, command.portfolio)


async def _batch(
    service: ServiceContext, items: list[AnyCommand | InvalidRequest], *, atomic: bool, full: bool
) -> PreparedResponse:
    """Run what could be read; what could not stands as an error in its place, or fails an atomic batch whole."""
    commands = [item for item in items if not isinstance(item, InvalidRequest)]
    wrong = next((item for item in items if isinstance(item, InvalidRequest)), None)
    if atomic and wrong is not None:
        raise wrong
    answers = iter(await service.deadline.of(service.ledger.submit_async(commands, atomic=atomic)))
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
