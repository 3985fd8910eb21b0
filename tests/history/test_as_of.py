"""Exposure as of a past moment, rare decisions in a long history, and exports whose hashes can be checked."""

from __future__ import annotations

import csv
import inspect
import io
import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from ledger_sizer import Decision, Exposure, InvalidRequest, Ledger, NotFound, Reserve
from ledger_sizer.api.reads import DecisionFilters
from ledger_sizer.cli import run
from ledger_sizer.cli.queries import history as history_command
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.decisions import GENESIS_HASH, canonical_text, chain_hash
from ledger_sizer.model.domain import HistoryFilters
from ledger_sizer.storage.database import upgrade
from ledger_sizer.views import queries
from ledger_sizer.wire.export import csv_lines, ndjson_lines
from ledger_sizer.wire.responses import decision_from_json, decision_to_json
from tests.conftest import NewDatabase
from tests.support.clock import START, FakeClock
from tests.support.histories import matches, trade_at_random, without_legs
from tests.support.ledgers import Intruder, assert_verified, dynamic_settings, opened, reserve_btc, steady
from tests.support.old_ledgers import downgrade_as_old
from tests.support.services import eventually, serving

D = Decimal


# --- exposure as of a past moment --------------------------------------------------------------------------------


@settings(steady, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_read_exposure_as_of_when_any_commands_ran_then_it_is_what_stood_then(
    seed: int, module_database: NewDatabase
) -> None:
    """Commands run one by one. The counters right after each must equal the exposure as of its decision later."""
    check_exposure_as_of(module_database("sqlite"), seed)


@pytest.mark.extended
@pytest.mark.timeout(1200)
@settings(steady, max_examples=80)
@given(seed=st.integers(0, 10**6))
def test_read_exposure_as_of_when_very_many_commands_ran_then_it_is_what_stood_then(
    seed: int, module_database: NewDatabase
) -> None:
    check_exposure_as_of(module_database("sqlite"), seed)


def check_exposure_as_of(url: str, seed: int) -> None:
    clock = FakeClock()
    seen: dict[int, Exposure] = {}
    with opened(url, clock) as ledger:
        run_one = ledger.run

        def run_and_look(command: Any) -> Decision:
            decision = run_one(command)
            now = ledger.exposure()
            seen[now.seq] = now
            return decision

        ledger.run = run_and_look  # type: ignore[method-assign]
        ledger.reserve(key="first")
        trade_at_random(ledger, clock, 25, seed)
        for seq, exposure in seen.items():
            assert ledger.exposure(as_of=seq) == exposure
        last = ledger.exposure()
        assert ledger.exposure(as_of=clock() + timedelta(days=1)) == last


def test_read_exposure_as_of_when_a_time_is_given_then_the_last_decision_by_then_counts(
    ledger: Ledger, clock: FakeClock
) -> None:
    trade_at_random(ledger, clock, 80, seed=2)
    decisions = [*ledger.history(limit=1000)]
    for decision in decisions[::7]:
        at = ledger.exposure(as_of=decision.decided_at)
        assert at.seq == max(d.seq or 0 for d in decisions if d.decided_at <= decision.decided_at)
        assert at == ledger.exposure(as_of=at.seq)


def test_read_exposure_as_of_when_there_was_nothing_yet_then_it_says_so(ledger: Ledger) -> None:
    for moment in (START - timedelta(seconds=1), 2, 10**17):
        with pytest.raises(NotFound, match="at or before"):
            ledger.exposure(as_of=moment)
    for bad in (0, -1, True, "1", START.replace(tzinfo=None)):
        with pytest.raises(InvalidRequest, match="as_of"):
            ledger.exposure(as_of=bad)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="nowhere"):
        ledger.exposure("nowhere", as_of=1)


# --- rare decisions in a long history ----------------------------------------------------------------------------


