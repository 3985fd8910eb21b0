"""One outage is one alert and one all-clear; what one run confirms or ends is one alert each, for a person to read."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from ledger_sizer import Leg
from ledger_sizer.model.choices import DRIFT_KINDS
from ledger_sizer.model.reconciliation import QUOTE
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.storage.tables import AlertRow
from tests.support.accounts import Desk, NewDesk, WrittenAccount, adopt, long, short
from tests.support.ledgers import BTC_PRICE

D = Decimal
URL = SecretStr("http://127.0.0.1:9/hook")


def told(desk: Desk) -> list[dict[str, Any]]:
    """Return the bodies in the outbox, oldest first."""
    with desk.engine.begin() as connection:
        rows = connection.execute(select(AlertRow.delivery, AlertRow.body).order_by(AlertRow.id)).all()
    bodies = [json.loads(body) for _, body in rows]
    assert [name for name, _ in rows] == [f"run-{body['run']['id']}-{body['event']}" for body in bodies]
    return bodies


def events(desk: Desk) -> list[str]:
    return [body["event"] for body in told(desk)]


@pytest.mark.parametrize("half", [False, True])
def test_outage_when_it_lasts_three_hours_then_it_is_one_alert_and_one_all_clear(new_desk: NewDesk, half: bool) -> None:
    desk = new_desk(webhook_url=URL)
    desk.run()
    desk.account.positions = None
    desk.account.balances = desk.account.balances if half else None
    desk.run()
    assert events(desk) == [], "one run may have had bad luck"
    desk.run(18, seconds=600)
    (out,) = told(desk)
    assert (out["event"], out["portfolio"], out["count"]) == ("run_failed", "main", 1)
    (account,) = out["accounts"]
    assert (account["venue"], account["account"], account["since"]) == ("bybit", "main", "2026-01-01T00:02:00Z")
    assert out["run"]["id"] == 3
    for words in ("bybit/main cannot be read", "positions: no answer", "300 s after it was last read", "Do: look at"):
        assert words in out["text"]
    desk.account.shows()
    desk.run(3)
    _, back = told(desk)
    assert (back["event"], back["still_unreadable"]) == ("run_good_again", [])
    assert "bybit/main can be read again" in back["text"]


def test_outage_when_it_comes_and_goes_for_single_runs_then_nobody_is_told(new_desk: NewDesk) -> None:
    desk = new_desk(webhook_url=URL)
    for _ in range(5):
        desk.account.positions = None
        desk.run()
        desk.account.positions = ()
        desk.run()
    assert events(desk) == []


def test_outage_when_two_accounts_are_out_then_each_has_one_alert_and_one_all_clear(new_desk: NewDesk) -> None:
    bybit, okx = WrittenAccount("bybit"), WrittenAccount("okx")
    desk = new_desk([bybit, okx], webhook_url=URL)
    bybit.positions = okx.positions = None
    desk.run(4)
    okx.positions = ()
    desk.run(2)
    bybit.positions = ()
    desk.run(2)
    out, partly, back = told(desk)
    assert [out["event"], partly["event"], back["event"]] == ["run_failed", "account_readable", "run_good_again"]
    assert [one["venue"] for one in out["accounts"]] == ["bybit", "okx"], "both in one"
    assert [one["venue"] for one in partly["accounts"]] == ["okx"]
    assert [one["venue"] for one in partly["still_unreadable"]] == ["bybit"]
    assert "Still not read: bybit/main" in partly["text"]
    assert [one["venue"] for one in back["accounts"]] == ["bybit"]


def test_outage_when_its_policy_is_to_record_then_nobody_is_told(new_desk: NewDesk) -> None:
    desk = new_desk(webhook_url=URL, policy_fetch_failed="record")
    desk.account.positions = None
    desk.run(5)
    desk.account.positions = ()
    desk.run(2)
    assert events(desk) == []


def test_outage_when_two_replicas_take_turns_then_it_is_told_once(new_desk: NewDesk) -> None:
    desk = new_desk(webhook_url=URL)
    inspector = LocalInspector(desk.engine, desk.accounts, desk.settings, clock=desk.clock)
    replicas = [
        desk.reconciler, Reconciler(desk.ledger, desk.engine, inspector, desk.settings, clock=desk.clock)
    ]  # fmt: skip
    for shown in (None, ()):
        desk.account.positions = shown
        for number in range(8):
            desk.clock.advance(60)
            replicas[number % 2].run()
    assert events(desk) == ["run_failed", "run_good_again"]


@pytest.mark.parametrize(("count", "listed"), [(30, 30), (130, 100)])
def test_run_when_it_confirms_many_drifts_then_one_alert_lists_them_and_one_ends_them(
    new_desk: NewDesk, count: int, listed: int
) -> None:
    desk = new_desk(webhook_url=URL)
    desk.account.shows(*(long(str(n), f"C{n}/USDT:USDT", "10") for n in range(1, count + 1)))
    desk.run(4)
    (alert,) = told(desk)
    assert (alert["event"], alert["count"], len(alert["drifts"])) == ("drift_confirmed", count, listed)
    assert alert["left_out"] == count - listed
    assert alert["drift"] == alert["drifts"][0]
    assert alert["drift"]["subject"] == f"C{count}/USDT:USDT", "the largest first"
    total = 10 * sum(range(1, count + 1))
    for words in (
        f"main: {count} drifts confirmed by run 2, {total:,}.00 USD in all",
        f"unknown_position bybit/main C{count}/USDT:USDT long: ledger 0, exchange {count}, {count * 10:,}.00 USD",
        f"and {count - 20} more",
        "Frozen: portfolio",
        "Do: adopt it, close it, or ignore it",
    ):
        assert words in alert["text"], alert["text"]
    desk.account.shows()
    desk.run(3)
    _, end = told(desk)
    assert (end["event"], end["count"], len(end["drifts"]), end["left_out"]) == (
        "drift_resolved", count, listed, count - listed,
    )  # fmt: skip
    assert (end["all_clear"], end["left"]) == (True, [])
    assert "All clear" in end["text"]


def test_drift_when_it_ends_and_its_coin_is_still_naked_then_it_is_no_all_clear(new_desk: NewDesk) -> None:
    """The shortfall of a liquidated perpetual is adopted: the coin's drift ends, and its position's begins."""
    desk = new_desk(webhook_url=URL)
    adopt(desk, "first")
    desk.account.shows(short("0.02"), BTC="0.02")
    desk.run(2)
    desk.account.shows(BTC="0.02")
    missing = next(drift for drift in desk.run(2).live if drift.kind == "missing_position")
    desk.reconciler.operator.act("adopt", missing.id, reason="liquidated")
    desk.run()
    end = told(desk)[-1]
    assert (end["event"], end["drift"]["kind"]) == ("drift_resolved", "legs_unequal")
    assert end["all_clear"] is False
    assert [one["kind"] for one in end["left"]] == ["legs_unequal"]
    assert "NOT all clear: of BTC there is still" in end["text"]
    assert "0.02 long against 0 short, 1,000.00 USD" in end["text"]
    assert "All clear" not in end["text"]
    desk.run()
    hedge = Leg("bybit", "BTC/USDT:USDT", "swap", "sell", D("0.02"), BTC_PRICE)
    desk.ledger.adopt(key="hedge", quantity=D("0.02"), price=BTC_PRICE, tags={"venue": "bybit"}, legs=[hedge])
    desk.account.shows(short("0.02"), BTC="0.02")
    desk.run(3)
    over = told(desk)[-1]
    assert (over["event"], over["all_clear"], over["left"]) == ("drift_resolved", True, [])


def test_drift_when_it_becomes_another_kind_then_its_end_is_no_all_clear(new_desk: NewDesk) -> None:
    desk = new_desk(webhook_url=URL)
    adopt(desk, "first")
    desk.account.shows(short("0.03"), BTC="0.02")
    desk.run(3)
    desk.account.shows(BTC="0.02")
    desk.run()
    end = next(body for body in told(desk) if body["event"] == "drift_resolved")
    assert (end["drift"]["kind"], end["drift"]["reason"]) == ("quantity_differs", "it is missing_position now")
    assert end["all_clear"] is False
    assert "missing_position" in {one["kind"] for one in end["left"]}


def test_drift_when_it_ends_while_an_account_is_out_then_the_text_says_what_is_not_known(new_desk: NewDesk) -> None:
    bybit, okx = WrittenAccount("bybit"), WrittenAccount("okx")
    desk = new_desk([bybit, okx], webhook_url=URL)
    bybit.shows(long("1", "ETH/USDT:USDT", "2000"))
    desk.run(2)
    bybit.shows()
    okx.positions = None
    desk.run()
    assert "What stands at okx/main is not known: it cannot be read." in told(desk)[-1]["text"]


def test_drift_when_others_are_of_other_coins_then_its_end_is_an_all_clear_that_counts_them(new_desk: NewDesk) -> None:
    desk = new_desk(webhook_url=URL)
    desk.account.shows(long("1", "ETH/USDT:USDT", "2000"), long("1", "SOL/USDT:USDT", "100"))
    desk.run(2)
    desk.account.shows(long("1", "SOL/USDT:USDT", "100"))
    desk.run()
    end = told(desk)[-1]
    assert (end["event"], end["all_clear"], end["left"]) == ("drift_resolved", True, [])
    assert "Of other coins 1 drift is not over" in end["text"]
    assert "Frozen: portfolio" in end["text"], "the other one still freezes"


@pytest.mark.parametrize("policy", ["record", "alert", "freeze"])
def test_alert_when_a_drift_is_of_any_kind_then_its_text_says_what_to_do(new_desk: NewDesk, policy: str) -> None:
    """Every kind that this world can show; a text that fails would lose the run with it."""
    kinds = {f"policy_{kind}": policy for kind in DRIFT_KINDS}
    desk = new_desk(webhook_url=URL, **kinds)
    adopt(desk, "first")
    desk.ledger.reserve(key="held", tags={"venue": "bybit", "symbol": "SOL"}, ttl_seconds=30)
    desk.account.shows(long("0.01"), long("1", "ETH/USDT:USDT", None), BTC="0.02", XYZ="5")
    desk.run(2)
    desk.account.shows(long("0.01"), BTC="0.01")
    desk.run(3)
    desk.account.shows(short("0.02"), BTC="0.02")
    desk.run(2)
    assert set(events(desk)) == (set() if policy == "record" else {"drift_confirmed", "drift_resolved"})
    for body in told(desk):
        for line in body["text"].splitlines():
            assert body["event"] != "drift_confirmed" or not line.startswith("- drift-") or ". Do: " in line
            assert QUOTE not in line or "balance_below_holds" in line
