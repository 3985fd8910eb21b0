"""Reads holds in the order in which they end, from the index of expiries."""

from sqlalchemy import Engine, select, text, tuple_

from ledger_sizer.model.domain import Page, Position
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.tags import Tags
from ledger_sizer.model.times import UNTIL_KNOWN_US
from ledger_sizer.storage.database import has_tag, read_transaction
from ledger_sizer.storage.lookups import no_portfolio, portfolio_id
from ledger_sizer.storage.tables import PENDING, PositionRow
from ledger_sizer.storage.write_store import position_from_row
from ledger_sizer.views.paging import cursor_numbers, page_of, require_limit


def read_holds(
    engine: Engine, portfolio: str, tags: Tags, *, until_known: bool, cursor: str | None, limit: int
) -> Page[Position]:
    """Return a page of the live positions with a hold and all these tags, in the order in which these end.

    until_known: with those that never end by time, which come last. cursor: of the page before. limit: 1 to 1000.
    Raises `NotFound` where there is no such portfolio.
    """
    expiry = PositionRow.expires_us
    query = select(*PositionRow.__table__.columns).where(text(PENDING))
    if cursor is not None:
        query = query.where(tuple_(expiry, PositionRow.number) > cursor_numbers(cursor, 2))
    if not until_known:
        query = query.where(expiry < UNTIL_KNOWN_US)
    for name, value in tags.pairs:
        query = query.where(has_tag(PositionRow.tags, name, value))
    query = query.order_by(expiry, PositionRow.number).limit(require_limit(limit) + 1)
    with read_transaction(engine) as connection:
        owner = portfolio_id(connection, portfolio_name(portfolio))
        if owner is None:
            raise no_portfolio(portfolio)
        rows = connection.execute(query.where(PositionRow.portfolio_id == owner)).all()
    return page_of(
        rows, limit, lambda row: position_from_row(portfolio, row), lambda row: f"{row.expires_us}:{row.number}"
    )
