"""Opens each kind of database, migrates it, and reads from it."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    Executable,
    Select,
    create_engine,
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
from ledger_sizer.model.choices import LedgerCreation
from ledger_sizer.model.errors import InvalidRequest, SchemaOutdated, Unavailable
from ledger_sizer.model.tags import tag_texts
from ledger_sizer.storage import sqlite_start
from ledger_sizer.storage.postgresql_url import connect_parameters, with_host_list
from ledger_sizer.storage.sqlite_file import NoDatabaseFile, make_sqlite_engine
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

SCHEMA_HEAD = "0013"
"""The newest migration. Written here so that opening a ledger need not import Alembic; a test keeps it true."""

_migration_lock = threading.Lock()
"""Alembic keeps its state in globals, so threads take turns. Between processes, the database's own lock does that."""

_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def database_url(value: str) -> URL:
    """Parse a database URL and set the driver. Raises `InvalidRequest` for a database that cannot store a ledger."""
    try:
        url = make_url(with_host_list(value))
    except (ArgumentError, ValueError):
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
    if url.get_backend_name() == "sqlite" and (url.query or str(url.database).startswith("file:")):
        raise InvalidRequest(
            "database_url: name the SQLite file by its path only, without parameters, as in sqlite:///ledger.db",
            field="database_url",
        )
    return url.set(drivername=driver)


def is_sqlite(url: URL) -> bool:
    """True for a SQLite URL."""
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: URL) -> str:
    """Return the path of a SQLite URL's file."""
    assert url.database is not None, "`database_url` refuses a URL without a file"
    return url.database


def make_engine(
    value: str | URL, settings: LedgerSettings | None = None, *, read_only: bool = False, bounded: bool = True
) -> Engine:
    """Make an engine for a ledger's database.

    read_only: its connections cannot write, whatever SQL they are given. bounded: a wait for a server ends after
    `LedgerSettings.server_timeout_seconds`; False is for migrations, whose statements may take long.
    """
    url = database_url(value) if isinstance(value, str) else value
    settings = settings or LedgerSettings()
    if is_sqlite(url):
        return make_sqlite_engine(url, settings.busy_timeout_seconds, read_only=read_only)
    try:
        # All statements of one read must see the same snapshot.
        isolation = "REPEATABLE READ" if read_only else "READ COMMITTED"
        parameters = connect_parameters(url, settings.connect_timeout_seconds, settings.server_timeout_seconds)
        engine = create_engine(url, isolation_level=isolation, connect_args=parameters)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"PostgreSQL needs the package {error.name}; install it with: pip install 'ledger-sizer[postgres]'"
        ) from None
    from ledger_sizer.storage.postgresql_connection import bound_connections

    bound_connections(engine, settings.server_timeout_seconds if bounded else None, ping=read_only)
    if read_only:
        engine = engine.execution_options(postgresql_readonly=True)
    return engine


def schema_version(engine: Engine) -> str | None:
    """Return the database's migration, None without a ledger. Raises `Unavailable` if the database cannot be opened."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except NoDatabaseFile:
        return None
    except DBAPIError as error:
        raise _unavailable(f"open {redacted_url(engine.url)}", error) from None


def redacted_url(url: URL) -> str:
    """Return a database URL for display: without its password and the driver's name."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


class Conflict(Unavailable):
    """A constraint of the database refused the rows: another process was first."""


@contextmanager
def read_transaction(engine: Engine, what: str | None = None) -> Iterator[Connection]:
    """Open one read transaction. Raises `Unavailable` instead of the driver's errors. what: for the error's text.

    It ends once all that it read is as durable as an acknowledged commit: no standby may lack what a caller is told.
    """
    try:
        with engine.begin() as connection:
            yield connection
            if not is_sqlite(engine.url):
                from ledger_sizer.storage.postgresql_connection import CONFIRM

                connection.exec_driver_sql(CONFIRM, execution_options=_FETCH_AT_ONCE).close()
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
    """Raise `SchemaOutdated` with the command to run, unless the database is at this version's migration.

    Raises `InvalidRequest` for a PostgreSQL server behind a pooler that shares sessions.
    """
    found = schema_version(engine)
    if not is_sqlite(engine.url):
        from ledger_sizer.storage.postgresql_connection import require_own_session

        require_own_session(engine)
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


