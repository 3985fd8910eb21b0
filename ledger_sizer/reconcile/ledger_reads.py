"""Reads what a comparison needs from the ledger: positions, what moved them lately, what they were granted."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from operator import itemgetter
from typing import Any

from sqlalchemy import Engine, Select, bindparam, or_, select, text, union_all

from ledger_sizer.history.times import seq_before
from ledger_sizer.model.caller import RECONCILE
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import Leg, legs_of_json
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.model.units import exact_arithmetic, usd
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.storage.database import is_sqlite, read_transaction, stream_rows
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import PENDING, DecisionRow, PortfolioRow, PositionRow
from ledger_sizer.storage.write_store import position_from_row, record_from_row
from ledger_sizer.views.scopes import read_shared

_BATCH_ROWS = 100
_LOOKBACK = 20_000
"""Positions that are searched for the last price of an asset, and for released holds."""

FILLS = ("confirm", "fill", "adopt")
MOVED_BY = (*FILLS, "release")
"""Commands that change what a position holds."""

KEEP_KEY = "drift:%:keep:%"
"""Pattern of the keys under which an adoption keeps the legs that a released position leaves."""


def read_head(engine: Engine, portfolio: str) -> int:
    """Return the seq of the portfolio's newest decision; 0 if the portfolio does not exist."""
    with read_transaction(engine) as connection:
        return connection.execute(select(PortfolioRow.last_seq).where(PortfolioRow.name == portfolio)).scalar() or 0


def read_ended_budgets(engine: Engine, portfolio: str, positions: Iterable[Position]) -> dict[int, Decimal]:
    """Return the USD granted to ended holds without legs, by position number. Their rows keep no budget."""
    numbers = [one.number for one in positions if one.state in ("expired", "released") and not one.legs]
    query = select(DecisionRow.seq, DecisionRow.held_delta_e8)
    return {number: usd(held_e8) for number, held_e8 in _read_decisions(engine, portfolio, query, numbers)}


@dataclass(slots=True)
class Moves:
    """What fills and closes did to positions lately, by number.

    filled, closed: coins, since the time from which they may not be visible yet. last: seq and time of the last of
    them. asked: the positions that were looked up. Whatever else was decided about these did not move them.
    """

    filled: dict[int, Decimal] = field(default_factory=dict)
    closed: dict[int, Decimal] = field(default_factory=dict)
    last: dict[int, tuple[int, int]] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)

    def last_of(self, position: Position) -> tuple[int, int]:
        """Return seq and time (microseconds) of a position's last move; zeros if it is before the time asked for."""
        if position.number in self.asked:
            return self.last.get(position.number, (0, 0))
        return position.updated_seq, position.updated_us


def read_moves(
    engine: Engine, portfolio: str, positions: Iterable[Position], *, settled_us: int, sighted_us: int
) -> Moves:
    """Return the fills and closes of open positions since `settled_us`, and since the earlier `sighted_us` when.

    Most positions are updated by nothing else. Only those that may be are looked up that far back.
    """
    moves = Moves()
    sighted_us = min(sighted_us, settled_us)
    moves.asked = {
        one.number for one in positions
        if one.state == "open" and one.updated_us > (sighted_us if _may_be_updated_unmoved(one) else settled_us)
    }  # fmt: skip
    if not moves.asked:
        return moves
    columns = (
        DecisionRow.seq, DecisionRow.position, DecisionRow.command, DecisionRow.quantity, DecisionRow.decided_us
    )  # fmt: skip
    with read_transaction(engine) as connection, exact_arithmetic():
        owner = portfolio_id(connection, portfolio)
        assert owner is not None, "its positions were read"
        since = seq_before(connection, owner, 1, sighted_us + 1)
        query = select(*columns).where(
            DecisionRow.portfolio_id == owner, DecisionRow.seq > since, DecisionRow.command.in_(MOVED_BY),
            DecisionRow.quantity.is_not(None),
        )  # fmt: skip
        for batch in throttled(stream_rows(connection, query, _BATCH_ROWS)):  # type: ignore[arg-type]
            for seq, number, command, quantity, decided_us in batch:
                if number not in moves.asked or quantity == "0":
                    continue
                moves.last[number] = max((seq, decided_us), moves.last.get(number, (0, 0)))
                if decided_us > settled_us:
                    moved = moves.filled if command in FILLS else moves.closed
                    moved[number] = moved.get(number, Decimal(0)) + Decimal(quantity)
    return moves


