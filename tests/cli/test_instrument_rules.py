"""Trading rules as the command line reads them: a comma-separated text, or a JSON object with every field."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, InvalidRequest
from ledger_sizer.cli.options import instrument
from ledger_sizer.model.arguments import to_json

D = Decimal
RULES = {"symbol": "1000PEPE-PERP", "min_qty": 1, "max_qty": "50", "qty_step": 1}
LATER = {
    "kind": "swap", "base": "1000PEPE", "quote": "USDT", "settle": "USDT", "venue": "binance", "multiplier": 1000,
    "max_notional": "1000.5", "buys_by_cost": True,
}  # fmt: skip


def test_read_rules_when_the_object_has_every_field_then_each_is_read_exactly() -> None:
    found = instrument(json.dumps({**RULES, **LATER}), "perp_instrument")
    assert found == InstrumentInfo(
        "1000PEPE-PERP", D(1), D(50), D(1), kind="swap", base="1000PEPE", quote="USDT", settle="USDT", venue="binance",
        multiplier=D(1000), max_notional=D("1000.5"), buys_by_cost=True,
    )  # fmt: skip
    assert instrument(json.dumps(to_json(found)), "perp_instrument") == found, "as `instruments show --json` prints it"


def test_read_rules_when_they_are_comma_separated_then_the_later_fields_have_no_place() -> None:
    found = instrument("BTC/USDT,0.001,50,0.001,5,0.01,1", "spot_instrument")
    assert isinstance(found, InstrumentInfo)
    assert (found.kind, found.unit, found.multiplier) == ("spot", 1, 1)
    with pytest.raises(InvalidRequest, match=r"min_notional\[,tick_size\[,contract_size\]\]\] or a JSON object"):
        instrument("BTC/USDT,0.001,50,0.001,5,0.01,1,spot", "spot_instrument")


@pytest.mark.parametrize("name", ["binance:币安人生/USDT", "bybit:BTC/USDT:USDT-301227"])
def test_read_rules_when_a_market_is_named_then_the_name_is_kept(name: str) -> None:
    assert instrument(name, "spot_instrument") == name


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("buys_by_cost", "yes", "buys_by_cost must be true or false, got 'yes'"),
        ("buys_by_cost", 1, "buys_by_cost must be true or false, got '1'"),
        ("multiplier", True, "multiplier must be text or a number, got True"),
        ("multiplier", "1,000", "multiplier must be a number such as 0.9"),
        ("multiplier", 0, "multiplier must be above 0, got 0"),
        ("multiplier", "1e40", "multiplier is out of range"),
        ("max_notional", "NaN", "max_notional must be a number"),
        ("kind", "perp", "kind must be 'spot' or 'swap' or 'future', got 'perp'"),
        ("base", "B C", "base must be an asset's code such as BTC, without spaces"),
        ("venue", "", "venue must have 1 to 128 characters"),
        ("colour", "red", "has no 'colour'; it takes symbol, min_qty"),
    ],
)
def test_read_rules_when_a_later_field_is_wrong_then_the_error_names_it(field: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        instrument(json.dumps({**RULES, field: value}), "perp_instrument")
    assert told in str(caught.value)
    assert caught.value.field == f"perp_instrument.{field}"
