"""Markets with their trading rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Protocol, get_args

from ledger_sizer.model.arguments import (
    LABEL,
    NOT_NEGATIVE,
    POSITIVE,
    Argument,
    DeclaredArgument,
    Kind,
    check_arguments,
    checked_flag,
    choice,
    declared,
    field_prefix,
    json_values,
    label_text,
    to_json,
)
from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.market_names import instrument_name, parse_symbol, split_factor
from ledger_sizer.model.units import decimal_text, exact_arithmetic, exact_decimal


def _checked_asset(value: object, name: str) -> str:
    text = label_text(value, name, length_max=64)
    if not any(map(str.isspace, text)):
        return text
    raise InvalidRequest(f"{name} must be an asset's code such as BTC, without spaces, got {value!r}", field=name)


_NAMED = Kind(name="instrument_name", check=instrument_name)
SWITCH = Kind(name="switch", check=checked_flag, text=lambda value: "true" if value else "false")
"""A flag whose canonical text is JSON's, so that recorded rules are read as they were sent."""
_ASSET = Kind(name="asset", check=_checked_asset, length=(1, 64), examples=("BTC",))

_ONE = Decimal(1)
_put = object.__setattr__


_OTHER_CONTRACT_SIZES = ("contractSize", "contract_value", "contract_val", "ctVal", "ct_val")
"""What others call a contract's size. Without `contract_size` it would count as 1, and every size be wrong by it."""
_REQUIRED = ("symbol", "min_qty", "max_qty", "qty_step")


class InstrumentLike(Protocol):
    """An instrument object of a bot's own: these fields, and whichever else of `InstrumentInfo` it has."""

    @property
    def symbol(self) -> str:
        """Name of the market."""

    @property
    def min_qty(self) -> Decimal:
        """Smallest order, in the exchange's unit."""

    @property
    def max_qty(self) -> Decimal:
        """Largest order."""

    @property
    def qty_step(self) -> Decimal:
        """Step of an order's quantity."""


