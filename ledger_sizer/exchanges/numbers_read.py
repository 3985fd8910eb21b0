"""Reads numbers from ccxt's answers: exact decimals, or `Unreadable`."""

from decimal import Decimal, InvalidOperation
from typing import Any

from ledger_sizer.model.units import parse_decimal


class Unreadable(Exception):
    """The exchange responded, but the response cannot be relied on."""


def decimal_of(value: Any, what: str) -> Decimal:
    """Parse a number that ccxt returns as text. Raises `Unreadable` for anything else, a float included."""
    try:
        number = parse_decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite():
        raise Unreadable(f"{what} is {value!r}, not a number")
    return number


def price_of(value: Any) -> Decimal | None:
    """Parse a price; None where the exchange states none, or 0. Raises `Unreadable`."""
    price = None if is_blank(value) else decimal_of(value, "price")
    return price or None


def is_blank(value: Any) -> bool:
    """Whether the exchange left a field empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_nothing(value: Any) -> bool:
    """Whether a number is blank or 0."""
    return is_blank(value) or decimal_of(value, "a number") == 0
