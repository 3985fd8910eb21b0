"""The writer: group commit, a bounded queue, and isolation of commands in one batch."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from ledger_sizer import Adopt, Busy, Decision, LedgerError, Release, SetCap
from ledger_sizer.rules import decide
from tests.conftest import EngineKind
from tests.support.gates import CAP, ONE, Callers, Gated, count_commits, keys, one, wait_pending


@pytest.fixture
def desk(database_url: str) -> Iterator[Gated]:
    with Gated(database_url) as desk:
        yield desk


# Group commit.


def test_reserve_when_many_wait_then_one_commit_answers_them_all(
    desk: Gated, database_url: str, engine_kind: EngineKind
) -> None:
    ledger = desk.open()
    callers = Callers(ledger)
    with count_commits(ledger) as sizes, desk.gate.closed():
        callers.ask(one("first"))
        desk.gate.wait_reached()
        callers.ask(*(one(f"key-{number}") for number in range(40)))
        desk.gate.open()
        assert Counter(callers.outcomes().values()) == {"granted": 41}
        assert sizes == [1, 40]
    if engine_kind == "postgresql":
        # The server's view: the rows of one transaction have one transaction id.
        assert transactions_of_decisions(database_url) == 2
    assert len(keys(ledger)) == 41


def transactions_of_decisions(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        count = connection.execute(text("SELECT count(DISTINCT xmin::text) FROM decisions")).scalar_one()
    engine.dispose()
    return int(count)


async def test_reserve_when_coroutines_ask_in_one_tick_then_one_commit_answers_them_all(
    desk: Gated,
) -> None:
    ledger = desk.open()
    with count_commits(ledger) as sizes:
        answers = await asyncio.gather(*(ledger.run_async(one(f"key-{number}")) for number in range(200)))
        assert sizes == [200]
    assert [answer.seq for answer in answers] == list(range(1, 201)), "in the order they were asked"


def test_reserve_when_more_wait_than_a_batch_holds_then_it_is_split_and_a_group_stays_whole(desk: Gated) -> None:
    ledger = desk.open(batch_size_max=10)
    callers = Callers(ledger)
    with count_commits(ledger) as sizes, desk.gate.closed(), ThreadPoolExecutor(1) as thread:
        callers.ask(one("first"))
        desk.gate.wait_reached()
        callers.ask(*(one(f"key-{number}") for number in range(25)))
        group = thread.submit(ledger.submit, [one(f"group-{number}") for number in range(15)], atomic=True)
        wait_pending(ledger, 41)
        desk.gate.open()
        assert Counter(callers.outcomes().values()) == {"granted": 26}
        assert [answer.outcome for answer in group.result(30)] == ["granted"] * 15
        assert sizes == [1, 10, 10, 5, 15]


def test_submit_when_a_group_is_far_larger_than_a_socket_buffer_then_all_of_it_is_answered(desk: Gated) -> None:
    ledger = desk.open()
    for turn in range(3):
        tags = {f"dimension_{number}": f"{number:0>100}" for number in range(16)}
        answers = ledger.submit([one(f"key-{turn}-{number}", tags=tags) for number in range(150)], atomic=turn == 1)
        assert Counter(map(outcomes, answers)) == {"granted": 150}
    assert len(keys(ledger)) == 450


# A bounded queue.


def test_reserve_when_the_queue_is_full_then_busy_with_nothing_recorded(desk: Gated) -> None:
    ledger = desk.open(queue_size_max=4)
    callers = Callers(ledger)
    with desk.gate.closed():
        callers.ask(*(one(f"key-{number}") for number in range(4)))
        with pytest.raises(Busy, match="same key") as caught:
            ledger.run(one("too-many"))
        assert caught.value.retryable
        assert not caught.value.granted
        with pytest.raises(Busy, match="same key"):
            asyncio.run(ledger.run_async(one("too-many")))
        desk.gate.open()
        assert Counter(callers.outcomes().values()) == {"granted": 4}
    assert ledger.pending == 0
    assert "too-many" not in keys(ledger)
    assert ledger.run(one("too-many")).granted, "a refused key is free"


def test_submit_when_a_group_can_never_fit_the_queue_then_it_is_refused_at_once(
    desk: Gated,
) -> None:
    ledger = desk.open(queue_size_max=4)
    with pytest.raises(Busy, match="parts"):
        ledger.submit([one(f"key-{number}") for number in range(5)])
    assert ledger.submit([one(f"key-{number}") for number in range(4)])[3].granted


# Isolation within a batch.


# Observers and log handlers.


def full_disk(*_: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("crowd", [1, 20])
@pytest.mark.parametrize("who", ["observer", "handler"])
async def test_run_when_who_looks_on_fails_then_what_was_committed_is_answered_and_the_writer_goes_on(
    desk: Gated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, who: str, crowd: int
) -> None:
    ledger = desk.open()
    ledger.run(one("first"))
    caplog.set_level(logging.INFO, "ledger_sizer")
    if who == "observer":
        ledger.observe = full_disk
    else:
        monkeypatch.setattr(caplog.handler, "emit", full_disk)
    answers = await asyncio.wait_for(asyncio.gather(*(ledger.run_async(one(f"{n}")) for n in range(crowd))), 30)
    assert [(answer.outcome, answer.replayed) for answer in answers] == [("granted", False)] * crowd
    assert ledger.run(one("blocking")).granted
    assert keys(ledger) == ["first", *(f"{n}" for n in range(crowd)), "blocking"]


@pytest.mark.parametrize("warm_up", [0, 2], ids=["first", "later"])
async def test_run_when_a_rule_has_a_defect_then_only_its_command_fails(
    desk: Gated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, warm_up: int
) -> None:
    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setitem(decide._RULES, Adopt, defect)
    ledger = desk.open()
    warm = [f"warm-up-{number}" for number in range(warm_up)]
    for key in warm:
        await ledger.run_async(one(key))
    poison = Adopt(key="poison", quantity=ONE, price=ONE)
    asked = [one("before"), poison, one("after"), SetCap(key="cap", scope="venue=a", cap=ONE)]
    groups = [
        *(ledger.submit_async([command]) for command in asked),
        ledger.submit_async([one("with-it"), poison], atomic=True),
        ledger.submit_async([one("beside-it"), poison]),
    ]
    answers = await asyncio.gather(*groups, return_exceptions=True)
    assert [outcomes(answer) for answer in answers] == [
        ["granted"],
        ["internal_error"],
        ["granted"],
        ["applied"],
        "internal_error",
        ["granted", "internal_error"],
    ]
    assert keys(ledger) == [*warm, "before", "after", "cap", "beside-it"]
    events = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    failed = [event for event in events if event["event"] == "ledger.command_failed"]
    assert {(event["command"], event["key"], event["portfolio"]) for event in failed} == {("adopt", "poison", "main")}
    assert all(isinstance(event["exc_info"], ZeroDivisionError) for event in failed)
    monkeypatch.undo()
    assert (await ledger.run_async(poison)).outcome == "applied", "its key is free: nothing was recorded for it"


def outcomes(answer: object) -> object:
    """Return each answer's outcome or error code; one code where the group raised."""
    if isinstance(answer, list):
        return [outcomes(one) for one in answer]
    if isinstance(answer, LedgerError):
        return answer.code
    assert isinstance(answer, Decision), answer
    return answer.outcome


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 1, 2), (4,)], ids=["apart", "in groups", "in one group"])
async def test_run_when_the_database_refuses_a_command_then_only_that_one_fails(
    desk: Gated, database_url: str, sizes: tuple[int, ...]
) -> None:
    ledger = desk.open()
    good = ledger.run(one("good", tags={"venue": "good"})).position_id
    bad = ledger.run(one("bad", tags={"venue": "bad"})).position_id
    assert good is not None
    assert bad is not None
    tamper(database_url, "UPDATE scopes SET held_e8 = 7 WHERE scope = 'venue=bad'")
    release_bad = Release(key="release-bad", position_id=bad)
    asked: Iterator[Any] = iter(
        [one("before"), release_bad, Release(key="release-good", position_id=good), one("after")]
    )
    groups = [list(islice(asked, size)) for size in sizes]
    answers = await asyncio.gather(*map(ledger.submit_async, groups), return_exceptions=True)
    assert [one for answer in map(outcomes, answers) for one in (answer if isinstance(answer, list) else [answer])] == [
        "granted",
        "internal_error",
        "applied",
        "granted",
    ]
    recorded = [decision.key for decision in ledger.history(ascending=True)]
    assert recorded == ["good", "bad", "before", "release-good", "after"]
    assert not ledger.verify().ok, "the edited counter is found, not repaired"
    tamper(database_url, "UPDATE scopes SET held_e8 = 100000000 WHERE scope = 'venue=bad'")
    assert (await ledger.run_async(release_bad)).outcome == "applied", "nothing was recorded for its key"
    assert ledger.verify().ok


