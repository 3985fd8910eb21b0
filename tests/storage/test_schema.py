"""The database itself refuses a breach of each CHECK and each key, and every change to a final row."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import CheckConstraint
from sqlalchemy.exc import DBAPIError, IntegrityError

import ledger_sizer.storage.tables  # noqa: F401 - it declares them
from ledger_sizer.storage.table_base import Base
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, Intruder, opened

D = Decimal
HASH = "0" * 64
Row = dict[str, Any]

# One legal row of each table. Each case below changes only the columns that it names.
ROWS: dict[str, Row] = {
    "portfolios": {"id": 7, "name": "seven", "last_seq": 0, "last_hash": HASH, "last_us": 0, "created_us": 0},
    "scopes": {"portfolio_id": 7, "scope": "venue=x", "cap_e8": 5, "held_e8": 0, "open_e8": 0, "overage_e8": 0,
               "status": "active", "frozen": 0, "fresh_until_us": None, "guarantee_e8": None, "max_position_e8": None},
    "positions": {"portfolio_id": 7, "number": 1, "state": "held", "tags": "{}", "held_e8": 5, "open_e8": 0,
                  "quantity": None, "price": None, "legs": "[]", "expires_us": 9, "opened_us": 1, "updated_us": 1,
                  "updated_seq": 1, "origin": None},
    "decisions": {"portfolio_id": 7, "seq": 1, "command": "reserve", "key": "k", "outcome": "granted", "reason": None,
                  "position": 1, "tags": "{}", "budget_e8": 5, "quantity": None, "fraction": "1", "raw_budget": "5",
                  "held_delta_e8": 5, "open_delta_e8": 0, "headroom_e8": 9, "exposure_e8": 0, "binding": None,
                  "expires_us": 9, "decided_us": 1, "request": "{}", "trace": "{}", "hash": HASH},
    "api_keys": {"key_id": "a", "name": "bot", "role": "trade", "portfolios": None, "token_hash": HASH,
                 "created_us": 5, "revoked_us": None},
    "archives": {"portfolio_id": 7, "from_seq": 1, "to_seq": 9, "from_us": 1, "to_us": 2, "last_hash": HASH,
                 "positions": 0, "file": "a", "sha256": HASH, "created_us": 3},
    "facets": {"id": 1, "portfolio_id": 7, "tags": "{}", "command": "halt", "outcome": "applied", "reason": ""},
    "facet_blocks": {"facet_id": 1, "block": 1},
    "leases": {"name": "sweep", "owner": "me", "until_us": 5, "epoch": 1},
    "reconciliations": {"id": 1, "portfolio": "seven", "trigger": "start", "outcome": "good", "started_us": 5,
                        "finished_us": 5, "epoch": 1, "fetched": "[]", "found": "{}"},
    "asset_policies": {"id": 8, "portfolio": "seven", "pattern": "okx/main/BNB", "policy": "fees", "actor": "me",
                       "reason": "fees", "decided_us": 5},
    "alerts": {"id": 1, "delivery": "run-1", "body": "{}", "attempts": 0, "due_us": 0},
    "drifts": {"id": 1, "portfolio": "seven", "venue": "bybit", "account": "main", "subject": "BTC/USDT:USDT",
               "side": "long", "kind": "unknown_position", "state": "open", "policy": "alert", "sightings": 1,
               "ledger_quantity": None, "venue_quantity": "1", "excess": "1", "price": None, "detail": "",
               "position": None, "revision": 0, "requested": None, "frozen_scope": None, "first_run": 1,
               "last_run": 1, "opened_us": 1, "updated_us": 1, "ended_us": None, "actor": None, "reason": None},
    "instruments": {"venue": "x", "symbol": "A/USDT", "since_us": 5, "until_us": None, "kind": "spot", "active": True,
                    "rules": "{}", "refused": None},
}  # fmt: skip
OPEN: Row = {"state": "open", "held_e8": 0, "open_e8": 5, "quantity": "1", "price": "1", "expires_us": None}

BREACHES: list[tuple[str, Row]] = [
    ("ck_portfolios_last_seq", {"last_seq": -1}),
    ("ck_scopes_held", {"held_e8": -1}),
    ("ck_scopes_open", {"open_e8": -1}),
    ("ck_scopes_cap", {"cap_e8": -1, "overage_e8": 1}),
    ("ck_scopes_overage", {"cap_e8": None, "overage_e8": -1}),
    ("ck_scopes_within_cap", {"held_e8": 6}),
    ("ck_scopes_within_cap", {"open_e8": 6}),
    ("ck_scopes_within_cap", {"held_e8": 3, "open_e8": 3}),
    ("ck_scopes_within_cap", {"held_e8": 8, "open_e8": 1, "overage_e8": 3}),
    ("ck_scopes_portfolio_capped", {"scope": "portfolio", "cap_e8": None}),
    ("ck_scopes_status", {"status": "stopped"}),
    ("ck_scopes_share", {"share_e8": 0}),
    ("ck_scopes_share", {"share_e8": -1}),
    ("ck_scopes_margin", {"margin_e8": -1}),
    ("ck_scopes_promised", {"promised_e8": -1}),
    ("ck_scopes_status", {"status": ""}),
    ("ck_positions_state", {"state": "lost", "held_e8": 0}),
    ("ck_positions_held", {"held_e8": -5}),
    ("ck_positions_held", {**OPEN, "held_e8": 1}),
    ("ck_positions_held", {**OPEN, "held_e8": -1, "expires_us": 9}),
    ("ck_positions_held", {"state": "closed"}),
    ("ck_positions_held", {"state": "expired"}),
    ("ck_positions_held", {"state": "released"}),
    ("ck_positions_open", {"open_e8": 1}),
    ("ck_positions_open", {"open_e8": -1}),
    ("ck_positions_open", {**OPEN, "open_e8": 0}),
    ("ck_positions_open", {**OPEN, "state": "closed"}),
    ("ck_positions_expires", {"expires_us": None, "held_e8": 0}),
    ("ck_positions_filled", {**OPEN, "quantity": None}),
    ("ck_positions_filled", {**OPEN, "price": None}),
    ("ck_decisions_seq", {"seq": 0}),
    ("ck_decisions_outcome", {"outcome": "maybe"}),
    ("ck_decisions_reason", {"outcome": "denied"}),
    ("ck_decisions_reason", {"reason": "halted"}),
    ("ck_decisions_reason", {"outcome": "applied", "reason": "halted"}),
    ("ck_archives_range", {"to_seq": 0}),
    ("ck_archives_times", {"to_us": 0}),
    ("ck_archives_positions", {"positions": -1}),
    ("ck_archives_sha256", {"sha256": "secret"}),
    ("ck_facet_blocks_block", {"block": 0}),
    ("ck_api_keys_role", {"role": "root"}),
    ("ck_api_keys_token_hash", {"token_hash": "secret"}),
    ("ck_api_keys_revoked", {"revoked_us": 4}),
    ("ck_leases_epoch", {"epoch": 0}),
    ("ck_scopes_frozen", {"frozen": 2}),
    ("ck_scopes_guarantee", {"guarantee_e8": -1}),
    ("ck_scopes_max_position", {"max_position_e8": 0}),
    ("ck_reconciliations_outcome", {"outcome": "fine"}),
    ("ck_reconciliations_finished", {"finished_us": 4}),
    ("ck_alerts_attempts", {"attempts": -1}),
    ("ck_asset_policies_policy", {"policy": "hope"}),
    ("ck_drifts_state", {"state": "gone"}),
    ("ck_drifts_ended", {"ended_us": 9}),
    ("ck_drifts_ended", {"state": "resolved"}),
    ("ck_drifts_acknowledged", {"state": "acknowledged", "actor": "me"}),
    ("ck_drifts_sightings", {"sightings": 0}),
    ("ck_instruments_kind", {"kind": "option"}),
    ("ck_instruments_refused", {"refused": "inverse"}),
    ("ck_instruments_refused", {"rules": None}),
    ("ck_instruments_until", {"until_us": 5}),
]  # fmt: skip
LEGAL: list[tuple[str, Row]] = [
    ("scopes", {"held_e8": 3, "open_e8": 2}),
    ("scopes", {"held_e8": 8, "open_e8": 1, "overage_e8": 4}),
    ("scopes", {"cap_e8": None, "held_e8": 8}),
    ("scopes", {"scope": "portfolio", "status": "halted"}),
    ("positions", OPEN),
    ("positions", {**OPEN, "held_e8": 1, "expires_us": 9}),
    ("positions", {**OPEN, "expires_us": 9}),
    ("positions", {"held_e8": 0}),
    ("positions", {"state": "closed", "held_e8": 0}),
    ("positions", {"state": "released", "held_e8": 0}),
    ("positions", {"state": "expired", "held_e8": 0}),
    ("decisions", {"outcome": "denied", "reason": "halted"}),
    ("decisions", {"outcome": "applied"}),
    ("api_keys", {"revoked_us": 5}),
    ("scopes", {"frozen": 1, "fresh_until_us": 5, "guarantee_e8": 0, "max_position_e8": 1}),
    ("drifts", {"state": "acknowledged", "actor": "me", "reason": "known"}),
    ("drifts", {"state": "resolved", "ended_us": 9}),
]


@pytest.fixture
def intruder(database_url: str) -> Iterator[Intruder]:
    """A database client on a migrated database without rows but one portfolio, `seven`."""
    with Intruder(database_url) as intruder:
        insert(intruder, "portfolios", ROWS["portfolios"])
        yield intruder


def insert(intruder: Intruder, table: str, row: Row, *, how: str = "INSERT") -> None:
    marks = ", ".join(f":{name}" for name in row)
    intruder.run(f"{how} INTO {table} ({', '.join(row)}) VALUES ({marks})", **row)


def own_row(table: str) -> Row:
    """Return a legal row that does not clash with the portfolio in the fixture."""
    return ROWS[table] | ({"id": 8, "name": "eight"} if table == "portfolios" else {})


def table_of(check: str) -> str:
    return next(table for table in ROWS if check.startswith(f"ck_{table}_"))


def test_list_breaches_when_a_check_is_added_then_a_breach_of_it_is_tested() -> None:
    checks = {
        str(part.name)
        for table in Base.metadata.tables.values()
        for part in table.constraints
        if isinstance(part, CheckConstraint)
    }
    assert checks == {check for check, _ in BREACHES}
    assert set(ROWS) == set(Base.metadata.tables)


@pytest.mark.parametrize(("table", "changed"), [*((table, {}) for table in ROWS), *LEGAL])
def test_insert_row_when_it_is_legal_then_the_database_takes_it(intruder: Intruder, table: str, changed: Row) -> None:
    insert(intruder, table, own_row(table) | changed)


@pytest.mark.parametrize(("check", "changed"), BREACHES)
def test_insert_row_when_it_breaches_a_check_then_the_database_refuses_it_by_name(
    intruder: Intruder, check: str, changed: Row
) -> None:
    table = table_of(check)
    with pytest.raises(IntegrityError, match=check):
        insert(intruder, table, own_row(table) | changed)


@pytest.mark.parametrize(
    ("check", "changed"),
    [(check, changed) for check, changed in BREACHES if table_of(check) in ("scopes", "portfolios", "positions")],
)
def test_update_row_when_it_breaches_a_check_then_the_database_refuses_it_by_name(
    intruder: Intruder, check: str, changed: Row
) -> None:
    table = table_of(check)
    row = own_row(table)
    insert(intruder, table, row)
    assignments = ", ".join(f"{name} = :{name}" for name in changed)
    keys = [column.name for column in Base.metadata.tables[table].primary_key.columns]
    where = " AND ".join(f"{name} = :key_{name}" for name in keys)
    with pytest.raises(IntegrityError, match=check):
        intruder.run(f"UPDATE {table} SET {assignments} WHERE {where}", **changed, **{f"key_{n}": row[n] for n in keys})


WHOLE_NUMBERS = {"portfolios": ("last_seq", "last_us", "created_us"),
                 "scopes": ("cap_e8", "held_e8", "open_e8", "overage_e8", "fresh_until_us", "guarantee_e8",
                            "max_position_e8", "share_e8", "since_seq", "free_e8", "margin_e8",
                            "promised_e8")}  # fmt: skip
TEXTS = {"portfolios": ("name", "last_hash"), "scopes": ("scope", "frozen_note")}
OF_ANOTHER_TYPE = [
    *((table, name, value) for table, names in WHOLE_NUMBERS.items() for name in names
      for value in ("9x", "", b"9", 500000000000.5)),
    *((table, name, b"main") for table, names in TEXTS.items() for name in names),
]  # fmt: skip
MOVED_BY_EVERY_BATCH = {"last_seq", "last_us", "last_hash", "held_e8", "open_e8", "overage_e8", "promised_e8"}


@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("table", "name", "value"), OF_ANOTHER_TYPE)
def test_change_row_when_a_value_is_of_another_type_then_sqlite_refuses_it_too(
    intruder: Intruder, table: str, name: str, value: object
) -> None:
    row = own_row(table) | ({"cap_e8": None} if table == "scopes" else {})
    with pytest.raises(IntegrityError, match="not of its column's type"):
        insert(intruder, table, row | {name: value})
    with pytest.raises(IntegrityError, match="not of its column's type"):
        insert(intruder, table, row | {name: value}, how="INSERT OR REPLACE")
    insert(intruder, table, row)
    if name not in MOVED_BY_EVERY_BATCH:
        with pytest.raises(IntegrityError, match="not of its column's type"):
            intruder.run(f"UPDATE {table} SET {name} = :value", value=value)


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ("portfolios", {"id": 9, "name": "seven"}),
        ("portfolios", {"id": 7, "name": "nine"}),
        ("scopes", {}),
        ("positions", {}),
        ("decisions", {"key": "other"}),
        ("decisions", {"seq": 2}),
    ],
)
def test_insert_row_when_its_key_is_taken_then_the_database_refuses_it(
    intruder: Intruder, table: str, changed: Row
) -> None:
    if table != "portfolios":
        insert(intruder, table, ROWS[table])
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        insert(intruder, table, ROWS[table] | changed)


def test_insert_position_when_a_late_fill_is_recorded_already_then_the_database_refuses_another(
    intruder: Intruder,
) -> None:
    insert(intruder, "positions", ROWS["positions"] | OPEN | {"number": 2, "origin": 1})
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        insert(intruder, "positions", ROWS["positions"] | OPEN | {"number": 3, "origin": 1})
    for number in (4, 5):
        insert(intruder, "positions", ROWS["positions"] | OPEN | {"number": number, "origin": None})


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (table.name, column.name)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if not column.nullable and column.name != "id" and column.server_default is None
    ],
)
def test_insert_row_when_something_required_is_missing_then_the_database_refuses_it(
    intruder: Intruder, table: str, name: str
) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)not null|not-null"):
        insert(intruder, table, own_row(table) | {name: None})


# --- what is final -----------------------------------------------------------------------------------------------


@pytest.fixture
def final(database_url: str, clock: FakeClock) -> Iterator[Intruder]:
    """Beside a ledger with main-1 closed, main-2 released, main-3 expired, main-4 held, main-5 open."""
    with opened(database_url, clock) as ledger, Intruder(database_url) as intruder:
        for n in range(1, 6):
            ledger.reserve(key=f"{n}", tags=TAGS, ttl_seconds=10 if n == 3 else 600)
        for n in (1, 5):
            ledger.confirm(key=f"c{n}", position_id=f"main-{n}", quantity=D(1), price=D(10))
        ledger.release(key="r1", position_id="main-1")
        ledger.release(key="r2", position_id="main-2")
        clock.advance(10)
        ledger.sweep()
        yield intruder


def test_change_decision_when_it_stands_then_the_database_refuses_it(final: Intruder) -> None:
    before = final.rows("SELECT * FROM decisions ORDER BY seq")
    columns = Base.metadata.tables["decisions"].columns
    for statement in (
        *(f"UPDATE decisions SET {column.name} = {column.name}" for column in columns),
        "UPDATE decisions SET hash = 'x' WHERE seq = 1",
        "DELETE FROM decisions",
        "DELETE FROM decisions WHERE seq = 3",
    ):
        with pytest.raises(DBAPIError, match="decisions are append-only"):
            final.run(statement)
    assert final.rows("SELECT * FROM decisions ORDER BY seq") == before


@pytest.mark.parametrize("table", ["decisions", "positions"])
def test_replace_row_when_it_stands_then_the_database_refuses_it(final: Intruder, table: str) -> None:
    """`INSERT OR REPLACE` deletes the existing row, and SQLite by default runs no DELETE trigger for that."""
    columns = [column.name for column in Base.metadata.tables[table].columns]
    keys = [column.name for column in Base.metadata.tables[table].primary_key.columns]
    copied = ", ".join(columns)
    edited = ", ".join(f'\'{{"a":"b"}}\' AS {name}' if name == "tags" else name for name in columns)
    before = final.rows(f"SELECT {copied} FROM {table} ORDER BY {', '.join(keys)}")
    if final.dialect == "sqlite":
        statement = f"INSERT OR REPLACE INTO {table} ({copied}) SELECT {edited} FROM {table} WHERE {keys[1]} = 1"
    else:
        statement = (
            f"INSERT INTO {table} ({copied}) SELECT {edited} FROM {table} WHERE {keys[1]} = 1 "
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET tags = excluded.tags"
        )
    with pytest.raises(DBAPIError, match=r"append-only|final|kept"):
        final.run(statement)
    assert final.rows(f"SELECT {copied} FROM {table} ORDER BY {', '.join(keys)}") == before


@pytest.mark.parametrize("table", ["decisions", "positions"])
@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_truncate_table_when_it_holds_what_is_kept_then_the_database_refuses_it(final: Intruder, table: str) -> None:
    with pytest.raises(DBAPIError, match=r"append-only|kept"):
        final.run(f"TRUNCATE {table} CASCADE")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_update_position_when_it_is_final_then_the_database_refuses_it(final: Intruder, number: int) -> None:
    for column in Base.metadata.tables["positions"].columns:
        with pytest.raises(DBAPIError, match="the position is final"):
            final.run(f"UPDATE positions SET {column.name} = {column.name} WHERE number = :number", number=number)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_delete_position_when_it_was_ever_there_then_the_database_refuses_it(final: Intruder, number: int) -> None:
    with pytest.raises(DBAPIError, match="positions are kept"):
        final.run("DELETE FROM positions WHERE number = :number", number=number)


@pytest.mark.parametrize("number", [4, 5])
def test_update_position_when_it_is_live_then_the_database_allows_it(final: Intruder, number: int) -> None:
    assert final.run("UPDATE positions SET updated_us = updated_us WHERE number = :number", number=number) == 1
