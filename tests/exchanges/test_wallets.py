"""Wallets: only names that an exchange knows are asked for, and what a wallet shows is read or unknown."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import ccxt
import pytest

from ledger_sizer.exchanges.snapshot import VenueBalance
from ledger_sizer.exchanges.wallets import _NAMES, _ONE_ANSWER, _known_wallets, wallets_of
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import ExchangeAccountSettings
from tests.support.canned_session import canned_account
from tests.support.paper_clients import now_us

D = Decimal
TYPES = (
    *("spot", "swap", "future", "futures", "margin", "cross", "isolated", "option", "funding", "fund", "main"),
    *("linear", "inverse", "papi", "unified", "savings", "delivery", "trading", "contract", "wallet", "cash", "flex"),
)
KEYS = {"api_key": "k", "api_secret": "s", "retries_max": 0}


def settings_of(exchange: str, *wallets: str, **values: Any) -> ExchangeAccountSettings:
    return ExchangeAccountSettings(id=exchange, wallets=wallets, **values)


class _Asked(Exception):
    """ccxt has sent what it was meant to send."""


def asked_for(client: Any, parameters: dict[str, Any]) -> str:
    """What ccxt sends to read a wallet, but for a `type` that it hands on as it was given."""
    sent: list[str] = []

    def request(path: str, api: Any = "public", method: str = "GET", params: Any = None, *_: Any, **__: Any) -> Any:
        rest = {name: value for name, value in (params or {}).items() if name != "type" or value != parameters["type"]}
        sent.append(f"{api} {method} {path} {json.dumps(rest, sort_keys=True, default=str)}")
        if len(sent) > 5:
            raise _Asked
        return {}

    client.request = request
    try:
        client.fetch_balance(dict(parameters))
    except Exception as error:  # noqa: BLE001 - its parser meets an empty answer
        return "\n".join(sent) or type(error).__name__
    return "\n".join(sent)


def probe(exchange: str) -> Any:
    client = getattr(ccxt, exchange)({"walletAddress": "0x" + "1" * 40, "privateKey": "0x" + "1" * 64})
    for name in client.requiredCredentials:
        if not getattr(client, name):
            setattr(client, name, "key")
    client.markets, client.markets_by_id, client.currencies, client.currencies_by_id = {}, {}, {}, {}
    client.currencies = {code: {"id": code, "code": code} for code in ("BTC", "USD", "USDT")}
    client.load_markets = lambda *_: {}
    client.options["uta"] = False
    asked_for(client, {"type": "spot"})  # some sign in with their first call, or look what kind of account it is
    return client


def test_name_wallets_when_ccxt_reads_several_then_the_table_tells_them_apart() -> None:
    wrong = []
    for exchange in sorted(set(_NAMES) - _ONE_ANSWER):
        client = probe(exchange)
        asked = [asked_for(client, next(iter(group.values()))) for group in _known_wallets(settings_of(exchange))]
        wrong += [exchange] if len(set(asked)) < len(asked) else []
    assert not wrong


def test_name_wallets_when_ccxt_hands_every_type_to_one_call_then_no_name_is_known() -> None:
    several = set()
    for exchange in set(ccxt.exchanges) - set(_NAMES):
        client = probe(exchange)
        if len({asked_for(client, {"type": name}) for name in TYPES}) > 1:
            several.add(exchange)
    # These read another wallet than their own only by calls that they do not have.
    assert several == {"binanceus", "binanceusdm", "binancecoinm"}


@pytest.mark.parametrize(
    ("exchange", "wallets", "told"),
    [
        ("binance", ["Spot", "swap"], "binance has no wallet 'Spot'; it has spot, swap or future, inverse, margin"),
        ("binance", ["main"], "no wallet 'main'"),
        ("binance", ["cross"], "no wallet 'cross'"),
        ("binance", ["spot", "swap", "delivery"], "no wallet 'delivery'"),
        ("binance", ["savings"], "no wallet 'savings'"),
        ("binance", ["swap", "future"], "'swap' and 'future' are one wallet at binance, which would count twice"),
        ("okx", ["spot", "swap"], "'spot' and 'swap' are one wallet"),
        ("bybit", ["spot", "spot"], "'spot' and 'spot' are one wallet"),
        ("kraken", ["spot"], "kraken has no wallet 'spot'; it has one wallet; leave the setting empty"),
    ],
)
def test_open_account_when_a_wallet_is_none_of_the_exchange_then_it_is_refused_at_the_start(
    exchange: str, wallets: list[str], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told) as refused:
        wallets_of(settings_of(exchange, *wallets))
    assert refused.value.field == "wallets"


def test_read_wallets_when_none_are_named_then_the_two_of_binance_are_read_and_elsewhere_the_one_of_ccxt() -> None:
    found = {exchange: [one.name for one in wallets_of(settings_of(exchange))] for exchange in ccxt.exchanges}
    assert found.pop("binance") == ["spot", "swap"]
    assert set(map(tuple, found.values())) == {(None,)}
    portfolio_margin = settings_of("binance", options={"portfolioMargin": True})
    assert [one.name for one in wallets_of(portfolio_margin)] == ["papi", "spot"]


MARGIN = {
    "borrowEnabled": True, "marginLevel": "11.6", "totalNetAssetOfBtc": "0.6",
    "userAssets": [
        {"asset": "BTC", "borrowed": "0.4", "free": "0.1", "interest": "0.001", "locked": "0", "netAsset": "-0.301"},
        {"asset": "USDT", "borrowed": "0", "free": "50000", "interest": "0", "locked": "10", "netAsset": "50010"},
    ],
}  # fmt: skip
ISOLATED = {
    "assets": [
        {"symbol": "BTCUSDT",
         "baseAsset": {"asset": "BTC", "borrowed": "0", "free": "0.2", "interest": "0", "locked": "0"},
         "quoteAsset": {"asset": "USDT", "borrowed": "5", "free": "11", "interest": "1", "locked": "0"}},
    ]
}  # fmt: skip


def balances_of(settings: ExchangeAccountSettings, answers: dict[str, Any]) -> tuple[Any, list[str], tuple[str, ...]]:
    """The balances, the hosts and paths asked for, and the problems."""
    account, session = canned_account(settings, answers)
    account._client.markets, account._client.markets_by_id, account._client.load_markets = {}, {}, lambda *_: {}
    seen = account.snapshot(now_us)
    account.close()
    return seen.balances, session.asked, tuple(problem for problem in seen.problems if "balances" in problem)


@pytest.mark.parametrize(
    ("wallet", "answers", "expected"),
    [
        ("margin", {"/margin/account": MARGIN}, [("BTC", "-0.301"), ("USDT", "50010")]),
        ("isolated", {"/margin/isolated/account": ISOLATED}, [("BTC", "0.2"), ("USDT", "5")]),
        ("funding", {"/asset/get-funding-asset": [
            {"asset": "USDT", "free": "1", "locked": "0", "freeze": "2", "withdrawing": "0"}]}, [("USDT", "3")]),
        ("inverse", {"dapi.binance.com/dapi/v1/account": {"assets": [
            {"asset": "BTC", "walletBalance": "0.5", "marginBalance": "0.5", "availableBalance": "0.4",
             "initialMargin": "0.1", "updateTime": 1}], "positions": []}}, [("BTC", "0.5")]),
    ],
)  # fmt: skip
def test_read_wallets_when_binance_has_more_of_them_then_each_is_read_net_of_what_is_owed(
    wallet: str, answers: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    balances, _, problems = balances_of(settings_of("binance", wallet, **KEYS), answers)
    assert not problems
    assert [(one.asset, str(one.total)) for one in balances] == expected


PAPI = [
    {"asset": "USDT", "totalWalletBalance": "1100", "crossMarginAsset": "100", "crossMarginBorrowed": "10",
     "crossMarginFree": "97", "crossMarginInterest": "1", "crossMarginLocked": "3", "umWalletBalance": "1000",
     "umUnrealizedPNL": "-20.5", "cmWalletBalance": "0", "cmUnrealizedPNL": "", "updateTime": 1617939110373},
    {"asset": "BTC", "totalWalletBalance": "0.5", "crossMarginAsset": "0.5", "crossMarginBorrowed": "0",
     "crossMarginFree": "0.5", "crossMarginInterest": "0", "crossMarginLocked": "0", "umWalletBalance": "0",
     "umUnrealizedPNL": "0", "cmWalletBalance": "0", "cmUnrealizedPNL": "0", "updateTime": 1617939110373},
]  # fmt: skip
SPOT = {"accountType": "SPOT", "balances": [{"asset": "BTC", "free": "0.25", "locked": "0.05"}]}


def test_read_wallets_when_binance_has_portfolio_margin_then_papi_and_spot_are_added_up() -> None:
    answers = {
        "/papi/v1/balance": PAPI,
        "/papi/v1/account": {"uniMMR": "9", "accountEquity": "9000", "accountInitialMargin": "250"},
        "/api/v3/account": SPOT,
    }
    balances, asked, problems = balances_of(settings_of("binance", options={"portfolioMargin": True}, **KEYS), answers)
    assert not problems
    assert balances == (
        VenueBalance("BTC", D("0.75"), D("0.05"), D("0.8")),
        VenueBalance("USDT", D("815.5"), D("253"), D("1068.5")),
    )
    assert [path for path in asked if "/papi/" not in path and not path.endswith("/api/v3/account")] == []


def test_read_wallets_when_amounts_are_shown_and_none_is_read_then_the_balances_are_unknown() -> None:
    # A wallet that this ccxt reads in another form than the exchange's: the answer's rows have other names.
    moved = {"balances": [], "coins": [{"asset": "BTC", "free": "0.25"}]}
    balances, _, problems = balances_of(settings_of("binance", "spot", **KEYS), {"/api/v3/account": moved})
    assert balances is None
    assert problems[0].endswith("the answer about the wallet 'spot' has amounts, none of which is read")
    empty = {"balances": [], "updateTime": 1_700_000_000_000, "makerCommission": 10, "uid": 7}
    balances, _, problems = balances_of(settings_of("binance", "spot", **KEYS), {"/api/v3/account": empty})
    assert (balances, problems) == ((), ())


def test_read_wallets_when_two_names_are_one_wallet_of_a_unified_account_then_it_counts_once() -> None:
    state = {"balances": [{"coin": "USDC", "token": 0, "hold": "10.0", "total": "1000.0", "entryNtl": "0.0"}]}
    settings = settings_of("hyperliquid", "spot", "swap", wallet_address="0x" + "1" * 40, retries_max=0)
    account, _ = canned_account(settings, {"/info": state})
    account._client.options["enableUnifiedMargin"] = True
    account._client.markets, account._client.load_markets = {}, lambda *_: {}
    balances = account.snapshot(now_us).balances
    assert balances == (VenueBalance("USDC", D(990), D(10), D(1000)),)


FILTERS = [
    {"filterType": "PRICE_FILTER", "tickSize": "0.1"},
    {"filterType": "LOT_SIZE", "stepSize": "0.001", "minQty": "0.001", "maxQty": "100"},
]
PERPETUAL = {
    "symbol": "BTCUSDT", "pair": "BTCUSDT", "contractType": "PERPETUAL", "status": "TRADING", "baseAsset": "BTC",
    "quoteAsset": "USDT", "marginAsset": "USDT", "pricePrecision": 1, "quantityPrecision": 3, "filters": FILTERS,
}  # fmt: skip
UM_POSITION = {
    "symbol": "BTCUSDT", "positionSide": "BOTH", "positionAmt": "-0.02", "entryPrice": "50000", "markPrice": "50100",
    "unRealizedProfit": "-2", "leverage": "5", "notional": "-1002", "liquidationPrice": "0", "updateTime": 1,
}  # fmt: skip


def test_snapshot_when_binance_has_portfolio_margin_then_positions_are_asked_for_there() -> None:
    answers = {
        "/fapi/v1/exchangeInfo": {"symbols": [PERPETUAL]},
        "/exchangeInfo": {"symbols": []},
        "/papi/v1/um/positionRisk": [UM_POSITION],
        "/leverageBracket": [{"symbol": "BTCUSDT", "brackets": []}],
    }
    account, session = canned_account(settings_of("binance", options={"portfolioMargin": True}, **KEYS), answers)
    seen = account.snapshot(now_us)
    account.close()
    assert [(one.symbol, one.side, one.quantity) for one in seen.positions or ()] == [
        ("BTC/USDT:USDT", "short", D("0.02"))
    ], seen.problems
    assert not any("positionRisk" in path and "/papi/" not in path for path in session.asked)
