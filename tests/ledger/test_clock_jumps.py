"""The real clock jumps, by an hour or ten years: nothing is decided, no hold is freed, no time is recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest

from ledger_sizer import Ledger, LedgerError, Reserve, Unavailable
from tests.conftest import EngineKind
from tests.support.ledgers import Intruder, assert_verified, figures, position_of
from tests.support.wrong_clocks import WrongClock

D = Decimal
HOUR = 3600
TEN_YEARS = 3650 * 86_400
JUMPS = pytest.mark.parametrize("seconds", [90, HOUR, TEN_YEARS, -HOUR])


@pytest.fixture
def clock(database_url: str) -> Iterator[WrongClock]:
    clock = WrongClock(database_url)
    yield clock
    clock.close()


@pytest.fixture
def ledger(clock: WrongClock) -> Iterator[Ledger]:
    with clock.open() as ledger:
        yield ledger


def notice(ledger: Ledger) -> None:
    """Make the ledger look at the clock. PostgreSQL's is else read with the next write that asks for it."""
    assert "the clock jumped" in (ledger.clock_problem() or "")


@JUMPS
@pytest.mark.parametrize("warm_up", [1, 5], ids=["locked", "from remembered state"])
def test_write_when_the_clock_jumps_then_nothing_is_decided_and_all_goes_on_once_it_is_right(
    ledger: Ledger, clock: WrongClock, seconds: int, warm_up: int
) -> None:
    held = [ledger.reserve(key=f"held-{n}", available_balance=D(10), ttl_seconds=60) for n in range(warm_up)]
    ledger.reconciled(key="fresh", fresh_until=held[0].decided_at + timedelta(seconds=300))
    seq = ledger.exposure().seq
    clock.jump(seconds)
    notice(ledger)
    for ask in (
        lambda: ledger.reserve(key="next", available_balance=D(10)),
        lambda: ledger.reserve(key="dry", dry_run=True),
        lambda: ledger.release(key="end", position_id=position_of(held[0])),
        lambda: ledger.submit([Reserve(key="x"), Reserve(key="y")], atomic=True),
        lambda: asyncio.run(ledger.reserve_async(key="async")),
        ledger.sweep,
        lambda: ledger.sweep("main"),
    ):
        with pytest.raises(
            Unavailable, match=r"the clock jumped .* nothing is decided; retry with the same key"
        ) as told:
            ask()
        assert (told.value.code, told.value.retryable) == ("unavailable", True)
    assert ledger.exposure().seq == seq
    assert ledger.clock_jump is not None
    clock.jump(0)
    assert (ledger.clock_problem(), ledger.clock_jump) == (None, None)
    assert all(ledger.position(position_of(one)).state == "held" for one in held)
    done = ledger.reserve(key="next", available_balance=D(10))
    assert (done.granted, done.replayed, done.seq) == (True, False, seq + 1)
    assert timedelta(0) <= done.decided_at - held[-1].decided_at < timedelta(seconds=30)
    assert_verified(ledger)


def test_write_when_many_wait_while_the_clock_jumps_then_each_gets_its_own_error(
    ledger: Ledger, clock: WrongClock
) -> None:
    ledger.reserve(key="first")
    clock.jump(HOUR)
    notice(ledger)

    async def ask() -> list[object]:
        return await asyncio.gather(
            *(ledger.reserve_async(key=f"{n}", portfolio=f"p{n % 3}") for n in range(50)), return_exceptions=True
        )

    answers = asyncio.run(ask())
    assert all(isinstance(answer, LedgerError) and answer.code == "unavailable" for answer in answers)
    assert len({id(answer) for answer in answers}) > 1
    clock.jump(0)
    assert ledger.reserve(key="0").granted


@pytest.mark.parametrize("seconds", [HOUR, TEN_YEARS])
def test_write_when_one_reading_was_wrong_then_holds_and_trust_survive_and_later_holds_end_in_time(
    ledger: Ledger, clock: WrongClock, seconds: int
) -> None:
    live = ledger.reserve(key="live", available_balance=D(10), ttl_seconds=60)
    clock.jump(seconds)
    notice(ledger)
    clock.jump(0)
    later = ledger.reserve(key="later", available_balance=D(10), ttl_seconds=5)
    clock.wait(6)
    ledger.sweep()
    assert ledger.position(position_of(live)).state == "held"
    assert ledger.position(position_of(later)).state == "expired"
    clock.wait(60)
    ledger.sweep()
    assert figures(ledger) == (0, 0)
    assert ledger.history(command="step_back").items == ()
    assert_verified(ledger)


