"""Sizing of any legs: the quantity is the one that an exhaustive search finds, in exact fractions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ledger_sizer import InstrumentInfo, InvalidRequest, LegPlan, PositionSizer, TradingSettings
from ledger_sizer.model.legs import order_of
from ledger_sizer.model.plans import Plan, leg_plans, pair_plans
from ledger_sizer.rules.leg_sizing import Match, is_pair, match_legs, planned_legs
from tests.support.ledgers import BTC_PERP, BTC_SPOT, steady

D = Decimal
ASKED_MAX = 60
"""The search goes through so many multiples of the common step, and what follows them."""

SIZES = [D(1), D("0.01"), D("0.3"), D(10), D("0.7")]
FACTORS = [D(1), D(1), D(1000), D(7)]
FEES = [None, None, D("0.001"), D("0.0999"), D("0.00075")]


def steps() -> st.SearchStrategy[Decimal]:
    return st.builds(lambda n, places: n * D(1).scaleb(-places), st.integers(1, 30), st.integers(0, 4))


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, ...]:
    """One to four legs at prices that are near each other. Maxima and minima are about what is asked for."""
    about = draw(st.decimals(D("0.001"), D(60000), places=3))
    made = []
    for number in range(draw(st.integers(1, 4))):
        side = draw(st.sampled_from(["buy", "sell"]))
        kind = draw(st.sampled_from(["spot", "swap"]))
        fee = draw(st.sampled_from(FEES)) if (kind, side) == ("spot", "buy") else None
        rules = InstrumentInfo(
            f"ANY{number}", D(0), D(10**12), draw(steps()), contract_size=draw(st.sampled_from(SIZES)),
            multiplier=draw(st.sampled_from(FACTORS)),
        )  # fmt: skip
        price = about * draw(st.decimals(D("0.8"), D("1.25"), places=4))
        made.append(Plan(rules, side, kind, price, fee, None))
    common = D(1)
    for plan in made:
        common = decimal_of(lcm(common, plan.instrument.qty_step * plan.instrument.unit))
    return tuple(bounded(draw, plan, common) for plan in made)


def bounded(draw: st.DrawFn, plan: Plan, common: Decimal) -> Plan:
    """Draw the bounds of a leg, in its own unit, around multiples of the common step."""
    rules = plan.instrument
    part = st.decimals(D(0), D(ASKED_MAX * 2), places=2)
    least, most = sorted([draw(part), draw(part)])
    changes: dict[str, Decimal] = {}
    if draw(st.booleans()):
        changes["max_qty"] = max(most * common / rules.unit, D("1E-9")).quantize(D("1E-9"))
    if draw(st.booleans()):
        changes["min_qty"] = min((least / 4 * common / rules.unit).quantize(D("1E-9")), changes.get("max_qty", D(10)))
    if draw(st.booleans()):
        changes["max_notional"] = max(most * common * plan.price, D("1E-6")).quantize(D("1E-6"))
    if draw(st.booleans()):
        low = (least / 4 * common * plan.price).quantize(D("1E-6"))
        changes["min_notional"] = min(low, changes.get("max_notional", low))
    return plan._replace(instrument=replace(rules, **changes))


def lcm(a: Decimal, b: Decimal) -> Fraction:
    one, other = Fraction(a), Fraction(b)
    return Fraction(math.lcm(one.numerator, other.numerator), math.gcd(one.denominator, other.denominator))


def decimal_of(value: Fraction) -> Decimal:
    return D(value.numerator) / D(value.denominator)


# --- the definition ----------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """A multiple of the common step, with what each leg orders for it, in coins."""

    quantity: Fraction
    orders: list[Fraction]

    def cost(self, legs: Sequence[Plan]) -> Fraction:
        """USD of the larger side."""
        sides = {"buy": Fraction(0), "sell": Fraction(0)}
        for order, plan in zip(self.orders, legs, strict=True):
            sides[plan.side] += order * Fraction(plan.price)
        return max(sides.values())

    def too_large(self, legs: Sequence[Plan]) -> set[str]:
        """Names of the maxima that its orders exceed."""
        names = set()
        for order, plan in zip(self.orders, legs, strict=True):
            if order / Fraction(plan.instrument.unit) > Fraction(plan.instrument.max_qty):
                names.add("max_qty")
            if plan.instrument.max_notional is not None:
                worth = order * Fraction(plan.price)
                names |= {"max_notional"} if worth > Fraction(plan.instrument.max_notional) else set()
        return names

    def too_small(self, legs: Sequence[Plan]) -> str | None:
        """The reason for which an exchange refuses its orders."""
        amounts = [
            order / Fraction(plan.instrument.unit) < Fraction(plan.instrument.min_qty)
            for order, plan in zip(self.orders, legs, strict=True)
        ]
        worths = [
            order * Fraction(plan.price) < Fraction(plan.instrument.min_notional)
            for order, plan in zip(self.orders, legs, strict=True)
        ]
        return "below_min_qty" if any(amounts) else "below_min_notional" if any(worths) else None


def common_step(legs: Sequence[Plan]) -> Fraction:
    found = [Fraction(plan.instrument.qty_step) * Fraction(plan.instrument.unit) for plan in legs]
    step = found[0]
    for one in found[1:]:
        step = Fraction(math.lcm(step.numerator, one.numerator), math.gcd(step.denominator, one.denominator))
    return step


def sizes(legs: Sequence[Plan]) -> Iterator[Size]:
    """Yield every size in turn, without end: what a spot buy leaves after its fee is at least the quantity."""
    step, number = common_step(legs), 0
    while True:
        number += 1
        quantity = number * step
        orders = []
        for plan in legs:
            own = Fraction(plan.instrument.qty_step) * Fraction(plan.instrument.unit)
            gross = quantity / (1 - Fraction(plan.fee_rate or 0))
            orders.append(math.ceil(gross / own) * own)
        yield Size(quantity, orders)


def searched(budget: Decimal, legs: Sequence[Plan]) -> tuple[Size | None, Size | None, Size]:
    """Return the largest size that the budget buys, the largest that no maximum forbids either, and the one after."""
    affordable = fitting = None
    after = next(sizes(legs))
    for size in sizes(legs):
        if size.cost(legs) > Fraction(budget):
            return affordable, fitting, after
        affordable = size
        if not size.too_large(legs):
            fitting = size
            after = Size(Fraction(0), [])
        elif not after.orders:
            after = size
    raise AssertionError("sizes have no end")


# --- properties --------------------------------------------------------------------------------------------------


@steady
@given(legs=plans(), asked=st.integers(0, ASKED_MAX), rest=st.decimals(D(0), D(1), places=6))
def test_match_legs_when_anything_is_asked_then_it_is_the_largest_that_every_leg_accepts(
    legs: tuple[Plan, ...], asked: int, rest: Decimal
) -> None:
    first = next(sizes(legs)).cost(legs)
    budget = D(math.floor((asked + Fraction(rest)) * first * 10**8)).scaleb(-8)
    affordable, fitting, after = searched(budget, legs)
    found = match_legs(budget, legs)
    assert Fraction(found.step) == common_step(legs)
    assert Fraction(found.raw_quantity) == (affordable.quantity if affordable else 0)
    _require_binding(found, affordable, fitting, after, legs)
    reason = "below_min_qty" if fitting is None else fitting.too_small(legs)
    assert found.reason == reason
    if reason is not None:
        assert (found.quantity, found.notional_usd, found.ordered) == (None, None, ())
        return
    assert fitting is not None
    assert found.quantity is not None
    assert found.notional_usd is not None
    assert Fraction(found.quantity) == fitting.quantity
    assert [Fraction(order) for order in found.ordered] == fitting.orders
    assert found.notional_usd <= budget
    if not is_pair(legs):
        assert Fraction(found.notional_usd) == fitting.cost(legs)
    _require_acceptable(found, legs)


def _require_binding(
    found: Match, affordable: Size | None, fitting: Size | None, after: Size, legs: Sequence[Plan]
) -> None:
    cut = affordable is not None and (fitting is None or fitting.quantity < affordable.quantity)
    if cut:
        assert found.binding in after.too_large(legs), "the size after it exceeds this maximum"
    else:
        assert found.binding is None


def _require_acceptable(found: Match, legs: Sequence[Plan]) -> None:
    """Require orders that each exchange accepts, in its own unit, and that leave every leg with the quantity."""
    for leg, plan in zip(planned_legs(legs, found.ordered, "bybit"), legs, strict=True):
        rules, order = plan.instrument, order_of(leg)
        assert Fraction(order.order_amount) % Fraction(rules.qty_step) == 0
        assert rules.min_qty <= order.order_amount <= rules.max_qty
        assert Fraction(order.order_amount) * Fraction(rules.unit) == Fraction(order.quantity)
        assert Fraction(order.price) == Fraction(plan.price)
        kept = Fraction(order.quantity) * (1 - Fraction(plan.fee_rate or 0))
        assert kept >= Fraction(found.quantity or 0)


@steady
@given(legs=plans(), budget=st.decimals(D(-5), D(0), places=2))
def test_match_legs_when_there_is_no_money_then_there_is_no_quantity(legs: tuple[Plan, ...], budget: Decimal) -> None:
    found = match_legs(budget, legs)
    assert (found.quantity, found.raw_quantity, found.reason, found.binding) == (None, 0, "below_min_qty", None)


@steady
@given(legs=plans(), cheap=st.integers(1, ASKED_MAX), dear=st.integers(1, ASKED_MAX))
def test_match_legs_when_there_is_more_money_then_it_is_never_less(
    legs: tuple[Plan, ...], cheap: int, dear: int
) -> None:
    assume(cheap <= dear)
    first = decimal_of(next(sizes(legs)).cost(legs))
    less, more = [match_legs(first * asked, legs).quantity for asked in (cheap, dear)]
    assert less is None or (more is not None and more >= less)


@steady
@given(price=st.decimals(D("0.01"), D(90000), places=2), budget=st.decimals(D(0), D(1000), places=8))
def test_match_legs_when_two_are_at_one_price_then_it_is_the_formula_of_the_pair(
    price: Decimal, budget: Decimal
) -> None:
    sizer = PositionSizer(TradingSettings())
    pair = match_legs(budget, pair_plans(BTC_SPOT, BTC_PERP, price, None))
    assert pair.quantity == sizer.calculate_matching_quantity(price, budget, BTC_SPOT, BTC_PERP)
    if pair.quantity is not None:
        assert pair.notional_usd == pair.quantity * price


# --- single rules ------------------------------------------------------------------------------------------------


def swap(symbol: str, step: str = "1", **rules: str) -> InstrumentInfo:
    given: dict[str, Decimal] = {
        "min_qty": D(0),
        "max_qty": D(10**9),
        **{name: D(text) for name, text in rules.items()},
    }
    return InstrumentInfo(symbol, qty_step=D(step), **given)


def leg(instrument: InstrumentInfo, side: str = "buy", price: str = "1", fee: str | None = None) -> Plan:
    return Plan(instrument, side, instrument.kind or "swap", D(price), None if fee is None else D(fee), None)  # type: ignore[arg-type]


def test_match_legs_when_steps_have_odd_multiples_then_the_least_common_one_is_used() -> None:
    legs = [leg(swap("A", "0.3", contract_size="0.7")), leg(swap("B", "2"), "sell"), leg(swap("C", "0.9"), "sell")]
    assert match_legs(D(1000), legs).step == 126


def test_match_legs_when_prices_differ_then_the_dearer_side_decides() -> None:
    legs = [leg(swap("A"), "buy", "10"), leg(swap("B"), "sell", "11"), leg(swap("C"), "sell", "12")]
    found = match_legs(D(100), legs)
    assert (found.quantity, found.notional_usd) == (4, 92)


def test_match_legs_when_a_spot_buy_has_a_contract_beside_it_then_the_contract_alone_counts() -> None:
    spot, perp = InstrumentInfo("A/USDT", D(0), D(10**9), D("0.001")), swap("A/USDT:USDT", "0.1")
    found = match_legs(D(100), [leg(spot, "buy", "10", "0.001"), leg(perp, "sell", "9.5")])
    assert found.quantity == D("9.9"), "the spot order costs 99.1 USD, one step more would cost 100.101"
    assert found.ordered == (D("9.910"), D("9.9"))
    assert found.notional_usd == D("94.05")


def test_match_legs_when_a_maximum_is_below_the_common_step_then_that_is_named() -> None:
    found = match_legs(D(1000), [leg(swap("A", max_qty="5")), leg(swap("B", "10"), "sell")])
    assert (found.quantity, found.reason, found.binding) == (None, "below_min_qty", "max_qty")


def test_match_legs_when_the_largest_order_value_is_less_than_the_budget_then_it_is_named() -> None:
    found = match_legs(D(1000), [leg(swap("A", max_notional="88.49"), "buy", "2"), leg(swap("B"), "sell", "2")])
    assert (found.quantity, found.binding, found.notional_usd) == (44, "max_notional", 88)


def test_plan_orders_when_contracts_are_multiplied_then_the_amount_is_in_the_exchanges_unit() -> None:
    spot = InstrumentInfo("PEPE/USDT", D(1), D(10**12), D(1))
    perp = swap("1000PEPE/USDT:USDT", multiplier="1000")
    legs = pair_plans(spot, perp, D("0.00001"), None)
    found = match_legs(D(1000), legs)
    orders = [order_of(one) for one in planned_legs(legs, found.ordered, "binance")]
    assert [(one.quantity, one.order_amount) for one in orders] == [(10**8, 10**8), (10**8, 10**5)]


def test_plan_orders_when_a_market_buy_takes_its_cost_then_only_that_leg_has_one() -> None:
    spot = replace(InstrumentInfo("A/USDT", D(0), D(10**9), D("0.1")), buys_by_cost=True)
    for side, cost in (("buy", D("99.9")), ("sell", None)):
        legs = [leg(spot, side, "3")]
        found = match_legs(D(100), legs)
        (order,) = [order_of(one) for one in planned_legs(legs, found.ordered, "")]
        assert (order.order_amount, order.order_cost) == (D("33.3"), cost)


# --- what is no position -----------------------------------------------------------------------------------------


def test_plan_pair_when_the_fee_is_not_of_a_spot_buy_then_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a swap: leave it out") as refused:
        pair_plans(swap("A/USDT:USDT"), swap("A/USDC:USDC"), D(1), D("0.001"))
    assert refused.value.field == "spot_fee_rate"


def test_plan_pair_when_both_are_one_market_then_it_is_refused() -> None:
    one = replace(swap("A/USDT:USDT"), venue="okx")
    with pytest.raises(InvalidRequest, match="are both okx:A/USDT:USDT") as refused:
        pair_plans(one, one, D(1), None)
    assert refused.value.field == "perp_instrument"
    # Rules that name no venue may be of two.
    assert len(pair_plans(swap("A/USDT:USDT"), swap("A/USDT:USDT"), D(1), None)) == 2


def test_plan_legs_when_the_step_in_coins_is_finer_than_a_quantity_may_be_then_it_is_named() -> None:
    fine = swap("A/USDT:USDT", "1E-20", contract_size="1E-20")
    with pytest.raises(InvalidRequest, match=r"legs\.0\.instrument") as refused:
        leg_plans([LegPlan(fine, "buy")], D(1))
    assert refused.value.field == "legs.0.instrument.qty_step"
