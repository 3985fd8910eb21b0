"""Interest: coins that grow by a little every day, earned or owed, stop no trading. A jump does."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Leg
from tests.support.accounts import Desk, NewDesk, balance, long, short
from tests.support.ledgers import BTC_PRICE, TAGS, figures, position_of

pytestmark = pytest.mark.one_engine

D = Decimal
PRICE = D(2500)
HALF_A_DAY = 43_200


@pytest.fixture
def opened(new_desk: NewDesk) -> NewDesk:
    """Opens a desk that confirms at the second sighting, with a cap, where ETH has a price."""

    def make(**reconcile: Any) -> Desk:
        desk = new_desk(**reconcile)
        desk.ledger.set_cap(key="cap", cap=D(1_000_000))
        desk.account.prices = {"ETH": PRICE, "BTC": BTC_PRICE}
        return desk

    return make


def hedge(desk: Desk, symbol: str, spot: str, perp: str, quantity: str, price: Decimal) -> str:
    legs = [
        Leg("bybit", f"{symbol}/USDT", "spot", spot, D(quantity), price),  # type: ignore[arg-type]
        Leg("bybit", f"{symbol}/USDT:USDT", "swap", perp, D(quantity), price),  # type: ignore[arg-type]
    ]
    tags = {**TAGS, "symbol": symbol}
    return position_of(desk.ledger.adopt(key=symbol, quantity=D(quantity), price=price, tags=tags, legs=legs))


def frozen(desk: Desk) -> bool:
    return desk.ledger.reserve(key="asked", tags={**TAGS, "symbol": "SOL"}, dry_run=True).reason == "unreconciled"


def test_reconcile_when_borrowed_coins_cost_interest_for_a_month_then_it_counts_and_nothing_freezes(
    opened: NewDesk,
) -> None:
    """1 BTC was borrowed and sold; the debt grows by 0.02 % a day."""
    desk = opened()
    hedge(desk, "BTC", "sell", "buy", "1", BTC_PRICE)
    for half in range(60):
        desk.account.shows(long("1"), BTC=str(-1 - half * D("0.0001")))
        report = desk.run(seconds=HALF_A_DAY)
        assert not frozen(desk), half
    (owed,) = report.live
    assert (owed.kind, owed.policy, owed.excess) == ("interest", "record", D("0.0059"))
    assert figures(desk.ledger) == (0, D("1.0059") * BTC_PRICE), "what is owed is counted all the same"
    desk.account.shows(long("1"), BTC="-1.0259")
    found = {(one.kind, one.state) for one in desk.run().live}
    assert found == {("interest", "confirmed"), ("quantity_differs", "open")}
    assert not frozen(desk), "a jump is confirmed like any difference"
    assert [(one.kind, one.state) for one in desk.run().live] == [("quantity_differs", "confirmed")]
    assert frozen(desk)
    assert figures(desk.ledger) == (0, D("1.0259") * BTC_PRICE)


def test_reconcile_when_a_difference_beside_interest_is_gone_in_the_next_run_then_it_is_interest_again(
    opened: NewDesk,
) -> None:
    desk = opened(confirmations=3)
    hedge(desk, "BTC", "sell", "buy", "1", BTC_PRICE)
    for half in range(20):
        desk.account.shows(long("1"), BTC=str(-1 - half * D("0.0001")))
        (owed,) = desk.run(seconds=HALF_A_DAY).live or (None,)
    assert owed is not None
    for _ in range(2):
        desk.account.shows(long("1"), BTC="-1.0519")
        for _ in range(2):
            desk.run()
            assert figures(desk.ledger) == (0, D("1.0519") * BTC_PRICE), "counted at once"
        desk.account.shows(long("1"), BTC="-1.0019")
        (again,) = desk.run().live
        assert (again.id, again.kind, frozen(desk)) == (owed.id, "interest", False)
        assert figures(desk.ledger) == (0, D("1.0019") * BTC_PRICE)


def test_reconcile_when_coins_earn_where_they_are_then_what_is_left_of_it_after_the_exit_freezes_nothing(
    opened: NewDesk,
) -> None:
    desk = opened()
    pair = hedge(desk, "ETH", "buy", "sell", "10", PRICE)
    for day in range(30):
        earned = day * D("0.002")
        desk.account.shows(short("10", "ETH/USDT:USDT", "2500"), ETH=str(10 + earned))
        desk.run(seconds=86_400)
        assert not frozen(desk), day
    desk.ledger.release(key="exit", position_id=pair)
    desk.account.shows(ETH=str(earned))
    (left,) = desk.run(3, seconds=HALF_A_DAY).live
    assert (left.kind, left.excess, frozen(desk)) == ("interest", earned, False)
    desk.account.shows(ETH=str(earned + 1))
    (bought,) = desk.run(2).live
    assert (bought.kind, frozen(desk)) == ("unknown_position", True)


@pytest.mark.parametrize("asset", ["ETH", "SOL"])
def test_reconcile_when_an_ignored_stake_earns_for_two_months_then_it_stays_ignored(
    opened: NewDesk, asset: str
) -> None:
    """SOL has no price here."""
    desk = opened()
    desk.account.shows(**{asset: "50"})
    (stake,) = desk.run(2).live
    desk.reconciler.operator.ignore(stake.id, reason="staked")
    for day in range(60):
        units = D(50) + day * D("0.012")
        desk.account.shows(**{asset: str(units)})
        (still,) = desk.run(seconds=86_400).live
        assert (still.id, still.state) == (stake.id, "acknowledged"), day
    assert figures(desk.ledger) == (0, 0)
    desk.account.shows(**{asset: str(units + 5)})
    (more,) = desk.run(2).live
    assert (more.kind, more.excess, frozen(desk)) == ("unknown_position", units + 5, True)


def test_reconcile_when_a_declared_baseline_earns_for_a_month_then_nothing_freezes(opened: NewDesk) -> None:
    desk = opened(baselines={"bybit/main/ETH": "100"})
    for day in range(30):
        desk.account.shows(ETH=str(100 + day * D("0.01")))
        assert {one.kind for one in desk.run(seconds=86_400).live} <= {"interest"}, day
        assert not frozen(desk), day
    desk.account.shows(ETH="101.5")
    assert [one.kind for one in desk.run(2).live] == ["unknown_position"]


def test_reconcile_when_a_little_grows_in_minutes_then_it_is_no_interest(opened: NewDesk) -> None:
    """0.09 % every run is within a day's growth each time, and no interest together."""
    desk = opened()
    hedge(desk, "ETH", "buy", "sell", "10", PRICE)
    desk.account.positions = (short("10", "ETH/USDT:USDT", "2500"),)
    for step in range(6):
        desk.account.balances = (balance("USDT", "100000"), balance("ETH", str(10 + step * D("0.009"))))
        report = desk.run()
    assert [one.kind for one in report.live] == ["quantity_differs"]
    assert frozen(desk)
