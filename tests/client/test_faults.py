"""The client with a failing network and service: each key takes effect once, and no fault is read as a grant.

A TCP proxy between the client and a real service injects the faults.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from ledger_sizer import Closed, Decision, InvalidRequest, LedgerError, Reserve, Unavailable
from ledger_sizer.client import AsyncLedgerClient, LedgerClient, NotUnderstood, Patience
from tests.conftest import NewDatabase
from tests.support.fault_proxy import (
    Answer,
    Exchange,
    Fault,
    FaultProxy,
    answered,
    changed,
    cut_after,
    cut_before,
    cut_within,
    delayed,
    pass_through,
    raw,
    reset_before,
)
from tests.support.interfaces import FAST_RETRIES, SETTINGS, Interface
from tests.support.services import served

TIMEOUT_SECONDS = 30.0
SHORT_TIMEOUT_SECONDS = 0.5
"""Timeout of a client whose response will be too late."""
SECRET = "lsk_0123456789ab_" + "5ec7e7" * 10
ONCE = Patience(attempts_max=1)


class World:
    """A client, the proxy it talks to, the ledger of the service behind it, and the client's pauses (not slept)."""

    def __init__(self, interface: Interface, proxy: FaultProxy, pauses: list[float]) -> None:
        self.client = interface
        self.ledger = interface.behind
        self.proxy = proxy
        self.pauses = pauses
        """The client's pauses before its retries, seconds."""

    @property
    def seq(self) -> int:
        """The number of decisions in the ledger."""
        return self.ledger.exposure().seq


Open = Callable[..., Any]


@pytest.fixture(params=["client", "async_client"])
def world(request: pytest.FixtureRequest, new_database: NewDatabase) -> Open:
    """Open a world with the sync or the async client."""

    @asynccontextmanager
    async def open_world(patience: Patience = FAST_RETRIES, **options: Any) -> AsyncIterator[World]:
        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        common: dict[str, Any] = {"timeout_seconds": TIMEOUT_SECONDS, "patience": patience, "chance": lambda: 0.0}
        common |= options
        with served(new_database("sqlite"), settings=SETTINGS) as service, FaultProxy(service.port) as proxy:
            service.ledger.set_cap(key="cap", cap=Decimal(5_000))
            if request.param == "client":
                with LedgerClient(proxy.url, sleep=pauses.append, **common) as client:
                    yield World(Interface(request.param, client, service.ledger), proxy, pauses)
            else:
                async with AsyncLedgerClient(proxy.url, sleep=sleep, **common) as client:
                    yield World(Interface(request.param, client, service.ledger), proxy, pauses)

    return open_world


TOO_LATE = delayed(TIMEOUT_SECONDS)
OVERLOADED = answered(503, b"", Retry_After="2", Content_Type="text/plain")
SURVIVED: dict[str, Fault] = {
    "cut before the request": cut_before,
    "reset before the request": reset_before,
    "cut after the effect": cut_after,
    "cut within the answer": cut_within,
    "answer too late": TOO_LATE,
    "503 of a proxy": OVERLOADED,
    "502 of a proxy": answered(502, b"<html>Bad gateway</html>", Content_Type="text/html"),
    "504 after the effect": answered(504, b"", reached=True),
    "no HTTP at all": raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "page of a captive portal": answered(200, b"<html>Please log in</html>", reached=True, Content_Type="text/html"),
    "empty answer after the effect": answered(200, b"", reached=True),
}


@pytest.mark.parametrize("fault", SURVIVED.values(), ids=SURVIVED)
async def test_reserve_when_an_attempt_fails_then_it_is_asked_again_with_the_same_key_and_has_one_effect(
    world: Open, fault: Fault
) -> None:
    async with world(timeout_seconds=SHORT_TIMEOUT_SECONDS if fault is TOO_LATE else TIMEOUT_SECONDS) as w:
        w.proxy.next(fault, fault)
        decision = await w.client.reserve(key="a", signal_score=Decimal(1))
        assert (decision.granted, decision.budget) == (True, Decimal(1_000))
        assert len(w.proxy.requests) == 3
        assert {headers["idempotency-key"] for _, _, headers in w.proxy.requests} == {"a"}
        assert (w.seq, w.ledger.exposure().held) == (2, Decimal(1_000))
        assert decision.record == w.ledger.decision(2).record


