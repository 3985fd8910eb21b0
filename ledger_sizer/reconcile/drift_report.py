"""Reads what is known of one drift: its positions, its holds, its decisions, its runs. Writes nothing."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine, bindparam, select

from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_reports import DriftEvent, DriftPosition, DriftReport
from ledger_sizer.model.drift_words import holds_named
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Market
from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.deciding import EVENTS
from ledger_sizer.reconcile.ledger_reads import find_decisions, read_ledger, read_with_late_fills
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import DecisionRow, ReconciliationRow
from ledger_sizer.views.attribution import AccountKey, AccountResolver, known_since

_POSITIONS_MAX = 100
_REVISIONS_MAX = 50
"""The newest revisions whose decisions are looked up."""


def read_report(engine: Engine, drift_id: object) -> DriftReport:
    """Return one drift in full. Raises `NotFound`."""
    drift = drifts.get_drift(engine, drift_id)
    accounts, ended_at = _runs_of(engine, drift)
    found = []
    if drift.kind in QUANTITY_KINDS or drift.kind == "legs_unequal":
        positions, scopes = read_ledger(engine, drift.portfolio, since_us=2**62)
        resolver = AccountResolver(accounts, known_since(scopes))
        found = [
            (position, *there)
            for position in reversed(positions)
            if position.state == "open" and (there := _coins_there(drift, position, resolver)) is not None
        ]
    shown = found[:_POSITIONS_MAX]
    numbers = [int(name.rpartition("-")[2]) for name in _names_of_holds(drift)]
    holds = read_with_late_fills(engine, drift.portfolio, numbers) if numbers else []
    actors = _actors_of(engine, drift.portfolio, [*(one[0].number for one in shown), *(one.number for one in holds)])
    events = _events_of(engine, drift)
    freezes = [one.decided_at for one in events if one.event == "freeze"]
    return DriftReport(
        drift, frozen_at=min(freezes, default=None), first_run_at=ended_at.get(drift.first_run),
        last_run_at=ended_at.get(drift.last_run),
        positions=tuple(_position(position, side, coins, actors) for position, side, coins in shown),
        positions_left_out=len(found) - len(shown),
        holds=tuple(_position(one, "", one.quantity, actors) for one in holds), events=events,
    )  # fmt: skip


def _runs_of(engine: Engine, drift: Drift) -> tuple[list[AccountKey], dict[int, datetime]]:
    """Return the accounts of the run that saw it last, and when its first and its last run ended."""
    query = select(ReconciliationRow.id, ReconciliationRow.fetched, ReconciliationRow.finished_us)
    with read_transaction(engine) as connection:
        rows = connection.execute(query.where(ReconciliationRow.id.in_((drift.first_run, drift.last_run)))).all()
    fetched = next((row.fetched for row in rows if row.id == drift.last_run), "[]")
    accounts = [(one["venue"], one["account"]) for one in json.loads(fetched)]
    return accounts, {row.id: from_us(row.finished_us) for row in rows}


def _coins_there(drift: Drift, position: Position, resolver: AccountResolver) -> tuple[str, Decimal] | None:
    """Return side and coins of a position in the market of a drift, or in its coin; None if it has none there."""
    bought = sold = Decimal(0)
    with exact_arithmetic():
        for leg, market in resolver.legs(position):
            if leg.planned_only or not _is_about(drift, position, market):
                continue
            bought += leg.filled if leg.side == "buy" else 0
            sold += leg.filled if leg.side == "sell" else 0
        if not bought and not sold:
            return None
        coins = bought - sold
    if drift.market.is_swap:
        return ("long", coins) if coins >= 0 else ("short", abs(coins))
    return "", coins


def _is_about(drift: Drift, position: Position, market: Market | None) -> bool:
    if drift.kind == "legs_unequal":
        if drift.subject == position.position_id:
            return True
        here = market is not None and drift.venue in ("", market.venue) and drift.account in ("", market.account)
        return here and market is not None and market.base == drift.subject
    return market in (drift.market, drift.market.opposite)


def _names_of_holds(drift: Drift) -> list[str]:
    names = [drift.subject] if drift.kind == "expired_hold" else []
    return names + (holds_named(drift.detail) if drift.kind == "late_fill" else [])


def _actors_of(engine: Engine, portfolio: str, numbers: Sequence[int]) -> dict[int, str | None]:
    """Return who made these positions, by number."""
    query = select(DecisionRow.seq, DecisionRow.actor).where(DecisionRow.seq.in_(bindparam("seqs", expanding=True)))
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        rows = connection.execute(query.where(DecisionRow.portfolio_id == owner), {"seqs": [*numbers]})
        return {row.seq: row.actor for row in rows}


def _position(position: Position, side: str, coins: Decimal | None, actors: dict[int, str | None]) -> DriftPosition:
    return DriftPosition(
        position.position_id, position.state, side, coins, position.tags, from_us(position.opened_us),
        actors.get(position.number),
    )  # fmt: skip


def _events_of(engine: Engine, drift: Drift) -> tuple[DriftEvent, ...]:
    """Return the decisions about it, oldest first: that it was counted, confirmed, frozen, decided, resolved."""
    keys = [f"reconcile:{event}:{drift.id}" for event in ("confirmed", "freeze", "resolved")]
    keys += [f"reconcile:freeze:{drift.id}:{scope}" for scope in drift.frozen_scopes]
    for revision in range(drift.revision, max(drift.revision - _REVISIONS_MAX, -1), -1):
        keys += [f"drift:{drift.id}:{revision}:{event}" for event in (*EVENTS.values(), "asset_policy", "adopt")]
        keys.append(f"reconcile:count:{drift.id}:{revision}")
    found = find_decisions(engine, drift.portfolio, keys)
    return tuple(map(_event, _in_order(found.values())))


def _in_order(records: Iterable[DecisionRecord]) -> list[DecisionRecord]:
    return sorted(records, key=lambda record: record.seq)


def _event(record: DecisionRecord) -> DriftEvent:
    request = json.loads(record.request)
    event = request["event"] if record.command == "remark" else record.command
    if record.key.startswith("reconcile:count:"):
        event = "counted"
    return DriftEvent(record.seq, from_us(record.decided_us), record.actor, event, request.get("note"))
