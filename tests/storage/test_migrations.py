"""Migrations: the schema equals the models; up and down with data; from a checkout, as offline SQL, and at `open`."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Engine, Index, MetaData, Text, UniqueConstraint, inspect, make_url, text

import ledger_sizer.storage.tables  # noqa: F401 - it declares them
from ledger_sizer import InvalidRequest, Ledger, LedgerError, SchemaOutdated, Unavailable
from ledger_sizer.storage.database import SCHEMA_HEAD, alembic_config, downgrade, make_engine, schema_version, upgrade
from ledger_sizer.storage.table_base import Base
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, Intruder, assert_verified, opened, reserve_btc
from tests.support.old_ledgers import forget_callers

D = Decimal
Edit = Callable[[MetaData], object]
SCRIPTS = ScriptDirectory.from_config(alembic_config("sqlite:///unused.db"))
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a migrated database."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def differences(engine: Engine, metadata: MetaData) -> list[Any]:
    """Return what Alembic would change in the database to match the models. CHECKs are compared by name."""
    plugins = ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"]
    options = {"compare_type": True, "autogenerate_plugins": plugins}
    with engine.connect() as connection:
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    return found


def table_names(url: str) -> set[str]:
    where = make_url(url)
    if where.get_backend_name() == "sqlite" and not Path(str(where.database)).exists():
        return set()
    engine = make_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


# --- the schema is what the models say ---------------------------------------------------------------------------


def test_compare_schema_when_migrated_then_it_is_what_the_models_say(engine: Engine) -> None:
    assert differences(engine, Base.metadata) == []


def _copied() -> MetaData:
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(metadata)
    return metadata


def _without_check(metadata: MetaData) -> None:
    scopes = metadata.tables["scopes"]
    scopes.constraints.remove(next(part for part in scopes.constraints if isinstance(part, CheckConstraint)))


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda m: m.tables["scopes"].append_constraint(CheckConstraint("1 = 1", name="new")), id="check"),
        pytest.param(_without_check, id="no-check"),
        pytest.param(lambda m: m.remove(m.tables["decisions"]), id="no-table"),
        pytest.param(lambda m: Index("ix_new", m.tables["decisions"].c.key), id="index"),
        pytest.param(lambda m: m.tables["scopes"].append_constraint(UniqueConstraint("cap_e8", name="u")), id="unique"),
        pytest.param(lambda m: setattr(m.tables["scopes"].c.held_e8, "nullable", True), id="nullable"),
        pytest.param(lambda m: setattr(m.tables["scopes"].c.held_e8, "type", Text()), id="type"),
    ],
)  # fmt: skip
def test_compare_schema_when_the_models_move_on_then_the_comparison_notices(engine: Engine, edit: Edit) -> None:
    metadata = _copied()
    assert differences(engine, metadata) == []
    edit(metadata)
    assert differences(engine, metadata) != []


def test_compare_indexes_when_the_models_make_them_partial_then_so_are_they(engine: Engine) -> None:
    query = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if engine.dialect.name == "sqlite"
        else "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )
    with engine.connect() as connection:
        made = {name: " ".join(sql.split()) for name, sql in connection.execute(text(query)).all()}
    partial = {
        str(index.name): index.dialect_options[engine.dialect.name].get("where")
        for table in Base.metadata.tables.values()
        for index in table.indexes
    }
    assert len(partial) >= 3
    for name, where in partial.items():
        assert ("WHERE" in made[name]) is (where is not None), made[name]
    assert "'held'" in made["ix_positions_expiry"]
    assert "'open'" in made["ix_positions_open"]


def test_list_revisions_when_one_is_added_then_the_head_is_known_and_every_step_goes_both_ways() -> None:
    assert SCRIPTS.get_heads() == [SCHEMA_HEAD]
    assert sorted(REVISIONS) == REVISIONS, "versions are compared as text when a database is opened"
    for script in SCRIPTS.walk_revisions():
        for step in ("upgrade", "downgrade"):
            assert callable(getattr(script.module, step)), f"{script.revision} has no {step}"
            assert getattr(script.module, step).__doc__, f"{script.revision}.{step} does not say what it does"


# --- up, down, up ------------------------------------------------------------------------------------------------


def record_some(url: str, clock: FakeClock) -> tuple[Any, ...]:
    """Record a few commands in a ledger. Returns everything it then contains."""
    with opened(url, clock) as ledger:
        reserve_btc(ledger, "1")
        ledger.confirm(key="2", position_id="main-1", quantity=D("0.01"), price=D(50000))
        reserve_btc(ledger, "3", ttl_seconds=10)
        clock.advance(10)
        ledger.reserve(key="4", available_balance=D(0))
        ledger.set_cap(key="5", scope="venue=bybit", cap=D(900))
        ledger.halt(key="6", scope="symbol=ETH")
        return contents(ledger)


def record_some_as_old(url: str, clock: FakeClock) -> tuple[Any, ...]:
    """Record a few commands as versions before 0010 did. Returns everything the ledger then contains."""
    record_some(url, clock)
    forget_callers(url)
    with opened(url, clock) as ledger:
        return contents(ledger)


def contents(ledger: Ledger) -> tuple[Any, ...]:
    assert_verified(ledger)
    return ledger.exposure(), tuple(ledger.positions()), tuple(ledger.history())


def test_migrate_when_up_down_and_up_again_then_it_works_like_new(empty_database_url: str, clock: FakeClock) -> None:
    url = empty_database_url
    upgrade(url)
    record_some(url, clock)
    downgrade(url, "base")
    assert table_names(url) <= {"alembic_version"}
    with Intruder(url) as intruder:
        if intruder.dialect == "postgresql":
            query = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            assert intruder.rows(query) == [], "functions go with their triggers"
    upgrade(url)
    with opened(url, clock) as ledger:
        assert ledger.portfolios() == []
    assert record_some(url, clock)[0].seq == 7


@pytest.mark.parametrize("revision", REVISIONS)
def test_migrate_when_down_to_a_revision_and_up_again_then_the_ledger_keeps_its_data(
    empty_database_url: str, clock: FakeClock, revision: str
) -> None:
    upgrade(empty_database_url)
    before = record_some_as_old(empty_database_url, clock)
    downgrade(empty_database_url, revision)
    upgrade(empty_database_url)
    with opened(empty_database_url, clock) as ledger:
        assert contents(ledger) == before
        assert ledger.reserve(key="next", tags=TAGS).budget == 400


def test_migrate_when_taken_step_by_step_then_each_revision_can_be_reached_and_left(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    assert schema_version(engine) is None
    for revision in REVISIONS:
        upgrade(empty_database_url, revision)
        assert schema_version(engine) == revision
    upgrade(empty_database_url)
    assert schema_version(engine) == SCHEMA_HEAD
    for revision in [*REVISIONS[-2::-1], "base"]:
        downgrade(empty_database_url, revision)
        assert schema_version(engine) == (None if revision == "base" else revision)
    engine.dispose()


# --- from a checkout ---------------------------------------------------------------------------------------------


def alembic(root: Path, *arguments: str, **environment: str) -> str:
    """Run `alembic ...` at the top of the repository. Returns what it prints."""
    ran = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_run_alembic_when_the_environment_names_a_database_then_that_one_is_migrated(
    empty_database_url: str, repository_root: Path
) -> None:
    alembic(repository_root, "upgrade", "head", LEDGER_DATABASE_URL=empty_database_url)
    engine = make_engine(empty_database_url)
    assert schema_version(engine) == SCHEMA_HEAD
    assert differences(engine, Base.metadata) == []
    engine.dispose()
    assert "No new upgrade operations" in alembic(repository_root, "check", LEDGER_DATABASE_URL=empty_database_url)


def test_run_alembic_when_x_url_names_a_database_then_it_beats_the_environment(
    empty_database_url: str, new_database: NewDatabase, repository_root: Path
) -> None:
    other = new_database("sqlite", migrated=False)
    alembic(repository_root, "-x", f"url={empty_database_url}", "upgrade", "head", LEDGER_DATABASE_URL=other)
    assert "decisions" in table_names(empty_database_url)
    assert "decisions" not in table_names(other)


def execute(url: str, script: str) -> None:
    """Run a whole SQL script, as the database's own shell would."""
    where = make_url(url)
    if where.get_backend_name() == "sqlite":
        assert where.database is not None
        with closing(sqlite3.connect(where.database)) as connection:
            connection.executescript(script)
    else:
        plain = where.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as server:
            server.execute(script)


