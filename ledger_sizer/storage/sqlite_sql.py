"""Writes a batch to SQLite: as plain statements, or as one INSERT into a view with triggers.

Python releases the GIL during each call into SQLite and must win it back afterwards, so dozens of calls per batch stall
beside a busy event loop. SQLite has no stored procedures. Instead, a temporary view accepts rows of several kinds, and
its INSTEAD OF triggers write each row to its table. One multi-row INSERT checks the chain's head, writes the batch and,
outside a transaction, commits.

Every row pays for the set-up of every trigger, so there are few of both: a decision shares its row with one of the
positions that the batch changed, no matter which. For a few commands, and for rare changes, plain statements cost less.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ledger_sizer.model.choices import Status
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.storage.tables import DESK_ID, NO_DESK
from ledger_sizer.storage.write_store import (
    COUNTERS,
    DECISION_COLUMNS,
    PORTFOLIO_COLUMNS,
    POSITION_COLUMNS,
    SCOPE_CHANGE,
    PortfolioChanges,
    counters_row,
    new_portfolio_row,
    position_row,
    scope_row,
)

HEAD_MOVED = "the chain moved on"

_DECISION_WIDTH = len(DECISION_COLUMNS)
_WIDTH = _DECISION_WIDTH + len(POSITION_COLUMNS) - 1
"""Values of a view row after its kind: a decision and a position of the same portfolio. Shorter rows are padded."""

_ROWS_MIN = 12
_ROWS_MAX = 768
"""Rows of one batch statement. SQLite binds at most 32,766 values; below 12 rows plain statements are faster."""

_FILLER, _HEAD, _COUNTERS, _DECISION, _DECISION_NEW_POSITION, _DECISION_CHANGED_POSITION = range(6)
"""Kinds of view rows."""


def _insert(table: str, columns: Sequence[str], places: Sequence[int]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f'?{place}' for place in places)})"


def _places(columns: Sequence[str]) -> range:
    return range(1, len(columns) + 1)


def _update_position(places: Sequence[int]) -> str:
    portfolio, number, *rest = zip(POSITION_COLUMNS, places, strict=True)
    assignments = ", ".join(f"{name} = ?{place}" for name, place in rest)
    return f"UPDATE positions SET {assignments} WHERE portfolio_id = ?{portfolio[1]} AND number = ?{number[1]}"


_UPDATE_HEAD = "UPDATE portfolios SET last_seq = ?1, last_hash = ?2, last_us = ?3 WHERE id = ?4 AND last_hash = ?5"
_INSERT_DECISION = _insert("decisions", DECISION_COLUMNS, _places(DECISION_COLUMNS))
_INSERT_POSITION = _insert("positions", POSITION_COLUMNS, _places(POSITION_COLUMNS))
_UPDATE_POSITION = _update_position(_places(POSITION_COLUMNS))
_COUNTERS_SET = "UPDATE scopes SET held_e8 = held_e8 + ?3, open_e8 = open_e8 + ?4, overage_e8 = ?5, promised_e8 = ?6"
_SETTINGS = len(COUNTERS)
_SETTINGS_SET = "".join(f", {name} = ?{place}" for place, name in enumerate(SCOPE_CHANGE[_SETTINGS:], _SETTINGS + 1))
_OF_SCOPE = "WHERE portfolio_id = ?1 AND scope = ?2"
_UPDATE_COUNTERS = f"{_COUNTERS_SET} {_OF_SCOPE}"
_UPDATE_SCOPE = f"{_COUNTERS_SET}{_SETTINGS_SET} {_OF_SCOPE}"
_INSERT_PORTFOLIO = _insert("portfolios", PORTFOLIO_COLUMNS, _places(PORTFOLIO_COLUMNS))
_INSERT_SCOPE = _insert("scopes", SCOPE_CHANGE, _places(SCOPE_CHANGE))

_PLACES_AFTER_DECISION = (1, *range(_DECISION_WIDTH + 1, _WIDTH + 1))
"""Places of a position's values in a view row that begins with a decision. Both share the portfolio's id."""

_DESK_ROW = f"SELECT status FROM scopes WHERE portfolio_id = {DESK_ID} AND scope = '{PORTFOLIO_SCOPE}'"
_DESK_STATUS = f"SELECT COALESCE(({_DESK_ROW}), '{NO_DESK}')"
_TRIGGERS = {
    _HEAD: (
        _UPDATE_HEAD,
        f"SELECT RAISE(ABORT, '{HEAD_MOVED}') WHERE changes() = 0 OR (?6 IS NOT NULL AND ?6 <> ({_DESK_STATUS}))",
    ),
    _COUNTERS: (_UPDATE_COUNTERS,),
    _DECISION: (_INSERT_DECISION,),
    _DECISION_NEW_POSITION: (_INSERT_DECISION, _insert("positions", POSITION_COLUMNS, _PLACES_AFTER_DECISION)),
    _DECISION_CHANGED_POSITION: (_INSERT_DECISION, _update_position(_PLACES_AFTER_DECISION)),
}


def create_batch_view(connection: sqlite3.Connection) -> None:
    """Create the batch view of a connection. It is temporary: it ends with the connection and is in no file."""
    columns = ", ".join(f"NULL AS c{place}" for place in range(1, _WIDTH + 1))
    connection.execute(f"CREATE TEMP VIEW batch AS SELECT 0 AS kind, {columns} WHERE 0")
    for kind, statements in _TRIGGERS.items():
        body = re.sub(r"\?(\d+)", r"NEW.c\1", "; ".join(statements))
        connection.execute(
            f"CREATE TEMP TRIGGER batch_{kind} INSTEAD OF INSERT ON batch WHEN NEW.kind = {kind} BEGIN {body}; END"
        )


def fits_batch_statement(changes: Sequence[PortfolioChanges]) -> bool:
    """Whether one batch statement can store these changes, faster than plain statements."""
    rows = sum(1 + len(change.decisions) + len(change.counter_changes) for change in changes)
    return _ROWS_MIN <= rows <= _ROWS_MAX and not any(change.new_scopes or change.scope_changes for change in changes)


def batch_statement(changes: Sequence[PortfolioChanges]) -> tuple[str, list[Any]]:
    """Return the one statement that stores these changes, with its values. Fails when a chain's head has moved."""
    values: list[Any] = []
    rows = 0
    for change in changes:
        for row in _view_rows(change):
            values += row
            values += _PADDING[len(row)]
            rows += 1
    size = _padded_rows(rows)
    values += [_FILLER, *_PADDING[1]] * (size - rows)
    return _batch_insert(size), values


