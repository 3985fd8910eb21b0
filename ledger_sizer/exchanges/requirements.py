"""What an exchange asks of the settings of an account, checked before ccxt is imported or anything is sent."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ledger_sizer.exchanges.wallets import wallets_of
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import CREDENTIALS, ExchangeAccountSettings

_DEFAULT = "api_key api_secret"
_CREDENTIALS = {
    **dict.fromkeys(
        ("apex", "bitget", "blofin", "coinbaseexchange", "deepcoin", "kucoin", "kucoinfutures", "myokx", "okx",
         "okxus", "weex"), "api_key api_secret password"),
    **dict.fromkeys(("dydx", "hyperliquid", "lighter", "nado", "pacifica"), "wallet_address"),
    **dict.fromkeys(("aster", "grvt", "polymarket"), "private_key"),
    **dict.fromkeys(("derive", "paradex"), "private_key wallet_address"),
    **dict.fromkeys(("modetrade", "woofipro"), "api_key api_secret account_id"),
    **dict.fromkeys(("blockchaincom", "mudrex"), "api_secret"),
    **dict.fromkeys(("extended", "onetrading"), "api_key"),
    "coinmate": "api_key api_secret uid",
    "cryptomus": "api_secret uid",
    "hibachi": "api_key account_id private_key",
    "ndax": "api_key api_secret uid login password",
    "revolutx": "api_key private_key",
}  # fmt: skip
"""The credentials with which an account can be read. All but a few are what ccxt requires (`requiredCredentials`).

ccxt requires a private key at Hyperliquid, Lighter, Nado, Pacifica and Extended, which only orders need, and nothing at
dYdX, whose accounts are read by their address.
"""

_ALTERNATIVES = {"coinbase": "token", "lighter": "private_key", "pacifica": "private_key"}
"""Credentials that do as well."""

_TO_THE_CLIENT = frozenset(
    {"headers", "hostname", "httpProxy", "httpsProxy", "proxyUrl", "rateLimit", "socksProxy", "userAgent"}
)
"""Options that ccxt takes as its client's own, not among its `options`."""

_REFUSED = {
    **{ccxt_name: f"set EXCHANGE_{name.upper()}" for name, ccxt_name in CREDENTIALS.items() if name != "token"},
    "urls": "set EXCHANGE_BASE_URL, or hostname or sandbox here",
    "timeout": "set EXCHANGE_TIMEOUT_SECONDS",
    "maxRetriesOnFailure": "set EXCHANGE_RETRIES_MAX",
    "maxRetriesOnFailureDelay": "set EXCHANGE_RETRIES_MAX",
    "enableRateLimit": "the exchange's rate limit is always kept; rateLimit may be longer",
    "number": "numbers are always read exactly",
    "verbose": "it would write credentials to the log",
    "fetchMarkets": "which markets are loaded decides which positions can be read",
}


def require_usable(settings: ExchangeAccountSettings) -> None:
    """Raise `InvalidRequest` if the account cannot be read with these settings. Imports no ccxt, connects to nothing.

    The credentials are asked for only where one is given: the rules of markets are public.
    """
    require_known(settings.id)
    given = settings.given
    wanted = [names.split() for names in (_CREDENTIALS.get(settings.id, _DEFAULT), _ALTERNATIVES.get(settings.id, ""))]
    if given and not any(names and given.keys() >= set(names) for names in wanted):
        missing = [name for name in wanted[0] if name not in given]
        raise InvalidRequest(
            f"{settings.id} account {settings.account!r} also needs {_and(missing)} "
            f"(environment {_and([f'EXCHANGE_{name}'.upper() for name in missing])}, or in EXCHANGE_ACCOUNTS): "
            f"{settings.id} is read with {_and(wanted[0])}",
            field=missing[0],
        )
    wallets_of(settings)
    client_options(settings)


def client_options(settings: ExchangeAccountSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the options of the account set at ccxt's client itself, and what among its `options`."""
    options = settings.options.get_secret_value()
    for name in options:
        if name in _REFUSED:
            raise InvalidRequest(f"EXCHANGE_OPTIONS may not set {name}: {_REFUSED[name]}", field="options")
    rate = options.get("rateLimit", 1)
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise InvalidRequest("EXCHANGE_OPTIONS: rateLimit must be milliseconds between calls, from 1", field="options")
    own = {name: value for name, value in options.items() if name in _TO_THE_CLIENT}
    return own, {name: value for name, value in options.items() if name not in _TO_THE_CLIENT}


def require_known(exchange_id: str) -> None:
    """Raise `InvalidRequest` if ccxt is not installed or does not know the exchange. Does not import ccxt."""
    found = find_spec("ccxt")
    if found is None or not found.submodule_search_locations:
        raise InvalidRequest("exchanges need ccxt: pip install 'ledger-sizer[exchanges]'", field="id")
    # ccxt has one file per exchange, named by its id.
    (folder, *_) = found.submodule_search_locations
    names = sorted(path.stem for path in Path(folder).glob("[a-z]*.py"))
    if exchange_id not in names:
        near = [name for name in names if name.startswith(exchange_id[:3].lower())]
        hint = f"; did you mean one of {', '.join(near[:5])}?" if near else ""
        raise InvalidRequest(f"ccxt has no exchange {exchange_id!r}{hint}", field="id")


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
