"""Markets with their trading rules, and legs, the sides of a position."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import decimal_text, exact_arithmetic, not_negative, positive

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode

Kind = Literal["spot", "swap"]
Side = Literal["buy", "sell"]

NAME_PATTERN = r"^[a-z0-9_]{1,32}:[A-Za-z0-9/:._-]{1,64}$"
"""`venue:symbol` with ccxt's names: `bybit:BTC/USDT` is a spot market, `bybit:BTC/USDT:USDT` a perpetual."""

_NAME = re.compile(NAME_PATTERN)


def instrument_name(value: str, field: str) -> str:
    """Return `value` if it is a valid instrument name, else raise `InvalidRequest`."""
    if _NAME.fullmatch(value):
        return str.__str__(value)
    raise InvalidRequest(
        f"{field} must be an InstrumentInfo or a name such as bybit:BTC/USDT, got {value!r}", field=field
    )


@dataclass(frozen=True, slots=True)
class InstrumentInfo:
    """Trading rules of one market, as its exchange states them.

    symbol: the market's name, e.g. `BTC/USDT:USDT`.
    min_qty, max_qty, qty_step: smallest and largest order and the step size, in the exchange's own quantity unit.
    min_notional: smallest order value in quote currency (USD). tick_size: price step.
    contract_size: base units per quantity unit. 1 for spot and most linear perpetuals; 0.01 for OKX BTC-USDT-SWAP.
    listed_as: the name (`venue:symbol`) these rules were looked up by; None where the caller gave the rules.

    Raises `InvalidRequest` for a float, NaN, a step or contract size <= 0, or max_qty below min_qty.
    """

    symbol: str
    min_qty: Decimal
    max_qty: Decimal
    qty_step: Decimal
    min_notional: Decimal = Decimal("0")
    tick_size: Decimal = Decimal("0.01")
    contract_size: Decimal = Decimal("1")
    listed_as: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "symbol", label_text(self.symbol, "symbol"))
        put(self, "min_qty", not_negative(self.min_qty, "min_qty"))
        put(self, "max_qty", positive(self.max_qty, "max_qty"))
        put(self, "qty_step", positive(self.qty_step, "qty_step"))
        put(self, "min_notional", not_negative(self.min_notional, "min_notional"))
        put(self, "tick_size", positive(self.tick_size, "tick_size"))
        put(self, "contract_size", positive(self.contract_size, "contract_size"))
        if self.max_qty < self.min_qty:
            raise InvalidRequest(
                f"{self.symbol}: max_qty {self.max_qty} is below min_qty {self.min_qty}", field="max_qty"
            )
        if self.listed_as is not None:
            put(self, "listed_as", instrument_name(self.listed_as, "listed_as"))

    @property
    def venue(self) -> str | None:
        """The exchange in `listed_as`; None without one."""
        return None if self.listed_as is None else self.listed_as.partition(":")[0]

    def base_units(self, quantity: Decimal) -> Decimal:
        """Convert a quantity from the exchange's unit to base units: quantity x contract_size, exact."""
        with exact_arithmetic():
            return quantity * self.contract_size


@dataclass(frozen=True, slots=True)
class MarketRules:
    """One market of an exchange: its trading rules, or why they cannot be used.

    active: whether the exchange takes orders now. refused: why its rules cannot be used; `instrument` is None then.
    """

    venue: str
    symbol: str
    kind: Kind
    active: bool
    instrument: InstrumentInfo | None
    refused: str | None = None

    @property
    def name(self) -> str:
        """`venue:symbol`, such as `bybit:BTC/USDT:USDT`."""
        return f"{self.venue}:{self.symbol}"


def label_text(value: object, what: str, *, length_max: int = 128) -> str:
    """Return `value` as plain text if it has 1..length_max printable characters, else raise.

    Control characters are refused everywhere because the audit chain joins fields with them. An `Enum` member that is
    a `str` is returned as its plain text: the two are equal, but an f-string would write the member's name.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be text, got {type(value).__name__} {value!r}", field=what)
    if not 1 <= len(value) <= length_max:
        raise InvalidRequest(f"{what} must have 1 to {length_max} characters, got {len(value)}", field=what)
    if not value.isprintable():
        raise InvalidRequest(f"{what} has a control or unprintable character: {value!r}", field=what)
    return str.__str__(value)


@dataclass(frozen=True, slots=True)
class Leg:
    """One side of a position on one venue. quantity: base units. price: USD per base unit, None until filled."""

    venue: str
    symbol: str
    kind: Kind
    side: Side
    quantity: Decimal
    price: Decimal | None = None

    def __post_init__(self) -> None:
        if self.venue:
            object.__setattr__(self, "venue", label_text(self.venue, "venue"))
        object.__setattr__(self, "symbol", label_text(self.symbol, "symbol"))
        if self.kind not in ("spot", "swap"):
            raise InvalidRequest(f"leg kind must be 'spot' or 'swap', got {self.kind!r}", field="kind")
        if self.side not in ("buy", "sell"):
            raise InvalidRequest(f"leg side must be 'buy' or 'sell', got {self.side!r}", field="side")
        object.__setattr__(self, "quantity", positive(self.quantity, "quantity"))
        if self.price is not None:
            object.__setattr__(self, "price", positive(self.price, "price"))


def legs_text(legs: Sequence[Leg]) -> str:
    """Return canonical JSON of legs: [[venue, symbol, kind, side, quantity, price | null], ...]."""
    if not legs:
        return "[]"
    return _encode(
        [
            [
                leg.venue,
                leg.symbol,
                leg.kind,
                leg.side,
                decimal_text(leg.quantity),
                leg.price and decimal_text(leg.price),
            ]
            for leg in legs
        ]
    )


def legs_of(text: str) -> tuple[Leg, ...]:
    """Return the legs of a stored `legs_text`."""
    if text == "[]":
        return ()
    return tuple(
        Leg(venue, symbol, kind, side, Decimal(quantity), None if price is None else Decimal(price))
        for venue, symbol, kind, side, quantity, price in json.loads(text)
    )
