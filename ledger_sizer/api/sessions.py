"""The dashboard's session cookie, and the CSRF check of its forms (docs/decisions/0013-dashboard.md).

The cookie holds the API key itself. The key ring checks it at every request, so a revoked key is logged out. A visitor
without a key gets a random value, so that every form token is bound to a cookie.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Scope

from ledger_sizer.api.request_body import header
from ledger_sizer.model.errors import Forbidden

COOKIE = "ledger_session"
SESSION_SECONDS = 12 * 3600
"""A trading day; after that the visitor must log in again."""

FORM_TOKEN = "form_token"
_SCOPE_KEY = "ledger_sizer.session"
SAFE_METHODS = ("GET", "HEAD")
"""Methods that change nothing."""

TRUSTED_FETCH_SITES = (b"same-origin", b"none")
"""Values of `Sec-Fetch-Site` for requests that no other site caused."""


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session. value: of the cookie. new: the response must set the cookie."""

    value: str
    new: bool

    @property
    def form_token(self) -> str:
        """The CSRF token in this session's forms: an HMAC keyed with the cookie's value."""
        return hmac.new(self.value.encode(), b"ledger-sizer form", sha256).hexdigest()


def session_of(scope: Scope) -> Session:
    """Return the request's session, a new one without a cookie. Every call for one request returns the same session."""
    if _SCOPE_KEY not in scope:
        value = _cookie(scope)
        scope[_SCOPE_KEY] = Session(value or secrets.token_hex(32), new=value is None)
    session: Session = scope[_SCOPE_KEY]
    return session


def session_api_key(scope: Scope) -> str | None:
    """Return the API key in the cookie, for GET and HEAD requests from the dashboard's own pages; else None.

    `SameSite` is not enough: to a browser, other ports of this host and sibling domains are the same site.
    """
    if scope["method"] not in SAFE_METHODS or (header(scope, b"sec-fetch-site") or b"none") not in TRUSTED_FETCH_SITES:
        return None
    return _cookie(scope)


def form_api_key(scope: Scope, fields: Mapping[str, str]) -> str | None:
    """Return the API key in the cookie of a form's request, after its CSRF check."""
    check_csrf(scope, fields)
    return _cookie(scope)


def check_csrf(scope: Scope, fields: Mapping[str, str]) -> None:
    """Raise `Forbidden` unless the dashboard made this form for this session."""
    if not _same_origin(scope):
        raise Forbidden("this form was not sent from the dashboard's own page; nothing was done")
    session = session_of(scope)
    if session.new or not hmac.compare_digest(fields.get(FORM_TOKEN, "").encode(), session.form_token.encode()):
        raise Forbidden("this form is not of this session; go back, reload the page and send it again")


def set_session(response: Response, scope: Scope, value: str) -> None:
    """Set the session cookie; `Secure` where the request came over TLS."""
    response.set_cookie(COOKIE, value, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=_is_tls(scope))


def end_session(response: Response, scope: Scope) -> None:
    """Delete the session cookie."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=_is_tls(scope))


def _cookie(scope: Scope) -> str | None:
    jar: SimpleCookie = SimpleCookie()
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                jar.load(value.decode("latin-1"))
            except CookieError:
                return None
    found = jar.get(COOKIE)
    return found.value if found is not None and found.value else None


def _same_origin(scope: Scope) -> bool:
    """Check `Sec-Fetch-Site`; older browsers, and all on plain HTTP, send only `Origin`."""
    site = header(scope, b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin"
    origin = header(scope, b"origin")
    host = header(scope, b"host")
    return origin is not None and host is not None and urlsplit(origin).netloc == host


def _is_tls(scope: Scope) -> bool:
    """Check the scheme, and `Origin` too: behind a proxy that terminates TLS the service itself sees plain HTTP."""
    origin = header(scope, b"origin") or b""
    return scope["scheme"] == "https" or origin.startswith(b"https://")
