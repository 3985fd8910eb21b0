"""Runs: one at a time, recorded once, fenced by their lease, and scheduled by the service."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from ledger_sizer import Busy, ReconcileSettings, WrongState
from ledger_sizer.client import LedgerClient
from ledger_sizer.config import ExchangeSettings
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.reconcile import listings
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import LEASE_NAME, Reconciler
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.storage.tables import LeaseRow
from tests.support.accounts import Desk, NewDesk, WrittenAccount, long, short
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, figures
from tests.support.services import LOW_PRIORITY_SECONDS, eventually, serving

D = Decimal


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """An account with a position that the ledger lacks."""
    desk = new_desk(confirmations=1)
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    return desk


def replica(desk: Desk, account: WrittenAccount) -> Reconciler:
    """Return a second reconciler, which to the database is another process."""
    look = LocalInspector(desk.engine, [account], desk.settings, clock=desk.clock)
    return Reconciler(desk.ledger, desk.engine, look, desk.settings, clock=desk.clock)


def test_run_when_another_replica_runs_then_it_is_busy_and_looks_at_nothing(desk: Desk) -> None:
    looked = []
    other_account = WrittenAccount()
    other_account.on_fetch = lambda: looked.append(1)
    other = replica(desk, other_account)

    def meanwhile() -> None:
        with pytest.raises(Busy):
            other.run()
        with pytest.raises(Busy):
            desk.reconciler.run()

    desk.account.on_fetch = meanwhile
    desk.run()
    assert looked == []
    other.run()
    assert looked == [1]
    assert [run.epoch for run in listings.list_runs(desk.engine)] == [2, 1], (
        "a lease that was given up and taken has a new epoch"
    )


def test_run_when_it_was_paused_past_its_lease_then_it_writes_nothing_at_all(desk: Desk) -> None:
    """The holder pauses during its fetch. Another run takes over, and the holder resumes with an outdated snapshot."""
    other_account = WrittenAccount()
    other = replica(desk, other_account)

    def asleep() -> None:
        with desk.engine.begin() as connection:
            connection.execute(update(LeaseRow).where(LeaseRow.name == LEASE_NAME).values(until_us=0))
        other.run()

    desk.account.on_fetch = asleep
    seq_after_other: list[int] = []
    with pytest.raises(LeaseLost):
        desk.run()
    seq_after_other.append(desk.ledger.exposure().seq)
    assert len(listings.list_runs(desk.engine)) == 1
    assert len(listings.list_drifts(desk.engine)) == 0
    assert figures(desk.ledger) == (0, 0)
    assert [one.command for one in desk.ledger.history()] == ["reconciled"], "the other's, and nothing of the sleeper"
    assert issubclass(LeaseLost, Unavailable)


def test_run_when_dry_then_it_finds_and_leaves_no_trace(desk: Desk) -> None:
    (report,) = desk.reconciler.run(dry_run=True)
    assert [finding.kind for finding in report.findings] == ["unknown_position"]
    assert (report.run.id, len(listings.list_runs(desk.engine)), desk.ledger.portfolios()) == (0, 0, [])


def test_run_when_a_run_died_between_its_record_and_its_effects_then_the_next_one_makes_up_for_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ledger_sizer.reconcile.run.Effects", _dead)
        with pytest.raises(KeyboardInterrupt):
            desk.run()
    assert len(listings.list_drifts(desk.engine, chosen=listings.DriftChoice(state="live"))) == 1
    assert desk.ledger.portfolios() == []
    desk.run()
    assert figures(desk.ledger, "external=exchange") == (0, D(4000))
    assert desk.ledger.reserve(key="no", tags=TAGS).reason == "unreconciled"
    events = [one.binding for one in desk.ledger.history(command="remark")]
    assert events == ["drift-1"], "and it is said, once"
    desk.run()
    assert [one.binding for one in desk.ledger.history(command="remark")] == events


def _dead(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_run_when_somebody_releases_the_external_position_then_it_is_counted_again(desk: Desk) -> None:
    desk.run()
    (position,) = desk.ledger.positions("main", state="open")
    desk.ledger.release(key="by hand", position_id=position.position_id)
    desk.run()
    assert figures(desk.ledger, "external=exchange") == (0, D(4000))
    assert desk.ledger.verify().ok


def test_run_when_no_account_is_configured_then_it_says_what_to_set(new_desk: NewDesk) -> None:
    desk = new_desk()
    empty = Reconciler(desk.ledger, desk.engine, LocalInspector(desk.engine, [], desk.settings), desk.settings)
    with pytest.raises(WrongState, match="EXCHANGE_API_KEY"):
        empty.run()


def test_begin_trust_when_restarted_again_and_again_then_no_trust_is_made_of_restarts(
    new_desk: NewDesk, clock: FakeClock
) -> None:
    desk = new_desk()
    desk.reconciler.begin_trust()
    assert desk.ledger.reserve(key="1", tags=TAGS).granted
    for _ in range(4):
        clock.advance(100)
        desk.reconciler.begin_trust()
    assert desk.ledger.reserve(key="2", tags=TAGS).reason == "unreconciled"
    desk.account.positions = None
    desk.run()
    assert desk.ledger.reserve(key="3", tags=TAGS).reason == "unreconciled", "half a picture is no trust"
    desk.account.shows()
    desk.run()
    assert desk.ledger.reserve(key="4", tags=TAGS).granted


def test_compare_when_the_picture_is_old_then_it_is_unknown_and_not_flat(desk: Desk) -> None:
    desk.account.shows(short("1"))
    desk.account.age_us = 301_000_000
    report = desk.run()
    assert [finding.kind for finding in report.findings] == ["fetch_failed"]
    assert "too old" in report.findings[0].detail


# --- the service ---------------------------------------------------------------------------------


def test_serve_when_reconciliation_is_enabled_then_it_runs_and_an_operator_decides_over_http(database_url: str) -> None:
    with PaperServer() as paper:
        exchange = ExchangeSettings(
            api_key=SecretStr(DEFAULT_KEY), api_secret=SecretStr(DEFAULT_SECRET), base_url=paper.url
        )
        reconcile = ReconcileSettings(enabled=True, interval_seconds=1, confirmations=1, grace_seconds=0)
        with (
            serving(database_url, jobs=True, sections={"exchange": exchange, "reconcile": reconcile}) as service,
            LedgerClient(service.url) as client,
        ):
            control = PaperControl(paper.url, "bybit")
            assert eventually(client.reconciliations, LOW_PRIORITY_SECONDS)[-1].trigger == "start"
            control.open("ETH/USDT:USDT", "long", D(2))
            (found,) = eventually(lambda: client.drifts(state="live"), LOW_PRIORITY_SECONDS)
            assert (found.kind, found.state, found.subject) == ("unknown_position", "confirmed", "ETH/USDT:USDT")
            eventually(lambda: client.reserve(key=f"{time.time()}").reason == "unreconciled", LOW_PRIORITY_SECONDS)
            asked = client.close_drift(found.id, reason="not ours")
            assert (asked.requested, asked.actor, asked.state) == ("close", "local", "confirmed")
            said = client.history(command="remark")[0]
            assert json.loads(said.request)["event"] == "close_requested"
            adopted = client.adopt_drift(found.id, reason="ours after all")
            assert adopted.state == "resolved"
            with pytest.raises(WrongState):
                client.ignore_drift(found.id, reason="too late")
            control.deposit("ETH", D(1))
            (coins,) = eventually(lambda: client.drifts(state="live"), LOW_PRIORITY_SECONDS)
            assert client.ignore_drift(coins.id, reason="pays fees", asset=True, policy="fees").state == "resolved"
            decided = client.asset_policies("main")[0]
            assert (decided.pattern, decided.policy, decided.actor) == ("bybit/main/ETH", "fees", "local")
            assert client.take_back_asset_policy(decided.id or 0, reason="a test") == decided
            assert {one.source for one in client.asset_policies()} == {"default"}
            control.deposit("ETH", D(-1))
            eventually(lambda: not client.drifts(state="live").items, LOW_PRIORITY_SECONDS)
            assert [one.tags.get("external") for one in client.positions("main", state="open")] == [None]
            runs = eventually(lambda: _reconciled(client), LOW_PRIORITY_SECONDS)
            assert runs[0].found["agrees"] == 1
            metrics = service.http.get("/metrics").text
            assert 'ledger_job_runs_total{job="reconcile",result="done"}' in metrics
            assert "ledger_reconciliation_age_seconds" in metrics


def _reconciled(client: LedgerClient) -> Any:
    try:
        return client.reconcile()
    except Unavailable:
        return None  # the scheduled run is under way
