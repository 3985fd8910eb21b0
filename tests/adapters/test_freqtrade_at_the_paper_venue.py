"""Tests freqtrade's own exchange classes, live, at every paper venue: what its bot calls around a trade."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer.paper import PaperControl, PaperServer, ccxt_config
from tests.support.paper_clients import PERP, SPOT, VENUES

pytest.importorskip("freqtrade", reason="freqtrade is installed in the bots' environment only")

D = Decimal
MODES = {"spot": SPOT, "futures": PERP}


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer(spot_fee_rate=D("0.001"), swap_fee_rate=D("0.001")) as running:
        yield running


@pytest.fixture(params=[(venue, mode) for venue in VENUES for mode in MODES], ids=" ".join)
def exchange(
    server: PaperServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Any, str, PaperControl]]:
    """Return freqtrade's exchange, the pair it trades, and the control of its account."""
    from freqtrade.enums import CandleType, MarginMode, RunMode, TradingMode
    from freqtrade.resolvers import ExchangeResolver

    venue, mode = request.param
    control = PaperControl(server.url, venue, f"key-{request.node.name}")
    control.open_account()
    pricing = {"price_side": "same", "use_order_book": True, "order_book_top": 1}
    futures = mode == "futures"
    config = {
        "dry_run": False, "runmode": RunMode.LIVE, "stake_currency": "USDT", "timeframe": "5m",
        "datadir": tmp_path,
        "trading_mode": TradingMode(mode), "margin_mode": MarginMode.ISOLATED if futures else MarginMode.NONE,
        "candle_type_def": CandleType.get_default(mode), "entry_pricing": pricing, "exit_pricing": pricing,
        "exchange": {
            "name": venue, "key": control.api_key, "secret": "paper-secret", "password": "paper-passphrase",
            "enable_ws": False, "pair_whitelist": [MODES[mode]], "ccxt_config": ccxt_config(venue, server.url),
        },
    }  # fmt: skip
    (tmp_path / "futures").mkdir()
    found = ExchangeResolver.load_exchange(config, validate=True, load_leverage_tiers=futures)
    yield found, MODES[mode], control
    found.close()
    control.price("BTC", D(50_000))
    control.fills(at_once=True)


def order(exchange: Any, pair: str, side: str, kind: str, amount: float, rate: float, leverage: float) -> Any:
    return exchange.create_order(
        pair=pair, ordertype=kind, side=side, amount=amount, rate=rate, leverage=leverage,
        reduceOnly=side == "sell" and ":" in pair,
    )  # fmt: skip


def test_freqtrade_when_it_trades_then_prices_orders_fees_and_positions_are_what_happened(
    exchange: tuple[Any, str, PaperControl],
) -> None:
    freqtrade, pair, control = exchange
    futures, began = ":" in pair, datetime.now(UTC) - timedelta(seconds=5)
    leverage = 4.0 if futures else 1.0
    assert freqtrade.get_rate(pair, side="entry", is_short=False, refresh=True) == 50_000
    candles = freqtrade.refresh_latest_ohlcv([(pair, "5m", freqtrade._config["candle_type_def"])], cache=False)
    assert len(next(iter(candles.values()))) >= 99
    control.fills(at_once=False, kind="limit")
    entry = order(freqtrade, pair, "buy", "limit", 0.02, 50_000, leverage)
    control.fill(entry["id"], D("0.01"))
    partly = freqtrade.fetch_order(entry["id"], pair)
    assert (partly["status"], partly["filled"], partly["remaining"]) == ("open", 0.01, 0.01)
    cancelled = freqtrade.cancel_order_with_result(entry["id"], pair, 0.02)
    assert (cancelled["status"], cancelled["filled"]) == ("canceled", 0.01)
    fills = freqtrade.get_trades_for_order(entry["id"], pair, began)
    assert [(fill["amount"], fill["price"]) for fill in fills] == [(0.01, 50_000)]
    assert fills[0]["fee"]["cost"] == (0.5 if futures else 0.00001)
    if futures:
        (position,) = freqtrade.fetch_positions(pair)
        assert (position["contracts"] * position["contractSize"], position["side"]) == (0.01, "long")
        assert position["initialMargin"] == 125
        assert freqtrade.get_max_leverage(pair, 1_000) == 100
        assert position["liquidationPrice"] == 37_750
    else:
        assert freqtrade.get_balances()["BTC"]["total"] == 0.00999


def test_freqtrade_when_its_stop_loss_is_on_the_exchange_then_it_reads_that_it_sold(
    exchange: tuple[Any, str, PaperControl],
) -> None:
    freqtrade, pair, control = exchange
    if not freqtrade.get_option("stoploss_on_exchange"):
        pytest.skip("freqtrade keeps no stop loss on this exchange's spot markets")
    leverage = 4.0 if ":" in pair else 1.0
    order(freqtrade, pair, "buy", "market", 0.02, 50_000, leverage)
    kinds = freqtrade.get_option("stoploss_order_types")
    types = {"stoploss": "market" if "market" in kinds else "limit", "stoploss_on_exchange_limit_ratio": 0.9}
    amount = 0.02 if ":" in pair else 0.0199
    stop = freqtrade.create_stoploss(pair, amount, 45_000, types, side="sell", leverage=leverage)
    assert freqtrade.fetch_stoploss_order(stop["id"], pair)["status"] == "open"
    control.price("BTC", D(44_000))
    sold = freqtrade.fetch_stoploss_order(stop["id"], pair)
    assert (sold["status"], sold["filled"], sold["average"]) == ("closed", amount, 44_000)


def test_freqtrade_when_funding_was_paid_then_its_fees_are_those_of_the_exchange(
    exchange: tuple[Any, str, PaperControl],
) -> None:
    freqtrade, pair, control = exchange
    if ":" not in pair:
        pytest.skip("spot pays no funding")
    opened = datetime.now(UTC) - timedelta(hours=20)
    if freqtrade.id == "bybit":
        # It computes the fees from rates and mark prices: 2 or 3 payments of 0.0001 of about 1,000.
        assert 0.19 < -freqtrade.get_funding_fees(pair, 0.02, is_short=False, open_date=opened) < 0.31
    else:
        control.funding(pair, D("-0.75"))
        assert freqtrade.get_funding_fees(pair, 0.02, is_short=False, open_date=opened) == -0.75
