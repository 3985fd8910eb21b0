"""Loads the state that a dry run is decided on."""

from sqlalchemy import Engine, and_, or_, select, text

from ledger_sizer.model.commands import Reserve
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import desk_status
from ledger_sizer.storage.tables import PENDING, SHARED, PortfolioRow, PositionRow, ScopeRow
from ledger_sizer.storage.write_store import expiries_per_portfolio, position_from_row, scope_from_row

_SCOPES = ScopeRow.__table__
_POSITIONS = PositionRow.__table__


def dry_run_state(engine: Engine, command: Reserve, now_us: int, new_cap_e8: int) -> PortfolioState:
    """Load, without a lock, the state that a reservation would be decided against now. Raises `Unavailable`."""
    with read_transaction(engine) as connection:
        found = connection.execute(select(PortfolioRow).where(PortfolioRow.name == command.portfolio)).one_or_none()
        if found is None:
            state = PortfolioState.begun(0, command.portfolio, new_cap_e8)
            state.desk_status = desk_status(connection)
            return state
        state = PortfolioState(found.id, found.name, found.last_seq, found.last_hash, found.last_us)
        state.desk_status = desk_status(connection)
        # A real batch would free these holds first.
        due = and_(text(PENDING), PositionRow.expires_us <= state.decision_time(now_us))
        query = select(*_POSITIONS.columns).where(PositionRow.portfolio_id == found.id, due)
        query = query.order_by(PositionRow.expires_us, PositionRow.number).limit(expiries_per_portfolio(1))
        wanted = set(command.scopes)
        rows = [*connection.execute(query)]
        if command.number is not None and all(row.number != command.number for row in rows):
            asked = PositionRow.number == command.number
            of = select(*_POSITIONS.columns).where(PositionRow.portfolio_id == found.id, asked)
            rows += connection.execute(of)
        for row in rows:
            state.add_position(position_from_row(found.name, row))
            wanted.update(state.positions[row.number].tags.scopes)
        scopes = select(*_SCOPES.columns).where(
            ScopeRow.portfolio_id == found.id, or_(ScopeRow.scope.in_(wanted), text(SHARED))
        )
        for row in connection.execute(scopes):
            state.add_scope(scope_from_row(row))
        return state
