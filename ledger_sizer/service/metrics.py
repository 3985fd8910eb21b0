"""Prometheus metrics of the service, in their own registry: the figures that alerts are built on.

Counters and histograms are updated by this process. Exposure is read from the database at each scrape, so that every
replica shows the same values.

A key that is bound to portfolios sees the samples that name one of them, and the families of `ABOUT_NO_PORTFOLIO`. What
is neither is left out, so that a family added later tells nobody of others' portfolios.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Engine, Select, and_, func, or_, select, text

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.command_base import TTL_SECONDS_MAX
from ledger_sizer.model.commands import EXPIRE
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.times import UNTIL_KNOWN_US, from_us
from ledger_sizer.rules.state import CLOCK_STEP_US_MAX
from ledger_sizer.service.net_metrics import net_families
from ledger_sizer.service.reconciliation_metrics import read_reconciliation, reconciliation_families
from ledger_sizer.service.scope_metrics import SCOPES_MAX, read_scopes, scope_families
from ledger_sizer.storage.database import database_now_us, read_transaction
from ledger_sizer.storage.lookups import desk_status
from ledger_sizer.storage.tables import (
    DESK_ID,
    PENDING,
    PortfolioRow,
    PositionRow,
)
from ledger_sizer.views.net import NetView

ABOUT_NO_PORTFOLIO = frozenset(
    ("ledger_database_up", "ledger_scopes_left_out", "ledger_queue_depth", "ledger_queue_size_max",
     "ledger_jobs_leader", "ledger_job_runs", "ledger_event_streams", "ledger_clock_ahead_seconds",
     "ledger_clock_jump_seconds", "ledger_desk_stopped", "ledger_trust_warning_seconds", "ledger_net_left_out")
)  # fmt: skip
"""Families without a `portfolio` label that a key bound to portfolios may see. Not counts of decisions, commits and
requests: they tell when others trade. `ledger_scopes_left_out` counts the scopes that the caller may see."""

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
        self._exposure_engine: Engine | None = None
        self._net_view: NetView | None = None

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
        self._exposure_engine = engine
        self._net_view = NetView(engine, ledger.settings.trading.delta_drift_tolerance, declared=True)
        warning = Gauge(
            "ledger_trust_warning_seconds", "Trust left at which its end is announced.", registry=self.registry
        )
        warning.set(ledger.settings.reconcile.timing.warns_at)
        self.registry.register(_RepeatedDenials(ledger))
        jump = Gauge(
            "ledger_clock_jump_seconds",
            "A jump of the clock that is refused; below zero: back.",
            registry=self.registry,
        )
        jump.set_function(lambda: 0 if ledger.clock_jump is None else ledger.clock_jump.seconds)

    def text(self, portfolios: Sequence[str] | None = None) -> bytes:
        """Return the exposition for a scrape. Reads the database: do not call it on the event loop.

        portfolios: the only ones that the caller may see; None for all.
        """
        return generate_latest(_Scrape(self._collectors(portfolios), portfolios))

    def _collectors(self, portfolios: Sequence[str] | None) -> list[Any]:
        engine = self._exposure_engine
        if engine is None:
            return [self.registry]
        return [self.registry, ExposureCollector(engine, portfolios, self._net_view)]


class _Scrape:
    """What one caller may see of some collectors, in the form that `generate_latest` reads."""

    def __init__(self, collectors: Sequence[Any], portfolios: Sequence[str] | None) -> None:
        self._collectors = collectors
        self._portfolios = None if portfolios is None else frozenset(portfolios)

    def collect(self) -> Iterator[Metric]:
        """Yield the families, with only the caller's samples."""
        for collector in self._collectors:
            for family in collector.collect():
                if self._portfolios is None or family.name in ABOUT_NO_PORTFOLIO:
                    yield family
                elif own := [one for one in family.samples if one.labels.get("portfolio") in self._portfolios]:
                    shown = copy(family)
                    shown.samples = own
                    yield shown


class _RepeatedDenials(Collector):
    """Collects how many commands got a denial that was recorded before."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Collect for one scrape."""
        text = "Commands answered with a denial of the same wish that was recorded before."
        yield CounterMetricFamily("ledger_denials_repeated", text, value=self._ledger.denials_repeated)


