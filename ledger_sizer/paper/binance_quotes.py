"""Publishes prices in Binance's format: candles, order book, trades, funding rates. Spot (/api), futures (/fapi)."""

import json
from collections.abc import Mapping
from typing import Any

from ledger_sizer.paper.accounts import RequestRefused, now_ms
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, PublicHandler, text_of
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.quotes import (
    book,
    candles_of,
    funding_times,
    last_day,
    limit_of,
    next_funding_ms,
    open_interest,
    public_trades,
    whole,
)

_FAMILIES = ("api", "fapi", "dapi")


def family_of(market: Market) -> str:
    """Return the first part of the paths of a market's calls."""
    return "api" if market.kind == "spot" else "dapi" if market.inverse else "fapi"


class BinanceQuotes:
    """Binance's public calls about prices. routes: handlers by (method, path)."""

    def __init__(self, exchange: PaperExchange) -> None:
        self._exchange = exchange
        self.routes: dict[tuple[str, str], PublicHandler] = {}
        names: Mapping[str, PublicHandler] = {
            "klines": self._klines, "depth": self._depth, "trades": self._trades, "aggTrades": self._trades,
            "historicalTrades": self._trades, "ticker/bookTicker": self._book_tickers, "ticker/price": self._prices,
        }  # fmt: skip
        contracts: Mapping[str, PublicHandler] = {
            "markPriceKlines": self._klines, "indexPriceKlines": self._klines, "premiumIndex": self._premium_index,
            "fundingRate": self._funding_rates, "openInterest": self._open_interest,
        }  # fmt: skip
        for family in _FAMILIES:
            found = names if family == "api" else {**names, **contracts}
            version = "v3" if family == "api" else "v1"
            self.routes |= {("GET", f"/{family}/{version}/{name}"): handler for name, handler in found.items()}
        self.routes["GET", "/fapi/v2/ticker/price"] = self._prices
        self.routes["GET", "/fapi/v1/fundingInfo"] = lambda _request: []

    def _listed(self, request: ExchangeRequest) -> list[Market]:
        family = request.path.split("/")[1]
        return [market for market in self._exchange.markets.values() if family_of(market) == family]

    def _asked(self, request: ExchangeRequest) -> list[Market]:
        """Return the markets that a request names, or all. Raises `RequestRefused`."""
        one, several = request.arguments.get("symbol"), request.arguments.get("symbols")
        by_id = {market.id: market for market in self._listed(request)}
        if one is None and several is None:
            return list(by_id.values())
        names = [str(one)] if one is not None else json.loads(str(several))
        if not all(name in by_id for name in names):
            raise RequestRefused("unknown_symbol", "no such market")
        return [by_id[name] for name in names]

    def _market(self, request: ExchangeRequest) -> Market:
        wanted = request.arguments.get("symbol") or request.arguments.get("pair")
        for market in self._listed(request):
            if wanted == (market.id if "symbol" in request.arguments else market.id.partition("_")[0]):
                return market
        raise RequestRefused("unknown_symbol", "no such market")

    def _klines(self, request: ExchangeRequest) -> Any:
        market, interval = self._market(request), str(request.arguments.get("interval", ""))
        if not interval[:-1].isdigit():
            raise RequestRefused("bad_request", f"no interval {interval!r}")
        rows = candles_of(
            self._exchange, market, int(interval[:-1]), interval[-1], since_ms=whole(request, "startTime"),
            until_ms=whole(request, "endTime"), limit=limit_of(request, 500, 1000),
        )  # fmt: skip
        return [
            [one.begin_ms, *(text_of(number) for number in one[1:6]), one.end_ms - 1, text_of(one.turnover), 100,
             "0", "0", "0"]
            for one in rows
        ]  # fmt: skip

    def _depth(self, request: ExchangeRequest) -> Any:
        bids, asks = book(self._exchange, self._market(request), limit_of(request, 100, 1000))
        return {"lastUpdateId": now_ms(), "E": now_ms(), "T": now_ms(), "bids": bids, "asks": asks}

    def _trades(self, request: ExchangeRequest) -> Any:
        rows = public_trades(self._exchange, self._market(request), limit_of(request, 500, 1000))
        if request.path.endswith("/aggTrades"):
            return [
                {"a": one.id, "p": one.price, "q": one.quantity, "f": one.id, "l": one.id, "T": one.time_ms,
                 "m": one.side == "sell", "M": True}
                for one in rows
            ]  # fmt: skip
        return [
            {"id": one.id, "price": one.price, "qty": one.quantity, "quoteQty": "0", "time": one.time_ms,
             "isBuyerMaker": one.side == "sell"}
            for one in rows
        ]  # fmt: skip

    def _answer(self, request: ExchangeRequest, rows: list[dict[str, Any]]) -> Any:
        """Return one row as an object where a market was named, but a list of coin-margined ones."""
        return rows[0] if "symbol" in request.arguments and not request.path.startswith("/dapi/") else rows

    def _book_tickers(self, request: ExchangeRequest) -> Any:
        rows = []
        for market in self._asked(request):
            price = text_of(self._exchange.prices[market.base])
            row = {"symbol": market.id, "bidPrice": price, "bidQty": "1", "askPrice": price, "askQty": "1"}
            # ccxt tells the ticker of a contract from a spot one by its time.
            rows.append(row if market.kind == "spot" else {**row, "time": now_ms()})
        return self._answer(request, rows)

    def _prices(self, request: ExchangeRequest) -> Any:
        rows = []
        for market in self._asked(request):
            row = {"symbol": market.id, "price": text_of(self._exchange.prices[market.base])}
            rows.append(row if market.kind == "spot" else {**row, "time": now_ms()})
        return self._answer(request, rows)

    def _premium_index(self, request: ExchangeRequest) -> Any:
        rows = []
        for market in self._asked(request):
            price, dated = text_of(self._exchange.prices[market.base]), market.delivery_ms is not None
            rows.append({
                "symbol": market.id, "pair": market.id.partition("_")[0], "markPrice": price, "indexPrice": price,
                "estimatedSettlePrice": price, "interestRate": "0.0001", "time": now_ms(),
                "lastFundingRate": "" if dated else text_of(self._exchange.funding_rate(market)),
                "nextFundingTime": 0 if dated else next_funding_ms(),
            })  # fmt: skip
        return self._answer(request, rows)

    def _funding_rates(self, request: ExchangeRequest) -> Any:
        market = self._market(request)
        rate, price = text_of(self._exchange.funding_rate(market)), text_of(self._exchange.prices[market.base])
        times = funding_times(whole(request, "startTime"), whole(request, "endTime"), limit_of(request, 100, 1000))
        return [{"symbol": market.id, "fundingTime": one, "fundingRate": rate, "markPrice": price} for one in times]

    def _open_interest(self, request: ExchangeRequest) -> Any:
        market = self._market(request)
        return {"symbol": market.id, "openInterest": open_interest(market), "time": now_ms()}


def binance_ticker(exchange: PaperExchange, market: Market) -> dict[str, Any]:
    """Return the row of a market in `ticker/24hr`."""
    price, day = text_of(exchange.prices[market.base]), last_day(exchange, market)
    row: dict[str, Any] = {
        "symbol": market.id, "lastPrice": price, "weightedAvgPrice": price, "openPrice": text_of(day.opening),
        "highPrice": text_of(day.high), "lowPrice": text_of(day.low), "priceChange": text_of(day.change),
        "priceChangePercent": text_of(day.change_ratio * 100), "volume": text_of(day.volume), "closeTime": now_ms(),
    }  # fmt: skip
    if market.inverse:
        return {**row, "pair": f"{market.base}USD", "baseVolume": text_of(day.volume)}
    row["quoteVolume"] = text_of(day.turnover)
    # Only spot tickers carry bid and ask.
    spot = {"bidPrice": price, "bidQty": "1", "askPrice": price, "askQty": "1", "prevClosePrice": price}
    return row | spot if market.kind == "spot" else row
