"""Prometheus metrics of the service, in their own registry: the figures that alerts are built on.

Counters and histograms are updated by this process. Exposure is read from the database at each scrape, so that every
replica shows the same values.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select, text

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import EXPIRE
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.model.times import from_us
from ledger_sizer.storage.database import database_now_us, read_transaction
from ledger_sizer.storage.tables import PENDING, DriftRow, PortfolioRow, PositionRow, ReconciliationRow, ScopeRow
from ledger_sizer.storage.write_store import scope_from_row
from ledger_sizer.views.queries import scope_exposure

SCOPES_MAX = 2000
"""Most scopes in one scrape, the largest exposures first; `ledger_scopes_left_out` counts the rest."""

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.decisions = Counter(
            "ledger_decisions", "Decisions recorded by this process.", ["command", "outcome", "reason"], **own
        )
        self.expiries = Counter("ledger_expiries", "Holds that ended because nobody confirmed them in time.", **own)
        self.batch_size = Histogram("ledger_batch_size", "Decisions in one commit.", buckets=_SIZES, **own)
        self.commit_seconds = Histogram(
            "ledger_commit_seconds", "From the beginning of a batch's decisions to its commit.", buckets=_SECONDS, **own
        )
        self.job_runs = Counter("ledger_job_runs", "Runs of scheduled jobs.", ["job", "result"], **own)
        self.leader = Gauge("ledger_jobs_leader", "1 while this replica runs the scheduled jobs.", **own)
        self.heads_exported = Gauge(
            "ledger_heads_exported_timestamp_seconds", "When this process last exported the chain heads; 0: never.",
            **own,
        )  # fmt: skip
        self.requests = Counter("ledger_http_requests", "HTTP requests answered.", ["method", "route", "status"], **own)
        self.request_seconds = Histogram(
            "ledger_http_request_seconds", "From the request's head to the end of its answer.", ["route"],
            buckets=_SECONDS, **own,
        )  # fmt: skip
        # Cached, because `labels` reads the environment at every call, which costs more than the counting.
        self._request_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._decision_children: dict[tuple[str, str, str | None], Counter] = {}
        self.event_streams = Gauge("ledger_event_streams", "Event streams open now.", **own)

    def count_commit(self, records: Sequence[DecisionRecord], seconds: float) -> None:
        """Count one committed batch. Assigned to `Ledger.observe`."""
        if records:
            self.batch_size.observe(len(records))
        self.commit_seconds.observe(seconds)
        for record in records:
            labels = (record.command, record.outcome, record.reason)
            counter = self._decision_children.get(labels)
            if counter is None:
                counter = self.decisions.labels(record.command, record.outcome, record.reason or "")
                self._decision_children[labels] = counter
            counter.inc()
            if record.command == EXPIRE:
                self.expiries.inc()

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request. `method` and `route` must be from short lists, not the caller's text."""
        children = self._request_children.get((method, route, status))
        if children is None:
            children = (self.requests.labels(method, route, str(status)), self.request_seconds.labels(route))
            self._request_children[method, route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def watch(self, ledger: Ledger, engine: Engine) -> None:
        """Count this ledger's commits, and export its queue and the exposure in its database."""
        ledger.observe = self.count_commit
        depth = Gauge("ledger_queue_depth", "Commands accepted and not yet answered.", registry=self.registry)
        depth.set_function(lambda: ledger.pending)
        room = Gauge("ledger_queue_size_max", "Commands the queue holds; then 503.", registry=self.registry)
        room.set(ledger.settings.ledger.queue_size_max)
        self.registry.register(ExposureCollector(engine))

    def text(self) -> bytes:
        """Return the exposition for a scrape. Reads the database: do not call it on the event loop."""
        return generate_latest(self.registry)


class ExposureCollector(Collector):
    """Collects from the database: exposure by portfolio and scope, age of the oldest hold, drifts, reconciliation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return nothing, because registering must not need the database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Collect for one scrape. Without the database only `ledger_database_up` 0 is shown, no outdated exposure."""
        up = GaugeMetricFamily("ledger_database_up", "Whether this scrape could read the database.")
        try:
            families = list(self._read())
        except LedgerError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from families

    def _read(self) -> Iterator[GaugeMetricFamily]:
        scopes = (
            select(PortfolioRow.name, *ScopeRow.__table__.columns)
            .join_from(PortfolioRow, ScopeRow, ScopeRow.portfolio_id == PortfolioRow.id)
            .order_by(
                (ScopeRow.scope != PORTFOLIO_SCOPE), (ScopeRow.held_e8 + ScopeRow.open_e8).desc(),
                PortfolioRow.name, ScopeRow.scope,
            )
            .limit(SCOPES_MAX)
        )  # fmt: skip
        oldest = (
            select(PortfolioRow.name, func.min(PositionRow.opened_us))
            .join_from(PortfolioRow, PositionRow, PositionRow.portfolio_id == PortfolioRow.id)
            .where(text(PENDING))
            .group_by(PortfolioRow.name)
        )
        newest = select(PortfolioRow.name, PortfolioRow.last_seq).order_by(PortfolioRow.last_us.desc())
        newest = newest.limit(SCOPES_MAX)
        with read_transaction(self._engine) as connection:
            rows = connection.execute(scopes).all()
            total = connection.execute(select(func.count()).select_from(ScopeRow)).scalar() or 0
            holds = connection.execute(oldest).all()
            heads = connection.execute(newest).all()
            now_us = connection.execute(select(database_now_us())).scalar() or time.time_ns() // 1000
        gauges = {
            name: GaugeMetricFamily(f"ledger_{name}_usd", text, labels=["portfolio", "scope"])
            for name, text in _EXPOSURE_GAUGES.items()
        }
        status = GaugeMetricFamily(
            "ledger_scope_stopped", "1 where new reservations are halted or reducing.", labels=["portfolio", "scope"]
        )
        unreconciled = GaugeMetricFamily(
            "ledger_scope_unreconciled", "1 where a drift, or no good run lately, stops reservations.",
            labels=["portfolio", "scope"],
        )  # fmt: skip
        for portfolio, *row in rows:
            scope = scope_exposure(scope_from_row(row))
            labels = [portfolio, scope.scope]
            for name in _EXPOSURE_GAUGES if scope.cap is not None else ("held", "open", "exposure"):
                gauges[name].add_metric(labels, float(getattr(scope, name)))
            status.add_metric(labels, scope.status != "active")
            unreconciled.add_metric(labels, scope.unreconciled(from_us(now_us)))
        yield from gauges.values()
        yield status
        yield unreconciled
        left_out = GaugeMetricFamily("ledger_scopes_left_out", "Scopes beyond the most that a scrape shows.")
        left_out.add_metric([], max(total - SCOPES_MAX, 0))
        yield left_out
        ages = GaugeMetricFamily(
            "ledger_oldest_hold_age_seconds", "Age of the oldest hold of a portfolio.", labels=["portfolio"]
        )
        for portfolio, opened_us in holds:
            ages.add_metric([portfolio], max(now_us - opened_us, 0) / 1_000_000)
        yield ages
        seqs = GaugeMetricFamily(
            "ledger_head_seq", "Decisions in a portfolio's chain; of those that decided last.", labels=["portfolio"]
        )
        for portfolio, seq in heads:
            seqs.add_metric([portfolio], seq)
        yield seqs
        yield from self._reconciliation(now_us)

    def _reconciliation(self, now_us: int) -> Iterator[GaugeMetricFamily]:
        labels = (DriftRow.portfolio, DriftRow.kind, DriftRow.state)
        unresolved = select(*labels, func.count()).where(DriftRow.state != "resolved").group_by(*labels)
        good = (
            select(ReconciliationRow.portfolio, func.max(ReconciliationRow.started_us))
            .where(ReconciliationRow.outcome == "good")
            .group_by(ReconciliationRow.portfolio)
        )
        with read_transaction(self._engine) as connection:
            drifts = connection.execute(unresolved).all()
            runs = connection.execute(good).all()
        count = GaugeMetricFamily(
            "ledger_drifts", "Drifts that are not resolved.", labels=["portfolio", "kind", "state"]
        )
        for portfolio, kind, state, number in drifts:
            count.add_metric([portfolio, kind, state], number)
        yield count
        age = GaugeMetricFamily(
            "ledger_reconciliation_age_seconds", "Since the last good run began.", labels=["portfolio"]
        )
        for portfolio, started_us in runs:
            age.add_metric([portfolio], max(now_us - started_us, 0) / 1_000_000)
        yield age


_EXPOSURE_GAUGES = {
    "cap": "The most exposure the scope may have.",
    "held": "USD in live reservations.",
    "open": "USD in open positions.",
    "exposure": "held + open.",
    "headroom": "What the cap leaves.",
    "overage": "What stands above the cap.",
}
