"""What a fill, a close, a growth and a new price make of a position: pure arithmetic, exact.

Per side, bought and sold, a position counts what is filled at its cost, and what is planned and not filled at the price
of its grant. Its exposure is the larger side, `open` the larger filled side, `held` the rest. A spot buy with a
contract sold counts the contract alone: a hedge counts once. A position without planned legs holds what its fills
leave of its budget.
"""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from ledger_sizer.model.domain import Position
from ledger_sizer.model.fills import NO_FILLS, Fills, average_price, share_of
from ledger_sizer.model.legs import Leg, LegFills
from ledger_sizer.model.units import exact_arithmetic, notional_e8, usd, usd_ceil_e8
from ledger_sizer.rules.leg_sizing import is_pair

_ZERO = Decimal(0)
_LEG_DECIMALS = Decimal("1e-18")


def counted(legs: Sequence[Leg]) -> tuple[Decimal, Decimal]:
    """Return what legs count in USD: what is filled, and that together with what is planned and not filled."""
    with exact_arithmetic():
        filled, planned = {"buy": _ZERO, "sell": _ZERO}, {"buy": _ZERO, "sell": _ZERO}
        for leg in legs:
            filled[leg.side] += leg.value
            planned[leg.side] += leg.fills.unfilled_usd if leg.fills is not None else _ZERO
        if not is_pair(legs):
            opened = max(filled.values())
            return opened, max(opened, *(filled[side] + planned[side] for side in filled))
        bought = next(leg.filled for leg in legs if leg.side == "buy")
        sold = next(leg.filled for leg in legs if leg.side == "sell")
        # A fee in coins is below a tenth. A spot leg that is larger than that explains is not hedged: it counts itself.
        opened = filled["sell"] if 10 * sold >= 9 * bought else max(filled.values())
        return opened, max(opened, filled["sell"] + planned["sell"])


# --- fills -------------------------------------------------------------------------------------------------------


def fill_once(position: Position, quantity: Decimal, price: Decimal, spot_price: Decimal | None) -> Position:
    """Return a position with the one fill that it gets, of all its legs: what `fill_position` makes of it, faster.

    position: with no fill yet. Nothing stays held.
    """
    legs = tuple([
        leg.filled_at(quantity, price if spot_price is None or leg.kind != "spot" else spot_price, None)
        for leg in position.legs
    ])  # fmt: skip
    alone = not legs or is_pair(legs)
    open_e8 = notional_e8(quantity, price) if alone else usd_ceil_e8(counted(legs)[0], "quantity x price")
    return position.changed(
        state="open", held_e8=0, open_e8=open_e8, quantity=quantity, price=price, legs=legs, expires_us=None
    )


def fill_position(
    position: Position, quantity: Decimal, cost: Decimal, *, spot_price: Decimal | None = None,
    legs: Sequence[Leg] | None = None, keep_rest: bool,
) -> Position:  # fmt: skip
    """Return a live position with a further fill.

    quantity: coins filled now, of each leg where `legs` is None. cost: theirs, USD. spot_price: of the spot leg, USD;
    None is the others'. legs: what filled, in place of all legs; a price that is missing is cost / quantity.
    keep_rest: whether the rest stays held, as long as there is one.
    """
    before = _open_quantity(position)
    if before and not position.legs:
        legs = None  # what filled before named no legs: beside it, these would count as if they were all
    with exact_arithmetic():
        if legs is not None:
            after_legs = _fill_named(position, legs, cost / quantity)
            largest = max(leg.filled for leg in after_legs)
            added = max(min(before + quantity, largest) - before, _ZERO)
        else:
            after_legs = _fill_all(position, quantity, cost, spot_price)
            added = quantity
        unfilled = _unfilled_after(position, quantity, after_legs if legs is not None else None)
        pending = keep_rest and position.pending and unfilled != 0
        if not pending:
            after_legs = without_rest(after_legs)
        added_usd = cost if added == quantity else share_of(cost, added, quantity)
        filled, filled_usd = filled_so_far(position)
        after = position.changed(
            state="open", legs=after_legs, expires_us=position.expires_us if pending else None,
            quantity=before + added,
        )  # fmt: skip
        return _counted_anew(
            with_fills(
                after, filled=filled + added, filled_usd=filled_usd + added_usd, cost=position.cost + added_usd,
                unfilled=unfilled if pending else None,
                value=None if after_legs else _value_after(position, added_usd), more=keep_rest,
            ),
            position,
        )  # fmt: skip


