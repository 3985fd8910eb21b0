"""`drifts list`, `show` and decisions about many: what an operator sees, and what a script can rely on."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tests.support.accounts import PERP, Desk, WrittenAccount, adopt, long, short
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def numbers(database_url: str) -> dict[tuple[str, str], int]:
    """Record drifts at two accounts, each confirmed. Returns their numbers by kind and subject."""
    desk = Desk(database_url, FakeClock(datetime.now(UTC)), [WrittenAccount(), WrittenAccount("okx", "second")],
                confirmations=1)  # fmt: skip
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    adopt(desk, "hedge")
    desk.account.shows(short("0.04"), long("2", "ETH/USDT:USDT", "2000"), BTC="0", WEIRD="5")
    desk.accounts[1].shows(long("10", "SOL/USDT:USDT", "150"))
    live = desk.run().live
    desk.close()
    return {(one.kind, one.subject): one.id for one in live}


def listed(cli: CommandLine, *filters: str) -> list[Any]:
    found: list[Any] = cli.json("drifts", "list", *filters)["items"]
    return found


def test_list_when_it_is_piped_then_each_line_tells_where_how_much_what_it_stops_and_what_to_do(
    cli: CommandLine, numbers: dict[tuple[str, str], int]
) -> None:
    lines = [line.split() for line in cli("drifts", "list", "--state", "live").out.splitlines()]
    assert lines[0] == [
        "drift", "kind", "state", "venue", "account", "subject", "side", "ledger", "exchange", "usd", "freezes",
        "since", "next",
    ]  # fmt: skip
    of_eth = next(line for line in lines if "ETH/USDT:USDT" in line)
    number = str(numbers["unknown_position", "ETH/USDT:USDT"])
    assert of_eth[:11] == [
        number, "unknown_position", "confirmed", "bybit", "main", "ETH/USDT:USDT", "long", "0.00", "2.00", "4000.00",
        "portfolio",
    ]  # fmt: skip
    assert of_eth[-3:] == ["drifts", "adopt", number]
    (gone,) = listed(cli, "--kind", "missing_position")
    assert (gone["difference"], gone["usd"], gone["freezes"], gone["next"]) == (
        "-0.02", "1000", True, f"drifts adopt {gone['id']}"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "subjects"),
    [
        (["--venue", "okx"], ["SOL/USDT:USDT"]),
        (["--account", "main", "--symbol", "BTC"], ["BTC", "BTC", PERP]),
        (["--symbol", PERP], [PERP]),
        (["--symbol", "B"], []),
        (["--venue", "okx", "--symbol", "BTC"], []),
    ],
    ids=str,
)
def test_list_when_filters_are_given_then_all_of_them_must_match(
    cli: CommandLine, numbers: dict[tuple[str, str], int], filters: list[str], subjects: list[str]
) -> None:
    assert [one["subject"] for one in listed(cli, *filters)] == subjects


def test_show_when_a_drift_is_of_a_position_then_it_tells_all_of_it_and_each_next_step_as_a_command(
    cli: CommandLine, numbers: dict[tuple[str, str], int]
) -> None:
    number = str(numbers["missing_position", "BTC"])
    shown = cli("drifts", "show", number).out
    for told in (
        "The ledger has it and the exchange does not", "bybit/main", "BTC long",
        "0.02 less at the exchange, 1,000.00 USD at 50000", "freezes       portfolio", "main-2", "embedded:embedded",
        "strategy=funding symbol=BTC venue=bybit", "confirmed", f"ledger-sizer drifts adopt {number} --reason 'TEXT'",
    ):  # fmt: skip
        assert told in shown, told
    form = cli.json("drifts", "show", number)
    assert [one["position_id"] for one in form["positions"]] == ["main-2"]
    assert [one["event"] for one in form["events"]] == ["freeze", "confirmed"]
    assert form["frozen_at"] == form["events"][0]["decided_at"]
    cli("drifts", "ignore", number, "--reason", "known to ops")
    form = cli.json("drifts", "show", number)
    assert (form["events"][-1]["event"], form["events"][-1]["note"]) == ("ignored", "known to ops")
    assert [one["command"] for one in form["steps"]] == [f"ledger-sizer drifts adopt {number} --reason 'TEXT'"]
    assert cli("drifts", "show", "99", "--json").problem["error"] == "not_found"


def test_adopt_when_many_are_named_then_each_has_its_outcome_and_a_refused_one_ends_with_1(
    cli: CommandLine, numbers: dict[tuple[str, str], int]
) -> None:
    good = [numbers["unknown_position", "ETH/USDT:USDT"], numbers["unknown_position", "SOL/USDT:USDT"]]
    ran = cli("drifts", "adopt", *map(str, good), "--reason", "taken over")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == "2 drifts adopted, 5,500.00 USD"
    weird = numbers["unknown_position", "WEIRD"]
    ran = cli("drifts", "adopt", *map(str, [*good, weird]), "--reason", "taken over", "--json")
    assert ran.code == 1
    assert {one["drift_id"]: (one["outcome"], one["error"]) for one in ran.json["items"]} == {
        good[0]: ("repeated", None), good[1]: ("repeated", None), weird: ("refused", "invalid_request")
    }  # fmt: skip
    assert "names no price for WEIRD" in ran.out


def test_adopt_when_all_of_a_kind_are_meant_then_a_dry_run_tells_and_the_decision_does_it(
    cli: CommandLine, numbers: dict[tuple[str, str], int]
) -> None:
    every = ["drifts", "adopt", "--all", "--kind", "unknown_position", "--venue", "okx", "--reason", "ours"]
    planned = cli.json(*every, "--dry-run")
    assert [(one["outcome"], one["words"]) for one in planned["items"]] == [("planned", "adopt buy 10 SOL/USDT:USDT")]
    assert planned["usd"] == "1500"
    assert len(listed(cli, "--state", "live", "--venue", "okx")) == 1
    assert [one["outcome"] for one in cli.json(*every)["items"]] == ["done"]
    assert listed(cli, "--state", "live", "--venue", "okx") == []
    assert cli.json(*every) == {"items": [], "refused": 0, "usd": "0"}
    assert cli(*every).out == "no drifts match\n"


def test_ignore_and_close_when_all_are_meant_then_only_those_to_which_it_applies_are_decided(
    cli: CommandLine, numbers: dict[tuple[str, str], int]
) -> None:
    asked = cli.json("drifts", "close", "--all", "--reason", "not ours")
    more = {one["id"] for one in listed(cli) if D(one["excess"]) > 0}
    assert ({one["drift_id"] for one in asked["items"]}, asked["refused"]) == (more, 0)
    cli.json("drifts", "ignore", "--all", "--account", "main", "--reason", "known")
    assert {one["account"] for one in listed(cli, "--state", "live")} == {"second"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ([], "drift"),
        (["1", "--all"], "drift"),
        (["1", "2", "--kind", "late_fill"], "drift"),
        (["1", "x"], "drift"),
        (["1", "2", "--price", "5"], "price"),
        (["--all", "--price", "5"], "price"),
    ],
    ids=str,
)
def test_adopt_when_it_is_not_clear_which_drifts_are_meant_then_the_error_names_the_argument(
    cli: CommandLine, numbers: dict[tuple[str, str], int], given: list[str], field: str
) -> None:
    ran = cli("drifts", "adopt", *given, "--reason", "r", "--json")
    assert (ran.code, ran.problem["error"], ran.problem["field"]) == (2, "invalid_request", field)
    assert len(listed(cli, "--state", "live")) == len(numbers)
