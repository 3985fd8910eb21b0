"""Somebody removes what guards the rows: `verify` names each object that is not as the migrations made it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import make_url

from ledger_sizer import Ledger
from ledger_sizer.storage.database import SCHEMA_HEAD, make_engine
from ledger_sizer.verify.schema import EXPECTED_FILE, SCHEMA, read_schema
from tests.conftest import EngineKind
from tests.support.ledgers import TAGS, Intruder


@pytest.fixture
def intruder(database_url: str) -> Iterator[Intruder]:
    with Ledger.open(database_url) as ledger:
        ledger.reserve(key="1", tags=TAGS)
    with Intruder(database_url) as intruder:
        yield intruder


def findings(url: str) -> list[str]:
    with Ledger.open(url) as ledger:
        found = ledger.verify().findings
        assert ledger.verify(since=ledger.heads()).findings == found, "a trusted head does not vouch for the schema"
    assert all((finding.portfolio, finding.seq) == (SCHEMA, None) for finding in found)
    return [finding.what for finding in found]


def test_expected_schema_when_migrated_then_the_file_is_what_the_migrations_make(
    database_url: str, engine_kind: EngineKind
) -> None:
    engine = make_engine(database_url, read_only=True)
    with engine.begin() as connection:
        found = read_schema(connection)
    engine.dispose()
    expected = json.loads(EXPECTED_FILE.read_text())[engine_kind]
    assert found == expected, "scripts/schema_snapshot.py writes it anew"
    for kind, least in (("column", 80), ("constraint", 40), ("index", 9), ("trigger", 11)):
        assert sum(name.startswith(f"{kind} ") for name in found) >= least


def test_verify_when_any_trigger_is_dropped_then_it_is_named(
    database_url: str, engine_kind: EngineKind, intruder: Intruder
) -> None:
    names = [name for name in json.loads(EXPECTED_FILE.read_text())[engine_kind] if name.startswith("trigger ")]
    for name in names:
        _, trigger, _, table = name.split()
        intruder.run(f"DROP TRIGGER {trigger}" + (f" ON {table}" if engine_kind == "postgresql" else ""))
    assert findings(database_url) == [f"the {name} is missing" for name in names]


@pytest.mark.parametrize(
    "index", ["uq_decisions_portfolio_id_key", "uq_positions_live_origin", "ix_positions_origin", "ix_positions_expiry"]
)
def test_verify_when_an_index_is_dropped_then_it_is_named(database_url: str, intruder: Intruder, index: str) -> None:
    intruder.run(f"DROP INDEX {index}")
    assert [f"the index {index} of " in what for what in findings(database_url)] == [True]


def test_verify_when_a_unique_index_was_replaced_by_another_then_it_is_named(
    database_url: str, intruder: Intruder
) -> None:
    intruder.run("DROP INDEX uq_decisions_portfolio_id_key")
    intruder.run("CREATE INDEX uq_decisions_portfolio_id_key ON decisions (portfolio_id, key)")
    (what,) = findings(database_url)
    assert f"uq_decisions_portfolio_id_key of decisions is not the one of migration {SCHEMA_HEAD}" in what


def test_verify_when_a_user_added_an_index_and_a_table_then_nothing_is_found(
    database_url: str, intruder: Intruder
) -> None:
    intruder.run("CREATE INDEX mine ON decisions (decided_us)")
    intruder.run("CREATE TABLE my_notes (id BIGINT PRIMARY KEY)")
    intruder.run("CREATE INDEX mine_too ON my_notes (id)")
    assert findings(database_url) == []


@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
def test_verify_when_a_trigger_was_made_harmless_then_it_is_named(database_url: str, intruder: Intruder) -> None:
    intruder.run("DROP TRIGGER decisions_no_update")
    intruder.run("CREATE TRIGGER decisions_no_update BEFORE UPDATE ON decisions BEGIN SELECT 1; END")
    (what,) = findings(database_url)
    assert "trigger decisions_no_update of decisions is not the one" in what
    assert "SELECT 1" in what


@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
def test_verify_when_the_text_of_a_table_was_edited_then_the_constraint_is_named(
    database_url: str, intruder: Intruder
) -> None:
    assert intruder.dialect == "sqlite"
    within = "held_e8 + open_e8 <= cap_e8 + overage_e8"
    with closing(sqlite3.connect(make_url(database_url).database or "")) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        statement = f"UPDATE sqlite_master SET sql = replace(sql, '{within}', '1') WHERE name = 'scopes'"
        assert connection.execute(statement).rowcount == 1
    (what,) = findings(database_url)
    assert "constraint ck_scopes_within_cap of scopes is not the one" in what


POSTGRESQL_EDITS = {
    "ALTER TABLE decisions DISABLE TRIGGER decisions_append_only": "decisions_append_only of decisions is disabled",
    "ALTER TABLE decisions ENABLE REPLICA TRIGGER decisions_no_delete": "decisions_no_delete of decisions is disabled",
    "ALTER TABLE scopes DROP CONSTRAINT ck_scopes_within_cap": "ck_scopes_within_cap of scopes is missing",
    "ALTER TABLE portfolios DROP CONSTRAINT uq_portfolios_name": "uq_portfolios_name of portfolios is missing",
    "ALTER TABLE positions ALTER COLUMN legs DROP NOT NULL": "column legs of positions is not the one",
    "CREATE OR REPLACE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'": (
        "trigger decisions_append_only of decisions is not the one"
    ),
    "ALTER ROLE CURRENT_USER IN DATABASE {database} SET session_replication_role = replica": "no trigger fires",
}


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize("statement", POSTGRESQL_EDITS)
def test_verify_when_a_guard_was_weakened_then_it_is_named(
    database_url: str, intruder: Intruder, statement: str
) -> None:
    intruder.run(statement.format(database=make_url(database_url).database))
    found = findings(database_url)
    assert any(POSTGRESQL_EDITS[statement] in what for what in found), found


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_verify_when_the_ledger_stands_in_another_schema_then_nothing_is_found(
    database_url: str, intruder: Intruder
) -> None:
    for statement in ("ALTER SCHEMA public RENAME TO desk", "CREATE SCHEMA public"):
        intruder.run(statement)
    assert findings(f"{database_url}{'&' if '?' in database_url else '?'}options=-csearch_path%3Ddesk") == []
