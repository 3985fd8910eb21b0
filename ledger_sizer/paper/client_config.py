"""Tells how to point a ccxt client, or a bot that uses one, at a paper venue."""

from typing import Any

from ledger_sizer.paper.markets import Venue

_PATHS: dict[Venue, dict[str, tuple[str, ...]]] = {
    "bybit": {"": ("public", "private")},
    "okx": {"": ("rest",)},
    "binance": {
        "/api/v3": ("public", "private"),
        "/fapi/v1": ("fapiPublic", "fapiPrivate"),
        "/fapi/v2": ("fapiPublicV2", "fapiPrivateV2"),
        "/fapi/v3": ("fapiPublicV3", "fapiPrivateV3"),
        "/dapi/v1": ("dapiPublic", "dapiPrivate"),
        "/dapi/v2": ("dapiPrivateV2",),
        "/eapi/v1": ("eapiPublic", "eapiPrivate"),
        "/sapi/v1": ("sapi",),
        "/sapi/v2": ("sapiV2",),
        "/sapi/v3": ("sapiV3",),
        "/sapi/v4": ("sapiV4",),
        "/futures/data": ("fapiData", "dapiData"),
    },
}
"""What each exchange has in ccxt's `urls["api"]`, by the path that follows the address."""


def ccxt_config(venue: Venue, url: str) -> dict[str, Any]:
    """Return settings for the constructor of a ccxt client, or for `exchange.ccxt_config` of freqtrade.

    url: the paper server's. The key, the secret and OKX's passphrase are not part of it.
    """
    addresses = {name: f"{url}{path}" for path, names in _PATHS[venue].items() for name in names}
    # A paper server has no rate limit.
    return {"urls": {"api": addresses}, "enableRateLimit": False}
