"""A decision about many drifts: each is decided independently, dependent ones see each other, none is done twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from decimal import Decimal
from multiprocessing import get_context
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Leg
from ledger_sizer.model.drift_outcomes import DriftOutcomes
from ledger_sizer.reconcile import bulk, drifts
from tests.support.accounts import PERP, Desk, NewDesk, WrittenAccount, long, short
from tests.support.ledgers import TAGS, assert_verified, figures, position_of, reserve_btc

D = Decimal
one_engine = pytest.mark.one_engine
COINS = ("ADA", "BNB", "DOT", "ETH", "LTC", "SOL")


def perp_of(coin: str) -> str:
    return f"{coin}/USDT:USDT"


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """An empty ledger and an account; one sighting confirms."""
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    return desk


def unknown(desk: Desk, coins: tuple[str, ...] = COINS) -> list[int]:
    """Let the account show 1 of each coin that the ledger does not have, at 100 USD. Returns the drifts."""
    desk.account.shows(*(long("1", perp_of(coin), "100") for coin in coins))
    return [drift.id for drift in desk.run().live]


def act_all(desk: Desk, action: str, ids: list[int], reason: str = "taken over", **options: Any) -> DriftOutcomes:
    return desk.reconciler.operator.act_all(action, ids, reason=reason, **options)


def outcomes(found: DriftOutcomes) -> dict[int, str]:
    return {one.drift_id: one.outcome for one in found.items}


def adopted(desk: Desk, key: str, *legs: Leg, quantity: str, **tags: str) -> str:
    made = desk.ledger.adopt(key=key, quantity=D(quantity), price=D(100), tags=tags or TAGS, legs=legs)
    return position_of(made)


def leg(symbol: str, side: str, quantity: str, venue: str = "bybit") -> Leg:
    kind = "swap" if ":" in symbol else "spot"
    return Leg(venue, symbol, kind, side, D(quantity), D(100))  # type: ignore[arg-type]


def test_act_all_when_one_is_refused_then_the_others_are_done_each_with_its_own_remarks(desk: Desk) -> None:
    ids = unknown(desk)
    desk.reconciler.operator.act("ignore", ids[2], reason="not ours")
    assert desk.ledger.exposure().whole.frozen
    found = act_all(desk, "close", [*ids, 99])
    assert outcomes(found) == {**dict.fromkeys(ids, "done"), ids[2]: "refused", 99: "refused"}
    assert (found.refused, found.usd) == (2, D(500))
    refused = {one.drift_id: (one.error, one.words) for one in found.items if one.outcome == "refused"}
    assert refused[99] == ("not_found", "no drift 99")
    assert "was ignored by embedded:embedded (not ours)" in refused[ids[2]][1]
    assert outcomes(act_all(desk, "adopt", ids)) == dict.fromkeys(ids, "done")
    assert not desk.ledger.exposure().whole.frozen
    for portfolio, events in (("main", {"adopted", "close_requested"}), ("*", {"adopted", "closed"})):
        said = [one for one in desk.ledger.history(portfolio, command="remark", limit=1000) if one.actor != "reconcile"]
        about = {(one.binding, _event(one)) for one in said}
        assert {(f"drift-{one}", event) for one in ids if one != ids[2] for event in events} <= about
    assert desk.run().live == ()
    assert figures(desk.ledger) == (0, D(600))


def _event(decision: Any) -> str:
    return next(event for event in ("adopted", "ignored", "close_requested", "closed") if event in decision.request)


@one_engine
def test_act_all_when_it_is_sent_again_then_it_is_repeated_and_for_another_reason_it_is_refused(desk: Desk) -> None:
    ids = unknown(desk)
    act_all(desk, "ignore", ids)
    seq = desk.ledger.exposure().seq
    assert outcomes(act_all(desk, "ignore", ids)) == dict.fromkeys(ids, "repeated")
    assert desk.ledger.exposure().seq == seq
    other = act_all(desk, "ignore", ids, "something else")
    assert {one.words for one in other.items} == {
        f"drift-{one}: ignored already by embedded:embedded: taken over" for one in ids
    }
    act_all(desk, "adopt", ids)
    assert outcomes(act_all(desk, "adopt", ids)) == dict.fromkeys(ids, "repeated"), "they are resolved by this decision"
    assert desk.run().findings == ()


@one_engine
def test_act_all_when_it_is_a_dry_run_then_it_tells_what_it_is_worth_and_nothing_is_recorded(desk: Desk) -> None:
    position = adopted(desk, "a", leg(perp_of("XRP"), "sell", "3"), quantity="3")
    ids = unknown(desk, ("ADA", "BNB"))
    (missing,) = [one.id for one in drifts.live_drifts(desk.engine, "main") if one.kind == "missing_position"]
    seq = desk.ledger.exposure().seq
    found = act_all(desk, "adopt", [*ids, missing], dry_run=True)
    words = {one.drift_id: one.words for one in found.items}
    assert words[missing] == f"release 3 of {position}"
    assert "adopt buy 1 ADA/USDT:USDT" in words.values()
    assert {one.outcome for one in found.items} == {"planned"}
    assert (found.usd, desk.ledger.exposure().seq) == (D(500), seq)


@one_engine
@pytest.mark.parametrize("ids", [[], [0], [True], ["1"]], ids=str)
def test_act_all_when_a_number_is_none_then_the_error_names_the_field(desk: Desk, ids: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        act_all(desk, "adopt", ids)
    assert caught.value.field in ("ids", "drift_id")


# --- adoptions that depend on each other ---------------------------------------------------------

HEDGE = (leg("BTC/USDT", "buy", "2"), leg(PERP, "sell", "2"))
ACROSS = (leg(PERP, "sell", "2"), leg(PERP, "buy", "2", "okx"))


def gone_together(desk: Desk) -> None:
    adopted(desk, "a", *HEDGE, quantity="2")


def gone_in_part(desk: Desk) -> None:
    adopted(desk, "a", *HEDGE, quantity="2")
    adopted(desk, "b", *HEDGE, quantity="2")
    desk.account.shows(short("3"), BTC="0.5")


def gone_at_two_venues(desk: Desk) -> None:
    adopted(desk, "a", *HEDGE, quantity="2")
    adopted(desk, "b", *ACROSS, quantity="2", venue="bybit", symbol="BTC")
    desk.account.shows(short("1"), BTC="2")
    desk.accounts[1].shows(long("1.5"))


def flipped(desk: Desk) -> None:
    adopted(desk, "a", *HEDGE, quantity="2")
    desk.account.shows(long("0.4"), BTC="1")


def more_and_less(desk: Desk) -> None:
    adopted(desk, "a", *HEDGE, quantity="2")
    adopted(desk, "b", leg(PERP, "sell", "1"), quantity="1")
    desk.account.shows(short("1.5"), BTC="5")


@one_engine
@pytest.mark.parametrize("given", [gone_together, gone_in_part, gone_at_two_venues, flipped, more_and_less])
def test_act_all_when_adoptions_depend_on_each_other_then_the_ledger_says_what_the_exchanges_show(
    two: Callable[..., Desk], given: Callable[[Desk], None]
) -> None:
    desk = two(confirmations=1)
    given(desk)
    report = desk.run()
    ids = [one.id for one in report.live if one.kind != "legs_unequal"]
    assert len(ids) > 1
    assert {*outcomes(act_all(desk, "adopt", ids)).values()} == {"done"}
    assert {one.kind for one in desk.run().findings} <= {"legs_unequal"}
    assert_verified(desk.ledger)


@one_engine
def test_act_all_when_two_late_fills_are_of_one_hold_then_both_become_the_holds(desk: Desk) -> None:
    late = reserve_btc(desk.ledger, "late", ttl_seconds=5)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.02"), BTC="0.02")
    found = [one for one in desk.run().live if one.kind == "late_fill"]
    assert len(found) == 2
    assert {*outcomes(act_all(desk, "adopt", [one.id for one in found])).values()} == {"done"}
    (filled,) = desk.ledger.positions("main", state="open")
    assert filled.origin == int(position_of(late).partition("-")[2])
    assert sorted((one.symbol, one.quantity) for one in filled.legs) == [("BTC", D("0.02")), (PERP, D("0.02"))]
    assert desk.run().findings == ()


# --- races and deaths ----------------------------------------------------------------------------


def missing(desk: Desk) -> dict[str, str]:
    """Open a short of each coin that the account does not show. Returns the position by coin."""
    return {coin: adopted(desk, coin, leg(perp_of(coin), "sell", "1"), quantity="1") for coin in COINS}


def ids_by_coin(desk: Desk) -> dict[str, int]:
    return {drift.market.base: drift.id for drift in desk.run().live}


@one_engine
def test_act_all_when_a_bot_closes_meanwhile_then_that_drift_is_refused_and_the_others_are_done(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One close comes between two commits, another between a plan and its commit."""
    held = missing(desk)
    ids = ids_by_coin(desk)
    monkeypatch.setattr(bulk, "_COMMIT", 2)
    desk.clock.advance(1)
    submit, closing = desk.ledger.submit, iter(["LTC", "SOL"])

    def closed_first(commands: Any, **options: Any) -> Any:
        coin = next(closing, None)
        if coin is not None:
            desk.ledger.release(key=f"bot/{coin}", position_id=held[coin])
        return submit(commands, **options)

    with monkeypatch.context() as patch:
        patch.setattr(desk.ledger, "submit", closed_first)
        order = [ids[coin] for coin in ("ADA", "BNB", "DOT", "ETH", "LTC", "SOL")]
        found = act_all(desk, "adopt", order)
    assert {coin: outcomes(found)[one] for coin, one in ids.items()} == {
        "ADA": "done", "BNB": "done", "DOT": "done", "ETH": "done", "LTC": "refused", "SOL": "refused",
    }  # fmt: skip
    assert all("reconcile again" in one.words for one in found.items if one.outcome == "refused")
    assert figures(desk.ledger) == (0, D(0))
    assert desk.run().live == ()


