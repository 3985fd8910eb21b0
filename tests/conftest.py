"""Fixtures of all tests: fresh databases on both engines, a clock that the test advances, a browser.

One PostgreSQL serves the whole run. With pytest-xdist the controller starts it and passes its URL to the workers.
Without, it starts when the first test needs it. The process that started it stops it.
"""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.support.browser import CHROMIUM_VARIABLE, chromium, chromium_path
from tests.support.clock import FakeClock
from tests.support.databases import (
    ENGINE_KINDS,
    POSTGRES_URL_VARIABLE,
    POSTGRES_VERSION_VARIABLE,
    Databases,
    PostgresDatabases,
    PostgresServer,
    PostgresUnavailableError,
    SqliteDatabases,
    TestPostgres,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from ledger_sizer import Ledger

EngineKind = Literal["sqlite", "postgresql"]
NewDatabase = Callable[..., str]

DENIAL_REPEAT_VARIABLE = "LEDGER_DENIAL_REPEAT_SECONDS"

GARBAGE_THRESHOLDS = (20_000, 20, 20)
"""Of the generations. With Python's own, a tenth of the tests' CPU went into looking."""

_POSTGRES = pytest.StashKey[TestPostgres]()
_URL_FOR_WORKERS = "ledger_postgres_url"
_SETTINGS_PREFIXES = ("SIZING_", "TRADING_", "LEDGER_", "SERVICE_", "RECONCILE_", "EXCHANGE_")
_VARIABLES_OF_TESTS = (POSTGRES_URL_VARIABLE, POSTGRES_VERSION_VARIABLE, "LEDGER_SIZER_SHARED_DATA")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_POSTGRES] = TestPostgres()
    # Tests see the settings' defaults, not what the shell that started them has configured.
    for name in [n for n in os.environ if n.startswith(_SETTINGS_PREFIXES) and n not in _VARIABLES_OF_TESTS]:
        del os.environ[name]
    # Tests count decisions, and make long histories of denials: each is recorded, but where a test is about repeats.
    os.environ[DENIAL_REPEAT_VARIABLE] = "0"
    # A run that gets SIGTERM (from `timeout` or a CI service) must still stop its server.
    is_worker = hasattr(config, "workerinput")
    if not is_worker and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell ignores SIGINT for what it starts in the background, and every program under test would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for garbage rarely, and never while tests are collected or among them: modules and tests live to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the second engine of `one_engine` tests as `extended`, and start the slow tests first."""
    for item in items:
        engine = getattr(item, "callspec", None) and item.callspec.params.get("engine_kind")  # type: ignore[attr-defined]
        if engine == "postgresql" and item.get_closest_marker("one_engine"):
            item.add_marker(pytest.mark.extended)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_report_header(config: pytest.Config) -> str:
    try:
        postgres = config.stash[_POSTGRES].describe()
    except PostgresUnavailableError as error:
        raise pytest.UsageError(str(error)) from error
    if os.geteuid() == 0 and POSTGRES_URL_VARIABLE not in os.environ:
        postgres += "; as root it runs as the system user pgserver and makes the folders above it readable"
    return f"databases: SQLite {sqlite3.sqlite_version}; PostgreSQL: {postgres}"


def _migrate(url: str) -> None:
    from ledger_sizer.storage.database import upgrade

    upgrade(url)


@pytest.fixture(scope="session")
def _databases_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Databases]]:
    """Return the databases of this worker for an engine, opened on first use."""
    opened: dict[str, Databases] = {}

    def databases_of(kind: str) -> Databases:
        if kind not in ENGINE_KINDS:
            raise ValueError(f"no engine {kind!r}; there are {ENGINE_KINDS}")
        if kind not in opened:
            if kind == "sqlite":
                opened[kind] = SqliteDatabases(_migrate)
            else:
                controller_url: str | None = getattr(request.config, "workerinput", {}).get(_URL_FOR_WORKERS)
                server_url = controller_url or request.config.stash[_POSTGRES].url()
                opened[kind] = PostgresDatabases(server_url, f"ledger_test_{uuid.uuid4().hex[:12]}", _migrate)
        return opened[kind]

    yield databases_of
    for databases in opened.values():
        databases.close()


@contextmanager
def _temporary_databases(databases_of: Callable[[str], Databases]) -> Iterator[NewDatabase]:
    with ExitStack() as cleanup:

        def make(kind: str, *, migrated: bool = True, like: str | None = None) -> str:
            databases = databases_of(kind)
            url = databases.create(migrated=migrated, like=like)
            cleanup.callback(databases.drop, url)
            return url

        yield make


@pytest.fixture
def new_database(_databases_of: Callable[[str], Databases]) -> Iterator[NewDatabase]:
    """Create any number of databases: `new_database("postgresql")`, `new_database("sqlite", migrated=False)`.

    Each call returns a URL. `like=url` copies a database that nobody has open. After the test the databases are
    dropped, even with open connections.
    """
    with _temporary_databases(_databases_of) as make:
        yield make


@pytest.fixture(scope="module")
def module_database(_databases_of: Callable[[str], Databases]) -> Iterator[NewDatabase]:
    """Create databases that the tests of one module share; like `new_database`, but dropped after the module."""
    with _temporary_databases(_databases_of) as make:
        yield make


@pytest.fixture(params=ENGINE_KINDS)
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    """Name the engine the test runs on. A test that uses this fixture, or a URL below, runs once on each engine."""
    kind: EngineKind = request.param
    return kind


@pytest.fixture
def database_url(engine_kind: EngineKind, new_database: NewDatabase) -> str:
    """Return the URL of a new database: migrated to head, without rows."""
    return new_database(engine_kind)


@pytest.fixture
def empty_database_url(engine_kind: EngineKind, new_database: NewDatabase) -> str:
    """Return the URL of a new database without a schema, for tests of the migrations."""
    return new_database(engine_kind, migrated=False)


@pytest.fixture
def durable_postgres() -> Iterator[PostgresServer]:
    """Start a separate PostgreSQL server with fsync on, which the test may `crash()` and `start()` again."""
    server = PostgresServer(durable=True)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that reads 2026-01-01T00:00:00Z until the test advances it."""
    return FakeClock()


@pytest.fixture
def ledger(request: pytest.FixtureRequest, database_url: str, clock: FakeClock) -> Iterator[Ledger]:
    """Open a new ledger on the test's clock: flat sizing, 1000 USD a position, cap 5000.

    The mark `settings` gives it others. A module whose tests begin with some decisions overrides this fixture.
    """
    from ledger_sizer import Ledger

    mark = request.node.get_closest_marker("settings")
    with Ledger.open(database_url, settings=mark and mark.args[0], clock=clock) as opened:
        yield opened


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """Return the folder with pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium. Where it is not installed the tests are skipped, except in CI: there they fail."""
    if chromium_path() is None and not os.environ.get("CI"):
        pytest.skip(f"no Chromium here: apt-get install chromium, or name one in {CHROMIUM_VARIABLE}")
    with chromium() as running:
        yield running
