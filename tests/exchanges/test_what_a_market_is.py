"""What ccxt's markets say beyond their steps: kind, multiplier, largest order value, market buys by their cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, update

from ledger_sizer import LedgerSettings
from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.exchanges.client import make_client
from ledger_sizer.exchanges.instrument_cache import list_rules, record_rules, rules_history
from ledger_sizer.exchanges.market_rules import market_rules_of
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, MarketRules
from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.storage.database import make_engine
from ledger_sizer.storage.tables import InstrumentRow
from tests.exchanges.test_market_rules import SHARED, SWAP, client_with, only
from tests.support.canned_exchanges import CannedAccount, contract_market
from tests.support.clock import FakeClock
from tests.support.ledgers import opened
from tests.support.paper_clients import VENUES, account_at, now_us, trader_at

D = Decimal
PEPE = {**SWAP, "symbol": "1000PEPE/USDT:USDT", "base": "1000PEPE", "id": "1000PEPEUSDT", "contractSize": "1"}
FUTURE = {**SWAP, "symbol": "BTC/USDT:USDT-301227", "type": "future", "swap": False, "future": True}


def rules_of(exchange: str, **market: Any) -> InstrumentInfo:
    rules = only(client_with(exchange, **market))
    assert rules.instrument is not None, rules.refused
    assert rules.kind == rules.instrument.kind
    return rules.instrument


# --- kind, assets and multiplier ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("market", "kind", "base", "asset", "settle"),
    [
        ({}, "spot", "BTC", "BTC", None),
        (SWAP, "swap", "BTC", "BTC", "USDT"),
        (FUTURE, "future", "BTC", "BTC", "USDT"),
        (PEPE, "swap", "1000PEPE", "PEPE", "USDT"),
        ({"symbol": "1000SATS/USDT", "base": "1000SATS"}, "spot", "1000SATS", "SATS", None),
        ({"symbol": "币安人生/USDT", "base": "币安人生"}, "spot", "币安人生", "币安人生", None),
        ({"symbol": "1INCH/USDT", "base": "1INCH"}, "spot", "1INCH", "1INCH", None),
    ],
)
def test_read_rules_when_ccxt_lists_a_market_then_it_says_what_it_is(
    market: dict[str, Any], kind: str, base: str, asset: str, settle: str | None
) -> None:
    found = rules_of("binance", **market)
    assert (found.kind, found.base, found.asset, found.quote, found.settle) == (kind, base, asset, "USDT", settle)
    assert found.venue == "binance"
    assert found.multiplier == (1 if base == asset else 1000)
    found.require_usable()


def test_read_rules_when_a_contract_is_multiplied_then_its_unit_is_contract_size_times_factor() -> None:
    assert rules_of("binance", **PEPE).unit == 1000
    assert rules_of("kucoinfutures", **{**PEPE, "contractSize": "100"}).unit == 100_000
    million = {**PEPE, "symbol": "1MBABYDOGE/USDT:USDT", "base": "1MBABYDOGE"}
    assert rules_of("binance", **million).unit == 1_000_000


def test_read_rules_when_hyperliquid_names_a_thousand_with_k_then_its_own_name_tells_the_factor() -> None:
    market = {
        **SWAP,
        "symbol": "KPEPE/USDC:USDC",
        "base": "KPEPE",
        "baseName": "kPEPE",
        "quote": "USDC",
        "settle": "USDC",
    }
    found = rules_of("hyperliquid", **{**market, "contractSize": "1"})
    assert (found.base, found.asset, found.unit) == ("kPEPE", "PEPE", 1000)
    kava = {**market, "symbol": "KAVA/USDC:USDC", "base": "KAVA", "baseName": "KAVA", "contractSize": "1"}
    assert (rules_of("hyperliquid", **kava).asset, rules_of("hyperliquid", **kava).unit) == ("KAVA", 1)


def test_read_rules_when_deribit_lists_a_linear_contract_then_its_orders_are_in_coins() -> None:
    market = {**SWAP, "symbol": "BTC/USDC:USDC", "quote": "USDC", "settle": "USDC", "contractSize": "0.0001"}
    assert rules_of("deribit", **market).unit == 1
    assert rules_of("okx", **market).unit == D("0.0001")


@pytest.mark.parametrize(
    ("market", "reason"),
    [
        (FUTURE | {"inverse": True, "linear": False, "settle": "BTC"}, "inverse contract"),
        (FUTURE | {"linear": False, "inverse": False}, "quanto"),
        (FUTURE | {"contractSize": None}, "no contract size"),
    ],
)
def test_read_rules_when_a_future_cannot_be_used_then_it_is_listed_with_the_reason(
    market: dict[str, Any], reason: str
) -> None:
    rules = only(client_with("binance", **market))
    assert (rules.kind, rules.instrument) == ("future", None)
    assert reason in (rules.refused or "")


def test_read_rules_when_a_market_is_an_option_then_it_is_not_listed() -> None:
    option = FUTURE | {"symbol": "BTC/USDT:USDT-301227-50000-C", "type": "option", "future": False, "option": True}
    assert market_rules_of(client_with("binance", **option)) == []


# --- largest orders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "market", "most"),
    [
        ("binance", {"limits": {"amount": {"min": "1"}, "cost": {"min": "5", "max": "9000000"}}}, "9000000"),
        ("binance", {"limits": {"amount": {"min": "1"}, "cost": {"min": "5", "max": None}}}, None),
        ("binance", {"limits": {"amount": {"min": "1"}, "cost": {"min": "5", "max": "0"}}}, None),
        ("okx", {"info": {"maxLmtAmt": "20000000", "maxMktAmt": "1000000"}}, "1000000"),
        ("okx", SWAP | {"info": {"maxLmtAmt": "20000000", "maxMktAmt": ""}}, "20000000"),
        ("bybit", {"limits": {"cost": {"min": "5", "max": "4000000"}}}, "4000000"),
    ],
)
def test_read_rules_when_an_order_value_has_a_maximum_then_it_is_the_smaller_of_limit_and_market_orders(
    exchange: str, market: dict[str, Any], most: str | None
) -> None:
    assert rules_of(exchange, **market).max_notional == (None if most is None else D(most))


@pytest.mark.parametrize(
    ("venue", "file", "symbol", "max_qty", "max_notional", "unit"),
    [
        ("bybit", "http_get_instruments_linear.json", "BTC/USDT:USDT", "50", None, "1"),
        ("bybit", "http_get_instruments_spot.json", "BTC/USDT", "100", "1000000", "1"),
        ("okx", "http_get_instruments_swap.json", "BTC/USDT:USDT", "12000", "20000000", "0.01"),
        ("okx", "http_get_instruments_swap.json", "ETH/USDT:USDT", "20000", "20000000", "0.1"),
        ("okx", "http_get_instruments_spot.json", "BTC/USD", "9999999999", "1000000", "1"),
    ],
)
def test_read_rules_when_the_real_exchange_was_recorded_then_every_maximum_is_taken(
    venue: str, file: str, symbol: str, max_qty: str, max_notional: str | None, unit: str
) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no recorded answers of exchanges at {SHARED}; set LEDGER_SIZER_SHARED_DATA to their folder")
    answer = json.loads((SHARED / venue / file).read_text())
    client = make_client(ExchangeAccountSettings(id=venue))
    if venue == "okx":
        markets = client.parse_markets(answer["data"])
    else:
        category = "spot" if "spot" in file else "linear"
        answer["result"]["category"] = category  # the recording lacks it
        client.publicGetV5MarketInstrumentsInfo = lambda _parameters: answer
        fetch = client.fetch_spot_markets if category == "spot" else client.fetch_future_markets
        markets = fetch({"category": category})
    client.set_markets(markets)
    (rules,) = [one for one in market_rules_of(client) if one.symbol == symbol]
    assert rules.instrument is not None, rules.refused
    found = rules.instrument
    assert (found.max_qty, found.max_notional, found.unit) == (
        D(max_qty), None if max_notional is None else D(max_notional), D(unit),
    )  # fmt: skip


# --- market buys by their cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "by_cost"),
    [
        *((name, True) for name in ("gate", "htx", "bitget", "coinbase", "cryptocom", "poloniex", "xt", "toobit")),
        *((name, False) for name in ("binance", "bybit", "okx", "kraken", "kucoin", "mexc", "woo", "hashkey")),
    ],
)
def test_read_rules_when_ccxt_takes_the_cost_of_a_market_buy_then_the_market_says_so(
    exchange: str, by_cost: bool
) -> None:
    assert rules_of(exchange).buys_by_cost is by_cost
    assert rules_of(exchange, **SWAP).buys_by_cost is False, "contracts are ordered by their number"


def test_read_rules_when_an_option_of_ccxt_is_set_then_it_decides() -> None:
    gate = client_with("gate")
    gate.options["createMarketBuyOrderRequiresPrice"] = False
    assert not only(gate).instrument.buys_by_cost  # type: ignore[union-attr]
    okx = client_with("okx")
    okx.options["tgtCcy"] = "quote_ccy"
    assert only(okx).instrument.buys_by_cost  # type: ignore[union-attr]


# --- the record of rules -----------------------------------------------------------------------------------------


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url, LedgerSettings())
    yield engine
    engine.dispose()


def listed(venue: str, *markets: dict[str, Any]) -> list[MarketRules]:
    return [only(client_with(venue, **market)) for market in markets]


def test_record_when_rules_have_every_figure_then_they_are_read_back_and_are_no_change(engine: Engine) -> None:
    spot = {"limits": {"amount": {"min": "1"}, "cost": {"min": "5", "max": "9000000"}}}
    kava = {
        **SWAP,
        "symbol": "KPEPE/USDC:USDC",
        "base": "KPEPE",
        "baseName": "kPEPE",
        "quote": "USDC",
        "settle": "USDC",
    }
    found = [*listed("gate", spot, SWAP, FUTURE, PEPE), *listed("gate", kava)]
    record_rules(engine, "gate", found, 1_000)
    assert {one.rules for one in list_rules(engine, "gate")} == {*found}
    assert record_rules(engine, "gate", found, 2_000).same == len(found)


def test_record_when_futures_are_delivered_then_they_are_gone_and_the_answer_is_no_half_one(engine: Engine) -> None:
    dates = [FUTURE | {"symbol": f"BTC/USDT:USDT-30122{day}"} for day in range(4)]
    record_rules(engine, "binance", listed("binance", {}, SWAP, *dates), 1_000)
    changes = record_rules(engine, "binance", listed("binance", {}, SWAP, dates[0]), 2_000)
    assert len(changes.gone) == 3


def test_record_when_an_older_version_recorded_no_multiplier_then_it_is_refused_until_a_refresh(
    engine: Engine, database_url: str, clock: FakeClock
) -> None:
    pepe = {"symbol": "PEPE/USDT", "base": "PEPE"}
    found = listed("binance", pepe, PEPE)
    record_rules(engine, "binance", found, 1_000)
    old = json.dumps(
        {
            "min_qty": "1",
            "max_qty": "50",
            "qty_step": "1",
            "min_notional": "5",
            "tick_size": "0.01",
            "contract_size": "1",
        }
    )
    with engine.begin() as connection:
        connection.execute(update(InstrumentRow).values(rules=old))
    name = "binance:1000PEPE/USDT:USDT"
    refused = {one.rules.name: one.rules.refused for one in list_rules(engine)}
    assert refused["binance:PEPE/USDT"] is None, "a plain market of an older version is used on"
    cure = "ledger-sizer instruments refresh binance"
    assert cure in (refused[name] or "")
    markets = {"spot_instrument": "binance:PEPE/USDT", "perp_instrument": name, "price": D("0.00001")}
    with opened(database_url, clock) as ledger:
        with pytest.raises(InvalidRequest, match=f"{name} cannot be used: .*{cure}") as error:
            ledger.reserve(key="1", **markets)  # type: ignore[arg-type]
        assert error.value.field == "perp_instrument"
        assert ledger.portfolios() == []
        assert name in record_rules(engine, "binance", found, 2_000).changed
    assert {one.rules.name: one.rules.refused for one in list_rules(engine)}[name] is None
    assert [one.rules.instrument is not None for one in rules_history(engine, name)] == [True, True]


# --- three dialects of the paper venue ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as started:
        yield started


@pytest.mark.parametrize("venue", VENUES)
def test_snapshot_when_a_contract_counts_many_coins_then_the_position_is_told_in_coins(
    server: PaperServer, venue: str
) -> None:
    key = SecretStr(f"coins-{venue}")
    PaperControl(server.url, venue, key.get_secret_value()).open_account()
    account, trader = account_at(venue, server.url, api_key=key), trader_at(venue, server.url, api_key=key)
    rules = {one.symbol: one.instrument for one in account.instruments()}
    trader.load_markets()
    symbol = "PEPE/USDT:USDT" if venue == "okx" else "1000PEPE/USDT:USDT"
    for name, coins in ((symbol, D(100_000_000)), ("BTC/USDT:USDT-301227", D("0.02"))):
        instrument = rules[name]
        assert instrument is not None
        trader.create_order(name, "market", "sell", f"{coins / instrument.unit:f}")
    positions = {one.symbol: one for one in account.snapshot(now_us).positions or ()}
    pepe, future = positions[symbol], positions["BTC/USDT:USDT-301227"]
    assert (pepe.side, pepe.coins, pepe.coin_price) == ("short", D(100_000_000), D("0.00001"))
    assert pepe.quantity == (D(100_000_000) if venue == "okx" else D(100_000)), "in the exchange's unit of the base"
    assert (future.side, future.coins, future.coin_price) == ("short", D("0.02"), D(50_000))
    account.close()


DERIBIT = {"kind": "future", "direction": "buy", "mark_price": 50000, "floating_profit_loss": 0, "leverage": 10,
           "average_price": 40000, "initial_margin": 1, "maintenance_margin": 1, "size_currency": 0.003}  # fmt: skip
WEEX = {"side": "LONG", "size": "300", "openValue": "27", "marginType": "CROSSED", "separatedMode": "COMBINED",
        "leverage": "20", "unrealizePnl": "0", "liquidatePrice": "0", "isolatedMargin": "0"}  # fmt: skip
APEX = {"side": "LONG", "size": "0.003", "entryPrice": "40000", "leverage": "10", "customInitialMarginRate": "0.1"}
COUNTED = {
    "deribit, linear": ("deribit", "BTC/USDC:USDC", "BTC_USDC-PERPETUAL", "0.0001",
                        {"result": [{**DERIBIT, "instrument_name": "BTC_USDC-PERPETUAL", "size": 0.003}]}, "0.003"),
    "deribit, inverse": ("deribit", "BTC/USD:BTC", "BTC-PERPETUAL", "10",
                         {"result": [{**DERIBIT, "instrument_name": "BTC-PERPETUAL", "size": 200}]}, "0.005"),
    "weex": ("weex", "DOGE/USDT:USDT", "DOGEUSDT", "100", [{**WEEX, "symbol": "DOGEUSDT"}], "300"),
    "apex": ("apex", "BTC/USDT:USDT", "BTC-USDT", "0.001",
             {"data": {"positions": [{**APEX, "symbol": "BTC-USDT"}]}}, "0.003"),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_snapshot_when_an_exchange_counts_coins_or_dollars_then_its_contract_size_is_not_applied(name: str) -> None:
    venue, symbol, market_id, size, answer, coins = COUNTED[name]
    market = contract_market(symbol, market_id, size)
    account = CannedAccount(venue, {"osition": answer, "account": answer}, [market])
    seen = account.snapshot(now_us)
    assert [(one.symbol, one.side, one.coins) for one in seen.positions or ()] == [(symbol, "long", D(coins))]
    if market["linear"]:
        rules = only(account._client)
        assert rules.instrument is not None, rules.refused
        assert rules.instrument.contract_size == 1
