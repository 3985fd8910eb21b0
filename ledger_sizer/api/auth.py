"""Authenticates callers by API key and checks their role and portfolios.

While no API key exists, the service listens on loopback only and every local caller is admin. The `Host` header must
then be a loopback name, so that a web page cannot reach the service by DNS rebinding, and what changes something must
not come from a page of another origin: a browser sends a POST there without asking.
"""

import asyncio
from datetime import UTC, datetime
from urllib.parse import urlsplit

from starlette.types import Scope

from ledger_sizer.api.sessions import SAFE_METHODS, TRUSTED_FETCH_SITES, session_api_key
from ledger_sizer.model.caller import caller_var
from ledger_sizer.model.choices import Role
from ledger_sizer.model.errors import Forbidden
from ledger_sizer.model.names import DESK
from ledger_sizer.service.api_keys import ApiKey, KeyRing
from ledger_sizer.service.bootstrap import is_loopback
from ledger_sizer.wire.problems import Unauthenticated

LOOPBACK_CALLER = ApiKey("", "loopback", "admin", None, datetime(1970, 1, 1, tzinfo=UTC), None)
"""The caller of a service that has no keys."""


class Authenticator:
    """Checks the credentials of requests against the keys, and sets `caller_var`: the decisions name who asked."""

    def __init__(self, keys: KeyRing, *, on_loopback: bool) -> None:
        self._keys = keys
        self._on_loopback = on_loopback
        self._refreshing = asyncio.Lock()

    async def require(self, scope: Scope, role: Role) -> ApiKey:
        """Return the caller: by bearer key, or for reads also by the dashboard's cookie.

        Raises `Unauthenticated` without a known key, `Forbidden` where the key's role does not cover `role`.
        """
        token = _bearer_token(scope)
        return await self.require_key(scope, role, session_api_key(scope) if token is None else token)

    async def require_key(self, scope: Scope, role: Role, token: str | None) -> ApiKey:
        """Return the caller with this key. Raises like `require`."""
        if not self._keys.fresh:
            async with self._refreshing:
                if not self._keys.fresh:
                    await asyncio.to_thread(self._keys.refresh)
        caller = self._authenticate(scope, token)
        if not caller.may(role):
            raise Forbidden(
                f"this call needs the role {role!r}; key {caller.key_id} ({caller.name}) has {caller.role!r}"
            )
        caller_var.set(caller.caller)
        return caller

    def _authenticate(self, scope: Scope, token: str | None) -> ApiKey:
        if self._keys.empty and self._on_loopback:
            _require_local_caller(scope)
            return LOOPBACK_CALLER
        if not token:
            raise Unauthenticated("send an API key: Authorization: Bearer lsk_...")
        found = self._keys.find(token)
        if found is None:
            raise Unauthenticated("this API key is not known, or it was revoked")
        return found


def _require_local_caller(scope: Scope) -> None:
    """Raise `Forbidden` for another host than loopback, and for a change that a page of another origin asks for."""
    sent = {name: value for name, value in scope["headers"] if name in _ORIGIN_HEADERS}
    host = sent.get(b"host", b"").decode("latin-1")
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
    if not is_loopback(name):
        raise Forbidden(f"without API keys only loopback is served, not the host {name!r:.100}")
    if len(sent) > 1 and scope["method"] not in SAFE_METHODS:
        site, origin = sent.get(b"sec-fetch-site"), sent.get(b"origin", b"").decode("latin-1")
        foreign = site not in TRUSTED_FETCH_SITES if site else urlsplit(origin).netloc != host
        if foreign:
            raise Forbidden(f"without API keys no page of another origin ({origin!r:.100}) may change anything")


_ORIGIN_HEADERS = frozenset((b"host", b"origin", b"sec-fetch-site"))


def _bearer_token(scope: Scope) -> str | None:
    """Return the key in the `Authorization` header: None without the header, empty where it holds no bearer key."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if kind.lower() == "bearer" else ""
    return None


def require_portfolio_access(caller: ApiKey, portfolio: str) -> None:
    """Raise `Forbidden` unless the caller may touch `portfolio`. The desk is for keys of all portfolios only."""
    if not caller.may_touch(portfolio) and caller.portfolios is not None:
        if portfolio == DESK:
            bound = ", ".join(caller.portfolios)
            raise Forbidden(
                f"the desk (portfolio '*') stands for all portfolios; key {caller.key_id} ({caller.name}) is bound to "
                f"{bound}, use one that is not bound"
            )
        raise Forbidden(f"key {caller.key_id} ({caller.name}) is not for portfolio {portfolio!r}")


def require_unbound(caller: ApiKey, what: str) -> None:
    """Raise `Forbidden` for a key that is bound to tags: what it asks for concerns the money of a whole account."""
    if caller.tags:
        bound = ", ".join(caller.tags.scopes[1:])
        raise Forbidden(
            f"{what} concerns all money of its account; key {caller.key_id} ({caller.name}) is bound to {bound}, use "
            "one that is not bound"
        )
