"""Tests of the command line as a whole: help and its examples, imports at start, exit codes, errors in one line."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import text

from ledger_sizer import Adopt, AppSettings, Ledger, Reserve, SetCap, __version__
from ledger_sizer.cli import options
from ledger_sizer.cli.app import root_command
from ledger_sizer.history.backup import backup_sqlite
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.storage.database import database_url as parsed_url
from ledger_sizer.storage.database import make_engine
from ledger_sizer.wire.positions_file import TEMPLATE
from ledger_sizer.wire.responses import heads_to_json
from tests.conftest import NewDatabase
from tests.support.accounts import make_drift
from tests.support.command_line import CommandLine
from tests.support.old_ledgers import forget_callers

SCRIPT = Path(sys.executable).parent / "ledger-sizer"
ROOT_COMMAND: Any = root_command()
HEAVY = ("sqlalchemy", "alembic", "pydantic", "pydantic_settings", "psycopg", "rich", "ledger_sizer.ledger.ledger")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that can be run, with the words that call it."""
    children = getattr(command, "commands", {})
    if path and (not children or command.invoke_without_command):
        yield path, command
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


LEAVES = dict(_leaves(ROOT_COMMAND))
NAMES = [" ".join(path) for path in LEAVES]


def _examples(help_text: str) -> list[str]:
    """Return the example command lines of a help page, with continued lines joined."""
    joined = help_text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith("  ") and "ledger-sizer " in line[:17]]


ENDLESS = "ledger-sizer serve"
"""Runs until it is stopped; tests/api/test_outage.py starts and stops it."""
EXAMPLES = [
    # A demonstration takes 15 seconds; tests/demo runs one too.
    pytest.param(example, marks=[pytest.mark.extended] if example.startswith("ledger-sizer demo") else [])
    for command in LEAVES.values()
    for example in _examples(command.epilog)
    if not example.startswith(ENDLESS)
]


def _spawn(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=False, **more)


