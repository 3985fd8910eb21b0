"""Writes batches to PostgreSQL in one or two pipelined round trips, on one dedicated connection.

With the lock, two round trips. The first sends BEGIN, locks the portfolio rows in order of id, and loads all that the
batch needs. The second sends one statement that writes every table, and COMMIT.

Without the lock, one round trip, when this process was the last to write these portfolios. It decides on cached state
and sends the write: one statement that is its own transaction and compares the chain's head. If the head has moved,
nothing is written, and the batch is decided again with the lock.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ledger_sizer.model.decisions import FIELD_SEPARATOR, NONE_MARK
from ledger_sizer.model.names import DESK
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage import postgresql_sql as sql
from ledger_sizer.storage.clock import ClockGuard
from ledger_sizer.storage.postgresql_connection import CONFIRM
from ledger_sizer.storage.postgresql_sql import ROW_SEPARATOR
from ledger_sizer.storage.write_store import (
    COUNTERS,
    FenceLost,
    PortfolioChanges,
    PortfolioNeed,
    changed_lately,
    counters_row,
    expiries_per_portfolio,
    new_portfolio_row,
    position_from_row,
    position_row,
    record_from_row,
    scope_from_row,
    scope_row,
    tag_filter,
)

_PIPELINE_CHARACTERS_MAX = 100_000
_TRANSACTION_TIMEOUT_SINCE = 170_000
"""The first PostgreSQL version with `transaction_timeout`."""
_CONNECTION_ERRORS = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg.ReadOnlySqlTransaction,
    pg.TransactionTimeout,
    pg.IdleInTransactionSessionTimeout,
)
"""Errors after which the connection is useless. Server time-outs end it too; the driver calls them internal errors."""


class PostgresStore:
    """The write store of a PostgreSQL ledger. Any number of processes and hosts may have one each."""

    def __init__(self, engine: Engine, guard: ClockGuard, *, lock_timeout_seconds: int) -> None:
        self._engine = engine
        self._guard = guard
        self._lock_timeout_seconds = lock_timeout_seconds
        self._pooled: Any = None
        self._ids: dict[str, int] = {}  # never change once committed

    def _connection(self) -> psycopg.Connection[Any]:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
            connection = self._pooled.driver_connection
            # The server must notice a client that vanished while it held the lock: the others wait for it.
            connection.execute(
                f"{sql.SESSION} SET lock_timeout = '{self._lock_timeout_seconds}s'; "
                f"SET idle_in_transaction_session_timeout = '{2 * self._lock_timeout_seconds}s'"
            )
            if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
                # A process that hangs while it holds the lock must not stop the others for ever. They retry for longer
                # than this time-out. The idle time-out would not help: in a pipeline the server does not count it.
                connection.execute(f"SET transaction_timeout = '{2 * self._lock_timeout_seconds}s'")
            connection.commit()
            # Transactions are begun explicitly: a batch without the lock is one statement, its own transaction.
            connection.autocommit = True
            connection.prepare_threshold = 0
        current: psycopg.Connection[Any] = self._pooled.driver_connection
        return current

    def clock_us(self) -> int | None:
        """Estimate the server's time from its last response and this process's monotonic clock. Never ahead of it."""
        return self._guard.estimate_us()

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Lock and load in one round trip. See `WriteStore`."""
        connection = self._connection()
        ids, begun = self._portfolio_ids(connection, needs)
        if not ids:
            return {}, now_us or 0  # only portfolios that do not exist: nothing to load
        requested = {(ids[name], scope) for name in ids for scope in needs[name].scopes}
        parameters = {
            "now": now_us,
            "expiries_max": expiries_per_portfolio(len(needs)),
            "ids": list(ids.values()),
            "numbers": _json_pairs((ids[name], number) for name in ids for number in needs[name].numbers),
            "origins": _json_pairs((ids[name], number) for name in ids for number in needs[name].origins),
            "keys": _json_pairs((ids[name], key) for name in ids for key in needs[name].keys),
            "scopes": _json_pairs(requested),
        }
        begun_ns = self._guard.monotonic_ns()
        with _pipeline(connection, parameters):
            connection.execute("BEGIN")
            locked = connection.execute(sql.LOCK, [sorted(ids.values())])
            if DESK in needs:
                connection.execute(sql.DESK_LOCK)
            loaded = connection.execute(sql.LOAD, parameters)
        for fence in set().union(*(need.fences for need in needs.values())):
            # This locks the lease's row, so nobody takes it over before this batch is committed.
            if connection.execute(sql.LEASE, [fence.name, fence.owner, fence.epoch]).fetchone() is None:
                raise FenceLost
        states = {row[0]: PortfolioState(*row) for row in locked.fetchall()}
        states |= {ids[name]: PortfolioState.begun(ids[name], name, new_cap_e8) for name in begun}
        found_us, desk_status, positions, decisions, scopes, expiries = loaded.fetchall()[0]
        if now_us is None:
            self._guard.check(found_us, begun_ns, self._guard.monotonic_ns())
        for portfolio_id, expiry_us in expiries or ():
            states[portfolio_id].next_expiry_us = expiry_us
        for state in states.values():
            state.desk_status = desk_status
        positions = [*(positions or ()), *self._tagged(connection, needs, ids)]
        self._fill_states(connection, states, requested, positions, decisions or (), scopes or ())
        self._find_granted_lately(connection, needs, ids, states, found_us)
        return {state.name: state for state in states.values()}, found_us

    def _tagged(
        self, connection: psycopg.Connection[Any], needs: Mapping[str, PortfolioNeed], ids: Mapping[str, int]
    ) -> Sequence[Sequence[Any]]:
        """Return the rows of the live positions that a settle is about."""
        found: list[Sequence[Any]] = []
        for name, need in needs.items():
            if need.settle is not None and name in ids:
                asked = {"id": ids[name], "tags": tag_filter(need.settle.tags)}
                found += connection.execute(sql.BY_TAGS, asked).fetchall()[0][0] or ()
        return found

    def _find_granted_lately(
        self, connection: psycopg.Connection[Any], needs: Mapping[str, PortfolioNeed], ids: Mapping[str, int],
        states: Mapping[int, PortfolioState], now_us: int,
    ) -> None:  # fmt: skip
        for name, need in needs.items():
            if need.settle is not None and name in ids:
                state = states[ids[name]]
                as_of_us = need.settle.as_of_us(state.decision_time(now_us))
                asked = {"id": state.id, "as_of_us": as_of_us, "numbers": changed_lately(state, as_of_us)}
                state.granted_lately = {row[0] for row in connection.execute(sql.GRANTED_LATELY, asked)}

    def _portfolio_ids(
        self, connection: psycopg.Connection[Any], needs: dict[str, PortfolioNeed]
    ) -> tuple[dict[str, int], list[str]]:
        """Return the ids of the portfolios, and the names of those that begin with this batch."""
        if any(name not in self._ids for name in needs):
            self._ids.update(connection.execute(sql.IDS, [list(needs)]).fetchall())
        ids = {name: self._ids[name] for name in needs if name in self._ids}
        begun = [name for name, need in needs.items() if need.creates and name not in ids]
        if begun:
            # Not kept: another process may begin the portfolio first, with an id of its own.
            ids.update(zip(begun, [row[0] for row in connection.execute(sql.NEXT_IDS, [len(begun)])], strict=True))
        return ids, begun

    def _fill_states(
        self,
        connection: psycopg.Connection[Any],
        states: dict[int, PortfolioState],
        requested: set[tuple[int, str]],
        positions: Sequence[Sequence[Any]],
        decisions: Sequence[Sequence[Any]],
        scopes: Sequence[Sequence[Any]],
    ) -> None:
        missing: set[tuple[int, str]] = set()
        for row in positions:
            state = states[row[0]]
            position = position_from_row(state.name, row)
            state.add_position(position)
            missing.update((state.id, scope) for scope in position.tags.scopes)
        for row in decisions:
            state = states[row[0]]
            record = record_from_row(state.name, row)
            state.records[record.key] = record
        missing -= requested
        if missing:
            found = connection.execute(sql.LOAD_SCOPES, {"scopes": _json_pairs(missing)}).fetchall()[0][0]
            scopes = [*scopes, *(found or ())]
        for portfolio_id, name in requested | missing:
            states[portfolio_id].scopes_known.add(name)
        for row in scopes:
            scope = scope_from_row(row)
            states[row[0]].add_scope(scope)

    def write(self, changes: Sequence[PortfolioChanges], *, locked: bool) -> None:
        """Write every table in one statement. With the lock, COMMIT in the same round trip."""
        connection = self._connection()
        if not changes:
            self._confirm_reads(connection)
            return
        parameters = _write_parameters(changes)
        statement = sql.write_statement(frozenset(parameters) & sql.PARTS, ask_desk="desk_status" in parameters)
        begun_ns = self._guard.monotonic_ns()
        if not locked:
            written = connection.execute(statement, parameters)
        else:
            with _pipeline(connection, parameters):
                written = connection.execute(statement, parameters)
                connection.execute("COMMIT")
        self._guard.note(written.fetchall()[0][0], begun_ns, self._guard.monotonic_ns())

    def _confirm_reads(self, connection: psycopg.Connection[Any]) -> None:
        """End a transaction that wrote nothing, once what it read is as safe as a commit: replays are told from it."""
        if connection.info.transaction_status != TransactionStatus.IDLE:
            with connection.pipeline():
                connection.execute(CONFIRM)
                connection.execute("COMMIT")

    def rollback(self) -> None:
        """Roll the transaction back."""
        try:
            if self._pooled is not None and self._connection().info.transaction_status != TransactionStatus.IDLE:
                self._connection().execute("ROLLBACK")
        except (psycopg.Error, DBAPIError):
            self.reset()

    def reset(self) -> None:
        """Drop the connection, and what is known of the server: the next one may be a standby that was promoted."""
        self._ids.clear()
        if self._pooled is not None:
            self._pooled.invalidate()
            self._pooled = None

    def classify_error(self, error: Exception, *, locked: bool) -> str:
        """Classify a driver's error."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, pg.DivisionByZero):
            return "moved"  # with the lock, too: the desk's status is not locked
        if isinstance(cause, pg.UniqueViolation) and cause.diag.constraint_name in sql.BEGUN:
            return "moved"
        if not locked and isinstance(cause, pg.UniqueViolation):
            return "stale"
        if isinstance(cause, pg.SerializationFailure | pg.DeadlockDetected | pg.LockNotAvailable):
            return "conflict"
        if isinstance(cause, _CONNECTION_ERRORS):
            return "lost"
        return "refused"

    def close(self) -> None:
        """Close the connection."""
        if self._pooled is not None:
            self.rollback()
        self.reset()  # not back to the pool, which may be disposed of already


def _pipeline(connection: psycopg.Connection[Any], parameters: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Send several statements in one pipeline, unless they are large.

    psycopg's pipeline (3.3) can stop sending when the socket's buffer is full, and then wait for a response for ever. A
    large batch gains little from a pipeline anyway.
    """
    size = sum(len(value) for value in parameters.values() if isinstance(value, str))
    return connection.pipeline() if size < _PIPELINE_CHARACTERS_MAX else nullcontext()


