"""Reads how far each portfolio has got, in one small query that any number of watchers can share."""

from typing import NamedTuple

from sqlalchemy import Engine, func, select

from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import PortfolioRow, ReconciliationRow


class Watermark(NamedTuple):
    """How far a portfolio has got. seq: of its newest decision. run: id of its newest reconciliation, 0 for none."""

    seq: int
    run: int


def read_watermarks(engine: Engine) -> dict[str, Watermark]:
    """Return the watermark of every portfolio, sorted by name. Raises `Unavailable`."""
    runs = select(func.max(ReconciliationRow.id)).where(ReconciliationRow.portfolio == PortfolioRow.name)
    query = select(PortfolioRow.name, PortfolioRow.last_seq, runs.scalar_subquery()).order_by(PortfolioRow.name)
    with read_transaction(engine) as connection:
        return {name: Watermark(seq, run or 0) for name, seq, run in connection.execute(query)}