@declared
@dataclass(frozen=True, slots=True)
class InstrumentInfo:
    """Trading rules of one market, as its exchange states them.

    symbol: the market's name, e.g. `BTC/USDT:USDT`.
    min_qty, max_qty, qty_step: smallest and largest order and the step size, in the exchange's own quantity unit.
    min_notional: smallest order value in quote currency (USD). tick_size: price step.
    contract_size: base units per quantity unit. 1 for spot and most linear perpetuals; 0.01 for OKX BTC-USDT-SWAP.
    listed_as: the name (`venue:symbol`) these rules were looked up by; None where the caller gave the rules.
    kind, base, quote, settle: what the market is, and its assets. Where not given they are read from a symbol of ccxt's
    form; they are None for a symbol of another form. base: as the venue names it, such as `1000PEPE`.
    venue: the exchange; where not given that of `listed_as`.
    multiplier: coins in one unit of the base as the venue names it, 1000 for 1000PEPE. It is not read from the name.
    max_notional: largest order value in quote currency (USD). None: no maximum.
    buys_by_cost: whether a market buy there takes its cost in quote currency instead of an amount.
    unit: coins in one unit of the exchange's order quantity: contract_size x multiplier, exact.

    Raises `InvalidRequest` for a float, NaN, a step or contract size <= 0, max_qty below min_qty, max_notional below
    min_notional, and for what contradicts the symbol or `listed_as`.
    """

    arguments: ClassVar[tuple[DeclaredArgument, ...]]
    texts: ClassVar[tuple[tuple[str, str, Callable[[Any], str]], ...]]

    symbol: Annotated[str, Argument(LABEL, examples=("BTC/USDT:USDT",))]
    min_qty: Annotated[Decimal, Argument(NOT_NEGATIVE)]
    max_qty: Annotated[Decimal, Argument(POSITIVE)]
    qty_step: Annotated[Decimal, Argument(POSITIVE)]
    min_notional: Annotated[Decimal, Argument(NOT_NEGATIVE)] = Decimal("0")
    tick_size: Annotated[Decimal, Argument(POSITIVE)] = Decimal("0.01")
    contract_size: Annotated[Decimal, Argument(POSITIVE)] = Decimal("1")
    listed_as: Annotated[str | None, Argument(_NAMED, sent=False)] = field(default=None, kw_only=True)
    # Without part in the hash: it is computed for every command, and the fields above tell markets apart.
    kind: Annotated[MarketKind | None, Argument(choice(*get_args(MarketKind)))] = field(
        default=None, kw_only=True, hash=False
    )
    base: Annotated[str | None, Argument(_ASSET)] = field(default=None, kw_only=True, hash=False)
    quote: Annotated[str | None, Argument(_ASSET)] = field(default=None, kw_only=True, hash=False)
    settle: Annotated[str | None, Argument(_ASSET)] = field(default=None, kw_only=True, hash=False)
    venue: Annotated[str | None, Argument(LABEL, examples=("bybit",))] = field(default=None, kw_only=True, hash=False)
    multiplier: Annotated[Decimal, Argument(POSITIVE)] = field(default=_ONE, kw_only=True, hash=False)
    max_notional: Annotated[Decimal | None, Argument(POSITIVE)] = field(default=None, kw_only=True, hash=False)
    buys_by_cost: Annotated[bool, Argument(SWITCH)] = field(default=False, kw_only=True, hash=False)
    unit: Decimal = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, instrument: InstrumentLike, name: str = "instrument") -> "InstrumentInfo":
        """Return the trading rules in any object that has their fields: a dataclass, a pydantic model, a named tuple.

        It must have `symbol`, `min_qty`, `max_qty`, `qty_step`; of the others each is taken that it has and that is
        not None. name: of the argument, in errors. Raises `InvalidRequest` for a field that is missing, and as the
        constructor does.
        """
        if isinstance(instrument, cls):
            return instrument
        kind = type(instrument).__name__
        given = {one.name: getattr(instrument, one.name, None) for one in cls.arguments}
        for name_of_market in ("kind", "base", "quote", "settle", "venue"):
            if callable(given[name_of_market]):  # a method, such as one that settles; the symbol says the same
                given[name_of_market] = None
        missing = [name for name in _REQUIRED if given[name] is None]
        if len(missing) == len(_REQUIRED):
            raise InvalidRequest(
                f"{name} must be an InstrumentInfo, or an object with {', '.join(_REQUIRED)}, got {kind}", field=name
            )
        with field_prefix(name):
            if missing:
                raise InvalidRequest(
                    f"{kind} has no {missing[0]}; give it that field, or give InstrumentInfo({', '.join(_REQUIRED)})",
                    field=missing[0],
                )
            other = next((other for other in _OTHER_CONTRACT_SIZES if hasattr(instrument, other)), None)
            if other is not None and given["contract_size"] is None:
                raise InvalidRequest(
                    f"{kind} has {other} and no contract_size; give it contract_size, the coins in one unit of its "
                    "quantities (1 where it counts coins)",
                    field="contract_size",
                )
            try:
                return cls(
                    **{
                        name: value.value if isinstance(value, Enum) else value
                        for name, value in given.items()
                        if value is not None
                    }
                )
            except InvalidRequest as error:
                raise InvalidRequest(f"{kind}: {error}", field=error.field) from None

    def __post_init__(self) -> None:
        check_arguments(self)
        if self.max_qty < self.min_qty:
            raise InvalidRequest(
                f"{self.symbol}: max_qty {decimal_text(self.max_qty)} is below min_qty {decimal_text(self.min_qty)}",
                field="max_qty",
            )
        if self.max_notional is not None and self.max_notional < self.min_notional:
            raise InvalidRequest(
                f"{self.symbol}: max_notional {decimal_text(self.max_notional)} is below min_notional "
                f"{decimal_text(self.min_notional)}",
                field="max_notional",
            )
        self._fill_in(("kind", "base", "quote", "settle"), parse_symbol(self.symbol))
        if self.listed_as is not None:
            self._fill_in(("venue",), (self.listed_as.partition(":")[0],))
        unit = self.contract_size
        if self.multiplier is not _ONE:
            with exact_arithmetic():
                unit = exact_decimal(unit * self.multiplier, "multiplier")
        _put(self, "unit", unit)

    def _fill_in(self, names: tuple[str, ...], implied: tuple[str | None, ...] | None) -> None:
        for name, said in zip(names, implied or (), strict=False):
            given = getattr(self, name)
            if given is None:
                _put(self, name, said)
            elif given != said and not (name == "base" and _same_base(given, said)):
                self._refuse_contradiction(name, given, said)

    def _refuse_contradiction(self, name: str, given: str, said: str | None) -> None:
        source = f"listed_as {self.listed_as!r}" if name == "venue" else f"the symbol {self.symbol!r}"
        says = "names none" if said is None else f"says {said!r}"
        raise InvalidRequest(
            f"{self.symbol}: {name} {given!r} contradicts {source}, which {says}; leave {name} out", field=name
        )

    @property
    def asset(self) -> str | None:
        """The coin: the base without the factor in its name, `PEPE` of `1000PEPE`. None where the base is not known."""
        return None if self.base is None else split_factor(self.base)[1]

    def base_units(self, quantity: Decimal) -> Decimal:
        """Convert a quantity from the exchange's unit to coins: quantity x contract_size x multiplier, exact."""
        with exact_arithmetic():
            return quantity * self.unit

    def require_multiplier(self) -> None:
        """Raise `InvalidRequest` where the name has a factor (1000PEPE) that the figures lack. It is never guessed.

        Fine is a multiplier that is the factor, and a contract_size x multiplier that contains it.
        """
        factor = 1 if self.base is None else split_factor(self.base)[0]
        if factor in (1, self.multiplier):
            return
        with exact_arithmetic():
            if self.unit % factor == 0:
                return
        raise InvalidRequest(
            f"{self.symbol}: its name counts {factor} coins a unit, and multiplier {decimal_text(self.multiplier)} x "
            f"contract_size {decimal_text(self.contract_size)} does not contain that; give multiplier={factor}, or "
            "load the rules with: ledger-sizer instruments refresh",
            field="multiplier",
        )

    def require_linear(self) -> None:
        """Raise `InvalidRequest` for an inverse contract."""
        if self.settle is not None and self.settle in (self.base, self.asset):
            raise InvalidRequest(
                f"{self.symbol} is an inverse contract: it is settled in {self.settle}, its base asset, so its USD "
                "value is not linear; use the contract that is settled in a dollar currency",
                field="settle",
            )

    def require_usable(self) -> None:
        """Raise `InvalidRequest` for what cannot be sized in coins: an inverse contract, a missing multiplier."""
        self.require_linear()
        self.require_multiplier()


