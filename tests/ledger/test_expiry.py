"""Expiry: a hold is never freed early, and always after its expiry, by the next write or by a sweep."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ledger_sizer import Confirm, InvalidRequest, Ledger, LedgerError, NotFound, Reserve, WrongState
from tests.support.clock import START, FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures, opened, position_of
from tests.support.services import eventually

D = Decimal


NEXT_WRITES: dict[str, Callable[[Ledger], object]] = {
    "reserve": lambda ledger: ledger.reserve(key="next", available_balance=D(0)),
    "set_cap": lambda ledger: ledger.set_cap(key="next", cap=D(1000)),
    "halt": lambda ledger: ledger.halt(key="next", mode="reducing"),
    "resume": lambda ledger: ledger.resume(key="next", scope="venue=bybit"),
    "freeze": lambda ledger: ledger.freeze(key="next", scope="venue=bybit"),
    "thaw": lambda ledger: ledger.thaw(key="next", scope="venue=bybit"),
    "reconciled": lambda ledger: ledger.reconciled(key="next", fresh_until=None),
    "remark": lambda ledger: ledger.remark(key="next", about="drift-1", event="seen"),
    "adopt": lambda ledger: ledger.adopt(key="next", quantity=D(1), price=D(1)),
    "submit": lambda ledger: ledger.submit([Reserve(key="next")], atomic=True),
    "sweep": lambda ledger: ledger.sweep("main"),
    "sweep all": lambda ledger: ledger.sweep(),
}


@pytest.mark.parametrize("write", NEXT_WRITES)
def test_expire_when_anything_is_written_then_a_hold_is_freed_at_its_time_and_not_a_moment_before(
    ledger: Ledger, clock: FakeClock, write: str
) -> None:
    ledger.reserve(key="1", tags=TAGS, ttl_seconds=10)
    clock.advance(D("9.999999"))
    ledger.extend(key="other", position_id=position_of(ledger.reserve(key="2", tags=TAGS)), ttl_seconds=100)
    assert ledger.sweep() == 0
    assert ledger.position("main-1").state == "held"
    clock.advance(D("0.000001"))
    NEXT_WRITES[write](ledger)
    position = ledger.position("main-1")
    assert (position.state, position.held, position.updated_at) == ("expired", 0, START + timedelta(seconds=10))
    assert figures(ledger, "venue=bybit") == (D(1000), 0), "the other hold stays"
    assert_verified(ledger)


def test_expire_when_its_room_is_wanted_then_the_same_batch_gets_it(ledger: Ledger, clock: FakeClock) -> None:
    ledger.set_cap(key="cap", scope="venue=bybit", cap=D(1000))
    ledger.reserve(key="1", tags=TAGS, ttl_seconds=10)
    clock.advance(D("9.999999"))
    assert ledger.reserve(key="2", tags=TAGS).reason == "cap_exceeded"
    clock.advance(D("0.000001"))
    granted = ledger.reserve(key="3", tags=TAGS)
    assert (granted.budget, granted.exposure_before) == (D(1000), D(0))
    assert [decision.command for decision in ledger.history("main")] == [
        "reserve",
        "expire",
        "reserve",
        "reserve",
        "set_cap",
    ]


def test_expire_when_freed_then_its_own_decision_records_it(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve(key="1", tags=TAGS, ttl_seconds=10)
    clock.advance(25)
    assert ledger.sweep() == 1
    expired = ledger.decision(2)
    assert (expired.command, expired.outcome, expired.key) == ("expire", "applied", "ledger:expire:1")
    assert (expired.position_id, expired.decided_at) == ("main-1", clock.now())
    assert (expired.exposure_before, expired.exposure_after) == (D(1000), D(0))
    assert ledger.position("main-1").expires_at is None
    with pytest.raises(InvalidRequest, match="the prefix 'ledger:' is the ledger's own"):
        ledger.release(key="ledger:expire:1", position_id="main-1")


def test_expire_when_several_are_due_then_they_go_in_the_order_of_their_times(ledger: Ledger, clock: FakeClock) -> None:
    for n, ttl in enumerate((30, 10, 20, 10), 1):
        ledger.reserve(key=f"{n}", ttl_seconds=ttl)
    clock.advance(20)
    assert ledger.sweep() == 3
    order = [decision.position_id for decision in ledger.history("main", command="expire", ascending=True)]
    assert order == ["main-2", "main-4", "main-3"]
    assert ledger.sweep() == 0
    clock.advance(10)
    assert ledger.sweep() == 1
    assert ledger.exposure().held == 0
    assert_verified(ledger)


def test_sweep_when_a_portfolio_is_named_then_only_that_one_is_freed(ledger: Ledger, clock: FakeClock) -> None:
    for portfolio in ("a", "b", "c"):
        ledger.reserve(key="1", portfolio=portfolio, ttl_seconds=10)
    clock.advance(10)
    assert ledger.sweep("b") == 1
    assert [ledger.exposure(portfolio).held for portfolio in ("a", "b", "c")] == [1000, 0, 1000]
    assert ledger.sweep() == 2
    with pytest.raises(NotFound, match="no portfolio 'nobody'"):
        ledger.sweep("nobody")


def test_sweep_when_another_ledger_made_the_hold_then_it_is_freed_too(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    """The state cache of the last writer does not contain a hold that another ledger made."""
    for n in range(5):
        ledger.release(key=f"r{n}", position_id=position_of(ledger.reserve(key=f"{n}")))
    with opened(database_url, clock) as other:
        left = other.reserve(key="other", ttl_seconds=10)
    clock.advance(10)
    assert ledger.sweep() == 1
    assert ledger.position(position_of(left)).state == "expired"


def test_expire_when_another_ledger_made_the_hold_then_the_next_write_frees_it(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    for n in range(5):
        ledger.release(key=f"r{n}", position_id=position_of(ledger.reserve(key=f"{n}")))
    with opened(database_url, clock) as other:
        left = other.reserve(key="other", ttl_seconds=10)
    clock.advance(10)
    assert ledger.reserve(key="next").exposure_before == 0
    assert ledger.position(position_of(left)).state == "expired"


def test_expire_when_the_clock_is_the_real_one_then_a_hold_ends_after_its_time_and_not_before(
    database_url: str,
) -> None:
    """Without an injected clock the time is this machine's for SQLite, the server's for PostgreSQL."""
    with Ledger.open(database_url) as ledger:
        decision = ledger.reserve(key="1", ttl_seconds=D("0.3"))
        assert decision.expires_at == decision.decided_at + timedelta(seconds=0.3)
        eventually(ledger.sweep)
        expired = ledger.decision(2)
        assert decision.expires_at <= expired.decided_at < decision.expires_at + timedelta(seconds=30)
        assert abs(decision.decided_at - datetime.now(UTC)) < timedelta(seconds=60)


# --- a clock that jumps ------------------------------------------------------------------------------------------


def test_decide_when_the_clock_was_set_back_a_little_then_decisions_stay_in_order_and_no_hold_ends_early(
    ledger: Ledger, clock: FakeClock
) -> None:
    ledger.reserve(key="1", ttl_seconds=10)
    clock.advance(-55)
    second = ledger.reserve(key="2", ttl_seconds=10)
    assert second.decided_at == START
    clock.advance(60)
    assert ledger.sweep() == 0
    clock.advance(5)
    assert ledger.sweep() == 2
    times = [decision.decided_at for decision in ledger.history("main", ascending=True)]
    assert times == sorted(times)
    assert_verified(ledger)


def test_submit_when_a_neighbours_portfolio_is_ahead_in_time_then_no_hold_ends_early(
    ledger: Ledger, clock: FakeClock
) -> None:
    """A wrong clock may leave one portfolio with a last decision in the future. The others are not affected."""
    clock.advance(1000)
    ledger.reserve(key="1", portfolio="ahead")
    clock.advance(-1000)
    ledger.reserve(key="1", portfolio="main", ttl_seconds=60)
    clock.advance(1)
    fill = Confirm(key="2", position_id="main-1", quantity=D(1), price=D(100))
    done = ledger.submit([Reserve(key="2", portfolio="ahead"), fill])[1]
    assert done.outcome == "applied", done
    assert ledger.position("main-1").state == "open", "59 seconds before its end"


def test_decide_when_the_clock_gives_a_naive_time_then_no_zone_is_guessed(database_url: str, clock: FakeClock) -> None:
    with Ledger.open(database_url, clock=lambda: clock.now().replace(tzinfo=None)) as ledger:
        for dry_run in (False, True):
            with pytest.raises(LedgerError, match="with a time zone"):
                ledger.reserve(key="1", dry_run=dry_run)
        assert ledger.portfolios() == []


# --- extend ------------------------------------------------------------------------------------------------------


def test_extend_when_held_then_it_lives_that_long_from_now(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve(key="1", tags=TAGS, ttl_seconds=10)
    clock.advance(9)
    done = ledger.extend(key="2", position_id="main-1", ttl_seconds=30)
    assert (done.outcome, done.granted, done.budget) == ("granted", True, D(1000))
    assert done.expires_at == START + timedelta(seconds=39)
    assert ledger.position("main-1").expires_at == done.expires_at
    assert done.exposure_after == done.exposure_before == 1000
    clock.advance(D("29.999999"))
    assert ledger.sweep() == 0
    clock.advance(D("0.000001"))
    assert ledger.sweep() == 1
    assert_verified(ledger)


def test_extend_when_no_ttl_is_given_then_it_is_the_settings_default(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve(key="1", ttl_seconds=10)
    assert ledger.extend(key="2", position_id="main-1").expires_at == clock.now() + timedelta(seconds=60)


def test_extend_when_it_would_shorten_then_the_hold_keeps_its_end(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve(key="1", ttl_seconds=100)
    done = ledger.extend(key="2", position_id="main-1", ttl_seconds=5)
    assert (done.granted, done.expires_at) == (True, clock.now() + timedelta(seconds=100))
    clock.advance(99)
    assert ledger.sweep() == 0
    assert_verified(ledger)


def test_extend_when_the_hold_is_over_then_it_is_too_late(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve(key="1", ttl_seconds=10)
    clock.advance(10)
    with pytest.raises(WrongState, match="cannot extend main-1: expired since seq 2"):
        ledger.extend(key="2", position_id="main-1")
    ledger.sweep()
    assert ledger.position("main-1").state == "expired"


def test_extend_when_the_portfolio_is_over_its_cap_then_the_hold_is_no_new_exposure(
    ledger: Ledger, clock: FakeClock
) -> None:
    ledger.reserve(key="1", ttl_seconds=10)
    ledger.set_cap(key="cap", cap=D(1))
    assert ledger.extend(key="2", position_id="main-1").granted
    assert_verified(ledger)


def test_confirm_when_the_hold_ends_at_this_very_moment_then_it_is_a_late_fill(
    ledger: Ledger, clock: FakeClock
) -> None:
    for n in (1, 2):
        ledger.reserve(key=f"{n}", ttl_seconds=10)
    clock.advance(D("9.999999"))
    on_time = ledger.confirm(key="3", position_id="main-1", quantity=D(1), price=D(10))
    assert on_time.position_id == "main-1"
    clock.advance(D("0.000001"))
    late = ledger.confirm(key="4", position_id="main-2", quantity=D(1), price=D(10))
    assert ledger.position(position_of(late)).origin == 2
    assert figures(ledger) == (0, 20)
    assert_verified(ledger)
