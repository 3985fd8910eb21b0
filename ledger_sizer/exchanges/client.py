"""The ccxt client of one account, set up so that figures stay exact and half an answer is never taken for a whole one.

ccxt is large (0.3 s and 67 MB to import), so it is imported when the first account is opened and not before. Each of
these traps was run: ccxt hands back floats unless `number` is `str`; an answer that breaks off in the middle is no
error to it, and its parsers then find no positions; JSON without its rows reads as "nothing there" as well.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.model.errors import InvalidRequest

_MARKET_TYPES = {
    "bybit": ["spot", "linear", "inverse"],
    "binance": ["spot", "linear", "inverse"],
    "okx": ["spot", "future", "swap"],
}
"""Options are left out: thousands of markets that this package does not trade."""

_RETRY_DELAY_MS = 500


def make_client(settings: ExchangeAccountSettings) -> Any:
    """A synchronous ccxt client for this account.

    Its calls raise ccxt's own errors; `last_answer` is the JSON of the newest answer, None where it was not whole.
    Raises `InvalidRequest` for an exchange that ccxt does not know, and where ccxt is not installed.
    """
    require_known(settings.id)

    import ccxt

    client = _guarded(getattr(ccxt, settings.id))(
        {
            "apiKey": _secret(settings.api_key),
            "secret": _secret(settings.api_secret),
            "password": _secret(settings.password),
            "timeout": settings.timeout_seconds * 1000,
            "enableRateLimit": True,
            "options": {
                # ccxt repeats a call after a network error or a rate limit. Only reading calls are made here.
                "maxRetriesOnFailure": settings.retries_max,
                "maxRetriesOnFailureDelay": _RETRY_DELAY_MS,
                "fetchMargins": False,
            },
        }
    )
    client.number = str
    # Names, icons and networks of currencies: not needed, and some exchanges want a key with more rights for them.
    client.has["fetchCurrencies"] = False
    if settings.id in _MARKET_TYPES:
        client.options["fetchMarkets"] = {**client.options.get("fetchMarkets", {}), "types": _MARKET_TYPES[settings.id]}
    if settings.base_url is not None:
        client.urls["api"] = _moved(client.urls["api"], settings.base_url.rstrip("/"))
    return client


def require_known(exchange_id: str) -> None:
    """Raise `InvalidRequest` for an exchange that ccxt does not know, or without ccxt. Imports none of it."""
    found = find_spec("ccxt")
    if found is None or not found.submodule_search_locations:
        raise InvalidRequest("exchanges need ccxt: pip install 'ledger-sizer[exchanges]'", field="id")
    # One file each, named by the id.
    (folder, *_) = found.submodule_search_locations
    names = sorted(path.stem for path in Path(folder).glob("[a-z]*.py"))
    if exchange_id not in names:
        near = [name for name in names if name.startswith(exchange_id[:3].lower())]
        hint = f"; did you mean one of {', '.join(near[:5])}?" if near else ""
        raise InvalidRequest(f"ccxt has no exchange {exchange_id!r}{hint}", field="id")


def _secret(value: Any) -> str:
    return "" if value is None else str(value.get_secret_value())


def _guarded(kind: Any) -> Any:
    """The exchange's class, with a check of every answer and a memory of the last one."""
    import ccxt

    class WholeAnswers(kind):  # type: ignore[misc]
        last_answer: Any = None

        def handle_errors(
            self, code: int, reason: str, url: str, method: str, headers: Any, body: str, response: Any, *sent: Any
        ) -> Any:
            self.last_answer = response
            result = super().handle_errors(code, reason, url, method, headers, body, response, *sent)
            if response is None and code < 400:
                # A network error to ccxt, so that it asks again.
                raise ccxt.ExchangeNotAvailable(f"{self.id} {method} {url} answered {code} without whole JSON")
            return result

    WholeAnswers.__name__ = kind.__name__
    return WholeAnswers


def _moved(entry: Any, base_url: str) -> Any:
    """An entry of ccxt's URLs with another scheme and host; the paths stay, they tell the exchanges' parts apart."""
    if isinstance(entry, dict):
        return {name: _moved(value, base_url) for name, value in entry.items()}
    return base_url + urlsplit(entry).path if isinstance(entry, str) else entry


def carries_rows(venue: str, answer: Any, *, empty: bool = True) -> bool:
    """Whether an answer about positions or balances carries the list it is about. empty: whether that may be empty.

    Known for Bybit, Binance and OKX; for other exchanges whole JSON has to do.
    """
    rows: Any = answer
    if venue == "bybit":
        result = answer.get("result") if isinstance(answer, dict) else None
        rows = result.get("list") if isinstance(result, dict) else None
    elif venue == "okx":
        rows = answer.get("data") if isinstance(answer, dict) else None
    elif venue == "binance":
        if isinstance(answer, dict):
            rows = answer.get("balances", answer.get("assets"))
    else:
        return True
    return isinstance(rows, list) and (empty or bool(rows))