def _view_rows(change: PortfolioChanges) -> Iterator[list[Any]]:
    portfolio = change.portfolio_id
    # The head first: if it has moved, nothing else is written.
    yield [_HEAD, *_head_values(change), change.desk_status]
    for scope in change.counter_changes:
        yield [_COUNTERS, *counters_row(portfolio, scope)]
    positions = iter(
        [(_DECISION_NEW_POSITION, *position_row(portfolio, one)[1:]) for one in change.new_positions]
        + [(_DECISION_CHANGED_POSITION, *position_row(portfolio, one)[1:]) for one in change.changed_positions]
    )
    for record, _ in change.decisions:
        kind, *position = next(positions, (_DECISION,))
        yield [kind, portfolio, *record[1:], *position]
    assert next(positions, None) is None, "every position that moved has a decision that moved it"


def desk_status(connection: sqlite3.Connection) -> Status:
    """Return the desk's status."""
    found: Status = connection.execute(_DESK_STATUS).fetchone()[0]
    return found


def _head_values(change: PortfolioChanges) -> tuple[Any, ...]:
    return change.last_seq, change.last_hash, change.last_us, change.portfolio_id, change.previous_hash


def execute_statements(connection: sqlite3.Connection, change: PortfolioChanges) -> None:
    """Store one portfolio's changes in the open transaction.

    Raises `sqlite3.IntegrityError` if its head has moved, or the desk's status.
    """
    if change.begins:
        connection.execute(_INSERT_PORTFOLIO, new_portfolio_row(change))
        moved = False
    else:
        moved = connection.execute(_UPDATE_HEAD, _head_values(change)).rowcount == 0
    if moved or (change.desk_status is not None and desk_status(connection) != change.desk_status):
        raise sqlite3.IntegrityError(HEAD_MOVED)
    portfolio = change.portfolio_id
    for statement, rows in (
        # Changes first: where a late fill's position ended, the next one may begin.
        (_UPDATE_POSITION, [position_row(portfolio, one) for one in change.changed_positions]),
        (_INSERT_POSITION, [position_row(portfolio, one) for one in change.new_positions]),
        (_INSERT_SCOPE, [scope_row(portfolio, one) for one in change.new_scopes]),
        (_UPDATE_COUNTERS, [counters_row(portfolio, one) for one in change.counter_changes]),
        (_UPDATE_SCOPE, [scope_row(portfolio, one) for one in change.scope_changes]),
        (_INSERT_DECISION, [(portfolio, *record[1:]) for record, _ in change.decisions]),
    ):
        if rows:
            connection.executemany(statement, rows)


_PADDING = [[None] * (_WIDTH + 1 - length) for length in range(_WIDTH + 2)]


def _padded_rows(rows: int) -> int:
    """Round up to one of a few sizes, so that the statements stay prepared. `_FILLER` rows make up the difference."""
    size = 4
    while size < rows:
        size += max(size // 8, 1)
    return size


@lru_cache(maxsize=64)
def _batch_insert(rows: int) -> str:
    row = f"({', '.join('?' * (_WIDTH + 1))})"
    return f"INSERT INTO batch VALUES {', '.join([row] * rows)}"
