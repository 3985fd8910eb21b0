"""Publishes prices in OKX's format: candles, order book, trades, funding rates, position tiers. Sizes are contracts."""

import re
from collections.abc import Callable
from typing import Any

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import RequestRefused, now_ms
from ledger_sizer.paper.exchange import LEVERAGE_MAX, PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, PublicHandler, contracts, text_of
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.quotes import (
    FUNDING_MS,
    MAINTENANCE_RATE,
    TIER_NOTIONAL,
    book,
    candles_of,
    funding_times,
    limit_of,
    next_funding_ms,
    open_interest,
    public_trades,
    whole,
)

_UNITS = {"s": "s", "m": "m", "H": "h", "D": "d", "W": "w", "M": "M"}


class OkxQuotes:
    """OKX's public calls about prices. routes: handlers by (method, path)."""

    def __init__(
        self, exchange: PaperExchange, success: Callable[[list[Any]], Any], type_of: Callable[[Market], str]
    ) -> None:
        self._exchange, self._success, self._type_of = exchange, success, type_of
        names: dict[str, PublicHandler] = {
            "market/books": self._books, "market/trades": self._trades, "market/history-trades": self._trades,
            "public/funding-rate": self._funding_rate, "public/funding-rate-history": self._funding_rates,
            "public/mark-price": self._mark_price, "public/open-interest": self._open_interest,
            "public/position-tiers": self._tiers, "system/status": lambda _request: success([]),
        }  # fmt: skip
        for kind in ("candles", "index-candles", "mark-price-candles"):
            names |= {f"market/{kind}": self._candles, f"market/history-{kind}": self._candles}
        self.routes = {("GET", f"/api/v5/{name}"): handler for name, handler in names.items()}

    def _market(self, request: ExchangeRequest) -> Market:
        """Return the market that is named. A name of two parts is a spot market, or the index of a contract."""
        wanted = request.arguments.get("instId")
        for market in self._exchange.markets.values():
            if market.id == wanted or (market.kind == "swap" and market.id.rpartition("-")[0] == wanted):
                return market
        raise RequestRefused("unknown_symbol", "no such market")

    def _contracts(self, request: ExchangeRequest) -> list[Market]:
        """Return the contracts that a request is about: one by its name, or all."""
        if request.arguments.get("instId") not in (None, "ANY"):
            return [self._market(request)]
        return [market for market in self._exchange.markets.values() if self._type_of(market) == "SWAP"]

    def _candles(self, request: ExchangeRequest) -> Any:
        market, bar = self._market(request), re.fullmatch(r"(\d+)([smHDWM])(utc)?", str(request.arguments.get("bar")))
        if bar is None:
            raise RequestRefused("bad_request", "no such bar")
        before, after = whole(request, "before"), whole(request, "after")
        # Index and mark prices have no volume.
        plain = "index" not in request.path and "mark-" not in request.path
        rows = candles_of(
            self._exchange, market, int(bar[1]), _UNITS[bar[2]], since_ms=None if before is None else before + 1,
            until_ms=None if after is None else after - 1, limit=limit_of(request, 100, 300),
        )  # fmt: skip
        listed = []
        for one in reversed(rows):
            with exact_arithmetic():
                size = text_of(contracts(market, one.volume))
            volumes = [size, text_of(one.volume), text_of(one.turnover)]
            ended = "1" if one.end_ms <= now_ms() else "0"
            prices = [text_of(price) for price in one[1:5]]
            listed.append([str(one.begin_ms), *prices, *(volumes if plain else []), ended])
        return self._success(listed)

    def _books(self, request: ExchangeRequest) -> Any:
        sides = book(self._exchange, self._market(request), limit_of(request, 1, 400, "sz"))
        bids, asks = ([[price, size, "0", "1"] for price, size in side] for side in sides)
        return self._success([{"bids": bids, "asks": asks, "ts": str(now_ms())}])

    def _trades(self, request: ExchangeRequest) -> Any:
        market = self._market(request)
        rows = public_trades(self._exchange, market, limit_of(request, 100, 500))
        return self._success([
            {"instId": market.id, "side": one.side, "sz": one.quantity, "px": one.price, "tradeId": str(one.id),
             "ts": str(one.time_ms)}
            for one in reversed(rows)
        ])  # fmt: skip

    def _funding_rate(self, request: ExchangeRequest) -> Any:
        due = next_funding_ms()
        return self._success([
            {"instId": market.id, "instType": "SWAP", "fundingRate": text_of(self._exchange.funding_rate(market)),
             "fundingTime": str(due), "nextFundingRate": "", "nextFundingTime": str(due + FUNDING_MS),
             "ts": str(now_ms())}
            for market in self._contracts(request)
        ])  # fmt: skip

    def _funding_rates(self, request: ExchangeRequest) -> Any:
        market, before, after = self._market(request), whole(request, "before"), whole(request, "after")
        rate = text_of(self._exchange.funding_rate(market))
        times = funding_times(
            None if before is None else before + 1, None if after is None else after - 1, limit_of(request, 100, 400)
        )
        return self._success([
            {"instId": market.id, "instType": "SWAP", "fundingRate": rate, "realizedRate": rate,
             "fundingTime": str(one)}
            for one in reversed(times)
        ])  # fmt: skip

    def _mark_price(self, request: ExchangeRequest) -> Any:
        return self._success([
            {"instId": market.id, "instType": self._type_of(market), "ts": str(now_ms()),
             "markPx": text_of(self._exchange.prices[market.base])}
            for market in self._contracts(request)
        ])  # fmt: skip

    def _open_interest(self, request: ExchangeRequest) -> Any:
        return self._success([
            {"instId": market.id, "instType": self._type_of(market), "oi": open_interest(market), "ts": str(now_ms())}
            for market in self._contracts(request)
        ])  # fmt: skip

    def _tiers(self, request: ExchangeRequest) -> Any:
        families = str(request.arguments.get("instFamily", "")).split(",")
        kind = request.arguments.get("instType")
        rows = []
        for market in self._exchange.markets.values():
            family = market.id.rpartition("-")[0]
            if self._type_of(market) != kind or family not in families:
                continue
            with exact_arithmetic():
                size = contracts(market, TIER_NOTIONAL / self._exchange.prices[market.base])
            rows.append({
                "instFamily": family, "uly": family, "instId": "", "tier": "1", "minSz": "0",
                "maxSz": text_of(size.to_integral_value()), "mmr": str(MAINTENANCE_RATE),
                "imr": str(1 / LEVERAGE_MAX), "maxLever": str(LEVERAGE_MAX),
            })  # fmt: skip
        return self._success(rows)
