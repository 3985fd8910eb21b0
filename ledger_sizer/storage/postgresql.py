"""Writing to PostgreSQL: one or two pipelined round trips a batch, on one dedicated connection.

Usually two. Down: BEGIN, lock the portfolio rows in order of id, and load all the batch needs, in one flight. Up: one
statement that writes every table, and COMMIT, in another.

One, where this process was the last to write these portfolios: it decides on what it remembers and sends the write,
one statement that is its own transaction and checks the chain's head; if that has moved, nothing was written and the
batch starts over with the lock.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ledger_sizer.model.decisions import FIELD_SEPARATOR, GENESIS_HASH, NONE_MARK
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage import postgresql_sql as sql
from ledger_sizer.storage.postgresql_sql import ROW_SEPARATOR
from ledger_sizer.storage.write_store import Changes, FenceLost, PortfolioNeed, position_of, record_of, scope_of

_FLIGHT_CHARACTERS_MAX = 100_000
_TRANSACTION_TIMEOUT_SINCE = 170_000
"""PostgreSQL's version number with `transaction_timeout`."""
_LOST = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg.ReadOnlySqlTransaction,
    pg.TransactionTimeout,
    pg.IdleInTransactionSessionTimeout,
)
"""The connection is gone or useless. The server's own time-outs end it too, but are internal errors to the driver."""


class PostgresStore:
    """The writing side of a PostgreSQL ledger. Any number of processes and hosts may have one each."""

    def __init__(self, engine: Engine, *, lock_timeout_seconds: int) -> None:
        self._engine = engine
        self._lock_timeout_seconds = lock_timeout_seconds
        self._pooled: Any = None
        self._ids: dict[str, int] = {}  # never change once committed
        self._clock = (0, 0)  # the server's at its last answer, and this process's monotonic one then

    def _connection(self) -> psycopg.Connection[Any]:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
            connection = self._pooled.driver_connection
            connection.execute(f"{sql.SESSION} SET lock_timeout = '{self._lock_timeout_seconds}s'")
            if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
                # A process that froze with the lock must not stop the others for ever; they retry for longer than
                # this. The idle time-out would not do: a server does not count it in a pipeline.
                connection.execute(f"SET transaction_timeout = '{2 * self._lock_timeout_seconds}s'")
            if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
                # Acknowledged means durable, whatever the server's default; stronger settings are kept.
                connection.execute("SET synchronous_commit = on")
            connection.commit()
            # Transactions are begun by hand: a batch that needs no lock is one statement, and so its own transaction.
            connection.autocommit = True
            connection.prepare_threshold = 0
        found: psycopg.Connection[Any] = self._pooled.driver_connection
        return found

    def clock_us(self) -> int:
        """The server's clock, from its last answer and this process's monotonic clock; never ahead of it."""
        server_us, read_ns = self._clock
        return server_us + (time.monotonic_ns() - read_ns) // 1000

    def _heard_clock(self, server_us: int) -> None:
        self._clock = (server_us, time.monotonic_ns())

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Lock and load in one flight. See `store.WriteStore`."""
        connection = self._connection()
        ids = self._portfolio_ids(connection, needs, new_cap_e8)
        if not ids:
            return {}, now_us or 0  # only unknown portfolios: there is nothing to decide against
        asked = {(ids[name], scope) for name in ids for scope in needs[name].scopes}
        parameters = {
            "now": now_us,
            "ids": list(ids.values()),
            "numbers": _pairs((ids[name], number) for name in ids for number in needs[name].numbers),
            "late": _pairs((ids[name], number) for name in ids for number in needs[name].late),
            "keys": _pairs((ids[name], key) for name in ids for key in needs[name].keys),
            "scopes": _pairs(asked),
        }
        with _flight(connection, parameters):
            connection.execute("BEGIN")
            locked = connection.execute(sql.LOCK, [sorted(ids.values())])
            loaded = connection.execute(sql.LOAD, parameters)
        for fence in set().union(*(need.fences for need in needs.values())):
            # Locks the lease's row: nobody takes it over before this batch is committed.
            if connection.execute(sql.HELD, [fence.name, fence.owner, fence.epoch]).fetchone() is None:
                raise FenceLost
        states = {row[0]: PortfolioState(*row) for row in locked.fetchall()}
        found_us, positions, decisions, scopes, expiries = loaded.fetchall()[0]
        if now_us is None:
            self._heard_clock(found_us)
        for portfolio_id, expiry_us in expiries:
            states[portfolio_id].next_expiry_us = expiry_us
        self._fill(connection, states, asked, positions or (), decisions or (), scopes or ())
        return {state.name: state for state in states.values()}, found_us

    def _portfolio_ids(
        self, connection: psycopg.Connection[Any], needs: dict[str, PortfolioNeed], new_cap_e8: int
    ) -> dict[str, int]:
        if any(name not in self._ids for name in needs):
            self._ids.update(connection.execute(sql.IDS, [list(needs)]).fetchall())
            names = [name for name, need in needs.items() if need.creates and name not in self._ids]
            if names:
                values = {"names": sorted(names), "hash": GENESIS_HASH, "scope": PORTFOLIO_SCOPE, "cap": new_cap_e8}
                # Committed on its own: an empty portfolio grants nothing, and its id is then known for good.
                connection.execute(sql.CREATE, values)
                self._ids.update(connection.execute(sql.IDS, [list(needs)]).fetchall())
        return {name: self._ids[name] for name in needs if name in self._ids}

    def _fill(
        self,
        connection: psycopg.Connection[Any],
        states: dict[int, PortfolioState],
        asked: set[tuple[int, str]],
        positions: Sequence[Sequence[Any]],
        decisions: Sequence[Sequence[Any]],
        scopes: Sequence[Sequence[Any]],
    ) -> None:
        unforeseen: set[tuple[int, str]] = set()
        for row in positions:
            state = states[row[0]]
            position = position_of(state.name, row)
            state.add_position(position)
            unforeseen.update((state.id, scope) for scope in position.tags.scopes)
        for row in decisions:
            state = states[row[0]]
            record = record_of(state.name, row)
            state.records[record.key] = record
        unforeseen -= asked
        if unforeseen:
            found = connection.execute(sql.LOAD_SCOPES, {"scopes": _pairs(unforeseen)}).fetchall()[0][0]
            scopes = [*scopes, *(found or ())]
        for portfolio_id, name in asked | unforeseen:
            states[portfolio_id].scopes_known.add(name)
        for row in scopes:
            scope = scope_of(row)
            states[row[0]].scopes[scope.name] = scope

    def write(self, changes: Sequence[Changes], *, locked: bool) -> None:
        """Write every table in one statement; with the lock, COMMIT in the same flight."""
        connection = self._connection()
        if not changes:
            self.rollback()
            return
        parameters = _write_parameters(changes)
        statement = sql.write_statement(frozenset(parameters) & sql.PARTS)
        if not locked:
            written = connection.execute(statement, parameters)
        else:
            with _flight(connection, parameters):
                written = connection.execute(statement, parameters)
                connection.execute("COMMIT")
        self._heard_clock(written.fetchall()[0][0])

    def rollback(self) -> None:
        """End the transaction without effect."""
        try:
            if self._pooled is not None and self._connection().info.transaction_status != TransactionStatus.IDLE:
                self._connection().execute("ROLLBACK")
        except (psycopg.Error, DBAPIError):
            self.reset()

    def reset(self) -> None:
        """Drop the connection."""
        if self._pooled is not None:
            self._pooled.invalidate()
            self._pooled = None

    def fault(self, error: Exception, *, locked: bool) -> str:
        """Classify a driver's error."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not locked and isinstance(cause, pg.DivisionByZero | pg.UniqueViolation):
            return "moved" if isinstance(cause, pg.DivisionByZero) else "stale"
        if isinstance(cause, pg.SerializationFailure | pg.DeadlockDetected | pg.LockNotAvailable):
            return "conflict"
        if isinstance(cause, _LOST):
            return "lost"
        return "refused"

    def close(self) -> None:
        """Close the connection."""
        if self._pooled is not None:
            self.rollback()
        self.reset()  # closed for good, also where the pool it came from was disposed of before


