"""What looking back asks of a table of decisions: in SQL if the fields are columns, in Python if they are one text.

A search of the text narrows the filters down, so that Python splits only what may match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from benchmarks.row_forms import SEQ_BITS, WIDE, Stored, is_number
from ledger_sizer.model.decisions import FIELD_SEPARATOR, GENESIS_HASH, NONE_MARK, chain_hash, fields_text
from ledger_sizer.storage.write_store import DECISION_COLUMNS

_NUMBERS = [at for at, name in enumerate(DECISION_COLUMNS) if is_number(name)]
_HELD, _OPENED, _TAGS, _OUTCOME, _REASON, _POSITION, _DECIDED = map(
    DECISION_COLUMNS.index,
    ("held_delta_e8", "open_delta_e8", "tags", "outcome", "reason", "position", "decided_us"),
)
_HASH = DECISION_COLUMNS.index("hash")
_BY_SEQ = "FROM decisions WHERE portfolio_id = 1 AND seq >= 1"
_BY_PLACE = f"FROM decisions WHERE place BETWEEN {1 << SEQ_BITS} AND {(2 << SEQ_BITS) - 1}"


class Reader(Protocol):
    """The reads, all of portfolio 1."""

    def reason(self, reason: str) -> int:
        """Count the denials for a reason, read with all their fields."""

    def position(self, number: int) -> int:
        """Count the decisions about a position, read with all their fields."""

    def times(self, seqs: list[int]) -> list[int]:
        """Return the times of decisions, one query each, as a bisection by time does."""

    def sums(self) -> list[tuple[str, int, int]]:
        """Return tags and the sums of what decisions with these tags held and opened."""

    def verified(self) -> tuple[str, int]:
        """Read every field, and return the last hash recomputed and the latest time."""


class Columns:
    """Reads a form with columns."""

    def __init__(self, table: Stored) -> None:
        self._read = table.read

    def reason(self, reason: str) -> int:
        return self._count(f"outcome = 'denied' AND reason = '{reason}'")

    def position(self, number: int) -> int:
        return self._count(f"position = {number}")

    def _count(self, condition: str) -> int:
        rows = self._read(f"SELECT {', '.join(WIDE)} {_BY_SEQ} AND {condition}")
        return len(list(rows))

    def times(self, seqs: list[int]) -> list[int]:
        query = "SELECT decided_us FROM decisions WHERE portfolio_id = 1 AND seq = {}"
        return [row[0] for seq in seqs for row in self._read(query.format(seq))]

    def sums(self) -> list[tuple[str, int, int]]:
        rows = self._read(
            f"SELECT tags, sum(held_delta_e8), sum(open_delta_e8) {_BY_SEQ} "
            "AND (held_delta_e8 <> 0 OR open_delta_e8 <> 0) GROUP BY tags"
        )
        return sorted((tags, int(held), int(opened)) for tags, held, opened in rows)

    def verified(self) -> tuple[str, int]:
        rows = self._read(f"SELECT {', '.join(WIDE)} {_BY_SEQ} ORDER BY seq")
        return _chain((fields_text((*row[:_HASH], *row[_HASH + 1 :])), row) for row in rows)


class Texts:
    """Reads the form with one text."""

    def __init__(self, table: Stored) -> None:
        self._read = table.read
        self._search = "strpos" if table.engine == "postgresql" else "instr"

    def reason(self, reason: str) -> int:
        return self._count(("denied", reason), lambda fields: (fields[_OUTCOME], fields[_REASON]) == ("denied", reason))

    def position(self, number: int) -> int:
        return self._count((number,), lambda fields: fields[_POSITION] == number)

    def _count(self, words: tuple[object, ...], fits: Callable[[list[Any]], bool]) -> int:
        text = FIELD_SEPARATOR.join(map(str, ("", *words, "")))
        rows = self._read(f"SELECT text, hash {_BY_PLACE} AND {self._search}(text, '{text}') > 0")
        return sum(fits(_fields(row[0])) for row in rows)

    def times(self, seqs: list[int]) -> list[int]:
        query = "SELECT text FROM decisions WHERE place = {}"
        return [_fields(row[0])[_DECIDED] for seq in seqs for row in self._read(query.format((1 << SEQ_BITS) + seq))]

    def sums(self) -> list[tuple[str, int, int]]:
        totals: dict[str, tuple[int, int]] = {}
        for (text,) in self._read(f"SELECT text {_BY_PLACE}"):
            fields = _fields(text)
            if fields[_HELD] or fields[_OPENED]:
                held, opened = totals.get(fields[_TAGS], (0, 0))
                totals[fields[_TAGS]] = (held + fields[_HELD], opened + fields[_OPENED])
        return sorted((tags, *total) for tags, total in totals.items())

    def verified(self) -> tuple[str, int]:
        rows = self._read(f"SELECT text, hash {_BY_PLACE} ORDER BY place")
        return _chain((text, _fields(text)) for text, _ in rows)


READS: dict[str, Callable[[Reader, int], object]] = {
    "a reason never given": lambda reader, _: reader.reason("reducing"),
    "a position": lambda reader, last: reader.position(last // 2),
    "17 times": lambda reader, last: reader.times([last * part // 18 for part in range(1, 18)]),
    "as-of sums": lambda reader, _: reader.sums(),
    "chain and fields": lambda reader, _: reader.verified(),
}
"""By name, given the last seq."""


def _fields(text: str) -> list[Any]:
    """Return the fields of a canonical text."""
    fields: list[Any] = [None if one == NONE_MARK else one for one in text.split(FIELD_SEPARATOR)]
    for at in _NUMBERS:
        if fields[at] is not None:
            fields[at] = int(fields[at])
    return fields


def _chain(rows: Iterator[tuple[str, Any]]) -> tuple[str, int]:
    previous, latest = GENESIS_HASH, 0
    for text, fields in rows:
        previous, latest = chain_hash(previous, text), max(latest, fields[_DECIDED])
    return previous, latest
