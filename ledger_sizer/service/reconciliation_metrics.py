"""Metrics of the reconciliation, read from the database at each scrape: drifts, accounts that are out, trust, runs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Connection, Select, func, or_, select

from ledger_sizer.model.tags import PORTFOLIO_SCOPE, account_of_scope, account_scope
from ledger_sizer.storage.tables import DESK_ID, DriftRow, PortfolioRow, ReconciliationRow, ScopeRow

_ACCOUNTS = account_scope("%", "%")
"""SQL pattern of the scopes of accounts."""

_ROWS_MAX = 2000
"""Most accounts in one scrape, those whose trust ends first."""


class ReconciliationRows(NamedTuple):
    """What one scrape shows.

    drifts: by portfolio, kind, state and policy, how many are not resolved. out: by portfolio, account and policy,
    since when an account cannot be read, as several runs agree. trust: rows of `trust_that_ends`. runs: by
    portfolio, when the last good run began.
    """

    drifts: Sequence[tuple[str, str, str, str, int]]
    out: Sequence[tuple[str, str, str, str, int]]
    trust: Sequence[tuple[str, str, int | None, int]]
    runs: Sequence[tuple[str, int]]


def trust_that_ends() -> Select[str, str, int | None, int]:
    """Select portfolio, scope, end and freeze of all trust that ends by time: of portfolios, and of their accounts."""
    return (
        select(PortfolioRow.name, ScopeRow.scope, ScopeRow.fresh_until_us, ScopeRow.frozen)
        .join_from(PortfolioRow, ScopeRow, ScopeRow.portfolio_id == PortfolioRow.id)
        .where(
            PortfolioRow.id != DESK_ID, ScopeRow.fresh_until_us.is_not(None),
            or_(ScopeRow.scope == PORTFOLIO_SCOPE, ScopeRow.scope.like(_ACCOUNTS)),
        )
    )  # fmt: skip


def read_reconciliation(connection: Connection, portfolios: Sequence[str] | None) -> ReconciliationRows:
    """Read them. portfolios: the only ones to show; None for all."""
    drift, run = DriftRow, ReconciliationRow
    labels = (drift.portfolio, drift.kind, drift.state, drift.policy)
    unresolved = select(*labels, func.count()).where(drift.state != "resolved").group_by(*labels)
    out = select(drift.portfolio, drift.venue, drift.account, drift.policy, drift.opened_us)
    out = out.where(drift.kind == "fetch_failed", drift.state == "confirmed")
    good = select(run.portfolio, func.max(run.started_us)).where(run.outcome == "good").group_by(run.portfolio)
    trust = trust_that_ends().order_by(ScopeRow.fresh_until_us).limit(_ROWS_MAX)
    if portfolios is not None:
        unresolved, out = (query.where(drift.portfolio.in_(portfolios)) for query in (unresolved, out))
        good = good.where(run.portfolio.in_(portfolios))
        trust = trust.where(PortfolioRow.name.in_(portfolios))
    return ReconciliationRows(*(connection.execute(query).all() for query in (unresolved, out, trust, good)))


def reconciliation_families(rows: ReconciliationRows, now_us: int) -> Iterator[GaugeMetricFamily]:
    """Yield their gauges."""
    count = GaugeMetricFamily(
        "ledger_drifts", "Drifts that are not resolved.", labels=["portfolio", "kind", "state", "policy"]
    )
    for *labels, number in rows.drifts:
        count.add_metric(labels, number)
    yield count
    unreadable = GaugeMetricFamily(
        "ledger_account_unreadable_seconds", "Since runs first could not read the account, where several agree.",
        labels=["portfolio", "account", "policy"],
    )  # fmt: skip
    for portfolio, venue, account, policy, opened_us in rows.out:
        unreadable.add_metric([portfolio, f"{venue}/{account}", policy], max(now_us - opened_us, 0) / 1_000_000)
    yield unreadable
    left = GaugeMetricFamily(
        "ledger_trust_seconds_left", "Until reservations are denied for want of a good run; from 0 down they are. "
        "Without an account: of the portfolio.",
        labels=["portfolio", "account"],
    )  # fmt: skip
    for portfolio, scope, until_us, _ in rows.trust:
        account = "" if scope == PORTFOLIO_SCOPE else "/".join(account_of_scope(scope))
        left.add_metric([portfolio, account], ((until_us or 0) - now_us) / 1_000_000)
    yield left
    age = GaugeMetricFamily("ledger_reconciliation_age_seconds", "Since the last good run began.", labels=["portfolio"])
    for portfolio, started_us in rows.runs:
        age.add_metric([portfolio], max(now_us - started_us, 0) / 1_000_000)
    yield age
