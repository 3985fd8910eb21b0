"""The second part of a verification: every position's row against the decisions about it.

Decisions come in order of seq. A position is folded while it lives and compared when it has ended, its row fetched
with those of the others that ended in the same stretch, so that memory grows with the positions that are live at one
time and not with history.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, FromClause, and_, func, literal_column, select

from ledger_sizer.model.decisions import DecisionRecord, Fields
from ledger_sizer.model.domain import position_id
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.tags import stored_tags
from ledger_sizer.storage.database import is_among, raw_rows
from ledger_sizer.storage.tables import DecisionRow, PositionRow
from ledger_sizer.verify.position_fold import FoldedPosition, fold_position

Found = Callable[[int | None, str], None]

UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, ArithmeticError, IndexError, RecursionError, LedgerError
)  # fmt: skip
"""What reading a row that somebody edited may raise."""
_LOOKUP = 1000
_SEQ, _OUTCOME, _NUMBER = (DecisionRecord._fields.index(name) for name in ("seq", "outcome", "position"))
_TOLD = tuple(PositionRow.__table__.columns)[1:]
"""The columns of a `FoldedPosition`."""


def misfit(table: FromClause, row: Sequence[Any]) -> str | None:
    """The first value of a row that is not of its column's type, as a clause; None where all are.

    SQLite stores text and bytes in a column of numbers, where they compare above every number.
    """
    for column, value in zip(table.columns, row, strict=True):
        expected = column.type.python_type
        if type(value) is not expected and not (value is None and column.nullable):
            return f"has {column.name} {value!r:.100}, which is no {'whole number' if expected is int else 'text'}"
    return None


class PositionCheck:
    """The positions of one portfolio. since: what was decided up to there is trusted and was not read."""

    def __init__(self, connection: Connection, portfolio_id: int, portfolio: str, since: int, found: Found) -> None:
        self._connection = connection
        self._id = portfolio_id
        self._name = portfolio
        self._since = since
        self._found = found
        self._told: dict[int, FoldedPosition | None] = {}
        self._ended: dict[int, FoldedPosition | None] = {}
        self._live_from = since + 1
        self._archived_live: frozenset[int] = frozenset()
        self._matched = 0
        self.count = 0
        """Rows seen, archived or live."""

    def tell(self, record: Fields) -> None:
        """Hear one decision of the live table."""
        number = self._fold(record)
        if number is None:
            return
        told = self._told[number]
        if told is None or told.is_final:
            self._ended[number] = told
            del self._told[number]
            if len(self._ended) >= _LOOKUP:
                self._compare_ended()

    def tell_archived(self, record: Fields, row: Sequence[Any] | None) -> None:
        """Hear one decision of an archive file, with the position's row that stands behind it."""
        seq = record[_SEQ]
        self._live_from = seq + 1
        number = self._fold(record)
        told = None if number is None else self._told[number]
        if row is not None:
            self.count += 1
            if told is not None and tuple(row[1:]) != told:
                self._found(seq, f"archived position {self._of(row[1])} {_difference(row[1:], told)}")
            elif told is None and record[_NUMBER] != row[1]:
                self._found(seq, f"archived position {self._of(row[1])} stands in no decision")
        elif told is not None and told.is_final:
            self._found(seq, f"position {self._of(told.number)} is missing in the archive")
        if told is not None and told.is_final:
            del self._told[told.number]

    def end_of_archive(self) -> None:
        """From here on decisions come from the live table; what lives now has its row there."""
        self._archived_live = frozenset(self._told)

    def _fold(self, record: Fields) -> int | None:
        """Fold a decision in. Returns the position's number where it has been followed from its first decision on."""
        number: int | None = record[_NUMBER]
        if number is None or record[_OUTCOME] == "denied":
            return None
        if type(number) is not int:
            self._found(record[_SEQ], f"decision {record[_SEQ]} is about position {number!r:.50}, which is no number")
            return None
        if number <= self._since:
            return None
        before = self._told.get(number)
        if before is None and number in self._told:
            return None
        try:
            self._told[number] = fold_position(before, record)
        except UNREADABLE as error:
            seq = record[_SEQ]
            self._found(seq, f"decision {seq} about position {self._of(number)} cannot be read: {error!r}")
            self._told[number] = None
        return number

    def finish(self) -> None:
        """Compare what still lives, and find rows that no decision made."""
        self._compare_ended()
        live = list(self._told.items())
        for start in range(0, len(live), _LOOKUP):
            self._ended = dict(live[start : start + _LOOKUP])
            self._compare_ended()
        of = and_(PositionRow.portfolio_id == self._id, PositionRow.number > self._since)
        rows = self._connection.execute(select(func.count()).select_from(PositionRow).where(of)).scalar_one()
        self.count += rows
        if rows != self._matched:
            self._find_unmade(of)

    def _compare_ended(self) -> None:
        if not self._ended:
            return
        numbers = json.dumps([*self._ended])
        query = select(*_TOLD).where(PositionRow.portfolio_id == self._id, is_among(PositionRow.number, numbers))
        rows = {row[0]: row for row in raw_rows(self._connection, query)}
        self._matched += len(rows)
        for number, told in sorted(self._ended.items()):
            row = rows.get(number)
            if told is None:
                continue
            if row is None:
                self._found(number, f"position {self._of(number)} is missing")
            elif row != told:
                self._found(number, f"position {self._of(number)} {_difference(row, told)}")
        self._ended = {}

    def _find_unmade(self, of: Any) -> None:
        made = (
            select(DecisionRow.seq)
            .where(DecisionRow.portfolio_id == self._id, DecisionRow.seq == PositionRow.number)
            .where(DecisionRow.position == PositionRow.number)
            .exists()
        )
        query = select(PositionRow.number).where(of, ~made).order_by(PositionRow.number)
        for number in self._connection.execute(query, execution_options={"yield_per": _LOOKUP}).scalars():
            if type(number) is not int:
                self._found(None, f"a position has the number {number!r:.50}, which is no whole number")
            elif number >= self._live_from or number not in self._archived_live:
                self._found(number, f"position {self._of(number)} stands in no decision")

    def sums(self) -> tuple[dict[str, int], dict[str, int]]:
        """held and open of each scope, from all live rows, 1e-8 USD."""
        held: dict[str, int] = {}
        opened: dict[str, int] = {}
        query = (
            select(PositionRow.tags, *_halves(PositionRow.held_e8), *_halves(PositionRow.open_e8))
            .where(PositionRow.portfolio_id == self._id)
            .where((PositionRow.held_e8 != 0) | (PositionRow.open_e8 != 0))
            .group_by(PositionRow.tags)
        )
        for tags, *halves in self._connection.execute(query):
            try:
                scopes, sums = stored_tags(tags).scopes, (_whole(*halves[:2]), _whole(*halves[2:]))
            except UNREADABLE:
                self._found(None, f"positions with the tags {tags!r:.100} cannot be summed")
                continue
            for scope in scopes:
                held[scope] = held.get(scope, 0) + sums[0]
                opened[scope] = opened.get(scope, 0) + sums[1]
        return held, opened

    def _of(self, number: int) -> str:
        return position_id(self._name, number)


def _halves(column: Any) -> tuple[Any, Any]:
    """The sums of a column's upper and lower halves: SQLite gives up where a sum leaves 64 bits, as one edit can do."""
    return func.sum(column.op(">>")(literal_column("32"))), func.sum(column.op("&")(0xFFFFFFFF))


def _whole(upper: Any, lower: Any) -> int:
    return (int(upper) << 32) + int(lower)


def _difference(row: Sequence[Any], told: FoldedPosition) -> str:
    """The first field in which a row differs from what its decisions say."""
    for name, value, expected in zip(FoldedPosition._fields, row, told, strict=True):
        if value != expected:
            return f"has {name} {value!r}, its decisions say {expected!r}"
    return "differs from its decisions"
