"""Names that exchanges give to coins which are lent, staked or saved there, and the coins that these stand for.

Public lists: Binance's flexible earn (`LDBTC`), Kraken's earn and staking (`ETH.F`, `DOT28.S`, `XBT.M`, `ETH2`).
"""

import re
from collections.abc import Callable, Container

_KRAKEN = re.compile(r"([A-Z0-9]+?)(?:\d\d)?\.(?:[FSMBPT]|HOLD)")
"""F: auto earn, S: staked, M: opt-in rewards, B: yield-bearing, P: parachain, T: tokenized; a number: days bonded."""


def earned_coin(venue: str, asset: str, is_known: Container[str]) -> str | None:
    """Return the coin that an asset stands for; None for a coin itself. is_known: coins of the markets, and dollars.

    A name is taken for another's only where the rest of it is known: `LDO` is a coin of its own.
    """
    read = _READ.get(venue)
    coin = None if read is None else read(asset)
    return coin if coin is not None and coin != asset and coin in is_known else None


def _binance(asset: str) -> str | None:
    return asset[2:] if asset.startswith("LD") else None


def _kraken(asset: str) -> str | None:
    found = _KRAKEN.fullmatch(asset)
    coin = asset if found is None else found[1]
    coin = {"ETH2": "ETH", "XBT": "BTC", "XDG": "DOGE"}.get(coin, coin)
    return None if coin == asset else coin


_READ: dict[str, Callable[[str], str | None]] = {"binance": _binance, "binanceus": _binance, "kraken": _kraken}
