"""Edits of single values behind the ledger's back: `verify` finds each of them and names its row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Integer, Table, Text

from ledger_sizer import Finding, InvalidRequest, VerifyReport
from ledger_sizer.model.fills import Fills
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow, PositionRow, ScopeRow
from ledger_sizer.wire.verification import REPORT
from tests.conftest import NewDatabase
from tests.support.databases import ENGINE_KINDS
from tests.support.edited_ledgers import Scene, where
from tests.support.ledgers import steady

D = Decimal
TABLES: list[Any] = [row.__table__ for row in (DecisionRow, PositionRow, ScopeRow, PortfolioRow)]
NOT_AUDITED = {"portfolios.created_us"}  # for information only; no decision depends on it
NEVER_EMPTY = {"decisions.headroom_e8"}  # a portfolio always has a cap
NEVER_EMPTY |= {"decisions.actor", "decisions.client"}  # but in decisions of older versions, see test_old_decisions


@pytest.fixture(scope="module", params=ENGINE_KINDS)
def scene(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[Scene]:
    """One ledger per database engine, shared by all tests of this file."""
    scene = Scene(module_database(request.param))
    yield scene
    assert scene.verify().ok, "every edit is undone"
    scene.close()


# --- nothing is wrong --------------------------------------------------------------------------------------------


def test_verify_when_a_life_was_lived_then_all_is_well(scene: Scene) -> None:
    report = scene.verify()
    assert (report.ok, report.first, report.findings) == (True, None, ())
    exposure = scene.ledger.exposure()
    assert report.decisions == exposure.seq + 2, "and none about the desk"
    assert report.positions == len(scene.ledger.positions(limit=1000))
    assert {name: seq for name, (seq, _) in report.heads.items()} == {"main": exposure.seq, "other": 2}
    assert report.heads["main"][1] == scene.ledger.decision(exposure.seq).hash
    states = {position.state for position in scene.ledger.positions("main")}
    assert states == {"held", "open", "closed", "released", "expired"}, "there is something to audit"


def test_verify_when_one_portfolio_is_named_then_only_that_one_is_read(scene: Scene) -> None:
    report = scene.verify(portfolio="other")
    assert (report.ok, report.decisions, report.positions, list(report.heads)) == (True, 2, 2, ["other"])


SOME_HASH = "0" * 64


@pytest.mark.parametrize(
    "head", [*((seq, SOME_HASH) for seq in (10**30, 2**63, -3, 1.5, True, "1")), (1, "zz"), (1, None), (1,), 1]
)
def test_verify_when_a_trusted_head_cannot_be_one_then_it_is_refused(scene: Scene, head: Any) -> None:
    with pytest.raises(InvalidRequest, match="since") as refused:
        scene.verify(since={"main": head})
    assert refused.value.field == "since"


def test_verify_when_a_trusted_head_is_the_last_that_can_be_then_it_does_not_stand(scene: Scene) -> None:
    first = scene.verify(since={"main": (2**63 - 1, SOME_HASH)}).first
    assert first is not None
    assert (first.seq, "history was rewritten" in first.what) == (2**63 - 1, True)


def test_verify_when_asked_for_progress_then_it_ends_at_all_of_them(scene: Scene) -> None:
    told: list[tuple[int, int]] = []
    report = scene.verify(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (report.decisions, report.decisions)
    assert told == sorted(told)


# --- one value was edited ----------------------------------------------------------------------------------------


def _edits() -> Iterator[Any]:
    """Yield every column of every audited table, with each kind of edit that fits it."""
    for table in TABLES:
        for column in table.columns:
            if f"{table.name}.{column.name}" in NOT_AUDITED:
                continue
            kinds = ["other"]
            if not isinstance(column.type, BigInteger | Integer):
                kinds += ["garbage", "object", "list"]
            elif isinstance(column.type, BigInteger):
                kinds += ["largest", "smallest"]
            if column.nullable:
                kinds += ["emptied"] if f"{table.name}.{column.name}" in NEVER_EMPTY else ["emptied", "filled"]
            for kind in kinds:
                yield pytest.param(table, column, kind, id=f"{table.name}.{column.name}-{kind}")


VALUES = {
    "garbage": "no such thing \x1f", "object": "{}", "list": "[[1,2],[3]]", "emptied": None,
    "largest": 2**63 - 1, "smallest": -(2**63),
}  # fmt: skip


def _changed(column: Any, kind: str, before: Any) -> Any:
    """Return another value for a column: a plausible one, or one that no reader expects."""
    if kind in VALUES:
        return VALUES[kind]
    if isinstance(column.type, BigInteger | Integer):
        return 7 if before is None else before + 1000
    swapped = {"held": "open", "open": "held", "closed": "released", "released": "expired", "expired": "closed",
               "granted": "applied", "applied": "granted", "denied": "granted", "active": "halted",
               "reserve": "adopt", "{}": '{"venue":"x"}', "[]": '[["x","y","spot","buy","1",null]]'}  # fmt: skip
    if before is None:
        return "1"
    return swapped.get(before, before[:-1] + ("0" if before[-1] != "0" else "1"))


def _victim(scene: Scene, table: Table, column: Column[Any], kind: str) -> dict[str, Any]:
    """Return the key of the row to edit: from the middle, with a value in the column unless the edit fills it."""
    keys = [part.name for part in table.primary_key.columns]
    wanted = "IS NULL" if kind == "filled" else "<> '{}'" if kind == "object" else "IS NOT NULL"
    main = "portfolio_id = 1 AND" if table.name != "portfolios" else ""
    rows = scene.intruder.rows(
        f"SELECT {', '.join(keys)} FROM {table.name} WHERE {main} {column.name} {wanted} ORDER BY {', '.join(keys)}"
    )
    assert rows, f"the life has no {table.name} with {column.name} {wanted}"
    chosen = rows[1] if table.name == "portfolios" else rows[len(rows) // 2]  # not the desk, which is the first
    return dict(zip(keys, chosen, strict=True))


@pytest.mark.parametrize(("table", "column", "kind"), list(_edits()))
def test_verify_when_one_value_was_edited_then_the_row_is_named(
    scene: Scene, table: Table, column: Column[Any], kind: str
) -> None:
    key = _victim(scene, table, column, kind)
    (before,) = scene.intruder.rows(f"SELECT {column.name} FROM {table.name} WHERE {where(key)}", **key)[0]
    with scene.edited(table, key, column.name, _changed(column, kind, before)) as report:
        _assert_named(report, table, column, key)


def _assert_named(report: VerifyReport, table: Table, column: Column[Any], key: dict[str, Any]) -> None:
    """Check that the edit was found and that a finding names its row."""
    first = report.first
    assert first is not None, f"{table.name}.{column.name} of {key} was edited, and nobody noticed"
    if column.name not in ("id", "name"):
        assert first.portfolio == "main"
    if table.name == "decisions":
        assert first.seq == key["seq"], report.findings
    elif table.name == "positions":
        assert key["number"] in {finding.seq for finding in report.findings}, report.findings
    elif table.name == "scopes":
        assert any(key["scope"] in finding.what for finding in report.findings), report.findings


OF_ANOTHER_TYPE: dict[str, Any] = {"text": "9x", "empty": "", "bytes": b"main", "fraction": 14.5}


def _edits_of_type() -> Iterator[Any]:
    """Yield every audited column with each value of a wrong type that SQLite still stores there."""
    for table in TABLES:
        for column in table.columns:
            whole = isinstance(column.type, BigInteger | Integer)
            for kind in ("text", "empty", "bytes", "fraction") if whole else ("bytes",):
                if f"{table.name}.{column.name}" not in NOT_AUDITED | {"portfolios.id"}:  # that one it refuses
                    yield pytest.param(table, column, kind, id=f"{table.name}.{column.name}-{kind}")


@pytest.mark.parametrize("scene", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("table", "column", "kind"), list(_edits_of_type()))
def test_verify_when_a_value_is_of_another_type_then_the_row_is_named(
    scene: Scene, table: Table, column: Column[Any], kind: str
) -> None:
    """SQLite's columns take any type; text and bytes compare as greater than every number. PostgreSQL refuses them."""
    key = _victim(scene, table, column, kind)
    value = OF_ANOTHER_TYPE[kind]
    if (column.name, kind) == ("seq", "fraction"):
        value = key["seq"] - 0.5  # it takes the place that it had
    with scene.edited(table, key, column.name, value) as report:
        _assert_named(report, table, column, key)
        assert all(type(finding.seq) in (int, type(None)) for finding in report.findings)
        assert all(type(finding.portfolio) is str for finding in report.findings)
        json.dumps(REPORT.to_json(report))


