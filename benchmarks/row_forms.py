"""The forms of the table of decisions that `rows` compares, each made from the migrated schema.

wide: a column for each field, as the ledger stores decisions. packed: the same under one key of portfolio and seq.
narrow: the canonical text in one column. It has no facets, which its writer would have to keep, so it seems cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import clock_gettime_ns, perf_counter_ns, process_time_ns
from typing import Any

import psycopg
from sqlalchemy import make_url

from benchmarks.servers import Database, Host, scratch
from ledger_sizer.model.decisions import NONE_MARK, fields_text
from ledger_sizer.storage.database import make_engine, upgrade
from ledger_sizer.storage.postgresql_sql import ROW_SEPARATOR, _rows
from ledger_sizer.storage.write_store import DECISION_COLUMNS

LAYOUTS = ("wide", "packed", "narrow")
WIDE = DECISION_COLUMNS
COLUMNS = {"wide": WIDE, "packed": ("place", *WIDE), "narrow": ("place", "portfolio_id", "key", "text", "hash")}
SEQ_BITS = 40
_CPU_CLOCK = 2  # of another process: the id that Linux's `clock_getcpuclockid` makes

Fields = tuple[Any, ...]


def is_number(column: str) -> bool:
    """Whether a column holds whole numbers."""
    return column in {"place", "portfolio_id", "seq", "position"} or column.endswith(("_e8", "_us"))


class Stored:
    """A table of decisions in one form, on one connection."""

    def __init__(self, host: Host, database: Database, connection: Any, layout: str) -> None:
        self.engine, self._connection, self.layout = host.engine, connection, layout
        self.settle = partial(host.settle, database)
        self._columns = COLUMNS[layout]
        self._insert = f"INSERT INTO decisions ({', '.join(self._columns)}) "
        if self.engine == "sqlite":
            self._insert += f"VALUES ({', '.join('?' * len(self._columns))})"
            return
        # The narrow form's text has the separator of the fields in it, so these fields are joined by another one.
        casts = [(name, "::bigint" if is_number(name) else "") for name in self._columns]
        self._insert += f"SELECT * FROM {_rows(casts, 'rows')} AS r".replace(r"\x1f", r"\x1c")

    def row(self, fields: Fields) -> Fields:
        """Return a decision's row in this form."""
        seq = fields[1]
        fields = (*fields[:-4], "api:3f9a1c:bot-eur-7", "client-eur-funding-7", f"wish-{seq:015d}", fields[-1])
        place = fields[0] << SEQ_BITS | seq
        if self.layout == "narrow":
            return place, fields[0], fields[3], fields_text(fields[:-1]), fields[-1]
        return (place, *fields) if self.layout == "packed" else fields

    def store(self, decisions: list[Fields]) -> tuple[float, float]:
        """Store decisions in one commit. Returns the nanoseconds of CPU and of wall time."""
        rows = [self.row(fields) for fields in decisions]
        if self.engine == "postgresql":
            lines = ("\x1c".join([NONE_MARK if one is None else str(one) for one in row]) for row in rows)
            text = ROW_SEPARATOR.join(lines)
            return self.timed(lambda: self._connection.execute(self._insert, {"rows": text}, prepare=True))

        def write() -> None:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(self._insert, rows)
            self._connection.execute("COMMIT")

        return self.timed(write)

    def timed(self, call: Callable[[], object]) -> tuple[float, float]:
        """Make a call. Returns the nanoseconds of CPU and of wall time."""
        cpu, begun = self._cpu_ns(), perf_counter_ns()
        call()
        wall = perf_counter_ns() - begun
        return self._cpu_ns() - cpu, wall

    def _cpu_ns(self) -> int:
        own = process_time_ns()
        if self.engine == "postgresql":
            process = Path(f"/proc/{self._connection.info.backend_pid}")
            with suppress(OSError):  # a server elsewhere: its CPU time is not known
                if "postgres" in (process / "comm").read_text():
                    own += clock_gettime_ns(~self._connection.info.backend_pid << 3 | _CPU_CLOCK)
        return own

    def read(self, query: str) -> Iterator[Fields]:
        """Yield the rows of a query, some at a time."""
        if self.engine == "sqlite":
            yield from self._connection.execute(query)
            return
        with self._connection.transaction(), self._connection.cursor("reader") as cursor:
            cursor.itersize = 500
            yield from cursor.execute(query)

    def bytes(self) -> int:
        """Return the size of the database (its table of decisions is almost all of it)."""
        if self.engine == "sqlite":
            return int(self._connection.execute("SELECT * FROM pragma_page_count").fetchone()[0]) * 4096
        return int(self._connection.execute("SELECT pg_total_relation_size('decisions')").fetchone()[0])


