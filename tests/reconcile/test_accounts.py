"""Several accounts and venues in one portfolio, and several portfolios: each leg is compared at its own account."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import Leg
from ledger_sizer.reconcile import listings
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, long, short
from tests.support.ledgers import assert_verified, figures

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def accounts() -> list[WrittenAccount]:
    """Two accounts at bybit and one at okx for `main`, one at okx for `other`."""
    return [
        WrittenAccount("bybit", "one"), WrittenAccount("bybit", "two"), WrittenAccount("okx", "main"),
        WrittenAccount("okx", "second", "other"),
    ]  # fmt: skip


@pytest.fixture
def desk(new_desk: NewDesk, accounts: list[WrittenAccount]) -> Desk:
    """A short of 1 BTC in each account; the okx one of `main` is the other side of bybit/two's."""
    desk = new_desk(accounts, confirmations=1)
    for at, account in enumerate(accounts):
        tags = {"venue": account.venue, "symbol": "BTC"} | ({"account": account.account} if at < 2 else {})
        legs = [Leg(account.venue, PERP, "swap", "sell", D(1), D(100))]
        desk.ledger.adopt(
            key=f"a{at}", portfolio=account.portfolio, quantity=D(1), price=D(100), tags=tags, legs=legs
        )  # fmt: skip
        account.shows(short("1", price="100"))
    return desk


def run(desk: Desk) -> dict[str, list[tuple[str, str, str]]]:
    """Run, and return (venue, account, kind) of the live drifts by portfolio."""
    desk.clock.advance(60)
    reports = desk.reconciler.run()
    return {one.run.portfolio: [(drift.venue, drift.account, drift.kind) for drift in one.live] for one in reports}


def test_reconcile_when_accounts_are_several_then_each_is_compared_with_its_own_legs(desk: Desk) -> None:
    assert run(desk) == {"main": [], "other": []}
    fetched = {run.portfolio: len(run.fetched) for run in listings.list_runs(desk.engine)}
    assert fetched == {"main": 3, "other": 1}
    found = {run.portfolio: run.found for run in listings.list_runs(desk.engine)}
    assert found == {"main": {"agrees": 3}, "other": {"agrees": 1}}


def test_reconcile_when_a_position_moved_to_another_account_then_both_accounts_say_so(
    desk: Desk, accounts: list[WrittenAccount]
) -> None:
    run(desk)
    accounts[0].shows()
    accounts[1].shows(short("2", price="100"))
    assert run(desk) == {
        "main": [("bybit", "one", "missing_position"), ("bybit", "two", "quantity_differs")], "other": [],
    }  # fmt: skip
    assert figures(desk.ledger, "external=exchange") == (0, D(100))
    assert desk.ledger.reserve(key="no").reason == "unreconciled"
    assert desk.ledger.reserve(key="yes", portfolio="other").granted
    accounts[0].shows(short("1", price="100"))
    accounts[1].shows(short("1", price="100"))
    assert run(desk) == {"main": [], "other": []}
    assert_verified(desk.ledger)


def test_reconcile_when_one_account_is_not_fetched_then_the_others_are_judged_and_it_alone_is_unknown(
    desk: Desk, accounts: list[WrittenAccount]
) -> None:
    accounts[1].shows(short("3", price="100"))
    assert run(desk)["main"] == [("bybit", "two", "quantity_differs")]
    accounts[1].positions = None
    accounts[2].shows()
    found = run(desk)
    assert found["other"] == []
    assert set(found["main"]) == {
        ("bybit", "two", "quantity_differs"), ("bybit", "two", "fetch_failed"), ("okx", "main", "missing_position"),
    }  # fmt: skip
    outcomes = {one.portfolio: one.outcome for one in listings.list_runs(desk.engine, limit=2)}
    assert outcomes == {"main": "partial", "other": "good"}
    desk.clock.advance(300)
    assert desk.ledger.reserve(key="stale", portfolio="other").reason == "unreconciled"


