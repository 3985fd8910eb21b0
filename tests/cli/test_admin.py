"""Tests of caps, halt, resume, freeze, thaw and sweep, run as a user would."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ledger_sizer import Ledger
from ledger_sizer.model.commands import Reconciled
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine


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
        time.sleep(0.05)  # its time is over before the next command begins
    cli.json("reserve", "--portfolio", "desk-3")
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
    "caps set main": "give cap, share_of_equity, guarantee or max_position_usd",
    "caps remove main": "the portfolio's cap can be changed but not removed",
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
