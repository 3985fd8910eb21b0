"""The dashboard's cookie, and what a form must prove before it is believed (docs/decisions/0013-dashboard.md).

The cookie carries the API key itself, so the key ring decides at every request and a revoked key is out at once. A
visitor without a key gets a random one, so that every form has something to be tied to.
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
from ledger_sizer.wire.problems import Forbidden

COOKIE = "ledger_session"
LIFE_SECONDS = 12 * 3600
"""A trading day; then the key is asked for again."""

FORM_TOKEN = "form_token"
_IN_SCOPE = "ledger_sizer.session"
_SAFE_METHODS = ("GET", "HEAD")
_OWN = (b"same-origin", b"none")
"""What a browser says of a request that no other site caused."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a browser sent, or is given now. value: of the cookie. new: it has to be set."""

    value: str
    new: bool

    @property
    def form_token(self) -> str:
        """What this session's forms carry: nobody who cannot read the cookie can make it."""
        return hmac.new(self.value.encode(), b"ledger-sizer form", sha256).hexdigest()


def session_of(scope: Scope) -> Session:
    """The session of a request, a new one where it has none; the same one however often it is asked for."""
    if _IN_SCOPE not in scope:
        value = _cookie(scope)
        scope[_IN_SCOPE] = Session(value or secrets.token_hex(32), new=value is None)
    session: Session = scope[_IN_SCOPE]
    return session


def session_key(scope: Scope) -> str | None:
    """The API key in the cookie, where a cookie counts: for looking, and only from the dashboard's own pages.

    Other ports of this host and sibling domains are the same site to a browser, so `SameSite` does not keep them out.
    """
    if scope["method"] not in _SAFE_METHODS or (header(scope, b"sec-fetch-site") or b"none") not in _OWN:
        return None
    return _cookie(scope)


def form_key(scope: Scope, fields: Mapping[str, str]) -> str | None:
    """The API key in the cookie of a form's request, after the form has proved where it comes from."""
    require_own_form(scope, fields)
    return _cookie(scope)


def require_own_form(scope: Scope, fields: Mapping[str, str]) -> None:
    """Raise `Forbidden` unless the dashboard itself made this form for this browser."""
    if not _same_origin(scope):
        raise Forbidden("this form was not sent from the dashboard's own page; nothing was done")
    session = session_of(scope)
    if session.new or not hmac.compare_digest(fields.get(FORM_TOKEN, "").encode(), session.form_token.encode()):
        raise Forbidden("this form is not of this session; go back, reload the page and send it again")


def set_session(response: Response, scope: Scope, value: str) -> None:
    """Give the browser its cookie. It goes over TLS only where it came over TLS."""
    response.set_cookie(COOKIE, value, max_age=LIFE_SECONDS, httponly=True, samesite="strict", secure=_is_tls(scope))


def end_session(response: Response, scope: Scope) -> None:
    """Take the cookie away."""
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
    """By the browser's own word; older ones, and those on plain HTTP, name the origin instead."""
    site = header(scope, b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin"
    origin = header(scope, b"origin")
    host = header(scope, b"host")
    return origin is not None and host is not None and urlsplit(origin).netloc == host


def _is_tls(scope: Scope) -> bool:
    """Behind a proxy that ends TLS the service itself sees plain HTTP, but the browser names the origin it sees."""
    origin = header(scope, b"origin") or b""
    return scope["scheme"] == "https" or origin.startswith(b"https://")
