"""Writes batches to SQLite on one dedicated connection.

A batch takes one of two paths. Locked: `BEGIN IMMEDIATE`, load, decide, write, commit. Unlocked, when this process was
the last to write: decide on cached state, then write and compare the chain's head in one transaction, mostly in one
statement.
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.clock import ClockGuard
from ledger_sizer.storage.sqlite_file import FileLost, GuardedConnection, NoDatabaseFile
from ledger_sizer.storage.sqlite_sql import (
    HEAD_MOVED,
    batch_statement,
    create_batch_view,
    desk_status,
    execute_statements,
    fits_batch_statement,
)
from ledger_sizer.storage.tables import OF_A_CALLER, PENDING, SHARED
from ledger_sizer.storage.write_store import (
    DECISION_COLUMNS,
    POSITION_COLUMNS,
    SCOPE_COLUMNS,
    FenceLost,
    PortfolioChanges,
    PortfolioNeed,
    changed_lately,
    expiries_per_portfolio,
    position_from_row,
    record_from_row,
    scope_from_row,
    tag_filter,
)

_HEAD = "SELECT id, name, last_seq, last_hash, last_us FROM portfolios WHERE name = ?"
_NEXT_ID = "SELECT COALESCE(max(id), 0) + 1 FROM portfolios"
"""The id of a portfolio that begins. The write lock keeps it free until the batch is stored or rolled back."""
_POSITIONS = f"SELECT {', '.join(POSITION_COLUMNS)} FROM positions WHERE portfolio_id = ?"
_BY_NUMBER = f"{_POSITIONS} AND number IN (SELECT value FROM json_each(?))"
_BY_ORIGIN = f"{_POSITIONS} AND origin IN (SELECT value FROM json_each(?)) AND origin IS NOT NULL"
_TAGGED_HERE = (
    "NOT EXISTS (SELECT 1 FROM json_each(?2) AS tag WHERE instr(tags, tag.value ->> 0) = 0 "
    "AND (instr(tags, tag.value ->> 1) = 0 OR instr(tags, tag.value ->> 2) = 0))"
)
_BY_TAGS = " UNION ALL ".join(
    f"SELECT {', '.join(POSITION_COLUMNS)} FROM positions WHERE portfolio_id = ?1 AND {live} AND {_TAGGED_HERE}"
    for live in ("state = 'open'", f"{PENDING} AND state = 'held'")
)
"""Live positions that may have all the tags of a `tag_filter`."""
_GRANTED_LATELY = (
    "SELECT DISTINCT position FROM decisions WHERE portfolio_id = ?1 AND seq > COALESCE((SELECT seq FROM decisions "
    "WHERE portfolio_id = ?1 AND decided_us <= ?2 ORDER BY seq DESC LIMIT 1), 0) "
    f"AND command IN ('reserve', 'extend') AND outcome = 'granted' AND {OF_A_CALLER} "
    "AND position IN (SELECT value FROM json_each(?3))"
)
_EXPIRED = f"{_POSITIONS} AND {PENDING} AND expires_us <= ? ORDER BY expires_us, number LIMIT ?"
_NEXT_EXPIRY = (
    f"SELECT expires_us FROM positions WHERE portfolio_id = ? AND {PENDING} ORDER BY expires_us LIMIT 1 OFFSET ?"
)
_BY_KEY = (
    f"SELECT {', '.join(DECISION_COLUMNS)} FROM decisions "
    "WHERE portfolio_id = ? AND key IN (SELECT value FROM json_each(?))"
)
_SCOPES = (
    f"SELECT {', '.join(SCOPE_COLUMNS)} FROM scopes "
    "WHERE portfolio_id = ?1 AND scope IN (SELECT value FROM json_each(?2)) "
    f"UNION ALL SELECT {', '.join(SCOPE_COLUMNS)} FROM scopes WHERE portfolio_id = ?1 AND ({SHARED})"
)
"""The scopes of a batch, and those that requests outside of them depend on, perhaps twice."""
_LEASE = "SELECT 1 FROM leases WHERE name = ? AND owner = ? AND epoch = ? AND until_us > ?"


class SqliteStore:
    """The write store of a SQLite ledger. One thread at a time uses it. Other processes wait at `BEGIN IMMEDIATE`."""

    def __init__(self, engine: Engine, guard: ClockGuard) -> None:
        self._engine = engine
        self._guard = guard
        self._pooled: Any = None

    def _connection(self) -> GuardedConnection:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
            create_batch_view(self._pooled.driver_connection)
        connection: GuardedConnection = self._pooled.driver_connection
        return connection

    def clock_us(self) -> int:
        """Return this machine's clock. All processes that share the file run here."""
        return self._guard.wall_us()

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Take the write lock and load what the batch needs. See `WriteStore`."""
        connection = self._connection()
        connection.require_files()  # after a `FileLost` no cached state is left: each further batch is refused here
        connection.execute("BEGIN IMMEDIATE")
        if now_us is None:
            now_us = self.clock_us()  # after the lock, so that times of two processes follow the order of their writes
        for fence in set().union(*(need.fences for need in needs.values())):
            # Not `now_us`: leases use the real clock, unguarded, as in `leases`.
            lease = (fence.name, fence.owner, fence.epoch, self._guard.wall_ns() // 1000)
            if connection.execute(_LEASE, lease).fetchone() is None:
                raise FenceLost
        states, expiries_max, desk, new_id = {}, expiries_per_portfolio(len(needs)), desk_status(connection), 0
        for name in sorted(needs):
            row = connection.execute(_HEAD, (name,)).fetchone()
            state = None if row is None else PortfolioState(*row)
            if state is None and needs[name].creates:
                new_id = new_id or connection.execute(_NEXT_ID).fetchone()[0]
                state = PortfolioState.begun(new_id, name, new_cap_e8)
                new_id += 1
            if state is not None:
                state.desk_status = desk
                self._load(connection, state, needs[name], now_us, expiries_max)
                states[name] = state
        return states, now_us

    def _load(
        self, connection: sqlite3.Connection, state: PortfolioState, need: PortfolioNeed, now_us: int, expiries_max: int
    ) -> None:
        execute, portfolio, until_us = connection.execute, state.id, state.decision_time(now_us)
        for row in execute(_BY_KEY, (portfolio, json.dumps(list(need.keys)))):
            record = record_from_row(state.name, row)
            state.records[record.key] = record
        rows = execute(_EXPIRED, (portfolio, until_us, expiries_max)).fetchall()
        (state.next_expiry_us,) = execute(_NEXT_EXPIRY, (portfolio, len(rows))).fetchone() or (None,)
        numbers = need.numbers | {record.position for record in state.records.values() if record.position is not None}
        if numbers:
            rows += execute(_BY_NUMBER, (portfolio, json.dumps(list(numbers)))).fetchall()
        if need.origins:
            rows += execute(_BY_ORIGIN, (portfolio, json.dumps(list(need.origins)))).fetchall()
        if need.settle is not None:
            rows += execute(_BY_TAGS, (portfolio, tag_filter(need.settle.tags))).fetchall()
        scopes = set(need.scopes)
        for row in rows:
            position = position_from_row(state.name, row)
            state.add_position(position)
            scopes.update(position.tags.scopes)
        for row in execute(_SCOPES, (portfolio, json.dumps(list(scopes)))):
            scope = scope_from_row(row)
            state.add_scope(scope)
        state.scopes_known = scopes
        if need.settle is not None:
            as_of_us = need.settle.as_of_us(until_us)
            asked = (portfolio, as_of_us, json.dumps(changed_lately(state, as_of_us)))
            state.granted_lately = {row[0] for row in execute(_GRANTED_LATELY, asked)}

    def write(self, changes: Sequence[PortfolioChanges], *, locked: bool) -> None:
        """Store the changes and commit. Without the lock, use one statement where that is faster.

        Raises `FileLost` where nobody would find the commit, or what the batch's answers were read from.
        """
        connection = self._connection()
        if not locked and fits_batch_statement(changes):
            connection.execute(*batch_statement(changes))
        else:
            if not locked:
                connection.execute("BEGIN IMMEDIATE")
            for change in changes:
                execute_statements(connection, change)
            connection.execute("COMMIT")
        connection.require_files()

    def rollback(self) -> None:
        """Roll the transaction back."""
        try:
            if self._pooled is not None and self._connection().in_transaction:
                self._connection().execute("ROLLBACK")
        except sqlite3.Error:
            self.reset()

    def reset(self) -> None:
        """Drop the connection."""
        if self._pooled is not None:
            self._pooled.invalidate()
            self._pooled = None

    def classify_error(self, error: Exception, *, locked: bool) -> str:
        """Classify a driver's error."""
        if isinstance(error, FileLost | NoDatabaseFile):
            return "closed"
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return "damaged"
        if isinstance(cause, sqlite3.OperationalError):
            return "conflict" if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else "lost"
        if not locked and isinstance(cause, sqlite3.IntegrityError):
            # `stale`: a key was used before, or the data is refused. The next try tells which.
            return "moved" if HEAD_MOVED in str(cause) else "stale"
        return "refused"

    def close(self) -> None:
        """Close the connection."""
        if self._pooled is not None:
            self.rollback()
        self.reset()  # not back to the pool, which may be disposed of already
