"""Archiving: closed history moves into files, nothing is lost, and all reads work across files and live tables."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from ledger_sizer import AppSettings, Busy, Decision, InvalidRequest, Ledger, LedgerSettings, Reserve, Unavailable
from ledger_sizer.history import archiver
from ledger_sizer.history.archive_files import Manifest
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.storage.write_store import POSITION_COLUMNS
from tests.history.conftest import HistoryCopy
from tests.support.clock import FakeClock
from tests.support.edited_ledgers import without_schema
from tests.support.histories import COMMANDS, STRATEGIES, SYMBOLS, matches, trade_at_random
from tests.support.ledgers import Intruder, assert_verified, opened

D = Decimal
MONTHS = timedelta(days=60)


@dataclass
class Old:
    """A ledger whose first part is old enough to be archived. decisions: all of them, read before archiving."""

    ledger: Ledger
    url: str
    clock: FakeClock
    folder: Path
    decisions: list[Decision]

    def archive(self, seq: int | None = None) -> archiver.ArchiveReport:
        """Archive what was decided before this seq, or all that is old enough if None."""
        before = self.clock() - timedelta(days=31) if seq is None else self.decisions[seq - 1].decided_at
        return self.ledger.archive(before, self.folder)

    @property
    def last(self) -> int:
        return len(self.decisions)


def two_months_of_trading(ledger: Ledger, clock: FakeClock) -> None:
    """A history all of which is old, but for its last two decisions."""
    ledger.reserve(key="first", tags={"symbol": "BTC"}, ttl_seconds=5)
    trade_at_random(ledger, clock, 200, seed=11)
    ledger.adopt(key="long", quantity=D(1), price=D(3), tags={"symbol": "ETH"})
    clock.advance(MONTHS.total_seconds())
    ledger.release(key="end", position_id=ledger.history(limit=1, command="adopt")[0].position_id or "")
    ledger.reserve(key="young", tags={"symbol": "BTC"}, ttl_seconds=500)


@pytest.fixture
def old(history_copy: HistoryCopy, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Old]:
    monkeypatch.setattr(archiver, "DECISIONS_MAX", 64)
    url = history_copy(two_months_of_trading)
    with opened(url, clock) as ledger:
        yield Old(ledger, url, clock, tmp_path / "archive", [*ledger.history(limit=1000, ascending=True)])


def live_rows(old: Old) -> tuple[int, int]:
    with Intruder(old.url) as look:
        return (
            look.rows("SELECT count(*) FROM decisions")[0][0],
            look.rows("SELECT count(*) FROM positions")[0][0],
        )


def test_archive_when_history_is_old_then_it_leaves_the_tables_and_nothing_else_changes(old: Old) -> None:
    exposures = {seq: old.ledger.exposure(as_of=seq) for seq in range(1, old.last + 1, 17)}
    positions = {name: old.ledger.position(name) for d in old.decisions if (name := d.position_id)}
    before = live_rows(old)
    moved = old.archive()
    assert moved.decisions > 150
    assert len(moved.files) > 2, "it took several files"
    assert live_rows(old) == (before[0] - moved.decisions, before[1] - moved.positions)
    assert [*old.ledger.history(limit=1000, ascending=True)] == old.decisions
    assert [*old.ledger.history(limit=1000)] == old.decisions[::-1]
    assert {name: old.ledger.position(name) for name in positions} == positions
    assert {seq: old.ledger.exposure(as_of=seq) for seq in exposures} == exposures
    assert old.ledger.exposure() == old.ledger.exposure(as_of=old.last)
    assert [old.ledger.decision(n + 1) for n in range(old.last)] == old.decisions
    assert old.ledger.explain(1).decision == old.decisions[0]
    report = old.ledger.verify()
    assert (report.ok, report.decisions, report.positions) == (True, old.last, before[1]), report.findings


def test_list_history_when_part_is_archived_then_every_filter_and_page_equals_a_plain_scan(old: Old) -> None:
    old.archive()
    chance = random.Random(3)
    moments = [None] * 400 + [*(decision.decided_at for decision in old.decisions)]
    names = [None, None, *(decision.position_id for decision in old.decisions)]
    hits = 0
    for _ in range(60):
        filters: dict[str, Any] = {
            "symbol": chance.choice(SYMBOLS),
            "strategy": chance.choice([None, *STRATEGIES]),
            "command": chance.choice([None] * 8 + COMMANDS),
            "outcome": chance.choice([None, None, "granted", "denied", "applied"]),
            "since": chance.choice(moments),
            "until": chance.choice(moments),
        }
        position = chance.choice(names) if chance.random() < 0.3 else None
        expected = [d for d in old.decisions if matches(d, filters) and position in (None, d.position_id)]
        found: list[Decision] = []
        cursor = None
        ascending = chance.random() < 0.5
        while True:
            page = old.ledger.history(limit=7, cursor=cursor, position_id=position, ascending=ascending, **filters)
            found += page
            if (cursor := page.cursor) is None:
                break
        assert found == (expected if ascending else expected[::-1]), (filters, position)
        hits += len(expected)
    assert hits > 200


def test_archive_when_writers_go_on_then_keys_of_the_window_are_answered_and_old_ones_are_new(old: Old) -> None:
    old.archive()
    assert old.ledger.reserve(key="young", tags={"symbol": "BTC"}, ttl_seconds=500).replayed
    again = old.ledger.reserve(key="first", tags={"symbol": "BTC"}, ttl_seconds=5)
    assert (again.replayed, again.seq) == (False, old.last + 1)
    assert_verified(old.ledger)


def test_archive_when_nothing_is_old_enough_then_nothing_moves(old: Old) -> None:
    assert old.archive(1) == archiver.ArchiveReport(0, 0, ())
    old.archive()
    assert old.archive().decisions == 0


@pytest.mark.parametrize("days", [0, 10, 29])
def test_archive_when_keys_must_still_be_answered_then_it_is_refused(old: Old, days: int) -> None:
    with pytest.raises(InvalidRequest, match="LEDGER_KEY_WINDOW_DAYS"):
        old.ledger.archive(old.clock() - timedelta(days=days), old.folder)
    with pytest.raises(InvalidRequest, match="time zone"):
        old.ledger.archive(old.clock().replace(tzinfo=None), old.folder)


@pytest.mark.parametrize("step", ["write_entries", "_verify_file", "_delete_archived_rows"])
def test_archive_when_it_dies_at_a_step_then_nothing_is_lost_and_the_next_run_ends_it(
    old: Old, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live_rows(old)

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archiver, step, die)
        with pytest.raises(KeyboardInterrupt):
            old.archive()
    assert live_rows(old) == before
    assert_verified(old.ledger)
    left = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    moved = old.archive()
    assert all((old.folder / name).read_bytes() == content for name, content in left.items()), "the same bytes again"
    assert {path.name for path in old.folder.iterdir()} == {path.name for path in moved.files}
    assert_verified(old.ledger)
    assert [*old.ledger.history(limit=1000, ascending=True)] == old.decisions


def test_archive_when_a_decision_was_edited_before_then_it_is_not_archived(old: Old) -> None:
    with Intruder(old.url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = 5")
    before = live_rows(old)
    with pytest.raises(Unavailable, match="does not continue the chain"):
        old.archive()
    assert live_rows(old) == before


def test_archive_when_another_archiver_was_first_then_it_stops(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = archiver._delete_archived_rows

    def twice(*arguments: Any) -> None:
        replace(*arguments)
        replace(*arguments)

    monkeypatch.setattr(archiver, "_delete_archived_rows", twice)
    with pytest.raises(Busy, match="another archiver"):
        old.archive()
    assert_verified(old.ledger)


# --- the database's own guards -----------------------------------------------------------------------------------


def test_delete_row_when_no_manifest_covers_it_then_the_database_refuses(old: Old) -> None:
    old.archive(100)
    with Intruder(old.url) as intruder:
        for table in ("decisions", "positions"):
            with pytest.raises(DBAPIError, match=r"append-only|kept"):
                intruder.run(f"DELETE FROM {table}")
        for statement in ("DELETE FROM archives", "UPDATE archives SET to_seq = 1000000"):
            with pytest.raises(DBAPIError, match="archives are final"):
                intruder.run(statement)


@pytest.mark.parametrize(
    ("from_seq", "to_seq", "of"), [(1, 99, 99), (2, 5, 5), (101, 120, 120), (100, 120, 119), (100, 10_000, 120)]
)
def test_insert_manifest_when_it_does_not_continue_the_chain_then_the_database_refuses(
    old: Old, from_seq: int, to_seq: int, of: int
) -> None:
    old.archive(100)
    (end,) = {manifest_end(old)}
    with Intruder(old.url) as intruder, pytest.raises(DBAPIError, match="continues the one before"):
        intruder.run(
            "INSERT INTO archives (portfolio_id, from_seq, to_seq, from_us, to_us, last_hash, positions, file, sha256, "
            "created_us) VALUES (1, :first, :last, 1, 2, :hash, 0, 'x', :hash, 1)",
            first=from_seq + end - 99,
            last=to_seq + end - 99,
            hash=old.decisions[of + end - 99 - 1].hash,
        )


def manifest_end(old: Old) -> int:
    with Intruder(old.url) as look:
        return int(look.rows("SELECT max(to_seq) FROM archives")[0][0])


# --- damage ------------------------------------------------------------------------------------------------------


def rewritten(path: Path, edit: Callable[[list[dict[str, Any]]], None]) -> str:
    """Edit a file's lines as an attacker who knows the format would. Returns its new SHA-256."""
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    edit(lines)
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return sha256(path.read_bytes()).hexdigest()


