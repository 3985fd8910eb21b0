"""Says which calls list the positions of an exchange: ccxt's default call leaves out whole families at many of them.

A family is a kind of derivative that an exchange lists apart. Read in the source of ccxt 4.5.90. An exchange that is
not named here lists everything in one call.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ledger_sizer.model.market_names import parse_symbol

Family = Literal["linear", "usdc", "inverse", "future", "option", "swap", "margin", "other"]
"""linear: dollar-settled; usdc: in USDC; inverse: in a coin; future: dated; swap: perpetual; margin: in a spot market.

other: products outside these, such as the markets of builders at Hyperliquid (`XYZ-GOLD/USDC:USDC`).
"""

_DOLLARS = ("USD", "USDT", "USDC", "BUSD", "USDE", "USD1")


@dataclass(frozen=True, slots=True)
class PositionCall:
    """One call of ccxt's `fetch_positions` and the family that it lists. `linear` comes first and is always asked."""

    family: Family
    parameters: dict[str, str] = field(default_factory=dict)


def position_calls(client: Any) -> list[PositionCall]:
    """Return the calls that list every position of the account. client: a ccxt client with loaded markets."""
    plan = _CALLS.get(_kind_of(client))
    return [PositionCall("linear")] if plan is None else plan(client)


def families_not_asked(client: Any) -> tuple[str, ...]:
    """Return the families that the exchange has and ccxt cannot list."""
    return _NOT_ASKED.get(_kind_of(client), ())


def is_of_family(symbol: str, family: str) -> bool:
    """Whether a market's symbol belongs to a family."""
    pair, _, settled = symbol.partition(":")
    settle, *terms = settled.split("-")
    said = parse_symbol(symbol)
    found = {
        "margin": not settled, "option": len(terms) > 1, "future": len(terms) == 1, "swap": bool(settled) and not terms,
        "usdc": settle == "USDC", "inverse": bool(settled) and settle not in _DOLLARS,
        "linear": said is not None and settle in _DOLLARS, "other": "-" in pair,
    }  # fmt: skip
    return found.get(family, False)


def _kind_of(client: Any) -> str:
    """Return the id of the exchange whose ccxt class this one extends: `okx` for `myokx`."""
    import ccxt

    if client.id in _CALLS or client.id in _NOT_ASKED:
        return str(client.id)
    names = [base.__name__ for base in type(client).__mro__ if issubclass(base, ccxt.Exchange)]
    return next((name for name in names if name in _CALLS or name in _NOT_ASKED), str(client.id))


def _settles(client: Any, **wanted: bool) -> list[str]:
    """Return the exchange's names of the currencies that its markets of a kind are settled in, sorted."""
    markets = (
        one for one in client.markets.values() if all(bool(one.get(name)) == is_so for name, is_so in wanted.items())
    )
    return sorted({str(one.get("settleId") or one["settle"]) for one in markets if one.get("settle")})


def _binance(_client: Any) -> list[PositionCall]:
    return [
        PositionCall("linear"),
        PositionCall("inverse", {"subType": "inverse"}),
        PositionCall("option", {"method": "option"}),
    ]


def _bybit(client: Any) -> list[PositionCall]:
    # Both are always queried: a markets response without rows would leave no currency to query.
    settles = {*_settles(client, contract=True, linear=True, option=False), "USDT", "USDC"}
    return [
        *(PositionCall("usdc" if one == "USDC" else "linear", {"settleCoin": one}) for one in _first(settles, "USDT")),
        PositionCall("inverse", {"subType": "inverse"}),
        PositionCall("option", {"type": "option"}),
    ]


def _gate(client: Any) -> list[PositionCall]:
    swaps = {"usdt", "btc", *(one.lower() for one in _settles(client, swap=True))}
    dated = {"usdt", *(one.lower() for one in _settles(client, future=True))}
    return [
        *(PositionCall(_settled_in(one), {"type": "swap", "settle": one}) for one in _first(swaps, "usdt")),
        *(PositionCall("future", {"type": "future", "settle": one}) for one in _first(dated, "usdt")),
        PositionCall("option", {"type": "option"}),
    ]


def _bitget(client: Any) -> list[PositionCall]:
    coins = _settles(client, contract=True, inverse=True)
    return [
        PositionCall("linear", {"productType": "USDT-FUTURES"}),
        PositionCall("usdc", {"productType": "USDC-FUTURES"}),
        *(PositionCall("inverse", {"productType": "COIN-FUTURES", "marginCoin": coin}) for coin in coins),
    ]


def _htx(_client: Any) -> list[PositionCall]:
    return [
        PositionCall("linear"),
        PositionCall("inverse", {"subType": "inverse", "type": "swap"}),
        PositionCall("inverse", {"subType": "inverse", "type": "future"}),
    ]


def _linear_and_inverse(_client: Any) -> list[PositionCall]:
    return [PositionCall("linear"), PositionCall("inverse", {"subType": "inverse"})]


def _phemex(client: Any) -> list[PositionCall]:
    settles = [one for one in _settles(client, contract=True) if one not in ("USDT", "USDC")]
    return [
        PositionCall("linear"),
        *(PositionCall("linear" if one == "USD" else "inverse", {"code": one, "settle": one}) for one in settles),
    ]


def _hyperliquid(client: Any) -> list[PositionCall]:
    infos = [one.get("info") for one in client.markets.values()]
    builders = sorted({str(info["dex"]) for info in infos if isinstance(info, dict) and info.get("dex")})
    return [PositionCall("linear"), *(PositionCall("other", {"dex": builder}) for builder in builders)]


def _digifinex(_client: Any) -> list[PositionCall]:
    return [PositionCall("linear", {"type": "swap"})]


def _first(names: Iterable[str], first: str) -> list[str]:
    return sorted(names, key=lambda name: (name != first, name))


def _settled_in(settle: str) -> Family:
    return "usdc" if settle.upper() == "USDC" else "linear" if settle.upper() in _DOLLARS else "inverse"


_CALLS: dict[str, Callable[[Any], list[PositionCall]]] = {
    "binance": _binance, "bybit": _bybit, "gate": _gate, "bitget": _bitget, "htx": _htx, "bingx": _linear_and_inverse,
    "xt": _linear_and_inverse, "phemex": _phemex, "digifinex": _digifinex,
    "hyperliquid": _hyperliquid,
    # Each is one family of Binance by itself.
    "binanceusdm": lambda _client: [PositionCall("linear")],
    "binancecoinm": lambda _client: [PositionCall("linear", {"subType": "inverse"})],
}  # fmt: skip

_NOT_ASKED: dict[str, tuple[str, ...]] = {
    "bingx": ("other",),  # its "standard" contracts
    "bitget": ("margin",), "coinbase": ("swap",), "digifinex": ("margin",), "hitbtc": ("margin",),
    "phemex": ("usdc",),
}  # fmt: skip
