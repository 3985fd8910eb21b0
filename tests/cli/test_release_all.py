"""Tests of `release-all` and of holds that never end by time, run as a user would."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import Ledger
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine


@pytest.fixture
def desk(cli: CommandLine) -> CommandLine:
    """Bot a holds main-1 and main-2, the second until known, and has main-3 open; bot b holds main-5."""
    with Ledger.open(cli.url) as ledger:
        for number, bot in enumerate("aaa"):
            ledger.reserve(key=f"{number}", tags={"bot": bot}, amount_usd=Decimal(100), ttl_seconds=3600)
        ledger.confirm(key="fill", position_id="main-3", quantity=Decimal(1), price=Decimal(50))
        ledger.reserve(key="b", tags={"bot": "b"}, amount_usd=Decimal(100), ttl_seconds=3600)
        ledger.extend(key="lost", position_id="main-2", until_known=True)
    return cli


def test_release_all_when_run_then_it_says_what_was_freed_and_what_was_left_alone(desk: CommandLine) -> None:
    dry = desk("release-all", "--tag", "bot=a", "--dry-run")
    assert (dry.code, dry.out.splitlines()[-1]) == (0, "1 hold would be freed")
    assert desk.json("positions", "--state", "held")["items"][0]["position_id"] == "main-1", "nothing was freed"
    ran = desk("release-all", "--tag", "bot=a", "--key", "died")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines == [
        ["position", "freed_USD", "decision", "tags"],
        ["main-1", "100.00", "7", "bot=a"],
        ["freed", "1", "hold"],
        ["key", "died"],
    ]
    assert ran.err.startswith("1 hold left alone: an order may be live; ledger-sizer positions --state until_known")
    again = desk("release-all", "--tag", "bot=a", "--key", "died", "--unknown")
    assert (again.code, again.out.splitlines()[1].split()[:2], again.err) == (0, ["main-2", "100.00"], "")
    assert desk("release-all", "--tag", "bot=a", "--unknown").out.splitlines()[0] == "no such holds"


def test_release_all_when_asked_for_json_then_it_is_a_list_of_decisions_or_of_positions(desk: CommandLine) -> None:
    (position,) = desk.json("release-all", "--tag", "bot=a", "--dry-run")["items"]
    assert (position["position_id"], position["held"]) == ("main-1", "100")
    found = desk.json("release-all", "--everything", "--unknown", "--reference", "ticket 7")
    assert [(one["position_id"], one["command"], one["reference"]) for one in found["items"]] == [
        ("main-1", "release", "ticket 7"), ("main-5", "release", "ticket 7"), ("main-2", "release", "ticket 7"),
    ]  # fmt: skip
    assert found["cursor"] is None
    assert desk.json("exposure")["held"] == "0"


@pytest.mark.parametrize("line", ["", "--everything --tag bot=a"])
def test_release_all_when_neither_tags_nor_everything_is_said_then_nothing_is_freed(
    desk: CommandLine, line: str
) -> None:
    ran = desk("release-all", *line.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: name the bot's tags, such as --tag bot=a, or say --everything")


def test_release_all_when_the_portfolio_is_unknown_then_it_is_a_failure(desk: CommandLine) -> None:
    ran = desk("release-all", "--everything", "-p", "mian")
    assert (ran.code, ran.err.startswith("error: no portfolio 'mian';")) == (1, True)


def test_list_positions_when_asked_for_those_until_known_then_they_say_so(desk: CommandLine) -> None:
    (found,) = desk.json("positions", "--state", "until_known")["items"]
    assert (found["position_id"], found["until_known"], found["expires_at"]) == ("main-2", True, None)
    line = desk("positions", "--state", "until_known").out.splitlines()[1]
    assert "when known" in line


def test_extend_until_known_when_run_then_the_answer_says_that_it_never_ends_by_time(desk: CommandLine) -> None:
    ran = desk("extend", "main-1", "--until-known")
    assert "never by time: until its order's fate is known" in ran.out
    assert desk("extend", "main-1", "--until-known", "--ttl", "60").code == 2
