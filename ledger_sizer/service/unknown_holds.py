"""Tells of holds whose order's fate is not known for long: in the log, in the audit chain, at the webhook.

Such a hold never ends by time (`until_known`), so somebody has to decide it. What was told is kept as a remark in the
portfolio's chain, whose key names the hold and how often it was told: so each is told once, by whichever replica, also
across restarts, and again after `AGAIN_SECONDS` if nothing was decided about it since.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import Connection, Engine, select, text

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.caller import SYSTEM, calling_as
from ledger_sizer.model.commands import Remark
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.names import position_id
from ledger_sizer.model.times import UNTIL_KNOWN_US, from_us, time_text
from ledger_sizer.model.units import usd_text
from ledger_sizer.reconcile.outbox import enqueue_event
from ledger_sizer.storage.clock import read_database_now_us
from ledger_sizer.storage.database import read_transaction, write_transaction
from ledger_sizer.storage.tables import PENDING, DecisionRow, PortfolioRow, PositionRow
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

AGAIN_SECONDS = 4 * 3600
"""A hold is told of again after this time without a decision about it."""

LOOK_SECONDS_MAX = 60
"""Longest time between two looks."""

_TOLD_MAX = 1000
"""Most holds that one look tells of; the others follow with the next."""

_LISTED_MAX = 100
_KEYS_PER_LOOKUP = 500


class OldHold(NamedTuple):
    """A hold that never ends by time. since_us, since_seq: of the last decision about it, which is long ago."""

    portfolio_id: int
    portfolio: str
    number: int
    held_e8: int
    since_us: int
    since_seq: int

    @property
    def position_id(self) -> str:
        """Name of the position."""
        return position_id(self.portfolio, self.number)

    def key(self, times: int) -> str:
        """Return the key of the remark that tells of it for the `times`-th time."""
        return f"unknown-hold:{self.position_id}:{self.since_seq}:{times}"


class UnknownHolds:
    """The job that tells of them. engine: that may write, for the webhook's outbox. now_us: replaced by tests."""

    def __init__(self, ledger: Ledger, engine: Engine, *, now_us: Callable[[Connection], int] | None = None) -> None:
        self._ledger = ledger
        self._engine = engine
        self._now_us = now_us or read_database_now_us
        self._older_than_us = ledger.settings.ledger.unknown_alert_seconds * 1_000_000
        self._webhook = ledger.settings.reconcile.webhook_url is not None

    @property
    def wanted(self) -> bool:
        """Whether the settings ask for it."""
        return self._older_than_us > 0

    @property
    def look_seconds(self) -> int:
        """Time between two looks."""
        return max(min(self._older_than_us // 4_000_000, LOOK_SECONDS_MAX), 1)

    def __call__(self) -> str | None:
        """Tell of the holds that are old and were not told of. Returns `told` if there were any.

        Raises `Unavailable`: what was not recorded by then is told with the next look.
        """
        due = self._due()
        # First the outbox: a crash in between tells the webhook twice, and never not at all.
        for portfolio, holds in groupby(due, key=lambda one: one[0].portfolio):
            self._tell(portfolio, [*holds])
        return "told" if due else None

    def _due(self) -> list[tuple[OldHold, str]]:
        """Return the old holds that were not told of, with the keys of their remarks, by portfolio."""
        found: list[tuple[OldHold, str]] = []
        with read_transaction(self._engine) as connection:
            now_us = self._now_us(connection)
            holds = _old_holds(connection, now_us - self._older_than_us)
            asked = [(hold, hold.key(self._times(hold, now_us))) for hold in holds]
            for of_portfolio in _in_parts(asked):
                told = _used_keys(connection, of_portfolio[0][0].portfolio_id, [key for _, key in of_portfolio])
                found += [(hold, key) for hold, key in of_portfolio if key not in told]
        return found[:_TOLD_MAX]

    def _times(self, hold: OldHold, now_us: int) -> int:
        """Return how often it should have been told of before now."""
        return (now_us - self._older_than_us - hold.since_us) // (AGAIN_SECONDS * 1_000_000)

    def _tell(self, portfolio: str, due: Sequence[tuple[OldHold, str]]) -> None:
        listed = [
            {
                "position_id": hold.position_id,
                "held": usd_text(hold.held_e8),
                "since": time_text(from_us(hold.since_us)),
            }
            for hold, _ in due
        ]
        log.warning("unknown_holds.old", portfolio=portfolio, holds=len(due), oldest=listed[0])
        if self._webhook:
            digest = hashlib.sha256("\n".join([key for _, key in due]).encode()).hexdigest()[:24]
            body = {"event": "unknown_holds", "portfolio": portfolio, "count": len(due), "holds": listed[:_LISTED_MAX]}
            with write_transaction(self._engine) as connection:
                enqueue_event(connection, f"unknown-holds-{digest}", json.dumps(body))
        remarks = [
            Remark(
                key=key, portfolio=portfolio, about=hold.position_id, event="unknown_hold",
                note="the fate of its order is not known: find it at the exchange, then fill or release it",
                details={"held": one["held"], "since": one["since"]},
            )
            for (hold, key), one in zip(due, listed, strict=True)
        ]  # fmt: skip
        with calling_as(SYSTEM):
            results = self._ledger.submit(remarks)
        failed = next((result for result in results if isinstance(result, LedgerError)), None)
        if failed is not None:
            raise failed


def _old_holds(connection: Connection, before_us: int) -> Iterator[OldHold]:
    """Yield the holds that never end by time and did not change since, by portfolio, the oldest first."""
    row = PositionRow
    query = (
        select(row.portfolio_id, PortfolioRow.name, row.number, row.held_e8, row.updated_us, row.updated_seq)
        .join_from(PortfolioRow, PositionRow, row.portfolio_id == PortfolioRow.id)
        .where(text(PENDING), row.expires_us == UNTIL_KNOWN_US, row.updated_us <= before_us)
        .order_by(PortfolioRow.name, row.updated_us, row.number)
    )
    return (OldHold(*found) for found in connection.execute(query).all())


def _in_parts(asked: Sequence[tuple[OldHold, str]]) -> Iterator[list[tuple[OldHold, str]]]:
    """Yield runs of one portfolio, short enough for one look-up."""
    for _, of_portfolio in groupby(asked, key=lambda one: one[0].portfolio_id):
        part = [*of_portfolio]
        for start in range(0, len(part), _KEYS_PER_LOOKUP):
            yield part[start : start + _KEYS_PER_LOOKUP]


def _used_keys(connection: Connection, owner: int, keys: Sequence[str]) -> set[str]:
    query = select(DecisionRow.key).where(DecisionRow.portfolio_id == owner, DecisionRow.key.in_(keys))
    return set(connection.execute(query).scalars())
