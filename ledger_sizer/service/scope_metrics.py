"""Metrics of scopes and pools, read from the database at each scrape.

A scope without a cap of its own shows the default of its tag name as its cap, and is in `ledger_cap_by_default`: the
caps that were given to a scope itself are `ledger_cap_usd unless ledger_cap_by_default`. A default is in
`ledger_default_cap_usd` only, as nothing counts in it.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import ColumnElement, Connection, func, select, text

from ledger_sizer.model.domain import ScopeExposure
from ledger_sizer.model.pools import left_to_all
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, is_default_scope
from ledger_sizer.model.units import usd
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.storage.tables import SHARED, PortfolioRow, ScopeRow
from ledger_sizer.storage.write_store import scope_from_row
from ledger_sizer.views.scopes import NO_DEFAULTS, defaults_of, pools_of_shared, scope_exposure, shared_by_portfolio

SCOPES_MAX = 2000
"""Most scopes in one scrape, the largest exposures first; `ledger_scopes_left_out` counts the rest. Pools are always
shown, and count as none of them."""

_GAUGES = {
    "cap": "The most exposure the scope may have: its own cap, else the default of its tag name.",
    "held": "USD in live reservations.",
    "open": "USD in open positions.",
    "exposure": "held + open.",
    "headroom": "What the cap leaves.",
    "overage": "What stands above the cap.",
    "max_position": "The most that one position of the scope may be, where it has a maximum of its own.",
    "default_cap": "The cap of each value of a tag name that has none of its own.",
    "guarantee": "What the scope can always have.",
    "guarantee_kept": "The part of its guarantee that it does not use, which others must leave for it.",
    "guarantee_lent_out": "The part of that which it could not have now. Pools lack the same money: no sum.",
}
_FLAGS = {
    "ledger_cap_by_default": "1 where the scope's cap is the default of its tag name.",
    "ledger_scope_stopped": "1 where new reservations are halted or reducing.",
    "ledger_scope_unreconciled": "1 where a drift, or no good run lately, stops reservations.",
}


class ScopeRows(NamedTuple):
    """The scopes of one scrape, each with the name of its portfolio.

    shown: the portfolios' own, then the largest, then those on which others depend and which are more than a default.
    shared: of each portfolio with such scopes, the whole and all of these. left_out: how many scopes are not shown.
    """

    shown: list[tuple[str, ScopeState]]
    shared: dict[str, list[ScopeState]]
    left_out: int


def read_scopes(connection: Connection, own: Sequence[ColumnElement[bool]]) -> ScopeRows:
    """Read the scopes of a scrape. own: conditions that a portfolio is one of the caller's."""
    of_scopes = select(PortfolioRow.name, *ScopeRow.__table__.columns)
    of_scopes = of_scopes.join_from(PortfolioRow, ScopeRow, ScopeRow.portfolio_id == PortfolioRow.id).where(*own)
    unshared = text(f"NOT ({SHARED})")
    largest = of_scopes.where(unshared).order_by(
        ScopeRow.scope != PORTFOLIO_SCOPE, (ScopeRow.held_e8 + ScopeRow.open_e8).desc(), PortfolioRow.name,
        ScopeRow.scope,
    )  # fmt: skip
    shown = _read(connection, largest.limit(SCOPES_MAX))
    total = len(shown)
    if total == SCOPES_MAX:
        count = select(func.count()).select_from(ScopeRow).join(PortfolioRow, ScopeRow.portfolio_id == PortfolioRow.id)
        total = connection.execute(count.where(unshared, *own)).scalar_one()
    left_out = total - len(shown)
    others = shared_by_portfolio(connection, *own)
    wholes = of_scopes.where(ScopeRow.scope == PORTFOLIO_SCOPE, PortfolioRow.name.in_(others))
    shared = {name: [whole, *others[name]] for name, whole in (_read(connection, wholes) if others else ())}
    for name, scopes in others.items():
        shown += [(name, scope) for scope in scopes if not is_default_scope(scope.name) or scope.exposure_e8]
    return ScopeRows(shown, shared, left_out)


def _read(connection: Connection, query: Any) -> list[tuple[str, ScopeState]]:
    return [(portfolio, scope_from_row(row)) for portfolio, *row in connection.execute(query)]


def scope_families(rows: ScopeRows, now: datetime) -> Iterator[GaugeMetricFamily]:
    """Yield the gauges of scopes and of pools, and of how many scopes are left out."""
    labels = ["portfolio", "scope"]
    usd_gauges = {
        name: GaugeMetricFamily(f"ledger_{name}_usd", words, labels=labels) for name, words in _GAUGES.items()
    }
    flags = {name: GaugeMetricFamily(name, words, labels=labels) for name, words in _FLAGS.items()}
    shared = GaugeMetricFamily(
        "ledger_shared_usd", "What a request outside of every pool could have, of portfolios with pools.",
        labels=["portfolio"],
    )  # fmt: skip
    defaults = {portfolio: defaults_of(scopes) for portfolio, scopes in rows.shared.items()}
    for portfolio, state in rows.shown:
        _add_scope(usd_gauges, flags, portfolio, scope_exposure(state, defaults.get(portfolio, NO_DEFAULTS)), now)
    for portfolio, (whole, *scopes) in rows.shared.items():
        for dimension, cap_e8 in defaults[portfolio].items():
            usd_gauges["default_cap"].add_metric([portfolio, f"{dimension}*"], float(usd(cap_e8)))
        first = scope_exposure(whole)
        pools = pools_of_shared(first, scopes)
        for pool in pools:
            usd_gauges["guarantee"].add_metric([portfolio, pool.scope], float(pool.guaranteed))
            usd_gauges["guarantee_kept"].add_metric([portfolio, pool.scope], float(pool.kept))
            usd_gauges["guarantee_lent_out"].add_metric([portfolio, pool.scope], float(pool.lent_out))
        left = left_to_all(first.headroom, pools)
        if pools and left is not None:
            shared.add_metric([portfolio], float(left))
    yield from usd_gauges.values()
    yield from flags.values()
    yield shared
    left_out = GaugeMetricFamily("ledger_scopes_left_out", "Scopes beyond the most that a scrape shows.")
    left_out.add_metric([], rows.left_out)
    yield left_out


def _add_scope(
    amounts: dict[str, GaugeMetricFamily],
    flags: dict[str, GaugeMetricFamily],
    portfolio: str,
    scope: ScopeExposure,
    now: datetime,
) -> None:
    labels = [portfolio, scope.scope]
    names = ("held", "open", "exposure", *(("cap", "headroom", "overage") if scope.cap is not None else ()))
    for name in names:
        amounts[name].add_metric(labels, float(getattr(scope, name)))
    if scope.max_position_usd is not None:
        amounts["max_position"].add_metric(labels, float(scope.max_position_usd))
    if scope.cap_from is not None:
        flags["ledger_cap_by_default"].add_metric(labels, 1)
    flags["ledger_scope_stopped"].add_metric(labels, scope.status != "active")
    flags["ledger_scope_unreconciled"].add_metric(labels, scope.unreconciled(now))
