"""Ignored drifts stay ignored beside the bots' trades. Scopes thaw when no drift requires the freeze, not before."""

from __future__ import annotations

from contextvars import Context
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.model.reconciliation import Drift, Report
from ledger_sizer.reconcile import drifts
from tests.support.accounts import PERP, Desk, NewDesk, adopt, hedged_desks, long, short
from tests.support.ledgers import BTC_PRICE, figures, position_of, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal
ETH_PERP = "ETH/USDT:USDT"


@pytest.fixture
def opened(new_desk: NewDesk) -> NewDesk:
    """A desk over these accounts, with a hedged position of 0.02 BTC at 50,000 USD that both sides know."""
    return hedged_desks(new_desk, lambda desk: adopt(desk, "first"), cap_usd=5_000_000)


def first(desk: Desk) -> str:
    return desk.ledger.positions("main", state="open")[0].position_id


def ignored(desk: Desk) -> Drift:
    """Ignore everything found now, and return the drift about coins."""
    for drift in desk.run(2).live:
        desk.reconciler.operator.ignore(drift.id, reason="known")
    (about_coins,) = [one for one in desk.run().live if (one.subject, one.side) == ("BTC", "long")]
    return about_coins


def coins(report: Report) -> list[tuple[str, str, Decimal]]:
    """Return (kind, state, excess) of the drifts about coins."""
    return [(one.kind, one.state, one.excess) for one in report.live if (one.subject, one.side) == ("BTC", "long")]


def is_frozen(desk: Desk) -> bool:
    return desk.ledger.exposure("main").whole.frozen


# --- ignored drifts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("savings", ["0.5", "0.02", "0.01"], ids=["less", "as much as was closed", "a lack"])
def test_reconcile_when_a_run_falls_between_a_close_and_its_release_then_ignored_savings_stay_ignored(
    opened: NewDesk, savings: str
) -> None:
    desk = opened()
    desk.account.shows(short("0.02"), BTC=str(D("0.02") + D(savings)))
    known = ignored(desk)
    desk.account.shows(BTC=savings)
    desk.run()
    desk.clock.advance(3)
    desk.ledger.release(key="released", position_id=first(desk))
    report = desk.run(3)
    assert [(one.id, one.state, one.excess) for one in report.live] == [(known.id, "acknowledged", D(savings))]
    assert not is_frozen(desk)
    assert figures(desk.ledger) == (D(0), D(0))


