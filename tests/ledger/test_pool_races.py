"""Many callers at pools with guarantees: each pool gets what is guaranteed to it, and the rest is everybody's.

Every decision is replayed from outside: no grant went above a cap or a default, or took what was kept for others, as
these were set at that moment. Caps and guarantees move meanwhile, processes are killed.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Decision, InvalidRequest, Ledger, LedgerError, WrongState
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from tests.conftest import NewDatabase
from tests.lockstep.auditor import Auditor
from tests.support.pool_bots import move_limits, trade_in_pools
from tests.support.processes import Fleet, Line
from tests.support.programs import settings_of
from tests.support.services import Process, served

D = Decimal
TEN = D(10)
CAP = D(2000)
SURE = {"a": 300, "b": 200, "c": 100}
"""What is guaranteed to each bot, USD; 1400 are everybody's."""
SETTINGS = settings_of(CAP)
CALLERS = 64


def opened(url: str) -> Ledger:
    return Ledger.open(url, settings=SETTINGS)


def set_guarantees(ledger: Ledger) -> None:
    for bot, usd in SURE.items():
        ledger.set_cap(key=f"sure-{bot}", scope=f"bot={bot}", guarantee=D(usd))


def callers(seed: int, **asked: int) -> list[tuple[str, str]]:
    """Return (key, bot) of so many callers of each bot, in random order."""
    found = [(f"{bot}-{number}", bot) for bot, count in asked.items() for number in range(count)]
    random.Random(seed).shuffle(found)
    return found


def request(key: str, bot: str) -> dict[str, Any]:
    return {"key": key, "tags": {"bot": bot}, "amount_usd": TEN, "ttl_seconds": 3600}


def audited(ledger: Ledger) -> Auditor:
    auditor = Auditor("main", CAP)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return auditor


JUST_THEIRS = {"a": 30, "b": 20, "c": 10, "x": 440}
"""500 callers: those of the pools ask for just what is guaranteed, the others for three times what is left."""


def require_exact(ledger: Ledger, answers: Sequence[Decision]) -> None:
    """Check that each pool has all of its guarantee, and the others all that is not guaranteed."""
    granted = Counter(one.key[0] for one in answers if one.granted)
    assert granted == {"a": 30, "b": 20, "c": 10, "x": 140}
    denied = {
        (one.reason, one.binding.partition(":")[0] if one.binding else None) for one in answers if not one.granted
    }
    assert denied <= {("cap_exceeded", "guarantee"), ("cap_exceeded", "portfolio")}
    assert ledger.exposure().exposure == CAP
    audited(ledger)


async def test_reserve_when_500_tasks_race_through_two_ledgers_then_each_pool_gets_its_guarantee(
    database_url: str,
) -> None:
    with opened(database_url) as one, opened(database_url) as two:
        set_guarantees(one)
        asked = [
            (one, two)[number % 2].reserve_async(**request(*caller))
            for number, caller in enumerate(callers(1, **JUST_THEIRS))
        ]
        require_exact(one, await asyncio.gather(*asked))


def test_reserve_when_500_callers_in_threads_want_more_than_there_is_then_the_rest_is_shared(
    database_url: str,
) -> None:
    with opened(database_url) as ledger, ThreadPoolExecutor(CALLERS) as threads:
        set_guarantees(ledger)
        asked = callers(2, a=125, b=125, c=125, x=125)
        answers = list(threads.map(lambda caller: ledger.reserve(**request(*caller)), asked))
        granted = Counter(one.key[0] for one in answers if one.granted)
        assert granted.total() * TEN == ledger.exposure().exposure == CAP
        assert all(granted[bot] * TEN >= usd for bot, usd in SURE.items()), granted
        assert granted["x"] * TEN <= CAP - sum(SURE.values())
        audited(ledger)


def test_reserve_when_outsiders_come_first_then_they_get_nothing_of_what_is_kept(database_url: str) -> None:
    with opened(database_url) as one, opened(database_url) as two, ThreadPoolExecutor(CALLERS) as threads:
        set_guarantees(one)
        pair = (one, two)

        def race(**asked: int) -> Counter[str]:
            found = enumerate(callers(3, **asked))
            answers = list(threads.map(lambda each: pair[each[0] % 2].reserve(**request(*each[1])), found))
            return Counter(answer.key[0] for answer in answers if answer.granted)

        assert race(x=200) == {"x": 140}
        assert race(a=100, b=100, c=100) == {"a": 30, "b": 20, "c": 10}
        audited(one)


async def crowd(urls: Sequence[str]) -> list[Decision]:
    """Let 500 callers ask replicas over HTTP, 64 at a time."""
    queue = callers(4, **JUST_THEIRS)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncLedgerClient(url)) for url in urls]

        async def ask(number: int) -> list[Decision]:
            client, answers = clients[number % len(clients)], []
            while queue:
                answers.append(await client.reserve(**request(*queue.pop())))
            return answers

        return [one for answers in await asyncio.gather(*map(ask, range(CALLERS))) for one in answers]


