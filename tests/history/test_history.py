"""History: every filter equals a plain scan, pages neither skip nor repeat, reads without a database raise errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from ledger_sizer import Decision, InvalidRequest, Ledger, LedgerError, Unavailable, WrongState
from tests.conftest import NewDatabase
from tests.support.clock import START, FakeClock
from tests.support.ledgers import assert_verified, opened

D = Decimal
SYMBOLS = [None, None, "BTC", "ETH"]
STRATEGIES = [None, "funding", "basis", "a'b"]
REASONS = [None, "halted", "reducing", "unreconciled", "cap_exceeded", "below_min_notional", "insufficient_balance",
           "group_denied"]  # fmt: skip
COMMANDS = [None, "reserve", "confirm", "release", "extend", "set_cap", "halt", "resume", "adopt", "freeze", "thaw",
            "reconciled", "remark", "expire"]  # fmt: skip


def trade_at_random(ledger: Ledger, clock: FakeClock, steps: int, seed: int) -> None:
    """Trade at random for a while, with every verb."""
    chance = random.Random(seed)
    for n in range(steps):
        clock.advance(chance.choice([0, 0, 1, 7]))
        tags = {"symbol": chance.choice(["BTC", "ETH"]), "strategy": chance.choice(["funding", "basis", "a'b"])}
        if chance.random() < 0.2:
            del tags["strategy"]
        live = [position.position_id for position in ledger.positions("main", state="live")] if n else []
        name = chance.choice(live) if live else "main-1"
        step = chance.choice(
            ["reserve"] * 5 + ["confirm", "release", "release", "extend", "set_scope", "adopt", "reconcile"]
        )
        try:
            if step == "confirm":
                ledger.confirm(key=f"{n}", position_id=name, quantity=D(chance.randint(1, 9)), price=D(50))
            elif step == "release":
                ledger.release(key=f"{n}", position_id=name)
            elif step == "extend":
                ledger.extend(key=f"{n}", position_id=name, ttl_seconds=chance.randint(1, 30))
            elif step == "adopt":
                ledger.adopt(key=f"{n}", quantity=D(1), price=D(chance.randint(1, 50)), tags=tags)
            elif step == "reconcile":
                _reconcile(ledger, n, chance)
            elif step == "set_scope":
                _set_scope(ledger, n, chance)
            else:
                balance = D(chance.choice([0, 10, 300, 2000]))
                least = D(chance.choice([0, 0, 20]))
                ledger.reserve(key=f"{n}", tags=tags, available_balance=balance, min_notional_usd=least, ttl_seconds=20)
        except WrongState:
            continue


def _set_scope(ledger: Ledger, n: int, chance: random.Random) -> None:
    scope = chance.choice(["portfolio", "symbol=BTC", "strategy=basis"])
    if chance.random() < 0.4:
        ledger.set_cap(key=f"{n}", scope=scope, cap=D(chance.choice([0, 500, 5000])))
    elif chance.random() < 0.5:
        ledger.halt(key=f"{n}", scope=scope, mode=chance.choice(["halted", "reducing"]))
    else:
        ledger.resume(key=f"{n}", scope=scope)


def _reconcile(ledger: Ledger, n: int, chance: random.Random) -> None:
    scope = chance.choice(["portfolio", "symbol=BTC", "strategy=basis"])
    verb = chance.choice(["freeze", "thaw", "thaw", "thaw", "reconciled", "remark"])
    if verb == "remark":
        ledger.remark(key=f"{n}", about="drift-1", event="seen")
    elif verb == "reconciled":
        ledger.reconciled(
            key=f"{n}", scope=scope, fresh_until=chance.choice([None, None, START + timedelta(seconds=n)])
        )
    else:
        getattr(ledger, verb)(key=f"{n}", scope=scope)


@pytest.fixture
def old(ledger: Ledger, clock: FakeClock) -> Ledger:
    """The same ledger with about 250 random decisions."""
    trade_at_random(ledger, clock, 250, seed=17)
    return ledger


def everything(ledger: Ledger) -> list[Decision]:
    """Return all decisions of the portfolio, oldest first, each read by its seq."""
    return [ledger.decision(seq) for seq in range(1, ledger.exposure().seq + 1)]


def matches(decision: Decision, filters: dict[str, Any]) -> bool:
    """Whether a decision matches, computed from the decision alone."""
    tags = decision.record.tags
    tests: dict[str, Callable[[Any], bool]] = {
        "symbol": lambda value: f'"symbol":"{value}"' in tags,
        "strategy": lambda value: f'"strategy":"{value}"' in tags,
        "command": lambda value: decision.command == value,
        "outcome": lambda value: decision.outcome == value,
        "reason": lambda value: decision.reason == value,
        "since": lambda value: decision.decided_at >= value,
        "until": lambda value: decision.decided_at < value,
    }
    return all(tests[name](value) for name, value in filters.items() if value is not None)


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
