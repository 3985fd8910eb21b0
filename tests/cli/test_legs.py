"""Reservations of any legs on the command line: by name or rules, amounts of one's own, more of a position."""

from __future__ import annotations

import pytest

from tests.support.command_line import CommandLine
from tests.support.markets import record_markets

pytestmark = pytest.mark.one_engine

RULES = '{"symbol":"BTC/USDT:USDT","min_qty":1,"max_qty":900,"qty_step":1,"contract_size":0.001,"venue":"gate"}'
BYBIT = ["--leg", "bybit:BTC/USDT:USDT,buy"]
OKX = ["--leg", "okx:BTC/USDT:USDT,sell"]


@pytest.fixture(autouse=True)
def known_markets(cli: CommandLine) -> None:
    record_markets(cli.url)


def test_reserve_when_legs_are_named_then_each_order_is_told_in_its_unit(cli: CommandLine) -> None:
    decision = cli.json("reserve", "--price", "50000", *BYBIT, *OKX)
    assert decision["request"]["tags"] == {}
    assert (decision["budget"], decision["quantity"]) == ("1000", "0.02")
    shown = cli("reserve", "--price", "50000", "--dry-run", *BYBIT, *OKX).out
    assert "buy 0.02 BTC/USDT:USDT at bybit" in shown
    assert "sell 2 BTC/USDT:USDT at okx (0.02 coins)" in shown
    cost = '{"instrument":"gate:BTC/USDT","side":"buy","fee_rate":"0.001","account":"sub"}'
    shown = cli("reserve", "--price=50000", "--dry-run", "--leg", cost).out
    assert "buy 0.02 BTC/USDT at gate, account sub; a market order takes its cost, 1000" in shown


def test_reserve_when_a_leg_is_json_then_its_rules_may_be_an_object(cli: CommandLine) -> None:
    leg = f'{{"instrument":{RULES},"side":"sell","price":50100}}'
    decision = cli.json("reserve", "--leg", leg, "--amount-usd", "600", "--max-position-usd", "550.5")
    assert (decision["budget"], decision["quantity"], decision["binding"]) == ("501", "0.01", "max_position_usd")
    (asked,) = decision["request"]["legs"]
    assert (asked["price"], asked["instrument"]["contract_size"]) == ("50100", "0.001")
    assert cli.json("reserve", "--leg", "okx:BTC/USDT:USDT,buy,50000")["granted"]


def test_reserve_when_more_is_asked_then_the_positions_own_legs_are_taken(cli: CommandLine) -> None:
    first = cli.json("reserve", "--price", "50000", "--amount-usd", "400", *BYBIT, *OKX)
    more = cli.json("reserve", "--position-id", first["position_id"], "--price", "50000", "--amount-usd", "200")
    assert (more["position_id"], more["quantity"], more["budget"]) == (first["position_id"], "0.004", "200")
    endless = cli.json("reserve", "--amount-usd", "5", "--until-known")
    assert endless["expires_at"] is None


BAD = {
    "--leg bybit:BTC/USDT:USDT": "leg must be instrument,side[,price[,fee_rate[,asset[,account]",
    "--leg bybit:BTC/USDT:USDT,long": "side must be 'buy' or 'sell', got 'long'",
    "--leg bybit:BTC/USDT:USDT,buy,much": "leg price must be a number",
    "--leg bybit:BTC/USDT:USDT,buy,1,2,3,4,5": "leg must be instrument,side",
    "--leg BTC,buy": "legs.0.instrument must be symbol,min_qty,max_qty,qty_step",
    "--leg bybit:NO/USDT:USDT,buy": "instruments refresh bybit",
    "--leg bybit:OLD/USDT:USDT,buy": "is not open for trading",
    "--leg bybit:BTC/USDT:USDT,buy --leg bybit:ETH/USDT:USDT,sell": "ETH/USDT:USDT is of ETH and BTC/USDT:USDT of BTC",
    "--leg bybit:BTC/USDT:USDT,buy --leg bybit:BTC/USDT:USDT,sell": "one leg a market",
    "--leg bybit:BTC/USDT:USDT,buy --leg okx:BTC/USDT:USDT,sell,5": "legs.1.price 5 is not near the price 50000",
    '--leg {"side":"buy"}': "leg lacks 'instrument'",
    '--leg {"instrument":{"symbol":"B"},"side":"buy"}': "legs.0.instrument lacks 'min_qty'",
    '--leg {"instrument":"bybit:BTC/USDT","side":"buy","colour":"red"}': "leg has no 'colour'",
    '--leg {"instrument":["BTC"],"side":"buy"}': "leg instrument must be text or a number",
    "--amount-usd 0": "amount_usd must be above 0",
    "--amount-usd 5 --signal-score 1": "not both",
    "--max-position-usd -1": "max_position_usd must be above 0",
    "--until-known --ttl 5": "give until_known or ttl_seconds, not both",
    "--position-id main": "position_id",
}


@pytest.mark.parametrize("line", BAD)
def test_reserve_when_legs_are_bad_then_one_line_names_it_and_nothing_is_recorded(cli: CommandLine, line: str) -> None:
    outcome = cli("reserve", "--price", "50000", *line.split(" "))
    assert outcome.code == 2
    assert BAD[line] in outcome.err
    assert '"seq": 0,' in cli("exposure", "--json").out