def test_act_all_when_a_bot_closes_between_plan_and_commit_then_only_its_drift_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = missing(desk)
    ids = ids_by_coin(desk)
    desk.clock.advance(1)
    submit, closing = desk.ledger.submit, iter(["DOT"])

    def closed_first(commands: Any, **options: Any) -> Any:
        coin = next(closing, None)
        if coin is not None:
            desk.ledger.release(key=f"bot/{coin}", position_id=held[coin])
        return submit(commands, **options)

    with monkeypatch.context() as patch:
        patch.setattr(desk.ledger, "submit", closed_first)
        found = act_all(desk, "adopt", [*ids.values()])
    assert {one.drift_id for one in found.items if one.outcome == "refused"} == {ids["DOT"]}
    assert figures(desk.ledger) == (0, D(0))
    assert desk.run().live == ()


@one_engine
def test_act_all_when_a_run_ends_drifts_meanwhile_then_these_are_refused_as_resolved(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = unknown(desk)
    monkeypatch.setattr(bulk, "_PAGE", 2)
    monkeypatch.setattr(bulk, "_COMMIT", 2)

    def gone(done: int, _total: int) -> None:
        if done == 2:
            desk.account.shows(*(long("1", perp_of(coin), "100") for coin in ("ADA", "BNB", "DOT")))
            desk.run()

    found = outcomes(act_all(desk, "adopt", ids, progress=gone))
    assert [*found.values()] == ["done", "done", "done", "refused", "refused", "refused"]
    assert desk.run().live == ()
    assert figures(desk.ledger) == (0, D(300))


def _adopt_until_killed(url: str, ids: list[int]) -> None:
    """Adopt, and die after the commit of the second page, before its rows are written."""
    from tests.support.clock import FakeClock

    desk = Desk(url, FakeClock(), [WrittenAccount()], confirmations=1)
    bulk._PAGE = bulk._COMMIT = 2
    update, calls = drifts.update_drifts, [0]

    def dies(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*arguments)

    drifts.update_drifts = dies
    act_all(desk, "adopt", ids)


def test_act_all_when_its_process_was_killed_then_a_repetition_completes_it_and_does_nothing_twice(
    desk: Desk, database_url: str
) -> None:
    ids = unknown(desk)
    process = get_context("spawn").Process(target=_adopt_until_killed, args=(database_url, ids))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    states = {one: drifts.get_drift(desk.engine, one).state for one in ids}
    assert [*states.values()] == ["resolved"] * 2 + ["confirmed"] * 4
    found = act_all(desk, "adopt", ids)
    assert [*outcomes(found).values()] == ["repeated"] * 4 + ["done"] * 2
    assert figures(desk.ledger) == (0, D(600))
    assert not desk.ledger.exposure().whole.frozen
    assert desk.run().findings == ()
