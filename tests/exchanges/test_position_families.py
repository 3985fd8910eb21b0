"""Every family of positions is asked for, or named: coin-margined, USDC-settled, dated, options."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import ccxt
import pytest

from ledger_sizer.exchanges.position_calls import is_of_family
from tests.support.canned_exchanges import CannedAccount, contract_market, now_us, spot_market

D = Decimal
LINEAR, INVERSE, SPOT = "BTC/USDT:USDT", "BTC/USD:BTC", "BTC/USDT"

GATE = {"size": -2, "leverage": "0", "margin": "36", "liq_price": "0", "mode": "single", "pending_orders": 0,
        "realised_pnl": "0", "unrealised_pnl": "0", "update_time": 1, "value": "100", "maintenance_rate": "0.01",
        "entry_price": "40000", "mark_price": "40000", "cross_leverage_limit": "1", "risk_limit": "1"}  # fmt: skip
BITGET = {"holdSide": "short", "total": "0.005", "available": "0.005", "openPriceAvg": "40000", "markPrice": "40000",
          "marginMode": "crossed", "posMode": "hedge_mode", "leverage": "10", "unrealizedPL": "0", "marginSize": "1",
          "keepMarginRate": "0.004", "marginRatio": "0.01", "liquidationPrice": "0"}  # fmt: skip
HTX = {"volume": "2", "available": "2", "direction": "sell", "cost_open": "40000", "last_price": "40000",
       "profit_unreal": "0", "lever_rate": 10, "position_margin": "1", "margin_mode": "cross"}  # fmt: skip
BINANCE = {"positionSide": "BOTH", "positionAmt": "-2", "entryPrice": "40000", "markPrice": "40000", "leverage": "10",
           "unRealizedProfit": "0", "liquidationPrice": "0", "notionalValue": "-0.005", "marginType": "cross",
           "isolatedMargin": "0", "isolatedWallet": "0", "updateTime": 1, "maxQty": "100"}  # fmt: skip
BYBIT = {"positionIdx": 0, "side": "Sell", "size": "200", "avgPrice": "40000", "positionValue": "0.005",
         "markPrice": "40000", "leverage": "10", "unrealisedPnl": "0", "positionIM": "1", "positionMM": "0",
         "liqPrice": "", "createdTime": "1", "updatedTime": "1"}  # fmt: skip
KUCOIN = {"currentQty": -200, "avgEntryPrice": 40000, "markPrice": 40000, "isOpen": True, "crossMode": True,
          "posCost": "0.005", "unrealisedPnl": 0, "liquidationPrice": 0, "maintMarginReq": 0.01, "realLeverage": 1,
          "openingTimestamp": 1, "currentTimestamp": 1, "posInit": 0, "posMaint": 0}  # fmt: skip


def bybit(*rows: Any) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": {"list": rows, "nextPageCursor": ""}, "time": 1}


CASES: dict[str, tuple[list[Any], dict[str, Any], tuple[str, ...]]] = {
    "binance": (
        [contract_market(INVERSE, "BTCUSD_PERP", "100")],
        {"fapi/v3/positionRisk": [], "dapi/v1/positionRisk": [{**BINANCE, "symbol": "BTCUSD_PERP"}],
         "eapi/v1/position": [], "leverageBracket": []},
        ("fapi/v3/positionRisk", "dapi/v1/positionRisk", "eapi/v1/position"),
    ),
    "bybit": (
        [contract_market(INVERSE, "BTCUSD")],
        {"category=inverse": bybit({**BYBIT, "symbol": "BTCUSD"}), "position/list": bybit(),
         "query-api": {"retCode": 0, "result": {"unified": 0, "uta": 1}},
         "account/info": {"retCode": 0, "result": {"unifiedMarginStatus": 6}}},
        ("settleCoin=USDT", "settleCoin=USDC", "category=inverse", "category=option"),
    ),
    "gate": (
        [contract_market(INVERSE, "BTC_USD"), contract_market("BTC/USDT:USDT-271231", "BTC_USDT_20271231", "0.0001")],
        {"futures/btc/positions": [{**GATE, "contract": "BTC_USD", "size": -200}], "positions": []},
        ("futures/usdt/positions", "futures/btc/positions", "delivery/usdt/positions", "options/positions"),
    ),
    "bitget": (
        [contract_market(INVERSE, "BTCUSD", "0.001", settleId="BTC")],
        {"COIN-FUTURES": {"code": "00000", "data": [{**BITGET, "symbol": "BTCUSD"}]},
         "position": {"code": "00000", "data": []}},
        ("productType=USDT-FUTURES", "productType=USDC-FUTURES", "marginCoin=BTC&productType=COIN-FUTURES"),
    ),
    "htx": (
        [contract_market(INVERSE, "BTC-USD", "100")],
        {"v5/trade/position/opens": {"code": 200, "data": [], "ts": 1},
         "swap-api/v1/swap_position_info": {"status": "ok", "ts": 1, "data": [{**HTX, "contract_code": "BTC-USD"}]},
         "api/v1/contract_position_info": {"status": "ok", "ts": 1, "data": []}},
        ("v5/trade/position/opens", "swap-api/v1/swap_position_info", "api/v1/contract_position_info"),
    ),
    "kucoin": (
        [contract_market(INVERSE, "XBTUSDM")],
        {"api/v1/positions": {"code": "200000", "data": [{**KUCOIN, "symbol": "XBTUSDM"}]},
         "account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}}},
        ("api/v1/positions",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("venue", CASES)
def test_snapshot_when_families_are_listed_apart_then_each_is_asked_for_and_coin_margined_ones_are_read(
    venue: str,
) -> None:
    markets, answers, calls = CASES[venue]
    account = CannedAccount(venue, answers, [contract_market(LINEAR, "x"), spot_market(SPOT, "y"), *markets])
    seen = account.snapshot(now_us)
    (position,) = seen.positions or ()
    assert (position.symbol, position.side, position.coins) == (INVERSE, "short", D("0.005"))
    assert (seen.unread, seen.failed) == ((), ())
    for call in calls:
        assert any(call in one for one in account.asked), f"{call} is not among {account.asked}"


REFUSED = {
    "refused": (ccxt.PermissionDenied("no rights for this"), ("inverse",), ()),
    "refused key": (ccxt.AuthenticationError("-2015: Invalid API-key or permissions for action."), ("inverse",), ()),
    "no such account": (ccxt.BadRequest("no coin-margined account"), ("inverse",), ()),
    "in maintenance": (ccxt.OnMaintenance("back in an hour"), (), ("inverse",)),
    "not JSON": (ValueError("not JSON"), (), ("inverse",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("venue", ["binance", "bybit", "gate"])
def test_snapshot_when_one_family_does_not_answer_then_that_one_is_unknown_and_the_others_are_read(
    venue: str, name: str
) -> None:
    error, not_asked, failed = REFUSED[name]
    _, answers, _ = CASES[venue]
    inverse = {"binance": "dapi/v1/positionRisk", "bybit": "category=inverse", "gate": "futures/btc/positions"}[venue]
    linear = {
        "binance": {"fapi/v3/positionRisk": [{**BINANCE, "symbol": "BTCUSDT", "notional": "-80000"}]},
        "bybit": {"settleCoin=USDT": bybit({**BYBIT, "symbol": "BTCUSDT", "size": "2"})},
        "gate": {"futures/usdt/positions": [{**GATE, "contract": "BTC_USDT"}]},
    }[venue]
    market_id = "BTC_USDT" if venue == "gate" else "BTCUSDT"
    given = {**linear, inverse: error}
    given |= {part: answer for part, answer in answers.items() if part not in given}
    seen = CannedAccount(venue, given, [contract_market(LINEAR, market_id)]).snapshot(now_us)
    assert [(one.symbol, one.coins) for one in seen.positions or ()] == [(LINEAR, D(2))]
    assert (seen.not_asked, seen.failed) == (not_asked, failed)
    assert seen.covers(LINEAR)
    assert not seen.covers(INVERSE)
    assert seen.covers("BTC"), "a coin is no position"
    assert any(f"{venue} main: inverse positions" in one for one in seen.problems)


def test_snapshot_when_gate_has_no_account_for_a_product_then_there_is_nothing_in_it() -> None:
    none = {"label": "USER_NOT_FOUND", "message": "please transfer funds first to create futures account"}
    account = CannedAccount("gate", {"positions": none}, [contract_market(LINEAR, "BTC_USDT")])
    seen = account.snapshot(now_us)
    assert (seen.positions, seen.not_asked, seen.failed) == ((), (), ())


def test_snapshot_when_the_first_family_fails_then_nothing_is_known_of_positions() -> None:
    _, answers, _ = CASES["binance"]
    given = {"fapi/v3": ccxt.OnMaintenance("soon"), **answers}
    assert CannedAccount("binance", given, [contract_market(LINEAR, "x")]).snapshot(now_us).positions is None


@pytest.mark.parametrize(("venue", "family"), [("bingx", "other"), ("coinbase", "swap"), ("phemex", "usdc")])
def test_snapshot_when_ccxt_cannot_ask_for_a_family_then_every_snapshot_says_so(venue: str, family: str) -> None:
    answers = {"ositions": {"code": 0, "data": {}, "positions": []}}
    currencies = [contract_market(LINEAR, "x"), spot_market("USD/USDT", "z")]
    assert CannedAccount(venue, answers, currencies).snapshot(now_us).not_asked == (family,)


@pytest.mark.parametrize(
    ("symbol", "families"),
    [
        ("BTC/USDT:USDT", {"linear", "swap"}),
        ("BTC/USDC:USDC", {"linear", "usdc", "swap"}),
        ("BTC/USD:BTC", {"inverse", "swap"}),
        ("BTC/USD:BTC-271231", {"inverse", "future"}),
        ("BTC/USDT:USDT-271231", {"linear", "future"}),
        ("BTC/USD:BTC-271231-90000-C", {"inverse", "option"}),
        ("BTC/USDT", {"margin"}),
    ],
)
def test_is_of_family_when_a_symbol_is_given_then_its_families_are_told(symbol: str, families: set[str]) -> None:
    named = ("linear", "usdc", "inverse", "future", "option", "swap", "margin", "other")
    assert {one for one in named if is_of_family(symbol, one)} == families
