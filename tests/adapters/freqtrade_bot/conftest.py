"""A paper venue, a ledger with a cap, and the bots of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Ledger
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.ledgers import assert_verified

Make = Callable[..., Any]


@pytest.fixture
def venue() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


@pytest.fixture
def control(venue: PaperServer) -> PaperControl:
    return PaperControl(venue.url, "bybit")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger on real time with a cap of 60 USD, less than the bot's stake of 100."""
    with Ledger.open(url) as opened:
        opened.set_cap(key="cap", cap=Decimal(60))
        yield opened
        assert_verified(opened)


@pytest.fixture
def make(tmp_path: Path, venue: PaperServer, url: str, ledger: Ledger) -> Iterator[Make]:
    """Start a bot; the one before it is cleaned up first."""
    from tests.support.freqtrade_bots import configuration, running

    opened: list[Any] = []

    def start(body: str = "", *, folder: str = "bot", desk: dict[str, Any] | None = None, **changes: Any) -> Any:
        stop()
        block = {"url": url, "bot": "a", "patience_seconds": 20, "repeat_seconds": 0, **(desk or {})}
        context = running(configuration(tmp_path / folder, venue, body, ledger_sizer=block, **changes))
        bot = context.__enter__()
        opened.append(context)
        return bot

    def stop() -> None:
        while opened:
            opened.pop().__exit__(None, None, None)

    yield start
    stop()
