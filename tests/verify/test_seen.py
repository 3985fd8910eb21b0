"""Which column of which table `verify` sees an edit of: docs/audit.md says so, and this edits each of them in turn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Column, Integer, Table

from ledger_sizer import Reserve
from ledger_sizer.storage.table_base import Base
from ledger_sizer.storage.tables import DESK_ID
from tests.conftest import NewDatabase
from tests.storage.test_schema import ROWS
from tests.support.databases import ENGINE_KINDS
from tests.support.edited_ledgers import Scene, where

D = Decimal
OF_THE_LEDGER = ("portfolios", "scopes", "positions", "decisions", "archives", "facets", "facet_blocks")
BESIDE_IT = tuple(sorted(set(Base.metadata.tables) - set(OF_THE_LEDGER)))


@pytest.fixture(scope="module", params=ENGINE_KINDS)
def scene(request: pytest.FixtureRequest, module_database: NewDatabase, tmp_path_factory: Any) -> Iterator[Scene]:
    """A ledger with rows in every table: live and archived decisions, a full block of facets, one row of the others."""
    url = module_database(request.param)
    scene = Scene(url, guarded=True)
    scene.clock.advance(60 * 86_400)
    scene.ledger.sweep()
    assert scene.ledger.archive(scene.clock() - timedelta(days=40), tmp_path_factory.mktemp("archive")).decisions
    scene.ledger.submit([Reserve(key=f"n{n}", min_notional_usd=D(10**6)) for n in range(1100)])
    scene.ledger.reserve(key="live", ttl_seconds=900)
    for table in BESIDE_IT:
        row = ROWS[table]
        marks = ", ".join(f":{name}" for name in row)
        scene.intruder.run(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", **row)
    scene.intruder.take_guards_down()
    assert scene.verify().ok
    yield scene
    assert scene.verify().ok, "every edit is undone"
    scene.close()


def _edited(column: Column[Any], before: Any) -> Any:
    if isinstance(column.type, Boolean):
        return not before
    if isinstance(column.type, BigInteger | Integer):
        return 7 if before is None else before + 1000
    return "x" if before is None else f"{before[:-1]}{'0' if before[-1:] != '0' else '1'}"


def _is_seen(scene: Scene, table: Table, column: Column[Any]) -> bool:
    keys = [part.name for part in table.primary_key.columns]
    order = ", ".join(keys)
    rows = scene.intruder.rows(f"SELECT {order} FROM {table.name} ORDER BY ({column.name} IS NULL), {order}")
    rows = [row for row in rows if row[0] != DESK_ID] or rows
    assert rows, f"there is no {table.name}"
    key = dict(zip(keys, rows[-1] if table.name in ("decisions", "positions") else rows[0], strict=True))
    (before,) = scene.intruder.rows(f"SELECT {column.name} FROM {table.name} WHERE {where(key)}", **key)[0]
    with scene.edited(table, key, column.name, _edited(column, before)) as report:
        return not report.ok


def _line(scene: Scene, table: Table) -> str:
    seen = {column.name: _is_seen(scene, table, column) for column in table.columns}
    names = {answer: [f"`{name}`" for name, found in seen.items() if found is answer] for answer in (True, False)}
    cells = [", ".join(names[answer]) if names[not answer] else "every column" for answer in (True, False)]
    shown = [cell if names[answer] else "" for cell, answer in zip(cells, (True, False), strict=True)]
    return f"| `{table.name}` | {shown[0]} | {shown[1]} |"


@pytest.mark.parametrize("name", [*OF_THE_LEDGER, *BESIDE_IT])
def test_verify_when_a_column_is_edited_then_it_is_seen_as_the_docs_say(
    scene: Scene, repository_root: Path, name: str
) -> None:
    line = _line(scene, Base.metadata.tables[name])
    assert line in (repository_root / "docs" / "audit.md").read_text().splitlines(), line
