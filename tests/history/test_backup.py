"""The drills of docs/backup.md. Each ends with a verification against the heads of the original."""

from __future__ import annotations

import gzip
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from ledger_sizer import InvalidRequest, Ledger, Unavailable
from ledger_sizer.cli import run
from ledger_sizer.history.backup import backup_sqlite, copy_ledger
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.history.conftest import HistoryCopy
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS, PostgresUnavailableError, postgres_programs
from tests.support.histories import trade_at_random
from tests.support.ledgers import TAGS, Intruder, assert_verified, opened

D = Decimal


def long_trading(ledger: Ledger, clock: FakeClock) -> None:
    """A history with every verb and two portfolios."""
    ledger.reserve(key="1", portfolio="other", tags=TAGS)
    ledger.reserve(key="zero", tags=TAGS)
    for number in range(3):
        ledger.remark(key=f"key-{number}", portfolio="*", about=f"key-{number}", event="created")
        ledger.halt(key=f"stop-{number}", portfolio="*", note="all stop")
        ledger.resume(key=f"go-{number}", portfolio="*")
    trade_at_random(ledger, clock, 1200, seed=8)
    clock.advance(timedelta(days=40).total_seconds())


@pytest.fixture
def database_url(history_copy: HistoryCopy) -> str:
    return history_copy(long_trading)


