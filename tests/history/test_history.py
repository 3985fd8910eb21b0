"""History: every filter equals a plain scan, pages neither skip nor repeat, reads without a database raise errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from ledger_sizer import Decision, InvalidRequest, Ledger, LedgerError, Unavailable
from tests.conftest import NewDatabase
from tests.support.clock import START, FakeClock
from tests.support.histories import COMMANDS, REASONS, STRATEGIES, SYMBOLS, matches, trade_at_random
from tests.support.ledgers import assert_verified, opened

D = Decimal


@pytest.fixture
def old(ledger: Ledger, clock: FakeClock) -> Ledger:
    """The same ledger with about 250 random decisions."""
    trade_at_random(ledger, clock, 250, seed=17)
    return ledger


def everything(ledger: Ledger) -> list[Decision]:
    """Return all decisions of the portfolio, oldest first, each read by its seq."""
    return [ledger.decision(seq) for seq in range(1, ledger.exposure().seq + 1)]


def paged(ledger: Ledger, limit: int, **filters: Any) -> list[Decision]:
    """Return all pages of a listing, joined."""
    found: list[Decision] = []
    page = ledger.history("main", limit=limit, **filters)
    found += page
    while page.cursor is not None:
        assert len(page) == limit
        page = ledger.history("main", limit=limit, cursor=page.cursor, **filters)
        found += page
    return found


def test_list_history_when_filtered_in_any_way_then_it_equals_a_plain_scan(old: Ledger) -> None:
    decisions = everything(old)
    assert {decision.command for decision in decisions} == {*COMMANDS} - {None}, "a life with every verb in it"
    assert len({decision.reason for decision in decisions}) >= 5
    chance = random.Random(5)
    moments = [None] * 200 + [START, *(decision.decided_at for decision in decisions), START + timedelta(days=1)]
    hits = 0
    for _ in range(80):
        filters = {
            "symbol": chance.choice(SYMBOLS),
            "strategy": chance.choice(STRATEGIES + [None] * 8),
            "command": chance.choice(COMMANDS + [None] * 20),
            "outcome": chance.choice([None, None, None, None, "granted", "denied", "applied"]),
            "reason": chance.choice(REASONS + [None] * 20),
            "since": chance.choice(moments),
            "until": chance.choice(moments),
        }
        expected = [decision for decision in decisions if matches(decision, filters)]
        limit = chance.choice([7, 50, 1000])
        assert paged(old, limit, **filters, ascending=True) == expected, filters
        assert paged(old, limit, **filters) == expected[::-1], filters
        hits += len(expected) > 0
    assert hits > 30, "most combinations must find something, or this compares nothing with nothing"


def test_list_history_when_a_moment_is_a_bound_then_since_includes_and_until_excludes_it(old: Ledger) -> None:
    moment = old.decision(20).decided_at
    at = [decision.seq for decision in everything(old) if decision.decided_at == moment]
    since = [decision.seq for decision in old.history("main", since=moment, limit=1000, ascending=True)]
    until = [decision.seq for decision in old.history("main", until=moment, limit=1000)]
    assert since[: len(at)] == at
    assert not set(at) & set(until)
    assert len(since) + len(until) == old.exposure().seq
    elsewhere = moment.astimezone(tz=None)
    assert [decision.seq for decision in old.history("main", since=elsewhere, limit=1000, ascending=True)] == since


@pytest.mark.parametrize("ascending", [False, True])
def test_page_history_when_decisions_are_added_in_between_then_none_is_skipped_or_repeated(
    old: Ledger, ascending: bool
) -> None:
    last = old.exposure().seq
    seen: list[int | None] = []
    cursor = None
    for n in range(1000):
        page = old.history("main", limit=20, cursor=cursor, ascending=ascending)
        seen += [decision.seq for decision in page]
        cursor = page.cursor
        if cursor is None:
            break
        if n < 3:
            old.set_cap(key=f"between/{n}", cap=D(100 + n))
    added = list(range(last + 1, old.exposure().seq + 1))
    assert len(added) >= 3
    known = list(range(1, last + 1))
    assert seen == ([*known, *added] if ascending else known[::-1])


def test_list_history_when_nothing_is_asked_then_it_is_the_newest_hundred(old: Ledger) -> None:
    last = old.exposure().seq
    page = old.history()
    assert [decision.seq for decision in page] == list(range(last, last - 100, -1))
    assert page.cursor == str(last - 99)
    assert_verified(old)


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": None}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "1:2"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "9" * 19}, "cursor"),
        ({"since": START.replace(tzinfo=None)}, "since"),
        ({"until": START.replace(tzinfo=None)}, "until"),
        ({"since": "2026-01-01"}, "since"),
        ({"until": 5}, "until"),
        ({"outcome": "maybe"}, "outcome"),
        ({"reason": "because"}, "reason"),
        ({"command": "buy"}, "command"),
        ({"symbol": 5}, "symbol"),
        ({"strategy": ["a"]}, "strategy"),
    ],
)
def test_list_history_when_a_filter_makes_no_sense_then_it_is_named(
    ledger: Ledger, filters: dict[str, Any], field: str
) -> None:
    """A misspelt filter must fail. If it just found nothing, the caller would believe that nothing happened."""
    with pytest.raises(InvalidRequest) as refused:
        ledger.history("main", **filters)
    assert refused.value.field == field


def test_list_history_when_a_filter_is_unknown_then_it_is_refused(ledger: Ledger) -> None:
    with pytest.raises((InvalidRequest, TypeError), match="venu"):
        ledger.history("main", venu="bybit")


# --- without a database ------------------------------------------------------------------------------------------


def drop(url: str) -> None:
    """Drop the database while connections to it are open."""
    engine = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')
    engine.dispose()


READS: dict[str, Callable[[Ledger], object]] = {
    "exposure": lambda ledger: ledger.exposure(),
    "portfolios": lambda ledger: ledger.portfolios(),
    "positions": lambda ledger: ledger.positions("main"),
    "position": lambda ledger: ledger.position("main-1"),
    "history": lambda ledger: ledger.history(),
    "decision": lambda ledger: ledger.decision(1),
    "explain": lambda ledger: ledger.explain(1),
    "verify": lambda ledger: ledger.verify(),
    "sweep": lambda ledger: ledger.sweep(),
    "sweep one": lambda ledger: ledger.sweep("main"),
    "dry run": lambda ledger: ledger.reserve(key="dry", dry_run=True),
}


def test_read_when_the_database_is_away_then_it_is_unavailable_and_never_a_grant(
    new_database: NewDatabase, clock: FakeClock
) -> None:
    url = new_database("postgresql")
    with opened(url, clock) as ledger:
        ledger.reserve(key="1")
        drop(url)
        for name, read in READS.items():
            with pytest.raises(Unavailable) as refused:
                read(ledger)
            assert refused.value.retryable, name
            assert refused.value.granted is False, name


def test_read_when_the_sqlite_file_is_damaged_then_it_is_an_error_of_ours(
    new_database: NewDatabase, clock: FakeClock
) -> None:
    url = new_database("sqlite")
    with opened(url, clock) as ledger:
        ledger.reserve(key="1")
    path = make_url(url).database
    assert path is not None
    with open(path, "r+b") as file:  # noqa: PTH123 - overwritten in place, as a failing disk would
        file.write(b"\x00" * 200)
    with pytest.raises(LedgerError), opened(url, clock) as ledger:
        ledger.exposure()


def moments_of(decisions: list[Decision]) -> list[datetime]:
    return [decision.decided_at for decision in decisions]


def test_read_everything_when_a_life_was_lived_then_time_and_chain_only_move_forward(old: Ledger) -> None:
    decisions = everything(old)
    assert moments_of(decisions) == sorted(moments_of(decisions))
    assert len({decision.hash for decision in decisions}) == len(decisions)
    assert [decision.exposure_after for decision in decisions[:-1]] == [
        decision.exposure_before for decision in decisions[1:]
    ], "each starts from what its predecessor left"
