"""Sizes the legs of a position: the largest quantity, in coins, that a sum in USD buys and every leg accepts.

    quantity = floor(budget / max(sum of buy prices, sum of sell prices)) to the step that all legs have in common

The common step is the least common multiple of qty_step x contract_size x multiplier: the larger step alone is not
enough (0.9 is a multiple of 0.3 but not of 0.2). Quantities round down. Only a spot order that pays its fee in coins
rounds up to its step, within the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.legs import Leg, LegFills, new_leg
from ledger_sizer.model.plans import Plan
from ledger_sizer.model.units import common_step, exact_arithmetic, floor_to_step

_ZERO = Decimal(0)
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Match:
    """Result of converting a sum in USD to a quantity.

    quantity: coins that every leg ends with, None when no valid size exists; `reason` then says why.
    raw_quantity: what the sum buys, to the step, before the legs' maxima. step: coins, common to all legs.
    notional_usd: what the orders can cost: of the larger side, or of the contract beside a spot buy.
    binding: the bound of the legs that decided (`max_qty` or `max_notional`), None when the sum itself did.
    ordered: coins to order on each leg, the fee in base included.
    """

    quantity: Decimal | None
    raw_quantity: Decimal
    step: Decimal
    notional_usd: Decimal | None
    binding: str | None
    reason: str | None
    ordered: tuple[Decimal, ...] = ()


class _Bounds(NamedTuple):
    """Trading rules of one market in coins. max_notional: USD of one order; None without a bound."""

    unit: Decimal
    step: Decimal
    min_qty: Decimal
    max_qty: Decimal
    min_notional: Decimal
    max_notional: Decimal | None


@lru_cache(maxsize=4096)
def _bounds_of(instrument: InstrumentInfo) -> _Bounds:
    unit = instrument.unit
    with exact_arithmetic():
        step = instrument.qty_step * unit
        return _Bounds(
            unit, step, instrument.min_qty * unit, floor_to_step(instrument.max_qty * unit, step),
            instrument.min_notional, instrument.max_notional,
        )  # fmt: skip


def match_legs(spend_usd: Decimal, plans: Sequence[Plan]) -> Match:
    """Return the largest quantity that `spend_usd` buys and every leg accepts, at each leg's own price.

    The legs' minima, maxima and smallest order values count for what is ordered on each.
    """
    bounds = [_bounds_of(plan.instrument) for plan in plans]
    step = bounds[0].step
    for bound in bounds[1:]:
        step = common_step(step, bound.step)
    with exact_arithmetic():
        raw = _affordable(spend_usd, plans, bounds, step)
        quantity, binding = raw, None
        for plan, bound in zip(plans, bounds, strict=True):
            most, name = _most(plan, bound, step)
            if quantity > most:
                quantity, binding = most, name
        ordered = _orders(quantity, plans, bounds)
        reason = _too_small(ordered, plans, bounds) if quantity > 0 else "below_min_qty"
        if reason is not None:
            return Match(None, raw, step, None, binding, reason)
        return Match(quantity, raw, step, counted_usd(plans, ordered), binding, None, ordered)


def _affordable(spend_usd: Decimal, plans: Sequence[Plan], bounds: Sequence[_Bounds], step: Decimal) -> Decimal:
    """Return the largest multiple of the step whose orders cost at most `spend_usd` on either side."""
    if spend_usd <= 0:
        return _ZERO
    bought = sold = _ZERO
    fees = False
    for plan in plans:
        if plan.side == "sell":
            sold += plan.price
        elif plan.fee_rate:
            fees = True
            bought += plan.price / (_ONE - plan.fee_rate)
        else:
            bought += plan.price
    # One exact integer division, because dividing by the price first could round wrongly near a step.
    steps = spend_usd // (max(bought, sold) * step)
    if fees:
        # An order rounds up by less than one step of its leg, so this ends after about as many steps as there are fees.
        while steps > 0 and _cost(_orders(steps * step, plans, bounds), plans) > spend_usd:
            steps -= 1
    return steps * step


def _cost(ordered: Sequence[Decimal], plans: Sequence[Plan]) -> Decimal:
    """Return the cost of the larger side, USD."""
    bought = sold = _ZERO
    for quantity, plan in zip(ordered, plans, strict=True):
        if plan.side == "buy":
            bought += quantity * plan.price
        else:
            sold += quantity * plan.price
    return max(bought, sold)


def _orders(quantity: Decimal, plans: Sequence[Plan], bounds: Sequence[_Bounds]) -> tuple[Decimal, ...]:
    """Return what to order on each leg so that `quantity` is left after a fee in base, rounded up to its step."""
    return tuple([
        quantity if not plan.fee_rate else _gross(quantity, bound.step, plan.fee_rate)
        for plan, bound in zip(plans, bounds, strict=True)
    ])  # fmt: skip


def _gross(quantity: Decimal, step: Decimal, fee_rate: Decimal) -> Decimal:
    steps, rest = divmod(quantity, step * (_ONE - fee_rate))
    return (steps + 1 if rest else steps) * step


def _most(plan: Plan, bound: _Bounds, step: Decimal) -> tuple[Decimal, str]:
    """Return the largest quantity whose order the leg accepts, to the common step, and the name of what bounds it."""
    most, name = bound.max_qty, "max_qty"
    if bound.max_notional is not None:
        worth = bound.max_notional // (plan.price * bound.step) * bound.step
        if worth < most:
            most, name = worth, "max_notional"
    if plan.fee_rate:
        most *= _ONE - plan.fee_rate
    return floor_to_step(most, step), name


def _too_small(ordered: Sequence[Decimal], plans: Sequence[Plan], bounds: Sequence[_Bounds]) -> str | None:
    reason = None
    for quantity, plan, bound in zip(ordered, plans, bounds, strict=True):
        if quantity < bound.min_qty:
            return "below_min_qty"
        if bound.min_notional and quantity * plan.price < bound.min_notional:
            reason = "below_min_notional"
    return reason


def is_pair(legs: Sequence[Plan] | Sequence[Leg]) -> bool:
    """Return True for one spot buy and one contract sold: such a pair counts its contract alone."""
    if len(legs) != 2:
        return False
    first, second = legs
    spot, contract = (first, second) if first.kind == "spot" else (second, first)
    return spot.kind == "spot" and spot.side == "buy" and contract.kind != "spot" and contract.side == "sell"


def counted_usd(plans: Sequence[Plan], ordered: Sequence[Decimal]) -> Decimal:
    """Return what the orders count, USD: the larger side, of a spot buy and a contract sold the contract alone."""
    if is_pair(plans):
        return max(quantity * plan.price for quantity, plan in zip(ordered, plans, strict=True) if plan.kind != "spot")
    return _cost(ordered, plans)


def planned_legs(plans: Sequence[Plan], ordered: Sequence[Decimal], venue: str) -> tuple[Leg, ...]:
    """Return the legs of a grant, with nothing filled yet. venue: of the markets that name none."""
    legs = []
    with exact_arithmetic():
        for plan, quantity in zip(plans, ordered, strict=True):
            instrument = plan.instrument
            unit = _bounds_of(instrument).unit
            by_cost = instrument.buys_by_cost and plan.side == "buy" and plan.kind == "spot"
            legs.append(
                new_leg(
                    instrument.venue or venue, instrument.symbol, plan.kind, plan.side, quantity, None, plan.account,
                    None if unit == _ONE else unit, by_cost, LegFills(quantity, quantity * plan.price),
                )
            )  # fmt: skip
    return tuple(legs)
