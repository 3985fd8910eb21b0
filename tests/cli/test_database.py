"""Tests `ledger-sizer db`, and what other commands say of a database at another version, on both engines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from ledger_sizer import AppSettings
from ledger_sizer.storage.database import SCHEMA_HEAD, make_engine
from ledger_sizer.storage.database import database_url as parsed_url
from tests.conftest import EngineKind
from tests.support.command_line import CommandLine


@pytest.fixture
def fresh(empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a database without a schema."""
    return CommandLine(capsys, empty_database_url)


def test_migrate_when_up_down_and_up_then_the_version_follows(fresh: CommandLine, engine_kind: EngineKind) -> None:
    # A SQLite file does not exist before the first write; a server's database exists and is empty.
    missing = "not_found" if engine_kind == "sqlite" else "schema_outdated"
    check = fresh("db", "check", "--json")
    assert (check.code, check.problem["error"]) == (1, missing)
    assert "ledger-sizer db upgrade --database-url" in fresh("db", "check").err

    up = fresh.json("db", "upgrade")
    assert (up["previous"], up["current"], up["head"], up["is_current"]) == (None, SCHEMA_HEAD, SCHEMA_HEAD, True)
    assert fresh.json("db", "check")["is_current"] is True
    assert fresh.json("reserve", "--key", "k")["granted"] is True
    again = fresh.json("db", "upgrade")
    assert (again["previous"], again["current"]) == (SCHEMA_HEAD, SCHEMA_HEAD)
    assert fresh.json("positions")["items"], "upgrading a current database must not touch its data"

    down = fresh.json("db", "downgrade", "base")
    assert (down["previous"], down["current"], down["is_current"]) == (SCHEMA_HEAD, None, False)
    current = fresh.json("db", "current")
    assert (current["current"], current["head"]) == (None, SCHEMA_HEAD)
    check = fresh("db", "check", "--json")
    assert (check.code, check.problem["error"]) == (1, "schema_outdated")
    assert "run: ledger-sizer db upgrade" in check.problem["message"]
    assert _tables(fresh) <= {"alembic_version"}

    assert fresh("db", "upgrade", SCHEMA_HEAD).code == 0
    assert fresh.json("positions")["items"] == []


def _tables(cli: CommandLine) -> set[str]:
    assert cli.url
    engine = make_engine(parsed_url(cli.url), AppSettings().ledger)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_migrate_when_shown_then_the_text_tells_before_and_after(fresh: CommandLine) -> None:
    where = str(fresh.url).partition("://")[0].partition("+")[0]
    assert where in fresh("db", "upgrade").out
    assert fresh("db", "current").out.endswith(f" is at {SCHEMA_HEAD}\n")
    assert fresh("db", "check").out.endswith(f" is at {SCHEMA_HEAD}\n")
    ran = fresh("db", "downgrade", "base")
    assert ran.out.endswith(f" has no ledger, was at {SCHEMA_HEAD}; the newest is {SCHEMA_HEAD}\n")
    assert fresh("db", "upgrade").out.endswith(f" is at {SCHEMA_HEAD}, was empty\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("db upgrade 9999", "cannot migrate to '9999'"),
        ("db downgrade 9999", "cannot migrate to '9999'"),
        ("db downgrade --force", "cannot migrate to '--force'"),
        ("db downgrade -99", "cannot migrate to '-99'"),
        ("db upgrade head extra", "unexpected extra argument"),
        ("db current --portfolio main", "No such option: --portfolio"),
    ],
)
def test_migrate_when_revision_is_unknown_then_nothing_changes(cli: CommandLine, line: str, said: str) -> None:
    ran = cli(*line.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert cli(*line.split(), "--json").problem["error"] == "invalid_request"
    assert cli.json("db", "current")["is_current"] is True


@pytest.mark.parametrize("line", ["db check", "db upgrade", "exposure", "reserve"])
def test_open_when_database_is_newer_than_the_program_then_it_is_refused(cli: CommandLine, line: str) -> None:
    assert cli.url
    engine = make_engine(parsed_url(cli.url), AppSettings().ledger)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    problem = cli(*line.split(), "--json").problem
    assert problem["error"] == "schema_outdated"
    assert "newer than this version's" in problem["message"]
    assert cli(*line.split()).code == 1
    assert cli.json("db", "current")["current"] == "9999"


def test_migrate_when_password_is_in_the_url_then_it_is_not_shown(cli: CommandLine, engine_kind: EngineKind) -> None:
    if engine_kind == "postgresql":
        assert cli.url
        cli.url = parsed_url(cli.url).set(password="hunter2").render_as_string(hide_password=False)
    for line in ("db current", "db check --json", "db upgrade"):
        ran = cli(*line.split())
        assert ran.code == 0
        assert "hunter2" not in ran.out + ran.err


@pytest.fixture
def lost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    """The command line on a SQLite ledger whose file is gone."""
    cli = CommandLine(capsys, f"sqlite:///{tmp_path}/lost.db")
    begun = cli("reserve", "--key", "k")
    assert (begun.code, begun.err) == (0, f"created a new ledger at {tmp_path}/lost.db\n")
    assert cli("reserve", "--key", "l").err == ""
    (tmp_path / "lost.db").unlink()
    return cli


@pytest.mark.parametrize(
    "line",
    [
        *("reserve", "exposure", "db upgrade", "db check", "caps set main 1", "serve --port 0"),
        "keys create bot --role trade",
    ],
)
def test_run_when_the_file_of_a_ledger_is_gone_then_it_is_refused_with_what_to_do(
    lost: CommandLine, line: str, tmp_path: Path
) -> None:
    ran = lost(*line.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert re.search(
        r"error: a ledger was at .*/lost.db since 20.* db upgrade --create, or LEDGER_CREATE=always", ran.err
    )
    assert lost(*line.split(), "--json").problem["error"] == "not_found"
    assert not (tmp_path / "lost.db").exists()


def test_upgrade_when_the_file_is_gone_and_create_is_given_then_a_new_ledger_begins(lost: CommandLine) -> None:
    assert lost.json("db", "upgrade", "--create")["current"] == SCHEMA_HEAD
    assert lost.json("positions")["items"] == []


def test_run_when_the_setting_is_never_then_no_command_creates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_CREATE", "never")
    cli = CommandLine(capsys, f"sqlite:///{tmp_path}/none.db")
    for line in ("reserve", "db upgrade", "keys create bot --role trade"):
        assert "there is no ledger at" in cli(*line.split()).err
    assert list(tmp_path.iterdir()) == []


def test_back_up_when_verified_then_only_the_backup_is_left_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli = CommandLine(capsys, f"sqlite:///{tmp_path}/ledger.db")
    cli("reserve")
    folder = tmp_path / "backups"
    folder.mkdir()
    assert cli("db", "backup", str(folder / "one.db")).code == 0
    assert [(file.name, file.stat().st_mode & 0o777) for file in folder.iterdir()] == [("one.db", 0o600)]
