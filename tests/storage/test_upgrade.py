"""Upgrades of one database that others use at the same time."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import Engine, event

from ledger_sizer import Ledger
from ledger_sizer.storage.database import SCHEMA_HEAD, make_engine, schema_version, upgrade
from tests.conftest import EngineKind, NewDatabase
from tests.support.ledgers import assert_verified


@pytest.mark.slow
def test_upgrade_when_several_hosts_migrate_one_new_database_at_once_then_all_of_them_succeed(
    new_database: NewDatabase, engine_kind: EngineKind
) -> None:
    url = new_database(engine_kind, migrated=False)
    command = [sys.executable, "-m", "ledger_sizer", "db", "upgrade", "--database-url", url]
    hosts = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [host.communicate(timeout=60)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0] * 4, errors
    with Ledger.open(url) as ledger:
        assert_verified(ledger)


def test_upgrade_when_another_process_looks_meanwhile_then_it_sees_nothing_of_it(empty_database_url: str) -> None:
    """All steps are one transaction, so another process never sees some of them done."""
    other, seen = make_engine(empty_database_url, read_only=True), []

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith("CREATE TABLE"):
            seen.append(schema_version(other))

    event.listen(Engine, "before_cursor_execute", look)
    try:
        upgrade(empty_database_url)
    finally:
        event.remove(Engine, "before_cursor_execute", look)
    assert len(seen) > 10
    assert set(seen) == {None}
    assert schema_version(other) == SCHEMA_HEAD
    other.dispose()
