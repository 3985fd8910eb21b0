"""Runs: one at a time, recorded once, fenced by their lease; alerts that arrive; a service that schedules them."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from ledger_sizer import Busy, ReconcileSettings, WrongState
from ledger_sizer.client import LedgerClient
from ledger_sizer.config import ExchangeSettings
from ledger_sizer.database import make_engine
from ledger_sizer.errors import Unavailable
from ledger_sizer.leases import LeaseLost
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET, PaperControl
from ledger_sizer.paper.server import PaperServer
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.alerts import DELIVERY_HEADER, SIGNATURE_HEADER, Alerts
from ledger_sizer.reconcile.look import LookHere
from ledger_sizer.reconcile.run import LEASE_NAME, Reconciler
from ledger_sizer.tables import AlertRow, LeaseRow
from tests.accounts import Desk, WrittenAccount, long, short
from tests.clocks import FakeClock
from tests.desk import TAGS, figures
from tests.service import eventually, serving

D = Decimal


@pytest.fixture
def desk(database_url: str, clock: FakeClock) -> Iterator[Desk]:
    """An account with a position that the ledger lacks."""
    desk = Desk(database_url, clock, confirmations=1)
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    yield desk
    desk.close()


def replica(desk: Desk, account: WrittenAccount) -> Reconciler:
    """Another process's reconciler, as far as the database can tell."""
    look = LookHere(desk.engine, [account], desk.settings, clock=desk.clock)
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
    assert [run.epoch for run in drifts.runs(desk.engine)] == [2, 1], (
        "a lease that was given up and taken has a new epoch"
    )


def test_run_when_it_was_paused_past_its_lease_then_it_writes_nothing_at_all(desk: Desk) -> None:
    """The holder falls asleep while it fetches; another takes over, and the sleeper wakes with an old picture."""
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
    assert len(drifts.runs(desk.engine)) == 1
    assert len(drifts.listed(desk.engine)) == 0
    assert figures(desk.ledger) == (0, 0)
    assert [one.command for one in desk.ledger.history()] == ["reconciled"], "the other's, and nothing of the sleeper"
    assert issubclass(LeaseLost, Unavailable)


def test_run_when_dry_then_it_finds_and_leaves_no_trace(desk: Desk) -> None:
    (report,) = desk.reconciler.run(dry_run=True)
    assert [finding.kind for finding in report.findings] == ["unknown_position"]
    assert (report.run.id, len(drifts.runs(desk.engine)), desk.ledger.portfolios()) == (0, 0, [])


def test_run_when_a_run_died_between_its_record_and_its_effects_then_the_next_one_makes_up_for_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ledger_sizer.reconcile.run.Effects", _dead)
        with pytest.raises(KeyboardInterrupt):
            desk.run()
    assert len(drifts.listed(desk.engine, state="live")) == 1
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


def test_run_when_no_account_is_configured_then_it_says_what_to_set(database_url: str, clock: FakeClock) -> None:
    desk = Desk(database_url, clock)
    empty = Reconciler(desk.ledger, desk.engine, LookHere(desk.engine, [], desk.settings), desk.settings)
    with pytest.raises(WrongState, match="EXCHANGE_API_KEY"):
        empty.run()
    desk.close()


def test_begin_trust_when_restarted_again_and_again_then_no_trust_is_made_of_restarts(
    database_url: str, clock: FakeClock
) -> None:
    desk = Desk(database_url, clock)
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
    desk.close()


def test_compare_when_the_picture_is_old_then_it_is_unknown_and_not_flat(desk: Desk) -> None:
    desk.account.shows(short("1"))
    desk.account.age_us = 301_000_000
    report = desk.run()
    assert [finding.kind for finding in report.findings] == ["fetch_failed"]
    assert "too old" in report.findings[0].detail


# --- alerts --------------------------------------------------------------------------------------


