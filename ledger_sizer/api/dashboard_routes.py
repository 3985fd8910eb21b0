"""Routes of the dashboard at `/`: pages, login, and forms that run commands. `dashboard` renders the HTML.

Every page is complete without a script. Each form has its own confirm page, which makes the idempotency key. Its POST
ends in a redirect, so that neither a double click nor a reload runs the command twice.
"""

from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ledger_sizer.api.auth import require_portfolio_access, require_unbound
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.reads import OverviewFilters
from ledger_sizer.api.request_body import read_form
from ledger_sizer.api.responses import log_untold
from ledger_sizer.api.sessions import check_csrf, end_session, form_api_key, session_of, set_session
from ledger_sizer.api.throttle import LoginThrottle, client_of
from ledger_sizer.dashboard import confirm_forms, pages
from ledger_sizer.dashboard.assets import BY_DIGEST_NAME
from ledger_sizer.dashboard.pages import Visitor
from ledger_sizer.model.commands import Halt, Resume
from ledger_sizer.model.errors import InvalidRequest, LedgerError, NotFound
from ledger_sizer.model.names import DESK, SEQ_MAX, portfolio_or_desk
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, scope_name
from ledger_sizer.model.units import parse_decimal
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.operator import ACTIONS
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.wire.problems import TooManyRequests, Unauthenticated, problem_of

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would then hide the origin of forms, which the CSRF check needs.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_LOGIN_BYTES_MAX = 4096
_ASSET_HEADERS = {**_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}

Handler = Callable[[Request], Awaitable[Response]]


def routes(service: ServiceContext) -> list[Route]:
    """Return the dashboard's routes. None is in the OpenAPI document."""
    dashboard = _Dashboard(service)
    return [
        _route("/", dashboard.show, "GET"),
        _route("/explain/{portfolio}/{seq}", dashboard.explain, "GET"),
        _route("/login", dashboard.login_page, "GET"),
        _route("/login", dashboard.log_in, "POST"),
        _route("/logout", dashboard.log_out, "POST"),
        _route("/steer/{portfolio}", dashboard.confirm_halt_page, "GET"),
        _route("/steer/{portfolio}", dashboard.halt_or_resume, "POST"),
        _route("/drifts/{drift_id}/{action}", dashboard.confirm_drift_page, "GET"),
        _route("/drifts/{drift_id}/{action}", dashboard.decide_drift, "POST"),
        _route("/assets/{name}", _asset, "GET"),
    ]


def _route(path: str, handler: Handler, method: str) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except Unauthenticated:
            return _redirect("/login")
        except LedgerError as error:
            return _problem_page(error)

    # The route that `middleware` counts requests by: Starlette's routes do not put theirs into the scope.
    endpoint.path = path  # type: ignore[attr-defined]
    return Route(path, endpoint, methods=[method], include_in_schema=False)


