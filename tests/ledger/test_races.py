"""Many callers, one cap: threads, coroutines and separate processes, on both databases.

Each test checks that the cap is filled exactly, every caller has an answer, and the ledger verifies afterwards.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event

from ledger_sizer import Busy, Decision, Ledger, Release, Reserve
from tests.conftest import EngineKind, NewDatabase
from tests.lockstep.auditor import Auditor
from tests.support.clock import FakeClock
from tests.support.processes import Bot, Fleet, Line
from tests.support.programs import settings_of

CAP = Decimal(500)
TEN = Decimal(10)


@contextmanager
def opened(url: str, **settings: Any) -> Iterator[Ledger]:
    with Ledger.open(url, settings=settings_of(**settings)) as ledger:
        yield ledger


def audited(ledger: Ledger, portfolio: str = "main", cap: Decimal = CAP) -> Auditor:
    """Check every invariant from outside, and run the ledger's own verification."""
    auditor = Auditor(portfolio, cap)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return auditor


def reserve_ten(ledger: Ledger, key: str) -> Decision:
    return ledger.reserve(key=key, available_balance=TEN, ttl_seconds=3600)


def test_reserve_when_threads_race_for_one_cap_then_it_is_filled_exactly(database_url: str) -> None:
    with opened(database_url) as ledger, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: reserve_ten(ledger, f"key-{number}"), range(320)))
        assert Counter(one.reason for one in answers) == {None: 50, "cap_exceeded": 270}
        assert sorted(one.seq or 0 for one in answers) == list(range(1, 321))
        assert ledger.exposure().exposure == CAP
        audited(ledger)


def test_reserve_when_threads_race_through_two_ledgers_then_the_cap_is_filled_exactly(database_url: str) -> None:
    with opened(database_url) as one, opened(database_url) as two, ThreadPoolExecutor(8) as threads:
        pair = (one, two)
        answers = list(threads.map(lambda number: reserve_ten(pair[number % 2], f"key-{number}"), range(160)))
        assert Counter(one.reason for one in answers) == {None: 50, "cap_exceeded": 110}
        audited(one)


async def test_reserve_when_many_coroutines_race_for_one_cap_then_it_is_filled_exactly(database_url: str) -> None:
    with opened(database_url) as ledger:
        ask = [
            ledger.reserve_async(key=f"key-{number}", available_balance=TEN, ttl_seconds=3600) for number in range(2000)
        ]
        answers = await asyncio.gather(*ask)
        assert Counter(one.reason for one in answers) == {None: 50, "cap_exceeded": 1950}
        audited(ledger)


def test_reserve_when_event_loops_in_threads_race_then_the_cap_is_filled_exactly(database_url: str) -> None:
    with opened(database_url) as ledger, ThreadPoolExecutor(4) as threads:

        async def ask(name: int) -> list[Decision]:
            asked = [
                ledger.reserve_async(key=f"loop-{name}-{number}", available_balance=TEN, ttl_seconds=3600)
                for number in range(100)
            ]
            return await asyncio.gather(*asked)

        answers = [one for loop in threads.map(lambda name: asyncio.run(ask(name)), range(4)) for one in loop]
        assert Counter(one.reason for one in answers) == {None: 50, "cap_exceeded": 350}
        audited(ledger)


@pytest.mark.slow
def test_reserve_when_processes_race_for_one_cap_then_it_is_filled_exactly(database_url: str) -> None:
    given = [{"name": f"bot-{number}", "count": 40} for number in range(8)]
    with Fleet("reserve_many", database_url, given) as fleet:
        answers = fleet.run()
    assert Counter((one["outcome"], one["reason"]) for one in answers) == {
        ("granted", None): 50,
        ("denied", "cap_exceeded"): 270,
    }
    with opened(database_url) as ledger:
        auditor = audited(ledger)
        assert ledger.exposure().held == CAP
        assert recorded(auditor) == said(answers)


def said(answers: list[Line]) -> dict[str, tuple[int, str]]:
    """Return seq and hash by key, as answered to the bots."""
    return {one["key"]: (one["seq"], one["hash"]) for one in answers if one["outcome"] != "error"}


def recorded(auditor: Auditor) -> dict[str, tuple[int | None, str | None]]:
    """Return seq and hash by key, as recorded in the ledger."""
    return {key: (one.seq, one.hash) for key, one in auditor.by_key.items()}


