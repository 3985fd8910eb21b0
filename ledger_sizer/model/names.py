"""Names of portfolios and positions. A position is named by its portfolio and a number: `main-17`."""

import re

from ledger_sizer.model.errors import InvalidRequest

PORTFOLIO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
PORTFOLIO_OR_DESK_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63}|\*)$"
POSITION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}-[0-9]{1,18}$"

DESK = "*"
"""Stands for all portfolios, those to come too: in `halt`, `resume` and `remark`, and as the name of the desk's chain.

No portfolio can have this name.
"""

SEQ_MAX = 10**18 - 1
"""Largest seq that may be asked for, and largest number of a position: 18 digits."""

_PORTFOLIO = re.compile(PORTFOLIO_PATTERN)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
"""Number of a position, without leading zeros: one position has one name."""


def portfolio_name(value: object, name: str = "portfolio") -> str:
    """Return a valid portfolio name: 1 to 64 letters, digits, `_`, `.` or `-`, a letter or digit first; else raise."""
    if isinstance(value, str) and _PORTFOLIO.fullmatch(value):
        return str.__str__(value)
    raise InvalidRequest(f"{name} must be 1 to 64 letters, digits, '_', '.' or '-', got {value!r}", field=name)


def portfolio_or_desk(value: object, name: str = "portfolio") -> str:
    """Return a valid portfolio name, or `DESK`; else raise `InvalidRequest`."""
    return DESK if value == DESK else portfolio_name(value, name)


def position_id(portfolio: str, number: int) -> str:
    """Return the public name of a position."""
    return f"{portfolio}-{number}"


def split_position_id(value: object) -> tuple[str, int]:
    """Split `main-17` into (`main`, 17). Raise `InvalidRequest` for anything that is no position name."""
    if isinstance(value, str):
        portfolio, dash, number = value.rpartition("-")
        if dash and _PORTFOLIO.fullmatch(portfolio) and _NUMBER.fullmatch(number):
            return portfolio, int(number)
    raise InvalidRequest(f"position_id must look like 'main-17', got {value!r}", field="position_id")
