"""Loading the market rules of an exchange into the database: what the scheduler and `instruments refresh` do."""

import time

from sqlalchemy import Engine

from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.instrument_cache import RulesChanges, record_rules
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)


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
