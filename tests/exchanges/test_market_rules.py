"""Conversion of ccxt's markets to market rules: all precision modes, missing limits, refused markets."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt
import pytest

from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.exchanges.client import make_client
from ledger_sizer.exchanges.market_rules import UNBOUNDED_QTY, market_rules_of
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.paper.binance import Binance
from ledger_sizer.paper.bybit import Bybit
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, respond
from ledger_sizer.paper.okx import Okx

D = Decimal
SHARED = Path(os.environ.get("LEDGER_SIZER_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data") / "venues"


def client_with(exchange: str, mode: int | None = None, **market: Any) -> Any:
    """Return a real ccxt client with one market: BTC/USDT with these fields, as the exchange's parser writes them."""
    client = make_client(ExchangeAccountSettings(id=exchange))
    if mode is not None:
        client.precisionMode = mode
    given = {
        "id": "BTCUSDT", "symbol": "BTC/USDT", "base": "BTC", "quote": "USDT", "baseId": "BTC", "quoteId": "USDT",
        "type": "spot", "spot": True, "swap": False, "contract": False, "active": True, "info": {},
        "precision": {"amount": "0.001", "price": "0.01"},
        "limits": {"amount": {"min": "0.002", "max": "50"}, "cost": {"min": "5", "max": None}},
    }  # fmt: skip
    client.set_markets([client.safe_market_structure(given | market)])
    return client


def only(client: Any) -> MarketRules:
    (found,) = market_rules_of(client)
    return found


SWAP = {
    "symbol": "BTC/USDT:USDT", "type": "swap", "spot": False, "swap": True, "contract": True, "linear": True,
    "inverse": False, "settle": "USDT", "contractSize": "0.01",
}  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "amount", "price", "step", "tick"),
    [
        (ccxt.TICK_SIZE, "0.25", "0.5", "0.25", "0.5"),
        (ccxt.TICK_SIZE, "1E-7", "0.1", "0.0000001", "0.1"),
        (ccxt.DECIMAL_PLACES, 4, 2, "0.0001", "0.01"),
        (ccxt.DECIMAL_PLACES, 0, 0, "1", "1"),
        (ccxt.DECIMAL_PLACES, -2, 1, "100", "0.1"),
    ],
)
def test_read_rules_when_precision_is_stated_in_any_mode_then_the_step_is_exact(
    mode: int, amount: Any, price: Any, step: str, tick: str
) -> None:
    limits = {"amount": {"min": None, "max": "5000"}}
    rules = only(client_with("bybit", mode, precision={"amount": amount, "price": price}, limits=limits))
    assert rules.instrument is not None, rules.refused
    assert (rules.instrument.qty_step, rules.instrument.tick_size) == (D(step), D(tick))
    assert rules.instrument.min_qty == D(step), "nothing below one step can be ordered"


@pytest.mark.parametrize(("most", "step"), [("50", "0.001"), ("999999", "10"), ("0.5", "0.00001")])
def test_read_rules_when_precision_is_significant_digits_then_the_step_fits_the_largest_order(
    most: str, step: str
) -> None:
    limits = {"amount": {"min": "0.00001", "max": most}}
    client = client_with("bybit", ccxt.SIGNIFICANT_DIGITS, precision={"amount": 5, "price": 5}, limits=limits)
    rules = only(client)
    assert rules.instrument is not None, rules.refused
    assert rules.instrument.qty_step == D(step)
    largest = rules.instrument.max_qty // D(step) * D(step)
    assert D(client.amount_to_precision("BTC/USDT", f"{largest:f}")) == largest, "ccxt would not cut it"


def test_read_rules_when_significant_digits_have_no_maximum_then_the_market_is_refused() -> None:
    client = client_with("bybit", ccxt.SIGNIFICANT_DIGITS, precision={"amount": 5, "price": 5}, limits={})
    assert only(client).refused == "quantities have significant digits and no maximum, so no one step fits"


def test_read_rules_when_an_exchange_cuts_quantities_its_own_way_then_its_own_rounding_is_asked() -> None:
    client = client_with("bitfinex", precision={"amount": 8, "price": 5}, limits={})
    assert client.precisionMode == ccxt.SIGNIFICANT_DIGITS
    rules = only(client)
    assert rules.instrument is not None, rules.refused
    assert rules.instrument.qty_step == D("0.00000001")


def test_read_rules_when_limits_are_missing_then_nothing_is_invented() -> None:
    rules = only(client_with("bybit", limits={"amount": {"min": None, "max": None}, "cost": {"min": None}}))
    assert rules.instrument is not None
    assert rules.instrument.max_qty == UNBOUNDED_QTY
    assert (rules.instrument.min_qty, rules.instrument.min_notional) == (D("0.001"), 0)