def _open_quantity(position: Position) -> Decimal:
    return position.quantity if position.state == "open" and position.quantity is not None else _ZERO


def filled_so_far(position: Position) -> tuple[Decimal, Decimal]:
    """Return coins and USD of all fills, closes not subtracted; zero where versions before did not keep it."""
    filled = position.filled or _ZERO
    fills = position.fills
    if fills is not None and fills.filled_usd is not None:
        return filled, fills.filled_usd
    with exact_arithmetic():
        return filled, _ZERO if position.price is None else filled * position.price


def _value_after(position: Position, added_usd: Decimal) -> Decimal | None:
    value = position.fills.value if position.fills is not None else None
    return None if value is None else value + added_usd


def _unfilled_after(position: Position, quantity: Decimal, named: Sequence[Leg] | None) -> Decimal | None:
    """Return the coins of the grant that are not filled yet; None for a plain budget hold."""
    unfilled = position.unfilled
    if unfilled is None or not position.pending:
        return None
    if named is None:
        return max(unfilled - quantity, _ZERO)
    return min(unfilled, max(leg.unfilled for leg in named))


def _fill_all(position: Position, quantity: Decimal, cost: Decimal, spot_price: Decimal | None) -> tuple[Leg, ...]:
    """Fill every leg. Their unfilled parts shrink in the same proportion."""
    unfilled = position.unfilled or _ZERO
    left = max(unfilled - quantity, _ZERO)
    legs = []
    for leg in with_prices(position):
        leg_cost = cost if spot_price is None or leg.kind != "spot" else quantity * spot_price
        rest, rest_usd = _ZERO, _ZERO
        if left and leg.fills is not None:
            rest = share_of(leg.fills.unfilled, left, unfilled)
            rest_usd = share_of(leg.fills.unfilled_usd, left, unfilled)
        legs.append(_fill_leg(leg, quantity, leg_cost, rest, rest_usd))
    return tuple(legs)


def _fill_named(position: Position, filled: Sequence[Leg], price: Decimal) -> tuple[Leg, ...]:
    """Fill the legs that are named. One that was not planned joins them."""
    legs = list(with_prices(position))
    for fill in filled:
        place = place_of(legs, fill)
        cost = fill.quantity * (fill.price or price)
        if place is None:
            legs.append(_fill_leg(replace(fill, price=None, fills=LegFills()), fill.quantity, cost, _ZERO, _ZERO))
            continue
        leg = legs[place]
        if fill.venue and not leg.venue:
            leg = replace(leg, venue=fill.venue)
        left = max(leg.unfilled - fill.quantity, _ZERO)
        rest_usd = share_of(leg.fills.unfilled_usd, left, leg.unfilled) if left and leg.fills is not None else _ZERO
        legs[place] = _fill_leg(leg, fill.quantity, cost, left, rest_usd)
    return tuple(legs)


def place_of(legs: Sequence[Leg], fill: Leg) -> int | None:
    """Return the place of the leg that a fill names: the one of its market, else one that fits.

    An account or a venue that one of the two lacks fits any.
    """
    exact = next((place for place, leg in enumerate(legs) if leg.market == fill.market), None)
    if exact is not None:
        return exact
    for place, leg in enumerate(legs):
        same = (leg.symbol, leg.kind, leg.side) == (fill.symbol, fill.kind, fill.side)
        account = leg.account is None or fill.account is None or leg.account == fill.account
        if same and account and (leg.venue == fill.venue or not leg.venue or not fill.venue):
            return place
    return None


def _fill_leg(leg: Leg, quantity: Decimal, cost: Decimal, unfilled: Decimal, unfilled_usd: Decimal) -> Leg:
    repriced = leg.fills.value if leg.fills is not None else None
    total, total_cost = leg.filled + quantity, leg.cost + cost
    price, exact = average_price(total_cost, total)
    value = None if repriced is None else repriced + cost
    return leg.filled_at(total, price, leg_fills(unfilled, unfilled_usd, None if exact else total_cost, value))


