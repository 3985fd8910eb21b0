"""Starts the system's Chromium under Playwright, for the dashboard's tests and its screenshots.

Playwright's own browsers are not used: the system's package gets security updates, and there is nothing to download.
`LEDGER_TEST_CHROMIUM` selects another Chromium.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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
