"""A run paused past its lease, at any point of its writing, writes nothing more: neither rows nor commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from decimal import Decimal
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, update

from ledger_sizer import AppSettings, Ledger, ReconcileSettings
from ledger_sizer.model.commands import Release, Remark
from ledger_sizer.reconcile import drifts, listings
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import LEASE_NAME, Reconciler
from ledger_sizer.rules.batch import Group
from ledger_sizer.storage.database import make_engine
from ledger_sizer.storage.leases import LeaseLost, acquire_lease, fenced
from ledger_sizer.storage.tables import LeaseRow, ScopeRow
from tests.support.accounts import Desk, NewDesk, WrittenAccount, long
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures
from tests.support.services import eventually

D = Decimal
POLICIES = ("freeze", "adopt", "close")


@pytest.fixture(params=POLICIES)
def desk(request: pytest.FixtureRequest, new_desk: NewDesk) -> Desk:
    """An account with 2 ETH that the ledger lacks, confirmed by the first run."""
    desk = new_desk(confirmations=1, policy_unknown_position=request.param)
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    desk.ledger.set_cap(key="cap", cap=D(50000))
    return desk


def end_lease(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(update(LeaseRow).where(LeaseRow.name == LEASE_NAME).values(until_us=0))


def chain(ledger: Ledger) -> list[str]:
    return [one.key for one in ledger.history(ascending=True)] if ledger.portfolios() else []


def test_run_when_it_sleeps_before_any_of_its_commands_then_none_of_them_is_committed_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paused run resumes after another replica saw that the position is gone and reverted everything."""
    empty = WrittenAccount()
    other = Reconciler(
        desk.ledger, desk.engine, LocalInspector(desk.engine, [empty], desk.settings, clock=desk.clock), desk.settings,
        clock=desk.clock,
    )  # fmt: skip
    answer = desk.ledger._writer.answer
    state: dict[str, Any] = {"sent": 0, "sleeps_at": None, "after_other": None}

    def sleepy(group: Group) -> Any:
        if group.fence is not None and state["after_other"] is None:
            if state["sent"] == state["sleeps_at"]:
                state["after_other"] = []
                end_lease(desk)
                other.run()
                state["after_other"] = chain(desk.ledger)
            state["sent"] += 1
        return answer(group)

    monkeypatch.setattr(desk.ledger._writer, "answer", sleepy)
    points = 0
    while True:
        state.update(sent=0, sleeps_at=points, after_other=None)
        try:
            desk.run()
        except LeaseLost:
            assert chain(desk.ledger) == state["after_other"], f"before command {points}"
        else:
            break
        assert figures(desk.ledger, "external=exchange")[1] in (0, D(4000))
        points += 1
        # Reset: nothing at the exchange, nothing adopted.
        other.run()
        for position in desk.ledger.positions("main", state="open"):
            desk.ledger.release(key=f"clean/{points}/{position.position_id}", position_id=position.position_id)
    assert points >= 3, "counting, freezing or telling, and the new trust were each cut off once"
    assert_verified(desk.ledger)


def test_write_drift_when_the_lease_is_over_then_the_row_stays_as_it_is(desk: Desk) -> None:
    (drift, *_) = desk.run().live or listings.list_drifts(desk.engine)
    lease = acquire_lease(desk.engine, LEASE_NAME, "me", 60)
    assert lease is not None
    with fenced(lease):
        assert drifts.update_drifts(desk.engine, [drifts.DriftUpdate(drift.id, {"detail": "held"}, (drift.state,))])
        end_lease(desk)
        with pytest.raises(LeaseLost):
            drifts.update_drifts(desk.engine, [drifts.DriftUpdate(drift.id, {"detail": "lost"}, (drift.state,))])
    assert drifts.get_drift(desk.engine, drift.id).detail == "held"


