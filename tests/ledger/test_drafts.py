"""Drafts: batches decided while the previous one is being stored, and what happens when that store fails."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from ledger_sizer import Confirm, Decision, Extend, Ledger, LedgerError, Release, Reserve, SetCap, Unavailable
from ledger_sizer.ledger.committer import Draft
from ledger_sizer.ledger.writer import Answer
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.rules.batch import Group
from tests.conftest import EngineKind, NewDatabase
from tests.support.clock import FakeClock
from tests.support.gates import keys, one, watch_commits
from tests.support.programs import settings_of


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with Ledger.open(database_url, settings=settings_of(), clock=FakeClock()) as ledger:
        for number in range(3):  # until its portfolio is cached
            ledger.run(one(f"warm-up-{number}"))
        yield ledger


WARM = [f"warm-up-{number}" for number in range(3)]


def batch(*commands: AnyCommand) -> list[Group]:
    return [Group((command,)) for command in commands]


def drafted(ledger: Ledger, groups: Sequence[Group]) -> Draft:
    draft = ledger._committer.draft(groups)
    assert draft is not None, "it was to be decided on what is remembered"
    return draft


def decisions(answers: Sequence[Answer]) -> list[Decision]:
    found = [result for answer in answers if not isinstance(answer, LedgerError) for result in answer]
    assert all(isinstance(result, Decision) for result in found), found
    return [result for result in found if isinstance(result, Decision)]


def test_answer_when_two_drafts_wait_then_each_is_stored_as_it_was_decided(ledger: Ledger) -> None:
    first, second = batch(one("a"), one("b")), batch(one("c"))
    drafts = [drafted(ledger, first), drafted(ledger, second)]
    assert keys_stored(ledger) == WARM, "a draft is not stored"
    answers = [ledger._committer.answer(groups, draft) for groups, draft in zip((first, second), drafts, strict=True)]
    assert [decision.seq for part in answers for decision in decisions(part)] == [4, 5, 6]
    assert keys(ledger) == [*WARM, "a", "b", "c"]


def keys_stored(ledger: Ledger) -> list[str]:
    return [decision.key for decision in reversed(ledger.history(limit=100).items)]


def test_answer_when_somebody_else_wrote_then_every_waiting_draft_is_decided_again(
    ledger: Ledger, database_url: str
) -> None:
    first, second = batch(one("a")), batch(one("b"), one("c"))
    drafts = [drafted(ledger, first), drafted(ledger, second)]
    with Ledger.open(database_url, settings=settings_of(), clock=FakeClock()) as other:
        other.set_cap(key="less", cap=Decimal(5))
    answers = [ledger._committer.answer(groups, draft) for groups, draft in zip((first, second), drafts, strict=True)]
    outcomes = [(decision.seq, decision.outcome) for part in answers for decision in decisions(part)]
    assert outcomes == [(5, "granted"), (6, "granted"), (7, "denied")], "the drafts knew a cap of 500"
    assert keys_stored(ledger) == [*WARM, "less", "a", "b", "c"]
    assert ledger.verify().ok


def test_draft_when_the_batch_before_was_decided_again_then_it_knows_that(ledger: Ledger, database_url: str) -> None:
    first = batch(one("a"))
    draft = drafted(ledger, first)
    with Ledger.open(database_url, settings=settings_of(), clock=FakeClock()) as other:
        other.run(one("other"))
    ledger._committer.answer(first, draft)
    assert ledger._committer.draft(batch(one("b"))) is None, "others write too: it must look first"
    assert [d.seq for d in decisions(ledger._committer.answer(batch(one("b"))))] == [6]
    assert keys(ledger) == [*WARM, "other", "a", "b"]


def test_answer_when_a_draft_repeats_a_key_of_the_one_before_then_it_is_answered_with_that_decision(
    ledger: Ledger,
) -> None:
    first, second = batch(one("a")), batch(one("a"), one("b"))
    drafts = [drafted(ledger, first), drafted(ledger, second)]
    answers = [ledger._committer.answer(groups, draft) for groups, draft in zip((first, second), drafts, strict=True)]
    assert [(d.seq, d.replayed) for part in answers for d in decisions(part)] == [(4, False), (4, True), (5, False)]
    assert keys(ledger) == [*WARM, "a", "b"]


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_answer_when_the_outcome_of_a_draft_is_unknown_then_its_keys_settle_it(
    ledger: Ledger, engine_kind: EngineKind, stored: bool
) -> None:
    first, second = batch(one("a")), batch(one("b"))
    drafts = [drafted(ledger, first), drafted(ledger, second)]
    with connection_lost(ledger, engine_kind, stored=stored):
        answers = [
            ledger._committer.answer(groups, draft) for groups, draft in zip((first, second), drafts, strict=True)
        ]
    assert [(d.seq, d.replayed) for part in answers for d in decisions(part)] == [(4, False), (5, False)]
    assert keys(ledger) == [*WARM, "a", "b"], "nothing was lost or doubled"


@pytest.mark.parametrize("fault", ["refused", "conflict"])
def test_answer_when_an_unknown_outcome_is_followed_by_another_fault_then_it_is_not_said_that_nothing_was_recorded(
    ledger: Ledger, engine_kind: EngineKind, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit succeeded, its answer got lost, and the database stays down: only a retry with the key can tell."""
    monkeypatch.setattr(ledger._committer, "_retries_max", 1)
    monkeypatch.setattr("ledger_sizer.ledger.committer.time.sleep", lambda _: None)

    def begin(*_: Any) -> Any:
        broken.setattr(ledger._store, "fault", lambda *_, **__: fault)
        raise RuntimeError("and now this")

    with connection_lost(ledger, engine_kind, stored=True), monkeypatch.context() as broken:
        broken.setattr(ledger._store, "begin", begin)
        (answer,) = ledger._committer.answer(batch(one("a")))
    assert isinstance(answer, Unavailable), answer
    assert answer.retryable
    assert "recorded" not in str(answer)
    again = ledger.run(one("a"))
    assert (again.seq, again.replayed) == (4, True)