def _flight(connection: psycopg.Connection[Any], parameters: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Send several statements in one flight, unless they are large: psycopg's pipeline (3.3) can stop sending when the
    socket's buffer is full and then wait for an answer for ever. A large batch has little to gain from it anyway.
    """
    size = sum(len(value) for value in parameters.values() if isinstance(value, str))
    return connection.pipeline() if size < _FLIGHT_CHARACTERS_MAX else nullcontext()


def _write_parameters(changes: Sequence[Changes]) -> dict[str, Any]:
    rows: dict[str, list[str]] = {name: [] for name in ("decisions", "made", "moved", "named", "counted", "heads")}
    for one in sorted(changes, key=lambda change: change.portfolio_id):
        portfolio = str(one.portfolio_id)
        # The chain's text begins with the portfolio's name, the table's row with its id.
        start = len(one.portfolio)
        rows["decisions"] += [
            f"{portfolio}{text[start:]}{FIELD_SEPARATOR}{record.hash}" for record, text in one.decisions
        ]
        for name, part in (
            ("made", one.made),
            ("moved", one.moved),
            ("named", one.named),
            ("counted", [(*row, 0) for row in one.counted]),
            ("counted", [(*row, 1) for row in one.administered]),
        ):
            rows[name] += [_line(row) for row in part]
        rows["heads"].append(_line((one.portfolio_id, one.last_seq, one.last_hash, one.last_us, one.before)))
    return {"count": len(changes), **{name: ROW_SEPARATOR.join(lines) for name, lines in rows.items() if lines}}


def _line(row: Sequence[Any]) -> str:
    return FIELD_SEPARATOR.join([NONE_MARK if part is None else str(part) for part in row])


def _pairs(pairs: Iterable[tuple[int, Any]]) -> str:
    """Pairs as JSON objects, for json_to_recordset."""
    return json.dumps([{"p": portfolio, "k": value} for portfolio, value in pairs])
