"""Scheduled work: expired holds that nobody writes to are freed, the ledger is reconciled, old history is archived.

Of several replicas on one database one runs it, the holder of a lease (see `leases`); another takes over when that
one falls silent. A sweep that runs twice frees nothing twice, because it goes through the ledger like any command.
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
        """reconciler: run at the start and every `reconcile_seconds`; None leaves the reconciliation out."""
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._lease: Lease | None = None
        self._asked_at = float("-inf")
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
        """Run `work` at the start and then on an interval, if it is this replica's turn. Add before `start`.

        What it returns, where that is text, is counted as its result instead of `done`.
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
            said = work()
            result = said if isinstance(said, str) else "done"
        except (LedgerError, SQLAlchemyError) as error:
            log.warning("jobs.failed", job=name, error=str(error).strip())
        finally:
            self._metrics.job_runs.labels(name, result).inc()

    def start(self) -> None:
        """Begin to run jobs."""
        if self._reconciler is not None:
            self._reconciler.begin_trust()
        self._scheduler.start()

    def stop(self) -> None:
        """Wait for a job that runs, run no more, and leave the lease to another replica."""
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
        """The lease to run jobs under now, None while another replica has it. Asks the database a few times per lease.

        Between asking, the answer holds for what this process's own clock says is left of the lease.
        """
        with self._lock:
            asked = time.monotonic()
            if asked - self._asked_at >= self._settings.lease_seconds / 3:
                before = self._lease
                self._lease = None  # unknown until answered: an error must not leave an old lease standing
                self._lease = acquire_lease(self._engine, LEASE_NAME, self.owner, self._settings.lease_seconds)
                self._asked_at = asked
                self._metrics.leader.set(self._lease is not None)
                if (before is None) != (self._lease is None):
                    log.info("jobs.leader" if self._lease else "jobs.follower", owner=self.owner)
            return self._lease

    def sweep(self) -> None:
        """Free what has expired, if it is this replica's turn."""
        self._run("sweep", self._sweep)

    def _sweep(self) -> None:
        freed = self._ledger.sweep()
        if freed:
            log.info("jobs.swept", freed=freed)

    def reconcile(self) -> None:
        """Compare the ledger with the exchange, if it is this replica's turn."""
        self._run("reconcile", self._reconcile)

    def _reconcile(self) -> str:
        assert self._reconciler is not None, "not scheduled without one"
        trigger, self._trigger = self._trigger, "interval"
        try:
            reports = self._reconciler.run(trigger)
        except Busy:
            return "busy"  # somebody asked for one by hand
        return "done" if all(report.run.outcome == "good" for report in reports) else "incomplete"

    def archive(self) -> None:
        """Move closed history of the set age into files, if it is this replica's turn."""
        settings = self._ledger.settings.ledger
        age = timedelta(days=max(settings.archive_after_days, settings.key_window_days), seconds=1)
        self._run("archive", lambda: self._ledger.archive(datetime.now(UTC) - age))