class Receiver:
    """A webhook's other end on loopback. It answers with `statuses` in turn, then 200."""

    def __init__(self, statuses: list[int]) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(statuses.pop(0) if statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.mark.parametrize(("statuses", "attempts"), [([], 1), ([503], 2), ([429], 2), ([400], 1)])
def test_alert_when_the_webhook_answers_then_it_is_repeated_until_taken_and_signed(
    database_url: str, clock: FakeClock, statuses: list[int], attempts: int
) -> None:
    receiver = Receiver(list(statuses))
    desk = Desk(
        database_url, clock, confirmations=1, webhook_url=SecretStr(receiver.url), webhook_secret=SecretStr("hush")
    )
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.observe(desk.run())
    eventually(lambda: alerts.delivered + alerts.given_up, seconds=30)
    alerts.close()
    assert owed(desk) == []
    desk.close()
    receiver.close()
    assert len(receiver.got) == attempts
    assert (alerts.delivered, alerts.given_up) == ((0, 1) if statuses == [400] else (1, 0))
    for headers, body in receiver.got:
        assert headers[SIGNATURE_HEADER] == hmac.new(b"hush", body, hashlib.sha256).hexdigest()
        assert headers[DELIVERY_HEADER] == "drift-1-drift_confirmed"
        told = json.loads(body)
        assert (told["event"], told["drift"]["kind"], told["drift"]["excess"]) == (
            "drift_confirmed",
            "unknown_position",
            "2",
        )


def test_alert_when_the_policy_is_to_record_only_then_nobody_is_told(database_url: str, clock: FakeClock) -> None:
    receiver = Receiver([])
    desk = Desk(
        database_url, clock, confirmations=1, policy_unknown_position="record", webhook_url=SecretStr(receiver.url)
    )
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.observe(desk.run())
    alerts.close()
    receiver.close()
    assert (receiver.got, owed(desk)) == ([], [])
    desk.close()


def owed(desk: Desk) -> list[str]:
    with desk.engine.begin() as connection:
        return list(connection.execute(select(AlertRow.delivery).order_by(AlertRow.id)).scalars())


def test_alert_when_a_webhook_never_takes_it_then_it_is_given_up_after_its_attempts(
    database_url: str, clock: FakeClock
) -> None:
    receiver = Receiver([503] * 10)
    desk = Desk(database_url, clock, confirmations=1, webhook_url=SecretStr(receiver.url), webhook_attempts_max=2)
    desk.account.positions = None
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.observe(desk.run())
    eventually(lambda: alerts.given_up == 2, seconds=30)
    alerts.close()
    receiver.close()
    assert {headers[DELIVERY_HEADER] for headers, _ in receiver.got} == {"run-1", "drift-1-drift_confirmed"}
    assert len(receiver.got) == 4
    assert owed(desk) == []
    desk.close()


_DYING = """
import os, signal, sys
from datetime import datetime, timezone
from tests.accounts import Desk, long
from pydantic import SecretStr
desk = Desk(
    sys.argv[1], lambda: datetime.now(timezone.utc), confirmations=1, stale_after_seconds=None,
    webhook_url=SecretStr(sys.argv[2]),
)
desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
{where}
desk.reconciler.run()
"""
_DEATHS = {
    "between the record and anything else":
        "from ledger_sizer.reconcile import run\n"
        "run.Effects = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before the delivery":
        "desk.reconciler._observe = [lambda _: os.kill(os.getpid(), signal.SIGKILL)]",
    "after the delivery, before it knows":
        "from ledger_sizer.reconcile.alerts import Alerts\n"
        "alerts = Alerts(desk.engine, desk.settings.reconcile)\n"
        "post = alerts._post\n"
        "def posted(*arguments):\n"
        "    post(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "alerts._post = posted\n"
        "desk.reconciler._observe = [alerts.observe, lambda _: signal.pause()]",
}  # fmt: skip


@pytest.mark.parametrize("moment", _DEATHS)
def test_alert_when_the_process_is_killed_at_any_moment_then_the_next_one_delivers_it(
    database_url: str, moment: str
) -> None:
    receiver = Receiver([])
    script = _DYING.format(where=_DEATHS[moment])
    died = subprocess.run(
        [sys.executable, "-c", script, database_url, receiver.url], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    before = len(receiver.got)
    assert before == (1 if moment.startswith("after") else 0)
    engine = make_engine(database_url)
    if before:
        with engine.begin() as connection:  # the claim of the dead would end by itself, after half a minute
            connection.execute(update(AlertRow).values(due_us=0))
    alerts = Alerts(engine, ReconcileSettings(webhook_url=SecretStr(receiver.url)))
    alerts.start()
    eventually(lambda: len(receiver.got) > before, seconds=30)
    eventually(lambda: alerts.delivered == 1, seconds=30)
    alerts.close()
    receiver.close()
    engine.dispose()
    assert {headers[DELIVERY_HEADER] for headers, _ in receiver.got} == {"drift-1-drift_confirmed"}


def test_alert_when_two_processes_deliver_then_each_alert_is_one_of_theirs(database_url: str, clock: FakeClock) -> None:
    receiver = Receiver([])
    desk = Desk(database_url, clock, confirmations=1, webhook_url=SecretStr(receiver.url))
    desk.account.shows(*(long("2", f"C{n}/USDT:USDT", "2000") for n in range(20)))
    desk.run()
    both = [Alerts(desk.engine, desk.settings.reconcile) for _ in range(2)]
    for one in both:
        one.start()
    eventually(lambda: not owed(desk), seconds=30)
    for one in both:
        one.close()
    receiver.close()
    told = sorted(headers[DELIVERY_HEADER] for headers, _ in receiver.got)
    assert told == sorted(f"drift-{n}-drift_confirmed" for n in range(1, 21))
    desk.close()


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
            assert _wait(client.reconciliations)[-1].trigger == "start"
            control.open("ETH/USDT:USDT", "long", D(2))
            (found,) = _wait(lambda: client.drifts(state="live"))
            assert (found.kind, found.state, found.subject) == ("unknown_position", "confirmed", "ETH/USDT:USDT")
            _wait(lambda: client.reserve(key=f"{time.time()}").reason == "unreconciled")
            asked = client.close_drift(found.id, reason="not ours")
            assert (asked.requested, asked.actor, asked.state) == ("close", "loopback", "confirmed")
            said = client.history(command="remark")[0]
            assert json.loads(said.request)["event"] == "close_requested"
            adopted = client.adopt_drift(found.id, reason="ours after all")
            assert adopted.state == "resolved"
            with pytest.raises(WrongState):
                client.ignore_drift(found.id, reason="too late")
            assert [one.tags.get("external") for one in client.positions("main", state="open")] == [None]
            runs = _wait(lambda: _reconciled(client))
            assert runs[0].found["agrees"] == 1
            metrics = service.http.get("/metrics").text
            assert 'ledger_job_runs_total{job="reconcile",result="done"}' in metrics
            assert "ledger_reconciliation_age_seconds" in metrics


def _reconciled(client: LedgerClient) -> Any:
    try:
        return client.reconcile()
    except Unavailable:
        return None  # the scheduled one is under way


def _wait(look: Any, seconds: float = 20) -> Any:
    """What `look` returns once it is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")
