"""A ledger in memory: every read works on it, an edit is found, threads and loops share it, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ledger_sizer import Closed, KeyReused, Ledger, LedgerSettings, Reserve
from ledger_sizer.config import AppSettings
from ledger_sizer.rules.batch import Group
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified

D = Decimal

FILL = {"quantity": D(2), "price": D(50)}


@pytest.fixture
def memory(clock: FakeClock) -> Iterator[Ledger]:
    with Ledger.in_memory(clock=clock, client="sweep") as opened:
        yield opened


def _one_life(ledger: Ledger, name: str) -> None:
    held = ledger.reserve(key=name, tags=TAGS, amount_usd=D(100))
    ledger.confirm(key=f"{name}/fill", position_id=held.position_id or "", **FILL)


def test_in_memory_when_nothing_was_written_then_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger.in_memory() as ledger:
        assert ledger.reserve(key="1", amount_usd=D(1)).granted
        assert ledger.verify().ok
    assert not [*tmp_path.iterdir()]


def test_read_when_decisions_are_new_then_every_read_has_them(memory: Ledger) -> None:
    _one_life(memory, "a")
    assert memory.exposure().open == 100
    last = memory.reserve(key="b", tags=TAGS, amount_usd=D(30))
    assert (memory.exposure().held, memory.exposure(as_of=2).held) == (30, 0)
    assert [one.state for one in memory.positions()] == ["open", "held"]
    assert [one.seq for one in memory.history()] == [3, 2, 1]
    assert memory.lookup("b") == last
    assert "bound by amount_usd" in str(memory.explain(3))
    assert memory.heads()["main"] == (3, last.hash)
    assert b"".join(memory.export()).count(b"\n") == 3
    assert [one.asset for one in memory.net().assets] == ["BTC"]
    assert memory.overview().portfolios[0].whole.held == 30
    assert memory.portfolios() == ["main"]
    assert memory.verify().ok
    dry = memory.reserve(key="dry", amount_usd=D(5000), dry_run=True)
    assert dry.hash is None
    assert memory.release_all(key="all", tags={})[0].actor == "embedded:sweep"


def test_reserve_when_its_key_was_used_then_it_is_the_same_decision_and_another_request_is_refused(
    memory: Ledger,
) -> None:
    first = memory.reserve(key="1", amount_usd=D(10))
    memory.exposure()  # it is stored by now
    for _ in range(2):
        again = memory.reserve(key="1", amount_usd=D(10))
        assert (again.replayed, again.record) == (True, first.record)
        with pytest.raises(KeyReused):
            memory.reserve(key="1", amount_usd=D(11))
        memory.reserve(key="2", amount_usd=D(10))
    assert memory.exposure().seq == 2


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        ("UPDATE scopes SET open_e8 = open_e8 - 1 WHERE scope = 'symbol=BTC'", "symbol=BTC"),
        ("DROP TRIGGER decisions_form", "trigger decisions_form"),
    ],
)
def test_verify_when_somebody_edited_the_database_for_reads_then_it_is_found(
    memory: Ledger, edit: str, found: str
) -> None:
    _one_life(memory, "a")
    assert memory.verify().ok
    with memory._write_engine.begin() as connection:
        connection.execute(text(edit))
    assert found in str(memory.verify().findings)
    _one_life(memory, "b")  # what is decided later hides nothing
    assert found in str(memory.verify().findings)


def test_expire_when_holds_ended_then_each_is_recorded_once(memory: Ledger, clock: FakeClock) -> None:
    for number in range(5):
        memory.reserve(key=f"{number}", amount_usd=D(10), ttl_seconds=10 + number % 3)
        memory.exposure()
    memory.extend(key="longer", position_id="main-1", ttl_seconds=100)
    clock.advance(11)
    assert memory.reserve(key="next", amount_usd=D(10)).headroom_before == 5000 - 20
    clock.advance(2)
    assert memory.sweep() == 1
    assert [one.state for one in memory.positions()].count("expired") == 4
    assert memory.verify().ok


def test_reserve_when_the_desk_is_halted_then_no_remembered_state_grants(memory: Ledger) -> None:
    assert memory.reserve(key="1", amount_usd=D(10)).granted
    memory.halt(key="stop", portfolio="*")
    denied = memory.reserve(key="2", amount_usd=D(10))
    assert (denied.reason, denied.binding) == ("halted", "desk")
    memory.resume(key="go", portfolio="*")
    assert memory.reserve(key="3", amount_usd=D(10)).granted
    assert memory.verify().ok


def test_reserve_when_threads_and_a_loop_write_and_read_then_the_cap_is_filled_exactly(clock: FakeClock) -> None:
    with Ledger.in_memory(clock=clock) as ledger:

        def work(name: int) -> int:
            granted = 0
            for number in range(40):
                granted += ledger.reserve(key=f"{name}/{number}", amount_usd=D(50)).granted
                if number % 8 == 0:
                    assert ledger.exposure().exposure <= 5000
            return granted

        async def work_together() -> int:
            keys = [f"loop/{number}" for number in range(40)]
            one_by_one = [await ledger.reserve_async(key=key, amount_usd=D(50)) for key in keys[:5]]
            at_once = await asyncio.gather(*[ledger.reserve_async(key=key, amount_usd=D(50)) for key in keys[5:]])
            return sum(one.granted for one in [*one_by_one, *at_once])

        with ThreadPoolExecutor(5) as pool:
            jobs = [pool.submit(work, name) for name in range(4)]
            jobs.append(pool.submit(lambda: asyncio.run(work_together())))
            assert sum(job.result() for job in jobs) == 100
        assert ledger.exposure().exposure == 5000
        assert ledger.verify().ok


def test_read_when_another_read_of_its_thread_is_open_then_it_sees_the_same_and_does_not_wait(memory: Ledger) -> None:
    _one_life(memory, "a")
    seen = []

    def progress(done: int, total: int) -> None:
        memory.reserve(key=f"during-{done}", amount_usd=D(1))
        seen.append(memory.exposure().seq)

    assert memory.verify(progress=progress).ok
    assert set(seen) == {2}
    assert memory.exposure().seq > 2


def test_reserve_when_a_long_read_makes_another_read_wait_then_it_waits_for_neither(memory: Ledger) -> None:
    _one_life(memory, "a")
    began, may_end = threading.Event(), threading.Event()

    def progress(_done: int, _total: int) -> None:
        began.set()
        assert may_end.wait(20)

    with ThreadPoolExecutor(2) as pool:
        verifying = pool.submit(memory.verify, progress=progress)
        assert began.wait(20)
        memory.reserve(key="b", amount_usd=D(1))
        reading = pool.submit(lambda: memory.exposure().seq)
        for number in range(50):
            memory.reserve(key=f"{number}", amount_usd=D(1))
        assert not reading.done()
        may_end.set()
        assert (verifying.result(20).ok, reading.result(20)) == (True, 53)


def test_write_when_a_call_was_interrupted_in_the_middle_then_its_outcome_is_whole(
    memory: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may end a call after its batch is committed and before the books have all of it."""
    from ledger_sizer.storage import memory as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("_put", "_add_expiry", "add_scope"):
        with monkeypatch.context() as patch:
            patch.setattr(module._Book, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                memory.reserve(key=name, tags={"symbol": name}, amount_usd=D(10))
        settled = memory.reserve(key=name, tags={"symbol": name}, amount_usd=D(10))
        assert (settled.granted, settled.replayed) == (True, True)
    assert (memory.exposure().held, memory.exposure().seq) == (30, 3)
    assert memory.verify().ok


class InterruptedConnection(sqlite3.Connection):
    """Sends Ctrl-C as a COMMIT ends, once it is armed."""

    armed = False

    def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *given)
        if sql == "COMMIT" and InterruptedConnection.armed:
            InterruptedConnection.armed = False
            os.kill(os.getpid(), signal.SIGINT)
        return cursor


