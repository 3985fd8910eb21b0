"""Legs, the sides of a position: as planned by a reservation, and as filled.

Every quantity is in coins of the asset, every price in USD per coin, whatever the exchange counts in.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

from ledger_sizer.model.arguments import (
    LABEL,
    POSITIVE,
    Argument,
    DeclaredArgument,
    Kind,
    check_arguments,
    choice,
    decimal_kind,
    declared,
    encode_sorted,
    field_prefix,
    json_values,
    label_text,
    to_json,
)
from ledger_sizer.model.choices import MarketKind, Side
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import (
    InstrumentInfo,
    canonical_text,
    instrument_from_json,
    instrument_to_json,
)
from ledger_sizer.model.market_names import NAME_PATTERN, instrument_name
from ledger_sizer.model.units import decimal_text, exact_arithmetic, not_negative, parse_decimal, shown

_quoted = lru_cache(maxsize=8192)(json.JSONEncoder(ensure_ascii=True).encode)
_ZERO = Decimal(0)

_VENUE = Kind(name="venue", check=lambda value, name: value and label_text(value, name), length=(0, 128))
SIDE = choice(*get_args(Side))
_QUANTITY = decimal_kind("quantity", not_negative)


class LegFills(NamedTuple):
    """What a leg's quantity and price do not say.

    unfilled: coins that are planned and not filled. unfilled_usd: their value at the price of the grant. cost: USD of
    what is filled, exact, where quantity x price is not. value: USD that it counts, where that is not the cost.
    """

    unfilled: Decimal = _ZERO
    unfilled_usd: Decimal = _ZERO
    cost: Decimal | None = None
    value: Decimal | None = None


@declared
@dataclass(frozen=True, slots=True)
class Leg:
    """One side of a position on one venue.

    quantity: coins filled, or coins planned while `price` is None. price: average entry price, USD per coin.
    account: its name at the venue. unit: coins in one unit of the exchange's order; None is one. by_cost: a market buy
    there takes its cost in USD, not an amount. fills: what is planned and not filled, and the exact cost.
    """

    arguments: ClassVar[tuple[DeclaredArgument, ...]]

    venue: Annotated[str, Argument(_VENUE)]
    symbol: Annotated[str, Argument(LABEL)]
    kind: Annotated[MarketKind, Argument(choice(*get_args(MarketKind)))]
    side: Annotated[Side, Argument(SIDE)]
    quantity: Annotated[Decimal, Argument(_QUANTITY)]
    price: Annotated[Decimal | None, Argument(POSITIVE)] = None
    account: Annotated[str | None, Argument(LABEL)] = field(default=None, kw_only=True)
    unit: Decimal | None = field(default=None, kw_only=True)
    by_cost: bool = field(default=False, kw_only=True)
    fills: LegFills | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_arguments(self)

    def filled_at(self, quantity: Decimal, price: Decimal | None, fills: LegFills | None) -> "Leg":
        """Return the leg with these figures, which are not checked again: `replace`, much faster."""
        return new_leg(
            self.venue, self.symbol, self.kind, self.side, quantity, price, self.account, self.unit, self.by_cost, fills
        )

    @property
    def planned_only(self) -> bool:
        """Whether nothing of it is filled."""
        return self.price is None and self.fills is not None

    @property
    def filled(self) -> Decimal:
        """Coins filled and not closed."""
        return _ZERO if self.planned_only else self.quantity

    @property
    def unfilled(self) -> Decimal:
        """Coins planned and not filled."""
        return _ZERO if self.fills is None else self.fills.unfilled

    @property
    def cost(self) -> Decimal:
        """USD that the filled coins cost, exact."""
        if self.fills is not None and self.fills.cost is not None:
            return self.fills.cost
        if self.price is None:
            return _ZERO
        with exact_arithmetic():
            return self.quantity * self.price

    @property
    def value(self) -> Decimal:
        """USD that the filled coins count: their cost, unless the position was priced anew."""
        return self.fills.value if self.fills is not None and self.fills.value is not None else self.cost

    @property
    def market(self) -> tuple[str, str, str, str, str | None]:
        """Venue, symbol, kind, side and account: what tells the legs of a position apart."""
        return self.venue, self.symbol, self.kind, self.side, self.account


_SET = tuple(
    getattr(Leg, name).__set__
    for name in ("venue", "symbol", "kind", "side", "quantity", "price", "account", "unit", "by_cost", "fills")
)


def new_leg(*values: Any) -> Leg:
    """Return a leg of values that were checked before, in the order of its fields. Faster than `Leg`."""
    leg = object.__new__(Leg)
    for put, value in zip(_SET, values, strict=True):
        put(leg, value)
    return leg


class OrderLeg(NamedTuple):
    """One order of a grant: what to send to an exchange.

    quantity: coins, the fee in base included. price: USD per coin that it was sized at. order_amount: the same quantity
    in the unit of that exchange's orders (contracts, multiplied units or coins). order_cost: USD to give to a market
    buy instead of the amount, where that exchange takes the cost; None elsewhere.
    """

    venue: str
    account: str | None
    symbol: str
    kind: MarketKind
    side: Side
    quantity: Decimal
    price: Decimal
    order_amount: Decimal
    order_cost: Decimal | None


def order_of(leg: Leg) -> OrderLeg:
    """Return the order of a leg that a grant planned."""
    assert leg.fills is not None, "a planned leg has what is unfilled"
    quantity, cost = leg.fills.unfilled, leg.fills.unfilled_usd
    with exact_arithmetic():
        price = parse_decimal(decimal_text(cost / quantity))
        amount = quantity if leg.unit is None else quantity / leg.unit
        order_cost = cost.quantize(Decimal("1e-8")) if leg.by_cost else None
    return OrderLeg(leg.venue, leg.account, leg.symbol, leg.kind, leg.side, quantity, price, amount, order_cost)


def order_to_json(order: OrderLeg) -> dict[str, Any]:
    """Convert one order of a grant to JSON, decimals as text."""
    return {name: decimal_text(one) if isinstance(one, Decimal) else one for name, one in order._asdict().items()}


def order_from_json(form: Mapping[str, Any]) -> OrderLeg:
    """Convert the output of `order_to_json` back. Names that it does not know are left out."""
    figures = {name: _optional(form[name]) for name in ("quantity", "price", "order_amount", "order_cost")}
    return OrderLeg(**{name: form[name] for name in OrderLeg._fields} | figures)


# --- stored text -------------------------------------------------------------------------------------------------


def legs_text(legs: Iterable[Leg]) -> str:
    """Return canonical JSON of legs: [[venue, symbol, kind, side, quantity, price | null, more], ...].

    more: an object of all further fields that are set; a leg without any ends with its price.
    """
    return f"[{','.join(map(_leg_text, legs))}]"


def _leg_text(leg: Leg) -> str:
    price = "null" if leg.price is None else f'"{decimal_text(leg.price)}"'
    start = f'[{_quoted(leg.venue)},{_quoted(leg.symbol)},"{leg.kind}","{leg.side}","{decimal_text(leg.quantity)}",'
    more = []
    if leg.account is not None:
        more.append(f'"account":{_quoted(leg.account)}')
    if leg.unit is not None:
        more.append(f'"unit":"{decimal_text(leg.unit)}"')
    if leg.by_cost:
        more.append('"by_cost":true')
    if leg.fills is not None:
        unfilled, unfilled_usd, cost, value = leg.fills
        if leg.price is not None and unfilled:
            more.append(f'"unfilled":"{decimal_text(unfilled)}"')
        if leg.price is None or unfilled:
            more.append(f'"unfilled_usd":"{decimal_text(unfilled_usd)}"')
        if cost is not None:
            more.append(f'"cost":"{decimal_text(cost)}"')
        if value is not None:
            more.append(f'"value":"{decimal_text(value)}"')
    return f"{start}{price},{{{','.join(more)}}}]" if more else f"{start}{price}]"


def legs_of(text: str) -> tuple[Leg, ...]:
    """Return the legs of a stored `legs_text`."""
    return () if text == "[]" else legs_of_json(json.loads(text))


def legs_of_json(forms: Iterable[Sequence[Any]]) -> tuple[Leg, ...]:
    """Return the legs of a `legs_text` that is parsed."""
    return tuple(_leg_of(*form) for form in forms)


def _leg_of(
    venue: str, symbol: str, kind: MarketKind, side: Side, quantity: str, price: str | None,
    more: Mapping[str, Any] | None = None,
) -> Leg:  # fmt: skip
    coins = Decimal(quantity)
    leg_price = None if price is None else Decimal(price)
    if not more:
        return Leg(venue, symbol, kind, side, coins, leg_price)
    return Leg(
        venue, symbol, kind, side, coins, leg_price, account=more.get("account"), unit=_optional(more.get("unit")),
        by_cost=more.get("by_cost", False), fills=_fills_of(coins, leg_price, more),
    )  # fmt: skip


def _fills_of(quantity: Decimal, price: Decimal | None, more: Mapping[str, Any]) -> LegFills | None:
    if not more.keys() & {"unfilled_usd", "cost", "value"}:
        return None
    unfilled = quantity if price is None and "unfilled_usd" in more else Decimal(more.get("unfilled", 0))
    return LegFills(
        unfilled, Decimal(more.get("unfilled_usd", 0)), _optional(more.get("cost")), _optional(more.get("value"))
    )


def _optional(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


# --- JSON --------------------------------------------------------------------------------------------------------


def leg_to_json(leg: Leg) -> dict[str, Any]:
    """Convert one side of a position to JSON, decimals as text. Fields that say nothing are left out after `price`."""
    form = to_json(leg)
    if leg.account is None:
        del form["account"]  # services of versions before know no such field
    return form


def leg_from_json(form: Mapping[str, Any]) -> Leg:
    """Convert a leg that a caller gives back; `price` may be missing."""
    return Leg(**json_values(Leg, form))


def stored_leg_to_json(leg: Leg) -> dict[str, Any]:
    """Convert a leg of a position to JSON: with its unit, and with what is unfilled and its cost where that is set."""
    form = leg_to_json(leg)
    if leg.unit is not None:
        form["unit"] = decimal_text(leg.unit)
    if leg.by_cost:
        form["by_cost"] = True
    if leg.fills is not None:
        for name, value in zip(LegFills._fields, leg.fills, strict=True):
            if value is not None:
                form[name] = decimal_text(value)
    return form


def stored_leg_from_json(form: Mapping[str, Any]) -> Leg:
    """Convert the output of `stored_leg_to_json` back."""
    fills = {name: Decimal(form[name]) for name in LegFills._fields if form.get(name) is not None}
    return Leg(
        **json_values(Leg, form), unit=_optional(form.get("unit")), by_cost=bool(form.get("by_cost")),
        fills=LegFills(**fills) if fills else None,
    )  # fmt: skip


# --- plans -------------------------------------------------------------------------------------------------------

_FEE_RATE_END = Decimal("0.1")


def _checked_fee_rate(value: object, name: str) -> Decimal:
    rate = not_negative(value, name)
    if rate >= _FEE_RATE_END:
        raise InvalidRequest(
            f"{name} is a fraction below {_FEE_RATE_END} (0.001 is 0.1 %), got {shown(rate)}", field=name
        )
    return rate


def checked_instrument(value: object, name: str) -> InstrumentInfo | str:
    """Return trading rules or the name of a market; raise `InvalidRequest` for anything else.

    Any object with the fields of trading rules is taken as such.
    """
    if isinstance(value, InstrumentInfo):
        return value
    if isinstance(value, str):
        return instrument_name(value, name)
    return InstrumentInfo.of(value, name)  # type: ignore[arg-type]  # it says what is missing


@lru_cache(maxsize=2048)
def _instrument_of(values: tuple[tuple[str, Any], ...]) -> InstrumentInfo:
    """Build an instrument. Cached, because a bot sends the same few markets with every request."""
    return instrument_from_json(dict(values))


def _read_instrument(form: str | Mapping[str, Any], name: str) -> InstrumentInfo | str:
    if isinstance(form, str):
        return form
    with field_prefix(name):
        return _instrument_of(tuple(form.items()))


FEE_RATE = decimal_kind("fee_rate", _checked_fee_rate, metavar=f"0..{_FEE_RATE_END}")
INSTRUMENT = Kind(
    name="instrument", check=checked_instrument, pattern=NAME_PATTERN, examples=("bybit:BTC/USDT",), metavar="RULES",
    text=lambda value: encode_sorted(value) if isinstance(value, str) else canonical_text(value),
    to_json=lambda value: value if isinstance(value, str) else instrument_to_json(value),
    from_json=_read_instrument,
)  # fmt: skip
"""Trading rules, or the name of a market whose rules the ledger stores."""


@declared
@dataclass(frozen=True, slots=True)
class LegPlan:
    """One leg that a reservation asks for.

    instrument: its trading rules, or the name of a market such as `bybit:BTC/USDT:USDT`. side: `buy` or `sell`.
    price: USD per coin there; else the reservation's. fee_rate: fee of a spot buy, a fraction, if it is taken in base.
    asset: the coin, where the market's name does not say it (UBTC is BTC). account: its name at the venue.
    """

    arguments: ClassVar[tuple[DeclaredArgument, ...]]

    instrument: Annotated[InstrumentInfo | str, Argument(INSTRUMENT)]
    side: Annotated[Side, Argument(SIDE)]
    price: Annotated[Decimal | None, Argument(POSITIVE)] = None
    fee_rate: Annotated[Decimal | None, Argument(FEE_RATE)] = None
    asset: Annotated[str | None, Argument(LABEL)] = None
    account: Annotated[str | None, Argument(LABEL)] = None

    def __post_init__(self) -> None:
        check_arguments(self)


def plan_from_json(form: Mapping[str, Any]) -> LegPlan:
    """Convert JSON back to a planned leg."""
    return LegPlan(**json_values(LegPlan, form))
