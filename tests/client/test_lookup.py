"""Finding it again, in Python: what a bot that died between question and answer learns from its key, and desk halts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from ledger_sizer import InvalidRequest, KeyReused, Ledger
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.errors import LedgerError, Unavailable
from tests.support.clock import FakeClock
from tests.support.interfaces import ASK, FILL, INTERFACES, Interface, opened
from tests.support.services import served

pytestmark = pytest.mark.one_engine


@pytest.fixture(params=INTERFACES)
async def ledger(request: pytest.FixtureRequest, database_url: str, clock: FakeClock) -> AsyncIterator[Interface]:
    """The same ledger behind each interface, on each database."""
    async with opened(request.param, database_url, clock) as interface:
        yield interface


async def test_ask_again_after_a_crash_when_the_market_moved_then_key_reused_and_the_look_up_find_the_hold(
    ledger: Interface, clock: FakeClock
) -> None:
    first = await ledger.reserve(key="cycle-17/BTC", **ASK)
    clock.advance(3)
    moved = {**ASK, "price": Decimal("50011.5"), "available_balance": Decimal("9998.2")}
    with pytest.raises(KeyReused) as error:
        await ledger.reserve(key="cycle-17/BTC", **moved)
    assert (error.value.seq, error.value.position_id) == (first.seq, first.position_id)
    assert (error.value.field, error.value.retryable) == ("key", False)
    found = await ledger.lookup("cycle-17/BTC")
    assert found == first
    assert found == await ledger.lookup(key="cycle-17/BTC", portfolio="main")
    assert (found.granted, found.replayed, found.quantity) == (True, False, first.quantity)
    await ledger.confirm(key="cycle-17/BTC/fill", position_id=found.position_id, **FILL)
    (position,) = await ledger.positions(key="cycle-17/BTC")
    assert (position.position_id, position.state) == (first.position_id, "open")
    assert (await ledger.positions("main", key="cycle-17/BTC/fill")).items == (position,)
    assert [one.key for one in await ledger.history(key="cycle-17/BTC/fill")] == ["cycle-17/BTC/fill"]


async def test_look_up_when_nothing_has_the_key_then_it_is_none_and_listings_are_empty(ledger: Interface) -> None:
    for portfolio in ("main", "never-used", "*"):
        assert await ledger.lookup("k", portfolio) is None
        assert (await ledger.history(portfolio, key="k")).items == ()
    assert (await ledger.positions(key="k")).items == ()
    await ledger.reserve(key="k", portfolio="alt")
    assert await ledger.lookup("k") is None, "a key belongs to its portfolio"
    assert (await ledger.positions("main", key="k")).items == ()
    assert [one.position_id for one in await ledger.positions(key="k")] == ["alt-1"]


async def test_look_up_when_the_answer_was_a_denial_then_it_is_that_denial(ledger: Interface) -> None:
    denied = await ledger.reserve(key="k", min_notional_usd=Decimal(9000))
    assert await ledger.lookup("k") == denied
    assert (await ledger.positions(key="k")).items == ()


@pytest.mark.parametrize("key", ["ключ/BTC", " blank ", "a&b=c#d%2F+ü", "x" * 200])
async def test_look_up_when_the_key_is_any_text_then_it_is_found(ledger: Interface, key: str) -> None:
    made = await ledger.reserve(key=key, available_balance=Decimal(5))
    assert await ledger.lookup(key) == made
    assert [one.seq for one in await ledger.history(key=key)] == [made.seq]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": "x" * 201}, "key"),
        ({"key": "a\x1fb"}, "key"),
        ({"key": 7}, "key"),
        ({"key": None}, "key"),
        ({"key": "k", "portfolio": "a b"}, "portfolio"),
        ({"key": "k", "portfolio": ""}, "portfolio"),
    ],
)
async def test_look_up_when_input_is_bad_then_the_field_is_named(
    ledger: Interface, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        await ledger.lookup(**arguments)
    assert error.value.field == field


@pytest.mark.parametrize("wrong", ["", "x" * 301, "a\x1fb", 7])
async def test_list_by_actor_or_key_when_input_is_bad_then_the_field_is_named(ledger: Interface, wrong: Any) -> None:
    await ledger.reserve(key="k")
    for call, field in (
        (lambda: ledger.history(actor=wrong), "actor"),
        (lambda: ledger.history(key=wrong), "key"),
        (lambda: ledger.positions(key=wrong), "key"),
    ):
        if wrong == 7 and ledger.kind != "embedded":
            continue  # a number is text in a query
        with pytest.raises(InvalidRequest) as error:
            await call()
        assert error.value.field == field


async def test_list_by_actor_when_others_asked_too_then_only_its_own(ledger: Interface) -> None:
    await ledger.reserve(key="k", ttl_seconds=1)
    actor = {"embedded": "embedded:embedded"}.get(ledger.kind, "local")
    ledger.behind.opened_by = ledger.behind.opened_by._replace(actor="cli:ana", client="cli")
    ledger.behind.halt(key="h")
    if ledger.kind != "embedded":
        assert [one.key for one in await ledger.history(actor=actor)] == ["k"]
    assert [one.key for one in await ledger.history(actor="cli:ana")] == ["h"]
    assert [one.key for one in await ledger.history(actor="cli:ana", command="reserve")] == []
    assert [one.key for one in await ledger.history(actor="nobody")] == []


async def test_halt_desk_when_resumed_then_reads_follow_and_its_chain_is_apart(ledger: Interface) -> None:
    assert await ledger.desk_status() == "active"
    halted = await ledger.halt(key="h", portfolio="*", note="all stop")
    assert await ledger.desk_status() == "halted"
    denied = await ledger.reserve(key="k", **ASK)
    assert (denied.reason, denied.binding) == ("halted", "desk")
    assert await ledger.lookup("h", "*") == halted
    assert (await ledger.history("*")).items == (halted,)
    assert (await ledger.explain(1, "*")).decision == halted
    assert await ledger.portfolios() == ["main"]
    assert set(await ledger.heads()) == {"*", "main"}
    await ledger.resume(key="r", portfolio="*")
    assert await ledger.desk_status() == "active"
    assert (await ledger.reserve(key="k2", **ASK)).granted


def test_read_desk_in_python_when_it_was_set_then_the_decision_that_did_comes_too(
    database_url: str, clock: FakeClock
) -> None:
    with Ledger.open(database_url, clock=clock) as ledger:
        assert ledger.desk() == ("active", None)
        halted = ledger.halt(key="h", portfolio="*")
        ledger.remark(key="m", portfolio="*", about="x", event="y")
        assert ledger.desk() == ("halted", halted)
        resumed = ledger.resume(key="r", portfolio="*")
        assert ledger.desk() == ("active", resumed)


# A look-up must never say "you hold nothing" where that is not known.


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, '{"items": [], "cursor": null}'),
        (200, "{}"),
        (200, "[]"),
        (200, "<html>maintenance</html>"),
        (404, '{"type":"x","title":"t","status":404,"code":"not_found","detail":"there is no path"}'),
        (404, "not here"),
        (204, ""),
    ],
)
def test_look_up_when_the_answer_is_no_page_of_decisions_then_it_is_an_error_and_never_none(
    status: int, body: str
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=body))
    with LedgerClient("http://ledger.example", transport=transport, sleep=lambda _: None) as client:
        if status == 200 and "items" in body:
            assert client.lookup("k") is None
        else:
            with pytest.raises(LedgerError):
                client.lookup("k")


def test_look_up_when_the_answer_is_about_another_key_then_it_is_not_believed(
    database_url: str, clock: FakeClock
) -> None:
    with served(database_url, clock=clock) as service:
        service.ledger.reserve(key="k")
        page = httpx.get(f"{service.url}/v1/decisions?full=true").text
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=page))
    with LedgerClient("http://ledger.example", transport=transport, sleep=lambda _: None) as client:
        assert client.lookup("k") is not None
        for key, portfolio in (("other", "main"), ("k", "alt")):
            with pytest.raises(Unavailable, match="not about it"):
                client.lookup(key, portfolio)
