"""Verifies the schema: every table, constraint, index and trigger that the migrations made must still stand, as made.

They are what refuses a change of a decision or a second use of a key. Somebody who removes one and changes rows leaves
rows that may all fit together. Objects that the migrations did not make, such as an index of a user's own, are ignored.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, text

import ledger_sizer.storage.tables  # noqa: F401 - it declares them
from ledger_sizer.model.verification import Finding
from ledger_sizer.storage.database import SCHEMA_HEAD
from ledger_sizer.storage.table_base import Base

SCHEMA = "(schema)"
"""Stands in a finding in place of a portfolio. It cannot be the name of one."""

EXPECTED_FILE = Path(__file__).with_name("schema_head.json")
"""Written by scripts/schema_snapshot.py: by engine, the definition of each object by its name."""

_TEXT_MAX = 160
_DISABLED = "disabled; "


def find_schema_changes(connection: Connection) -> list[Finding]:
    """Compare the database's schema with the one that the migrations make. Returns a finding for each difference."""
    expected: dict[str, str] = json.loads(EXPECTED_FILE.read_text())[connection.dialect.name]
    found = read_schema(connection)
    findings = []
    for name, definition in expected.items():
        stands = found.get(name)
        if stands is None:
            what = f"the {name} is missing"
        elif stands == _DISABLED + definition:
            what = f"the {name} is disabled"
        elif stands != definition:
            what = f"the {name} is not the one of migration {SCHEMA_HEAD}: {_differing(stands, definition)}"
        else:
            continue
        findings.append(Finding(SCHEMA, None, what))
    if connection.dialect.name == "postgresql":
        role = connection.execute(text("SELECT current_setting('session_replication_role')")).scalar()
        if role == "replica":
            findings.append(Finding(SCHEMA, None, "session_replication_role is replica: no trigger fires"))
    return findings


def read_schema(connection: Connection) -> dict[str, str]:
    """Return the definitions of the ledger's columns, constraints, indexes and triggers, by kind and name."""
    tables = sorted(Base.metadata.tables)
    read = _read_sqlite if connection.dialect.name == "sqlite" else _read_postgresql
    return {name: " ".join(definition.split()) for name, definition in read(connection, tables)}


def _differing(stands: str, definition: str) -> str:
    """Show two definitions from a few words before the first difference on."""
    same = next((at for at, (one, two) in enumerate(zip(stands, definition, strict=False)) if one != two), None)
    start = max((min(len(stands), len(definition)) if same is None else same) - 30, 0)
    return f"{stands[start : start + _TEXT_MAX]!r} in place of {definition[start : start + _TEXT_MAX]!r}"


# --- SQLite: the text of each object ---------------------------------------------------------------------------------

_TOKEN = re.compile(r"'(?:[^']|'')*'|[(),]|[^'(),]+")


def _read_sqlite(connection: Connection, tables: list[str]) -> Iterator[tuple[str, str]]:
    query = text("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    for kind, name, table, sql in connection.execute(query):
        if table not in tables:
            continue
        if kind != "table":
            yield f"{kind} {name} of {table}", sql.replace('"', "")
            continue
        for clause in _clauses(sql.replace('"', "")):
            words = clause.split()
            if words[0] == "CONSTRAINT":
                yield f"constraint {words[1]} of {table}", clause
            else:
                yield f"column {words[0]} of {table}", clause


def _clauses(sql: str) -> list[str]:
    """Split the body of a CREATE TABLE at its commas, but for those inside of brackets and texts."""
    clauses, depth = [""], 0
    for token in _TOKEN.findall(sql):
        depth += (token == "(") - (token == ")")
        if token == "," and depth == 1:
            clauses.append("")
        elif depth > 1 or (depth == 1 and token != "(") or (depth == 1 and clauses[-1]):
            clauses[-1] += token
    return [clause.strip() for clause in clauses if clause.strip()]


# --- PostgreSQL: its own catalog -------------------------------------------------------------------------------------

_POSTGRESQL = {
    "column": "SELECT a.attname, a.attrelid, format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull "
    "THEN ' NOT NULL' ELSE '' END FROM pg_attribute a "
    "WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid = ANY (:tables)",
    # From PostgreSQL 18 on, each NOT NULL stands here as well.
    "constraint": "SELECT c.conname, c.conrelid, pg_get_constraintdef(c.oid, true) FROM pg_constraint c "
    "WHERE c.contype IN ('c', 'f', 'p', 'u') AND c.conrelid = ANY (:tables)",
    "index": "SELECT c.relname, i.indrelid, CASE WHEN i.indisvalid THEN '' ELSE 'invalid; ' END || CASE WHEN "
    "i.indisunique THEN 'UNIQUE ' ELSE '' END || '(' || (SELECT string_agg(pg_get_indexdef(i.indexrelid, n, true), "
    "', ' ORDER BY n) FROM generate_series(1, i.indnkeyatts) n) || ')' || COALESCE(' WHERE ' || "
    "pg_get_expr(i.indpred, i.indrelid, true), '') FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
    "WHERE i.indrelid = ANY (:tables)",
    "trigger": f"SELECT t.tgname, t.tgrelid, CASE WHEN t.tgenabled IN ('O', 'A') THEN '' ELSE '{_DISABLED}' END || "
    "pg_get_triggerdef(t.oid, true) || ': ' || p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
    "WHERE NOT t.tgisinternal AND t.tgrelid = ANY (:tables)",
}
"""For each kind of object its name, its table and its definition. None has the schema's name: it may be any."""


def _read_postgresql(connection: Connection, tables: list[str]) -> Iterator[tuple[str, str]]:
    query = text(
        "SELECT CAST(to_regclass(quote_ident(name)) AS oid), name FROM unnest(CAST(:tables AS text[])) t(name)"
    )
    names = {oid: name for oid, name in connection.execute(query, {"tables": tables}) if oid is not None}
    for kind, of_kind in _POSTGRESQL.items():
        for name, table, definition in connection.execute(text(of_kind), {"tables": [*names]}):
            yield f"{kind} {name} of {names[table]}", definition
