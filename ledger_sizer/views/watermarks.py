"""Reads how far each portfolio has got, in one small query that any number of watchers can share."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, case, func, select

from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow, ReconciliationRow


class Watermark(NamedTuple):
    """How far a portfolio has got. seq, us: of its newest decision. run: of its newest reconciliation, 0 for none."""

    seq: int
    run: int
    us: int


def read_watermarks(engine: Engine) -> dict[str, Watermark]:
    """Return the watermark of every portfolio, sorted by name. Raises `Unavailable`."""
    runs = select(func.max(ReconciliationRow.id)).where(ReconciliationRow.portfolio == PortfolioRow.name)
    query = select(PortfolioRow.name, PortfolioRow.last_seq, runs.scalar_subquery(), PortfolioRow.last_us)
    with read_transaction(engine) as connection:
        rows = connection.execute(query.order_by(PortfolioRow.name))
        return {name: Watermark(seq, run or 0, us) for name, seq, run, us in rows}


def read_positions(engine: Engine, done_us: int, round_us: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return by portfolio the last seq decided up to each of two times. Raises `Unavailable`.

    Where the decisions up to then are archived, the last archived seq, which may be later.
    """
    query = select(PortfolioRow.name, _last_seq_until(done_us), _last_seq_until(round_us))
    with read_transaction(engine) as connection:
        rows = connection.execute(query).all()
    return {name: done for name, done, _ in rows}, {name: in_round for name, _, in_round in rows}


def _last_seq_until(us: int) -> ColumnElement[int]:
    """Read back from the newest decision; most portfolios have none after a time not long ago."""
    own = select(DecisionRow.seq).where(DecisionRow.portfolio_id == PortfolioRow.id)
    last = own.where(DecisionRow.decided_us <= us).order_by(DecisionRow.seq.desc()).limit(1).scalar_subquery()
    first = own.order_by(DecisionRow.seq).limit(1).scalar_subquery()
    found = func.coalesce(last, first - 1, PortfolioRow.last_seq)
    return case((PortfolioRow.last_us <= us, PortfolioRow.last_seq), else_=found)
