"""Builds and starts the service from the settings. The only place that connects its parts."""

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.instrument_refresh import RETRY_SECONDS, ScheduledRefresh
from ledger_sizer.ledger.committer import Observe
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.reconcile.alerts import Alerts
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.reconcile.worker_process import WorkerInspector
from ledger_sizer.service.api_keys import KeyRing
from ledger_sizer.service.desk_records import record_start
from ledger_sizer.service.head_export import HeadExport
from ledger_sizer.service.jobs import Jobs, archive, reconciliation, sweep
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.service.tracing import Tracing, start_tracing
from ledger_sizer.service.trust_watch import TrustWatch
from ledger_sizer.service.unknown_holds import UnknownHolds
from ledger_sizer.storage.database import make_engine


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of a running service.

    reads: a read-only engine, separate from the ledger's own. tracing: None unless enabled.
    """

    settings: AppSettings
    ledger: Ledger
    reads: Engine
    keys: KeyRing
    metrics: Metrics
    jobs: Jobs
    reconciler: Reconciler
    tracing: Tracing | None


@contextmanager
def running_components(
    settings: AppSettings, *, with_jobs: bool = True, tracing: Tracing | None = None
) -> Iterator[Components]:
    """Run the service's parts for a `with` block. At its end the jobs stop, then the ledger drains its queue.

    with_jobs: False builds the jobs and alerts but does not start them. tracing: None follows the settings; it is
    stopped at the end either way.
    Raises `InvalidRequest` for an address that other machines can reach while there is no API key, and for settings
    that cannot work together, `SchemaOutdated` for a database server whose schema is behind, `Unavailable` for a
    database that cannot be reached.
    """
    require_workable(settings)
    url = settings.ledger.database_url
    with ExitStack() as stack:
        if tracing is None and settings.service.tracing:
            tracing = start_tracing()
        if tracing is not None:
            stack.callback(tracing.stop)
        ledger = stack.enter_context(Ledger.open(url, settings=settings))
        reads = make_engine(url, settings.ledger, read_only=True)
        stack.callback(reads.dispose)
        writes = make_engine(url, settings.ledger)
        stack.callback(writes.dispose)
        keys = KeyRing(reads, settings.service.key_cache_seconds)
        keys.refresh()
        require_safe_address(settings.service.host, keys)
        metrics = Metrics()
        metrics.watch(ledger, reads)
        if tracing is not None:
            ledger.observe = observe_both(metrics.count_commit, tracing.trace_commit)
        inspector = WorkerInspector(url, settings)
        alerts = Alerts(writes, settings.reconcile)
        stack.callback(alerts.close)
        reconciler = Reconciler(ledger, writes, inspector, settings, observe=[alerts.observe])
        jobs = Jobs(writes, settings.service.lease_seconds, metrics)
        jobs.every(
            "sweep", settings.service.sweep_interval_seconds, partial(sweep, ledger, jobs.may_go_on), at_start=False
        )
        if settings.ledger.archive_after_days:
            jobs.every("archive", settings.ledger.archive_interval_seconds, partial(archive, ledger), at_start=False)
        heads = HeadExport(ledger, writes, settings, metrics)
        if heads.wanted:
            jobs.every("heads", settings.service.heads_interval_seconds, heads)
        unknown_holds = UnknownHolds(ledger, writes)
        if unknown_holds.wanted:
            jobs.every("unknown_holds", unknown_holds.look_seconds, unknown_holds)
        trust_watch = TrustWatch(ledger, writes)
        jobs.every("trust", trust_watch.look_seconds, trust_watch, at_start=False)  # after the first run
        if settings.reconcile.enabled:
            jobs.every("reconcile", settings.reconcile.interval_seconds, reconciliation(reconciler))
        for account in {account.venue: account for account in reversed(inspector.accounts)}.values():
            # One account per venue is enough: market rules are the same for all its accounts.
            refresh = ScheduledRefresh(writes, account, settings.exchange.instruments_refresh_seconds)
            jobs.every(f"instruments_{account.venue}", RETRY_SECONDS, refresh)
        stack.callback(jobs.stop)
        stack.callback(inspector.close)  # before the jobs stop, so that a stop does not wait for an exchange
        if with_jobs:
            record_start(ledger)
            alerts.start()
            if settings.reconcile.enabled:
                reconciler.begin_trust()
            jobs.start()
        yield Components(settings, ledger, reads, keys, metrics, jobs, reconciler, tracing)


def observe_both(first: Observe, second: Observe) -> Observe:
    """Return an observer that calls both for every commit."""

    def observe(records: Sequence[DecisionRecord], seconds: float) -> None:
        first(records, seconds)
        second(records, seconds)

    return observe


def require_workable(settings: AppSettings) -> None:
    """Raise `InvalidRequest` for what the settings ask for and cannot have: runs without an account, or a webhook."""
    if settings.reconcile.enabled and not settings.exchange.every():
        raise InvalidRequest(
            "RECONCILE_ENABLED is true and no exchange account has a key, so that no run could read anything; set "
            "EXCHANGE_API_KEY and EXCHANGE_API_SECRET, or RECONCILE_ENABLED=false",
            field="enabled",
        )
    accounts = [f"{one.id}/{one.account}" for one in settings.exchange.every()]
    for name in settings.reconcile.baselines if settings.reconcile.enabled else ():
        if name.rpartition("/")[0] not in accounts:
            raise InvalidRequest(
                f"RECONCILE_BASELINES has {name!r}, and there is no such account, so that it would never be used; the "
                f"accounts are {', '.join(accounts)}: write venue/account/ASSET of one of them, or take it out",
                field="baselines",
            )
    if settings.reconcile.webhook_heads and settings.reconcile.webhook_url is None:
        raise InvalidRequest(
            "RECONCILE_WEBHOOK_HEADS is true and there is no webhook to post the chain heads to; set "
            "RECONCILE_WEBHOOK_URL, or RECONCILE_WEBHOOK_HEADS=false",
            field="webhook_heads",
        )


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_safe_address(host: str, keys: KeyRing) -> None:
    """Raise `InvalidRequest` where other machines can reach `host` and could trade, because there is no API key."""
    if keys.empty and not is_loopback(host):
        raise InvalidRequest(
            f"SERVICE_HOST {host!r} can be reached from other machines, and there is no API key yet; make one first "
            "with: ledger-sizer keys create NAME --role trade, or listen on 127.0.0.1",
            field="host",
        )
