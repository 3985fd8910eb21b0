"""Prices of the coins that an account holds, from the exchange's tickers."""

import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from ledger_sizer.exchanges.balances import dollar_market
from ledger_sizer.exchanges.client import error_text
from ledger_sizer.exchanges.numbers_read import Unreadable, price_of
from ledger_sizer.exchanges.snapshot import VenueBalance, rounded_price
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.units import exact_arithmetic

_SECONDS_MAX = 20
"""How long a price is used again."""
_NAMED_MAX = 100
"""The most coins that are named in one call. Beyond that all tickers are asked for."""
_SINGLE_MAX = 50
"""The most coins that are asked one by one, where an exchange has no call for several."""


class SpotPrices:
    """Fetches prices for one account, and keeps each for some seconds. clock: monotonic seconds."""

    def __init__(self, client: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._kept: dict[str, tuple[float, Decimal]] = {}

    def of(self, balances: Iterable[VenueBalance]) -> tuple[dict[str, Decimal], list[str]]:
        """Return USD per coin of the coins with a dollar market here, and what went wrong, as text. Never raises."""
        wanted: dict[str, str] = {}
        for balance in balances:
            asset = balance.earns or balance.asset
            symbol = None if asset in DOLLARS else dollar_market(self._client.markets or {}, asset)
            if symbol is not None:
                wanted[symbol] = asset
        now = self._clock()
        self._kept = {symbol: kept for symbol, kept in self._kept.items() if now - kept[0] < _SECONDS_MAX}
        missing = [symbol for symbol in wanted if symbol not in self._kept]
        problems = []
        if missing:
            try:
                self._kept |= {symbol: (now, price) for symbol, price in self._fetch(missing).items()}
            except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
                problems.append(f"prices unknown: {type(error).__name__}: {error_text(error)}")
        found = {}
        for symbol, asset in wanted.items():
            factor, coin = split_factor(asset)
            if symbol in self._kept:
                with exact_arithmetic():
                    price = rounded_price(self._kept[symbol][1] / factor)
                if price is not None:
                    found[coin] = price
        return found, problems

    def _fetch(self, symbols: list[str]) -> dict[str, Decimal]:
        if self._client.has["fetchTickers"]:
            # Some exchanges write the names into the address, which has an end.
            all_of_them = len(symbols) > _NAMED_MAX
            tickers = self._client.fetch_tickers(*((None, {"type": "spot"}) if all_of_them else (symbols,)))
        else:
            tickers = {symbol: self._client.fetch_ticker(symbol) for symbol in symbols[:_SINGLE_MAX]}
        prices = {symbol: _price_in(tickers.get(symbol) or {}) for symbol in symbols}
        return {symbol: price for symbol, price in prices.items() if price is not None}


def _price_in(ticker: dict[str, Any]) -> Decimal | None:
    """Return the last price, else the bid. A number that cannot be read is no price."""
    for name in ("last", "close", "bid"):
        try:
            price = price_of(ticker.get(name))
        except Unreadable:
            continue
        if price is not None and price > 0:
            return price
    return None
