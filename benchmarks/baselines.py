"""Implements the two alternatives to ledger_sizer that a user would write, each optimised.

Hand-written: lock the cap, sum the live positions, insert, commit. One transaction per request, several round trips.
Hot row: one conditional update of a counter row decides. One transaction per request; on PostgreSQL a PL/pgSQL
function, so that a request is one round trip. This is the optimum for one commit per request.

Both do less work per request than the ledger: no scopes, expiry, idempotent replay or audit chain, and the
hand-written form keeps no history.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

import psycopg

from benchmarks.measure import BenchmarkError, Caller, Pace, Samples, run_threads
from benchmarks.servers import Database, Engine

PORTFOLIO = "main"
RESERVED_USD = Decimal(650)
# Integers of 1e-8 USD: SQLite has no decimals, and integers are cheaper in the PostgreSQL function too.
RESERVED_UNITS = int(RESERVED_USD * 10**8)
BUSY_TIMEOUT_MS = 60_000


class Form(Protocol):
    """One way to reserve and release: prepares a fresh database, drives callers, and checks the result."""

    @property
    def name(self) -> str: ...

    def prepare(self, database: Database, open_positions: int) -> None: ...

    def run(self, database: Database, callers: int, pace: Pace) -> Samples: ...

    def check(self, database: Database, open_positions: int) -> None:
        """Raise `BenchmarkError` unless every hold is released and exactly `open_positions` are open."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A form on one engine. fill: statements that take `count`. left: query of (open, held) positions."""

    schema: str
    fill: tuple[str, ...]
    left: str
    open_caller: Callable[[Database], AbstractContextManager[Caller]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A form in plain SQL, with a thread and a connection per caller."""

    name: str
    recipes: dict[Engine, Recipe] = field(repr=False)

    def prepare(self, database: Database, open_positions: int) -> None:
        recipe = self.recipes[database.engine]
        if database.engine == "sqlite":
            with _sqlite(database) as connection:
                connection.executescript(recipe.schema)
                for statement in recipe.fill:
                    connection.execute(statement, {"count": open_positions})
        else:
            with psycopg.connect(database.url) as session:
                session.execute(recipe.schema)
                for statement in recipe.fill:
                    session.execute(statement, {"count": open_positions})

    def run(self, database: Database, callers: int, pace: Pace) -> Samples:
        recipe = self.recipes[database.engine]
        return run_threads(lambda: recipe.open_caller(database), callers, pace)

    def check(self, database: Database, open_positions: int) -> None:
        left = self.recipes[database.engine].left
        row: tuple[Any, ...] | None
        if database.engine == "sqlite":
            with _sqlite(database) as connection:
                row = connection.execute(left).fetchone()
        else:
            with psycopg.connect(database.url) as session:
                row = session.execute(left).fetchone()
        expected = (open_positions, 0)
        if row is None or (int(row[0]), int(row[1])) != expected:
            raise BenchmarkError(f"{self.name} on {database.engine} left (open, held) = {row}, not {expected}")


@contextmanager
def _sqlite(database: Database) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(database.path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    with closing(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        yield connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


# ---------------------------------------------------------------- hand-written, PostgreSQL

HAND_POSTGRES_SCHEMA = """
CREATE TABLE caps (portfolio text PRIMARY KEY, cap_usd numeric(20, 8) NOT NULL);
INSERT INTO caps VALUES ('main', 100000000000);
CREATE TABLE positions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE,
    portfolio text NOT NULL REFERENCES caps,
    state text NOT NULL CHECK (state IN ('held', 'open', 'released')),
    notional_usd numeric(20, 8) NOT NULL CHECK (notional_usd > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX positions_live ON positions (portfolio) INCLUDE (notional_usd) WHERE state IN ('held', 'open');
"""
HAND_POSTGRES_FILL = """
INSERT INTO positions (key, portfolio, state, notional_usd)
SELECT 'filled/' || n, 'main', 'open', 500 FROM generate_series(1, %(count)s) AS n
"""
LOCK_CAP = "SELECT cap_usd FROM caps WHERE portfolio = %s FOR UPDATE"


@dataclass(frozen=True, slots=True)
class HandPostgres:
    """Lock, sum, insert, commit; release under the same lock."""

    session: psycopg.Connection

    def reserve(self, key: str) -> int:
        with self.session.transaction():
            cap_usd = _only(self.session.execute(LOCK_CAP, (PORTFOLIO,)))
            live_usd = _only(
                self.session.execute(
                    "SELECT COALESCE(SUM(notional_usd), 0) FROM positions "
                    "WHERE portfolio = %s AND state IN ('held', 'open')",
                    (PORTFOLIO,),
                )
            )
            if live_usd + RESERVED_USD > cap_usd:
                raise BenchmarkError(f"{live_usd} + {RESERVED_USD} is over the cap {cap_usd}")
            return int(
                _only(
                    self.session.execute(
                        "INSERT INTO positions (key, portfolio, state, notional_usd) "
                        "VALUES (%s, %s, 'held', %s) RETURNING id",
                        (key, PORTFOLIO, RESERVED_USD),
                    )
                )
            )

    def release(self, _key: str, handle: int) -> None:
        with self.session.transaction():
            self.session.execute(LOCK_CAP, (PORTFOLIO,))
            self.session.execute("UPDATE positions SET state = 'released' WHERE id = %s AND state = 'held'", (handle,))


def _only(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    if row is None:
        raise BenchmarkError("a row that must exist is missing")
    return row[0]


@contextmanager
def open_hand_postgres(database: Database) -> Iterator[Caller]:
    with psycopg.connect(database.url) as session:
        session.prepare_threshold = 0
        yield HandPostgres(session)


# ---------------------------------------------------------------- hand-written, SQLite

HAND_SQLITE_SCHEMA = """
CREATE TABLE caps (portfolio TEXT PRIMARY KEY, cap INTEGER NOT NULL);
INSERT INTO caps VALUES ('main', 1000000000000000000);
CREATE TABLE positions (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    portfolio TEXT NOT NULL REFERENCES caps,
    state TEXT NOT NULL CHECK (state IN ('held', 'open', 'released')),
    notional INTEGER NOT NULL CHECK (notional > 0),
    created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX positions_live ON positions (portfolio, notional) WHERE state IN ('held', 'open');
"""
HAND_SQLITE_FILL = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO positions (key, portfolio, state, notional) SELECT 'filled/' || n, 'main', 'open', 50000000000 FROM numbers
"""


@dataclass(frozen=True, slots=True)
class HandSqlite:
    """Take the write lock first, sum, insert, commit."""

    connection: sqlite3.Connection

    def reserve(self, key: str) -> int:
        with _transaction(self.connection):
            (cap,) = self.connection.execute("SELECT cap FROM caps WHERE portfolio = ?", (PORTFOLIO,)).fetchone()
            (live,) = self.connection.execute(
                "SELECT COALESCE(SUM(notional), 0) FROM positions WHERE portfolio = ? AND state IN ('held', 'open')",
                (PORTFOLIO,),
            ).fetchone()
            if live + RESERVED_UNITS > cap:
                raise BenchmarkError(f"{live} + {RESERVED_UNITS} is over the cap {cap}")
            inserted = self.connection.execute(
                "INSERT INTO positions (key, portfolio, state, notional) VALUES (?, ?, 'held', ?)",
                (key, PORTFOLIO, RESERVED_UNITS),
            )
            return int(inserted.lastrowid or 0)

    def release(self, _key: str, handle: int) -> None:
        with _transaction(self.connection):
            self.connection.execute(
                "UPDATE positions SET state = 'released' WHERE id = ? AND state = 'held'", (handle,)
            )


@contextmanager
def open_hand_sqlite(database: Database) -> Iterator[Caller]:
    with _sqlite(database) as connection:
        yield HandSqlite(connection)


# ---------------------------------------------------------------- counter row, PostgreSQL function

COUNTER_POSTGRES_SCHEMA = """
CREATE TABLE counters (
    portfolio text PRIMARY KEY, cap bigint NOT NULL, held bigint NOT NULL CHECK (held >= 0), open bigint NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE positions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE, portfolio text NOT NULL, state text NOT NULL, notional bigint NOT NULL
) WITH (fillfactor = 70);
CREATE TABLE history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, position_id bigint, outcome text NOT NULL,
    exposure_after bigint NOT NULL, decided_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION reserve(p_key text, p_portfolio text, p_notional bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE exposure bigint; reserved bigint;
BEGIN
    UPDATE counters SET held = held + p_notional
     WHERE portfolio = p_portfolio AND held + open + p_notional <= cap RETURNING held + open INTO exposure;
    IF NOT FOUND THEN RETURN NULL; END IF;
    INSERT INTO positions (key, portfolio, state, notional) VALUES (p_key, p_portfolio, 'held', p_notional)
        RETURNING id INTO reserved;
    INSERT INTO history (key, position_id, outcome, exposure_after) VALUES (p_key, reserved, 'granted', exposure);
    RETURN reserved;
END $$;
CREATE FUNCTION release(p_key text, p_position bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE freed bigint; owner text; exposure bigint;
BEGIN
    UPDATE positions SET state = 'released' WHERE id = p_position AND state = 'held'
        RETURNING notional, portfolio INTO freed, owner;
    IF NOT FOUND THEN RETURN false; END IF;
    UPDATE counters SET held = held - freed WHERE portfolio = owner RETURNING held + open INTO exposure;
    INSERT INTO history (key, position_id, outcome, exposure_after) VALUES (p_key, p_position, 'applied', exposure);
    RETURN true;
END $$;
"""
COUNTER_POSTGRES_FILL = (
    """
INSERT INTO positions (key, portfolio, state, notional)
SELECT 'filled/' || n, 'main', 'open', 50000000000 FROM generate_series(1, %(count)s) AS n
""",
    "INSERT INTO counters VALUES ('main', 1000000000000000000, 0, %(count)s::bigint * 50000000000)",
)


@dataclass(frozen=True, slots=True)
class CounterPostgres:
    """One statement, one round trip and one commit per request."""

    session: psycopg.Connection

    def reserve(self, key: str) -> int:
        reserved = _only(self.session.execute("SELECT reserve(%s, %s, %s)", (key, PORTFOLIO, RESERVED_UNITS)))
        if reserved is None:
            raise BenchmarkError("the cap was reached")
        return int(reserved)

    def release(self, key: str, handle: int) -> None:
        if not _only(self.session.execute("SELECT release(%s, %s)", (key, handle))):
            raise BenchmarkError(f"position {handle} was not held")


@contextmanager
def open_counter_postgres(database: Database) -> Iterator[Caller]:
    with psycopg.connect(database.url, autocommit=True) as session:
        session.prepare_threshold = 0
        yield CounterPostgres(session)


# ---------------------------------------------------------------- counter row, SQLite

COUNTER_SQLITE_SCHEMA = """
CREATE TABLE counters (
    portfolio TEXT PRIMARY KEY, cap INTEGER NOT NULL, held INTEGER NOT NULL CHECK (held >= 0), open INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE positions (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, portfolio TEXT NOT NULL, state TEXT NOT NULL,
    notional INTEGER NOT NULL
);
CREATE TABLE history (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, position_id INTEGER, outcome TEXT NOT NULL,
    exposure_after INTEGER NOT NULL, decided_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
"""
COUNTER_SQLITE_FILL = (
    HAND_SQLITE_FILL,
    "INSERT INTO counters VALUES ('main', 1000000000000000000, 0, :count * 50000000000)",
)
SQLITE_HISTORY = "INSERT INTO history (key, position_id, outcome, exposure_after) VALUES (?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class CounterSqlite:
    """One conditional update of the counter row, the reservation and its history, one commit."""

    connection: sqlite3.Connection

    def reserve(self, key: str) -> int:
        with _transaction(self.connection):
            row = self.connection.execute(
                "UPDATE counters SET held = held + :add WHERE portfolio = :portfolio AND held + open + :add <= cap "
                "RETURNING held + open",
                {"add": RESERVED_UNITS, "portfolio": PORTFOLIO},
            ).fetchall()
            if not row:
                raise BenchmarkError("the cap was reached")
            inserted = self.connection.execute(
                "INSERT INTO positions (key, portfolio, state, notional) VALUES (?, ?, 'held', ?)",
                (key, PORTFOLIO, RESERVED_UNITS),
            )
            self.connection.execute(SQLITE_HISTORY, (key, inserted.lastrowid, "granted", row[0][0]))
            return int(inserted.lastrowid or 0)

    def release(self, key: str, handle: int) -> None:
        with _transaction(self.connection):
            freed = self.connection.execute(
                "UPDATE positions SET state = 'released' WHERE id = ? AND state = 'held' RETURNING notional", (handle,)
            ).fetchall()
            if not freed:
                raise BenchmarkError(f"position {handle} was not held")
            row = self.connection.execute(
                "UPDATE counters SET held = held - ? WHERE portfolio = ? RETURNING held + open",
                (freed[0][0], PORTFOLIO),
            ).fetchall()
            self.connection.execute(SQLITE_HISTORY, (key, handle, "applied", row[0][0]))


@contextmanager
def open_counter_sqlite(database: Database) -> Iterator[Caller]:
    with _sqlite(database) as connection:
        yield CounterSqlite(connection)


# ---------------------------------------------------------------- the two forms

LEFT_IN_POSITIONS = """
SELECT COALESCE(SUM(CASE state WHEN 'open' THEN 1 ELSE 0 END), 0) AS opened,
       COALESCE(SUM(CASE state WHEN 'held' THEN 1 ELSE 0 END), 0) AS held FROM positions
"""
LEFT_WITH_COUNTER = f"""
SELECT opened, left_over.held + (SELECT held FROM counters) FROM ({LEFT_IN_POSITIONS}) AS left_over
"""

HAND_WRITTEN = Baseline(
    "hand-written",
    {
        "postgresql": Recipe(HAND_POSTGRES_SCHEMA, (HAND_POSTGRES_FILL,), LEFT_IN_POSITIONS, open_hand_postgres),
        "sqlite": Recipe(HAND_SQLITE_SCHEMA, (HAND_SQLITE_FILL,), LEFT_IN_POSITIONS, open_hand_sqlite),
    },
)
HOT_ROW = Baseline(
    "hot row",
    {
        "postgresql": Recipe(COUNTER_POSTGRES_SCHEMA, COUNTER_POSTGRES_FILL, LEFT_WITH_COUNTER, open_counter_postgres),
        "sqlite": Recipe(COUNTER_SQLITE_SCHEMA, COUNTER_SQLITE_FILL, LEFT_WITH_COUNTER, open_counter_sqlite),
    },
)
