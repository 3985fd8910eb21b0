"""Verify and sweep over HTTP: bounded, so that bots go on, and only what the caller's key may see."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ledger_sizer import Ledger, Reserve, Unavailable
from ledger_sizer.client import LedgerClient, Patience
from ledger_sizer.model.verification import VerifyReport
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.ledgers import Intruder
from tests.support.services import MinimalService, Running, eventually, served, serving


@pytest.fixture
def service(database_url: str) -> Iterator[Running]:
    """A service with two portfolios and one key for each, and one for both."""
    with serving(database_url) as running:
        for portfolio in ("main", "other"):
            running.ledger.submit([Reserve(key=f"{n}", portfolio=portfolio) for n in range(3)])
        yield running


def _bearer(database_url: str, role: Any, portfolios: list[str]) -> dict[str, str]:
    engine = make_engine(database_url)
    try:
        return {"Authorization": f"Bearer {create_key(engine, role, role, portfolios).token}"}
    finally:
        engine.dispose()


class SlowLedger:
    """Holds each verification of a ledger open until `go`. `begun` is set while one waits."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.broken: Exception | None = None
        verify = ledger.verify

        def slow(portfolio: str | None = None, progress: Any = None) -> VerifyReport:
            self.begun.set()
            try:
                while not self.go.wait(0.01):
                    progress(0, 1)
                if self.broken is not None:
                    raise self.broken
                return verify(portfolio, progress)
            finally:
                self.ended.set()

        monkeypatch.setattr(ledger, "verify", slow)


@contextmanager
def _slow(service: Running | MinimalService, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLedger]:
    monkeypatch.setattr("ledger_sizer.api.audit.BEAT_SECONDS", 0.05)
    slow = SlowLedger(service.ledger, monkeypatch)
    try:
        yield slow
    finally:
        slow.go.set()


def test_verify_when_a_key_is_bound_then_only_its_portfolios_are_read(service: Running, database_url: str) -> None:
    service.ledger.remark(key="desk", portfolio="*", about="the desk", event="opened")
    everything = service.http.post("/v1/verify").json()
    heads = everything["heads"]
    assert (everything["ok"], everything["decisions"], set(heads)) == (True, 7, {"*", "main", "other"})
    of_the_desk = service.http.post("/v1/verify", json={"portfolio": "*"}).json()
    assert (of_the_desk["ok"], of_the_desk["decisions"], set(of_the_desk["heads"])) == (True, 1, {"*"})
    one, both = _bearer(database_url, "read", ["other"]), _bearer(database_url, "read", ["main", "new", "other"])
    mine = service.http.post("/v1/verify", headers=one).json()
    assert (mine["decisions"], mine["positions"], set(mine["heads"])) == (3, 3, {"other"})
    everything = {**everything, "decisions": 6, "heads": {name: heads[name] for name in ("main", "other")}}
    assert service.http.post("/v1/verify", headers=both).json() == everything
    for other in ("main", "*"):
        refused = service.http.post("/v1/verify", headers=one, json={"portfolio": other})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE decisions SET request = '{}' WHERE seq = 1 AND key = '0' AND portfolio_id = 1")
    of_both = service.http.post("/v1/verify", headers=both).json()
    assert [one for one in of_both["findings"] if one["seq"]] == [of_both["first"]]
    schema = [one["what"] for one in of_both["findings"] if one["seq"] is None]
    assert len(schema) == len(set(schema)) > 0, "what is wrong with the schema is told once"
    of_one = service.http.post("/v1/verify", headers=one).json()
    assert [one for one in of_one["findings"] if one["seq"]] == []


@pytest.mark.parametrize("path", ["/v1/verify", "/v1/sweep"])
@pytest.mark.parametrize(
    ("body", "field"),
    [({"portfolio": "a b"}, "portfolio"), ({"portfolio": 7}, "portfolio"), ({"all": True}, "all"), ([], None)],
)
def test_call_when_the_body_is_wrong_then_422_names_the_field(
    service: Running, path: str, body: Any, field: str | None
) -> None:
    answer = service.http.post(path, json=body)
    assert (answer.status_code, answer.json()["code"], answer.json().get("field")) == (422, "invalid_request", field)


