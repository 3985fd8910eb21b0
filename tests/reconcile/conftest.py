"""Opens desks: a ledger, its accounts and a reconciler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from tests.support.accounts import Desk, NewDesk, WrittenAccount
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified


@pytest.fixture
def new_desk(database_url: str, clock: FakeClock) -> Iterator[NewDesk]:
    """Open any number of desks on one new database. At the end each ledger is verified and closed."""
    desks: list[Desk] = []

    def make(accounts: Sequence[Any] = (), **reconcile: Any) -> Desk:
        desks.append(Desk(database_url, clock, accounts, **reconcile))
        return desks[-1]

    yield make
    try:
        for desk in desks:
            assert_verified(desk.ledger)
    finally:
        for desk in desks:
            desk.close()


@pytest.fixture
def two(new_desk: NewDesk) -> Callable[..., Desk]:
    """A desk over one account at bybit and one at okx."""

    def opened(**reconcile: Any) -> Desk:
        desk = new_desk([WrittenAccount("bybit"), WrittenAccount("okx")], **reconcile)
        desk.ledger.set_cap(key="cap", cap=Decimal(1_000_000))
        return desk

    return opened