@pytest.mark.parametrize("fault", SURVIVED.values(), ids=SURVIVED)
async def test_submit_when_an_attempt_fails_then_each_command_has_one_effect(world: Open, fault: Fault) -> None:
    async with world(timeout_seconds=SHORT_TIMEOUT_SECONDS if fault is TOO_LATE else TIMEOUT_SECONDS) as w:
        w.proxy.next(fault)
        results = await w.client.submit([Reserve(key=f"k{number}") for number in range(4)], atomic=True)
        assert [result.granted for result in results] == [True] * 4
        assert (w.seq, w.ledger.exposure().held) == (5, Decimal(4_000))


async def test_reserve_when_every_answer_gets_lost_then_unavailable_is_raised_and_the_key_settles_it(
    world: Open,
) -> None:
    async with world() as w:
        w.proxy.always(cut_after)
        with pytest.raises(Unavailable, match="the same key settles it") as raised:
            await w.client.reserve(key="a")
        assert (raised.value.granted, raised.value.retryable) == (False, True)
        assert len(w.proxy.requests) == FAST_RETRIES.attempts_max
        w.proxy.always(pass_through)
        settled = await w.client.reserve(key="a")
        assert (settled.granted, settled.replayed, w.seq) == (True, True, 2)


async def test_reserve_when_nobody_listens_then_unavailable_is_raised(world: Open) -> None:
    async with world() as w:
        w.proxy.__exit__(None, None, None)
        with pytest.raises(Unavailable):
            await w.client.reserve(key="a")
        assert w.seq == 1
        w.proxy.__enter__()


async def test_reserve_when_denied_then_it_is_asked_once(world: Open) -> None:
    async with world() as w:
        w.ledger.halt(key="halt")
        denied = await w.client.reserve(key="a")
        assert (denied.outcome, denied.reason, len(w.proxy.requests), w.pauses) == ("denied", "halted", 1, [])


async def test_send_when_the_service_refuses_then_it_is_asked_once(world: Open) -> None:
    async with world() as w:
        for asked in (w.client.position("main-9"), w.client.release(key="a", position_id="main-9")):
            with pytest.raises(LedgerError) as raised:
                await asked
            assert raised.value.code == "not_found"
        assert (len(w.proxy.requests), w.pauses) == (2, [])


# Responses that must not be read as a grant.


def _for_another_key(answer: Answer) -> None:
    answer.body = answer.body.replace(b'"key":"a"', b'"key":"b"')


def _unknown_outcome(answer: Answer) -> None:
    answer.body = answer.body.replace(b'"outcome":"granted"', b'"outcome":"Granted"')


def _without_position(answer: Answer) -> None:
    form = json.loads(answer.body)
    answer.body = json.dumps({**form, "position_id": None}).encode()


def _name_twice(answer: Answer) -> None:
    answer.body = answer.body.replace(b'"granted":true', b'"outcome":"granted","granted":true')


def _without_budget(answer: Answer) -> None:
    form = json.loads(answer.body)
    del form["budget"]
    answer.body = json.dumps(form).encode()


def _budget_not_a_number(answer: Answer) -> None:
    form = json.loads(answer.body)
    answer.body = json.dumps({**form, "budget": "NaN"}).encode()


def _denial_as_success(answer: Answer) -> None:
    answer.status = 201


def _incomplete_grant(outcome: bool) -> bytes:
    return json.dumps({"granted": outcome, "outcome": "granted", "key": "a", "command": "reserve"}).encode()


