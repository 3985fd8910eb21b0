"""The writer: groups of commits, a bounded queue, an orderly end, and neighbours that cannot hurt each other."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from ledger_sizer import (
    Adopt,
    Busy,
    Closed,
    Decision,
    InternalError,
    Ledger,
    LedgerError,
    Release,
    Reserve,
    SetCap,
    rules,
)
from tests.auditor import Auditor
from tests.bots import settings_of
from tests.conftest import EngineKind
from tests.fleet import Fleet
from tests.gates import GatedClock, wait_pending

CAP = Decimal(500)
ONE = Decimal(1)


@pytest.fixture
def gate() -> GatedClock:
    """The clock of the ledgers in these tests: while it is closed, their writers wait."""
    return GatedClock()


@pytest.fixture
def make_ledger(database_url: str, gate: GatedClock) -> Iterator[Callable[..., Ledger]]:
    """Open ledgers on one database, with whatever settings; they are closed at the end."""
    opened: list[Ledger] = []

    def make(**settings: Any) -> Ledger:
        opened.append(Ledger.open(database_url, settings=settings_of(**settings), clock=gate))
        return opened[-1]

    yield make
    gate.open()
    for ledger in opened:
        ledger.close()


def one(key: str, **request: Any) -> Reserve:
    """A reservation of one dollar."""
    return Reserve(key=key, available_balance=ONE, ttl_seconds=3600, **request)


def keys(ledger: Ledger) -> list[str]:
    """All keys that were recorded, in order; and the books add up."""
    auditor = Auditor("main", CAP)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return [decision.key for decision in auditor.decisions]


@contextmanager
def commits_counted(ledger: Ledger) -> Iterator[list[int]]:
    """The number of decisions in each commit, as the store is asked for it."""
    store: Any = ledger._store
    commit, sizes = store.commit, []

    def counted(states: Any) -> None:
        states = list(states)
        sizes.append(sum(len(state.sealed) for state in states))
        commit(states)

    store.commit = counted
    try:
        yield sizes
    finally:
        store.commit = commit


class Callers:
    """Threads that each wait for one answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(64)
        self.answers: dict[str, Future[Decision]] = {}

    def ask(self, *commands: Any) -> None:
        """Ask from one thread each, and wait until all are accepted."""
        expected = self._ledger.pending + len(commands)
        for command in commands:
            self.answers[command.key] = self._threads.submit(self._ledger.run, command)
        wait_pending(self._ledger, expected)

    def outcomes(self) -> dict[str, str]:
        """How each was answered: the outcome, or the error's code."""
        told = {}
        for key, answer in self.answers.items():
            error = answer.exception(30)
            assert error is None or isinstance(error, LedgerError), error
            told[key] = answer.result().outcome if error is None else error.code
        return told


# Group commit.


def test_reserve_when_many_wait_then_one_commit_answers_them_all(
    make_ledger: Callable[..., Ledger], gate: GatedClock, database_url: str, engine_kind: EngineKind
) -> None:
    ledger = make_ledger()
    callers = Callers(ledger)
    with commits_counted(ledger) as sizes, gate.closed():
        callers.ask(one("first"))
        gate.wait_reached()
        callers.ask(*(one(f"key-{number}") for number in range(40)))
        gate.open()
        assert Counter(callers.outcomes().values()) == {"granted": 41}
        assert sizes == [1, 40]
    if engine_kind == "postgresql":
        # What the server saw: the rows of one transaction carry one transaction id.
        assert transactions_of_decisions(database_url) == 2
    assert len(keys(ledger)) == 41


