"""Looks up single rows by the names that callers use: a portfolio by its name, a decision by its key."""

from sqlalchemy import Connection, select

from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import NotFound
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow
from ledger_sizer.storage.write_store import record_from_row


def portfolio_id(connection: Connection, portfolio: str) -> int | None:
    """Return a portfolio's id, None if it does not exist."""
    return connection.execute(select(PortfolioRow.id).where(PortfolioRow.name == portfolio)).scalar()


def no_portfolio(portfolio: str) -> NotFound:
    """Return the error for a portfolio that does not exist."""
    return NotFound(f"no portfolio {portfolio!r}; one comes into being with its first reservation or cap")


def decision_by_key(connection: Connection, portfolio: str, key: str) -> DecisionRecord | None:
    """Return the decision with this key, None without one. Archived decisions are not searched."""
    owner = select(PortfolioRow.id).where(PortfolioRow.name == portfolio).scalar_subquery()
    query = select(DecisionRow.__table__).where(DecisionRow.portfolio_id == owner, DecisionRow.key == key)
    row = connection.execute(query).one_or_none()
    return None if row is None else record_from_row(portfolio, row)
