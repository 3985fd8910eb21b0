"""Who the reconciliation's decisions name: the run itself, or the person who decided about a drift."""

from __future__ import annotations

from typing import Any

import pytest

from ledger_sizer import LedgerError, WrongState
from ledger_sizer.model.caller import RECONCILE, Caller, calling_as
from ledger_sizer.reconcile.effects import Effects
from tests.conftest import NewDatabase
from tests.support.accounts import Desk, NewDesk, short
from tests.support.clock import FakeClock

ANN = Caller("api:0a1b2c3d4e5f:ann", "ann")
BOB = Caller("cli:bob", "cli")


@pytest.fixture(autouse=True)
def _nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run logs a command that was refused and goes on. Here it fails the test."""

    def fail(_self: Effects, _commands: Any, error: LedgerError) -> None:
        raise error

    monkeypatch.setattr(Effects, "_handle_failure", fail)


def deciders(desk: Desk, portfolio: str = "main") -> dict[str, set[tuple[str | None, str | None]]]:
    """Return actor and client of all decisions, by command."""
    found: dict[str, set[tuple[str | None, str | None]]] = {}
    for one in desk.ledger.history(portfolio, limit=1000):
        found.setdefault(one.command, set()).add((one.actor, one.client))
    return found


def desk_records(desk: Desk) -> list[tuple[str | None, str]]:
    return [(one.actor, one.request) for one in desk.ledger.history("*", ascending=True)]


def test_run_when_it_finds_and_loses_a_drift_then_all_it_does_is_the_reconciliations(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    desk.account.shows(short("1"))
    desk.run()
    desk.account.shows()
    desk.run()
    desk.reconciler.begin_trust()
    assert deciders(desk).keys() == {"adopt", "freeze", "remark", "release", "thaw", "reconciled", "account_seen"}
    assert {one for found in deciders(desk).values() for one in found} == {("reconcile", "reconcile")}
    assert desk_records(desk) == [], "nobody decided anything"


@pytest.mark.parametrize("policy", ["adopt", "close"])
def test_run_when_a_policy_decides_then_it_is_the_reconciliations_and_not_a_persons(
    new_desk: NewDesk, policy: str
) -> None:
    desk = new_desk(confirmations=1, policy_unknown_position=policy)
    desk.account.shows(short("1"))
    desk.run(2)
    assert {one for found in deciders(desk).values() for one in found} == {("reconcile", "reconcile")}
    assert desk_records(desk) == []


@pytest.mark.parametrize(("action", "event"), [("adopt", "adopted"), ("ignore", "ignored"), ("close", "closed")])
def test_act_when_a_person_decides_then_the_decision_and_the_desk_name_who(
    new_desk: NewDesk, action: str, event: str
) -> None:
    desk = new_desk(confirmations=1)
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    seq = desk.ledger.exposure().seq
    with calling_as(ANN):
        done = desk.reconciler.operator.act(action, drift.id, reason="it is ours")
    assert (done.actor, done.reason) == (ANN.actor, "it is ours")
    since = [one for one in desk.ledger.history(limit=1000) if (one.seq or 0) > seq]
    assert {(one.actor, one.client) for one in since} == {(ANN.actor, "reconcile")}
    assert "remark" in {one.command for one in since}
    assert desk_records(desk) == [
        (
            ANN.actor,
            f'{{"command":"remark","about":"drift-{drift.id}","event":"{event}","note":"main: it is ours"}}',
        )
    ]


def test_run_when_a_drift_that_a_person_decided_grows_then_its_keys_are_still_the_reconciliations(
    new_desk: NewDesk,
) -> None:
    """Ignored, then larger: the run counts, confirms and freezes the same drift anew, and a person adopts it."""
    desk, other = new_desk(confirmations=1), new_desk(confirmations=1)
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    with calling_as(ANN):
        desk.reconciler.operator.ignore(drift.id, reason="known")
    for shown, one in (("2", desk), ("3", other), ("4", desk)):
        one.account.shows(short(shown))
        one.run()
    other.account.shows(short("4"))
    (drift,) = [found for found in other.run().live if found.live]
    with calling_as(BOB):
        other.reconciler.operator.adopt(drift.id, reason="as it is")
    assert [found for found in (*other.run().live, *desk.run().live) if found.live] == []
    assert {client for found in deciders(desk).values() for _, client in found} == {"reconcile"}
    assert [actor for actor, _ in desk_records(desk)] == [ANN.actor, BOB.actor]


def test_run_when_a_person_decided_and_died_then_the_thaw_is_made_in_his_name(
    new_desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_desk(confirmations=1)
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    assert drift.frozen_scope

    def die(_: Effects) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, calling_as(ANN):
        patch.setattr(Effects, "freeze_and_thaw", die)
        with pytest.raises(KeyboardInterrupt):
            desk.reconciler.operator.ignore(drift.id, reason="known")
    assert "thaw" not in deciders(desk)
    desk.run()
    assert deciders(desk)["thaw"] == {(ANN.actor, "reconcile")}


def test_act_when_two_persons_decide_the_same_then_the_first_counts_and_the_second_is_told(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    with calling_as(ANN):
        done = desk.reconciler.operator.ignore(drift.id, reason="known")
        assert desk.reconciler.operator.ignore(drift.id, reason="known") == done
    with calling_as(BOB), pytest.raises(WrongState, match=f"ignored already by {ANN.actor}: known"):
        desk.reconciler.operator.ignore(drift.id, reason="known")
    assert len(desk_records(desk)) == 1


@pytest.mark.parametrize("old_reason", ["as it is", "another"])
def test_act_when_an_older_version_decided_and_died_then_the_same_reason_finishes_it(
    new_database: NewDatabase, clock: FakeClock, old_reason: str
) -> None:
    """Versions without actors named who decided in the note."""
    desk = Desk(new_database("sqlite"), clock, confirmations=1)
    desk.account.shows(short("1"))
    (drift,) = desk.run().live
    with calling_as(Caller(None, None)):  # type: ignore[arg-type]  # as rows of such versions read
        desk.ledger.remark(
            key=f"drift:{drift.id}:{drift.revision}:ignored", about=drift.name, event="ignored", note="ann: as it is"
        )
    with calling_as(ANN):
        if old_reason == "as it is":
            assert desk.reconciler.operator.ignore(drift.id, reason=old_reason).state == "acknowledged"
        else:
            with pytest.raises(WrongState, match="ignored already by ann: as it is"):
                desk.reconciler.operator.ignore(drift.id, reason=old_reason)
    desk.close()


def test_caller_when_it_is_the_reconciliations_then_its_client_is_too() -> None:
    assert Caller("reconcile", "reconcile") == RECONCILE
