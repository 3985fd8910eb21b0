"""Engines and schema versions: the one place that knows how each database is opened.

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
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from ledger_sizer.config import LedgerSettings
from ledger_sizer.model.errors import InvalidRequest, SchemaOutdated, Unavailable

SCHEMA_HEAD = "0008"
"""Newest migration, known here so that opening a ledger does not have to import Alembic (a test keeps it true)."""

_SQLITE_CACHE_KIB = 64 * 1024
_SQLITE_CHECKPOINT_PAGES = 2000
"""8 MiB of log between checkpoints: rare enough that a hot page is copied back once for many commits, and short enough
that the callers who wait for one are not the slowest hundredth.
"""

_one_migration = threading.Lock()
"""Alembic keeps its state in globals of the process; processes are kept apart by the database's own lock."""

_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def database_url(value: str) -> URL:
    """Parse a database URL and choose the driver. Raises `InvalidRequest` for one no ledger can live in."""
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
    """An engine for a ledger's database. `read_only` connections cannot write, whatever SQL they are given."""
    url = database_url(value) if isinstance(value, str) else value
    settings = settings or LedgerSettings()
    if is_sqlite(url):
        engine = create_engine(url, connect_args={"timeout": settings.busy_timeout_seconds, "check_same_thread": False})
        _prepare_sqlite(engine, settings.busy_timeout_seconds * 1000, read_only)
        return engine
    try:
        # A read of several statements is one moment, not several.
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
            *(() if read_only else ("journal_mode = WAL",)),  # the file remembers it
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
    """The migration the database is at, None for one without a ledger. Raises `Unavailable` when it is away."""
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DBAPIError as error:
        raise Unavailable(f"cannot open {redacted_url(engine.url)}: {str(error.orig).strip()}") from None


def redacted_url(url: URL) -> str:
    """A database URL for people: without its password and the driver's name."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """One read transaction. Raises `Unavailable` instead of the driver's errors."""
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise Unavailable(f"cannot read {redacted_url(engine.url)}: {str(error.orig).strip()}") from None


_ALL_AT_ONCE: Mapping[str, Any] = {"stream_results": False, "yield_per": None}


def raw_rows(connection: Connection, query: Executable) -> list[tuple[Any, ...]]:
    """All rows of a query as the driver's own tuples: an object of SQLAlchemy's for each row costs as much again."""
    # Where the connection streams, SQLAlchemy keeps the first row to itself.
    with closing(connection.execute(query, execution_options=_ALL_AT_ONCE)) as result, _driver_errors(connection):
        assert result.cursor is not None, "a query has rows"
        return [*result.cursor.fetchall()]


def stream_rows(
    connection: Connection, query: Select[Any] | CompoundSelect[Any], rows: int
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a long query in plain tuples, so many in memory at a time. Its parameters must be numbers.

    Read through the driver, because making an object of SQLAlchemy's for each row takes longer than checking its hash.
    """
    statement = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
    driver = connection.connection.driver_connection
    assert driver is not None
    named = () if is_sqlite(connection.engine.url) else ("ledger_stream",)  # with a name the server keeps the rest
    with _driver_errors(connection), closing(driver.cursor(*named)) as cursor:
        cursor.execute(statement)
        while found := cursor.fetchmany(rows):
            yield found


@contextmanager
def _driver_errors(connection: Connection) -> Iterator[None]:
    """Raise `Unavailable` instead of the errors that SQLAlchemy does not see."""
    try:
        yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise Unavailable(f"cannot read {redacted_url(connection.engine.url)}: {str(error).strip()}") from None


def require_head(engine: Engine) -> None:
    """Raise `SchemaOutdated`, naming the command to run, unless the database is at this version's migration."""
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
    """Where the Alembic scripts are: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaOutdated(f"the migration scripts are missing next to {package}; reinstall ledger-sizer")


def alembic_config(value: str | URL) -> Any:
    """Alembic's configuration for this database, usable without alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["url"] = database_url(value) if isinstance(value, str) else value
    return config


def upgrade(value: str | URL, revision: str = "head") -> None:
    """Migrate the database up to `revision`, creating everything in an empty one."""
    from alembic import command

    with _one_migration:
        command.upgrade(alembic_config(value), revision)


def downgrade(value: str | URL, revision: str) -> None:
    """Migrate the database down to `revision` (`base` removes the ledger and all its data)."""
    from alembic import command

    with _one_migration:
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
    """Whether a column contains a text, exactly (`LIKE` is blind to case on SQLite)."""

    type = Boolean()
    inherit_cache = True


@compiles(has_text, "sqlite")
def _has_text_sqlite(element: has_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)}) > 0"


@compiles(has_text, "postgresql")
def _has_text_postgresql(element: has_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **kw)}) > 0"


class is_among(FunctionElement[Any]):  # noqa: N801 - reads as a SQL function
    """Whether a column is one of many whole numbers, given as one text, a JSON array: `is_among(column, "[1,2]")`.

    A list of a thousand parameters takes PostgreSQL's driver and planner longer than finding the rows.
    """

    type = NullType()  # SQLite has no booleans: SQLAlchemy would write `... IN (...) = 1`, which no index can answer
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
