"""Edge cases of comparison and drifts: changes of kind, partial closes, empty balances, two venues."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest

from ledger_sizer import InstrumentInfo, Leg
from ledger_sizer.model.reconciliation import Drift
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, adopt, balance, hedged_desks, long, short
from tests.support.ledgers import BTC_PRICE, TAGS, figures, position_of, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal
ETH_PERP = "ETH/USDT:USDT"
ETH = {
    "tags": {**TAGS, "symbol": "ETH"},
    "price": D(2000),
    "spot_instrument": InstrumentInfo("ETH/USDT", D("0.01"), D(100), D("0.01")),
    "perp_instrument": InstrumentInfo(ETH_PERP, D("0.01"), D(100), D("0.01")),
}


@pytest.fixture
def opened(new_desk: NewDesk) -> NewDesk:
    """A desk over these accounts, with a hedged position of 0.02 BTC at 50,000 USD that both sides know."""
    return hedged_desks(new_desk, lambda desk: adopt(desk, "first"), cap_usd=5_000_000)


def found(drifts: Sequence[Drift]) -> dict[tuple[str, str], tuple[str, str, Decimal]]:
    """Return (kind, state, excess) of the drifts in quantity, by subject and side."""
    return {(one.subject, one.side): (one.kind, one.state, one.excess) for one in drifts if one.part != "ledger"}


def is_frozen(desk: Desk) -> bool:
    return desk.ledger.exposure("main").whole.frozen


# --- a drift that turns into another kind -----------------------------------------------------------


def test_reconcile_when_a_confirmed_drift_turns_into_another_kind_then_what_it_froze_stays_frozen(
    opened: NewDesk,
) -> None:
    desk = opened()
    held = position_of(reserve_btc(desk.ledger, "eth", ttl_seconds=5000, **ETH))
    desk.account.shows(short("0.02"), short("30.5", ETH_PERP, "2000"), BTC="0.02", ETH="0.5")
    (unknown,) = desk.run(2).live
    assert (unknown.kind, unknown.state) == ("unknown_position", "confirmed")
    desk.ledger.confirm(key="c", position_id=held, quantity=D("0.5"), price=D(2000))
    report = desk.run()
    assert found(report.live)[ETH_PERP, "short"] == ("quantity_differs", "confirmed", D(30))
    assert is_frozen(desk), "30 ETH are there that nobody knows, as before"
    assert [one.reason for one in report.resolved] == ["it is quantity_differs now"]
    desk.account.shows(short("0.02"), short("0.5", ETH_PERP, "2000"), BTC="0.02", ETH="0.5")
    desk.run()
    assert not is_frozen(desk)


def test_reconcile_when_a_late_fill_is_too_old_to_be_one_then_it_counts_on_at_its_last_price(opened: NewDesk) -> None:
    desk = opened()
    reserve_btc(desk.ledger, "eth", ttl_seconds=5, **ETH)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.02"), short("0.5", ETH_PERP, "2000"), BTC="0.02", ETH="0.5")
    desk.run(2)
    desk.account.shows(short("0.02"), BTC="0.02", ETH="0.5")  # no price is known any more
    desk.run(2)
    report = desk.run(seconds=3600)
    assert found(report.live) == {("ETH", "long"): ("unknown_position", "confirmed", D("0.5"))}
    assert figures(desk.ledger, "external=exchange") == (D(0), D(1000))
    assert is_frozen(desk)


def test_reconcile_when_a_confirmed_drift_is_seen_beside_a_trade_then_its_end_is_told_too(opened: NewDesk) -> None:
    desk = opened()
    held = position_of(reserve_btc(desk.ledger, "second", ttl_seconds=3000))
    desk.account.shows(short("0.05"), BTC="0.04")
    desk.run(2)
    desk.ledger.confirm(key="c", position_id=held, quantity=D("0.02"), price=BTC_PRICE)
    (drift,) = [one for one in desk.run().live if one.kind == "quantity_differs"]
    desk.account.shows(short("0.04"), BTC="0.04")
    desk.run()
    said = [one for one in desk.ledger.history(command="remark") if one.binding == drift.name]
    events = [desk.ledger.explain(one.seq or 0).data["request"]["event"] for one in said]
    assert sorted(events) == ["confirmed", "resolved"]


# --- what explains a difference, and how much of it ----------------------------------------------------


def test_reconcile_when_a_part_was_closed_lately_then_it_excuses_its_own_size_and_not_the_rest(
    opened: NewDesk,
) -> None:
    desk = opened()
    large = adopt(desk, "large", "10")
    desk.account.shows(short("10.02"), BTC="10.02")
    assert desk.run().live == ()
    for turn in range(1, 4):
        desk.clock.advance(55)
        desk.ledger.release(key=f"part/{turn}", position_id=large, quantity=D("0.01"))
        left = D("10.02") - turn * D("0.01")
        desk.account.shows(short(str(left + 5)), BTC=str(left))
        excess = found(desk.run(seconds=5).live)[PERP, "short"][2]
        assert excess == D("4.99"), "5 opened by hand, less the 0.01 that moved"
    assert figures(desk.ledger, "external=exchange") == (D(0), D("4.99") * BTC_PRICE)


def test_reconcile_when_a_hold_expires_that_was_made_after_a_drift_then_the_drift_is_no_late_fill_of_it(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.shows(short("0.04"), BTC="0.02")
    desk.run()
    reserve_btc(desk.ledger, "later", ttl_seconds=70)
    desk.run(2)
    assert found(desk.run().live)[PERP, "short"] == ("quantity_differs", "confirmed", D("0.02"))
    assert is_frozen(desk)


def test_reconcile_when_one_expired_hold_names_no_market_then_it_is_one_late_long_and_one_late_short(
    opened: NewDesk,
) -> None:
    accounts = [WrittenAccount("bybit"), WrittenAccount("okx")]
    desk = opened(accounts)
    desk.ledger.reserve(key="plain", tags={"symbol": "ETH"}, price=D(2000), ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    sides = (short("0.5", ETH_PERP, "2000"), long("0.5", ETH_PERP, "2000"))
    accounts[0].shows(short("0.02"), *sides, BTC="0.02")
    accounts[1].shows(*sides)
    kinds = {(one.venue, one.side): one.kind for one in desk.run().live if one.excess}
    assert [kinds[venue, side] for venue in ("bybit", "okx") for side in ("long", "short")] == [
        "late_fill", "late_fill", "unknown_position", "unknown_position",
    ]  # fmt: skip


def test_reconcile_when_savings_are_ignored_at_one_account_then_they_use_up_no_hold_that_fills_at_another(
    opened: NewDesk,
) -> None:
    accounts = [WrittenAccount("bybit"), WrittenAccount("okx")]
    desk = opened(accounts, confirmations=1)
    accounts[0].shows(short("0.02"), long("5", ETH_PERP, "2000"), BTC="0.02")
    (drift,) = desk.run().live
    desk.reconciler.operator.ignore(drift.id, reason="not the bots'")
    desk.ledger.reserve(key="plain", tags={"symbol": "ETH"}, price=D(2000), ttl_seconds=5000)
    accounts[1].shows(long("0.5", ETH_PERP, "2000"))
    assert [(one.id, one.state) for one in desk.run().live] == [(drift.id, "acknowledged")]


def test_reconcile_when_savings_are_ignored_then_they_are_not_taken_for_the_orders_of_holds(opened: NewDesk) -> None:
    desk = opened(confirmations=1)
    desk.account.shows(short("0.02"), BTC="1.02")
    for drift in desk.run().live:
        desk.reconciler.operator.ignore(drift.id, reason="savings")
    reserve_btc(desk.ledger, "hold", ttl_seconds=5000)
    desk.account.balances = (balance("USDT", "100"), balance("BTC", "1.02"))
    assert ("balance_below_holds", D(1000)) in {(one.kind, one.ledger_quantity) for one in desk.run().live}


# --- at which account or asset ---------------------------------------------------------------------------


def test_reconcile_when_savings_are_sold_to_the_last_coin_then_their_baseline_is_missed(opened: NewDesk) -> None:
    desk = opened(baselines={"bybit/main/ETH": "2"})
    desk.account.shows(short("0.02"), BTC="0.02")  # an exchange lists no balance of an asset that is gone
    assert found(desk.run().live) == {("ETH", "long"): ("unknown_position", "open", D(2))}
    legs = [
        Leg("bybit", "ETH/USDT", "spot", "sell", D(2), D(2000)),
        Leg("bybit", ETH_PERP, "swap", "buy", D(2), D(2000)),
    ]
    desk.ledger.adopt(key="reverse", quantity=D(2), price=D(2000), tags={**TAGS, "symbol": "ETH"}, legs=legs)
    desk.account.shows(short("0.02"), long("2", ETH_PERP, "2000"), BTC="0.02")
    assert found(desk.run(2).live) == {}


def test_reconcile_when_a_leg_is_in_a_quote_asset_then_it_is_money_and_not_missing(opened: NewDesk) -> None:
    desk = opened()
    legs = [
        Leg("bybit", "USDC/USDT", "spot", "buy", D(500), D(1)),
        Leg("bybit", "USDC/USDT:USDT", "swap", "sell", D(500), D(1)),
    ]
    desk.ledger.adopt(key="x", quantity=D(500), price=D(1), tags={**TAGS, "symbol": "USDC"}, legs=legs)
    desk.account.shows(short("0.02"), short("500", "USDC/USDT:USDT", "1"), BTC="0.02", USDC="500")
    assert found(desk.run(2).live) == {}


def test_reconcile_when_a_position_is_at_two_venues_then_its_account_is_one_of_its_own_venue(opened: NewDesk) -> None:
    accounts = [WrittenAccount("bybit", "main"), WrittenAccount("bybit", "sub"), WrittenAccount("okx", "main")]
    desk = opened(accounts)
    legs = [
        Leg("bybit", "ETH/USDT", "spot", "buy", D(2), D(2000)),
        Leg("okx", ETH_PERP, "swap", "sell", D(2), D(2000)),
    ]
    tags = {"venue": "bybit", "account": "sub", "symbol": "ETH"}
    desk.ledger.adopt(key="x", quantity=D(2), price=D(2000), tags=tags, legs=legs)
    accounts[1].shows(ETH="2")
    accounts[2].shows(short("2", ETH_PERP, "2000"))
    differs = {(one.venue, one.subject) for one in desk.run().live}
    assert ("okx", ETH_PERP) not in differs
    assert differs == {("bybit", PERP), ("bybit", "BTC")}, "the first position names no account"
