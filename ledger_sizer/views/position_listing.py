"""Reads a page of positions in order of their number, by whichever index finds it without reading all of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, literal, select, text

from ledger_sizer.model.choices import POSITION_STATES
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.times import UNTIL_KNOWN_US
from ledger_sizer.model.units import E8_MAX
from ledger_sizer.storage.tables import PENDING, PositionRow

LIVE = "live"
"""A further value of the state filter: held or open."""

UNTIL_KNOWN = "until_known"
"""A further value of the state filter: live, with a hold that never ends by time."""

_DENSE_POSITIONS = 5000


def read_in_state(
    connection: Connection,
    query: Select[Any],
    owner: int | None,
    state: str | None,
    after: tuple[int, ...],
    limit: int,
) -> list[Any]:
    """Return the rows of the page: at most one more than `limit` of each state, each state in order.

    query: of positions, with its other conditions. owner: the portfolio's id, None for all. after: id and number that
    the page follows. Raises `InvalidRequest` for a state that there is not.
    """
    query = query.limit(limit + 1)
    if state is None:
        return [*connection.execute(query.order_by(PositionRow.portfolio_id, PositionRow.number))]
    if state == UNTIL_KNOWN:
        # By the plain number SQLite would rather scan all positions there ever were (see `_in_state`).
        query = query.where(text(PENDING), PositionRow.expires_us == UNTIL_KNOWN_US)
        return [*connection.execute(query.order_by(PositionRow.portfolio_id, PositionRow.number + 0))]
    rows: list[Any] = []
    for one in _state_values(state):
        found = () if owner is None or one != "held" else _dense_page(connection, query, owner, after)
        rows += found if len(found) > limit else connection.execute(_in_state(query, one))
    return rows


def _dense_page(connection: Connection, query: Select[Any], owner: int, after: tuple[int, ...]) -> Sequence[Any]:
    """Return the held positions among the next few thousand of a portfolio.

    Where there are very many they fill the page. The index of holds is by expiry, so without this each page would sort
    them all.
    """
    number = PositionRow.number
    first = after[1] if after[0] == owner else 0
    last = select(number).where(PositionRow.portfolio_id == owner, number > first).order_by(number)
    end = func.coalesce(last.limit(1).offset(_DENSE_POSITIONS).scalar_subquery(), E8_MAX)
    dense = query.where(PositionRow.portfolio_id == owner, number > first, number <= end)
    return connection.execute(dense.where(PositionRow.state == "held").order_by(number)).all()


def _in_state(query: Select[Any], state: str) -> Select[Any]:
    # A partial index has the open positions, another the held ones. Each is used only if its condition is in the text.
    # The latter is by expiry: if ordered by the plain number, SQLite would rather scan all positions there ever were.
    query = query.where(PositionRow.state == literal(state, literal_execute=True))
    if state == "held":
        return query.where(text(PENDING)).order_by(PositionRow.portfolio_id, PositionRow.number + 0)
    return query.order_by(PositionRow.portfolio_id, PositionRow.number)


def _state_values(state: str) -> tuple[str, ...]:
    if state == LIVE:
        return ("held", "open")
    if state not in POSITION_STATES:
        raise InvalidRequest(
            f"state must be one of {', '.join(POSITION_STATES)}, {LIVE} or {UNTIL_KNOWN}, got {state!r}", field="state"
        )
    return (state,)
