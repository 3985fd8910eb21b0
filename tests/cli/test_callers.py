"""Who asks on the command line, whose keys it uses, and finding a decision by its key; the desk's halt."""

from __future__ import annotations

import getpass
import re

import pytest

from ledger_sizer import Ledger, Reserve
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine

RESERVE = ("reserve", "--available-balance", "5", "--key")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], new_database: NewDatabase) -> CommandLine:
    return CommandLine(capsys, new_database("sqlite"))


def test_reserve_when_a_person_asks_then_the_decision_names_the_user_and_the_client_cli(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ana")
    made = cli.json(*RESERVE, "k")
    assert (made["actor"], made["client"]) == ("cli:ana", "cli")
    assert cli.json("history", "--actor", "cli:ana")["items"] == [made]
    assert cli.json("history", "--actor", "cli:bob")["items"] == []


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no user"), ImportError("pwd")])
def test_reserve_when_the_user_has_no_entry_then_the_decision_names_a_number(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", fail)
    assert re.fullmatch(r"cli:uid-[0-9]+", cli.json(*RESERVE, "k")["actor"])


@pytest.mark.parametrize("name", ["a\x1fb", "", "x" * 200])
def test_reserve_when_the_users_name_fits_no_record_then_the_decision_names_a_number(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    assert re.fullmatch(r"cli:uid-[0-9]+", cli.json(*RESERVE, "k")["actor"])
    assert cli.json("verify")["ok"]


def test_reserve_when_the_environment_names_a_client_then_its_keys_are_its_own(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cli.json(*RESERVE, "k")
    monkeypatch.setenv("LEDGER_CLIENT", "bot-a")
    refused = cli(*RESERVE, "k", "--json").problem
    assert (refused["error"], refused["key"]) == ("idempotency_key_reused", "k")
    assert "of client 'cli'" in refused["message"]
    assert cli.json(*RESERVE, "k2")["client"] == "bot-a"
    with Ledger.open(cli.url, client="bot-a") as bot:
        assert bot.reserve(key="k2", available_balance=5).replayed
    # Whoever may read the database sees every client's keys.
    assert cli.json("history", "--key", "k")["items"] == [first]


def test_reuse_key_when_request_differs_then_the_first_use_is_told(cli: CommandLine) -> None:
    cli(*RESERVE, "k")
    again = cli("reserve", "--available-balance", "6", "--key", "k")
    assert (again.code, again.out) == (2, "")
    assert "(seq 1, reserve)" in again.err
    assert again.err.endswith(", see (main-1): ledger-sizer explain 1 -p main\n")
    problem = cli("reserve", "--available-balance", "6", "--key", "k", "--json").problem
    assert (problem["seq"], problem["position_id"], problem["field"]) == (1, "main-1", "key")
    assert cli("explain", "1", "-p", "main").code == 0


def test_look_up_when_a_key_is_given_then_its_decision_and_position_show(cli: CommandLine) -> None:
    with Ledger.open(cli.url, client="bot-a") as ledger:
        made = ledger.reserve(key="cycle-17/BTC", tags={"symbol": "BTC"})
        ledger.submit([Reserve(key=f"{n}", available_balance=1) for n in range(3)])
    (found,) = cli.json("history", "--key", "cycle-17/BTC")["items"]
    assert (found["seq"], found["hash"], found["client"]) == (1, made.hash, "bot-a")
    assert [one["position_id"] for one in cli.json("positions", "--key", "cycle-17/BTC")["items"]] == ["main-1"]
    assert [one["position_id"] for one in cli.json("positions", "--key", "2", "-p", "main")["items"]] == ["main-4"]
    assert cli("history", "--key", "unused").out == "no decisions\n"
    assert cli("history", "--key", "k", "-p", "never-used").out == "no decisions\n"
    assert cli("positions", "--key", "unused").out == "no positions\n"
    table = cli("history", "--key", "cycle-17/BTC").out
    assert "embedded:bot-a" in table
    assert "cycle-17/BTC" in table


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (["history", "--key", ""], "key"),
        (["history", "--key", "x" * 201], "key"),
        (["history", "--actor", ""], "actor"),
        (["positions", "--key", "a\x1fb"], "key"),
        (["keys", "create", "x", "--role", "trade", "--client", ""], "client"),
        (["keys", "create", "x", "--role", "trade", "--client", "a\tb"], "client"),
    ],
)
def test_look_up_when_input_is_bad_then_the_field_is_named(cli: CommandLine, line: list[str], field: str) -> None:
    cli(*RESERVE, "k")
    ran = cli(*line, "--json")
    assert (ran.code, ran.problem["error"], ran.problem["field"]) == (2, "invalid_request", field)


def test_make_keys_when_client_is_named_then_it_is_shown_and_listed(cli: CommandLine) -> None:
    made = cli.json("keys", "create", "bot-1", "--role", "trade", "--client", "bot")
    plain = cli.json("keys", "create", "bot-2", "--role", "trade")
    assert (made["client"], plain["client"]) == ("bot", None)
    listed = {one["name"]: one["client"] for one in cli.json("keys", "list")["items"]}
    assert listed == {"bot-1": "bot", "bot-2": None}
    assert re.search(r"^\S+ +bot-1 +trade +all +- +bot ", cli("keys", "list").out, re.MULTILINE)
    shown = cli("keys", "create", "bot-3", "--role", "trade").out
    key_id = re.search(r"made key (\w+)", shown)
    assert key_id
    assert re.search(rf"^client +{key_id[1]}$", shown, re.MULTILINE), "without a name the key is its own client"


def test_halt_desk_when_exposure_is_shown_then_it_says_so_until_it_is_resumed(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ana")
    cli(*RESERVE, "k")
    assert cli("exposure").err == ""
    halted = cli.json("halt", "-p", "*", "--note", "all stop")
    assert (halted["portfolio"], halted["actor"]) == ("*", "cli:ana")
    denied = cli("reserve", "--portfolio", "new")
    assert (denied.code, denied.out.splitlines()[0]) == (3, "reserve denied: halted")
    assert re.search(r"^bound by +desk$", denied.out, re.MULTILINE)
    shown = cli("exposure")
    assert shown.code == 0
    assert re.fullmatch(
        r"the desk is halted by cli:ana since \S+Z, and so is every portfolio; "
        r"to lift it: ledger-sizer resume -p '\*'\n",
        shown.err,
    )
    assert cli.json("caps")["items"][0]["portfolio"] == "main"
    assert cli("exposure", "--as-of", "1").err == "", "the past has its own status"
    assert cli("resume", "-p", "*").code == 0
    assert cli("exposure").err == ""


def test_read_chain_of_the_desk_when_it_has_decisions_then_every_command_has_it(cli: CommandLine) -> None:
    cli("halt", "-p", "*", "--key", "h", "--note", "all stop")
    cli("resume", "-p", "*", "--key", "r")
    assert [one["key"] for one in cli.json("history", "-p", "*")["items"]] == ["r", "h"]
    assert [one["key"] for one in cli.json("history", "-p", "*", "--key", "h")["items"]] == ["h"]
    assert "* #1 halt 'h'" in cli("explain", "1", "-p", "*").out
    report = cli.json("verify", "-p", "*")
    assert (report["ok"], report["decisions"], [*report["heads"]]) == (True, 2, ["*"])
    assert cli("halt", "-p", "*", "--scope", "venue=bybit").code == 2
    for line in (("exposure", "-p", "*"), ("positions", "-p", "*"), ("reserve", "-p", "*"), ("caps", "-p", "*")):
        refused = cli(*line)
        assert (refused.code, refused.out) == (2, ""), line
        assert "portfolio must be" in refused.err


def test_read_exposure_as_of_when_portfolio_is_the_desk_then_it_is_refused_as_now(
    cli: CommandLine, clock: FakeClock
) -> None:
    assert cli.url
    with Ledger.open(cli.url, clock=clock) as ledger:
        ledger.halt(key="h", portfolio="*")
    assert cli("exposure", "-p", "*", "--as-of", "1").code == 2
