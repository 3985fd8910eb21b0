"""Tests of `ledger-sizer replay`, run as a user would: files, databases, exit codes, and output on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

import ledger_sizer.replay
from ledger_sizer import Ledger
from ledger_sizer.cli.replay import KEPT_URL
from ledger_sizer.replay.synthetic_market import generated_bars
from ledger_sizer.storage.database import make_engine
from tests.support.command_line import CommandLine
from tests.support.market_histories import HEADER, csv_lines

SCRIPT = str(Path(sys.executable).parent / "ledger-sizer")
NewDatabase = Callable[..., str]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "history.csv"
    path.write_text("\n".join(csv_lines(generated_bars(7, 40))) + "\n")
    return path


def without_timing(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "timing"}


def test_replay_when_the_desks_guards_are_set_then_they_do_not_concern_it(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cli("replay", "--bars", "20", "--json")
    for variable, value in (("PORTFOLIOS", "declared"), ("REQUIRED_TAGS", "team")):
        monkeypatch.setenv(f"LEDGER_{variable}", value)
        monkeypatch.setenv(f"LEDGER__{variable}", value)
    guarded = cli("replay", "--bars", "20", "--json")
    assert (guarded.code, without_timing(guarded.json)) == (0, without_timing(plain.json))


def test_replay_when_no_file_is_given_then_a_market_is_generated_and_summed_up(cli: CommandLine) -> None:
    ran = cli("replay", "--bars", "40")
    assert (ran.code, ran.err) == (0, "")
    first, *rest = ran.out.splitlines()
    assert first == "Replay of generated market, seed 7"
    assert rest[0] == "  40 bars, 2024-01-01 00:00 to 2024-01-14 00:00 UTC; 6 markets on 3 venues"
    for heading in ("Result, before fees", "Highest exposure, USD", "Decisions", "Sizes by score, flat", "Bots"):
        assert f"\n  {heading} " in ran.out
    assert re.search(r"^Verified: \d+ decisions and \d+ positions$", ran.out, re.MULTILINE)
    assert len(re.findall(r"^    [0-9a-f]{64}$", ran.out, re.MULTILINE)) == 2
    assert "\x1b" not in ran.out


def test_replay_when_run_twice_then_only_the_timing_differs(cli: CommandLine, history: Path) -> None:
    first, again = cli.json("replay", "history.csv"), cli.json("replay", "history.csv")
    assert without_timing(first) == without_timing(again)
    assert first["source"]["name"] == "history.csv"
    assert (first["source"]["rows"], first["source"]["bars"]) == (480, 40)
    assert first["verify"]["ok"] is True
    assert first["plan"]["venue_cap_usd"] == "2000"


def test_replay_when_it_ends_then_the_temporary_ledger_is_gone(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert cli("replay", "--bars", "5").code == 0
    assert list(folder.iterdir()) == []
    assert list(tmp_path.glob("*.db*")) == []


def test_replay_when_database_is_named_then_it_holds_the_decisions_that_were_told(
    cli: CommandLine, history: Path, database_url: str
) -> None:
    document = cli.json("replay", str(history), "--database-url", database_url)
    with Ledger.open(database_url) as ledger:
        checked = ledger.verify()
    told = {name: (part["head"]["seq"], part["head"]["hash"]) for name, part in document["portfolios"].items()}
    assert dict(checked.heads) == told
    again = cli("replay", str(history), "--database-url", database_url)
    assert (again.code, again.out) == (2, "")
    assert "already has the portfolio 'replay-dynamic'" in again.err


def test_replay_when_it_is_kept_then_the_command_that_is_told_shows_it(cli: CommandLine) -> None:
    ran = cli("replay", "--bars", "20", "--keep")
    assert ran.code == 0
    told = re.search(r"ledger-sizer (history .*)$", ran.err.strip())
    assert told
    shown = cli(*told[1].split(), "--json")
    assert shown.code == 0
    assert shown.json["items"][0]["portfolio"] == "replay-dynamic"
    assert Path("replay.db").exists()
    assert KEPT_URL == "sqlite:///replay.db"


def test_replay_when_it_is_kept_in_a_named_database_then_the_name_wins(
    cli: CommandLine, new_database: NewDatabase
) -> None:
    url = new_database("sqlite")
    assert cli("replay", "--bars", "5", "--keep", "--database-url", url).code == 0
    assert not Path("replay.db").exists()
    with Ledger.open(url) as ledger:
        assert ledger.portfolios() == ["replay-dynamic", "replay-flat"]


def test_replay_when_database_needs_a_password_then_it_is_not_shown(
    cli: CommandLine, new_database: NewDatabase
) -> None:
    url = make_url(new_database("postgresql"))
    password = str(url.password or "hunter2")  # a server with trust authentication accepts any
    with_password = url.set(password=password).render_as_string(hide_password=False)
    ran = cli("replay", "--bars", "5", "--database-url", with_password)
    assert ran.code == 0
    assert "kept" in ran.err
    assert password not in ran.err


def test_replay_when_environment_names_the_live_ledger_then_it_is_left_alone(
    cli: CommandLine, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database("sqlite")
    monkeypatch.setenv("LEDGER_DATABASE_URL", url)
    assert cli("replay", "--bars", "5").code == 0
    with Ledger.open(url) as ledger:
        assert ledger.portfolios() == []


def test_replay_when_settings_are_in_the_environment_then_options_win_over_them(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIZING_MAX_PORTFOLIO_EXPOSURE", "7000")
    monkeypatch.setenv("SIZING_MIN_ALLOCATION_FRACTION", "0.1")
    monkeypatch.setenv("TRADING_MAX_POSITION_SIZE_USD", "800")
    plan = cli.json("replay", "--bars", "5")["plan"]
    assert (plan["cap_usd"], plan["venue_cap_usd"], plan["max_position_usd"]) == ("7000", "2800", "800")
    assert plan["min_fraction"] == "0.1"
    plan = cli.json("replay", "--bars", "5", "--cap", "900", "--venue-cap", "500", "--max-position", "100")["plan"]
    assert (plan["cap_usd"], plan["venue_cap_usd"], plan["max_position_usd"]) == ("900", "500", "100")


def test_replay_when_caps_are_small_then_highest_exposures_stand_below_them(cli: CommandLine) -> None:
    document = cli.json("replay", "--bars", "90", "--cap", "1500", "--venue-cap", "700", "--bots", "12")
    for portfolio in document["portfolios"].values():
        assert portfolio["entries"] > 0
        for scope in portfolio["exposure"].values():
            assert Decimal(scope["highest_by_grants_usd"]) <= Decimal(scope["cap_usd"])
        assert Decimal(portfolio["exposure"]["portfolio"]["highest_by_grants_usd"]) > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("none.csv", "cannot read none.csv: No such file or directory"),
        (".", ". is not a regular file"),
        ("bad.csv", "bad.csv line 2, column 'open': '-1' cannot be right: it must be above 0, got -1"),
        ("columns.csv", "columns.csv line 1 lacks the column 'funding rate'"),
        ("--bots 0", "bots must be 1 to 200, got 0"),
        ("--bots many", "bots must be a whole number"),
        ("--bars 0", "bars must be a whole number, 1 or above, got '0'"),
        ("--bars=-3", "bars must be a whole number, 1 or above, got '-3'"),
        ("--bars 20001", "bars must be 1 to 20000 for a generated market, got 20001"),
        ("--cap 0", "cap must be above 0, got 0"),
        ("--cap 5,000", "cap must be a number such as 0.9 or 50000, got '5,000'"),
        ("--cap 1e12", "Input should be less than or equal to 90000000000"),
        ("--venue-cap=-1", "venue_cap must be above 0, got -1"),
        ("--max-position 0", "max_position must be above 0, got 0"),
        ("--seed=-1", "seed must be a whole number, 0 or above, got '-1'"),
        ("--database-url mysql://x", "'mysql' is not supported"),
    ],
)
def test_replay_when_input_is_bad_then_one_line_says_what_and_nothing_is_left(
    cli: CommandLine, tmp_path: Path, arguments: str, said: str
) -> None:
    line = next(line for line in csv_lines(generated_bars(7, 1)) if "spot" in line).split(",")
    line[5] = "-1"
    Path("bad.csv").write_text(f"{HEADER}\n{','.join(line)}\n")
    Path("columns.csv").write_text(HEADER.replace(",funding rate", "") + "\n")
    ran = cli("replay", *arguments.split())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ")
    assert said in ran.err
    problem = cli("replay", *arguments.split(), "--json").problem
    assert problem["error"] == "invalid_request"
    assert not list(tmp_path.glob("*.db"))


def test_replay_when_the_ledger_does_not_verify_then_it_fails_and_says_what(
    cli: CommandLine, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database("sqlite")
    run = ledger_sizer.replay.replay

    def meddling(*arguments: Any, **options: Any) -> Any:
        """Run the real replay, but edit a row of its ledger before it is verified."""

        def meddle(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("replay", total):
                engine = make_engine(url)
                with engine.begin() as connection:
                    wrong = "UPDATE scopes SET open_e8 = open_e8 + 1 WHERE scope = 'portfolio' AND portfolio_id > 0"
                    connection.execute(text(wrong))
                engine.dispose()

        return run(*arguments, **{**options, "progress": meddle})

    monkeypatch.setattr(ledger_sizer.replay, "replay", meddling)
    ran = cli("replay", "--bars", "60", "--database-url", url)
    assert ran.code == 1
    assert "NOT verified: 4 findings" in ran.out
    assert "scope portfolio counts open" in ran.out


def test_replay_when_on_a_terminal_then_progress_is_shown_and_cleared(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [SCRIPT, "replay", "--bars", "60"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**environment, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # a terminal raises this once its other side is closed
    finally:
        os.close(ours)
    assert process.wait(timeout=60) == 0
    bar, _, summary = shown.decode().partition("Replay of")
    assert "/60" in bar
    assert "\x1b[2K" in bar, "the bar was left on the screen"
    assert "\x1b[1;32mVerified" in summary
