"""Loads the market rules of an exchange into the database. The scheduler and `instruments refresh` call it."""

import time
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Engine

from ledger_sizer.exchanges.instrument_cache import RulesChanges, record_rules
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

RETRY_SECONDS = 60
"""A failed refresh is retried after this time, however long the interval is."""


class RulesSource(Protocol):
    """Source of a venue's market rules, such as an `ExchangeAccount`."""

    venue: str

    def instruments(self) -> list[MarketRules]:
        """Return the rules of every spot and swap market. Raises `Unavailable`."""


class ScheduledRefresh:
    """Job that runs `refresh_rules` every `seconds`. The scheduler calls it every `RETRY_SECONDS`, to retry failures.

    clock: monotonic, in seconds.
    """

    def __init__(
        self, engine: Engine, source: RulesSource, seconds: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._source = source
        self._seconds = seconds
        self._clock = clock
        self._due_at = float("-inf")

    def __call__(self) -> None:
        """Refresh if it is due. Raises what `refresh_rules` raises, and then stays due."""
        if self._clock() >= self._due_at:
            refresh_rules(self._engine, self._source)
            self._due_at = self._clock() + self._seconds


def refresh_rules(engine: Engine, source: RulesSource, now_us: int | None = None) -> RulesChanges:
    """Load the rules of the source's venue and record what changed, as of `now_us` (this machine's clock when None).

    Raises `Unavailable` when the exchange or the database does not respond, or when the exchange lists only part of
    its markets. The known rules then stay as they are.
    """
    rules = source.instruments()
    changes = record_rules(engine, source.venue, rules, time.time_ns() // 1000 if now_us is None else now_us)
    if changes.added or changes.changed or changes.gone:
        log.info(
            "instruments.changed",
            venue=source.venue,
            added=len(changes.added),
            changed=changes.changed[:20],
            gone=changes.gone[:20],
        )
    return changes
