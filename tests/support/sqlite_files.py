"""A SQLite ledger with three reservations, and what becomes of its files."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ledger_sizer import Decision, Ledger
from ledger_sizer.history.backup import backup_sqlite
from ledger_sizer.storage.database import make_engine

Meddle = Callable[[Path], object]
FIRST = ("k0", "k1", "k2")


def reserve(ledger: Ledger, key: str) -> Decision:
    """Reserve for an hour."""
    return ledger.reserve(key=key, ttl_seconds=3600)


def keys_in(ledger: Ledger) -> dict[str, tuple[int | None, str | None]]:
    """Return (seq, hash) of every decision by its key."""
    return {decision.key: (decision.seq, decision.hash) for decision in ledger.history(limit=1000)}


@contextmanager
def three_reservations(path: Path) -> Iterator[Ledger]:
    """Open a new ledger with three reservations. A backup of the first one is `older.db` in the folder above."""
    with Ledger.open(f"sqlite:///{path}") as opened:
        reserve(opened, FIRST[0])
        back_up(path, path.parent.parent / "older.db")
        for key in FIRST[1:]:
            reserve(opened, key)
        opened.exposure()
        yield opened


def back_up(path: Path, target: Path) -> None:
    """Back a ledger up."""
    engine = make_engine(f"sqlite:///{path}", read_only=True)
    backup_sqlite(engine, target)
    engine.dispose()


def beside(path: Path, suffix: str) -> Path:
    """Return the path of -wal, -shm or -ledger."""
    return path.with_name(path.name + suffix)


def delete_all(path: Path) -> None:
    """Delete the database with its log and its locks."""
    for suffix in ("", "-wal", "-shm"):
        beside(path, suffix).unlink()


def replace_by_copy(path: Path) -> None:
    """Replace it by a backup of its present state."""
    copy = path.with_name("copy.db")
    back_up(path, copy)
    copy.replace(path)


def replace_by_older(path: Path) -> None:
    """Replace it by `older.db`."""
    shutil.copy(path.parent.parent / "older.db", path.with_name("new")).replace(path)


def replace_log(path: Path) -> None:
    """Replace the log by a copy of it."""
    shutil.copy(beside(path, "-wal"), path.with_name("new")).replace(beside(path, "-wal"))


def empty(path: Path) -> None:
    """Cut it to nothing."""
    with path.open("r+b") as file:
        file.truncate(0)


def checkpoint(path: Path) -> None:
    """Write the whole log into the database."""
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


MEDDLES: dict[str, Meddle] = {
    "deleted": Path.unlink,
    "deleted with -wal and -shm": delete_all,
    "moved": lambda path: path.rename(path.with_name("moved.db")),
    "replaced by a copy": replace_by_copy,
    "replaced by an older backup": replace_by_older,
    "replaced by an empty file": lambda path: (path.unlink(), path.touch()),
    "-wal unlinked": lambda path: beside(path, "-wal").unlink(),
    "-shm unlinked": lambda path: beside(path, "-shm").unlink(),
    "-wal replaced": replace_log,
    "folder renamed": lambda path: path.parent.rename(path.parent.with_name("renamed")),
    "emptied": empty,
}

READS: dict[str, Callable[[Ledger], object]] = {
    "exposure": lambda ledger: ledger.exposure(),
    "history": lambda ledger: ledger.history(),
    "verify": lambda ledger: ledger.verify(),
    "dry run": lambda ledger: ledger.reserve(key="dry", dry_run=True),
}