@pytest.fixture
def long(ledger: Ledger) -> Ledger:
    """More than three full facet blocks of denials, with rare tags at the edges of blocks and in the middle."""
    ledger.set_cap(key="none", cap=D(0))
    dull = [Reserve(key=f"d{n}", tags={"symbol": f"S{n % 3}"}) for n in range(3600)]
    rare = {0, 500, 1020, 1021, 1022, 1023, 2045, 2046, 3069, 3500}
    for n in rare:
        dull[n] = Reserve(key=f"rare{n}", tags={"symbol": "RARE", "strategy": "a\"b,'c"})
    for n in (7, 700, 1024, 2047, 3550):
        dull[n] = Reserve(key=f"among{n}", tags={"symbol": ["AMONG", "é"], "strategy": ["RARE", "S2", "zz"]})
    ledger.submit(dull)
    ledger.halt(key="halt")
    ledger.reserve(key="halted", tags={"symbol": "S1"})
    return ledger


FILTERS: list[dict[str, Any]] = [
    {"symbol": "RARE"},
    {"symbol": "rare"},
    {"strategy": "a\"b,'c"},
    {"symbol": "S1", "reason": "halted"},
    {"command": "halt"},
    {"outcome": "applied"},
    {"symbol": "S2", "outcome": "denied", "command": "reserve"},
    {"reason": "reducing"},
    {"symbol": "AMONG"},
    {"symbol": "é"},
    {"symbol": "e\u0301"},
    {"symbol": "zz"},
    {"strategy": "RARE"},
    {"strategy": "S2", "symbol": "é", "reason": "cap_exceeded"},
    {"command": "reserve", "symbol": "RARE", "strategy": "a\"b,'c", "reason": "cap_exceeded"},
]


@pytest.mark.parametrize("ascending", [False, True])
def test_list_history_when_it_is_long_then_every_filter_equals_a_plain_scan(long: Ledger, ascending: bool) -> None:
    everything: list[Decision] = []
    cursor = None
    while True:
        page = long.history(limit=1000, cursor=cursor, ascending=ascending)
        everything += page
        if (cursor := page.cursor) is None:
            break
    assert [d.seq for d in everything][:: 1 if ascending else -1] == list(range(1, long.exposure().seq + 1))
    for filters in FILTERS:
        for limit in (3, 1000):
            found: list[Decision] = []
            cursor = None
            while True:
                page = long.history(limit=limit, cursor=cursor, ascending=ascending, **filters)
                found += page
                if (cursor := page.cursor) is None or len(found) > 2500:
                    break
            expected = [d for d in everything if matches(d, filters)]
            assert found == expected[: len(found)]
            assert cursor is not None or len(found) == len(expected), filters


def test_list_history_when_decisions_come_in_between_pages_then_the_cursor_stays_right(long: Ledger) -> None:
    first = long.history(symbol="RARE", limit=4)
    long.submit([Reserve(key=f"more{n}", tags={"symbol": "RARE"}) for n in range(600)])
    rest = long.history(symbol="RARE", cursor=first.cursor)
    keys = [decision.key for decision in (*first, *rest)]
    assert keys == [f"rare{n}" for n in (3500, 3069, 2046, 2045, 1023, 1022, 1021, 1020, 500, 0)]


def test_verify_when_facets_were_removed_so_that_filters_miss_decisions_then_it_is_found(
    long: Ledger, database_url: str
) -> None:
    assert_verified(long)
    with Intruder(database_url) as intruder:
        intruder.run("DELETE FROM facet_blocks WHERE block = 2")
    first = long.verify().first
    assert first is not None
    assert (first.seq, "history cannot find" in first.what) == (1025, True)


@pytest.mark.parametrize("engine_kind", ["sqlite", "postgresql"], indirect=True)
def test_upgrade_database_when_it_has_a_long_history_then_its_facets_are_noted(
    empty_database_url: str, clock: FakeClock
) -> None:
    upgrade(empty_database_url)
    with opened(empty_database_url, clock) as ledger:
        ledger.submit(
            [Reserve(key=f"n{n}", tags={"symbol": f"S{n % 5}"}, min_notional_usd=D(10**6)) for n in range(2100)]
        )
    downgrade_as_old(empty_database_url, "0004")
    upgrade(empty_database_url)
    with opened(empty_database_url, clock) as ledger:
        assert_verified(ledger)
        assert len(ledger.history(symbol="S3", limit=1000)) == 420


# --- exports -----------------------------------------------------------------------------------------------------


