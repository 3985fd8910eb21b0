"""The wallets of an account: which names an exchange knows, and their balances, read whole or not at all.

ccxt asks for a wallet by a `type` and has no list of types. For a name that it does not know it reads another wallet,
or finds no balance in an answer that has some. So only names that are listed here are asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ledger_sizer.exchanges.numbers_read import Unreadable
from ledger_sizer.exchanges.response_rows import carries_rows, shows_amounts
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import ExchangeAccountSettings
from ledger_sizer.model.units import decimal_text, exact_arithmetic, parse_decimal

_BYBIT = "spot=swap=unified, funding"
_OKX = "spot=swap=future=margin=option=trading, funding"
_BINANCE = "spot, swap=future, inverse, margin, isolated, funding"
_GATE = "spot, swap, future, option, isolated, cross"
_KUCOIN = "spot, swap=future=contract, main=funding, margin=cross, isolated, hf"
_HITBTC = "spot, swap=future=derivatives, funding=wallet"

_NAMES = {
    "aster": "spot, swap",
    "bequant": _HITBTC,
    "bigone": "spot, funding=fund",
    "binance": _BINANCE,
    "bingx": "spot, swap, inverse, funding=fund",
    "bitfinex": "exchange=spot, margin=derivatives=swap=future, funding",
    "bitget": "spot, swap=future, usdc, inverse, cross, isolated, funding",
    "bitrue": "spot, swap, inverse",
    "blofin": "swap=future=futures, spot, funding, earn, copy_trading",
    "btse": "spot, swap",
    "bybit": _BYBIT,
    "bybiteu": _BYBIT,
    "bybitid": _BYBIT,
    "bydfi": "spot, swap, inverse, funding",
    "coinbase": "spot, swap=future",
    "deepcoin": "spot, swap",
    "digifinex": "spot, swap, margin",
    "fmfwio": _HITBTC,
    "gate": _GATE,
    "gateeu": _GATE,
    "hashkey": "spot, swap",
    "hitbtc": _HITBTC,
    "htx": "spot, swap=future, inverse, margin, isolated",
    "hyperliquid": "spot, swap",
    "krakenfutures": "flex, cash",
    "kucoin": _KUCOIN,
    "kucoinfutures": _KUCOIN,
    "latoken": "spot, funding=wallet",
    "lighter": "spot, swap",
    "mexc": "spot, swap",
    "mudrex": "spot, swap",
    "myokx": _OKX,
    "okx": _OKX,
    "okxus": _OKX,
    "phemex": "spot, swap, usd, btc",
    "poloniex": "spot, swap",
    "toobit": "spot, swap=future",
    "weex": "spot, swap",
    "whitebit": "spot, swap, main=funding",
    "xt": "spot, swap=future, inverse",
    "zebpay": "spot, swap",
}
"""The wallets of each exchange with several; names of one wallet stand with a `=`. Others have one wallet."""

_CROSS = {"type": "spot", "marginMode": "cross"}
_ISOLATED = {"type": "spot", "marginMode": "isolated"}
_INVERSE = {"type": "swap", "subType": "inverse"}
_PARAMETERS: dict[tuple[str, str], dict[str, Any]] = {
    ("binance", "inverse"): _INVERSE,
    ("binance", "isolated"): _ISOLATED,
    ("bingx", "inverse"): _INVERSE,
    ("bitget", "usdc"): {"type": "swap", "productType": "USDC-FUTURES"},
    ("bitget", "inverse"): {"type": "swap", "productType": "COIN-FUTURES"},
    ("bitget", "cross"): _CROSS,
    ("bitget", "isolated"): _ISOLATED,
    ("bitrue", "inverse"): _INVERSE,
    ("blofin", "future"): {"type": "swap"},
    ("blofin", "futures"): {"type": "swap"},
    ("gate", "cross"): _CROSS,
    ("gate", "isolated"): _ISOLATED,
    ("gateeu", "cross"): _CROSS,
    ("gateeu", "isolated"): _ISOLATED,
    ("htx", "inverse"): {"type": "swap", "defaultSubType": "inverse"},
    ("htx", "isolated"): {"type": "margin", "marginMode": "isolated"},
    ("phemex", "btc"): {"type": "swap", "code": "BTC"},
    ("phemex", "usd"): {"type": "swap", "code": "USD"},
    ("whitebit", "main"): {"account": "main"},
    ("whitebit", "funding"): {"account": "main"},
    ("xt", "inverse"): _INVERSE,
}
"""What ccxt is asked for a wallet where its `type` is not the name."""

_APART: dict[str, Any] = {"portfolioMargin": False}
_PORTFOLIO_MARGIN = {
    "papi": {"type": "papi"},
    "spot": {"type": "spot"} | _APART,
    "funding": {"type": "funding"} | _APART,
}
"""Binance's wallets under portfolio margin: cross margin and both kinds of futures in one, the others apart."""

_DEFAULTS = {"binance": ("spot", "swap")}
_PORTFOLIO_MARGIN_DEFAULT = ("papi", "spot")
"""Read where no wallets are named. Elsewhere ccxt's own choice is read: some keys may read no other."""