@pytest.fixture
def moved_from(database_url: str, clock: FakeClock, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger of which part is archived."""
    with opened(database_url, clock) as ledger:
        ledger.archive(ledger.decision(100).decided_at, tmp_path / "archive")
        ledger.reserve(key="last", tags=TAGS)
        ledger.halt(key="last stop", portfolio="*", note="moving")
        yield ledger


def audit(ledger: Ledger) -> Any:
    """Return everything that two copies of one ledger must have in common."""
    report = ledger.verify()
    assert report.ok, report.findings
    return (
        report,
        ledger.heads(),
        [ledger.exposure(name) for name in ledger.portfolios()],
        [*ledger.history(limit=1000)],
        [*ledger.history(limit=1000, symbol="BTC", outcome="denied")],
        [*ledger.positions(limit=1000)],
        [*ledger.history("*")],
        ledger.desk_status(),
    )


def copied(source: str, target: str) -> None:
    reads, writes = make_engine(source, read_only=True), make_engine(target)
    try:
        assert copy_ledger(reads, writes) > 500
    finally:
        reads.dispose()
        writes.dispose()


@pytest.mark.parametrize("to", ENGINE_KINDS)
def test_copy_ledger_when_moved_to_another_database_and_back_then_nothing_differs(
    moved_from: Ledger, database_url: str, to: str, new_database: NewDatabase, clock: FakeClock
) -> None:
    original = audit(moved_from)
    there, back = new_database(to), new_database(make_url(database_url).get_backend_name())
    copied(database_url, there)
    with opened(there, clock) as ledger:
        assert audit(ledger) == original
    copied(there, back)
    with opened(back, clock) as ledger:
        assert audit(ledger) == original
        assert ledger.reserve(key="last", tags=TAGS).replayed
        assert ledger.reserve(key="next", tags={"symbol": "NEW"}).binding == "desk", "a copy is halted as its source is"
        ledger.reserve(key="next", portfolio="third")
        ledger.resume(key="moved", portfolio="*")
        assert ledger.reserve(key="after", portfolio="fourth").granted
        assert_verified(ledger)


@pytest.mark.parametrize("to", ENGINE_KINDS)
def test_copy_ledger_when_something_was_recorded_about_the_targets_desk_then_it_is_refused(
    database_url: str, to: str, new_database: NewDatabase, clock: FakeClock
) -> None:
    there = new_database(to)
    with opened(there, clock) as ledger:
        ledger.remark(key="made", portfolio="*", about="key-1", event="created")
        before = ledger.verify()
        with pytest.raises(InvalidRequest, match="has portfolios already"):
            copied(database_url, there)
        assert ledger.verify() == before


def test_archive_when_the_desk_has_old_decisions_then_they_go_into_files_too(
    database_url: str, clock: FakeClock, tmp_path: Path
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.halt(key="now", portfolio="*")
        before, heads = [*ledger.history("*")], ledger.heads()
        assert len(before) == 10
        moved = ledger.archive(before[0].decided_at - timedelta(days=39), tmp_path / "archive", "*")
        assert (moved.decisions, moved.positions) == (9, 0)
        (file,) = moved.files
        assert file.name == "_desk-000000000001-000000000009.ndjson.gz"
        assert ([*ledger.history("*")], ledger.heads(), ledger.desk_status()) == (before, heads, "halted")
        assert ledger.decision(2, "*") == next(one for one in before if one.seq == 2)
        assert_verified(ledger)
        ledger.resume(key="go on", portfolio="*")
        assert_verified(ledger)


def test_copy_ledger_when_the_target_has_one_then_it_is_refused_and_unharmed(
    moved_from: Ledger, database_url: str, new_database: NewDatabase, clock: FakeClock
) -> None:
    there = new_database("sqlite")
    with opened(there, clock) as ledger:
        ledger.reserve(key="own")
        before = audit(ledger)
        with pytest.raises(InvalidRequest, match="has portfolios already"):
            copied(database_url, there)
        assert audit(ledger) == before


def test_copy_ledger_when_asked_on_the_command_line_then_the_copy_is_verified(
    moved_from: Ledger, database_url: str, new_database: NewDatabase, clock: FakeClock
) -> None:
    there = new_database("postgresql", migrated=False)
    assert run(["db", "copy", database_url, there]) == 0
    with opened(there, clock) as ledger:
        assert ledger.heads() == moved_from.heads()


@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
def test_back_up_sqlite_when_writers_go_on_then_it_is_one_moment_of_the_ledger(
    moved_from: Ledger, database_url: str, tmp_path: Path, clock: FakeClock
) -> None:
    stop = threading.Event()

    def trade() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            moved_from.reserve(key=f"load{number}", tags=TAGS, min_notional_usd=D(10**6))

    before = moved_from.heads()["main"][0]
    writer = threading.Thread(target=trade)
    writer.start()
    reads = make_engine(database_url, read_only=True)
    try:
        for number in range(3):
            backup_sqlite(reads, tmp_path / f"backup{number}.db")
    finally:
        stop.set()
        writer.join()
        reads.dispose()
    assert moved_from.heads()["main"][0] > before + 3, "it was written to meanwhile"
    for number in range(3):
        with opened(f"sqlite:///{tmp_path / f'backup{number}.db'}", clock) as ledger:
            assert_verified(ledger)
            seq, head = ledger.heads()["main"]
            assert seq >= before
            assert moved_from.decision(seq).hash == head
    assert not list(tmp_path.glob("*.partial"))


def test_back_up_when_the_file_exists_or_the_database_is_a_server_then_it_is_refused(
    moved_from: Ledger, database_url: str, tmp_path: Path
) -> None:
    target = tmp_path / "taken.db"
    target.write_text("mine")
    reads = make_engine(database_url, read_only=True)
    with pytest.raises(InvalidRequest, match=r"exists already|pg_dump"):
        backup_sqlite(reads, target)
    if reads.dialect.name == "sqlite":
        with pytest.raises(Unavailable, match="cannot back up"):
            backup_sqlite(reads, tmp_path / "no folder" / "x.db")
    reads.dispose()
    assert target.read_text() == "mine"


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_restore_pg_dump_when_made_while_it_is_used_then_the_restored_ledger_verifies(
    moved_from: Ledger, database_url: str, new_database: NewDatabase, tmp_path: Path, clock: FakeClock
) -> None:
    with Intruder(database_url) as look:
        major = int(look.rows("SHOW server_version_num")[0][0]) // 10_000
    try:
        programs = postgres_programs(major)
    except PostgresUnavailableError as error:
        pytest.skip(str(error))
    dump, restore = programs / "pg_dump", programs / "pg_restore"
    there = new_database("postgresql", migrated=False)
    file = str(tmp_path / "ledger.dump")
    before = audit(moved_from)

    def plain(url: str) -> str:
        return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    made = subprocess.run(
        [dump, "--format=custom", f"--file={file}", plain(database_url)], capture_output=True, check=False, text=True
    )
    assert made.returncode == 0, made.stderr
    moved_from.reserve(key="after", tags=TAGS)
    command = [restore, "--exit-on-error", "--no-owner", f"--dbname={plain(there)}", file]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    with opened(there, clock) as ledger:
        assert audit(ledger) == before
        ledger.reserve(key="goes on", tags=TAGS)
        assert_verified(ledger)


# --- archived history comes back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ENGINE_KINDS)
def test_copy_ledger_when_archives_are_restored_then_all_of_it_is_rows_again(
    moved_from: Ledger, database_url: str, to: str, new_database: NewDatabase, clock: FakeClock, tmp_path: Path
) -> None:
    original, there = audit(moved_from), new_database(to)
    with Intruder(database_url) as look:
        (archived,) = look.rows("SELECT count(*) FROM archives")[0]
        assert archived > 0, "there is something to restore"
    assert run(["db", "copy", database_url, there, "--restore-archives"]) == 0
    for file in (tmp_path / "archive").iterdir():
        file.unlink()
    with opened(there, clock) as ledger, Intruder(there) as look:
        assert look.rows("SELECT count(*) FROM archives") == [(0,)]
        assert look.rows("SELECT count(*) FROM decisions") == [(original[0].decisions,)]
        assert look.rows("SELECT count(*) FROM positions") == [(original[0].positions,)]
        report, heads, exposures, history, denied, positions, *desk = audit(ledger)
        assert desk == [*original[6:]]
        assert (report, heads, exposures, history, denied) == original[:5]
        assert {*original[5]} <= {*positions}, "what had ended is listed again"
        assert ledger.reserve(key="zero", tags=TAGS).replayed, "and its keys are answered again"
        assert ledger.archive(ledger.decision(100).decided_at, tmp_path / "again").decisions > 0
        assert audit(ledger)[1] == ledger.heads()


def test_restore_archives_when_a_key_was_used_again_then_it_is_refused_and_nothing_is_written(
    moved_from: Ledger, database_url: str, new_database: NewDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not moved_from.reserve(key="zero", tags=TAGS).replayed
    there = new_database("sqlite")
    assert run(["db", "copy", database_url, there, "--restore-archives"]) == 2
    assert "a key in it was used again" in " ".join(capsys.readouterr().err.split())
    with Intruder(there) as look:
        assert look.rows("SELECT name FROM portfolios") == [("*",)], "the desk, which the migration made"


def test_restore_archives_when_a_file_was_rewritten_with_its_manifest_then_the_chain_tells(
    moved_from: Ledger, database_url: str, new_database: NewDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((tmp_path / "archive").iterdir())
    lines = gzip.decompress(file.read_bytes()).replace(b'"exposure_e8":0', b'"exposure_e8":1', 1)
    file.write_bytes(gzip.compress(lines))
    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        intruder.run(
            "UPDATE archives SET sha256 = :sum WHERE file LIKE :name",
            sum=sha256(file.read_bytes()).hexdigest(),
            name=f"%{file.name}",
        )
    there = new_database("sqlite")
    assert run(["db", "copy", database_url, there, "--restore-archives"]) == 1
    assert "does not continue the chain" in " ".join(capsys.readouterr().err.split())
    with Intruder(there) as look:
        assert look.rows("SELECT name FROM portfolios") == [("*",)], "the desk, which the migration made"
