"""Decisions about drifts act only on what the run saw, only at the account where it saw it, and once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Leg, WrongState
from ledger_sizer.reconcile import drifts, listings
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, long, short
from tests.support.ledgers import TAGS, assert_verified, figures, position_of, reserve_btc

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """An empty ledger and an account; one sighting confirms."""
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(500000))
    return desk


def perp_leg(quantity: str, side: str = "sell", venue: str = "bybit") -> Leg:
    return Leg(venue, PERP, "swap", side, D(quantity), D(50000))  # type: ignore[arg-type]


def adopted(desk: Desk, key: str, *legs: Leg, quantity: str = "1", **tags: str) -> str:
    """Adopt a position, and return its id."""
    made = desk.ledger.adopt(key=key, quantity=D(quantity), price=D(50000), tags=tags or TAGS, legs=legs)
    return str(made.position_id)


def own(desk: Desk) -> list[str]:
    """Return the ids of the open positions that are not external."""
    return [one.position_id for one in desk.ledger.positions("main", state="open") if "external" not in one.tags]


# --- at which account ----------------------------------------------------------------------------


def test_adopt_when_a_venue_has_two_accounts_then_a_position_of_neither_for_sure_is_left_alone(
    new_desk: NewDesk,
) -> None:
    """The newer position has no account tag. It may be at the other account, so the run counted it at neither."""
    desk = new_desk([WrittenAccount("bybit", "one"), WrittenAccount("bybit", "two")], confirmations=1)
    tagged = adopted(desk, "a", perp_leg("1"), venue="bybit", account="one")
    untagged = adopted(desk, "b", perp_leg("1"), venue="bybit")
    report = desk.run()
    assert report.run.found["unplaced"] == 1
    (missing,) = [one for one in report.live if one.kind == "missing_position"]
    assert (missing.account, missing.ledger_quantity) == ("one", 1)
    desk.reconciler.operator.adopt(missing.id, reason="closed by hand")
    assert own(desk) == [untagged]
    assert desk.ledger.position(tagged).state == "closed"
    assert desk.run().findings == ()


# --- when the ledger moved since the run ---------------------------------------------------------


def hedged(desk: Desk, quantity: str = "0.02") -> str:
    """Open a hedged position that the exchange shows, by default of 1000 USD, and return its id."""
    held = reserve_btc(desk.ledger, "hedged", ttl_seconds=30)
    desk.ledger.confirm(key="filled", position_id=position_of(held), quantity=D(quantity), price=D(50000))
    desk.account.shows(short(quantity), BTC=quantity)
    return position_of(held)


@pytest.mark.parametrize("quantity", ["0.03", "0.02"])
def test_adopt_when_the_ledger_moved_since_the_run_then_it_is_refused_and_nothing_is_touched(
    desk: Desk, quantity: str
) -> None:
    """The short is gone; its bot releases it late and opens a new one, which is not the missing one, of any size."""
    old = hedged(desk)
    desk.account.shows(BTC="0.02")
    (missing,) = [one for one in desk.run().live if one.kind == "missing_position"]
    desk.clock.advance(1)
    desk.ledger.release(key="late", position_id=old)
    new = adopted(desk, "new", perp_leg(quantity), quantity=quantity)
    seq = desk.ledger.exposure().seq
    with pytest.raises(WrongState, match=rf"moved since run 1 saw drift-1: it holds {quantity} .* reconcile again"):
        desk.reconciler.operator.adopt(missing.id, reason="closed by hand")
    assert (own(desk), desk.ledger.exposure().seq) == ([new], seq)
    desk.account.shows(short(quantity))
    assert desk.run().live == ()


def late_filled(desk: Desk, **settings: str) -> str:
    """Let a hold expire and fill after all, as the exchange shows. Returns its position id."""
    hedged(desk)
    late = reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.04"), BTC="0.04")
    return position_of(late)


def test_adopt_when_a_bot_confirmed_the_late_fill_meanwhile_then_it_is_not_counted_twice(desk: Desk) -> None:
    late = late_filled(desk)
    found = [one for one in desk.run().live if one.kind == "late_fill"]
    assert {one.subject for one in found} == {PERP, "BTC"}
    desk.ledger.confirm(key="confirmed late", position_id=late, quantity=D("0.02"), price=D(50000))
    for drift in found:
        with pytest.raises(WrongState, match="reconcile again"):
            desk.reconciler.operator.adopt(drift.id, reason="late")
    assert desk.run().live == ()
    assert figures(desk.ledger) == (0, D(2000))


def test_adopt_when_the_policy_meets_a_ledger_that_moved_then_nothing_is_adopted_twice(
    new_desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bot's late confirm arrives while the run writes its record."""
    desk = new_desk(confirmations=1, policy_late_fill="adopt")
    late = late_filled(desk)
    record = drifts.record_run

    def confirmed_meanwhile(*arguments: Any) -> Any:
        desk.ledger.confirm(key="confirmed late", position_id=late, quantity=D("0.02"), price=D(50000))
        return record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("ledger_sizer.reconcile.run.drifts.record_run", confirmed_meanwhile)
        desk.run()
    assert figures(desk.ledger) == (0, D(4000)), "twice by the run that saw neither, which says so"
    assert desk.run().live == ()
    assert figures(desk.ledger) == (0, D(2000))
    assert len(own(desk)) == 2


