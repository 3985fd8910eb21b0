"""Markets with their trading rules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from ledger_sizer.model.arguments import (
    LABEL,
    NOT_NEGATIVE,
    POSITIVE,
    Argument,
    DeclaredArgument,
    Kind,
    canonical_fields,
    check_arguments,
    declared,
    json_values,
    to_json,
)
from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import decimal_text, exact_arithmetic

NAME_PATTERN = r"^[a-z0-9_]{1,32}:[A-Za-z0-9/:._-]{1,64}$"
"""`venue:symbol` with ccxt's names: `bybit:BTC/USDT` is a spot market, `bybit:BTC/USDT:USDT` a perpetual."""

_NAME = re.compile(NAME_PATTERN)


def instrument_name(value: object, field: str) -> str:
    """Return `value` if it is a valid instrument name, else raise `InvalidRequest`."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return str.__str__(value)
    raise InvalidRequest(
        f"{field} must be an InstrumentInfo or a name such as bybit:BTC/USDT, got {value!r}", field=field
    )


_NAMED = Kind(name="instrument_name", check=instrument_name)


@declared
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

    arguments: ClassVar[tuple[DeclaredArgument, ...]]

    symbol: Annotated[str, Argument(LABEL, examples=("BTC/USDT:USDT",))]
    min_qty: Annotated[Decimal, Argument(NOT_NEGATIVE)]
    max_qty: Annotated[Decimal, Argument(POSITIVE)]
    qty_step: Annotated[Decimal, Argument(POSITIVE)]
    min_notional: Annotated[Decimal, Argument(NOT_NEGATIVE)] = Decimal("0")
    tick_size: Annotated[Decimal, Argument(POSITIVE)] = Decimal("0.01")
    contract_size: Annotated[Decimal, Argument(POSITIVE)] = Decimal("1")
    listed_as: Annotated[str | None, Argument(_NAMED, sent=False)] = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_arguments(self)
        if self.max_qty < self.min_qty:
            raise InvalidRequest(
                f"{self.symbol}: max_qty {decimal_text(self.max_qty)} is below min_qty {decimal_text(self.min_qty)}",
                field="max_qty",
            )

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
    kind: MarketKind
    active: bool
    instrument: InstrumentInfo | None
    refused: str | None = None

    @property
    def name(self) -> str:
        """`venue:symbol`, such as `bybit:BTC/USDT:USDT`."""
        return f"{self.venue}:{self.symbol}"


# --- JSON --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def canonical_text(value: InstrumentInfo) -> str:
    """Return canonical JSON of trading rules: the fields that are not None, sorted by name."""
    return f"{{{canonical_fields(value)[1:]}}}"


FIGURES = tuple(one.name for one in InstrumentInfo.arguments if one.kind in (POSITIVE, NOT_NEGATIVE))
"""Names of the figures of trading rules, in order."""


def instrument_to_json(instrument: InstrumentInfo) -> dict[str, Any]:
    """Convert trading rules to JSON, decimals as text; without `listed_as`."""
    return to_json(instrument)


def instrument_from_json(form: Mapping[str, Any]) -> InstrumentInfo:
    """Convert JSON back to trading rules. It may have a `listed_as`, as a recorded request does."""
    return InstrumentInfo(**json_values(InstrumentInfo, form), listed_as=form.get("listed_as"))
