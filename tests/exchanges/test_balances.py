"""Balances in the exchanges' own forms: names and scales of assets, coins under other names, prices from tickers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import ccxt
import pytest

from ledger_sizer.exchanges.earn_names import earned_coin
from ledger_sizer.exchanges.snapshot import VenueBalance
from ledger_sizer.exchanges.spot_prices import SpotPrices
from tests.support.canned_exchanges import CannedAccount, contract_market, now_us, spot_market

D = Decimal


def totals(account: CannedAccount) -> dict[str, Decimal] | None:
    balances = account.snapshot(now_us).balances
    return None if balances is None else {one.asset: one.total for one in balances}


# --- the list of currencies ----------------------------------------------------------------------


def delta(assets: Any) -> CannedAccount:
    answers = {
        "v2/assets": assets, "v2/products": {"success": True, "result": []},
        "v2/positions": {"success": True, "result": []},
        "wallet/balances": {"success": True, "result": [
            {"asset_id": 5, "asset_symbol": "USDT", "balance": "100", "available_balance": "90"},
            {"asset_id": 2, "asset_symbol": "BTC", "balance": "0.5", "available_balance": "0.5"}]},
    }  # fmt: skip
    return CannedAccount("delta", answers, None)


ASSETS = {"success": True, "result": [{"id": 5, "symbol": "USDT", "precision": 8, "networks": []},
                                      {"id": 2, "symbol": "BTC", "precision": 8, "networks": []}]}  # fmt: skip


def phemex(products: Any) -> CannedAccount:
    answers = {
        "public/cfg/v2/products": products, "public/products": products, "exchange/public": {"code": 0, "data": []},
        "accountPositions": {"code": 0, "data": {"account": {}, "positions": []}},
        "spot/wallets": {"code": 0, "data": [
            {"currency": "USD", "balanceEv": 1000000, "lockedTradingBalanceEv": 0, "lockedWithdrawEv": 0},
            {"currency": "BTC", "balanceEv": 50000000, "lockedTradingBalanceEv": 0, "lockedWithdrawEv": 0}]},
    }  # fmt: skip
    return CannedAccount("phemex", answers, None)


def _phemex_currency(code: str, scale: int) -> dict[str, Any]:
    return {"currency": code, "name": code, "code": 1, "valueScale": scale, "minValueEv": 1, "maxValueEv": 10**15,
            "needAddrTag": 0, "status": "Listed", "displayCurrency": code, "inAssetsDisplay": 1}  # fmt: skip


CURRENCIES = [_phemex_currency("USD", 4), _phemex_currency("USDT", 8), _phemex_currency("BTC", 8)]
PRODUCTS = {"code": 0, "data": {"currencies": CURRENCIES, "products": []}}


@pytest.mark.parametrize(
    ("account", "expected"),
    [(delta(ASSETS), {"USDT": D(100), "BTC": D("0.5")}), (phemex(PRODUCTS), {"USD": D(100), "BTC": D("0.5")})],
    ids=["delta", "phemex"],
)
def test_snapshot_when_names_or_scales_are_in_the_list_of_currencies_then_it_is_loaded(
    account: CannedAccount, expected: dict[str, Decimal]
) -> None:
    assert totals(account) == expected
    assert account.snapshot(now_us).problems == ()


def test_snapshot_when_the_list_of_currencies_fails_then_ids_are_not_taken_for_coins_and_the_reason_is_told() -> None:
    seen = delta(ccxt.PermissionDenied("this key may not read assets")).snapshot(now_us)
    assert seen.positions == ()
    assert seen.balances == ()
    assert {one.symbol for one in seen.unread} == {"2", "5"}
    assert "this key may not read assets" in seen.problems[0]


def test_snapshot_when_the_scale_of_dollars_is_not_known_then_the_balances_are_unknown() -> None:
    account = phemex(PRODUCTS)
    account._client.fetch_currencies = lambda *_arguments: {}
    account._client.currencies_problem = "no rights"
    assert totals(account) is None


def test_snapshot_when_the_list_of_currencies_is_not_needed_and_fails_then_balances_are_read_all_the_same() -> None:
    answers = {
        "spot/currencies": ccxt.PermissionDenied("no"), "spot/currency_pairs": [], "futures": [], "delivery": [],
        "options": [], "spot/accounts": [{"currency": "USDT", "available": "7", "locked": "3"}], "positions": [],
        "margin/uni/currency_pairs": [], "margin/currency_pairs": [], "unified": {}, "account/detail": {},
    }  # fmt: skip
    account = CannedAccount("gate", answers, None)
    assert totals(account) == {"USDT": D(10)}
    assert any("the list of currencies is not loaded" in one for one in account.snapshot(now_us).problems)


@pytest.mark.parametrize("venue", ["binance", "bybit", "okx"])
def test_open_account_when_its_currencies_need_a_key_with_more_rights_then_they_are_not_loaded(venue: str) -> None:
    assert CannedAccount(venue, {}, [])._client.has["fetchCurrencies"] is False


# --- names, markets, prices ----------------------------------------------------------------------

MARKETS = [
    contract_market("BTC/USDT:USDT", "BTCUSDT"),
    *(spot_market(f"{base}/USDT", f"{base}USDT") for base in ("BTC", "ETH", "LDO", "1000SATS")),
    spot_market("OLD/USDT", "OLDUSDT", active=False), spot_market("EUR/BTC", "EURBTC"),
]  # fmt: skip


def binance(tickers: Any = None, **held: str) -> CannedAccount:
    rows = [{"asset": asset, "free": units, "locked": "0"} for asset, units in held.items()]
    prices = {"BTC": "50000", "ETH": "2500", "LDO": "2", "1000SATS": "0.0005"}
    listed = [{"symbol": f"{base}USDT", "lastPrice": price, "bidQty": "1"} for base, price in prices.items()]
    answers = {
        "ticker/24hr": listed if tickers is None else tickers, "api/v3/account": {"balances": rows},
        "fapi/v3/account": {"assets": []}, "positionRisk": [], "eapi/v1/position": [], "leverageBracket": [],
    }  # fmt: skip
    return CannedAccount("binance", answers, MARKETS, wallets=("spot",))


def test_snapshot_when_coins_are_lent_then_they_are_named_with_the_coin_they_stand_for() -> None:
    seen = binance(LDUSDT="5000", LDBTC="0.5", LDO="7", BTC="0.1", OLD="3", NEW="1", USDT="4").snapshot(now_us)
    balances = {one.asset: (one.earns, one.tradable) for one in seen.balances or ()}
    assert balances == {
        "BTC": (None, True), "LDBTC": ("BTC", False), "LDO": (None, True), "LDUSDT": ("USDT", False),
        "NEW": (None, False), "OLD": (None, False), "USDT": (None, True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("venue", "asset", "coin"),
    [
        ("binance", "LDETH", "ETH"), ("binance", "LDO", None), ("binance", "LDNOPE", None), ("binance", "ETH", None),
        ("kraken", "ETH.F", "ETH"), ("kraken", "BTC.M", "BTC"), ("kraken", "XBT.M", "BTC"), ("kraken", "ETH2", "ETH"),
        ("kraken", "ETH2.S", "ETH"), ("kraken", "DOT28.S", "DOT"), ("kraken", "USD.M", "USD"),
        ("kraken", "SOL.B", "SOL"), ("kraken", "NOPE.S", None), ("kraken", "ETH", None), ("okx", "LDETH", None),
    ],
)  # fmt: skip
def test_earned_coin_when_a_name_is_of_the_exchange_then_the_coin_is_told_where_it_is_known(
    venue: str, asset: str, coin: str | None
) -> None:
    assert earned_coin(venue, asset, {"ETH", "BTC", "DOT", "SOL", "USD", "USDT"}) == coin


def test_snapshot_when_coins_are_held_then_only_these_are_priced_per_coin_and_once_for_some_seconds() -> None:
    account = binance(BTC="0.1", LDETH="2", **{"1000SATS": "5"}, USDT="9", OLD="1")
    seconds = [0.0]
    account._prices = SpotPrices(account._client, clock=lambda: seconds[0])
    expected = {"BTC": D(50_000), "ETH": D(2_500), "SATS": D("0.0000005")}
    for seconds[0], calls in ((0.0, 1), (19.0, 1), (21.0, 2)):
        assert account.snapshot(now_us).prices == expected
        assert sum("ticker/24hr" in one for one in account.asked) == calls
    assert "LDOUSDT" not in "".join(account.asked)
    assert account.snapshot(now_us).problems == ()


def test_snapshot_when_very_many_coins_are_held_then_their_names_are_not_written_into_one_address() -> None:
    held = {f"C{number}": "1" for number in range(300)}
    markets = [*MARKETS, *(spot_market(f"{coin}/USDT", f"{coin}USDT") for coin in held)]
    tickers = [{"symbol": f"{coin}USDT", "lastPrice": "2", "bidQty": "1"} for coin in held]
    account = binance(tickers, **held)
    account._client.set_markets({one["symbol"]: one for one in markets})
    assert account.snapshot(now_us).prices == dict.fromkeys(held, D(2))
    assert max(map(len, account.asked)) < 2_000


@pytest.mark.parametrize("tickers", [ccxt.OnMaintenance("soon"), [{"symbol": "BTCUSDT", "lastPrice": "soon"}], []])
def test_snapshot_when_tickers_fail_then_nothing_else_is_unknown(tickers: Any) -> None:
    seen = binance(tickers, BTC="0.1").snapshot(now_us)
    assert seen.whole
    assert seen.prices == {}
    assert [one.total for one in seen.balances or ()] == [D("0.1")]
    if isinstance(tickers, Exception):
        assert "prices unknown: OnMaintenance" in seen.problems[0]


def test_snapshot_when_only_dollars_are_held_then_no_ticker_is_asked_for() -> None:
    account = binance(USDT="5", FDUSD="5")
    account.snapshot(now_us)
    assert not any("ticker" in one for one in account.asked)


def test_snapshot_when_one_balance_cannot_be_read_then_it_is_named_and_the_others_are_read() -> None:
    seen = binance(USDT="5", BTC="").snapshot(now_us)
    assert [(one.asset, one.total) for one in seen.balances or ()] == [("USDT", D(5))]
    assert [one.symbol for one in seen.unread] == ["BTC"]
    assert not seen.covers("BTC")


def test_snapshot_when_the_balance_of_a_dollar_cannot_be_read_then_the_balances_are_unknown() -> None:
    assert binance(USDT="", BTC="1").snapshot(now_us).balances is None


def test_snapshot_when_only_the_total_is_told_then_nothing_of_it_is_free() -> None:
    account = binance()
    account._client.fetch_balance = lambda *_arguments: {"total": {"USDT": "5"}, "USDT": {"total": "5"}}
    account._client.last_response = {"balances": [1]}
    seen = account.snapshot(now_us)
    assert seen.balances == (VenueBalance("USDT", D(0), D(5), D(5)),)
    assert "does not tell what of USDT is free" in seen.problems[0]
