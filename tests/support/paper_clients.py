"""The real ccxt client and this package's exchange accounts, pointed at a paper server."""

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
    """Settings of the account that a paper venue begins with; no retries, so that one fault is one failure."""
    given = {
        "id": venue, "api_key": SecretStr(DEFAULT_KEY), "api_secret": SecretStr(DEFAULT_SECRET),
        "password": SecretStr(DEFAULT_PASSPHRASE), "base_url": url, "timeout_seconds": 5, "retries_max": 0,
    }  # fmt: skip
    return ExchangeAccountSettings(**(given | changes))


def unthrottled(account: ExchangeAccount) -> ExchangeAccount:
    """The account, without ccxt's pauses between requests: nobody limits their rate here."""
    account._client.enableRateLimit = False
    return account


def account_at(venue: str, url: str, **changes: Any) -> ExchangeAccount:
    """The exchange account a user would have, unthrottled."""
    return unthrottled(ExchangeAccount(account_settings(venue, url, **changes)))


def trader_at(venue: str, url: str, **changes: Any) -> Any:
    """A ccxt client that trades, as a bot's own would, unthrottled."""
    client = make_client(account_settings(venue, url, **changes))
    client.enableRateLimit = False
    return client


def contracts(client: Any, symbol: str, quantity: Decimal) -> str:
    """Base units in what the exchange counts."""
    size = Decimal(client.market(symbol)["contractSize"] or 1)
    return f"{quantity / size:f}"


def filled(client: Any, symbol: str, order: dict[str, Any]) -> dict[str, Any]:
    """The order as the exchange shows it now."""
    answer: dict[str, Any] = client.fetch_order(order["id"], symbol, {"acknowledged": True})
    return answer


def now_us() -> int:
    """This machine's time."""
    return time.time_ns() // 1000
