"""Tests of caps, halt, resume, freeze, thaw, sweep and db, run as a user would, on both databases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from ledger_sizer import AppSettings, Ledger
from ledger_sizer.model.commands import Reconciled
from ledger_sizer.storage.database import SCHEMA_HEAD, make_engine
from ledger_sizer.storage.database import database_url as parsed_url
from tests.conftest import EngineKind
from tests.support.command_line import CommandLine, own_logging


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with own_logging():
        yield


@pytest.fixture
def cli(database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys, database_url)


@pytest.fixture
def fresh(empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a database without a schema."""
    return CommandLine(capsys, empty_database_url)


def test_set_cap_when_scope_is_given_then_it_binds_and_is_listed(cli: CommandLine) -> None:
    assert cli.json("caps", "set", "main", "5000")["outcome"] == "applied"
    assert cli.json("caps", "set", "main", "250.5", "--scope", "venue=bybit")["binding"] == "venue=bybit"
    assert cli.json("caps", "set", "desk-2", "10")["portfolio"] == "desk-2"
    assert cli.json("reserve", "--tag", "venue=bybit")["budget"] == "250.5"
    caps = cli.json("caps")
    assert caps["cursor"] is None
    listed = [(cap["portfolio"], cap["scope"], cap["cap"], cap["headroom"]) for cap in caps["items"]]
    assert listed == [
        ("desk-2", "portfolio", "10", "10"),
        ("main", "portfolio", "5000", "4749.5"),
        ("main", "venue=bybit", "250.5", "0"),
    ]
    assert [cap["portfolio"] for cap in cli.json("caps", "--portfolio", "desk-2")["items"]] == ["desk-2"]
    lines = cli("caps").out.splitlines()
    assert lines[0].split()[:4] == ["portfolio", "scope", "cap_USD", "exposure_USD"]
    assert lines[3].split() == ["main", "venue=bybit", "250.50", "250.50", "0.00", "0.00", "active"]


def test_set_cap_when_shown_then_the_text_names_cap_and_scope(cli: CommandLine) -> None:
    ran = cli("caps", "set", "main", "2000", "--scope", "venue=bybit", "--key", "k")
    assert ran.out.splitlines() == [
        "set_cap applied: 2000.00 USD",
        "scope     venue=bybit",
        "exposure  0.00 -> 0.00 USD",
        "decision  main #1",
        "key       k",
    ]
    assert cli("caps", "remove", "main", "--scope", "venue=bybit").out.startswith("set_cap applied: no cap\n")


def test_remove_cap_when_scope_had_one_then_it_is_only_counted(cli: CommandLine) -> None:
    cli.json("caps", "set", "main", "0", "--scope", "venue=bybit")
    assert cli("reserve", "--tag", "venue=bybit").code == 3
    cli.json("caps", "remove", "main", "--scope", "venue=bybit")
    assert cli.json("reserve", "--tag", "venue=bybit")["granted"] is True
    assert [cap["scope"] for cap in cli.json("caps")["items"]] == ["portfolio"]


def test_freeze_when_scope_is_frozen_then_it_alone_is_unreconciled_until_thawed(cli: CommandLine) -> None:
    cli.json("caps", "set", "main", "5000")
    frozen = cli.json("freeze", "--scope", "venue=bybit", "--note", "looks wrong")
    assert (frozen["outcome"], frozen["binding"], frozen["request"]["note"]) == (
        "applied", "venue=bybit", "looks wrong",
    )  # fmt: skip
    denied = cli("reserve", "--tag", "venue=bybit", "--json")
    assert (denied.code, denied.json["reason"]) == (3, "unreconciled")
    assert cli.json("reserve", "--tag", "venue=okx")["outcome"] == "granted"
    assert cli.json("thaw", "--scope", "venue=bybit", "--note", "checked")["outcome"] == "applied"
    assert cli.json("reserve", "--tag", "venue=bybit")["outcome"] == "granted"
    assert cli("freeze", "--portfolio", "nobody").code == 1


def test_trust_when_the_last_reconciliation_is_too_old_then_trading_goes_on_without_one(cli: CommandLine) -> None:
    cli.json("caps", "set", "main", "5000")
    with Ledger.open(cli.url) as ledger:
        ledger.run(Reconciled(key="run", fresh_until=datetime(2026, 1, 1, tzinfo=UTC)))
    assert cli("reserve", "--json").json["reason"] == "unreconciled"
    trusted = cli.json("drifts", "trust", "--note", "no reconciliation any more")
    assert (trusted["outcome"], trusted["request"]) == (
        "applied", {"command": "reconciled", "note": "no reconciliation any more", "scope": "portfolio"},
    )  # fmt: skip
    assert cli.json("reserve")["outcome"] == "granted"


