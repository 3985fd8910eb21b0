"""Exchange accounts: what stands there now, and the rules of what is traded there.

A part that could not be fetched whole is None, with the reason in words: unknown, never empty. So is a position this
package cannot count in base units.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from ledger_sizer.config import ExchangeAccountSettings, ExchangeSettings
from ledger_sizer.exchanges.client import carries_rows, make_client
from ledger_sizer.exchanges.market_rules import market_rules_of
from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance, VenuePosition
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

_WALLETS: dict[str, tuple[str, ...]] = {"binance": ("spot", "swap")}
"""Exchanges that keep spot and derivatives in wallets of their own; the balances of all are added up."""

_DERIVATIVES = ("swap", "future", "option")
_BYBIT_SETTLES = frozenset({"USDT", "USDC"})
"""Asked for whatever the loaded markets say: an answer without its markets would leave no currency to ask for."""

_PAGES_MAX = 1000
_MARKETS_SECONDS_MAX = 3600
"""Markets are loaded anew after this time: with an old contract size every position would be another one."""

_Part = TypeVar("_Part")


class Unreadable(Exception):
    """The exchange answered, but not in a way that can be relied on."""


class ExchangeAccount:
    """One account at one exchange, read through ccxt. Not for several threads at once: calls wait for each other.

    venue: the ccxt exchange id. account: the settings' name for it. portfolio: whose positions stand in it.
    """

    def __init__(self, settings: ExchangeAccountSettings) -> None:
        self.venue = settings.id
        self.account = settings.account
        self.portfolio = settings.portfolio
        self._client = make_client(settings)
        self._wallets: tuple[str | None, ...] = settings.wallets or _WALLETS.get(settings.id, (None,))
        self._lock = threading.Lock()
        self._loaded_at = float("-inf")

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """Positions and balances as the exchange shows them now. Never raises for what the exchange does."""
        with self._lock:
            begun_us = now_us()
            problems: list[str] = []
            positions = self._part("positions", self._positions, problems)
            balances = self._part("balances", self._balances, problems)
            return Snapshot(self.venue, self.account, begun_us, now_us(), positions, balances, tuple(problems))

    def instruments(self) -> list[MarketRules]:
        """The rules of every spot and swap market, loaded anew. Raises `Unavailable`."""
        with self._lock:
            try:
                self._load_markets()
                return market_rules_of(self._client)
            except Exception as error:  # noqa: BLE001 - an answer of unforeseen shape breaks ccxt's parsers in any way
                raise Unavailable(f"{self.venue} did not give its market rules: {_told(error)}") from None

    def close(self) -> None:
        """Close the connections. It can be used again afterwards, but should not be."""
        self._client.close()

    def _part(self, name: str, fetch: Callable[[], _Part], problems: list[str]) -> _Part | None:
        try:
            return fetch()
        except Exception as error:  # noqa: BLE001 - an answer of unforeseen shape breaks ccxt's parsers in any way
            problem = f"{self.venue} {self.account}: {name} unknown: {type(error).__name__}: {_told(error)}"
            log.warning("exchange.fetch_failed", venue=self.venue, account=self.account, part=name, problem=problem)
            problems.append(problem)
            return None

    # --- positions -------------------------------------------------------------------------------

    def _positions(self) -> tuple[VenuePosition, ...]:
        has = self._client.has
        if not has["fetchPositions"] and all(has[kind] is False for kind in _DERIVATIVES):
            return ()  # known: there is nowhere to have one. Where ccxt does not say (None), it stays unknown
        if time.monotonic() - self._loaded_at >= _MARKETS_SECONDS_MAX:
            self._load_markets()
        rows = [row for row in self._position_rows() if _figure(row.get("contracts"), "contracts") != 0]
        if not all(self._is_contract(row.get("symbol")) for row in rows):
            self._load_markets()  # listed since the rules were loaded, or those came without their markets
            rows = [row for row in self._position_rows() if _figure(row.get("contracts"), "contracts") != 0]
        return _merged(self._position(row) for row in rows)

    def _load_markets(self) -> None:
        self._client.load_markets(True)
        self._loaded_at = time.monotonic()

    def _position_rows(self) -> list[dict[str, Any]]:
        """All rows of all pages."""
        rows: list[dict[str, Any]] = []
        for arguments in self._position_calls():
            cursors: set[str] = set()
            while True:
                rows += self._client.fetch_positions(None, dict(arguments))
                if not carries_rows(self.venue, self._client.last_answer):
                    raise Unreadable("an answer without rows")
                cursor = self._next_cursor()
                if not cursor:
                    break
                if cursor in cursors or len(cursors) >= _PAGES_MAX:
                    raise Unreadable(f"the pages do not end (cursor {cursor!r})")
                cursors.add(cursor)
                arguments["cursor"] = cursor
        return rows

    def _position_calls(self) -> list[dict[str, str]]:
        """Bybit lists the positions of one settlement currency at a time, others all of them."""
        if self.venue != "bybit":
            return [{}]
        markets = self._client.markets.values()
        settles = {market["settle"] for market in markets if market["swap"] and market["linear"] and market["settle"]}
        return [{"settleCoin": settle} for settle in sorted(settles | _BYBIT_SETTLES)]

    def _is_contract(self, symbol: Any) -> bool:
        """Whether the loaded markets have it as a derivative. ccxt names one they lack like a spot market."""
        market = self._client.markets.get(symbol)
        return market is not None and bool(market["contract"])

    def _next_cursor(self) -> str | None:
        if self.venue != "bybit":
            return None
        result = self._client.last_answer["result"]
        return result.get("nextPageCursor") if result["list"] else None

    def _position(self, row: dict[str, Any]) -> VenuePosition:
        symbol, side = str(row.get("symbol")), row.get("side")
        market = self._client.markets.get(symbol)
        if market is None:
            raise Unreadable(f"position in {symbol!r}, a market whose rules the exchange does not list")
        if market["inverse"] or not (market["swap"] or market["future"]):
            raise Unreadable(f"position in {symbol}: its value in base units is not fixed (inverse contract or option)")
        if side not in ("long", "short"):
            raise Unreadable(f"position in {symbol} without a side: {side!r}")
        contracts = abs(_figure(row.get("contracts"), "contracts"))
        size = _figure(market["contractSize"], f"contract size of {symbol}")
        with exact_arithmetic():
            quantity = contracts * size
        hedged = row.get("hedged") is not False  # None: the exchange does not say, and nothing is netted
        prices = _price(row.get("entryPrice")), _price(row.get("markPrice"))
        return VenuePosition(symbol, side, quantity, *prices, hedged)

    # --- balances --------------------------------------------------------------------------------

    def _balances(self) -> tuple[VenueBalance, ...]:
        totals: dict[str, VenueBalance] = {}
        for wallet in self._wallets:
            answer = self._client.fetch_balance({} if wallet is None else {"type": wallet})
            if not carries_rows(self.venue, self._client.last_answer, empty=wallet is not None):
                raise Unreadable("an answer without rows")
            for asset in answer.get("total", {}):
                found = _balance(asset, answer[asset])
                totals[asset] = _added(totals.get(asset), found)
        return tuple(totals[asset] for asset in sorted(totals) if totals[asset].total or totals[asset].used)


def open_accounts(settings: ExchangeSettings) -> list[ExchangeAccount]:
    """One object for every configured account that has credentials. Connects to nothing yet.

    Raises `InvalidRequest` for an exchange that ccxt does not know.
    """
    return [ExchangeAccount(found) for found in settings.every()]


def _told(error: Exception) -> str:
    """An error in words, without the query of its URL, which holds the request's signature."""
    return re.sub(r"\?\S+", "", str(error))[:300]


