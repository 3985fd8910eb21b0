"""Writing to SQLite on one dedicated connection.

Either `BEGIN IMMEDIATE`, load, decide, write, commit; or, where this process was the last to write, decide on what it
remembers and write in one statement that is its own transaction and checks the chain's head.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ledger_sizer.model.decisions import GENESIS_HASH
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.sqlite_sql import HEAD_MOVED, fits_one_call, one_call, plain_calls, prepare
from ledger_sizer.storage.write_store import (
    DECISION_COLUMNS,
    POSITION_COLUMNS,
    SCOPE_COLUMNS,
    Changes,
    FenceLost,
    PortfolioNeed,
    position_of,
    record_of,
    scope_of,
)

_POSITIONS = f"SELECT {', '.join(POSITION_COLUMNS)} FROM positions WHERE portfolio_id = ?"
_BY_NUMBER = f"{_POSITIONS} AND number IN (SELECT value FROM json_each(?))"
_BY_ORIGIN = f"{_POSITIONS} AND origin IN (SELECT value FROM json_each(?)) AND origin IS NOT NULL"
_EXPIRED = f"{_POSITIONS} AND state = 'held' AND expires_us <= ?"
_NEXT_EXPIRY = "SELECT min(expires_us) FROM positions WHERE portfolio_id = ? AND state = 'held' AND expires_us > ?"
_BY_KEY = (
    f"SELECT {', '.join(DECISION_COLUMNS)} FROM decisions "
    "WHERE portfolio_id = ? AND key IN (SELECT value FROM json_each(?))"
)
_SCOPES = (
    f"SELECT {', '.join(SCOPE_COLUMNS)} FROM scopes "
    "WHERE portfolio_id = ? AND scope IN (SELECT value FROM json_each(?))"
)
_NEW_SCOPE = (
    "INSERT INTO scopes (portfolio_id, scope, cap_e8, held_e8, open_e8, overage_e8, status, frozen) "
    "VALUES (?, ?, ?, 0, 0, 0, 'active', 0)"
)
_HELD = "SELECT 1 FROM leases WHERE name = ? AND owner = ? AND epoch = ? AND until_us > ?"


class SqliteStore:
    """The writing side of a SQLite ledger. One thread at a time uses it; other processes wait at `BEGIN IMMEDIATE`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pooled: Any = None

    def _connection(self) -> sqlite3.Connection:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
            prepare(self._pooled.driver_connection)
        connection: sqlite3.Connection = self._pooled.driver_connection
        return connection

    def clock_us(self) -> int:
        """This machine's clock: all who share the file are on it."""
        return time.time_ns() // 1000

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Take the write lock and load what the batch needs. See `store.WriteStore`."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        if now_us is None:
            now_us = self.clock_us()  # read after the lock: two processes decide in the order they write
        for fence in set().union(*(need.fences for need in needs.values())):
            held = (fence.name, fence.owner, fence.epoch, self.clock_us())  # leases go by the machine's clock
            if connection.execute(_HELD, held).fetchone() is None:
                raise FenceLost
        states = {}
        for name in sorted(needs):
            state = self._lock(connection, name, needs[name], now_us, new_cap_e8)
            if state is not None:
                self._load(connection, state, needs[name], now_us)
                states[name] = state
        return states, now_us

    def _lock(
        self, connection: sqlite3.Connection, name: str, need: PortfolioNeed, now_us: int, new_cap_e8: int
    ) -> PortfolioState | None:
        query = "SELECT id, name, last_seq, last_hash, last_us FROM portfolios WHERE name = ?"
        row = connection.execute(query, (name,)).fetchone()
        if row is None and need.creates:
            connection.execute(
                "INSERT INTO portfolios (name, last_seq, last_hash, last_us, created_us) VALUES (?, 0, ?, 0, ?)",
                (name, GENESIS_HASH, now_us),
            )
            row = connection.execute(query, (name,)).fetchone()
            connection.execute(_NEW_SCOPE, (row[0], PORTFOLIO_SCOPE, new_cap_e8))
        return None if row is None else PortfolioState(*row)

    def _load(self, connection: sqlite3.Connection, state: PortfolioState, need: PortfolioNeed, now_us: int) -> None:
        execute, portfolio, until_us = connection.execute, state.id, max(now_us, state.last_us)
        rows = execute(_EXPIRED, (portfolio, until_us)).fetchall()
        (state.next_expiry_us,) = execute(_NEXT_EXPIRY, (portfolio, until_us)).fetchone()
        if need.numbers:
            rows += execute(_BY_NUMBER, (portfolio, json.dumps(list(need.numbers)))).fetchall()
        if need.late:
            rows += execute(_BY_ORIGIN, (portfolio, json.dumps(list(need.late)))).fetchall()
        scopes = set(need.scopes)
        for row in rows:
            position = position_of(state.name, row)
            state.add_position(position)
            scopes.update(position.tags.scopes)
        for row in execute(_BY_KEY, (portfolio, json.dumps(list(need.keys)))):
            record = record_of(state.name, row)
            state.records[record.key] = record
        for row in execute(_SCOPES, (portfolio, json.dumps(list(scopes)))):
            scope = scope_of(row)
            state.scopes[scope.name] = scope
        state.scopes_known = scopes

    def write(self, changes: Sequence[Changes], *, locked: bool) -> None:
        """Store what changed and commit; without the lock in one call, where that gains anything."""
        connection = self._connection()
        if not locked and fits_one_call(changes):
            connection.execute(*one_call(changes))
            return
        if not locked:
            connection.execute("BEGIN IMMEDIATE")
        for change in changes:
            plain_calls(connection, change)
        connection.execute("COMMIT")

    def rollback(self) -> None:
        """End the transaction without effect."""
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

    def fault(self, error: Exception, *, locked: bool) -> str:
        """Classify a driver's error."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, sqlite3.OperationalError):
            busy = getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            return "conflict" if busy else "lost"
        if not locked and isinstance(cause, sqlite3.IntegrityError):
            # A key that was used before; or the data is refused, which the next try will tell.
            return "moved" if HEAD_MOVED in str(cause) else "stale"
        return "refused"

    def close(self) -> None:
        """Close the connection."""
        if self._pooled is not None:
            self.rollback()
        self.reset()  # closed for good, also where the pool it came from was disposed of before