@pytest.mark.slow
def test_live_when_processes_mix_all_verbs_then_counters_equal_their_positions(database_url: str) -> None:
    given = [{"name": f"bot-{seed}", "seed": seed, "count": 60, "venue": "ab"[seed % 2]} for seed in range(4)]
    with opened(database_url) as ledger:
        ledger.set_cap(key="cap", scope="venue=a", cap=Decimal(60))
        with Fleet("trade_randomly", database_url, given) as fleet:
            answers = fleet.run()
        assert {one["outcome"] for one in answers} == {"granted", "denied", "applied"}
        auditor = audited(ledger)
        cap = auditor.by_key.pop("cap")
        assert cap.seq == 1
        assert recorded(auditor) == said(answers)


@pytest.mark.slow
def test_reserve_when_processes_send_the_same_keys_then_each_has_one_effect(database_url: str) -> None:
    with Fleet("same_key", database_url, [{"count": 20}] * 4) as fleet:
        answers = fleet.run()
    assert len(answers) == 80
    assert len({one["hash"] for one in answers}) == 20, "all are told the same decision of a key"
    assert Counter(one["replayed"] for one in answers) == {False: 20, True: 60}
    with opened(database_url) as ledger:
        assert recorded(audited(ledger)) == said(answers)


@pytest.mark.slow
def test_submit_when_processes_name_two_portfolios_in_either_order_then_none_waits_for_ever(database_url: str) -> None:
    orders = [["a", "b"], ["b", "a"]] * 2
    given = [{"name": f"bot-{n}", "count": 25, "portfolios": order} for n, order in enumerate(orders)]
    with Fleet("two_portfolios", database_url, given) as fleet:
        answers = fleet.run()
    assert Counter(one["outcome"] for one in answers) == {"granted": 200}
    with opened(database_url) as ledger:
        for portfolio in ("a", "b"):
            assert len(audited(ledger, portfolio).decisions) == 100


@pytest.mark.slow
def test_open_when_processes_meet_a_new_sqlite_file_then_all_of_them_get_a_ledger(new_database: NewDatabase) -> None:
    url = new_database("sqlite", migrated=False)
    with Fleet("reserve_many", url, [{"name": f"bot-{number}", "count": 2} for number in range(6)]) as fleet:
        assert Counter(one["outcome"] for one in fleet.run()) == {"granted": 12}
    with opened(url) as ledger:
        audited(ledger)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "warm_up"),
    [
        ("before", 0),
        ("between", 0),
        ("before", 3),
    ],
    ids=["with the lock", "between write and commit", "without a lock"],
)
def test_commit_when_the_process_froze_and_others_filled_the_cap_then_its_late_decision_is_no_grant(
    new_database: NewDatabase, where: str, warm_up: int
) -> None:
    """A bot stopped after it decided. If it holds a lock, others wait at most as long as the server lets it keep it."""
    url = new_database("postgresql")
    settings = {"cap_usd": 10 + 10 * warm_up}
    given = {"where": where, "warm_up": warm_up, "settings": settings}
    with Fleet("pause", url, [given]) as fleet, opened(url, **settings) as ledger:
        fleet.release()
        (bot,) = fleet.bots
        assert bot.read() == {"unlocked": bool(warm_up)}
        bot.wait_stopped()
        assert reserve_ten(ledger, "ours").granted, "a frozen process must not stop the others"
        late = thawed(bot)
        assert (late["outcome"], late["reason"]) == ("denied", "cap_exceeded")
        decision = audited(ledger, cap=Decimal(settings["cap_usd"])).by_key["late"]
        assert (late["seq"], late["hash"]) == (decision.seq, decision.hash)


def thawed(bot: Bot) -> Line:
    """Resume a stopped bot, and return its answer."""
    bot.signal(signal.SIGCONT)
    bot.go()
    late = bot.read()
    assert late is not None
    assert bot.end() == 0
    return late


@pytest.mark.slow
def test_reserve_when_another_process_froze_with_the_sqlite_write_lock_then_busy_and_later_the_truth(
    new_database: NewDatabase,
) -> None:
    url = new_database("sqlite")
    impatient = {"cap_usd": 10, "busy_timeout_seconds": 1, "retries_max": 0}
    given = {"where": "before", "warm_up": 0, "settings": {"cap_usd": 10}}
    with Fleet("pause", url, [given]) as fleet, opened(url, **impatient) as ledger:
        fleet.release()
        (bot,) = fleet.bots
        assert bot.read() == {"unlocked": False}
        bot.wait_stopped()
        with pytest.raises(Busy):
            reserve_ten(ledger, "ours")
        assert thawed(bot)["outcome"] == "granted", "it held the lock, so nobody can have come before it"
        assert reserve_ten(ledger, "ours").reason == "cap_exceeded"
        assert audited(ledger, cap=TEN).by_key.keys() == {"late", "ours"}


