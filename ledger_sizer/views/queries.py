"""Reads exposure, positions and history. Reads have their own connections and never wait for the writer."""

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

from sqlalchemy import ColumnElement, Connection, Engine, Select, exists, func, select, text, tuple_

from ledger_sizer.history.archive_files import ArchiveFiles, manifests
from ledger_sizer.history.as_of import AsOf, require_moment, scopes_as_of
from ledger_sizer.history.history import Filters, History, own_key
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.caller import Caller
from ledger_sizer.model.choices import Status
from ledger_sizer.model.command_base import KEY_LENGTH_MAX
from ledger_sizer.model.decisions import Decision, DecisionRecord, Fields
from ledger_sizer.model.domain import (
    Exposure,
    ExposurePage,
    HistoryFilters,
    Page,
    Position,
)
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.names import SEQ_MAX, portfolio_name, portfolio_or_desk, split_position_id
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, GivenTags, is_dimension, scope_name, tags_of
from ledger_sizer.model.units import E8_MAX
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.storage.database import has_tag, read_transaction
from ledger_sizer.storage.lookups import decision_by_key, desk_status, last_desk_change, no_portfolio, portfolio_id
from ledger_sizer.storage.tables import DESK_ID, PENDING, DecisionRow, PortfolioRow, PositionRow, ScopeRow
from ledger_sizer.storage.write_store import position_from_row, scope_from_row
from ledger_sizer.views.history_filters import is_ascending, parse_filters
from ledger_sizer.views.paging import EXPOSURE_LIMIT_MAX, LIMIT_MAX, cursor_numbers, page_of, require_limit
from ledger_sizer.views.position_listing import read_in_state
from ledger_sizer.views.scopes import exposure_of, read_shared

BLOCK_RECORDS = 2000
"""Records of one block of `Queries.history_blocks`."""

_SEQ = DecisionRecord._fields.index("seq")
_SCOPES = ScopeRow.__table__
_POSITIONS = PositionRow.__table__


