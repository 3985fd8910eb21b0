"""Killed in the middle: what was acknowledged is there afterwards, once, and nothing else pretends to be.

A bot writes its answer down only after the ledger gave it; so whatever line the parent could read was acknowledged.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text

from ledger_sizer import Decision, Ledger, LedgerError, Unavailable
from ledger_sizer.database import upgrade
from tests.auditor import Auditor
from tests.bots import settings_of
from tests.clocks import FakeClock
from tests.conftest import EngineKind, NewDatabase
from tests.databases import PostgresServer
from tests.fleet import Bot, Fleet, Line

CAP = Decimal(500)
ONE = Decimal(1)
TEN = Decimal(10)


def audited(ledger: Ledger) -> Auditor:
    auditor = Auditor("main", CAP)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return auditor


def assert_kept(auditor: Auditor, acknowledged: list[Line]) -> None:
    """Every acknowledged decision is in the ledger, in its place, with its hash."""
    for line in acknowledged:
        if line["outcome"] != "error":
            decision = auditor.by_key[line["key"]]
            assert (decision.seq, decision.hash) == (line["seq"], line["hash"]), f"{line['key']} was acknowledged"


def kill(bot: Bot, chance: random.Random) -> None:
    """End it at once, at a moment within its next few commits that nobody chose."""
    time.sleep(chance.uniform(0, 0.01))
    bot.signal(signal.SIGKILL)


@pytest.mark.slow
def test_kill_when_processes_are_writing_then_nothing_acknowledged_is_lost_and_nothing_is_twice(
    database_url: str,
) -> None:
    chance = random.Random(20260101)
    acknowledged: list[Line] = []
    for turn in range(5):
        given = [{"name": f"bot-{turn}-{n}", "seed": 10 * turn + n, "count": 1_000_000} for n in range(2)]
        with Fleet("live", database_url, given) as fleet:
            fleet.release()
            for bot in fleet.bots:
                lines = bot.lines()
                acknowledged += [next(lines) for _ in range(chance.randint(1, 40))]
                kill(bot, chance)
                acknowledged += lines  # what it had said before it died
                assert bot.end() == -signal.SIGKILL
    tomorrow = FakeClock(datetime.now(UTC) + timedelta(days=1))
    with Ledger.open(database_url, settings=settings_of(), clock=tomorrow) as ledger:
        auditor = audited(ledger)
        assert_kept(auditor, acknowledged)
        unheard = len(auditor.decisions) - sum(line["outcome"] != "error" for line in acknowledged)
        assert 0 <= unheard <= 10, "each of ten bots had at most one command under way"
        held = [position for position in auditor.positions if position.state == "held"]
        assert held, "the dead have left holds behind"
        assert ledger.sweep() == len(held)
        assert auditor.check(ledger).held == 0
        assert ledger.verify().ok


@pytest.mark.slow
def test_kill_when_the_bot_asks_again_with_its_last_keys_then_each_has_one_effect(database_url: str) -> None:
    chance = random.Random(20260102)
    acknowledged: list[Line] = []
    for turn in range(3):
        with Fleet("grab", database_url, [{"name": "bot", "count": 1_000_000}]) as fleet:
            fleet.release()
            (bot,) = fleet.bots
            lines = bot.lines()
            heard = [next(lines) for _ in range(len(acknowledged) + 15)]
            kill(bot, chance)
            heard += lines
        assert [line["key"] for line in heard] == [f"bot-{number}" for number in range(len(heard))]
        again, new = heard[: len(acknowledged)], heard[len(acknowledged) :]
        assert [(line["seq"], line["hash"]) for line in again] == [(one["seq"], one["hash"]) for one in acknowledged]
        assert all(line["replayed"] for line in again)
        # The first new one may be a replay too: it was under way when its bot died, and had happened.
        assert not any(line["replayed"] for line in new[1:]), f"turn {turn}"
        acknowledged = heard
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        auditor = audited(ledger)
        assert_kept(auditor, acknowledged)
        assert ledger.exposure().held == min(CAP, TEN * len(auditor.decisions))
        assert len(auditor.decisions) - len(acknowledged) in (0, 1)


class Client:
    """A careful caller in a thread of its own: asks in order, and the same again until it is answered."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name
        self.answers: dict[str, Decision] = {}
        self.errors: list[LedgerError] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._heard = threading.Condition()
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            key = f"{self._name}-{number}"
            try:
                answer = self._ledger.reserve(key=key, available_balance=ONE, ttl_seconds=3600)
            except LedgerError as error:
                self.errors.append(error)
                continue
            finally:
                with self._heard:
                    self._heard.notify_all()
            self.answers[key] = answer
            number += 1

    def wait_for(self, condition: Callable[[Client], bool]) -> None:
        """Wait until it has heard enough."""
        with self._heard:
            assert self._heard.wait_for(lambda: condition(self), timeout=60), f"{self._name}: {self.errors[-1:]}"

    def stop(self) -> None:
        """Let it end after its present question."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def clients(ledger: Ledger, count: int) -> Iterator[list[Client]]:
    """Callers that ask until the block ends."""
    started = [Client(ledger, f"client-{number}") for number in range(count)]
    try:
        yield started
    finally:
        for client in started:
            client.stop()


@pytest.mark.slow
def test_crash_when_the_postgresql_server_dies_under_load_then_clients_get_errors_and_lose_nothing(
    durable_postgres: PostgresServer,
) -> None:
    upgrade(durable_postgres.url)
    with (
        Ledger.open(durable_postgres.url, settings=settings_of(retries_max=1)) as ledger,
        clients(ledger, 4) as callers,
    ):
        for _ in range(3):
            for client in callers:
                heard = len(client.answers)
                client.wait_for(lambda one, heard=heard: len(one.answers) > heard + 10)  # type: ignore[misc]
            durable_postgres.crash()
            for client in callers:
                failed = len(client.errors)
                client.wait_for(lambda one, failed=failed: len(one.errors) > failed)  # type: ignore[misc]
            durable_postgres.start()
        for client in callers:
            heard = len(client.answers)
            client.wait_for(lambda one, heard=heard: len(one.answers) > heard + 10)  # type: ignore[misc]
        for client in callers:
            client.stop()
        assert {type(error) for client in callers for error in client.errors} == {Unavailable}
        auditor = audited(ledger)
        told = {key: answer for client in callers for key, answer in client.answers.items()}
        assert {key: decision.record for key, decision in auditor.by_key.items()} == {
            key: answer.record for key, answer in told.items()
        }
        assert sum(answer.granted for answer in told.values()) == min(CAP, len(told))


def terminate_all(url: str) -> int:
    """End every session of this database but our own, as an administrator would. Returns how many there were."""
    engine = create_engine(url)
    with engine.connect() as connection:
        ended = connection.execute(
            text(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).scalar_one()
    engine.dispose()
    return int(ended)


def test_terminate_when_the_writer_was_idle_then_the_next_command_succeeds_by_itself(new_database: NewDatabase) -> None:
    url = new_database("postgresql")
    with Ledger.open(url, settings=settings_of()) as ledger:
        for number in range(5):  # a first one under the lock, then without
            assert ledger.reserve(key=f"key-{number}", available_balance=ONE).granted
            assert ledger.exposure().held == number + 1
            assert terminate_all(url) == 2, "the writer's session and a reader's"
        assert [one.key for one in audited(ledger).decisions] == [f"key-{number}" for number in range(5)]


@pytest.mark.parametrize("warm_up", [0, 2], ids=["under the lock", "without a lock"])
def test_terminate_when_a_command_waits_for_the_row_then_it_succeeds_by_itself(
    new_database: NewDatabase, warm_up: int
) -> None:
    url = new_database("postgresql")
    with Ledger.open(url, settings=settings_of()) as ledger:
        ledger.set_cap(key="cap", cap=CAP)
        for number in range(warm_up):
            ledger.reserve(key=f"warm-up-{number}", available_balance=ONE)
        with (
            psycopg.connect(url.replace("+psycopg", "")) as blocker,
            psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as administrator,
        ):
            blocker.execute("SELECT id FROM portfolios FOR UPDATE")
            answers: list[Decision] = []
            thread = threading.Thread(target=lambda: answers.append(ledger.reserve(key="key", available_balance=ONE)))
            thread.start()
            waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while (row := administrator.execute(waiting).fetchone()) is None:
                assert thread.is_alive()
            administrator.execute("SELECT pg_terminate_backend(%s, 5000)", row)
            blocker.rollback()
            thread.join(30)
        assert [one.granted for one in answers] == [True]
        assert not answers[0].replayed
        assert len(audited(ledger).decisions) == 2 + warm_up


class Interrupted:
    """Stands between a ledger's writer and its database, and breaks the connection once around a commit."""

    def __init__(self, ledger: Ledger, error: Exception, *, committed: bool) -> None:
        self._error = error
        self._store: Any = ledger._store
        self._commit = self._store.commit
        self._committed = committed
        self._store.commit = self  # type: ignore[method-assign]

    def __call__(self, states: Any) -> None:
        self._store.commit = self._commit
        if self._committed:
            self._commit(states)
        raise self._error


