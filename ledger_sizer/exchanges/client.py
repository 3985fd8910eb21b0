"""Creates the ccxt client of one account, with exact numbers and a check that every response is complete.

ccxt is large (0.3 s and 67 MB to import), so it is imported only when the first account is opened. Three traps, each
tried out: ccxt returns floats unless `number` is `str`; it accepts a truncated response, and its parsers then find no
positions; they also find none in JSON that lacks its rows.
"""

import re
from typing import Any
from urllib.parse import urlsplit

from ledger_sizer.exchanges.requirements import client_options, require_usable
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import CREDENTIALS, ExchangeAccountSettings

_MARKET_TYPES = {
    "bybit": ["spot", "linear", "inverse"],
    "binance": ["spot", "linear", "inverse"],
    "okx": ["spot", "future", "swap"],
}
"""The market types to load. Options are left out: thousands of markets that this package does not trade."""

_CODES_ARE_IDS = frozenset(
    {"binance", "binancecoinm", "binanceus", "binanceusdm", "bybit", "bybiteu", "bybitid", "myokx", "okx", "okxus"}
)
"""Exchanges whose list of currencies is not loaded: balances name them as they are, and the list needs a key with more
rights. At others it tells what the ids and the scales of balances mean (Delta's asset 5, Phemex's scaled amounts)."""

_PARSERS_OF_ROWS = ("parse_position", "parse_position_risk", "parse_option_position", "parse_account_position")

_RETRY_DELAY_MS = 500


def make_client(settings: ExchangeAccountSettings) -> Any:
    """Return a synchronous ccxt client for this account.

    Its calls raise ccxt's own errors. `last_response` is the JSON of the newest response, None if it was incomplete;
    `last_path` where the newest request went, as text, `last_request` with its parameters. Raises `InvalidRequest` for
    settings with which the account cannot be read, and where ccxt is not installed.
    """
    require_usable(settings)

    import ccxt

    kind = getattr(ccxt, settings.id)
    own, options = client_options(settings)
    for name in options:
        if hasattr(kind, name) and not callable(getattr(kind, name)):
            raise InvalidRequest(f"EXCHANGE_OPTIONS may not set {name}, which is no option of ccxt", field="options")
    given = {CREDENTIALS[name]: value for name, value in settings.given.items()}
    sandbox = [options.pop(name, False) for name in ("sandbox", "testnet")]
    client = _checked_class(kind)(
        {
            "apiKey": "", "secret": "", "password": "", **given, **own,
            "timeout": settings.timeout_seconds * 1000,
            "enableRateLimit": True,
            "options": {
                **options,
                # ccxt retries after a network error or a rate limit, which is safe: only read calls are made here.
                "maxRetriesOnFailure": settings.retries_max,
                "maxRetriesOnFailureDelay": _RETRY_DELAY_MS,
                "fetchMargins": False,
            },
        }
    )  # fmt: skip
    if any(sandbox):
        if not client.urls.get("test"):
            raise InvalidRequest(f"EXCHANGE_OPTIONS: ccxt knows no sandbox of {settings.id}", field="options")
        client.set_sandbox_mode(True)
    client.number = str
    if settings.id in _CODES_ARE_IDS:
        client.has["fetchCurrencies"] = False
    if settings.id in _MARKET_TYPES:
        client.options["fetchMarkets"] = {**client.options.get("fetchMarkets", {}), "types": _MARKET_TYPES[settings.id]}
    if settings.base_url is not None:
        client.urls["api"] = _with_base_url(client.urls["api"], settings.base_url.rstrip("/"))
    return client


def _checked_class(kind: Any) -> Any:
    """Subclass ccxt's exchange class so that it checks every response and keeps the last one.

    A position that its parser cannot read becomes a row with the reason as `unreadable`, not the end of the others.
    Where the list of currencies cannot be loaded, `currencies_problem` says why; the markets are loaded all the same.
    """
    import ccxt

    class CheckedExchange(kind):  # type: ignore[misc]
        last_response: Any = None
        currencies_problem: str | None = None
        last_path: str = ""
        last_request: str = ""

        def request(
            self, path: str, api: Any = "public", method: str = "GET", params: Any = None, *rest: Any, **more: Any
        ) -> Any:
            self.last_path = f"{method} {api} {path}"
            self.last_request = f"{self.last_path} {params}"
            return super().request(path, api, method, params or {}, *rest, **more)

        def fetch_currencies(self, params: Any = None) -> Any:
            self.currencies_problem = None
            try:
                return super().fetch_currencies({} if params is None else params)
            except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
                self.currencies_problem = f"{type(error).__name__}: {error_text(error)}"
                return {}

        def handle_errors(
            self, code: int, reason: str, url: str, method: str, headers: Any, body: str, response: Any, *request: Any
        ) -> Any:
            self.last_response = response
            result = super().handle_errors(code, reason, url, method, headers, body, response, *request)
            if response is None and code < 400:
                # ccxt takes this for a network error, and retries.
                raise ccxt.ExchangeNotAvailable(f"{self.id} {method} {url} answered {code} without whole JSON")
            return result

    for name in _PARSERS_OF_ROWS:
        if hasattr(kind, name):
            setattr(CheckedExchange, name, _row_by_row(getattr(kind, name)))
    CheckedExchange.__name__ = kind.__name__
    return CheckedExchange


def _row_by_row(parse: Any) -> Any:
    """Return the parser of one position so that it answers a row that says why, instead of raising."""

    def parsed(client: Any, position: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return parse(client, position, *arguments, **named)
        except Exception as error:
            if not isinstance(position, dict):
                raise  # these are no rows at all
            return {"info": position, "unreadable": f"{type(error).__name__}: {error_text(error)}"}

    return parsed


def error_text(error: Exception) -> str:
    """Return an error's text without the query of its URL, which holds the request's signature."""
    return re.sub(r"\?\S+", "", str(error))[:300]


def _with_base_url(entry: Any, base_url: str) -> Any:
    """Replace scheme and host in an entry of ccxt's URLs. The paths stay: they tell the parts of an exchange apart."""
    if isinstance(entry, dict):
        return {name: _with_base_url(value, base_url) for name, value in entry.items()}
    return base_url + urlsplit(entry).path if isinstance(entry, str) else entry