def test_submit_when_the_lease_is_over_then_it_is_refused_and_its_neighbours_are_not(new_desk: NewDesk) -> None:
    desk = new_desk()
    lease = acquire_lease(desk.engine, LEASE_NAME, "me", 60)
    assert lease is not None
    with fenced(lease):
        assert desk.ledger.reserve(key="held", tags=TAGS).granted
    successor = acquire_lease(desk.engine, LEASE_NAME, "me", 60)
    assert successor == lease
    end_lease(desk)
    assert acquire_lease(desk.engine, LEASE_NAME, "other", 60) is not None
    with fenced(lease):
        for atomic in (False, True):
            with pytest.raises(LeaseLost):
                desk.ledger.submit([_reserve("lost")], atomic=atomic)
        with pytest.raises(LeaseLost):
            desk.ledger.reserve(key="held", tags=TAGS)
    committer = desk.ledger._committer
    answers = committer.answer([Group((_reserve("a"),)), Group((_reserve("b"),), fence=lease), Group((_reserve("c"),))])
    assert [type(one).__name__ for one in answers] == ["list", "LeaseLost", "list"]
    assert chain(desk.ledger) == ["held", "a", "c"]


def test_submit_when_the_database_refuses_one_and_the_lease_ends_then_the_others_are_not_stored_without_it(
    database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejected batch is retried one command at a time. Each of them must still be under the lease."""
    desk = Desk(database_url, clock)
    held = desk.ledger.reserve(key="held", tags=TAGS)
    with desk.engine.begin() as connection:  # a manual edit: the release would make the held amount negative
        connection.execute(update(ScopeRow).where(ScopeRow.scope == "portfolio").values(held_e8=0))
    lease = acquire_lease(desk.engine, LEASE_NAME, "me", 60)
    assert lease is not None
    store = desk.ledger._committer._store
    rollback = store.rollback

    def paused() -> None:
        rollback()
        end_lease(desk)

    monkeypatch.setattr(store, "rollback", paused)
    with fenced(lease):
        answers = desk.ledger.submit([_remark("about"), Release(key="refused", position_id=str(held.position_id))])
    assert [type(one) for one in answers] == [LeaseLost, LeaseLost]
    assert chain(desk.ledger) == ["held"]
    desk.close()


def _remark(key: str) -> Remark:
    return Remark(key=key, portfolio="main", about="drift-1", event="confirmed")


def _reserve(key: str) -> Any:
    from ledger_sizer import Reserve

    return Reserve(key=key, tags=TAGS)


_SLEEPER = """
import os, signal, sys
from tests.reconcile.test_fencing import sleeper_desk
ledger, _, reconciler = sleeper_desk(sys.argv[1])
answer = ledger._writer.answer
def sleepy(group):
    if group.fence is not None:
        ledger._writer.answer = answer
        os.kill(os.getpid(), signal.SIGSTOP)
    return answer(group)
ledger._writer.answer = sleepy
try:
    reconciler.run()
except Exception as error:
    sys.exit(type(error).__name__)
"""


def sleeper_desk(url: str) -> tuple[Ledger, Engine, Reconciler]:
    """Open a ledger and a reconciler on the real clock, as in a replica."""
    settings = AppSettings(reconcile=ReconcileSettings(confirmations=1, run_seconds_max=5))
    account = WrittenAccount()
    account.shows(long("2", "ETH/USDT:USDT", "2000"))
    ledger, engine = Ledger.open(url, settings=settings), make_engine(url)
    return ledger, engine, Reconciler(ledger, engine, LocalInspector(engine, [account], settings), settings)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_run_when_its_process_is_stopped_past_its_lease_and_goes_on_then_its_commands_are_refused(
    database_url: str,
) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", _SLEEPER, database_url], stderr=subprocess.PIPE, text=True)
    ledger, engine, reconciler = sleeper_desk(database_url)
    try:
        eventually(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, seconds=60)
        reports: list[Any] = []
        eventually(lambda: reports.extend(_ran(reconciler)) or reports, seconds=30)  # once its lease has ended
        assert reports[0].run.epoch == 2
        before = chain(ledger)
        os.kill(sleeper.pid, signal.SIGCONT)
        _, said = sleeper.communicate(timeout=60)
    finally:
        if sleeper.poll() is None:
            sleeper.kill()
            sleeper.wait()
    assert said.strip().endswith("LeaseLost")
    assert chain(ledger) == before
    assert figures(ledger, "external=exchange") == (0, D(4000)), "counted once"
    assert_verified(ledger)
    ledger.close()
    engine.dispose()


def _ran(reconciler: Reconciler) -> list[Any]:
    from ledger_sizer import Busy

    try:
        return list(reconciler.run())
    except Busy:
        return []