class ExposureCollector(Collector):
    """Collects from the database: exposure by portfolio and scope, age of the oldest hold, drifts, net by coin.

    portfolios: the only ones to read, so that `SCOPES_MAX` counts no others; None for all. net_view: reads the nets;
    None leaves them out.
    """

    def __init__(
        self, engine: Engine, portfolios: Sequence[str] | None = None, net_view: NetView | None = None
    ) -> None:
        self._engine = engine
        self._portfolios = portfolios
        self._net_view = net_view

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

    def _own(self, name: Any) -> tuple[ColumnElement[bool], ...]:
        """Return the condition that a portfolio's name is one of the caller's."""
        return () if self._portfolios is None else (name.in_(self._portfolios),)

    def _read(self) -> Iterator[GaugeMetricFamily]:
        own = (PortfolioRow.id != DESK_ID, *self._own(PortfolioRow.name))
        newest = select(PortfolioRow.name, PortfolioRow.last_seq).where(*own).order_by(PortfolioRow.last_us.desc())
        newest = newest.limit(SCOPES_MAX)
        with read_transaction(self._engine) as connection:
            scopes = read_scopes(connection, own)
            heads = connection.execute(newest).all()
            now_us = connection.execute(select(database_now_us())).scalar() or time.time_ns() // 1000
            holds = connection.execute(_holds(now_us).where(*own)).all()
            desk = desk_status(connection)
            reconciliation = read_reconciliation(connection, self._portfolios)
            newest_us = connection.execute(select(func.max(PortfolioRow.last_us)).where(*own)).scalar() or 0
        yield from scope_families(scopes, from_us(now_us))
        yield _desk_gauge(desk)
        yield from _hold_gauges(holds, now_us)
        yield from self._unknown(now_us)
        ahead = GaugeMetricFamily("ledger_clock_ahead_seconds", "How far the newest decision is ahead of the clock.")
        ahead.add_metric([], max(newest_us - now_us, 0) // 1000 / 1000)  # SQLite's clock shows whole milliseconds
        yield ahead
        seqs = GaugeMetricFamily(
            "ledger_head_seq", "Decisions in a portfolio's chain; of those that decided last.", labels=["portfolio"]
        )
        for portfolio, seq in heads:
            seqs.add_metric([portfolio], seq)
        yield seqs
        yield from reconciliation_families(reconciliation, now_us)
        if self._net_view is not None:
            yield from net_families(self._net_view, self._portfolios)

    def _unknown(self, now_us: int) -> Iterator[GaugeMetricFamily]:
        count = GaugeMetricFamily(
            "ledger_unknown_holds", "Holds that end only when their order's fate is known.", labels=["portfolio"]
        )
        age = GaugeMetricFamily(
            "ledger_oldest_unknown_hold_age_seconds", "Since the last decision about the oldest of them.",
            labels=["portfolio"],
        )  # fmt: skip
        with read_transaction(self._engine) as connection:
            rows = connection.execute(_unknown_holds().where(*self._own(PortfolioRow.name))).all()
        for portfolio, number, since_us in rows:
            count.add_metric([portfolio], number)
            age.add_metric([portfolio], max(now_us - since_us, 0) / 1_000_000)
        yield count
        yield age


def _hold_gauges(holds: Iterable[Any], now_us: int) -> Iterator[GaugeMetricFamily]:
    """Yield the age of each portfolio's oldest hold, and how many holds end too late. holds: rows of `_holds`."""
    ages = GaugeMetricFamily(
        "ledger_oldest_hold_age_seconds", "Age of the oldest hold of a portfolio.", labels=["portfolio"]
    )
    late = GaugeMetricFamily(
        "ledger_holds_ahead", "Holds granted while the clock was ahead, which end too late.", labels=["portfolio"]
    )
    for portfolio, opened_us, number_late in holds:
        late.add_metric([portfolio], number_late)
        ages.add_metric([portfolio], max(now_us - opened_us, 0) / 1_000_000)
    yield ages
    yield late


def _desk_gauge(status: str) -> GaugeMetricFamily:
    stopped = GaugeMetricFamily("ledger_desk_stopped", "1 where all portfolios together are halted or reducing.")
    stopped.add_metric([], status != "active")
    return stopped


def _holds(now_us: int) -> Select[str, int, int]:
    """Select, by portfolio, when its oldest hold was made, and how many holds end too late.

    Those are the ones that changed last at a time still to come, or that end later than any hold may.
    """
    late_us = now_us + TTL_SECONDS_MAX * 1_000_000 + CLOCK_STEP_US_MAX
    late = or_(PositionRow.updated_us > now_us + CLOCK_STEP_US_MAX, PositionRow.expires_us > late_us)
    late = and_(late, PositionRow.expires_us != UNTIL_KNOWN_US)
    return (
        select(PortfolioRow.name, func.min(PositionRow.opened_us), func.count().filter(late))
        .join_from(PortfolioRow, PositionRow, PositionRow.portfolio_id == PortfolioRow.id)
        .where(text(PENDING))
        .group_by(PortfolioRow.name)
    )


def _unknown_holds() -> Select[str, int, int]:
    """Select, by portfolio, how many holds never end by time, and when the oldest of them changed last."""
    return (
        select(PortfolioRow.name, func.count(), func.min(PositionRow.updated_us))
        .join_from(PortfolioRow, PositionRow, PositionRow.portfolio_id == PortfolioRow.id)
        .where(text(PENDING), PositionRow.expires_us == UNTIL_KNOWN_US)
        .group_by(PortfolioRow.name)
    )
