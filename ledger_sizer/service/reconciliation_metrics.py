"""Metrics of the reconciliation, read from the database at each scrape: drifts, accounts that are out, trust, runs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Connection, func, select

from ledger_sizer.config import AppSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.storage.tables import DESK_ID, DriftRow, PortfolioRow, ReconciliationRow, ScopeRow

_ACCOUNT_SCOPE = "account="
"""How the scope of an account begins."""

_ROWS_MAX = 2000
"""Most accounts in one scrape, those whose trust ends first."""


class ReconciliationRows(NamedTuple):
    """What one scrape shows.

    drifts: by portfolio, kind, state and policy, how many are not resolved. out: by portfolio, account and policy,
    since when an account cannot be read, as several runs agree. trust: by portfolio and scope, when it ends. runs: by
    portfolio, when the last good run began.
    """

    drifts: Sequence[tuple[str, str, str, str, int]]
    out: Sequence[tuple[str, str, str, str, int]]
    trust: Sequence[tuple[str, str, int]]
    runs: Sequence[tuple[str, int]]


def account_scopes(settings: AppSettings) -> list[str]:
    """Return the scopes of the accounts in the settings: nobody asks for trust in one that was taken out of them."""
    return [f"{_ACCOUNT_SCOPE}{one.id}/{one.account}" for one in settings.exchange.every()]


def read_reconciliation(
    connection: Connection, portfolios: Sequence[str] | None, accounts: Sequence[str]
) -> ReconciliationRows:
    """Read them. portfolios: the only ones to show; None for all. accounts: the scopes of those in the settings."""
    drift, run = DriftRow, ReconciliationRow
    labels = (drift.portfolio, drift.kind, drift.state, drift.policy)
    unresolved = select(*labels, func.count()).where(drift.state != "resolved").group_by(*labels)
    out = select(drift.portfolio, drift.venue, drift.account, drift.policy, drift.opened_us)
    out = out.where(drift.kind == "fetch_failed", drift.state == "confirmed")
    good = select(run.portfolio, func.max(run.started_us)).where(run.outcome == "good").group_by(run.portfolio)
    trust = (
        select(PortfolioRow.name, ScopeRow.scope, ScopeRow.fresh_until_us)
        .join_from(PortfolioRow, ScopeRow, ScopeRow.portfolio_id == PortfolioRow.id)
        .where(
            PortfolioRow.id != DESK_ID, ScopeRow.fresh_until_us.is_not(None),
            ScopeRow.scope.in_([PORTFOLIO_SCOPE, *accounts]),
        )
        .order_by(ScopeRow.fresh_until_us)
        .limit(_ROWS_MAX)
    )  # fmt: skip
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
    for portfolio, scope, until_us in rows.trust:
        account = "" if scope == PORTFOLIO_SCOPE else scope.removeprefix(_ACCOUNT_SCOPE)
        left.add_metric([portfolio, account], (until_us - now_us) / 1_000_000)
    yield left
    age = GaugeMetricFamily("ledger_reconciliation_age_seconds", "Since the last good run began.", labels=["portfolio"])
    for portfolio, started_us in rows.runs:
        age.add_metric([portfolio], max(now_us - started_us, 0) / 1_000_000)
    yield age
