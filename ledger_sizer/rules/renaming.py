"""What a renamed coin makes of a position: other names, other quantities, and the same money. Pure, exact."""

from dataclasses import replace
from decimal import ROUND_UP, Decimal

from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.fills import average_price
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of, renamed_symbol
from ledger_sizer.model.rename_command import TAG_FORMS
from ledger_sizer.model.tags import Tags, tags_of
from ledger_sizer.model.units import exact_arithmetic, exact_decimal, shown
from ledger_sizer.rules.filling import filled_so_far, leg_fills, with_fills, with_prices

_COIN_DECIMALS = Decimal("1e-18")
_ZERO = Decimal(0)


def coin_to_rename(position: Position, given: str | None, ratio: Decimal) -> str:
    """Return the coin of a position that gets another name.

    Raises `InvalidRequest` where it has several and none is given, where it has none of what is given, and where a part
    of its legs would get other quantities.
    """
    names = sorted({coin_of(leg.symbol) for leg in position.legs})
    if not position.legs:
        names = sorted({coin_of(value) for value in position.tags.values_of("symbol")})
    if given is None and len(names) != 1:
        has = " and ".join(names) or "no coin by name"
        raise InvalidRequest(f"coin is missing: {position.position_id} has {has}; say which is renamed", field="coin")
    coin = names[0] if given is None else given
    if coin not in names:
        has = " and ".join(names) or "no coin by name"
        raise InvalidRequest(f"{position.position_id} has nothing of {coin}, it has {has}", field="coin")
    if ratio != 1 and len(names) > 1:
        raise InvalidRequest(
            f"{position.position_id} has {' and '.join(names)}, which are one coin: with a ratio of {shown(ratio)} "
            "they would be none any more; rename it at a ratio of 1, or close it and adopt what is there",
            field="ratio",
        )
    return coin


def rename_position(position: Position, coin: str, asset: str, ratio: Decimal) -> Position:
    """Return a position whose coin has another name: `ratio` new ones for each. What it counts and cost stays."""
    with exact_arithmetic():
        legs = tuple([_renamed_leg(leg, coin, asset, ratio) for leg in with_prices(position)])
        if len({leg.market for leg in legs}) < len(legs):
            raise InvalidRequest(
                f"two legs of {position.position_id} would be one market of {asset}; close it and adopt what is there",
                field="asset",
            )
        quantity = None if position.quantity is None else _scaled(position.quantity, ratio)
        fills = position.fills
        after = position.changed(quantity=quantity, legs=legs, tags=_renamed_tags(position.tags, coin, asset))
        unfilled = None if fills is None or fills.unfilled is None else _scaled(fills.unfilled, ratio)
        if position.price is None:
            return after if fills is None else after.changed(fills=fills._replace(unfilled=unfilled))
        filled, filled_usd = filled_so_far(position)
        if not quantity:
            after = after.changed(price=_checked(average_price(position.price, ratio)[0]))
        after = with_fills(
            after, filled=_scaled(filled, ratio), filled_usd=filled_usd, cost=position.cost, unfilled=unfilled,
            value=None if fills is None else fills.value, more=fills is not None and fills.more,
        )  # fmt: skip
        _checked(after.price or _ZERO)
        return after


def _renamed_leg(leg: Leg, coin: str, asset: str, ratio: Decimal) -> Leg:
    """Return a leg under its new name. Its unit has the new coins too: the same number of contracts."""
    if coin_of(leg.symbol) != coin:
        return leg
    fills = leg.fills
    quantity = _scaled(leg.quantity, ratio)
    unfilled = _ZERO if fills is None else _scaled(fills.unfilled, ratio)
    named = replace(
        leg, symbol=renamed_symbol(leg.symbol, coin, asset), unit=None if leg.unit is None else leg.unit * ratio
    )  # fmt: skip
    if leg.price is None:
        return named.filled_at(quantity, None, None if fills is None else fills._replace(unfilled=unfilled))
    price, exact = average_price(leg.cost, quantity)
    unfilled_usd, value = (_ZERO, None) if fills is None else (fills.unfilled_usd, fills.value)
    return named.filled_at(
        quantity, _checked(price), leg_fills(unfilled, unfilled_usd, None if exact else leg.cost, value)
    )


def _renamed_tags(tags: Tags, coin: str, asset: str) -> Tags:
    """Return the tags with the new name among the values of `symbol`, in place of the old one."""
    values = tags.values_of("symbol")
    if coin not in map(coin_of, values):
        return tags
    renamed = [_renamed_tag(one, coin, asset) if coin_of(one) == coin else one for one in values]
    try:
        return tags_of({**tags, "symbol": renamed})
    except InvalidRequest:  # tags that long fit no index; a fact is recorded all the same, under the old scope
        return tags


def _renamed_tag(value: str, coin: str, asset: str) -> str:
    """Return a value of `symbol` with the new coin: in its own form, if the batch loaded the scope of that."""
    renamed = renamed_symbol(value, coin, asset)
    return renamed if renamed in {f"{asset}{form}" for form in TAG_FORMS} else asset


def _scaled(coins: Decimal, ratio: Decimal) -> Decimal:
    """Return the new coins for old ones, rounded up to 1e-18: a ratio such as 1/24 is itself rounded down."""
    scaled = coins * ratio
    if -scaled.as_tuple().exponent > 18:  # type: ignore[operator]
        scaled = scaled.quantize(_COIN_DECIMALS, ROUND_UP)
    return exact_decimal(scaled.normalize() + 0, "ratio")


def _checked(price: Decimal) -> Decimal:
    """Return a price that can be stored. Raises `InvalidRequest` for one that no coin has."""
    return exact_decimal(price, "ratio")
