"""The dashboard at `/`: pages to look at, a login, and forms that act. What they look like stands in `dashboard`.

Every page is whole without a script. A form is confirmed on a page of its own, carries an idempotency key made with
that page, and ends in a redirect, so that neither a double click nor a reload acts twice.
"""

from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.reads import SEQ_MAX, OverviewFilters
from ledger_sizer.api.request_body import read_form
from ledger_sizer.api.sessions import end_session, form_key, require_own_form, session_of, set_session
from ledger_sizer.dashboard import confirm_forms, pages
from ledger_sizer.dashboard.assets import BY_DIGEST_NAME
from ledger_sizer.dashboard.pages import Visitor
from ledger_sizer.model.command_base import portfolio_name
from ledger_sizer.model.commands import Halt, Resume
from ledger_sizer.model.errors import InvalidRequest, LedgerError, NotFound, Unavailable, WrongState
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, scope_name
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.operator import ACTIONS
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.telemetry import get_logger
from ledger_sizer.wire.problems import Unauthenticated, problem_of

log = get_logger(__name__)

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would then hide the origin of forms, by which they are told from forged ones.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_FOREVER = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}

Answer = Callable[[Request], Awaitable[Response]]


def routes(service: ServiceContext) -> list[Route]:
    """The dashboard's routes, none of them in the API's documentation."""
    desk = _Desk(service)
    return [
        _route("/", desk.show, "GET"),
        _route("/explain/{portfolio}/{seq}", desk.explain, "GET"),
        _route("/login", desk.ask_key, "GET"),
        _route("/login", desk.sign_in, "POST"),
        _route("/logout", desk.sign_out, "POST"),
        _route("/steer/{portfolio}", desk.ask_to_steer, "GET"),
        _route("/steer/{portfolio}", desk.steer, "POST"),
        _route("/drifts/{drift_id}/{action}", desk.ask_about_drift, "GET"),
        _route("/drifts/{drift_id}/{action}", desk.decide_drift, "POST"),
        _route("/assets/{name}", _asset, "GET"),
    ]


def _route(path: str, answer: Answer, method: str) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request)
        except Unauthenticated:
            return _to("/login")
        except LedgerError as error:
            return _problem(error)
        except SQLAlchemyError as error:
            log.warning("http.database_away", error=str(error).strip())
            return _problem(Unavailable(f"the database is away: {type(error).__name__}; try again"))

    # What `edge` counts under: a route of Starlette's own does not tell.
    endpoint.path = path  # type: ignore[attr-defined]
    return Route(path, endpoint, methods=[method], include_in_schema=False)


