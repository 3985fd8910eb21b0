"""The files of a SQLite ledger are deleted, moved, replaced or damaged while it is open.

Nothing is acknowledged and nothing read until the paths name the same files again. What was acknowledged before is
found again, or the next start is refused.
"""

from __future__ import annotations

import asyncio
import collections
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import AppSettings, Decision, Ledger, LedgerSettings, Unavailable
from ledger_sizer.history.backup import backup_sqlite
from ledger_sizer.storage.database import make_engine, read_transaction, write_transaction
from ledger_sizer.storage.sqlite_file import FileLost
from ledger_sizer.storage.sqlite_start import LedgerMissing
from tests.support.processes import ROOT

Meddle = Callable[[Path], object]
FIRST = ("k0", "k1", "k2")


def reserve(ledger: Ledger, key: str) -> Decision:
    return ledger.reserve(key=key, ttl_seconds=3600)


def keys_in(ledger: Ledger) -> dict[str, tuple[int | None, str | None]]:
    return {decision.key: (decision.seq, decision.hash) for decision in ledger.history(limit=1000)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger in a folder of its own. A backup without decisions stands in the folder above."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """A ledger with three reservations, whose backup (`older.db`) has one of them."""
    with Ledger.open(f"sqlite:///{path}") as opened:
        reserve(opened, FIRST[0])
        back_up(path, path.parent.parent / "older.db")
        for key in FIRST[1:]:
            reserve(opened, key)
        opened.exposure()
        yield opened


def back_up(path: Path, target: Path) -> None:
    engine = make_engine(f"sqlite:///{path}", read_only=True)
    backup_sqlite(engine, target)
    engine.dispose()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def delete_all(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        beside(path, suffix).unlink()


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy.db")
    back_up(path, copy)
    copy.replace(path)


def replace_by_older(path: Path) -> None:
    shutil.copy(path.parent.parent / "older.db", path.with_name("new")).replace(path)


def replace_log(path: Path) -> None:
    shutil.copy(beside(path, "-wal"), path.with_name("new")).replace(beside(path, "-wal"))


def empty(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


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


@pytest.mark.parametrize("name", MEDDLES)
def test_answer_when_the_files_are_not_the_open_ones_then_nothing_is_acknowledged_or_read(
    ledger: Ledger, path: Path, name: str
) -> None:
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

    assert {type(answer) for answer in asyncio.run(ask_all())} == {Unavailable}


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


def _checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


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
    "checkpoint": _checkpoint,
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


# --- other processes ----------------------------------------------------------------------------------------------

HOLDER = """
import sys
from ledger_sizer import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    ledger.reserve(key="theirs", ttl_seconds=3600)
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the ledger open, with one reservation, until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"sqlite:///{path}"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="other processes' locks are looked up on Linux only")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("-wal unlinked", "its -wal or -shm file was removed"),
        ("-shm unlinked", "its -wal or -shm file was removed"),
        ("replaced by an older backup", "another file open that was at"),
    ],
)
def test_open_when_another_process_has_other_files_open_then_it_is_refused_until_that_one_stopped(
    path: Path, holder: subprocess.Popen[str], name: str, words: str
) -> None:
    with Ledger.open(f"sqlite:///{path}") as beside_it:
        assert keys_in(beside_it).keys() == {"theirs"}
    back_up(path, path.parent.parent / "older.db")
    MEDDLES[name](path)
    with pytest.raises(Unavailable, match=rf"process {holder.pid} has .*{words}"):
        Ledger.open(f"sqlite:///{path}")
    holder.communicate("stop\n", timeout=60)
    if name == "replaced by an older backup":
        for suffix in ("-wal", "-shm"):  # of the file that was there before
            beside(path, suffix).unlink()
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert keys_in(ledger).keys() == {"theirs"}


