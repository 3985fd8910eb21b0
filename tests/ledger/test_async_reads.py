"""Every read of an embedded ledger has an awaitable form, which answers as the sync one and lets the loop run."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Ledger, NotFound
from ledger_sizer.ledger.reads import LedgerReads
from ledger_sizer.model.caller import EMBEDDED, calling_as
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS

D = Decimal
READS = [name for name, one in vars(LedgerReads).items() if inspect.isfunction(one) and not name.startswith("_")]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "position": {"position_id": "main-1"}, "decision": {"seq": 2}, "lookup": {"key": "a"}, "explain": {"reference": 1},
    "positions": {"portfolio": "main", "state": "live"}, "history": {"limit": 1, "ascending": True},
    "export": {"form": "csv", "outcome": "granted"}, "exposure": {"as_of": datetime(2026, 1, 1, tzinfo=UTC)},
}  # fmt: skip


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, clock: FakeClock, new_database: NewDatabase) -> Iterator[Ledger]:
    in_file = request.param == "file"
    with Ledger.open(new_database("sqlite"), clock=clock) if in_file else Ledger.in_memory(clock=clock) as opened:
        held = opened.reserve(key="a", tags=TAGS, amount_usd=D(100))
        opened.confirm(key="a/fill", position_id=held.position_id or "", quantity=D(1), price=D(99))
        yield opened


@pytest.mark.parametrize("name", READS)
async def test_read_async_when_awaited_then_it_answers_as_the_sync_one(ledger: Ledger, name: str) -> None:
    given = ARGUMENTS.get(name, {})
    read, awaitable = getattr(ledger, name), getattr(ledger, f"{name}_async")
    expected = read(**given)
    if name == "export":
        assert [part async for part in awaitable(**given)] == list(expected)
    else:
        assert await awaitable(**given) == expected


@pytest.mark.parametrize("name", READS)
def test_read_async_when_an_editor_looks_then_it_has_the_arguments_and_the_documentation(name: str) -> None:
    awaitable, read = getattr(Ledger, f"{name}_async"), getattr(Ledger, name)
    assert inspect.signature(awaitable) == inspect.signature(read)
    assert awaitable.__name__ == f"{name}_async"
    assert (inspect.getdoc(read) or "?") in (awaitable.__doc__ or "")


async def test_read_async_when_it_takes_long_then_the_loop_goes_on_and_the_caller_is_known(ledger: Ledger) -> None:
    began, may_end, who = threading.Event(), threading.Event(), []

    def progress(_done: int, _total: int) -> None:
        began.set()
        who.append(ledger.caller)
        assert may_end.wait(10)

    caller = EMBEDDED._replace(actor="api:1:bot")
    with calling_as(caller):
        verifying = asyncio.create_task(ledger.verify_async(progress=progress))
    while not began.is_set():
        await asyncio.sleep(0.001)
    assert (await ledger.reserve_async(key="b", amount_usd=D(1))).granted
    may_end.set()
    assert (await verifying).ok
    assert set(who) == {caller}


async def test_read_async_when_there_is_no_such_thing_then_it_raises_as_the_sync_one(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        await ledger.position_async("main-9")
    with pytest.raises(NotFound):
        await ledger.verify_async("nobody")
