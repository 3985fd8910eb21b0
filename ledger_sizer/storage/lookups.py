"""Looks up single rows by the names that callers use: a portfolio by its name, a decision by its key."""

from typing import cast

from sqlalchemy import Connection, select

from ledger_sizer.model.choices import Status
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import NotFound
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.storage.tables import DESK_ID, NO_DESK, DecisionRow, PortfolioRow, ScopeRow
from ledger_sizer.storage.write_store import record_from_row


def portfolio_id(connection: Connection, portfolio: str) -> int | None:
    """Return a portfolio's id, None if it does not exist."""
    return connection.execute(select(PortfolioRow.id).where(PortfolioRow.name == portfolio)).scalar()


def desk_status(connection: Connection) -> Status:
    """Return the desk's status: that of all portfolios together."""
    status = select(ScopeRow.status).where(ScopeRow.portfolio_id == DESK_ID, ScopeRow.scope == PORTFOLIO_SCOPE)
    return cast(Status, connection.execute(status).scalar() or NO_DESK)


def no_portfolio(portfolio: str) -> NotFound:
    """Return the error for a portfolio that does not exist."""
    return NotFound(f"no portfolio {portfolio!r}; one comes into being with its first reservation or cap")


def decision_by_key(connection: Connection, portfolio: str, key: str) -> DecisionRecord | None:
    """Return the decision with this key, None without one. Archived decisions are not searched."""
    owner = select(PortfolioRow.id).where(PortfolioRow.name == portfolio).scalar_subquery()
    query = select(DecisionRow.__table__).where(DecisionRow.portfolio_id == owner, DecisionRow.key == key)
    row = connection.execute(query).one_or_none()
    return None if row is None else record_from_row(portfolio, row)
