"""The three interfaces behave the same (see `test_conformance`): many commands at once, reads, whole scenarios."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import (
    Adopt,
    Confirm,
    Decision,
    Halt,
    InvalidRequest,
    KeyReused,
    Ledger,
    LedgerError,
    NotFound,
    Release,
    Reserve,
    SetCap,
)
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.model.caller import LOCAL
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.overview import OverviewQuery
from tests.conftest import NewDatabase
from tests.support.clock import START, FakeClock
from tests.support.interfaces import ASK, FILL, INTERFACES, Interface, open_position, opened
from tests.support.ledgers import TAGS

pytestmark = pytest.mark.one_engine
on_sqlite = pytest.mark.parametrize("engine_kind", ["sqlite"])
"""For what is read from the arguments before there is anything to ask a database."""

READS = (
    "portfolios", "exposure", "position", "positions", "history", "lookup", "decision", "explain", "desk_status",
)  # fmt: skip


@pytest.fixture(params=INTERFACES)
async def ledger(request: pytest.FixtureRequest, database_url: str, clock: FakeClock) -> AsyncIterator[Interface]:
    """The same ledger behind each interface, on each database."""
    async with opened(request.param, database_url, clock) as interface:
        yield interface


# Many at once.


async def test_submit_when_independent_then_each_has_its_own_answer_in_its_place(ledger: Interface) -> None:
    await ledger.set_cap(key="cap", cap=Decimal(940))
    results = await ledger.submit(
        [
            Reserve(key="a", **ASK),
            Reserve(key="b", **ASK),
            Reserve(key="c", **ASK),
            Release(key="d", position_id="main-99"),
            Reserve(key="a", **{**ASK, "price": Decimal(1)}),
            Reserve(key="a", **ASK),
        ]
    )
    assert [result.outcome for result in results] == ["granted", "denied", "denied", "error", "error", "granted"]
    assert [result.reason for result in results[1:5]] == ["cap_exceeded", "cap_exceeded", "not_found", KeyReused.code]
    assert [type(result) for result in results[3:5]] == [NotFound, KeyReused]
    assert results[:3] == list(ledger.behind.history(ascending=True))[1:]
    assert results[5].replayed
    assert not any(result.granted for result in results[1:5])


async def test_submit_when_longer_than_one_call_then_all_are_answered_in_order(ledger: Interface) -> None:
    results = await ledger.submit([Reserve(key=f"k{number}", tags=TAGS) for number in range(1_203)])
    assert [result.key for result in results] == [f"k{number}" for number in range(1_203)]
    assert sum(result.granted for result in results) == 5


async def test_submit_when_nothing_is_asked_then_nothing_is_answered(ledger: Interface) -> None:
    assert await ledger.submit([]) == []


async def test_submit_when_atomic_and_all_fit_then_all_take_effect(ledger: Interface) -> None:
    group = [Reserve(key="a", **ASK), Reserve(key="b", portfolio="other", **ASK), SetCap(key="c", cap=Decimal(9_000))]
    results = await ledger.submit(group, atomic=True)
    assert [result.outcome for result in results] == ["granted", "granted", "applied"]
    again = await ledger.submit(group, atomic=True)
    assert [result.record for result in again] == [result.record for result in results]
    assert all(result.replayed for result in again)


async def test_submit_when_atomic_and_one_is_denied_then_all_are(ledger: Interface) -> None:
    await ledger.set_cap(key="cap", cap=Decimal(940))
    results = await ledger.submit([Reserve(key="a", **ASK), Reserve(key="b", **ASK)], atomic=True)
    assert [(result.outcome, result.reason) for result in results] == [
        ("denied", "group_denied"),
        ("denied", "cap_exceeded"),
    ]
    assert results == list(ledger.behind.history(ascending=True))[1:]
    assert ledger.behind.exposure().held == 0


async def test_submit_when_atomic_and_one_is_wrong_then_it_is_raised_and_nothing_recorded(ledger: Interface) -> None:
    await ledger.set_cap(key="cap", cap=Decimal(1_000))
    with pytest.raises(NotFound):
        await ledger.submit([Reserve(key="a", **ASK), Release(key="b", position_id="main-99")], atomic=True)
    assert ledger.behind.exposure().seq == 1


class _Own:
    """Has an iterator and no length."""

    def __init__(self, commands: list[Any]) -> None:
        self._commands = commands

    def __iter__(self) -> Iterator[Any]:
        yield from self._commands


ITERABLES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda commands: (command for command in commands),
    "iterator": iter,
    "map": lambda commands: map(lambda command: command, commands),
    "set": set,
    "keys of a dict": dict.fromkeys,
    "values of a dict": lambda commands: dict(enumerate(commands)).values(),
    "deque": deque,
    "own class": _Own,
}


def _both(ledger: Interface, name: str) -> list[Callable[..., Any]]:
    """Return a face's methods of this name: the sync and the async one, where it has both."""
    return [getattr(ledger, one) for one in (name, f"{name}_async") if hasattr(ledger.raw, one)]


