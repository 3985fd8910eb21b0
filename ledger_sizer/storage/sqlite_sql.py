"""What a batch writes to SQLite: plain statements, or all of it as one.

Python gives up its interpreter lock during each call into SQLite and has to win it back after, so dozens of calls
cannot run beside an event loop. SQLite has no stored procedures, but a temporary view takes rows of several kinds and
its INSTEAD OF triggers put each where it belongs: one multi-row INSERT checks the chain's head, writes the batch and,
outside a transaction, commits. Each row costs the setting up of every trigger, so there are few of both: a decision
shares its row with one of the positions that the batch moved (which one does not matter). For a few commands, and for
what is rare, plain statements cost less.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ledger_sizer.storage.write_store import DECISION_COLUMNS, POSITION_COLUMNS, Changes

HEAD_MOVED = "the chain moved on"

_DECISION_WIDTH = len(DECISION_COLUMNS)
_WIDTH = _DECISION_WIDTH + len(POSITION_COLUMNS) - 1
"""Values of a row besides its kind: a decision and a position of one portfolio. Narrower rows end in nothing."""

_ROWS_MIN = 12
_ROWS_MAX = 768
"""Rows of one statement: SQLite binds at most 32,766 values, and below a dozen plain statements are quicker."""

_NOTHING, _HEAD, _COUNTED, _DECIDED, _DECIDED_MADE, _DECIDED_MOVED = range(6)

_SCOPE_COLUMNS = (
    "portfolio_id", "scope", "held_e8", "open_e8", "overage_e8", "cap_e8", "status", "frozen", "fresh_until_us"
)  # fmt: skip


def _insert(table: str, columns: Sequence[str], places: Sequence[int]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f'?{place}' for place in places)})"


def _in_order(columns: Sequence[str]) -> range:
    return range(1, len(columns) + 1)


def _move_position(places: Sequence[int]) -> str:
    portfolio, number, *rest = zip(POSITION_COLUMNS, places, strict=True)
    moved = ", ".join(f"{name} = ?{place}" for name, place in rest)
    return f"UPDATE positions SET {moved} WHERE portfolio_id = ?{portfolio[1]} AND number = ?{number[1]}"


_SAVE_HEAD = "UPDATE portfolios SET last_seq = ?1, last_hash = ?2, last_us = ?3 WHERE id = ?4 AND last_hash = ?5"
_INSERT_DECISION = _insert("decisions", DECISION_COLUMNS, _in_order(DECISION_COLUMNS))
_MAKE_POSITION = _insert("positions", POSITION_COLUMNS, _in_order(POSITION_COLUMNS))
_MOVE_POSITION = _move_position(_in_order(POSITION_COLUMNS))
_COUNT_SCOPE = (
    "UPDATE scopes SET held_e8 = held_e8 + ?3, open_e8 = open_e8 + ?4, overage_e8 = ?5 "
    "WHERE portfolio_id = ?1 AND scope = ?2"
)
_NAME_SCOPE = _insert("scopes", _SCOPE_COLUMNS, _in_order(_SCOPE_COLUMNS))
_ADMINISTER_SCOPE = (
    "UPDATE scopes SET held_e8 = held_e8 + ?3, open_e8 = open_e8 + ?4, overage_e8 = ?5, cap_e8 = ?6, "
    "status = ?7, frozen = ?8, fresh_until_us = ?9 WHERE portfolio_id = ?1 AND scope = ?2"
)

_BESIDE_A_DECISION = (1, *range(_DECISION_WIDTH + 1, _WIDTH + 1))
"""Where a position's values stand in a row that begins with a decision; the portfolio is that of both."""

