"""A SQLite file that is damaged, or on a full disk: `Unavailable`, and nothing acknowledged is lost."""

from __future__ import annotations

import collections
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger_sizer import AppSettings, Decision, Ledger, LedgerSettings, Unavailable
from tests.support.sqlite_files import (
    READS,
    checkpoint,
    keys_in,
    reserve,
    three_reservations,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a ledger in a folder of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """A ledger with three reservations."""
    with three_reservations(path) as opened:
        yield opened


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
    checkpoint(path)
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
