"""Fixtures for shared histories: each is built once per module and engine, and copied for each test."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache

import pytest

from ledger_sizer import Ledger
from tests.conftest import EngineKind, NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import opened

Build = Callable[[Ledger, FakeClock], None]
HistoryCopy = Callable[[Build], str]


@pytest.fixture(scope="module")
def _shared_histories(module_database: NewDatabase) -> Callable[[EngineKind, Build], tuple[str, datetime]]:
    @cache
    def make(engine_kind: EngineKind, build: Build) -> tuple[str, datetime]:
        url, clock = module_database(engine_kind), FakeClock()
        with opened(url, clock) as ledger:
            build(ledger, clock)
        return url, clock()

    return make


@pytest.fixture
def history_copy(
    _shared_histories: Callable[[EngineKind, Build], tuple[str, datetime]],
    engine_kind: EngineKind,
    new_database: NewDatabase,
    clock: FakeClock,
) -> HistoryCopy:
    """Return the URL of a copy of the history that `build` makes, and advance the test's clock to its end."""

    def copy(build: Build) -> str:
        url, end = _shared_histories(engine_kind, build)
        clock.advance((end - clock()).total_seconds())
        return new_database(engine_kind, like=url)

    return copy


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """Flat sizing, cap 5000, and one reservation."""
    ledger.reserve(key="first", tags={"symbol": "BTC"}, ttl_seconds=5)
    return ledger
