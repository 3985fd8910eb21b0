"""Taking a ledger elsewhere: an online backup of a SQLite file, and a copy from one database to another.

Both leave the source alone and writers running. Neither is believed: the caller verifies the result and compares heads.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledger_sizer.history.archive_files import ArchiveFiles, Manifest, manifests
from ledger_sizer.model.decisions import GENESIS_HASH
from ledger_sizer.model.errors import InvalidRequest, Unavailable
from ledger_sizer.storage.database import is_sqlite, read_transaction, redacted_url, require_head
from ledger_sizer.storage.tables import (
    ArchiveRow,
    Base,
    DecisionRow,
    FacetBlockRow,
    FacetRow,
    LeaseRow,
    PortfolioRow,
    PositionRow,
)
from ledger_sizer.storage.write_store import DECISION_COLUMNS, POSITION_COLUMNS

Progress = Callable[[int, int], object]
"""Called with (done, in all)."""

_BACKUP_PAGES = 2000
_CHUNK = 500


def backup_sqlite(engine: Engine, target: Path, progress: Progress | None = None) -> None:
    """Copy a SQLite ledger that is in use into a new file: one consistent moment of it, complete or not there at all.

    Raises `InvalidRequest` for another database (PostgreSQL brings pg_dump) and for a file that exists, `Unavailable`
    where one of them cannot be read or written.
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
        with closing(sqlite3.connect(partial, isolation_level=None)) as target_file, engine.connect() as connection:
            connection.execute(select(PortfolioRow.id).limit(1))  # the moment that is backed up
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            # Within a read transaction the pages cannot change under the copy, so writers never make it start over.
            source.backup(
                target_file, pages=_BACKUP_PAGES, progress=lambda _status, left, total: _tell(progress, left, total)
            )
            target_file.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
            connection.rollback()
        partial.replace(target)
    except (sqlite3.Error, DBAPIError, OSError) as error:
        raise Unavailable(f"cannot back up {redacted_url(engine.url)} to {target}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _tell(progress: Progress | None, left: int, total: int) -> None:
    if progress is not None:
        progress(total - left, total)


def copy_ledger(
    source: Engine, target: Engine, progress: Progress | None = None, *, restore: ArchiveFiles | None = None
) -> int:
    """Copy every row of a ledger into an empty, migrated database, in one snapshot and one transaction.

    source: an engine that only reads. Leases stay behind: who runs jobs is decided where they run. Archive files stay
    where they are, and their manifests are copied; with `restore`, what is in those files becomes rows again instead.
    Returns how many rows were written. Raises `InvalidRequest` where the target already has a ledger's rows, or where
    a key of the archive was used again since; `SchemaOutdated`, `Unavailable`.
    """
    require_head(source)
    require_head(target)
    try:
        with read_transaction(source) as reads, target.begin() as writes:
            tables = [table for table in _tables() if table.name != LeaseRow.__tablename__]
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
                for rows in _rows(reads, table):
                    writes.execute(insert(table), rows)
                    done += len(rows)
                    if progress is not None:
                        progress(done, sum(counts))
            done += 0 if restore is None else _restore(reads, writes, restore)
            _settle_identities(writes)
            return done
    except DBAPIError as error:
        raise Unavailable(f"cannot copy to {redacted_url(target.url)}: {str(error.orig).strip()}") from None


def _restore(reads: Connection, writes: Connection, files: ArchiveFiles) -> int:
    """Make rows of all archive files again, following each chain through them. Returns how many rows."""
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
    entries = files.chained(portfolio, manifest, previous)
    rows = 0
    while some := [*islice(entries, _CHUNK)]:
        decisions = [dict(zip(DECISION_COLUMNS, (manifest.portfolio_id, *one.record[1:]), strict=True)) for one in some]
        positions = [dict(zip(POSITION_COLUMNS, one.position, strict=True)) for one in some if one.position is not None]
        writes.execute(insert(DecisionRow), decisions)
        if positions:
            writes.execute(insert(PositionRow), positions)
        rows += len(decisions) + len(positions)
    return rows


def _tables() -> Sequence[Table]:
    """Manifests before the decisions, which would otherwise have to be there; facets before those noted anew."""
    first = [PortfolioRow.__table__, ArchiveRow.__table__, FacetRow.__table__, FacetBlockRow.__table__]
    return [*first, *(table for table in Base.metadata.sorted_tables if table not in first)]  # type: ignore[list-item]


def _rows(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    query = select(table).order_by(*table.primary_key.columns)
    for rows in connection.execution_options(yield_per=_CHUNK).execute(query).mappings().partitions():
        yield [dict(row) for row in rows]


def _settle_identities(connection: Connection) -> None:
    """PostgreSQL hands out ids from a counter that does not notice rows which brought their own."""
    if connection.dialect.name != "postgresql":
        return
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if column.identity is not None:
                counter = func.pg_get_serial_sequence(table.name, column.name)
                after = select(func.coalesce(func.max(column), 0) + 1).scalar_subquery()
                connection.execute(select(func.setval(counter, after, False)))
