"""Writing to SQLite: `BEGIN IMMEDIATE`, read, decide, write, commit, on one dedicated connection."""

import json
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ledger_sizer.memory import Memory
from ledger_sizer.records import GENESIS_HASH
from ledger_sizer.state import PortfolioState, ScopeState
from ledger_sizer.store import (
    DECISION_COLUMNS,
    POSITION_COLUMNS,
    SCOPE_COLUMNS,
    FenceLost,
    PortfolioNeed,
    count_row,
    position_of,
    position_row,
    record_of,
    scope_of,
)
from ledger_sizer.tags import PORTFOLIO_SCOPE


def _values(columns: tuple[str, ...]) -> str:
    return f"VALUES ({', '.join('?' * len(columns))})"


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
_INSERT_DECISIONS = f"INSERT INTO decisions ({', '.join(DECISION_COLUMNS)}) {_values(DECISION_COLUMNS)}"
_MAKE_POSITIONS = f"INSERT INTO positions ({', '.join(POSITION_COLUMNS)}) {_values(POSITION_COLUMNS)}"
_MOVE_POSITIONS = (
    f"UPDATE positions SET {', '.join(f'{name} = ?{at}' for at, name in enumerate(POSITION_COLUMNS, 1) if at > 2)} "
    "WHERE portfolio_id = ?1 AND number = ?2"
)
_NAME_SCOPES = (
    "INSERT INTO scopes (portfolio_id, scope, held_e8, open_e8, overage_e8, cap_e8, status, frozen, fresh_until_us) "
    "VALUES (?1, ?2, ?3, ?4, ?5, ?7, ?8, ?9, ?10)"
)
_COUNT_SCOPES = (
    "UPDATE scopes SET held_e8 = held_e8 + ?3, open_e8 = open_e8 + ?4, overage_e8 = ?5 "
    "WHERE portfolio_id = ?1 AND scope = ?2"
)
_ADMINISTER_SCOPES = (
    "UPDATE scopes SET held_e8 = held_e8 + ?3, open_e8 = open_e8 + ?4, overage_e8 = ?5, cap_e8 = ?7, status = ?8, "
    "frozen = ?9, fresh_until_us = ?10 WHERE portfolio_id = ?1 AND scope = ?2"
)
_HELD = "SELECT 1 FROM leases WHERE name = ? AND owner = ? AND epoch = ? AND until_us > ?"
_SAVE_HEAD = "UPDATE portfolios SET last_seq = ?, last_hash = ?, last_us = ? WHERE id = ?"


class SqliteStore:
    """The writing side of a SQLite ledger. One thread uses it; other processes wait at `BEGIN IMMEDIATE`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._memory = Memory(calm_min=0)  # looking first costs little where the lock is in this process
        self.from_memory = False
        self._pooled: Any = None

    def _connection(self) -> sqlite3.Connection:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
        connection: sqlite3.Connection = self._pooled.driver_connection
        return connection

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Take the write lock; remember, or load what the batch needs. See `store.WriteStore`."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        if now_us is None:
            now_us = time.time_ns() // 1000  # read after the lock: two processes decide in the order they write
        remembered = self._memory.recall(needs, now_us)
        self.from_memory = remembered is not None and all(_is_head(connection, one) for one in remembered.values())
        if remembered is not None and self.from_memory:
            return remembered, now_us
        for fence in set().union(*(need.fences for need in needs.values())):
            held = (fence.name, fence.owner, fence.epoch, time.time_ns() // 1000)  # leases go by the machine's clock
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
            whole = ScopeState(PORTFOLIO_SCOPE, new_cap_e8)
            connection.execute(_NAME_SCOPES, count_row(row[0], whole, administered=True))
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

    def commit(self, states: Iterable[PortfolioState]) -> None:
        """Save what moved and commit."""
        connection = self._connection()
        states = list(states)
        for state in states:
            if state.sealed:
                _save(connection, state)
        connection.execute("COMMIT")
        for state in states:
            self._memory.keep(state)

    def rollback(self) -> None:
        """End the transaction without effect."""
        try:
            if self._pooled is not None and self._connection().in_transaction:
                self._connection().execute("ROLLBACK")
        except sqlite3.Error:
            self.reset()

    def reset(self) -> None:
        """Drop the connection."""
        self._memory.clear()
        if self._pooled is not None:
            self._pooled.invalidate()
            self._pooled = None

    def fault(self, error: Exception) -> str:
        """Classify a driver's error."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, sqlite3.OperationalError):
            busy = getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            return "conflict" if busy else "lost"
        if self.from_memory and isinstance(cause, sqlite3.IntegrityError):
            return "stale"  # a key was used before; or the data is refused, which the next try will tell
        return "refused"

    def close(self) -> None:
        """Close the connection."""
        if self._pooled is not None:
            self.rollback()
        self.reset()  # closed for good, also where the pool it came from was disposed of before


def _is_head(connection: sqlite3.Connection, state: PortfolioState) -> bool:
    """Whether nobody else wrote the portfolio since."""
    query = "SELECT last_hash FROM portfolios WHERE id = ?"
    return bool(connection.execute(query, (state.id,)).fetchone() == (state.last_hash,))


def _save(connection: sqlite3.Connection, state: PortfolioState) -> None:
    portfolio = state.id
    made: list[tuple[Any, ...]] = []
    moved: list[tuple[Any, ...]] = []
    for number in state.dirty_positions:
        row = position_row(portfolio, state.positions[number])
        (made if number > state.loaded_seq else moved).append(row)
    scopes: dict[str, list[tuple[Any, ...]]] = {_NAME_SCOPES: [], _COUNT_SCOPES: [], _ADMINISTER_SCOPES: []}
    for name in state.dirty_scopes:
        scope, administered = state.scopes[name], name in state.administered
        row = count_row(portfolio, scope, administered=administered)
        if scope.stored is None:
            scopes[_NAME_SCOPES].append(row)
        elif administered:
            scopes[_ADMINISTER_SCOPES].append(row)
        else:
            scopes[_COUNT_SCOPES].append(row[:5])
    for statement, rows in (
        (_MAKE_POSITIONS, made),
        (_MOVE_POSITIONS, moved),
        *scopes.items(),
        (_INSERT_DECISIONS, [(portfolio, *record[1:]) for record, _ in state.sealed]),
    ):
        if rows:
            connection.executemany(statement, rows)
    connection.execute(_SAVE_HEAD, (state.last_seq, state.last_hash, state.last_us, portfolio))
