"""Hold of a `with` block whose order's fate is not known: it is kept until somebody knows."""

# ruff: noqa: B904, PT011, PT012, SIM117 - what raises is the block under test

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import aiohttp
import ccxt
import httpx
import pytest
import requests
import websockets.exceptions

from ledger_sizer import Busy, Denied, InvalidRequest, Ledger, LegPlan, Unavailable, WrongState
from ledger_sizer.storage.clock import ClockJumped
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, TAGS, assert_verified, figures

pytestmark = pytest.mark.one_engine

D = Decimal


class OrderFailedError(Exception):
    """An exception of the bot's own code in the block."""


def wrapped(cause: BaseException, *, hidden: bool = False) -> OrderFailedError:
    """Return an exception that was raised while `cause` was handled."""
    try:
        try:
            raise cause
        except BaseException:  # noqa: BLE001 - of any kind
            if hidden:
                raise OrderFailedError("wrapped") from None
            raise OrderFailedError("wrapped")
    except OrderFailedError as error:
        return error


def chained(cause: BaseException) -> OrderFailedError:
    error = OrderFailedError("chained")
    error.__cause__ = cause
    return error


UNKNOWN: dict[str, Callable[[], BaseException]] = {
    "time-out": lambda: TimeoutError("the exchange did not answer"),
    "asyncio time-out": asyncio.TimeoutError,
    "reset": lambda: ConnectionResetError(104, "reset"),
    "no route": lambda: OSError(113, "no route to host"),
    "cancelled": asyncio.CancelledError,
    "unavailable": lambda: Unavailable("away"),
    "a kind of unavailable": lambda: ClockJumped("jumped"),
    "ccxt time-out": lambda: ccxt.RequestTimeout("binance"),
    "ccxt network": lambda: ccxt.NetworkError("binance"),
    "ccxt not available": lambda: ccxt.ExchangeNotAvailable("binance"),
    "ccxt maintenance": lambda: ccxt.OnMaintenance("binance"),
    "ccxt unreadable answer": lambda: ccxt.BadResponse("<html>"),
    "httpx": lambda: httpx.ReadTimeout("read"),
    "httpx protocol": lambda: httpx.RemoteProtocolError("cut"),
    "requests": lambda: requests.exceptions.ReadTimeout("read"),
    "requests connection": lambda: requests.exceptions.ConnectionError("cut"),
    "aiohttp": aiohttp.ServerDisconnectedError,
    "aiohttp time-out": aiohttp.ServerTimeoutError,
    "websocket": lambda: websockets.exceptions.ConnectionClosedError(None, None),
    "TLS": lambda: ssl.SSLEOFError(8, "EOF"),
    "cause": lambda: chained(TimeoutError()),
    "context": lambda: wrapped(ccxt.RequestTimeout("okx")),
    "hidden context": lambda: wrapped(TimeoutError(), hidden=True),
    "deep cause": lambda: chained(chained(wrapped(ConnectionAbortedError()))),
    "group": lambda: BaseExceptionGroup("tasks", [OrderFailedError(), ExceptionGroup("inner", [TimeoutError()])]),
}
KNOWN: dict[str, Callable[[], BaseException]] = {
    "own": lambda: OrderFailedError("rejected"),
    "busy": lambda: Busy("full"),
    "rejected": lambda: ccxt.InvalidOrder("too small"),
    "no money": lambda: ccxt.InsufficientFunds("binance"),
    "rate limit": lambda: ccxt.RateLimitExceeded("429"),
    "nonce": lambda: ccxt.InvalidNonce("ahead"),
    "file": lambda: FileNotFoundError(2, "no file"),
    "status": lambda: requests.exceptions.HTTPError("400"),
    "interrupted": KeyboardInterrupt,
    "group": lambda: ExceptionGroup("tasks", [OrderFailedError(), ValueError()]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_hold_when_the_orders_fate_is_not_known_then_it_is_kept_until_known(
    ledger: Ledger, clock: FakeClock, name: str
) -> None:
    error = UNKNOWN[name]()
    with pytest.raises(BaseException) as raised, ledger.hold(key="1", tags=TAGS) as hold:
        raise error
    assert raised.value is error
    assert ledger.position(hold.position_id).until_known
    assert figures(ledger) == (1000, 0)
    kept = ledger.history(limit=1)[0]
    assert (kept.command, kept.key, kept.until_known) == ("extend", "1/until-known", True)
    clock.advance(10_000_000)
    assert (ledger.sweep(), figures(ledger)) == (0, (1000, 0)), "time alone never frees it"
    assert_verified(ledger)


@pytest.mark.parametrize("name", KNOWN)
def test_hold_when_it_is_known_that_the_order_is_not_out_then_it_is_given_back(ledger: Ledger, name: str) -> None:
    with pytest.raises(BaseException), ledger.hold(key="1") as hold:  # noqa: B017 - of any kind
        raise KNOWN[name]()
    assert ledger.position(hold.position_id).state == "released"


@pytest.mark.parametrize("name", UNKNOWN)
async def test_hold_async_when_the_orders_fate_is_not_known_then_it_is_kept_until_known(
    ledger: Ledger, name: str
) -> None:
    error = UNKNOWN[name]()
    with pytest.raises(BaseException) as raised:
        async with ledger.hold_async(key="1") as hold:
            raise error
    assert raised.value is error
    assert ledger.position(hold.position_id).until_known


async def test_hold_async_when_a_time_out_stands_around_it_then_the_hold_is_kept(ledger: Ledger) -> None:
    """A time-out around the block arrives in it as a cancellation."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            async with ledger.hold_async(key="1"):
                limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.sleep(60)
    assert ledger.position("main-1").until_known


def test_hold_when_told_to_release_then_it_is_given_back_whatever_the_exception(ledger: Ledger) -> None:
    with pytest.raises(TimeoutError), ledger.hold(key="1", on_unknown="release"):
        raise TimeoutError
    assert ledger.position("main-1").state == "released"


async def test_hold_async_when_told_to_release_then_it_is_given_back(ledger: Ledger) -> None:
    with pytest.raises(TimeoutError):
        async with ledger.hold_async(key="1", on_unknown="release"):
            raise TimeoutError
    assert ledger.position("main-1").state == "released"


@pytest.mark.parametrize("wrong", ["Keep", "", None, True, ["keep"], 1])
async def test_hold_when_on_unknown_is_no_choice_then_it_is_refused_before_anything_is_held(
    ledger: Ledger, wrong: Any
) -> None:
    with pytest.raises(InvalidRequest, match="on_unknown must be keep or release, got") as refused:
        with ledger.hold(key="1", on_unknown=wrong):
            pytest.fail("entered")
    assert refused.value.field == "on_unknown"
    with pytest.raises(InvalidRequest, match="on_unknown"):
        async with ledger.hold_async(key="1", on_unknown=wrong):
            pytest.fail("entered")
    assert ledger.portfolios() == [], "nothing was recorded"


def test_hold_when_a_time_out_was_handled_before_the_block_then_it_says_nothing_about_the_order(
    ledger: Ledger,
) -> None:
    try:
        raise TimeoutError("of some other call")
    except TimeoutError:
        with pytest.raises(OrderFailedError), ledger.hold(key="1"):
            raise OrderFailedError
    assert ledger.position("main-1").state == "released"


class AwayAfterGrant(Ledger):
    """A ledger that is away once the hold is granted."""

    def run(self, command: Any) -> Any:
        if command.verb != "reserve":
            raise Unavailable("away")
        return super().run(command)

    async def run_async(self, command: Any) -> Any:
        if command.verb != "reserve":
            raise RuntimeError("a defect")
        return await super().run_async(command)


async def test_hold_when_the_ledger_is_away_too_then_the_blocks_own_exception_is_seen(
    database_url: str, clock: FakeClock
) -> None:
    error = ccxt.RequestTimeout("okx")
    with AwayAfterGrant.open(database_url, clock=clock) as ledger:
        with pytest.raises(ccxt.RequestTimeout) as raised, ledger.hold(key="1"):
            raise error
        assert raised.value is error
        with pytest.raises(ccxt.RequestTimeout):
            async with ledger.hold_async(key="2"):
                raise error
        assert [position.state for position in ledger.positions()] == ["held", "held"], "they end by their time"


def test_hold_when_its_time_was_over_before_the_order_timed_out_then_only_the_time_out_is_seen(
    ledger: Ledger, clock: FakeClock
) -> None:
    with pytest.raises(TimeoutError), ledger.hold(key="1", ttl_seconds=10) as hold:
        clock.advance(10)
        raise TimeoutError
    assert ledger.position("main-1").state == "expired"
    assert ledger.confirm(key="late", position_id=hold.position_id, quantity=D(1), price=D(10)).outcome == "applied"


@pytest.mark.parametrize("length", [185, 200])
def test_hold_when_the_key_is_as_long_as_a_key_may_be_then_it_is_kept_too(ledger: Ledger, length: int) -> None:
    with pytest.raises(TimeoutError), ledger.hold(key="a" * length):
        raise TimeoutError
    assert ledger.position("main-1").until_known


# --- entering again ----------------------------------------------------------------------------------------------


def test_hold_when_its_order_may_be_live_then_the_same_key_does_not_enter_again(ledger: Ledger) -> None:
    """The block would place the order a second time."""
    with pytest.raises(TimeoutError), ledger.hold(key="1"):
        raise TimeoutError
    with pytest.raises(WrongState, match="cannot hold main-1: since seq 2 an order of it may be live"):
        with ledger.hold(key="1"):
            pytest.fail("entered")


def test_hold_when_it_was_asked_until_known_then_it_is_so_from_the_start(ledger: Ledger, clock: FakeClock) -> None:
    with ledger.hold(key="1", until_known=True) as hold:
        assert hold.until_known
    clock.advance(10_000_000)
    ledger.sweep()
    with ledger.hold(key="1", until_known=True) as again:
        assert again.decision.replayed
    with pytest.raises(TimeoutError), ledger.hold(key="1", until_known=True):
        raise TimeoutError
    assert len(ledger.history()) == 1, "it was kept already"
    with pytest.raises(OrderFailedError), ledger.hold(key="1", until_known=True):
        raise OrderFailedError
    assert ledger.position("main-1").state == "released"


# --- fills in the block ------------------------------------------------------------------------------------------


def test_hold_when_fills_are_told_one_by_one_then_each_has_a_key_of_its_own(ledger: Ledger) -> None:
    with ledger.hold(key="1", tags=TAGS) as hold:
        keys = [hold.confirm(quantity=D(1), price=D(100), rest="hold").key for _ in range(3)]
        assert keys == ["1/confirm", "1/confirm-2", "1/confirm-3"]
        assert figures(ledger) == (700, 300)
        assert hold.confirm(quantity=D(2), price=D(100)).key == "1/confirm-4"
    assert figures(ledger) == (0, 500)
    assert_verified(ledger)


def test_hold_when_the_order_times_out_after_a_part_of_it_filled_then_the_rest_is_kept(
    ledger: Ledger, clock: FakeClock
) -> None:
    with pytest.raises(TimeoutError), ledger.hold(key="1", ttl_seconds=30) as hold:
        hold.confirm(quantity=D(3), price=D(100), rest="hold")
        raise TimeoutError
    clock.advance(10_000)
    ledger.sweep()
    position = ledger.position("main-1")
    assert (position.state, position.until_known, figures(ledger)) == ("open", True, (700, 300))
    ledger.fill(key="2", position_id="main-1", filled_quantity=D(4), price=D(100))
    assert (ledger.position("main-1").until_known, figures(ledger)) == (True, (600, 400))
    ledger.release(key="3", position_id="main-1", held_only=True)
    assert figures(ledger) == (0, 400)
    assert_verified(ledger)


def test_hold_when_all_was_told_then_a_later_time_out_keeps_nothing(ledger: Ledger) -> None:
    with pytest.raises(TimeoutError), ledger.hold(key="1") as hold:
        hold.confirm(quantity=D(3), price=D(100))
        raise TimeoutError
    assert [decision.command for decision in ledger.history()] == ["confirm", "reserve"]
    with pytest.raises(TimeoutError), ledger.hold(key="2") as hold:
        hold.release()
        raise TimeoutError
    assert len(ledger.history()) == 4


def test_hold_when_the_fill_could_not_be_told_then_its_hold_is_kept(database_url: str, clock: FakeClock) -> None:
    """There was a fill. Its hold must not end by time while nobody could tell it."""

    class Away(Ledger):
        def run(self, command: Any) -> Any:
            if command.verb == "confirm":
                raise Unavailable("away")
            return super().run(command)

    with Away.open(database_url, clock=clock) as ledger:
        with pytest.raises(Unavailable), ledger.hold(key="1") as hold:
            hold.confirm(quantity=D(3), price=D(100))
        assert ledger.position("main-1").until_known


@pytest.mark.parametrize("places", [0, 30])
async def test_hold_when_told_what_is_filled_by_now_then_each_figure_has_a_key(ledger: Ledger, places: int) -> None:
    tail = D(1).scaleb(-places) if places else D(0)
    with ledger.hold(key="1") as hold:
        for quantity in (D(1), D(2), D(2), D(3)):
            hold.fill(filled_quantity=quantity + tail, price=D(100))
        assert ledger.position("main-1").filled == 3 + tail
        hold.fill(filled_quantity=D(4), price=D(100), rest="free", key="own")
    assert figures(ledger) == (0, 400)
    assert len(ledger.history()) == 5
    async with ledger.hold_async(key="2") as awaited:
        await awaited.fill(filled_quantity=D(1), price=D(100))
        await awaited.fill(filled_quantity=D(2), price=D(100), rest="free")
    assert figures(ledger) == (0, 600)


# --- growth ------------------------------------------------------------------------------------------------------

PERP = [LegPlan(BTC_PERP, "buy")]
GROWTH: dict[str, Any] = {"legs": PERP, "price": D(50_000), "amount_usd": D(400)}


def opened_position(ledger: Ledger) -> str:
    """Return an open position of 400 USD of a perpetual, without a rest."""
    with ledger.hold(key="first", **GROWTH) as hold:
        hold.confirm(quantity=D("0.008"), price=D(50_000))
    return hold.position_id


def test_hold_when_it_is_more_of_a_position_then_a_failed_block_frees_the_growth_alone(ledger: Ledger) -> None:
    name = opened_position(ledger)
    with pytest.raises(OrderFailedError), ledger.hold(key="2", position_id=name, **GROWTH) as hold:
        assert (hold.position_id, hold.budget, figures(ledger)) == (name, 400, (400, 400))
        raise OrderFailedError
    assert (figures(ledger), ledger.position(name).state) == ((0, 400), "open")
    with ledger.hold(key="3", position_id=name, **GROWTH) as hold:
        hold.confirm(quantity=D("0.008"), price=D(50_500))
    assert (ledger.position(name).quantity, figures(ledger)) == (D("0.016"), (0, 804))
    assert_verified(ledger)


async def test_hold_when_more_of_a_position_is_asked_again_then_it_enters_only_while_its_hold_is_whole(
    ledger: Ledger,
) -> None:
    name = opened_position(ledger)
    with ledger.hold(key="2", position_id=name, **GROWTH):
        pass
    with ledger.hold(key="2", position_id=name, **GROWTH) as again:
        assert again.decision.replayed
    ledger.confirm(key="part", position_id=name, quantity=D("0.002"), price=D(50_000), rest="hold")
    with pytest.raises(WrongState, match="a part is filled or freed"):
        async with ledger.hold_async(key="2", position_id=name, **GROWTH):
            pytest.fail("entered")
    ledger.release(key="free", position_id=name, held_only=True)
    with pytest.raises(WrongState, match=f"cannot hold {name}: open"), ledger.hold(key="2", position_id=name, **GROWTH):
        pytest.fail("entered")


async def test_hold_when_the_position_holds_for_another_order_too_then_a_failed_growth_leaves_that_hold(
    ledger: Ledger, clock: FakeClock
) -> None:
    with ledger.hold(key="first", ttl_seconds=100, **GROWTH) as hold:
        name = hold.position_id
    with pytest.raises(OrderFailedError), ledger.hold(key="2", position_id=name, **GROWTH):
        raise OrderFailedError
    with pytest.raises(OrderFailedError):
        async with ledger.hold_async(key="2", position_id=name, **GROWTH):
            raise OrderFailedError
    assert figures(ledger) == (800, 0)
    clock.advance(100)
    ledger.sweep()
    assert figures(ledger) == (0, 0)


def test_hold_when_the_growth_is_denied_then_the_position_stays_as_it_is(ledger: Ledger) -> None:
    name = opened_position(ledger)
    before = ledger.position(name)
    with pytest.raises(Denied), ledger.hold(key="2", position_id=name, available_balance=D(0), **GROWTH):
        pytest.fail("entered")
    assert ledger.position(name) == before
