"""The files of a SQLite ledger are deleted, moved or replaced while it is open.

Nothing is acknowledged and nothing read until the paths name the same files again. What was acknowledged before is
found again, or the next start is refused.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import AppSettings, Ledger, LedgerSettings, Unavailable
from ledger_sizer.storage.database import make_engine, read_transaction, write_transaction
from ledger_sizer.storage.sqlite_file import FileLost
from ledger_sizer.storage.sqlite_start import LedgerMissing
from tests.support.processes import ROOT
from tests.support.sqlite_files import (
    FIRST,
    MEDDLES,
    READS,
    Meddle,
    back_up,
    beside,
    checkpoint,
    keys_in,
    reserve,
    three_reservations,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger in a folder of its own. A backup of the first decision stands in the folder above."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with three_reservations(path) as opened:
        yield opened


@pytest.mark.parametrize("settled", [False, True], ids=["folder just changed", "folder unchanged for long"])
@pytest.mark.parametrize("name", MEDDLES)
def test_answer_when_the_files_are_not_the_open_ones_then_nothing_is_acknowledged_or_read(
    ledger: Ledger, path: Path, name: str, settled: bool
) -> None:
    if settled:
        os.utime(path.parent, (0, 0))
        assert reserve(ledger, FIRST[0]).replayed, "from now on an unchanged folder stands for its files"
    before = keys_in(ledger)
    MEDDLES[name](path)
    present = set(path.parent.iterdir()) if path.parent.exists() else set()
    for key in ("k3", "k4", FIRST[0]):  # the last one would be a replay
        with pytest.raises(Unavailable, match="Nothing is answered"):
            reserve(ledger, key)
    for read in READS.values():
        with pytest.raises(Unavailable, match=r"deleted or moved|replaced|removed|emptied"):
            read(ledger)
    assert (set(path.parent.iterdir()) if path.parent.exists() else set()) == present, "no file may be created"

    ledger.close()
    if name.startswith(("-wal", "-shm")):
        with Ledger.open(f"sqlite:///{path}") as again:
            assert before.items() <= keys_in(again).items()
            assert again.verify().ok
    else:
        with pytest.raises((LedgerMissing, Unavailable)):  # refused, it loses nothing and grants nothing
            Ledger.open(f"sqlite:///{path}")


@pytest.mark.parametrize("name", ["-wal unlinked", "-shm unlinked"])
def test_close_when_a_log_was_removed_then_what_was_acknowledged_is_in_the_file(
    ledger: Ledger, path: Path, name: str
) -> None:
    before = keys_in(ledger)
    MEDDLES[name](path)
    with pytest.raises(Unavailable):
        reserve(ledger, "k3")
    ledger.close()
    with Ledger.open(f"sqlite:///{path}", settings=AppSettings(ledger=LedgerSettings(create="never"))) as again:
        assert before.items() <= keys_in(again).items()
        assert set(keys_in(again)) <= {*before, "k3"}, "only the batch that noticed it may be there without an answer"
        assert again.verify().ok


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_answer_when_it_was_moved_and_is_back_then_it_goes_on(ledger: Ledger, path: Path, folder: bool) -> None:
    moved = path.parent if folder else path
    away = moved.with_name("away")
    moved.rename(away)
    for _ in range(2):
        with pytest.raises(Unavailable, match="deleted or moved"):
            reserve(ledger, "k3")
    away.rename(moved)
    assert reserve(ledger, "k3").granted
    assert reserve(ledger, FIRST[0]).replayed
    assert ledger.exposure().scope("portfolio").held == Decimal(4000)
    assert ledger.verify().ok


def test_answer_when_many_callers_wait_then_none_is_acknowledged(ledger: Ledger, path: Path) -> None:
    path.rename(path.with_name("moved.db"))

    async def ask_all() -> list[Any]:
        asked = [ledger.reserve_async(key=f"m{number}", available_balance=Decimal(1)) for number in range(200)]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert {type(answer) for answer in asyncio.run(ask_all())} == {FileLost}


def test_open_connections_when_the_file_was_replaced_then_no_new_one_reads_the_other_file(path: Path) -> None:
    """An engine belongs to the file it was made for, with or without an open connection."""
    url = f"sqlite:///{path}"
    with Ledger.open(url) as ledger:
        reserve(ledger, "k0")
    reads, writes = make_engine(url, read_only=True), make_engine(url)
    held = path.open("rb")  # so that the inode is not used again
    path.unlink()
    shutil.copyfile(f"/proc/self/fd/{held.fileno()}", path)
    for transaction in (read_transaction(reads), write_transaction(writes)):
        with pytest.raises(FileLost, match="replaced"), transaction:
            pytest.fail("this is another file")
    held.close()


def test_write_beside_the_ledger_when_the_file_is_gone_then_it_is_refused(ledger: Ledger, path: Path) -> None:
    """Leases, keys and drifts are written by engines of their own."""
    writes = make_engine(f"sqlite:///{path}")
    with write_transaction(writes) as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text)")

    def write() -> None:
        with write_transaction(writes) as connection:
            connection.exec_driver_sql("INSERT INTO notes VALUES ('x')")
            path.unlink()

    with pytest.raises(FileLost, match="deleted"):
        write()
    writes.dispose()


# --- what may happen to a ledger in use ---------------------------------------------------------------------------


def _vacuum(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("VACUUM")


def _other_process(path: Path) -> None:
    code = f"from ledger_sizer import Ledger\nwith Ledger.open('sqlite:///{path}') as one: one.exposure()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def _other_ledger(path: Path) -> None:
    with Ledger.open(f"sqlite:///{path}") as other:
        reserve(other, "other")


LEGITIMATE: dict[str, Meddle] = {
    "checkpoint": checkpoint,
    "vacuum": _vacuum,
    "backup": lambda path: back_up(path, path.with_name("backup.db")),
    "another process": _other_process,
    "another ledger": _other_ledger,
    "another name": lambda path: path.with_name("link.db").symlink_to(path),
    "mode": lambda path: path.chmod(0o640),
}


@pytest.mark.parametrize("happens", LEGITIMATE.values(), ids=LEGITIMATE)
def test_answer_when_something_legitimate_happened_then_it_goes_on(ledger: Ledger, path: Path, happens: Meddle) -> None:
    happens(path)
    for number in range(3):
        reserve(ledger, f"n{number}")
        ledger.exposure()
    assert reserve(ledger, FIRST[0]).replayed
    assert ledger.verify().ok


def test_answer_when_all_connections_closed_in_between_then_the_new_log_is_accepted(path: Path) -> None:
    """SQLite removes -wal and -shm with the last connection, and makes new ones."""
    engine = make_engine(f"sqlite:///{path}")
    with Ledger.open(f"sqlite:///{path}") as ledger:
        reserve(ledger, "k0")
    for _ in range(3):
        with write_transaction(engine) as connection:
            connection.exec_driver_sql("SELECT 1 FROM decisions")
        engine.dispose()
        assert not beside(path, "-wal").exists()


def test_answer_when_the_working_directory_changes_then_a_relative_path_stays_what_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with Ledger.open("sqlite:///ledger.db") as ledger:
        monkeypatch.chdir("/")
        assert reserve(ledger, "k0").granted
        assert ledger.exposure().scope("portfolio").held == Decimal(1000)
    assert path.exists()


def test_answer_when_the_path_is_a_link_then_it_goes_on_until_the_link_names_another_file(path: Path) -> None:
    link = path.with_name("link.db")
    with Ledger.open(f"sqlite:///{path}") as made:
        reserve(made, "k0")
    link.symlink_to(path)
    with Ledger.open(f"sqlite:///{link}") as ledger:
        assert reserve(ledger, "k1").granted
        assert beside(path, "-wal").exists()
        link.unlink()
        link.symlink_to(path.with_name("nothing.db"))
        with pytest.raises(Unavailable, match="deleted or moved"):
            reserve(ledger, "k2")


def test_open_when_forked_then_the_child_has_its_own_view_of_the_files(ledger: Ledger, path: Path) -> None:
    reserve(ledger, "parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Ledger.open(f"sqlite:///{path}") as own:
                reserve(own, "child")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reserve(ledger, "child").replayed
