"""Two API keys use the same idempotency keys at once, through two replicas of the service on one database."""

from __future__ import annotations

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer import Decision, KeyReused, Ledger, Reserve
from ledger_sizer.client import LedgerClient, Patience
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.conftest import EngineKind
from tests.support.ledgers import assert_verified
from tests.support.services import Process

CLIENTS = ("one", "two", "both", "both")
"""The API keys, by their client. The last two are of one client, so they share idempotency keys."""

KEYS = 120
SENDERS = 8
BATCH = 4
BLOCKS = KEYS // BATCH
WAIT_SECONDS = 120
PATIENT = Patience(attempts_max=50, give_up_seconds=60, pause_seconds_max=0.2)


@pytest.mark.slow
def test_reserve_when_clients_use_the_same_keys_under_load_then_each_key_has_one_owner_and_one_hold(
    database_url: str, engine_kind: EngineKind, tmp_path: Path
) -> None:
    engine = make_engine(database_url)
    made = [create_key(engine, f"{name} {n}", "trade", client=name) for n, name in enumerate(CLIENTS)]
    engine.dispose()
    with Ledger.open(database_url) as ledger:
        ledger.set_cap(key="cap", cap=Decimal(10_000_000))
    replicas = 2 if engine_kind == "postgresql" else 1
    answers: dict[str, list[tuple[int, Decision | LedgerError]]] = defaultdict(list)
    noting = threading.Lock()
    turns = threading.Barrier(SENDERS, timeout=WAIT_SECONDS)

    with ExitStack() as stack:
        services = [Process(database_url, tmp_path) for _ in range(replicas)]
        for service in services:
            stack.callback(service.close)
            service.ready()

        def send(number: int) -> None:
            owner = number % len(made)
            service = services[(number // len(made)) % replicas]
            with LedgerClient(service.url, made[owner].token, patience=PATIENT) as client:
                for turn in range(BLOCKS):
                    # Each API key is first at one block, so that each client owns keys. At the other blocks all meet.
                    block = (turn + owner) % len(made) if turn < len(made) else turn
                    asks = [Reserve(key=f"{block}-{n}", available_balance=Decimal(1)) for n in range(BATCH)]
                    turns.wait()
                    found = client.submit(asks) if number % 2 else [_ask(client, ask) for ask in asks]
                    with noting:
                        for ask, answer in zip(asks, found, strict=True):
                            answers[ask.key].append((owner, answer))

        with ThreadPoolExecutor(SENDERS) as pool:
            list(pool.map(send, range(SENDERS)))
        for service in services:
            assert service.stop() == 0

    with Ledger.open(database_url) as ledger:
        recorded = {one.key: one for one in ledger.history(limit=1000) if one.command == "reserve"}
        assert len(recorded) == len(answers) == KEYS
        assert ledger.exposure().scope("portfolio").held == KEYS, "one hold of 1 USD for each key"
        for key, told in answers.items():
            decision = recorded[key]
            assert len(told) == SENDERS
            for owner, answer in told:
                mine = CLIENTS[owner] == decision.client
                assert isinstance(answer, Decision) == mine, (key, CLIENTS[owner], answer)
                if isinstance(answer, Decision):
                    assert (answer.hash, answer.client) == (decision.hash, decision.client)
                else:
                    assert isinstance(answer, KeyReused)
                    assert (answer.seq, answer.position_id) == (None, None)
            fresh = [owner for owner, answer in told if isinstance(answer, Decision) and not answer.replayed]
            assert len(fresh) <= 1, "told as new to more than one"
            assert decision.actor in [f"api:{made[owner].key.key_id}:{made[owner].key.name}" for owner in range(4)]
        assert {one.client for one in recorded.values()} == set(CLIENTS)
        assert_verified(ledger)


def _ask(client: LedgerClient, ask: Reserve) -> Decision | LedgerError:
    try:
        return client.run(ask)
    except KeyReused as error:
        return error
