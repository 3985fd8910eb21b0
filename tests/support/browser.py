"""Starts the system's Chromium under Playwright, for the dashboard's tests and its screenshots.

Playwright's own browsers are not used: the system's package gets security updates, and there is nothing to download.
`LEDGER_TEST_CHROMIUM` selects another Chromium.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

CHROMIUM_VARIABLE = "LEDGER_TEST_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str | None:
    """Return the path of the browser, or None if there is none. Fails if the one that the variable names is missing."""
    named = os.environ.get(CHROMIUM_VARIABLE)
    if named:
        assert shutil.which(named), f"{CHROMIUM_VARIABLE} names {named!r}, which cannot be run"
        return named
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a running browser, and close it at the end of the `with` block."""
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    assert path, f"no Chromium: apt-get install chromium, or name one in {CHROMIUM_VARIABLE}"
    # Chromium cannot sandbox as root, the usual user in a container. Tests open local pages only.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*sandbox, "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """Open a page in a browser context of its own. It may log no error or warning, nor ask another origin."""
    complaints: list[str] = []
    with browser.new_context(**{"viewport": WIDE, **context}) as own:
        page = own.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda sent: complaints.append(f"left: {sent.url}") if _is_foreign(sent.url, url) else None)
        page.goto(url)
        yield page
        assert not complaints, complaints


def _is_foreign(address: str, url: str) -> bool:
    return urlsplit(address)[:2] != urlsplit(url)[:2]


def live(page: Page) -> Page:
    """Wait until the page follows the ledger."""
    page.wait_for_selector('#feed[data-state="live"]')
    return page