def test_export_history_when_read_back_then_the_hashes_are_reproduced(ledger: Ledger, clock: FakeClock) -> None:
    trade_at_random(ledger, clock, 150, seed=4)
    decisions = [*ledger.history(limit=1000, ascending=True)]
    lines = ndjson_lines(full=True)(d.record for d in decisions).decode().splitlines()
    rows = list(csv.DictReader(io.StringIO(csv_lines(full=True)(d.record for d in decisions).decode(), newline="")))
    previous = GENESIS_HASH
    for line, row, decision in zip(lines, rows, decisions, strict=True):
        form = json.loads(line)
        imported = decision_from_json(form).record
        assert imported == decision.record
        assert chain_hash(previous, canonical_text(imported)) == imported.hash
        previous = imported.hash
        cells = {**form, "until_known": "true" if form["until_known"] else None}
        assert row == {name: "" if cells[name] is None else str(cells[name]) for name in row}


def test_export_history_when_it_is_longer_than_a_block_then_it_is_what_the_pages_are(
    long: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "BLOCK_RECORDS", 700)
    newest = [*long.history(limit=1000), *long.history(limit=1000, cursor=str((long.exposure().seq or 0) - 999))]
    parts = [*long.export(form="ndjson", full=False)]
    assert len(parts) > 3
    lines = b"".join(parts).splitlines()
    expected = [without_legs(decision_to_json(decision)) for decision in newest]
    assert [json.loads(line) for line in lines[:2000]] == expected
    assert len(lines) == long.exposure().seq
    rare = [decision.record for decision in long.history(symbol="RARE", ascending=True)]
    assert b"".join(long.export(form="csv", symbol="RARE", ascending=True)) == csv_lines(full=True)(rare)
    assert b"".join(long.export(symbol="NOBODY")) == b""
    with pytest.raises(InvalidRequest, match="form must be one of"):
        long.export(form="xml")  # type: ignore[arg-type]


def test_filter_history_when_asked_on_any_face_then_each_has_every_filter() -> None:
    known = set(HistoryFilters.__annotations__)
    assert known <= DecisionFilters.model_fields.keys()
    assert known <= inspect.signature(history_command).parameters.keys()
    for read in (Ledger.history, Ledger.export, queries.Queries.history):
        assert inspect.signature(read).parameters["filters"].annotation == Unpack[HistoryFilters]
    with pytest.raises(TypeError, match="cannot be filtered by 'venue'"):
        LedgerClient().history(venue="bybit")  # type: ignore[call-arg]


def test_filter_history_when_a_filter_is_unknown_then_it_is_not_ignored(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="cannot be filtered by 'venue'"):
        ledger.history(venue="bybit")  # type: ignore[call-arg]


@pytest.mark.parametrize("text", ["a,b", 'say "no"', "a'b", "ü€", "dot · dash", "x" * 100])
def test_export_csv_when_a_key_needs_quoting_then_it_reads_back(ledger: Ledger, text: str) -> None:
    ledger.reserve(key=text, tags={"symbol": text})
    decision = ledger.history(limit=1)[0]
    (row,) = csv.DictReader(io.StringIO(csv_lines(full=True)([decision.record]).decode(), newline=""))
    assert (row["key"], row["tags"], row["request"]) == (text, decision.record.tags, decision.request)


