"""Adopting a shortfall: the position's other legs are still at the exchange, so they count all the time, and once."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import InvalidRequest, Leg
from ledger_sizer.model.reconciliation import Drift
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, besides_naked, long, short
from tests.support.ledgers import BTC_PRICE, TAGS, figures, position_of, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """Room for 1,500 USD, of which a hedged position of 0.02 BTC takes 1,000; both sides know it."""
    desk = new_desk()
    desk.ledger.set_cap(key="cap", cap=D(1500))
    hedged(desk, "first", "0.02")
    desk.account.shows(short("0.02"), BTC="0.02")
    assert desk.run().live == ()
    return desk


def spot_leg(quantity: str, side: str = "buy") -> Leg:
    return Leg("bybit", "BTC/USDT", "spot", side, D(quantity), BTC_PRICE)  # type: ignore[arg-type]


def perp_leg(quantity: str, side: str = "sell", venue: str = "bybit") -> Leg:
    return Leg(venue, PERP, "swap", side, D(quantity), BTC_PRICE)  # type: ignore[arg-type]


def hedged(desk: Desk, key: str, quantity: str, *legs: Leg, **tags: str) -> str:
    """Adopt a position of these legs, by default coins against the same quantity of the perpetual. Returns its id."""
    legs = legs or (spot_leg(quantity), perp_leg(quantity))
    made = desk.ledger.adopt(key=key, quantity=D(quantity), price=BTC_PRICE, tags={**TAGS, **tags}, legs=legs)
    return position_of(made)


def drift_of(desk: Desk, kind: str, subject: str = PERP, runs: int = 2) -> Drift:
    """Run until confirmed, and return the drift of this kind."""
    (found,) = [one for one in desk.run(runs).live if (one.kind, one.subject) == (kind, subject)]
    return found


def adopt(desk: Desk, drift: Drift) -> Drift:
    """Adopt three seconds after the run."""
    desk.clock.advance(3)
    return desk.reconciler.operator.adopt(drift.id, reason="as it is")


def legs_open(desk: Desk) -> list[tuple[str, str, Decimal]]:
    """Return (symbol, side, quantity) of the legs of the ledger's own positions."""
    positions = [one for one in desk.ledger.positions("main", state="open") if "external" not in one.tags]
    return sorted((leg.symbol, leg.side, leg.quantity) for one in positions for leg in one.legs)


# --- the remaining legs go on counting ---------------------------------------------------------------


def test_adopt_when_the_perpetual_of_a_hedge_is_gone_then_its_coins_count_on_and_the_cap_is_granted_once(
    desk: Desk,
) -> None:
    desk.account.shows(BTC="0.02")  # liquidated
    missing = drift_of(desk, "missing_position")
    adopt(desk, missing)
    assert figures(desk.ledger) == (0, D(1000)), "before any other run"
    assert not desk.ledger.exposure("main").whole.frozen
    assert reserve_btc(desk.ledger, "next", dry_run=True).budget == 500
    (kept,) = desk.ledger.positions("main", state="open")
    assert (kept.tags, kept.price, kept.quantity) == (TAGS, BTC_PRICE, D("0.02"))
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.02"))]
    (decision, *_) = desk.ledger.history(command="adopt")
    note = desk.ledger.explain(decision.seq or 0).data["request"]["note"]
    assert note == f"{missing.name}: what is left of main-2"
    (naked,) = desk.run(2).live
    assert (naked.kind, naked.subject, naked.state) == ("legs_unequal", kept.position_id, "confirmed")


def test_adopt_when_a_part_of_the_perpetual_is_gone_then_as_many_coins_go_on_without_it(desk: Desk) -> None:
    desk.account.shows(short("0.015"), BTC="0.02")
    adopt(desk, drift_of(desk, "quantity_differs"))
    assert legs_open(desk) == [
        ("BTC/USDT", "buy", D("0.005")), ("BTC/USDT", "buy", D("0.015")), (PERP, "sell", D("0.015")),
    ]  # fmt: skip
    assert figures(desk.ledger) == (0, D(1000))
    assert besides_naked(desk.run(2)) == []


@pytest.mark.parametrize(("coins", "kept"), [("0", "0"), ("0.005", "0.005")])
def test_adopt_when_the_coins_are_gone_too_then_only_those_count_on_that_are_there(
    desk: Desk, coins: str, kept: str
) -> None:
    desk.account.shows(BTC=coins)
    adopt(desk, drift_of(desk, "missing_position"))
    assert legs_open(desk) == ([("BTC/USDT", "buy", D(kept))] if D(kept) else [])
    assert figures(desk.ledger) == (0, D(kept) * BTC_PRICE)
    report = desk.run()
    assert (besides_naked(report), len(report.live)) == ([], 1 if D(kept) else 0)
    assert not D(kept) or report.run.found == {"agrees": 1, "legs_unequal": 1}