def test_write_when_a_jump_stays_then_a_ledger_opened_anew_believes_the_new_time(
    ledger: Ledger, clock: WrongClock
) -> None:
    """The documented way out: a virtual machine slept for an hour, and its clock is right now."""
    held = ledger.reserve(key="held", ttl_seconds=60)
    clock.jump(HOUR)
    notice(ledger)
    clock.wait(600)
    notice(ledger)
    with clock.open() as anew:
        assert anew.clock_problem() is None
        assert anew.sweep() == 1
        assert anew.position(position_of(held)).state == "expired"
        assert anew.reserve(key="next").decided_at - held.decided_at >= timedelta(seconds=HOUR)
        assert_verified(anew)


def test_write_when_the_clock_was_wrong_at_the_start_then_setting_it_right_takes_a_restart(
    database_url: str, clock: WrongClock
) -> None:
    clock.jump(TEN_YEARS)
    with clock.open() as ledger:
        stuck = ledger.reserve(key="wrong", ttl_seconds=60)
        clock.jump(0)
        assert "the clock jumped back" in (ledger.clock_problem() or "")
        with pytest.raises(Unavailable, match="restart the service, or open the ledger anew"):
            ledger.reserve(key="right", ttl_seconds=60)
    with clock.open() as anew:
        right = anew.reserve(key="right", ttl_seconds=60)
        assert [decision.command for decision in anew.history(ascending=True)] == ["reserve", "step_back", "reserve"]
        (late,) = [one for one in anew.positions(state="held") if one.expires_at and one.expires_at > right.expires_at]
        assert anew.release(key="end", position_id=late.position_id).position_id == stuck.position_id
        clock.wait(61)
        anew.sweep()
        assert figures(anew) == (0, 0)
        assert_verified(anew)


def test_write_when_time_is_slewed_for_weeks_then_it_is_no_jump(ledger: Ledger, clock: WrongClock) -> None:
    for day in range(1, 30):
        clock.wait(86_400)
        clock.jump(day * 20)
        assert ledger.reserve(key=f"{day}").granted, day
    assert ledger.clock_jump is None


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_write_when_the_servers_clock_jumps_between_two_batches_then_its_answer_is_no_anchor(
    ledger: Ledger, clock: WrongClock
) -> None:
    """A batch decided on remembered state estimates the time: it is the right one. The next batch looks."""
    for n in range(5):
        last = ledger.reserve(key=f"{n}", available_balance=D(10))
    clock.jump(HOUR)
    estimated = ledger.reserve(key="estimated", available_balance=D(10))
    assert timedelta(0) <= estimated.decided_at - last.decided_at < timedelta(seconds=30)
    with pytest.raises(Unavailable, match="the clock jumped ahead by 3,600 s"):
        ledger.reserve(key="refused", available_balance=D(10))
    clock.jump(0)
    assert ledger.reserve(key="refused", available_balance=D(10)).granted


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("seconds", "refused"), [(20, False), (-20, False), (HOUR, True), (-HOUR, True)])
def test_write_when_another_server_has_another_clock_then_only_a_jump_beyond_the_bound_is_refused(
    ledger: Ledger, clock: WrongClock, database_url: str, seconds: int, refused: bool
) -> None:
    """As after the promotion of a standby: every connection ends, and the next one meets another clock."""
    before = ledger.reserve(key="before", available_balance=D(10))
    with Intruder(database_url) as intruder:
        clock.jump(seconds)
        intruder.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                     "AND pid <> pg_backend_pid()")  # fmt: skip
    if refused:
        with pytest.raises(Unavailable, match="the clock jumped"):
            ledger.reserve(key="after", available_balance=D(10))
        assert ledger.exposure().seq == 1
    else:
        after = ledger.reserve(key="after", available_balance=D(10))
        assert after.decided_at >= before.decided_at


@pytest.mark.parametrize("ahead", [HOUR, 30])
def test_open_when_the_ledgers_newest_time_is_far_ahead_of_the_clock_then_a_warning_says_so(
    database_url: str, engine_kind: EngineKind, caplog: pytest.LogCaptureFixture, ahead: int
) -> None:
    clock = WrongClock(database_url)
    try:
        clock.jump(ahead)
        with clock.open() as ledger:
            ledger.reserve(key="ahead")
    finally:
        clock.jump(0)
        clock.close()
    caplog.set_level(logging.WARNING, logger="ledger_sizer")
    with Ledger.open(database_url) as ledger:
        lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
        warned = [line for line in lines if line["event"] == "clock.behind_ledger"]
        assert len(warned) == (ahead == HOUR), engine_kind
        assert all(HOUR - 30 < line["seconds"] <= HOUR for line in warned)
        assert ledger.reserve(key="right").granted
        assert len(ledger.history(command="step_back").items) == (ahead == HOUR)
