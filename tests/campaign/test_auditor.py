"""Tests that the auditor sees each thing that the campaign says did not happen.

Each test edits a few rows of a small ledger, or what its clients were told, as a defect would have left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from campaign.auditor import LATE_SECONDS_MAX, Audit, audit
from campaign.clients import Told
from ledger_sizer import AppSettings, Decision, Ledger
from tests.support.ledgers import Intruder

pytestmark = pytest.mark.one_engine

CAPS = {"portfolio": 5_000 * 100_000_000, "venue=okx": 100 * 100_000_000}
LONG_LIFE = 600

Audited = Callable[..., Audit]


def _told(decision: Decision) -> Told:
    now = time.monotonic()
    record = decision.record
    life = float(LONG_LIFE) if record.expires_us is not None else None
    return Told(
        record.portfolio,
        record.key,
        record.seq,
        record.hash,
        record.outcome,
        decision.granted,
        decision.replayed,
        decision.position_id,
        life,
        now,
        now,
        now,
    )


@pytest.fixture
def answers(database_url: str) -> list[Told]:
    """What the clients of a small ledger were told: two holds, one of them extended, a third one released."""
    with Ledger.open(database_url, settings=AppSettings()) as ledger:
        held = [
            ledger.reserve(key=f"r{n}", tags={"venue": "okx"}, available_balance=Decimal(40), ttl_seconds=LONG_LIFE)
            for n in range(2)
        ]
        extended = ledger.extend(key="e0", position_id=held[0].position_id or "", ttl_seconds=LONG_LIFE)
        third = ledger.reserve(key="r2", available_balance=Decimal(10), ttl_seconds=LONG_LIFE)
        released = ledger.release(key="x2", position_id=third.position_id or "")
    return [_told(decision) for decision in (*held, extended, third, released)]


@pytest.fixture
def intruder(database_url: str) -> Iterator[Intruder]:
    """Edits rows with every guard of the database removed."""
    with Intruder(database_url) as found:
        found.take_guards_down()
        yield found


@pytest.fixture
def audited(database_url: str, answers: list[Told], tmp_path: Path) -> Audited:
    """Run the auditor on the ledger. told: None for what the clients were told in truth."""

    def run(told: list[Told] | None = None, caps: dict[str, int] = CAPS) -> Audit:
        return audit(database_url, answers if told is None else told, caps, folder=tmp_path)

    return run


def test_audit_when_nothing_is_wrong_then_it_counts_every_answer_and_finds_nothing(audited: Audited) -> None:
    found = audited()
    assert (found.decisions, found.acknowledged) == (5, 5)
    assert (found.lost, found.doubled, found.problems) == ([], [], [])


def test_audit_when_the_last_decision_is_gone_then_it_is_lost(audited: Audited, intruder: Intruder) -> None:
    intruder.run("DELETE FROM decisions WHERE key = 'x2'")
    assert audited().lost == ["main key 'x2', told as seq 5, is not there"]


def test_audit_when_a_decision_is_another_than_was_told_then_it_is_lost(audited: Audited, intruder: Intruder) -> None:
    intruder.run("UPDATE decisions SET hash = :hash WHERE key = 'x2'", hash="f" * 64)
    assert audited().lost == ["main key 'x2', told as seq 5 applied, is seq 5 applied"]


def test_audit_when_a_grant_was_told_and_a_denial_is_stored_then_it_is_lost(
    audited: Audited, intruder: Intruder
) -> None:
    intruder.run("UPDATE decisions SET outcome = 'denied', reason = 'halted' WHERE key = 'r2'")
    assert audited().lost == ["main key 'r2', told as seq 4 granted, is seq 4 denied"]


def test_audit_when_a_key_was_answered_twice_then_it_is_doubled(audited: Audited, answers: list[Told]) -> None:
    again = answers[1]._replace(seq=9, hash="e" * 64)
    assert audited([*answers, again]).doubled == ["main key 'r1' was told as seq 2 and as seq 9"]


def test_audit_when_a_replay_repeats_an_answer_then_it_is_not_doubled(audited: Audited, answers: list[Told]) -> None:
    found = audited([*answers, answers[1]._replace(replayed=True)])
    assert (found.doubled, found.acknowledged) == ([], 5)


def test_audit_when_a_key_is_stored_twice_then_it_says_so(audited: Audited, intruder: Intruder) -> None:
    intruder.run("UPDATE decisions SET key = 'r0' WHERE key = 'r1'")
    assert "key 'r0' of main twice: seq 1 and 2" in audited().problems


def test_audit_when_a_seq_is_missing_then_it_says_so(audited: Audited, intruder: Intruder) -> None:
    intruder.run("DELETE FROM decisions WHERE seq = 3")
    assert "gap: main has seq 4 where 3 is due" in audited().problems


def test_audit_when_a_hold_ended_before_its_time_then_it_is_early_by_both_clocks(
    audited: Audited, intruder: Intruder
) -> None:
    intruder.run("UPDATE decisions SET command = 'expire' WHERE key = 'x2'")
    early = [problem for problem in audited().problems if problem.startswith("expired early")]
    assert [problem.partition(",")[0] for problem in early] == [
        "expired early: main seq 5",  # by the times of the rows
        "expired early: main-4 has ended",  # by the time that has passed since it was told
    ]


def test_audit_when_a_hold_outlives_its_time_then_it_is_late(
    audited: Audited, intruder: Intruder, answers: list[Told]
) -> None:
    intruder.run("UPDATE positions SET expires_us = expires_us - :us WHERE number = 2", us=(LONG_LIFE + 60) * 10**6)
    assert [problem for problem in audited().problems if problem.startswith("not ended: main-2 is held")] != []
    # And by the clock of this process, where the ledger's own time stands still.
    ago = LONG_LIFE + LATE_SECONDS_MAX + 1
    told_long_ago = [told._replace(begun=told.begun - ago, heard=told.heard - ago) for told in answers]
    late = [problem for problem in audited(told_long_ago).problems if problem.startswith("not ended: main-1 is held")]
    assert late != []


def test_audit_when_a_grant_is_above_the_cap_then_it_says_so(audited: Audited, intruder: Intruder) -> None:
    intruder.run("UPDATE decisions SET held_delta_e8 = :e8 WHERE key = 'r1'", e8=5_000 * 100_000_000)
    above = [problem for problem in audited().problems if problem.startswith("above the cap")]
    assert above[0].startswith("above the cap: main seq 2 leaves portfolio at ")


def test_audit_when_a_grant_is_above_the_cap_of_a_tag_then_it_says_so(audited: Audited) -> None:
    found = audited(caps={**CAPS, "venue=okx": 79 * 100_000_000})
    assert found.problems == ["above the cap: main seq 2 leaves venue=okx at 8000000000 of 7900000000"]


def test_audit_when_exposure_is_not_the_sum_of_all_changes_then_it_says_so(
    audited: Audited, intruder: Intruder
) -> None:
    intruder.run("UPDATE decisions SET exposure_e8 = 0 WHERE seq = 4")
    assert "main seq 4: exposure before is 0, not 8000000000" in audited().problems


def test_audit_when_a_field_that_only_the_chain_covers_is_edited_then_verify_is_heard(
    audited: Audited, intruder: Intruder
) -> None:
    intruder.run("UPDATE decisions SET trace = '{}' WHERE seq = 1")
    (problem,) = audited().problems
    assert problem.startswith("verify: status 1")