@contextmanager
def connection_lost(ledger: Ledger, engine_kind: EngineKind, *, stored: bool) -> Iterator[None]:
    """Make the next write fail as a broken connection: before the database got it, or before its answer came."""
    store: Any = ledger._store
    write = store.write
    broken = psycopg.OperationalError("gone") if engine_kind == "postgresql" else sqlite3.OperationalError("disk I/O")

    def failing(changes: Any, *, locked: bool) -> None:
        store.write = write
        if stored:
            write(changes, locked=locked)
        raise broken

    store.write = failing
    yield
    assert store.write is write, "nothing was written meanwhile"


@pytest.mark.parametrize("seed", range(6))
def test_answer_when_every_batch_is_drafted_then_the_chain_is_the_same_hash_for_hash(
    new_database: NewDatabase, engine_kind: EngineKind, seed: int
) -> None:
    chance = random.Random(seed)
    plain, ahead = (
        Ledger.open(new_database(engine_kind), settings=settings_of(60), clock=FakeClock()) for _ in range(2)
    )
    with plain, ahead:
        drafts = 0
        waiting: tuple[list[Group], Draft | None] | None = None
        for number in range(60):
            kinds = KINDS if chance.random() < 0.4 else ["reserve"]
            groups = batch(*(random_command(chance, kinds, number, place) for place in range(chance.randint(1, 12))))
            plain._committer.answer(groups)
            draft = ahead._committer.draft(groups)
            drafts += draft is not None
            if waiting is not None:
                ahead._committer.answer(*waiting)
            waiting = (groups, draft)
            if draft is None:
                ahead._committer.answer(*waiting)
                waiting = None
        if waiting is not None:
            ahead._committer.answer(*waiting)
        assert drafts > 10, "this tests drafts"
        assert ahead.heads() == plain.heads()
        assert ahead.exposure() == plain.exposure()
        assert ahead.verify().ok