def test_read_when_ctrl_c_comes_as_its_commit_ends_then_later_reads_work(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=InterruptedConnection))
    with Ledger.in_memory(clock=clock) as ledger:
        for number in range(2):
            ledger.reserve(key=f"{number}", amount_usd=D(10))
            InterruptedConnection.armed = True
            with pytest.raises(KeyboardInterrupt):
                ledger.exposure()
        ledger.reserve(key="2", amount_usd=D(10))
        assert (ledger.exposure().held, ledger.verify().ok) == (30, True)


async def test_settle_when_bots_settle_in_one_tick_of_a_loop_then_each_finds_what_it_has(memory: Ledger) -> None:
    a, b = {"BTC/USDT": (D("0.01"), D(50_000))}, {"ETH/USDT": (D(1), D(5))}
    memory.set_cap(key="cap", scope="bot=a", cap=D(600))
    memory.settle({"bot": "a"}, a)
    again, _, adopted = await asyncio.gather(
        memory.settle_async({"bot": "a"}, a),
        memory.reserve_async(key="x", tags={"bot": "a"}, amount_usd=D(1)),
        memory.settle_async({"bot": "b"}, b),
    )
    assert (again, [one.command for one in adopted]) == ([], ["adopt"])
    scope = memory.exposure().scope("bot=a")
    assert (scope.cap, scope.open, scope.held) == (600, 500, 1)
    assert_verified(memory)


def test_call_when_it_is_closed_or_the_process_forked_then_it_is_refused(memory: Ledger) -> None:
    memory.reserve(key="1", amount_usd=D(10))
    child = os.fork()
    if child == 0:
        try:
            memory.reserve(key="2", amount_usd=D(10))
        except Closed:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    memory.close()
    memory.close()
    for call in (lambda: memory.reserve(key="2", amount_usd=D(10)), memory.exposure, memory.verify):
        with pytest.raises(Closed):
            call()


async def test_close_when_coroutines_wait_then_they_are_answered_first(clock: FakeClock) -> None:
    ledger = Ledger.in_memory(clock=clock)
    waiting = [ledger._writer.submit_async(_group(n)) for n in range(3)]
    ledger.close()
    assert [len(await one) for one in waiting] == [1, 1, 1]
    with pytest.raises(Closed):
        await ledger.reserve_async(key="x", amount_usd=D(1))


def _group(number: int) -> Group:
    return Group((Reserve(key=f"{number}", amount_usd=D(10)),))


def test_in_memory_when_many_are_open_then_each_is_its_own_and_no_thread_is_left(clock: FakeClock) -> None:
    threads = threading.active_count()
    settings = AppSettings(ledger=LedgerSettings(denial_repeat_seconds=0))
    ledgers = [Ledger.in_memory(clock=clock, settings=settings) for _ in range(20)]
    for number, ledger in enumerate(ledgers):
        ledger.reserve(key="same", amount_usd=D(number + 1))
    assert [ledger.exposure().held for ledger in ledgers] == [number + 1 for number in range(20)]
    assert threading.active_count() == threads
    for ledger in ledgers:
        ledger.close()
