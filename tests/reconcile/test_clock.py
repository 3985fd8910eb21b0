"""Reconciliation and a clock that was wrong: trust ends in time, markets are judged, leases and alerts do not hang."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from ledger_sizer.reconcile.alerts import Alerts
from ledger_sizer.reconcile.inspection import Inspection, LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.storage.clock import ClockJumped
from ledger_sizer.storage.database import database_now_us, make_engine
from ledger_sizer.storage.leases import acquire_lease
from ledger_sizer.storage.tables import AlertRow, LeaseRow
from tests.reconcile.test_alerts import Receiver
from tests.support.accounts import Desk, NewDesk, adopt, long
from tests.support.clock import FakeClock
from tests.support.services import eventually
from tests.support.wrong_clocks import WrongClock

D = Decimal
YEAR = 365 * 86_400
TEN_YEARS = 10 * YEAR


class WrongInspector:
    """Inspects in another process, whose clock was wrong by some seconds when it began and ended."""

    def __init__(self, inspector: LocalInspector, seconds: int) -> None:
        self.accounts = inspector.accounts
        self._inspector = inspector
        self._us = seconds * 1_000_000

    def inspect(self, request: Any, seconds_max: float) -> Inspection:
        found = self._inspector.inspect(request, seconds_max)
        times = {name: getattr(found.run, name) + self._us for name in ("started_us", "finished_us")}
        return replace(found, run=replace(found.run, **times))


@pytest.mark.parametrize("seconds", [0, TEN_YEARS])
def test_run_when_it_was_dated_by_a_wrong_clock_then_its_trust_ends_in_time(new_desk: NewDesk, seconds: int) -> None:
    desk = new_desk(stale_after_seconds=300)
    inspector = WrongInspector(LocalInspector(desk.engine, desk.accounts, desk.settings, clock=desk.clock), seconds)
    Reconciler(desk.ledger, desk.engine, inspector, desk.settings, clock=desk.clock).run()
    assert desk.ledger.exposure().whole.fresh_until == desk.clock() + timedelta(seconds=300)


def test_run_when_the_clock_jumps_then_no_trust_is_given_and_no_run_recorded(database_url: str) -> None:
    clock = WrongClock(database_url)
    desk = Desk(database_url, FakeClock())
    with clock.open() as ledger:
        inspector = LocalInspector(desk.engine, desk.accounts, desk.settings)
        reconciler = Reconciler(ledger, desk.engine, inspector, desk.settings)
        clock.apply_to(inspector._guard)
        clock.apply_to(reconciler._guard)
        reconciler.run()
        before = ledger.exposure().seq
        clock.jump(TEN_YEARS)
        for _ in range(2):
            with pytest.raises(ClockJumped, match="the clock jumped ahead"):
                reconciler.run()
        clock.jump(0)
        assert ledger.exposure().seq == before
        assert reconciler.run()[0].run.outcome == "good"
        fresh = ledger.exposure().whole.fresh_until
        last = ledger.history(limit=1).items[0]
        assert fresh is not None
        assert last.command == "reconciled"
        assert fresh - last.decided_at <= timedelta(seconds=300)
    desk.close()
    clock.close()


def test_run_when_a_position_was_changed_while_the_clock_was_ahead_then_its_market_is_judged(
    new_desk: NewDesk,
) -> None:
    desk = new_desk(confirmations=2)
    desk.ledger.set_cap(key="cap", cap=D(50_000))
    desk.clock.advance(YEAR)
    adopt(desk, "wrong")
    desk.clock.advance(-YEAR)
    report = desk.run(2)
    assert {(drift.kind, drift.state) for drift in report.live} == {("missing_position", "confirmed")}


def test_take_lease_when_a_wrong_clock_dated_its_end_then_another_owner_may_take_it(database_url: str) -> None:
    engine = make_engine(database_url)
    first = acquire_lease(engine, "jobs", "a", 60)
    assert first is not None
    for ahead, taken in ((3600, False), (TEN_YEARS, True)):
        with engine.begin() as connection:
            connection.execute(update(LeaseRow).values(until_us=database_now_us() + ahead * 1_000_000))
        second = acquire_lease(engine, "jobs", "b", 60)
        assert (second is not None) == taken
    assert second is not None
    assert second.epoch == first.epoch + 1, "what the first owner writes is fenced off"
    with engine.begin() as connection:
        assert not first.holds(connection)
    engine.dispose()


def test_deliver_alert_when_a_wrong_clock_dated_its_next_attempt_then_it_is_sent_now(new_desk: NewDesk) -> None:
    receiver = Receiver([])
    desk = new_desk(confirmations=1, webhook_url=SecretStr(receiver.url))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    desk.run()
    with desk.engine.begin() as connection:
        due = update(AlertRow).values(due_us=database_now_us() + TEN_YEARS * 1_000_000)
        assert connection.execute(due).rowcount == 1
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.start()
    eventually(lambda: alerts.delivered == 1, seconds=30)
    alerts.close()
    receiver.close()
    assert len(receiver.got) == 1
