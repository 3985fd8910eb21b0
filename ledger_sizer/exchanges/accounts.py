"""Fetches the positions, balances, prices and market rules of one exchange account.

A part that could not be fetched completely is None (unknown, never empty), with the reason as text. What cannot be read
of a part is named in the snapshot: see `positions` and `balances`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ledger_sizer.config import ExchangeSettings
from ledger_sizer.exchanges.activity import ActivityReader
from ledger_sizer.exchanges.balances import BalanceReader, BalancesRead
from ledger_sizer.exchanges.client import error_text, make_client
from ledger_sizer.exchanges.market_rules import market_rules_of
from ledger_sizer.exchanges.positions import PositionReader, PositionsRead
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.exchanges.spot_prices import SpotPrices
from ledger_sizer.exchanges.wallets import wallets_of
from ledger_sizer.model.account_activity import Activity
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.model.exchange_account import ExchangeAccountSettings
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

_MARKETS_SECONDS_MAX = 3600
"""Markets are reloaded after this time: an outdated contract size would make every quantity wrong."""

_Part = TypeVar("_Part")


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
        self._without_secrets = settings.without_secrets
        self._positions = PositionReader(self._client, self._load_markets)
        self._balances = BalanceReader(self._client, wallets_of(settings))
        self._prices = SpotPrices(self._client)
        self._activity = ActivityReader(self._client, wallets_of(settings))
        self._lock = threading.Lock()
        self._markets_loaded_at = float("-inf")
        self._markets_are_new = False

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """Fetch positions, balances and prices. Never raises for a failure of the exchange."""
        with self._lock:
            return self._snapshot(now_us)

    def snapshot_with_new_rules(self, now_us: Callable[[], int]) -> Snapshot | None:
        """Load the markets again, for contract sizes that changed, and fetch everything; see `snapshot`.

        None if the latest snapshot already loaded the markets.
        """
        with self._lock:
            if self._markets_are_new:
                return None
            self._markets_loaded_at = float("-inf")
            return self._snapshot(now_us)

    def _snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        begun_us = now_us()
        self._markets_are_new = False
        problems: list[str] = []
        positions = self._fetch_part("positions", self._read_positions, problems)
        balances = self._fetch_part("balances", self._read_balances, problems)
        prices, failures = ({}, []) if balances is None else self._prices.of(balances.balances)
        told = [*(positions.problems if positions else ()), *(balances.problems if balances else ()), *failures]
        problems += [self._problem(one) for one in told]
        known = positions or PositionsRead()
        return Snapshot(
            self.venue, self.account, begun_us, now_us(), None if positions is None else positions.positions,
            None if balances is None else balances.balances, tuple(problems),
            unread=(*known.unread, *(balances.unread if balances else ())), not_asked=known.not_asked,
            failed=known.failed, prices=prices, unrealized_usd=known.unrealized_usd,
        )  # fmt: skip

    def instruments(self) -> list[MarketRules]:
        """Reload the markets and return the rules of every spot and swap market. Raises `Unavailable`."""
        with self._lock:
            try:
                self._load_markets()
                return market_rules_of(self._client)
            except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
                raise Unavailable(f"{self.venue} did not give its market rules: {error_text(error)}") from None

    def activity(self, since_us: int, now_us: int, subject: str) -> Activity:
        """Return what happened in one market or asset since a time. Never raises for a failure of the exchange.

        subject: a market's unified name (`BTC/USDT:USDT`), or an asset (`BTC`).
        """
        with self._lock:
            try:
                self._load_old_markets()
                found = self._activity.read(since_us, now_us, subject)
            except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
                found = Activity(since_us, (), (f"nothing was read: {type(error).__name__}: {error_text(error)}",))
            return replace(found, problems=tuple(self._problem(one) for one in found.problems))

    def close(self) -> None:
        """Close the connections. The account should not be used afterwards."""
        self._client.close()

    def _fetch_part(self, name: str, fetch: Callable[[], _Part], problems: list[str]) -> _Part | None:
        try:
            return fetch()
        except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
            problem = self._problem(f"{name} unknown: {type(error).__name__}: {error_text(error)}")
            log.warning("exchange.fetch_failed", venue=self.venue, account=self.account, part=name, problem=problem)
            problems.append(problem)
            return None

    def _problem(self, text: str) -> str:
        return f"{self.venue} {self.account}: {self._without_secrets(text)}"

    def _read_positions(self) -> PositionsRead:
        if not self._positions.has_positions:
            return PositionsRead()
        self._load_old_markets()
        return self._positions.read()

    def _read_balances(self) -> BalancesRead:
        if not self._positions.has_positions:
            self._load_old_markets()
        return self._balances.read()

    def _load_old_markets(self) -> None:
        if time.monotonic() - self._markets_loaded_at >= _MARKETS_SECONDS_MAX:
            self._load_markets()

    def _load_markets(self) -> Any:
        self._client.load_markets(True)
        self._markets_loaded_at = time.monotonic()
        self._markets_are_new = True


def open_accounts(settings: ExchangeSettings) -> list[ExchangeAccount]:
    """Return one `ExchangeAccount` for each configured account that has credentials. Connects to nothing yet.

    Raises `InvalidRequest` for an exchange that ccxt does not know.
    """
    return [ExchangeAccount(account) for account in settings.every()]
