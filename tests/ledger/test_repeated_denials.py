"""Denials that repeat: a bounded number is recorded, each other answer is, and none is given from outdated state."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest

from ledger_sizer import AppSettings, Decision, InstrumentInfo, KeyReused, Ledger, LedgerSettings, Reserve
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.caller import EMBEDDED, Caller
from ledger_sizer.rules import repeats
from ledger_sizer.rules.repeats import RECORDED_IN_A_ROW, BatchDenials, DenialMemory
from tests.conftest import DENIAL_REPEAT_VARIABLE, EngineKind
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, TAGS, assert_verified, opened
from tests.support.services import served

D = Decimal
INTERVAL_SECONDS = 10


@pytest.fixture(autouse=True)
def _default_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DENIAL_REPEAT_VARIABLE)


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """The portfolio's cap is 0: every reservation is denied."""
    ledger.set_cap(key="cap", cap=D(0))
    return ledger


def ask(ledger: Any, key: object, **request: Any) -> Decision:
    decision: Decision = ledger.reserve(key=f"{key}", **({"tags": TAGS} | request))
    return decision


def use_up(ledger: Any, name: str = "first", **request: Any) -> Decision:
    """Ask until one more denial of the wish is not recorded. Return the last one that is."""
    answers = [ask(ledger, f"{name}/{number}", **request) for number in range(RECORDED_IN_A_ROW)]
    assert [answer.replayed for answer in answers] == [False] * RECORDED_IN_A_ROW
    return answers[-1]


def head(ledger: Ledger) -> int:
    return ledger.exposure().seq or 0


def test_reserve_when_denied_each_second_then_a_tenth_of_the_denials_is_recorded(
    ledger: Ledger, clock: FakeClock
) -> None:
    before, seconds = head(ledger), 600
    for second in range(seconds):
        moving = {"price": D(50_000 + second), "available_balance": D(9_000 - second), "signal_score": D("0.5")}
        answer = ask(ledger, second, spot_instrument=BTC_SPOT, perp_instrument=BTC_PERP, **moving)
        assert (answer.outcome, answer.reason, answer.key) == ("denied", "cap_exceeded", f"{second}")
        clock.advance(1)
    recorded = head(ledger) - before
    assert RECORDED_IN_A_ROW < recorded <= RECORDED_IN_A_ROW + seconds / INTERVAL_SECONDS
    assert ledger.denials_repeated == seconds - recorded
    assert_verified(ledger)


def test_reserve_when_a_denial_repeats_then_the_recorded_one_is_told_under_the_callers_key(ledger: Ledger) -> None:
    last = use_up(ledger)
    again = ask(ledger, "again", price=D(3))
    assert again.replayed
    assert again.record == last.record._replace(key="again")
    assert ledger.lookup("again") is None
    assert ledger.decision(again.seq or 0).key == last.key


def test_reserve_when_the_interval_is_over_then_the_denial_is_recorded_once_more(
    ledger: Ledger, clock: FakeClock
) -> None:
    use_up(ledger)
    clock.advance(INTERVAL_SECONDS - 1)
    assert ask(ledger, "early").replayed
    clock.advance(1)
    assert [ask(ledger, f"late/{number}").replayed for number in range(2)] == [False, True]


def test_reserve_when_a_quiet_time_passed_then_as_many_as_at_first_are_recorded(
    ledger: Ledger, clock: FakeClock
) -> None:
    use_up(ledger)
    clock.advance(INTERVAL_SECONDS * RECORDED_IN_A_ROW)
    use_up(ledger, "second")


def test_reserve_when_the_answer_changes_then_each_change_is_recorded_at_once(ledger: Ledger) -> None:
    use_up(ledger)
    assert ask(ledger, "1").replayed
    ledger.set_cap(key="venue", scope="venue=bybit", cap=D(0))
    ledger.set_cap(key="more", cap=D(1500))
    answers = [ask(ledger, "another binding")]
    ledger.halt(key="halt")
    answers += [ask(ledger, "another reason"), ask(ledger, "the same")]
    ledger.resume(key="resume")
    answers.append(ask(ledger, "as before"))
    ledger.set_cap(key="free", scope="venue=bybit", cap=D(1000))
    answers += [ask(ledger, "a grant"), ask(ledger, "full")]
    assert [(answer.reason, answer.binding, answer.replayed) for answer in answers] == [
        ("cap_exceeded", "venue=bybit", False),
        ("halted", "portfolio", False),
        ("halted", "portfolio", True),
        ("cap_exceeded", "venue=bybit", False),
        (None, "max_position_size_usd", False),
        ("cap_exceeded", "venue=bybit", False),
    ]
    assert_verified(ledger)


