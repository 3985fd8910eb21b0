"""Writes rows of option positions in each exchange's format. Options are held, not listed and not traded here."""

from typing import Any

from ledger_sizer.paper.accounts import Account, now_ms
from ledger_sizer.paper.http import text_of


def binance_options(account: Account) -> list[dict[str, Any]]:
    """Return the rows of `/eapi/v1/position`."""
    return [
        {"symbol": name, "side": "LONG" if units > 0 else "SHORT", "quantity": text_of(abs(units)), "entryPrice": "100",
         "markPrice": "100", "markValue": text_of(units * 100), "positionCost": text_of(units * 100),
         "unrealizedPNL": "0", "quoteAsset": "USDT", "time": now_ms()}
        for name, units in sorted(account.options.items())
    ]  # fmt: skip


def bybit_options(account: Account) -> list[dict[str, Any]]:
    """Return the rows of `/v5/position/list` with `category=option`."""
    return [
        {"positionIdx": 0, "symbol": name, "side": "Buy" if units > 0 else "Sell", "size": text_of(abs(units)),
         "avgPrice": "100", "positionValue": text_of(abs(units) * 100), "markPrice": "100", "leverage": "",
         "unrealisedPnl": "0", "positionIM": "0", "positionMM": "0", "liqPrice": "", "positionStatus": "Normal",
         "tradeMode": 0, "createdTime": str(now_ms()), "updatedTime": str(now_ms())}
        for name, units in sorted(account.options.items())
    ]  # fmt: skip


def okx_options(account: Account) -> list[dict[str, Any]]:
    """Return the option rows of `/api/v5/account/positions`."""
    return [
        {"instId": name, "instType": "OPTION", "mgnMode": "cross", "posId": name, "posSide": "net",
         "pos": text_of(units), "avgPx": "0.01", "markPx": "0.01", "lever": "", "notionalUsd": "", "upl": "0",
         "optVal": "0.01", "imr": "0", "margin": "", "mmr": "0", "liqPx": "", "ccy": name.partition("-")[0],
         "cTime": str(now_ms()), "uTime": str(now_ms())}
        for name, units in sorted(account.options.items())
    ]  # fmt: skip
