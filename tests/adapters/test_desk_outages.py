"""`Desk` while its ledger is away: how long it keeps its caller, and what becomes of what ends too late."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import AppSettings, Ledger, LedgerSettings
from ledger_sizer.adapters.bounded_calls import BoundedCalls, NoAnswer
from ledger_sizer.adapters.desk import BACK_OFF_SECONDS, Desk
from tests.support.fault_proxy import FaultProxy, answered, cut_after, cut_before
from tests.support.ledgers import assert_verified
from tests.support.services import Process, eventually, served
from tests.support.tcp_proxy import SwallowingProxy

D = Decimal
BTC, ETH = "BTC/USDT", "ETH/USDT"
TAGS = {"bot": "a"}

STUCK_SECONDS = 5
"""What one call would cost without the desk. The bounds are for many calls, and far above what one should take."""


class Seconds:
    """A monotonic clock that a test moves, past the desk's back-off."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_back_off(self) -> None:
        self.now += BACK_OFF_SECONDS


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def outages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the events that the desk logged, without their first word."""
    caplog.set_level(logging.INFO, logger="ledger_sizer.desk")

    def events() -> list[str]:
        lines = [record.msg for record in caplog.records if record.name == "ledger_sizer.desk"]
        return [line["event"].removeprefix("desk.") for line in lines if isinstance(line, dict)]

    return events


@contextmanager
def quicker_than(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


LOCKER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
database.execute("ROLLBACK")
"""


