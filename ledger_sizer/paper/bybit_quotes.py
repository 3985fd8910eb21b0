"""Publishes prices in Bybit's format: candles, order book, trades, funding rates, risk limits, coins."""

from collections.abc import Callable, Mapping
from typing import Any

from ledger_sizer.paper.accounts import RequestRefused, now_ms
from ledger_sizer.paper.exchange import LEVERAGE_MAX, PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, PublicHandler, text_of
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.quotes import (
    MAINTENANCE_RATE,
    TIER_NOTIONAL,
    book,
    candles_of,
    funding_times,
    limit_of,
    open_interest,
    public_trades,
    whole,
)

_UNITS = {"D": "d", "W": "w", "M": "M"}


def bybit_quotes(
    exchange: PaperExchange, success: Callable[[Any], Any], category_of: Callable[[Market], str]
) -> Mapping[tuple[str, str], PublicHandler]:
    """Return Bybit's public calls about prices."""

    def market_of(request: ExchangeRequest) -> Market:
        wanted = (request.arguments.get("category", "linear"), request.arguments.get("symbol"))
        for market in exchange.markets.values():
            if wanted == (category_of(market), market.id):
                return market
        raise RequestRefused("unknown_symbol", f"no market {wanted[1]!r} in {wanted[0]!r}")

    def klines(request: ExchangeRequest) -> Any:
        market, interval = market_of(request), str(request.arguments.get("interval"))
        rows = candles_of(
            exchange, market, int(interval) if interval.isdigit() else 1, _UNITS.get(interval, "m"),
            since_ms=whole(request, "start"), until_ms=whole(request, "end"), limit=limit_of(request, 200, 1000),
        )  # fmt: skip
        listed = [[str(one.begin_ms), *(text_of(number) for number in one[1:7])] for one in reversed(rows)]
        if not request.path.endswith("/kline"):
            listed = [row[:5] for row in listed]  # mark and index prices have no volume
        return success({"category": category_of(market), "symbol": market.id, "list": listed})

    def order_book(request: ExchangeRequest) -> Any:
        market = market_of(request)
        bids, asks = book(exchange, market, limit_of(request, 25, 1000))
        return success({"s": market.id, "b": bids, "a": asks, "ts": now_ms(), "u": now_ms(), "seq": now_ms()})

    def trades(request: ExchangeRequest) -> Any:
        market = market_of(request)
        rows = [
            {"execId": str(one.id), "symbol": market.id, "price": one.price, "size": one.quantity,
             "side": one.side.capitalize(), "time": str(one.time_ms), "isBlockTrade": False}
            for one in public_trades(exchange, market, limit_of(request, 60, 1000))
        ]  # fmt: skip
        return success({"category": category_of(market), "list": rows[::-1]})

    def funding_rates(request: ExchangeRequest) -> Any:
        market = market_of(request)
        times = funding_times(whole(request, "startTime"), whole(request, "endTime"), limit_of(request, 200, 200))
        rate = text_of(exchange.funding_rate(market))
        rows = [{"symbol": market.id, "fundingRate": rate, "fundingRateTimestamp": str(one)} for one in times]
        return success({"category": category_of(market), "list": rows[::-1]})

    def risk_limits(request: ExchangeRequest) -> Any:
        category, symbol = request.arguments.get("category"), request.arguments.get("symbol")
        rows = [
            {"id": 1, "symbol": market.id, "riskLimitValue": str(TIER_NOTIONAL), "isLowestRisk": 1,
             "maintenanceMargin": str(MAINTENANCE_RATE), "initialMargin": str(1 / LEVERAGE_MAX),
             "maxLeverage": str(LEVERAGE_MAX)}
            for market in exchange.markets.values()
            if category_of(market) == category and symbol in (None, market.id)
        ]  # fmt: skip
        return success({"category": category, "list": rows, "nextPageCursor": ""})

    def interest(request: ExchangeRequest) -> Any:
        market = market_of(request)
        rows = [{"openInterest": open_interest(market), "timestamp": str(now_ms())}]
        return success({"category": category_of(market), "symbol": market.id, "list": rows, "nextPageCursor": ""})

    return {
        ("GET", "/v5/market/open-interest"): interest,
        ("GET", "/v5/market/kline"): klines,
        ("GET", "/v5/market/mark-price-kline"): klines,
        ("GET", "/v5/market/index-price-kline"): klines,
        ("GET", "/v5/market/orderbook"): order_book,
        ("GET", "/v5/market/recent-trade"): trades,
        ("GET", "/v5/market/funding/history"): funding_rates,
        ("GET", "/v5/market/risk-limit"): risk_limits,
    }
