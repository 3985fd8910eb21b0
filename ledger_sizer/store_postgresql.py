"""Writing to PostgreSQL: two pipelined round trips a batch, on one dedicated connection.

Down: BEGIN, lock the portfolio rows in order of id, and load all the batch needs, in one flight. Up: one statement
that writes every table, and COMMIT, in another. Rows travel as one text parameter a table, fields joined as in the
audit chain; the server splits and casts them, which costs the client far less than binding each field.

The writing session forbids sequential, hash and merge scans: every lookup is by key, and a plan made while the
tables were small must not be kept when they are not.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import errors as pg
from sqlalchemy import Engine, FromClause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import Text

from ledger_sizer.domain import PORTFOLIO_SCOPE
from ledger_sizer.records import FIELD_SEPARATOR, GENESIS_HASH, NONE_MARK
from ledger_sizer.state import PortfolioState, scopes_of
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
from ledger_sizer.tables import DecisionRow, PortfolioRow, PositionRow, ScopeRow

ROW_SEPARATOR = "\x1e"
_MEMO_MAX = 200_000


def _source(table: FromClause, columns: Sequence[str], parameter: str) -> str:
    """SELECT that turns one text parameter into typed rows."""
    casts = ", ".join(
        f"f[{place}]{'' if isinstance(table.columns[name].type, Text) else '::bigint'} AS {name}"
        for place, name in enumerate(columns, 1)
    )
    # The WHERE is for PostgreSQL's grammar: without one, ON CONFLICT after SELECT reads as a join condition.
    return (
        f"SELECT {casts} FROM (SELECT string_to_array(line, E'\\x1f', E'\\x1d') AS f "
        f"FROM string_to_table(%({parameter})s, E'\\x1e') AS line OFFSET 0) AS rows WHERE true"
    )


def _array(alias: str, columns: Sequence[str]) -> str:
    return f"json_agg(json_build_array({', '.join(f'{alias}.{column}' for column in columns)}))"


_LOCK = "SELECT id, name, last_seq, last_hash, last_us FROM portfolios WHERE id = ANY(%s) ORDER BY id FOR UPDATE"
_IDS = "SELECT name, id FROM portfolios WHERE name = ANY(%s)"
_SCOPES = (
    f"SELECT {_array('s', SCOPE_COLUMNS)} FROM json_to_recordset(%(scopes)s) AS n(p bigint, k text) "
    "JOIN scopes s ON s.portfolio_id = n.p AND s.scope = n.k"
)
_LOAD = f"""
WITH clock AS MATERIALIZED (
    SELECT COALESCE(%(now)s::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now_us
), found AS MATERIALIZED (
    SELECT q.* FROM json_to_recordset(%(numbers)s) AS n(p bigint, k bigint)
        JOIN positions q ON q.portfolio_id = n.p AND q.number = n.k
    UNION SELECT q.* FROM json_to_recordset(%(late)s) AS n(p bigint, k bigint)
        JOIN positions q ON q.portfolio_id = n.p AND q.origin = n.k AND q.origin IS NOT NULL
    UNION SELECT q.* FROM clock, unnest(%(ids)s::bigint[]) AS n(p)
        JOIN portfolios f ON f.id = n.p
        JOIN positions q ON q.portfolio_id = n.p AND q.state = 'held'
    WHERE q.expires_us <= GREATEST(clock.now_us, f.last_us)
)
SELECT (SELECT now_us FROM clock), (SELECT {_array("found", POSITION_COLUMNS)} FROM found),
    (SELECT {_array("d", DECISION_COLUMNS)} FROM json_to_recordset(%(keys)s) AS n(p bigint, k text)
        JOIN decisions d ON d.portfolio_id = n.p AND d.key = n.k),
    ({_SCOPES})
"""
_HEAD_COLUMNS = ("id", "last_seq", "last_hash", "last_us")
_WRITE = f"""
WITH decided AS (
    INSERT INTO decisions ({", ".join(DECISION_COLUMNS)})
    {_source(DecisionRow.__table__, DECISION_COLUMNS, "decisions")}
), moved AS (
    {upsert("positions", POSITION_COLUMNS, ("portfolio_id", "number"),
            _source(PositionRow.__table__, POSITION_COLUMNS, "positions"))}
), counted AS (
    {upsert("scopes", SCOPE_COLUMNS, ("portfolio_id", "scope"),
            _source(ScopeRow.__table__, SCOPE_COLUMNS, "scopes"))}
)
UPDATE portfolios p SET last_seq = h.last_seq, last_hash = h.last_hash, last_us = h.last_us
FROM ({_source(PortfolioRow.__table__, _HEAD_COLUMNS, "heads")}) AS h
WHERE p.id = h.id
"""  # fmt: skip


_CREATE = """
WITH made AS (
    INSERT INTO portfolios (name, last_seq, last_hash, last_us, created_us)
    SELECT n, 0, %(hash)s, 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    FROM unnest(%(names)s::text[]) AS n ON CONFLICT (name) DO NOTHING RETURNING id
)
INSERT INTO scopes (portfolio_id, scope, cap_e8, held_e8, open_e8, overage_e8, status)
SELECT id, %(scope)s, %(cap)s, 0, 0, 0, 'active' FROM made
"""
_SESSION = """
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET jit = off; SET plan_cache_mode = force_generic_plan;
SET idle_in_transaction_session_timeout = '10s';
"""


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    return ROW_SEPARATOR.join(
        [FIELD_SEPARATOR.join([NONE_MARK if part is None else str(part) for part in row]) for row in rows]
    )


class PostgresStore:
    """The writing side of a PostgreSQL ledger. Any number of processes and hosts may have one each."""

    def __init__(self, engine: Engine, *, lock_timeout_seconds: int) -> None:
        self._engine = engine
        self._lock_timeout_seconds = lock_timeout_seconds
        self._pooled: Any = None
        # Both never change once committed, so remembering them is always right.
        self._ids: dict[str, int] = {}
        self._tags: dict[tuple[int, int], tuple[str, ...]] = {}

    def _connection(self) -> psycopg.Connection[Any]:
        if self._pooled is None:
            self._pooled = self._engine.raw_connection()
            connection = self._pooled.driver_connection
            connection.execute(_SESSION + f"SET lock_timeout = '{self._lock_timeout_seconds}s'")
            if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
                # Acknowledged means durable, whatever the server's default; stronger settings are kept.
                connection.execute("SET synchronous_commit = on")
            connection.commit()
            connection.prepare_threshold = 0
        found: psycopg.Connection[Any] = self._pooled.driver_connection
        return found

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Lock and load in one flight. See `store.WriteStore`."""
        connection = self._connection()
        ids = self._portfolio_ids(connection, needs, new_cap_e8)
        asked = {(ids[name], scope) for name in ids for scope in self._scopes_foreseen(ids[name], needs[name])}
        with connection.pipeline():
            locked = connection.execute(_LOCK, [sorted(ids.values())])
            loaded = connection.execute(
                _LOAD,
                {
                    "now": now_us,
                    "ids": list(ids.values()),
                    "numbers": _pairs((ids[name], number) for name in ids for number in needs[name].numbers),
                    "late": _pairs((ids[name], number) for name in ids for number in needs[name].late),
                    "keys": _pairs((ids[name], key) for name in ids for key in needs[name].keys),
                    "scopes": _pairs(asked),
                },
            )
        states = {row[0]: PortfolioState(*row) for row in locked.fetchall()}
        now, positions, decisions, scopes = loaded.fetchall()[0]
        self._fill(connection, states, asked, positions or (), decisions or (), scopes or ())
        return {state.name: state for state in states.values()}, now

    def _portfolio_ids(
        self, connection: psycopg.Connection[Any], needs: dict[str, PortfolioNeed], new_cap_e8: int
    ) -> dict[str, int]:
        if any(name not in self._ids for name in needs):
            self._ids.update(connection.execute(_IDS, [list(needs)]).fetchall())
            names = [name for name, need in needs.items() if need.creates and name not in self._ids]
            if names:
                values = {"names": sorted(names), "hash": GENESIS_HASH, "scope": PORTFOLIO_SCOPE, "cap": new_cap_e8}
                connection.execute(_CREATE, values)
                # Committed on its own: an empty portfolio grants nothing, and its id is then known for good.
                connection.commit()
                self._ids.update(connection.execute(_IDS, [list(needs)]).fetchall())
        return {name: self._ids[name] for name in needs if name in self._ids}

    def _scopes_foreseen(self, portfolio_id: int, need: PortfolioNeed) -> set[str]:
        scopes = set(need.scopes)
        for number in need.numbers:
            scopes.update(self._tags.get((portfolio_id, number), ()))
        return scopes

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
            unforeseen.update((state.id, scope) for scope in scopes_of(position.tags))
        for row in decisions:
            state = states[row[0]]
            record = record_of(state.name, row)
            state.records[record.key] = record
        unforeseen -= asked
        if unforeseen:
            found = connection.execute(_SCOPES, {"scopes": _pairs(unforeseen)}).fetchall()[0][0]
            scopes = [*scopes, *(found or ())]
        for row in scopes:
            scope = scope_of(row)
            states[row[0]].scopes[scope.name] = scope

    def commit(self, states: Iterable[PortfolioState]) -> None:
        """Write every table in one statement and commit, in one flight."""
        connection = self._connection()
        moved = [state for state in states if state.sealed]
        if not moved:
            connection.rollback()
            return
        rows = {
            "decisions": ROW_SEPARATOR.join(
                # The chain's text begins with the portfolio's name, the table's row with its id.
                f"{state.id}{text[text.index(FIELD_SEPARATOR) :]}{FIELD_SEPARATOR}{record.hash}"
                for state in moved
                for record, text in state.sealed
            ),
            "positions": _lines(position_row(s.id, s.positions[n]) for s in moved for n in s.dirty_positions),
            "scopes": _lines(scope_row(s.id, s.scopes[n]) for s in moved for n in s.dirty_scopes),
            "heads": _lines((s.id, s.last_seq, s.last_hash, s.last_us) for s in moved),
        }
        with connection.pipeline():
            connection.execute(_WRITE, rows)
            connection.commit()
        self._remember(moved)

    def _remember(self, states: list[PortfolioState]) -> None:
        if len(self._tags) > _MEMO_MAX:
            self._tags.clear()
        for state in states:
            for number in state.dirty_positions:
                position = state.positions[number]
                if position.state in ("held", "open"):
                    self._tags[state.id, number] = scopes_of(position.tags)
                else:
                    self._tags.pop((state.id, number), None)

    def rollback(self) -> None:
        """End the transaction without effect."""
        try:
            if self._pooled is not None:
                self._connection().rollback()
        except (psycopg.Error, DBAPIError):
            self.reset()

    def reset(self) -> None:
        """Drop the connection."""
        if self._pooled is not None:
            self._pooled.invalidate()
            self._pooled = None

    def fault(self, error: Exception) -> str:
        """Classify a driver's error."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, pg.SerializationFailure | pg.DeadlockDetected | pg.LockNotAvailable):
            return "conflict"
        if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError | pg.ReadOnlySqlTransaction):
            return "lost"
        return "refused"

    def close(self) -> None:
        """Give the connection back."""
        if self._pooled is not None:
            self.rollback()
        if self._pooled is not None:
            self._pooled.close()
            self._pooled = None


def _pairs(pairs: Iterable[tuple[int, Any]]) -> str:
    """Pairs as JSON objects, for json_to_recordset."""
    return json.dumps([{"p": portfolio, "k": value} for portfolio, value in pairs])
