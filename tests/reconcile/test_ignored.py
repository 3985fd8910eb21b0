"""Decisions about a drift that was ignored before: adopt, close, ignore."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import Leg, WrongState
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.reconcile import drifts
from tests.support.accounts import PERP, Desk, NewDesk, besides_naked, long, short
from tests.support.ledgers import BTC_PRICE, TAGS, figures, position_of, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """A desk over one account, empty both; BTC beyond the first two coins are the bots'."""
    desk = new_desk(baselines={"bybit/main/BTC": "2"})
    desk.ledger.set_cap(key="cap", cap=D(500_000))
    desk.account.shows(BTC="2")
    assert desk.run().live == ()
    return desk


def trade(desk: Desk, key: str, quantity: str, spot: str = "buy", perp: str = "sell") -> str:
    """Adopt a hedged position, and return its id."""
    legs = [
        Leg("bybit", "BTC/USDT", "spot", spot, D(quantity), BTC_PRICE),  # type: ignore[arg-type]
        Leg("bybit", PERP, "swap", perp, D(quantity), BTC_PRICE),  # type: ignore[arg-type]
    ]
    return position_of(desk.ledger.adopt(key=key, quantity=D(quantity), price=BTC_PRICE, tags=TAGS, legs=legs))


def ignored(desk: Desk) -> Drift:
    """Run until the one live drift in quantity is confirmed, ignore it and return it."""
    (drift,) = [one for one in desk.run(2).live if one.part != "ledger" and one.kind != "legs_unequal"]
    return desk.reconciler.operator.ignore(drift.id, reason="known")


def adopt(desk: Desk, drift: Drift) -> Drift:
    desk.clock.advance(3)
    return desk.reconciler.operator.adopt(drift.id, reason="the bots' after all", price=BTC_PRICE)


def net_open(desk: Desk) -> dict[str, Decimal]:
    """Return the net base units of all open positions, by asset or market; sold is below 0."""
    net: dict[str, Decimal] = {}
    for position in desk.ledger.positions("main", state="open"):
        assert "external" not in position.tags, "what was ignored counts no more, what was adopted counts as its own"
        for leg in position.legs:
            name = leg.symbol if leg.kind == "swap" else leg.symbol.partition("/")[0]
            net[name] = net.get(name, D(0)) + (leg.quantity if leg.side == "buy" else -leg.quantity)
    return net


# --- adopted after all -------------------------------------------------------------------------------


def test_adopt_when_bots_traded_beside_ignored_coins_then_those_coins_are_adopted_and_no_others(desk: Desk) -> None:
    desk.account.shows(BTC="2.5")
    coins = ignored(desk)
    trade(desk, "beside", "0.03")
    desk.account.shows(short("0.03"), BTC="2.53")
    assert [(one.id, one.excess, one.state) for one in desk.run(3).live] == [(coins.id, D("0.5"), "acknowledged")]
    assert adopt(desk, coins).state == "resolved"
    assert net_open(desk) == {"BTC": D("0.53"), PERP: D("-0.03")}
    assert figures(desk.ledger) == (0, D("0.53") * BTC_PRICE)
    assert desk.run(2).live == ()


def test_adopt_when_a_hold_fills_beside_ignored_coins_then_its_fill_is_not_adopted_with_them(desk: Desk) -> None:
    desk.account.shows(BTC="2.5")
    coins = ignored(desk)
    trade(desk, "beside", "0.03")
    held = position_of(reserve_btc(desk.ledger, "held", ttl_seconds=5000))
    desk.account.shows(short("0.05"), BTC="2.55")
    desk.run()
    adopt(desk, coins)
    assert net_open(desk) == {"BTC": D("0.53"), PERP: D("-0.03")}
    desk.ledger.confirm(key="filled", position_id=held, quantity=D("0.02"), price=BTC_PRICE)
    assert net_open(desk) == {"BTC": D("0.55"), PERP: D("-0.05")}
    assert desk.run(2).live == ()


def test_adopt_when_bots_traded_beside_an_ignored_lack_then_as_much_is_given_up(desk: Desk) -> None:
    trade(desk, "first", "0.04")
    desk.account.shows(short("0.03"), BTC="2.04")
    lack = ignored(desk)
    trade(desk, "beside", "0.05")
    desk.account.shows(short("0.08"), BTC="2.09")
    desk.run(3)
    adopt(desk, lack)
    assert net_open(desk) == {"BTC": D("0.09"), PERP: D("-0.08")}
    assert figures(desk.ledger) == (0, D("0.09") * BTC_PRICE)
    assert besides_naked(desk.run(2)) == []


