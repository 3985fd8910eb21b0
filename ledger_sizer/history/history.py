"""Finds decisions by any filter, newest or oldest first, in the live tables and in archive files.

It needs no index that would slow down writes. Times become bounds of seq by binary search (see `times`). A key
has its index. Everything else is found through facets: for every full block of 1024 decisions, triggers record which
combinations of tags, command, outcome, reason and actor occur in it. Only blocks with a hit are read, and the decisions
after the last full block are scanned.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, literal, select, true

from ledger_sizer.history.archive_files import ArchiveFiles, Manifest, manifests
from ledger_sizer.history.times import BLOCK, seq_before
from ledger_sizer.model.decisions import DecisionRecord, Fields
from ledger_sizer.model.tags import text_has_tag
from ledger_sizer.storage.database import has_tag, raw_rows
from ledger_sizer.storage.tables import DecisionRow, FacetBlockRow, FacetRow, PositionRow

_WINDOW_BLOCKS = 64
"""Blocks of the first look-up; each further one takes four times as many. A common filter fills a page from few."""
_RECORD_COLUMNS = tuple(DecisionRow.__table__.columns)[1:]
"""Columns of a decision's record after the portfolio's name."""

_FACET_FIELDS = ("command", "outcome", "reason", "actor")
"""Filters that equal the column of that name, of a decision and of a facet."""
_FIELDS = (*_FACET_FIELDS, "position", "key")
"""Those of a decision."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which decisions to list. All given filters must match.

    key: found in the live tables only, because an archived key is as good as unused. client: the only one whose
    decision `key` finds; None: everybody's. tags: one value by name, which a decision has alone or among several.
    position: its number. since_us (inclusive), until_us (exclusive): microseconds; they stand for places in the chain
    (see `times`).
    """

    command: str | None = None
    outcome: str | None = None
    reason: str | None = None
    actor: str | None = None
    key: str | None = None
    client: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    position: int | None = None
    since_us: int | None = None
    until_us: int | None = None

    @property
    def has_facets(self) -> bool:
        """Whether facets can rule out blocks."""
        return bool(self.tags or self._given(_FACET_FIELDS))

    def facet_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions on a facet's row."""
        return self._clauses(FacetRow, _FACET_FIELDS)

    def clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions on a decision's row, without times (see `seq_before`)."""
        clauses = self._clauses(DecisionRow, _FIELDS)
        return clauses if self.key is None else [*clauses, own_key(self.client)]

    def matching(self, records: Iterable[DecisionRecord]) -> Iterator[DecisionRecord]:
        """Yield the archived decisions that match, apart from times (see `seq_before`)."""
        given = self._given(_FIELDS)
        for record in records:
            equal = all(getattr(record, name) == value for name, value in given.items())
            if equal and all(text_has_tag(record.tags, *tag) for tag in self.tags.items()):
                yield record

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _clauses(self, row: type[DecisionRow | FacetRow], names: Iterable[str]) -> list[ColumnElement[bool]]:
        equal = [getattr(row, name) == value for name, value in self._given(names).items()]
        return equal + [has_tag(row.tags, *tag) for tag in self.tags.items()]


def own_key(client: str | None) -> ColumnElement[bool]:
    """Return the condition that the key of a decision is the client's, or of a version without clients; None: any."""
    return true() if client is None else (DecisionRow.client == client) | DecisionRow.client.is_(None)


