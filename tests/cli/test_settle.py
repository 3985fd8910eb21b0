"""Tests of `settle`, run as a user would."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import Ledger
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine


def test_settle_when_run_then_it_says_what_it_did_and_the_second_time_that_nothing_had_to_change(
    cli: CommandLine,
) -> None:
    with Ledger.open(cli.url) as ledger:
        ledger.reserve(key="1", tags={"bot": "a", "symbol": "BTC/USDT"}, amount_usd=Decimal(100), ttl_seconds=600)
        ledger.adopt(key="2", tags={"bot": "a", "symbol": "ETH/USDT"}, quantity=Decimal(1), price=Decimal(50))
    line = ("settle", "--tag", "bot=a", "--open", "BTC/USDT=0.001@50000,buy", "--resting", "BTC/USDT")
    ran = cli(*line)
    assert [row.split() for row in ran.out.splitlines()] == [
        ["position", "did", "quantity", "held_USD", "open_USD", "decision"],
        ["main-1", "confirm", "0.001", "-50.00", "50.00", "3"],
        ["main-1", "extend", "0.001", "0.00", "0.00", "4"],
        ["main-2", "release", "1.000", "0.00", "-50.00", "5"],
    ]
    assert cli(*line).out == "nothing had to change\n"
    assert [one["command"] for one in cli.json("settle", "--tag", "bot=a", "--flat")["items"]] == ["release"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("settle --tag bot=a", "say what is open"),
        ("settle --tag bot=a --flat --open BTC=1@1", "say what is open"),
        ("settle --tag bot=a --open BTC", "must look like BTC/USDT=0.5@50000, got 'BTC'"),
        ("settle --tag bot=a --open BTC=x@1", "quantity must be a number"),
        ("settle --tag bot=a --open BTC=1@1,long", "'buy' or 'sell'"),
        ("settle --flat", "tags is empty"),
    ],
)
def test_settle_when_the_book_is_wrong_then_it_is_bad_input(cli: CommandLine, line: str, says: str) -> None:
    ran = cli(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
