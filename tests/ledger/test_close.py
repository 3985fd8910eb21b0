"""Closing: accepted commands are answered, later ones are refused, and a forked child closes nothing of its parent."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ledger_sizer import Closed, Decision, Ledger
from tests.support.gates import Callers, Gated, keys, one
from tests.support.processes import Fleet
from tests.support.programs import settings_of
from tests.support.services import eventually


@pytest.fixture
def desk(database_url: str) -> Iterator[Gated]:
    with Gated(database_url) as desk:
        yield desk


def test_close_when_commands_wait_then_all_are_answered_and_later_ones_refused(desk: Gated) -> None:
    ledger = desk.open()
    callers = Callers(ledger)
    with desk.gate.closed(), ThreadPoolExecutor(1) as closer:
        callers.ask(*(one(f"key-{number}") for number in range(30)))
        closing = closer.submit(ledger.close)
        eventually(lambda: ledger._writer._closing)
        assert_refused(ledger)
        assert not closing.done(), "it has answers to give before it may end"
        desk.gate.open()
        closing.result(30)
    assert Counter(callers.outcomes().values()) == {"granted": 30}
    assert_refused(ledger)
    ledger.close()  # twice is harmless
    assert len(keys(desk.open())) == 30


def assert_refused(ledger: Ledger) -> None:
    """Check that every method refuses."""
    for ask in (
        lambda: ledger.run(one("late")),
        lambda: ledger.submit([one("late")]),
        lambda: ledger.submit([one("late")], atomic=True),
        lambda: asyncio.run(ledger.run_async(one("late"))),
    ):
        with pytest.raises(Closed, match="open it again"):
            ask()


def test_close_when_time_runs_out_then_the_waiting_get_closed_and_nothing_of_theirs_is_recorded(desk: Gated) -> None:
    ledger = desk.open(close_timeout_seconds=1)
    callers = Callers(ledger)
    with desk.gate.closed():
        callers.ask(one("in-hand"))
        desk.gate.wait_reached()
        callers.ask(one("waiting-0"), one("waiting-1"))
        ledger.close()
        desk.gate.open()
        assert callers.outcomes() == {"in-hand": "granted", "waiting-0": "closed", "waiting-1": "closed"}
    assert keys(desk.open()) == ["in-hand"]
    ledger._writer._thread.join(30)
    assert ledger._store._pooled is None, "its connection is left open"  # type: ignore[attr-defined]


async def test_close_when_called_on_the_event_loop_then_its_own_tasks_are_answered(
    desk: Gated,
) -> None:
    ledger = desk.open()
    tasks = [asyncio.ensure_future(ledger.run_async(one(f"key-{number}"))) for number in range(20)]
    await asyncio.sleep(0)  # all are accepted, none is in the queue or answered yet
    ledger.close()
    answers = await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert [answer.outcome for answer in answers] == ["granted"] * 20
    with pytest.raises(Closed):
        await ledger.run_async(one("late"))
    assert len(keys(desk.open())) == 20


def test_close_when_another_threads_event_loop_still_owes_its_commands_then_they_are_answered(
    desk: Gated,
) -> None:
    ledger = desk.open()
    asked, go_on = threading.Event(), threading.Event()

    async def ask() -> list[Decision]:
        tasks = [asyncio.ensure_future(ledger.run_async(one(f"key-{number}"))) for number in range(5)]
        await asyncio.sleep(0)
        asked.set()
        go_on.wait(30)  # the loop is busy: its commands are accepted but still in its outbox
        return await asyncio.gather(*tasks)

    with ThreadPoolExecutor(2) as threads:
        answers = threads.submit(asyncio.run, ask())
        asked.wait(30)
        closing = threads.submit(ledger.close)
        go_on.set()
        assert [answer.outcome for answer in answers.result(30)] == ["granted"] * 5
        closing.result(30)
    assert len(keys(desk.open())) == 5


@pytest.mark.slow
def test_fork_when_the_ledger_is_open_then_the_child_gets_closed_and_the_parent_goes_on(database_url: str) -> None:
    with Fleet("fork", database_url, [{}]) as fleet:
        before, *told, after = fleet.run()
    answers = {line["key"]: (line["outcome"], line["reason"]) for line in told}
    assert answers == {"child": ("error", "closed"), "parent": ("granted", None)}
    assert before == after, "what the child did must not end the parent's sessions"
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        assert keys(ledger) == ["warm-up", "parent"]


def test_fork_when_a_thread_held_the_queue_meanwhile_then_the_child_gets_closed_and_waits_for_nobody(
    desk: Gated,
) -> None:
    ledger = desk.open()
    ledger.run(one("parent"))
    answered = []

    def child() -> None:
        for call in (
            lambda: ledger.run(one("child")),
            ledger.exposure,
            lambda: asyncio.run(ledger.run_async(one("a"))),
        ):
            with pytest.raises(Closed, match="forked"):
                call()
            answered.append(call)
        assert ledger._writer.close(1)

    ledger._writer._pid -= 1  # as in a forked child: another process opened the ledger and has its threads
    with ThreadPoolExecutor(1) as threads, ledger._writer._lock:
        calling = threads.submit(child)
        try:
            calling.result(10)
        finally:
            ledger._writer._pid += 1
    assert len(answered) == 3


def test_close_when_an_event_loop_died_before_it_handed_its_command_over_then_nobody_waits_for_it(desk: Gated) -> None:
    ledger = desk.open(close_timeout_seconds=1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(ledger.run_async(one("orphan")))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert not task.done()
    assert ledger.run(one("key")).granted
    ledger.close()
    assert not ledger._writer._thread.is_alive(), "the writer waits for a command that can never arrive"
    assert keys(desk.open()) == ["key"]


@pytest.mark.parametrize(
    "read",
    [
        lambda ledger: ledger.exposure(),
        lambda ledger: ledger.portfolios(),
        lambda ledger: ledger.history(),
        lambda ledger: ledger.verify(),
        lambda ledger: ledger.sweep(),
        lambda ledger: ledger.reserve(key="what if", dry_run=True),
    ],
    ids=["exposure", "portfolios", "history", "verify", "sweep", "dry run"],
)
def test_read_when_the_ledger_is_closed_then_closed(desk: Gated, read: Callable[[Ledger], object]) -> None:
    """Otherwise a read would open a connection that nobody closes."""
    ledger = desk.open()
    ledger.run(one("key"))
    ledger.close()
    with pytest.raises(Closed, match="open it again"):
        read(ledger)
