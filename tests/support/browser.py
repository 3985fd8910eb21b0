"""Debian's Chromium under Playwright: the browser of the dashboard's tests and of its pictures.

Playwright's own browsers are not downloaded: a system's package gets its security updates, and an address less is
needed. `LEDGER_TEST_CHROMIUM` names another one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "LEDGER_TEST_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str | None:
    """Where the browser is; None where there is none. A named one that is missing is an error, not a reason to skip."""
    named = os.environ.get(VARIABLE)
    if named:
        assert shutil.which(named), f"{VARIABLE} names {named!r}, which cannot be run"
        return named
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for the length of a `with` block."""
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    assert path, f"no Chromium: apt-get install chromium, or name one in {VARIABLE}"
    # Chromium refuses to sandbox for root, which is who runs tests in a container; all it opens is a local page.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*sandbox, "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()
