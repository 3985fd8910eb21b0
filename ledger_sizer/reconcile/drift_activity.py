"""Asks the account of a drift what happened since the last good run before it, and explains the drift with that."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Protocol

from sqlalchemy import Engine, select

from ledger_sizer.history.times import seq_before
from ledger_sizer.model.account_activity import Activity, DriftActivity
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.reconciliation import QUOTE, Drift
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile.drifts import get_drift
from ledger_sizer.reconcile.explanation import explain_drift
from ledger_sizer.reconcile.ledger_reads import FILLS
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import DecisionRow, PositionRow, ReconciliationRow
from ledger_sizer.storage.write_store import position_from_row
from ledger_sizer.views.attribution import AccountKey, AccountResolver

_MOVES_MAX = 5000
_LOOKBACK_US = 7 * 24 * 3600 * 1_000_000
_NOT_TOLD = frozenset({"fetch_failed", "unreadable", "expired_hold"})
"""Kinds that no event at the exchange explains."""


class AskedAccount(Protocol):
    """An account that can be asked. See `ExchangeAccount`."""

    venue: str
    account: str

    def activity(self, since_us: int, now_us: int, subject: str) -> Activity:
        """Return what happened in one market or asset since a time. Never raises for a failure of the exchange."""


def drift_activity(
    engine: Engine, accounts: Sequence[AskedAccount], drift_id: object, now_us: Callable[[], int],
    quote_assets: Sequence[str],
) -> DriftActivity:  # fmt: skip
    """Return what happened at the exchange that explains a drift. Asks the exchange, and writes nothing.

    Raises `NotFound`, and `InvalidRequest` for a drift that no account can be asked about.
    """
    drift = get_drift(engine, drift_id)
    account = next((one for one in accounts if (one.venue, one.account) == (drift.venue, drift.account)), None)
    if drift.kind in _NOT_TOLD or not drift.account or (":" not in drift.subject and drift.kind == "legs_unequal"):
        raise InvalidRequest(f"{drift.name} ({drift.kind}) is about no market of one account", field="drift")
    if account is None:
        raise InvalidRequest(f"no account {drift.venue}/{drift.account} is configured here", field="drift")
    since_us, until_us = _window(engine, drift, now_us())
    subjects = quote_assets[:2] if drift.subject == QUOTE else (drift.subject,)
    found = [account.activity(since_us, now_us(), subject) for subject in subjects]
    activity = Activity(
        max(one.since_us for one in found),
        tuple(dict.fromkeys(event for one in found for event in one.events)),
        tuple(dict.fromkeys(problem for one in found for problem in one.problems)),
    )
    account_keys = [(one.venue, one.account) for one in accounts]
    moves = [] if drift.subject == QUOTE else _ledger_moves(engine, drift, account_keys, activity.since_us, until_us)
    return explain_drift(drift, activity, moves, until_us)


def _window(engine: Engine, drift: Drift, now_us: int) -> tuple[int, int]:
    """Return when the last good run before the drift began, and when the drift was last measured."""
    runs = select(ReconciliationRow.started_us, ReconciliationRow.finished_us)
    good = runs.where(
        ReconciliationRow.portfolio == drift.portfolio, ReconciliationRow.outcome == "good",
        ReconciliationRow.id < drift.first_run,
    ).order_by(ReconciliationRow.id.desc()).limit(1)  # fmt: skip
    with read_transaction(engine) as connection:
        before = connection.execute(good).one_or_none()
        last = connection.execute(runs.where(ReconciliationRow.id == drift.last_run)).one_or_none()
    until_us = drift.updated_us if last is None else last.finished_us
    return (now_us - _LOOKBACK_US if before is None else before.started_us), until_us


def _ledger_moves(
    engine: Engine, drift: Drift, accounts: Sequence[AccountKey], since_us: int, until_us: int
) -> list[Decimal]:
    """Return what fills and closes did to the ledger in the drift's market, coins, bought above 0, oldest first."""
    resolver, moves = AccountResolver(accounts), []
    with read_transaction(engine) as connection, exact_arithmetic():
        owner = portfolio_id(connection, drift.portfolio)
        if owner is None:
            return []
        first = seq_before(connection, owner, 1, since_us + 1)
        decided = connection.execute(
            select(DecisionRow.position, DecisionRow.command, DecisionRow.quantity)
            .where(
                DecisionRow.portfolio_id == owner, DecisionRow.seq > first, DecisionRow.decided_us <= until_us,
                DecisionRow.command.in_((*FILLS, "release")), DecisionRow.quantity.is_not(None),
            )
            .order_by(DecisionRow.seq.desc()).limit(_MOVES_MAX)
        ).all()[::-1]  # fmt: skip
        numbers = sorted({number for number, _, _ in decided if number is not None})
        positions = {}
        for start in range(0, len(numbers), 100):
            query = select(PositionRow.__table__).where(
                PositionRow.portfolio_id == owner, PositionRow.number.in_(numbers[start : start + 100])
            )
            for row in connection.execute(query):
                found = position_from_row(drift.portfolio, row)
                positions[found.number] = found
        for number, command, quantity in decided:
            position = None if number is None else positions.get(number)
            if position is None or EXTERNAL_TAG in position.tags:
                continue
            coins = Decimal(quantity or 0)
            for leg, market in resolver.legs(position):
                if market == drift.market and coins:
                    bought = (leg.side == "buy") == (command != "release")
                    moves.append(coins if bought else -coins)
    return moves
