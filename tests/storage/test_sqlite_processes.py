"""A SQLite ledger whose files were exchanged while another process has them open, or after it was killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger_sizer import Ledger, Unavailable
from tests.support.processes import ROOT
from tests.support.sqlite_files import (
    MEDDLES,
    back_up,
    beside,
    keys_in,
    replace_by_older,
    reserve,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger in a folder of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "ledger.db"


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