NO_GRANT: dict[str, Fault] = {
    "for another key": changed(_for_another_key),
    "with an unknown outcome": changed(_unknown_outcome),
    "without a position": changed(_without_position),
    "with a name given twice": changed(_name_twice),
    "without a budget": changed(_without_budget),
    "with a budget that is no number": changed(_budget_not_a_number),
    "with nothing but granted": answered(200, _incomplete_grant(True)),
    "JSON true": answered(200, b"true"),
    "JSON null": answered(200, b"null"),
    "a list": answered(200, b"[]"),
    "an empty object": answered(201, b"{}"),
    "no content": answered(204, b""),
    "redirected": answered(307, b"", Location="/elsewhere"),
    "a bare 409": answered(409, b"{}"),
    "a bare 404": answered(404, b"<html>nginx</html>", Content_Type="text/html"),
    "a problem under a wrong status": answered(200, b'{"code":"cap_exceeded","status":409}'),
    "a problem of another status": answered(500, b'{"code":"not_found","status":404,"detail":"no such thing"}'),
    "deep nesting": answered(200, b"[" * 5_000 + b"]" * 5_000),
    "not UTF-8": answered(200, b'{"granted":"\xff\xfe"}'),
    "garbage": raw(b"\x00\x01\x02 HTTP/1.1 200 OK\r\n\r\n"),
    "a half head": raw(b"HTTP/1.1 201 Created\r\nContent-Le"),
    "more promised than sent": raw(b"HTTP/1.1 201 Created\r\nContent-Length: 9000\r\n\r\n{}"),
    "an unknown encoding broken": raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"),
}


@pytest.mark.parametrize("fault", NO_GRANT.values(), ids=NO_GRANT)
async def test_reserve_when_the_answer_makes_no_sense_then_it_is_an_error_and_no_grant(
    world: Open, fault: Fault
) -> None:
    async with world(patience=ONCE) as w:
        w.proxy.next(fault)
        with pytest.raises(Unavailable) as raised:
            await w.client.reserve(key="a")
        assert raised.value.granted is False
        # The client still works: the next call succeeds.
        assert (await w.client.exposure()).cap == Decimal(5_000)


async def test_reserve_when_a_denial_comes_as_success_then_it_is_no_grant(world: Open) -> None:
    async with world(patience=ONCE) as w:
        w.ledger.halt(key="halt")
        w.proxy.next(changed(_denial_as_success))
        with pytest.raises(NotUnderstood):
            await w.client.reserve(key="a")


def _dropped(answer: Answer) -> None:
    form = json.loads(answer.body)
    answer.body = json.dumps({"results": form["results"][:-1]}).encode()


def _swapped(answer: Answer) -> None:
    form = json.loads(answer.body)
    answer.body = json.dumps({"results": form["results"][::-1]}).encode()


def _half_denied(answer: Answer) -> None:
    form = json.loads(answer.body)
    problem = {"type": "x", "title": "x", "status": 422, "code": "invalid_request", "detail": "x"}
    form["results"][1] = {"status": 422, "problem": problem}
    answer.body = json.dumps(form).encode()


@pytest.mark.parametrize("change", [_dropped, _swapped, _half_denied])
async def test_submit_when_results_do_not_fit_the_commands_then_nothing_is_believed(
    world: Open, change: Callable[[Answer], None]
) -> None:
    async with world(patience=ONCE) as w:
        w.proxy.next(changed(change))
        with pytest.raises(NotUnderstood):
            await w.client.submit([Reserve(key="a"), Reserve(key="b")], atomic=True)


async def test_submit_when_one_part_is_not_answered_then_the_error_stands_in_its_places(world: Open) -> None:
    async with world(patience=ONCE) as w:
        w.proxy.next(pass_through, cut_before)
        results = await w.client.submit([Reserve(key=f"k{number}") for number in range(1_500)])
        assert len(results) == 1_500
        assert [result.granted for result in results[:6]] == [True] * 5 + [False]
        assert all(isinstance(result, Decision) for result in results[:1_000])
        assert all(isinstance(result, Unavailable) for result in results[1_000:])
        w.proxy.next(cut_before, cut_before)
        with pytest.raises(Unavailable):
            await w.client.submit([Reserve(key=f"l{number}") for number in range(1_500)])


async def test_submit_when_commands_are_large_then_no_body_is_larger_than_the_service_reads(world: Open) -> None:
    async with world() as w:
        tags = {f"dimension_{number}": "x" * 106 for number in range(16)}
        results = await w.client.submit([Reserve(key=f"{number:0200}", tags=tags) for number in range(900)])
        assert sum(result.granted for result in results) == 5
        assert len(w.proxy.requests) == 3
        with pytest.raises(LedgerError) as raised:
            await w.client.submit([Reserve(key=f"l{number}", tags=tags) for number in range(900)], atomic=True)
        assert not raised.value.granted


# Retry policy.