@pytest.mark.parametrize("remedy", ["remove the log", "it is a copy: remove the marker"])
def test_open_when_the_log_of_another_file_is_beside_it_then_it_is_refused_with_what_to_do(
    path: Path, holder: subprocess.Popen[str], remedy: str
) -> None:
    """The log of a killed process, and a file that was put in the place of its own."""
    back_up(path, path.parent.parent / "older.db")
    holder.kill()
    holder.wait()
    if remedy == "remove the log":
        replace_by_older(path)
    else:
        shutil.copy(path, path.with_name("copy.db")).replace(path)
    content = path.read_bytes()
    with pytest.raises(Unavailable, match=r"another file than the one that ledger\.db-wal belongs to"):
        Ledger.open(f"sqlite:///{path}")
    assert path.read_bytes() == content
    for suffix in ("-wal", "-shm") if remedy == "remove the log" else ("-ledger",):
        beside(path, suffix).unlink()
    for _ in range(2):
        with Ledger.open(f"sqlite:///{path}") as ledger:
            assert keys_in(ledger).keys() == {"theirs"}
            assert ledger.verify().ok


def test_open_when_a_backup_was_restored_then_its_own_log_is_known_from_then_on(path: Path) -> None:
    with Ledger.open(f"sqlite:///{path}") as ledger:
        reserve(ledger, "k0")
        back_up(path, path.with_name("backup.db"))
    path.with_name("backup.db").replace(path)
    Ledger.open(f"sqlite:///{path}").close()
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"sqlite:///{path}"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdout is not None
    killed.stdout.readline()
    killed.kill()
    killed.communicate()
    assert beside(path, "-wal").stat().st_size > 0
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert keys_in(ledger).keys() == {"k0", "theirs"}


# --- damage -------------------------------------------------------------------------------------------------------


def overwrite_table(path: Path, table: str) -> None:
    """Overwrite the first page of a table."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_write_when_a_page_is_damaged_then_unavailable_with_what_to_do(path: Path) -> None:
    url = f"sqlite:///{path}"
    with Ledger.open(url) as ledger:
        reserve(ledger, "k0")
    overwrite_table(path, "portfolios")
    with Ledger.open(url) as ledger:
        with pytest.raises(Unavailable, match=r"damaged: database disk image is malformed; .*restore a backup"):
            reserve(ledger, "k1")
        with pytest.raises(Unavailable, match="malformed"):
            ledger.exposure()


@pytest.mark.parametrize("damage", ["cut", "zeros", "text"])
def test_answer_when_the_file_is_damaged_then_unavailable_and_nothing_acknowledged_is_lost(
    ledger: Ledger, path: Path, damage: str
) -> None:
    acknowledged = keys_in(ledger)
    _checkpoint(path)
    with path.open("r+b") as file:
        if damage == "cut":
            file.truncate(8192)
        else:
            file.seek(0 if damage == "text" else 4096)
            file.write(b"no ledger" * 5000 if damage == "text" else bytes(40_960))
    for use in (lambda: reserve(ledger, "k3"), *(lambda read=read: read(ledger) for read in READS.values())):
        try:
            answer = use()
        except Unavailable:
            continue
        if isinstance(answer, Decision) and answer.seq is not None:
            acknowledged[answer.key] = (answer.seq, answer.hash)
    ledger.close()
    try:
        with Ledger.open(f"sqlite:///{path}") as again:
            found = keys_in(again)
            assert again.verify().ok
    except Unavailable:
        return  # it cannot be opened or read, so nothing is granted from it
    assert acknowledged.items() <= found.items()


@pytest.mark.parametrize(
    ("pragma", "words"), [("max_page_count = 1", "database or disk is full"), ("query_only = ON", "readonly")]
)
def test_write_when_the_disk_is_full_or_read_only_then_unavailable(path: Path, pragma: str, words: str) -> None:
    settings = AppSettings(ledger=LedgerSettings(retries_max=0))
    with Ledger.open(f"sqlite:///{path}", settings=settings) as ledger:
        reserve(ledger, "k0")
        connection = ledger._store._connection()  # type: ignore[attr-defined]  # a disk cannot be filled here
        connection.execute(f"PRAGMA {pragma}")
        with pytest.raises(Unavailable, match=words):
            collections.deque(reserve(ledger, f"m{number}") for number in range(200))
        assert reserve(ledger, "after").outcome in ("granted", "denied")
        assert ledger.verify().ok