class Queries:
    """The reads of one ledger. Each sees one consistent snapshot.

    new_cap_e8: cap of a portfolio that nobody used yet, 1e-8 USD: it reads as an empty one. None where portfolios are
    declared: then its name is an error.
    """

    def __init__(self, engine: Engine, files: ArchiveFiles, new_cap_e8: int | None) -> None:
        self._engine = engine
        self._files = files
        self._new_cap_e8 = new_cap_e8

    @property
    def engine(self) -> Engine:
        """The engine. Its connections are read-only."""
        return self._engine

    def portfolios(self) -> list[str]:
        """Return the names of all portfolios, sorted; without the desk."""
        with read_transaction(self._engine) as connection:
            query = select(PortfolioRow.name).where(PortfolioRow.id != DESK_ID).order_by(PortfolioRow.name)
            return list(connection.execute(query).scalars())

    def desk(self) -> tuple[Status, Decision | None]:
        """Return the desk's status, and the halt or resume that set it; None where none did, or it is archived."""
        with read_transaction(self._engine) as connection:
            change = last_desk_change(connection)
            return desk_status(connection), None if change is None else change.decision()

    def portfolios_with_expired(self, now_us: int) -> list[str]:
        """Return the names of portfolios with a hold that has expired."""
        due = exists().where(
            PositionRow.portfolio_id == PortfolioRow.id, text(PENDING), PositionRow.expires_us <= now_us
        )
        query = select(PortfolioRow.name).where(due).order_by(PortfolioRow.id)
        with read_transaction(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def newest_us(self) -> int:
        """Return the newest time of a decision of any portfolio, microseconds; 0 if there is none."""
        with read_transaction(self._engine) as connection:
            return int(connection.execute(select(func.max(PortfolioRow.last_us))).scalar() or 0)

    def exposure(self, portfolio: str, as_of: AsOf | None = None) -> Exposure:
        """Return a portfolio's counters, the whole first: now, or as of a past decision or time (see `as_of`)."""
        if as_of is not None:
            seq, scopes = self._scopes_as_of(portfolio, as_of)
            return exposure_of(portfolio, seq, scopes[0], scopes[1:], scopes)
        query = (
            select(PortfolioRow.last_seq, *_SCOPES.columns)
            .join_from(PortfolioRow, ScopeRow)
            .where(PortfolioRow.name == portfolio_name(portfolio))
            .order_by(ScopeRow.scope != PORTFOLIO_SCOPE, ScopeRow.scope)
        )
        with read_transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        if not rows:
            return exposure_of(portfolio, 0, self._unused(portfolio), (), ())
        scopes = [scope_from_row(row[1:]) for row in rows]
        return exposure_of(portfolio, rows[0][0], scopes[0], scopes[1:], scopes)

    def _unused(self, portfolio: str) -> ScopeState:
        """Return the whole of a portfolio that nobody used yet. Raises `NotFound` where portfolios are declared."""
        if self._new_cap_e8 is None:
            raise no_portfolio(portfolio)
        return ScopeState(PORTFOLIO_SCOPE, ScopeSettings(cap_e8=self._new_cap_e8))

    def _scopes_as_of(self, portfolio: str, as_of: AsOf) -> tuple[int, list[ScopeState]]:
        with read_transaction(self._engine) as connection:
            owner = portfolio_id(connection, portfolio_name(portfolio))
            if owner is not None:
                return scopes_as_of(connection, owner, portfolio, as_of, self._files)
        require_moment(as_of)
        if isinstance(as_of, int):
            raise no_portfolio(portfolio)  # it has no decision of this seq
        return 0, [self._unused(portfolio)]

    def exposure_page(
        self,
        portfolio: str,
        *,
        as_of: AsOf | None = None,
        dimension: str | None = None,
        cursor: str | None = None,
        limit: int = LIMIT_MAX,
    ) -> ExposurePage:
        """Return the whole portfolio and a page of its other scopes by name.

        dimension: only scopes of that tag name. cursor: of the page before. limit: 1 to 10,000. With as_of every page
        adds the decisions up again.
        """
        wanted = require_limit(limit, EXPOSURE_LIMIT_MAX)
        prefix = "" if dimension is None else f"{_dimension(dimension)}="
        after = "" if cursor is None else _scope_cursor(cursor)
        if as_of is not None:
            seq, scopes = self._scopes_as_of(portfolio, as_of)
            rest = [scope for scope in scopes[1:] if scope.name > after and scope.name.startswith(prefix)]
            page = page_of(rest, wanted, lambda scope: scope, lambda scope: scope.name)
            return ExposurePage(exposure_of(portfolio, seq, scopes[0], page.items, scopes), page.cursor)
        query = select(*_SCOPES.columns).where(ScopeRow.scope != PORTFOLIO_SCOPE, ScopeRow.scope > after)
        if prefix:
            query = query.where(func.substr(ScopeRow.scope, 1, len(prefix)) == prefix)
        query = query.order_by(ScopeRow.scope).limit(wanted + 1)
        with read_transaction(self._engine) as connection:
            head = connection.execute(_whole_of(portfolio)).one_or_none()
            if head is None:
                return ExposurePage(exposure_of(portfolio, 0, self._unused(portfolio), (), ()), None)
            rows = connection.execute(query.where(ScopeRow.portfolio_id == head.portfolio_id)).all()
            shared = read_shared(connection, head.portfolio_id)
        page = page_of(rows, wanted, scope_from_row, lambda row: row.scope)
        whole = scope_from_row(head[1:])
        return ExposurePage(exposure_of(portfolio, head.last_seq, whole, page.items, shared), page.cursor)

    def position(self, position_id: str) -> Position:
        """Return one position, live or archived, by its id."""
        portfolio, number = split_position_id(position_id)
        query = _where_portfolio(select(*_POSITIONS.columns), PositionRow.portfolio_id, portfolio)
        with read_transaction(self._engine) as connection:
            row: Sequence[Any] | None = connection.execute(query.where(PositionRow.number == number)).one_or_none()
            if row is None:
                row = self._archived_position(connection, portfolio, number)
        if row is None:
            raise NotFound(f"no position {position_id!r}")
        return position_from_row(portfolio, row)

    def _archived_position(self, connection: Connection, portfolio: str, number: int) -> Sequence[Any] | None:
        owner = portfolio_id(connection, portfolio)
        found = [] if owner is None else manifests(connection, owner)
        return self._files.find_position(portfolio, found, number)

    def positions(
        self,
        portfolio: str | None = None,
        *,
        state: str | None = None,
        tags: GivenTags | None = None,
        key: str | None = None,
        client: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[Position]:
        """Return a page of positions, oldest first.

        portfolio: None for all. state: `held`, `open`, `closed`, `released`, `expired`, `live` (held or open), or
        `until_known` (live, with a hold that never ends by time). tags: all must match. key: of a decision about the
        position. client: the only one whose keys count; None: everybody's. cursor: of the page before. limit: 1 to
        1000.
        """
        query = select(PortfolioRow.name, *_POSITIONS.columns).join_from(
            PortfolioRow, PositionRow, PositionRow.portfolio_id == PortfolioRow.id
        )
        if portfolio is not None:
            query = query.where(PortfolioRow.name == portfolio_name(portfolio))
        for name, value in tags_of(tags or {}).pairs:
            query = query.where(has_tag(PositionRow.tags, name, value))
        if key is not None:
            query = query.where(_has_key(label_text(key, "key", length_max=KEY_LENGTH_MAX), portfolio, client))
        after = (0, 0) if cursor is None else cursor_numbers(cursor, 2)
        if cursor is not None:
            query = query.where(tuple_(PositionRow.portfolio_id, PositionRow.number) > after)
        require_limit(limit)
        with read_transaction(self._engine) as connection:
            # Without an owner the query still names the portfolio, so what is asked of one nobody used yet is empty.
            owner = None if portfolio is None else self._owner(connection, portfolio, key)
            rows = read_in_state(connection, query, owner, state, after, limit)
        rows.sort(key=lambda row: (row.portfolio_id, row.number))
        return page_of(
            rows, limit, lambda row: position_from_row(row[0], row[1:]), lambda row: f"{row.portfolio_id}:{row.number}"
        )

    def history(
        self,
        portfolio: str = "main",
        *,
        cursor: str | None = None,
        limit: int = 100,
        client: str | None = None,
        **filters: Unpack[HistoryFilters],
    ) -> Page[Decision]:
        """Return a page of decisions, newest first unless `ascending`. filters: see `HistoryFilters`.

        client: the only one whose keys the filter `key` finds; None: everybody's. A key is looked up without error in a
        portfolio that does not exist. cursor: of the page before; it stays valid while decisions are added or archived.
        limit: 1 to 1000.
        """
        wanted = require_limit(limit)
        rows = self._find(
            portfolio, cursor, wanted + 1, parse_filters(portfolio, filters, client), is_ascending(filters)
        )
        return page_of(rows, wanted, lambda row: DecisionRecord._make(row).decision(), lambda row: row[_SEQ])

    def history_blocks(
        self,
        portfolio: str = "main",
        *,
        cursor: str | None = None,
        client: str | None = None,
        **filters: Unpack[HistoryFilters],
    ) -> Iterator[list[Fields]]:
        """Yield all that `history` would list from the cursor on, with one block in memory at a time.

        Each block is read in its own transaction, so a slow consumer keeps no transaction open.
        """
        wanted, ascending = parse_filters(portfolio, filters, client), is_ascending(filters)
        while True:
            rows = self._find(portfolio, cursor, BLOCK_RECORDS, wanted, ascending)
            yield rows
            if len(rows) < BLOCK_RECORDS:
                return
            cursor = str(rows[-1][_SEQ])

    def _find(self, portfolio: str, cursor: str | None, limit: int, filters: Filters, ascending: bool) -> list[Fields]:
        low, high = 1, E8_MAX
        if cursor is not None:
            (seq,) = cursor_numbers(cursor, 1)
            low, high = (seq + 1, high) if ascending else (low, seq - 1)
        with read_transaction(self._engine) as connection:
            owner = self._owner(connection, portfolio, filters.key)
            if owner is None:
                return []
            history = History(connection, owner, portfolio, self._files)
            return history.find_rows(filters, low, high, ascending=ascending, limit=limit)

    def lookup(self, portfolio: str, key: str, caller: Caller) -> Decision | None:
        """Return the decision of a key; None where the key is unused, archived, or another client's.

        An admin's look-up finds the key of every client.
        """
        wanted = label_text(key, "key", length_max=KEY_LENGTH_MAX)
        with read_transaction(self._engine) as connection:
            found = decision_by_key(connection, portfolio_or_desk(portfolio), wanted)
        if found is None or not (caller.sees_all or caller.owns(found.client)):
            return None
        return found.decision()

    def decision(self, portfolio: str, seq: object) -> Decision:
        """Return one decision by its seq."""
        if isinstance(seq, bool) or not isinstance(seq, int) or not 1 <= seq <= SEQ_MAX:
            raise InvalidRequest(f"seq must be a whole number from 1, got {seq!r}", field="seq")
        with read_transaction(self._engine) as connection:
            history = History(connection, self._require(connection, portfolio), portfolio, self._files)
            records = history.find(Filters(), seq, seq, ascending=True, limit=1)
        if not records:
            raise NotFound(f"no decision {seq} in portfolio {portfolio!r}")
        return records[0].decision()

    def resolve(self, reference: int | str, portfolio: str) -> Decision:
        """Return the decision with this seq, or the one that made the position with this id."""
        if isinstance(reference, str):
            portfolio, number = split_position_id(reference)
            decision = self.decision(portfolio, number)
            if decision.position_id != reference:
                raise NotFound(f"no position {reference!r}; decision {number} of {portfolio!r} made none")
            return decision
        return self.decision(portfolio, reference)

    def require(self, portfolio: str) -> str:
        """Return the portfolio's name. Raises `NotFound` if it does not exist."""
        with read_transaction(self._engine) as connection:
            self._require(connection, portfolio)
        return portfolio

    def _require(self, connection: Connection, portfolio: str) -> int:
        """Return the portfolio's id. Raises `NotFound`."""
        found = portfolio_id(connection, portfolio_or_desk(portfolio))
        if found is None:
            raise no_portfolio(portfolio)
        return found

    def _owner(self, connection: Connection, portfolio: str, key: str | None) -> int | None:
        """Return the portfolio's id, None where nobody used it yet.

        Raises `NotFound` where portfolios are declared, but for a look-up of a key.
        """
        found = portfolio_id(connection, portfolio_or_desk(portfolio))
        if found is None and key is None:
            self._unused(portfolio)
        return found


def _has_key(key: str, portfolio: str | None, client: str | None) -> ColumnElement[bool]:
    """Return the condition that a decision with this key is about the position."""
    # The index of keys begins with the portfolio, so each portfolio is asked.
    owners = select(PortfolioRow.id)
    if portfolio is not None:
        owners = owners.where(PortfolioRow.name == portfolio)
    decided = select(DecisionRow.portfolio_id, DecisionRow.position).where(
        DecisionRow.portfolio_id.in_(owners), DecisionRow.key == key, own_key(client)
    )
    return tuple_(PositionRow.portfolio_id, PositionRow.number).in_(decided)


def _where_portfolio(query: Select[Any], column: Any, portfolio: str) -> Select[Any]:
    inner = select(PortfolioRow.id).where(PortfolioRow.name == portfolio_name(portfolio)).scalar_subquery()
    return query.where(column == inner)


def _whole_of(portfolio: str) -> Select[Any]:
    """Return the query for a portfolio's seq and the row of its whole."""
    return (
        select(PortfolioRow.last_seq, *_SCOPES.columns)
        .join_from(PortfolioRow, ScopeRow)
        .where(PortfolioRow.name == portfolio_name(portfolio), ScopeRow.scope == PORTFOLIO_SCOPE)
    )


def _dimension(value: object) -> str:
    if not is_dimension(value):
        raise InvalidRequest(f"dimension must be a tag name like venue, got {value!r:.100}", field="dimension")
    return str(value)


def _scope_cursor(value: object) -> str:
    try:
        if value == PORTFOLIO_SCOPE:  # which is on every page
            raise InvalidRequest("no page ends with it")
        return scope_name(value)
    except InvalidRequest:
        raise InvalidRequest(f"cursor must come from the page before, got {value!r:.60}", field="cursor") from None
