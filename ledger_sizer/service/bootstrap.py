"""Settings -> running parts. The only place that puts the service together."""

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.accounts import open_accounts
from ledger_sizer.exchanges.instrument_refresh import RETRY_SECONDS, RulesSource, ScheduledRefresh
from ledger_sizer.ledger.committer import Observe
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.reconcile.alerts import Alerts
from ledger_sizer.reconcile.inspection import Inspector, LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.reconcile.worker_process import WorkerInspector
from ledger_sizer.service.api_keys import KeyRing
from ledger_sizer.service.jobs import Jobs
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.service.tracing import Tracing, start_tracing
from ledger_sizer.storage.database import make_engine


@dataclass(frozen=True, slots=True)
class Components:
    """What a running service consists of.

    reads: an engine that cannot write, apart from the ledger's own. tracing: None unless it was asked for.
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
    """The parts, running for the length of a `with` block; at its end the queue drains before anything closes.

    tracing: None makes it as the settings say; it is stopped at the end either way.
    Raises `InvalidRequest` for an address that would be open to others without any API key, `SchemaOutdated` for a
    server's database that is behind, `Unavailable` for one that is away.
    """
    url = settings.ledger.database_url
    with ExitStack() as at_the_end:
        if tracing is None and settings.service.tracing:
            tracing = start_tracing()
        if tracing is not None:
            at_the_end.callback(tracing.stop)
        ledger = at_the_end.enter_context(Ledger.open(url, settings=settings))
        reads = make_engine(url, settings.ledger, read_only=True)
        at_the_end.callback(reads.dispose)
        writes = make_engine(url, settings.ledger)
        at_the_end.callback(writes.dispose)
        keys = KeyRing(reads, settings.service.key_cache_seconds)
        keys.refresh()
        require_safe_address(settings.service.host, keys)
        metrics = Metrics()
        metrics.watch(ledger, reads)
        if tracing is not None:
            ledger.observe = observe_both(metrics.observed, tracing.committed)
        look, sources = at_the_end.enter_context(_looking(url, settings, reads))
        alerts = Alerts(writes, settings.reconcile)
        at_the_end.callback(alerts.close)
        reconciler = Reconciler(ledger, writes, look, settings, observe=[alerts.observe])
        jobs = Jobs(
            ledger,
            writes,
            settings.service,
            metrics,
            reconciler if settings.reconcile.enabled else None,
            settings.reconcile.interval_seconds,
        )
        for source in {source.venue: source for source in reversed(sources)}.values():
            # One account of a venue speaks for all: rules are the venue's.
            refresh = ScheduledRefresh(writes, source, settings.exchange.instruments_refresh_seconds)
            jobs.every(f"instruments_{source.venue}", RETRY_SECONDS, refresh)
        if with_jobs:
            alerts.start()
            jobs.start()
        at_the_end.callback(jobs.stop)
        if isinstance(look, WorkerInspector):
            at_the_end.callback(look.close)  # before the jobs: a stop does not wait for an exchange
        yield Components(settings, ledger, reads, keys, metrics, jobs, reconciler, tracing)


@contextmanager
def _looking(url: str, settings: AppSettings, reads: Engine) -> Iterator[tuple[Inspector, Sequence[RulesSource]]]:
    """Whoever looks at the accounts, and who brings their venues' market rules."""
    if settings.reconcile.own_process:
        with closing(WorkerInspector(url, settings)) as apart:
            yield apart, apart.accounts
        return
    with ExitStack() as at_the_end:
        accounts = open_accounts(settings.exchange)
        for account in accounts:
            at_the_end.callback(account.close)
        yield LocalInspector(reads, accounts, settings), accounts


def observe_both(first: Observe, second: Observe) -> Observe:
    """Tell two observers of every commit."""

    def observe(records: Sequence[DecisionRecord], seconds: float) -> None:
        first(records, seconds)
        second(records, seconds)

    return observe


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_safe_address(host: str, keys: KeyRing) -> None:
    """Refuse to listen to others while anybody who connects could spend the capital."""
    if keys.empty and not is_loopback(host):
        raise InvalidRequest(
            f"SERVICE_HOST {host!r} can be reached from other machines, and there is no API key yet; make one first "
            "with: ledger-sizer keys create NAME --role trade, or listen on 127.0.0.1",
            field="host",
        )
