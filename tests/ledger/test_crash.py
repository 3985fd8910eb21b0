"""Crashes at any moment: of writing processes, of their connections, of the database server.

Every acknowledged decision is in the ledger with the same hash, none is there twice, and holds of dead callers expire.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import create_engine, text

from ledger_sizer import Decision, Ledger, LedgerError
from ledger_sizer.storage.database import upgrade
from tests.lockstep.auditor import Auditor
from tests.support.databases import PostgresServer
from tests.support.processes import Fleet, Line
from tests.support.programs import settings_of
from tests.support.services import eventually

CAP = Decimal(500)
TEN = Decimal(10)


def everything(ledger: Ledger) -> dict[str, Decision]:
    """Return every decision of the portfolio by key; fail on a key that is there twice."""
    by_key: dict[str, Decision] = {}
    cursor = None
    while True:
        page = ledger.history(limit=1000, cursor=cursor)
        for decision in page:
            assert decision.key not in by_key, f"{decision.key} stands in the ledger twice"
            by_key[decision.key] = decision
        cursor = page.cursor
        if cursor is None:
            return by_key


def check_said(ledger: Ledger, said: list[Line]) -> None:
    """Check that every acknowledged answer is recorded unchanged, and that the ledger verifies."""
    recorded = everything(ledger)
    for line in said:
        if line["outcome"] != "error":
            found = recorded[line["key"]]
            assert (found.seq, found.hash, found.outcome) == (line["seq"], line["hash"], line["outcome"])
    Auditor("main", CAP).check(ledger)
    assert ledger.verify().findings == ()


@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.extended) for more in (1, 2))])
def test_kill_when_processes_are_writing_then_no_acknowledged_decision_is_lost(database_url: str, seed: int) -> None:
    chance = random.Random(seed)
    said: list[Line] = []
    for generation in range(2):
        given = [{"name": f"g{generation}b{number}", "seed": seed + number, "count": 100_000} for number in range(3)]
        with Fleet("trade_randomly", database_url, given) as fleet:
            fleet.release()
            victim = fleet.bots[0]
            # Killed at a random point of its work, after some answers.
            said += [line for _ in range(chance.randrange(20, 80)) if (line := victim.read()) is not None]
            time.sleep(chance.random() / 100)
            for bot in fleet.bots:
                bot.signal(signal.SIGKILL)
            said += [line for bot in fleet.bots for line in bot.lines()]
            assert [bot.end() for bot in fleet.bots] == [-signal.SIGKILL] * 3
    assert len(said) > 40
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        check_said(ledger, said)


def test_retry_when_a_killed_process_left_keys_unanswered_then_each_has_one_effect(database_url: str) -> None:
    with Fleet("reserve_many", database_url, [{"name": "dead", "count": 100_000}]) as fleet:
        fleet.release()
        (bot,) = fleet.bots
        heard = [bot.read() for _ in range(30)]
        bot.signal(signal.SIGKILL)
        heard += list(bot.lines())
        bot.end()
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        last = len(heard)  # in progress when it died: it may be recorded without an answer
        known = everything(ledger)
        again = [
            ledger.reserve(key=f"dead-{number}", available_balance=TEN, ttl_seconds=3600) for number in range(last + 2)
        ]
        assert [one.replayed for one in again[:last]] == [True] * last
        assert [one.hash for one in again[:last]] == [line["hash"] for line in heard if line is not None]
        assert again[last].replayed == (f"dead-{last}" in known)
        check_said(ledger, [])


def test_sweep_when_the_callers_are_dead_then_all_they_held_is_free_again(database_url: str) -> None:
    with Fleet("reserve_many", database_url, [{"name": "dead", "count": 100_000}]) as fleet:
        fleet.release()
        (bot,) = fleet.bots
        for _ in range(20):
            bot.read()
        bot.signal(signal.SIGKILL)
        bot.end()

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(hours=2)

    with Ledger.open(database_url, settings=settings_of(), clock=later) as ledger:
        held = ledger.exposure().held
        assert held >= 20 * TEN or held == CAP
        freed = ledger.sweep()
        assert freed * TEN == held
        assert ledger.exposure().exposure == 0
        assert ledger.verify().ok


def test_reserve_when_the_writers_connection_was_ended_then_the_next_ones_succeed(new_database: object) -> None:
    url = new_database("postgresql")  # type: ignore[operator]
    admin = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    end_all = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    try:
        with Ledger.open(url, settings=settings_of()) as ledger, admin.connect() as connection:
            for number in range(8):
                assert ledger.reserve(key=f"key-{number}", available_balance=TEN).granted
                assert connection.execute(end_all).scalar_one() >= 1
            assert ledger.release(key="close", position_id="main-1").outcome == "applied"
            check_said(ledger, [])
    finally:
        admin.dispose()


def test_reserve_when_the_server_crashes_under_load_then_retries_lose_and_double_nothing(
    durable_postgres: PostgresServer,
) -> None:
    url = durable_postgres.url
    upgrade(url)
    settings = settings_of(retries_max=0)
    granted: dict[str, Decision] = {}
    errors: list[LedgerError] = []
    stop = threading.Event()

    def ask(ledger: Ledger, name: str) -> None:
        number = 0
        while not stop.is_set():
            key = f"{name}-{number}"
            try:
                granted[key] = ledger.reserve(key=key, available_balance=Decimal("0.5"), ttl_seconds=3600)
                number += 1
            except LedgerError as error:
                errors.append(error)
                time.sleep(0.01)

    with Ledger.open(url, settings=settings) as ledger:
        callers = [threading.Thread(target=ask, args=(ledger, f"caller-{number}")) for number in range(6)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(2):
                before = len(granted)
                eventually(lambda enough=before + 60: len(granted) >= enough, seconds=60)
                durable_postgres.crash()
                seen = len(errors)
                eventually(lambda seen=seen: len(errors) > seen, seconds=60)
                durable_postgres.start()
            before = len(granted)
            eventually(lambda: len(granted) >= before + 60, seconds=60)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        assert all(error.retryable for error in errors)
        recorded = everything(ledger)
        assert {key: one.hash for key, one in granted.items()} == {
            key: one.hash for key, one in recorded.items() if key in granted
        }
        assert len(recorded) <= len(granted) + len(callers)
        check_said(ledger, [])
