"""Archiving a history whose clock was wrong: nothing young is moved, nothing old stays for ever, all is found."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer import Ledger
from ledger_sizer.history import archiver
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified

D = Decimal
DAY = 86_400
TEN_YEARS = 3650 * DAY


@pytest.fixture
def ledger(ledger: Ledger, clock: FakeClock) -> Ledger:
    """The room's ledger, its first hold over."""
    clock.advance(5)
    assert ledger.sweep() == 1
    return ledger


def decide(ledger: Ledger, clock: FakeClock, times: int, every: int = 1) -> None:
    first = ledger.exposure().seq
    for n in range(times):
        ledger.set_cap(key=f"cap-{first}-{n}", cap=D(1000 + n))
        clock.advance(every)


def archive(ledger: Ledger, clock: FakeClock, folder: Path) -> int:
    return ledger.archive(clock() - timedelta(days=31), folder).decisions


def test_archive_when_an_old_decision_has_a_time_still_to_come_then_it_moves_with_its_neighbours(
    ledger: Ledger, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiver, "DECISIONS_MAX", 8)
    decide(ledger, clock, 9)
    clock.advance(TEN_YEARS)
    ledger.set_cap(key="wrong", cap=D(7))
    clock.advance(-TEN_YEARS)
    decide(ledger, clock, 9)
    clock.advance(60 * DAY)
    decide(ledger, clock, 2)
    decisions = [*ledger.history(limit=100, ascending=True)]
    assert archive(ledger, clock, tmp_path) == len(decisions) - 2
    assert [*ledger.history(limit=100, ascending=True)] == decisions
    for moment in {decision.decided_at for decision in decisions}:
        place = max((n for n, one in enumerate(decisions, 1) if one.decided_at < moment), default=0)
        assert [*ledger.history(until=moment, limit=100, ascending=True)] == decisions[:place]
        assert [*ledger.history(since=moment, limit=100, ascending=True)] == decisions[place:]
    assert_verified(ledger)


def test_archive_when_the_newest_decision_has_a_time_still_to_come_then_it_stays(
    ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    decide(ledger, clock, 3)
    clock.advance(60 * DAY + TEN_YEARS)
    ledger.set_cap(key="wrong", cap=D(7))
    clock.advance(-TEN_YEARS)
    last = ledger.exposure().seq
    assert archive(ledger, clock, tmp_path) == last - 1, "nothing shows how old the last one is"
    assert ledger.set_cap(key="wrong", cap=D(7)).replayed


def test_archive_when_a_clock_behind_dated_a_young_decision_then_the_young_ones_before_it_stay(
    ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    decide(ledger, clock, 3)
    clock.advance(60 * DAY)
    ledger.set_cap(key="young", cap=D(7))
    clock.advance(-365 * DAY)
    ledger.set_cap(key="wrong", cap=D(8))
    clock.advance(365 * DAY)
    ledger.set_cap(key="right again", cap=D(9))
    before = ledger.exposure().seq
    assert archive(ledger, clock, tmp_path) == before - 4, "young, the step back, wrong, right again"
    for key, cap in (("young", 7), ("wrong", 8), ("right again", 9)):
        assert ledger.set_cap(key=key, cap=D(cap)).replayed
    assert_verified(ledger)
