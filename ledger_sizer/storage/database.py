"""Opens each kind of database, migrates it, and reads from it. Only this file knows how an engine is set up.

SQLite: WAL, `synchronous=FULL` (an acknowledged commit survives power loss), foreign keys on, and no implicit
transactions from the driver, whose deferred BEGIN lets two writers read the same headroom. PostgreSQL: psycopg 3.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CompoundSelect,
    Connection,
    Engine,
    Executable,
    Select,
    Text,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, TimeoutError  # noqa: A004 - of the connection pool
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from ledger_sizer.config import LedgerSettings
from ledger_sizer.model.errors import InvalidRequest, SchemaOutdated, Unavailable

SCHEMA_HEAD = "0009"
"""The newest migration. Written here so that opening a ledger need not import Alembic; a test keeps it true."""

_SQLITE_CACHE_KIB = 64 * 1024
_SQLITE_CHECKPOINT_PAGES = 2000
"""8 MiB of log between checkpoints: many commits share the copying of a hot page, and a checkpoint is short enough to
stay out of the slowest 1 % of calls.
"""

_migration_lock = threading.Lock()
"""Alembic keeps its state in globals, so threads take turns. Between processes, the database's own lock does that."""

_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def database_url(value: str) -> URL:
    """Parse a database URL and set the driver. Raises `InvalidRequest` for a database that cannot store a ledger."""
    try:
        url = make_url(value)
    except ArgumentError:
        raise InvalidRequest(
            "database_url cannot be parsed; write sqlite:///ledger.db or postgresql://user@host/name",
            field="database_url",
        ) from None
    driver = _DRIVERS.get(url.get_backend_name())
    if driver is None or url.drivername not in (url.get_backend_name(), driver):
        raise InvalidRequest(
            f"database_url: {url.drivername!r} is not supported, use sqlite:/// or postgresql://", field="database_url"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise InvalidRequest(
            "database_url: a ledger must outlive its process; name a file, as in sqlite:///ledger.db",
            field="database_url",
        )
    return url.set(drivername=driver)


def is_sqlite(url: URL) -> bool:
    """True for a SQLite URL."""
    return url.get_backend_name() == "sqlite"


def make_engine(value: str | URL, settings: LedgerSettings | None = None, *, read_only: bool = False) -> Engine:
    """Make an engine for a ledger's database. `read_only` connections cannot write, whatever SQL they are given."""
    url = database_url(value) if isinstance(value, str) else value
    settings = settings or LedgerSettings()
    if is_sqlite(url):
        engine = create_engine(url, connect_args={"timeout": settings.busy_timeout_seconds, "check_same_thread": False})
        _prepare_sqlite(engine, settings.busy_timeout_seconds * 1000, read_only)
        return engine
    try:
        # All statements of one read must see the same snapshot.
        isolation = "REPEATABLE READ" if read_only else "READ COMMITTED"
        engine = create_engine(
            url, pool_pre_ping=read_only, isolation_level=isolation, connect_args={"connect_timeout": 10}
        )
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"PostgreSQL needs the package {error.name}; install it with: pip install 'ledger-sizer[postgres]'"
        ) from None
    if read_only:
        engine = engine.execution_options(postgresql_readonly=True)
    return engine