def test_adopt_when_two_positions_are_gone_and_one_ones_coins_then_the_others_coins_count_on(desk: Desk) -> None:
    hedged(desk, "second", "0.01")
    desk.account.shows(BTC="0.018")  # 0.012 of 0.03 coins are gone: the newer position's, and some of the other's
    adopt(desk, drift_of(desk, "missing_position"))
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.018"))]
    assert figures(desk.ledger) == (0, D(900))
    assert besides_naked(desk.run(2)) == []


def test_adopt_when_coins_were_found_besides_then_each_of_them_counts_once(desk: Desk) -> None:
    desk.account.shows(BTC="0.05")
    adopt(desk, drift_of(desk, "missing_position"))
    assert figures(desk.ledger) == (0, D(2500)), "0.02 of the position, 0.03 that nobody knew"
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.02"))]
    desk.run()
    assert figures(desk.ledger) == (0, D(2500))


def test_adopt_when_balances_were_not_fetched_then_the_coins_are_not_taken_for_gone(desk: Desk) -> None:
    desk.account.shows()
    desk.run()
    desk.account.balances = None
    missing = drift_of(desk, "missing_position")
    adopt(desk, missing)
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.02"))]


def test_adopt_when_the_lack_of_coins_is_ignored_then_it_stays_as_it_was_accepted(desk: Desk) -> None:
    desk.account.shows()
    lent = drift_of(desk, "missing_position", "BTC")
    desk.reconciler.operator.ignore(lent.id, reason="lent out")
    adopt(desk, drift_of(desk, "missing_position", runs=1))
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.02"))]
    assert [(one.id, one.state) for one in besides_naked(desk.run(2))] == [(lent.id, "acknowledged")]


def test_adopt_when_the_other_leg_is_at_another_account_then_it_counts_on_there(new_desk: NewDesk) -> None:
    accounts = [WrittenAccount("bybit", "a"), WrittenAccount("bybit", "b"), WrittenAccount("okx")]
    desk = new_desk(accounts)
    legs = (perp_leg("0.02"), perp_leg("0.02", "buy", "okx"))
    hedged(desk, "across", "0.02", *legs, account="b")
    accounts[2].shows(long("0.02"))
    adopt(desk, drift_of(desk, "missing_position"))
    assert figures(desk.ledger) == (0, D(1000))
    assert legs_open(desk) == [(PERP, "buy", D("0.02"))]
    assert besides_naked(desk.run(2)) == []


def test_adopt_when_a_close_of_the_bot_lands_meanwhile_then_nothing_is_kept_of_what_it_closed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the hedge is released after the positions were read and before the commit."""
    desk.account.shows(BTC="0.02")
    missing = drift_of(desk, "missing_position")
    submit = desk.ledger.submit

    def released_meanwhile(*arguments: object, **options: object) -> object:
        monkeypatch.undo()
        desk.ledger.release(key="half", position_id="main-2", quantity=D("0.01"))
        return submit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.ledger, "submit", released_meanwhile)
    with pytest.raises(InvalidRequest, match=r"cannot close 0\.02 of main-2: only 0\.01 is open"):
        adopt(desk, missing)
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.01")), (PERP, "sell", D("0.01"))]
    adopt(desk, drift_of(desk, "missing_position"))
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.01"))]


# --- a side that flipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["policy", "both at once", "one after the other"])
def test_adopt_when_a_hedge_flipped_then_its_coins_count_beside_the_new_side(new_desk: NewDesk, by: str) -> None:
    """Long coins and a long perpetual hedge nothing: both count."""
    policies = {"policy_side_flipped": "adopt"} if by == "policy" else {}
    desk = new_desk(**policies)
    hedged(desk, "first", "0.02")
    desk.account.shows(long("0.02"), BTC="0.02")
    flipped = {one.side: one for one in desk.run(2).live if one.kind == "side_flipped"}
    if by == "one after the other":
        adopt(desk, flipped["short"])
        assert figures(desk.ledger) == (0, D(2000))
    if by != "policy":
        adopt(desk, flipped["long"])
    assert legs_open(desk) == [("BTC/USDT", "buy", D("0.02")), (PERP, "buy", D("0.02"))]
    assert figures(desk.ledger) == (0, D(2000))
    assert figures(desk.ledger, "external=exchange") == (0, 0)
    assert besides_naked(desk.run(2)) == []
    assert figures(desk.ledger) == (0, D(2000))
