"""Sizing of the reference model: the largest quantity that a budget buys and all legs accept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, lcm

from ledger_sizer import InstrumentInfo, Reserve
from tests.lockstep.model_positions import LegHolding, Tags, is_pair, values_of


@dataclass(frozen=True)
class PlannedLeg:
    """One leg to be sized, in coins and USD per coin."""

    venue: str
    symbol: str
    kind: str
    side: str
    account: str | None
    price: Fraction
    fee: Fraction
    step: Fraction
    least: Fraction
    most: Fraction
    least_usd: Fraction
    most_usd: Fraction | None

    def order(self, quantity: Fraction) -> Fraction:
        """Return what to order so that `quantity` is left after a fee in coins."""
        return quantity if not self.fee else ceil(quantity / (1 - self.fee) / self.step) * self.step


@dataclass(frozen=True)
class Sized:
    """A size. small: the reason where there is none. worth: what the orders count, USD. bound_by: a maximum."""

    quantity: Fraction | None = None
    worth: Fraction | None = None
    small: str | None = None
    bound_by: str | None = None
    ordered: tuple[Fraction, ...] = ()


def plans_of(command: Reserve) -> list[PlannedLeg]:
    """Return the legs of a reservation: its own, or those of the short form."""
    if command.legs is not None:
        return [
            _planned(leg.instrument, leg.side, leg.account, leg.price or command.price, leg.fee_rate)
            for leg in command.legs
        ]
    if command.spot_instrument is None:
        return []
    return [
        _planned(command.spot_instrument, "buy", None, command.price, command.spot_fee_rate),
        _planned(command.perp_instrument, "sell", None, command.price, None),
    ]


def _planned(rules: object, side: str, account: str | None, price: object, fee: object) -> PlannedLeg:
    assert isinstance(rules, InstrumentInfo)
    unit = Fraction(rules.contract_size) * Fraction(rules.multiplier)
    most_usd = None if rules.max_notional is None else Fraction(rules.max_notional)
    _, _, settle = rules.symbol.partition(":")
    return PlannedLeg(
        rules.venue or "", rules.symbol, "swap" if settle else "spot", side, account, Fraction(price),  # type: ignore[arg-type]
        Fraction(fee or 0), Fraction(rules.qty_step) * unit, Fraction(rules.min_qty) * unit,  # type: ignore[arg-type]
        Fraction(rules.max_qty) * unit, Fraction(rules.min_notional), most_usd,
    )  # fmt: skip


def with_legs(tags: Tags, plans: Sequence[PlannedLeg]) -> Tags:
    """Return the tags with `venue` and `symbol` of the legs, where they are not given."""
    found = {*tags}
    if not values_of(tags, "venue"):
        found |= {("venue", plan.venue) for plan in plans if plan.venue}
    if plans and not values_of(tags, "symbol"):
        found.add(("symbol", "BTC"))  # the asset of all legs here
    return tuple(sorted(found))


def size(plans: Sequence[PlannedLeg], budget: Fraction) -> Sized:
    """Return the largest multiple of the common step whose orders the budget buys and every leg accepts."""
    if not plans:
        return Sized()
    step = _common_step([plan.step for plan in plans])
    steps = floor(budget / _cost(plans, [Fraction(1)] * len(plans)) / step)
    while steps and _cost(plans, [plan.order(steps * step) for plan in plans]) > budget:
        steps -= 1
    quantity, bound_by = steps * step, None
    for plan in plans:
        most, name = floor(plan.most / plan.step) * plan.step, "max_qty"
        if plan.most_usd is not None and floor(plan.most_usd / plan.price / plan.step) * plan.step < most:
            most, name = floor(plan.most_usd / plan.price / plan.step) * plan.step, "max_notional"
        largest = floor(most * (1 - plan.fee) / step) * step
        if quantity > largest:
            quantity, bound_by = largest, name
    ordered = tuple(plan.order(quantity) for plan in plans)
    if not quantity or any(order < plan.least for order, plan in zip(ordered, plans, strict=True)):
        return Sized(small="below_min_qty", bound_by=bound_by)
    if any(order * plan.price < plan.least_usd for order, plan in zip(ordered, plans, strict=True)):
        return Sized(small="below_min_notional", bound_by=bound_by)
    legs = planned_legs(plans, ordered, [])
    worth = legs[[leg.side for leg in legs].index("sell")].unfilled_usd if is_pair(legs) else _cost(plans, ordered)
    return Sized(quantity, worth, None, bound_by, ordered)


def _cost(plans: Sequence[PlannedLeg], ordered: Sequence[Fraction]) -> Fraction:
    """Return the cost of the larger side."""
    sides = {
        side: sum(order * plan.price for order, plan in zip(ordered, plans, strict=True) if plan.side == side)
        for side in ("buy", "sell")
    }
    return Fraction(max(sides.values()))


def planned_legs(
    plans: Sequence[PlannedLeg], ordered: Sequence[Fraction], venues: Sequence[str]
) -> tuple[LegHolding, ...]:
    """Return the legs of a grant. A market without a venue is at the only one of the tags."""
    only = venues[0] if len(venues) == 1 else ""
    return tuple(
        LegHolding(
            plan.venue or only, plan.symbol, plan.kind, plan.side, plan.account, unfilled=order,
            unfilled_usd=order * plan.price,
        )
        for plan, order in zip(plans, ordered, strict=False)
    )  # fmt: skip


def _common_step(steps: Sequence[Fraction]) -> Fraction:
    whole = lcm(*(step.denominator for step in steps))
    return Fraction(lcm(*(int(step * whole) for step in steps)), whole)