def _same_base(given: str, said: str | None) -> bool:
    """Whether the two name one base: ccxt writes Hyperliquid's kPEPE in capitals, and the k is a factor."""
    return said is not None and given == f"k{said[1:]}" and said[0] == "K"


def _implied_by_names(instrument: InstrumentInfo) -> dict[str, str | None]:
    """Return the fields that the names of an instrument tell, with their values."""
    said = parse_symbol(instrument.symbol)
    told: dict[str, str | None] = {} if said is None else said._asdict()
    if instrument.listed_as is not None:
        told["venue"] = instrument.listed_as.partition(":")[0]
    return told


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
    """Return canonical JSON of trading rules: the fields that are not None, sorted by name.

    It leaves out what the names say and what has its default, among the fields that came later: the text of
    older records stays, and a retry is found equal to its first request whether it spells them out or not.
    """
    implied = _implied(value)
    fields = [
        start + text(kept)
        for name, start, text in value.texts
        if (kept := getattr(value, name)) is not None and implied.get(name, _NOTHING) != kept
    ]
    return f"{{{''.join(fields)[1:]}}}"


FIGURES = tuple(one.name for one in InstrumentInfo.arguments if one.kind in (POSITIVE, NOT_NEGATIVE))
"""Names of the figures of trading rules, in order. `max_notional` may be None."""

_NOTHING = object()


def _implied(instrument: InstrumentInfo) -> dict[str, Any]:
    return {"multiplier": _ONE, "buys_by_cost": False, **_implied_by_names(instrument)}


def instrument_to_json(instrument: InstrumentInfo) -> dict[str, Any]:
    """Convert trading rules to JSON, decimals as text; without `listed_as`, whose venue stands as `venue`.

    Among the fields that came later it leaves out what the symbol says and what has its default, so that a service
    which does not know them accepts rules without them.
    """
    implied = {**_implied(instrument), "max_notional": None, "venue": None}
    later = {name: getattr(instrument, name) for name in _LATER}
    left_out = {name for name, value in later.items() if value is None or implied.get(name, _NOTHING) == value}
    return {name: value for name, value in to_json(instrument).items() if name not in left_out}


_LATER = ("kind", "base", "quote", "settle", "venue", "multiplier", "max_notional", "buys_by_cost")


def instrument_from_json(form: Mapping[str, Any]) -> InstrumentInfo:
    """Convert JSON back to trading rules. It may have a `listed_as`, as a recorded request does."""
    return InstrumentInfo(**json_values(InstrumentInfo, form), listed_as=form.get("listed_as"))