def test_list_commands_when_contract_names_them_then_all_are_there() -> None:
    assert {"replay", "reserve", "confirm", "release", "extend", "adopt"} <= set(NAMES)
    assert {"exposure", "positions", "history", "explain", "verify", "sweep"} <= set(NAMES)
    assert {"positions", "positions import"} <= set(NAMES)
    assert {"caps", "caps set", "caps remove", "halt", "resume"} <= set(NAMES)
    assert {"db upgrade", "db downgrade", "db current", "db check"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_ask_help_when_command_exists_then_it_teaches(cli: CommandLine, name: str) -> None:
    ran = cli(*name.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    usage, summary, *_ = [line for line in ran.out.splitlines() if line.strip()]
    assert usage.startswith(f"Usage: ledger-sizer {name} ")
    assert re.match(r"  [A-Z].* ", summary), f"{name} does not say what it does"
    examples = _examples(ran.out)
    assert examples, f"{name} has no example"
    assert all(example.startswith(f"ledger-sizer {name}") for example in examples)
    exit_codes = ran.out.partition("Exit codes:")[2].split("\n")
    assert [line.split()[0] for line in exit_codes if line.strip()][:3] == ["0", "1", "2"]
    assert "--json" in ran.out


@pytest.fixture
def taught_ledger(new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The ledger the examples speak of: caps, a hold main-17, an open main-18, a key; named by the environment.

    Beside it, in the working folder, stand the files they read: `ledger.db`, caps in `caps.toml`, positions in
    `positions.csv`, and trusted heads in `head.json`.
    """
    url = new_database("sqlite")
    engine = make_engine(url)
    with engine.begin() as connection:
        columns = "key_id, name, role, token_hash, created_us"
        values = f"'0123456789ab', 'bot', 'trade', '{'0' * 64}', 0"
        connection.execute(text(f"INSERT INTO api_keys ({columns}) VALUES ({values})"))
    engine.dispose()
    monkeypatch.setenv("LEDGER_DATABASE_URL", url)
    cap = Decimal(1_000_000)
    with Ledger.open(url) as ledger:
        ledger.submit([SetCap(key=f"cap/{number}", cap=cap) for number in range(15)])
        ledger.run(SetCap(key="cap/venue", cap=cap, scope="venue=bybit"))
        assert ledger.run(Reserve(key="hold", tags={"venue": "bybit", "symbol": "BTC"})).position_id == "main-17"
        assert (
            ledger.run(Adopt(key="open", quantity=Decimal(1), price=Decimal(3000), tags={"symbol": "FTM"})).position_id
            == "main-18"
        )
        (tmp_path / "head.json").write_text(json.dumps(heads_to_json(ledger.heads())))
    (tmp_path / "caps.toml").write_text('[portfolios.main]\ncap = "4000"\n')
    (tmp_path / "positions.csv").write_text(TEMPLATE)
    reads = make_engine(url, read_only=True)
    backup_sqlite(reads, tmp_path / "ledger.db")
    reads.dispose()
    return url


@pytest.fixture(scope="module")
def paper() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


@pytest.fixture
def _account(paper: PaperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange account for the commands that ask one, at a paper venue."""
    for name, value in {"API_KEY": DEFAULT_KEY, "API_SECRET": DEFAULT_SECRET, "BASE_URL": paper.url}.items():
        monkeypatch.setenv(f"EXCHANGE_{name}", value)


@pytest.mark.usefixtures("_account")
@pytest.mark.parametrize("example", EXAMPLES)
def test_run_example_when_help_shows_it_then_it_succeeds(cli: CommandLine, taught_ledger: str, example: str) -> None:
    if " drifts " in example:
        make_drift(taught_ledger)
    if "downgrade -1" in example:
        forget_callers(taught_ledger)  # or it is refused
    if "equity-seen" in example:
        with Ledger.open(taught_ledger) as ledger:
            ledger.set_cap(key="share", scope="venue=kraken", share_of_equity=Decimal("0.8"))
    ran = cli(*shlex.split(example)[1:])
    assert (ran.code, ran.err) == (0, ""), ran


def test_run_first_trade_when_help_shows_it_then_each_step_succeeds(cli: CommandLine) -> None:
    steps = _examples(cli("--help").out)
    assert len(steps) >= 5
    for step in steps:
        ran = cli(*shlex.split(step)[1:])
        begun = "" if step != steps[0] else f"created a new ledger at {Path.cwd() / 'ledger.db'}\n"
        assert (ran.code, ran.err) == (0, begun), f"{step}: {ran}"


def test_run_when_no_argument_is_given_then_help_is_shown(cli: CommandLine) -> None:
    assert cli() == cli("--help") == cli("-h")


def test_ask_version_when_installed_then_it_is_the_package_s(cli: CommandLine) -> None:
    assert cli("--version").out == f"ledger-sizer {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["reserve", "--help"]], ids=" ".join)
def test_start_when_only_help_is_wanted_then_nothing_heavy_is_imported(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ledger_sizer", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "ledger_sizer.cli.app" in imported, "importtime was not read"
    # typer reads the values of a subcommand with pydantic, and imports it even to show that command's help
    heavy = [name for name in HEAVY if arguments[0].startswith("--") or not name.startswith("pydantic")]
    assert not imported & set(heavy)


def test_list_commands_when_ledger_knows_them_then_the_option_offers_the_same() -> None:
    assert get_args(options.CommandName) == (*COMMANDS, "expire", "step_back")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["caps", "set", "main", "100"], 0),
        (["release", "main-99"], 1),
        (["caps", "set", "main", "much"], 2),
        (["reserve", "--min-notional", "500"], 3),
    ],
    ids=["done", "failure", "bad input", "denied"],
)
def test_exit_when_process_ends_then_the_code_tells_how(arguments: list[str], code: int) -> None:
    assert _spawn("caps", "set", "main", "100").returncode == 0
    assert _spawn(*arguments).returncode == code


def test_run_module_when_called_with_python_m_then_it_is_the_same_command_line() -> None:
    command = [sys.executable, "-m", "ledger_sizer", "reserve", "--nonsense"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    script = _spawn("reserve", "--nonsense")
    assert (ran.returncode, ran.stdout, ran.stderr) == (script.returncode, script.stdout, script.stderr)
    assert ran.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["reserve", "--nonsense"], "No such option: --nonsense"),
        (["confirm", "main-1"], "Missing option '--quantity'"),
        (["release"], "Missing argument 'POSITION_ID'"),
        (["reserve", "main"], "unexpected extra argument"),
        (["history", "--outcome", "maybe"], "'maybe' is not one of 'granted', 'denied', 'applied'"),
        (["db"], "Missing command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parse_when_command_line_is_wrong_then_one_line_says_what_and_where_to_look(
    cli: CommandLine, arguments: list[str], said: str
) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(rf"error: .*{re.escape(said)}.*, see: ledger-sizer .*--help\n", ran.err), ran.err
    if arguments != ["db"]:
        problem = cli(*arguments, "--json").problem
        assert problem["error"] == "invalid_request"
        assert said in problem["message"]


@pytest.mark.parametrize("name", NAMES)
def test_parse_when_option_is_unknown_then_no_command_ignores_it(cli: CommandLine, name: str) -> None:
    ran = cli(*name.split(), *["1"] * (2 if name == "caps set" else 1), "--no-such-option", "--also-not")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SIZING_MIN_ALLOCATION_FRACTION", "2", "SIZING_MIN_ALLOCATION_FRACTION"),
        ("TRADING_MAX_POSITION_SIZE_USD", "lots", "TRADING_MAX_POSITION_SIZE_USD"),
        ("LEDGER_DATABASE_URL", "mysql://localhost/x", "LEDGER_DATABASE_URL"),
    ],
)
def test_start_when_setting_is_wrong_then_it_is_named_and_bad_input(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    ran = cli("exposure")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: setting ")
    assert said in ran.err
    assert cli("reserve", "--json").problem["error"] == "invalid_request"


def test_open_when_environment_names_the_database_then_it_is_used(
    cli: CommandLine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_DATABASE_URL", database_url)
    assert cli("caps", "set", "main", "123").code == 0
    assert cli.json("exposure")["cap"] == "123"
    assert not Path("ledger.db").exists()


@pytest.mark.parametrize(
    ("url", "code", "error"),
    [
        ("mysql://localhost/x", 2, "invalid_request"),
        ("", 2, "invalid_request"),
        ("sqlite://", 2, "invalid_request"),
        ("sqlite:///no-such-folder/ledger.db", 1, "unavailable"),
        ("sqlite:///not-a-ledger.db", 1, "unavailable"),
        ("postgresql://someone:hunter2@127.0.0.1:1/x", 1, "unavailable"),
    ],
)
def test_open_when_database_cannot_be_used_then_the_problem_is_told_without_its_password(
    cli: CommandLine, url: str, code: int, error: str
) -> None:
    Path("not-a-ledger.db").write_text("something else entirely, and long enough to be read as a header")
    cli.url = url
    ran = cli("reserve")
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert ran.err.startswith("error: ")
    problem = cli("reserve", "--json").problem
    assert problem["error"] == error
    assert "hunter2" not in ran.err + json.dumps(problem)


READS = ["exposure", "net", "positions", "history", "explain 1", "verify", "caps", "sweep"]


@pytest.mark.parametrize(
    "line", [*READS, "confirm main-1 --quantity 1 --price 1", "release main-1", "extend main-1", "halt", "resume"]
)
def test_open_when_sqlite_file_is_missing_then_only_commands_that_begin_a_ledger_create_it(
    cli: CommandLine, line: str
) -> None:
    cli.url = "sqlite:///typo.db"
    problem = cli(*line.split(), "--json").problem
    assert problem["error"] == "not_found"
    assert problem["hint"].endswith("ledger-sizer db upgrade --database-url sqlite:///typo.db")
    assert not Path("typo.db").exists()
    assert cli(*line.split()).code == 1


@pytest.mark.parametrize("line", READS)
def test_open_when_server_has_no_schema_then_the_command_to_run_is_named(
    cli: CommandLine, new_database: NewDatabase, line: str
) -> None:
    cli.url = new_database("postgresql", migrated=False)
    ran = cli(*line.split())
    assert (ran.code, ran.out) == (1, "")
    assert "run: ledger-sizer db upgrade --database-url postgresql" in ran.err
    assert cli(*line.split(), "--json").problem["error"] == "schema_outdated"


@pytest.fixture
def locked(new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[], None]]]:
    """A PostgreSQL ledger whose portfolio another session keeps locked, until it is told to let go."""
    url = new_database("postgresql")
    monkeypatch.setenv("LEDGER_BUSY_TIMEOUT_SECONDS", "1")
    monkeypatch.setenv("LEDGER_RETRIES_MAX", "0")
    monkeypatch.setenv("LEDGER_CLOSE_TIMEOUT_SECONDS", "5")
    with Ledger.open(url) as ledger:
        ledger.run(Reserve(key="first"))
    engine = make_engine(parsed_url(url), AppSettings().ledger)
    with engine.connect() as session, session.begin():
        session.execute(text("SELECT * FROM portfolios FOR UPDATE"))
        yield url, session.rollback
    engine.dispose()


