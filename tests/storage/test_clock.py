"""The guard of the clock: a jump is refused until the clock reads as expected, and a slow drift never adds up."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from ledger_sizer.storage.clock import ClockGuard, ClockJumped

SECOND = 1_000_000
HOUR = 3600.0
TEN_YEARS = 3650 * 86_400.0


class Clocks:
    """A wall clock and a monotonic one that the test moves, in seconds."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_767_225_600.0, 1000.0
        self.guard = ClockGuard(
            60, wall_ns=lambda: round(self.wall * 1e9), monotonic_ns=lambda: round(self.monotonic * 1e9)
        )

    def wait(self, seconds: float, wall_seconds: float | None = None) -> None:
        self.monotonic += seconds
        self.wall += seconds if wall_seconds is None else wall_seconds

    def server_answers(self, seconds: float = 0.0) -> None:
        """Check a reading of the wall clock that took this long: it was read when the answer began to wait."""
        begun, read_us = self.guard.monotonic_ns(), round(self.wall * SECOND)
        self.wait(seconds)
        self.guard.check(read_us, begun, self.guard.monotonic_ns())


@pytest.fixture
def clocks() -> Clocks:
    clocks = Clocks()
    clocks.guard.wall_us()
    return clocks


@pytest.mark.parametrize("jump", [60.5, HOUR, TEN_YEARS, -60.5, -HOUR])
def test_read_when_the_clock_jumps_then_it_is_refused_until_it_is_right_again(clocks: Clocks, jump: float) -> None:
    clocks.wall += jump
    direction = "ahead" if jump > 0 else "back"
    for _ in range(3):
        with pytest.raises(ClockJumped, match=f"the clock jumped {direction} by {abs(jump):,.0f} s"):
            clocks.guard.wall_us()
        clocks.wait(10)
    assert clocks.guard.jump is not None
    assert clocks.guard.jump.seconds == pytest.approx(jump, abs=0.1)
    assert clocks.guard.jump.stood_seconds == pytest.approx(20)
    clocks.wall -= jump
    assert clocks.guard.wall_us() == round(clocks.wall * SECOND)
    assert clocks.guard.jump is None


@pytest.mark.parametrize("step", [0.0, 59.5, -59.5])
def test_read_when_the_clock_moves_by_less_than_the_bound_then_it_is_believed(clocks: Clocks, step: float) -> None:
    for _ in range(5):
        clocks.wait(1, 1 + step)
        assert clocks.guard.wall_us() == round(clocks.wall * SECOND)
        assert clocks.guard.jump is None


@pytest.mark.parametrize("rate", [1.0005, 0.9995])
def test_read_when_the_clock_drifts_for_weeks_then_the_anchor_follows_it(clocks: Clocks, rate: float) -> None:
    for _ in range(24 * 60):
        clocks.wait(HOUR, HOUR * rate)
        clocks.guard.wall_us()


@pytest.mark.parametrize("rate", [1.0005, 0.9995])
def test_read_when_nobody_read_for_weeks_then_the_drift_of_that_time_is_no_jump(clocks: Clocks, rate: float) -> None:
    weeks = 8 * 7 * 86_400.0
    clocks.wait(weeks, weeks * rate)
    clocks.guard.wall_us()
    clocks.wait(weeks, weeks * 1.01)
    with pytest.raises(ClockJumped):
        clocks.guard.wall_us()


def test_read_when_a_jump_stays_then_it_is_logged_once_and_so_is_its_end(
    clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="ledger_sizer")
    clocks.wall += HOUR
    for _ in range(100):
        with pytest.raises(ClockJumped):
            clocks.guard.wall_us()
        clocks.wait(1)
    clocks.wall -= HOUR
    clocks.guard.wall_us()
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("clock.jumped", "error"), ("clock.right_again", "warning")
    ]  # fmt: skip
    assert lines[0]["seconds"] == pytest.approx(HOUR)
    assert lines[1]["refused_seconds"] == pytest.approx(100)


def test_read_server_when_an_answer_took_long_then_it_is_no_jump_and_no_anchor() -> None:
    """A commit that waits for a standby delays an answer by minutes: the time in it is then that old."""
    clocks = Clocks()
    clocks.server_answers(0.001)
    for seconds in (300, 0.001, 600, 600, 0.001):
        clocks.server_answers(seconds)
        estimate = clocks.guard.estimate_us()
        assert estimate is not None
        assert 0 <= clocks.wall * SECOND - estimate < SECOND
    clocks.wall += HOUR
    with pytest.raises(ClockJumped):
        clocks.server_answers(300)


def test_note_when_a_reading_jumped_then_the_next_one_must_be_looked_at(clocks: Clocks) -> None:
    guard = clocks.guard
    assert guard.estimate_us() == round(clocks.wall * SECOND)
    now_ns = guard.monotonic_ns()
    guard.note(round((clocks.wall + HOUR) * SECOND), now_ns, now_ns)
    assert (guard.estimate_us(), guard.jump) == (None, None), "nothing was refused yet"
    clocks.server_answers()
    assert guard.estimate_us() == round(clocks.wall * SECOND)


def test_estimate_when_nothing_was_read_yet_then_there_is_none() -> None:
    assert ClockGuard(60).estimate_us() is None


def test_read_when_the_clocks_are_the_real_ones_then_threads_share_it_and_it_is_quick() -> None:
    guard = ClockGuard(60)
    threads = [threading.Thread(target=lambda: [guard.wall_us() for _ in range(20_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.jump is None
    assert abs(guard.wall_us() - time.time_ns() // 1000) < SECOND
