"""Writes tickers in each exchange's format: the one price per asset as last price, bid and ask."""

import json
from collections.abc import Iterator
from typing import Any

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import RequestRefused, now_ms
from ledger_sizer.paper.binance_quotes import binance_ticker, family_of
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, contracts, text_of
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.quotes import last_day, next_funding_ms


def _prices(exchange: PaperExchange, markets: list[Market]) -> Iterator[tuple[Market, str]]:
    return ((market, text_of(exchange.prices[market.base])) for market in markets)


def binance_tickers(exchange: PaperExchange, request: ExchangeRequest) -> Any:
    """Answer `ticker/24hr`: `symbol` names one market, `symbols` (spot only) a JSON list; all without either.

    One market of spot or USDT-margined futures is an object, a coin-margined one a list, as at Binance.
    """
    family = request.path.split("/")[1]
    mine = [market for market in exchange.markets.values() if family_of(market) == family]
    one, several = request.arguments.get("symbol"), request.arguments.get("symbols")
    if one is not None or several is not None:
        by_id = {market.id: market for market in mine}
        asked = [one] if one is not None else json.loads(str(several))
        if not all(name in by_id for name in asked):
            raise RequestRefused("unknown_symbol", "no such market")
        mine = [by_id[name] for name in asked]
    rows = [binance_ticker(exchange, market) for market in mine]
    return rows if one is None or family == "dapi" else rows[0]


def bybit_tickers(exchange: PaperExchange, category: str, market_id: str | None, markets: list[Market]) -> Any:
    """Return the rows of `/v5/market/tickers`: `markets` are those of the category. Raises `RequestRefused`."""
    mine = [market for market in markets if market_id in (None, market.id)]
    if market_id is not None and not mine:
        raise RequestRefused("unknown_symbol", f"no {category} market {market_id!r}")
    rows = []
    for market, price in _prices(exchange, mine):
        day = last_day(exchange, market)
        row = {"symbol": market.id, "lastPrice": price, "bid1Price": price, "bid1Size": "1", "ask1Price": price,
               "ask1Size": "1", "prevPrice24h": text_of(day.opening), "price24hPcnt": text_of(day.change_ratio),
               "highPrice24h": text_of(day.high), "lowPrice24h": text_of(day.low),
               "turnover24h": text_of(day.turnover), "volume24h": text_of(day.volume)}  # fmt: skip
        # ccxt tells a contract's ticker from a spot one by its open interest.
        contract = {"markPrice": price, "indexPrice": price, "openInterest": "0", "openInterestValue": "0",
                    "fundingRate": text_of(exchange.funding_rate(market)),
                    "nextFundingTime": str(next_funding_ms())}  # fmt: skip
        rows.append(row if category == "spot" else row | contract)
    return rows


def okx_tickers(exchange: PaperExchange, kind: str, markets: list[Market]) -> list[dict[str, Any]]:
    """Return the rows of `/api/v5/market/tickers` and `ticker` for markets of one `instType`."""
    rows = []
    for market, price in _prices(exchange, markets):
        day = last_day(exchange, market)
        with exact_arithmetic():
            size = contracts(market, day.volume)
        rows.append({
            "instType": kind, "instId": market.id, "last": price, "lastSz": "0", "bidPx": price, "bidSz": "1",
            "askPx": price, "askSz": "1", "open24h": text_of(day.opening), "high24h": text_of(day.high),
            "low24h": text_of(day.low), "vol24h": text_of(size), "ts": str(now_ms()),
            # In the quote coin of spot, in the base coin of contracts.
            "volCcy24h": text_of(day.turnover if market.kind == "spot" else day.volume),
        })  # fmt: skip
    return rows
