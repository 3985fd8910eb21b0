"""Whether a response holds what it must: its list of rows, and amounts that somebody read."""

import re
from decimal import Decimal
from typing import Any

from ledger_sizer.model.units import parse_decimal

_AMOUNT = re.compile("amount|avail|balance|cash|collateral|equity|free|froz|hold|lock|total|wallet", re.IGNORECASE)


def carries_rows(venue: str, response: Any, *, empty: bool = True) -> bool:
    """Whether a response about positions or balances contains its list of rows. empty: whether that may be empty.

    Checked for Bybit, Binance and OKX. For other exchanges complete JSON has to suffice.
    """
    rows: Any = response
    if venue == "bybit":
        result = response.get("result") if isinstance(response, dict) else None
        rows = result.get("list", result.get("balance")) if isinstance(result, dict) else None
    elif venue == "okx":
        rows = response.get("data") if isinstance(response, dict) else None
    elif venue == "binance":
        if isinstance(response, dict):
            # Of the spot wallet, of the futures and isolated wallets, of the margin wallet.
            rows = response.get("balances", response.get("assets", response.get("userAssets")))
    else:
        return True
    return isinstance(rows, list) and (empty or bool(rows))


def shows_amounts(response: Any) -> bool:
    """Whether a response about balances shows an amount other than zero anywhere. It errs on the side of yes."""
    if isinstance(response, list):
        return any(shows_amounts(one) for one in response)
    if not isinstance(response, dict):
        return False
    return any(
        shows_amounts(value) if isinstance(value, dict | list) else bool(_AMOUNT.search(name)) and _is_amount(value)
        for name, value in response.items()
    )


def _is_amount(value: Any) -> bool:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return False
    try:
        return parse_decimal(str(value)) not in (Decimal(0), Decimal("NaN"))
    except ArithmeticError:
        return False