def test_reserve_when_ledger_is_busy_then_the_generated_key_is_told_and_settles_it(
    cli: CommandLine, locked: tuple[str, Callable[[], None]]
) -> None:
    cli.url, let_go = locked
    ran = cli("reserve", "--json")
    assert ran.code == 1
    problem = json.loads(ran.err.splitlines()[-1])
    assert problem["error"] == "busy"
    assert problem["hint"] == f"run the same command with --key {problem['key']} to learn what became of it"
    let_go()
    assert cli.json("reserve", "--key", problem["key"])["key"] == problem["key"]


def test_interrupt_when_answer_is_outstanding_then_the_key_is_told(
    locked: tuple[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_BUSY_TIMEOUT_SECONDS", "20")
    url, let_go = locked
    command = [str(SCRIPT), "reserve", "--json", "--database-url", url]
    engine = make_engine(parsed_url(url), AppSettings().ledger)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 30
            with engine.connect() as session:
                while not session.execute(waiting).scalar():
                    assert time.monotonic() < deadline, "the command never came to wait for the lock"
                    session.rollback()
                    time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            let_go()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            engine.dispose()
    assert (process.returncode, out) == (130, "")
    problem = json.loads(err.splitlines()[-1])
    assert problem["error"] == "interrupted"
    assert problem["key"] in problem["hint"]
