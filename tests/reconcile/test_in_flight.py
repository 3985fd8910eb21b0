"""What explains a difference, and how much of it: holds, recent moves and ignored drifts, each once."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest

from ledger_sizer import InstrumentInfo, Leg
from ledger_sizer.model.domain import Position
from ledger_sizer.model.reconciliation import Drift, Market
from ledger_sizer.model.tags import tags_of
from ledger_sizer.reconcile.ledger_side import PlainHold, ledger_side_of
from ledger_sizer.views.attribution import AccountResolver
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, balance, hedged_desks, long, short
from tests.support.ledgers import TAGS, figures, position_of, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def opened(new_desk: NewDesk) -> NewDesk:
    """A desk over these accounts, with a hedged position of 0.02 BTC at 50,000 USD that both sides know."""
    return hedged_desks(new_desk, lambda desk: fill(desk, "first"), cap_usd=500_000)


def fill(desk: Desk, key: str) -> str:
    """Reserve 0.02 BTC and confirm it."""
    held = position_of(reserve_btc(desk.ledger, key, ttl_seconds=30))
    desk.ledger.confirm(key=f"{key}/filled", position_id=held, quantity=D("0.02"), price=D(50_000))
    return held


def found(drifts: Sequence[Drift]) -> dict[tuple[str, str], tuple[str, str, Decimal]]:
    """Return (kind, state, excess) of the drifts in quantity, by subject and side."""
    return {(one.subject, one.side): (one.kind, one.state, one.excess) for one in drifts if one.part != "ledger"}


def test_reconcile_when_a_hold_comes_after_an_excess_was_counted_then_it_explains_nothing_of_it(
    opened: NewDesk,
) -> None:
    desk = opened()
    reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.04"), BTC="0.04")
    desk.run(2)
    assert figures(desk.ledger, "external=exchange") == (D(0), D(2000))
    reserve_btc(desk.ledger, "new", ttl_seconds=500)
    report = desk.run()
    assert found(report.live)[PERP, "short"] == ("late_fill", "confirmed", D("0.02"))
    assert figures(desk.ledger, "external=exchange") == (D(0), D(2000))
    desk.account.shows(short("0.06"), BTC="0.06")  # the new hold filled too: it explains its own fill, and nothing else
    assert found(desk.run().live)[PERP, "short"] == ("late_fill", "confirmed", D("0.02"))
    assert figures(desk.ledger) == (D(1000), D(3000))


def test_reconcile_when_a_holds_time_is_over_but_nobody_freed_it_yet_then_its_fill_is_counted_at_once(
    opened: NewDesk,
) -> None:
    desk = opened()
    reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.account.shows(short("0.04"), BTC="0.04")
    assert found(desk.run().live)[PERP, "short"] == ("late_fill", "open", D("0.02"))
    assert figures(desk.ledger) == (D(0), D(3000)), "what the run writes frees the hold"


def test_reconcile_when_the_bots_trade_beside_an_ignored_difference_then_it_stays_ignored(opened: NewDesk) -> None:
    desk = opened()
    desk.account.shows(short("0.02"), BTC="0.52")
    for drift in desk.run().live:
        desk.reconciler.operator.ignore(drift.id, reason="savings")
    resting = reserve_btc(desk.ledger, "resting", ttl_seconds=5000)
    assert found(desk.run().live)["BTC", "long"] == ("quantity_differs", "acknowledged", D("0.5"))
    desk.account.shows(short("0.04"), BTC="0.54")
    assert found(desk.run().live)["BTC", "long"] == ("quantity_differs", "acknowledged", D("0.5"))
    desk.ledger.confirm(key="c", position_id=position_of(resting), quantity=D("0.02"), price=D(50_000))
    report = desk.run(2)
    assert [(one.kind, one.state) for one in report.live] == [("quantity_differs", "acknowledged")]
    desk.account.shows(short("0.04"), BTC="0.64")
    assert found(desk.run().live)["BTC", "long"] == ("quantity_differs", "open", D("0.6")), "this is another one"
    assert not desk.ledger.exposure("main").whole.frozen


def test_reconcile_when_a_position_is_opened_where_savings_are_ignored_then_they_are_still_the_same(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.shows(short("0.02"), BTC="0.02", ETH="3")
    (drift,) = desk.run().live
    assert drift.kind == "unknown_position"
    desk.reconciler.operator.ignore(drift.id, reason="savings")
    legs = [Leg("bybit", "ETH/USDT", "spot", "buy", D(1), D(2000))]
    desk.ledger.adopt(key="eth", quantity=D(1), price=D(2000), tags={**TAGS, "symbol": "ETH"}, legs=legs)
    desk.account.shows(short("0.02"), BTC="0.02", ETH="4")
    report = desk.run(2)
    assert [(one.id, one.state) for one in report.live] == [(drift.id, "acknowledged")]


def test_reconcile_when_a_market_moves_before_every_run_then_what_the_moves_cannot_be_is_counted(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.shows(short("1.02"), BTC="0.02")
    for turn in range(3):
        desk.clock.advance(55)
        fill(desk, f"busy/{turn}")
        desk.ledger.release(key=f"busy/{turn}/closed", position_id=f"main-{desk.ledger.exposure('main').seq - 1}")
        report = desk.run(seconds=5)
        assert found(report.live)[PERP, "short"] == ("quantity_differs", "open", D("0.98")), (
            "1 less the 0.02 that moved"
        )
    assert figures(desk.ledger, "external=exchange") == (D(0), D(49_000))
    assert found(desk.run(2).live)[PERP, "short"] == ("quantity_differs", "confirmed", D(1))


def test_reconcile_when_one_hold_names_no_market_then_it_explains_one_long_and_one_short_of_its_size(
    opened: NewDesk,
) -> None:
    accounts = [WrittenAccount("bybit"), WrittenAccount("okx")]
    desk = opened(accounts)
    desk.ledger.reserve(key="plain", tags={"symbol": "ETH"}, price=D(2000), ttl_seconds=5000)
    sides = (short("0.5", "ETH/USDT:USDT", "2000"), long("0.5", "ETH/USDT:USDT", "2000"))
    accounts[0].shows(short("0.02"), *sides, BTC="0.02")
    assert desk.run().live == ()
    accounts[1].shows(*sides)
    report = desk.run()
    assert sorted((one.venue, one.side, one.excess) for one in report.live) == [
        ("okx", "long", D("0.5")), ("okx", "short", D("0.5")),
    ]  # fmt: skip
    assert report.run.found["unplaced"] == 1, "the hold, whose account nobody can tell"


def test_reconcile_when_a_small_hold_expired_then_it_does_not_excuse_a_large_position(opened: NewDesk) -> None:
    desk = opened()
    desk.ledger.reserve(key="plain", tags={**TAGS, "symbol": "ETH"}, available_balance=D(10), ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.02"), short("100", "ETH/USDT:USDT", "2000"), BTC="0.02")
    assert found(desk.run(2).live)["ETH/USDT:USDT", "short"] == ("unknown_position", "confirmed", D(100))
    assert desk.ledger.exposure("main").whole.frozen
    desk.account.shows(short("0.02"), short("0.005", "ETH/USDT:USDT", "2000"), BTC="0.02")
    assert found(desk.run().live)["ETH/USDT:USDT", "short"][0] == "late_fill", "10 USD it may be"


def test_reconcile_when_a_hold_has_no_venue_tag_then_its_legs_or_the_only_account_say_where_it_is(
    opened: NewDesk,
) -> None:
    desk = opened(confirmations=1)
    desk.account.balances = (balance("USDT", "10"), balance("BTC", "0.02"))
    desk.ledger.reserve(key="bare", tags={}, ttl_seconds=500)
    at_bybit = {
        f"{kind}_instrument": InstrumentInfo(symbol, D("0.001"), D(100), D("0.001"), listed_as=f"bybit:{symbol}")
        for kind, symbol in (("spot", "BTC/USDT"), ("perp", PERP))
    }
    desk.ledger.reserve(key="legs", tags={}, price=D(50_000), ttl_seconds=500, **at_bybit)
    (drift,) = desk.run().live
    assert (drift.kind, drift.ledger_quantity) == ("balance_below_holds", D(2000))
    desk.clock.advance(600)
    desk.ledger.sweep()
    assert [one.kind for one in desk.run().live] == ["expired_hold", "expired_hold"]


def test_reconcile_when_one_fill_is_to_be_seen_then_the_other_holds_still_need_their_balance(opened: NewDesk) -> None:
    desk = opened(confirmations=1)
    for number in range(10):
        reserve_btc(desk.ledger, f"hold/{number}", ttl_seconds=5000)
    desk.account.positions = (short("0.021"),)
    desk.account.balances = (balance("USDT", "100"), balance("BTC", "0.02"))
    (drift,) = desk.run().live
    assert (drift.kind, drift.ledger_quantity) == ("balance_below_holds", D(9950)), "50 USD of 10,000 are filled"


def test_reconcile_when_long_and_short_have_their_prices_then_each_is_counted_at_its_own(opened: NewDesk) -> None:
    desk = opened(confirmations=1)
    desk.account.shows(long("1", price="100000"), short("0.02", price="16000"), BTC="0.02")
    desk.run()
    assert figures(desk.ledger, "external=exchange") == (D(0), D(100_000))


def test_reconcile_when_a_market_is_not_quoted_in_dollars_then_its_price_counts_nothing(opened: NewDesk) -> None:
    desk = opened(confirmations=1)
    desk.account.shows(short("0.02"), long("10", "ETH/BTC:BTC", "0.05"), BTC="0.02", ETH="10")
    report = desk.run()
    assert {one.subject: one.price for one in report.live} == {"ETH/BTC:BTC": None, "ETH": None}
    assert desk.ledger.exposure("main").whole.frozen, "what cannot be counted stops grants"


def test_reconcile_when_a_position_with_unequal_legs_moves_then_its_drift_is_not_taken_for_over(
    opened: NewDesk,
) -> None:
    desk = opened(policy_legs_unequal="freeze")
    legs = [
        Leg("bybit", "ETH/USDT", "spot", "buy", D(2), D(100)),
        Leg("bybit", "ETH/USDT:USDT", "swap", "sell", D(1), D(100)),
    ]
    uneven = position_of(
        desk.ledger.adopt(key="uneven", quantity=D(2), price=D(100), tags={**TAGS, "symbol": "ETH"}, legs=legs)
    )
    desk.account.shows(short("0.02"), short("1", "ETH/USDT:USDT", "100"), BTC="0.02", ETH="2")
    assert [one.state for one in desk.run(2).live if one.subject == uneven] == ["confirmed"]
    desk.clock.advance(55)
    desk.ledger.release(key="part", position_id=uneven, quantity=D(1))
    desk.account.shows(short("0.02"), short("0.5", "ETH/USDT:USDT", "100"), BTC="0.02", ETH="1")
    report = desk.run(seconds=5)
    assert [one.state for one in report.live if one.subject == uneven] == ["confirmed"]
    assert desk.ledger.exposure("main").whole.frozen


def test_reconcile_when_only_the_spot_leg_of_an_expired_hold_filled_then_it_is_not_called_unfilled(
    opened: NewDesk,
) -> None:
    desk = opened()
    reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.02"), BTC="0.04")
    assert {one.kind for one in desk.run().findings} == {"late_fill", "legs_unequal"}


def test_reconcile_when_the_name_of_a_filled_hold_begins_with_another_ones_then_both_are_told_of(
    opened: NewDesk,
) -> None:
    desk = opened()
    eth = {
        f"{kind}_instrument": InstrumentInfo(symbol, D("0.001"), D(100), D("0.001"))
        for kind, symbol in (("spot", "ETH/USDT"), ("perp", "ETH/USDT:USDT"))
    }
    idle = position_of(
        desk.ledger.reserve(key="eth", tags={**TAGS, "symbol": "ETH"}, price=D(2000), ttl_seconds=5, **eth)
    )
    turn = 0
    while not (filled := position_of(reserve_btc(desk.ledger, f"turn/{turn}", ttl_seconds=5))).startswith(idle):
        desk.ledger.release(key=f"turn/{turn}/released", position_id=filled)
        turn += 1
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.04"), BTC="0.02")
    findings = desk.run().findings
    assert [one.market.subject for one in findings if one.kind == "expired_hold"] == [idle]
    assert [one.detail.split("hold ")[1].split()[0] for one in findings if one.kind == "late_fill"] == [filled]


@pytest.mark.parametrize(("now_us", "holds"), [(8, 1), (9, 0)])
def test_sum_up_when_an_open_position_holds_more_then_what_filled_is_open_and_the_rest_is_a_hold_in_usd(
    now_us: int, holds: int
) -> None:
    leg = Leg("bybit", PERP, "swap", "sell", D("0.01"), D(50_000))
    position = Position(
        portfolio="main", number=1, state="open", tags=tags_of(TAGS), held_e8=300 * 10**8, open_e8=500 * 10**8,
        quantity=D("0.01"), price=D(50_000), legs=(leg,), expires_us=9, updated_us=5, updated_seq=2,
    )  # fmt: skip
    account, market = ("bybit", "main"), Market("bybit", "main", PERP, "short")
    side = ledger_side_of(
        [position], AccountResolver([account]), seq_before=5, settled_us=5, expired_us=0, now_us=now_us
    )
    assert (side.open, side.in_flight, side.expired) == ({market: D("0.01")}, {}, [])
    plain = PlainHold(frozenset({account}), frozenset({"BTC"}), D(300), "main-1", until_known=False)
    assert side.holds_without_legs == [plain] * holds
    assert side.holds == [(account, (market,), D(300))] * holds


@pytest.mark.parametrize("symbol", ["BTC", "BTC/USDT", PERP])
def test_reconcile_when_a_hold_names_its_market_by_a_tag_then_a_fill_in_it_is_in_flight(
    opened: NewDesk, symbol: str
) -> None:
    desk = opened(confirmations=1)
    desk.ledger.reserve(key="spot", tags={"venue": "bybit", "symbol": symbol}, amount_usd=D(500), ttl_seconds=500)
    desk.account.shows(short("0.02"), BTC="0.03")
    assert {drift.kind for drift in desk.run().live} <= {"legs_unequal"}, "the hedge's coins are not told apart"
    assert not desk.ledger.exposure("main").whole.frozen
