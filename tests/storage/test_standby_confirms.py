"""Nothing is answered from rows that a synchronous standby may lack: a failover would forget what a caller was told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import make_url

from ledger_sizer import Decision, Ledger, NotFound, Unavailable
from ledger_sizer.storage.database import upgrade
from tests.support.databases import PostgresServer
from tests.support.programs import settings_of
from tests.support.services import eventually

IMPATIENT = {"database_timeout_seconds": 1, "busy_timeout_seconds": 1, "retries_max": 0}
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


class Primary:
    """A server that waits for a standby, which is there or away as the test says. No standby really runs."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server

    def run(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement as an operator would."""
        plain = make_url(self.server.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            # This session's own statements must not wait for the standby.
            connection.execute("SET synchronous_commit = local")
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def lose_standby(self) -> None:
        """Let every commit wait for a standby that does not answer."""
        self.run("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        self.run("SELECT pg_reload_conf()")
        eventually(lambda: self.run("SHOW synchronous_standby_names") == [("away",)])

    def regain_standby(self) -> None:
        """Let commits wait for no standby any more."""
        self.run("ALTER SYSTEM RESET synchronous_standby_names")
        self.run("SELECT pg_reload_conf()")

    @contextmanager
    def waiting_commit(self, ledger: Ledger, key: str) -> Iterator[Future[Decision]]:
        """Reserve under a key, and run the block while the commit waits for the standby."""
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: reserve(ledger, key))
            eventually(lambda: len(self.run(WAITING)) >= 1)
            yield answer


@pytest.fixture
def primary(durable_postgres: PostgresServer) -> Primary:
    upgrade(durable_postgres.url)
    return Primary(durable_postgres)


@pytest.fixture
def ledger(primary: Primary) -> Iterator[Ledger]:
    with Ledger.open(primary.server.url, settings=settings_of(**IMPATIENT)) as ledger:
        reserve(ledger, "before")
        yield ledger


def reserve(ledger: Ledger, key: str) -> Decision:
    return ledger.reserve(key=key, available_balance=Decimal(10))


def refused(call: Callable[[], object]) -> str:
    """Return the text of the `Unavailable` that the call raises."""
    with pytest.raises(Unavailable) as caught:
        call()
    return str(caught.value)


def committed(primary: Primary) -> list[object]:
    """Return the keys that the primary shows, whether the standby has them or not."""
    return [key for (key,) in primary.run("SELECT key FROM decisions ORDER BY seq")]


def crash(primary: Primary) -> None:
    primary.server.crash()
    primary.server.start()


def cancel(primary: Primary) -> None:
    primary.run(f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) AS waiting")


def terminate(primary: Primary) -> None:
    primary.run(f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) AS waiting")


@pytest.mark.parametrize("harm", [crash, cancel, terminate])
def test_replay_when_only_the_primary_has_the_decision_then_unavailable_until_the_standby_has_it(
    primary: Primary, ledger: Ledger, harm: Callable[[Primary], None]
) -> None:
    primary.lose_standby()
    with primary.waiting_commit(ledger, "unsafe") as answer:
        harm(primary)
        with pytest.raises(Unavailable):
            answer.result(60)
    assert committed(primary) == ["before", "unsafe"], "the primary shows the row"
    refused(lambda: reserve(ledger, "unsafe"))
    refused(lambda: reserve(ledger, "before"))
    primary.regain_standby()
    eventually(lambda: reserve(ledger, "unsafe").granted)
    again = reserve(ledger, "unsafe")
    assert (again.replayed, again.seq) == (True, 2)


def test_read_when_only_the_primary_has_the_rows_then_unavailable(primary: Primary, ledger: Ledger) -> None:
    primary.lose_standby()
    with primary.waiting_commit(ledger, "unsafe") as answer:
        cancel(primary)
        with pytest.raises(Unavailable):
            answer.result(60)
    for read in (
        lambda: ledger.position("main-2"),
        lambda: ledger.exposure("main"),
        lambda: ledger.decision(2),
        ledger.history,
        ledger.heads,
        ledger.verify,
        lambda: next(iter(ledger.export())),
        ledger.overview,
    ):
        refused(read)
    primary.regain_standby()
    eventually(lambda: ledger.position("main-2").state == "held")


def test_reserve_when_the_standby_does_not_answer_then_it_waits_no_longer_than_the_bound(
    primary: Primary, ledger: Ledger
) -> None:
    primary.lose_standby()
    done = threading.Event()

    def ask() -> str:
        try:
            return refused(lambda: reserve(ledger, "one"))
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(ask)
        assert done.wait(60), "the call ends by itself"
        assert "no answer from the database server within 2 s" in text.result()
    eventually(lambda: primary.run(WAITING) == [])  # no backend waits on for a caller that is gone


def test_error_when_nothing_was_read_then_it_does_not_wait_for_the_standby(primary: Primary, ledger: Ledger) -> None:
    primary.lose_standby()
    with pytest.raises(NotFound):
        ledger.release(key="r", position_id="unknown-1")


def test_answer_when_commits_of_the_server_are_made_asynchronous_then_the_ledgers_own_still_wait(
    primary: Primary,
) -> None:
    primary.run("ALTER SYSTEM SET synchronous_commit = off")
    primary.run("SELECT pg_reload_conf()")
    with Ledger.open(primary.server.url, settings=settings_of(**IMPATIENT)) as ledger:
        reserve(ledger, "before")
        primary.lose_standby()
        refused(lambda: reserve(ledger, "one"))
        refused(lambda: ledger.exposure("main"))
