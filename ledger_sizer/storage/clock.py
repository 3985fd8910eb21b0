"""Compares the clock that decisions take their time from with a monotonic one, and refuses a reading that jumped.

A wall clock may be wrong: a resumed virtual machine, a bad time server, an operator's typing error. One reading an hour
ahead would free live holds and end trust, and both are final. So a reading that differs from what the monotonic clock
lets expect is refused, and nothing is decided, until the clock reads as expected again. A jump that stays cannot be
told from the right time: whoever knows sets the clock right, or opens the ledger anew, which trusts the first reading.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from ledger_sizer.model.errors import Unavailable
from ledger_sizer.model.times import from_us, time_text
from ledger_sizer.rules.state import CLOCK_STEP_US_MAX
from ledger_sizer.storage.database import database_now_us, is_sqlite, read_transaction
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

NanosecondClock = Callable[[], int]

_DRIFT = 1000
"""Two clocks that are right may part by a thousandth of the time between two readings."""
_QUICK_US = 1_000_000
"""A reading that took no longer becomes the new anchor. After a slower one, time would lag by that much."""


class ClockJumped(Unavailable):
    """The clock jumped, so nothing is decided. Retry with the same key: it works again once the clock is right."""

    told_always = None


@dataclass(frozen=True, slots=True)
class ClockJump:
    """A jump that is being refused. seconds: how far the clock is ahead of the expected time; below zero: behind.

    stood_seconds: monotonic time between the first and the last reading that were refused for it.
    """

    seconds: float
    stood_seconds: float

    def __str__(self) -> str:
        direction = "ahead" if self.seconds > 0 else "back"
        return (
            f"the clock jumped {direction} by {abs(self.seconds):,.0f} s, so nothing is decided; retry with the same "
            "key. Set the clock right; if its new time is right, restart the service, or open the ledger anew"
        )


def _with_suspensions_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_MONOTONIC_NS: NanosecondClock = _with_suspensions_ns if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic_ns
"""A clock that never runs backwards. Where the system has one, it also counts the time that the machine was suspended:
the wall clock did not jump by that.
"""


class ClockGuard:
    """Checks the readings of one clock. Threads may share it.

    A reading lies between two monotonic moments, before it was asked for and after it arrived. The last good reading is
    the anchor of the next, so that a slow drift, such as that of a time server's corrections, never adds up.

    seconds_max: largest jump that is accepted. wall_ns: this machine's clock. monotonic_ns: never runs backwards.
    """

    def __init__(
        self,
        seconds_max: int,
        *,
        wall_ns: NanosecondClock = time.time_ns,
        monotonic_ns: NanosecondClock = _MONOTONIC_NS,
    ) -> None:
        self.wall_ns = wall_ns
        self.monotonic_ns = monotonic_ns
        self._step_us_max = seconds_max * 1_000_000
        # Lowest and highest difference of the clock and the monotonic one at the last good reading (us), and when (ns).
        self._anchor: tuple[int, int, int] | None = None
        self._suspect = False  # whether the last reading jumped
        self._refused: tuple[int, int, int] | None = (
            None  # jump (us); monotonic times of the first and last refusal (ns)
        )

    @property
    def jump(self) -> ClockJump | None:
        """The jump that is being refused; None while the clock is right."""
        refused = self._refused
        if refused is None:
            return None
        jump_us, first_ns, last_ns = refused
        return ClockJump(jump_us / 1_000_000, (last_ns - first_ns) / 1_000_000_000)

    def wall_us(self) -> int:
        """Return this machine's clock. Raises `ClockJumped`."""
        now_ns, wall_us = self.monotonic_ns(), self.wall_ns() // 1000
        offset, anchor = wall_us - now_ns // 1000, self._anchor
        if anchor is not None and not self._suspect and abs(offset - anchor[0]) <= self._step_us_max:
            self._anchor = (offset, offset, now_ns)
        else:
            self.check(wall_us, now_ns, self.monotonic_ns())
        return wall_us

    def check(self, read_us: int, begun_ns: int, ended_ns: int) -> None:
        """Check a reading made between two monotonic times. Raises `ClockJumped` and notes the jump."""
        jump_us, before = self._follow(read_us, begun_ns, ended_ns), self._refused
        if jump_us == 0:
            return
        self._refused = (jump_us, ended_ns if before is None else before[1], ended_ns)
        jump = self.jump
        if before is None:
            log.error("clock.jumped", seconds=jump_us / 1_000_000, error=str(jump))
        raise ClockJumped(str(jump))

    def note(self, read_us: int, begun_ns: int, ended_ns: int) -> None:
        """Note a reading that nothing waits for. After one that jumped, `estimate_us` returns None."""
        self._follow(read_us, begun_ns, ended_ns)

    def estimate_us(self) -> int | None:
        """Return the clock's time without a reading, never ahead of it; None where a reading must be checked first."""
        anchor = self._anchor
        return None if anchor is None or self._suspect else anchor[0] + self.monotonic_ns() // 1000

    def _follow(self, read_us: int, begun_ns: int, ended_ns: int) -> int:
        """Return by how much a reading jumped, 0 if it did not: it is then the new anchor, unless it took long."""
        low, high, anchor = read_us - ended_ns // 1000, read_us - begun_ns // 1000, self._anchor
        if anchor is not None:
            known_low, known_high, known_ns = anchor
            drift_us = abs(ended_ns - known_ns) // 1000 // _DRIFT
            jump_us = max(low - known_high, 0) or min(high - known_low, 0)
            self._suspect = abs(jump_us) > self._step_us_max + drift_us
            if self._suspect:
                return jump_us
            if self._refused is not None:
                self._end_refusal(ended_ns)
            if high - low > max(known_high - known_low + drift_us, _QUICK_US):
                return 0
        self._anchor = (low, high, ended_ns)
        return 0

    def _end_refusal(self, ended_ns: int) -> None:
        refused, self._refused = self._refused, None
        if refused is not None:
            log.warning("clock.right_again", refused_seconds=(ended_ns - refused[1]) / 1_000_000_000)


def read_clock(engine: Engine, guard: ClockGuard) -> int:
    """Return the time in microseconds: this machine's for SQLite, else the server's, which all its clients share.

    Raises `ClockJumped`, `Unavailable` without the database.
    """
    if is_sqlite(engine.url):
        return guard.wall_us()
    with read_transaction(engine) as connection:
        begun_ns = guard.monotonic_ns()
        now_us = read_database_now_us(connection)
        ended_ns = guard.monotonic_ns()
    guard.check(now_us, begun_ns, ended_ns)
    return now_us


def read_database_now_us(connection: Connection) -> int:
    """Return the database's time in microseconds, unchecked."""
    return int(connection.execute(select(database_now_us())).scalar_one())


def warn_if_behind(newest_us: int, now_us: int) -> None:
    """Log a warning if a ledger's newest time is far ahead of the clock."""
    if newest_us - now_us > CLOCK_STEP_US_MAX:
        log.warning(
            "clock.behind_ledger", seconds=(newest_us - now_us) / 1_000_000, clock=time_text(from_us(now_us)),
            newest=time_text(from_us(newest_us)),
            hint="this clock is behind, or an earlier one was ahead; see positions --state held for holds that end "
            "too late",
        )  # fmt: skip