class _Desk:
    def __init__(self, service: ServiceContext) -> None:
        self._service = service

    async def show(self, request: Request) -> Response:
        """The dashboard itself."""
        caller = await self._service.access.require(request.scope, "read")
        look = _filters(request).look(caller)
        overview = await run_in_threadpool(self._service.ledger.overview, look)
        return self._page(request, pages.desk_page(overview, look, _visitor(request, caller)))

    async def explain(self, request: Request) -> Response:
        """Why one decision came out as it did."""
        caller = await self._service.access.require(request.scope, "read")
        portfolio, seq = portfolio_name(request.path_params["portfolio"]), request.path_params["seq"]
        require_portfolio_access(caller, portfolio)
        if not (seq.isascii() and seq.isdigit() and 1 <= int(seq[:20]) <= SEQ_MAX):
            raise NotFound(f"no decision {seq!r:.30} in portfolio {portfolio!r}")
        explanation = await run_in_threadpool(self._service.ledger.explain, int(seq), portfolio)
        return self._page(request, pages.explanation_page(explanation, _visitor(request, caller)))

    async def ask_key(self, request: Request) -> Response:
        """The login form, unless no key is needed or one is there."""
        try:
            await self._service.access.require(request.scope, "read")
        except Unauthenticated:
            return self._page(request, pages.login_page(session_of(request.scope).form_token))
        return _to("/")

    async def sign_in(self, request: Request) -> Response:
        """Take a key into the cookie."""
        fields = await read_form(request.scope, request.receive, self._service.settings.body_bytes_max)
        require_own_form(request.scope, fields)
        token = fields.get("key", "").strip()
        try:
            await self._service.access.require_key(request.scope, "read", token)
        except Unauthenticated:
            words = "This API key is not known, or it was revoked."
            page = pages.login_page(session_of(request.scope).form_token, words)
            return HTMLResponse(page, 401, _HEADERS)
        response = _to("/")
        set_session(response, request.scope, token)
        return response

    async def sign_out(self, request: Request) -> Response:
        """Forget the key."""
        fields = await read_form(request.scope, request.receive, self._service.settings.body_bytes_max)
        require_own_form(request.scope, fields)
        response = _to("/login")
        end_session(response, request.scope)
        return response

    async def ask_to_steer(self, request: Request) -> Response:
        """Halt or resume? The page that asks."""
        caller = await self._service.access.require(request.scope, "admin")
        portfolio = portfolio_name(request.path_params["portfolio"])
        require_portfolio_access(caller, portfolio)
        scope = scope_name(request.query_params.get("scope", PORTFOLIO_SCOPE))
        exposure = await run_in_threadpool(self._service.ledger.exposure, portfolio)
        if request.query_params.get("action") == "resume":
            form = confirm_forms.resume_form(portfolio, scope, exposure.scope(scope).status)
        else:
            form = confirm_forms.halt_form(portfolio, scope)
        return self._page(request, pages.confirm_page(form, _visitor(request, caller)))

    async def steer(self, request: Request) -> Response:
        """Halt or resume."""
        fields = await read_form(request.scope, request.receive, self._service.settings.body_bytes_max)
        token = form_key(request.scope, fields)
        caller = await self._service.access.require_key(request.scope, "admin", token)
        portfolio = portfolio_name(request.path_params["portfolio"])
        require_portfolio_access(caller, portfolio)
        common: dict[str, Any] = {
            "key": fields.get("key", ""),
            "portfolio": portfolio,
            "scope": fields.get("scope", PORTFOLIO_SCOPE),
            "note": _signed(fields.get("note", ""), caller),
        }
        action = fields.get("action")
        if action not in ("halt", "resume"):
            raise InvalidRequest(f"action must be halt or resume, got {action!r:.40}", field="action")
        mode: Any = fields.get("mode", "halted")
        await self._service.ledger.run_async(Resume(**common) if action == "resume" else Halt(mode=mode, **common))
        return _to(f"/?portfolio={portfolio}")

    async def ask_about_drift(self, request: Request) -> Response:
        """Adopt, ignore, close? The page that asks."""
        caller = await self._service.access.require(request.scope, "admin")
        drift, action = await self._drift(request, caller)
        return self._page(
            request, pages.confirm_page(confirm_forms.drift_form(drift, action), _visitor(request, caller))
        )

    async def decide_drift(self, request: Request) -> Response:
        """Decide about a drift."""
        fields = await read_form(request.scope, request.receive, self._service.settings.body_bytes_max)
        token = form_key(request.scope, fields)
        caller = await self._service.access.require_key(request.scope, "admin", token)
        drift, action = await self._drift(request, caller)
        if self._service.reconciler is None:
            raise WrongState("this service does not reconcile")
        operator = self._service.reconciler.operator
        price = _price(fields.get("price"))
        reason = fields.get("note", "").strip()
        await run_in_threadpool(operator.act, action, drift.id, actor=caller.name, reason=reason, price=price)
        return _to(f"/?portfolio={drift.portfolio}")

    async def _drift(self, request: Request, caller: ApiKey) -> tuple[Drift, str]:
        """The drift and the action a path names."""
        number, action = request.path_params["drift_id"], request.path_params["action"]
        if action not in ACTIONS or not (number.isascii() and number.isdigit() and len(number) <= 18):
            raise NotFound(f"there is no {request.url.path!r:.100}; see the dashboard")
        drift = await run_in_threadpool(drifts.get_drift, self._service.reads, int(number))
        require_portfolio_access(caller, drift.portfolio)
        return drift, action

    def _page(self, request: Request, html: str) -> Response:
        response = HTMLResponse(html, headers=_HEADERS)
        session = session_of(request.scope)
        if session.new:
            set_session(response, request.scope, session.value)
        return response


async def _asset(request: Request) -> Response:
    asset = BY_DIGEST_NAME.get(request.path_params["name"])
    if asset is None:
        raise NotFound(f"there is no file {request.path_params['name']!r:.100}; reload the page")
    return Response(asset.content, headers=_FOREVER, media_type=asset.media_type)


def _filters(request: Request) -> OverviewFilters:
    try:
        return OverviewFilters.model_validate(dict(request.query_params))
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise InvalidRequest(f"{field}: {first['msg']}, got {first['input']!r:.60}", field=field) from None


def _visitor(request: Request, caller: ApiKey) -> Visitor:
    return Visitor(caller.name, caller.role, bool(caller.key_id), session_of(request.scope).form_token)


def _price(text: str | None) -> Decimal | None:
    if text is None or not text.strip():
        return None
    try:
        return Decimal(text.strip())
    except InvalidOperation:
        raise InvalidRequest(f"price must be a number such as 50000, got {text!r:.40}", field="price") from None


def _signed(note: str, caller: ApiKey) -> str:
    """The note as it is recorded, with who wrote it."""
    who = f"dashboard, {caller.name}"
    return f"{note.strip()} ({who})" if note.strip() else who


def _to(path: str) -> Response:
    return RedirectResponse(path, 303, _HEADERS)


def _problem(error: LedgerError) -> Response:
    problem = problem_of(error)
    return HTMLResponse(pages.problem_page(problem["title"], problem["detail"]), problem["status"], _HEADERS)