class _Dashboard:
    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._logins = LoginThrottle()

    async def show(self, request: Request) -> Response:
        """Show the dashboard."""
        caller = await self._service.access.require(request.scope, "read")
        query = _filters(request).query_for(caller)
        overview = await run_in_threadpool(self._service.ledger.overview, query)
        shown = overview.detail
        net = None if shown is None else await run_in_threadpool(self._service.ledger.net, shown.name)
        return self._page(request, pages.dashboard_page(overview, query, _visitor(request, caller), net))

    async def explain(self, request: Request) -> Response:
        """Explain one decision."""
        caller = await self._service.access.require(request.scope, "read")
        portfolio, seq = portfolio_or_desk(request.path_params["portfolio"]), request.path_params["seq"]
        require_portfolio_access(caller, portfolio)
        if not (seq.isascii() and seq.isdigit() and 1 <= int(seq[:20]) <= SEQ_MAX):
            raise NotFound(f"no decision {seq!r:.30} in portfolio {portfolio!r}")
        explanation = await run_in_threadpool(self._service.ledger.explain, int(seq), portfolio)
        return self._page(request, pages.explanation_page(explanation, _visitor(request, caller)))

    async def login_page(self, request: Request) -> Response:
        """Show the login form; redirect where no key is needed or the visitor is logged in."""
        try:
            await self._service.access.require(request.scope, "read")
        except Unauthenticated:
            return self._page(request, pages.login_page(session_of(request.scope).form_token))
        return _redirect("/")

    async def log_in(self, request: Request) -> Response:
        """Check the API key and store it in the cookie. A client that failed too often must wait."""
        client = client_of(request.scope["client"])
        self._logins.check(client)
        fields = await read_form(request.scope, request.receive, _LOGIN_BYTES_MAX)
        check_csrf(request.scope, fields)  # not counted, else a foreign page could lock its visitor out
        token = fields.get("key", "").strip()
        try:
            await self._service.access.require_key(request.scope, "read", token)
        except Unauthenticated:
            self._logins.count_failure(client)
            message = "This API key is not known, or it was revoked."
            page = pages.login_page(session_of(request.scope).form_token, message)
            return HTMLResponse(page, 401, _HEADERS)
        response = _redirect("/")
        set_session(response, request.scope, token)
        return response

    async def log_out(self, request: Request) -> Response:
        """Delete the cookie."""
        fields = await read_form(request.scope, request.receive, _LOGIN_BYTES_MAX)
        check_csrf(request.scope, fields)
        response = _redirect("/login")
        end_session(response, request.scope)
        return response

    async def confirm_halt_page(self, request: Request) -> Response:
        """Show the page that confirms a halt or resume, of a scope or of the desk."""
        caller = await self._service.access.require(request.scope, "admin")
        portfolio = portfolio_or_desk(request.path_params["portfolio"])
        require_portfolio_access(caller, portfolio)
        scope = scope_name(request.query_params.get("scope", PORTFOLIO_SCOPE))
        status = await run_in_threadpool(self._status, portfolio, scope)
        if request.query_params.get("action") == "resume":
            form = confirm_forms.resume_form(portfolio, scope, status)
        else:
            form = confirm_forms.halt_form(portfolio, scope)
        return self._page(request, pages.confirm_page(form, _visitor(request, caller)))

    def _status(self, portfolio: str, scope: str) -> str:
        """Return the status of a scope, or of the desk. Raises `NotFound` without the portfolio."""
        ledger = self._service.ledger
        ledger.heads(portfolio)  # one that nobody used yet reads as empty, and there is nothing to halt
        return ledger.desk_status() if portfolio == DESK else ledger.exposure(portfolio).scope(scope).status

    async def halt_or_resume(self, request: Request) -> Response:
        """Halt or resume a scope, or the desk."""
        fields = await read_form(request.scope, request.receive, self._service.settings.body_bytes_max)
        token = form_api_key(request.scope, fields)
        caller = await self._service.access.require_key(request.scope, "admin", token)
        portfolio = portfolio_or_desk(request.path_params["portfolio"])
        require_portfolio_access(caller, portfolio)
        common: dict[str, Any] = {
            "key": fields.get("key", ""),
            "portfolio": portfolio,
            "scope": fields.get("scope", PORTFOLIO_SCOPE),
            "note": _note_with_author(fields.get("note", ""), caller),
        }
        action = fields.get("action")
        if action not in ("halt", "resume"):
            raise InvalidRequest(f"action must be halt or resume, got {action!r:.40}", field="action")
        mode: Any = fields.get("mode", "halted")
        await self._service.ledger.run_async(Resume(**common) if action == "resume" else Halt(mode=mode, **common))
        return _redirect(confirm_forms.page_of(portfolio))

    async def confirm_drift_page(self, request: Request) -> Response:
        """Show the page that confirms to adopt, ignore or close a drift."""
        caller = await self._service.access.require(request.scope, "admin")
        drift, action = await self._drift(request, caller)
        return self._page(
            request, pages.confirm_page(confirm_forms.drift_form(drift, action), _visitor(request, caller))
        )

    async def decide_drift(self, request: Request) -> Response:
        """Adopt, ignore or close a drift."""
        fields = await read_form(request.scope, request.receive, self._service.settings.body_bytes_max)
        token = form_api_key(request.scope, fields)
        caller = await self._service.access.require_key(request.scope, "admin", token)
        drift, action = await self._drift(request, caller)
        operator = self._service.require_reconciler().operator
        price = _parse_price(fields.get("price"))
        reason = fields.get("note", "").strip()
        await run_in_threadpool(operator.act, action, drift.id, reason=reason, price=price)
        return _redirect(f"/?portfolio={drift.portfolio}")

    async def _drift(self, request: Request, caller: ApiKey) -> tuple[Drift, str]:
        """Return the drift and the action in the path. Raises `NotFound`, `Forbidden`."""
        number, action = request.path_params["drift_id"], request.path_params["action"]
        if action not in ACTIONS or not (number.isascii() and number.isdigit() and len(number) <= 18):
            raise NotFound(f"there is no {request.url.path!r:.100}; see the dashboard")
        require_unbound(caller, "a drift")
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
    return Response(asset.content, headers=_ASSET_HEADERS, media_type=asset.media_type)


def _filters(request: Request) -> OverviewFilters:
    try:
        return OverviewFilters.model_validate(dict(request.query_params))
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise InvalidRequest(f"{field}: {first['msg']}, got {first['input']!r:.60}", field=field) from None


def _visitor(request: Request, caller: ApiKey) -> Visitor:
    token = session_of(request.scope).form_token
    return Visitor(caller.name, caller.role, bool(caller.key_id), token, caller.portfolios is not None, caller.tags)


def _parse_price(text: str | None) -> Decimal | None:
    if text is None or not text.strip():
        return None
    try:
        return parse_decimal(text.strip())
    except InvalidOperation:
        raise InvalidRequest(f"price must be a number such as 50000, got {text!r:.40}", field="price") from None


def _note_with_author(note: str, caller: ApiKey) -> str:
    """Return the note to record, with the author's name."""
    author = f"dashboard, {caller.name}"
    return f"{note.strip()} ({author})" if note.strip() else author


def _redirect(path: str) -> Response:
    return RedirectResponse(path, 303, _HEADERS)


def _problem_page(error: LedgerError) -> Response:
    log_untold(error)
    problem = problem_of(error)
    more = {"Retry-After": str(error.retry_after)} if isinstance(error, TooManyRequests) else {}
    return HTMLResponse(
        pages.problem_page(problem["title"], problem["detail"]), problem["status"], {**_HEADERS, **more}
    )
