"""Many portfolios: they are read together, and what is wrong with one of them is still found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event

import ledger_sizer.storage.tables  # noqa: F401 - it declares them
from ledger_sizer import Ledger, Reserve
from ledger_sizer.storage.database import make_engine
from ledger_sizer.storage.table_base import Base
from ledger_sizer.verify import rows
from ledger_sizer.verify.chain import verify
from tests.support.ledgers import TAGS, Intruder


def fill(url: str, portfolios: range, decisions: int = 3) -> None:
    with Ledger.open(url) as ledger:
        ledger.submit([
            Reserve(key=f"{n}", portfolio=f"p{number}", tags=TAGS, ttl_seconds=600)
            for number in portfolios for n in range(decisions)
        ])  # fmt: skip


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url, read_only=True)
    yield engine
    engine.dispose()


def statements_of(engine: Engine, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple[int, int]:
    """Verify, and return how many statements about the ledger's tables that took, and how many decisions it read.

    What a connection asks now and then about its server is not counted.
    """
    count = 0

    def counted(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        nonlocal count
        count += any(f" {table}" in statement for table in Base.metadata.tables)

    def stream(*arguments: Any) -> Iterator[Any]:
        counted(None, None, arguments[1])
        return original(*arguments)

    original = rows.stream_rows
    event.listen(engine, "before_cursor_execute", counted)
    with monkeypatch.context() as patched:
        patched.setattr(rows, "stream_rows", stream)
        report = verify(engine, **arguments)
    event.remove(engine, "before_cursor_execute", counted)
    assert report.ok, report.findings
    return count, report.decisions


def test_verify_when_there_are_ten_times_as_many_portfolios_then_it_takes_no_more_statements(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database_url, range(5))
    few = statements_of(engine, monkeypatch)
    fill(database_url, range(5, 50))
    assert statements_of(engine, monkeypatch) == (few[0], few[1] * 10)
    with Ledger.open(database_url) as ledger:
        heads = ledger.heads()
    fill(database_url, range(20, 60))
    count, decisions = statements_of(engine, monkeypatch, since=heads)
    assert (count, decisions) == (few[0] + 1, 30), "the trusted heads are looked up in one more; p20 to p49 are replays"


def test_verify_when_there_are_more_portfolios_than_one_group_takes_then_each_is_read(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database_url, range(40))
    monkeypatch.setattr(rows, "_GROUP_PORTFOLIOS", 7)
    groups = 6
    whole, decisions = statements_of(engine, monkeypatch)
    assert decisions == 120
    monkeypatch.setattr(rows, "_GROUP_PORTFOLIOS", 41)  # with the desk
    assert (whole - statements_of(engine, monkeypatch)[0]) == (groups - 1) * 5


@pytest.mark.parametrize("decisions_of_a_group", [1, 10, 8192])
def test_verify_when_one_row_among_many_portfolios_is_wrong_then_it_alone_is_named(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, decisions_of_a_group: int
) -> None:
    """Alone, in a group that is read together, and in one of several: the findings are the same."""
    fill(database_url, range(20))
    monkeypatch.setattr(rows, "_GROUP_DECISIONS", decisions_of_a_group)
    with Intruder(database_url) as intruder:
        intruder.take_guards_down()
        ((found,),) = intruder.rows("SELECT id FROM portfolios WHERE name = 'p13'")
        edits = {
            "decision 2 is not the one that was made": "UPDATE decisions SET binding = 'x' WHERE seq = 2 AND {}",
            "position p13-2 is missing": "DELETE FROM positions WHERE number = 2 AND {}",
            "position p13-9 stands in no decision": "UPDATE positions SET number = 9 WHERE number = 3 AND {}",
            "scope venue=bybit counts": "UPDATE scopes SET held_e8 = held_e8 + 1 WHERE scope = 'venue=bybit' AND {}",
        }
        for statement in edits.values():
            assert intruder.run(statement.format(f"portfolio_id = {found}")) == 1
    findings = [finding for finding in verify(engine).findings if finding.portfolio != "(schema)"]
    assert {finding.portfolio for finding in findings} == {"p13"}
    for what in edits:
        assert any(what in finding.what for finding in findings), findings