@pytest.mark.parametrize(("shown", "left"), [(("2.5",), "2.5"), (("7",), "7")], ids=["less", "more"])
def test_adopt_when_it_died_before_its_row_was_written_then_a_retry_finishes_it_and_does_nothing_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, shown: tuple[str, ...], left: str
) -> None:
    """Less: of 3 + 2 the newer 2 are released completely, and 0.5 of the older 3."""
    for key, quantity in (("older", "3"), ("newer", "2")):
        adopted(desk, key, perp_leg(quantity), quantity=quantity)
    desk.account.shows(short(*shown))
    (drift,) = desk.run().live
    with monkeypatch.context() as patch:
        patch.setattr("ledger_sizer.reconcile.operator.drifts.update_drifts", _dead)
        with pytest.raises(KeyboardInterrupt):
            desk.reconciler.operator.adopt(drift.id, reason="as it is")
    seq = desk.ledger.exposure().seq
    done = desk.reconciler.operator.adopt(drift.id, reason="as it is")
    assert (done.state, done.actor) == ("resolved", "embedded:embedded")
    assert sum(one.quantity or 0 for one in desk.ledger.positions("main", state="open")) == D(left)
    since = [one.command for one in desk.ledger.history(ascending=True) if (one.seq or 0) > seq]
    assert since == ["thaw"], "what the decision was is done already"
    assert desk.run().live == ()
    assert_verified(desk.ledger)


def _dead(*_arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("action", "told"), [("close", "close requested"), ("ignore", "ignored")])
def test_act_when_it_was_decided_for_another_reason_then_it_says_by_whom_and_why(
    desk: Desk, action: str, told: str
) -> None:
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    operator = desk.reconciler.operator
    done = operator.act(action, drift.id, reason="one")
    assert operator.act(action, drift.id, reason="one") == done
    with pytest.raises(WrongState, match=f"drift-1: {told} already by embedded:embedded: one"):
        operator.act(action, drift.id, reason="two")
    now = drifts.get_drift(desk.engine, drift.id)
    assert (now.actor, now.reason) == ("embedded:embedded", "one")
    events = [one for one in desk.ledger.history(command="remark") if one.binding == "drift-1"]
    assert len(events) == 2, "that it was confirmed, and one decision"


# --- sides and signs -----------------------------------------------------------------------------


def spot_leg(quantity: str, side: str = "buy") -> Leg:
    return Leg("bybit", "BTC/USDT", "spot", side, D(quantity), D(50000))  # type: ignore[arg-type]


def with_savings(new_desk: NewDesk, **policies: str) -> Desk:
    """Open a desk whose account has a baseline of 2 BTC."""
    desk = new_desk(confirmations=1, baselines={"bybit/main/BTC": D(2)}, **policies)
    desk.ledger.set_cap(key="cap", cap=D(500000))
    return desk


def legs_open(desk: Desk) -> list[tuple[str, str, Decimal]]:
    """Return (symbol, side, quantity) of the legs of the ledger's own positions."""
    positions = [one for one in desk.ledger.positions("main", state="open") if "external" not in one.tags]
    return sorted((leg.symbol, leg.side, leg.quantity) for one in positions for leg in one.legs)


def test_adopt_when_coins_of_the_savings_were_sold_then_the_policy_records_a_sale_and_is_done(
    new_desk: NewDesk,
) -> None:
    policies = {f"policy_{kind}": "adopt" for kind in ("unknown_position", "quantity_differs", "side_flipped")}
    desk = with_savings(new_desk, **policies)
    desk.account.shows(long("0.5"), BTC="1.5")
    desk.run(3)
    assert desk.run().live == ()
    assert legs_open(desk) == [("BTC", "sell", D("0.5")), (PERP, "buy", D("0.5"))]
    assert figures(desk.ledger) == (0, D(25000)), "the contract hedges the sale, so they count once"


