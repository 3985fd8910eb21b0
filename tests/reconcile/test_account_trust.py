"""What runs tell the ledger of each account: until when it is trusted, what is free in it, what caps follow."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Leg, LegPlan, WrongState
from ledger_sizer.config import ExchangeSettings
from ledger_sizer.exchanges.snapshot import VenuePosition
from tests.support.accounts import NewDesk, WrittenAccount, balance, short
from tests.support.ledgers import BTC_PERP, assert_verified

D = Decimal
BYBIT, OKX = {"venue": "bybit"}, {"venue": "okx"}


def scope_row(desk: Any, name: str) -> Any:
    return next(row for row in desk.ledger.exposure().scopes if row.scope == name)


def ask(desk: Any, key: str, tags: dict[str, Any], **more: Any) -> Any:
    return desk.ledger.reserve(key=key, tags=tags, dry_run=True, **more)


def test_run_when_one_venue_of_three_is_away_then_only_grants_with_a_leg_there_stop(new_desk: NewDesk) -> None:
    okx = WrittenAccount("okx")
    desk = new_desk([WrittenAccount("bybit"), okx, WrittenAccount("binance")], stale_after_seconds=300)
    desk.reconciler.begin_trust()
    desk.run()
    okx.positions = okx.balances = None
    desk.run(6)
    away = ask(desk, "there", OKX)
    assert (away.reason, away.binding) == ("unreconciled", "account=okx/main")
    assert ask(desk, "elsewhere", BYBIT).granted
    across = ask(desk, "across", {}, price=D(50000), legs=[
        LegPlan(_at("bybit"), "buy"), LegPlan(_at("okx"), "sell")
    ])  # fmt: skip
    assert across.reason == "unreconciled"
    assert desk.ledger.exposure().whole.fresh_until > desk.clock.now()
    okx.shows()
    desk.run()
    assert ask(desk, "back", OKX).granted
    assert_verified(desk.ledger)


def test_run_when_every_venue_is_away_then_nothing_is_granted(new_desk: NewDesk) -> None:
    desk = new_desk([WrittenAccount("bybit"), WrittenAccount("okx")], stale_after_seconds=300)
    desk.reconciler.begin_trust()
    for account in desk.accounts:
        account.positions = None
    desk.run(6)
    assert [ask(desk, f"{n}", tags).reason for n, tags in enumerate(({}, BYBIT, {"venue": "kraken"}))] == [
        "unreconciled"
    ] * 3


def test_run_when_an_account_never_was_read_then_it_is_trusted_no_longer_than_the_start(new_desk: NewDesk) -> None:
    okx = WrittenAccount("okx")
    okx.positions = None
    desk = new_desk([WrittenAccount("bybit"), okx], stale_after_seconds=120)
    desk.reconciler.begin_trust()
    assert ask(desk, "at first", OKX).granted
    desk.run(3)
    assert ask(desk, "later", OKX).reason == "unreconciled"
    assert ask(desk, "elsewhere", BYBIT).granted


def test_run_when_an_account_left_the_settings_then_it_stops_nothing_any_more(
    new_desk: NewDesk,
) -> None:
    desk = new_desk([WrittenAccount("bybit"), WrittenAccount("okx")], stale_after_seconds=120)
    desk.reconciler.begin_trust()
    desk.run()
    desk.reconciler.inspector.accounts = desk.reconciler.inspector.accounts[:1]
    desk.run(4)
    assert ask(desk, "anywhere", {}).granted
    assert scope_row(desk, "account=okx/main").free_balance is None


def test_free_balance_when_bots_share_a_wallet_then_a_run_counts_what_it_cannot_show_yet(new_desk: NewDesk) -> None:
    desk = new_desk(grace_seconds=10)
    desk.account.shows(USDT="500")
    desk.reconciler.begin_trust()
    desk.run()
    first = desk.ledger.reserve(key="a", tags=BYBIT, amount_usd=D(300), ttl_seconds=3600)
    assert first.granted
    assert desk.ledger.reserve(key="b", tags=BYBIT, amount_usd=D(300)).budget == D(200)
    desk.run()
    row = scope_row(desk, "account=bybit/main")
    assert (row.free_balance, row.promised) == (D(500), D(300)), "b is over, a may still be spent"
    # The order of `a` fills: 300 are spent, which the wallet shows at once and the bot tells a little later.
    desk.account.shows(USDT="200", BTC="3")
    desk.run()
    assert scope_row(desk, "account=bybit/main").promised == D(300), "it cannot know that these are the same dollars"
    desk.ledger.confirm(
        key="fill", position_id=str(first.position_id), quantity=D(3), price=D(100),
        legs=[_leg("BTC/USDT", "spot", "buy", "3", "100")],
    )  # fmt: skip
    desk.run()
    row = scope_row(desk, "account=bybit/main")
    assert (row.free_balance, row.promised) == (D(200), D(0))
    assert_verified(desk.ledger)


def test_free_balance_when_a_large_position_was_closed_in_part_then_its_old_cost_is_not_promised_again(
    new_desk: NewDesk,
) -> None:
    desk = new_desk(grace_seconds=10)
    desk.account.shows(USDT="5000", BTC="40")
    desk.reconciler.begin_trust()
    legs = [_leg("BTC/USDT", "spot", "buy", "40", "100")]
    desk.ledger.adopt(key="own", quantity=D(40), price=D(100), tags=BYBIT, legs=legs)
    desk.run()
    desk.clock.advance(55)
    desk.ledger.release(key="part", position_id="main-3", quantity=D(10))
    desk.account.shows(USDT="6000", BTC="30")
    desk.run(seconds=5)
    row = scope_row(desk, "account=bybit/main")
    assert (row.free_balance, row.promised) == (D(6000), D(0))
    assert ask(desk, "a", BYBIT).budget == D(1000)


def test_free_balance_when_it_shall_not_bind_then_it_does_not(new_desk: NewDesk) -> None:
    account: Any = WrittenAccount()
    account.bind_free_balance = False
    account.shows(USDT="5")
    desk = new_desk([account])
    desk.reconciler.begin_trust()
    desk.run()
    assert ask(desk, "a", BYBIT).budget == D(1000)


def test_share_of_equity_when_the_equity_moves_then_the_cap_falls_at_once_and_rises_on_good_runs(
    new_desk: NewDesk,
) -> None:
    okx = WrittenAccount("okx")
    desk = new_desk([WrittenAccount("bybit"), okx])
    desk.reconciler.begin_trust()
    desk.ledger.set_cap(key="share", share_of_equity=D("0.8"))
    assert desk.ledger.exposure().cap == D(0), "nobody has seen the equity yet"
    desk.account.shows(USDT="1000")
    okx.shows(USDT="500")
    desk.run()
    assert desk.ledger.exposure().cap == D(1200)
    seqs = _equity_decisions(desk)
    okx.shows(USDT="510")
    desk.run()
    assert (desk.ledger.exposure().cap, _equity_decisions(desk)) == (D(1200), seqs), "less than 1 %"
    okx.positions = None
    desk.account.shows(USDT="2000")
    desk.run()
    assert desk.ledger.exposure().cap == D(1200), "a run that did not read all raises nothing"
    desk.account.shows(USDT="600")
    desk.run()
    assert desk.ledger.exposure().cap == D("888"), "0.8 of 600 and the last known 510"
    okx.shows(USDT="510")
    desk.account.shows(USDT="2000")
    desk.run()
    assert desk.ledger.exposure().cap == D(2008)
    changes = list(desk.ledger.history(command="equity_seen"))
    assert {one.actor for one in changes} == {"reconcile"}
    assert_verified(desk.ledger)


def test_share_of_equity_when_coins_and_open_profit_are_there_then_they_count_at_their_prices(
    new_desk: NewDesk,
) -> None:
    desk = new_desk()
    desk.reconciler.begin_trust()
    desk.ledger.set_cap(key="share", scope="venue=bybit", share_of_equity=D(1))
    desk.ledger.adopt(key="own", quantity=D(2), price=D(100), tags=BYBIT, legs=[
        _leg("BTC/USDT", "spot", "buy", "2", "100"), _leg("BTC/USDT:USDT", "swap", "sell", "2", "100")
    ])  # fmt: skip
    desk.account.positions = (VenuePosition("BTC/USDT:USDT", "short", D(2), D(100), D(100)),)
    desk.account.balances = (balance("USDT", "300"), balance("BTC", "2"))
    desk.run()
    assert scope_row(desk, "venue=bybit").cap == D(500)


def test_share_of_equity_when_it_falls_below_the_guarantees_then_they_stay_and_outsiders_get_nothing(
    new_desk: NewDesk,
) -> None:
    desk = new_desk()
    desk.reconciler.begin_trust()
    desk.ledger.set_cap(key="cap", cap=D(2000))
    desk.ledger.set_cap(key="pool", scope="bot=a", guarantee=D(600))
    desk.ledger.set_cap(key="share", share_of_equity=D("0.5"))
    desk.account.shows(USDT="1000")
    desk.run()
    assert desk.ledger.exposure().cap == D(500)
    assert ask(desk, "outside", {"bot": "b"}).binding == "guarantee:bot=a"
    assert ask(desk, "inside", {"bot": "a"}).budget == D(500)


def test_equity_seen_when_the_cap_follows_nothing_then_it_is_refused(new_desk: NewDesk) -> None:
    desk = new_desk()
    desk.ledger.set_cap(key="cap", cap=D(2000))
    with pytest.raises(WrongState, match="follows no equity; set that first"):
        desk.ledger.equity_seen(key="e", equity=D(5))
    with pytest.raises(InvalidRequest, match="a cap either is set or follows the equity"):
        desk.ledger.set_cap(key="both", cap=D(1), share_of_equity=D(1))
    desk.ledger.set_cap(key="share", share_of_equity=D("0.5"))
    desk.ledger.equity_seen(key="seen", equity=D(1000))
    desk.ledger.set_cap(key="less", share_of_equity=D("0.25"))
    assert desk.ledger.exposure().cap == D(250), "a share that changes scales what is known"
    desk.ledger.set_cap(key="back", cap=D(700))
    assert desk.ledger.exposure().whole.share_of_equity is None


def test_second_account_when_it_is_added_then_older_positions_stay_at_the_first(new_desk: NewDesk) -> None:
    first = WrittenAccount("bybit", "main")
    desk = new_desk([first])
    desk.reconciler.begin_trust()
    desk.ledger.adopt(key="own", quantity=D(1), price=D(100), tags=BYBIT, legs=[
        _leg("BTC/USDT:USDT", "swap", "sell", "1", "100")
    ])  # fmt: skip
    first.shows(short("1", price="100"))
    assert desk.run(2).findings == ()
    second = WrittenAccount("bybit", "second")
    desk.reconciler.inspector.accounts = (first, second)
    report = desk.run(2)
    assert (report.findings, report.run.found.get("unplaced")) == ((), None)
    assert desk.ledger.exposure().open == D(100)


def test_denial_when_a_drift_froze_then_it_is_named(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    desk.account.shows(short("1"))
    desk.run()
    denied = desk.ledger.reserve(key="a", tags=BYBIT)
    assert denied.frozen_note == "drift-1, unknown_position: BTC/USDT:USDT short at bybit/main"
    with pytest.raises(Exception, match="drift-1, unknown_position: BTC/USDT:USDT short at bybit/main"):
        denied.raise_for_denial()
    assert "drift-1, unknown_position" in desk.ledger.explain(denied.seq or 0).text


def test_denial_when_the_drift_that_froze_first_is_over_then_the_one_that_is_left_is_named(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    eth = short("1", "ETH/USDT:USDT")
    desk.account.shows(eth)
    desk.run()
    desk.account.shows(short("1"), eth)
    desk.run()
    assert "drift-2" in str(desk.ledger.reserve(key="a", tags=BYBIT).frozen_note)
    desk.account.shows(eth)
    desk.run()
    assert "drift-1" in str(desk.ledger.reserve(key="b", tags=BYBIT).frozen_note)
    desk.account.shows()
    desk.run()
    assert desk.ledger.reserve(key="c", tags=BYBIT).granted


def test_run_when_one_portfolios_account_meets_a_defect_then_the_others_are_judged(
    new_desk: NewDesk,
) -> None:
    odd, sound = WrittenAccount("okx", portfolio="carry"), WrittenAccount("bybit")
    desk = new_desk([odd, sound])
    sound.shows(short("1", price="100"))

    def break_down() -> None:
        raise RuntimeError("a parser that nobody expected to fail")

    odd.on_fetch = break_down
    carry, main = desk.reconciler.run()
    assert (carry.run.outcome, main.run.outcome) == ("failed", "good")
    assert "a parser that nobody expected to fail" in str(carry.run.fetched[0]["problems"])
    assert desk.ledger.exposure().open == D(100)


def test_freeze_when_it_is_of_a_venue_then_every_request_with_a_leg_there_is_denied(new_desk: NewDesk) -> None:
    bybit, okx = WrittenAccount("bybit"), WrittenAccount("okx")
    desk = new_desk([bybit, okx], confirmations=1, freeze_scope="venue")
    bybit.shows(short("1", price="100"))
    desk.run()
    across = [LegPlan(_at("okx"), "buy"), LegPlan(_at("bybit"), "sell")]
    denied = ask(desk, "across", {}, price=D(50000), legs=across)
    assert (denied.reason, denied.binding) == ("unreconciled", "venue=bybit")
    assert ask(desk, "okx alone", {}, price=D(50000), legs=across[:1]).granted


def test_settings_when_two_portfolios_share_an_account_then_they_are_refused() -> None:
    both = [{"id": "okx", "account": name, "portfolio": name, "api_key": "k", "api_secret": "s"} for name in "ab"]
    with pytest.raises(InvalidRequest, match=r"okx/a and okx/b are one API key"):
        ExchangeSettings(accounts=both)


def _at(venue: str) -> Any:
    return replace(BTC_PERP, venue=venue)


def _leg(symbol: str, kind: Any, side: Any, quantity: str, price: str) -> Any:
    return Leg("bybit", symbol, kind, side, D(quantity), D(price))


def _equity_decisions(desk: Any) -> list[int]:
    return [one.seq for one in desk.ledger.history(command="equity_seen")]
