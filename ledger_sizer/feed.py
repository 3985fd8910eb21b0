"""What is new: the heads of all portfolios' chains, in one small query that any number of watchers can share."""

from sqlalchemy import Engine, select

from ledger_sizer.tables import PortfolioRow


def heads(engine: Engine) -> dict[str, int]:
    """The seq of the newest decision of every portfolio, sorted by name."""
    query = select(PortfolioRow.name, PortfolioRow.last_seq).order_by(PortfolioRow.name)
    with engine.begin() as connection:
        return {name: seq for name, seq in connection.execute(query)}