@on_sqlite
@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("kind", ITERABLES)
async def test_submit_when_given_any_iterable_then_each_of_its_commands_takes_effect(
    ledger: Interface, kind: str, atomic: bool
) -> None:
    """A generator can be read once only: a face that reads it twice loses all that it held."""
    of = ITERABLES[kind]
    asks = [Reserve(key=f"{n}", available_balance=Decimal(10)) for n in range(3)]
    held = await ledger.submit(of(asks), atomic=atomic)
    assert [answer.granted for answer in held] == [True] * 3
    ends = [Release(key=f"end {one.position_id}", position_id=one.position_id, held_only=True) for one in held]
    freed = await _both(ledger, "submit")[-1](of(ends), atomic=atomic)
    assert [answer.outcome for answer in freed] == ["applied"] * 3
    assert {answer.position_id for answer in freed} == {"main-1", "main-2", "main-3"}
    assert ledger.behind.exposure().exposure == 0


async def test_submit_when_the_iterable_raises_then_that_is_raised_and_nothing_is_sent(ledger: Interface) -> None:
    def broken() -> Iterator[Reserve]:
        for number in range(1_500):  # more than one call of the client
            yield Reserve(key=f"{number}", available_balance=Decimal(1))
        raise RuntimeError("the book is gone")

    for atomic in (False, True):
        for submit in _both(ledger, "submit"):
            with pytest.raises(RuntimeError, match="the book is gone"):
                await submit(broken(), atomic=atomic)
    assert ledger.behind.portfolios() == []


NO_COMMANDS: dict[str, Any] = {
    "None": None,
    "one command": Reserve(key="a"),
    "text": "reserve",
    "bytes": b"reserve",
    "number": 7,
    "the class": Reserve,
    "names in a list": [Reserve(key="a"), "reserve"],
    "none in a list": [Reserve(key="a"), None],
    "a list in a list": [[Reserve(key="a")]],
    "keys of commands": {"a": Reserve(key="a")},
    "a dry run": [Reserve(key="a"), Reserve(key="b", dry_run=True)],
}


@on_sqlite
@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("kind", NO_COMMANDS)
async def test_submit_when_given_something_else_then_every_face_refuses_it_in_the_same_words(
    ledger: Interface, kind: str, atomic: bool
) -> None:
    for submit in _both(ledger, "submit"):
        with pytest.raises(InvalidRequest, match=r"^submit (takes|records)") as refused:
            await submit(NO_COMMANDS[kind], atomic=atomic)
        assert refused.value.field == "commands"
    assert ledger.behind.portfolios() == []


async def test_run_when_given_no_command_then_every_face_refuses_it_in_the_same_words(ledger: Interface) -> None:
    for given in (None, "reserve", [Reserve(key="a")], Reserve):
        for run in _both(ledger, "run"):
            with pytest.raises(InvalidRequest, match=r"^run takes a command object") as refused:
                await run(given)
            assert refused.value.field == "command"


# Reads.


async def test_read_when_things_happened_then_every_face_sees_what_the_ledger_holds(
    ledger: Interface, clock: FakeClock
) -> None:
    await open_position(ledger)
    await ledger.set_cap(key="cap", scope="venue=bybit", cap=Decimal(1_000))
    clock.advance("0.000001")
    await ledger.reserve(key="b", **ASK)
    await ledger.reserve(key="c", portfolio="other", tags={"venue": "a=b&c d☃"})
    behind = ledger.behind
    assert await ledger.portfolios() == ["main", "other"]
    assert await ledger.exposure() == behind.exposure()
    assert await ledger.exposure("other") == behind.exposure("other")
    assert await ledger.position("main-1") == behind.position("main-1")
    assert await ledger.positions() == behind.positions()
    assert await ledger.positions("main", state="live", tags=TAGS) == behind.positions("main", state="live", tags=TAGS)
    assert len(await ledger.positions(tags={"venue": "a=b&c d☃"})) == 1
    assert await ledger.decision(2) == behind.decision(2)
    assert str(await ledger.explain("main-1")) == str(behind.explain("main-1"))
    assert (await ledger.explain(4)).data == behind.explain(4).data
    look = OverviewQuery("main", rows=2, hours=1)
    assert await ledger.overview(look) == behind.overview(look)
    assert (await ledger.overview()).portfolios == behind.overview().portfolios


