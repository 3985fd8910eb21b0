"""How a SQLite ledger begins: where none was before; where one was, only when asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ledger_sizer import AppSettings, Ledger, LedgerSettings, NotFound, Unavailable
from ledger_sizer.history.archiver import archive
from ledger_sizer.history.backup import backup_sqlite
from ledger_sizer.model.choices import LedgerCreation
from ledger_sizer.storage.database import downgrade, make_engine, upgrade
from ledger_sizer.storage.sqlite_start import LedgerMissing
from tests.support.clock import FakeClock
from tests.support.processes import ROOT, Fleet


def settings(create: LedgerCreation) -> AppSettings:
    return AppSettings(ledger=LedgerSettings(create=create))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def lost(path: Path, url: str) -> Path:
    """The path of a ledger whose file is gone."""
    with Ledger.open(url) as ledger:
        ledger.reserve(key="k", ttl_seconds=3600)
    path.unlink()
    return path


def mode_of(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_open_when_no_ledger_was_there_then_it_is_created_and_says_so(path: Path, url: str) -> None:
    with Ledger.open(url) as ledger:
        assert ledger.created
        assert ledger.reserve(key="k").granted
    with Ledger.open(url) as again:
        assert not again.created
    marker = json.loads(path.with_name("ledger.db-ledger").read_text())
    assert marker["database"] == "ledger.db"
    assert "LEDGER_CREATE=always" in marker["note"]


@pytest.mark.parametrize("mask", [0o000, 0o022], ids=oct)
def test_open_when_it_creates_files_then_only_their_owner_may_read_them(
    path: Path, url: str, mask: int, clock: FakeClock
) -> None:
    before = os.umask(mask)
    try:
        with Ledger.open(url, clock=clock) as ledger:
            ledger.release(key="r", position_id=str(ledger.reserve(key="k").position_id))
            reads = make_engine(url, read_only=True)
            backup_sqlite(reads, path.with_name("backup.db"))
            writes = make_engine(url)
            clock.advance(86_400)
            archive(reads, writes, clock(), path.with_name("archive"))
            assert {mode_of(file) for file in path.parent.rglob("*") if file.is_file()} == {0o600}
            assert {file.name for file in path.parent.iterdir()} >= {"ledger.db-wal", "ledger.db-shm", "backup.db"}
            assert list(path.with_name("archive").iterdir())
            for engine in (reads, writes):
                engine.dispose()
    finally:
        os.umask(before)


@pytest.mark.parametrize("found", ["nothing", "empty file", "file without a schema", "nothing but its folder's -wal"])
@pytest.mark.parametrize("create", ["new", "never"])
def test_open_when_a_ledger_was_there_then_it_is_refused_and_nothing_is_made(
    lost: Path, url: str, found: str, create: LedgerCreation
) -> None:
    if found == "empty file":
        lost.touch()
    elif found == "file without a schema":
        empty = lost.with_name("empty.db")
        upgrade(f"sqlite:///{empty}")
        downgrade(f"sqlite:///{empty}", "base")
        empty.replace(lost)
    elif found != "nothing":
        lost.with_name("ledger.db-wal").write_bytes(b"what was committed last")
        lost.with_name("ledger.db-ledger").unlink()
    before = {file.name: file.read_bytes() for file in lost.parent.iterdir()}
    for _ in range(2):
        with pytest.raises(NotFound, match=r"a ledger was at .*ledger\.db .*restore a backup.*LEDGER_CREATE=always"):
            Ledger.open(url, settings=settings(create))
    with pytest.raises(LedgerMissing):
        upgrade(url)
    assert {file.name: file.read_bytes() for file in lost.parent.iterdir()} == before


def test_open_when_always_then_a_lost_ledger_begins_anew_and_is_remembered(lost: Path, url: str) -> None:
    with Ledger.open(url, settings=settings("always")) as ledger:
        assert ledger.created
        assert ledger.portfolios() == []
    lost.unlink()
    with pytest.raises(LedgerMissing):
        Ledger.open(url)


def test_open_when_never_then_only_an_existing_ledger_opens(path: Path, url: str) -> None:
    for prepare in (lambda: None, path.touch):
        prepare()
        with pytest.raises(LedgerMissing, match=r"there is no ledger at .*nothing was created"):
            Ledger.open(url, settings=settings("never"))
    path.unlink()
    Ledger.open(url).close()
    with Ledger.open(url, settings=settings("never")) as ledger:
        assert not ledger.created


def test_open_when_every_file_of_the_ledger_was_removed_then_a_new_one_begins(lost: Path, url: str) -> None:
    for file in lost.parent.glob("ledger.db*"):
        file.unlink()
    with Ledger.open(url) as ledger:
        assert ledger.created


def test_open_when_the_ledger_is_older_than_the_marker_then_it_is_remembered_from_then_on(path: Path, url: str) -> None:
    Ledger.open(url).close()
    path.with_name("ledger.db-ledger").unlink()
    Ledger.open(url).close()
    path.unlink()
    with pytest.raises(LedgerMissing):
        Ledger.open(url)


def test_open_when_the_backup_was_restored_then_the_ledger_goes_on(lost: Path, url: str, tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    with Ledger.open(f"sqlite:///{source}") as ledger:
        ledger.reserve(key="k")
    shutil.copy(source, lost)
    with Ledger.open(url) as again:
        assert not again.created
        assert again.reserve(key="k").replayed


def test_downgrade_when_to_base_then_a_ledger_may_begin_there_again(path: Path, url: str) -> None:
    Ledger.open(url).close()
    downgrade(url, "base")
    path.unlink()
    with Ledger.open(url) as ledger:
        assert ledger.created


def test_open_when_a_file_is_no_database_then_unavailable(path: Path, url: str) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Ledger.open(url)


@pytest.mark.parametrize("url", ["sqlite:///file:ledger.db?uri=true", "sqlite:///ledger.db?timeout=3"])
def test_open_when_the_url_has_parameters_then_it_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="without parameters"):
        Ledger.open(url)


def test_open_when_processes_begin_one_ledger_together_then_all_have_it(url: str) -> None:
    with Fleet("reserve_many", url, [{"name": f"b{number}", "count": 3} for number in range(6)]) as fleet:
        lines = fleet.run()
    assert len(lines) == 18
    with Ledger.open(url) as ledger:
        assert ledger.verify().ok


def test_create_when_the_process_is_killed_in_it_then_the_next_start_creates_it(path: Path, url: str) -> None:
    code = (
        "import os, signal, ledger_sizer.storage.database as d\n"
        "d.sqlite_start.remember = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"d.upgrade({url!r}, '0001')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9
    with Ledger.open(url) as ledger:
        assert ledger.reserve(key="k").granted
    assert path.with_name("ledger.db-ledger").exists()
