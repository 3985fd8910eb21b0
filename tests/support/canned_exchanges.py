"""Exchange accounts whose exchange answers with JSON that a test gives, in the exchange's own format.

The ccxt class and its parsers are the real ones; only the network is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.exchanges.accounts import ExchangeAccount


class CannedAccount(ExchangeAccount):
    """An account with given answers. answers: by a part of the URL and query; the first that is found in it answers.

    An answer that is an exception is raised. markets: those that are loaded, without a call; None loads them by calls.
    asked: the path and query of every call.
    """

    def __init__(
        self, venue: str, answers: Mapping[str, Any], markets: Sequence[dict[str, Any]] | None, **settings: Any
    ) -> None:
        secret = SecretStr("c2VjcmV0")
        super().__init__(
            ExchangeAccountSettings(
                id=venue, api_key=SecretStr("key"), api_secret=secret, password=secret, retries_max=0, **settings
            )
        )
        self.asked: list[str] = []
        self.answers = dict(answers)
        client = self._client
        client.enableRateLimit = False
        client.fetch = self._answer
        if markets is not None:
            client.set_markets({one["symbol"]: one for one in markets})
            client.load_markets = lambda *_arguments: client.markets

    def _answer(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        client = self._client
        told = f"{urlsplit(url).path}?{urlsplit(url).query}{body or ''}"
        self.asked.append(told)
        for part, answer in self.answers.items():
            if part in told:
                if isinstance(answer, Exception):
                    raise answer
                text = json.dumps(answer)
                client.last_http_response = text
                parsed = json.loads(text, parse_float=str, parse_int=str) if client.quoteJsonNumbers else answer
                client.handle_errors(200, "OK", url, method, {}, text, parsed, headers, body)
                return parsed
        raise AssertionError(f"no answer for {method} {told}")


def spot_market(symbol: str, market_id: str, **changes: Any) -> dict[str, Any]:
    """Return a spot market as ccxt describes it."""
    base, quote = symbol.split("/")
    return {**_market(symbol, market_id, base, quote), "type": "spot", "spot": True, **changes}


def contract_market(symbol: str, market_id: str, size: str | None = "1", **changes: Any) -> dict[str, Any]:
    """Return a perpetual or dated market as ccxt describes it; inverse where it is settled in its base."""
    base, quote = symbol.split(":", maxsplit=1)[0].split("/")
    settle, *dates = symbol.split(":")[1].split("-")
    kind = "future" if dates else "swap"
    return {
        **_market(symbol, market_id, base, quote), "type": kind, kind: True, "settle": settle, "settleId": settle,
        "contract": True, "linear": settle != base, "inverse": settle == base, "contractSize": size, **changes,
    }  # fmt: skip


def _market(symbol: str, market_id: str, base: str, quote: str) -> dict[str, Any]:
    return {
        "id": market_id, "symbol": symbol, "base": base, "quote": quote, "baseId": base, "quoteId": quote,
        "settle": None, "settleId": None, "spot": False, "margin": False, "swap": False, "future": False,
        "option": False, "contract": False, "linear": None, "inverse": None, "contractSize": None, "active": True,
        "precision": {"amount": "0.0001", "price": "0.01", "base": "1e-8", "quote": "1e-8"}, "limits": {}, "info": {},
    }  # fmt: skip


def now_us() -> int:
    """Return a fixed time."""
    return 1_700_000_000_000_000
