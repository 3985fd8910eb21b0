"""/healthz tells a supervisor what only a restart mends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.services import eventually, serving


@pytest.mark.slow
@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
def test_healthz_when_one_commit_never_ends_then_503_until_it_does(database_url: str) -> None:
    quick = {"database_timeout_seconds": 1, "busy_timeout_seconds": 1}
    ended = threading.Event()
    with serving(database_url, ledger=quick) as service, ThreadPoolExecutor(1) as pool:
        try:
            service.ledger.observe = lambda _records, _seconds: ended.wait(120)
            answer = pool.submit(service.post, "/v1/reservations", "one", {})
            assert service.http.get("/healthz").json() == {"status": "ok", "checks": {}}, "a commit may take its time"
            eventually(lambda: service.http.get("/healthz").status_code == 503, 60)
            told = service.http.get("/healthz").json()
            assert told["status"] == "restart"
            assert "should end within 12 s" in told["checks"]["writer"]
        finally:
            ended.set()
        assert answer.result(60).status_code == 201
        eventually(lambda: service.http.get("/healthz").status_code == 200)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
def test_healthz_when_the_writer_has_died_of_a_defect_then_503(database_url: str) -> None:
    with serving(database_url) as service:
        service.post("/v1/reservations", "one", {})
        writer = service.ledger._writer
        writer._stored = [None]  # its loop meets an error that no batch explains
        with writer._lock:
            writer._ready.notify()
        eventually(lambda: service.http.get("/healthz").status_code == 503)
        assert "thread" in service.http.get("/healthz").json()["checks"]["writer"]