@pytest.mark.parametrize(
    ("exchange", "market", "most"),
    [
        ("binance", {"limits": {"amount": {"min": "1", "max": "50"}, "market": {"min": "2", "max": "20"}}}, "20"),
        ("bybit", {"info": {"lotSizeFilter": {"maxMktOrderQty": "10"}}}, "10"),
        ("bybit", {"info": {"lotSizeFilter": {"maxMarketOrderQty": "11"}}}, "11"),
        ("okx", SWAP | {"info": {"maxMktSz": "12"}}, "12"),
        ("okx", {"info": {"maxMktSz": "1"}}, "50"),
    ],
    ids=["binance", "bybit-swap", "bybit-spot", "okx-swap", "okx-spot-is-in-usdt"],
)
def test_read_rules_when_market_orders_have_a_lower_maximum_then_it_binds(
    exchange: str, market: dict[str, Any], most: str
) -> None:
    rules = only(client_with(exchange, **market))
    assert rules.instrument is not None, rules.refused
    assert rules.instrument.max_qty == D(most)
    if exchange == "binance":
        assert rules.instrument.min_qty == 2


@pytest.mark.parametrize(
    ("market", "reason"),
    [
        (SWAP | {"inverse": True, "linear": False, "settle": "BTC"}, "inverse contract: it is settled in its base"),
        (SWAP | {"linear": False}, "quanto"),
        (SWAP | {"contractSize": None}, "states no contract size"),
        ({"quote": "EUR"}, "quoted in EUR, not in a dollar"),
        ({"precision": {"amount": None, "price": "0.1"}}, "states no quantity step"),
        ({"limits": {"amount": {"min": "5", "max": "1"}}}, "max_qty 1 is below min_qty 5"),
        ({"limits": {"amount": {"min": 0.1, "max": "1"}}}, "a float came from ccxt: 0.1"),
    ],
)
def test_read_rules_when_a_market_cannot_be_used_then_it_is_listed_with_the_reason(
    market: dict[str, Any], reason: str
) -> None:
    rules = only(client_with("bybit", **market))
    assert rules.instrument is None
    assert reason in (rules.refused or "")


@pytest.mark.parametrize(("active", "open_"), [(True, True), (False, False), (None, True)])
def test_read_rules_when_a_market_is_closed_then_its_rules_stay_known(active: bool | None, open_: bool) -> None:
    rules = only(client_with("bybit", active=active))
    assert (rules.active, rules.instrument is not None) == (open_, True)


RECORDED = [
    ("bybit/http_get_instruments_spot.json", Bybit, "/v5/market/instruments-info", "category=spot", ("result", "list")),
    ("bybit/http_get_instruments_linear.json", Bybit, "/v5/market/instruments-info", "category=linear",
     ("result", "list")),
    ("okx/http_get_instruments_spot.json", Okx, "/api/v5/public/instruments", "instType=SPOT", ("data",)),
    ("okx/http_get_instruments_swap.json", Okx, "/api/v5/public/instruments", "instType=SWAP", ("data",)),
    ("binance/exchange_info_response.json", Binance, "/api/v3/exchangeInfo", "", ("symbols",)),
]  # fmt: skip


@pytest.mark.parametrize(("file", "dialect", "path", "query", "rows"), RECORDED, ids=[case[0] for case in RECORDED])
def test_answer_rules_when_the_real_exchange_was_recorded_then_the_paper_venue_has_the_same_fields(
    file: str, dialect: Any, path: str, query: str, rows: tuple[str, ...]
) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no recorded answers of exchanges at {SHARED}; set LEDGER_SIZER_SHARED_DATA to their folder")
    venue = file.partition("/")[0]
    recorded: Any = json.loads((SHARED / file).read_text())
    answer = respond(dialect(PaperExchange(venue)), ExchangeRequest("GET", path, query, {}, ""))  # type: ignore[arg-type]
    assert answer is not None
    ours = answer.document
    for name in rows:
        recorded, ours = recorded[name], ours[name]
    # Recordings of different years differ. The fields that ccxt reads must be in both, with the same type.
    shared = recorded[0].keys() & ours[0].keys()
    read = {"bybit": {"symbol", "status", "baseCoin", "lotSizeFilter", "priceFilter"},
            "okx": {"instId", "lotSz", "minSz", "tickSz", "ctVal", "state", "settleCcy", "maxMktSz", "uly"},
            "binance": {"symbol", "status", "baseAsset", "quoteAsset", "filters"}}[venue]  # fmt: skip
    assert read <= shared
    assert {name: type(recorded[0][name]) for name in read} == {name: type(ours[0][name]) for name in read}
