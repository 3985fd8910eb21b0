"""What a market is: its kind, assets, venue and multiplier, from its name or as given."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, InvalidRequest
from ledger_sizer.model.instruments import canonical_text, instrument_from_json, instrument_to_json

D = Decimal
FIGURES = (D("0.001"), D(50), D("0.001"), D(5))
PLAIN = InstrumentInfo("BTC/USDT:USDT", *FIGURES)
PEPE = InstrumentInfo(
    "1000PEPE/USDT:USDT", D(1), D(10**8), D(1), D(5), multiplier=D(1000), listed_as="binance:1000PEPE/USDT:USDT"
)
LATER = ("kind", "base", "quote", "settle", "venue", "multiplier", "max_notional", "buys_by_cost")


def test_market_when_its_name_is_of_ccxts_form_then_kind_and_assets_are_read_from_it() -> None:
    future = InstrumentInfo("BTC/USDT:USDT-251226", *FIGURES, listed_as="binance:BTC/USDT:USDT-251226")
    assert [getattr(future, name) for name in LATER] == ["future", "BTC", "USDT", "USDT", "binance", 1, None, False]
    spot = InstrumentInfo("币安人生/USDT", *FIGURES)
    assert [getattr(spot, name) for name in LATER[:5]] == ["spot", "币安人生", "USDT", None, None]


def test_market_when_its_name_is_of_another_form_then_nothing_is_guessed_and_all_can_be_given() -> None:
    other = InstrumentInfo("BTC-USDT-SWAP", *FIGURES)
    assert [getattr(other, name) for name in LATER[:5]] == [None] * 5
    assert other.asset is None
    given = {"kind": "swap", "base": "BTC", "quote": "USDT", "settle": "USDT", "venue": "okx"}
    told = replace(other, **given)  # type: ignore[arg-type]
    assert {name: getattr(told, name) for name in given} == given
    assert told.asset == "BTC"


def test_market_when_it_is_multiplied_then_unit_and_base_units_count_coins() -> None:
    assert (PEPE.base, PEPE.asset, PEPE.unit, PEPE.base_units(D("100000.5"))) == (
        "1000PEPE",
        "PEPE",
        1000,
        D("100000500"),
    )
    both = InstrumentInfo("X", *FIGURES, contract_size=D("0.01"), multiplier=D("1000"))
    assert (both.unit, both.base_units(D(7))) == (10, 70)
    assert PLAIN.unit == 1
    assert InstrumentInfo("X", *FIGURES, contract_size=D("0.1")).unit == D("0.1")


@pytest.mark.parametrize(
    ("symbol", "more"),
    [
        ("BTC/USDT:USDT", {}),
        ("1000PEPE/USDT:USDT", {"multiplier": D(1000)}),
        ("1000PEPE/USDT:USDT", {"contract_size": D(1000)}),
        ("1000PEPE/USDT:USDT", {"contract_size": D(10), "multiplier": D(100)}),
        ("1000PEPE/USDT:USDT", {"contract_size": D("0.1"), "multiplier": D(1000)}),
        ("1000PEPE/USDT:USDT", {"contract_size": D(100000)}),
        ("1MBABYDOGE/USDT:USDT", {"multiplier": D(10**6)}),
        ("1000SATS/USDT", {"multiplier": D(1000)}),
        ("1000PEPE-SWAP", {}),
    ],
)
def test_require_usable_when_the_figures_contain_the_factor_then_nothing_is_raised(symbol: str, more: Any) -> None:
    InstrumentInfo(symbol, *FIGURES, **more).require_usable()


@pytest.mark.parametrize(
    ("symbol", "more"),
    [
        ("1000PEPE/USDT:USDT", {}),
        ("1000PEPE/USDT:USDT", {"multiplier": D(100)}),
        ("1000PEPE/USDT:USDT", {"contract_size": D(1500)}),
        ("kPEPE/USDC:USDC", {}),
        ("SHIB1000/USDT:USDT", {}),
        ("1000SATS/USDT", {}),
        ("1000PEPE-SWAP", {"base": "1000PEPE"}),
    ],
)
def test_require_usable_when_the_figures_lack_the_factor_then_the_multiplier_is_asked_for(
    symbol: str, more: Any
) -> None:
    with pytest.raises(InvalidRequest, match=r"counts 1000 coins a unit.*give multiplier=1000") as caught:
        InstrumentInfo(symbol, *FIGURES, **more).require_usable()
    assert caught.value.field == "multiplier"


@pytest.mark.parametrize("symbol", ["BTC/USD:BTC", "BTC/USD:BTC-251226", "1000PEPE/USD:PEPE"])
def test_require_usable_when_the_contract_is_inverse_then_it_is_refused(symbol: str) -> None:
    with pytest.raises(InvalidRequest, match="inverse contract: it is settled in") as caught:
        InstrumentInfo(symbol, *FIGURES, multiplier=D(1000)).require_usable()
    assert caught.value.field == "settle"


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *(("kind", one) for one in ("spot", "future", "perp", "Swap", "", 1, b"swap", ["swap"])),
        *(("base", one) for one in ("ETH", "btc", "", " ", "B TC", "B\u3000C", "A" * 65, 1, "B\x00", "B\n")),
        *(("quote", one) for one in ("USDC", "", "U D", 5)),
        *(("settle", one) for one in ("BTC", "", "U\tD", D(1))),
        *(("venue", one) for one in ("okx", "", 7, "by\nbit", "x" * 129)),
        *(
            ("multiplier", one)
            for one in (None, 0, D(-1000), 1000.0, True, D("NaN"), "1000", D("1E+30"), D("1E-37"), 10**30)
        ),
        *(("max_notional", one) for one in (0, D(-1), 5.0, D("sNaN"), D("-Infinity"), "5", D("1E+30"), D("4.99"))),
        *(("buys_by_cost", one) for one in (None, 0, 1, "true", "")),
    ],
)  # fmt: skip
def test_market_when_a_field_is_hostile_then_the_error_names_it(field: str, given: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        InstrumentInfo("BTC/USDT:USDT", *FIGURES, listed_as="bybit:BTC/USDT:USDT", **{field: given})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert field in str(caught.value)


def test_market_when_contract_size_and_multiplier_are_too_large_together_then_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="multiplier is out of range"):
        InstrumentInfo("X", *FIGURES, contract_size=D("1E+20"), multiplier=D("1E+20"))
    with pytest.raises(InvalidRequest, match="multiplier is out of range"):
        InstrumentInfo("X", *FIGURES, contract_size=D("1E-20"), multiplier=D("1E-20"))


def test_market_when_a_spot_market_is_given_a_settlement_then_the_contradiction_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"settle 'USDT' contradicts the symbol 'BTC/USDT', which names none"):
        InstrumentInfo("BTC/USDT", *FIGURES, settle="USDT")


def test_canonical_text_when_the_later_fields_say_nothing_new_then_it_is_as_it_was_before_them() -> None:
    before = (
        '{"contract_size":"1","max_qty":"50","min_notional":"5","min_qty":"0.001","qty_step":"0.001",'
        '"symbol":"BTC/USDT:USDT","tick_size":"0.01"}'
    )
    spelled = InstrumentInfo(
        "BTC/USDT:USDT", *FIGURES, kind="swap", base="BTC", quote="USDT", settle="USDT", multiplier=D("1.0"),
        max_notional=None, buys_by_cost=False,
    )  # fmt: skip
    assert canonical_text(PLAIN) == canonical_text(spelled) == before
    listed = replace(PLAIN, listed_as="bybit:BTC/USDT:USDT")
    named = f"{before[:-1]}}}".replace('"max_qty"', '"listed_as":"bybit:BTC/USDT:USDT","max_qty"')
    assert canonical_text(listed) == canonical_text(replace(listed, venue="bybit")) == named


def test_canonical_text_when_later_fields_are_given_then_each_is_in_it_and_is_read_back() -> None:
    rich = InstrumentInfo(
        "P-1000", *FIGURES, kind="future", base="1000PEPE", quote="USDC", settle="USDC", venue="x",
        multiplier=D("1E+3"), max_notional=D("1000.50"), buys_by_cost=True,
    )  # fmt: skip
    form = json.loads(canonical_text(rich))
    assert {name: form[name] for name in LATER} == {
        "kind": "future", "base": "1000PEPE", "quote": "USDC", "settle": "USDC", "venue": "x", "multiplier": "1000",
        "max_notional": "1000.5", "buys_by_cost": True,
    }  # fmt: skip
    assert instrument_from_json(form) == rich
    assert instrument_from_json(instrument_to_json(rich)) == rich


def test_json_when_rules_are_plain_then_an_older_service_accepts_it() -> None:
    before = {"symbol", "min_qty", "max_qty", "qty_step", "min_notional", "tick_size", "contract_size"}
    assert {*instrument_to_json(PLAIN)} == before
    assert {*instrument_to_json(PEPE)} - before == {"multiplier", "venue"}  # the JSON has no `listed_as`
    assert instrument_from_json(instrument_to_json(PEPE)) == replace(PEPE, listed_as=None)


def test_markets_when_they_differ_in_a_later_field_then_they_are_different_and_have_texts_of_their_own() -> None:
    for more in ({"multiplier": D(10)}, {"max_notional": D(10)}, {"buys_by_cost": True}, {"venue": "okx"}):
        other = InstrumentInfo("BTC/USDT:USDT", *FIGURES, **more)  # type: ignore[arg-type]
        assert other != PLAIN
        assert hash(other) == hash(PLAIN)  # the later fields are left out of the hash, which every command computes
        assert canonical_text(other) != canonical_text(PLAIN)