def other(value: object) -> object:
    if isinstance(value, int):
        return value + 1
    return "1" if value is None else f"{value}x"


COLUMNS = [("decision", name) for name in DecisionRecord._fields[1:]] + [
    ("position", name) for name in POSITION_COLUMNS[1:]
]


def test_verify_when_any_archived_field_was_changed_then_its_decision_is_named(old: Old) -> None:
    """Even if the attacker also rewrites the manifest's checksum, with the database's triggers removed."""
    path = old.archive().files[1]
    original = path.read_bytes()
    with Intruder(old.url) as intruder:
        intruder.take_guards_down()
        update = "UPDATE archives SET sha256 = :sha WHERE from_seq = 65"
        for kind, column in COLUMNS:
            at: list[int] = []

            def edit(lines: list[dict[str, Any]], kind: str = kind, column: str = column, at: list[int] = at) -> None:
                victim = next(n for n, line in enumerate(lines) if n > len(lines) // 2 and kind in line)
                row = lines[victim][kind]
                at.append(row["seq"] if kind == "decision" else row["updated_seq"])
                row[column] = other(row[column])

            intruder.run(update, sha=rewritten(path, edit))
            findings = old.ledger.verify().findings
            assert at[0] in {finding.seq for finding in findings}, (kind, column, findings)
            assert kind == "position" or findings[0].seq == at[0], (kind, column, findings)
            path.write_bytes(original)
        intruder.run(update, sha=sha256(original).hexdigest())
        assert without_schema(old.ledger.verify()).ok


@pytest.mark.parametrize("place", [0, 100, -5])
def test_verify_when_any_byte_of_a_file_was_changed_then_its_range_is_named(old: Old, place: int) -> None:
    path = old.archive().files[1]
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    first = old.ledger.verify().first
    assert first is not None
    assert (first.seq, "its SHA-256 differs" in first.what) == (65, True)
    with pytest.raises(Unavailable, match="SHA-256 differs"):
        old.ledger.decision(70)


@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", [name for name in Manifest._fields if name != "portfolio_id"])
def test_verify_when_a_manifests_value_is_of_another_type_then_it_is_named(old: Old, column: str) -> None:
    old.archive()
    with Intruder(old.url) as intruder:
        intruder.take_guards_down()
        intruder.run(f"UPDATE archives SET {column} = :bad WHERE from_seq = 65", bad=b"9x")
    first = old.ledger.verify().first
    assert first is not None
    assert f"has {column} b'9x', which is no" in first.what


def test_verify_when_a_file_is_missing_then_it_is_named_until_it_is_found_again(
    old: Old, tmp_path: Path, clock: FakeClock
) -> None:
    files = old.archive().files
    moved = tmp_path / "elsewhere"
    old.folder.rename(moved)
    findings = old.ledger.verify().findings
    assert {1, 65} <= {finding.seq for finding in findings}
    assert files[0].name in findings[0].what
    with pytest.raises(Unavailable, match="LEDGER_ARCHIVE_DIR"):
        old.ledger.history(limit=1000)
    assert len(old.ledger.history(limit=1)) == 1, "what is live needs no file"
    settings = AppSettings(ledger=LedgerSettings(archive_dir=str(moved)))
    with Ledger.open(old.url, settings=settings, clock=clock) as again:
        assert_verified(again)
        assert [*again.history(limit=1000, ascending=True)] == old.decisions


def test_verify_when_an_archived_position_stands_in_the_table_again_then_it_is_found(old: Old) -> None:
    row = next(d for d in old.decisions if d.command == "release").position_id or ""
    number = int(row.rpartition("-")[2])
    names = ", ".join(POSITION_COLUMNS)
    with Intruder(old.url) as intruder:
        values = dict(zip(POSITION_COLUMNS, intruder.rows(
            f"SELECT {names} FROM positions WHERE number = :n", n=number)[0], strict=True))  # fmt: skip
        old.archive()
        marks = ", ".join(f":{name}" for name in POSITION_COLUMNS)
        intruder.run(f"INSERT INTO positions ({names}) VALUES ({marks})", **values)
    assert number in {finding.seq for finding in old.ledger.verify().findings}


# --- trusted heads -----------------------------------------------------------------------------------------------


def test_verify_since_head_when_history_goes_on_then_only_what_follows_is_read(old: Old) -> None:
    for seq in (1, 40, 64, 65, old.last - 1, old.last):
        head = (seq, old.decisions[seq - 1].hash or "")
        for _ in range(2):
            report = old.ledger.verify(since={"main": head})
            assert (report.ok, report.decisions) == (True, old.last - seq), report.findings
            old.archive(120)


def test_verify_since_head_when_history_was_rewritten_then_the_head_tells(old: Old) -> None:
    from tests.verify.test_rows import rewrite_chain

    kept = old.ledger.heads()
    scene: Any = old
    with Intruder(old.url) as scene.intruder:
        scene.intruder.take_guards_down()
        scene.intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = 6")
        head = rewrite_chain(scene, 6)
        scene.intruder.run("UPDATE portfolios SET last_hash = :head WHERE id = 1", head=head)
    assert without_schema(old.ledger.verify()).ok, "the database alone cannot tell"
    first = old.ledger.verify(since=kept).first
    assert first is not None
    assert (first.seq, "history was rewritten" in first.what) == (old.last, True)


def test_verify_since_head_when_the_chain_was_cut_or_the_portfolio_is_gone_then_it_is_found(old: Old) -> None:
    ahead = old.ledger.verify(since={"main": (old.last + 5, "0" * 64)})
    assert ahead.first is not None
    assert ahead.first.seq == old.last + 5
    gone = old.ledger.verify(since={"lost": (3, "0" * 64)})
    assert [(finding.portfolio, finding.seq) for finding in gone.findings] == [("lost", 3)]


@pytest.mark.parametrize("cut", [500, 1024, 1025])
def test_archive_when_it_ends_within_a_block_then_filters_still_find_what_left(
    database_url: str, clock: FakeClock, tmp_path: Path, cut: int
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.submit(
            [
                Reserve(key=f"n{n}", tags={"symbol": "RARE" if n in (10, 1020) else "S"}, min_notional_usd=D(10**6))
                for n in range(cut)
            ]
        )
        clock.advance(MONTHS.total_seconds())
        assert ledger.archive(clock() - timedelta(days=31), tmp_path).decisions == cut
        ledger.submit([Reserve(key=f"m{n}", tags={"symbol": "T"}, min_notional_usd=D(10**6)) for n in range(1100)])
        assert [d.key for d in ledger.history(symbol="RARE")] == (["n1020", "n10"] if cut > 1020 else ["n10"])
        assert_verified(ledger)
