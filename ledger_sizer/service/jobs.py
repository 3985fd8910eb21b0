"""Scheduled jobs: free expired holds, archive old history, reconcile the ledger with the exchange.

`bootstrap` says which of them run, and how often. Of several replicas on one database, only the holder of a lease (see
`storage.leases`) runs jobs. Another replica takes over when the lease ends. Two sweeps at once free no hold twice,
because a sweep runs in the ledger like any command.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.choices import Trigger
from ledger_sizer.model.errors import Busy, LedgerError
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.storage.leases import Lease, acquire_lease, release_lease
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

LEASE_NAME = "jobs"


class Jobs:
    """The scheduler of one replica."""

    def __init__(self, engine: Engine, lease_seconds: int, metrics: Metrics) -> None:
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._metrics = metrics
        self._lease: Lease | None = None
        self._lease_asked_at = float("-inf")
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            # A long sweep and a long archiving must not keep the reconciliation waiting.
            executors={"default": ThreadPoolExecutor(3)},
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": 30},
        )

    def every(self, name: str, seconds: int, work: Callable[[], object], *, at_start: bool = True) -> None:
        """Schedule `work` at the start and then every `seconds`. It runs while this replica holds the lease.

        Call before `start`. If `work` returns text, the metric counts that as its result instead of `done`.
        """
        first = {"next_run_time": datetime.now(UTC)} if at_start else {}
        self._scheduler.add_job(self._run, "interval", args=(name, work), seconds=seconds, id=name, **first)

    def _run(self, name: str, work: Callable[[], object]) -> None:
        result = "failed"
        try:
            if self.lease() is None:
                result = "not_leader"
                return
            returned = work()
            result = returned if isinstance(returned, str) else "done"
        except LedgerError as error:
            log.warning("jobs.failed", job=name, error=str(error).strip())
        finally:
            self._metrics.job_runs.labels(name, result).inc()

    def start(self) -> None:
        """Start the scheduler."""
        self._scheduler.start()

    def stop(self) -> None:
        """Wait for running jobs, start no more, and release the lease to another replica."""
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        with self._lock:
            lease, self._lease = self._lease, None
        self._metrics.leader.set(0)
        if lease is not None:
            try:
                release_lease(self._engine, lease)
            except LedgerError as error:
                log.info("jobs.lease_left_to_end", error=str(error))

    def may_go_on(self) -> bool:
        """Whether a long job should do its next step: nobody stops the jobs, and this replica still holds the lease.

        Ask it between the steps: that also prolongs the lease.
        """
        return not self._stopping.is_set() and self.lease() is not None

    def lease(self) -> Lease | None:
        """Return this replica's lease; None while another replica holds it.

        Asks the database every third of the lease's time, by this process's clock. In between the last answer holds.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._lease_asked_at >= self._lease_seconds / 3:
                before = self._lease
                self._lease = None  # an error below must not leave the old lease in place
                self._lease = acquire_lease(self._engine, LEASE_NAME, self.owner, self._lease_seconds)
                self._lease_asked_at = now
                self._metrics.leader.set(self._lease is not None)
                if (before is None) != (self._lease is None):
                    log.info("jobs.leader" if self._lease else "jobs.follower", owner=self.owner)
            return self._lease


def sweep(ledger: Ledger, may_go_on: Callable[[], bool]) -> None:
    """Free expired holds, in slices, while `may_go_on`."""
    freed = 0
    try:
        for slice_freed in ledger.sweep_in_slices():
            freed += slice_freed
            if not may_go_on():
                break
    finally:
        if freed:
            log.info("jobs.swept", freed=freed)


def archive(ledger: Ledger) -> None:
    """Move closed history that is old enough into files."""
    settings = ledger.settings.ledger
    age = timedelta(days=max(settings.archive_after_days, settings.key_window_days), seconds=1)
    ledger.archive(datetime.now(UTC) - age)


def reconciliation(reconciler: Reconciler) -> Callable[[], str]:
    """Return the job that compares the ledger with the exchange. Its first run counts as that of the start."""
    triggers: Iterator[Trigger] = chain(("start",), repeat("interval"))

    def run() -> str:
        try:
            reports = reconciler.run(next(triggers))
        except Busy:
            return "busy"  # a run on demand is under way
        return "done" if all(report.run.outcome == "good" for report in reports) else "incomplete"

    return run
