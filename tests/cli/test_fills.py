"""Tests of the tables, of `explain` and of `history` for positions that fill in parts."""

from __future__ import annotations

import json

import pytest

from ledger_sizer import Ledger
from ledger_sizer.model.units import decimal_text
from ledger_sizer.wire.responses import decision_from_json
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine
from tests.support.ledgers import dynamic_settings
from tests.support.lives import live_through_fills


@pytest.fixture(scope="module")
def url(module_database: NewDatabase) -> str:
    url, clock = module_database("sqlite"), FakeClock()
    with Ledger.open(url, settings=dynamic_settings(), clock=clock) as ledger:
        live_through_fills(ledger, clock)
    return url


@pytest.fixture
def desk(capsys: pytest.CaptureFixture[str], url: str) -> CommandLine:
    return CommandLine(capsys, url)


def test_list_positions_when_they_fill_in_parts_then_held_stands_beside_open_with_legs_and_reference(
    desk: CommandLine,
) -> None:
    ran = desk("positions")
    head, *lines = ran.out.splitlines()
    assert head.split()[-3:] == ["to_fill", "legs", "reference"]
    rows = {line.split()[0]: " ".join(line.split()) for line in lines}
    spot = rows["main-31"]
    assert " 40.87361653 49.11 7.000 7.015714285714285714 " in spot
    assert "when known 5.830 buy 7 of 12.839088074824629774 ETC/USDT at gate" in spot
    assert "sell 24000000 PEPE/USDT:USDT at okx sub t7" in rows["main-1"]
    assert "buy 0 of 0.006 BTC/USDT at bybit" in rows["main-39"]


def test_explain_when_legs_were_granted_then_the_orders_are_told(desk: CommandLine) -> None:
    ran = desk("explain", "main-1")
    assert "Order 2: sell PEPE/USDT:USDT (swap at okx, account sub): amount 9300 of 10000 coins each" in ran.out
    assert desk.json("explain", "1")["legs"][1]["order_amount"] == "9300"


@pytest.mark.parametrize(
    ("command", "seqs"),
    [("fill", [4, 3]), ("retag", [12, 10]), ("reprice", [37, 9]), ("extend", [5])],
)
def test_list_history_when_the_command_is_new_then_its_decisions_are_found(
    desk: CommandLine, command: str, seqs: list[int]
) -> None:
    assert [one["seq"] for one in desk.json("history", "--command", command)["items"]] == seqs
    lines = desk("history", "--command", command).out.splitlines()[1:]
    assert [int(line.split()[0]) for line in lines] == seqs


def test_export_history_when_a_hold_never_ends_then_the_line_says_so(desk: CommandLine) -> None:
    lines = [json.loads(line) for line in desk("history", "--export", "ndjson", "--ascending").out.splitlines()]
    assert [line["seq"] for line in lines if line["until_known"]] == [5, 6, 7, 10, 26, 31, 34]
    assert {line["expires_at"] for line in lines if line["until_known"]} == {None}
    orders = decision_from_json(lines[0]).legs
    assert [decimal_text(leg.order_amount) for leg in orders] == ["93000", "9300"], "they stand in the trace"


def test_show_exposure_when_a_position_left_a_scope_then_it_counts_where_it_went(desk: CommandLine) -> None:
    scopes = {scope["scope"]: scope["open"] for scope in desk.json("exposure")["scopes"]}
    assert (scopes["desk=x"], scopes["desk=y"], scopes["venue=deribit"]) == ("286.1", "286.1", "400.03")
