"""Positions taken over from a CSV file: whole or not at all, once, and every error says where and what to write."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine

D = Decimal
HEADER = "position,venue,account,symbol,side,quantity,price,tags,opened,reference"
FILE = ("positions", "import", "positions.csv")


def written(*lines: str, header: str = HEADER) -> None:
    Path("positions.csv").write_text("\n".join([header, *lines, ""]), encoding="utf-8")


def test_import_when_the_template_is_taken_as_it_is_then_its_positions_are_open_once(cli: CommandLine) -> None:
    Path("positions.csv").write_text(cli("positions", "import", "--template").out, encoding="utf-8")
    shown = cli.json(*FILE)
    (of_main,) = shown["items"]
    assert (shown["dry_run"], of_main["usd"], of_main["headroom"]) == (True, "4803.2", "196.8")
    assert cli.json("positions")["items"] == []
    (done,) = cli.json(*FILE, "--tag", "desk=one", "--apply")["items"]
    pair, spread, alone = cli.json("positions", "--state", "open")["items"]
    assert [one["position_id"] for one in done["positions"]] == [
        pair["position_id"], spread["position_id"], alone["position_id"],
    ]  # fmt: skip
    assert pair["tags"] == {
        "account": "main", "bot": "a", "desk": "one", "strategy": "carry", "symbol": "BTC", "venue": "binance",
    }  # fmt: skip
    assert (pair["open"], pair["quantity"], pair["reference"]) == ("1000.2", "0.02", "order 4711")
    assert spread["tags"]["venue"] == ["bybit", "okx"]
    assert (spread["open"], alone["open"], alone["tags"]["symbol"]) == ("3753", "50", "PEPE")
    note = cli.json("explain", pair["position_id"])["request"]["note"]
    assert note == "positions import, opened 2026-11-02T08:00:00Z"
    again = cli(*FILE, "--tag", "desk=one", "--apply")
    assert (again.code, len(cli.json("positions")["items"])) == (0, 3)
    assert "4803.20 -> 4803.20 USD" in again.out
    assert cli("verify").code == 0


@pytest.mark.one_engine
def test_import_when_a_file_grew_then_only_what_is_new_is_taken(cli: CommandLine) -> None:
    written("a,bybit,,BTC/USDT:USDT,sell,0.02,50000")
    assert cli(*FILE, "--apply").code == 0
    written("a,bybit,,BTC/USDT:USDT,sell,0.02,50000", "b,bybit,,ETH/USDT:USDT,sell,0.4,2500")
    (shown,) = cli.json(*FILE)["items"]
    assert [one["position_id"] for one in shown["positions"]] == ["main-1", None]
    assert (shown["exposure_before"], shown["exposure_after"]) == ("1000", "2000")
    cli.json(*FILE, "--apply")
    assert [one["position_id"] for one in cli.json("positions")["items"]] == ["main-1", "main-2"]
    written("a,bybit,,BTC/USDT:USDT,sell,0.03,50000", "c,bybit,,SOL/USDT:USDT,sell,1,150")
    refused = cli(*FILE, "--apply", "--json")
    assert (refused.code, refused.problem["error"]) == (2, "idempotency_key_reused")
    assert "the position 'a' of a file of this name was taken over before as main-1" in refused.problem["hint"]
    assert len(cli.json("positions")["items"]) == 2, "nothing of the file"
    assert cli(*FILE, "--apply", "--key", "december").code == 0


@pytest.mark.one_engine
def test_import_when_tags_stand_in_columns_then_they_are_tags(cli: CommandLine) -> None:
    written("a,bybit,ETH/USDT,long,1,2500,carry", header="position,venue,symbol,side,quantity,price,tag:strategy")
    (done,) = cli.json(*FILE, "-p", "other", "--apply")["items"]
    assert done["portfolio"] == "other"
    assert done["positions"][0]["tags"] == {"strategy": "carry", "symbol": "ETH", "venue": "bybit"}


PERP = "a,bybit,,BTC/USDT:USDT,sell,0.02,50000"


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("lines", "field", "told"),
    [
        ((PERP, "b,bybit,,BTC,sell,1,1"), "symbol", "line 3, symbol 'BTC' is no name of ccxt; write BTC/USDT"),
        ((PERP, "b,bybit,,BTC/USDT,up,1,1"), "side", "line 3, side 'up' is none; write buy or sell"),
        ((PERP, 'b,bybit,,BTC/USDT,buy,"1,000",1'), "quantity", "line 3, quantity '1,000' is no number above 0"),
        ((PERP, "b,bybit,,BTC/USDT,buy,0,1"), "quantity", "line 3, quantity '0' must be above 0"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,-5"), "price", "line 3, price '-5' is no number above 0"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,"), "price", "line 3, price '' is empty; every leg needs it"),
        ((PERP, ",bybit,,BTC/USDT,buy,1,1"), "position", "line 3, position '' is empty; give the legs of one position"),
        ((PERP, "a,bybit,,ETH/USDT,buy,1,1"), "symbol", "line 3, symbol 'ETH/USDT' is of another coin than line 2"),
        ((PERP, PERP), "symbol", "line 3, symbol 'BTC/USDT:USDT' is in the position 'a' already, on this side"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,1,carry"), "tags", "line 3, tags 'carry' must be like strategy=carry;bot=a"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,1,x=*"), "tags.x", "line 3, tags 'x=*' is refused: tags.x cannot be '*'"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,1,venue=okx"), "tags.venue", "line 3: the position 'b': tags.venue is okx"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,1,,2026-01-01"), "opened", "line 3, opened '2026-01-01' has no time zone"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,1,,soon"), "opened", "line 3, opened 'soon' is no time"),
        ((PERP, "b,bybit,,BTC/USDT,buy,1,1,,,,more"), "file", "line 3 has 11 cells and the header 10"),
        ((PERP + ",x=1", "a,okx,,BTC/USDT:USDT,buy,0.02,1,x=2"), "tags", "gives x another value than line 2"),
        ((), "file", "the file has no line below its header"),
    ],
)
def test_import_when_a_line_is_wrong_then_the_place_and_the_cure_are_named_and_nothing_is_recorded(
    cli: CommandLine, lines: tuple[str, ...], field: str, told: str
) -> None:
    written(*lines)
    for more in ((), ("--apply",)):
        ran = cli(*FILE, "--json", *more)
        assert ran.code == 2, ran
        assert told in ran.problem["message"]
        assert ran.problem["field"] in (field, field.partition(".")[0])
    assert cli.json("positions")["items"] == []


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("position,venue,symbol,side,quantity", "line 1 lacks the column 'price'"),
        (f"{HEADER},strategy", "line 1 has the column 'strategy'; known are position, venue"),
        (HEADER.replace(",", ";"), "part the columns by commas"),
        (f"{HEADER},tags", "line 1 has the column 'tags' twice"),
    ],
)
def test_import_when_the_header_is_wrong_then_the_columns_are_named(cli: CommandLine, header: str, told: str) -> None:
    written(PERP, header=header)
    ran = cli(*FILE, "--json")
    assert ran.code == 2
    assert told in ran.problem["message"]


@pytest.mark.one_engine
def test_import_when_a_tag_is_required_then_the_line_without_it_is_named(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_REQUIRED_TAGS", '["strategy"]')
    written(PERP + ",strategy=carry", "b,bybit,,ETH/USDT,buy,1,1")
    ran = cli(*FILE, "--json")
    assert (ran.code, ran.problem["field"]) == (2, "tags.strategy")
    assert ran.problem["message"].startswith("line 3: the position 'b': lacks the tag strategy")
    assert cli(*FILE, "--tag", "strategy=carry", "--apply").code == 0
