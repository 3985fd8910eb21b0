"""Verifies positions: compares every position's row with the decisions about it.

Decisions arrive in order of seq. A position is folded from its decisions while it is live, and compared with its row
after it ended, in one query for many positions. So memory grows with the positions that are live at one time, not with
history.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, FromClause, and_, func, select

from ledger_sizer.model.decisions import DecisionRecord, Fields
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.names import position_id
from ledger_sizer.model.tags import stored_tags
from ledger_sizer.storage.database import is_among, raw_rows
from ledger_sizer.storage.tables import DecisionRow, PositionRow
from ledger_sizer.verify.position_fold import FoldedPosition, changes_position, fold_position

Report = Callable[[int | None, str], None]
"""Called with each finding: the seq of the first decision concerned, None if there is none, and what is wrong."""

READ_ERRORS = (
    ValueError, TypeError, KeyError, AttributeError, ArithmeticError, IndexError, RecursionError, LedgerError
)  # fmt: skip
"""Errors that reading an edited row may raise."""
_LOOKUP = 1000
_SEQ, _OUTCOME, _NUMBER = (DecisionRecord._fields.index(name) for name in ("seq", "outcome", "position"))
_COLUMNS = tuple(PositionRow.__table__.columns)[1:]
"""The columns of a `FoldedPosition`."""


def find_wrong_type(table: FromClause, row: Sequence[Any]) -> str | None:
    """Describe the first value of a row that is not of its column's type; None if all are.

    SQLite stores even text and bytes in a column of numbers, and compares them as greater than every number.
    """
    for column, value in zip(table.columns, row, strict=True):
        expected = column.type.python_type
        if type(value) is not expected and not (value is None and column.nullable):
            return f"has {column.name} {value!r:.100}, which is no {'whole number' if expected is int else 'text'}"
    return None


class PositionCheck:
    """Verifies the positions of one portfolio.

    since: decisions up to this seq are trusted and are not read. rows: of the positions after it by number, where they
    were read already; None looks them up.
    """

    def __init__(
        self,
        connection: Connection,
        portfolio: Any,
        since: int,
        rows: Mapping[Any, Sequence[Any]] | None,
        report: Report,
    ) -> None:
        self._connection = connection
        self._id: int = portfolio.id
        self._name: str = portfolio.name
        self._since = since
        self._rows = rows
        self._report = report
        self._folded: dict[int, FoldedPosition | None] = {}  # live ones by number; None: a decision was unreadable
        self._ended: dict[int, FoldedPosition | None] = {}
        self._live_from = since + 1
        self._archived_live: frozenset[int] = frozenset()
        self._matched = 0
        self.count = 0
        """Number of position rows read, archived or live."""
        self.changed: tuple[FoldedPosition | None, FoldedPosition] | None = None
        """The position of the last decision before and after it; None where it changed none."""

    def add(self, record: Fields) -> None:
        """Fold one decision of the live table, and compare positions that ended."""
        number = self._fold(record)
        if number is None:
            return
        folded = self._folded[number]
        if folded is None or folded.is_final:
            self._ended[number] = folded
            del self._folded[number]
            if len(self._ended) >= _LOOKUP:
                self._compare_ended()

    def add_archived(self, record: Fields, row: Sequence[Any] | None) -> None:
        """Fold one decision of an archive file. row: of the position it ended, as the file has it; compared at once.

        Files of versions before keep no reference with a position.
        """
        seq = record[_SEQ]
        self._live_from = seq + 1
        number = self._fold(record)
        folded = None if number is None else self._folded[number]
        if row is not None:
            self.count += 1
            if folded is not None and tuple(row[1:]) not in (folded, folded._replace(reference=None)):
                self._report(seq, f"archived position {self._name_of(row[1])} {_difference(row[1:], folded)}")
            elif folded is None and record[_NUMBER] != row[1]:
                self._report(seq, f"archived position {self._name_of(row[1])} stands in no decision")
        elif folded is not None and folded.is_final:
            self._report(seq, f"position {self._name_of(folded.number)} is missing in the archive")
        if folded is not None and folded.is_final:
            del self._folded[folded.number]

    def end_of_archive(self) -> None:
        """Note that later decisions come from the live table. Positions that are live now have their rows there."""
        self._archived_live = frozenset(self._folded)

    def _fold(self, record: Fields) -> int | None:
        """Fold a decision into its position. Returns the position's number, None if there is nothing to compare."""
        self.changed = None
        number: int | None = record[_NUMBER]
        if number is None or record[_OUTCOME] == "denied" or not changes_position(record):
            return None
        if type(number) is not int:
            self._report(record[_SEQ], f"decision {record[_SEQ]} is about position {number!r:.50}, which is no number")
            return None
        if number <= self._since:
            return None
        before = self._folded.get(number)
        if before is None and number in self._folded:
            return None
        try:
            self._folded[number] = after = fold_position(before, record)
            self.changed = None if after is None else (before, after)
        except READ_ERRORS as error:
            seq = record[_SEQ]
            self._report(seq, f"decision {seq} about position {self._name_of(number)} cannot be read: {error!r}")
            self._folded[number] = None
        return number

    def finish(self) -> None:
        """Compare the positions that are still live, and find rows that no decision made."""
        self._compare_ended()
        live = list(self._folded.items())
        for start in range(0, len(live), _LOOKUP):
            self._ended = dict(live[start : start + _LOOKUP])
            self._compare_ended()
        of = and_(PositionRow.portfolio_id == self._id, PositionRow.number > self._since)
        if self._rows is None:
            rows = self._connection.execute(select(func.count()).select_from(PositionRow).where(of)).scalar_one()
        else:
            rows = len(self._rows)
        self.count += rows
        if rows != self._matched:
            self._find_undecided(of)

    def _compare_ended(self) -> None:
        if not self._ended:
            return
        if self._rows is None:
            numbers = json.dumps([*self._ended])
            query = select(*_COLUMNS).where(PositionRow.portfolio_id == self._id, is_among(PositionRow.number, numbers))
            rows: Mapping[Any, Sequence[Any]] = {row[0]: row for row in raw_rows(self._connection, query)}
            self._matched += len(rows)
        else:
            rows = self._rows
            self._matched += sum(number in rows for number in self._ended)
        for number, folded in sorted(self._ended.items()):
            row = rows.get(number)
            if folded is None:
                continue
            if row is None:
                self._report(number, f"position {self._name_of(number)} is missing")
            elif row != folded:
                self._report(number, f"position {self._name_of(number)} {_difference(row, folded)}")
        self._ended = {}

    def _find_undecided(self, of: Any) -> None:
        made = (
            select(DecisionRow.seq)
            .where(DecisionRow.portfolio_id == self._id, DecisionRow.seq == PositionRow.number)
            .where(DecisionRow.position == PositionRow.number)
            .exists()
        )
        query = select(PositionRow.number).where(of, ~made).order_by(PositionRow.number)
        for number in self._connection.execute(query, execution_options={"yield_per": _LOOKUP}).scalars():
            if type(number) is not int:
                self._report(None, f"a position has the number {number!r:.50}, which is no whole number")
            elif number >= self._live_from or number not in self._archived_live:
                self._report(number, f"position {self._name_of(number)} stands in no decision")

    def sums(self, rows: Iterable[Sequence[Any]]) -> tuple[dict[str, int], dict[str, int]]:
        """Return held and open of each scope, 1e-8 USD. rows: `PortfolioRows.sums`."""
        held: dict[str, int] = {}
        opened: dict[str, int] = {}
        for tags, *half_sums in rows:
            try:
                scopes, sums = stored_tags(tags).scopes, (_join_halves(*half_sums[:2]), _join_halves(*half_sums[2:]))
            except READ_ERRORS:
                self._report(None, f"positions with the tags {tags!r:.100} cannot be summed")
                continue
            for scope in scopes:
                held[scope] = held.get(scope, 0) + sums[0]
                opened[scope] = opened.get(scope, 0) + sums[1]
        return held, opened

    def _name_of(self, number: int) -> str:
        return position_id(self._name, number)


def _join_halves(upper: Any, lower: Any) -> int:
    return (int(upper) << 32) + int(lower)


def _difference(row: Sequence[Any], folded: FoldedPosition) -> str:
    """Describe the first field in which a row differs from its decisions."""
    for name, value, expected in zip(FoldedPosition._fields, row, folded, strict=True):
        if value != expected:
            return f"has {name} {value!r}, its decisions say {expected!r}"
    return "differs from its decisions"
