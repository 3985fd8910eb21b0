"""A PostgreSQL connection that goes silent is given up: the network swallows packets, or the server is frozen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from ledger_sizer import Decision, Ledger, LedgerError, LedgerSettings, Unavailable
from ledger_sizer.storage.database import make_engine, upgrade
from tests.support.databases import PostgresServer
from tests.support.programs import settings_of
from tests.support.services import eventually, serving
from tests.support.tcp_proxy import SwallowingProxy

SETTINGS = {"database_timeout_seconds": 2, "busy_timeout_seconds": 1, "connect_timeout_seconds": 2}
ENDS_SECONDS = 120
"""A wait without an end fails the test after this time. What is promised is far less."""
postgresql = pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)


@pytest.fixture
def proxy(database_url: str) -> Iterator[SwallowingProxy]:
    with SwallowingProxy(database_url) as proxy:
        yield proxy


def reserve(ledger: Ledger, key: str) -> Decision:
    return ledger.reserve(key=key, available_balance=Decimal(10))


@postgresql
def test_reserve_when_the_connection_goes_silent_then_it_is_granted_over_a_new_one(proxy: SwallowingProxy) -> None:
    with Ledger.open(proxy.url, settings=settings_of(**SETTINGS)) as ledger, ThreadPoolExecutor(1) as pool:
        for number in range(3):  # under the lock at first, then from cached state
            reserve(ledger, f"before-{number}")
        proxy.swallow()
        decision = pool.submit(reserve, ledger, "after").result(ENDS_SECONDS)
        assert (decision.granted, decision.replayed, decision.seq) == (True, False, 4)


@postgresql
def test_read_when_pooled_connections_go_silent_then_reads_work_again(proxy: SwallowingProxy) -> None:
    with Ledger.open(proxy.url, settings=settings_of(**SETTINGS)) as ledger, ThreadPoolExecutor(4) as pool:
        reserve(ledger, "before")
        assert [pool.submit(ledger.exposure, "main").result(ENDS_SECONDS).held for _ in range(4)] == [10] * 4
        proxy.swallow()

        def held() -> Decimal | None:
            try:
                return ledger.exposure("main").held
            except Unavailable:
                return None

        assert pool.submit(eventually, held, ENDS_SECONDS).result(ENDS_SECONDS) == 10


@postgresql
def test_close_when_the_connection_is_silent_then_it_ends_and_the_waiting_caller_gets_an_error(
    proxy: SwallowingProxy,
) -> None:
    ledger = Ledger.open(proxy.url, settings=settings_of(**SETTINGS, retries_max=100))
    with ThreadPoolExecutor(2) as pool:
        reserve(ledger, "before")
        proxy.close_new()
        proxy.swallow()
        waiting = pool.submit(reserve, ledger, "after")
        eventually(lambda: ledger.pending)
        pool.submit(ledger.close).result(ENDS_SECONDS)
        with pytest.raises(LedgerError):
            waiting.result(ENDS_SECONDS)


@postgresql
def test_reserve_when_the_first_of_two_hosts_freezes_then_the_other_is_asked_first(
    database_url: str, proxy: SwallowingProxy
) -> None:
    with SwallowingProxy(database_url) as second, ThreadPoolExecutor(1) as pool:
        first = make_url(proxy.url)
        hosts = f"127.0.0.1:{first.port},127.0.0.1:{make_url(second.url).port}"
        url = f"postgresql://{first.username}@{hosts}/{first.database}"
        with Ledger.open(url, settings=settings_of(**SETTINGS)) as ledger:
            reserve(ledger, "before")
            asked, unused = proxy.accepted, second.accepted
            assert (asked > 0, unused) == (True, 0)
            proxy.freeze()
            assert pool.submit(reserve, ledger, "after").result(ENDS_SECONDS).granted
            # The first host is asked once more: to cancel what it no longer answers.
            assert (proxy.accepted - asked, second.accepted > 0) == (1, True)


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """Stop the server and its children with SIGSTOP: the kernel still accepts connections, nobody answers."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    pids = [server.pid, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_service_when_the_server_is_frozen_then_503_in_time_and_it_goes_on_afterwards(
    durable_postgres: PostgresServer,
) -> None:
    upgrade(durable_postgres.url)
    with serving(durable_postgres.url, ledger=SETTINGS) as service:
        reservation = ("/v1/reservations", "before", {"available_balance": "10"})
        assert service.post(*reservation).status_code == 201
        with frozen(durable_postgres):
            asked_at = time.monotonic()
            assert service.post("/v1/reservations", "during", {}, timeout=ENDS_SECONDS).status_code == 503
            assert time.monotonic() - asked_at < 30
            assert service.http.get("/readyz", timeout=ENDS_SECONDS).status_code == 503
            assert service.http.get("/healthz").status_code == 200, "a restart would not mend the database"
        eventually(lambda: service.post(*reservation, timeout=ENDS_SECONDS).status_code == 201, ENDS_SECONDS)
        eventually(lambda: service.http.get("/readyz").status_code == 200, ENDS_SECONDS)


@postgresql
def test_migration_when_a_statement_takes_longer_than_the_bound_then_it_is_not_given_up(database_url: str) -> None:
    impatient = LedgerSettings(database_timeout_seconds=1, busy_timeout_seconds=1)
    patient, bounded = (make_engine(database_url, impatient, bounded=bounded) for bounded in (False, True))
    slow = "SELECT pg_sleep(3)"
    try:
        with patient.connect() as connection:
            connection.exec_driver_sql(slow)
        with (
            pytest.raises(DBAPIError, match="no answer from the database server within 2 s"),
            bounded.connect() as connection,
        ):
            connection.exec_driver_sql(slow)
    finally:
        patient.dispose()
        bounded.dispose()
