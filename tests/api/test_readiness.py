"""Readiness while the database takes no writes: a file that may not grow, a read-only server, and back."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select, text

from ledger_sizer.storage.database import is_sqlite, make_engine, upgrade
from ledger_sizer.storage.tables import LeaseRow
from tests.support.databases import PostgresServer
from tests.support.services import Process, eventually


def _allow_writes(process: Process, url: str, *, allowed: bool) -> None:
    """Stop or allow the service's writes. SQLite: no file of it may grow. PostgreSQL: the database is read-only."""
    engine = make_engine(url)
    if is_sqlite(engine.url):
        size = resource.RLIM_INFINITY if allowed else 4096
        resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            setting = f"default_transaction_read_only = {'off' if allowed else 'on'}"
            connection.execute(text(f'ALTER DATABASE "{engine.url.database}" SET {setting}'))
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> :own"
            own = connection.execute(text("SELECT pg_backend_pid()")).scalar()
            connection.execute(text(others), {"name": engine.url.database, "own": own})
    engine.dispose()


def test_read_readiness_when_writes_fail_then_it_is_bad_until_they_work_again(
    database_url: str, tmp_path: Path
) -> None:
    names = {"LEDGER_RETRIES_MAX": "1", "LEDGER_BUSY_TIMEOUT_SECONDS": "2"}
    process = Process(database_url, tmp_path, **names)
    try:
        process.ready()

        def checks() -> tuple[int, Any]:
            answer = httpx.get(f"{process.url}/readyz", timeout=20)
            return answer.status_code, answer.json()["checks"]

        def reserve(key: str) -> int:
            headers = {"Idempotency-Key": key}
            return httpx.post(f"{process.url}/v1/reservations", json={}, headers=headers, timeout=20).status_code

        assert reserve("before") == 201
        assert checks()[1]["writes"] == "ok"
        _allow_writes(process, database_url, allowed=False)
        assert reserve("during") == 503
        for _ in range(3):
            status, found = checks()
            assert (status, found["writes"]) == (503, "the database takes no writes")
            assert found["database"] == "ok", "it can be read"
        _allow_writes(process, database_url, allowed=True)
        eventually(lambda: checks()[0] == 200)
        assert reserve("during") == 201
        engine = make_engine(database_url)
        with engine.connect() as connection:
            names = connection.execute(select(LeaseRow.name)).scalars().all()
            assert set(names) <= {"jobs"}, "the probe left nothing"
        engine.dispose()
    finally:
        process.close()


def test_read_readiness_when_the_standby_does_not_confirm_then_it_is_bad_until_it_does(
    durable_postgres: PostgresServer, tmp_path: Path
) -> None:
    upgrade(durable_postgres.url)
    process = Process(durable_postgres.url, tmp_path, SERVICE_ANSWER_TIMEOUT_SECONDS="2")
    try:
        process.ready()

        def ready() -> tuple[int, str]:
            answer = httpx.get(f"{process.url}/readyz", timeout=20)
            return answer.status_code, answer.json()["checks"]["writes"]

        def wait_for_standby(name: str) -> None:
            engine = make_engine(durable_postgres.url)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
                connection.execute(text("SELECT pg_reload_conf()"))
            engine.dispose()

        assert eventually(ready) == (200, "ok")
        wait_for_standby("nobody")
        time.sleep(0.5)
        headers = {"Idempotency-Key": "k"}
        answer = httpx.post(f"{process.url}/v1/reservations", json={}, headers=headers, timeout=20)
        assert answer.status_code == 503
        eventually(lambda: ready()[0] == 503)
        for _ in range(2):
            assert ready()[0] == 503
        assert httpx.get(f"{process.url}/readyz", timeout=20).json()["checks"]["database"] == "ok"
        wait_for_standby("")
        eventually(lambda: ready() == (200, "ok"))
        assert httpx.post(f"{process.url}/v1/reservations", json={}, headers=headers, timeout=20).status_code == 201
    finally:
        process.close()
