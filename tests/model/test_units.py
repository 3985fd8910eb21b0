"""Units: exact numbers in, whole 1e-8 USD in the database, and all rounding of money."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_UP, Context, Decimal, Inexact, getcontext, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_sizer import InvalidRequest
from ledger_sizer.model.units import (
    E8_MAX,
    common_step,
    decimal_text,
    exact_arithmetic,
    exact_decimal,
    floor_to_step,
    not_negative,
    notional_e8,
    positive,
    usd,
    usd_ceil_e8,
    usd_floor_e8,
    usd_text,
)
from tests.support.ledgers import steady

D = Decimal
E8 = Fraction(1, 10**8)

anything = st.decimals(-(10**20), 10**20, allow_nan=False, allow_infinity=False, places=20)
money = st.decimals(D("-9E10"), D("9E10"), allow_nan=False, allow_infinity=False, places=12)
steps = st.builds(lambda whole, places: D(whole).scaleb(-places), st.integers(1, 10**6), st.integers(0, 12))


class Subclass(Decimal):
    """A caller's own decimal type."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (D("1.50"), D("1.50")),
        (7, D(7)),
        (-7, D(-7)),
        (0, D(0)),
        (D("0"), D(0)),
        (D("-0.000"), D(0)),
        (D("0E+999"), D(0)),  # a zero is a zero, however it is written
        (D("0E-999"), D(0)),
        (10**30 - 1, D(10**30 - 1)),
        (D("9" * 30), D("9" * 30)),
        (D("1E-36"), D("1E-36")),
        (Subclass("2.5"), D("2.5")),
    ],
)
def test_read_exact_when_value_is_an_exact_number_then_it_comes_back_as_a_plain_decimal(
    value: Any, expected: Decimal
) -> None:
    found = exact_decimal(value, "price")
    assert found == expected
    assert type(found) is Decimal
    assert str(found) != "-0"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.1, "price must be a Decimal, got float 0.1; write Decimal('0.1'), not 0.1"),
        (float("inf"), "price must be a Decimal, got float inf"),
        (True, "price must be a Decimal, got bool True"),
        ("1", "price must be a Decimal, got str '1'"),
        (None, "price must be a Decimal, got NoneType None"),
        (D("NaN"), "price must be a finite number, got NaN"),
        (D("sNaN"), "price must be a finite number, got sNaN"),
        (D("-Infinity"), "price must be a finite number, got -Infinity"),
        (D("1E+30"), "price is out of range: 1.000000E+30"),
        (D("-1E+30"), "price is out of range: -1.000000E+30"),
        (10**30, "price is out of range: more than 30 digits"),
        (-(10**30), "price is out of range: more than 30 digits"),
        (D("1E-37"), "price is out of range: 1.000000E-37"),
        (D("1.0000000000000000000000000000000000001"), "price is out of range: 1.000000E+0"),
        (D("1E+999999"), "price is out of range: 1.000000E+999999"),
    ],
)
def test_read_exact_when_value_is_not_one_then_the_error_says_which_and_what_to_do(value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        exact_decimal(value, "price")
    assert str(refused.value).startswith(said)
    assert refused.value.field == "price"


@pytest.mark.parametrize(("check", "zero"), [(positive, False), (not_negative, True)])
def test_read_bounded_when_value_is_zero_or_below_then_only_the_right_one_accepts_it(
    check: Callable[[object, str], Decimal], zero: bool
) -> None:
    assert check(D("1E-36"), "cap") == D("1E-36")
    with pytest.raises(InvalidRequest, match=r"cap must be .*, got -1"):
        check(D(-1), "cap")
    if zero:
        assert check(D(0), "cap") == 0
    else:
        with pytest.raises(InvalidRequest, match="cap must be above 0, got 0"):
            check(D(0), "cap")


@pytest.mark.parametrize(
    ("value", "floor", "ceil"),
    [
        ("1", 10**8, 10**8),
        ("0.00000001", 1, 1),
        ("0.000000010000000001", 1, 2),
        ("0.000000009", 0, 1),
        ("-0.000000009", -1, 0),
        ("-1.5", -150_000_000, -150_000_000),
        ("1E-36", 0, 1),
        ("92233720368.54775807", E8_MAX, E8_MAX),
        ("-92233720368.54775807", -E8_MAX, -E8_MAX),
    ],
)
def test_scale_usd_when_it_is_not_whole_then_budgets_go_down_and_notionals_up(
    value: str, floor: int, ceil: int
) -> None:
    assert (usd_floor_e8(D(value)), usd_ceil_e8(D(value))) == (floor, ceil)


@pytest.mark.parametrize("scale", [usd_floor_e8, usd_ceil_e8])
@pytest.mark.parametrize("value", ["92233720368.54775808", "1E+29", "-92233720368.54775808"])
def test_scale_usd_when_it_does_not_fit_64_bits_then_it_is_refused_by_name(
    scale: Callable[[Decimal, str], int], value: str
) -> None:
    with pytest.raises(InvalidRequest, match=r"cap does not fit: .* USD \(at most 92233720368 USD") as refused:
        scale(D(value), "cap")
    assert refused.value.field == "cap"


def test_scale_usd_when_only_rounding_up_leaves_64_bits_then_only_that_is_refused() -> None:
    value = D("92233720368.547758070000001")
    assert usd_floor_e8(value) == E8_MAX
    with pytest.raises(InvalidRequest, match="does not fit"):
        usd_ceil_e8(value)


@steady
@given(money)
def test_scale_usd_when_anything_is_given_then_floor_and_ceil_enclose_it_within_one_unit(value: Decimal) -> None:
    floor, ceil = usd_floor_e8(value), usd_ceil_e8(value)
    assert floor * E8 <= Fraction(value) <= ceil * E8
    assert ceil - floor == (0 if (Fraction(value) / E8).denominator == 1 else 1)


@steady
@given(st.integers(-E8_MAX, E8_MAX))
def test_read_usd_when_stored_then_it_comes_back_to_the_last_unit(e8: int) -> None:
    value = usd(e8)
    assert Fraction(value) == e8 * E8
    assert usd_floor_e8(value) == usd_ceil_e8(value) == e8


@steady
@given(st.integers(-E8_MAX, E8_MAX))
def test_write_usd_when_stored_then_the_text_is_that_of_its_decimal(e8: int) -> None:
    assert usd_text(e8) == decimal_text(usd(e8))


@pytest.mark.parametrize(
    ("e8", "text"),
    [(0, "0"), (-1, "-0.00000001"), (-(10**8), "-1"), (1_050_000_000, "10.5"), (E8_MAX, "92233720368.54775807")],
)
def test_write_usd_when_it_is_at_an_edge_then_it_is_the_shortest_plain_text(e8: int, text: str) -> None:
    assert usd_text(e8) == text


@steady
@given(
    st.decimals(D("1E-12"), D(10**6), places=12, allow_nan=False),
    st.decimals(D("1E-8"), D(80_000), places=8, allow_nan=False),
)
def test_count_notional_when_product_is_not_whole_then_it_is_rounded_up(quantity: Decimal, price: Decimal) -> None:
    exactly_e8 = Fraction(quantity) * Fraction(price) / E8
    counted = notional_e8(quantity, price)
    assert exactly_e8 <= counted < exactly_e8 + 1
    assert counted >= 1


def test_count_notional_when_it_does_not_fit_then_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="notional_usd does not fit"):
        notional_e8(D(10**12), D(10**12))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+3", "1000"),
        ("0.50", "0.5"),
        ("100", "100"),
        ("100.000", "100"),
        ("0E-10", "0"),
        ("-0.0", "0"),
        ("-0", "0"),
        ("1E-12", "0.000000000001"),
        ("-12.3400", "-12.34"),
        ("12345678901.123456789", "12345678901.123456789"),
    ],
)
def test_write_plain_when_written_in_other_ways_then_the_text_is_one(value: str, text: str) -> None:
    assert decimal_text(D(value)) == text