def test_sweep_when_another_ledger_made_the_hold_then_it_is_freed(
    database_url: str, engine_kind: EngineKind, clock: FakeClock
) -> None:
    """The cached state of this ledger's last commit must not hide what another ledger wrote since."""
    settings = settings_of()
    with (
        Ledger.open(database_url, settings=settings, clock=clock) as ours,
        Ledger.open(database_url, settings=settings, clock=clock) as theirs,
    ):
        for number in range(5):
            position = ours.reserve(key=f"key-{number}").position_id
            assert position is not None
            ours.release(key=f"release-{number}", position_id=position)
        assert theirs.reserve(key="theirs", available_balance=TEN, ttl_seconds=5).granted
        clock.advance(5)
        assert ours.sweep() == 1
        assert ours.exposure().held == 0
        audited(ours)


def test_confirm_when_two_ledgers_take_turns_then_each_sees_what_the_other_did(database_url: str) -> None:
    with opened(database_url) as one, opened(database_url) as two:
        for number in range(20):
            here, there = (one, two) if number % 2 else (two, one)
            position = reserve_ten(here, f"key-{number}").position_id
            assert position is not None
            there.confirm(key=f"fill-{number}", position_id=position, quantity=Decimal(1), price=TEN)
            if number % 3:
                here.release(key=f"exit-{number}", position_id=position)
        left = [Release(key=f"last-{p.number}", position_id=p.position_id) for p in one.positions(state="open")]
        assert len(left) == 7
        two.submit(left)
        assert one.exposure().exposure == 0
        audited(one)


def test_submit_when_atomic_groups_race_then_each_happens_whole_or_not_at_all(
    database_url: str,
) -> None:
    with opened(database_url) as ledger, ThreadPoolExecutor(4) as threads:

        def ask(number: int) -> list[Any]:
            group = [Reserve(key=f"{number}-{part}", available_balance=Decimal(30), ttl_seconds=60) for part in "abc"]
            return ledger.submit(group, atomic=True)

        groups = list(threads.map(ask, range(20)))
        outcomes = Counter(tuple(one.outcome for one in group) for group in groups)
        assert outcomes == {("granted",) * 3: 5, ("denied",) * 3: 15}
        assert ledger.exposure().held == 450, "the last 50 are too little for a whole group"
        audited(ledger)


def test_read_when_others_are_writing_then_each_read_is_one_moment(database_url: str) -> None:
    with opened(database_url) as ours, opened(database_url) as theirs, ThreadPoolExecutor(2) as threads:

        def write(ledger: Ledger) -> None:
            for number in range(60):
                position = reserve_ten(ledger, f"{id(ledger)}-{number}").position_id
                if position is not None and number % 2:
                    ledger.confirm(
                        key=f"{id(ledger)}-fill-{number}", position_id=position, quantity=Decimal(1), price=TEN
                    )
                elif position is not None:
                    ledger.release(key=f"{id(ledger)}-exit-{number}", position_id=position)

        reserve_ten(ours, "first")
        writers = [threads.submit(write, ledger) for ledger in (ours, theirs)]
        reads = 0
        while reads < 5 or not all(writer.done() for writer in writers):
            assert ours.verify().findings == ()
            assert theirs.exposure().exposure <= CAP
            asked = ours.reserve(key="what if", available_balance=TEN, dry_run=True)
            assert asked.granted == (asked.exposure_before < CAP)
            reads += 1
        for writer in writers:
            writer.result()
        audited(ours)


def test_reserve_when_holds_are_freed_while_a_dry_run_reads_then_it_still_sees_one_moment(
    database_url: str, clock: FakeClock
) -> None:
    settings = settings_of()
    with (
        Ledger.open(database_url, settings=settings, clock=clock) as ours,
        Ledger.open(database_url, settings=settings, clock=clock) as theirs,
    ):
        assert ours.reserve(key="held", available_balance=TEN, ttl_seconds=5).granted
        clock.advance(5)
        freed: list[int] = []

        def free(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "FROM positions" in statement and not freed:
                freed.append(theirs.sweep())

        event.listen(ours._read_engine, "after_cursor_execute", free)
        asked = ours.reserve(key="what if", available_balance=TEN, dry_run=True)
        assert freed == [1], "the holds were to be freed between two of its queries"
        assert (asked.outcome, asked.exposure_before, asked.budget) == ("granted", Decimal(0), TEN)
        audited(theirs)
