"""Settings -> running parts. The only place that puts the service together."""

import ipaddress
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.database import make_engine
from ledger_sizer.errors import InvalidRequest
from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.instrument_refresh import RETRY_SECONDS, ScheduledRefresh
from ledger_sizer.jobs import Jobs
from ledger_sizer.keys import KeyRing
from ledger_sizer.ledger import Ledger
from ledger_sizer.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Parts:
    """What a running service consists of. `reads`: an engine that cannot write, apart from the ledger's own."""

    settings: AppSettings
    ledger: Ledger
    reads: Engine
    keys: KeyRing
    metrics: Metrics
    jobs: Jobs


@contextmanager
def running(settings: AppSettings, *, with_jobs: bool = True) -> Iterator[Parts]:
    """The parts, running for the length of a `with` block; at its end the queue drains before anything closes.

    Raises `InvalidRequest` for an address that would be open to others without any API key, `SchemaOutdated` for a
    server's database that is behind, `Unavailable` for one that is away.
    """
    url = settings.ledger.database_url
    with ExitStack() as at_the_end:
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
        jobs = Jobs(ledger, writes, settings.service, metrics)
        at_the_end.enter_context(_instruments_refreshed(settings, jobs, writes, with_jobs=with_jobs))
        if with_jobs:
            jobs.start()
        at_the_end.callback(jobs.stop)
        yield Parts(settings, ledger, reads, keys, metrics, jobs)


@contextmanager
def _instruments_refreshed(settings: AppSettings, jobs: Jobs, writes: Engine, *, with_jobs: bool) -> Iterator[None]:
    """Load the market rules of every venue with an account on a schedule; one account of a venue speaks for all."""
    configured = {found.id: found for found in reversed(settings.exchange.every())} if with_jobs else {}
    accounts = [ExchangeAccount(found) for found in configured.values()]
    for account in accounts:
        jobs.every(
            f"instruments_{account.venue}",
            RETRY_SECONDS,
            ScheduledRefresh(writes, account, settings.exchange.instruments_refresh_seconds),
        )
    try:
        yield
    finally:
        for account in accounts:
            account.close()


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
