"""Backs up a SQLite file while it is in use, and copies a ledger from one database to another.

Both only read the source, and writers go on meanwhile. The caller verifies the result and compares heads.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledger_sizer.history.archive_files import ArchiveFiles, Manifest, manifests
from ledger_sizer.model.decisions import GENESIS_HASH
from ledger_sizer.model.errors import InvalidRequest, Unavailable
from ledger_sizer.storage.database import is_sqlite, read_transaction, redacted_url, require_head, write_transaction
from ledger_sizer.storage.sqlite_file import GuardedConnection
from ledger_sizer.storage.sqlite_start import create_file
from ledger_sizer.storage.table_base import Base
from ledger_sizer.storage.tables import (
    DESK_ID,
    ArchiveRow,
    DecisionRow,
    FacetBlockRow,
    FacetRow,
    LeaseRow,
    PortfolioRow,
    PositionRow,
    ScopeRow,
)
from ledger_sizer.storage.write_store import DECISION_COLUMNS, POSITION_COLUMNS

Progress = Callable[[int, int], object]
"""Called with (done, total): pages for a backup, rows for a copy."""

_BACKUP_PAGES = 2000
_CHUNK = 500


def backup_sqlite(engine: Engine, target: Path, progress: Progress | None = None) -> None:
    """Copy one snapshot of a SQLite ledger that is in use into a new file, which only its owner may read. The file is
    complete or does not exist.

    Raises `InvalidRequest` for another database (PostgreSQL has pg_dump) and for a file that exists, `Unavailable` if
    one of them cannot be read or written.
    """
    if not is_sqlite(engine.url):
        raise InvalidRequest(
            f"{redacted_url(engine.url)} is not SQLite; back it up with pg_dump, or copy it: ledger-sizer db copy",
            field="database_url",
        )
    if target.exists():
        raise InvalidRequest(f"{target} exists already; a backup never overwrites one", field="file")
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        create_file(partial)
        with closing(sqlite3.connect(partial, isolation_level=None)) as target_file, engine.connect() as connection:
            connection.execute(select(PortfolioRow.id).limit(1))  # starts the snapshot that is backed up
            source = connection.connection.driver_connection
            assert isinstance(source, GuardedConnection)
            # In a read transaction the pages do not change during the copy, so writers never make it start over.
            source.backup(
                target_file, pages=_BACKUP_PAGES, progress=lambda _status, left, total: _report(progress, left, total)
            )
            target_file.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal and -shm files
            source.require_files()
            connection.rollback()
        partial.replace(target)
    except (sqlite3.Error, DBAPIError, OSError, Unavailable) as error:
        raise Unavailable(f"cannot back up {redacted_url(engine.url)} to {target}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _report(progress: Progress | None, left: int, total: int) -> None:
    if progress is not None:
        progress(total - left, total)


def copy_ledger(
    source: Engine, target: Engine, progress: Progress | None = None, *, restore: ArchiveFiles | None = None
) -> int:
    """Copy every row of a ledger into an empty, migrated database, in one snapshot and one transaction.

    source: a read-only engine. Leases are not copied, as they belong to the source's replicas. Archive files stay where
    they are, and their manifests are copied; with `restore`, the files' content becomes rows again instead. Returns how
    many rows were written. Raises `InvalidRequest` if the target already has a ledger's rows, or if a key of the
    archive was used again since; `SchemaOutdated`, `Unavailable`.
    """
    require_head(source)
    require_head(target)
    what = f"copy to {redacted_url(target.url)}"
    with read_transaction(source) as reads, write_transaction(target, what) as writes:
        tables = [table for table in _tables_in_order() if table.name != LeaseRow.__tablename__]
        _remove_unused_desk(writes)
        for table in tables:
            if writes.execute(select(func.count()).select_from(table)).scalar():
                raise InvalidRequest(
                    f"{redacted_url(target.url)} has {table.name} already; copy into an empty ledger",
                    field="target",
                )
        if restore is not None:
            tables = [table for table in tables if table.name != ArchiveRow.__tablename__]
        counts = [reads.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]
        done = 0
        for table in tables:
            for rows in _chunks(reads, table):
                writes.execute(insert(table), rows)
                done += len(rows)
                if progress is not None:
                    progress(done, sum(counts))
        done += 0 if restore is None else _restore(reads, writes, restore)
        _reset_sequences(writes)
        return done


def _remove_unused_desk(writes: Connection) -> None:
    """Remove the desk that the target's migration made, if nothing was recorded about it: the source has its own."""
    unused = select(PortfolioRow.id).where(PortfolioRow.id == DESK_ID, PortfolioRow.last_seq == 0)
    writes.execute(delete(ScopeRow).where(ScopeRow.portfolio_id.in_(unused)))
    writes.execute(delete(PortfolioRow).where(PortfolioRow.id.in_(unused)))


def _restore(reads: Connection, writes: Connection, files: ArchiveFiles) -> int:
    """Insert the content of all archive files as rows, and check the chain through them. Returns how many rows."""
    rows = 0
    for owner in reads.execute(select(PortfolioRow.id, PortfolioRow.name).order_by(PortfolioRow.id)).all():
        previous = GENESIS_HASH
        for manifest in manifests(reads, owner.id):
            try:
                rows += _restore_file(writes, files, owner.name, manifest, previous)
            except IntegrityError:
                raise InvalidRequest(
                    f"{files.path_of(manifest)} cannot be restored: a key in it was used again after it was archived, "
                    "and a key has one decision in the live tables",
                    field="restore_archives",
                ) from None
            previous = manifest.last_hash
    return rows


def _restore_file(writes: Connection, files: ArchiveFiles, portfolio: str, manifest: Manifest, previous: str) -> int:
    entries = files.verified_entries(portfolio, manifest, previous)
    rows = 0
    while chunk := [*islice(entries, _CHUNK)]:
        decisions = [(manifest.portfolio_id, *entry.record[1:]) for entry in chunk]
        positions = [entry.position for entry in chunk if entry.position is not None]
        writes.execute(insert(DecisionRow), [dict(zip(DECISION_COLUMNS, row, strict=True)) for row in decisions])
        if positions:
            writes.execute(insert(PositionRow), [dict(zip(POSITION_COLUMNS, row, strict=True)) for row in positions])
        rows += len(decisions) + len(positions)
    return rows


def _tables_in_order() -> Sequence[Table]:
    """Return all tables in an order that their triggers accept.

    Manifests come before decisions: beside decisions, a manifest must end at one of them. Facets come before decisions,
    because inserting decisions adds their facets.
    """
    first = [PortfolioRow.__table__, ArchiveRow.__table__, FacetRow.__table__, FacetBlockRow.__table__]
    return [*first, *(table for table in Base.metadata.sorted_tables if table not in first)]  # type: ignore[list-item]


def _chunks(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    query = select(table).order_by(*table.primary_key.columns)
    for rows in connection.execution_options(yield_per=_CHUNK).execute(query).mappings().partitions():
        yield [dict(row) for row in rows]


def _reset_sequences(connection: Connection) -> None:
    """Move PostgreSQL's id sequences past the copied ids. An insert with an explicit id does not move them."""
    if connection.dialect.name != "postgresql":
        return
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if column.identity is not None:
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                after = select(func.coalesce(func.max(column), 0) + 1).scalar_subquery()
                connection.execute(select(func.setval(sequence, after, False)))
