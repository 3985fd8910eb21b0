"""Positions that fill in parts, looked back at: as of any decision, in archive files, in copies and in exports."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import Decision, Exposure, Ledger, Position
from ledger_sizer.cli import run
from ledger_sizer.history import archiver
from ledger_sizer.history.backup import copy_ledger
from ledger_sizer.model.decisions import GENESIS_HASH, canonical_text, chain_hash
from ledger_sizer.storage.database import make_engine
from ledger_sizer.wire.responses import decision_from_json, decision_to_json
from tests.conftest import NewDatabase
from tests.history.test_archive import rewritten
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS
from tests.support.edited_ledgers import without_schema
from tests.support.histories import without_legs
from tests.support.ledgers import Intruder, assert_verified, dynamic_settings, opened
from tests.support.lives import live_through_fills


@dataclass
class Lived:
    """A ledger that lived through fills. seen: its exposure right after each command, by seq."""

    ledger: Ledger
    url: str
    clock: FakeClock
    seen: dict[int, Exposure]
    decisions: list[Decision]
    positions: dict[str, Position]

    @property
    def ended(self) -> list[Position]:
        return [one for one in self.positions.values() if not one.live]


@pytest.fixture
def lived(database_url: str, clock: FakeClock) -> Iterator[Lived]:
    seen: dict[int, Exposure] = {}
    with Ledger.open(database_url, settings=dynamic_settings(), clock=clock) as ledger:
        run_one = ledger.run

        def run_and_look(command: Any) -> Decision:
            decision = run_one(command)
            now = ledger.exposure("main")
            seen[now.seq] = now
            return decision

        ledger.run = run_and_look  # type: ignore[method-assign]
        live_through_fills(ledger, clock)
        for number in (1, 19, 31, 34):  # so that positions with fills end, and go into files
            ledger.release(key=f"end {number}", position_id=f"main-{number}", reference=f"exit {number}")
        ledger.run = run_one  # type: ignore[method-assign]
        decisions = [*ledger.history("main", limit=1000, ascending=True)]
        positions = {one.position_id: one for one in ledger.positions("main", limit=1000)}
        yield Lived(ledger, database_url, clock, seen, decisions, positions)


def test_look_back_when_positions_moved_to_other_scopes_then_each_counts_where_it_did_then(lived: Lived) -> None:
    assert len(lived.seen) > 40
    for seq, exposure in lived.seen.items():
        assert lived.ledger.exposure("main", as_of=seq) == exposure
    assert_verified(lived.ledger)
    tags = next(one.seq for one in lived.decisions if one.key == "tags")
    assert tags is not None
    before, after = lived.ledger.exposure("main", as_of=tags - 1), lived.ledger.exposure("main", as_of=tags)
    assert (before.scope("desk=x").exposure, after.scope("desk=x").exposure) == (0, 1051)
    assert (before.scope("strategy=funding").exposure, after.scope("strategy=funding").exposure) == (1051, 0)


def test_archive_when_positions_filled_in_parts_then_nothing_is_lost(
    lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_database: NewDatabase, engine_kind: str
) -> None:
    monkeypatch.setattr(archiver, "DECISIONS_MAX", 16)
    ledger, report = lived.ledger, lived.ledger.verify()
    explained = [ledger.explain(one.seq or 0).text for one in lived.decisions]
    lived.clock.advance(timedelta(days=60).total_seconds())
    moved = ledger.archive(lived.clock() - timedelta(days=31), tmp_path)
    assert moved.decisions == len(lived.decisions)
    assert moved.positions == len(lived.ended)
    assert {one.state for one in lived.ended} == {"closed", "released", "expired"}
    assert any(one.fills for one in lived.ended)
    assert any(one.reference for one in lived.ended)
    assert [*ledger.history("main", limit=1000, ascending=True)] == lived.decisions
    assert {name: ledger.position(name) for name in lived.positions} == lived.positions
    assert [ledger.explain(one.seq or 0).text for one in lived.decisions] == explained
    for seq, exposure in lived.seen.items():
        assert ledger.exposure("main", as_of=seq) == exposure
    assert (ledger.verify().ok, ledger.verify().decisions) == (True, report.decisions)
    for command in ("fill", "retag", "reprice"):
        expected = [one for one in lived.decisions if one.command == command]
        assert [*ledger.history("main", command=command, ascending=True)] == expected
    target = new_database(engine_kind)
    assert run(["db", "copy", lived.url, target, "--restore-archives"]) == 0
    with opened(target, lived.clock, dynamic_settings()) as restored:
        assert {one.position_id: one for one in restored.positions("main", limit=1000)} == lived.positions
        assert_verified(restored)


@pytest.mark.parametrize("column", ["fills", "reference", "legs", "tags"])
def test_verify_when_an_archived_position_was_changed_then_its_decision_is_named(
    lived: Lived, tmp_path: Path, column: str
) -> None:
    """Also where the attacker rewrites the manifest's checksum, with the database's triggers removed."""
    lived.clock.advance(timedelta(days=60).total_seconds())
    (path,) = lived.ledger.archive(lived.clock() - timedelta(days=31), tmp_path).files
    changed: list[int] = []

    def edit(lines: list[dict[str, Any]]) -> None:
        row = next(line["position"] for line in lines if line.get("position", {}).get(column) not in (None, "[]", "{}"))
        changed.append(row["updated_seq"])
        row[column] = row[column].replace("1", "2", 1) if "1" in row[column] else f"{row[column]} "

    with Intruder(lived.url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE archives SET sha256 = :sha", sha=rewritten(path, edit))
    assert changed[0] in {finding.seq for finding in without_schema(lived.ledger.verify()).findings}


def test_read_archive_when_its_positions_lack_the_new_columns_then_they_are_as_they_were(
    ledger: Ledger, database_url: str, clock: FakeClock, tmp_path: Path
) -> None:
    """As files of versions before have them."""
    held = ledger.reserve(key="old", tags={"venue": "okx"}, ttl_seconds=5)
    ledger.release(key="end", position_id=held.position_id or "")
    known = ledger.position(held.position_id or "")
    clock.advance(timedelta(days=60).total_seconds())
    (path,) = ledger.archive(clock() - timedelta(days=31), tmp_path).files
    content = gzip.decompress(path.read_bytes())
    assert b'"fills":null,"reference":null' in content

    def forget(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            for name in ("fills", "reference"):
                line.get("position", {}).pop(name, None)

    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        intruder.run("UPDATE archives SET sha256 = :sha", sha=rewritten(path, forget))
    assert ledger.position(known.position_id) == known
    assert without_schema(ledger.verify()).ok


@pytest.mark.parametrize("to", ENGINE_KINDS)
def test_copy_ledger_when_positions_fill_in_parts_then_nothing_differs(
    lived: Lived, to: str, new_database: NewDatabase
) -> None:
    target = new_database(to)
    reads, writes = make_engine(lived.url, read_only=True), make_engine(target)
    copy_ledger(reads, writes)
    reads.dispose()
    writes.dispose()
    with opened(target, lived.clock, dynamic_settings()) as copy:
        assert_verified(copy)
        assert copy.heads() == lived.ledger.heads()
        assert {one.position_id: one for one in copy.positions("main", limit=1000)} == lived.positions
        assert copy.lookup("fill", "main") == lived.ledger.lookup("fill", "main")


def test_export_history_when_holds_never_end_then_every_line_reads_back_to_its_hash(lived: Lived) -> None:
    lines = b"".join(lived.ledger.export("main", ascending=True)).splitlines()
    sheet = b"".join(lived.ledger.export("main", form="csv", ascending=True)).decode()
    rows = list(csv.DictReader(io.StringIO(sheet, newline="")))
    previous = GENESIS_HASH
    for line, row, decision in zip(lines, rows, lived.decisions, strict=True):
        form = json.loads(line)
        texts = {name: getattr(decision.record, name) for name in ("tags", "request", "trace")}
        assert form == without_legs({**decision_to_json(decision, full=True), **texts})
        of_row: dict[str, Any] = {name: cell.removeprefix("'") or None for name, cell in row.items()}
        for read in (form, {**of_row, "seq": int(row["seq"]), "replayed": False}):
            imported = decision_from_json(read)
            assert imported.record == decision.record
            assert (imported.legs, imported.until_known) == (decision.legs, decision.until_known)
            assert chain_hash(previous, canonical_text(imported.record)) == decision.hash
        previous = decision.hash or ""
    assert {row["until_known"] for row in rows} == {"", "true"}


def test_export_history_when_it_is_short_then_a_line_is_what_http_tells(lived: Lived) -> None:
    lines = b"".join(lived.ledger.export("main", full=False, ascending=True)).splitlines()
    assert [json.loads(line) for line in lines] == [without_legs(decision_to_json(one)) for one in lived.decisions]
