"""Scopes as reads show them: each with the cap that counts, the guaranteed ones as pools."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from sqlalchemy import ColumnElement, Connection, select, text

from ledger_sizer.model.domain import Exposure, ScopeExposure
from ledger_sizer.model.pools import DefaultCap, Pool, pools_of
from ledger_sizer.model.tags import is_default_scope
from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import usd
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.storage.tables import SHARED, PortfolioRow, ScopeRow
from ledger_sizer.storage.write_store import scope_from_row

Defaults = Mapping[str, int]
"""The default caps of a portfolio, 1e-8 USD, each by how the names of its scopes begin: `venue=`."""

NO_DEFAULTS: Defaults = {}


def shared_by_portfolio(connection: Connection, *conditions: ColumnElement[bool]) -> dict[str, list[ScopeState]]:
    """Read the scopes that others depend on (see `ScopeState.shared`), by portfolio; each one's by name.

    conditions: on the portfolio. One that has no such scope is not among them.
    """
    query = (
        select(PortfolioRow.name, *ScopeRow.__table__.columns)
        .join_from(ScopeRow, PortfolioRow, ScopeRow.portfolio_id == PortfolioRow.id)
        .where(text(SHARED), *conditions)
        .order_by(ScopeRow.scope)
    )
    found: dict[str, list[ScopeState]] = {}
    for portfolio, *row in connection.execute(query):
        found.setdefault(portfolio, []).append(scope_from_row(row))
    return found


def read_shared(connection: Connection, portfolio_id: int) -> list[ScopeState]:
    """Read the scopes of a portfolio that others depend on, by name."""
    found = shared_by_portfolio(connection, PortfolioRow.id == portfolio_id)
    return next(iter(found.values()), [])


def defaults_of(scopes: Iterable[ScopeState]) -> Defaults:
    """Return the default caps among these scopes."""
    return {
        scope.name[:-1]: scope.cap_e8
        for scope in scopes
        if scope.cap_e8 is not None and is_default_scope(scope.name)
    }  # fmt: skip


def default_caps(defaults: Defaults) -> tuple[DefaultCap, ...]:
    """Return default caps for display."""
    return tuple(DefaultCap(f"{dimension}*", usd(cap_e8)) for dimension, cap_e8 in defaults.items())


def scope_exposure(scope: ScopeState, defaults: Defaults = NO_DEFAULTS) -> ScopeExposure:
    """Convert a scope for display: amounts in USD, times as datetimes. defaults: of its portfolio."""
    settings = scope.settings
    cap_e8, cap_from = settings.cap_e8, None
    if cap_e8 is None and defaults:
        dimension = scope.name[: scope.name.find("=") + 1]
        if (cap_e8 := defaults.get(dimension)) is not None:
            cap_from = f"{dimension}*"
    return ScopeExposure(
        scope=scope.name,
        cap=None if cap_e8 is None else usd(cap_e8),
        held=usd(scope.held_e8),
        open=usd(scope.open_e8),
        status=settings.status,
        frozen=bool(settings.frozen),
        fresh_until=None if settings.fresh_until_us is None else from_us(settings.fresh_until_us),
        cap_from=cap_from,
        guarantee=_usd(settings.guarantee_e8),
        max_position_usd=_usd(settings.max_position_e8),
        share_of_equity=_usd(settings.share_e8),
        frozen_note=settings.frozen_note,
        free_balance=_usd(settings.free_e8),
        promised=_usd(settings.promised_e8),
    )


def _usd(amount_e8: int | None) -> Decimal | None:
    return None if amount_e8 is None else usd(amount_e8)


def exposure_of(
    portfolio: str, seq: int, whole: ScopeState, scopes: Sequence[ScopeState], shared: Iterable[ScopeState]
) -> Exposure:
    """Return an exposure. scopes: the others to show. shared: all scopes of the portfolio that others depend on."""
    shared = [*shared]
    defaults = defaults_of(shared)
    first = scope_exposure(whole)
    return Exposure(
        portfolio,
        seq,
        (first, *(scope_exposure(scope, defaults) for scope in scopes)),
        pools_of_shared(first, shared),
        default_caps(defaults),
    )


def pools_of_shared(whole: ScopeExposure, shared: Iterable[ScopeState]) -> tuple[Pool, ...]:
    """Return the pools of a portfolio. whole: its first row. shared: all its scopes that others depend on."""
    guaranteed = (scope for scope in shared if scope.settings.guarantee_e8 is not None)
    return pools_of(whole.headroom, map(scope_exposure, guaranteed))