def test_reserve_when_500_callers_race_through_two_replicas_then_each_pool_gets_its_guarantee(
    new_database: NewDatabase,
) -> None:
    url = new_database("postgresql")
    with served(url, settings=SETTINGS) as one, served(url, settings=SETTINGS) as two:
        set_guarantees(one.ledger)
        require_exact(one.ledger, asyncio.run(crowd([one.url, two.url])))


@pytest.mark.extended
def test_reserve_when_500_callers_race_through_two_processes_then_each_pool_gets_its_guarantee(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    url = new_database("postgresql")
    with opened(url) as ledger:
        ledger.set_cap(key="cap", cap=CAP)  # the processes have settings of their own
        set_guarantees(ledger)
        replicas = [Process(url, tmp_path) for _ in range(2)]
        try:
            require_exact(ledger, asyncio.run(crowd([replica.ready().url for replica in replicas])))
        finally:
            for replica in replicas:
                replica.close()


# --- limits move under load --------------------------------------------------------------------------------------


ROUNDS_MAX = 10


def met_all_kinds(decisions: Sequence[Decision]) -> bool:
    """Tell whether the load met what it is to meet: grants, moves, limits that changed, and both bounds."""
    seen = {(one.command, one.outcome) for one in decisions}
    bounds = {(one.binding or "").partition(":")[0] for one in decisions if one.command == "reserve"}
    return (
        {("reserve", "granted"), ("retag", "granted"), ("set_cap", "applied")} <= seen
        and "guarantee" in bounds
        and any("=" in bound for bound in bounds)
    )


def live_under_moving_limits(ledger: Ledger, faces: Sequence[Ledger | LedgerClient], seed: int) -> None:
    """Let six bots trade and two admins move limits, in threads, through these ledgers or clients in turn.

    What they meet depends on how the threads interleave, so rounds follow until they met everything.
    """

    def live(turn: int, number: int) -> None:
        def send(verb: str, key: str, **arguments: Any) -> Decision | LedgerError:
            try:
                answer: Decision = getattr(faces[number % len(faces)], verb)(key=key, **arguments)
            except (InvalidRequest, WrongState) as error:  # guarantees above the cap, a fill of what is closed
                return error
            return answer

        act = move_limits if number < 2 else trade_in_pools
        act(send, f"{turn}-{number}", (seed * 100 + turn) * 100 + number, 60)

    for turn in range(ROUNDS_MAX):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(live, [turn] * 8, range(8)))
        if met_all_kinds(audited(ledger).decisions):
            return
    pytest.fail(f"{ROUNDS_MAX} rounds of trading did not meet every kind of decision")


@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.extended) for more in range(1, 8))])
def test_trade_when_caps_and_guarantees_move_under_load_then_no_grant_breaks_one(database_url: str, seed: int) -> None:
    with opened(database_url) as one, opened(database_url) as two:
        live_under_moving_limits(one, (one, two), seed)


@pytest.mark.extended
def test_trade_when_limits_move_under_load_through_two_replicas_then_no_grant_breaks_one(
    new_database: NewDatabase,
) -> None:
    url = new_database("postgresql")
    with (
        served(url, settings=SETTINGS) as one,
        served(url, settings=SETTINGS) as two,
        LedgerClient(one.url) as first,
        LedgerClient(two.url) as second,
    ):
        live_under_moving_limits(one.ledger, (first, second), 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(more, marks=pytest.mark.extended) for more in (1, 2))])
def test_kill_when_guarantees_are_moved_and_used_then_none_is_broken_and_nothing_told_is_lost(
    database_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    said: list[Line] = []
    for generation in range(2):
        given = [
            {"name": f"g{generation}b{number}", "seed": 10 * seed + number, "count": 100_000, "admin": number == 0,
             "settings": {"cap_usd": int(CAP)}}
            for number in range(3)
        ]  # fmt: skip
        with Fleet("live_in_pools", database_url, given) as fleet:
            fleet.release()
            # Killed at a random point of its work, after some answers.
            said += [line for _ in range(chance.randrange(20, 60)) if (line := fleet.bots[0].read()) is not None]
            time.sleep(chance.random() / 100)
            for bot in fleet.bots:
                bot.signal(signal.SIGKILL)
            said += [line for bot in fleet.bots for line in bot.lines()]
            assert [bot.end() for bot in fleet.bots] == [-signal.SIGKILL] * 3
    with opened(database_url) as ledger:
        recorded = audited(ledger).by_key
        for line in said:
            if line["outcome"] != "error":
                found = recorded[line["key"]]
                assert (found.seq, found.hash, found.outcome) == (line["seq"], line["hash"], line["outcome"])