def upgrade(value: str | URL, revision: str = "head", *, create: LedgerCreation = "new") -> bool:
    """Migrate the database up to `revision`. Creates everything in an empty database.

    create: when a SQLite file that is not there is created. Returns True where a new SQLite ledger was created. Raises
    `LedgerMissing`, `Unavailable`.
    """
    engine = make_engine(value, read_only=True)
    try:
        if is_sqlite(engine.url):
            return prepare_sqlite(engine, create, revision)
        _run_migrations(engine.url, revision)
        return False
    finally:
        engine.dispose()


def prepare_sqlite(
    engine: Engine, create: LedgerCreation, revision: str | None = None, settings: LedgerSettings | None = None
) -> bool:
    """Create the ledger of a SQLite file as `create` allows, or migrate it where it is older. True where created.

    engine: a read-only one, because reading the version must not wait for writers. revision: to migrate to in any case.
    settings: read from the environment when None. Raises `LedgerMissing`, `Unavailable`.
    """
    path = sqlite_path(engine.url)
    traces = sqlite_start.Traces.of(path)
    found = None if traces.empty else schema_version(engine)
    if found is None:
        traces.require_may_begin(create)
    if revision is not None or found is None or found < SCHEMA_HEAD:
        _run_migrations(engine.url, revision or "head", settings)
    sqlite_start.remember(path, create=create != "never")
    if found is None:
        log.info("ledger.created", path=str(traces.path))
    return found is None


def _run_migrations(url: URL, revision: str, settings: LedgerSettings | None = None) -> None:
    from alembic import command

    config = alembic_config(url)
    config.attributes["settings"] = settings
    with _migration_lock:
        command.upgrade(config, revision)


def migrate_connection(connection: Connection) -> None:
    """Create the newest schema over a connection to an empty database."""
    from alembic import command

    config = alembic_config(connection.engine.url)
    config.attributes["connection"] = connection
    with _migration_lock:
        command.upgrade(config, "head")


def downgrade(value: str | URL, revision: str) -> None:
    """Migrate the database down to `revision`; `base` removes the ledger and all its data."""
    from alembic import command

    config = alembic_config(value)
    with _migration_lock:
        command.downgrade(config, revision)
    url = config.attributes["url"]
    engine = make_engine(url, read_only=True)
    if is_sqlite(url) and schema_version(engine) is None:
        sqlite_start.forget(sqlite_path(url))
    engine.dispose()


def has_tag(column: Any, name: str, value: str) -> ColumnElement[bool]:
    """Whether a column of canonical JSON text has this value of a tag, alone or among several."""
    alone, list_start, among = tag_texts(name, value)
    return _has_text(column, alone) | (
        _has_text(column, list_start) & _has_text(column, among) & _lists_tag(column, name, value)
    )


class _has_text(FunctionElement[bool]):  # noqa: N801 - reads as a SQL function
    """Whether a column contains a text, case-sensitive (`LIKE` ignores case on SQLite)."""

    type = Boolean()
    inherit_cache = True


@compiles(_has_text, "sqlite")
def _has_text_sqlite(element: _has_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)}) > 0"


@compiles(_has_text, "postgresql")
def _has_text_postgresql(element: _has_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **kw)}) > 0"


class _lists_tag(FunctionElement[bool]):  # noqa: N801 - reads as a SQL function
    """Whether a tag in a column of canonical JSON text is a list with this value in it."""

    type = Boolean()
    inherit_cache = True


@compiles(_lists_tag, "sqlite")
def _lists_tag_sqlite(element: _lists_tag, compiler: SQLCompiler, **kw: Any) -> str:
    column, name, value = (compiler.process(one, **kw) for one in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({column}, '$.' || {name}) AS tag WHERE tag.value = {value})"


@compiles(_lists_tag, "postgresql")
def _lists_tag_postgresql(element: _lists_tag, compiler: SQLCompiler, **kw: Any) -> str:
    column, name, value = (compiler.process(one, **kw) for one in element.clauses)
    return f"({column}::jsonb -> {name}::text) @> to_jsonb({value}::text)"


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