class History:
    """One portfolio's decisions in the snapshot of one connection."""

    def __init__(self, connection: Connection, portfolio_id: int, portfolio: str, files: ArchiveFiles) -> None:
        self._connection = connection
        self._id = portfolio_id
        self._name = portfolio
        self._files = files
        self._manifests = manifests(connection, portfolio_id)
        self._live_from = self._manifests[-1].to_seq + 1 if self._manifests else 1

    def find(self, filters: Filters, low: int, high: int, *, ascending: bool, limit: int) -> list[DecisionRecord]:
        """Return the first `limit` matching decisions with low <= seq <= high, by seq, ascending or descending."""
        rows = self.find_rows(filters, low, high, ascending=ascending, limit=limit)
        return [DecisionRecord._make(row) for row in rows]

    def find_rows(self, filters: Filters, low: int, high: int, *, ascending: bool, limit: int) -> list[Fields]:
        """Like `find`, but returns plain rows, which are cheaper for long lists."""
        low, high = self._bounds(filters, low, high)
        found: list[Fields] = []
        for first, last in self._candidate_ranges(filters, low, high, ascending):
            for part in self._split_at_files(first, last, ascending):
                found += self._read_part(filters, *part, ascending, limit - len(found))
                if len(found) >= limit:
                    return found[:limit]
        return found

    def iterate(self, filters: Filters, low: int, high: int) -> Iterator[DecisionRecord]:
        """Yield all matching decisions, oldest first, with one page in memory at a time."""
        while records := self.find(filters, low, high, ascending=True, limit=BLOCK):
            yield from records
            low = records[-1].seq + 1

    def _bounds(self, filters: Filters, low: int, high: int) -> tuple[int, int]:
        of = DecisionRow.portfolio_id == self._id
        last = self._connection.execute(select(func.max(DecisionRow.seq)).where(of)).scalar()
        low, high = max(low, 1), min(high, last or self._live_from - 1)
        if filters.key is not None:
            low = max(low, self._live_from)
        if filters.since_us is not None:
            low = max(low, self._seq_before(filters.since_us) + 1)
        if filters.until_us is not None:
            high = min(high, self._seq_before(filters.until_us))
        if filters.position is not None:
            low = max(low, filters.position)  # a position's number is the seq of its first decision
            high = min(high, self._last_seq_about(filters.position, high))
        return low, high

    def _seq_before(self, us: int) -> int:
        """Return the last seq decided before `us`, 0 if there is none (see `times`)."""
        live = seq_before(self._connection, self._id, self._live_from, us)
        if live >= self._live_from:
            return live
        for manifest in reversed(self._manifests):
            if manifest.to_us < us:
                return manifest.to_seq
            if manifest.from_us < us:
                records = self._files.records(self._name, manifest)
                return next(record.seq for record in reversed(records) if record.decided_us < us)
        return 0

    def _last_seq_about(self, number: int, high: int) -> int:
        """Return the last seq that can be about a position: the one that ended it, or `high` if that is unknown."""
        query = select(PositionRow.state, PositionRow.updated_seq).where(
            PositionRow.portfolio_id == self._id, PositionRow.number == number
        )
        row = self._connection.execute(query).one_or_none()
        return high if row is None or row.state in ("held", "open") else int(row.updated_seq)

    def _candidate_ranges(self, filters: Filters, low: int, high: int, ascending: bool) -> Iterator[tuple[int, int]]:
        """Yield ranges of seq that may contain a match, in the requested order."""
        if low > high:
            return
        if not filters.has_facets:
            yield low, high
            return
        full = self._full_blocks()
        tail = (max(low, full * BLOCK + 1), high)
        if not ascending and tail[0] <= tail[1]:
            yield tail
        for first, last in self._block_ranges(
            filters, (low - 1) // BLOCK + 1, min((high - 1) // BLOCK + 1, full), ascending
        ):
            yield max(first, low), min(last, high)
        if ascending and tail[0] <= tail[1]:
            yield tail

    def _full_blocks(self) -> int:
        last = select(func.max(DecisionRow.seq)).where(DecisionRow.portfolio_id == self._id)
        return max(self._connection.execute(last).scalar() or 0, self._live_from - 1) // BLOCK

    def _block_ranges(self, filters: Filters, low: int, high: int, ascending: bool) -> Iterator[tuple[int, int]]:
        """Yield the seq ranges of adjacent blocks that have a matching facet."""
        blocks = (
            select(FacetBlockRow.block)
            .distinct()
            .join_from(FacetRow, FacetBlockRow, FacetBlockRow.facet_id == FacetRow.id)
            .where(FacetRow.portfolio_id == self._id, *filters.facet_clauses())
        )
        window = _WINDOW_BLOCKS
        while low <= high:
            first, last = (low, min(low + window - 1, high)) if ascending else (max(high - window + 1, low), high)
            low, high = (last + 1, high) if ascending else (low, first - 1)
            window *= 4
            query = blocks.where(FacetBlockRow.block.between(first, last))
            found = sorted(self._connection.execute(query).scalars())
            runs: list[tuple[int, int]] = []
            for block in found:
                if runs and runs[-1][1] == block - 1:
                    runs[-1] = (runs[-1][0], block)
                else:
                    runs.append((block, block))
            for start, end in runs if ascending else reversed(runs):
                yield (start - 1) * BLOCK + 1, end * BLOCK

    def _split_at_files(self, low: int, high: int, ascending: bool) -> Iterator[tuple[Manifest | None, int, int]]:
        """Split a range where archive files end. Yields (manifest, None for the live table; first seq; last seq)."""
        cut = [
            (manifest, max(low, manifest.from_seq), min(high, manifest.to_seq))
            for manifest in self._manifests
            if manifest.from_seq <= high and manifest.to_seq >= low
        ]
        parts: list[tuple[Manifest | None, int, int]] = [*cut]
        if high >= self._live_from:
            parts.append((None, max(low, self._live_from), high))
        yield from parts if ascending else reversed(parts)

    def _read_part(
        self, filters: Filters, manifest: Manifest | None, low: int, high: int, ascending: bool, limit: int
    ) -> list[Fields]:
        if manifest is not None:
            records = self._files.records(self._name, manifest)
            wanted = records[low - manifest.from_seq : high - manifest.from_seq + 1]
            return list(islice(filters.matching(wanted if ascending else reversed(wanted)), limit))
        query = (
            select(literal(self._name), *_RECORD_COLUMNS)
            .where(DecisionRow.portfolio_id == self._id, DecisionRow.seq.between(low, high), *filters.clauses())
            .order_by(DecisionRow.seq if ascending else DecisionRow.seq.desc())
            .limit(limit)
        )
        return raw_rows(self._connection, query)
