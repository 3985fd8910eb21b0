"""Loading the market rules of an exchange into the database: what the scheduler and `instruments refresh` do."""

import time
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Engine

from ledger_sizer.exchanges.instrument_cache import RulesChanges, record_rules
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

RETRY_SECONDS = 60
"""A refresh that failed is tried again after this time, however long the interval is."""


class RulesSource(Protocol):
    """Whoever brings the market rules of a venue, such as an `ExchangeAccount`."""

    venue: str

    def instruments(self) -> list[MarketRules]:
        """The rules of every spot and swap market. Raises `Unavailable`."""


class ScheduledRefresh:
    """`refresh_rules` for a scheduler that calls every `RETRY_SECONDS`: once done, it rests for `seconds`.

    clock: seconds that never run backwards.
    """

    def __init__(
        self, engine: Engine, source: RulesSource, seconds: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._source = source
        self._seconds = seconds
        self._clock = clock
        self._due = float("-inf")

    def __call__(self) -> None:
        """Refresh if it is due. Raises what `refresh_rules` raises; it is due again at once then."""
        if self._clock() >= self._due:
            refresh_rules(self._engine, self._source)
            self._due = self._clock() + self._seconds


def refresh_rules(engine: Engine, source: RulesSource, now_us: int | None = None) -> RulesChanges:
    """Load the rules of the source's venue and record what changed, as of `now_us` (this machine's clock when None).

    Raises `Unavailable` where the exchange or the database does not answer, or the exchange answers by half; the rules
    known so far stay as they are.
    """
    found = source.instruments()
    changes = record_rules(engine, source.venue, found, time.time_ns() // 1000 if now_us is None else now_us)
    if changes.added or changes.changed or changes.gone:
        log.info(
            "instruments.changed",
            venue=source.venue,
            added=len(changes.added),
            changed=changes.changed[:20],
            gone=changes.gone[:20],
        )
    return changes