LOST = {"sqlite": sqlite3.OperationalError("disk I/O error"), "postgresql": psycopg.OperationalError("connection lost")}


@pytest.mark.parametrize("committed", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("warm_up", [0, 2], ids=["first", "later"])
def test_commit_when_its_outcome_is_unknown_then_the_key_settles_it(
    database_url: str, engine_kind: EngineKind, committed: bool, warm_up: int
) -> None:
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        for number in range(warm_up):
            ledger.reserve(key=f"warm-up-{number}", available_balance=ONE)
        Interrupted(ledger, LOST[engine_kind], committed=committed)
        decision = ledger.reserve(key="key", available_balance=ONE)
        assert decision.granted
        assert not decision.replayed, "the caller asked once, so it is no replay for him"
        auditor = audited(ledger)
        assert len(auditor.decisions) == warm_up + 1
        assert auditor.by_key["key"].record == decision.record


@pytest.mark.parametrize("committed", [True, False], ids=["after", "before"])
def test_commit_when_its_outcome_stays_unknown_then_unavailable_and_the_same_key_tells(
    database_url: str, engine_kind: EngineKind, committed: bool
) -> None:
    with Ledger.open(database_url, settings=settings_of(retries_max=0)) as ledger:
        Interrupted(ledger, LOST[engine_kind], committed=committed)
        with pytest.raises(Unavailable, match="same key"):
            ledger.reserve(key="key", available_balance=ONE)
        decision = ledger.reserve(key="key", available_balance=ONE)
        assert decision.granted
        assert decision.replayed is committed
        assert len(audited(ledger).decisions) == 1