def _may_be_updated_unmoved(position: Position) -> bool:
    """Whether it may be updated again and again without a fill or a close: extended, or counted at another price."""
    return position.fills is not None or position.pending or any(leg.fills is not None for leg in position.legs)


def read_planned_hedges(engine: Engine, portfolio: str, numbers: Sequence[int]) -> set[int]:
    """Return which of these positions were planned with both sides, or are the rest of a hedge that was.

    numbers: of the decisions that made them. A decision that is archived counts as neither.
    """
    query = select(
        DecisionRow.seq, DecisionRow.command, DecisionRow.trace, DecisionRow.client == RECONCILE.client,
        DecisionRow.key.like(KEEP_KEY),
    )  # fmt: skip
    planned = set()
    for number, command, trace, ours, kept in throttled(_read_decisions(engine, portfolio, query, numbers)):
        sides = {side for _, _, _, side, *_ in json.loads(trace).get("legs", ())} if command == "reserve" else ()
        if len(sides) > 1 or (ours and kept):
            planned.add(number)
    return planned


def read_planned_legs(engine: Engine, portfolio: str, numbers: Sequence[int]) -> dict[int, tuple[Leg, ...]]:
    """Return the legs that these positions were planned with, by number; none of one that no reservation made."""
    query = select(DecisionRow.seq, DecisionRow.trace).where(DecisionRow.command == "reserve")
    traces = [(number, json.loads(trace)) for number, trace in _read_decisions(engine, portfolio, query, numbers)]
    return {number: legs_of_json(trace.get("legs", ())) for number, trace in traces}


def _read_decisions(
    engine: Engine, portfolio: str, query: Select[int, *tuple[Any, ...]], seqs: Sequence[int]
) -> list[tuple[Any, ...]]:
    """Run `query` (seq and other columns) for the decisions with these seqs, in batches that fit into one statement."""
    if not seqs:
        return []
    query = query.join(PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id).where(
        PortfolioRow.name == portfolio, DecisionRow.seq.in_(bindparam("seqs", expanding=True))
    )
    values: list[tuple[Any, ...]] = []
    with read_transaction(engine) as connection:
        for start in range(0, len(seqs), _BATCH_ROWS):
            rows = connection.execute(query, {"seqs": seqs[start : start + _BATCH_ROWS]})
            values += [tuple(row) for row in rows]
    return values


def find_decisions(engine: Engine, portfolio: str, keys: Sequence[str]) -> dict[str, DecisionRecord]:
    """Return the decisions of a portfolio with these keys, by key. Archived ones are not searched."""
    found = {}
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        query = select(DecisionRow.__table__).where(
            DecisionRow.portfolio_id == owner, DecisionRow.key.in_(bindparam("keys", expanding=True))
        )
        for start in range(0, len(keys), _BATCH_ROWS):
            for row in connection.execute(query, {"keys": keys[start : start + _BATCH_ROWS]}):
                found[row.key] = record_from_row(portfolio, row)
    return found


def read_positions(engine: Engine, portfolio: str, *, since_us: int) -> list[Position]:
    """Return every live position, and those closed or expired since `since_us`. Released holds are left out."""
    return read_ledger(engine, portfolio, since_us=since_us)[0]


