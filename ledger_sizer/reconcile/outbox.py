"""Outbox of the webhook: stores alerts in the transaction of the run that raises them. `alerts` delivers them."""

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, insert

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.storage.tables import AlertRow
from ledger_sizer.wire.reconciliation import drift_to_json, run_to_json


def alert_events(
    confirmed: Iterable[Drift], resolved: Iterable[Drift], settings: ReconcileSettings
) -> list[tuple[str, Drift]]:
    """Return the events of a run that raise an alert, with their drifts.

    `drift_confirmed`, and `drift_resolved` for drifts that had been confirmed; none for the policy `record`.
    """
    events = [("drift_confirmed", drift) for drift in confirmed]
    events += [("drift_resolved", drift) for drift in resolved if drift.sightings >= settings.confirmations]
    return [(event, drift) for event, drift in events if drift.policy != "record"]


def enqueue_alerts(
    connection: Connection, run: Run, confirmed: Sequence[Drift], resolved: Sequence[Drift], settings: ReconcileSettings
) -> None:
    """Store the alerts of a run, in the transaction that records it. Does nothing without a webhook."""
    if settings.webhook_url is None:
        return
    alerts = [
        (f"{drift.name}-{event}", {"event": event, "drift": drift_to_json(drift)})
        for event, drift in alert_events(confirmed, resolved, settings)
    ]
    if run.outcome != "good":
        alerts.append((f"run-{run.id}", {"event": "run_failed", "run": run_to_json(run)}))
    for name, body in alerts:
        enqueue_event(connection, name, json.dumps(body))


def enqueue_event(connection: Connection, delivery: str, body: str) -> None:
    """Store one delivery. delivery: its idempotency key. body: JSON."""
    connection.execute(insert(AlertRow), {"delivery": delivery, "body": body, "attempts": 0, "due_us": 0})