def _prepare_sqlite(engine: Engine, busy_timeout_ms: int, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {busy_timeout_ms}",
            *(() if read_only else ("journal_mode = WAL",)),  # stored in the file
            "synchronous = FULL",
            "foreign_keys = ON",
            f"cache_size = {-_SQLITE_CACHE_KIB}",
            "query_only = ON" if read_only else f"wal_autocheckpoint = {_SQLITE_CHECKPOINT_PAGES}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # IMMEDIATE takes the write lock before the first read; a deferred transaction would read stale headroom.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def schema_version(engine: Engine) -> str | None:
    """Return the database's migration, None without a ledger. Raises `Unavailable` if the database cannot be opened."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DBAPIError as error:
        raise _unavailable(f"open {redacted_url(engine.url)}", error) from None


def redacted_url(url: URL) -> str:
    """Return a database URL for display: without its password and the driver's name."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


class Conflict(Unavailable):
    """A constraint of the database refused the rows: another process was first."""


@contextmanager
def read_transaction(engine: Engine, what: str | None = None) -> Iterator[Connection]:
    """Open one read transaction. Raises `Unavailable` instead of the driver's errors. what: for the error's text."""
    try:
        with engine.begin() as connection:
            yield connection
    except (DBAPIError, TimeoutError) as error:
        raise _unavailable(what or f"read {redacted_url(engine.url)}", error) from None


@contextmanager
def write_transaction(engine: Engine, what: str | None = None) -> Iterator[Connection]:
    """Open one transaction that writes. Raises `Unavailable` instead of the driver's errors, `Conflict` among them."""
    try:
        with engine.begin() as connection:
            yield connection
    except (DBAPIError, TimeoutError) as error:
        kind = Conflict if isinstance(error, IntegrityError) else Unavailable
        raise _unavailable(what or f"write to {redacted_url(engine.url)}", error, kind) from None


def _unavailable(what: str, error: Exception, kind: type[Unavailable] = Unavailable) -> Unavailable:
    return kind(f"cannot {what}: {str(getattr(error, 'orig', None) or error).strip()}")


_FETCH_AT_ONCE: Mapping[str, Any] = {"stream_results": False, "yield_per": None}


def raw_rows(connection: Connection, query: Executable) -> list[tuple[Any, ...]]:
    """Return all rows of a query as the driver's tuples: building SQLAlchemy's row objects would double the time."""
    # On a streaming connection SQLAlchemy would fetch the first row before the driver's cursor is read here.
    with closing(connection.execute(query, execution_options=_FETCH_AT_ONCE)) as result, _driver_errors(connection):
        assert result.cursor is not None, "a query has rows"
        return [*result.cursor.fetchall()]


def stream_rows(
    connection: Connection, query: Select[Any] | CompoundSelect[Any] | str, rows: int
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a long query as the driver's tuples, at most `rows` at a time. Its parameters must be numbers.

    It reads through the driver: building SQLAlchemy's row objects takes longer than checking the rows' hashes.
    """
    literal = {"literal_binds": True}
    statement = query if isinstance(query, str) else str(query.compile(connection, compile_kwargs=literal))
    driver = connection.connection.driver_connection
    assert driver is not None
    # On PostgreSQL only a named cursor leaves the unread rows on the server.
    cursor_name = () if is_sqlite(connection.engine.url) else ("ledger_stream",)
    with _driver_errors(connection), closing(driver.cursor(*cursor_name)) as cursor:
        cursor.execute(statement)
        while found := cursor.fetchmany(rows):
            yield found


@contextmanager
def _driver_errors(connection: Connection) -> Iterator[None]:
    """Raise `Unavailable` instead of errors that come straight from the driver, unwrapped by SQLAlchemy."""
    try:
        yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise _unavailable(f"read {redacted_url(connection.engine.url)}", error) from None


def require_head(engine: Engine) -> None:
    """Raise `SchemaOutdated` with the command to run, unless the database is at this version's migration."""
    found = schema_version(engine)
    if found == SCHEMA_HEAD:
        return
    where = redacted_url(engine.url)
    if found is not None and found > SCHEMA_HEAD:
        raise SchemaOutdated(
            f"{where} is at migration {found}, newer than this version's {SCHEMA_HEAD}; upgrade ledger-sizer"
        )
    state = "has no ledger yet" if found is None else f"is at migration {found}, this version needs {SCHEMA_HEAD}"
    raise SchemaOutdated(f"{where} {state}; run: ledger-sizer db upgrade --database-url {where}")


def migrations_folder() -> Path:
    """Return the folder of the Alembic scripts: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaOutdated(f"the migration scripts are missing next to {package}; reinstall ledger-sizer")


def alembic_config(value: str | URL) -> Any:
    """Return Alembic's configuration for this database. It needs no alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["url"] = database_url(value) if isinstance(value, str) else value
    return config


def upgrade(value: str | URL, revision: str = "head") -> None:
    """Migrate the database up to `revision`. Creates everything in an empty database."""
    from alembic import command

    with _migration_lock:
        command.upgrade(alembic_config(value), revision)


def downgrade(value: str | URL, revision: str) -> None:
    """Migrate the database down to `revision`; `base` removes the ledger and all its data."""
    from alembic import command

    with _migration_lock:
        command.downgrade(alembic_config(value), revision)


class tag_value(FunctionElement[str]):  # noqa: N801 - reads as a SQL function
    """The value of one tag in a column of canonical JSON text: `tag_value(PositionRow.tags, "venue")`."""

    type = Text()
    inherit_cache = True


@compiles(tag_value, "sqlite")
def _tag_value_sqlite(element: tag_value, compiler: SQLCompiler, **kw: Any) -> str:
    column, name = element.clauses
    return f"json_extract({compiler.process(column, **kw)}, '$.' || {compiler.process(name, **kw)})"


@compiles(tag_value, "postgresql")
def _tag_value_postgresql(element: tag_value, compiler: SQLCompiler, **kw: Any) -> str:
    column, name = element.clauses
    return f"(({compiler.process(column, **kw)})::json ->> {compiler.process(name, **kw)})"


class has_text(FunctionElement[bool]):  # noqa: N801 - reads as a SQL function
    """Whether a column contains a text, case-sensitive (`LIKE` ignores case on SQLite)."""

    type = Boolean()
    inherit_cache = True


@compiles(has_text, "sqlite")
def _has_text_sqlite(element: has_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)}) > 0"


@compiles(has_text, "postgresql")
def _has_text_postgresql(element: has_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **kw)}) > 0"


class is_among(FunctionElement[Any]):  # noqa: N801 - reads as a SQL function
    """Whether a column is one of many whole numbers, given as a JSON array in one text: `is_among(column, "[1,2]")`.

    With a thousand parameters instead, PostgreSQL's driver and planner take longer than finding the rows.
    """

    type = NullType()  # as Boolean, SQLAlchemy would write `... IN (...) = 1` on SQLite, which uses no index
    inherit_cache = True


@compiles(is_among, "sqlite")
def _is_among_sqlite(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    column, numbers = element.clauses
    return f"{compiler.process(column, **kw)} IN (SELECT value FROM json_each({compiler.process(numbers, **kw)}))"


@compiles(is_among, "postgresql")
def _is_among_postgresql(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    column, numbers = element.clauses
    array = f"SELECT CAST(json_array_elements_text(CAST({compiler.process(numbers, **kw)} AS json)) AS BIGINT)"
    return f"{compiler.process(column, **kw)} = ANY (ARRAY({array}))"


class database_now_us(FunctionElement[int]):  # noqa: N801 - reads as a SQL function
    """The database's clock in microseconds since 1970 UTC: one clock for all hosts that share it."""

    type = BigInteger()
    inherit_cache = True


@compiles(database_now_us, "sqlite")
def _now_us_sqlite(_element: database_now_us, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000"


@compiles(database_now_us, "postgresql")
def _now_us_postgresql(_element: database_now_us, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
