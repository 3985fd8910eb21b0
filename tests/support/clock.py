"""A clock that a test controls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from ledger_sizer.model.units import exact_arithmetic

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock that moves only on `advance`. Call it, or its `now`, for an aware UTC datetime."""

    def __init__(self, start: datetime = START) -> None:
        if start.tzinfo is None:
            raise ValueError(f"FakeClock needs an aware datetime, got {start!r}")
        self._now = start.astimezone(UTC)

    def __call__(self) -> datetime:
        return self._now

    def now(self) -> datetime:
        """Return the current time of the test."""
        return self._now

    def advance(self, seconds: int | float | Decimal) -> datetime:
        """Move by `seconds` and return the new time. Negative values are allowed: real clocks are set back too."""
        with exact_arithmetic():
            self._now += timedelta(microseconds=int(Decimal(str(seconds)) * 1_000_000))
        return self._now