def read_ledger(engine: Engine, portfolio: str, *, since_us: int) -> tuple[list[Position], list[ScopeState]]:
    """Return the positions (see `read_positions`), and the scopes of the portfolio's accounts as of the same decision.

    What accounts have promised belongs to exactly these positions.
    """
    rows: list[tuple[Any, ...]] = []
    with read_transaction(_one_snapshot(engine)) as connection:
        owner = portfolio_id(connection, portfolio)
        if owner is None:
            return [], []
        accounts = [scope for scope in read_shared(connection, owner) if scope.settings.since_seq is not None]
        # One SELECT per partial index, each with exactly the condition of its index: an OR would read all rows.
        query = union_all(
            *(
                select(PositionRow.__table__).where(PositionRow.portfolio_id == owner, text(condition))
                for condition in (
                    f"state = 'held' AND {PENDING}",
                    "state = 'open'",
                    f"state IN ('closed', 'expired') AND updated_us >= {since_us:d}",
                )
            )
        )
        for batch in throttled(stream_rows(connection, query, _BATCH_ROWS)):
            rows += batch
    rows.sort(key=itemgetter(1))  # by number
    return [position_from_row(portfolio, row) for row in throttled(rows)], accounts


def _one_snapshot(engine: Engine) -> Engine:
    """Return an engine whose transactions see one state of the database in all their statements, as SQLite's do."""
    return engine if is_sqlite(engine.url) else engine.execution_options(isolation_level="REPEATABLE READ")


def read_released_holds(engine: Engine, portfolio: str, *, since_us: int) -> list[Position]:
    """Return the holds released since `since_us` among the portfolio's newest 20,000 positions, oldest first.

    No index has them, because a release is common and a late fill of one is rare: to be read only for a difference.
    """
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        if owner is None:
            return []
        newest = select(PositionRow.number).where(PositionRow.portfolio_id == owner)
        first = connection.execute(newest.order_by(PositionRow.number.desc()).offset(_LOOKBACK).limit(1)).scalar() or 0
        query = select(PositionRow.__table__).where(
            PositionRow.portfolio_id == owner, PositionRow.number > first, PositionRow.state == "released",
            PositionRow.updated_us >= since_us,
        )  # fmt: skip
        rows = connection.execute(query.order_by(PositionRow.number)).all()
    return [position_from_row(portfolio, row) for row in throttled(rows)]


def read_with_late_fills(engine: Engine, portfolio: str, numbers: Collection[int]) -> list[Position]:
    """Return the positions with these numbers, and those that record their late fills, oldest first."""
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        query = select(PositionRow.__table__).where(
            PositionRow.portfolio_id == owner,
            or_(PositionRow.number.in_(numbers), PositionRow.origin.in_(numbers)),
        )
        return [position_from_row(portfolio, row) for row in connection.execute(query.order_by(PositionRow.number))]


def last_prices(engine: Engine, portfolio: str, assets: Collection[str]) -> dict[str, Decimal]:
    """Return the prices at which the portfolio last traded these assets, USD per coin.

    Searches its newest 20,000 positions. An asset that none of them traded is left out.
    """
    rows: list[tuple[Any, ...]] = []
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio)
        if owner is None:
            return {}
        query = select(PositionRow.__table__).where(PositionRow.portfolio_id == owner)
        newest_first = query.order_by(PositionRow.number.desc()).limit(_LOOKBACK)
        for batch in throttled(stream_rows(connection, newest_first, _BATCH_ROWS)):
            rows += batch
    prices: dict[str, Decimal] = {}
    for position in (position_from_row(portfolio, row) for row in throttled(rows)):
        if position.state not in ("open", "closed") or EXTERNAL_TAG in position.tags:
            continue
        for leg in position.legs:
            asset = split_factor(leg.symbol.partition("/")[0])[1]
            if asset in assets and leg.price is not None:
                prices.setdefault(asset, leg.price)
        if len(prices) == len(assets):
            break
    return prices
