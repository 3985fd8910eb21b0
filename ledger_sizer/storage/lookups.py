"""Looks up single rows by the names that callers use: a portfolio by its name, a decision by its key."""

from typing import cast

from sqlalchemy import Connection, select

from ledger_sizer.model.choices import Status
from ledger_sizer.model.commands import Halt, Resume
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import NotFound
from ledger_sizer.model.names import DESK
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


def last_desk_change(connection: Connection) -> DecisionRecord | None:
    """Return the newest halt or resume of the desk that is not archived."""
    query = select(DecisionRow.__table__).where(
        DecisionRow.portfolio_id == DESK_ID, DecisionRow.command.in_((Halt.verb, Resume.verb))
    )
    row = connection.execute(query.order_by(DecisionRow.seq.desc()).limit(1)).one_or_none()
    return None if row is None else record_from_row(DESK, row)


def no_portfolio(portfolio: str) -> NotFound:
    """Return the error for a portfolio that does not exist."""
    return NotFound(f"no portfolio {portfolio!r}; one comes into being with its first reservation or cap")


def decision_by_key(connection: Connection, portfolio: str, key: str) -> DecisionRecord | None:
    """Return the decision with this key, None without one. Archived decisions are not searched."""
    owner = select(PortfolioRow.id).where(PortfolioRow.name == portfolio).scalar_subquery()
    query = select(DecisionRow.__table__).where(DecisionRow.portfolio_id == owner, DecisionRow.key == key)
    row = connection.execute(query).one_or_none()
    return None if row is None else record_from_row(portfolio, row)