def test_halt_when_scope_is_halted_then_it_alone_is_denied_until_resumed(cli: CommandLine) -> None:
    cli.json("reserve", "--tag", "venue=bybit")
    assert cli.json("halt", "--scope", "venue=bybit", "--note", "maintenance")["request"]["note"] == "maintenance"
    denied = cli("reserve", "--tag", "venue=bybit", "--json")
    assert (denied.code, denied.json["reason"], denied.json["binding"]) == (3, "halted", "venue=bybit")
    assert cli("reserve", "--tag", "venue=okx").code == 0
    assert cli("release", "main-1").code == 0
    cli.json("resume", "--scope", "venue=bybit", "--note", "over")
    assert cli("reserve", "--tag", "venue=bybit").code == 0


@pytest.mark.parametrize(("mode", "extend_code"), [("halted", 3), ("reducing", 0)])
def test_halt_when_mode_is_given_then_the_status_shows_it(cli: CommandLine, mode: str, extend_code: int) -> None:
    cli.json("reserve")
    ran = cli("halt", "--mode", mode)
    assert (ran.code, ran.out.splitlines()[0]) == (0, f"halt applied: {mode}")
    assert cli.json("exposure")["status"] == mode
    assert cli.json("caps")["items"][0]["status"] == mode
    assert cli("reserve").code == 3
    assert cli("extend", "main-1").code == extend_code


def test_sweep_when_holds_are_over_then_they_are_freed_and_counted(cli: CommandLine) -> None:
    for portfolio in ("main", "desk-2", "desk-2"):
        cli.json("reserve", "--ttl", "0.01", "--portfolio", portfolio)
    cli.json("reserve", "--portfolio", "desk-3")
    time.sleep(0.05)
    assert cli("sweep", "--portfolio", "main").out == "freed 1 expired hold\n"
    freed = cli.json("sweep")["freed"]
    assert freed == 1, "the second hold of desk-2 freed the first"
    assert cli("sweep").out == "freed 0 expired holds\n"
    assert (cli.json("exposure", "-p", "desk-2")["held"], cli.json("exposure", "-p", "desk-3")["held"]) == ("0", "1000")


BAD_STEERING = {
    "caps set main lots": "cap must be a number such as 0.9 or 50000, got 'lots'",
    "caps set main 1e40": "cap is out of range",
    "caps set main 99999999999": "cap does not fit",
    "caps set main 5 --scope bybit": "scope must be 'portfolio' or like 'venue=bybit', got 'bybit'",
    "caps set a/b 5": "portfolio must be 1 to 64 letters",
    "caps set main": "Missing argument 'CAP'",
    "caps remove main": "Missing option '--scope'",
    "caps remove main --scope portfolio": "the portfolio's cap can be changed but not removed",
    "caps --portfolio main set main 5": "write: ledger-sizer caps set ... OPTIONS",
    "caps --portfolio a/b": "portfolio must be 1 to 64 letters",
    "halt --mode paused": "'paused' is not one of 'halted', 'reducing'",
    "halt --scope bybit": "scope must be 'portfolio' or like 'venue=bybit', got 'bybit'",
    "resume --scope venue=": "scope must be 'portfolio' or like 'venue=bybit'",
}


@pytest.mark.parametrize(("line", "said"), BAD_STEERING.items())
def test_steer_when_input_is_bad_then_one_line_names_it_and_nothing_is_recorded(
    cli: CommandLine, line: str, said: str
) -> None:
    ran = cli(*line.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert cli(*line.split(), "--json").problem["error"] == "invalid_request"
    assert cli.json("caps")["items"] == []


def test_list_caps_when_database_is_named_before_the_subcommand_then_it_is_refused(cli: CommandLine) -> None:
    """Otherwise a cap meant for one database would be set in another."""
    url, cli.url = cli.url, None
    assert url
    ran = cli("caps", "--database-url", url, "set", "main", "5")
    assert (ran.code, ran.out) == (2, "")
    assert not Path("ledger.db").exists()


def test_list_caps_when_portfolio_is_unknown_then_it_is_a_failure(cli: CommandLine) -> None:
    assert cli("caps", "--portfolio", "nobody", "--json").problem["error"] == "not_found"


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
