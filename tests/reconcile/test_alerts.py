"""Alerts: the webhook gets every alert, signed, despite refusals, killed processes and other failures."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.exc import TimeoutError as SqlTimeoutError

from ledger_sizer import InvalidRequest, ReconcileSettings
from ledger_sizer.reconcile.alerts import DELIVERY_HEADER, SIGNATURE_HEADER, Alerts
from ledger_sizer.reconcile.outbox import enqueue_event
from ledger_sizer.storage.database import make_engine
from ledger_sizer.storage.tables import AlertRow, LeaseRow
from tests.support.accounts import Desk, NewDesk, long
from tests.support.clock import FakeClock
from tests.support.services import eventually
from tests.support.webhooks import Receiver

D = Decimal


@pytest.mark.parametrize(("statuses", "attempts"), [([], 1), ([503], 2), ([429], 2), ([400], 1)])
def test_alert_when_the_webhook_answers_then_it_is_repeated_until_taken_and_signed(
    new_desk: NewDesk, statuses: list[int], attempts: int
) -> None:
    receiver = Receiver(list(statuses))
    desk = new_desk(confirmations=1, webhook_url=SecretStr(receiver.url), webhook_secret=SecretStr("hush"))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.observe(desk.run())
    eventually(lambda: alerts.delivered + alerts.given_up, seconds=30)
    alerts.close()
    assert queued(desk) == []
    receiver.close()
    assert len(receiver.got) == attempts
    assert (alerts.delivered, alerts.given_up) == ((0, 1) if statuses == [400] else (1, 0))
    for headers, body in receiver.got:
        assert headers[SIGNATURE_HEADER] == hmac.new(b"hush", body, hashlib.sha256).hexdigest()
        assert headers[DELIVERY_HEADER] == "run-1-drift_confirmed"
        told = json.loads(body)
        assert (told["event"], told["drift"]["kind"], told["drift"]["excess"]) == (
            "drift_confirmed",
            "unknown_position",
            "2",
        )


def test_alert_when_the_policy_is_to_record_only_then_nobody_is_told(new_desk: NewDesk) -> None:
    receiver = Receiver([])
    desk = new_desk(confirmations=1, policy_unknown_position="record", webhook_url=SecretStr(receiver.url))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.observe(desk.run())
    alerts.close()
    receiver.close()
    assert (receiver.got, queued(desk)) == ([], [])


def queued(desk: Desk) -> list[str]:
    with desk.engine.begin() as connection:
        return list(connection.execute(select(AlertRow.delivery).order_by(AlertRow.id)).scalars())


def test_alert_when_a_webhook_never_takes_it_then_it_is_given_up_after_its_attempts(new_desk: NewDesk) -> None:
    receiver = Receiver([503] * 10)
    desk = new_desk(confirmations=1, webhook_url=SecretStr(receiver.url), webhook_attempts_max=2)
    desk.account.positions = None
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    alerts.observe(desk.run())
    eventually(lambda: alerts.given_up == 1, seconds=30)
    alerts.close()
    receiver.close()
    assert [headers[DELIVERY_HEADER] for headers, _ in receiver.got] == ["run-1-run_failed"] * 2
    assert queued(desk) == []


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///hook", "ftp://hooks.example/x", "hooks.example/secret", "http://h:port/x", "http://h/\n", ""],
)
def test_start_when_the_webhook_is_no_url_then_it_is_refused_by_name_and_not_repeated(
    database_url: str, url: str
) -> None:
    engine = make_engine(database_url)
    with pytest.raises(InvalidRequest, match="RECONCILE_WEBHOOK_URL") as refused:
        Alerts(engine, ReconcileSettings(webhook_url=SecretStr(url)))
    engine.dispose()
    assert "secret" not in str(refused.value)


def test_alert_when_something_unforeseen_breaks_then_it_is_logged_and_delivery_goes_on(
    new_desk: NewDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a missing database connection nor an unusual error of the post ends the thread."""
    receiver = Receiver([])
    desk = new_desk(confirmations=1, webhook_url=SecretStr(receiver.url))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    due, post = alerts._deliver_due, httpx.Client.post
    broken: list[Exception] = [SqlTimeoutError("no connection is free"), RuntimeError("of another kind")]

    def deliver_due(http: httpx.Client) -> float:
        if broken:
            raise broken.pop()
        return due(http)

    refused: list[Exception] = [httpx.InvalidURL("so it says now"), RuntimeError("of another kind")]

    def broken_post(*arguments: Any, **more: Any) -> httpx.Response:
        if refused:
            raise refused.pop()
        return post(*arguments, **more)

    monkeypatch.setattr("ledger_sizer.reconcile.alerts._POLL_SECONDS", 0.05)
    monkeypatch.setattr(alerts, "_deliver_due", deliver_due)
    monkeypatch.setattr(httpx.Client, "post", broken_post)
    alerts.observe(desk.run())
    eventually(lambda: alerts.delivered == 1, seconds=30)
    alerts.close()
    receiver.close()
    assert (broken, refused, queued(desk), len(receiver.got)) == ([], [], [], 1)


