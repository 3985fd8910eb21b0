"""Loading the market rules of an exchange into the database: what the scheduler and `instruments refresh` do."""

import time

from sqlalchemy import Engine

from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.instrument_cache import RulesChanges, record_rules
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

RETRY_SECONDS = 60
"""A refresh that failed is tried again after this time, however long the interval is."""


class ScheduledRefresh:
    """`refresh_rules` for a scheduler that calls every `RETRY_SECONDS`: once done, it rests for `seconds`."""

    def __init__(self, engine: Engine, account: ExchangeAccount, seconds: int) -> None:
        self._engine = engine
        self._account = account
        self._seconds = seconds
        self._due = float("-inf")

    def __call__(self) -> None:
        """Refresh if it is due. Raises what `refresh_rules` raises; it is due again at once then."""
        if time.monotonic() >= self._due:
            refresh_rules(self._engine, self._account)
            self._due = time.monotonic() + self._seconds


def refresh_rules(engine: Engine, account: ExchangeAccount, now_us: int | None = None) -> RulesChanges:
    """Load the rules of the account's venue and record what changed, as of `now_us` (this machine's clock when None).

    Raises `Unavailable` where the exchange or the database does not answer, or the exchange answers by half; the rules
    known so far stay as they are.
    """
    found = account.instruments()
    changes = record_rules(engine, account.venue, found, time.time_ns() // 1000 if now_us is None else now_us)
    if changes.added or changes.changed or changes.gone:
        log.info(
            "instruments.changed",
            venue=account.venue,
            added=len(changes.added),
            changed=changes.changed[:20],
            gone=changes.gone[:20],
        )
    return changes