def test_verify_when_it_takes_long_then_blanks_come_before_the_report_and_bots_go_on(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _slow(service, monkeypatch) as slow, service.http.stream("POST", "/v1/verify") as answer:
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        parts = answer.iter_raw()
        assert [next(parts), next(parts)] == [b" ", b" "]
        assert service.post("/v1/reservations", "meanwhile").status_code == 201
        slow.go.set()
        report = httpx.Response(200, content=b"".join(parts)).json()
    assert (report["ok"], report["decisions"]) == (True, 7)


def test_verify_when_another_is_under_way_then_503_until_it_ends(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _slow(service, monkeypatch) as slow, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{service.url}/v1/verify", timeout=30)
        assert slow.begun.wait(10)
        busy = service.http.post("/v1/verify")
        assert (busy.status_code, busy.json()["code"], busy.headers["Retry-After"]) == (503, "busy", "1")
        slow.go.set()
        assert first.result(30).json()["ok"]
        assert eventually(lambda: service.http.post("/v1/verify").status_code == 200)


def test_verify_when_the_caller_hangs_up_then_the_reading_ends_and_others_may_ask(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _slow(service, monkeypatch) as slow:
        with httpx.stream("POST", f"{service.url}/v1/verify", timeout=30) as answer:
            assert next(answer.iter_raw()) == b" "
        assert slow.ended.wait(10), "nobody waits for it"
        slow.go.set()
        assert eventually(lambda: service.http.post("/v1/verify").status_code == 200)


def test_verify_when_it_fails_midway_then_no_report_comes_and_the_client_says_so(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Patience(attempts_max=1)
    with served(database_url) as service, LedgerClient(service.url, patience=once) as client:
        service.ledger.reserve(key="a")
        with _slow(service, monkeypatch) as slow, ThreadPoolExecutor(1) as pool:
            slow.broken = Unavailable("the database is gone")
            asked = pool.submit(client.verify)
            assert slow.begun.wait(10)
            threading.Event().wait(0.3)  # some blanks are sent
            slow.go.set()
            with pytest.raises(Unavailable, match="no answer to POST /v1/verify"):
                asked.result(30)
            at_once = httpx.post(f"{service.url}/v1/verify", timeout=30)
            assert (at_once.status_code, at_once.json()["code"]) == (503, "unavailable")
            slow.broken = None
            assert client.verify().ok


def test_verify_when_the_service_stops_then_it_ends_and_does_not_keep_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(database_url) as service:
        service.ledger.reserve(key="a")
        slow = SlowLedger(service.ledger, monkeypatch)
        monkeypatch.setattr("ledger_sizer.api.audit.BEAT_SECONDS", 0.05)
        client = httpx.Client(base_url=service.url, timeout=30)
        stream = client.stream("POST", "/v1/verify")
        answer = stream.__enter__()
        assert next(answer.iter_raw()) == b" "
    assert slow.ended.is_set()
    client.close()


def test_sweep_when_a_key_is_bound_then_only_its_holds_are_freed(database_url: str, clock: FakeClock) -> None:
    with served(database_url, clock=clock) as service:
        for portfolio in ("main", "other"):
            service.ledger.submit([Reserve(key=f"{n}", portfolio=portfolio, ttl_seconds=10) for n in range(3)])
        headers = _bearer(database_url, "trade", ["other", "new"])
        clock.advance(11)
        with httpx.Client(base_url=service.url, headers=headers, timeout=30) as http:
            assert http.post("/v1/sweep").json() == {"freed": 3, "more": False}
            assert http.post("/v1/sweep", json={"portfolio": "main"}).status_code == 403
            assert http.post("/v1/sweep", json={"portfolio": "new"}).status_code == 404
        assert (service.ledger.exposure("other").held, service.ledger.exposure("main").held) == (0, 3000)
        assert service.ledger.portfolios() == ["main", "other"], "a sweep creates nothing"


def test_sweep_when_there_is_much_to_free_then_it_answers_in_time_and_says_there_is_more(
    database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_sizer.api.audit.SWEEP_SECONDS_MAX", 0.0)
    with served(database_url, clock=clock) as service:
        service.ledger.submit([Reserve(key=f"{n}", available_balance=1, ttl_seconds=10) for n in range(600)])
        clock.advance(11)
        answers = []
        while not answers or answers[-1]["more"]:
            answers.append(httpx.post(f"{service.url}/v1/sweep", timeout=30).json())
        assert len(answers) >= 3
        assert sum(answer["freed"] for answer in answers) == 600