_DYING_SCRIPT = """
import os, signal, sys
from datetime import datetime, timezone
from tests.support.accounts import Desk, long
from pydantic import SecretStr
desk = Desk(
    sys.argv[1], lambda: datetime.now(timezone.utc), confirmations=1, stale_after_seconds=None,
    webhook_url=SecretStr(sys.argv[2]),
)
desk.account.shows(long("2", "ETH/USDT:USDT", "2000"))
{where}
{shown}
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
    script = _DYING_SCRIPT.format(where=_DEATHS[moment], shown="")
    died = subprocess.run(
        [sys.executable, "-c", script, database_url, receiver.url], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    before = len(receiver.got)
    assert before == (1 if moment.startswith("after") else 0)
    engine = make_engine(database_url)
    if before:
        with engine.begin() as connection:  # the claim of the killed process would end by itself after 30 s
            connection.execute(update(AlertRow).values(due_us=0))
    alerts = Alerts(engine, ReconcileSettings(webhook_url=SecretStr(receiver.url)))
    alerts.start()
    eventually(lambda: len(receiver.got) > before, seconds=30)
    eventually(lambda: alerts.delivered == 1, seconds=30)
    alerts.close()
    receiver.close()
    engine.dispose()
    assert {headers[DELIVERY_HEADER] for headers, _ in receiver.got} == {"run-1-drift_confirmed"}


def test_alert_when_the_process_is_killed_in_an_outage_then_the_outage_is_told_once(database_url: str) -> None:
    receiver = Receiver([])
    script = _DYING_SCRIPT.format(
        where=_DEATHS["between the record and anything else"], shown="desk.account.positions = None"
    )
    died = subprocess.run(
        [sys.executable, "-c", script, database_url, receiver.url], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    desk = Desk(database_url, FakeClock(datetime.now(UTC)), confirmations=1, webhook_url=SecretStr(receiver.url))
    with desk.engine.begin() as connection:  # the killed run's lease would end by itself
        connection.execute(update(LeaseRow).values(until_us=0))
    alerts = Alerts(desk.engine, desk.settings.reconcile)
    desk.account.positions = None
    for _ in range(3):
        alerts.observe(desk.run())
    desk.account.positions = ()
    alerts.observe(desk.run())
    eventually(lambda: len(receiver.got) == 2 and not queued(desk), seconds=30)
    alerts.close()
    desk.close()
    receiver.close()
    assert [headers[DELIVERY_HEADER] for headers, _ in receiver.got] == ["run-1-run_failed", "run-5-run_good_again"]


def test_alert_when_two_processes_deliver_then_each_alert_is_one_of_theirs(new_desk: NewDesk) -> None:
    receiver = Receiver([])
    desk = new_desk(confirmations=1, webhook_url=SecretStr(receiver.url))
    names = [f"run-{number}" for number in range(20)]
    with desk.engine.begin() as connection:
        for name in names:
            enqueue_event(connection, name, "{}")
    both = [Alerts(desk.engine, desk.settings.reconcile) for _ in range(2)]
    for one in both:
        one.start()
    eventually(lambda: not queued(desk), seconds=30)
    for one in both:
        one.close()
    receiver.close()
    assert sorted(headers[DELIVERY_HEADER] for headers, _ in receiver.got) == sorted(names)