_OWED_APART = frozenset({"margin", "cross", "isolated"})
"""Wallets whose totals contain what was borrowed. Elsewhere a loan is a negative balance, or there is none."""

_ONE_ANSWER = frozenset({"bitfinex", "krakenfutures", "latoken", "lighter"})
"""Exchanges that answer with all wallets at once."""

_ONE_PATH = frozenset({"bitget"})
"""Exchanges whose unified accounts are asked with parameters that they ignore."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """One wallet. name: None of the only one. parameters: those of ccxt's `fetch_balance`."""

    name: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def wallets_of(settings: ExchangeAccountSettings) -> tuple[Wallet, ...]:
    """Return the wallets to read. Raises `InvalidRequest` for a wallet that the exchange lacks or named twice."""
    known = _known_wallets(settings)
    named = {name: group for group in known for name in group}
    for number, name in enumerate(settings.wallets):
        if name not in named:
            has = ", ".join(" or ".join(group) for group in known) or "one wallet; leave the setting empty"
            raise InvalidRequest(
                f"setting wallets (environment EXCHANGE_WALLETS): {settings.id} has no wallet {name!r:.100}; "
                f"it has {has}",
                field="wallets",
            )
        if twin := next((one for one in settings.wallets[:number] if one in named[name]), None):
            raise InvalidRequest(
                f"setting wallets (environment EXCHANGE_WALLETS): {twin!r} and {name!r} are one wallet at "
                f"{settings.id}, which would count twice; name one of them",
                field="wallets",
            )
    default = _PORTFOLIO_MARGIN_DEFAULT if "papi" in named else _DEFAULTS.get(settings.id, ())
    return tuple(Wallet(name, named[name][name]) for name in settings.wallets or default) or (Wallet(None),)


def _known_wallets(settings: ExchangeAccountSettings) -> list[dict[str, dict[str, Any]]]:
    """Return one group of names, each with its parameters, for each wallet of the exchange."""
    options = settings.options.get_secret_value()
    if settings.id == "binance" and (options.get("portfolioMargin") or options.get("papi")):
        return [{name: parameters} for name, parameters in _PORTFOLIO_MARGIN.items()]
    groups = [text.split("=") for text in _NAMES.get(settings.id, "").split(", ") if text]
    return [{name: _PARAMETERS.get((settings.id, name), {"type": name}) for name in group} for group in groups]


def read_wallets(client: Any, wallets: tuple[Wallet, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the assets of every wallet, each with ccxt's free, used and total. An asset may come once for each wallet.

    Raises `Unreadable` for an answer that is not whole, and for one whose amounts nobody read. Two names of one wallet,
    as a unified account has them, are read once.
    """
    seen, venue = [], client.id
    for wallet in wallets:
        response = client.fetch_balance(dict(wallet.parameters))
        answer = client.last_response
        if not carries_rows(venue, answer, empty=wallet.name is not None):
            raise Unreadable("an answer without rows")
        rows = {asset: response[asset] for asset in response.get("total", {})}
        if not rows and shows_amounts(answer):
            raise Unreadable(f"the answer about the wallet {wallet.name or ''!r} has amounts, none of which is read")
        request = client.last_path if venue in _ONE_PATH else client.last_request
        this = request, {asset: row["total"] for asset, row in rows.items()}
        if rows and this in seen and venue not in _ONE_ANSWER:
            continue
        seen.append(this)
        if wallet.name == "papi":
            rows = _portfolio_margin_rows(client, response)
        elif wallet.name in _OWED_APART:
            rows = {asset: _less_debt(row) for asset, row in rows.items()}
        yield from rows.items()


def _less_debt(row: dict[str, Any]) -> dict[str, Any]:
    debt, total = row.get("debt"), row.get("total")
    if not debt or total is None:
        return row
    with exact_arithmetic():
        return row | {"total": decimal_text(parse_decimal(total) - parse_decimal(debt))}


def _portfolio_margin_rows(client: Any, response: dict[str, Any]) -> dict[str, Any]:
    """Return what Binance's portfolio margin has of each asset: its wallets and open profit, less what is owed.

    ccxt gives the total alone. The margin of the futures counts in USD over all assets; it is taken from USDT.
    """
    rows = {}
    with exact_arithmetic():
        for entry in response["info"]:
            owed = _number(entry, "crossMarginBorrowed") + _number(entry, "crossMarginInterest")
            profit = _number(entry, "umUnrealizedPNL") + _number(entry, "cmUnrealizedPNL")
            total = _number(entry, "totalWalletBalance") + profit - owed
            rows[client.safe_currency_code(entry["asset"])] = total, _number(entry, "crossMarginLocked")
        in_use = _number(client.papi_get_account(), "accountInitialMargin")
        if "USDT" in rows or in_use:
            total, used = rows.get("USDT", (Decimal(0), Decimal(0)))
            rows["USDT"] = total, used + in_use
        return {
            asset: {"free": decimal_text(total - used), "used": decimal_text(used), "total": decimal_text(total)}
            for asset, (total, used) in rows.items()
        }


def _number(entry: Mapping[str, Any], name: str) -> Decimal:
    if name not in entry:
        raise Unreadable(f"an answer without {name}")
    return parse_decimal(entry[name] or "0")
