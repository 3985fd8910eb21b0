"""Writing to SQLite: `BEGIN IMMEDIATE`, read, decide, write, commit, on one dedicated connection."""

import json
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ledger_sizer.records import GENESIS_HASH
from ledger_sizer.state import PortfolioState, ScopeState
from ledger_sizer.store import (
    DECISION_COLUMNS,
    POSITION_COLUMNS,
    SCOPE_COLUMNS,
    PortfolioNeed,
    position_of,
    position_row,
    record_of,
    scope_of,
    scope_row,
    upsert,
)
from ledger_sizer.tags import PORTFOLIO_SCOPE


def _values(columns: tuple[str, ...]) -> str:
    return f"VALUES ({', '.join('?' * len(columns))})"


_POSITIONS = f"SELECT {', '.join(POSITION_COLUMNS)} FROM positions WHERE portfolio_id = ?"
_BY_NUMBER = f"{_POSITIONS} AND number IN (SELECT value FROM json_each(?))"
_BY_ORIGIN = f"{_POSITIONS} AND origin IN (SELECT value FROM json_each(?)) AND origin IS NOT NULL"
_EXPIRED = f"{_POSITIONS} AND state = 'held' AND expires_us <= ?"
_BY_KEY = (
    f"SELECT {', '.join(DECISION_COLUMNS)} FROM decisions "
    "WHERE portfolio_id = ? AND key IN (SELECT value FROM json_each(?))"
)
_SCOPES = (
    f"SELECT {', '.join(SCOPE_COLUMNS)} FROM scopes "
    "WHERE portfolio_id = ? AND scope IN (SELECT value FROM json_each(?))"
)
_INSERT_DECISIONS = f"INSERT INTO decisions ({', '.join(DECISION_COLUMNS)}) {_values(DECISION_COLUMNS)}"
_SAVE_POSITIONS = upsert("positions", POSITION_COLUMNS, ("portfolio_id", "number"), _values(POSITION_COLUMNS))
_SAVE_SCOPES = upsert("scopes", SCOPE_COLUMNS, ("portfolio_id", "scope"), _values(SCOPE_COLUMNS))
_SAVE_HEAD = "UPDATE portfolios SET last_seq = ?, last_hash = ?, last_us = ? WHERE id = ?"


class SqliteStore:
    """The writing side of a SQLite ledger. One thread uses it; other processes wait at `BEGIN IMMEDIATE`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.unlocked = False
        self._pooled: Any = None

    def _connection(self) -> sqlite3.Connection:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
        connection: sqlite3.Connection = self._pooled.driver_connection
        return connection

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Take the write lock and load what the batch needs. See `store.WriteStore`."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        if now_us is None:
            now_us = time.time_ns() // 1000  # read after the lock: two processes decide in the order they write
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
            connection.execute(
                f"INSERT INTO scopes ({', '.join(SCOPE_COLUMNS)}) {_values(SCOPE_COLUMNS)}",
                scope_row(row[0], ScopeState(PORTFOLIO_SCOPE, new_cap_e8)),
            )
        return None if row is None else PortfolioState(*row)

    def _load(self, connection: sqlite3.Connection, state: PortfolioState, need: PortfolioNeed, now_us: int) -> None:
        execute, portfolio = connection.execute, state.id
        rows = execute(_EXPIRED, (portfolio, max(now_us, state.last_us))).fetchall()
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

    def commit(self, states: Iterable[PortfolioState]) -> None:
        """Save what moved and commit."""
        connection = self._connection()
        for state in states:
            if not state.sealed:
                continue
            portfolio = state.id
            connection.executemany(
                _SAVE_POSITIONS, [position_row(portfolio, state.positions[n]) for n in state.dirty_positions]
            )
            connection.executemany(_SAVE_SCOPES, [scope_row(portfolio, state.scopes[n]) for n in state.dirty_scopes])
            connection.executemany(_INSERT_DECISIONS, [(portfolio, *record[1:]) for record, _ in state.sealed])
            connection.execute(_SAVE_HEAD, (state.last_seq, state.last_hash, state.last_us, portfolio))
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

    def fault(self, error: Exception) -> str:
        """Classify a driver's error."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, sqlite3.OperationalError):
            busy = getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            return "conflict" if busy else "lost"
        return "refused"

    def close(self) -> None:
        """Close the connection."""
        if self._pooled is not None:
            self.rollback()
        self.reset()  # closed for good, also where the pool it came from was disposed of before
