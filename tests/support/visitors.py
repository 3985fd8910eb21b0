"""A service with API keys, and an HTTP client that handles the dashboard's forms and cookies as a browser does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx

from ledger_sizer.service.api_keys import ROLES, create_key
from ledger_sizer.storage.database import make_engine
from tests.support.services import Running, serving

STEER = "/steer/main?action=halt"


def halt(key: str, **more: str) -> dict[str, str]:
    """Return the fields of the form that halts `main`."""
    return {"action": "halt", "scope": "portfolio", "mode": "halted", "key": key, **more}


class Keyed:
    """A service with one API key per role, and an admin key (`bound`) for the portfolio `other` only."""

    def __init__(self, service: Running, url: str) -> None:
        self.service = service
        self.engine = make_engine(url)
        self.keys = {role: create_key(self.engine, f"{role} at the desk", role) for role in ROLES}
        self.keys["bound"] = create_key(self.engine, "bound", "admin", ["other"])

    def browser(self) -> Browser:
        """Return a new browser, not signed in."""
        return Browser(self.service.url)

    def signed_in(self, name: str) -> Browser:
        """Return a new browser, signed in with this key."""
        browser = self.browser()
        answer = browser.submit("/login", {"key": self.keys[name].token}, page="/login")
        assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
        return browser


class Browser:
    """An HTTP client that keeps cookies and sends form tokens, as a browser does."""

    opened: ClassVar[list[httpx.Client]] = []

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, headers={"Sec-Fetch-Site": "same-origin"})
        self.opened.append(self.http)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def token(self, page: str) -> str:
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', self.get(page).text)
        assert found, f"{page} has no form"
        return found[1]

    def submit(self, path: str, fields: dict[str, str], *, page: str, headers: Any = None) -> httpx.Response:
        """Submit the form of `page` to `path`, with its token."""
        return self.http.post(path, data={"form_token": self.token(page), **fields}, headers=headers or {})


@contextmanager
def keyed_service(url: str) -> Iterator[Keyed]:
    """Run a service with API keys on this database."""
    with serving(url) as service:
        keyed = Keyed(service, url)
        try:
            yield keyed
        finally:
            keyed.engine.dispose()


def close_browsers() -> None:
    """Close all browsers that were opened."""
    while Browser.opened:
        Browser.opened.pop().close()
