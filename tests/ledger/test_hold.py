"""Hold of a `with` block: released by an exception, kept by a fill, and never closing a filled position."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Confirm, Decision, Denied, InvalidRequest, Ledger, Unavailable, WrongState
from ledger_sizer.model.commands import AnyCommand
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures, position_of

pytestmark = pytest.mark.one_engine

D = Decimal


class OrderFailedError(Exception):
    """An exception of the bot's own code in the block."""


def states(ledger: Ledger) -> list[str]:
    return [position.state for position in ledger.positions("main")]


def test_hold_when_confirmed_inside_then_the_position_is_open_and_stays(ledger: Ledger, clock: FakeClock) -> None:
    with ledger.hold(key="1", tags=TAGS, ttl_seconds=30) as hold:
        assert (hold.budget, hold.position_id, hold.decision.granted) == (1000, "main-1", True)
        assert hold.expires_at == clock.now() + timedelta(seconds=30)
        assert figures(ledger) == (1000, 0)
        done = hold.confirm(quantity=D(3), price=D(100))
        assert (done.key, done.outcome) == ("1/confirm", "applied")
    assert figures(ledger) == (0, 300)
    assert_verified(ledger)


def test_hold_when_the_block_raises_then_it_is_given_back_and_the_exception_passes(ledger: Ledger) -> None:
    def trade() -> None:
        with ledger.hold(key="1", tags=TAGS):
            assert figures(ledger) == (1000, 0)
            raise OrderFailedError("rejected")

    with pytest.raises(OrderFailedError, match="rejected"):
        trade()
    assert (figures(ledger), states(ledger)) == ((0, 0), ["released"])
    assert ledger.history("main", limit=1)[0].key == "1/release"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_hold_when_the_program_is_interrupted_then_it_is_given_back(ledger: Ledger, error: type[BaseException]) -> None:
    with pytest.raises(error), ledger.hold(key="1"):
        raise error
    assert states(ledger) == ["released"]


def test_hold_when_the_block_ends_normally_then_it_lives_out_its_time(ledger: Ledger, clock: FakeClock) -> None:
    with ledger.hold(key="1", ttl_seconds=10):
        pass
    assert states(ledger) == ["held"]
    clock.advance(10)
    ledger.sweep()
    assert states(ledger) == ["expired"]


def test_hold_when_released_inside_then_a_later_exception_changes_nothing(ledger: Ledger) -> None:
    def trade() -> None:
        with ledger.hold(key="1") as hold:
            assert hold.release().outcome == "applied"
            raise OrderFailedError

    with pytest.raises(OrderFailedError):
        trade()
    assert states(ledger) == ["released"]
    assert len(ledger.history("main")) == 2


def test_hold_when_denied_then_the_block_is_not_entered(ledger: Ledger) -> None:
    with pytest.raises(Denied, match="insufficient_balance") as denied, ledger.hold(key="1", available_balance=D(0)):
        pytest.fail("entered")
    assert denied.value.decision.reason == "insufficient_balance"
    assert figures(ledger) == (0, 0)


def test_hold_when_an_exception_follows_the_fill_then_the_position_stays_open(ledger: Ledger) -> None:
    def trade() -> None:
        with ledger.hold(key="1") as hold:
            hold.confirm(quantity=D(3), price=D(100), key="my-own-key")
            raise OrderFailedError

    with pytest.raises(OrderFailedError):
        trade()
    assert (figures(ledger), states(ledger)) == ((0, 300), ["open"])
    assert ledger.history("main", limit=1)[0].key == "my-own-key"


def test_hold_when_it_was_filled_by_other_means_then_an_exception_does_not_close_the_position(ledger: Ledger) -> None:
    """Only a hold is released. A position that was confirmed outside the block is no hold any more."""

    def trade() -> None:
        with ledger.hold(key="1") as hold:
            ledger.confirm(key="2", position_id=hold.position_id, quantity=D(3), price=D(100))
            raise OrderFailedError

    with pytest.raises(OrderFailedError):
        trade()
    assert (figures(ledger), states(ledger)) == ((0, 300), ["open"])


def test_hold_when_the_time_was_over_before_the_exception_then_only_the_exception_is_seen(
    ledger: Ledger, clock: FakeClock
) -> None:
    def trade() -> None:
        with ledger.hold(key="1", ttl_seconds=10):
            clock.advance(10)
            raise OrderFailedError

    with pytest.raises(OrderFailedError):
        trade()
    assert states(ledger) == ["expired"]


@pytest.mark.parametrize("fill", [{"quantity": 1.5, "price": D(10)}, {"quantity": D(0), "price": D(10)}])
def test_hold_when_confirm_was_called_with_a_mistake_then_the_hold_is_not_given_away(
    ledger: Ledger, fill: dict[str, Any]
) -> None:
    """Whoever confirms has a fill. Its headroom must not go to others because of an invalid argument."""
    with pytest.raises(InvalidRequest), ledger.hold(key="1") as hold:
        hold.confirm(**fill)
    assert (states(ledger), figures(ledger)) == (["held"], (1000, 0))


@pytest.mark.parametrize("length", [192, 193, 200])
def test_hold_when_the_key_is_as_long_as_a_key_may_be_then_it_can_be_confirmed_and_released(
    ledger: Ledger, length: int
) -> None:
    with ledger.hold(key="a" * length) as hold:
        hold.confirm(quantity=D(1), price=D(10))
    with pytest.raises(OrderFailedError), ledger.hold(key="b" * length):
        raise OrderFailedError
    assert states(ledger) == ["open", "released"]


