"""What the fills of a position add up to."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from ledger_sizer.model.units import decimal_text, exact_arithmetic, parse_decimal

_encode = json.JSONEncoder(separators=(",", ":")).encode
_PRICE_DECIMALS = Decimal("1e-18")
_DECIMALS_MAX = 36


class Fills(NamedTuple):
    """What a position's quantity and price do not say. None: they say it.

    unfilled: coins granted and not filled. filled: coins filled by all entries, closes not subtracted. filled_usd: what
    these cost. cost: USD that the open coins cost, exact. value: USD that they count, where the position has no legs
    and was priced anew. more: whether a fill may still come after its hold is over, as for fills told one by one.
    """

    unfilled: Decimal | None = None
    filled: Decimal | None = None
    filled_usd: Decimal | None = None
    cost: Decimal | None = None
    value: Decimal | None = None
    more: bool = False


NO_FILLS = Fills()
_FIGURES = Fills._fields[:-1]


def fills_text(fills: Fills | None) -> str | None:
    """Return canonical JSON: an object of what is set, sorted by name; None where nothing is."""
    form = fills_to_json(fills)
    return None if form is None else _encode(form)


def fills_of(text: str | None) -> Fills | None:
    """Return the fills of a stored `fills_text`."""
    return None if text is None else fills_of_json(json.loads(text))


def fills_to_json(fills: Fills | None) -> dict[str, Any] | None:
    """Convert to JSON: what is set, sorted by name; None where nothing is."""
    if fills is None or fills == NO_FILLS:
        return None
    form: dict[str, Any] = {
        name: decimal_text(getattr(fills, name)) for name in _FIGURES if getattr(fills, name) is not None
    }
    if fills.more:
        form["more"] = True
    return dict(sorted(form.items()))


def fills_of_json(form: Mapping[str, Any] | None) -> Fills | None:
    """Convert the output of `fills_to_json` back."""
    if form is None:
        return None
    figures = {name: parse_decimal(value) for name, value in form.items() if name != "more"}
    return Fills(**figures, more=bool(form.get("more")))


def average_price(cost: Decimal, quantity: Decimal) -> tuple[Decimal, bool]:
    """Return cost / quantity in USD per coin, and whether quantity x price is exactly the cost.

    A quotient of more than 36 decimals is rounded down to 18: it is shown, and the cost is kept beside it.
    """
    with exact_arithmetic():
        price = (cost / quantity).normalize()
        exact = price * quantity == cost and -price.as_tuple().exponent <= _DECIMALS_MAX  # type: ignore[operator]
        return (price, True) if exact else (max(price.quantize(_PRICE_DECIMALS), _PRICE_DECIMALS), False)


def share_of(amount: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """Return amount x part / whole. USD: rounded up to 1e-18, so that a position never counts less than its share."""
    with exact_arithmetic():
        product = amount * part
        share = product / whole
        if share * whole == product and -share.as_tuple().exponent <= _DECIMALS_MAX:  # type: ignore[operator]
            return share.normalize() + 0
        rounded = share.quantize(_PRICE_DECIMALS)
        return rounded if rounded * whole >= product else rounded + _PRICE_DECIMALS
