"""Telling others of drifts: the log at once, a webhook until it takes them or has had its attempts.

What the webhook is owed stands in the database until then (see `owed`), so whoever dies on the way, before or after a
delivery, another process goes on. A receiver tells a repeated alert by its delivery's name.
"""

import hashlib
import hmac
import threading
from typing import TYPE_CHECKING, Any

import httpx
from sqlalchemy import Engine, delete, func, select, update

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.reconcile.outbox import events_of
from ledger_sizer.storage.database import database_now_us, read_transaction
from ledger_sizer.storage.tables import AlertRow
from ledger_sizer.telemetry import get_logger

if TYPE_CHECKING:
    from ledger_sizer.model.reconciliation import Report

log = get_logger(__name__)

SIGNATURE_HEADER = "X-Ledger-Signature"
DELIVERY_HEADER = "X-Ledger-Delivery"
"""The same for every attempt of one alert, so that the receiver can tell a repeated one."""

_LOOK_SECONDS = 5.0
_TIMEOUT_SECONDS = 10
_CLAIM_SECONDS = 30
_PAUSE_SECONDS_MAX = 60


class Alerts:
    """Logs what runs found, and delivers what the webhook is owed. Give `observe` to a `Reconciler`.

    The webhook gets `{"event": ..., "drift": {...}}` or `{"event": ..., "run": {...}}`, signed with HMAC-SHA256 of its
    bytes under `webhook_secret`, in hex. Several processes may deliver: each alert is one's at a time.
    Raises `InvalidRequest` for a `webhook_url` that nothing can be posted to.
    """

    def __init__(self, engine: Engine, settings: ReconcileSettings) -> None:
        _require_postable(settings)
        self._engine = engine
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.delivered = 0
        self.given_up = 0

    def start(self) -> None:
        """Deliver from now on, first of all what an earlier process still owed. Nothing to do without a webhook."""
        if self._settings.webhook_url is not None and self._thread is None:
            self._thread = threading.Thread(target=self._deliver_all, name="reconcile-alerts", daemon=True)
            self._thread.start()

    def observe(self, report: "Report") -> None:
        """Log what a run changed, and deliver what it owes."""
        for event, drift in events_of(report.confirmed, report.resolved, self._settings):
            level = log.info if event == "drift_resolved" else log.warning
            level(f"reconcile.{event}", drift=drift.id, portfolio=drift.portfolio, kind=drift.kind, detail=drift.detail)
        if report.run.outcome != "good":
            log.warning("reconcile.run_not_good", portfolio=report.run.portfolio, fetched=report.run.fetched)
        self.start()
        self._wake.set()

    def close(self, timeout_seconds: float = 5) -> None:
        """Deliver what can be delivered in that time, and stop; the rest is owed on."""
        if self._thread is not None:
            self._stopping = True
            self._wake.set()
            self._thread.join(timeout_seconds)
            self._stopped.set()
            self._thread.join(_TIMEOUT_SECONDS)

    # --- the thread ------------------------------------------------------------------------------

    def _deliver_all(self) -> None:
        with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as http:
            while not self._stopped.is_set():
                stopping = self._stopping  # read before the last round, which then misses nothing
                try:
                    pause = self._deliver_due(http)
                except Exception as error:  # noqa: BLE001 - without this thread nobody would be told of anything more
                    log.warning("reconcile.alerts_failed", kind=type(error).__name__, error=str(error).strip())
                    pause = _LOOK_SECONDS
                if stopping:
                    return
                self._wake.wait(pause)
                self._wake.clear()

    def _deliver_due(self, http: httpx.Client) -> float:
        """Try every alert that is due once, oldest first. Returns the seconds until there may be more to do."""
        due = select(AlertRow.id, AlertRow.delivery, AlertRow.body, AlertRow.attempts, AlertRow.due_us)
        with read_transaction(self._engine) as connection:
            rows = connection.execute(due.where(AlertRow.due_us <= database_now_us()).order_by(AlertRow.id)).all()
        for number, delivery, body, attempts, due_us in rows:
            if self._stopped.is_set():
                break
            if self._claimed(number, due_us):
                self._deliver(http, number, delivery, body, attempts + 1)
        with read_transaction(self._engine) as connection:
            waits_us = connection.execute(select(func.min(AlertRow.due_us) - database_now_us())).scalar()
        return _LOOK_SECONDS if waits_us is None else min(max(waits_us / 1_000_000, 0), _LOOK_SECONDS)

    def _claimed(self, number: int, due_us: int) -> bool:
        """Take an alert from other processes for a while; if this one dies, it is due again after that."""
        claim = update(AlertRow).where(AlertRow.id == number, AlertRow.due_us == due_us)
        until = database_now_us() + _CLAIM_SECONDS * 1_000_000
        with self._engine.begin() as connection:
            taken = connection.execute(claim.values(due_us=until, attempts=AlertRow.attempts + 1))
            return taken.rowcount == 1

    def _deliver(self, http: httpx.Client, number: int, delivery: str, body: str, attempt: int) -> None:
        """One attempt, and what follows from it."""
        outcome = self._post(http, delivery, body.encode(), attempt)
        if outcome == "again" and attempt < self._settings.webhook_attempts_max:
            pause = min(2 ** (attempt - 1), _PAUSE_SECONDS_MAX)
            due = update(AlertRow).where(AlertRow.id == number)
            with self._engine.begin() as connection:
                connection.execute(due.values(due_us=database_now_us() + pause * 1_000_000))
            return
        with self._engine.begin() as connection:
            connection.execute(delete(AlertRow).where(AlertRow.id == number))
        if outcome == "taken":
            self.delivered += 1
        else:
            self.given_up += 1
            log.error("reconcile.alert_given_up", delivery=delivery, attempts=attempt)

    def _post(self, http: httpx.Client, delivery: str, body: bytes, attempt: int) -> str:
        """`taken`, `refused` (a 4xx but for 408, 425 and 429) or `again`."""
        assert self._settings.webhook_url is not None, "the thread runs only with a webhook"
        headers = {"Content-Type": "application/json", DELIVERY_HEADER: delivery, **self._signature(body)}
        try:
            status = http.post(self._settings.webhook_url.get_secret_value(), content=body, headers=headers).status_code
        except Exception as error:  # noqa: BLE001 - however it failed, it was one of the alert's attempts
            log.warning("reconcile.alert_failed", delivery=delivery, attempt=attempt, error=type(error).__name__)
            return "again"
        if status < 300:
            return "taken"
        log.warning("reconcile.alert_failed", delivery=delivery, attempt=attempt, status=status)
        return "refused" if 400 <= status < 500 and status not in (408, 425, 429) else "again"

    def _signature(self, body: bytes) -> dict[str, Any]:
        secret = self._settings.webhook_secret
        if secret is None:
            return {}
        return {SIGNATURE_HEADER: hmac.new(secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()}


def _require_postable(settings: ReconcileSettings) -> None:
    """Refuse a bad URL at the start, rather than at the first alert. It is not repeated: its path may be a secret."""
    if settings.webhook_url is None:
        return
    try:
        url = httpx.URL(settings.webhook_url.get_secret_value())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidRequest(
            "RECONCILE_WEBHOOK_URL is no URL that alerts can be posted to; write https://host/path, or unset it",
            field="webhook_url",
        )