async def test_wait_when_the_service_names_a_pause_then_it_is_obeyed_within_bounds(world: Open) -> None:
    patience = Patience(attempts_max=5, give_up_seconds=60, pause_seconds=0.1, pause_seconds_max=3)
    async with world(patience) as w:
        w.proxy.next(
            OVERLOADED, answered(503, b"", Retry_After="86400"), cut_before, answered(503, b"", Retry_After="x")
        )
        await w.client.reserve(key="a")
        assert w.pauses == [2, 3, pytest.approx(0.4), pytest.approx(0.8)]


async def test_wait_when_time_is_up_then_the_last_error_is_raised_and_no_attempt_is_made(world: Open) -> None:
    seconds = iter(range(0, 1_000, 4))
    patience = Patience(attempts_max=100, give_up_seconds=10, pause_seconds=0.1)
    async with world(patience, clock=lambda: float(next(seconds))) as w:
        w.proxy.always(cut_before)
        with pytest.raises(Unavailable):
            await w.client.reserve(key="a")
        assert len(w.proxy.requests) == 3


def test_pause_when_chance_is_drawn_then_it_stays_between_half_and_whole() -> None:
    patience = Patience(pause_seconds=0.1, pause_seconds_max=2)
    for attempt in (1, 2, 5, 50, 5_000):
        whole = min(0.1 * 2 ** min(attempt - 1, 60), 2)
        assert patience.pause(attempt, None, 0.0) == pytest.approx(whole)
        assert whole / 2 <= patience.pause(attempt, None, 0.999) <= whole


# Many threads, closing, secrets.


async def test_reserve_when_the_network_fails_at_random_then_the_cap_is_filled_exactly(
    new_database: NewDatabase,
) -> None:
    faults = [cut_before, cut_after, pass_through, OVERLOADED, cut_within, pass_through, pass_through]
    lock, number = threading.Lock(), 0

    def unreliable(exchange: Exchange) -> bool:
        nonlocal number
        with lock:
            number += 1
            fault = faults[number % len(faults)]
        return fault(exchange)

    patience = Patience(attempts_max=50, give_up_seconds=60, pause_seconds=0.001, pause_seconds_max=0.01)
    with served(new_database("sqlite"), settings=SETTINGS) as service, FaultProxy(service.port) as proxy:
        service.ledger.set_cap(key="cap", cap=Decimal(20_000))
        proxy.always(unreliable)
        with LedgerClient(proxy.url, patience=patience) as client, ThreadPoolExecutor(8) as threads:
            decisions = list(threads.map(lambda n: client.reserve(key=f"k{n}", ttl_seconds=3600), range(60)))
        assert sum(decision.granted for decision in decisions) == 20
        assert service.ledger.exposure().held == Decimal(20_000)
        assert service.ledger.exposure().seq == 61
        assert proxy.forwarded > 61, "some answers were lost after the effect"
        assert service.ledger.verify().ok


async def test_call_when_the_client_is_closed_then_closed_is_raised(world: Open) -> None:
    async with world() as w:
        await w.client.exposure()
        await w.client.close()
        await w.client.close()
        for asked in (w.client.reserve(key="a"), w.client.exposure()):
            with pytest.raises(Closed):
                await asked
        assert w.seq == 1


async def test_send_when_there_is_an_api_key_then_it_travels_and_shows_nowhere(
    world: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with world(api_key=SecretStr(SECRET)) as w:
        w.proxy.next(pass_through, cut_before, cut_before, cut_before, cut_before)
        await w.client.exposure()
        with pytest.raises(Unavailable) as raised:
            await w.client.exposure()
        assert w.proxy.requests[0][2]["authorization"] == f"Bearer {SECRET}"
        shown = f"{w.client.raw!r} {vars(w.client.raw)!r} {raised.value!r} {caplog.text}"
        assert SECRET not in shown


@pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1", "ftp://127.0.0.1", "127.0.0.1:8321", "http://h?x=1"])
@pytest.mark.parametrize("client", [LedgerClient, AsyncLedgerClient])
def test_open_when_the_address_is_wrong_then_it_is_refused_without_its_password(client: Any, url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        client(url)
    assert raised.value.field == "base_url"
    assert "secret" not in str(raised.value)
