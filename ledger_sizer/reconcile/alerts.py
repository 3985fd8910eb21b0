"""Telling others of drifts: the log at once, a webhook with retries in a thread of its own."""

import hashlib
import hmac
import json
import queue
import threading
from typing import Any

import httpx

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.reconcile.forms import drift_to_json, run_to_json
from ledger_sizer.reconcile.kinds import Drift
from ledger_sizer.reconcile.run import Report
from ledger_sizer.telemetry import get_logger
from ledger_sizer.wire.answers import Json

log = get_logger(__name__)

SIGNATURE_HEADER = "X-Ledger-Signature"
DELIVERY_HEADER = "X-Ledger-Delivery"
"""The same for every attempt of one alert, so that the receiver can tell a repeated one."""

_QUEUE_MAX = 1000
_TIMEOUT_SECONDS = 10
_PAUSE_SECONDS_MAX = 60.0


class Alerts:
    """Give `observe` to a `Reconciler`. Posts `{"event": ..., "drift": {...}}` or `{"event": ..., "run": {...}}`.

    Events: `drift_confirmed`, `drift_resolved` (of drifts whose policy is not `record`), `run_failed`.
    A signed body carries HMAC-SHA256 of its bytes under `webhook_secret`, in hex.
    """

    def __init__(self, settings: ReconcileSettings) -> None:
        self._settings = settings
        self._waiting: queue.Queue[tuple[str, Json] | None] = queue.Queue(_QUEUE_MAX)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.delivered = 0
        self.given_up = 0

    def observe(self, report: Report) -> None:
        """Tell what a run changed."""
        for drift in report.confirmed:
            self._drift("drift_confirmed", drift)
        for drift in report.resolved:
            if drift.sightings >= self._settings.confirmations:
                self._drift("drift_resolved", drift)
        if report.run.outcome != "good":
            log.warning("reconcile.run_not_good", portfolio=report.run.portfolio, fetched=report.run.fetched)
            self._send(f"run-{report.run.id}", {"event": "run_failed", "run": run_to_json(report.run)})

    def _drift(self, event: str, drift: Drift) -> None:
        if drift.policy == "record":
            return
        level = log.info if event == "drift_resolved" else log.warning
        level(f"reconcile.{event}", drift=drift.id, portfolio=drift.portfolio, kind=drift.kind, detail=drift.detail)
        self._send(f"{drift.name}-{event}", {"event": event, "drift": drift_to_json(drift)})

    def _send(self, delivery: str, form: Json) -> None:
        if self._settings.webhook_url is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver_all, name="reconcile-alerts", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((delivery, form))
        except queue.Full:
            self.given_up += 1
            log.error("reconcile.alert_dropped", delivery=delivery, waiting=_QUEUE_MAX)

    def close(self, timeout_seconds: float = 5) -> None:
        """Deliver what can be delivered in that time, and stop."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout_seconds)
            self._stopping.set()
            self._thread.join(_TIMEOUT_SECONDS)

    def _deliver_all(self) -> None:
        assert self._settings.webhook_url is not None, "the thread starts with the first alert to post"
        url = self._settings.webhook_url.get_secret_value()
        with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as http:
            while (alert := self._waiting.get()) is not None:
                if self._delivered(http, url, *alert):
                    self.delivered += 1
                else:
                    self.given_up += 1
                    log.error("reconcile.alert_given_up", delivery=alert[0])

    def _delivered(self, http: httpx.Client, url: str, delivery: str, form: Json) -> bool:
        """Post until it is taken; a refusal (4xx) is not repeated, but for 408, 425 and 429."""
        body = json.dumps(form).encode()
        headers = {"Content-Type": "application/json", DELIVERY_HEADER: delivery, **self._signature(body)}
        for attempt in range(self._settings.webhook_attempts_max):
            if attempt and self._stopping.wait(min(0.5 * 2**attempt, _PAUSE_SECONDS_MAX)):
                return False
            try:
                status = http.post(url, content=body, headers=headers).status_code
            except httpx.HTTPError as error:
                log.warning(
                    "reconcile.alert_failed", delivery=delivery, attempt=attempt + 1, error=type(error).__name__
                )
                continue
            if status < 300:
                return True
            log.warning("reconcile.alert_failed", delivery=delivery, attempt=attempt + 1, status=status)
            if 400 <= status < 500 and status not in (408, 425, 429):
                return False
        return False

    def _signature(self, body: bytes) -> dict[str, Any]:
        secret = self._settings.webhook_secret
        if secret is None:
            return {}
        return {SIGNATURE_HEADER: hmac.new(secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()}
