"""Sizing at its limits: refused inputs, properties of every input, and independence of the decimal context."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_UP, Context, Decimal, Inexact, getcontext, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_sizer import (
    DynamicSizer,
    DynamicSizingSettings,
    InstrumentInfo,
    InvalidRequest,
    Leg,
    PositionSizer,
    TradingSettings,
    round_to_step,
)
from tests.support.ledgers import steady

D = Decimal
SPOT = InstrumentInfo("BTC/USDT", D("0.0001"), D(100), D("0.0001"), D(10))
PERP = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"), D(5))

NOT_EXACT = [
    pytest.param(0.5, id="float"),
    pytest.param(float("nan"), id="float-nan"),
    pytest.param(True, id="bool"),
    pytest.param("0.5", id="text"),
    pytest.param(1j, id="complex"),
    pytest.param(Fraction(1, 2), id="fraction"),
    pytest.param(D("NaN"), id="nan"),
    pytest.param(D("sNaN"), id="signalling-nan"),
    pytest.param(D("-NaN123"), id="nan-with-payload"),
    pytest.param(D("Infinity"), id="infinity"),
    pytest.param(D("-Infinity"), id="minus-infinity"),
    pytest.param(D("1E+999999"), id="huge"),
    pytest.param(D("1E-999999"), id="tiny"),
    pytest.param(D("1" * 40), id="40-digits"),
    pytest.param(10**40, id="huge-int"),
]


def dynamic_sizer() -> DynamicSizer:
    return DynamicSizer(PositionSizer(TradingSettings()), DynamicSizingSettings(enabled=True), D(1000))


def position_sizer() -> PositionSizer:
    return PositionSizer(TradingSettings())


ENTRANCES: dict[str, Callable[[Any], object]] = {
    "signal_score": lambda value: dynamic_sizer().compute_signal_budget(value, D(0)),
    "current_exposure": lambda value: dynamic_sizer().compute_signal_budget(D("0.5"), value),
    "price": lambda value: position_sizer().calculate_quantity(value, D(100), SPOT),
    "available_balance": lambda value: position_sizer().calculate_quantity(D(100), value, SPOT),
    "spot_qty": lambda value: position_sizer().validate_matching_quantity(value, D(1)),
    "perp_qty": lambda value: position_sizer().validate_matching_quantity(D(1), value),
    "tolerance": lambda value: position_sizer().validate_matching_quantity(D(1), D(1), value),
    "value": lambda value: round_to_step(value, D(1)),
    "step": lambda value: round_to_step(D(1), value),
    "max_position_size_usd": lambda value: DynamicSizer(position_sizer(), DynamicSizingSettings(), value),
    "min_qty": lambda value: InstrumentInfo("X", value, D(100), D(1)),
    "max_qty": lambda value: InstrumentInfo("X", D(0), value, D(1)),
    "qty_step": lambda value: InstrumentInfo("X", D(0), D(100), value),
    "min_notional": lambda value: InstrumentInfo("X", D(0), D(100), D(1), value),
    "tick_size": lambda value: InstrumentInfo("X", D(0), D(100), D(1), tick_size=value),
    "contract_size": lambda value: InstrumentInfo("X", D(0), D(100), D(1), contract_size=value),
    "multiplier": lambda value: InstrumentInfo("X", D(0), D(100), D(1), multiplier=value),
    "max_notional": lambda value: InstrumentInfo("X", D(0), D(100), D(1), max_notional=value),
    "quantity": lambda value: Leg("bybit", "X", "spot", "buy", value),
}
MUST_BE_POSITIVE = [
    "price", "step", "max_position_size_usd", "max_qty", "qty_step", "tick_size", "contract_size", "multiplier",
    "max_notional",
]  # fmt: skip
MUST_NOT_BE_NEGATIVE = [
    "current_exposure", "spot_qty", "perp_qty", "tolerance", "min_qty", "min_notional", "quantity"
]  # fmt: skip


@pytest.mark.parametrize("value", [*NOT_EXACT, pytest.param(None, id="none")])
@pytest.mark.parametrize("field", ENTRANCES)
def test_enter_number_when_it_is_not_an_exact_finite_one_then_the_field_is_named(field: str, value: Any) -> None:
    if value is None and field in ("signal_score", "max_notional"):
        value = D("NaN")  # None is a legal score, so test another bad value here
    with pytest.raises(InvalidRequest, match=field) as refused:
        ENTRANCES[field](value)
    assert refused.value.field == field
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", ["0", "-0", "-1", "-1E-30"])
@pytest.mark.parametrize("field", MUST_BE_POSITIVE)
def test_enter_number_when_it_must_be_positive_then_zero_and_below_are_refused(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} must be above 0") as refused:
        ENTRANCES[field](D(value))
    assert refused.value.field == field


@pytest.mark.parametrize("field", MUST_NOT_BE_NEGATIVE)
def test_enter_number_when_it_must_not_be_negative_then_only_below_zero_is_refused(field: str) -> None:
    ENTRANCES[field](D(0))
    with pytest.raises(InvalidRequest, match=f"{field} must be 0 or above, got -1E-30") as refused:
        ENTRANCES[field](D("-1E-30"))
    assert refused.value.field == field


@pytest.mark.parametrize("score", ["-0.0000000001", "1.0000000001", "-1", "2", "90"])
def test_compute_budget_when_score_is_outside_0_to_1_then_it_is_refused_not_clamped(score: str) -> None:
    with pytest.raises(InvalidRequest, match="signal_score must be between 0 and 1, got ") as refused:
        dynamic_sizer().compute_signal_budget(D(score), D(0))
    assert refused.value.field == "signal_score"
    assert str(D(score)) in str(refused.value)


def test_compute_budget_when_sizing_is_off_then_a_bad_score_is_refused_all_the_same() -> None:
    sizer = DynamicSizer(position_sizer(), DynamicSizingSettings(), D(1000))
    with pytest.raises(InvalidRequest, match="signal_score"):
        sizer.compute_signal_budget(D("1.01"), D(0))


@pytest.mark.parametrize("method", ["calculate_matching_quantity", "size"])
@pytest.mark.parametrize(
    ("field", "place", "value"),
    [("signal_score", 0, 0.9), ("current_exposure", 1, D(-1)), ("price", 2, D(0)), ("available_balance", 3, 5.0)],
)
def test_size_when_an_argument_is_bad_then_it_is_named_even_where_no_budget_is_left(
    method: str, field: str, place: int, value: Any
) -> None:
    for exposure in (D(0), D(5000)):
        asked: list[Any] = [D("0.9"), exposure, D(50000), D(1000), SPOT, PERP]
        asked[place] = value
        with pytest.raises(InvalidRequest) as refused:
            getattr(dynamic_sizer(), method)(*asked)
        assert refused.value.field == field


def test_make_instrument_when_max_is_below_min_then_both_are_named() -> None:
    with pytest.raises(InvalidRequest, match="ABC: max_qty 1 is below min_qty 2"):
        InstrumentInfo("ABC", D(2), D(1), D(1))


@pytest.mark.parametrize("symbol", ["", " \n", "a\x1fb", "x" * 129, 7, None])
def test_make_instrument_when_symbol_is_not_plain_text_then_it_is_refused(symbol: Any) -> None:
    with pytest.raises(InvalidRequest, match="symbol"):
        InstrumentInfo(symbol, D(0), D(1), D(1))


# --- what holds for every input ----------------------------------------------------------------------------------


def decimals(low: str, high: str, places: int) -> st.SearchStrategy[Decimal]:
    return st.decimals(D(low), D(high), allow_nan=False, allow_infinity=False, places=places)


@st.composite
def instruments(draw: st.DrawFn) -> InstrumentInfo:
    step = draw(st.integers(1, 30)) * D(1).scaleb(-draw(st.integers(0, 6)))
    least = draw(decimals("0", "5", 4))
    return InstrumentInfo(
        "ANY/USDT",
        min_qty=least,
        max_qty=least + draw(decimals("0.001", "5000", 3)),
        qty_step=step,
        min_notional=draw(decimals("0", "50", 2)),
        contract_size=draw(st.sampled_from([D(1), D("0.01"), D("0.001"), D(10), D("0.3")])),
    )


PRICES = decimals("0.000001", "200000", 6)
BALANCES = decimals("-10", "5000", 8)


def common(step_a: Fraction, step_b: Fraction) -> Fraction:
    """Least common multiple of two fractions in lowest terms."""
    return Fraction(math.lcm(step_a.numerator, step_b.numerator), math.gcd(step_a.denominator, step_b.denominator))


def expected_quantity(price: Decimal, spend: Decimal, legs: tuple[InstrumentInfo, InstrumentInfo]) -> Fraction | None:
    """Return the documented quantity, computed in exact fractions."""
    sizes = [Fraction(leg.contract_size) for leg in legs]
    step = common(*(Fraction(leg.qty_step) * size for leg, size in zip(legs, sizes, strict=True)))
    least = max(Fraction(leg.min_qty) * size for leg, size in zip(legs, sizes, strict=True))
    most = min(Fraction(leg.max_qty) * size for leg, size in zip(legs, sizes, strict=True))
    quantity = min(Fraction(spend) / Fraction(price), most) // step * step
    if quantity <= 0 or quantity < least or quantity * Fraction(price) < max(leg.min_notional for leg in legs):
        return None
    return quantity


@steady
@given(price=PRICES, balance=BALANCES, spot=instruments(), perp=instruments())
def test_match_quantity_when_anything_is_asked_then_it_is_exactly_the_definition(
    price: Decimal, balance: Decimal, spot: InstrumentInfo, perp: InstrumentInfo
) -> None:
    found = position_sizer().calculate_matching_quantity(price, balance, spot, perp)
    spend = min(balance, D(1000))
    expected = expected_quantity(price, spend, (spot, perp))
    assert (None if found is None else Fraction(found)) == expected
    if found is not None:
        for leg in (spot, perp):
            step = Fraction(leg.qty_step) * Fraction(leg.contract_size)
            assert Fraction(found) % step == 0, "not a multiple of this leg's step"
        assert Fraction(found) * Fraction(price) <= Fraction(spend), "rounded up"


@steady
@given(score=decimals("0", "1", 12), exposure=decimals("0", "6000", 8))
def test_compute_budget_when_anything_is_asked_then_it_never_passes_formula_or_cap(
    score: Decimal, exposure: Decimal
) -> None:
    budget = dynamic_sizer().compute_signal_budget(score, exposure)
    raw = 1000 * (Fraction(3, 10) + Fraction(7, 10) * Fraction(score))
    left = 5000 - Fraction(exposure)
    assert (None if budget is None else Fraction(budget)) == (min(raw, left) if left > 0 else None)


@steady
@given(low=decimals("0", "1", 4), high=decimals("0", "1", 4), scores=st.lists(decimals("0", "1", 6), min_size=2))
def test_compute_budget_when_the_score_rises_then_the_budget_never_falls(
    low: Decimal, high: Decimal, scores: list[Decimal]
) -> None:
    fractions = sorted([low, high])
    settings = DynamicSizingSettings(
        enabled=True, min_allocation_fraction=fractions[0], max_allocation_fraction=fractions[1]
    )
    sizer = DynamicSizer(position_sizer(), settings, D(1000))
    budgets = [sizer.compute_signal_budget(score, D(0)) or D(0) for score in sorted(scores)]
    assert budgets == sorted(budgets)
    assert budgets[-1] <= 1000 * fractions[1]


@steady
@given(value=decimals("-1000000", "1000000", 12), step=decimals("0.000001", "50", 6))
def test_round_to_step_when_anything_is_asked_then_it_is_the_largest_multiple_not_above(
    value: Decimal, step: Decimal
) -> None:
    rounded = Fraction(round_to_step(value, step))
    assert rounded % Fraction(step) == 0
    assert rounded <= Fraction(value) < rounded + Fraction(step)


@steady
@given(
    score=decimals("0", "1", 12),
    exposure=decimals("0", "5200", 8),
    price=PRICES,
    balance=BALANCES,
    spot=instruments(),
    perp=instruments(),
)
def test_size_when_the_threads_decimal_context_was_changed_then_no_figure_changes(
    score: Decimal, exposure: Decimal, price: Decimal, balance: Decimal, spot: InstrumentInfo, perp: InstrumentInfo
) -> None:
    asked = (score, exposure, price, balance, spot, perp)
    before = dynamic_sizer().size(*asked)
    rounded = round_to_step(balance, spot.qty_step)
    with localcontext():
        # A library may leave such a context in a thread; ccxt's decimal_to_precision does.
        getcontext().prec = 3
        getcontext().rounding = ROUND_UP
        assert dynamic_sizer().size(*asked) == before
        assert round_to_step(balance, spot.qty_step) == rounded
    with localcontext(Context(prec=1, traps=[Inexact])):
        assert dynamic_sizer().size(*asked) == before


def test_size_when_it_has_computed_then_the_threads_decimal_context_is_as_it_was() -> None:
    with localcontext():
        getcontext().prec = 7
        getcontext().rounding = ROUND_UP
        dynamic_sizer().size(D("0.7"), D(0), D("33333.333"), D(900), SPOT, PERP)
        assert (getcontext().prec, getcontext().rounding) == (7, ROUND_UP)


def test_match_quantity_when_quotient_has_more_than_28_digits_then_it_is_exact_all_the_same() -> None:
    wide = InstrumentInfo("ANY/USDT", D(0), D("1E+29"), D("1E-18"))
    settings = TradingSettings(max_position_size_usd=D("90000000000"))
    found = PositionSizer(settings).calculate_matching_quantity(D("0.000003"), D("80000000000"), wide, wide)
    assert found == D("26666666666666666.666666666666666666")


@pytest.mark.parametrize("digits", [6, 12, 18])
def test_match_quantity_when_steps_are_long_then_both_still_divide_it(digits: int) -> None:
    """The common multiple of two long coprime steps, squared by contract sizes, is four times as long as each."""
    step_a, step_b = D(10**digits + 1).scaleb(-36), D(10**digits + 3).scaleb(-36)
    legs = [InstrumentInfo("X", D(0), D("1E+29"), step, contract_size=step) for step in (step_a, step_b)]
    sizer = PositionSizer(TradingSettings(max_position_size_usd=D("90000000000")))
    found = sizer.calculate_matching_quantity(D("1E-15"), D("90000000000"), *legs)
    assert found is not None
    for leg in legs:
        assert Fraction(found) % (Fraction(leg.qty_step) * Fraction(leg.contract_size)) == 0