@pytest.mark.parametrize("trace", ["[" * 100_000, '{"scopes":[[["x"],1,0,0,"active"],[2,1,0,0,"active"]]}'])
def test_verify_when_a_trace_was_made_to_break_its_reader_then_its_decision_is_named(scene: Scene, trace: str) -> None:
    key = {"portfolio_id": 1, "seq": scene.ledger.exposure().seq}
    table: Any = DecisionRow.__table__
    with scene.edited(table, key, "trace", trace) as report:
        assert report.first is not None
        assert report.first.seq == key["seq"]


BYTES = [column.name for column in DecisionRow.__table__.columns if column.name not in ("portfolio_id", "seq")]
"""Columns edited byte by byte. A changed portfolio_id or seq makes another row, which test_rows covers."""


@steady
@given(where=st.integers(0), column=st.sampled_from(BYTES), at=st.integers(0), byte=st.integers(0x20, 0x7E))
def test_verify_when_any_single_byte_of_any_decision_was_changed_then_exactly_that_decision_is_named(
    scene: Scene, where: int, column: str, at: int, byte: int
) -> None:
    rows = scene.intruder.rows(f"SELECT seq, {column} FROM decisions WHERE portfolio_id = 1 AND {column} IS NOT NULL")
    seq, before = rows[where % len(rows)]
    text = str(before)
    at %= len(text)
    table: Any = DecisionRow.__table__
    if isinstance(before, int):
        digits = f"{text[:at]}{byte % 10}{text[at + 1 :]}"
        changed: Any = int(digits) if digits.lstrip("-").isdigit() else before + 1
    else:
        changed = f"{text[:at]}{chr(byte)}{text[at + 1 :]}"
    assume(changed != before)
    with scene.edited(table, {"portfolio_id": 1, "seq": seq}, column, changed) as report:
        assert report.first is not None, f"{column} of {seq} was {before!r}, became {changed!r}, and nobody noticed"
        assert (report.first.portfolio, report.first.seq) == ("main", seq)


