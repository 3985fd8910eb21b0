"""The three interfaces behave the same (see `test_conformance`) over a whole ledger: verify, sweep, settle, export."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Ledger, LedgerError, NotFound, Reserve, Unavailable, VerifyReport
from ledger_sizer.client import AsyncLedgerClient, LedgerClient, NotUnderstood, Patience
from ledger_sizer.model.decisions import canonical_text, chain_hash
from ledger_sizer.wire.responses import decision_from_json
from tests.support.clock import START, FakeClock
from tests.support.fault_proxy import FaultProxy, answered, cut_after, cut_before, cut_within
from tests.support.interfaces import FAST_RETRIES, INTERFACES, Interface, open_position, opened
from tests.support.ledgers import Intruder
from tests.support.services import served

D = Decimal


@pytest.fixture(params=INTERFACES)
async def ledger(request: pytest.FixtureRequest, database_url: str, clock: FakeClock) -> AsyncIterator[Interface]:
    """The same ledger behind each interface, on each database."""
    async with opened(request.param, database_url, clock) as interface:
        yield interface


# Settle.


async def test_settle_when_a_book_is_declared_then_every_interface_brings_the_ledger_to_it(
    ledger: Interface, clock: FakeClock
) -> None:
    bot = {"bot": "a", "venue": "bybit"}
    await ledger.reserve(key="1", tags={**bot, "symbol": "BTC/USDT"}, amount_usd=D(100))
    book = {"BTC/USDT": (D("0.001"), D(50000)), "ETH/USDT:USDT": (D(2), D("30.5"), "sell"), "XRP/USDT": (D(0), None)}
    made = await ledger.settle(bot, book, ("BTC/USDT",), reference="loop 1")
    assert [(one.command, one.position_id, one.reference) for one in made] == [
        ("confirm", "main-1", "loop 1"), ("extend", "main-1", "loop 1"), ("adopt", "main-4", "loop 1")
    ]  # fmt: skip
    assert [one.record for one in made] == [one.record for one in ledger.behind.history(ascending=True)][1:]
    (leg,) = (await ledger.position("main-4")).legs
    assert (leg.kind, leg.side, leg.quantity) == ("swap", "sell", D(2))
    assert await ledger.settle(bot, book, ["BTC/USDT"], "main") == []
    assert len(await ledger.settle(bot, {}, as_of=clock.now())) == 3
    for wrong in ({"BTC/USDT": (D(-1), D(1))}, {"BTC/USDT": (1.5, D(1))}, {"BTC/USDT": D(1)}):
        with pytest.raises(InvalidRequest, match="BTC/USDT"):
            await ledger.settle(bot, wrong)
    with pytest.raises(NotFound, match="main-99"):
        await ledger.settle(bot, {"main-99": (D(1), D(1))})


# Verify.


async def test_verify_when_the_ledger_is_sound_then_the_report_is_the_ledgers_own(ledger: Interface) -> None:
    assert await ledger.verify() == VerifyReport((), 0, 0, {})
    await open_position(ledger)
    await ledger.reserve(key="b", portfolio="other")
    await ledger.remark(key="desk", portfolio="*", about="the desk", event="opened")
    report = await ledger.verify()
    assert report == ledger.behind.verify()
    assert (report.ok, report.decisions, report.positions, set(report.heads)) == (True, 4, 2, {"*", "main", "other"})
    for portfolio in ("other", "*"):
        assert await ledger.verify(portfolio) == ledger.behind.verify(portfolio)
    with pytest.raises(NotFound, match="no portfolio 'nobody'"):
        await ledger.verify("nobody")
    with pytest.raises(InvalidRequest) as refused:
        await ledger.verify("no such name!")
    assert refused.value.field == "portfolio"


async def test_verify_when_a_row_was_edited_then_every_finding_comes(ledger: Interface, database_url: str) -> None:
    await open_position(ledger)
    await ledger.reserve(key="b", portfolio="other")
    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE decisions SET budget_e8 = budget_e8 + 1 WHERE seq = 1")
    report = await ledger.verify()
    assert report == ledger.behind.verify()
    assert not report.ok
    assert {finding.portfolio for finding in report.findings} >= {"main", "other"}
    assert report.first is not None


# Sweep.


async def test_sweep_when_holds_are_overdue_then_they_are_freed_and_counted(
    ledger: Interface, clock: FakeClock
) -> None:
    for number, portfolio in enumerate(("main", "main", "other")):
        await ledger.reserve(key=f"{number}", portfolio=portfolio, available_balance=D(10), ttl_seconds=10)
    assert await ledger.sweep() == 0
    clock.advance(11)
    assert await ledger.sweep("other") == 1
    assert (ledger.behind.exposure("other").held, ledger.behind.exposure("main").held) == (0, 20)
    assert await ledger.sweep() == 2
    assert await ledger.sweep() == 0
    assert [decision.command for decision in ledger.behind.history()][:2] == ["expire", "expire"]
    with pytest.raises(NotFound):
        await ledger.sweep("nobody")
    with pytest.raises(InvalidRequest) as refused:
        await ledger.sweep("no such name!")
    assert refused.value.field == "portfolio"


async def test_sweep_when_it_needs_several_calls_then_all_are_freed(
    ledger: Interface, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_sizer.api.audit.SWEEP_SECONDS_MAX", 0.0)
    await ledger.submit([Reserve(key=f"{n}", available_balance=D(1), ttl_seconds=10) for n in range(600)])
    clock.advance(11)
    assert await ledger.sweep() == 600
    assert ledger.behind.exposure().held == 0


# Export.


async def test_export_when_asked_for_then_the_bytes_are_the_ledgers_own(ledger: Interface, clock: FakeClock) -> None:
    await open_position(ledger)
    await ledger.submit([Reserve(key=f"=k{n} ☃", tags={"symbol": f"S{n % 3}"}) for n in range(1_500)])
    clock.advance(5)
    await ledger.reserve(key="b", portfolio="other", tags={"symbol": "S1"})
    chosen: list[dict[str, Any]] = [
        {}, {"form": "csv"}, {"form": "csv", "full": False}, {"full": False, "ascending": True}, {"cursor": "700"},
        {"symbol": "S1", "outcome": "granted", "until": START + timedelta(seconds=1)}, {"portfolio": "other"},
        {"command": "confirm"}, {"since": START + timedelta(days=1)},
    ]  # fmt: skip
    for filters in chosen:
        assert await ledger.export(**filters) == b"".join(ledger.behind.export(**filters)), filters
    assert await ledger.export("main", "csv", ascending=True) == b"".join(
        ledger.behind.export("main", "csv", ascending=True)
    )
    previous = "0" * 64
    for line in (await ledger.export(ascending=True)).decode().splitlines():
        form = json.loads(line)
        assert {type(form[name]) for name in ("tags", "request", "trace")} == {str}, "the texts that are hashed"
        record = decision_from_json(form).record
        previous = chain_hash(previous, canonical_text(record))
        assert record.hash == previous


async def test_export_when_an_argument_is_wrong_then_the_error_names_it(ledger: Interface) -> None:
    await ledger.reserve(key="a")
    for arguments, field in (
        ({"form": "xml"}, "form"), ({"cursor": "yesterday"}, "cursor"), ({"outcome": "maybe"}, "outcome"),
        ({"portfolio": "no such name!"}, "portfolio"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as refused:
            await ledger.export(**arguments)
        assert refused.value.field == field
    assert not await ledger.export("nobody")
    with pytest.raises(TypeError):
        await ledger.export(colour="red")


@pytest.mark.parametrize("interface", [LedgerClient, AsyncLedgerClient])
def test_look_at_client_when_ledger_has_an_audit_method_then_it_begins_with_the_same_arguments(interface: type) -> None:
    for name in ("verify", "sweep", "export"):
        ours = list(inspect.signature(getattr(interface, name)).parameters.values())
        theirs = list(inspect.signature(getattr(Ledger, name)).parameters.values())[: len(ours)]
        assert [(one.name, one.kind, one.default) for one in ours[1:]] == [
            (one.name, one.kind, one.default) for one in theirs[1:]
        ], name


# Faults.


@pytest.fixture(params=["client", "async_client"])
async def behind_proxy(
    request: pytest.FixtureRequest, database_url: str, clock: FakeClock
) -> AsyncIterator[tuple[Interface, FaultProxy]]:
    """Each client behind a proxy that breaks connections, and a ledger of 3 decisions in `main`."""
    with served(database_url, clock=clock) as service, FaultProxy(service.port) as proxy:
        service.ledger.submit([Reserve(key=f"{n}", available_balance=D(1), ttl_seconds=10) for n in range(3)])
        if request.param == "client":
            with LedgerClient(proxy.url, patience=FAST_RETRIES) as client:
                yield Interface(request.param, client, service.ledger), proxy
        else:
            async with AsyncLedgerClient(proxy.url, patience=FAST_RETRIES) as client:
                yield Interface(request.param, client, service.ledger), proxy


@pytest.mark.one_engine
async def test_call_when_the_connection_breaks_before_the_answer_then_it_is_made_again(
    behind_proxy: tuple[Interface, FaultProxy], clock: FakeClock
) -> None:
    ledger, proxy = behind_proxy
    for fault in (cut_before, cut_after, answered(503, b"", Retry_After="1", Content_Type="text/plain")):
        proxy.next(fault)
        assert (await ledger.verify()).decisions == 3
        proxy.next(fault)
        assert await ledger.export() == b"".join(ledger.behind.export())
    clock.advance(11)
    proxy.next(cut_after)
    assert await ledger.sweep() == 0, "the lost answer had the count"
    assert ledger.behind.exposure().held == 0


@pytest.mark.one_engine
async def test_export_when_it_breaks_midway_then_a_part_is_not_taken_for_the_whole(
    behind_proxy: tuple[Interface, FaultProxy],
) -> None:
    ledger, proxy = behind_proxy
    proxy.always(cut_within)
    with pytest.raises(Unavailable) as raised:
        await ledger.export()
    assert any(words in str(raised.value) for words in ("broke off", "no answer"))


@pytest.mark.one_engine
async def test_call_when_something_else_answers_then_it_is_an_error_and_no_report(
    behind_proxy: tuple[Interface, FaultProxy],
) -> None:
    ledger, proxy = behind_proxy
    for body in (b"", b"{}", b"<html>hello</html>", b'{"freed": "7", "more": false}', b'{"ok": true}'):
        proxy.always(answered(200, body, Content_Type="text/html"))
        for call in (ledger.verify, ledger.sweep, ledger.export):
            with pytest.raises(NotUnderstood):
                await call()


async def test_call_when_the_service_is_older_then_the_error_says_so() -> None:
    detail = "there is no '/v1/verify'; see /docs"
    problem = {"type": "urn:ledger-sizer:problem:not_found", "title": "x", "status": 404, "code": "not_found"}
    body = json.dumps({**problem, "detail": detail}).encode()
    with FaultProxy(1) as proxy, LedgerClient(proxy.url, patience=Patience(attempts_max=1)) as client:
        proxy.always(answered(404, body, Content_Type="application/problem+json"))
        with pytest.raises(LedgerError, match="older than this client"):
            client.verify()
