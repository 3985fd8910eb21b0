"""Writes and reads archive files: closed history outside the database, in gzipped NDJSON of up to 16,384 decisions.

    {"archive": {"format": 2, "portfolio": "main", "from_seq": 1, "to_seq": 16384, "last_hash": ...}}
    {"decision": {"seq": 1, "command": "reserve", ...}}         every column of the row, as stored
    {"position": {"number": 1, "state": "closed", ...}}         after the decision that ended it

A file is final: its manifest has its SHA-256, and its decisions are links of the audit chain. The same rows give the
same bytes.
"""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic_core import from_json
from sqlalchemy import Connection, select

from ledger_sizer.config import AppSettings
from ledger_sizer.model.decisions import DecisionRecord, canonical_text, chain_hash
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.storage.tables import ArchiveRow
from ledger_sizer.storage.write_store import POSITION_COLUMNS

FORMAT = 2
"""Since 2 a decision has its actor, client and reference. What a line lacks is None, so that older files are read."""
DECISIONS_MAX = 16_384
"""Most decisions of one file. They must fit in memory, and one transaction deletes them from the live tables."""

_POSITION_FIELDS = POSITION_COLUMNS[1:]
_DECISION_FIELDS = DecisionRecord._fields[1:]
_BLOCK_BYTES = 1 << 18
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class Manifest(NamedTuple):
    """The database's row about one file, in the order of `tables.ArchiveRow`."""

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
    """One archived decision, and the stored row (in table order) of the position it ended, None if it ended none."""

    record: DecisionRecord
    position: Sequence[Any] | None


class ArchiveDamaged(Unavailable):
    """An archive file is missing, cannot be read, or differs from the one that was written."""


def manifests(connection: Connection, portfolio_id: int) -> list[Manifest]:
    """Return the manifests of a portfolio, oldest first."""
    query = select(ArchiveRow.__table__).where(ArchiveRow.portfolio_id == portfolio_id).order_by(ArchiveRow.from_seq)
    return [Manifest(*row) for row in connection.execute(query)]


def write_entries(target: BinaryIO, head: dict[str, Any], entries: Iterator[Entry]) -> int:
    """Write one file's compressed content in constant memory. Returns the number of positions in it.

    It contains no time and no file name, so that the same rows give the same bytes.
    """
    positions = 0
    with gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=5, mtime=0) as compressed:
        compressed.write(_line("archive", head))
        for entry in entries:
            compressed.write(_line("decision", dict(zip(_DECISION_FIELDS, entry.record[1:], strict=True))))
            if entry.position is not None:
                compressed.write(_line("position", dict(zip(_POSITION_FIELDS, entry.position[1:], strict=True))))
                positions += 1
    return positions


def _line(kind: str, fields: dict[str, Any]) -> bytes:
    return f'{{"{kind}":{_encode(fields)}}}\n'.encode()


def archive_files_from(settings: AppSettings) -> "ArchiveFiles":
    """Return the reader for the archive folder of these settings."""
    return ArchiveFiles(Path(settings.ledger.archive_dir) if settings.ledger.archive_dir else None)


@dataclass(slots=True)
class ArchiveFiles:
    """Reads archive files. folder: where to look for them first; None looks only where they were written."""

    folder: Path | None = None
    _cached: tuple[str, tuple[DecisionRecord, ...]] = ("", ())  # SHA-256 and records of the last file read

    def path_of(self, manifest: Manifest) -> Path:
        """Return the file's path: in the folder if it is there, else where it was written."""
        written = Path(manifest.file)
        if self.folder is not None and (self.folder / written.name).exists():
            return self.folder / written.name
        return written

    def entries(self, portfolio: str, manifest: Manifest) -> Iterator[Entry]:
        """Return the file's decisions, oldest first. Raises `ArchiveDamaged` at once if the file's SHA-256 differs.

        Fields are as stored. A caller that must trust them checks the chain (see `verified_entries`).
        """
        path = self.path_of(manifest)
        try:
            compressed = path.read_bytes()
        except OSError as error:
            raise ArchiveDamaged(
                f"archive file {path} cannot be read ({error.strerror}); put it back, or name its folder in "
                "LEDGER_ARCHIVE_DIR"
            ) from None
        if sha256(compressed).hexdigest() != manifest.sha256:
            raise ArchiveDamaged(f"archive file {path} is not the one that was written: its SHA-256 differs")
        return _parse_entries(compressed, portfolio, manifest)

    def verified_entries(self, portfolio: str, manifest: Manifest, previous: str) -> Iterator[Entry]:
        """Yield the file's decisions and check that each continues the chain. previous: the hash before the first.

        Raises `ArchiveDamaged` at the first that does not, and at the end if the file lacks what its manifest says.
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
        """Return all decisions of a file. Caches the last file, because a caller may page through it."""
        cached_sha256, records = self._cached
        if cached_sha256 != manifest.sha256:
            records = tuple(entry.record for entry in self.entries(portfolio, manifest))
            self._cached = (manifest.sha256, records)
        return records

    def find_position(self, portfolio: str, known: Sequence[Manifest], number: int) -> Sequence[Any] | None:
        """Return the row of an archived position, or None. Starts with the file that has its first decision."""
        for manifest in known:
            if manifest.to_seq >= number:
                for entry in self.entries(portfolio, manifest):
                    if entry.position is not None and entry.position[1] == number:
                        return entry.position
        return None


def _parse_entries(compressed: bytes, portfolio: str, manifest: Manifest) -> Iterator[Entry]:
    # Parse many lines per call: one call per line would cost more than the parsing.
    record: DecisionRecord | None = None
    with gzip.GzipFile(fileobj=BytesIO(compressed)) as lines:
        written_as = json.loads(next(lines))["archive"]["format"]
        if written_as > FORMAT:
            raise ArchiveDamaged(
                f"archive file {manifest.file} has format {written_as}, this version reads up to {FORMAT}: upgrade it"
            )
        while block := lines.read(_BLOCK_BYTES) + lines.readline():
            for line in from_json(b"[" + block.rstrip(b"\n").replace(b"\n", b",") + b"]"):
                if "decision" in line:
                    if record is not None:
                        yield Entry(record, None)
                    record = DecisionRecord(portfolio, *map(line["decision"].get, _DECISION_FIELDS))
                else:
                    assert record is not None, "a position follows the decision that ended it"
                    yield Entry(record, (manifest.portfolio_id, *map(line["position"].get, _POSITION_FIELDS)))
                    record = None
    if record is not None:
        yield Entry(record, None)


def sync_folder(folder: Path) -> None:
    """Sync the folder, so that a new name in it survives a power loss too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