@contextmanager
def locked(path: str) -> Iterator[Callable[[], None]]:
    """Let another process hold the database's write lock, until the function that is yielded is called."""
    locker = subprocess.Popen(
        [sys.executable, "-c", LOCKER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert locker.stdin is not None
    assert locker.stdout is not None

    def unlock() -> None:
        assert locker.stdin is not None
        locker.stdin.close()
        assert locker.wait(30) == 0

    try:
        assert locker.stdout.readline() == "locked\n"
        yield unlock
    finally:
        locker.kill()
        locker.wait(30)
        locker.stdin.close()
        locker.stdout.close()


@pytest.fixture
def sqlite_ledger(new_database: Any) -> Iterator[Ledger]:
    with Ledger.open(new_database("sqlite")) as ledger:
        ledger.set_cap(key="cap", cap=D(300))
        yield ledger


def holds(ledger: Ledger) -> list[tuple[str, Decimal]]:
    return [(str(one.tags["symbol"]), one.held) for one in ledger.positions("main", state="held")]


def test_ask_when_another_process_has_the_database_locked_then_nobody_waits_and_the_late_grant_is_used_once(
    sqlite_ledger: Ledger, outages: Any
) -> None:
    with Desk(sqlite_ledger, tags=TAGS) as desk, locked(sqlite_ledger._write_engine.url.database or "") as unlock:
        with quicker_than(STUCK_SECONDS):
            assert [desk.ask(name, 100) for name in (BTC, BTC, ETH, ETH)] == [0, 0, 0, 0]
            assert desk.settle({}) is False
            desk.release("SOL/USDT")
        assert outages() == ["outage_began"]
        desk._calls.patience_seconds = 30.0  # what is not stuck is answered, however slow the machine is
        unlock()
        eventually(lambda: holds(sqlite_ledger))
        assert holds(sqlite_ledger) == [(BTC, 100)], "the one call that had begun ended too late"
        with ThreadPoolExecutor(1) as another:
            # Nobody was told of it, so it is not its first thread's.
            assert eventually(lambda: another.submit(desk.ask, BTC, 100).result()) == 100
            assert another.submit(desk.ask, BTC, 100).result() == 100
        assert [desk.ask(ETH, 250), desk.ask(BTC, 100)] == [200, 0]
        assert holds(sqlite_ledger) == [(BTC, 100), (ETH, 200)]
        assert outages() == ["outage_began", "outage_ended", "denied"]
    assert_verified(sqlite_ledger)


def test_ask_when_its_caller_has_gone_before_the_reservation_then_none_is_sent(
    new_database: Any, seconds: Seconds
) -> None:
    settings = AppSettings(ledger=LedgerSettings(busy_timeout_seconds=2, retries_max=0))
    with (
        Ledger.open(new_database("sqlite"), settings=settings) as ledger,
        Desk(ledger, tags=TAGS, clock=seconds, patience_seconds=0.2) as desk,
    ):
        eventually(lambda: desk.ask(ETH, 50))
        with locked(ledger._write_engine.url.database or "") as unlock:
            desk.release(ETH)
            eventually(lambda: not desk._calls.overdue)
            seconds.pass_back_off()
            assert desk.ask(BTC, 100) == 0, "the release that is due comes first, and waits"
            unlock()
            eventually(lambda: not desk._calls.overdue)
            assert holds(ledger) == []


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_ask_when_the_database_server_goes_silent_then_it_is_0_and_the_next_connection_finds_one_hold(
    database_url: str, seconds: Seconds
) -> None:
    limits: dict[str, Any] = {"database_timeout_seconds": 2, "busy_timeout_seconds": 1, "connect_timeout_seconds": 2}
    with (
        SwallowingProxy(database_url) as proxy,
        Ledger.open(proxy.url, settings=AppSettings(ledger=LedgerSettings(**limits))) as ledger,
        Desk(ledger, tags=TAGS, clock=seconds) as desk,
    ):
        assert eventually(lambda: seconds.pass_back_off() or desk.ask(ETH, 50)) == 50
        proxy.swallow()
        with quicker_than(STUCK_SECONDS):
            assert [desk.ask(BTC, 100) for _ in range(20)] == [0] * 20
        assert eventually(lambda: seconds.pass_back_off() or desk.ask(BTC, 100), 60) == 100
        assert sorted(holds(ledger)) == [(BTC, 100), (ETH, 50)]


def test_ask_when_many_threads_meet_a_lock_then_each_waits_its_patience_and_no_wish_is_left_behind(
    sqlite_ledger: Ledger,
) -> None:
    names = [f"C{number}/USDT" for number in range(8)]
    with Desk(sqlite_ledger, tags=TAGS) as desk, locked(sqlite_ledger._write_engine.url.database or "") as unlock:
        with ThreadPoolExecutor(8) as threads, quicker_than(STUCK_SECONDS):
            assert sum(threads.map(lambda name: desk.ask(name, 100), names)) == 0
        unlock()
        eventually(lambda: desk.settle({}))
        assert len(holds(sqlite_ledger)) <= 1, "of the others no call began"


def test_ask_when_the_service_is_stopped_then_it_is_0_at_once_and_afterwards_one_hold_is_there(
    new_database: Any, tmp_path: Path, seconds: Seconds, outages: Any
) -> None:
    url = new_database("sqlite")
    process = Process(url, tmp_path)
    try:
        process.ready()
        with Desk(process.url, tags=TAGS, clock=seconds, patience_seconds=2.0) as desk:
            assert eventually(lambda: desk.ask(ETH, 50)) == 50
            os.kill(process.child.pid, signal.SIGSTOP)
            with quicker_than(2.5 * STUCK_SECONDS):
                assert [desk.ask(BTC, 100) for _ in range(20)] == [0] * 20
                desk.release(ETH)
                assert desk.settle({}) is False
            os.kill(process.child.pid, signal.SIGCONT)
            assert eventually(lambda: seconds.pass_back_off() or desk.ask(BTC, 100)) == 100
            assert outages()[-2:] == ["outage_began", "outage_ended"]
            with Ledger.open(url) as ledger:
                assert holds(ledger) == [(BTC, 100)], "the release is made up for, and no hold is there twice"
            process.child.kill()
            process.child.wait(30)
            with quicker_than(STUCK_SECONDS):
                assert [desk.ask(ETH, 10) for _ in range(20)] == [0] * 20
    finally:
        process.close()


def test_ask_when_nobody_answers_at_the_port_then_it_is_0_and_told_once(seconds: Seconds, outages: Any) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with quicker_than(2 * STUCK_SECONDS), Desk(url, tags=TAGS, clock=seconds) as desk:
            assert [desk.ask(BTC, 100) for _ in range(50)] == [0] * 50
            assert [desk.settle({}) for _ in range(50)] == [False] * 50
    assert outages() == ["outage_began"]


def test_make_when_the_server_is_away_then_the_desk_opens_it_later(
    new_database: Any, seconds: Seconds, outages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_CONNECT_TIMEOUT_SECONDS", "2")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Desk(f"postgresql://nobody@127.0.0.1:{port}/x", tags=TAGS, clock=seconds) as desk:
        assert (desk.ask(BTC, 100), desk.settle({})) == (0, False)
        seconds.pass_back_off()
        assert (desk.ask(BTC, 100), desk.settle({})) == (0, False)
    assert outages() == ["outage_began"]


@pytest.fixture
def cut_off(new_database: Any) -> Iterator[tuple[FaultProxy, Ledger]]:
    """A service behind a proxy that cuts connections, and its ledger."""
    with served(new_database("sqlite")) as service, FaultProxy(service.port) as proxy:
        service.ledger.set_cap(key="cap", cap=D(300))
        yield proxy, service.ledger


def test_ask_when_the_answer_was_lost_then_the_next_ask_gets_that_hold_whatever_it_asks(
    cut_off: tuple[FaultProxy, Ledger], seconds: Seconds
) -> None:
    proxy, ledger = cut_off
    with Desk(proxy.url, tags=TAGS, clock=seconds, patience_seconds=2.0) as desk:
        assert eventually(lambda: desk.settle({}))
        proxy.always(lambda exchange: cut_after(exchange) if exchange.path.endswith("?full=true") else _pass(exchange))
        assert desk.ask(BTC, 100) == 0
        assert holds(ledger) == [(BTC, 100)]
        recorded = ledger.exposure().seq
        proxy.always(_pass)
        eventually(lambda: not desk._calls.overdue)
        seconds.pass_back_off()
        assert desk.ask(BTC, 93) == 93
        assert (holds(ledger), ledger.exposure().seq) == ([(BTC, 100)], recorded)


def test_ask_when_a_request_arrives_after_its_caller_asked_again_then_there_is_one_hold(
    cut_off: tuple[FaultProxy, Ledger], seconds: Seconds
) -> None:
    proxy, ledger = cut_off
    late: list[Any] = []

    def keep(exchange: Any) -> bool:
        late.append(exchange)
        return False

    with Desk(proxy.url, tags=TAGS, clock=seconds, patience_seconds=2.0) as desk:
        proxy.next(_pass, *[keep] * 30)
        assert desk.ask(BTC, 100) == 0
        eventually(lambda: not desk._calls.overdue)
        assert holds(ledger) == []
        proxy._faults.clear()
        seconds.pass_back_off()
        assert desk.ask(BTC, 80) == 80
        assert [exchange.forward().status for exchange in late] == [201] * len(late)
        assert holds(ledger) == [(BTC, 100)], "the same key: a replay"


def test_ask_when_the_answer_to_a_named_wish_was_lost_then_the_next_name_finds_its_money_free(
    cut_off: tuple[FaultProxy, Ledger], seconds: Seconds
) -> None:
    proxy, ledger = cut_off
    with Desk(proxy.url, tags=TAGS, clock=seconds, patience_seconds=2.0) as desk:
        proxy.next(_pass, *[cut_after] * 30)
        assert desk.ask(BTC, 300, wish="1") == 0
        eventually(lambda: not desk._calls.overdue)
        assert holds(ledger) == [(BTC, 300)]
        proxy._faults.clear()
        seconds.pass_back_off()
        assert desk.ask(BTC, 250, wish="2") == 250
        assert [(one.reference, one.held) for one in ledger.positions("main", state="held")] == [("2", 250)]


def test_ask_when_the_answer_to_a_named_wish_comes_too_late_then_its_hold_is_freed(sqlite_ledger: Ledger) -> None:
    with Desk(sqlite_ledger, tags=TAGS) as desk, locked(sqlite_ledger._write_engine.url.database or "") as unlock:
        assert desk.ask(BTC, 100, wish="1") == 0
        unlock()
        eventually(lambda: not desk._calls.overdue)
        assert holds(sqlite_ledger) == []
        assert {one.command for one in sqlite_ledger.history()} == {"set_cap", "reserve", "release"}


def test_ask_when_the_answer_was_lost_and_the_hold_ended_then_it_is_a_new_wish(
    cut_off: tuple[FaultProxy, Ledger], seconds: Seconds
) -> None:
    proxy, ledger = cut_off
    with Desk(proxy.url, tags=TAGS, clock=seconds, patience_seconds=2.0) as desk:
        proxy.next(_pass, *[cut_after] * 30)
        assert desk.ask(BTC, 100) == 0
        eventually(lambda: not desk._calls.overdue)
        ledger.release_all(key="operator", tags=TAGS)
        proxy._faults.clear()
        seconds.pass_back_off()
        assert desk.ask(BTC, 70) == 70
        assert holds(ledger) == [(BTC, 70)]


def test_settle_when_calls_met_an_outage_then_the_next_one_makes_up_for_all(
    cut_off: tuple[FaultProxy, Ledger], seconds: Seconds, outages: Any
) -> None:
    proxy, ledger = cut_off
    with Desk(proxy.url, tags=TAGS, clock=seconds, patience_seconds=2.0) as desk:
        assert [desk.ask(name, 100) for name in (BTC, ETH, "SOL/USDT")] == [100, 100, 100]
        proxy.always(cut_before)
        assert not desk.settle({BTC: (D("0.002"), D(50000))})
        desk.release(ETH)
        assert len(holds(ledger)) == 3
        proxy.always(_pass)
        desk.release(ETH)
        assert len(holds(ledger)) == 3, "the outage is known, nobody tries"
        seconds.pass_back_off()
        eventually(lambda: not desk._calls.overdue)
        assert desk.ask(ETH, 40) == 40, "an ask sends what is due before it asks"
        assert [(one.state, one.notional) for one in ledger.positions("main", state="live")] == [
            ("open", 100), ("held", 100), ("held", 40),
        ]  # fmt: skip
        assert outages() == ["outage_began", "outage_ended"]


def test_settle_when_a_release_was_lost_with_its_bot_then_the_next_life_makes_up_for_it(
    cut_off: tuple[FaultProxy, Ledger],
) -> None:
    """`settle` says what is so, so that a release need not outlive its process."""
    proxy, ledger = cut_off
    with Desk(proxy.url, tags=TAGS, patience_seconds=2.0) as desk:
        assert [desk.ask(name, 100) for name in (BTC, ETH)] == [100, 100]
        proxy.always(cut_before)
        desk.release(ETH)
    proxy.always(_pass)
    with Desk(proxy.url, tags=TAGS, patience_seconds=20.0) as desk:
        assert desk.settle({}, resting=[BTC], as_of=ledger.history().items[0].decided_at)
    assert holds(ledger) == [(BTC, 100)]


def test_ask_when_the_service_refuses_the_key_then_it_is_refused_from_memory(
    cut_off: tuple[FaultProxy, Ledger], caplog: pytest.LogCaptureFixture
) -> None:
    proxy, _ = cut_off
    body = b'{"type": "about:blank", "title": "x", "status": 403, "code": "forbidden", "detail": "no such key"}'
    proxy.always(answered(403, body, Content_Type="application/problem+json"))
    with Desk(proxy.url, tags=TAGS, patience_seconds=20.0) as desk:
        assert [desk.ask(BTC, 100) for _ in range(10)] == [0] * 10
        assert len(proxy.requests) == 1
        assert not desk.settle({})
    assert "no such key" in caplog.text


def _pass(exchange: Any) -> bool:
    exchange.send(exchange.forward().raw())
    return True


def test_call_when_another_is_stuck_then_it_never_runs_and_its_caller_gives_up() -> None:
    calls, go, ran = BoundedCalls(0.2, "test"), threading.Event(), []
    with pytest.raises(NoAnswer):
        calls.call(lambda: go.wait(30))
    assert calls.overdue
    with pytest.raises(NoAnswer):
        calls.call(lambda: ran.append(1))
    go.set()
    assert eventually(lambda: not calls.overdue)
    calls.patience_seconds = 30.0  # what is not stuck is answered, however slow the machine is
    assert calls.call(lambda: "answer") == "answer"
    assert ran == []
    with pytest.raises(ZeroDivisionError):
        calls.call(lambda: 1 // 0)
    calls.close()
    with pytest.raises(NoAnswer):
        calls.call(lambda: "closed")
