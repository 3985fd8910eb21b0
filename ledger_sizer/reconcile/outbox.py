"""What the webhook is owed: written with the run that found it, in one transaction; `alerts` delivers it."""

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, insert

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.reconciliation import Drift, Run
from ledger_sizer.storage.tables import AlertRow
from ledger_sizer.wire.reconciliation import drift_to_json, run_to_json


def events_of(
    confirmed: Iterable[Drift], resolved: Iterable[Drift], settings: ReconcileSettings
) -> list[tuple[str, Drift]]:
    """What of a run's drifts is told: `drift_confirmed`, and `drift_resolved` of those that had been confirmed.

    Drifts whose policy is `record` are not told of.
    """
    found = [("drift_confirmed", drift) for drift in confirmed]
    found += [("drift_resolved", drift) for drift in resolved if drift.sightings >= settings.confirmations]
    return [(event, drift) for event, drift in found if drift.policy != "record"]


def enqueue_alerts(
    connection: Connection, run: Run, confirmed: Sequence[Drift], resolved: Sequence[Drift], settings: ReconcileSettings
) -> None:
    """Write down what the webhook is owed for a run, in the transaction that records it."""
    if settings.webhook_url is None:
        return
    owed = [
        (f"{drift.name}-{event}", {"event": event, "drift": drift_to_json(drift)})
        for event, drift in events_of(confirmed, resolved, settings)
    ]
    if run.outcome != "good":
        owed.append((f"run-{run.id}", {"event": "run_failed", "run": run_to_json(run)}))
    if owed:
        rows = [{"delivery": name, "body": json.dumps(form), "attempts": 0, "due_us": 0} for name, form in owed]
        connection.execute(insert(AlertRow), rows)
