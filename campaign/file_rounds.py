"""Rounds about files: a full disk, a SQLite file that is swapped under the service, backups."""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from campaign.auditor import decisions_of
from campaign.disks import filled, small_disk
from campaign.postgresql import PostgreSQL
from campaign.processes import checked_command
from campaign.rounds import campaign_round
from campaign.stage import Stage

DISK_MEGABYTES = 64
SERVER_DISK_MEGABYTES = 400


@campaign_round()
def full_disk_sqlite(stage: Stage) -> None:
    """The file system of a SQLite ledger is full"""
    disk = stage.ends.enter_context(small_disk(stage.folder / "disk", DISK_MEGABYTES))
    url = stage.sqlite(disk)
    service = stage.service(url)
    stage.trade(service.port)
    for _ in stage.times(1, 3):
        with stage.fault("the disk is full"), filled(disk):
            stage.rest(6)
        stage.rest(2)
    stage.check(url)


@campaign_round()
def full_disk_postgresql(stage: Stage) -> None:
    """The file system of PostgreSQL is full; where the server gives up, it is started again afterwards"""
    disk = stage.ends.enter_context(small_disk(stage.folder / "disk", SERVER_DISK_MEGABYTES))
    server = stage.postgresql(folder=disk / "pg", max_wal_size="64MB", min_wal_size="32MB")
    service = stage.service(server.url)
    stage.trade(service.port)
    for _ in stage.times(1, 2):
        with stage.fault("the disk is full; then the server is started again if it gave up"):
            with filled(disk):
                stage.rest(10)
            if not server.is_answering():
                server.kill()
                server.start()
        stage.rest(2)
    stage.check(server.url)


@campaign_round(short=True)
def swapped_file(stage: Stage) -> None:
    """The SQLite file is deleted, moved, replaced, or its -wal unlinked, while open; then restored from a backup"""
    url = stage.sqlite()
    path = stage.folder / "ledger.db"
    service = stage.service(url)
    clients = stage.trade(service.port)
    swaps = list(SWAPS.items())
    for number in stage.times(1, len(swaps)):
        name, swap = swaps[number]
        backup = stage.folder / f"backup{number}.db"
        with stage.fault(f"{name}; then the service is stopped, and the backup restored") as fault:
            # Paused, so that the backup has everything that was acknowledged before the swap.
            clients.pause()
            checked_command("db", "backup", str(backup), "--database-url", url, folder=stage.folder)
            swap(path)
            clients.resume()
            stage.rest(6)
            service.stop()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            shutil.move(backup, path)
            fault.over()
            service.start()
        stage.rest(2)
    stage.check(url)


def _delete(path: Path) -> None:
    path.unlink()


def _delete_all(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def _replace(path: Path) -> None:
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.replace(path)


def _unlink_wal(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)


SWAPS: dict[str, Callable[[Path], None]] = {
    "the file is deleted": _delete,
    "the -wal file is deleted": _unlink_wal,
    "the file is replaced by a copy of itself": _replace,
    "the file is moved away": _move,
    "the file is deleted with -wal and -shm": _delete_all,
}


@campaign_round()
def backup_sqlite(stage: Stage) -> None:
    """Backups of a SQLite ledger while clients trade; each is a beginning of the ledger, and verifies"""
    url = stage.sqlite()
    service = stage.service(url)
    stage.trade(service.port)
    copies = []
    for number in stage.times(1, 4):
        copy = stage.folder / f"backup{number}.db"
        with stage.fault("a backup is made under load"):
            checked_command("db", "backup", str(copy), "--database-url", url, folder=stage.folder)
        copies.append(f"sqlite:///{copy}")
        stage.rest(2)
    stage.check(url)
    _check_copies(stage, url, copies)


@campaign_round()
def backup_postgresql(stage: Stage) -> None:
    """pg_dump of a PostgreSQL ledger while clients trade; each, restored, is a beginning of it, and verifies"""
    server = stage.postgresql()
    service = stage.service(server.url)
    stage.trade(service.port)
    copies = []
    for number in stage.times(1, 3):
        dump, name = server.folder / f"ledger{number}.dump", f"restored{number}"
        with stage.fault("a backup is made under load"):
            server.run("pg_dump", "--format=custom", f"--file={dump}", server.url)
        server.sql(f"CREATE DATABASE {name}", database="postgres")
        restored = PostgreSQL.url_at(server.port, database=name)
        server.run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={restored}", str(dump))
        copies.append(restored)
        stage.rest(2)
    stage.check(server.url)
    _check_copies(stage, server.url, copies)


def _check_copies(stage: Stage, url: str, copies: list[str]) -> None:
    """Each copy holds the first decisions of each portfolio, column by column, and verifies."""
    whole = _by_portfolio(url)
    for copy in copies:
        checked_command("verify", "--database-url", copy, folder=stage.folder)
        for portfolio, rows in _by_portfolio(copy).items():
            if rows != whole[portfolio][: len(rows)]:
                stage.problem(f"the backup {copy} is no beginning of portfolio {portfolio}")


def _by_portfolio(url: str) -> dict[int, list[Any]]:
    found = defaultdict(list)
    for row in decisions_of(url):
        found[row[0]].append(tuple(row))
    return found
