"""Fixtures of the adapters' tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from ledger_sizer import Ledger
from ledger_sizer.paper import PaperServer
from tests.support.ccxt_desks import CAP, At


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Callable[..., At]]:
    """Open a paper venue by its name, Bybit unless given, all under one ledger with a cap."""
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(PaperServer())
        ledger = stack.enter_context(Ledger.open(database_url))
        ledger.set_cap(key="cap", cap=CAP)
        yield lambda venue="bybit": At(server, venue, ledger, stack)