async def test_page_when_listing_is_long_then_the_cursor_continues_it(ledger: Interface) -> None:
    await ledger.submit([Reserve(key=f"k{number}", tags=TAGS) for number in range(7)])
    seen: list[Decision] = []
    cursor = None
    while True:
        page = await ledger.history(limit=3, cursor=cursor)
        seen += page
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == list(ledger.behind.history())
    first = await ledger.positions(limit=2)
    rest = await ledger.positions(cursor=first.cursor)
    assert [*first, *rest] == list(ledger.behind.positions())


async def test_filter_history_when_each_filter_is_used_then_it_means_the_same(
    ledger: Interface, clock: FakeClock
) -> None:
    await open_position(ledger)
    clock.advance(10)
    await ledger.reserve(key="b", tags={"symbol": "ETH", "strategy": "carry"}, min_notional_usd=Decimal(2_000))
    filters: list[dict[str, Any]] = [
        {"symbol": "BTC"},
        {"strategy": "carry"},
        {"command": "confirm"},
        {"outcome": "denied"},
        {"reason": "below_min_notional"},
        {"since": START + timedelta(seconds=10)},
        {"until": START + timedelta(seconds=10)},
        {"ascending": True},
    ]
    for chosen in filters:
        assert await ledger.history(**chosen) == ledger.behind.history(**chosen), chosen
        assert 1 <= len(await ledger.history(**chosen)) <= 3


# All interfaces compared with each other.


async def _scenario_results(ledger: Interface, clock: FakeClock) -> list[Any]:
    """Run a short scenario and return the result of every call."""
    answers: list[Any] = [await ledger.set_cap(key="cap", cap=Decimal(1_500))]
    answers += await ledger.submit([Reserve(key=f"r{number}", **ASK) for number in range(3)])
    clock.advance(5)
    answers.append(await ledger.confirm(key="f", position_id="main-2", **FILL))
    clock.advance(40)
    answers += await ledger.submit([Halt(key="h"), Adopt(key="x", quantity=Decimal(1), price=Decimal(9))], atomic=True)
    answers.append(await ledger.reserve(key="late", **ASK))
    answers += await ledger.submit(
        [Confirm(key="lf", position_id="main-3", **FILL), Release(key="n", position_id="main-9")]
    )
    answers.append(await ledger.release(key="out", position_id="main-2"))
    return [str(answer) if isinstance(answer, LedgerError) else answer for answer in answers]


async def test_play_when_only_the_face_differs_then_all_decisions_are_equal_hash_for_hash(
    new_database: NewDatabase, engine_kind: str
) -> None:
    played = []
    for interface in INTERFACES:
        clock = FakeClock()
        async with opened(interface, new_database(engine_kind), clock) as ledger:
            ledger.behind.opened_by = LOCAL  # as whoever asks the service here, because a decision names its caller
            played.append(await _scenario_results(ledger, clock))
            assert ledger.behind.verify().ok
    embedded, client, async_client = played
    assert embedded == client == async_client
    assert any(isinstance(answer, Decision) and answer.hash for answer in embedded)


@pytest.mark.parametrize("interface", [LedgerClient, AsyncLedgerClient])
def test_look_at_client_when_ledger_has_a_method_then_it_has_the_same_with_the_same_arguments(interface: type) -> None:
    for verb in COMMANDS:
        ours, theirs = inspect.signature(getattr(interface, verb)), inspect.signature(getattr(Ledger, verb))
        assert ours == theirs
    for name in ("run", "submit", "hold", "close", *READS):
        assert callable(getattr(interface, name))
        if name not in ("hold", "positions", "history"):  # the embedded ledger's pass keyword filters on
            ours, theirs = inspect.signature(getattr(interface, name)), inspect.signature(getattr(Ledger, name))
            assert list(ours.parameters) == list(theirs.parameters), name


def test_look_at_async_client_when_ledger_has_an_async_name_then_it_has_it_too() -> None:
    shared = [name for name in dir(Ledger) if name.removesuffix("_async") in dir(LedgerClient)]
    names = [name for name in shared if name.endswith("_async")]
    assert len(names) >= len(COMMANDS) + 15
    assert [name for name in names if not callable(getattr(AsyncLedgerClient, name, None))] == []