def _figure(value: Any, what: str) -> Decimal:
    try:
        figure = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        figure = None
    if figure is None or not figure.is_finite():
        raise Unreadable(f"{what} is {value!r}, not a number")
    return figure


def _price(value: Any) -> Decimal | None:
    price = None if value in (None, "") else _figure(value, "price")
    return price or None


def _balance(asset: str, row: Any) -> VenueBalance:
    free, used, total = (_figure(row.get(name), f"{name} of {asset}") for name in ("free", "used", "total"))
    return VenueBalance(asset, free, used, total)


def _added(one: VenueBalance | None, other: VenueBalance) -> VenueBalance:
    if one is None:
        return other
    with exact_arithmetic():
        return VenueBalance(one.asset, one.free + other.free, one.used + other.used, one.total + other.total)


def _merged(positions: Iterable[VenuePosition]) -> tuple[VenuePosition, ...]:
    """One position per market and side: an exchange may list isolated and cross margin apart."""
    found: dict[tuple[str, str], VenuePosition] = {}
    for position in positions:
        name = (position.symbol, position.side)
        found[name] = _joined(found[name], position) if name in found else position
    return tuple(found[name] for name in sorted(found))


def _joined(one: VenuePosition, other: VenuePosition) -> VenuePosition:
    with exact_arithmetic():
        quantity = one.quantity + other.quantity
        entry = None
        if one.entry_price is not None and other.entry_price is not None:
            entry = (one.quantity * one.entry_price + other.quantity * other.entry_price) / quantity
    mark = one.mark_price or other.mark_price
    return VenuePosition(one.symbol, one.side, quantity, entry, mark, one.hedged or other.hedged)
