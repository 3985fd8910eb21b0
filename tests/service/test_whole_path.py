"""The whole system under load: 64 clients, two replicas on one PostgreSQL, both kinds of process killed.

One replica is killed, then the database, while all clients keep sending. Afterwards each cap is filled exactly, every
answer is recorded as the client received it, and nothing is recorded twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer import Decision, Ledger
from ledger_sizer.client import AsyncLedgerClient, Patience
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.storage.database import upgrade
from tests.lockstep.auditor import Auditor
from tests.support.databases import PostgresServer
from tests.support.services import Process

CLIENTS = 64
BUDGET = Decimal(10)
CAP = 300 * BUDGET
VENUE_CAP = 60 * BUDGET
FIRST_CAP = Decimal(5000)  # the cap of a new portfolio until it is set
VENUES = ("bybit", "okx", "binance")
# Each client makes one reservation a round: together they ask for several times what the caps allow.
ROUNDS = 20
QUICK = Patience(attempts_max=3, give_up_seconds=2, pause_seconds_max=0.2)
ANSWER_SECONDS_MAX = 40
KILL_REPLICA_AFTER = CLIENTS * 3
KILL_DATABASE_AFTER = CLIENTS * 8

Ask = Callable[[AsyncLedgerClient], Awaitable[Decision]]


@pytest.fixture
def replicas(durable_postgres: PostgresServer, tmp_path: Path) -> Iterator[list[Process]]:
    """Two `ledger-sizer serve` processes on one database."""
    upgrade(durable_postgres.url)
    with Ledger.open(durable_postgres.url) as ledger:
        ledger.set_cap(key="whole", cap=CAP)
        ledger.set_cap(key="okx", cap=VENUE_CAP, scope="venue=okx")
    with ExitStack() as stack:
        started = [Process(durable_postgres.url, tmp_path) for _ in range(2)]
        for replica in started:
            stack.callback(replica.close)
        yield [replica.ready() for replica in started]


class Crowd:
    """The answers that the clients received, by key."""

    def __init__(self) -> None:
        self.granted: dict[str, Decision] = {}
        self.denied: dict[str, Decision] = {}
        self.released: dict[str, Decision] = {}
        self.errors: list[LedgerError] = []
        self.working = CLIENTS

    @property
    def answers(self) -> dict[str, Decision]:
        """All answers by key."""
        return {**self.granted, **self.denied, **self.released}

    async def reached(self, count: int) -> None:
        """Wait until there are this many answers."""
        while len(self.answers) < count:
            assert self.working, f"all clients are done, with {len(self.answers)} answers"
            await asyncio.sleep(0.01)


async def answer(crowd: Crowd, clients: list[AsyncLedgerClient], ask: Ask) -> Decision:
    """Send the same key to the replicas in turn until one answers."""
    end = time.monotonic() + ANSWER_SECONDS_MAX
    while True:
        for client in clients:
            try:
                return await ask(client)
            except LedgerError as error:
                crowd.errors.append(error)
                if not error.retryable or time.monotonic() > end:
                    raise


async def trade(crowd: Crowd, number: int, urls: list[str]) -> None:
    """Run one bot: reserve, release some, and use the other replica where one does not answer."""
    async with AsyncExitStack() as stack:
        own_first = urls if number % 2 else urls[::-1]
        clients = [await stack.enter_async_context(AsyncLedgerClient(url, patience=QUICK)) for url in own_first]
        for turn in range(ROUNDS):
            key, venue = f"bot-{number}/{turn}", VENUES[(number + turn) % len(VENUES)]
            asked = {"key": key, "tags": {"venue": venue}, "available_balance": BUDGET, "ttl_seconds": 3600}
            decision = await answer(crowd, clients, lambda client, asked=asked: client.reserve(**asked))  # type: ignore[misc]
            (crowd.granted if decision.granted else crowd.denied)[key] = decision
            # Only the first half of the rounds releases, so that the last rounds fill the cap. Nothing is released on
            # okx, so that its cap must be filled exactly too.
            if decision.granted and venue != "okx" and turn < ROUNDS // 2:
                asked = {"key": f"{key}/back", "position_id": decision.position_id}
                given = await answer(crowd, clients, lambda client, asked=asked: client.release(**asked))  # type: ignore[misc]
                crowd.released[given.key] = given
    crowd.working -= 1


async def kill_under_load(crowd: Crowd, replica: Process, server: PostgresServer) -> None:
    """Kill one replica under load, later kill and restart the database."""
    await crowd.reached(KILL_REPLICA_AFTER)
    replica.child.kill()
    await crowd.reached(KILL_DATABASE_AFTER)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def test_trade_when_a_replica_and_the_database_are_killed_then_nothing_told_is_lost_and_caps_are_exact(
    replicas: list[Process], durable_postgres: PostgresServer
) -> None:
    crowd = Crowd()
    urls = [replica.url for replica in replicas]
    async with asyncio.TaskGroup() as group:
        group.create_task(kill_under_load(crowd, replicas[0], durable_postgres))
        for number in range(CLIENTS):
            group.create_task(trade(crowd, number, urls))
    assert crowd.errors, "nobody noticed that a replica and the database died"
    assert len(crowd.granted) + len(crowd.denied) == CLIENTS * ROUNDS
    assert replicas[1].stop() == 0

    with Ledger.open(durable_postgres.url) as ledger:
        auditor = Auditor("main", FIRST_CAP)
        exposure = auditor.check(ledger)
        report = ledger.verify()
    assert report.findings == ()
    # The caps are filled to the cent, by exactly the grants that the clients received.
    assert exposure.held == CAP
    assert exposure.scope("venue=okx").held == VENUE_CAP
    assert (len(crowd.granted) - len(crowd.released)) * BUDGET == CAP
    # Each answer is recorded as received, and nothing else: no key has two decisions.
    recorded = {key: one for key, one in auditor.by_key.items() if key.startswith("bot-")}
    assert {key: (one.seq, one.hash) for key, one in recorded.items()} == {
        key: (one.seq, one.hash) for key, one in crowd.answers.items()
    }
    positions = [one.position_id for one in crowd.granted.values()]
    assert len(set(positions)) == len(positions), "two grants share a position"
    assert {one.reason for one in crowd.denied.values()} == {"cap_exceeded"}