@steady
@given(anything, st.integers(0, 6))
def test_write_plain_when_two_values_are_equal_then_their_texts_are_and_it_reads_back(
    value: Decimal, zeros: int
) -> None:
    with exact_arithmetic():
        longer = value * (D(10) ** zeros) * (D(10) ** -zeros)
    assert decimal_text(longer) == decimal_text(value)
    assert D(decimal_text(value)) == value
    assert "E" not in decimal_text(value)


@steady
@given(anything, steps)
def test_floor_to_step_when_anything_is_given_then_it_is_the_largest_multiple_below(
    value: Decimal, step: Decimal
) -> None:
    floored = Fraction(floor_to_step(value, step))
    assert (floored / Fraction(step)).denominator == 1
    assert floored <= Fraction(value) < floored + Fraction(step)


@pytest.mark.parametrize(
    ("step_a", "step_b", "common"),
    [
        ("0.3", "0.2", "0.6"),
        ("0.001", "0.0001", "0.001"),
        ("0.5", "0.5", "0.5"),
        ("1E+3", "400", "2000"),
        ("1", "0.7", "7"),
        ("0.25", "0.1", "0.5"),
        ("1E-36", "1E+29", "1E+29"),
    ],
)
def test_find_common_step_when_steps_differ_then_it_is_their_least_common_multiple(
    step_a: str, step_b: str, common: str
) -> None:
    assert common_step(D(step_a), D(step_b)) == common_step(D(step_b), D(step_a)) == D(common)


@steady
@given(steps, steps)
def test_find_common_step_when_anything_is_given_then_both_divide_it_and_nothing_smaller_is(
    step_a: Decimal, step_b: Decimal
) -> None:
    common, a, b = (Fraction(value) for value in (common_step(step_a, step_b), step_a, step_b))
    assert (common / a).denominator == (common / b).denominator == 1
    times_a, times_b = int(common / a), int(common / b)
    assert all(times_a % prime or times_b % prime for prime in (2, 3, 5, 7, 11, 13)), "a smaller one exists"


@steady
@given(money, steps)
def test_compute_when_the_threads_decimal_context_was_changed_then_nothing_changes(
    value: Decimal, step: Decimal
) -> None:
    def everything() -> list[object]:
        return [
            exact_decimal(value, "x"),
            usd_floor_e8(value),
            usd_ceil_e8(value),
            usd(usd_floor_e8(value)),
            decimal_text(value),
            str(floor_to_step(value, step)),
            common_step(step, D("0.003")),
            notional_e8(D("1.23456789"), D("98765.4321")),
        ]

    before = everything()
    with localcontext():
        getcontext().prec = 3
        getcontext().rounding = ROUND_UP
        assert everything() == before
    with localcontext(Context(prec=1, traps=[Inexact])):
        assert everything() == before


def test_compute_exactly_when_the_thread_has_another_context_then_it_is_left_as_it_was() -> None:
    with localcontext():
        getcontext().prec = 5
        with exact_arithmetic() as context:
            assert context.prec > 100
            getcontext().prec = 9  # a change inside stays inside
        assert getcontext().prec == 5
        with exact_arithmetic() as context:
            assert context.prec > 100