def test_adopt_when_bots_hold_coins_and_some_of_the_savings_were_sold_then_it_is_refused_until_they_hold_none(
    desk: Desk,
) -> None:
    """0.5 of the savings were sold, which was ignored. A bot bought 1: 0.5 of it may be there, or none of it."""
    desk.account.shows(BTC="1.5")
    sold = ignored(desk)
    bought = trade(desk, "bought", "1")
    desk.account.shows(short("1"), BTC="2.5")
    assert [one.id for one in desk.run(2).live if one.part == "balances"] == [sold.id]
    with pytest.raises(WrongState, match="reconcile again"):
        adopt(desk, sold)
    assert net_open(desk) == {"BTC": D(1), PERP: D(-1)}
    desk.clock.advance(30)
    desk.ledger.release(key="closed", position_id=bought)
    desk.account.shows(BTC="1.5")
    assert [one.id for one in desk.run(2).live] == [sold.id]
    adopt(desk, sold)
    assert net_open(desk) == {"BTC": D("-0.5")}
    assert desk.run(2).live == ()


def test_adopt_when_a_flipped_side_was_ignored_and_bots_traded_on_then_both_sides_fit(desk: Desk) -> None:
    trade(desk, "first", "0.04")
    desk.account.shows(long("0.01"), BTC="2.04")
    for one in desk.run(2).live:
        desk.reconciler.operator.ignore(one.id, reason="known")
    trade(desk, "beside", "0.03", "sell", "buy")
    desk.account.shows(long("0.04"), BTC="2.01")
    report = desk.run(2)
    (flipped,) = [one for one in report.live if one.side == "long" and one.kind == "side_flipped"]
    adopt(desk, flipped)
    assert net_open(desk) == {"BTC": D("0.01"), PERP: D("0.04")}
    assert besides_naked(desk.run(2)) == []


def test_adopt_when_the_ledger_moved_after_the_last_run_then_what_was_ignored_is_not_guessed_at(desk: Desk) -> None:
    desk.account.shows(BTC="2.5")
    coins = ignored(desk)
    first = trade(desk, "beside", "0.03")
    desk.account.shows(short("0.03"), BTC="2.53")
    desk.run()
    desk.clock.advance(1)
    desk.ledger.release(key="closed", position_id=first)
    with pytest.raises(WrongState, match=r"moved since run .* reconcile again"):
        adopt(desk, coins)
    assert net_open(desk) == {}


def test_ignore_when_the_difference_creeps_then_it_is_compared_with_what_was_ignored(new_desk: NewDesk) -> None:
    """Each step is within the tolerance of the previous one. All of them together are not."""
    desk = new_desk(tolerance=D("0.01"), confirmations=1, dust_usd=D(0))
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    desk.reconciler.operator.ignore(drift.id, reason="known")
    states = []
    for shown in ("1.008", "1.016"):
        desk.account.shows(short(shown))
        desk.run()
        states.append(drifts.get_drift(desk.engine, drift.id).state)
    assert states == ["acknowledged", "resolved"]


# --- closed ------------------------------------------------------------------------------------------


def test_close_when_the_drift_is_ignored_then_it_is_refused_and_closed_at_the_exchange_it_is_resolved(
    desk: Desk,
) -> None:
    """An ignored drift does not count, and a close request would say that it counts until it is closed."""
    desk.account.shows(short("0.03"), BTC="2")
    drift = ignored(desk)
    seq = desk.ledger.exposure().seq
    with pytest.raises(
        WrongState, match=rf"{drift.name} was ignored by embedded:embedded \(known\) and counts no longer.* adopt it"
    ):
        desk.reconciler.operator.close(drift.id, reason="should go after all")
    now = drifts.get_drift(desk.engine, drift.id)
    assert (now, desk.ledger.exposure().seq) == (drift, seq)
    desk.account.shows(BTC="2")
    desk.run(3)
    assert drifts.get_drift(desk.engine, drift.id).state == "resolved"


def test_close_when_it_was_requested_before_the_drift_was_ignored_then_it_is_not_the_same_request_any_more(
    desk: Desk,
) -> None:
    desk.account.shows(short("0.03"), BTC="2")
    (drift,) = [one for one in desk.run(2).live if one.excess]
    operator = desk.reconciler.operator
    operator.close(drift.id, reason="should not be there")
    assert figures(desk.ledger, "external=exchange") == (0, D(1500))
    operator.ignore(drift.id, reason="known")
    with pytest.raises(WrongState, match="was ignored by embedded:embedded"):
        operator.close(drift.id, reason="should not be there")
    assert figures(desk.ledger, "external=exchange") == (0, 0)