def leg_fills(unfilled: Decimal, unfilled_usd: Decimal, cost: Decimal | None, value: Decimal | None) -> LegFills | None:
    """Return what a leg's quantity and price do not say; None where they say it all."""
    if not unfilled and cost is None and value is None:
        return None
    return LegFills(unfilled, unfilled_usd, cost, value)


def with_prices(position: Position) -> tuple[Leg, ...]:
    """Return the legs, with what versions before did not record.

    A filled leg without a price has the position's. A planned one without its value is worth what the position holds.
    """
    if all(leg.price is not None or leg.fills is not None for leg in position.legs):
        return position.legs
    if position.state == "open":
        price = position.price
        return tuple([replace(leg, price=price) if leg.price is None else leg for leg in position.legs])
    held = usd(position.held_e8)
    return tuple([leg.filled_at(leg.quantity, None, LegFills(leg.quantity, held)) for leg in position.legs])


def without_rest(legs: Sequence[Leg]) -> tuple[Leg, ...]:
    """Return the legs without what is planned and not filled. A leg of which nothing filled is left out."""
    return tuple([
        leg
        if leg.fills is None
        else leg.filled_at(leg.quantity, leg.price, leg_fills(_ZERO, _ZERO, leg.fills.cost, leg.fills.value))
        for leg in legs if not leg.planned_only
    ])  # fmt: skip


def with_fills(
    position: Position, *, filled: Decimal, filled_usd: Decimal, cost: Decimal, unfilled: Decimal | None,
    value: Decimal | None, more: bool,
) -> Position:  # fmt: skip
    """Return the position with these figures. Those that quantity and price say are not kept beside them."""
    quantity = position.quantity or _ZERO
    price, exact = average_price(cost, quantity) if quantity else (position.price, True)
    assert price is not None, "what was filled has a price"
    fills = Fills(
        unfilled=unfilled,
        filled=None if filled == quantity else filled,
        filled_usd=None if filled_usd == filled * price else filled_usd,
        cost=None if exact else cost,
        value=value,
        more=more,
    )
    return position.changed(price=price, fills=None if fills == Fills() else fills)


def _counted_anew(position: Position, before: Position) -> Position:
    """Return the position with what it counts: from its legs, or from its cost and what is left of its budget."""
    fills = position.fills
    if position.legs:
        opened, exposure = counted(position.legs)
    else:
        opened = exposure = fills.value if fills is not None and fills.value is not None else position.cost
    open_e8 = usd_ceil_e8(opened, "quantity x price")
    if not position.pending:
        held_e8 = 0
    elif position.unfilled is not None:
        held_e8 = usd_ceil_e8(exposure, "quantity x price") - open_e8
    else:
        held_e8 = max(before.held_e8 + before.open_e8 - open_e8, 0)
    return position.changed(open_e8=open_e8, held_e8=held_e8)


# --- closes ------------------------------------------------------------------------------------------------------


def close_part(position: Position, closing: Decimal) -> Position:
    """Return an open position after `closing` of its coins were closed. Its hold stays.

    Every leg keeps the same share, and so do the costs. Where nothing is left open, it is held as before its fills, or
    closed if it holds nothing: then it shows its legs as they were.
    """
    assert position.quantity is not None, "an open position has a fill"
    if closing == position.quantity and not position.pending:
        fills = (position.fills or NO_FILLS)._replace(filled=position.filled, cost=None, value=None)
        return position.changed(state="closed", quantity=_ZERO, open_e8=0, fills=fills)
    with exact_arithmetic():
        left = position.quantity - closing
        filled, filled_usd = filled_so_far(position)
        legs = tuple([leg for one in with_prices(position) if (leg := _closed_leg(one, position.quantity, left))])
        more = position.fills is not None and position.fills.more
        cost = share_of(position.cost, left, position.quantity)
        value = position.fills.value if position.fills is not None else None
        after = position.changed(state="open" if left else "held", quantity=left, legs=legs)
        after = with_fills(
            after, filled=filled, filled_usd=filled_usd, cost=cost,
            unfilled=position.unfilled if position.pending else None,
            value=None if value is None else share_of(value, left, position.quantity), more=more,
        )  # fmt: skip
        return _close_counted(after, position)