POSITION_TEXTS = [column.name for column in PositionRow.__table__.columns if isinstance(column.type, Text)]


@steady
@given(where=st.integers(0), column=st.sampled_from(POSITION_TEXTS), at=st.integers(0), byte=st.integers(0x20, 0x7E))
def test_verify_when_any_single_byte_of_any_position_was_changed_then_that_position_is_named(
    scene: Scene, where: int, column: str, at: int, byte: int
) -> None:
    rows = scene.intruder.rows(f"SELECT number, {column} FROM positions WHERE portfolio_id = 1 AND {column} <> ''")
    number, before = rows[where % len(rows)]
    at %= len(before)
    changed = f"{before[:at]}{chr(byte)}{before[at + 1 :]}"
    assume(changed != before)
    _assert_position_named(scene, number, column, changed)


@pytest.mark.parametrize("column", ["fills", "reference", pytest.param("legs", marks=pytest.mark.extended)])
def test_verify_when_each_byte_of_a_new_column_was_changed_in_turn_then_the_position_is_named(
    scene: Scene, column: str
) -> None:
    """Of the longest text, which has the most of what a column can have."""
    rows = scene.intruder.rows(f"SELECT number, {column} FROM positions WHERE portfolio_id = 1 AND {column} <> ''")
    number, before = max(rows, key=lambda row: len(row[1]))
    for at, character in enumerate(before):
        _assert_position_named(
            scene, number, column, f"{before[:at]}{'1' if character != '1' else '2'}{before[at + 1 :]}"
        )
    _assert_position_named(scene, number, column, before[:-1])
    _assert_position_named(scene, number, column, f"{before} ")


def _assert_position_named(scene: Scene, number: int, column: str, changed: str) -> None:
    table: Any = PositionRow.__table__
    with scene.edited(table, {"portfolio_id": 1, "number": number}, column, changed) as report:
        assert number in [finding.seq for finding in report.findings], f"{column} of {number} became {changed!r}"


