"""Reads what verification compares, of many small portfolios in a few queries, of a large one in parts.

Ten thousand portfolios with a handful of decisions each would otherwise take tens of thousands of small queries. A
group's rows are in memory while it is checked, so a group has at most `_GROUP_DECISIONS` decisions; a portfolio with
more is a group of its own, whose decisions and positions are read in parts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, literal_column, select, text

from ledger_sizer.history.archive_files import Manifest
from ledger_sizer.storage.database import raw_rows, stream_rows
from ledger_sizer.storage.tables import ArchiveRow, PositionRow, ScopeRow
from ledger_sizer.storage.write_store import DECISION_COLUMNS, POSITION_COLUMNS
from ledger_sizer.verify.positions import find_wrong_type

_GROUP_DECISIONS = 8192
_GROUP_PORTFOLIOS = 500
_CHUNK = 500
_LOOKUP = 500

Row = tuple[Any, ...]


class PortfolioRows(NamedTuple):
    """What was read of one portfolio.

    hashes: of the decisions at its trusted heads, by seq. positions: rows without the first column by number, from the
    trusted head on; None if they are to be looked up. sums: tags, then held and open of all rows with these tags, each
    as the sums of its upper and of its lower 32 bits. decisions: from the trusted head on, in chunks.
    """

    manifests: list[Manifest]
    hashes: Mapping[int, str]
    positions: Mapping[Any, Row] | None
    sums: Sequence[Row]
    scopes: Sequence[Any]
    decisions: Iterable[list[Row]]


def portfolio_groups(heads: Iterable[Any]) -> Iterator[list[Any]]:
    """Divide portfolios (their rows, by id) into groups of few decisions; a large one is alone."""
    group: list[Any] = []
    weight = 0
    for head in heads:
        decisions = max(head.last_seq, 0)
        if group and (len(group) == _GROUP_PORTFOLIOS or weight + decisions > _GROUP_DECISIONS):
            yield group
            group, weight = [], 0
        group.append(head)
        weight += decisions
    if group:
        yield group


def read_group(
    connection: Connection, group: Sequence[Any], since: Mapping[int, int], trusted: Mapping[int, Iterable[int]]
) -> Iterator[tuple[Any, PortfolioRows]]:
    """Yield each portfolio with its rows; consume its decisions before the next. The number of queries is constant.

    since: by id, the decisions that are not read. trusted: by id, the seqs whose hashes are wanted.
    """
    ids = (group[0].id, group[-1].id)
    manifests: dict[int, list[Manifest]] = {}
    query = select(ArchiveRow.__table__).where(ArchiveRow.portfolio_id.between(*ids))
    for row in connection.execute(query.order_by(ArchiveRow.portfolio_id, ArchiveRow.from_seq)):
        manifests.setdefault(row.portfolio_id, []).append(Manifest(*row))
    hashes = _read_hashes(connection, trusted)
    sums = _by_portfolio(raw_rows(connection, _sums_query(*ids)))
    scopes: dict[int, list[Any]] = {}
    of_scopes = select(ScopeRow.__table__).where(ScopeRow.portfolio_id.between(*ids))
    for row in connection.execute(of_scopes.order_by(ScopeRow.portfolio_id, ScopeRow.scope)):
        scopes.setdefault(row.portfolio_id, []).append(row)
    large = group[0].last_seq > _GROUP_DECISIONS
    positions = None if large else _by_portfolio(raw_rows(connection, text(_after("positions", "number", since))))
    # Rows that the archive covers and that are live all the same must be found: they are read from the first one on.
    archived_to = {one: max((m.to_seq for m in sound_manifests(of)), default=0) for one, of in manifests.items()}
    live_from = {one: after if after > archived_to.get(one, 0) else 0 for one, after in since.items()}
    stream = _DecisionStream(stream_rows(connection, _after("decisions", "seq", live_from), _CHUNK))
    for head in group:
        rows = None if positions is None else {row[0]: row for row in positions.get(head.id, ())}
        yield (
            head,
            PortfolioRows(
                manifests.get(head.id, []), hashes.get(head.id, {}), rows, sums.get(head.id, ()),
                scopes.get(head.id, ()), stream.of(head.id),
            ),
        )  # fmt: skip


def sound_manifests(found: Iterable[Manifest]) -> list[Manifest]:
    """Leave out manifests with a value of a wrong type."""
    return [manifest for manifest in found if find_wrong_type(ArchiveRow.__table__, manifest) is None]


def _by_portfolio(rows: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row[1:])
    return found


def _after(table: str, number: str, since: Mapping[int, int]) -> str:
    """Return SQL for the rows of some portfolios after a number of each, in order."""
    columns = DECISION_COLUMNS if table == "decisions" else POSITION_COLUMNS
    wanted = ", ".join(f't."{name}"' for name in columns)
    if len(since) == 1:  # in the order of the primary key; the join below would sort all of a large portfolio
        ((portfolio_id, after),) = since.items()
        return (
            f"SELECT {wanted} FROM {table} AS t WHERE t.portfolio_id = {portfolio_id} AND t.{number} > {after} "
            f"ORDER BY t.{number}"
        )
    values = ", ".join(f"({portfolio_id}, {after})" for portfolio_id, after in since.items())
    return (
        f"WITH s (id, after) AS (VALUES {values}) SELECT {wanted} FROM s CROSS JOIN {table} AS t "
        f"WHERE t.portfolio_id = s.id AND t.{number} > s.after ORDER BY t.portfolio_id, t.{number}"
    )


def _read_hashes(connection: Connection, trusted: Mapping[int, Iterable[int]]) -> dict[int, dict[int, str]]:
    pairs = [(portfolio_id, seq) for portfolio_id, seqs in trusted.items() for seq in seqs]
    found: dict[int, dict[int, str]] = {}
    for start in range(0, len(pairs), _LOOKUP):
        values = ", ".join(f"({portfolio_id}, {seq})" for portfolio_id, seq in pairs[start : start + _LOOKUP])
        query = text(
            f"WITH s (id, seq) AS (VALUES {values}) SELECT d.portfolio_id, d.seq, d.hash FROM s CROSS JOIN decisions d "
            "WHERE d.portfolio_id = s.id AND d.seq = s.seq"
        )
        for portfolio_id, seq, hash_ in raw_rows(connection, query):
            found.setdefault(portfolio_id, {})[seq] = hash_
    return found


def _sums_query(first_id: int, last_id: int) -> Any:
    return (
        select(
            PositionRow.portfolio_id, PositionRow.tags, *_half_sums(PositionRow.held_e8),
            *_half_sums(PositionRow.open_e8),
        )
        .where(PositionRow.portfolio_id.between(first_id, last_id))
        .where((PositionRow.held_e8 != 0) | (PositionRow.open_e8 != 0))
        .group_by(PositionRow.portfolio_id, PositionRow.tags)
    )  # fmt: skip


def _half_sums(column: Any) -> tuple[Any, Any]:
    """Return SQL for the sums of a column's upper and lower 32 bits.

    One edited value can overflow a sum of 64 bits, and SQLite then fails the query.
    """
    return func.sum(column.op(">>")(literal_column("32"))), func.sum(column.op("&")(0xFFFFFFFF))


class _DecisionStream:
    """Hands out the decisions of a query over several portfolios, one portfolio at a time."""

    def __init__(self, chunks: Iterator[list[Row]]) -> None:
        self._chunks = chunks
        self._next: list[Row] = []

    def of(self, portfolio_id: int) -> Iterator[list[Row]]:
        """Yield the decisions of the portfolio that is next in the stream; none if another is next."""
        while True:
            rows = self._next = self._next or next(self._chunks, [])
            if not rows:
                return
            if rows[-1][0] == portfolio_id:
                self._next = []
                yield rows
                continue
            count = next(at for at, row in enumerate(rows) if row[0] != portfolio_id)
            self._next = rows[count:]
            if count:
                yield rows[:count]
            return
