"""Scheduled jobs: free expired holds, reconcile the ledger with the exchange, archive old history.

Of several replicas on one database, only the holder of a lease (see `storage.leases`) runs jobs. Another replica takes
over when the lease ends. Two sweeps at once free no hold twice, because a sweep runs in the ledger like any command.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ledger_sizer.config import ServiceSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.errors import Busy, LedgerError
from ledger_sizer.model.reconciliation import Trigger
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.storage.leases import Lease, acquire_lease, release_lease
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

LEASE_NAME = "jobs"


class Jobs:
    """The scheduler of one replica."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        settings: ServiceSettings,
        metrics: Metrics,
        reconciler: Reconciler | None = None,
        reconcile_seconds: int = 60,
    ) -> None:
        """reconciler: run at the start and every `reconcile_seconds`; None for no reconciliation."""
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._lease: Lease | None = None
        self._lease_asked_at = float("-inf")
        self._lock = threading.Lock()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            executors={"default": ThreadPoolExecutor(2)},
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": 30},
        )
        self._scheduler.add_job(self.sweep, "interval", seconds=settings.sweep_interval_seconds, id="sweep")
        archiving = ledger.settings.ledger
        if archiving.archive_after_days:
            self._scheduler.add_job(self.archive, "interval", seconds=archiving.archive_interval_seconds, id="archive")
        self._reconciler = reconciler
        self._trigger: Trigger = "start"
        if reconciler is not None:
            self._scheduler.add_job(
                self.reconcile, "interval", seconds=reconcile_seconds, id="reconcile", next_run_time=datetime.now(UTC)
            )

    def every(self, name: str, seconds: int, work: Callable[[], object]) -> None:
        """Schedule `work` at the start and then every `seconds`. It runs while this replica holds the lease.

        Call before `start`. If `work` returns text, the metric counts that as its result instead of `done`.
        """
        self._scheduler.add_job(
            self._run, "interval", args=(name, work), seconds=seconds, id=name, next_run_time=datetime.now(UTC)
        )

    def _run(self, name: str, work: Callable[[], object]) -> None:
        result = "failed"
        try:
            if self.lease() is None:
                result = "not_leader"
                return
            returned = work()
            result = returned if isinstance(returned, str) else "done"
        except (LedgerError, SQLAlchemyError) as error:
            log.warning("jobs.failed", job=name, error=str(error).strip())
        finally:
            self._metrics.job_runs.labels(name, result).inc()

    def start(self) -> None:
        """Start the scheduler."""
        if self._reconciler is not None:
            self._reconciler.begin_trust()
        self._scheduler.start()

    def stop(self) -> None:
        """Wait for running jobs, start no more, and release the lease to another replica."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)
        with self._lock:
            lease, self._lease = self._lease, None
        self._metrics.leader.set(0)
        if lease is not None:
            try:
                release_lease(self._engine, lease)
            except (LedgerError, SQLAlchemyError) as error:
                log.info("jobs.lease_left_to_end", error=str(error))

    def lease(self) -> Lease | None:
        """Return this replica's lease; None while another replica holds it.

        Asks the database every third of the lease's time, by this process's clock. In between the last answer holds.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._lease_asked_at >= self._settings.lease_seconds / 3:
                before = self._lease
                self._lease = None  # an error below must not leave the old lease in place
                self._lease = acquire_lease(self._engine, LEASE_NAME, self.owner, self._settings.lease_seconds)
                self._lease_asked_at = now
                self._metrics.leader.set(self._lease is not None)
                if (before is None) != (self._lease is None):
                    log.info("jobs.leader" if self._lease else "jobs.follower", owner=self.owner)
            return self._lease

    def sweep(self) -> None:
        """Free expired holds, if this replica holds the lease."""
        self._run("sweep", self._sweep)

    def _sweep(self) -> None:
        freed = self._ledger.sweep()
        if freed:
            log.info("jobs.swept", freed=freed)

    def reconcile(self) -> None:
        """Compare the ledger with the exchange, if this replica holds the lease."""
        self._run("reconcile", self._reconcile)

    def _reconcile(self) -> str:
        assert self._reconciler is not None, "not scheduled without one"
        trigger, self._trigger = self._trigger, "interval"
        try:
            reports = self._reconciler.run(trigger)
        except Busy:
            return "busy"  # a run on demand is under way
        return "done" if all(report.run.outcome == "good" for report in reports) else "incomplete"

    def archive(self) -> None:
        """Move closed history that is old enough into files, if this replica holds the lease."""
        settings = self._ledger.settings.ledger
        age = timedelta(days=max(settings.archive_after_days, settings.key_window_days), seconds=1)
        self._run("archive", lambda: self._ledger.archive(datetime.now(UTC) - age))