def test_hold_when_asked_for_a_dry_run_then_it_is_refused_as_nothing_would_be_held(ledger: Ledger) -> None:
    with pytest.raises(InvalidRequest, match="dry_run"), ledger.hold(key="1", dry_run=True):
        pass


def test_hold_when_its_own_key_is_used_again_then_the_grant_is_the_same(ledger: Ledger) -> None:
    with ledger.hold(key="1") as first:
        pass
    with ledger.hold(key="1") as again:
        assert again.decision.replayed
        assert again.position_id == first.position_id
        again.confirm(quantity=D(1), price=D(10))
    assert states(ledger) == ["open"]


@pytest.mark.parametrize("ended", ["released", "expired", "open"])
async def test_hold_when_its_key_was_answered_before_and_that_hold_has_ended_then_the_block_is_not_entered(
    ledger: Ledger, clock: FakeClock, ended: str
) -> None:
    granted = ledger.reserve(key="1", ttl_seconds=30)
    if ended == "released":
        ledger.release(key="end", position_id=position_of(granted))
    elif ended == "open":
        ledger.confirm(key="end", position_id=position_of(granted), quantity=D(1), price=D(10))
    else:
        clock.advance(30)
    with pytest.raises(WrongState, match=f"cannot hold main-1: {ended}"), ledger.hold(key="1", ttl_seconds=30):
        pytest.fail("orders would be placed with nothing held")
    with pytest.raises(WrongState, match=f"cannot hold main-1: {ended}"):
        async with ledger.hold_async(key="1", ttl_seconds=30):
            pytest.fail("orders would be placed with nothing held")
    assert states(ledger) == [ended]


# --- when the answer to a fill is lost ---------------------------------------------------------------------------


class LossyLedger(Ledger):
    """A ledger whose answer to a fill gets lost: the fill is recorded, and the caller gets `Unavailable`."""

    def run(self, command: AnyCommand) -> Decision:
        decision = super().run(command)
        if isinstance(command, Confirm):
            raise Unavailable("the answer was lost")
        return decision

    async def run_async(self, command: AnyCommand) -> Decision:
        decision = await super().run_async(command)
        if isinstance(command, Confirm):
            raise Unavailable("the answer was lost")
        return decision


def test_hold_when_the_answer_to_the_fill_is_lost_then_what_was_filled_is_not_closed(
    database_url: str, clock: FakeClock
) -> None:
    with LossyLedger.open(database_url, clock=clock) as ledger:
        with pytest.raises(Unavailable), ledger.hold(key="1") as hold:
            hold.confirm(quantity=D(3), price=D(100))
        assert (states(ledger), figures(ledger)) == (["open"], (0, 300))


async def test_hold_async_when_the_answer_to_the_fill_is_lost_then_what_was_filled_is_not_closed(
    database_url: str, clock: FakeClock
) -> None:
    with LossyLedger.open(database_url, clock=clock) as ledger:
        with pytest.raises(Unavailable):
            async with ledger.hold_async(key="1") as hold:
                await hold.confirm(quantity=D(3), price=D(100))
        assert (states(ledger), figures(ledger)) == (["open"], (0, 300))


async def test_hold_async_when_cancelled_while_confirming_then_what_was_filled_is_not_closed(ledger: Ledger) -> None:
    """The fill is being stored when the task is cancelled: cancelling the caller does not undo it."""

    async def trade() -> None:
        async with ledger.hold_async(key="1", tags=TAGS) as hold:
            confirming = asyncio.ensure_future(hold.confirm(quantity=D(3), price=D(100)))
            await asyncio.sleep(0)  # its command is in the queue now
            confirming.cancel()
            await confirming

    with pytest.raises(asyncio.CancelledError):
        await trade()
    settled = await ledger.confirm_async(key="1/confirm", position_id="main-1", quantity=D(3), price=D(100))
    assert settled.exposure_after == 300
    assert (states(ledger), figures(ledger)) == (["open"], (0, 300))


# --- async -------------------------------------------------------------------------------------------------------


async def test_hold_async_when_confirmed_inside_then_the_position_is_open_and_stays(ledger: Ledger) -> None:
    async with ledger.hold_async(key="1", tags=TAGS) as hold:
        assert (hold.budget, hold.position_id) == (1000, "main-1")
        await hold.confirm(quantity=D(3), price=D(100))
    assert figures(ledger) == (0, 300)


async def test_hold_async_when_the_block_raises_then_it_is_given_back_and_the_exception_passes(ledger: Ledger) -> None:
    with pytest.raises(OrderFailedError):
        async with ledger.hold_async(key="1"):
            raise OrderFailedError
    assert states(ledger) == ["released"]


async def test_hold_async_when_the_task_is_cancelled_in_the_block_then_it_is_kept_until_its_order_is_known(
    ledger: Ledger,
) -> None:
    entered = asyncio.Event()

    async def trade() -> None:
        async with ledger.hold_async(key="1"):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.ensure_future(trade())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ledger.position("main-1").until_known


async def test_hold_async_when_denied_then_the_block_is_not_entered(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", cap=D(0))
    with pytest.raises(Denied, match="cap_exceeded"):
        async with ledger.hold_async(key="1"):
            pytest.fail("entered")


async def test_hold_async_when_released_inside_then_it_is_released(ledger: Ledger) -> None:
    async with ledger.hold_async(key="1") as hold:
        await hold.release()
    assert ledger.position(position_of(hold.decision)).state == "released"