def transactions_of_decisions(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        count = connection.execute(text("SELECT count(DISTINCT xmin::text) FROM decisions")).scalar_one()
    engine.dispose()
    return int(count)


async def test_reserve_when_coroutines_ask_in_one_tick_then_one_commit_answers_them_all(
    make_ledger: Callable[..., Ledger],
) -> None:
    ledger = make_ledger()
    with commits_counted(ledger) as sizes:
        answers = await asyncio.gather(*(ledger.run_async(one(f"key-{number}")) for number in range(200)))
        assert sizes == [200]
    assert [answer.seq for answer in answers] == list(range(1, 201)), "in the order they were asked"


def test_reserve_when_more_wait_than_a_batch_holds_then_it_is_split_and_a_group_stays_whole(
    make_ledger: Callable[..., Ledger], gate: GatedClock
) -> None:
    ledger = make_ledger(batch_size_max=10)
    callers = Callers(ledger)
    with commits_counted(ledger) as sizes, gate.closed(), ThreadPoolExecutor(1) as thread:
        callers.ask(one("first"))
        gate.wait_reached()
        callers.ask(*(one(f"key-{number}") for number in range(25)))
        group = thread.submit(ledger.submit, [one(f"group-{number}") for number in range(15)], atomic=True)
        wait_pending(ledger, 41)
        gate.open()
        assert Counter(callers.outcomes().values()) == {"granted": 26}
        assert [answer.outcome for answer in group.result(30)] == ["granted"] * 15
        assert sizes == [1, 10, 10, 5, 15]


# A bounded queue.


def test_reserve_when_the_queue_is_full_then_busy_with_nothing_recorded(
    make_ledger: Callable[..., Ledger], gate: GatedClock
) -> None:
    ledger = make_ledger(queue_size_max=4)
    callers = Callers(ledger)
    with gate.closed():
        callers.ask(*(one(f"key-{number}") for number in range(4)))
        with pytest.raises(Busy, match="same key") as caught:
            ledger.run(one("too-many"))
        assert caught.value.retryable
        assert not caught.value.granted
        with pytest.raises(Busy, match="same key"):
            asyncio.run(ledger.run_async(one("too-many")))
        gate.open()
        assert Counter(callers.outcomes().values()) == {"granted": 4}
    assert ledger.pending == 0
    assert "too-many" not in keys(ledger)
    assert ledger.run(one("too-many")).granted, "a refused key is free"


def test_submit_when_a_group_can_never_fit_the_queue_then_it_is_refused_at_once(
    make_ledger: Callable[..., Ledger],
) -> None:
    ledger = make_ledger(queue_size_max=4)
    with pytest.raises(Busy, match="parts"):
        ledger.submit([one(f"key-{number}") for number in range(5)])
    assert ledger.submit([one(f"key-{number}") for number in range(4)])[3].granted


# An orderly end.


def test_close_when_commands_wait_then_all_are_answered_and_later_ones_refused(
    make_ledger: Callable[..., Ledger], gate: GatedClock
) -> None:
    ledger = make_ledger()
    callers = Callers(ledger)
    with gate.closed(), ThreadPoolExecutor(1) as closer:
        callers.ask(*(one(f"key-{number}") for number in range(30)))
        closing = closer.submit(ledger.close)
        while not closing.running():
            pass
        refused_from_now_on(ledger)
        assert not closing.done(), "it has answers to give before it may end"
        gate.open()
        closing.result(30)
    assert Counter(callers.outcomes().values()) == {"granted": 30}
    refused_from_now_on(ledger)
    ledger.close()  # twice is harmless
    assert len(keys(make_ledger())) == 30


def refused_from_now_on(ledger: Ledger) -> None:
    """Every way in is shut. A command that still slips in while the door closes must be answered, so ask until not."""
    late = 0
    while True:
        try:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(ledger.run, one(f"late-{late}")).result(0.2)
        except Closed:
            break
        late += 1
    for ask in (lambda: ledger.submit([one("late")]), lambda: asyncio.run(ledger.run_async(one("late")))):
        with pytest.raises(Closed, match="open it again"):
            ask()


def test_close_when_time_runs_out_then_the_waiting_get_closed_and_nothing_of_theirs_is_recorded(
    make_ledger: Callable[..., Ledger], gate: GatedClock
) -> None:
    ledger = make_ledger(close_timeout_seconds=1)
    callers = Callers(ledger)
    with gate.closed():
        callers.ask(one("in-hand"))
        gate.wait_reached()
        callers.ask(one("waiting-0"), one("waiting-1"))
        ledger.close()
        gate.open()
        assert callers.outcomes() == {"in-hand": "granted", "waiting-0": "closed", "waiting-1": "closed"}
    assert keys(make_ledger()) == ["in-hand"]


async def test_close_when_called_on_the_event_loop_then_its_own_tasks_are_answered(
    make_ledger: Callable[..., Ledger],
) -> None:
    ledger = make_ledger()
    tasks = [asyncio.ensure_future(ledger.run_async(one(f"key-{number}"))) for number in range(20)]
    await asyncio.sleep(0)  # all have asked, none was handed over or answered yet
    ledger.close()
    answers = await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert [answer.outcome for answer in answers] == ["granted"] * 20
    with pytest.raises(Closed):
        await ledger.run_async(one("late"))
    assert len(keys(make_ledger())) == 20


def test_close_when_another_threads_event_loop_still_owes_its_commands_then_they_are_answered(
    make_ledger: Callable[..., Ledger],
) -> None:
    ledger = make_ledger()
    asked, go_on = threading.Event(), threading.Event()

    async def ask() -> list[Decision]:
        tasks = [asyncio.ensure_future(ledger.run_async(one(f"key-{number}"))) for number in range(5)]
        await asyncio.sleep(0)
        asked.set()
        go_on.wait(30)  # a loop that is busy with something else, its commands accepted but not handed over
        return await asyncio.gather(*tasks)

    with ThreadPoolExecutor(2) as threads:
        answers = threads.submit(asyncio.run, ask())
        asked.wait(30)
        closing = threads.submit(ledger.close)
        go_on.set()
        assert [answer.outcome for answer in answers.result(30)] == ["granted"] * 5
        closing.result(30)
    assert len(keys(make_ledger())) == 5


@pytest.mark.slow
def test_fork_when_the_ledger_is_open_then_the_child_gets_closed_and_the_parent_goes_on(database_url: str) -> None:
    with Fleet("fork", database_url, [{}]) as fleet:
        told = {line["key"]: (line["outcome"], line["reason"]) for line in fleet.run()}
    assert told == {"child": ("error", "closed"), "parent": ("granted", None)}
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        assert keys(ledger) == ["parent"]


# Neighbours.


@pytest.mark.parametrize("warm_up", [0, 2], ids=["first", "later"])
async def test_run_when_a_rule_has_a_defect_then_only_its_command_fails(
    make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch, warm_up: int
) -> None:
    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setitem(rules._RULES, Adopt, defect)  # type: ignore[arg-type]
    ledger = make_ledger()
    warm = [f"warm-up-{number}" for number in range(warm_up)]
    for key in warm:
        await ledger.run_async(one(key))
    poison = Adopt(key="poison", quantity=ONE, price=ONE)
    asked = [one("before"), poison, one("after"), SetCap(key="cap", scope="venue=a", cap=ONE)]
    answers = await asyncio.gather(*map(ledger.run_async, asked), return_exceptions=True)
    group = await asyncio.gather(
        ledger.submit_async([one("with-it"), poison], atomic=True),
        ledger.submit_async([one("beside-it"), poison]),
        return_exceptions=True,
    )
    assert isinstance(answers[1], InternalError)
    assert [answer.outcome for answer in (answers[0], *answers[2:])] == ["granted", "granted", "applied"]  # type: ignore[union-attr]
    assert isinstance(group[0], InternalError)
    beside, failed = group[1]  # type: ignore[misc]
    assert beside.granted
    assert isinstance(failed, InternalError)
    assert keys(ledger) == [*warm, "before", "after", "cap", "beside-it"]
    monkeypatch.undo()
    assert (await ledger.run_async(poison)).outcome == "applied", "its key is free: nothing was recorded for it"


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "in groups"])
async def test_run_when_the_database_refuses_one_group_then_only_that_one_fails(
    make_ledger: Callable[..., Ledger], database_url: str, apart: bool
) -> None:
    ledger = make_ledger()
    good = ledger.run(one("good", tags={"venue": "good"})).position_id
    bad = ledger.run(one("bad", tags={"venue": "bad"})).position_id
    assert good is not None
    assert bad is not None
    tamper(database_url, "UPDATE scopes SET held_e8 = 7 WHERE scope = 'venue=bad'")
    asked: list[Any] = [
        one("before"),
        Release(key="release-bad", position_id=bad),
        Release(key="release-good", position_id=good),
        one("after"),
    ]
    groups = [[command] for command in asked] if apart else [asked[:1], asked[1:2], asked[2:]]
    answers = await asyncio.gather(*(ledger.submit_async(group) for group in groups), return_exceptions=True)
    flat = [one for answer in answers for one in (answer if isinstance(answer, list) else [answer])]
    assert isinstance(flat[1], InternalError), flat[1]
    assert [flat[number].outcome for number in (0, 2, 3)] == ["granted", "applied", "granted"]
    recorded = [decision.key for decision in ledger.history(ascending=True)]
    assert recorded == ["good", "bad", "before", "release-good", "after"]
    assert not ledger.verify().ok, "the edited counter is found, not repaired"
    tamper(database_url, "UPDATE scopes SET held_e8 = 100000000 WHERE scope = 'venue=bad'")
    assert (await ledger.run_async(asked[1])).outcome == "applied"
    assert ledger.verify().ok


def tamper(url: str, statement: str) -> None:
    """Edit a row behind the ledger's back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount == 1
    engine.dispose()


async def test_cancel_when_a_task_waits_for_its_answer_then_the_command_happens_and_others_are_unharmed(
    make_ledger: Callable[..., Ledger], gate: GatedClock
) -> None:
    ledger = make_ledger()
    with gate.closed():
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
    make_ledger: Callable[..., Ledger], database_url: str, engine_kind: EngineKind, warm_up: int
) -> None:
    ledger = make_ledger(busy_timeout_seconds=1, retries_max=1)
    ledger.set_cap(key="cap", cap=CAP)
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
    make_ledger: Callable[..., Ledger], database_url: str, engine_kind: EngineKind
) -> None:
    ledger = make_ledger()
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
