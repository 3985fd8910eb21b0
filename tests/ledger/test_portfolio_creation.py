"""A portfolio begins with its first decision: what errs leaves none behind, and processes that begin one share it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from ledger_sizer import Adopt, Confirm, Decision, Ledger, LedgerError, NotFound, Release, Reserve, SetCap
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified
from tests.support.programs import settings_of

D = Decimal
WRONG = Confirm(key="wrong", position_id="new-9", quantity=D(1), price=D(1))


def rows_of(ledger: Ledger) -> list[tuple[str, str]]:
    """Return each portfolio with the name of its first scope, in any order of creation."""
    query = "SELECT p.name, s.scope FROM portfolios p LEFT JOIN scopes s ON s.portfolio_id = p.id ORDER BY 1, 2"
    with ledger._read_engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query)) if row.name != "*"]


@pytest.mark.parametrize("atomic", [False, True])
def test_submit_when_all_that_would_begin_a_portfolio_err_then_there_is_none(ledger: Ledger, atomic: bool) -> None:
    too_much = Adopt(key="a", portfolio="new", quantity=D("9e10"), price=D("9e10"))
    group = [Reserve(key="r", portfolio="new"), WRONG] if atomic else [too_much]
    try:
        (error, *_) = ledger.submit(group, atomic=atomic)
    except LedgerError as raised:
        error = raised
    assert isinstance(error, LedgerError)
    assert (ledger.portfolios(), rows_of(ledger)) == ([], [])
    assert ledger.exposure("new").seq == 0
    with pytest.raises(NotFound):
        ledger.release(key="x", position_id="new-1")
    assert ledger.reserve(key="r", portfolio="new").seq == 1, "its key stayed unused"
    assert rows_of(ledger) == [("new", "portfolio")]
    assert_verified(ledger)


def test_submit_when_one_of_two_portfolios_errs_then_neither_begins(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        ledger.submit([Reserve(key="r", portfolio="other"), Reserve(key="r", portfolio="new"), WRONG], atomic=True)
    assert rows_of(ledger) == []


async def test_submit_when_a_neighbour_of_the_batch_errs_then_only_what_was_decided_begins(ledger: Ledger) -> None:
    answers = await asyncio.gather(
        ledger.submit_async([Reserve(key="r", portfolio="new"), WRONG], atomic=True),
        ledger.submit_async([Reserve(key="r", portfolio="b"), Reserve(key="r", portfolio="a")], atomic=True),
        return_exceptions=True,
    )
    assert isinstance(answers[0], NotFound)
    assert rows_of(ledger) == [("a", "portfolio"), ("b", "portfolio")]
    assert_verified(ledger)


@pytest.mark.parametrize(
    "first",
    [
        Reserve(key="1", tags={"venue": "bybit"}),
        Reserve(key="1", min_notional_usd=D(10_000)),
        SetCap(key="1", cap=D(7)),
        SetCap(key="1", scope="venue=bybit", cap=D(7)),
        Adopt(key="1", quantity=D(1), price=D(6000)),
    ],
)
def test_run_when_a_portfolio_begins_then_its_whole_is_stored_with_the_first_decision(
    ledger: Ledger, first: Any
) -> None:
    decision = ledger.run(first)
    assert decision.seq == 1
    assert ledger.exposure().cap == (D(7) if first.verb == "set_cap" and first.scope == "portfolio" else D(5000))
    assert ledger.exposure().exposure == decision.exposure_after
    for number in range(2, 5):  # what is decided from memory afterwards
        ledger.reserve(key=f"{number}", available_balance=D(1))
    assert ledger.exposure().seq == 4
    assert_verified(ledger)


def test_reserve_when_two_ledgers_begin_one_portfolio_in_turn_then_they_share_it(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    with Ledger.open(database_url, clock=clock) as other:
        for name in ("x", "y"):
            assert [one.reserve(key=f"{n}", portfolio=name).seq for n, one in enumerate((ledger, other, ledger))] == [
                1, 2, 3
            ]  # fmt: skip
    assert_verified(ledger)


def test_submit_when_ledgers_race_to_begin_portfolios_then_each_begins_once(database_url: str) -> None:
    """Each ledger sends groups over several new portfolios, in another order than the others."""
    names = [f"p{number}" for number in range(12)]
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        ledgers = [stack.enter_context(Ledger.open(database_url, settings=settings_of())) for _ in range(4)]

        def begin_all(place: int) -> list[Any]:
            order = names if place % 2 else names[::-1]
            groups = [order[start : start + 3] for start in range(0, 12, 3)]
            answers = []
            for group in groups:
                commands = [Reserve(key=f"{place}", portfolio=name, available_balance=D(1)) for name in group]
                answers += ledgers[place].submit(commands, atomic=place < 2)
            return answers

        answers = [one for part in threads.map(begin_all, range(4)) for one in part]
        assert all(isinstance(one, Decision) and one.granted for one in answers), answers
        assert sorted(one.seq for one in answers if one.portfolio == "p0") == [1, 2, 3, 4]
        assert rows_of(ledgers[0]) == [(name, "portfolio") for name in sorted(names)]
        assert all(ledgers[0].exposure(name).held == 4 for name in names)
        assert_verified(ledgers[0])


def test_reserve_when_another_begins_the_portfolio_before_the_write_then_it_is_decided_again_on_what_is_there(
    new_database: NewDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL there is no row to lock yet. SQLite's lock is of the whole file."""
    url = new_database("postgresql")
    with Ledger.open(url, clock=clock) as ledger, Ledger.open(url, clock=clock) as other:
        write, store = ledger._store.write, ledger._store

        def write_after_the_other(changes: Any, *, locked: bool) -> None:
            monkeypatch.setattr(store, "write", write)
            other.submit([SetCap(key="cap", portfolio=name, cap=D(10)) for name in ("b", "a")])
            write(changes, locked=locked)

        monkeypatch.setattr(store, "write", write_after_the_other)
        answers = ledger.submit([Reserve(key="r", portfolio=name) for name in ("a", "new", "b")], atomic=True)
        assert [(one.seq, one.budget) for one in answers if isinstance(one, Decision)] == [(2, 10), (1, 1000), (2, 10)]
        assert rows_of(ledger) == [("a", "portfolio"), ("b", "portfolio"), ("new", "portfolio")]
        assert_verified(ledger)


def test_release_when_a_portfolio_is_begun_by_another_ledger_then_it_is_found(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    with pytest.raises(NotFound):
        ledger.submit([Reserve(key="r", portfolio="new"), WRONG], atomic=True)
    with Ledger.open(database_url, clock=clock) as other:
        other.reserve(key="r", portfolio="new")
    assert ledger.run(Release(key="x", position_id="new-1")).seq == 2
    assert_verified(ledger)