def _close_counted(after: Position, before: Position) -> Position:
    """Count what is left. A plain budget hold keeps what it holds: a close gives nothing back to it."""
    anew = _counted_anew(after, before)
    return anew if before.unfilled is not None else anew.changed(held_e8=before.held_e8)


def _closed_leg(leg: Leg, quantity: Decimal, left: Decimal) -> Leg | None:
    """Return a leg after a close leaves `left` of its position's `quantity`; None where nothing of it is left."""
    if leg.planned_only:
        return leg
    units = remaining_leg_quantity(leg, quantity, left)
    fills = leg.fills or LegFills()
    if not units:
        planned = LegFills(fills.unfilled, fills.unfilled_usd)
        return leg.filled_at(fills.unfilled, None, planned) if fills.unfilled else None
    cost: Decimal | None = share_of(leg.cost, left, quantity)
    if fills.cost is None and leg.price is not None and units * leg.price == cost:
        cost = None
    value = None if fills.value is None else share_of(fills.value, left, quantity)
    return leg.filled_at(units, leg.price, leg_fills(fills.unfilled, fills.unfilled_usd, cost, value))


def remaining_leg_quantity(leg: Leg, quantity: Decimal, left: Decimal) -> Decimal:
    """Return a leg's coins after a close leaves `left` of its position's `quantity`: the same share.

    Rounded down to 1e-18. A leg of the position's own quantity gets exactly `left`.
    """
    if leg.quantity == quantity:
        return left
    with exact_arithmetic():
        return (leg.quantity * (left / quantity)).quantize(_LEG_DECIMALS)


def free_rest(position: Position) -> Position:
    """Return an open position without its hold. What is filled stays, and a fill of the rest may still come."""
    fills = (position.fills or Fills())._replace(unfilled=None, more=True)
    return position.changed(held_e8=0, expires_us=None, legs=without_rest(position.legs), fills=fills)


# --- growth and price --------------------------------------------------------------------------------------------


def grow_position(
    position: Position, quantity: Decimal | None, orders: Sequence[Leg], budget_e8: int, expires_us: int
) -> Position:
    """Return a live position with a further grant: `quantity` coins in these orders, or a budget in 1e-8 USD."""
    expires_us = max(position.expires_us or 0, expires_us) if position.pending else expires_us
    after = position.changed(expires_us=expires_us)
    if quantity is None or (position.pending and position.unfilled is None):
        return after.changed(held_e8=position.held_e8 + budget_e8)  # a plain budget stays one
    with exact_arithmetic():
        unfilled = (position.unfilled or _ZERO) + quantity
        legs = list(with_prices(position))
        for order in orders:
            place = place_of(legs, order)
            assert place is not None and order.fills is not None, "the orders of a growth are in its position's markets"
            legs[place] = _planned_more(legs[place], order.fills)
        if position.state == "held" and position.fills is None:
            after = after.changed(quantity=unfilled)
        else:
            after = after.changed(fills=(position.fills or Fills())._replace(unfilled=unfilled))
        return _counted_anew(after.changed(legs=tuple(legs)), position)


def _planned_more(leg: Leg, order: LegFills) -> Leg:
    fills = leg.fills or LegFills()
    unfilled, unfilled_usd = fills.unfilled + order.unfilled, fills.unfilled_usd + order.unfilled_usd
    more = fills._replace(unfilled=unfilled, unfilled_usd=unfilled_usd)
    return leg.filled_at(unfilled if leg.price is None else leg.quantity, leg.price, more)


def reprice_position(position: Position, price: Decimal) -> Position:
    """Return an open position whose filled coins count `price` USD each. What they cost stays."""
    with exact_arithmetic():
        legs = tuple([
            leg
            if leg.planned_only
            else replace(leg, fills=(leg.fills or LegFills())._replace(value=leg.quantity * price))
            for leg in with_prices(position)
        ])  # fmt: skip
        fills = position.fills
        if not legs:
            fills = (fills or Fills())._replace(value=(position.quantity or _ZERO) * price)
        after = _counted_anew(position.changed(legs=legs, fills=fills), position)
        # A new price spends nothing of a plain budget.
        return after if position.unfilled is not None else after.changed(held_e8=position.held_e8)
