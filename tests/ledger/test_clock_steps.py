"""A clock that was wrong and is right again: the ledger's time follows it back, and the chain says where."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from ledger_sizer import Ledger, Reserve
from ledger_sizer.rules.state import CLOCK_STEP_US_MAX, decision_time
from tests.support.clock import START, FakeClock
from tests.support.ledgers import Intruder, assert_verified, figures, position_of

D = Decimal
TEN_YEARS = 10 * 365 * 86_400
STEP = CLOCK_STEP_US_MAX


@pytest.mark.parametrize(
    ("now_us", "last_us", "decided_us"),
    [
        (5, 0, 5),
        (5, 5, 5),
        (5, 6, 6),
        (0, STEP, STEP),
        (0, STEP + 1, 0),
        (7, STEP + 8, 7),
    ],
)
def test_tell_decision_time_when_the_last_decision_is_ahead_then_only_a_minute_is_waited_for(
    now_us: int, last_us: int, decided_us: int
) -> None:
    assert decision_time(now_us, last_us) == decided_us


def wrong_for_one_decision(ledger: Ledger, clock: FakeClock, seconds: int, **request: object) -> None:
    """Decide once with a clock that is this far ahead."""
    clock.advance(seconds)
    ledger.reserve(key=f"wrong-{seconds}", **request)
    clock.advance(-seconds)


@pytest.mark.parametrize("seconds", [3600, TEN_YEARS])
def test_decide_when_the_clock_was_far_ahead_once_then_time_goes_on_from_the_right_clock(
    ledger: Ledger, clock: FakeClock, seconds: int
) -> None:
    wrong_for_one_decision(ledger, clock, seconds, ttl_seconds=60)
    clock.advance(1)
    held = ledger.reserve(key="held", ttl_seconds=5)
    assert held.decided_at == clock()
    assert held.expires_at == clock() + timedelta(seconds=5)
    (step,) = ledger.history(command="step_back")
    assert (step.seq, step.key, step.outcome, step.decided_at) == (2, "ledger:step_back:2", "applied", clock())
    clock.advance(5)
    assert ledger.sweep() == 1
    assert ledger.position(position_of(held)).state == "expired"
    assert [d.command for d in ledger.history(ascending=True)] == ["reserve", "step_back", "reserve", "expire"]
    assert ledger.explain(2).text.startswith("main #2 step_back ")
    assert_verified(ledger)


@pytest.mark.parametrize(("seconds", "steps"), [(60, 0), (D("60.000001"), 1)])
def test_decide_when_the_clock_was_set_back_by_a_minute_then_time_waits_and_by_more_it_follows(
    ledger: Ledger, clock: FakeClock, seconds: Decimal, steps: int
) -> None:
    ledger.reserve(key="1")
    clock.advance(-seconds)
    decided = [ledger.reserve(key=key).decided_at for key in ("2", "3")]
    assert decided == [START if steps == 0 else clock()] * 2
    assert len(ledger.history(command="step_back").items) == steps
    assert_verified(ledger)


def test_decide_when_time_follows_the_clock_back_then_no_hold_ends_early(ledger: Ledger, clock: FakeClock) -> None:
    held = ledger.reserve(key="held", ttl_seconds=7200)
    wrong_for_one_decision(ledger, clock, 3600)
    for second in (0, 3600, D("3599.999999")):
        clock.advance(second)
        ledger.set_cap(key=f"cap-{second}", cap=D(5000))
        assert ledger.position(position_of(held)).state == "held"
    clock.advance(D("0.000001"))
    ledger.sweep()
    assert ledger.position(position_of(held)).state == "expired"
    assert_verified(ledger)


def test_decide_when_time_follows_the_clock_back_then_trust_works_again(ledger: Ledger, clock: FakeClock) -> None:
    wrong_for_one_decision(ledger, clock, TEN_YEARS, ttl_seconds=1)
    ledger.reconciled(key="fresh", fresh_until=clock() + timedelta(seconds=300))
    assert ledger.reserve(key="1").granted
    clock.advance(300)
    assert ledger.reserve(key="2").reason == "unreconciled"


def test_answer_group_when_the_clock_was_far_ahead_then_a_dry_run_and_an_atomic_group_take_the_right_time(
    ledger: Ledger, clock: FakeClock
) -> None:
    wrong_for_one_decision(ledger, clock, TEN_YEARS)
    dry = ledger.reserve(key="dry", ttl_seconds=5, dry_run=True)
    assert (dry.granted, dry.decided_at, dry.expires_at) == (True, clock(), clock() + timedelta(seconds=5))
    assert ledger.exposure().seq == 1, "a dry run records nothing"
    decisions = ledger.submit([Reserve(key="1"), Reserve(key="2")], atomic=True)
    assert [(d.seq, d.decided_at) for d in decisions] == [(3, clock()), (4, clock())]
    assert ledger.reserve(key="1").replayed
    assert ledger.exposure().seq == 4, "one step back, however many decisions follow"


def test_list_holds_when_they_were_granted_while_the_clock_was_ahead_then_they_are_found_and_released(
    ledger: Ledger, clock: FakeClock
) -> None:
    wrong_for_one_decision(ledger, clock, TEN_YEARS, ttl_seconds=60)
    ledger.reserve(key="right", ttl_seconds=60)
    late = clock() + timedelta(days=1)
    (stuck,) = [held for held in ledger.positions(state="held") if held.expires_at and held.expires_at > late]
    assert stuck.position_id == "main-1"
    clock.advance(3600)
    ledger.sweep()
    assert figures(ledger) == (1000, 0), "only the hold of the wrong clock is left"
    assert ledger.release(key="end", position_id=stuck.position_id).outcome == "applied"
    assert figures(ledger) == (0, 0)
    assert_verified(ledger)


# --- history -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stepped(ledger: Ledger, clock: FakeClock) -> list[datetime]:
    """A ledger with decisions at seconds 0 to 9, one ten years ahead, and, after a step back, at seconds 10 to 19.

    Returns the times of its decisions.
    """
    for n in range(10):
        ledger.set_cap(key=f"a{n}", cap=D(1000 + n))
        clock.advance(1)
    wrong_for_one_decision(ledger, clock, TEN_YEARS)
    for n in range(10):
        ledger.set_cap(key=f"b{n}", cap=D(2000 + n))
        clock.advance(1)
    decisions = ledger.history(limit=1000, ascending=True)
    assert [(d.seq, d.command) for d in decisions][10:12] == [(11, "reserve"), (12, "step_back")]
    return [decision.decided_at for decision in decisions]


def test_list_history_when_time_went_back_then_a_moment_stands_after_the_last_decision_before_it(
    ledger: Ledger, stepped: list[datetime]
) -> None:
    moments = {moment + timedelta(microseconds=us) for moment in stepped for us in (-1, 0, 1)}
    for moment in moments:
        place = max((seq for seq, at in enumerate(stepped, 1) if at < moment), default=0)
        until = [decision.seq for decision in ledger.history(until=moment, limit=1000, ascending=True)]
        since = [decision.seq for decision in ledger.history(since=moment, limit=1000, ascending=True)]
        assert until == list(range(1, place + 1)), moment
        assert since == list(range(place + 1, len(stepped) + 1)), moment


def test_read_exposure_as_of_when_time_went_back_then_it_is_that_of_the_last_decision_by_then(
    ledger: Ledger, stepped: list[datetime]
) -> None:
    for moment in stepped:
        place = max(seq for seq, at in enumerate(stepped, 1) if at <= moment)
        assert ledger.exposure(as_of=moment) == ledger.exposure(as_of=place)


def test_page_history_when_time_went_back_then_no_page_skips_or_repeats(
    ledger: Ledger, stepped: list[datetime]
) -> None:
    for ascending in (True, False):
        seqs: list[int | None] = []
        cursor = None
        while True:
            page = ledger.history(since=stepped[3], limit=4, cursor=cursor, ascending=ascending)
            seqs += [decision.seq for decision in page]
            if (cursor := page.cursor) is None:
                break
        expected = list(range(4, len(stepped) + 1))
        assert seqs == (expected if ascending else expected[::-1])


@pytest.mark.usefixtures("stepped")
def test_verify_when_time_goes_back_without_a_step_then_it_is_a_finding(ledger: Ledger, database_url: str) -> None:
    assert_verified(ledger)
    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE decisions SET decided_us = decided_us - 5000000 WHERE seq = 8")
    findings = [finding.what for finding in ledger.verify().findings]
    assert "the time of decision 8 is before that of the last, and no step_back says why" in findings


def test_list_history_when_the_step_stands_in_a_full_block_then_facets_find_it(
    ledger: Ledger, clock: FakeClock
) -> None:
    wrong_for_one_decision(ledger, clock, TEN_YEARS)
    for n in range(0, 1100, 100):
        clock.advance(1)
        ledger.submit([Reserve(key=f"{n + k}", available_balance=D(0), tags={"wish": f"{k}"}) for k in range(100)])
    wrong_for_one_decision(ledger, clock, 3600)
    clock.advance(1)
    ledger.reserve(key="last")
    assert [decision.seq for decision in ledger.history(command="step_back")] == [1104, 2]
    for moment, last in ((START + timedelta(seconds=1), []), (START + timedelta(seconds=2), [102]), (clock(), [1102])):
        assert [decision.seq for decision in ledger.history(until=moment, limit=1)] == last