_TRIGGERS = {
    _HEAD: (_SAVE_HEAD, f"SELECT RAISE(ABORT, '{HEAD_MOVED}') WHERE changes() = 0"),
    _COUNTED: (_COUNT_SCOPE,),
    _DECIDED: (_INSERT_DECISION,),
    _DECIDED_MADE: (_INSERT_DECISION, _insert("positions", POSITION_COLUMNS, _BESIDE_A_DECISION)),
    _DECIDED_MOVED: (_INSERT_DECISION, _move_position(_BESIDE_A_DECISION)),
}


def prepare(connection: sqlite3.Connection) -> None:
    """Give a connection its batch view. Temporary: it lives and dies with the connection, in no file."""
    columns = ", ".join(f"NULL AS c{place}" for place in range(1, _WIDTH + 1))
    connection.execute(f"CREATE TEMP VIEW batch AS SELECT 0 AS kind, {columns} WHERE 0")
    for kind, statements in _TRIGGERS.items():
        body = re.sub(r"\?(\d+)", r"NEW.c\1", "; ".join(statements))
        connection.execute(
            f"CREATE TEMP TRIGGER batch_{kind} INSTEAD OF INSERT ON batch WHEN NEW.kind = {kind} BEGIN {body}; END"
        )


def fits_one_call(changes: Sequence[Changes]) -> bool:
    """Whether these changes can be, and gain from being, one statement."""
    rows = sum(1 + len(change.decisions) + len(change.counted) for change in changes)
    return _ROWS_MIN <= rows <= _ROWS_MAX and not any(change.named or change.administered for change in changes)


def one_call(changes: Sequence[Changes]) -> tuple[str, list[Any]]:
    """The statement that stores these changes, with its values."""
    values: list[Any] = []
    rows = 0
    for change in changes:
        for row in _rows(change):
            values += row
            values += _REST[len(row)]
            rows += 1
    size = _statement_size(rows)
    values += [_NOTHING, *_REST[1]] * (size - rows)
    return _statement(size), values


def _rows(change: Changes) -> Iterator[list[Any]]:
    portfolio = change.portfolio_id
    # The head first: nothing else is written when it has moved.
    yield [_HEAD, *_head(change)]
    for row in change.counted:
        yield [_COUNTED, *row[:5]]
    positions = iter(
        [(_DECIDED_MADE, *row[1:]) for row in change.made] + [(_DECIDED_MOVED, *row[1:]) for row in change.moved]
    )
    for record, _ in change.decisions:
        kind, *position = next(positions, (_DECIDED,))
        yield [kind, portfolio, *record[1:], *position]
    assert next(positions, None) is None, "every position that moved has a decision that moved it"


def _head(change: Changes) -> tuple[Any, ...]:
    return change.last_seq, change.last_hash, change.last_us, change.portfolio_id, change.before


def plain_calls(connection: sqlite3.Connection, change: Changes) -> None:
    """Store one portfolio's changes inside a transaction. Raises `sqlite3.IntegrityError` when its head has moved."""
    if connection.execute(_SAVE_HEAD, _head(change)).rowcount == 0:
        raise sqlite3.IntegrityError(HEAD_MOVED)
    for statement, rows in (
        (_MAKE_POSITION, change.made),
        (_MOVE_POSITION, change.moved),
        (_NAME_SCOPE, change.named),
        (_COUNT_SCOPE, [row[:5] for row in change.counted]),
        (_ADMINISTER_SCOPE, change.administered),
        (_INSERT_DECISION, [(change.portfolio_id, *record[1:]) for record, _ in change.decisions]),
    ):
        if rows:
            connection.executemany(statement, rows)


_REST = [[None] * (_WIDTH + 1 - length) for length in range(_WIDTH + 2)]


def _statement_size(rows: int) -> int:
    """A few sizes serve all batches, so that their statements stay prepared; the rest is filled with nothing."""
    size = 4
    while size < rows:
        size += max(size // 8, 1)
    return size


@lru_cache(maxsize=64)
def _statement(rows: int) -> str:
    one = f"({', '.join('?' * (_WIDTH + 1))})"
    return f"INSERT INTO batch VALUES {', '.join([one] * rows)}"