def test_run_alembic_when_asked_for_sql_then_what_it_prints_makes_the_same_ledger(
    empty_database_url: str, repository_root: Path, clock: FakeClock
) -> None:
    script = alembic(repository_root, "upgrade", "head", "--sql", LEDGER_DATABASE_URL=empty_database_url)
    assert table_names(empty_database_url) == set(), "offline means offline"
    execute(empty_database_url, script)
    engine = make_engine(empty_database_url)
    assert schema_version(engine) == SCHEMA_HEAD
    assert differences(engine, Base.metadata) == []
    engine.dispose()
    record_some(empty_database_url, clock)
    with Intruder(empty_database_url) as intruder, pytest.raises(Exception, match="append-only"):
        intruder.run("DELETE FROM decisions")
    execute(
        empty_database_url,
        alembic(repository_root, "downgrade", "head:base", "--sql", LEDGER_DATABASE_URL=empty_database_url),
    )
    assert table_names(empty_database_url) <= {"alembic_version"}


# --- at open -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [None, *REVISIONS[:-1]])
def test_open_when_a_servers_database_is_behind_then_it_is_refused_with_the_command_to_run(
    new_database: NewDatabase, clock: FakeClock, behind: str | None
) -> None:
    url = new_database("postgresql", migrated=False)
    if behind is not None:
        upgrade(url, behind)
    state = "has no ledger yet" if behind is None else f"is at migration {behind}, this version needs {SCHEMA_HEAD}"
    with pytest.raises(SchemaOutdated, match=f"{state}; run: ledger-sizer db upgrade --database-url postgresql://"):
        Ledger.open(url, clock=clock)
    upgrade(url)
    with opened(url, clock) as ledger:
        assert ledger.reserve(key="1").granted


