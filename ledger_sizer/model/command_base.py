"""Base classes of the commands: idempotency key, portfolio or position, and the canonical request text."""

import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import ClassVar

from ledger_sizer.model.domain import split_position_id, time_text
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, Leg, label_text
from ledger_sizer.model.tags import Tags, encode_sorted
from ledger_sizer.model.units import decimal_text, exact_arithmetic

TTL_SECONDS_MAX = 30 * 24 * 3600
KEY_LENGTH_MAX = 200
SYSTEM_KEY_PREFIX = "ledger:"
"""Prefix of the keys of the ledger's own commands (expiries); refused from callers."""

_PORTFOLIO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_quoted = lru_cache(maxsize=8192)(encode_sorted)


def portfolio_name(value: object) -> str:
    """Return a valid portfolio name: 1 to 64 letters, digits, `_`, `.` or `-`, a letter or digit first; else raise."""
    if isinstance(value, str) and _PORTFOLIO.fullmatch(value):
        return str.__str__(value)
    raise InvalidRequest(
        f"portfolio must be 1 to 64 letters, digits, '_', '.' or '-', got {value!r}", field="portfolio"
    )


def ttl_us(value: object, name: str = "ttl_seconds") -> int:
    """Convert seconds (int, Decimal or float: time is not money) to microseconds. Range: 0 < seconds <= 30 days."""
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if isinstance(value, float):
        number = math.isfinite(value)
    elif isinstance(value, Decimal):
        number = value.is_finite()
    if not number or not 0 < value <= TTL_SECONDS_MAX:  # type: ignore[operator]
        raise InvalidRequest(f"{name} must be above 0 and at most {TTL_SECONDS_MAX} seconds, got {value}", field=name)
    with exact_arithmetic():
        return max(int(value * 1_000_000), 1)  # type: ignore[operator]


def exact_seconds(value: object) -> int | Decimal:
    """Return a TTL as exact seconds with at most six decimals."""
    us = ttl_us(value)
    return value if type(value) is int else Decimal(f"{us}E-6")


def _json(value: object) -> str:
    """Return canonical JSON of one argument. Numbers become strings, so that equal numbers have equal text."""
    if isinstance(value, str):
        return encode_sorted(value)
    if isinstance(value, Decimal):
        return f'"{decimal_text(value)}"'
    if isinstance(value, Tags):
        return value.text
    if isinstance(value, datetime):
        return f'"{time_text(value)}"'
    if isinstance(value, tuple):
        return f"[{','.join([_json(part) for part in value])}]"
    if isinstance(value, InstrumentInfo | Leg):
        return _json_of_frozen(value)
    return f'"{value}"'


@lru_cache(maxsize=8192)
def _json_of_frozen(value: InstrumentInfo | Leg) -> str:
    parts = [(name, getattr(value, name)) for name in sorted(value.__slots__)]
    return f"{{{','.join([f'{_quoted(name)}:{_json(part)}' for name, part in parts if part is not None])}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Base of all commands. key: the idempotency key, 1 to 200 printable characters."""

    verb: ClassVar[str]
    recorded_fields: ClassVar[tuple[str, ...]]

    key: str

    def _check_key(self) -> None:
        object.__setattr__(self, "key", label_text(self.key, "key", length_max=KEY_LENGTH_MAX))
        if self.key.startswith(SYSTEM_KEY_PREFIX):
            raise InvalidRequest(f"key {self.key!r}: the prefix {SYSTEM_KEY_PREFIX!r} is the ledger's own", field="key")

    def request_text(self) -> str:
        """Return canonical JSON of the request without its key. Equal requests give equal text."""
        parts = [f'"command":"{self.verb}"']
        for name in self.recorded_fields:
            value = getattr(self, name)
            if value is not None:
                parts.append(f'"{name}":{_json(value)}')
        return f"{{{','.join(parts)}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortfolioCommand(Command):
    """Base of the commands that name their portfolio."""

    portfolio: str = "main"

    def _check_portfolio(self) -> None:
        object.__setattr__(self, "portfolio", portfolio_name(self.portfolio))


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionCommand(Command):
    """Base of the commands about one position. Its portfolio is part of the position's name."""

    position_id: str
    portfolio: str = field(init=False)
    number: int = field(init=False)

    def _check_position(self) -> None:
        portfolio, number = split_position_id(self.position_id)
        object.__setattr__(self, "portfolio", portfolio_name(portfolio))
        object.__setattr__(self, "number", number)