def test_look_at_the_positions_when_they_are_edited_then_they_have_every_field(scene: Scene) -> None:
    """So that the edits of single bytes reach all of them."""
    rows = scene.intruder.rows("SELECT legs, fills, reference FROM positions WHERE portfolio_id = 1")
    legs = [leg for row in rows for leg in json.loads(row.legs)]
    fills = [json.loads(row.fills) for row in rows if row.fills is not None]
    assert {name for leg in legs if len(leg) > 6 for name in leg[6]} == {
        "account", "unit", "by_cost", "unfilled", "unfilled_usd", "cost", "value"
    }  # fmt: skip
    assert {name for form in fills for name in form} == {*Fills._fields}
    assert {row.reference for row in rows} >= {None, "t7", "order 4711"}


@pytest.mark.parametrize("seq", [1, 2, 9, -1])
@pytest.mark.parametrize("column", ["hash", "trace", "decided_us"])
def test_verify_when_a_decision_at_any_place_was_edited_then_exactly_that_one_is_named(
    scene: Scene, seq: int, column: str
) -> None:
    seq = seq if seq > 0 else scene.ledger.exposure().seq
    key = {"portfolio_id": 1, "seq": seq}
    columns = DecisionRow.__table__.columns
    (before,) = scene.intruder.rows(f"SELECT {column} FROM decisions WHERE {where(key)}", **key)[0]
    table: Any = DecisionRow.__table__
    with scene.edited(table, key, column, _changed(columns[column], "other", before)) as report:
        assert report.first is not None
        assert (report.first.portfolio, report.first.seq) == ("main", seq)
        assert f"decision {seq} is not the one that was made" in report.first.what


@pytest.mark.parametrize(
    "tags",
    ['{"symbol":"ETH"}', '{"symbol":["WETH","ETH"]}', '{"symbol":["ETH","WETH","BTC"]}', '{"symbol":["ETH","WETI"]}',
     '{"symbol":["ETH"]}', '{"symbol":[]}', '{"symbol":null}', '{"symbol":[["ETH"],{}]}', '{"symbol":5}', "[]", "{", "",
     '{"symbol":["ETH","WETH"]} '],
)  # fmt: skip
def test_verify_when_the_values_of_a_positions_tag_were_edited_then_the_position_is_named(
    scene: Scene, tags: str
) -> None:
    table: Any = PositionRow.__table__
    ((number, before),) = scene.intruder.rows("SELECT number, tags FROM positions WHERE tags LIKE '%WETH%'")
    assert before == '{"symbol":["ETH","WETH"],"venue":"okx"}'
    with scene.edited(table, {"portfolio_id": 1, "number": number}, "tags", tags) as report:
        assert number in [finding.seq for finding in report.findings]
        assert any("tags" in finding.what for finding in report.findings)


def test_verify_when_two_rows_were_edited_then_both_are_named_the_earlier_first(scene: Scene) -> None:
    table: Any = DecisionRow.__table__
    with (
        scene.edited(table, {"portfolio_id": 1, "seq": 12}, "binding", "nothing"),
        scene.edited(table, {"portfolio_id": 1, "seq": 5}, "binding", "nothing") as report,
    ):
        assert [finding.seq for finding in report.findings] == [5, 12]
        assert report.first == report.findings[0]


def test_verify_when_another_portfolio_was_edited_then_this_one_is_still_well(scene: Scene) -> None:
    table: Any = DecisionRow.__table__
    with scene.edited(table, {"portfolio_id": 2, "seq": 1}, "budget_e8", 1) as report:
        assert {finding.portfolio for finding in report.findings} == {"other"}
        assert scene.verify(portfolio="main").ok
        assert not scene.verify(portfolio="other").ok


def test_read_finding_when_printed_then_it_says_which_field_and_both_values(scene: Scene) -> None:
    table: Any = PositionRow.__table__
    with scene.edited(table, {"portfolio_id": 1, "number": 6}, "held_e8", 123) as report:
        told = [finding for finding in report.findings if finding.seq == 6]
        assert told == [Finding("main", 6, "position main-6 has held_e8 123, its decisions say 50000000000")]