@pytest.mark.parametrize("behind", [None, *REVISIONS[:-1]])
def test_open_when_a_sqlite_file_is_behind_then_it_is_migrated(
    new_database: NewDatabase, clock: FakeClock, behind: str | None
) -> None:
    url = new_database("sqlite", migrated=False)
    before = None
    if behind is not None:
        upgrade(url)
        before = record_some_as_old(url, clock)
        downgrade(url, behind)
    with opened(url, clock) as ledger:
        if before is None:
            assert ledger.reserve(key="1").granted
        else:
            assert contents(ledger) == before


def test_open_when_the_database_is_newer_then_it_is_refused_and_left_alone(database_url: str) -> None:
    with Intruder(database_url) as intruder:
        intruder.run("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaOutdated, match=f"at migration 9999, newer than this version's {SCHEMA_HEAD}"):
            Ledger.open(database_url)
        assert intruder.rows("SELECT version_num FROM alembic_version") == [("9999",)]


def test_open_when_the_server_cannot_be_reached_then_it_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unavailable, match="cannot open postgresql") as refused:
        Ledger.open(f"postgresql://bot@127.0.0.1:{port}/ledger")
    assert refused.value.retryable


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_open_when_the_file_is_no_database_then_it_is_an_error_of_ours_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"notes\.txt"):
        Ledger.open(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_open_when_the_folder_is_missing_then_it_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot create .*: No such file or directory"):
        Ledger.open(f"sqlite:///{tmp_path}/no/such/folder/ledger.db")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://h/d", "postgresql+asyncpg://h/d", "ledger.db", "", "://", "sqlite+aiosqlite:///x.db"]
)  # fmt: skip
def test_open_when_no_ledger_can_live_there_then_the_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="database_url"):
        Ledger.open(url)


OPEN_IN_THREADS = """
import sys, threading
from ledger_sizer import Ledger

def bot(number):
    with Ledger.open(sys.argv[1].format(number)) as ledger:
        ledger.reserve(key=str(number))
    done.append(number)

done = []
threads = [threading.Thread(target=bot, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit(0 if len(done) == 4 else 1)
"""


@pytest.mark.parametrize("name", ["shared.db", "own_{}.db"])
def test_open_when_threads_make_new_files_at_once_then_all_of_them_succeed(tmp_path: Path, name: str) -> None:
    """Runs in a subprocess: two migrations at once in one process once crashed it with a segmentation fault."""
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        command = [sys.executable, "-c", OPEN_IN_THREADS, f"sqlite:///{folder}/{name}"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