@pytest.mark.parametrize(("shown", "side"), [("0.5", "sell"), ("1.4", "sell"), ("2.3", "buy")], ids=str)
def test_adopt_when_the_ledger_sold_coins_of_the_savings_then_it_says_what_the_exchange_shows(
    new_desk: NewDesk, shown: str, side: str
) -> None:
    """The ledger sold 1 of the 2. The exchange shows that 1.5 or 0.6 were sold, or that 0.3 were bought."""
    desk = with_savings(new_desk)
    adopted(desk, "sold", spot_leg("1", "sell"))
    desk.account.shows(BTC=shown)
    (drift,) = desk.run().live
    counted = [leg.side for one in desk.ledger.positions("main", tags={"external": "exchange"}) for leg in one.legs]
    assert counted == ([side] if drift.excess else [])
    desk.reconciler.operator.adopt(drift.id, reason="as it is")
    assert desk.run().findings == ()
    assert {leg[1] for leg in legs_open(desk)} == {side}
    assert figures(desk.ledger) == (0, 50000 * abs(D(shown) - 2))


def test_adopt_when_coins_were_bought_and_the_exchange_shows_savings_sold_then_the_purchase_is_given_up(
    new_desk: NewDesk,
) -> None:
    desk = with_savings(new_desk, policy_side_flipped="adopt")
    adopted(desk, "bought", spot_leg("1"))
    desk.account.shows(BTC="1.5")
    (drift,) = desk.run().resolved or listings.list_drifts(desk.engine)
    assert (drift.kind, drifts.get_drift(desk.engine, drift.id).state) == ("side_flipped", "resolved")
    assert desk.run().findings == ()
    assert legs_open(desk) == [("BTC", "sell", D("0.5"))]


def test_adopt_when_a_side_flipped_then_the_other_side_is_given_up_with_it(desk: Desk) -> None:
    """A close was sent twice: short 1 in the ledger, long 0.4 at the exchange."""
    adopted(desk, "short", perp_leg("1"))
    desk.account.shows(long("0.4"))
    flipped = {one.side: one for one in desk.run().live}
    assert {one.kind for one in flipped.values()} == {"side_flipped"}
    desk.reconciler.operator.adopt(flipped["long"].id, reason="closed twice")
    assert legs_open(desk) == [(PERP, "buy", D("0.4"))]
    report = desk.run()
    assert (report.findings, [one.id for one in report.resolved]) == ((), [flipped["short"].id])
    assert_verified(desk.ledger)


def test_adopt_when_the_other_side_of_a_flip_moved_then_nothing_is_given_up_or_added(desk: Desk) -> None:
    old = adopted(desk, "short", perp_leg("1"))
    desk.account.shows(long("0.4"))
    flipped = {one.side: one for one in desk.run().live}
    desk.ledger.release(key="late", position_id=old)
    new = adopted(desk, "next", perp_leg("0.7"), quantity="0.7")
    with pytest.raises(WrongState, match="reconcile again"):
        desk.reconciler.operator.adopt(flipped["long"].id, reason="closed twice")
    assert own(desk) == [new]


def test_adopt_when_the_other_side_of_a_flip_was_decided_before_then_the_rest_is_added(desk: Desk) -> None:
    adopted(desk, "short", perp_leg("1"))
    desk.account.shows(long("0.4"))
    flipped = {one.side: one for one in desk.run().live}
    for side in ("short", "long"):
        desk.reconciler.operator.adopt(flipped[side].id, reason="closed twice")
    assert legs_open(desk) == [(PERP, "buy", D("0.4"))]
    assert desk.run().findings == ()


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "leg", "shown"),
    [("1", "3", "2.9"), ("3", "6", "5"), ("7", "3", "2.7"), ("3", "7", "6.9"), ("1", "1", "0.3"), ("9", "11", "0.001")],
)
def test_adopt_when_a_leg_is_no_even_share_of_its_position_then_exactly_what_the_exchange_shows_is_left(
    new_desk: NewDesk, quantity: str, leg: str, shown: str
) -> None:
    desk = new_desk(confirmations=1, tolerance=D(0))
    adopted(desk, "a", perp_leg(leg), quantity=quantity)
    desk.account.shows(short(shown))
    (drift,) = desk.run().live
    desk.reconciler.operator.adopt(drift.id, reason="closed in part")
    assert legs_open(desk) == [(PERP, "sell", D(shown))]
    report = desk.run()
    assert (report.findings, report.run.found) == ((), {"agrees": 1})


def test_adopt_when_an_exchange_shows_more_digits_than_a_leg_keeps_then_the_ledger_is_within_one_of_them(
    desk: Desk,
) -> None:
    shown = "2." + "9" * 24
    adopted(desk, "a", perp_leg("3.5"))
    desk.account.shows(short(shown))
    (drift,) = desk.run().live
    desk.reconciler.operator.adopt(drift.id, reason="closed in part")
    ((_, _, left),) = legs_open(desk)
    assert abs(left - D(shown)) < D("1e-18")
    assert desk.run().run.found == {"within_tolerance": 1}