def test_reconcile_when_positions_name_several_venues_accounts_or_symbols_then_each_leg_is_at_its_own(
    new_desk: NewDesk,
) -> None:
    accounts = [WrittenAccount("bybit", "one"), WrittenAccount("okx", "main")]
    desk = new_desk(accounts, confirmations=1)
    pair = {"venue": ["okx", "bybit"], "account": ["main", "one"], "symbol": ["BTC", "WBTC"]}
    legs = [
        Leg("bybit", PERP, "swap", "sell", D(1), D(100)),
        Leg("okx", PERP, "swap", "buy", D(1), D(100)),
    ]
    desk.ledger.adopt(key="pair", quantity=D(1), price=D(100), tags=pair, legs=legs)
    accounts[0].shows(short("1", price="100"))
    accounts[1].shows(long("1", price="100"))
    held = desk.ledger.reserve(key="hold", tags=pair, available_balance=D(300), ttl_seconds=100)
    desk.ledger.reserve(key="elsewhere", tags={"venue": ["kraken", "gate"], "symbol": "BTC"}, ttl_seconds=100)
    desk.ledger.reserve(key="nowhere", tags={"symbol": ["BTC", "ETH"]}, ttl_seconds=100)
    desk.ledger.adopt(key="no legs", quantity=D(1), price=D(1), tags=pair)
    assert run(desk) == {"main": []}
    desk.clock.advance(200)
    assert held.granted
    assert run(desk) == {"main": []}, "expired holds at several venues"
    accounts[1].shows()
    assert run(desk)["main"][0] == ("okx", "main", "missing_position")
    (drift,) = [one for one in listings.list_drifts(desk.engine) if one.kind == "missing_position"]
    desk.reconciler.operator.adopt(drift.id, reason="gone")
    assert figures(desk.ledger, "venue=bybit") == (0, 101), "the leg that is still there goes on counting"
    assert figures(desk.ledger, "venue=okx") == (0, 1), "and only where it is"
    left = desk.ledger.positions(state="open", tags={"symbol": "WBTC"})
    assert sorted((len(one.legs), one.tags.values_of("account")) for one in left) == [
        (0, ("main", "one")),
        (1, ("one",)),
    ]
    assert_verified(desk.ledger)


def test_reconcile_when_an_accounts_portfolio_is_not_declared_then_that_is_said_and_the_others_go_on(
    new_desk: NewDesk, caplog: pytest.LogCaptureFixture
) -> None:
    accounts = [WrittenAccount("okx", portfolio="main"), WrittenAccount("bybit", portfolio="mian")]
    accounts[1].shows(short("2", price="100"))
    guards = {"portfolios": "declared", "required_tags": ("bot",)}
    desk = new_desk(accounts, confirmations=1, ledger=guards)
    desk.ledger.set_cap(key="cap", cap=D(1_000))
    desk.reconciler.begin_trust()
    assert "LEDGER_PORTFOLIOS=declared" in caplog.text
    desk.clock.advance(60)
    good, undeclared = desk.reconciler.run()
    assert (good.run.portfolio, good.run.outcome) == ("main", "good")
    assert (undeclared.run.portfolio, undeclared.run.outcome) == ("mian", "failed")
    (said,) = undeclared.live  # a drift whose policy is to alert
    assert (said.kind, said.state, said.policy) == ("fetch_failed", "confirmed", "alert")
    assert "no portfolio 'mian'" in said.detail
    assert "caps set mian CAP" in said.detail
    assert desk.ledger.portfolios() == ["main"]
    desk.ledger.set_cap(key="cap", portfolio="mian", cap=D(1_000))
    desk.clock.advance(60)
    _, counted = desk.reconciler.run()
    assert [(one.kind, one.excess) for one in counted.live] == [("unknown_position", D(2))]
    assert figures(desk.ledger, "external=exchange", "mian") == (0, D(200)), "what is external needs no bot"
    adopted = desk.reconciler.operator.act("adopt", counted.live[0].id, reason="ours")
    assert adopted.state == "resolved"
    assert figures(desk.ledger, "venue=bybit", "mian") == (0, D(200)), "nor does what a person adopts of it"
