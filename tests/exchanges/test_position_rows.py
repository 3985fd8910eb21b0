"""Positions in the exchanges' own formats, read by ccxt's parsers: one row that cannot be read leaves the others."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer.exchanges.snapshot import Snapshot
from tests.support.canned_exchanges import CannedAccount, contract_market, now_us, spot_market

D = Decimal
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "venues"

BYBIT_MARKETS = [
    contract_market("BTC/USDT:USDT", "BTCUSDT"), contract_market("ETH/USDT:USDT", "ETHUSDT"),
    contract_market("SOL/USDT:USDT", "SOLUSDT", None), contract_market("BTC/USD:BTC", "BTCUSD"),
    spot_market("BTC/USDT", "BTCUSDT"),
]  # fmt: skip
OKX_MARKETS = [
    contract_market("BTC/USDT:USDT", "BTC-USDT-SWAP", "0.01"), contract_market("BTC/USD:BTC", "BTC-USD-SWAP", "100"),
    contract_market("ETH/EUR:ETH", "ETH-EUR-SWAP", "10"), spot_market("ETH/USDT", "ETH-USDT", margin=True),
]  # fmt: skip
BINANCE_MARKETS = [contract_market("BTC/USDT:USDT", "BTCUSDT"), contract_market("ETH/USDT:USDT", "ETHUSDT")]


def bybit(*rows: dict[str, Any], inverse: tuple[dict[str, Any], ...] = ()) -> Snapshot:
    def listed(of: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        return {"retCode": 0, "retMsg": "OK", "result": {"list": of, "nextPageCursor": ""}, "time": 1}

    coins = [{"coin": "USDT", "walletBalance": "1000", "locked": "0", "totalPositionIM": "100", "totalOrderIM": "0"}]
    answers = {
        "settleCoin=USDT": listed(rows), "category=inverse": listed(inverse), "position/list": listed(()),
        "query-api": {"retCode": 0, "result": {"unified": 0, "uta": 1}},
        "account/info": {"retCode": 0, "result": {"unifiedMarginStatus": 6}},
        "wallet-balance": listed(({"accountType": "UNIFIED", "coin": coins},)),
    }  # fmt: skip
    return CannedAccount("bybit", answers, BYBIT_MARKETS).snapshot(now_us)


def bybit_row(**changes: Any) -> dict[str, Any]:
    return {
        "positionIdx": 0, "symbol": "BTCUSDT", "side": "Sell", "size": "0.02", "avgPrice": "50000", "leverage": "10",
        "positionValue": "1000", "markPrice": "51000", "unrealisedPnl": "-20", "positionIM": "100", "positionMM": "0",
        "liqPrice": "", "positionStatus": "Normal", "createdTime": "1", "updatedTime": "1", **changes,
    }  # fmt: skip


def okx(*rows: dict[str, Any]) -> Snapshot:
    details = [{"ccy": "USDT", "eq": "1000", "availEq": "900", "frozenBal": "100"}]
    answers = {
        "account/positions": {"code": "0", "data": rows, "msg": ""},
        "account/balance": {"code": "0", "data": [{"details": details, "uTime": "1"}], "msg": ""},
    }
    return CannedAccount("okx", answers, OKX_MARKETS).snapshot(now_us)


def okx_row(**changes: Any) -> dict[str, Any]:
    return {
        "instType": "SWAP", "instId": "BTC-USDT-SWAP", "pos": "-3", "posSide": "net", "avgPx": "50000", "upl": "0",
        "mgnMode": "cross", "lever": "10", "markPx": "50000", "notionalUsd": "1500", "imr": "100", "mmr": "1",
        "liqPx": "", "margin": "", "mgnRatio": "9", "posCcy": "", "ccy": "USDT", "cTime": "1", "uTime": "1", **changes,
    }  # fmt: skip


def binance(*rows: dict[str, Any]) -> Snapshot:
    answers = {
        "fapi/v3/positionRisk": rows, "dapi/v1/positionRisk": [], "eapi/v1/position": [], "leverageBracket": [],
        "fapi/v3/account": {"assets": [{"asset": "USDT", "marginBalance": "980", "availableBalance": "900",
                                        "initialMargin": "100", "updateTime": 1}]},
        "api/v3/account": {"balances": [{"asset": "USDT", "free": "5", "locked": "0"}]},
    }  # fmt: skip
    return CannedAccount("binance", answers, BINANCE_MARKETS).snapshot(now_us)


def binance_row(**changes: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT", "positionSide": "BOTH", "positionAmt": "-0.02", "entryPrice": "50000",
        "markPrice": "51000", "breakEvenPrice": "50000", "unRealizedProfit": "-20", "liquidationPrice": "0",
        "notional": "-1020",
        "isolatedMargin": "0", "isolatedWallet": "0", "initialMargin": "100", "maintMargin": "1", "updateTime": 1,
        "marginAsset": "USDT", "adl": 0, **changes,
    }  # fmt: skip


BLANK = {"avgPrice": "", "positionValue": "", "markPrice": "", "unrealisedPnl": "", "leverage": "", "positionIM": ""}
OPTION = {"instType": "OPTION", "instId": "BTC-USD-271231-90000-C", "pos": "2", "optVal": "0.1"}
MARGIN = {"instType": "MARGIN", "instId": "ETH-USDT", "pos": "0.5", "posSide": "net", "posCcy": "ETH"}

ROWS: dict[str, tuple[Any, dict[str, Any], tuple[str, str] | None]] = {
    "bybit, an empty side": (bybit, bybit_row(symbol="ETHUSDT", positionIdx=1, side="", size="0", avgPrice="0"), None),
    "bybit, a blank side": (bybit, bybit_row(symbol="ETHUSDT", positionIdx=1, side="", size="", **BLANK), None),
    "bybit, a size left blank": (
        bybit, bybit_row(symbol="ETHUSDT", side="Buy", size=""), ("ETH/USDT:USDT", "its size is"),
    ),
    "bybit, a size that is no number": (
        bybit, bybit_row(symbol="ETHUSDT", side="Buy", size="many"), ("ETH/USDT:USDT", ""),
    ),
    "bybit, no side": (bybit, bybit_row(symbol="ETHUSDT", side="None"), ("ETH/USDT:USDT", "without a side")),
    "bybit, a delisted market": (
        bybit, bybit_row(symbol="ARTUSDT", side="Buy", size="1000"), ("ART/USDT:USDT", "does not list"),
    ),
    "bybit, no contract size": (bybit, bybit_row(symbol="SOLUSDT", side="Buy"), ("SOL/USDT:USDT", "no contract size")),
    "okx, an isolated-margin row": (okx, okx_row(**MARGIN), ("ETH/USDT", "a margin position")),
    "okx, an option": (okx, okx_row(**OPTION), ("BTC/USD:BTC-271231-90000-C", "an option")),
    "okx, a delisted market": (okx, okx_row(instId="ART-USDT-SWAP"), ("ART/USDT:USDT", "does not list")),
    "okx, not quoted in dollars": (okx, okx_row(instId="ETH-EUR-SWAP"), ("ETH/EUR:ETH", "quoted in EUR")),
    "okx, no entry price": (okx, okx_row(instId="BTC-USD-SWAP", avgPx=""), ("BTC/USD:BTC", "without an entry price")),
    "binance, a row without an amount": (
        binance, binance_row(symbol="ETHUSDT", positionAmt="", unRealizedProfit=""), ("ETH/USDT:USDT", ""),
    ),
    "binance, no entry price": (
        binance, binance_row(symbol="ETHUSDT", entryPrice="0"), ("ETH/USDT:USDT", "no entry price"),
    ),
    "binance, an empty row": (binance, binance_row(symbol="ETHUSDT", positionAmt="0", entryPrice="0"), None),
    "binance, a delisted market": (binance, binance_row(symbol="ARTUSDT"), ("ART/USDT:USDT", "does not list")),
}  # fmt: skip
READ = {bybit: (bybit_row(), D("0.02")), okx: (okx_row(), D("0.03")), binance: (binance_row(), D("0.02"))}


@pytest.mark.parametrize("name", ROWS)
def test_snapshot_when_one_row_cannot_be_read_then_it_is_named_and_the_others_are_read(name: str) -> None:
    exchange, row, unread = ROWS[name]
    good, quantity = READ[exchange]
    seen = exchange(row, good)
    assert [(one.symbol, one.side, one.coins) for one in seen.positions or ()] == [("BTC/USDT:USDT", "short", quantity)]
    assert seen.whole
    if unread is None:
        assert seen.unread == ()
        return
    ((symbol, detail),) = [(one.symbol, one.detail) for one in seen.unread]
    assert symbol == unread[0]
    assert unread[1] in detail
    assert not seen.covers(symbol)
    assert seen.covers("BTC/USDT:USDT")


def test_snapshot_when_a_market_is_delisted_for_good_then_the_markets_are_loaded_once_more_and_not_each_time() -> None:
    account = CannedAccount("okx", {"positions": {"code": "0", "data": [okx_row(instId="ART-USDT-SWAP")]}}, OKX_MARKETS)
    loads = []
    account._client.load_markets = lambda *_arguments: loads.append(1)
    for _ in range(3):
        account.snapshot(now_us)
    assert len(loads) == 2, "at the start, and once for the market that is not there"


@pytest.mark.parametrize("rows", ["no rows", [1, 2], [{"note": "no market and no size"}]])
def test_snapshot_when_the_answer_is_no_list_of_positions_then_the_part_is_unknown(rows: Any) -> None:
    answers = {"account/positions": {"code": "0", "data": rows, "msg": ""}}
    seen = CannedAccount("okx", answers, OKX_MARKETS).snapshot(now_us)
    assert seen.positions is None
    assert "positions unknown" in seen.problems[0]


@pytest.mark.parametrize(("name", "path"), [("bybit", "http_get_positions.json"), ("okx", "http_get_positions.json")])
def test_snapshot_when_an_answer_was_recorded_then_every_row_of_it_is_read_or_named(name: str, path: str) -> None:
    file = SHARED / name / path
    if not file.exists():
        pytest.skip(f"{file} is not there: recorded answers of the exchanges are no part of this repository")
    recorded = json.loads(file.read_text())
    rows = recorded["result"]["list"] if name == "bybit" else recorded["data"]
    seen = bybit(*rows) if name == "bybit" else okx(*rows)
    told = [row for row in rows if row.get("size") != "0"]
    assert len(seen.positions or ()) + len(seen.unread) == len(told)
    first = (seen.positions or ())[0]
    assert (first.symbol, first.side) == ("BTC/USDT:USDT", "long")
    assert first.coins == (D("0.5") if name == "bybit" else D("0.005"))


@pytest.mark.parametrize("contracts", ["100", "250"])
def test_snapshot_when_a_position_is_margined_in_its_coin_then_it_is_coins_at_its_entry_price(contracts: str) -> None:
    by_bybit = bybit(inverse=(bybit_row(symbol="BTCUSD", size=contracts, avgPrice="40000"),))
    by_okx = okx(okx_row(instId="BTC-USD-SWAP", pos=f"-{int(contracts) // 50}", avgPx="40000"))
    for seen, usd in ((by_bybit, D(contracts)), (by_okx, D(int(contracts) // 50 * 100))):
        (position,) = seen.positions or ()
        assert (position.symbol, position.side) == ("BTC/USD:BTC", "short")
        assert position.coins == usd / 40_000
        assert position.coins * (position.coin_price or 0) == usd


@pytest.mark.parametrize(
    ("seen", "usd"),
    [
        (bybit(bybit_row()), D(-20)),
        (bybit(inverse=(bybit_row(symbol="BTCUSD", size="100", unrealisedPnl="0.001"),)), D(51)),
        (okx(okx_row(upl="-20")), D(0)),
        (binance(binance_row()), D(0)),
    ],
    ids=["bybit", "bybit, in coins", "okx", "binance"],
)
def test_snapshot_when_positions_made_a_loss_then_what_the_balances_lack_of_it_is_told(seen: Snapshot, usd: D) -> None:
    """The totals of OKX and of Binance's futures are equity, so they include it."""
    assert seen.unrealized_usd == usd
