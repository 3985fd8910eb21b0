"""What every test may ask for: fresh databases on both engines, and a clock that moves only when told to.

One PostgreSQL serves the whole run. With pytest-xdist the controller starts it and hands its URL to the workers;
without, it starts when the first test needs it. Whoever started it stops it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.support.browser import VARIABLE, chromium, chromium_path
from tests.support.clock import FakeClock
from tests.support.databases import (
    ENGINE_KINDS,
    POSTGRES_URL_VARIABLE,
    Databases,
    PostgresDatabases,
    PostgresServer,
    PostgresUnavailableError,
    SqliteDatabases,
    TestPostgres,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EngineKind = Literal["sqlite", "postgresql"]
NewDatabase = Callable[..., str]

_POSTGRES = pytest.StashKey[TestPostgres]()
_URL_FOR_WORKERS = "ledger_postgres_url"
_SETTINGS_PREFIXES = ("SIZING_", "TRADING_", "LEDGER_", "SERVICE_", "RECONCILE_", "EXCHANGE_")
_VARIABLES_OF_TESTS = (POSTGRES_URL_VARIABLE, "LEDGER_SIZER_SHARED_DATA")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_POSTGRES] = TestPostgres()
    # Tests see the settings' defaults, whatever the shell they were started from has configured.
    for name in [n for n in os.environ if n.startswith(_SETTINGS_PREFIXES) and n not in _VARIABLES_OF_TESTS]:
        del os.environ[name]
    # A run that is told to stop (by `timeout`, by a CI service) must not leave its server behind.
    is_worker = hasattr(config, "workerinput")
    if not is_worker and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Runs in the controller of pytest-xdist, once for each worker, before the worker starts."""
    try:
        node.workerinput[_URL_FOR_WORKERS] = node.config.stash[_POSTGRES].url()
    except PostgresUnavailableError as error:
        pytest.exit(f"no PostgreSQL, and the tests need one: {error}", returncode=pytest.ExitCode.INTERNAL_ERROR)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _POSTGRES in config.stash:
        config.stash[_POSTGRES].stop()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the second engine of `one_engine` tests as `extended`, and start the slow tests first."""
    for item in items:
        engine = getattr(item, "callspec", None) and item.callspec.params.get("engine_kind")  # type: ignore[attr-defined]
        if engine == "postgresql" and item.get_closest_marker("one_engine"):
            item.add_marker(pytest.mark.extended)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_report_header() -> str:
    if os.environ.get(POSTGRES_URL_VARIABLE):
        postgres = f"the one that {POSTGRES_URL_VARIABLE} names"
    elif os.geteuid() == 0:
        postgres = "embedded; as root it runs as the system user pgserver and makes the folders above it readable"
    else:
        postgres = "embedded"
    return f"databases: SQLite {sqlite3.sqlite_version}; PostgreSQL: {postgres}"


def _migrate(url: str) -> None:
    from ledger_sizer.storage.database import upgrade

    upgrade(url)


@pytest.fixture(scope="session")
def _databases_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Databases]]:
    """The databases of this worker by engine, each opened when first asked for."""
    opened: dict[str, Databases] = {}

    def databases_of(kind: str) -> Databases:
        if kind not in ENGINE_KINDS:
            raise ValueError(f"no engine {kind!r}; there are {ENGINE_KINDS}")
        if kind not in opened:
            if kind == "sqlite":
                opened[kind] = SqliteDatabases(_migrate)
            else:
                handed: str | None = getattr(request.config, "workerinput", {}).get(_URL_FOR_WORKERS)
                server_url = handed or request.config.stash[_POSTGRES].url()
                opened[kind] = PostgresDatabases(server_url, f"ledger_test_{uuid.uuid4().hex[:12]}", _migrate)
        return opened[kind]

    yield databases_of
    for databases in opened.values():
        databases.close()


@contextmanager
def _made_and_dropped(databases_of: Callable[[str], Databases]) -> Iterator[NewDatabase]:
    with ExitStack() as at_the_end:

        def make(kind: str, *, migrated: bool = True, like: str | None = None) -> str:
            databases = databases_of(kind)
            url = databases.create(migrated=migrated, like=like)
            at_the_end.callback(databases.drop, url)
            return url

        yield make


@pytest.fixture
def new_database(_databases_of: Callable[[str], Databases]) -> Iterator[NewDatabase]:
    """Make any number of databases: `new_database("postgresql")`, `new_database("sqlite", migrated=False)`.

    Each call returns a URL. `like=url` copies a database that nobody has open. They are dropped after the test, with
    whatever is still connected to them.
    """
    with _made_and_dropped(_databases_of) as make:
        yield make


@pytest.fixture(scope="module")
def module_database(_databases_of: Callable[[str], Databases]) -> Iterator[NewDatabase]:
    """`new_database` for what the tests of one module share."""
    with _made_and_dropped(_databases_of) as make:
        yield make


@pytest.fixture(params=ENGINE_KINDS)
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    """Which database the test runs on. A test that asks for this, or for a URL below, runs on both."""
    kind: EngineKind = request.param
    return kind


@pytest.fixture
def database_url(engine_kind: EngineKind, new_database: NewDatabase) -> str:
    """URL of a database of the test's own: migrated to head, without rows."""
    return new_database(engine_kind)


@pytest.fixture
def empty_database_url(engine_kind: EngineKind, new_database: NewDatabase) -> str:
    """URL of a database of the test's own without any schema, for tests of the migrations."""
    return new_database(engine_kind, migrated=False)


@pytest.fixture
def durable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own with fsync on, which it may `crash()` and `start()` again."""
    server = PostgresServer(durable=True)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def clock() -> FakeClock:
    """Stands at 2026-01-01T00:00:00Z until the test advances it."""
    return FakeClock()


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Without one the tests are skipped, but never where changes are judged."""
    if chromium_path() is None and not os.environ.get("CI"):
        pytest.skip(f"no Chromium here: apt-get install chromium, or name one in {VARIABLE}")
    with chromium() as running:
        yield running
