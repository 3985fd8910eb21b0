"""Adopting one side of a hedge adopts both: one position that counts once, with tags, and both drifts are decided."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest

from ledger_sizer import InvalidRequest, KeyReused, Leg, Position, WrongState
from ledger_sizer.model.caller import Caller, calling_as
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.reconcile import drifts
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, long, short
from tests.support.ledgers import BTC_PRICE, figures, reserve_btc

D = Decimal


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """An empty ledger with room for 1,500 USD, and an account that shows a hedge of 0.02 BTC, 1,000 USD."""
    desk = new_desk()
    desk.ledger.set_cap(key="cap", cap=D(1500))
    desk.account.shows(short("0.02"), BTC="0.02")
    return desk


def found(desk: Desk, runs: int = 2) -> list[Drift]:
    """Run until confirmed, and return the live drifts, oldest first."""
    return sorted(desk.run(runs).live, key=lambda one: one.id)


def own(desk: Desk) -> list[Position]:
    return [one for one in desk.ledger.positions("main", state="open") if "external" not in one.tags]


def legs_of(position: Position) -> list[tuple[str, str | None, str, str, Decimal]]:
    return [(leg.venue, leg.account, leg.symbol, leg.side, leg.quantity) for leg in position.legs]


def state_of(desk: Desk, drift: Drift) -> tuple[str, str | None]:
    now = drifts.get_drift(desk.engine, drift.id)
    return now.state, now.reason


@pytest.mark.parametrize("named", [0, 1], ids=["coins", "perpetual"])
def test_adopt_when_another_drift_is_the_other_side_then_one_position_has_both_and_counts_once(
    desk: Desk, named: int
) -> None:
    both = found(desk)
    assert figures(desk.ledger) == (0, D(2000)), "until somebody decides, each side counts"
    operator = desk.reconciler.operator
    operator.act("adopt", both[named].id, reason="ours", tags={"strategy": "carry"})
    assert figures(desk.ledger) == (0, D(1000)), "before any other run"
    assert figures(desk.ledger, "external=exchange") == (0, 0)
    assert figures(desk.ledger, "strategy=carry") == (0, D(1000))
    (position,) = own(desk)
    assert legs_of(position) == [
        ("bybit", "main", "BTC", "buy", D("0.02")), ("bybit", "main", PERP, "sell", D("0.02")),
    ]  # fmt: skip
    assert dict(position.tags) == {"venue": "bybit", "account": "main", "symbol": "BTC", "strategy": "carry"}
    assert [state_of(desk, one) for one in both] == [("resolved", "ours")] * 2
    assert reserve_btc(desk.ledger, "next", dry_run=True).budget == 500, "nothing is frozen any more"
    told = [one for one in desk.ledger.history(command="remark") if one.key.endswith(":adopted")]
    assert {one.binding for one in told} == {one.name for one in both}
    assert desk.run(2).findings == ()


def test_adopt_when_the_other_side_was_adopted_with_it_then_the_same_decision_again_changes_nothing(
    desk: Desk,
) -> None:
    first, second = found(desk)
    operator = desk.reconciler.operator
    operator.act("adopt", first.id, reason="ours", tags={"strategy": "carry"})
    seq = desk.ledger.exposure().seq
    for drift, tags in ((second, {"strategy": "carry"}), (second, {}), (first, {})):
        assert operator.act("adopt", drift.id, reason="ours", tags=tags).state == "resolved"
    assert desk.ledger.exposure().seq == seq
    with pytest.raises(WrongState, match=r"adopted already, with the tags .*strategy=carry.*; .*retag"):
        operator.act("adopt", second.id, reason="ours", tags={"strategy": "basis"})
    with pytest.raises(WrongState, match="resolved already: ours"):
        operator.act("adopt", second.id, reason="mine")
    with calling_as(Caller("api:1:eve", "eve")), pytest.raises(WrongState, match="resolved already: ours"):
        operator.act("adopt", second.id, reason="ours")


def test_adopt_when_it_died_before_its_rows_were_written_then_a_retry_of_either_side_finishes_both(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = found(desk)
    with monkeypatch.context() as patch:
        patch.setattr("ledger_sizer.reconcile.operator.drifts.update_drifts", _dead)
        with pytest.raises(KeyboardInterrupt):
            desk.reconciler.operator.act("adopt", both[0].id, reason="ours")
    assert [state_of(desk, one)[0] for one in both] == ["confirmed"] * 2
    desk.reconciler.operator.act("adopt", both[1].id, reason="ours")
    assert [state_of(desk, one) for one in both] == [("resolved", "ours")] * 2
    assert figures(desk.ledger) == (0, D(1000))


def _dead(*_arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("reason", ["ours", "mine"])
def test_adopt_when_the_other_side_is_adopted_at_the_same_moment_then_the_hedge_counts_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    both = found(desk)
    operator, submit = desk.reconciler.operator, desk.ledger.submit

    def overtaken(*arguments: object, **options: object) -> object:
        monkeypatch.undo()
        operator.act("adopt", both[1].id, reason="ours")
        return submit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.ledger, "submit", overtaken)
    if reason == "ours":
        operator.act("adopt", both[0].id, reason=reason)
    else:
        with pytest.raises((KeyReused, WrongState)):
            operator.act("adopt", both[0].id, reason=reason)
    assert figures(desk.ledger) == (0, D(1000))
    assert [state_of(desk, one) for one in both] == [("resolved", "ours")] * 2


@pytest.mark.one_engine
def test_adopt_when_this_side_alone_is_wanted_then_the_other_stays_and_may_be_adopted_too(desk: Desk) -> None:
    first, second = found(desk)
    operator = desk.reconciler.operator
    operator.act("adopt", first.id, reason="ours", pair=False)
    assert state_of(desk, second)[0] == "confirmed"
    assert figures(desk.ledger, "external=exchange") == (0, D(1000))
    operator.act("adopt", second.id, reason="ours")
    assert [len(one.legs) for one in own(desk)] == [1, 1], "two positions, as it was decided"
    assert figures(desk.ledger) == (0, D(2000))
    assert desk.run(2).findings == ()


@pytest.mark.one_engine
def test_adopt_when_the_hedge_is_at_two_venues_then_each_leg_is_where_it_is_and_its_end_is_told(
    new_desk: NewDesk,
) -> None:
    accounts = [WrittenAccount("bybit", "one"), WrittenAccount("okx", "two")]
    desk = new_desk(accounts)
    desk.ledger.set_cap(key="cap", cap=D(1500))
    accounts[0].shows(long("0.02"))
    accounts[1].shows(short("0.03"))
    drift, _ = found(desk)
    desk.reconciler.operator.act("adopt", drift.id, reason="ours")
    assert figures(desk.ledger) == (0, D(1500))
    hedge, rest = own(desk)
    assert legs_of(hedge) == [("bybit", "one", PERP, "buy", D("0.02")), ("okx", "two", PERP, "sell", D("0.02"))]
    assert hedge.tags.values_of("venue") == ("bybit", "okx")
    assert legs_of(rest) == [("okx", None, PERP, "sell", D("0.01"))]
    assert rest.tags.only("account") == "two"
    assert desk.run(2).findings == ()
    accounts[1].shows(short("0.01"))
    assert "legs_unequal" in {one.kind for one in desk.run(2).live}, "deleveraged: the other venue is naked"


def doge(side: str, quantity: str) -> list[object]:
    maker = {"long": long, "short": short}[side]
    return [maker(quantity, "DOGE/USDT:USDT", "0.1")]


@pytest.mark.one_engine
@pytest.mark.parametrize("case", ["other coin", "same side", "other run", "ignored", "late fill"])
def test_adopt_when_nothing_hedges_it_then_it_is_a_position_of_one_side(new_desk: NewDesk, case: str) -> None:
    other = WrittenAccount("okx")
    desk = new_desk([WrittenAccount("bybit"), other], expired_seconds=3600)
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    desk.account.shows(short("0.02"))
    if case == "late fill":
        legs = {"price": BTC_PRICE, "ttl_seconds": 5, "tags": {"venue": "okx", "symbol": "BTC"}}
        desk.ledger.reserve(key="late", **legs)  # type: ignore[arg-type]
        desk.clock.advance(6)
        desk.ledger.sweep()
    shown: Sequence[object] = [short("0.02")] if case == "same side" else [long("0.02")]
    other.shows(*(doge("long", "1000") if case == "other coin" else shown))  # type: ignore[arg-type]
    drift, second = [one for one in found(desk) if one.excess]
    if case == "ignored":
        desk.reconciler.operator.ignore(second.id, reason="not ours")
    if case == "other run":
        other.positions = None
        desk.run()
    desk.reconciler.operator.act("adopt", drift.id, reason="ours")
    (position,) = [one for one in own(desk) if one.state == "open"]
    assert legs_of(position) == [("bybit", None, PERP, "sell", D("0.02"))]
    assert state_of(desk, second)[0] == ("acknowledged" if case == "ignored" else "confirmed")


@pytest.mark.one_engine
def test_adopt_when_the_other_side_was_adopted_alone_before_then_it_is_not_refused(desk: Desk) -> None:
    desk.account.shows(short("0.02"))
    (alone,) = found(desk)
    desk.reconciler.operator.act("adopt", alone.id, reason="first")
    desk.account.shows(short("0.02"), BTC="0.02")
    (second,) = [one for one in found(desk) if one.excess]
    desk.reconciler.operator.act("adopt", second.id, reason="later")
    assert figures(desk.ledger) == (0, D(2000))
    assert desk.run(2).findings == ()


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"venue": "okx"}, "tags.venue is okx, but what is taken over has bybit; leave it out"),
        ({"symbol": "ETH"}, "tags.symbol is ETH, but what is taken over has BTC"),
        ({"account": ["main", "two"]}, "tags.account is main and two"),
        ({"external": "exchange"}, "the tag 'external' is the reconciliation's own"),
        ({"strategy": "*"}, "cannot be '\\*'"),
    ],
)
def test_adopt_when_tags_contradict_its_markets_then_nothing_is_recorded(
    desk: Desk, tags: dict[str, str], told: str
) -> None:
    drift, _ = found(desk)
    seq = desk.ledger.exposure().seq
    with pytest.raises(InvalidRequest, match=told) as refused:
        desk.reconciler.operator.act("adopt", drift.id, reason="ours", tags=tags)
    assert refused.value.field == f"tags.{next(iter(tags))}"
    assert desk.ledger.exposure().seq == seq
    fine = {"symbol": "BTC/USDT", "venue": "bybit", "bot": "a"}
    desk.reconciler.operator.act("adopt", drift.id, reason="ours", tags=fine)
    assert own(desk)[0].tags.only("symbol") == "BTC"


@pytest.mark.one_engine
def test_adopt_when_nothing_becomes_a_position_then_tags_are_refused(desk: Desk) -> None:
    drift, _ = found(desk)
    operator = desk.reconciler.operator
    operator.act("adopt", drift.id, reason="ours")
    desk.account.shows(short("0.02"))
    (missing,) = [one for one in found(desk) if one.kind == "missing_position"]
    with pytest.raises(InvalidRequest, match="is missing_position: nothing becomes a position"):
        operator.act("adopt", missing.id, reason="gone", tags={"strategy": "carry"})
    with pytest.raises(InvalidRequest, match="tags is for adopt, not for ignore"):
        operator.act("ignore", missing.id, reason="gone", tags={"strategy": "carry"})


@pytest.mark.one_engine
@pytest.mark.parametrize("second_kind", ["unknown_position", "quantity_differs"])
def test_adopt_when_a_policy_does_it_then_both_sides_are_one_position_too(
    new_desk: NewDesk, second_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    desk = new_desk(policy_unknown_position="adopt", policy_quantity_differs="adopt")
    desk.ledger.set_cap(key="cap", cap=D(100_000))
    before = D(0)
    if second_kind == "quantity_differs":
        leg = Leg("bybit", "BTC", "spot", "buy", D("0.01"), BTC_PRICE)
        desk.ledger.adopt(key="own", quantity=D("0.01"), price=BTC_PRICE, tags={"venue": "bybit"}, legs=[leg])
        before = D("0.01")
    desk.account.shows(short("0.02"), BTC=str(D("0.02") + before))
    report = desk.run(2)
    assert [one for one in report.live if one.excess] == []
    assert [len(one.legs) for one in own(desk)][-1] == 2
    assert figures(desk.ledger) == (0, D(1000) + before * BTC_PRICE)
    assert "policy_failed" not in caplog.text


# --- many at once ------------------------------------------------------------------------------------


def many(desk: Desk, coins: int) -> list[int]:
    """Show so many hedges of 100 USD, and return the numbers of their drifts."""
    names = [f"C{number}" for number in range(coins)]
    perps = [short("10", f"{name}/USDT:USDT", "10") for name in names]
    desk.account.shows(*perps, **dict.fromkeys(names, "10"))
    return [one.id for one in found(desk)]


def test_adopt_all_when_drifts_hedge_each_other_then_each_hedge_is_one_position(desk: Desk) -> None:
    ids = many(desk, 15)
    assert len(ids) == 30
    planned = desk.reconciler.operator.act_all("adopt", ids, reason="day one", dry_run=True)
    assert sum(one.words.startswith("adopt buy 10") for one in planned.items) == 15
    assert sum(one.words.endswith("which it hedges") for one in planned.items) == 15
    done = desk.reconciler.operator.act_all("adopt", ids, reason="day one", tags={"strategy": "carry"})
    assert {one.outcome for one in done.items} == {"done"}
    assert {len(one.legs) for one in own(desk)} == {2}
    assert figures(desk.ledger) == figures(desk.ledger, "strategy=carry") == (0, D(1500))
    again = desk.reconciler.operator.act_all("adopt", ids, reason="day one", tags={"strategy": "carry"})
    assert {one.outcome for one in again.items} == {"repeated"}
    other = desk.reconciler.operator.act_all("adopt", ids[:1], reason="day one", tags={"strategy": "basis"})
    assert [one.outcome for one in other.items] == ["refused"]
    single = desk.reconciler.operator.act("adopt", ids[-1], reason="day one")
    assert single.state == "resolved"
    assert desk.run(2).findings == ()


@pytest.mark.one_engine
def test_adopt_all_when_one_side_is_named_then_its_hedge_is_decided_too(desk: Desk) -> None:
    ids = many(desk, 2)
    done = desk.reconciler.operator.act_all("adopt", ids[:1], reason="day one")
    assert len(done.items) == 2
    assert figures(desk.ledger) == (0, D(300)), "one hedge, and both sides of the other"
    alone = desk.reconciler.operator.act_all("adopt", ids, reason="day one", pair=False)
    assert sorted(one.outcome for one in alone.items) == ["done", "done", "repeated", "repeated"]
    assert sorted(len(one.legs) for one in own(desk)) == [1, 1, 2]


@pytest.mark.one_engine
def test_adopt_all_when_the_commit_of_a_hedge_is_refused_then_no_side_is_adopted_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = many(desk, 2)
    submit = desk.ledger.submit

    def refused(commands: Sequence[object], **options: object) -> object:
        if any("symbol" in getattr(one, "tags", {}) and one.tags["symbol"] == "C0" for one in commands):  # type: ignore[attr-defined]
            raise WrongState("something moved")
        return submit(commands, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.ledger, "submit", refused)
    done = desk.reconciler.operator.act_all("adopt", ids, reason="day one")
    assert sorted(one.outcome for one in done.items) == ["done", "done", "refused", "refused"]
    assert [len(one.legs) for one in own(desk)] == [2]
