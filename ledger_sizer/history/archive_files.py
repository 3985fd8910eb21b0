"""Archive files: closed history outside the database, one gzipped NDJSON file for up to 16,384 decisions.

    {"archive": {"format": 1, "portfolio": "main", "from_seq": 1, "to_seq": 16384, "last_hash": ...}}
    {"decision": {"seq": 1, "command": "reserve", ...}}         every column of the row, as stored
    {"position": {"number": 1, "state": "closed", ...}}         after the decision that ended it

A file is final: its SHA-256 stands in its manifest, its decisions in the audit chain. The same rows give the same
bytes.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic_core import from_json
from sqlalchemy import Connection, select

from ledger_sizer.config import AppSettings
from ledger_sizer.model.decisions import DecisionRecord, canonical_text, chain_hash
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.storage.tables import ArchiveRow
from ledger_sizer.storage.write_store import POSITION_COLUMNS

FORMAT = 1
DECISIONS_MAX = 16_384
"""Most decisions of one file: what has to fit in memory, and what one transaction removes."""

_POSITION_FIELDS = POSITION_COLUMNS[1:]
_decision_fields = itemgetter(*DecisionRecord._fields[1:])
_position_fields = itemgetter(*_POSITION_FIELDS)
_BLOCK_BYTES = 1 << 18
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class Manifest(NamedTuple):
    """What the database knows of one file, in the order of `tables.ArchiveRow`."""

    portfolio_id: int
    from_seq: int
    to_seq: int
    from_us: int
    to_us: int
    last_hash: str
    positions: int
    file: str
    sha256: str
    created_us: int


class Entry(NamedTuple):
    """One archived decision, and the stored row of the position it ended (in table order), if it ended one."""

    record: DecisionRecord
    position: Sequence[Any] | None


class ArchiveDamaged(Unavailable):
    """An archive file is missing, is not the one that was written, or cannot be read."""


def manifests(connection: Connection, portfolio_id: int) -> list[Manifest]:
    """The manifests of a portfolio, oldest first."""
    query = select(ArchiveRow.__table__).where(ArchiveRow.portfolio_id == portfolio_id).order_by(ArchiveRow.from_seq)
    return [Manifest(*row) for row in connection.execute(query)]


def write_entries(target: BinaryIO, head: dict[str, Any], entries: Iterator[Entry]) -> int:
    """Write one file's content, compressed, and return how many positions are in it.

    Constant memory; no time or name in it, so that the same rows give the same bytes.
    """
    positions = 0
    with gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=5, mtime=0) as packed:
        packed.write(_line("archive", head))
        for entry in entries:
            packed.write(_line("decision", dict(zip(DecisionRecord._fields[1:], entry.record[1:], strict=True))))
            if entry.position is not None:
                packed.write(_line("position", dict(zip(_POSITION_FIELDS, entry.position[1:], strict=True))))
                positions += 1
    return positions


def _line(kind: str, fields: dict[str, Any]) -> bytes:
    return f'{{"{kind}":{_encode(fields)}}}\n'.encode()


def files_of(settings: AppSettings) -> "ArchiveFiles":
    """The reader these settings describe."""
    return ArchiveFiles(Path(settings.ledger.archive_dir) if settings.ledger.archive_dir else None)


@dataclass(slots=True)
class ArchiveFiles:
    """Reads archive files back. folder: where they are looked for first; None: only where they were written."""

    folder: Path | None = None
    _last: tuple[str, tuple[DecisionRecord, ...]] = ("", ())

    def path_of(self, manifest: Manifest) -> Path:
        """Where the file is: in the folder of now, or where it was written."""
        written = Path(manifest.file)
        if self.folder is not None and (self.folder / written.name).exists():
            return self.folder / written.name
        return written

    def entries(self, portfolio: str, manifest: Manifest) -> Iterator[Entry]:
        """The file's decisions, oldest first. Raises `ArchiveDamaged` before the first where the file is not the one.

        Fields are as stored and unchecked: who has to trust them follows the chain.
        """
        path = self.path_of(manifest)
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise ArchiveDamaged(
                f"archive file {path} cannot be read ({error.strerror}); put it back, or name its folder in "
                "LEDGER_ARCHIVE_DIR"
            ) from None
        if sha256(packed).hexdigest() != manifest.sha256:
            raise ArchiveDamaged(f"archive file {path} is not the one that was written: its SHA-256 differs")
        return _read(packed, portfolio, manifest)

    def chained(self, portfolio: str, manifest: Manifest, previous: str) -> Iterator[Entry]:
        """The file's decisions, each shown to follow from the one before; previous: the hash before the first.

        Raises `ArchiveDamaged` at the first that does not, and at the end where something is missing.
        """
        path, expected, positions = self.path_of(manifest), manifest.from_seq, 0
        for entry in self.entries(portfolio, manifest):
            record = entry.record
            if record.seq != expected or chain_hash(previous, canonical_text(record)) != record.hash:
                raise ArchiveDamaged(f"{path}: decision {expected} does not continue the chain; run verify")
            expected, previous = record.seq + 1, record.hash
            positions += entry.position is not None
            yield entry
        if (expected - 1, previous, positions) != (manifest.to_seq, manifest.last_hash, manifest.positions):
            raise ArchiveDamaged(f"{path} does not hold what its manifest says; run verify")

    def records(self, portfolio: str, manifest: Manifest) -> tuple[DecisionRecord, ...]:
        """All decisions of a file; those of the last one asked for are kept, for whoever pages through it."""
        kept, records = self._last
        if kept != manifest.sha256:
            records = tuple(entry.record for entry in self.entries(portfolio, manifest))
            self._last = (manifest.sha256, records)
        return records

    def position(self, portfolio: str, found: Sequence[Manifest], number: int) -> Sequence[Any] | None:
        """The row of an archived position, or None. Reads from the file that has its first decision on."""
        for manifest in found:
            if manifest.to_seq >= number:
                for entry in self.entries(portfolio, manifest):
                    if entry.position is not None and entry.position[1] == number:
                        return entry.position
        return None


def _read(packed: bytes, portfolio: str, manifest: Manifest) -> Iterator[Entry]:
    """Parsed many lines at a time, because a call for each of them takes longer than its content."""
    record: DecisionRecord | None = None
    with gzip.GzipFile(fileobj=BytesIO(packed)) as lines:
        next(lines)
        while block := lines.read(_BLOCK_BYTES) + lines.readline():
            for line in from_json(b"[" + block.rstrip(b"\n").replace(b"\n", b",") + b"]"):
                if "decision" in line:
                    if record is not None:
                        yield Entry(record, None)
                    record = DecisionRecord(portfolio, *_decision_fields(line["decision"]))
                else:
                    assert record is not None, "a position follows the decision that ended it"
                    yield Entry(record, (manifest.portfolio_id, *_position_fields(line["position"])))
                    record = None
    if record is not None:
        yield Entry(record, None)
