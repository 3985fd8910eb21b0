"""Sizing: from a score to a budget, from a budget to a quantity both legs accept, and which class does which part."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import (
    DynamicSizer,
    DynamicSizingSettings,
    InstrumentInfo,
    PositionSizer,
    TradingSettings,
    round_to_step,
)

D = Decimal
SPOT = InstrumentInfo("BTC/USDT", D("0.0001"), D(100), D("0.0001"), D(10))
PERP = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"), D(5))


class RecordingSizer(PositionSizer):
    """A position sizer that records its calls."""

    def __init__(self, settings: TradingSettings) -> None:
        super().__init__(settings)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def calculate_matching_quantity(self, *args: Any, **kwargs: Any) -> Decimal | None:
        self.calls.append((args, kwargs))
        return super().calculate_matching_quantity(*args, **kwargs)


def market(
    step: str = "0.001", *, least: str = "0.001", most: str = "1000", notional: str = "0", contract: str = "1"
) -> InstrumentInfo:
    return InstrumentInfo("ANY/USDT", D(least), D(most), D(step), D(notional), contract_size=D(contract))


def dynamic_sizer(position_sizer: PositionSizer | None = None, *, most: str = "1000", **sizing: Any) -> DynamicSizer:
    settings = DynamicSizingSettings(**{"enabled": True, **sizing})
    return DynamicSizer(position_sizer or PositionSizer(TradingSettings()), settings, D(most))


# --- from a score to a budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "exposure", "budget"),
    [
        ("0.9", "0", "930"),
        ("0.3", "0", "510"),
        ("0.5", "0", "650"),
        ("0.0", "0", "300"),
        ("1.0", "0", "1000"),
        ("1", "0", "1000"),
        ("0.123456789", "0", "386.4197523"),
        ("1.0", "4000", "1000"),  # the cap leaves exactly what is asked
        ("1.0", "4000.00000001", "999.99999999"),
        ("1.0", "4500", "500"),
        ("0.5", "4500", "500"),
        ("0.0", "4500", "300"),
        ("1.0", "4999.99999999", "0.00000001"),
        ("1.0", "5000", None),
        ("0.0", "5000", None),
        ("1.0", "5000.01", None),
        ("1.0", "90000", None),
    ],
)
def test_compute_budget_when_score_and_exposure_vary_then_it_is_the_contracts_figure(
    score: str, exposure: str, budget: str | None
) -> None:
    assert dynamic_sizer().compute_signal_budget(D(score), D(exposure)) == (None if budget is None else D(budget))


@pytest.mark.parametrize("score", [D(0), D("0.3"), D(1), None])
def test_compute_budget_when_disabled_then_every_score_gets_the_maximum_under_the_cap(score: Decimal | None) -> None:
    sizer = dynamic_sizer(enabled=False)
    assert sizer.compute_signal_budget(score, D(0)) == 1000
    assert sizer.compute_signal_budget(score, D(4400)) == 600
    assert sizer.compute_signal_budget(score, D(5000)) is None


def test_compute_budget_when_settings_are_default_then_sizing_is_off() -> None:
    sizer = DynamicSizer(PositionSizer(TradingSettings()), DynamicSizingSettings(), D(1000))
    assert sizer.compute_signal_budget(D("0.1"), D(0)) == 1000


def test_compute_budget_when_there_is_no_score_then_it_is_sized_flat() -> None:
    assert dynamic_sizer().compute_signal_budget(None, D(0)) == 1000
    assert dynamic_sizer().compute_signal_budget(None, D(4400)) == 600


@pytest.mark.parametrize(("score", "budget"), [("0", None), ("0.000001", "0.001"), ("1", "1000")])
def test_compute_budget_when_min_fraction_is_zero_then_a_score_of_zero_gets_nothing(
    score: str, budget: str | None
) -> None:
    sizer = dynamic_sizer(min_allocation_fraction=D(0))
    assert sizer.compute_signal_budget(D(score), D(0)) == (None if budget is None else D(budget))


def test_compute_budget_when_fractions_are_equal_then_the_score_does_not_matter() -> None:
    sizer = dynamic_sizer(min_allocation_fraction=D("0.4"), max_allocation_fraction=D("0.4"))
    assert {sizer.compute_signal_budget(D(score), D(0)) for score in ("0", "0.5", "1")} == {D(400)}


def test_compute_budget_when_integers_are_given_then_they_count_as_exact() -> None:
    assert dynamic_sizer().compute_signal_budget(1, 4500) == 500  # type: ignore[arg-type]


# --- delegation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "exposure", "balance", "spend"),
    [
        ("0.9", "0", "10000", "930"),
        ("0.9", "0", "700", "700"),
        ("1.0", "4500", "10000", "500"),
        ("1.0", "4500", "499.99", "499.99"),
        ("0.5", "0", "-20", "-20"),
    ],
)
def test_size_matching_quantity_when_budget_is_left_then_the_position_sizer_is_called_once_by_keyword(
    score: str, exposure: str, balance: str, spend: str
) -> None:
    recording = RecordingSizer(TradingSettings())
    sizer = dynamic_sizer(recording)
    quantity = sizer.calculate_matching_quantity(D(score), D(exposure), D(50000), D(balance), SPOT, PERP)
    asked = {"price": D(50000), "available_balance": D(spend), "spot_instrument": SPOT, "perp_instrument": PERP}
    assert recording.calls == [((), asked)]
    assert quantity == PositionSizer(TradingSettings()).calculate_matching_quantity(D(50000), D(spend), SPOT, PERP)


@pytest.mark.parametrize("exposure", ["5000", "7000"])
def test_size_matching_quantity_when_there_is_no_budget_then_the_position_sizer_is_not_called(exposure: str) -> None:
    recording = RecordingSizer(TradingSettings())
    sizer = dynamic_sizer(recording)
    assert sizer.calculate_matching_quantity(D("0.9"), D(exposure), D(50000), D(10000), SPOT, PERP) is None
    assert recording.calls == []


def test_size_matching_quantity_when_the_position_sizer_differs_then_its_answer_is_returned() -> None:
    class Cautious(PositionSizer):
        def calculate_matching_quantity(self, *args: Any, **kwargs: Any) -> Decimal | None:
            found = super().calculate_matching_quantity(*args, **kwargs)
            return found and found / 2

    sizer = dynamic_sizer(Cautious(TradingSettings()))
    assert sizer.calculate_matching_quantity(D(1), D(0), D(50000), D(10000), SPOT, PERP) == D("0.01")


# --- from money to a quantity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "balance", "quantity"),
    [
        ("50000", "10000", "0.02"),  # bound by the per-position maximum of 1000
        ("50000", "930", "0.018"),
        ("50000", "900", "0.018"),  # an exact multiple stays whole
        ("50000", "899.99999999", "0.017"),
        ("50000", "50", "0.001"),
        ("50000", "49.99", None),
        ("50000", "0", None),
        ("50000", "-5", None),
        ("0.0001", "10000", "50"),  # bound by the perp's max_qty
        ("3", "10000", "50"),
        ("30", "100", "3.333"),
    ],
)
def test_match_quantity_when_money_varies_then_it_is_floored_to_the_common_step(
    price: str, balance: str, quantity: str | None
) -> None:
    spot = InstrumentInfo("BTC/USDT", D("0.0001"), D(100), D("0.0001"))
    perp = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(50), D("0.001"))
    found = PositionSizer(TradingSettings()).calculate_matching_quantity(D(price), D(balance), spot, perp)
    assert found == (None if quantity is None else D(quantity))


@pytest.mark.parametrize(
    ("step_a", "step_b", "balance", "quantity"),
    [
        ("0.3", "0.2", "1", "0.6"),  # not 0.9, which 0.2 does not divide
        ("0.3", "0.2", "1.2", "1.2"),
        ("0.3", "0.2", "0.59", None),
        ("0.004", "0.006", "0.05", "0.048"),
        ("1", "0.7", "20", "14"),
        ("10", "4", "50", "40"),
        ("0.001", "0.001", "0.0125", "0.012"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_match_quantity_when_steps_differ_then_their_least_common_multiple_is_used(
    step_a: str, step_b: str, balance: str, quantity: str | None, swapped: bool
) -> None:
    legs = [market(step_a, least="0"), market(step_b, least="0")]
    spot, perp = reversed(legs) if swapped else legs
    found = PositionSizer(TradingSettings()).calculate_matching_quantity(D(1), D(balance), spot, perp)
    assert found == (None if quantity is None else D(quantity))


def test_match_quantity_when_a_contract_is_not_a_base_unit_then_its_rules_are_converted_first() -> None:
    """OKX BTC-USDT-SWAP: 1 contract is 0.01 BTC, orders from 0.1 contracts in steps of 0.1."""
    okx = market("0.1", least="0.1", most="500", contract="0.01")
    sizer = PositionSizer(TradingSettings(max_position_size_usd=D(1_000_000)))
    spot = market("0.00001", least="0.00001", most="100")

    def matched(balance: str) -> Decimal | None:
        return sizer.calculate_matching_quantity(D(50000), D(balance), spot, okx)

    assert matched("930") == D("0.018")  # 1.8 contracts
    assert matched("50") == D("0.001")  # 0.1 contracts, the smallest order
    assert matched("49.99") is None
    assert matched("900000") == D(5)  # 500 contracts, its largest order
    assert sizer.calculate_quantity(D(50000), D(930), okx) == D("0.018")


@pytest.mark.parametrize(
    ("contract", "quantity"), [("0.01", "0.01"), ("0.1", None), ("0.0001", "0.0186"), ("0.003", "0.018")]
)
def test_match_quantity_when_contract_size_varies_then_the_common_step_is_in_base_units(
    contract: str, quantity: str | None
) -> None:
    perp = market("1", least="1", contract=contract)
    spot = market("0.0001", least="0.0001")
    found = PositionSizer(TradingSettings()).calculate_matching_quantity(D(50000), D(930), spot, perp)
    assert found == (None if quantity is None else D(quantity))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("rules", "quantity"),
    [
        ({"most": "7"}, "7"),
        ({"most": "7.5", "step": "2"}, "6"),  # max_qty itself need not be a multiple of the step
        ({"least": "10"}, "10"),
        ({"least": "10.001"}, None),
        ({"notional": "1000"}, "10"),
        ({"notional": "1000.01"}, None),
        ({"most": "7", "notional": "701"}, None),  # max_qty leaves less than the smallest order value
    ],
)
def test_match_quantity_when_either_leg_bounds_it_then_the_stricter_rule_decides(
    rules: dict[str, str], quantity: str | None, swapped: bool
) -> None:
    legs = [market(**rules), market("1", least="0")]
    spot, perp = reversed(legs) if swapped else legs
    found = PositionSizer(TradingSettings()).calculate_matching_quantity(D(100), D(5000), spot, perp)
    assert found == (None if quantity is None else D(quantity))


@pytest.mark.parametrize("swapped", [False, True])
def test_match_quantity_when_the_legs_bounds_exclude_each_other_then_there_is_none(swapped: bool) -> None:
    legs = [market("1", least="8"), market("1", least="0", most="7")]
    spot, perp = reversed(legs) if swapped else legs
    assert PositionSizer(TradingSettings()).calculate_matching_quantity(D(100), D(1000), spot, perp) is None


def test_make_instrument_when_only_the_lot_is_known_then_the_rest_are_the_contracts_defaults() -> None:
    plain = InstrumentInfo("X", D(1), D(9), D(1))
    assert (plain.min_notional, plain.tick_size, plain.contract_size) == (0, D("0.01"), 1)


@pytest.mark.parametrize(
    ("balance", "quantity"), [("930", "0.0186"), ("5000", "0.02"), ("10", "0.0002"), ("9.99", None), ("0", None)]
)
def test_calculate_quantity_when_one_leg_is_sized_then_only_its_own_rules_count(
    balance: str, quantity: str | None
) -> None:
    found = PositionSizer(TradingSettings()).calculate_quantity(D(50000), D(balance), SPOT)
    assert found == (None if quantity is None else D(quantity))


@pytest.mark.parametrize(
    ("value", "step", "rounded"),
    [
        ("1.0", "0.3", "0.9"),
        ("0.9", "0.3", "0.9"),
        ("0.29", "0.3", "0"),
        ("-0.1", "0.3", "-0.3"),
        ("123456789.987654321", "0.000000001", "123456789.987654321"),
        ("7", "2.5", "5"),
        ("1E+20", "3", "99999999999999999999"),
    ],
)
def test_round_to_step_when_value_lies_between_steps_then_it_is_floored(value: str, step: str, rounded: str) -> None:
    assert round_to_step(D(value), D(step)) == D(rounded)


@pytest.mark.parametrize(
    ("spot", "perp", "tolerance", "matches"),
    [
        ("1", "1", None, True),
        ("1", "0.98", None, True),
        ("0.98", "1", None, True),
        ("1", "0.9799", None, False),
        ("0.9799", "1", None, False),
        ("0", "0", None, True),
        ("1", "0", None, False),
        ("1", "0", "1", True),
        ("1", "1.0001", "0", False),
        ("1", "1.0000", "0", True),
        ("100", "90", "0.1", True),
        ("100", "89.99", "0.1", False),
    ],
)
def test_validate_quantities_when_legs_differ_then_the_larger_one_sets_the_tolerance(
    spot: str, perp: str, tolerance: str | None, matches: bool
) -> None:
    sizer = PositionSizer(TradingSettings())
    given = () if tolerance is None else (D(tolerance),)
    assert sizer.validate_matching_quantity(D(spot), D(perp), *given) is matches


# --- every figure of a size --------------------------------------------------------------------------------------


def test_size_when_everything_fits_then_each_intermediate_figure_is_told() -> None:
    sizing = dynamic_sizer().size(D("0.9"), D(1000), D(50000), D(10000), SPOT, PERP)
    assert sizing.signal_score == D("0.9")
    assert sizing.fraction == D("0.93")
    assert sizing.raw_budget == 930
    assert sizing.headroom == 4000
    assert sizing.budget == 930
    assert sizing.spend == 930
    assert sizing.step == D("0.001")
    assert sizing.raw_quantity == sizing.quantity == D("0.018")
    assert sizing.notional_usd == 900
    assert sizing.binding == "signal_score"
    assert sizing.reason is None


def test_size_when_max_qty_bounds_it_then_raw_quantity_shows_what_the_money_would_buy() -> None:
    sizing = dynamic_sizer().size(D(1), D(0), D(100), D(10000), market(most="7"), market("1"))
    assert (sizing.raw_quantity, sizing.quantity, sizing.notional_usd) == (D(10), D(7), D(700))
    assert (sizing.binding, sizing.reason) == ("max_qty", None)


@pytest.mark.parametrize(
    ("score", "exposure", "balance", "binding", "reason"),
    [
        ("0.9", "0", "10000", "signal_score", None),
        (None, "0", "10000", "max_position_size_usd", None),
        ("0.9", "4500", "10000", "portfolio", None),
        ("0.9", "0", "800", "available_balance", None),
        ("0.9", "4500", "400", "available_balance", None),
        ("0.9", "4500", "500", "portfolio", None),  # a tie: the balance took nothing away
        ("0.9", "4070", "10000", "signal_score", None),  # a tie: nor did the cap
        ("0.9", "5000", "10000", "portfolio", "cap_exceeded"),
        ("0.9", "4960", "10000", "portfolio", "below_min_qty"),
        ("0.9", "0", "49", "available_balance", "below_min_qty"),
        ("0.9", "0", "0", "available_balance", "below_min_qty"),
    ],
)
def test_size_when_one_constraint_decides_then_it_is_named(
    score: str | None, exposure: str, balance: str, binding: str, reason: str | None
) -> None:
    sizing = dynamic_sizer().size(score and D(score), D(exposure), D(50000), D(balance), SPOT, PERP)  # type: ignore[arg-type]
    assert (sizing.binding, sizing.reason) == (binding, reason)
    assert (sizing.quantity is None) == (reason is not None)


def test_size_when_disabled_then_the_maximum_is_named_not_the_score() -> None:
    sizing = dynamic_sizer(enabled=False).size(D("0.2"), D(0), D(50000), D(10000), SPOT, PERP)
    assert (sizing.fraction, sizing.raw_budget, sizing.binding) == (D(1), D(1000), "max_position_size_usd")


@pytest.mark.parametrize("balance", ["3000", "10000"])
def test_size_when_the_position_sizers_own_maximum_decides_then_that_maximum_is_named(balance: str) -> None:
    sizing = dynamic_sizer(most="4000").size(D(1), D(0), D(50000), D(balance), SPOT, PERP)
    assert sizing.spend == 1000
    assert sizing.binding == "max_position_size_usd"


def test_size_when_the_cap_leaves_nothing_then_no_figure_beyond_the_headroom_is_invented() -> None:
    sizing = dynamic_sizer().size(D("0.9"), D(5100), D(50000), D(10000), SPOT, PERP)
    assert sizing.headroom == -100
    later = (sizing.budget, sizing.spend, sizing.step, sizing.raw_quantity, sizing.quantity, sizing.notional_usd)
    assert later == (None,) * 6


@pytest.mark.parametrize("score", ["0", "0.05", "0.4", "0.99", "1"])
@pytest.mark.parametrize("exposure", ["0", "4200", "4990", "5000"])
@pytest.mark.parametrize("balance", ["0", "60", "5000"])
def test_size_when_asked_for_figures_then_the_quantity_is_that_of_the_plain_call(
    score: str, exposure: str, balance: str
) -> None:
    sizer = dynamic_sizer()
    asked = (D(score), D(exposure), D(50000), D(balance), SPOT, PERP)
    assert sizer.size(*asked).quantity == sizer.calculate_matching_quantity(*asked)
