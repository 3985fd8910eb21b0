"""Connects the real ccxt client and this package's exchange accounts to a paper server."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.exchanges.client import make_client
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_PASSPHRASE, DEFAULT_SECRET

VENUES = ("bybit", "binance", "okx")
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"


def account_settings(venue: str, url: str, **changes: Any) -> ExchangeAccountSettings:
    """Return settings of a paper venue's default account. No retries, so that one fault is one failure."""
    values = {
        "id": venue, "api_key": SecretStr(DEFAULT_KEY), "api_secret": SecretStr(DEFAULT_SECRET),
        "password": SecretStr(DEFAULT_PASSPHRASE), "base_url": url, "timeout_seconds": 5, "retries_max": 0,
    }  # fmt: skip
    return ExchangeAccountSettings(**(values | changes))


def unthrottled(account: ExchangeAccount) -> ExchangeAccount:
    """Switch off ccxt's throttle: a paper server has no rate limit. Returns the account."""
    account._client.enableRateLimit = False
    return account


def account_at(venue: str, url: str, **changes: Any) -> ExchangeAccount:
    """Return an unthrottled exchange account at a paper venue."""
    return unthrottled(ExchangeAccount(account_settings(venue, url, **changes)))


def trader_at(venue: str, url: str, **changes: Any) -> Any:
    """Return an unthrottled ccxt client, as a bot would use to trade."""
    client = make_client(account_settings(venue, url, **changes))
    client.enableRateLimit = False
    return client


def async_trader_at(venue: str, url: str, **changes: Any) -> Any:
    """Return an unthrottled client of `ccxt.async_support`. Close it after use."""
    import ccxt.async_support

    made = make_client(account_settings(venue, url, **changes))
    client = getattr(ccxt.async_support, venue)(
        {"apiKey": made.apiKey, "secret": made.secret, "password": made.password}
    )
    for name in ("urls", "options", "has", "timeout", "number"):
        setattr(client, name, getattr(made, name))
    client.enableRateLimit = False
    return client


def contracts(client: Any, symbol: str, quantity: Decimal) -> str:
    """Convert base units to the contracts that the exchange counts."""
    size = Decimal(client.market(symbol)["contractSize"] or 1)
    return f"{quantity / size:f}"


def filled(client: Any, symbol: str, order: dict[str, Any]) -> dict[str, Any]:
    """Fetch the current state of an order."""
    answer: dict[str, Any] = client.fetch_order(order["id"], symbol, {"acknowledged": True})
    return answer


def now_us() -> int:
    """Return the system time, microseconds since the epoch."""
    return time.time_ns() // 1000