def test_reconcile_when_a_hold_fills_before_it_is_confirmed_then_an_ignored_lack_stays_ignored(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.shows(short("0.02"))
    known = ignored(desk)
    held = position_of(reserve_btc(desk.ledger, "next", ttl_seconds=500))
    desk.account.shows(short("0.04"), BTC="0.02")
    desk.run()
    desk.ledger.confirm(key="filled", position_id=held, quantity=D("0.02"), price=BTC_PRICE)
    assert known.id in [one.id for one in desk.run(3).live if one.state == "acknowledged"]
    assert not is_frozen(desk)


def test_reconcile_when_every_run_falls_into_another_close_then_ignored_savings_stay_ignored(opened: NewDesk) -> None:
    desk = opened()
    positions = [first(desk), *(adopt(desk, f"more/{number}") for number in range(3))]
    desk.account.shows(short("0.08"), BTC="0.58")
    known = ignored(desk)
    for number, position in enumerate(positions, 1):
        left = D("0.08") - number * D("0.02")
        desk.account.shows(*([short(str(left))] if left else []), BTC=str(left + D("0.5")))
        assert coins(desk.run()) == [("quantity_differs", "acknowledged", D("0.5"))]
        desk.clock.advance(3)
        desk.ledger.release(key=f"released/{number}", position_id=position)
    assert [(one.id, one.state) for one in desk.run().live] == [(known.id, "acknowledged")]
    assert not is_frozen(desk)


@pytest.mark.parametrize("confirmations", [1, 2, 3])
def test_reconcile_when_ignored_savings_are_less_for_good_then_the_rest_is_a_new_drift_after_so_many_runs(
    opened: NewDesk, confirmations: int
) -> None:
    desk = opened(confirmations=confirmations)
    desk.account.shows(short("0.02"), BTC="0.52")
    desk.run()
    known = ignored(desk)
    desk.account.shows(short("0.02"), BTC="0.22")
    for _ in range(confirmations - 1):
        assert coins(desk.run()) == [("quantity_differs", "acknowledged", D("0.5"))]
    report = desk.run()
    assert [one.id for one in report.resolved] == [known.id]
    assert coins(report) == [("quantity_differs", "confirmed" if confirmations == 1 else "open", D("0.2"))]
    assert figures(desk.ledger, "external=exchange") == (D(0), D("0.2") * BTC_PRICE)
    said = [desk.ledger.explain(one.seq or 0).data["request"] for one in desk.ledger.history(command="remark")]
    assert (known.name, "resolved") in [(one["about"], one["event"]) for one in said]


def test_reconcile_when_ignored_savings_are_gone_for_a_run_and_there_again_then_the_count_begins_anew(
    opened: NewDesk,
) -> None:
    desk = opened()
    desk.account.shows(short("0.02"), BTC="0.52")
    known = ignored(desk)
    for _ in range(3):
        desk.account.shows(short("0.02"), BTC="0.02")
        desk.run()
        desk.account.shows(short("0.02"), BTC="0.52")
        assert [(one.id, one.state) for one in desk.run().live] == [(known.id, "acknowledged")]
    desk.account.shows(short("0.02"), BTC="0.02")
    assert desk.run(2).live == ()


@pytest.mark.parametrize("between", ["0.52", "0.22"], ids=["was whole", "was less"])
def test_reconcile_when_more_is_there_than_was_ignored_then_it_is_counted_at_once(
    opened: NewDesk, between: str
) -> None:
    desk = opened()
    desk.account.shows(short("0.02"), BTC="0.52")
    known = ignored(desk)
    desk.account.shows(short("0.02"), BTC=between)
    desk.run()
    desk.account.shows(short("0.02"), BTC="0.72")
    report = desk.run()
    assert [one.id for one in report.resolved] == [known.id]
    assert coins(report) == [("quantity_differs", "open", D("0.7"))]
    assert figures(desk.ledger, "external=exchange") == (D(0), D("0.7") * BTC_PRICE)


def test_reconcile_when_coins_are_sold_where_bought_ones_were_ignored_then_they_are_counted_at_once(
    opened: NewDesk,
) -> None:
    desk = opened(baselines={"bybit/main/BTC": "2"})
    desk.account.shows(short("0.02"), BTC="2.52")
    ignored(desk)
    desk.account.shows(short("0.02"), BTC="1.5")
    assert coins(desk.run()) == [("side_flipped", "open", D("0.5"))]
    assert figures(desk.ledger, "external=exchange") == (D(0), D("0.5") * BTC_PRICE)


# --- freezes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["record_run", "freezing_drifts"])
def test_ignore_when_a_run_has_recorded_the_freeze_and_not_sent_it_yet_then_nothing_stays_frozen(
    opened: NewDesk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    desk = opened()
    desk.account.shows(short("0.03"), BTC="0.02")
    (drift, *_) = [one for one in desk.run().live if one.excess]
    real = getattr(drifts, name)
    reads = 0

    def decided_meanwhile(*arguments: Any) -> Any:
        nonlocal reads
        result = real(*arguments)
        reads += 1
        if name == "record_run" or reads == 2:  # the second read decides what to freeze
            monkeypatch.setattr(drifts, name, real)
            # As another process would: not under the lease of this run.
            Context().run(lambda: desk.reconciler.operator.ignore(drift.id, reason="known"))
        return result

    monkeypatch.setattr(drifts, name, decided_meanwhile)
    desk.run()
    assert drifts.get_drift(desk.engine, drift.id).state == "acknowledged"
    assert getattr(drifts, name) is real
    assert not is_frozen(desk)
    desk.account.shows(short("0.02"), BTC="0.02")
    assert desk.run(3).live == ()
    assert not is_frozen(desk)


def test_ignore_when_a_run_freezes_for_another_drift_just_before_the_thaw_then_it_stays_frozen(
    opened: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = opened(confirmations=1)
    desk.account.shows(short("0.03"), BTC="0.02")
    (drift, *_) = [one for one in desk.run().live if one.excess]
    desk.account.shows(short("0.03"), long("1", ETH_PERP, "2000"), BTC="0.02")
    frozen = drifts.freezing_drifts

    def run_meanwhile(*arguments: Any) -> Any:
        found = frozen(*arguments)
        monkeypatch.setattr(drifts, "freezing_drifts", frozen)
        desk.run()
        return found

    monkeypatch.setattr(drifts, "freezing_drifts", run_meanwhile)
    desk.reconciler.operator.ignore(drift.id, reason="known")
    (other,) = [one for one in desk.run().live if one.live and one.frozen_scope]
    assert other.subject == ETH_PERP
    assert is_frozen(desk), "1 ETH is there that nobody knows"
    desk.account.shows(short("0.03"), BTC="0.02")
    desk.run()
    assert not is_frozen(desk)


@pytest.mark.parametrize("scope", ["portfolio", "venue"])
def test_reconcile_when_a_drift_was_thawed_by_hand_then_it_keeps_no_other_freeze_alive(
    opened: NewDesk, scope: str
) -> None:
    desk = opened(freeze_scope=scope)
    name = "venue=bybit" if scope == "venue" else "portfolio"

    def stopped() -> bool:
        return any(one.frozen for one in desk.ledger.exposure("main").scopes if one.scope == name)

    desk.account.shows(short("0.03"), BTC="0.02")
    desk.run(2)
    assert stopped()
    desk.ledger.thaw(key="elsewhere", scope="venue=okx")
    desk.ledger.thaw(key="by hand", scope=name)
    desk.run()
    assert not stopped(), "thawed by hand it stays thawed"
    for turn in range(2):
        desk.account.shows(short("0.03"), short(str(1 + turn), ETH_PERP, "2000"), BTC="0.02")
        desk.run(2)
        assert stopped(), "another one freezes"
        desk.account.shows(short("0.03"), BTC="0.02")
        desk.run()
        assert not stopped(), "and thaws when it is over"


def test_reconcile_when_one_of_two_that_froze_is_over_then_it_stays_frozen_for_the_other(opened: NewDesk) -> None:
    desk = opened()
    desk.account.shows(short("0.03"), short("1", ETH_PERP, "2000"), BTC="0.02")
    desk.run(2)
    desk.ledger.thaw(key="elsewhere", scope="venue=bybit")
    desk.account.shows(short("0.03"), BTC="0.02")
    desk.run()
    assert is_frozen(desk)
    desk.account.shows(short("0.02"), BTC="0.02")
    desk.run()
    assert not is_frozen(desk)


def test_reconcile_when_nobody_used_the_portfolio_yet_then_it_is_frozen_from_the_run_after_the_first_use(
    new_desk: NewDesk,
) -> None:
    desk = new_desk(confirmations=1)
    desk.account.shows(DOGE="1000000")
    desk.run()
    assert desk.ledger.portfolios() == []
    desk.ledger.set_cap(key="cap", cap=D(1000))
    desk.run()
    assert is_frozen(desk)


# --- what is counted now ---------------------------------------------------------------------------------


def test_reconcile_when_what_had_no_price_is_counted_then_it_thaws_under_every_policy_but_freeze(
    opened: NewDesk,
) -> None:
    desk = opened(policy_unknown_position="record")
    desk.account.shows(short("0.02"), BTC="0.02", ETH="2")
    desk.run(2)
    assert is_frozen(desk)
    desk.account.shows(short("0.02"), long("0.001", ETH_PERP, "2000"), BTC="0.02", ETH="2")
    (drift,) = [one for one in desk.run().live if one.subject == "ETH"]
    assert (drift.state, drift.price, drift.frozen_scope) == ("confirmed", D(2000), None)
    assert figures(desk.ledger, "external=exchange") == (D(0), D(4002))
    assert not is_frozen(desk)


def test_reconcile_when_a_drift_asks_again_for_what_it_froze_before_then_it_freezes_again(opened: NewDesk) -> None:
    """Its policy changes to and fro, as when two replicas have different settings."""
    strict = opened(policy_quantity_differs="freeze")
    lenient = opened([strict.account], policy_quantity_differs="record")
    strict.account.shows(short("0.5"), BTC="0.02")
    for turn in range(3):
        strict.run(2)
        assert is_frozen(strict), f"turn {turn}"
        (drift,) = [one for one in lenient.run(2).live if one.kind == "quantity_differs"]
        assert (drift.subject, drift.frozen_scope) == (PERP, None)
        assert not is_frozen(strict), f"turn {turn}"


# --- close requests ----------------------------------------------------------------------------------------


def test_reconcile_when_more_is_there_than_was_asked_to_be_closed_then_it_is_asked_again(opened: NewDesk) -> None:
    desk = opened(policy_quantity_differs="close")

    def requests(shown: str, runs: int = 2) -> int:
        desk.account.shows(short(shown), BTC="0.02")
        desk.run(runs)
        said = [desk.ledger.explain(one.seq or 0).data["request"] for one in desk.ledger.history(command="remark")]
        return sum(one["event"] == "close_requested" for one in said)

    assert requests("0.03") == 1, "0.01 too much"
    assert requests("5.03") == 2, "5.01 too much"
    assert requests("2.03") == 2, "it is being closed"
    assert requests("4.03") == 2, "less than what was asked for"
    assert requests("5.0300001") == 2, "within the tolerance"
    assert requests("6.02") == 3
    assert figures(desk.ledger, "external=exchange") == (D(0), 6 * BTC_PRICE)


def test_reconcile_when_what_was_asked_to_be_closed_had_no_price_then_it_is_asked_again_once_more_is_counted(
    opened: NewDesk,
) -> None:
    desk = opened(policy_unknown_position="close")
    events = []
    for shown, *positions in (("2", short("0.02")), ("2", short("0.02"), long("0.001", ETH_PERP, "2000")), ("3",)):
        desk.account.shows(*(positions or [short("0.02")]), BTC="0.02", ETH=shown)
        report = desk.run(3)
        (drift,) = [one for one in report.live if one.subject == "ETH"]
        said = [one for one in desk.ledger.history(command="remark") if one.binding == drift.name]
        events.append(len(said) - 1)
    assert events == [1, 1, 2], "and that it was confirmed"
