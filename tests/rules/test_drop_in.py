"""A bot's own instruments, settings and sizers in place of the ledger's: the same results, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ledger_sizer import (
    DynamicSizer,
    DynamicSizingSettings,
    InstrumentInfo,
    InvalidRequest,
    Ledger,
    LegPlan,
    PositionSizer,
    Reserve,
    TradingSettings,
)

D = Decimal


@dataclass
class OfDataclass:
    symbol: str
    min_qty: Decimal
    max_qty: Decimal
    qty_step: Decimal
    min_notional: Decimal
    contract_size: Decimal
    fee_tier: str = "not the ledger's business"


class OfModel(BaseModel):
    symbol: str
    min_qty: Decimal
    max_qty: Decimal
    qty_step: Decimal
    min_notional: Decimal
    contract_size: Decimal
    venue: str | None = None


class OfTuple(NamedTuple):
    symbol: str
    min_qty: Decimal
    max_qty: Decimal
    qty_step: Decimal
    min_notional: Decimal
    contract_size: Decimal


class OfClass:
    """With properties, as objects around an exchange's answer have."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_fields"][name]
        except KeyError:
            raise AttributeError(name) from None


SHAPES: list[Callable[..., Any]] = [OfDataclass, OfModel, OfTuple, OfClass]
NAMES = ("BTC/USDT", "BTC/USDT:USDT")


def decimals(least: str, most: str, places: int) -> st.SearchStrategy[Decimal]:
    return st.decimals(D(least), D(most), places=places)


RULES = st.fixed_dictionaries(
    {
        "min_qty": decimals("0", "0.5", 4),
        "max_qty": decimals("0.6", "100", 3),
        "qty_step": decimals("0.0001", "0.5", 4),
        "min_notional": decimals("0", "50", 2),
        "contract_size": st.sampled_from([D(1), D("0.01"), D(10)]),
    }
)
BTC = {"min_qty": D("0.001"), "max_qty": D(100), "qty_step": D("0.001"), "min_notional": D(5), "contract_size": D(1)}


@given(
    rules=st.tuples(RULES, RULES), shapes=st.tuples(*[st.sampled_from(SHAPES)] * 2), score=decimals("0", "1", 3),
    price=decimals("0.01", "70000", 2), balance=decimals("0", "3000", 2),
)  # fmt: skip
def test_size_when_instruments_are_a_bots_own_then_the_result_is_that_of_the_ledgers(
    rules: tuple[dict[str, Decimal], ...], shapes: tuple[Any, ...], score: Decimal, price: Decimal, balance: Decimal
) -> None:
    infos = [InstrumentInfo(name, **one) for name, one in zip(NAMES, rules, strict=True)]
    own = [shape(symbol=name, **one) for shape, name, one in zip(shapes, NAMES, rules, strict=True)]
    assert [InstrumentInfo.of(one) for one in own] == infos
    sizer = PositionSizer(TradingSettings())
    dynamic = DynamicSizer(sizer, DynamicSizingSettings(enabled=True), D(1000))
    assert sizer.calculate_quantity(price, balance, own[0]) == sizer.calculate_quantity(price, balance, infos[0])
    figures = (price, balance)
    assert sizer.calculate_matching_quantity(*figures, *own) == sizer.calculate_matching_quantity(*figures, *infos)
    assert dynamic.size(score, D(4500), *figures, *own) == dynamic.size(score, D(4500), *figures, *infos)

    def reserve(spot: Any, perp: Any) -> Reserve:
        return Reserve(key="k", signal_score=score, price=price, spot_instrument=spot, perp_instrument=perp)

    assert reserve(*own).request_text() == reserve(*infos).request_text()
    assert LegPlan(own[1], "buy") == LegPlan(infos[1], "buy")


def test_reserve_when_instruments_are_a_bots_own_then_the_ledger_grants_a_quantity_and_its_legs() -> None:
    spot, perp = [OfDataclass(name, **BTC) for name in NAMES]
    with Ledger.in_memory() as ledger:
        decision = ledger.reserve(key="pair", price=D(50_000), spot_instrument=spot, perp_instrument=perp)  # type: ignore[arg-type]
        assert (decision.quantity, [leg.symbol for leg in decision.legs]) == (D("0.02"), list(NAMES))
        alone = ledger.reserve(key="alone", price=D(50_000), amount_usd=D(100), legs=[LegPlan(perp, "sell")])  # type: ignore[arg-type]
        assert alone.quantity == D("0.002")


