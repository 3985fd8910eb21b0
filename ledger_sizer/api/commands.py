"""Endpoints of the commands: one for each verb, and the batch.

They are plain ASGI endpoints, not FastAPI operations: the same pydantic models parse the requests, at a fraction of the
cost (see docs/decisions). `openapi` documents them, `routes` adds them to the app, and `HotPathRouter` lets
`middleware` answer the hot calls before the framework's own router.
"""

from collections.abc import Awaitable, Callable, Iterable

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.request_body import idempotency_key, read_body
from ledger_sizer.api.responses import PreparedResponse, decision_response, json_response, problem_response, status_of
from ledger_sizer.model.choices import Role
from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.model.decisions import Result
from ledger_sizer.model.errors import Denied, Forbidden, InvalidRequest, LedgerError
from ledger_sizer.rules.batch import causing_denial
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.wire.batch import read_batch
from ledger_sizer.wire.codec import Json
from ledger_sizer.wire.problems import problem_of
from ledger_sizer.wire.requests import BODIES, CommandBody, validated
from ledger_sizer.wire.responses import decision_to_json
from ledger_sizer.wire.strict_json import read_object

BATCH_PATH = "/v1/batch"

Handler = Callable[[Scope, Receive], Awaitable[PreparedResponse]]


class Endpoint:
    """The endpoint of one verb, or of the batch. path: as declared; `middleware` uses it as the metrics' route."""

    def __init__(self, name: str, method: str, path: str, handler: Handler) -> None:
        self.name = name
        self.method = method
        self.path = path
        self._handler = handler

    async def handle(self, scope: Scope, receive: Receive) -> PreparedResponse:
        """Return the response; a `LedgerError` becomes a problem."""
        try:
            return await self._handler(scope, receive)
        except LedgerError as error:
            return problem_response(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request as an ASGI application; the app's routes call this."""
        response = await self.handle(scope, receive)
        await response(scope, receive, send)


def make_endpoints(service: ServiceContext) -> list[Endpoint]:
    """Make one endpoint for each verb, and one for the batch."""
    verbs = [
        Endpoint(verb, command.method, command.path, _verb_handler(service, BODIES[verb], command.role))
        for verb, command in COMMANDS.items()
    ]
    return [*verbs, Endpoint("batch", "POST", BATCH_PATH, _batch_handler(service))]


def routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    """Make the app's routes to the endpoints. The app needs them for requests that `HotPathRouter` does not find."""
    return [Route(one.path, one, methods=[one.method], name=one.name) for one in endpoints]


class HotPathRouter:
    """Finds the endpoint of a hot call: by its path, or by the verb after a position_id.

    The app's own router answers what it does not find, such as an unknown path or another method.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._by_path = {(one.method, one.path): one for one in endpoints if "{" not in one.path}
        self._by_verb = {
            one.path.removeprefix(_POSITION_PREFIX): one for one in endpoints if one.path.startswith(_POSITION_PREFIX)
        }

    def find(self, scope: Scope) -> Endpoint | None:
        """Return the endpoint or None. Sets `endpoint` and `path_params` in the scope as the app's router does."""
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
_POSITION_PREFIX = f"{_POSITIONS}{{position_id}}/"


def _verb_handler(service: ServiceContext, model: type[CommandBody], role: Role) -> Handler:
    async def handle(scope: Scope, receive: Receive) -> PreparedResponse:
        caller = await service.access.require(scope, role)
        key = idempotency_key(scope)
        full = _wants_full(scope["query_string"])
        body = await read_body(scope, receive, service.settings.body_bytes_max)
        command = validated(model, read_object(body)).to_command(key, **scope["path_params"])
        require_portfolio_access(caller, command.portfolio)
        return decision_response(await service.deadline.wait_for(service.ledger.run_async(command)), full=full)

    return handle


def _wants_full(query: bytes) -> bool:
    if not query:
        return False
    if query in (b"full=true", b"full=false"):
        return query == b"full=true"
    raise InvalidRequest(f"the only parameter here is full=true, got {query[:80]!r}", field="full")


def _batch_handler(service: ServiceContext) -> Handler:
    async def handle(scope: Scope, receive: Receive) -> PreparedResponse:
        caller = await service.access.require(scope, "trade")
        full = _wants_full(scope["query_string"])
        batch = read_batch(read_object(await read_body(scope, receive, service.settings.body_bytes_max)))
        for item in batch.items:
            if not isinstance(item, InvalidRequest):
                _require_permission(caller, item)
        return await _run_batch(service, batch.items, atomic=batch.atomic, full=full)

    return handle


def _require_permission(caller: ApiKey, command: AnyCommand) -> None:
    if not caller.may(command.role):
        raise Forbidden(f"{command.verb} {command.key!r} needs the role {command.role!r}; nothing was done")
    require_portfolio_access(caller, command.portfolio)


async def _run_batch(
    service: ServiceContext, items: list[AnyCommand | InvalidRequest], *, atomic: bool, full: bool
) -> PreparedResponse:
    """Run the valid commands. The error of an invalid one is its result; an atomic batch fails as a whole."""
    commands = [item for item in items if not isinstance(item, InvalidRequest)]
    first_error = next((item for item in items if isinstance(item, InvalidRequest)), None)
    if atomic and first_error is not None:
        raise first_error
    answers = iter(await service.deadline.wait_for(service.ledger.submit_async(commands, atomic=atomic)))
    results: list[Result] = [item if isinstance(item, InvalidRequest) else next(answers) for item in items]
    forms = [_result_form(result, full) for result in results]
    if atomic and (denied := causing_denial(results)) is not None:
        # Not 200, so that `raise_for_status()` stops a careless caller: no command of this batch took effect.
        return problem_response(Denied(denied), results=forms)
    return json_response({"results": forms})


def _result_form(result: Result, full: bool) -> Json:
    """Convert one result of a batch: the status and the decision or problem that a single call would have."""
    if isinstance(result, LedgerError):
        problem = problem_of(result)
        return {"status": problem["status"], "problem": problem}
    if result.outcome == "denied":
        problem = problem_of(Denied(result))
        return {"status": 409, "problem": problem}
    return {"status": status_of(result), "decision": decision_to_json(result, full=full)}
