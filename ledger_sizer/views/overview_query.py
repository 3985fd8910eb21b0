"""Reads an `Overview` in one transaction. The time of each part does not grow with the ledger's age."""

import json
from collections.abc import Sequence
from heapq import nlargest
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, func, select, text, tuple_

from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Page, Position, ScopeExposure
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.overview import (
    HOURS_MAX,
    ROWS_MAX,
    DeskHalt,
    Detail,
    Overview,
    OverviewQuery,
    PortfolioLine,
    Reconciliation,
)
from ledger_sizer.model.pools import left_to_all
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, is_default_scope
from ledger_sizer.model.times import from_us, to_us
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.storage.database import database_now_us, read_transaction
from ledger_sizer.storage.lookups import desk_status, last_desk_change, no_portfolio
from ledger_sizer.storage.tables import (
    DESK_ID,
    PENDING,
    DecisionRow,
    DriftRow,
    PortfolioRow,
    PositionRow,
    ReconciliationRow,
    ScopeRow,
)
from ledger_sizer.storage.write_store import drift_from_row, position_from_row, record_from_row, scope_from_row
from ledger_sizer.views.exposure_series import BlockExtremes, read_exposure_line
from ledger_sizer.views.paging import cursor_numbers, page_of, require_limit
from ledger_sizer.views.scopes import Defaults, default_caps, defaults_of, pools_of_shared, read_shared, scope_exposure

_SCOPES_MAX = 60
_DRIFTS_MAX = 20
_POSITIONS = PositionRow.__table__
_DECISIONS = DecisionRow.__table__

# Literal text, not bound parameters: a database uses a partial index only if the statement repeats its condition.
_PENDING = text(PENDING)
_OPEN = text("positions.state = 'open'")


def read_overview(engine: Engine, request: OverviewQuery, now_us: int | None, cache: BlockExtremes) -> Overview:
    """Read an overview. now_us: the injected clock's time, None for the database's. cache: shared by all reads.

    Raises `InvalidRequest` for rows or hours out of range, `NotFound` for a portfolio that does not exist or may not be
    seen.
    """
    require_limit(request.rows, ROWS_MAX, "rows")
    require_limit(request.hours, HOURS_MAX, "hours")
    with read_transaction(engine) as connection:
        now = from_us(now_us if now_us is not None else connection.execute(select(database_now_us())).scalar_one())
        portfolios = _portfolio_page(connection, request)
        chosen = request.portfolio or next((line.name for line in portfolios), None)
        desk = _desk_halt(connection, request)
        if chosen is None:
            return Overview(now, desk=desk)
        portfolio_row = connection.execute(
            select(PortfolioRow).where(PortfolioRow.name == portfolio_name(chosen))
        ).one_or_none()
        if portfolio_row is None or not _may_see(request, chosen):
            raise no_portfolio(chosen)
        return Overview(now, portfolios, _detail(connection, portfolio_row, request, to_us(now), cache), desk)


def _desk_halt(connection: Connection, request: OverviewQuery) -> DeskHalt | None:
    """Return the desk's halt, None while there is none. Who may see some portfolios only is not told who did it."""
    status = desk_status(connection)
    if status == "active":
        return None
    change = last_desk_change(connection) if request.only is None else None
    if change is None:
        return DeskHalt(status)
    return DeskHalt(status, from_us(change.decided_us), change.actor, json.loads(change.request).get("note"))


def _may_see(request: OverviewQuery, portfolio: str) -> bool:
    return request.only is None or portfolio in request.only


def _portfolio_page(connection: Connection, request: OverviewQuery) -> Page[PortfolioLine]:
    """Return a page of portfolios by name, each with its whole-portfolio scope."""
    query = (
        select(PortfolioRow.name, *ScopeRow.__table__.columns)
        .join_from(PortfolioRow, ScopeRow)
        .where(ScopeRow.scope == PORTFOLIO_SCOPE, PortfolioRow.id != DESK_ID)
        .order_by(PortfolioRow.name)
        .limit(request.rows + 1)
    )
    if request.only is not None:
        query = query.where(PortfolioRow.name.in_(request.only))
    if request.portfolios_cursor is not None:
        query = query.where(PortfolioRow.name > portfolio_name(request.portfolios_cursor))
    rows = connection.execute(query).all()
    return page_of(
        rows,
        request.rows,
        lambda row: PortfolioLine(row[0], scope_exposure(scope_from_row(row[1:]))),
        lambda row: row[0],
    )