def test_take_instrument_when_it_has_optional_fields_then_they_count_and_none_is_not_given() -> None:
    class Kind(Enum):
        SWAP = "swap"

    told = {"kind": Kind.SWAP, "base": "1000PEPE", "quote": "USDT", "settle": None, "venue": "okx", "multiplier": 1000}
    taken = InstrumentInfo.of(SimpleNamespace(symbol="PEPE-SWAP", min_qty=1, max_qty=9, qty_step=1, **told))
    assert (taken.kind, taken.asset, taken.settle, taken.venue, taken.unit) == ("swap", "PEPE", None, "okx", 1000)
    assert InstrumentInfo.of(taken) is taken


BAD = [
    ({"qty_step": None}, "spot_instrument.qty_step", "SimpleNamespace has no qty_step; give it that field"),
    ({"min_qty": 0.001}, "spot_instrument.min_qty", r"SimpleNamespace: min_qty must be a Decimal, got float 0.001"),
    ({"qty_step": "0.001"}, "spot_instrument.qty_step", "must be a Decimal, got str"),
    ({"contract_size": D(0)}, "spot_instrument.contract_size", "must be above 0"),
    ({"kind": "linear"}, "spot_instrument.kind", "SimpleNamespace: kind must be 'spot' or"),
    ({"contract_size": lambda: D(1)}, "spot_instrument.contract_size", "must be a Decimal, got function"),
]


@pytest.mark.parametrize(("changed", "field", "told"), BAD)
def test_take_instrument_when_a_field_is_bad_then_type_field_and_cure_are_named(
    changed: dict[str, Any], field: str, told: str
) -> None:
    bad, good = SimpleNamespace(symbol=NAMES[0], **{**BTC, **changed}), InstrumentInfo(NAMES[1], **BTC)
    sizer = PositionSizer(TradingSettings())
    attempts: list[Callable[[], object]] = [
        lambda: sizer.calculate_matching_quantity(D(50_000), D(100), bad, good),
        lambda: Reserve(key="k", price=D(50_000), spot_instrument=bad, perp_instrument=good),  # type: ignore[arg-type]
    ]
    for attempt in attempts:
        with pytest.raises(InvalidRequest, match=told) as raised:
            attempt()
        assert raised.value.field == field


@pytest.mark.parametrize("thing", [{"symbol": NAMES[0], **BTC}, 5, None, object()])
def test_take_instrument_when_it_has_none_of_the_fields_then_it_is_no_instrument(thing: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be an InstrumentInfo, or an object with symbol") as raised:
        PositionSizer(TradingSettings()).calculate_quantity(D(50_000), D(100), thing)
    assert raised.value.field == "instrument"


OWN = {
    "enabled": True, "min_allocation_fraction": D("0.3"), "max_allocation_fraction": D(1),
    "max_portfolio_exposure": D(5000),
}  # fmt: skip


def test_size_when_settings_are_a_bots_own_then_the_result_is_that_of_the_ledgers() -> None:
    one = SimpleNamespace(max_position_size_usd=D(1000), leverage=3, **OWN)
    sizer = DynamicSizer(PositionSizer(one), one, one.max_position_size_usd)
    assert sizer.compute_signal_budget(D("0.9"), D(0)) == 930
    assert sizer.compute_signal_budget(D(1), D(4500)) == 500
    assert sizer.compute_signal_budget(D(1), D(5000)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_position_size_usd", 1000.0),
        ("max_position_size_usd", D(0)),
        ("enabled", 1),
        ("min_allocation_fraction", 0.3),
        ("min_allocation_fraction", D("1.5")),
        ("max_allocation_fraction", D("NaN")),
        ("max_portfolio_exposure", D(-1)),
        ("max_portfolio_exposure", "5000"),
    ],
)
def test_make_sizer_when_a_setting_is_bad_or_missing_then_it_is_named(field: str, value: Any) -> None:
    whole = {"max_position_size_usd": D(1000), **OWN}
    for fields in ({**whole, field: value}, {name: one for name, one in whole.items() if name != field}):
        one = SimpleNamespace(**fields)
        with pytest.raises(InvalidRequest, match=field) as raised:
            DynamicSizer(PositionSizer(one), one, D(1000))
        assert raised.value.field == field


