"""A coin with another name: a position keeps what it counts, cost, its tags, its number and its age."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, InvalidRequest, Ledger, Leg, LegPlan, WrongState
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified, figures, position_of

D = Decimal
SPOT = InstrumentInfo("FTM/USDT", D(1), D(100_000), D(1), venue="bybit")
PERP = InstrumentInfo("FTM/USDT:USDT", D(1), D(100_000), D(1), venue="bybit")


def hedge(ledger: Ledger, **request: Any) -> str:
    """Hold 2000 FTM bought and sold at 0.49 USD: 980 USD."""
    legs = [LegPlan(SPOT, "buy"), LegPlan(PERP, "sell")]
    return position_of(ledger.reserve(key="h", price=D("0.49"), legs=legs, amount_usd=D(980), **request))


def test_rename_when_a_part_is_filled_then_the_rest_is_renamed_too_and_fills_under_the_new_name(
    ledger: Ledger, clock: FakeClock
) -> None:
    name = hedge(ledger, tags={"strategy": "funding"})
    ledger.confirm(key="1", position_id=name, quantity=D(500), price=D("0.49"), rest="hold")
    before, seq = ledger.position(name), ledger.exposure().seq
    clock.advance(30)
    decided = ledger.rename(key="r", position_id=name, asset="S", ratio=D(3), note="1 FTM is 3 S")
    after = ledger.position(name)
    assert (decided.outcome, decided.exposure_before, decided.exposure_after) == ("applied", 980, 980)
    assert (after.held, after.open, after.cost, after.quantity, after.unfilled, after.filled) == (
        before.held, before.open, before.cost, 1500, 4500, 1500,
    )  # fmt: skip
    assert (after.opened_at, after.expires_at) == (before.opened_at, before.expires_at)
    assert after.tags == {"strategy": "funding", "symbol": "S", "venue": "bybit"}
    assert after.price == D("0.163333333333333333"), "it has no end, so that the cost is kept beside it"
    assert [(leg.symbol, leg.filled, leg.unfilled, leg.cost) for leg in after.legs] == [
        ("S/USDT", 1500, 4500, 245), ("S/USDT:USDT", 1500, 4500, 245)
    ]  # fmt: skip
    legs = [
        Leg("bybit", "S/USDT", "spot", "buy", D(4500), D("0.17")),
        Leg("bybit", "S/USDT:USDT", "swap", "sell", D(4500), D("0.17")),
    ]
    ledger.confirm(key="2", position_id=name, quantity=D(4500), price=D("0.17"), legs=legs, rest="hold")
    assert (ledger.position(name).open, ledger.position(name).quantity, len(ledger.position(name).legs)) == (
        1010,
        6000,
        2,
    )
    ledger.release(key="3", position_id=name, quantity=D(3000))
    assert figures(ledger) == (0, 505)
    assert ledger.exposure(as_of=seq).scope("symbol=FTM").open == 245
    assert ledger.exposure(as_of=decided.seq).scope("symbol=S").exposure == 980
    assert "3000 coins" not in ledger.explain(decided.seq or 0).text
    assert "is of S from now on, 3 for each coin it had" in ledger.explain(decided.seq or 0).text
    assert_verified(ledger)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("FTM", "S"),
        ("FTM/USDT", "S/USDT"),
        ("FTM/USDT:USDT", "S/USDT:USDT"),
        (["BTC", "FTM"], ("BTC", "S")),
        ("FTM/EUR", "S"),
        ("1000FTM", "S"),
        ("BTC", "BTC"),
        (None, None),
    ],
)
def test_rename_when_the_symbol_is_a_tag_then_its_value_follows_in_its_own_form(
    ledger: Ledger, given: Any, expected: Any
) -> None:
    tags = {} if given is None else {"symbol": given}
    legs = [Leg("bybit", "FTM/USDT:USDT", "swap", "sell", D(2000), D("0.49"))]
    name = position_of(ledger.adopt(key="a", quantity=D(2000), price=D("0.49"), tags=tags, legs=legs))
    ledger.set_cap(key="cap", scope="symbol=S", cap=D(10))
    ledger.set_cap(key="other", scope="symbol=S/EUR", cap=D(10))
    ledger.rename(key="r", position_id=name, asset="S")
    assert ledger.position(name).tags.get("symbol") == expected
    counted = ledger.exposure()
    assert counted.open == 980
    named = expected if isinstance(expected, tuple) else (expected,)
    assert counted.scope("symbol=S").overage == (970 if "S" in named else 0), "a fact, which no cap refuses"
    assert_verified(ledger)


def test_rename_when_it_cannot_be_then_it_is_refused_in_words_and_the_key_stays_unused(ledger: Ledger) -> None:
    alias = [
        Leg("hyperliquid", "UFTM/USDC", "spot", "buy", D(100), D("0.49")),
        Leg("hyperliquid", "FTM/USDC:USDC", "swap", "sell", D(100), D("0.49")),
    ]
    two = position_of(ledger.adopt(key="a", quantity=D(100), price=D("0.49"), legs=alias))
    plain = position_of(ledger.adopt(key="b", quantity=D(1), price=D(5)))
    ended = hedge(ledger)
    ledger.release(key="end", position_id=ended)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"position_id": two, "asset": "S"}, "coin", "has FTM and UFTM"),
        ({"position_id": two, "asset": "S", "coin": "BTC"}, "coin", "has nothing of BTC"),
        ({"position_id": two, "asset": "S", "coin": "FTM", "ratio": D(3)}, "ratio", "which are one coin"),
        ({"position_id": two, "asset": "FTM", "coin": "FTM"}, "asset", "nothing changes"),
        ({"position_id": plain, "asset": "S"}, "coin", "no coin by name"),
        ({"position_id": two, "asset": "1000S"}, "asset", "1000 S in one name"),
        ({"position_id": two, "asset": "S/USDT"}, "asset", "not of a market"),
        ({"position_id": two, "asset": "S", "ratio": D(0)}, "ratio", "above 0"),
    ]
    for request, field, words in cases:
        with pytest.raises(InvalidRequest, match=words) as refused:
            ledger.rename(key="r", **request)
        assert refused.value.field == field
    with pytest.raises(WrongState, match="released since"):
        ledger.rename(key="r", position_id=ended, asset="S")
    ledger.rename(key="r", position_id=two, asset="S", coin="FTM")
    assert [leg.symbol for leg in ledger.position(two).legs] == ["UFTM/USDC", "S/USDC:USDC"]
    tiny = [Leg("bybit", "DUST/USDT", "spot", "buy", D("1e-18"), D(1))]
    small = position_of(ledger.adopt(key="c", quantity=D("1e-18"), price=D(1), legs=tiny))
    ledger.rename(key="s", position_id=small, asset="S", ratio=D("0.1"))
    assert ledger.position(small).quantity == D("1e-18"), "no coin is lost"
    assert_verified(ledger)


def test_rename_when_the_name_has_a_factor_then_the_factor_stays_and_the_coins_are_renamed(ledger: Ledger) -> None:
    legs = [Leg("bybit", "1000LUNC/USDT:USDT", "swap", "sell", D(5000), D("0.0001"), account="sub")]
    name = position_of(ledger.adopt(key="a", quantity=D(5000), price=D("0.0001"), legs=legs))
    ledger.rename(key="r", position_id=name, asset="NEW")
    (leg,) = ledger.position(name).legs
    assert (leg.symbol, leg.account, leg.quantity, leg.price) == ("1000NEW/USDT:USDT", "sub", 5000, D("0.0001"))
