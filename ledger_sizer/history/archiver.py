"""Moves closed history into archive files. Each file is written, synced and verified before its rows are deleted.

It always moves the oldest part of a portfolio's chain: every decision up to some seq, and the positions that had ended
by then. A crash leaves at worst a file without a manifest. The next run writes it again under the same name.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, func, insert, select

from ledger_sizer.history.archive_files import (
    DECISIONS_MAX,
    FORMAT,
    ArchiveFiles,
    Entry,
    Manifest,
    manifests,
    sync_folder,
    write_entries,
)
from ledger_sizer.history.times import last_older
from ledger_sizer.model.decisions import GENESIS_HASH
from ledger_sizer.model.errors import Busy, InvalidRequest, Unavailable
from ledger_sizer.model.names import DESK
from ledger_sizer.model.times import to_us
from ledger_sizer.storage.database import Conflict, read_transaction, redacted_url, write_transaction
from ledger_sizer.storage.sqlite_start import FILE_MODE
from ledger_sizer.storage.tables import ArchiveRow, DecisionRow, PortfolioRow, PositionRow
from ledger_sizer.storage.write_store import record_from_row
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

ARCHIVE_FOLDER = "ledger-archive"
"""Default folder for files, relative to the working folder."""

_CHUNK = 500
_FINAL_STATES = ("closed", "released", "expired")


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """How much a run moved. files: the paths written."""

    decisions: int
    positions: int
    files: tuple[Path, ...]


def require_outside_key_window(before: datetime, now: datetime, key_window_days: int) -> datetime:
    """Return `before`. Raises `InvalidRequest` if it is not an aware datetime, or lies within the last key window."""
    to_us(before, "before")
    last = now - timedelta(days=key_window_days)
    if before > last:
        raise InvalidRequest(
            f"before {before.isoformat()} lies in the last {key_window_days} days, in which every key must still be "
            f"answered (LEDGER_KEY_WINDOW_DAYS); the latest possible is {last.isoformat()}",
            field="before",
        )
    return before


_FILE_OF_DESK = "_desk"
"""Begins the names of the desk's files: no portfolio's name begins like it, and no shell expands it."""


def archive(
    reads: Engine, writes: Engine, before: datetime, now: datetime, folder: Path, portfolio: str | None = None
) -> ArchiveReport:
    """Move the decisions older than `before` of one portfolio, or of all, into files in `folder`.

    reads, writes: engines on the ledger's database; only the second takes locks. now: the present time; a decision of a
    later time is moved once a later decision is old enough (see `last_older`). After an error, what was moved stays
    moved, and a later run continues from there. Raises `Unavailable` without the database or the folder, `Busy` if
    another archiver moved the same decisions first.
    """
    before_us, now_us = to_us(before), to_us(now)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with read_transaction(reads) as connection:
            query = select(PortfolioRow.id, PortfolioRow.name).order_by(PortfolioRow.id)
            if portfolio is not None:
                query = query.where(PortfolioRow.name == portfolio)
            owners = connection.execute(query).all()
        moved = [
            manifest
            for owner in owners
            for manifest in _archive_portfolio(reads, writes, owner.id, owner.name, (before_us, now_us), folder)
        ]
    except Conflict:
        raise Busy("another archiver moved the same decisions first; run it again") from None
    except OSError as error:
        raise Unavailable(f"cannot write archive files to {folder}: {error}") from None
    decisions = sum(manifest.to_seq - manifest.from_seq + 1 for manifest in moved)
    positions = sum(manifest.positions for manifest in moved)
    return ArchiveReport(decisions, positions, tuple(Path(manifest.file) for manifest in moved))


def _archive_portfolio(
    reads: Engine, writes: Engine, portfolio_id: int, name: str, times: tuple[int, int], folder: Path
) -> Iterator[Manifest]:
    while True:
        with read_transaction(reads) as connection:
            known = manifests(connection, portfolio_id)
            manifest = _write_next_file(connection, portfolio_id, name, known, times, folder)
        if manifest is None:
            return
        _verify_file(manifest, known[-1].last_hash if known else GENESIS_HASH, name)
        _delete_archived_rows(writes, manifest, name)
        log.info(
            "archive.moved", portfolio=name, from_seq=manifest.from_seq, to_seq=manifest.to_seq, file=manifest.file
        )
        yield manifest


def _write_next_file(
    connection: Connection, portfolio_id: int, name: str, known: list[Manifest], times: tuple[int, int], folder: Path
) -> Manifest | None:
    """Write the next file, with its final name only once it is complete. None if no decision is old enough."""
    first = known[-1].to_seq + 1 if known else 1
    last = min(last_older(connection, portfolio_id, first, *times), first + DECISIONS_MAX - 1)
    if last < first:
        return None
    of = DecisionRow.portfolio_id == portfolio_id
    # The earliest and the latest time, which need not be those of the first and the last decision (see `times`).
    ends = select(func.min(DecisionRow.decided_us), func.max(DecisionRow.decided_us))
    from_us, to_us = connection.execute(ends.where(of, DecisionRow.seq.between(first, last))).one()
    last_hash = connection.execute(select(DecisionRow.hash).where(of, DecisionRow.seq == last)).scalar_one()
    head = {
        "format": FORMAT, "portfolio": name, "from_seq": first, "to_seq": last, "last_hash": last_hash
    }  # fmt: skip
    path = (folder / f"{_FILE_OF_DESK if name == DESK else name}-{first:012}-{last:012}.ndjson.gz").resolve()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.touch(FILE_MODE)  # as readable as the database whose rows it has
        with partial.open("wb") as file:
            ended = write_entries(file, head, _entries(connection, portfolio_id, name, first, last))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    sync_folder(folder)
    return Manifest(
        portfolio_id, first, last, from_us, to_us, last_hash,
        ended, str(path), sha256(path.read_bytes()).hexdigest(), time.time_ns() // 1000,
    )  # fmt: skip


def _entries(connection: Connection, portfolio_id: int, name: str, first: int, last: int) -> Iterator[Entry]:
    """Yield the decisions in order, each with the position it ended."""
    for start in range(first, last + 1, _CHUNK):
        query = (
            select(DecisionRow.__table__)
            .where(DecisionRow.portfolio_id == portfolio_id)
            .where(DecisionRow.seq.between(start, min(start + _CHUNK - 1, last)))
            .order_by(DecisionRow.seq)
        )
        records = [record_from_row(name, row) for row in connection.execute(query)]
        numbers = {record.position for record in records if record.position is not None}
        ended = {
            row.updated_seq: tuple(row)
            for row in connection.execute(
                select(PositionRow.__table__)
                .where(PositionRow.portfolio_id == portfolio_id, PositionRow.number.in_(numbers))
                .where(PositionRow.state.in_(_FINAL_STATES))
            )
        }
        for record in records:
            yield Entry(record, ended.get(record.seq))


def _verify_file(manifest: Manifest, previous: str, name: str) -> None:
    """Read the file back from the disk and check the chain through it, before any row is deleted."""
    for _ in ArchiveFiles().verified_entries(name, manifest, previous):
        pass


def _delete_archived_rows(writes: Engine, manifest: Manifest, name: str) -> None:
    """Insert the manifest and delete the rows it covers, in one transaction."""
    numbers = [entry.position[1] for entry in ArchiveFiles().entries(name, manifest) if entry.position is not None]
    with write_transaction(writes, f"archive from {redacted_url(writes.url)}") as connection:
        connection.execute(insert(ArchiveRow).values(manifest._asdict()))
        gone = connection.execute(
            delete(DecisionRow)
            .where(DecisionRow.portfolio_id == manifest.portfolio_id)
            .where(DecisionRow.seq.between(manifest.from_seq, manifest.to_seq))
        ).rowcount
        ended = 0
        for start in range(0, len(numbers), _CHUNK):
            in_chunk = PositionRow.number.in_(numbers[start : start + _CHUNK])
            ended += connection.execute(
                delete(PositionRow).where(PositionRow.portfolio_id == manifest.portfolio_id, in_chunk)
            ).rowcount
        if (gone, ended) != (manifest.to_seq - manifest.from_seq + 1, manifest.positions):
            raise Unavailable(
                f"{manifest.file} covers {manifest.to_seq - manifest.from_seq + 1} decisions and {manifest.positions} "
                f"positions, the database has {gone} and {ended}; nothing was removed, run verify"
            )