KINDS = ["reserve"] * 12 + ["release"] * 6 + ["confirm", "extend", "set_cap"]


def random_command(chance: random.Random, kinds: Sequence[str], number: int, place: int) -> AnyCommand:
    """Return a random command, about positions that may not exist, sometimes with an earlier key."""
    again = chance.random() < 0.02 and number > 0
    key = f"{number - 1 if again else number}-{place}"
    about = f"main-{chance.randint(1, 4 * number + 1)}"
    kind = chance.choice(kinds)
    if kind == "release":
        return Release(key=key, position_id=about)
    if kind == "confirm":
        return Confirm(key=key, position_id=about, quantity=Decimal("0.5"), price=Decimal(3))
    if kind == "extend":
        return Extend(key=key, position_id=about, ttl_seconds=7200)
    if kind == "set_cap":
        return SetCap(key=key, cap=Decimal(chance.randint(20, 200)))
    tags = {"symbol": chance.choice(["BTC", "ETH"])}
    return Reserve(key=key, available_balance=Decimal(chance.randint(1, 3)), ttl_seconds=3600, tags=tags)


# The writer: one thread stores while the other decides.


async def trade(ledger: Ledger, name: str, pairs: int) -> int:
    granted = 0
    for number in range(pairs):
        decision = await ledger.run_async(one(f"{name}/{number}"))
        if decision.granted and decision.position_id is not None:
            granted += 1
            await ledger.release_async(key=f"{name}/{number}/end", position_id=decision.position_id)
    return granted


async def test_run_when_a_crowd_stays_then_half_is_decided_while_the_other_half_is_stored(database_url: str) -> None:
    seen: list[tuple[str, int]] = []

    def note(size: int) -> None:
        seen.append((threading.current_thread().name, size))

    with Ledger.open(database_url, settings=settings_of()) as ledger, watch_commits(ledger, note):
        granted = await asyncio.gather(*(trade(ledger, f"bot-{number}", 12) for number in range(64)))
        assert granted == [12] * 64
        by_store_thread = [size for thread, size in seen if thread.endswith("-store")]
        assert len(by_store_thread) > len(seen) / 2, "most were drafts"
        assert sorted(by_store_thread)[len(by_store_thread) // 2] in range(16, 49), "about half of the crowd each"
        assert len(keys(ledger)) == 64 * 12 * 2


async def test_run_when_two_ledgers_serve_a_crowd_each_then_all_are_answered_and_the_books_add_up(
    database_url: str,
) -> None:
    settings = settings_of(30, retries_max=100)
    with Ledger.open(database_url, settings=settings) as one_, Ledger.open(database_url, settings=settings) as other:
        granted = await asyncio.gather(
            *(
                trade(ledger, f"{name}-{number}", 5)
                for name, ledger in (("l", one_), ("r", other))
                for number in range(32)
            )
        )
        assert sum(granted) > 30, "the cap came free again and again"
        exposure = one_.exposure()
        assert (exposure.held, exposure.overage) == (0, 0)
        report = one_.verify()
        assert report.ok, report.findings
        assert report.decisions == 64 * 5 + sum(granted)


def test_close_when_drafts_are_on_their_way_then_all_accepted_are_answered(database_url: str) -> None:
    async def use() -> list[Decision]:
        ledger = Ledger.open(database_url, settings=settings_of())
        await asyncio.gather(*(trade(ledger, f"bot-{number}", 3) for number in range(32)))
        last = [asyncio.ensure_future(ledger.run_async(one(f"last-{number}"))) for number in range(32)]
        await asyncio.sleep(0)
        await asyncio.to_thread(ledger.close)
        return await asyncio.wait_for(asyncio.gather(*last), 30)

    assert all(answer.granted for answer in asyncio.run(use()))
    with Ledger.open(database_url, settings=settings_of()) as ledger:
        assert ledger.exposure().held == 32
        assert len(keys(ledger)) == 32 * 3 * 2 + 32