OTHER_PERP = InstrumentInfo("BTC/USDC:USDC", D("0.001"), D(50), D("0.001"), D(5))
MARKETS = {"price": D(50_000), "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}
OTHER_WISHES: dict[str, Callable[[Ledger], Decision]] = {
    "tags": lambda ledger: ask(ledger, "other", tags={"venue": "okx"}, **MARKETS),
    "market": lambda ledger: ask(ledger, "other", **(MARKETS | {"perp_instrument": OTHER_PERP})),
    "no market": lambda ledger: ask(ledger, "other"),
    "portfolio": lambda ledger: ask(ledger, "other", portfolio="alt", **MARKETS),
}


@pytest.mark.parametrize("name", OTHER_WISHES)
def test_reserve_when_another_wish_is_denied_then_it_is_recorded(ledger: Ledger, name: str) -> None:
    ledger.set_cap(key="cap", portfolio="alt", cap=D(0))
    use_up(ledger, **MARKETS)
    assert ask(ledger, "same", **MARKETS).replayed
    assert not OTHER_WISHES[name](ledger).replayed


def test_reserve_when_another_client_has_the_same_wish_then_it_is_recorded_for_it(ledger: Ledger) -> None:
    use_up(ledger)
    ledger.opened_by = Caller("embedded:bot-b", "bot-b")
    answer = ask(ledger, "its own")
    assert (answer.replayed, answer.actor) == (False, "embedded:bot-b")


def test_extend_when_its_denial_repeats_then_it_is_not_recorded_again(ledger: Ledger) -> None:
    ledger.set_cap(key="more", cap=D(5000))
    held = [ask(ledger, f"hold/{number}", available_balance=D(1)).position_id for number in range(2)]
    ledger.halt(key="halt")
    answers = [ledger.extend(key=f"{n}", position_id=held[0] or "") for n in range(RECORDED_IN_A_ROW + 1)]
    assert [answer.replayed for answer in answers] == [False] * RECORDED_IN_A_ROW + [True]
    assert not ledger.extend(key="other", position_id=held[1] or "").replayed


def test_submit_when_denials_repeat_in_one_call_then_they_are_bounded_too(ledger: Ledger) -> None:
    before = head(ledger)
    answers = ledger.submit([Reserve(key=f"{number}", tags=TAGS) for number in range(200)])
    assert {answer.outcome for answer in answers} == {"denied"}
    assert head(ledger) - before == RECORDED_IN_A_ROW
    assert_verified(ledger)


async def test_reserve_when_a_crowd_is_denied_again_and_again_then_what_is_recorded_is_bounded(
    database_url: str,
) -> None:
    with Ledger.open(database_url) as ledger:
        ledger.set_cap(key="cap", cap=D(0))
        for _ in range(5):
            wishes = [ledger.reserve_async(key=f"{_}/{number}", tags=TAGS) for number in range(300)]
            assert {answer.reason for answer in await asyncio.gather(*wishes)} == {"cap_exceeded"}
        # Batches that were decided while the first was being stored may each record as many.
        assert head(ledger) <= 1 + 3 * RECORDED_IN_A_ROW
        assert ledger.verify().ok


def test_submit_when_an_atomic_group_is_denied_then_it_is_recorded_always(ledger: Ledger) -> None:
    use_up(ledger)
    before = head(ledger)
    for number in range(3):
        group = [Reserve(key=f"group/{number}/{place}", tags=TAGS) for place in range(2)]
        assert [getattr(answer, "replayed", None) for answer in ledger.submit(group, atomic=True)] == [False, False]
    assert head(ledger) == before + 6


def test_reserve_when_it_is_a_dry_run_then_it_neither_counts_nor_is_told_from_memory(ledger: Ledger) -> None:
    use_up(ledger)
    assert [ask(ledger, "dry", dry_run=True).seq for _ in range(3)] == [None] * 3
    assert ledger.denials_repeated == 0


def test_reserve_when_every_denial_is_to_be_recorded_then_it_is(database_url: str, clock: FakeClock) -> None:
    settings = AppSettings(ledger=LedgerSettings(denial_repeat_seconds=0))
    with opened(database_url, clock, settings) as ledger:
        ledger.set_cap(key="cap", cap=D(0))
        assert {ask(ledger, number).replayed for number in range(3 * RECORDED_IN_A_ROW)} == {False}


# Keys.


def test_repeat_when_the_key_of_an_unrecorded_denial_is_sent_again_then_it_is_the_same_denial(
    ledger: Ledger, clock: FakeClock
) -> None:
    use_up(ledger)
    first = ask(ledger, "again", price=D(3))
    ledger.set_cap(key="more", cap=D(5000))
    clock.advance(3600)
    assert ask(ledger, "again", price=D(3)) == first
    with pytest.raises(KeyReused, match=f"seq {first.seq}") as refused:
        ask(ledger, "again", price=D(4))
    assert refused.value.seq == first.seq
    assert ask(ledger, "new").granted


def test_repeat_when_the_process_is_another_one_then_the_key_is_asked_anew(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    use_up(ledger)
    assert ask(ledger, "again").replayed
    ledger.set_cap(key="more", cap=D(5000))
    with opened(database_url, clock) as restarted:
        assert ask(restarted, "again").granted
    assert ask(ledger, "again").granted, "what is recorded by now comes before what is remembered"


def test_use_key_when_another_client_used_it_for_an_unrecorded_denial_then_it_is_free(ledger: Ledger) -> None:
    use_up(ledger)
    assert ask(ledger, "shared").replayed
    ledger.opened_by = Caller("embedded:bot-b", "bot-b")
    assert (ask(ledger, "shared").replayed, ledger.exposure().seq) == (False, head(ledger))


# What a denial from memory is decided on.


def test_reserve_when_another_process_changed_the_cap_then_no_remembered_denial_hides_it(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    use_up(ledger)
    for number in range(5):
        assert ask(ledger, f"again/{number}").replayed
    with opened(database_url, clock) as other:
        other.set_cap(key="more", cap=D(5000))
    assert ask(ledger, "after").granted


def test_reserve_when_another_process_halted_it_then_that_reason_is_recorded(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    use_up(ledger)
    assert ask(ledger, "again").replayed
    with opened(database_url, clock) as other:
        other.halt(key="halt")
    after = ask(ledger, "after")
    assert (after.reason, after.replayed) == ("halted", False)


def test_reserve_when_the_transaction_of_a_repeated_denial_fails_then_it_is_decided_again(
    ledger: Ledger, engine_kind: EngineKind, database_url: str, clock: FakeClock
) -> None:
    use_up(ledger)
    store: Any = ledger._store
    write = store.write
    broken = psycopg.OperationalError("gone") if engine_kind == "postgresql" else sqlite3.OperationalError("disk I/O")

    def failing(changes: Any, *, locked: bool) -> None:
        store.write = write
        assert (list(changes), locked) == ([], True)
        store.rollback()
        with opened(database_url, clock) as other:
            other.set_cap(key="more", cap=D(5000))
        raise broken

    store.write = failing
    assert ask(ledger, "again").granted, "nobody was told of the denial"
    assert ledger.denials_repeated == 0


def test_reserve_when_the_commit_of_a_denial_fails_then_it_is_not_remembered(ledger: Ledger) -> None:
    store: Any = ledger._store
    write = store.write

    def refusing(changes: Any, *, locked: bool) -> None:
        raise RuntimeError("refused")

    for number in range(RECORDED_IN_A_ROW - 1):
        ask(ledger, number)
    store.write = refusing
    with pytest.raises(Exception, match="refused"):
        ask(ledger, "lost")
    store.write = write
    assert [ask(ledger, f"after/{number}").replayed for number in range(2)] == [False, True]
    assert_verified(ledger)


def test_reserve_when_the_clock_went_back_then_the_denial_is_recorded(ledger: Ledger, clock: FakeClock) -> None:
    use_up(ledger)
    clock.advance(-3600)
    assert not ask(ledger, "earlier").replayed


# The memory.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[DenialMemory]:
    monkeypatch.setattr(repeats, "WISHES_MAX", 3)
    monkeypatch.setattr(repeats, "KEYS_MAX", 3)
    return DenialMemory(INTERVAL_SECONDS)  # type: ignore[return-value]


def test_keep_when_more_wishes_and_keys_come_than_fit_then_the_newest_stay(small: DenialMemory, ledger: Ledger) -> None:
    denied = ask(ledger, "denied").record
    for number in range(10):
        batch = BatchDenials(small, locked=True)
        command = Reserve(key=f"{number}", tags={"symbol": f"{number}"})
        batch.note(command, EMBEDDED, denied)
        batch.keys["embedded", "main", command.key] = (command.request_text(), denied)
        small.keep(batch)
    assert [wish[4][1] for wish in small.denials] == [f'{{"symbol":"{n}"}}' for n in (7, 8, 9)]  # type: ignore[index]
    assert [key for _, _, key in small.keys] == ["7", "8", "9"]


# Over HTTP.


def test_reserve_when_its_denial_repeats_over_http_then_client_and_metrics_tell(database_url: str) -> None:
    with served(database_url) as service, LedgerClient(service.url) as client:
        service.ledger.set_cap(key="cap", cap=D(0))
        last = use_up(client)
        again = ask(client, "again")
        assert (again.key, again.seq, again.replayed, again.reason) == ("again", last.seq, True, "cap_exceeded")
        (listed,) = client.submit([Reserve(key="listed", tags=TAGS)])
        assert isinstance(listed, Decision)
        assert (listed.key, listed.seq, listed.replayed) == ("listed", last.seq, True)
        response = client_response(service.url, "raw")
        assert (response.status_code, response.headers["Idempotency-Replayed"]) == (409, "true")
        assert response.json()["decision"]["key"] == "raw"
        assert "ledger_denials_repeated_total 3.0" in metrics_of(service.url)


def client_response(url: str, key: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/reservations", json={"tags": TAGS}, headers={"Idempotency-Key": key})


def metrics_of(url: str) -> str:
    return httpx.get(f"{url}/metrics").text
