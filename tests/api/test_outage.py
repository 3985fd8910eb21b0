"""Outages: the database away and back, a full queue, a stop under load, replicas and their lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from ledger_sizer import Ledger
from ledger_sizer.storage.database import downgrade, make_engine, upgrade
from ledger_sizer.storage.leases import acquire_lease, release_lease
from tests.conftest import NewDatabase
from tests.support.databases import PostgresServer
from tests.support.services import Process, eventually, serving


def test_call_when_database_is_away_then_503_until_it_is_back_by_itself(durable_postgres: PostgresServer) -> None:
    upgrade(durable_postgres.url)
    patience = {"retries_max": 1, "busy_timeout_seconds": 1}
    with serving(durable_postgres.url, ledger=patience, key_cache_seconds=300) as service:
        granted = service.post("/v1/reservations", "before").json()
        durable_postgres.crash()
        for answer in (
            service.post("/v1/reservations", "during"),
            service.http.get("/v1/portfolios/main/exposure"),
            service.http.get("/readyz"),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.headers["Retry-After"]
        assert service.post("/v1/reservations", "during").json()["code"] in ("unavailable", "busy")
        assert service.http.get("/healthz").status_code == 200
        assert "ledger_database_up 0.0" in service.http.get("/metrics").text
        durable_postgres.start()
        eventually(lambda: service.http.get("/readyz").status_code == 200)
        again = eventually(lambda: _granted(service.post("/v1/reservations", "during")))
        assert again["seq"] == 2
        replay = service.post("/v1/reservations", "before")
        assert replay.headers["Idempotency-Replayed"] == "true"
        assert replay.json() == {**granted, "replayed": True}
        assert service.ledger.verify().ok


def _granted(answer: httpx.Response) -> Any:
    return answer.json() if answer.status_code == 201 else None


def test_call_when_keys_cannot_be_read_then_503_and_never_in(durable_postgres: PostgresServer) -> None:
    upgrade(durable_postgres.url)
    with serving(durable_postgres.url, key_cache_seconds=0) as service:
        durable_postgres.crash()
        answer = service.http.get("/v1/portfolios")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


@contextmanager
def _row_locked(url: str) -> Iterator[None]:
    """Hold the lock that every write to portfolio `main` needs, like another writer."""
    engine = make_engine(url)
    with engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT 1 FROM portfolios WHERE name = 'main' FOR UPDATE"))
        yield
    engine.dispose()


def test_reserve_when_queue_is_full_then_503_at_once_and_readiness_is_false(database_url: str) -> None:
    ledger = {"queue_size_max": 4, "busy_timeout_seconds": 10, "batch_size_max": 1}
    with serving(database_url, ledger=ledger) as service:
        service.post("/v1/reservations", "first")
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(service.post("/v1/reservations", f"wait {n}")))
            for n in range(4)
        ]
        with _row_locked(database_url):
            for thread in threads:
                thread.start()
            eventually(lambda: service.ledger.pending == 4)
            refused = service.post("/v1/reservations", "too many")
            assert (refused.status_code, refused.json()["code"]) == (503, "busy")
            assert refused.headers["Retry-After"]
            assert service.http.get("/readyz").json()["checks"]["queue"] == "4 of 4 wait"
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in answers] == [201] * 4
        assert service.http.get("/readyz").status_code == 200
        assert service.post("/v1/reservations", "too many").status_code == 409


def test_answer_when_it_takes_too_long_then_503_and_the_key_settles_it(database_url: str) -> None:
    with serving(database_url, answer_timeout_seconds=1, ledger={"busy_timeout_seconds": 30}) as service:
        service.post("/v1/reservations", "first")
        with _row_locked(database_url):
            answer = service.post("/v1/reservations", "slow")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        settled = eventually(lambda: _granted(service.post("/v1/reservations", "slow")))
        assert settled["seq"] == 2
        assert service.ledger.exposure().held == 2000


class Load:
    """Clients that reserve with new keys until the `with` block ends, and store every response."""

    def __init__(self, url: str, clients: int, portfolio: str = "main") -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.lost: list[str] = []
        self._url, self._portfolio = url, portfolio
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _work(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as http:
            for count in range(100_000):
                if self._stop.is_set():
                    return
                key = f"{number}/{count}"
                try:
                    answer = http.post(
                        "/v1/reservations", json={"portfolio": self._portfolio}, headers={"Idempotency-Key": key}
                    )
                    self.answers[key] = (answer.status_code, answer.json())
                except httpx.HTTPError:
                    self.lost.append(key)
                    return


def test_stop_process_when_under_load_then_every_answer_it_gave_is_in_the_ledger(
    database_url: str, tmp_path: Path
) -> None:
    process = Process(database_url, tmp_path)
    try:
        process.ready()
        httpx.put(
            f"{process.url}/v1/portfolios/main/caps", json={"cap": "1000000"}, headers={"Idempotency-Key": "cap"}
        ).raise_for_status()
        with Load(process.url, 8) as load, httpx.stream("GET", f"{process.url}/v1/events", timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            eventually(lambda: len(load.answers) > 100)
            eventually(lambda: "ledger_jobs_leader 1.0" in _metrics(process))
            started = time.monotonic()
            assert process.stop() == 0, process.log()
            assert time.monotonic() - started < 20
            list(lines)  # raises unless the stream ended properly
        assert "Traceback" not in process.log()
        with Ledger.open(database_url) as ledger:
            for key, (status, body) in load.answers.items():
                if status == 201:
                    assert ledger.decision(body["seq"]).hash == body["hash"], key
                else:
                    assert (status, body["code"]) in ((503, "closed"), (409, "cap_exceeded")), body
            assert sum(status == 201 for status, _ in load.answers.values()) > 90
            assert ledger.verify().ok
            lease = _lease_row(database_url)
            assert lease["until_us"] <= time.time_ns() // 1000, "the lease was given up, another need not wait"
    finally:
        process.close()


def _lease_row(url: str) -> Any:
    engine = make_engine(url)
    with engine.begin() as connection:
        row = connection.execute(text("SELECT * FROM leases")).mappings().one()
    engine.dispose()
    return row


def test_run_two_replicas_when_one_has_the_jobs_then_the_other_takes_over_after_it(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    url = new_database("postgresql")
    with ExitStack() as at_the_end:
        replicas = []
        for _ in range(2):
            process = Process(url, tmp_path, SERVICE_LEASE_SECONDS="3")
            at_the_end.callback(process.close)
            replicas.append(process)
        for process in replicas:
            process.ready()

        def leaders() -> list[Process]:
            return [p for p in replicas if p.child.poll() is None and "ledger_jobs_leader 1.0" in _metrics(p)]

        eventually(leaders)
        time.sleep(2)
        (first,) = leaders()
        second = next(p for p in replicas if p is not first)
        assert 'ledger_job_runs_total{job="sweep",result="done"}' not in _metrics(second)
        epoch = _lease_row(url)["epoch"]
        # Killed, so that it does not release the lease: the other replica must wait for its end.
        first.child.kill()
        first.child.wait(30)
        eventually(lambda: leaders() == [second])
        assert _lease_row(url)["epoch"] == epoch + 1
        key = {"Idempotency-Key": "short"}
        httpx.post(f"{second.url}/v1/reservations", json={"ttl_seconds": 1}, headers=key).raise_for_status()
        eventually(lambda: httpx.get(f"{second.url}/v1/positions/main-1").json()["state"] == "expired")


def _metrics(process: Process) -> str:
    return httpx.get(f"{process.url}/metrics").text


def test_take_lease_when_another_owner_came_between_then_the_old_epoch_is_fenced_off(database_url: str) -> None:
    engine = make_engine(database_url)
    first = acquire_lease(engine, "jobs", "a", 60)
    assert first is not None
    assert acquire_lease(engine, "jobs", "b", 60) is None
    assert acquire_lease(engine, "jobs", "a", 60) == first
    with engine.begin() as connection:
        assert first.holds(connection)
    release_lease(engine, first)
    second = acquire_lease(engine, "jobs", "b", 60)
    assert second is not None
    assert second.epoch == first.epoch + 1
    with engine.begin() as connection:
        assert not first.holds(connection)
        assert second.holds(connection)
    release_lease(engine, first)
    assert acquire_lease(engine, "jobs", "c", 60) is None, "an old owner cannot end the present lease"
    engine.dispose()


def test_take_lease_when_many_try_at_once_then_one_has_it(database_url: str) -> None:
    engine = make_engine(database_url)
    won: list[str] = []
    barrier = threading.Barrier(8)

    def take(owner: str) -> None:
        barrier.wait()
        if acquire_lease(engine, "jobs", owner, 60) is not None:
            won.append(owner)

    threads = [threading.Thread(target=take, args=(f"o{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    engine.dispose()


def test_serve_when_postgresql_is_behind_then_it_refuses_and_names_the_command(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    url = new_database("postgresql")
    downgrade(url, "0001")
    process = Process(url, tmp_path)
    try:
        assert process.child.wait(60) == 1
        assert "ledger-sizer db upgrade" in process.log()
    finally:
        process.close()


@pytest.mark.parametrize(("environment", "code", "says"), [({"SERVICE_HOST": "0.0.0.0"}, 2, "keys create")])
def test_serve_when_address_is_open_without_keys_then_it_refuses(
    environment: dict[str, str], code: int, says: str, new_database: NewDatabase, tmp_path: Path
) -> None:
    process = Process(new_database("sqlite"), tmp_path, **environment)
    try:
        assert process.child.wait(60) == code
        assert says in process.log()
    finally:
        process.close()