def tamper(url: str, statement: str) -> None:
    """Edit a row without the ledger."""
    engine = create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount == 1
    engine.dispose()


async def test_cancel_when_a_task_waits_for_its_answer_then_the_command_happens_and_others_are_unharmed(
    desk: Gated,
) -> None:
    ledger = desk.open()
    with desk.gate.closed():
        tasks = [asyncio.ensure_future(ledger.run_async(one(f"key-{number}"))) for number in range(3)]
        while ledger.pending < 3:
            await asyncio.sleep(0)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
    assert [(await tasks[number]).granted for number in (0, 2)] == [True, True]
    again = await ledger.run_async(one("key-1"))
    assert again.granted
    assert again.replayed, "cancelling the caller did not undo what it had asked"
    assert len(keys(ledger)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("warm_up", [0, 2], ids=["first", "later"])
def test_reserve_when_another_session_keeps_the_lock_then_busy_after_the_bound_and_never_a_denial(
    desk: Gated, database_url: str, engine_kind: EngineKind, warm_up: int
) -> None:
    desk.open().set_cap(key="cap", cap=CAP)
    ledger = desk.open(busy_timeout_seconds=1, retries_max=1)
    warm = [f"warm-up-{number}" for number in range(warm_up)]
    for key in warm:
        ledger.run(one(key))
    lock = "BEGIN IMMEDIATE" if engine_kind == "sqlite" else "SELECT id FROM portfolios FOR UPDATE"
    engine = create_engine(database_url)
    with engine.connect() as other:
        other.exec_driver_sql(lock)
        with pytest.raises(Busy, match="same key") as caught:
            ledger.run(one("key"))
        assert caught.value.retryable
        assert not caught.value.granted
        assert ledger.exposure().held == warm_up, "reads never wait for the writer"
        other.rollback()
    engine.dispose()
    decision = ledger.run(one("key"))
    assert decision.granted
    assert not decision.replayed
    assert keys(ledger) == ["cap", *warm, "key"]


def test_reserve_when_the_lock_is_released_in_time_then_it_is_granted(
    desk: Gated, database_url: str, engine_kind: EngineKind
) -> None:
    ledger = desk.open()
    ledger.set_cap(key="cap", cap=CAP)
    lock = "BEGIN IMMEDIATE" if engine_kind == "sqlite" else "SELECT id FROM portfolios FOR UPDATE"
    engine = create_engine(database_url)
    callers = Callers(ledger)
    with engine.connect() as other:
        other.exec_driver_sql(lock)
        callers.ask(*(one(f"key-{number}") for number in range(10)))
        assert not any(answer.done() for answer in callers.answers.values())
        other.rollback()
    engine.dispose()
    assert Counter(callers.outcomes().values()) == {"granted": 10}
    assert len(keys(ledger)) == 11