def _write_parameters(changes: Sequence[PortfolioChanges]) -> dict[str, Any]:
    rows: dict[str, list[str]] = {name: [] for name in (*sql.PARTS, "heads")}
    for change in sorted(changes, key=lambda change: change.portfolio_id):
        # A decision's canonical text begins with the portfolio's name, its row with the portfolio's id.
        start = len(change.portfolio)
        rows["decisions"] += [
            f"{change.portfolio_id}{text[start:]}{_ABSENT[record.reference is None]}{FIELD_SEPARATOR}{record.hash}"
            for record, text in change.decisions
        ]
        portfolio, width = change.portfolio_id, len(COUNTERS)
        set_scopes = [scope_row(portfolio, one) for one in change.scope_changes]
        for name, part in (
            ("new_portfolios", [new_portfolio_row(change)] if change.begins else ()),
            ("new_positions", [position_row(portfolio, one) for one in change.new_positions]),
            ("changed_positions", [position_row(portfolio, one) for one in change.changed_positions]),
            ("new_scopes", [scope_row(portfolio, one) for one in change.new_scopes]),
            ("changed_scopes", [(*counters_row(portfolio, one), 0) for one in change.counter_changes]),
            ("changed_scopes", [(*row[:width], 1, *row[width:]) for row in set_scopes]),
        ):
            rows[name] += [_row_text(row) for row in part]
        if not change.begins:
            head = (change.portfolio_id, change.last_seq, change.last_hash, change.last_us, change.previous_hash)
            rows["heads"].append(_row_text(head))
    heads = rows.pop("heads")
    parameters: dict[str, Any] = {"heads": ROW_SEPARATOR.join(heads), "count": len(heads)}
    parameters.update({name: ROW_SEPARATOR.join(lines) for name, lines in rows.items() if lines})
    asked = {change.desk_status for change in changes if change.desk_status is not None}
    if asked and not any(change.portfolio == DESK for change in changes):  # its batch holds the desk's lock
        # Statuses of two times cannot both be the present one.
        parameters["desk_status"] = asked.pop() if len(asked) == 1 else ""
    return parameters


_ABSENT = ("", f"{FIELD_SEPARATOR}{NONE_MARK}")
"""What a decision's canonical text leaves out and its row has: a reference that is None (see `fields_text`)."""


def _row_text(row: Sequence[Any]) -> str:
    return FIELD_SEPARATOR.join([NONE_MARK if part is None else str(part) for part in row])


def _json_pairs(pairs: Iterable[tuple[int, Any]]) -> str:
    """Encode pairs as JSON objects for json_to_recordset."""
    return json.dumps([{"p": portfolio, "k": value} for portfolio, value in pairs])