@pytest.mark.parametrize("full", [False, True])
def test_export_ndjson_when_texts_need_escaping_then_lines_are_those_of_the_encoder(
    ledger: Ledger, clock: FakeClock, full: bool
) -> None:
    trade_at_random(ledger, clock, 150, seed=5)
    records = [decision.record for decision in ledger.history(limit=1000)]
    hostile = 'say "no" \\ \b\f\n\r\t\x01\x1f\x7f ü€\u2028 😀'
    texts = [name for name, value in records[0]._asdict().items() if name != "seq" and isinstance(value, str)]
    records.append(records[0]._replace(**dict.fromkeys([*texts, "reason", "binding", "quantity", "tags"], hostile)))
    expected = []
    for record in records:
        told = ("tags", "request", "trace") if full else ("request",) if record.command == "remark" else ()
        as_texts = {name: getattr(record, name) for name in told}
        expected.append(to_json(without_legs({**decision_to_json(record.decision(), full=full), **as_texts})) + b"\n")
    assert ndjson_lines(full=full)(records) == b"".join(expected)


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_export_history_when_asked_on_the_command_line_then_all_of_it_is_written(
    new_database: NewDatabase, clock: FakeClock, kind: str, tmp_path: Path
) -> None:
    url = new_database("sqlite")
    with opened(url, clock) as ledger:
        ledger.submit([Reserve(key=f"n{n}", min_notional_usd=D(10**6)) for n in range(1300)])
        decisions = [*ledger.history(limit=1000), *ledger.history(limit=1000, cursor="301")]
    lines = csv_lines(full=True) if kind == "csv" else ndjson_lines(full=True)
    expected = lines(d.record for d in decisions).decode()
    target = tmp_path / f"history.{kind}"
    assert run(["history", "--export", kind, "--out", str(target), "--database-url", url]) == 0
    assert target.read_bytes().decode() == expected
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_explain_reservation_when_a_cap_bound_it_then_the_largest_size_and_the_settings_are_named(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock, dynamic_settings()) as ledger:
        ledger.set_cap(key="cap", scope="venue=bybit", cap=D(400))
        small = ledger.explain(reserve_btc(ledger, "a", signal_score=D(0)).seq or 0).data
        after = ledger.explain(reserve_btc(ledger, "b", signal_score=D(1)).seq or 0).data
        ledger.halt(key="halt")
        none = ledger.explain(reserve_btc(ledger, "c", signal_score=D(1)).seq or 0).data
    assert small["largest_grantable"] == {"budget": "400", "quantity": "0.008", "binding": "venue=bybit"}
    assert after["largest_grantable"] == {"budget": "100", "quantity": "0.002", "binding": "venue=bybit"}
    assert none["largest_grantable"] == {"budget": "0", "quantity": None, "binding": "portfolio"}
    assert [(step["step"], step["value"]) for step in small["steps"]] == [("fraction", "0.3"), ("raw_budget", "300")]
    assert small["settings_version"] == after["settings_version"]
    with opened(database_url, clock, dynamic_settings(min_allocation_fraction=D("0.4"))) as ledger:
        ledger.resume(key="resume")
        other = ledger.explain(reserve_btc(ledger, "d", signal_score=D(0)).seq or 0).data
    assert other["settings_version"] != small["settings_version"]


def test_explain_reservation_when_a_spot_fee_is_paid_in_base_then_the_largest_quantity_leaves_room_for_it(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        granted = reserve_btc(ledger, "flat", spot_fee_rate=D("0.01"))
        largest = ledger.explain(granted.seq or 0).data["largest_grantable"]
    assert largest == {"budget": "950", "quantity": "0.019", "binding": "max_position_size_usd"}
    assert granted.quantity == D("0.019"), "1,000 USD buy 0.02, of which the fee leaves less"


def test_look_back_over_http_when_asked_then_it_is_what_the_ledger_says(database_url: str) -> None:
    with serving(database_url) as service, LedgerClient(service.url) as client:
        ledger = service.ledger
        first = ledger.reserve(key="a", tags={"symbol": "BTC"})
        second = ledger.reserve(key="b", tags={"symbol": "ETH"})
        assert client.heads() == ledger.heads()
        for moment in (1, 2, first.decided_at, second.decided_at):
            assert client.exposure(as_of=moment) == ledger.exposure(as_of=moment)
        assert client.exposure(as_of=1) != client.exposure(as_of=2)
        assert [*client.history(position_id="main-2")] == [second]
        assert service.http.get("/v1/portfolios/main/exposure", params={"as_of": "yesterday"}).status_code == 422


def test_archive_job_when_history_has_the_set_age_then_it_moves(
    database_url: str, clock: FakeClock, tmp_path: Path
) -> None:
    clock.advance(-4000 * 86_400)
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="long ago", ttl_seconds=5)
    more = {"archive_after_days": 31, "archive_interval_seconds": 1, "archive_dir": str(tmp_path)}
    with serving(database_url, jobs=True, ledger=more) as service:
        eventually(lambda: list(tmp_path.glob("main-*.ndjson.gz")))
        assert service.ledger.decision(1).key == "long ago"
        assert_verified(service.ledger)
