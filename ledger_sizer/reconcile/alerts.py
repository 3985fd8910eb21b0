"""Logs drifts, and delivers the alerts in the outbox to a webhook until it accepts them or the attempts are used up.

Alerts stay in the database until then (see `outbox`). If a process dies around a delivery, another one goes on.
A receiver recognises a repeated alert by its delivery header.
"""

import hashlib
import hmac
import threading
from typing import TYPE_CHECKING, Any

import httpx
from sqlalchemy import Engine, delete, func, select, update

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.reconcile.outbox import told_drifts
from ledger_sizer.storage.database import database_now_us, read_transaction, write_transaction
from ledger_sizer.storage.tables import AlertRow
from ledger_sizer.telemetry import get_logger

if TYPE_CHECKING:
    from ledger_sizer.model.reconciliation import Report

log = get_logger(__name__)

SIGNATURE_HEADER = "X-Ledger-Signature"
DELIVERY_HEADER = "X-Ledger-Delivery"
"""Idempotency key: the same for every attempt of one alert, so that the receiver can recognise a repetition."""

_POLL_SECONDS = 5.0
_TIMEOUT_SECONDS = 10
_CLAIM_SECONDS = 30
_PAUSE_SECONDS_MAX = 60


class Alerts:
    """Logs what runs found, and delivers alerts to the webhook. Pass `observe` to a `Reconciler`.

    The webhook gets JSON with `event` and `text` (see `alert_texts`), signed with HMAC-SHA256 of its bytes under
    `webhook_secret`, in hex. Several processes may deliver; each claims an alert before it sends it.
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
        """Start delivery, including alerts that an earlier process left. Does nothing without a webhook."""
        if self._settings.webhook_url is not None and self._thread is None:
            self._thread = threading.Thread(target=self._deliver_all, name="reconcile-alerts", daemon=True)
            self._thread.start()

    def observe(self, report: "Report") -> None:
        """Log the changes of a run, and deliver its alerts now."""
        confirmed, ended = told_drifts(report.confirmed, report.resolved, self._settings)
        for event, drifts, level in (("confirmed", confirmed, log.warning), ("resolved", ended, log.info)):
            for one in drifts:
                said = {"drift": one.id, "portfolio": one.portfolio, "kind": one.kind, "detail": one.detail}
                level(f"reconcile.drift_{event}", **said)
        if report.run.outcome != "good":
            log.warning("reconcile.run_not_good", portfolio=report.run.portfolio, fetched=report.run.fetched)
        self.start()
        self._wake.set()

    def close(self, timeout_seconds: float = 5) -> None:
        """Deliver what can be delivered in that time, and stop. The rest stays in the outbox."""
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
                stopping = self._stopping  # read before the round, so that the last round misses nothing
                try:
                    pause = self._deliver_due(http)
                except Exception as error:  # noqa: BLE001 - the thread must survive, or all alerts would stop
                    log.warning("reconcile.alerts_failed", kind=type(error).__name__, error=str(error).strip())
                    pause = _POLL_SECONDS
                if stopping:
                    return
                self._wake.wait(pause)
                self._wake.clear()

    def _deliver_due(self, http: httpx.Client) -> float:
        """Try every due alert once, oldest first. Returns the seconds until the next round."""
        due = select(AlertRow.id, AlertRow.delivery, AlertRow.body, AlertRow.attempts, AlertRow.due_us)
        # A time later than any pause can set is that of a wrong clock: such an alert would wait for years.
        wrong_us = database_now_us() + 2 * max(_PAUSE_SECONDS_MAX, _CLAIM_SECONDS) * 1_000_000
        due = due.where((AlertRow.due_us <= database_now_us()) | (AlertRow.due_us > wrong_us))
        with read_transaction(self._engine) as connection:
            rows = connection.execute(due.order_by(AlertRow.id)).all()
        for number, delivery, body, attempts, due_us in rows:
            if self._stopped.is_set():
                break
            if self._claim(number, due_us):
                self._deliver(http, number, delivery, body, attempts + 1)
        with read_transaction(self._engine) as connection:
            wait_us = connection.execute(select(func.min(AlertRow.due_us) - database_now_us())).scalar()
        return _POLL_SECONDS if wait_us is None else min(max(wait_us / 1_000_000, 0), _POLL_SECONDS)

    def _claim(self, number: int, due_us: int) -> bool:
        """Claim an alert by compare-and-set on its due time. If this process dies, it is due again after 30 s."""
        claim = update(AlertRow).where(AlertRow.id == number, AlertRow.due_us == due_us)
        until = database_now_us() + _CLAIM_SECONDS * 1_000_000
        with write_transaction(self._engine) as connection:
            claimed = connection.execute(claim.values(due_us=until, attempts=AlertRow.attempts + 1))
            return claimed.rowcount == 1

    def _deliver(self, http: httpx.Client, number: int, delivery: str, body: str, attempt: int) -> None:
        """Make one attempt; then delete the alert, or schedule a retry with exponential back-off."""
        outcome = self._post(http, delivery, body.encode(), attempt)
        if outcome == "retry" and attempt < self._settings.webhook_attempts_max:
            pause = min(2 ** (attempt - 1), _PAUSE_SECONDS_MAX)
            due = update(AlertRow).where(AlertRow.id == number)
            with write_transaction(self._engine) as connection:
                connection.execute(due.values(due_us=database_now_us() + pause * 1_000_000))
            return
        with write_transaction(self._engine) as connection:
            connection.execute(delete(AlertRow).where(AlertRow.id == number))
        if outcome == "accepted":
            self.delivered += 1
        else:
            self.given_up += 1
            log.error("reconcile.alert_given_up", delivery=delivery, attempts=attempt)

    def _post(self, http: httpx.Client, delivery: str, body: bytes, attempt: int) -> str:
        """Post once. Returns `accepted`, `refused` (a 4xx other than 408, 425 and 429) or `retry`."""
        assert self._settings.webhook_url is not None, "the thread runs only with a webhook"
        headers = {"Content-Type": "application/json", DELIVERY_HEADER: delivery, **self._signature(body)}
        try:
            status = http.post(self._settings.webhook_url.get_secret_value(), content=body, headers=headers).status_code
        except Exception as error:  # noqa: BLE001 - any failure counts as one of the alert's attempts
            log.warning("reconcile.alert_failed", delivery=delivery, attempt=attempt, error=type(error).__name__)
            return "retry"
        if status < 300:
            return "accepted"
        log.warning("reconcile.alert_failed", delivery=delivery, attempt=attempt, status=status)
        return "refused" if 400 <= status < 500 and status not in (408, 425, 429) else "retry"

    def _signature(self, body: bytes) -> dict[str, Any]:
        secret = self._settings.webhook_secret
        if secret is None:
            return {}
        return {SIGNATURE_HEADER: hmac.new(secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()}


def _require_postable(settings: ReconcileSettings) -> None:
    """Reject a bad URL at start-up, not at the first alert. The error omits the URL: its path may be a secret."""
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