def _detail(
    connection: Connection, portfolio_row: Any, request: OverviewQuery, now_us: int, cache: BlockExtremes
) -> Detail:
    shared = read_shared(connection, portfolio_row.id)
    defaults = defaults_of(shared)
    scopes, left_out = _scopes(connection, portfolio_row.id, shared, defaults)
    pools = pools_of_shared(scopes[0], shared)
    shown = sorted(nlargest(_SCOPES_MAX, pools, attrgetter("guaranteed")), key=attrgetter("scope"))
    count = select(func.count()).select_from(_POSITIONS).where(PositionRow.portfolio_id == portfolio_row.id)
    return Detail(
        name=portfolio_row.name,
        seq=portfolio_row.last_seq,
        scopes=scopes,
        scopes_left_out=left_out,
        pools=tuple(shown),
        pools_left_out=len(pools) - len(shown),
        shared=left_to_all(scopes[0].headroom, pools),
        defaults=default_caps(defaults),
        held=_held_page(connection, portfolio_row, request),
        held_count=connection.execute(count.where(_PENDING)).scalar_one(),
        open=_open_page(connection, portfolio_row, request),
        open_count=connection.execute(count.where(_OPEN)).scalar_one(),
        decisions=_decision_page(connection, portfolio_row, request),
        line=read_exposure_line(connection, portfolio_row, now_us - request.hours * 3_600_000_000, cache),
        reconciliation=_reconciliation(connection, portfolio_row.name),
    )


def _scopes(
    connection: Connection, portfolio_id: int, shared: Sequence[ScopeState], defaults: Defaults
) -> tuple[tuple[ScopeExposure, ...], int]:
    """Return the scopes to show, and how many more there are. Default caps, in which nothing counts, are none."""
    empty = [scope.name for scope in shared if is_default_scope(scope.name) and not scope.exposure_e8]
    limited = ScopeRow.cap_e8.is_not(None) | ScopeRow.guarantee_e8.is_not(None)
    rank = case((ScopeRow.scope == PORTFOLIO_SCOPE, 0), (limited, 1), else_=2)
    wanted = and_(ScopeRow.portfolio_id == portfolio_id, ScopeRow.scope.not_in(empty))
    query = select(*ScopeRow.__table__.columns).where(wanted)
    query = query.order_by(rank, (ScopeRow.held_e8 + ScopeRow.open_e8).desc(), ScopeRow.scope)
    rows = connection.execute(query.limit(_SCOPES_MAX)).all()
    count = select(func.count()).select_from(ScopeRow).where(wanted)
    total = connection.execute(count).scalar_one() if len(rows) == _SCOPES_MAX else len(rows)
    return tuple(scope_exposure(scope_from_row(row), defaults) for row in rows), total - len(rows)


def _held_page(connection: Connection, portfolio_row: Any, request: OverviewQuery) -> Page[Position]:
    query = select(*_POSITIONS.columns).where(PositionRow.portfolio_id == portfolio_row.id, _PENDING)
    if request.held_cursor is not None:
        query = query.where(
            tuple_(PositionRow.expires_us, PositionRow.number) > cursor_numbers(request.held_cursor, 2, "held_cursor")
        )
    query = query.order_by(PositionRow.expires_us, PositionRow.number)
    rows = connection.execute(query.limit(request.rows + 1)).all()
    return page_of(
        rows,
        request.rows,
        lambda row: position_from_row(portfolio_row.name, row),
        lambda row: f"{row.expires_us}:{row.number}",
    )


def _open_page(connection: Connection, portfolio_row: Any, request: OverviewQuery) -> Page[Position]:
    query = select(*_POSITIONS.columns).where(PositionRow.portfolio_id == portfolio_row.id, _OPEN)
    if request.open_cursor is not None:
        query = query.where(PositionRow.number < cursor_numbers(request.open_cursor, 1, "open_cursor")[0])
    rows = connection.execute(query.order_by(PositionRow.number.desc()).limit(request.rows + 1)).all()
    return page_of(rows, request.rows, lambda row: position_from_row(portfolio_row.name, row), lambda row: row.number)


def _decision_page(connection: Connection, portfolio_row: Any, request: OverviewQuery) -> Page[Decision]:
    query = select(*_DECISIONS.columns).where(DecisionRow.portfolio_id == portfolio_row.id)
    if request.decisions_cursor is not None:
        query = query.where(DecisionRow.seq < cursor_numbers(request.decisions_cursor, 1, "decisions_cursor")[0])
    rows = connection.execute(query.order_by(DecisionRow.seq.desc()).limit(request.rows + 1)).all()
    return page_of(
        rows, request.rows, lambda row: record_from_row(portfolio_row.name, row).decision(), lambda row: row.seq
    )


def _reconciliation(connection: Connection, portfolio: str) -> Reconciliation:
    """Return the last run, and the drifts that are not resolved, confirmed ones first."""
    runs = select(ReconciliationRow.finished_us, ReconciliationRow.outcome)
    newest = runs.where(ReconciliationRow.portfolio == portfolio).order_by(ReconciliationRow.id.desc()).limit(1)
    run = connection.execute(newest).one_or_none()
    unresolved = (DriftRow.portfolio == portfolio, DriftRow.state != "resolved")
    rank = case((DriftRow.state == "confirmed", 0), (DriftRow.state == "open", 1), else_=2)
    query = select(DriftRow.__table__).where(*unresolved).order_by(rank, DriftRow.id.desc()).limit(_DRIFTS_MAX)
    drifts = tuple(drift_from_row(row) for row in connection.execute(query))
    count = len(drifts)
    if count == _DRIFTS_MAX:
        count = connection.execute(select(func.count()).select_from(DriftRow).where(*unresolved)).scalar_one()
    run_at, outcome = (None, None) if run is None else (from_us(run.finished_us), run.outcome)
    return Reconciliation(run_at, outcome, drifts, count)
