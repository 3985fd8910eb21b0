"""Time under a test's control."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock that moves only when told to. Call it, or its `now`, for an aware UTC datetime."""

    def __init__(self, start: datetime = START) -> None:
        if start.tzinfo is None:
            raise ValueError(f"FakeClock needs an aware datetime, got {start!r}")
        self._now = start.astimezone(UTC)

    def __call__(self) -> datetime:
        return self._now

    def now(self) -> datetime:
        """The present moment of this test."""
        return self._now

    def advance(self, seconds: int | float | Decimal) -> datetime:
        """Move by so many seconds and return the new time. Negative is allowed: real clocks are set back too."""
        self._now += timedelta(microseconds=int(Decimal(str(seconds)) * 1_000_000))
        return self._now
