"""A real service whose SQLite file is taken away: it fails closed, says so, and does not begin an empty ledger."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ledger_sizer import Ledger
from tests.support.services import Process

Start = Callable[..., Process]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def start(path: Path, tmp_path: Path) -> Iterator[Start]:
    """Start services on the ledger at `path`; all are ended after the test."""
    started: list[Process] = []

    def start(**environment: str) -> Process:
        started.append(Process(f"sqlite:///{path}", tmp_path, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


def reserve(service: Process, key: str) -> httpx.Response:
    body = {"portfolio": "main", "ttl_seconds": 3600}
    return httpx.post(f"{service.url}/v1/reservations", json=body, headers={"Idempotency-Key": key}, timeout=40)


def acknowledged(service: Process) -> dict[str, tuple[Any, Any]]:
    answers = {key: reserve(service, key) for key in ("k0", "k1", "k2")}
    assert {answer.status_code for answer in answers.values()} == {201}
    return {key: (answer.json()["seq"], answer.json()["hash"]) for key, answer in answers.items()}


def assert_closed(service: Process, words: str) -> None:
    """Check that nothing is granted, replayed or read, and that the service says why."""
    for key in ("k3", "k4", "k0"):
        answer = reserve(service, key)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert words in answer.text
    assert httpx.get(f"{service.url}/v1/portfolios/main/exposure").status_code == 503
    ready = httpx.get(f"{service.url}/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["database"] != "ok"
    assert httpx.get(f"{service.url}/healthz").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_serve_when_the_file_is_deleted_then_it_fails_closed_and_no_empty_ledger_takes_its_place(
    start: Start, path: Path, number: signal.Signals
) -> None:
    service = start().ready()
    acknowledged(service)
    path.unlink()
    assert_closed(service, "was deleted or moved while it was open")
    service.child.send_signal(number)
    assert service.child.wait(60) == (0 if number == signal.SIGTERM else -number)
    assert service.log().count("ledger.file_lost") <= 4, "once for each engine, not for each request"

    refused = start()
    assert refused.child.wait(60) == 1
    assert "a ledger was at" in refused.log()
    assert not path.exists()
    begun = start(LEDGER_CREATE="always").ready()
    assert f"created a new ledger at {path}" in begun.log()
    assert reserve(begun, "n0").status_code == 201


def test_serve_when_the_log_is_deleted_then_a_clean_stop_saves_what_was_acknowledged(start: Start, path: Path) -> None:
    service = start().ready()
    before = acknowledged(service)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    assert_closed(service, "was removed while it was open")
    assert service.stop() == 0
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert before.items() <= {one.key: (one.seq, one.hash) for one in ledger.history()}.items()
        assert ledger.verify().ok


def test_serve_when_the_file_is_back_then_it_goes_on(start: Start, path: Path) -> None:
    service = start().ready()
    acknowledged(service)
    path.rename(path.with_name("moved.db"))
    assert_closed(service, "was deleted or moved while it was open")
    path.with_name("moved.db").rename(path)
    assert reserve(service, "k3").status_code == 201
    assert reserve(service, "k0").json()["replayed"]
    assert httpx.get(f"{service.url}/readyz").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="reads a deleted file through /proc")
def test_rescue_when_the_file_is_deleted_then_the_drill_of_the_docs_brings_everything_back(
    start: Start, path: Path
) -> None:
    service = start().ready()
    before = acknowledged(service)
    path.unlink()
    assert_closed(service, "was deleted or moved while it was open")
    handles = Path(f"/proc/{service.child.pid}/fd").iterdir()
    deleted = next(handle for handle in handles if str(handle.readlink()) == f"{path} (deleted)")
    rescued = path.with_name("rescued.db")
    shutil.copyfile(deleted, rescued)
    assert service.stop() == 0
    rescued.rename(path)
    path.with_name("ledger.db-ledger").unlink()
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert before.items() <= {one.key: (one.seq, one.hash) for one in ledger.history()}.items()
        assert ledger.verify().ok