@contextmanager
def opened(host: Host, layout: str) -> Iterator[Stored]:
    """Migrate a database, and give its table of decisions another form."""
    with scratch(host) as database:
        upgrade(database.url)
        if host.engine == "postgresql":
            with psycopg.connect(database.url, autocommit=True) as connection:
                for statement in _postgresql_changes(connection, layout):
                    connection.execute(statement)
                yield Stored(host, database, connection, layout)
            return
        engine = make_engine(make_url(database.url))
        pooled: Any = engine.raw_connection()
        try:
            for statement in _sqlite_changes(pooled.driver_connection, layout):
                pooled.driver_connection.execute(statement)
            yield Stored(host, database, pooled.driver_connection, layout)
        finally:
            pooled.close()
            engine.dispose()


_NARROW = (
    "CREATE TABLE decisions (place {} PRIMARY KEY, portfolio_id {} NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL, "
    "hash TEXT NOT NULL)"
)
_BLOCK = "portfolio_id = NEW.portfolio_id AND seq > NEW.seq - 1024 AND seq <= NEW.seq"
_BLOCK_BY_PLACE = "place > NEW.place - 1024 AND place <= NEW.place"
_TO_PLACE = (
    ("CREATE TABLE decisions (", "CREATE TABLE decisions (place INTEGER PRIMARY KEY,"),
    ("CONSTRAINT pk_decisions PRIMARY KEY (portfolio_id, seq),", ""),
    (
        "d.portfolio_id = NEW.portfolio_id AND (d.seq = NEW.seq OR d.key = NEW.key)",
        "d.place = NEW.place OR (d.portfolio_id = NEW.portfolio_id AND d.key = NEW.key)",
    ),
    (_BLOCK, _BLOCK_BY_PLACE),
)
"""What the SQLite schema says of portfolio and seq, and how it says that of the packed key."""

_OF_COLUMNS = ("decisions_facets", "decisions_form")
"""Triggers that read columns which the narrow form has not."""


def _sqlite_changes(connection: Any, layout: str) -> list[str]:
    """Return the migrated schema of the table as statements, changed to this form."""
    if layout == "wide":
        return []
    query = (
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'decisions' AND sql IS NOT NULL ORDER BY type = 'trigger', name"
    )
    changed = ["DROP TABLE decisions"]
    for (sql,) in connection.execute(query).fetchall():
        if layout == "narrow" and "TABLE decisions" in sql:
            changed.append(_NARROW.format("INTEGER", "INTEGER"))
        elif layout == "packed" or not any(name in sql for name in _OF_COLUMNS):
            for old, new in _TO_PLACE:
                sql = sql.replace(old, new)  # noqa: PLW2901 - one replacement after the other
            changed.append(sql.replace("OLD.seq", f"(OLD.place & {2**SEQ_BITS - 1})") if layout == "narrow" else sql)
    return changed


def _postgresql_changes(connection: Any, layout: str) -> list[str]:
    """Return statements that change the migrated schema to this form."""
    if layout == "wide":
        return []
    if layout == "packed":
        (facets,) = connection.execute("SELECT pg_get_functiondef('ledger_note_facets'::regproc)").fetchone()
        keyed = "ALTER TABLE decisions DROP CONSTRAINT pk_decisions, ADD COLUMN place bigint PRIMARY KEY"
        return [keyed, facets.replace(_BLOCK, _BLOCK_BY_PLACE)]
    query = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'decisions'::regclass AND NOT tgisinternal"
    guards = [sql for (sql,) in connection.execute(query).fetchall() if not any(name in sql for name in _OF_COLUMNS)]
    unique = "CREATE UNIQUE INDEX ON decisions (portfolio_id, key)"
    return ["DROP TABLE decisions", _NARROW.format("bigint", "bigint"), unique, *guards]
