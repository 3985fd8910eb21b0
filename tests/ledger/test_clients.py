"""Whose key it is, embedded: a key belongs to the client that used it, and a look-up finds one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import AppSettings, InvalidRequest, KeyReused, Ledger, LedgerSettings, Release, Reserve
from ledger_sizer.model.caller import Caller, caller_var
from tests.conftest import EngineKind
from tests.support.clock import FakeClock
from tests.support.ledgers import Intruder, assert_verified, figures

D = Decimal
WISH: dict[str, Any] = {"key": "20260101T08/BTC", "tags": {"symbol": "BTC"}, "available_balance": D(10)}


@pytest.fixture
def bots(database_url: str, clock: FakeClock) -> Iterator[tuple[Ledger, Ledger]]:
    """Two programs with one ledger: `bot-a` and `bot-b`."""
    with (
        Ledger.open(database_url, client="bot-a", clock=clock) as a,
        Ledger.open(database_url, client="bot-b", clock=clock) as b,
    ):
        yield a, b


def test_reserve_when_another_client_used_the_key_then_it_is_refused_in_every_form(
    bots: tuple[Ledger, Ledger],
) -> None:
    a, b = bots
    first = a.reserve(**WISH)
    assert (first.actor, first.client) == ("embedded:bot-a", "bot-a")
    assert a.reserve(**WISH).replayed
    single: list[Any] = []
    for ask in (WISH, {**WISH, "available_balance": D(11)}):
        with pytest.raises(KeyReused, match="another client") as refused:
            b.reserve(**ask)
        single.append(refused.value)
    answers = b.submit([Reserve(**WISH), Reserve(key="own", available_balance=D(1))])
    assert isinstance(answers[0], KeyReused)
    assert answers[1].granted
    with pytest.raises(KeyReused) as atomic:
        b.submit([Reserve(key="too", available_balance=D(1)), Reserve(**WISH)], atomic=True)
    for error in (*single, answers[0], atomic.value):
        assert (error.seq, error.position_id) == (None, None)
        assert "main-1" not in str(error)
    assert b.lookup("too") is None, "nothing of the group was recorded"
    assert figures(a) == (11, 0)
    assert_verified(a)


def test_reserve_when_the_client_asks_again_in_another_process_then_it_is_a_replay(
    bots: tuple[Ledger, Ledger], database_url: str, clock: FakeClock
) -> None:
    first = bots[0].reserve(**WISH)
    settings = AppSettings(ledger=LedgerSettings(client="bot-a"))
    with Ledger.open(database_url, settings=settings, clock=clock) as later:
        again = later.reserve(**WISH)
    assert (again.replayed, again.hash) == (True, first.hash)


def test_look_up_when_the_key_is_anothers_then_nothing_is_found(bots: tuple[Ledger, Ledger]) -> None:
    a, b = bots
    made = a.reserve(**WISH)
    assert a.lookup(WISH["key"]) == made
    assert b.lookup(WISH["key"]) is None
    assert [*a.history(key=WISH["key"])] == [made]
    assert [*b.history(key=WISH["key"])] == []
    assert [one.position_id for one in a.positions(key=WISH["key"])] == ["main-1"]
    assert [*b.positions(key=WISH["key"])] == []
    assert b"".join(b.export(key=WISH["key"])).strip() == b""
    assert b.history(actor="embedded:bot-a").items == (made,), "the history itself is no secret"


def test_ask_again_after_a_crash_when_price_moved_then_the_hold_is_found_and_the_bot_goes_on(
    bots: tuple[Ledger, Ledger], clock: FakeClock
) -> None:
    a, _ = bots
    first = a.reserve(**WISH)
    clock.advance(1)
    with pytest.raises(KeyReused) as error:
        a.reserve(**{**WISH, "available_balance": D(9)})
    found = a.lookup(WISH["key"])
    assert found is not None
    assert found.position_id == error.value.position_id == first.position_id
    assert found.seq == error.value.seq
    a.confirm(key=f"{WISH['key']}/fill", position_id=found.position_id, quantity=D(1), price=D(10))
    assert figures(a) == (0, 10)


def test_open_when_client_is_wrong_then_it_is_refused_and_nothing_is_made(empty_database_url: str) -> None:
    for wrong in ("", "x" * 129, "a\x1fb", 7):
        with pytest.raises(InvalidRequest, match="client") as error:
            Ledger.open(empty_database_url, client=wrong)  # type: ignore[arg-type]
        assert error.value.field == "client"


def test_expire_when_a_hold_is_overdue_then_the_ledger_did_it_and_no_client_finds_its_key(
    bots: tuple[Ledger, Ledger], clock: FakeClock
) -> None:
    a, _ = bots
    a.reserve(**WISH, ttl_seconds=5)
    clock.advance(6)
    a.sweep()
    (expired,) = a.history(command="expire")
    assert (expired.actor, expired.client) == ("ledger", "ledger")
    assert a.lookup(expired.key) is None
    assert a.history(actor="ledger").items == (expired,)


def test_look_up_when_the_decision_is_older_than_clients_then_anybody_finds_and_repeats_it(
    database_url: str, engine_kind: EngineKind, clock: FakeClock
) -> None:
    with Ledger.open(database_url, client="bot-a", clock=clock) as a:
        a.reserve(**WISH)
    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE decisions SET actor = NULL, client = NULL")
    with Ledger.open(database_url, client="bot-b", clock=clock) as b:
        found = b.lookup(WISH["key"])
        assert found is not None
        assert (found.seq, found.actor, found.client) == (1, None, None)
        assert b.reserve(**WISH).replayed, engine_kind
        assert [one.seq for one in b.history(key=WISH["key"])] == [1]


def test_look_up_when_the_key_is_archived_then_it_is_as_good_as_unused(
    bots: tuple[Ledger, Ledger], clock: FakeClock, tmp_path: Any
) -> None:
    a, _ = bots
    a.submit([Reserve(**WISH), Release(key="r", position_id="main-1")])
    clock.advance(timedelta(days=60).total_seconds())
    a.reserve(key="later")
    report = a.archive(clock() - timedelta(days=31), tmp_path)
    assert report.decisions == 2
    assert a.lookup(WISH["key"]) is None
    assert a.history(key=WISH["key"]).items == ()
    assert a.positions(key=WISH["key"]).items == ()
    assert [one.key for one in a.history(position_id="main-1", ascending=True)] == [WISH["key"], "r"]
    assert len(a.history(actor="embedded:bot-a")) == 3, "the actor is found in archive files, too"
    again = a.reserve(**WISH)
    assert (again.granted, again.replayed) == (True, False)
    assert [one.seq for one in a.history(key=WISH["key"])] == [again.seq]
    assert_verified(a)


def test_submit_in_a_thread_of_its_own_when_a_caller_is_set_then_only_its_context_has_it(ledger: Ledger) -> None:
    token = caller_var.set(Caller("api:x:bot", "x"))
    try:
        assert ledger.reserve(key="in", available_balance=D(1)).actor == "api:x:bot"
    finally:
        caller_var.reset(token)
    assert ledger.reserve(key="out", available_balance=D(1)).actor == "embedded:embedded"


async def test_reserve_async_when_tasks_have_callers_of_their_own_then_each_decision_names_its_own(
    ledger: Ledger,
) -> None:
    async def ask(number: int) -> str | None:
        caller_var.set(Caller(f"api:{number}:bot", f"{number}"))
        await asyncio.sleep(0)
        return (await ledger.reserve_async(key=f"{number}", available_balance=D(1))).actor

    asked = await asyncio.gather(*[asyncio.create_task(ask(number)) for number in range(20)])
    assert asked == [f"api:{number}:bot" for number in range(20)]
