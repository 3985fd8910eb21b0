"""A SQLite database in memory, which several connections of this process share, and which ends with the last of them.

It is made when the first connection opens, by the same migrations as a file: once in a process, then as a copy.
"""

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, StaticPool, create_engine, event

from ledger_sizer.model.errors import Closed, Unavailable
from ledger_sizer.storage.database import migrate_connection

_SHARED_SINCE = (3, 36)
"""SQLite's version since which connections can share a database in memory and wait for each other."""

_WAIT_SECONDS = 60
"""Longest wait for reads that began before, until what is new is stored."""

_lock = threading.Lock()
"""Held while the first database of this process is made."""


class MemoryDatabase:
    """One database, its engines, and the connection that stores. store: called before a read transaction begins.

    write_engine, read_engine: as those of a file. A read inside of another read of its thread sees what that one sees.
    """

    def __init__(self, store: Callable[[], None]) -> None:
        self._store = store
        self._name = f"ledger-{secrets.token_hex(8)}"
        self._own: sqlite3.Connection | None = None
        self._own_lock = threading.RLock()
        """Held while what is new is stored. A writer never waits for it."""
        self._closed = False
        self._readers: dict[int, int] = {}
        """Threads by the connection on which they read."""
        self.write_engine = self._engine(read_only=False)
        self.read_engine = self._engine(read_only=True)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction on the connection that stores, one at a time. It has begun once no read is open."""
        with self._own_lock:
            connection = self._kept()
            connection.execute("BEGIN EXCLUSIVE")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Drop the database. Connections that are still open end with their engines."""
        with self._own_lock:
            self._closed = True
            if self._own is not None:
                self._own.close()
                self._own = None

    def _engine(self, *, read_only: bool) -> Engine:
        engine = create_engine("sqlite+pysqlite://", creator=lambda: self._opened(read_only), poolclass=QueuePool)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            driver = connection.connection.driver_connection
            if threading.get_ident() not in self._readers.values():  # else it would wait for itself
                self._store_before_reading()
            connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
            self._readers[id(driver)] = threading.get_ident()

        @event.listens_for(engine, "checkin")
        def _end(driver: Any, _record: Any) -> None:
            self._readers.pop(id(driver), None)

        return engine

    def _store_before_reading(self) -> None:
        try:
            self._store()
        except sqlite3.Error as error:
            raise Unavailable(f"what is new cannot be stored for reads: {error}; other reads take long") from error

    def _opened(self, read_only: bool) -> sqlite3.Connection:
        self._kept()
        return self._connect("PRAGMA query_only = ON" if read_only else "PRAGMA query_only = OFF")

    def _kept(self) -> sqlite3.Connection:
        """Return the connection that stores. It keeps the database alive, and makes it when it opens."""
        with self._own_lock:
            if self._closed:
                raise Closed("the ledger is closed; open it again")
            if self._own is None:
                own = self._connect()
                with _lock:
                    _migrated().backup(own)
                self._own = own
            return self._own

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < _SHARED_SINCE:
            raise Unavailable(f"a ledger in memory needs SQLite 3.36 or newer, this is {sqlite3.sqlite_version}")
        connection = sqlite3.connect(
            f"file:/{self._name}?vfs=memdb",
            uri=True,
            timeout=_WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in ("PRAGMA foreign_keys = ON", *pragmas):
            connection.execute(pragma)
        return connection


@cache
def _migrated() -> sqlite3.Connection:
    """Return a private database with an empty ledger in it."""
    made = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    engine = create_engine("sqlite+pysqlite://", creator=lambda: made, poolclass=StaticPool)
    with engine.begin() as connection:
        migrate_connection(connection)
    return made
