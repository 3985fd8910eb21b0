"""Exports the chain heads on a schedule: to a file, to the webhook, so that a rewritten history can be proved later.

Whoever writes to the database cannot change what was exported. What was decided after the last export and cut off again
leaves no trace, so the time between exports is the time in which that is possible.
"""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.reconcile.outbox import enqueue_event
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.storage.database import write_transaction
from ledger_sizer.telemetry import get_logger
from ledger_sizer.verify.chain import Head, Heads
from ledger_sizer.verify.head_files import append_heads, read_heads
from ledger_sizer.wire.responses import heads_to_json

log = get_logger(__name__)

_HEADS_OF_DELIVERY = 1000


class HeadExport:
    """The job that exports heads. engine: that may write, for the webhook's outbox."""

    def __init__(self, ledger: Ledger, engine: Engine, settings: AppSettings, metrics: Metrics) -> None:
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._exported: dict[str, Head] | None = None

    @property
    def wanted(self) -> bool:
        """Whether the settings name a place to export to."""
        reconcile = self._settings.reconcile
        return bool(self._settings.ledger.heads_file or (reconcile.webhook_heads and reconcile.webhook_url))

    def __call__(self) -> str | None:
        """Export the heads that changed since the last export. Returns `went_back` if a chain is not what it was.

        Raises `Unavailable` if the database cannot be read or the file cannot be written: nothing was exported then.
        """
        heads = self._ledger.heads()
        exported = self._read_exported() if self._exported is None else self._exported
        changed = {name: head for name, head in heads.items() if exported.get(name) != head}
        went_back = _went_back(exported, heads)
        now = datetime.now(UTC)
        file = self._settings.ledger.heads_file
        if file:
            append_heads(Path(file), now, changed, lambda: heads, self._settings.ledger.heads_file_bytes_max)
        self._enqueue(now, changed, {name: (exported[name], heads.get(name)) for name in went_back})
        for name in went_back:
            log.error("heads.went_back", portfolio=name, exported=exported[name], found=heads.get(name))
        self._exported = heads
        self._metrics.heads_exported.set(time.time())
        return "went_back" if went_back else None

    def _read_exported(self) -> dict[str, Head]:
        """Return the heads that an earlier process exported to the file."""
        path = Path(self._settings.ledger.heads_file)
        if not self._settings.ledger.heads_file or not path.exists():
            return {}
        try:
            return read_heads(path).last
        except (OSError, ValueError) as error:
            log.warning("heads.file_unreadable", file=str(path), error=str(error))
            return {}

    def _enqueue(self, now: datetime, changed: Heads, went_back: Mapping[str, tuple[Head, Head | None]]) -> None:
        """Store the webhook's deliveries. Does nothing without a webhook."""
        if self._settings.reconcile.webhook_url is None:
            return
        at, moment = now.isoformat(timespec="seconds"), int(now.timestamp() * 1_000_000)
        deliveries = []
        if self._settings.reconcile.webhook_heads:
            rest = list(changed.items())
            for start in range(0, len(rest), _HEADS_OF_DELIVERY):
                part = dict(rest[start : start + _HEADS_OF_DELIVERY])
                deliveries.append((f"heads-{moment}-{start}", {"event": "heads", "at": at, **heads_to_json(part)}))
        for name, (before, found) in went_back.items():
            forms = {"exported": before, "found": found}
            shown = {key: head and {"seq": head[0], "hash": head[1]} for key, head in forms.items()}
            deliveries.append(
                (f"head-{name}-{moment}", {"event": "head_went_back", "at": at, "portfolio": name, **shown})
            )
        if deliveries:
            with write_transaction(self._engine) as connection:
                for delivery, body in deliveries:
                    enqueue_event(connection, delivery, json.dumps(body))


def _went_back(exported: Heads, heads: Heads) -> list[str]:
    """Return the portfolios whose chain ends before what was exported, or there with another hash."""
    return [
        name
        for name, (seq, hash_) in exported.items()
        if name not in heads or heads[name][0] < seq or (heads[name][0] == seq and heads[name][1] != hash_)
    ]
