"""Names of markets: `venue:symbol`, ccxt's symbols, and the factor in the name of a multiplied coin (1000PEPE)."""

import re
from functools import lru_cache
from typing import NamedTuple

from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.errors import InvalidRequest

NAME_PATTERN = r"^[a-z0-9_]{1,32}:[^\s\x00-\x1f\x7f-\x9f]{1,64}$"
"""`venue:symbol` with ccxt's names, in any script: `bybit:BTC/USDT` is spot, `bybit:BTC/USDT:USDT` a perpetual.

Python's `re` and the regular expressions of pydantic read it alike. `instrument_name` refuses unprintable characters
too, which no pattern that both understand can list.
"""

_NAME = re.compile(NAME_PATTERN)
_CCXT = re.compile(r"([^/:\s]+)/([^/:\s]+)(?::([^/:\s-]+)(?:-([0-9]{6}))?)?")
_PLAIN_FACTOR = re.compile(r"(10{3,9})([^\W\d_].*)", re.DOTALL)
_LETTER_FACTOR = re.compile(r"1([MmKk])([^\W\d_]{3}.*)|(k)([A-Z]{2}[A-Z0-9]*)", re.DOTALL)
_FACTOR_LAST = re.compile(r"([^\W\d_]{2,})(10{3,9})")


def instrument_name(value: object, field: str) -> str:
    """Return `value` if it is a valid instrument name, else raise `InvalidRequest`."""
    if isinstance(value, str) and _NAME.fullmatch(value) and value.isprintable():
        return str.__str__(value)
    raise InvalidRequest(
        f"{field} must be an InstrumentInfo or a name such as bybit:BTC/USDT, got {value!r}", field=field
    )


class MarketName(NamedTuple):
    """What a symbol says about its market. settle: None for a spot market."""

    kind: MarketKind
    base: str
    quote: str
    settle: str | None


@lru_cache(maxsize=8192)
def parse_symbol(symbol: str) -> MarketName | None:
    """Return what a symbol of ccxt says: `BASE/QUOTE`, `BASE/QUOTE:SETTLE` or `BASE/QUOTE:SETTLE-YYMMDD`; else None."""
    found = _CCXT.fullmatch(symbol)
    if found is None:
        return None
    base, quote, settle, date = found.groups()
    kind: MarketKind = "spot" if settle is None else "swap" if date is None else "future"
    return MarketName(kind, base, quote, settle)


@lru_cache(maxsize=8192)
def split_factor(base: str) -> tuple[int, str]:
    """Return the factor in the name of a base and its coin: 1000PEPE is (1000, PEPE), BTC is (1, BTC).

    Forms that exchanges use: 1000PEPE, 10000LADYS, 1000000MOG, 1000X (1 and 3 to 9 zeros, then a letter; 1000X is 1000
    of X Empire); SHIB1000 (a coin of letters, then such a number); 1MBABYDOGE and 1KSHIB (M: a million, K: a thousand,
    then at least three letters: 1MIL and 1KX are coins); kPEPE (a lower-case k, then at least two capitals). 1INCH,
    100X, 10SET and SPX6900 are coins. A name that only looks multiplied is refused for sizing until its multiplier is
    told; a factor that is not seen leaves it a coin of its own, which is a hedge of nothing else.
    """
    if base[:2] == "10" and (found := _PLAIN_FACTOR.fullmatch(base)):
        return int(found[1]), found[2]
    if base[:1] in ("1", "k") and (found := _LETTER_FACTOR.fullmatch(base)):
        letter = found[1] or found[3]
        return 1_000_000 if letter in "Mm" else 1000, found[2] or found[4]
    if base[-3:] == "000" and (found := _FACTOR_LAST.fullmatch(base)):
        return int(found[2]), found[1]
    return 1, base


@lru_cache(maxsize=8192)
def coin_of(symbol: str) -> str:
    """Return the coin of a market's symbol, or of a `symbol` tag: `BTC` of `BTC`, `BTC/USDT` and `BTC/USDT:USDT`."""
    return split_factor(symbol.partition("/")[0])[1]


def renamed_symbol(symbol: str, coin: str, asset: str) -> str:
    """Return a market's symbol, or a `symbol` tag, with another coin: the rest of it stays.

    A factor in the name stays too, unless it would not be read as one before the new coin.
    """
    base, slash, rest = symbol.partition("/")
    renamed = base.replace(coin, asset, 1)
    return f"{renamed if coin_of(renamed) == asset else asset}{slash}{rest}"


def coins_of_symbol(symbol: str) -> tuple[int, str | None]:
    """Return the factor and the coin of a market's symbol; (1, None) for a symbol that is not one of ccxt's."""
    said = parse_symbol(symbol)
    return (1, None) if said is None else split_factor(said.base)
