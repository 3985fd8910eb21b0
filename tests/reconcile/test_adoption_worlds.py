"""Adoption in random worlds: no decision ever takes a market further from what the exchange shows."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from ledger_sizer import Leg, WrongState
from ledger_sizer.model.domain import Position
from ledger_sizer.model.reconciliation import Drift
from tests.support.accounts import Desk, NewDesk, long, short

pytestmark = pytest.mark.one_engine

D = Decimal
PRICES = {"BTC": D(100), "ETH": D(10)}
SAVINGS = D(10)
SEEDS = range(6)
CYCLES = 3

Quantities = dict[tuple[str, str], Decimal]
"""Base units by subject and side; of an asset below 0 where coins of the savings were sold."""


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """An account with savings in both assets, compared exactly."""
    baselines = {f"bybit/main/{asset}": SAVINGS for asset in PRICES}
    desk = new_desk(confirmations=1, tolerance=D(0), dust_usd=D(0), baselines=baselines)
    desk.ledger.set_cap(key="cap", cap=D(10**6))
    return desk


def summed(positions: list[Position]) -> Quantities:
    found: Quantities = {}
    for leg in (leg for one in positions for leg in one.legs):
        swap = leg.kind == "swap"
        market = (leg.symbol, "short" if leg.side == "sell" else "long") if swap else (leg.symbol[:3], "long")
        found[market] = found.get(market, D(0)) + (leg.quantity if swap or leg.side == "buy" else -leg.quantity)
    return found


def ledger_of(desk: Desk) -> tuple[Quantities, Quantities]:
    """Return the quantities of own and of external positions. Each own one must count at least its largest leg."""
    positions = desk.ledger.positions("main", state="open", limit=1000)
    own = [one for one in positions if "external" not in one.tags]
    assert all((one.quantity or 0) >= max(leg.quantity for leg in one.legs) for one in own)
    return summed(own), summed([one for one in positions if "external" in one.tags])


def trade(desk: Desk, chance: random.Random, key: str) -> None:
    """Adopt a hedge in either direction, or one leg alone."""
    asset, side = chance.choice([*PRICES]), chance.choice(["buy", "buy", "sell"])
    quantity = (D(chance.randint(1, 6)) / chance.choice([1, 3, 7, 10])).quantize(D("1e-8"))
    spot = Leg("bybit", f"{asset}/USDT", "spot", side, quantity, PRICES[asset])  # type: ignore[arg-type]
    against = "sell" if side == "buy" else "buy"
    perp = Leg("bybit", f"{asset}/USDT:USDT", "swap", against, quantity, PRICES[asset])  # type: ignore[arg-type]
    legs = chance.choice([(spot, perp), (spot, perp), (perp,), (spot,)])
    tags = {"venue": "bybit", "symbol": asset}
    desk.ledger.adopt(key=key, quantity=quantity, price=PRICES[asset], tags=tags, legs=legs)


def meddle(desk: Desk, chance: random.Random) -> Quantities:
    """Make the exchange show more or less than the ledger, nothing, or the other side. Returns what it shows."""
    own, _ = ledger_of(desk)
    shown: Quantities = {}
    for asset in PRICES:
        share = D(chance.choice(["1", "1", "0.5", "0", "1.5", "-0.3"]))
        shown[asset, "long"] = own.get((asset, "long"), D(0)) * share
        for side in ("long", "short"):
            market = (f"{asset}/USDT:USDT", side)
            units = own.get(market, D(0)) * D(chance.choice(["1", "1", "0.5", "0", "0", "1.5"]))
            shown[market] = units + chance.choice([0, 0, 0, 0, 0, 2])
    positions = [
        (long if side == "long" else short)(str(units), subject, str(PRICES[subject[:3]]))
        for (subject, side), units in shown.items() if ":" in subject and units
    ]  # fmt: skip
    desk.account.shows(*positions, **{asset: str(SAVINGS + shown[asset, "long"]) for asset in PRICES})
    return shown


def decide(desk: Desk, drift: Drift, shown: Quantities) -> None:
    """Adopt one drift. Its market must agree then, and other markets may only move towards the exchange."""
    own, external = ledger_of(desk)
    refusal = ""
    try:
        desk.reconciler.operator.adopt(drift.id, reason="as it is", price=PRICES[drift.market.base])
    except WrongState as error:
        refusal = str(error)
    if refusal:
        assert "reconcile again" in refusal
        assert ledger_of(desk) == (own, external)
        return
    mine = (drift.subject, drift.side)
    now, found = ledger_of(desk)
    assert now.get(mine, 0) == shown.get(mine, 0)
    for market in {*own, *shown} - {mine}:
        was, there = own.get(market, D(0)), shown.get(market, D(0))
        assert min(was, there) <= now.get(market, 0) <= max(was, there), market
        if found.get(market) != external.get(market):  # what nobody knew there counts as before, or as its hedge
            assert market not in found
            assert market[0].partition("/")[0] == drift.market.base
            assert now.get(market, 0) == there


@pytest.mark.parametrize("seed", SEEDS)
def test_adopt_when_everything_differs_then_each_decision_brings_the_ledger_nearer_and_all_of_them_to_the_exchange(
    desk: Desk, seed: int
) -> None:
    chance = random.Random(seed)
    for cycle in range(CYCLES):
        for number in range(chance.randint(1, 4)):
            trade(desk, chance, f"{cycle}/{number}")
        desk.clock.advance(30)
        shown = meddle(desk, chance)
        for _ in range(12):
            live = [one for one in desk.run().live if one.kind != "legs_unequal"]
            chance.shuffle(live)
            for drift in live:
                desk.clock.advance(chance.choice([0, 3]))
                decide(desk, drift, shown)
            if not live:
                break
        assert {market: units for market, units in ledger_of(desk)[0].items() if units} == {
            market: units for market, units in shown.items() if units
        }


@pytest.mark.parametrize("seed", SEEDS)
def test_act_all_when_everything_differs_then_one_decision_brings_the_ledger_to_the_exchange(
    desk: Desk, seed: int
) -> None:
    """Drifts depend on each other here: of two legs of one position, of two sides of one market."""
    chance = random.Random(seed)
    for cycle in range(CYCLES):
        for number in range(chance.randint(2, 6)):
            trade(desk, chance, f"{cycle}/{number}")
        desk.clock.advance(30)
        shown = meddle(desk, chance)
        live = [one for one in desk.run().live if one.kind != "legs_unequal"]
        chance.shuffle(live)
        desk.clock.advance(1)
        if live:
            found = desk.reconciler.operator.act_all("adopt", [one.id for one in live], reason="as it is")
            assert {one.outcome for one in found.items} == {"done"}, found
        assert {market: units for market, units in ledger_of(desk)[0].items() if units} == {
            market: units for market, units in shown.items() if units
        }
        assert {one.kind for one in desk.run().findings} <= {"legs_unequal"}
