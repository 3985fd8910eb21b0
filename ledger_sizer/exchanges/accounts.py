"""Fetches the positions, balances and market rules of one exchange account.

A part that could not be fetched completely is None (unknown, never empty), with the reason as text. One position that
cannot be counted in base units makes all positions unknown.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from ledger_sizer.config import ExchangeAccountSettings, ExchangeSettings
from ledger_sizer.exchanges.client import carries_rows, make_client
from ledger_sizer.exchanges.market_rules import contract_size_of, market_rules_of, named_base_of
from ledger_sizer.exchanges.snapshot import Snapshot, VenueBalance, VenuePosition, rounded_price
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.model.market_names import coins_of_symbol, split_factor
from ledger_sizer.model.units import exact_arithmetic, parse_decimal
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

_WALLETS: dict[str, tuple[str, ...]] = {"binance": ("spot", "swap")}
"""Exchanges with separate wallets for spot and derivatives. The balances of all wallets are added up."""

_DERIVATIVES = ("swap", "future", "option")
_BYBIT_SETTLES = frozenset({"USDT", "USDC"})
"""Always queried, whatever markets are loaded: a markets response without rows would leave no currency to query."""

_PAGES_MAX = 1000
_MARKETS_SECONDS_MAX = 3600
"""Markets are reloaded after this time: an outdated contract size would make every quantity wrong."""

_Part = TypeVar("_Part")


class Unreadable(Exception):
    """The exchange responded, but the response cannot be relied on."""


class ExchangeAccount:
    """One account at one exchange, read through ccxt. Calls from several threads wait for each other.

    venue: the ccxt exchange id. account: its name in the settings. portfolio: the owner of its positions.
    """

    def __init__(self, settings: ExchangeAccountSettings) -> None:
        self.venue = settings.id
        self.account = settings.account
        self.portfolio = settings.portfolio
        self.margin_fraction = settings.margin_fraction
        self.bind_free_balance = settings.bind_free_balance
        self._client = make_client(settings)
        self._wallets: tuple[str | None, ...] = settings.wallets or _WALLETS.get(settings.id, (None,))
        self._lock = threading.Lock()
        self._markets_loaded_at = float("-inf")

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """Fetch positions and balances. Never raises for a failure of the exchange."""
        with self._lock:
            begun_us = now_us()
            problems: list[str] = []
            positions = self._fetch_part("positions", self._fetch_positions, problems)
            balances = self._fetch_part("balances", self._fetch_balances, problems)
            return Snapshot(self.venue, self.account, begun_us, now_us(), positions, balances, tuple(problems))

    def instruments(self) -> list[MarketRules]:
        """Reload the markets and return the rules of every spot and swap market. Raises `Unavailable`."""
        with self._lock:
            try:
                self._load_markets()
                return market_rules_of(self._client)
            except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
                raise Unavailable(f"{self.venue} did not give its market rules: {_error_text(error)}") from None

    def close(self) -> None:
        """Close the connections. The account should not be used afterwards."""
        self._client.close()

    def _fetch_part(self, name: str, fetch: Callable[[], _Part], problems: list[str]) -> _Part | None:
        try:
            return fetch()
        except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
            problem = f"{self.venue} {self.account}: {name} unknown: {type(error).__name__}: {_error_text(error)}"
            log.warning("exchange.fetch_failed", venue=self.venue, account=self.account, part=name, problem=problem)
            problems.append(problem)
            return None

    # --- positions -------------------------------------------------------------------------------

    def _fetch_positions(self) -> tuple[VenuePosition, ...]:
        has = self._client.has
        if not has["fetchPositions"] and all(has[kind] is False for kind in _DERIVATIVES):
            return ()  # this exchange has no derivatives. Where ccxt does not say so (None), positions stay unknown
        if time.monotonic() - self._markets_loaded_at >= _MARKETS_SECONDS_MAX:
            self._load_markets()
        rows = self._position_rows()
        if not all(self._is_contract(row.get("symbol")) for row in rows):
            self._load_markets()  # a new listing since the last load, or that response lacked its rows
            rows = self._position_rows()
        return _merge_positions(self._parse_position(row) for row in rows)

    def _load_markets(self) -> None:
        self._client.load_markets(True)
        self._markets_loaded_at = time.monotonic()

    def _position_rows(self) -> list[dict[str, Any]]:
        """Fetch all pages. Returns the rows of positions that are not zero."""
        rows: list[dict[str, Any]] = []
        for parameters in self._position_parameters():
            cursors: set[str] = set()
            while True:
                rows += self._client.fetch_positions(None, dict(parameters))
                if not carries_rows(self.venue, self._client.last_response):
                    raise Unreadable("an answer without rows")
                cursor = self._next_cursor()
                if not cursor:
                    break
                if cursor in cursors or len(cursors) >= _PAGES_MAX:
                    raise Unreadable(f"the pages do not end (cursor {cursor!r})")
                cursors.add(cursor)
                parameters["cursor"] = cursor
        return [row for row in rows if _decimal(row.get("contracts"), "contracts") != 0]

    def _position_parameters(self) -> list[dict[str, str]]:
        """Return the parameters of each call. Bybit lists one settlement currency per call, others all positions."""
        if self.venue != "bybit":
            return [{}]
        markets = self._client.markets.values()
        settles = {
            one["settle"] for one in markets if (one["swap"] or one["future"]) and one["linear"] and one["settle"]
        }
        return [{"settleCoin": settle} for settle in sorted(settles | _BYBIT_SETTLES)]

    def _is_contract(self, symbol: Any) -> bool:
        """Whether the loaded markets have it as a derivative. ccxt names one they lack like a spot market."""
        market = self._client.markets.get(symbol)
        return market is not None and bool(market["contract"])

    def _next_cursor(self) -> str | None:
        if self.venue != "bybit":
            return None
        result = self._client.last_response["result"]
        return result.get("nextPageCursor") if result["list"] else None

    def _parse_position(self, row: dict[str, Any]) -> VenuePosition:
        symbol, side = str(row.get("symbol")), row.get("side")
        market = self._client.markets.get(symbol)
        if market is None:
            raise Unreadable(f"position in {symbol!r}, a market whose rules the exchange does not list")
        if market["inverse"] or not (market["swap"] or market["future"]):
            raise Unreadable(f"position in {symbol}: its value in base units is not fixed (inverse contract or option)")
        if side not in ("long", "short"):
            raise Unreadable(f"position in {symbol} without a side: {side!r}")
        contracts = _decimal(row.get("contracts"), "contracts").copy_abs()
        size = contract_size_of(self.venue, market)
        if size is None:
            raise Unreadable(f"position in {symbol}: the exchange states no contract size")
        with exact_arithmetic():
            quantity = contracts * size
        hedged = row.get("hedged") is not False  # None: the exchange does not say, so nothing is netted
        prices = _price(row.get("entryPrice")), _price(row.get("markPrice"))
        # In most markets the symbol says the multiplier too. Where it does not, the snapshot has to.
        factor = split_factor(named_base_of(market))[0]
        told = None if factor == coins_of_symbol(symbol)[0] else factor
        return VenuePosition(symbol, side, quantity, *prices, hedged, told)

    # --- balances --------------------------------------------------------------------------------

    def _fetch_balances(self) -> tuple[VenueBalance, ...]:
        totals: dict[str, VenueBalance] = {}
        for wallet in self._wallets:
            response = self._client.fetch_balance({} if wallet is None else {"type": wallet})
            if not carries_rows(self.venue, self._client.last_response, empty=wallet is not None):
                raise Unreadable("an answer without rows")
            for asset in response.get("total", {}):
                balance = _parse_balance(asset, response[asset])
                totals[asset] = _add_balances(totals.get(asset), balance)
        return tuple(totals[asset] for asset in sorted(totals) if totals[asset].total or totals[asset].used)


def open_accounts(settings: ExchangeSettings) -> list[ExchangeAccount]:
    """Return one `ExchangeAccount` for each configured account that has credentials. Connects to nothing yet.

    Raises `InvalidRequest` for an exchange that ccxt does not know.
    """
    return [ExchangeAccount(account) for account in settings.every()]


def _error_text(error: Exception) -> str:
    """Return the error's text without the query of its URL, which holds the request's signature."""
    return re.sub(r"\?\S+", "", str(error))[:300]


def _decimal(value: Any, what: str) -> Decimal:
    try:
        number = parse_decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite():
        raise Unreadable(f"{what} is {value!r}, not a number")
    return number


def _price(value: Any) -> Decimal | None:
    price = None if value in (None, "") else _decimal(value, "price")
    return price or None


def _parse_balance(asset: str, row: Any) -> VenueBalance:
    free, used, total = (_decimal(row.get(name), f"{name} of {asset}") for name in ("free", "used", "total"))
    return VenueBalance(asset, free, used, total)


def _add_balances(first: VenueBalance | None, second: VenueBalance) -> VenueBalance:
    if first is None:
        return second
    with exact_arithmetic():
        free, used, total = first.free + second.free, first.used + second.used, first.total + second.total
    return VenueBalance(first.asset, free, used, total)


def _merge_positions(positions: Iterable[VenuePosition]) -> tuple[VenuePosition, ...]:
    """Merge positions of the same market and side: an exchange may list isolated and cross margin separately."""
    merged: dict[tuple[str, str], VenuePosition] = {}
    for position in positions:
        key = (position.symbol, position.side)
        merged[key] = _merge_two(merged[key], position) if key in merged else position
    return tuple(merged[key] for key in sorted(merged))


def _merge_two(first: VenuePosition, second: VenuePosition) -> VenuePosition:
    with exact_arithmetic():
        quantity = first.quantity + second.quantity
        entry = None
        if first.entry_price is not None and second.entry_price is not None:
            cost = first.quantity * first.entry_price + second.quantity * second.entry_price
            entry = rounded_price(cost / quantity)
    mark = first.mark_price or second.mark_price
    hedged = first.hedged or second.hedged
    return VenuePosition(first.symbol, first.side, quantity, entry, mark, hedged, first.multiplier)