def test_make_sizer_when_fractions_are_in_the_wrong_order_then_they_are_refused() -> None:
    wrong = SimpleNamespace(**{**OWN, "min_allocation_fraction": D("0.9"), "max_allocation_fraction": D("0.5")})
    with pytest.raises(InvalidRequest, match=r"min_allocation_fraction 0\.9 is above max_allocation_fraction 0\.5"):
        DynamicSizer(PositionSizer(TradingSettings()), wrong, D(1000))


def test_size_when_the_sizer_is_a_bots_own_then_it_is_called_by_keyword_with_the_instruments_as_given() -> None:
    class Own:
        def calculate_matching_quantity(self, **asked: Any) -> Decimal | None:
            self.asked = asked
            return D(7)

    own, spot, perp = Own(), OfDataclass(NAMES[0], **BTC), OfDataclass(NAMES[1], **BTC)
    sizer = DynamicSizer(own, DynamicSizingSettings(enabled=True), D(1000))
    assert sizer.calculate_matching_quantity(D("0.9"), D(0), D(50_000), D(10_000), spot, perp) == 7
    assert own.asked["available_balance"] == 930
    assert (own.asked["spot_instrument"], own.asked["perp_instrument"]) == (spot, perp)
    with pytest.raises(InvalidRequest, match="size needs a PositionSizer, and Own is none"):
        sizer.size(D("0.9"), D(0), D(50_000), D(10_000), spot, perp)
    with pytest.raises(InvalidRequest, match="has no calculate_matching_quantity"):
        DynamicSizer(object(), DynamicSizingSettings(), D(1000))  # type: ignore[arg-type]


def test_size_when_a_subclass_answers_otherwise_then_its_answer_is_told_else_all_figures() -> None:
    class Half(PositionSizer):
        def calculate_matching_quantity(self, *args: Any, **asked: Any) -> Decimal | None:
            found = super().calculate_matching_quantity(*args, **asked)
            return None if found is None or asked["price"] > 90_000 else found / 2

    class Same(PositionSizer):
        def calculate_matching_quantity(self, *args: Any, **asked: Any) -> Decimal | None:
            return super().calculate_matching_quantity(*args, **asked)

    spot, perp = OfDataclass(NAMES[0], **BTC), OfDataclass(NAMES[1], **BTC)
    asked = D("0.9"), D(0), D(50_000), D(10_000), spot, perp
    plain, half, same = [
        DynamicSizer(sizer(TradingSettings()), DynamicSizingSettings(enabled=True), D(1000))
        for sizer in (PositionSizer, Half, Same)
    ]
    whole, halved = plain.size(*asked), half.size(*asked)
    assert halved.quantity == half.calculate_matching_quantity(*asked) == (whole.quantity or 0) / 2
    assert (halved.binding, halved.notional_usd) == ("position_sizer", (halved.quantity or 0) * 50_000)
    assert same.size(*asked) == whole
    nothing = half.size(D("0.9"), D(0), D(100_000), D(10_000), spot, perp)
    assert (nothing.quantity, nothing.binding, nothing.reason) == (None, "position_sizer", "below_min_qty")


@pytest.mark.parametrize("name", ["contractSize", "ctVal"])
def test_take_an_instrument_when_its_contract_size_has_another_name_then_it_is_not_taken_for_one(name: str) -> None:
    rules = {"symbol": NAMES[1], "min_qty": D(1), "max_qty": D(9000), "qty_step": D(1), name: D("0.01")}
    with pytest.raises(InvalidRequest, match=f"has {name} and no contract_size") as raised:
        InstrumentInfo.of(SimpleNamespace(**rules))
    assert raised.value.field == "instrument.contract_size"
    assert InstrumentInfo.of(SimpleNamespace(**rules, contract_size=D("0.01"))).contract_size == D("0.01")


def test_take_an_instrument_when_a_method_is_named_like_a_field_then_it_is_no_field() -> None:
    class Own(SimpleNamespace):
        def settle(self) -> None:
            """Belong to the bot."""

    assert InstrumentInfo.of(Own(symbol=NAMES[1], **BTC)).settle == "USDT"
