"""Attacks on pools: what a scope guarantees or allows, what a decision says that it saw of others, and what it hid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, Ledger, VerifyReport
from ledger_sizer.model.decisions import canonical_text, chain_hash
from ledger_sizer.storage.write_store import DECISION_COLUMNS, record_from_row
from tests.support.edited_ledgers import without_schema
from tests.support.ledgers import Intruder, position_of

D = Decimal
OUTSIDE: dict[str, Any] = {"tags": {"bot": "x", "venue": "okx"}, "ttl_seconds": 600}


def set_pools(ledger: Ledger) -> None:
    ledger.set_cap(key="a", scope="bot=a", guarantee=D(3000), max_position_usd=D(700))
    ledger.set_cap(key="b", scope="bot=b", guarantee=D(100))
    ledger.set_cap(key="default", scope="venue=*", cap=D(800))
    ledger.reserve(key="inside", amount_usd=D(100), tags={"bot": "b"}, ttl_seconds=600)


@contextmanager
def attacked(url: str) -> Iterator[tuple[Ledger, Intruder, Decision]]:
    """Yield a ledger whose guards are down, and its last decision, which depended on a guarantee and a default cap."""
    with Ledger.open(url) as ledger, Intruder(url) as intruder:
        set_pools(ledger)
        last = ledger.reserve(key="last", amount_usd=D(50), **OUTSIDE)
        intruder.take_guards_down()
        assert without_schema(ledger.verify()).ok
        yield ledger, intruder, last


def rewrite_last(intruder: Intruder, last: Decision, trace: str) -> None:
    """Give the last decision another trace, with the hash that fits, and the head too."""
    columns = ", ".join(DECISION_COLUMNS)
    intruder.run("UPDATE decisions SET trace = :trace WHERE portfolio_id = 1 AND seq = :seq", trace=trace, seq=last.seq)
    query = f"SELECT {columns} FROM decisions WHERE portfolio_id = 1 AND seq >= :seq ORDER BY seq"
    before, row = intruder.rows(query, seq=(last.seq or 0) - 1)
    digest = chain_hash(before[-1], canonical_text(record_from_row("main", row)))
    intruder.run("UPDATE decisions SET hash = :hash WHERE portfolio_id = 1 AND seq = :seq", hash=digest, seq=last.seq)
    intruder.run("UPDATE portfolios SET last_hash = :hash WHERE id = 1", hash=digest)


def found_at(report: VerifyReport) -> set[int]:
    """Return the decisions that findings name. Scopes of a trace that cannot be read are findings without one."""
    return {finding.seq for finding in without_schema(report).findings if finding.seq is not None}


@pytest.mark.one_engine
def test_verify_when_any_byte_of_what_a_decision_saw_of_others_was_changed_then_it_is_found(database_url: str) -> None:
    """The chain is rewritten: only what the decisions before it left contradicts it."""
    with attacked(database_url) as (ledger, intruder, last):
        start = last.trace.index('"others":')
        end = last.trace.index("]]", start) + 2
        assert last.trace[start:end] == (
            '"others":[["bot=a",null,0,0,"active",0,null,{"guarantee_e8":300000000000,"max_position_e8":70000000000}],'
            '["venue=*",80000000000,0,0,"active"]]'
        )
        for at in range(start, end):
            other = "1" if last.trace[at] != "1" else "2"
            rewrite_last(intruder, last, f"{last.trace[:at]}{other}{last.trace[at + 1 :]}")
            assert found_at(ledger.verify()) == {last.seq}, last.trace[start : at + 1]
        rewrite_last(intruder, last, last.trace)
        assert without_schema(ledger.verify()).ok


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('["venue=*",80000000000,0,0,"active"]', ""),
        ('"others":', '"other":'),
        ('],["venue=*",80000000000,0,0,"active"]', "]"),
        (']],"policy"', '],["bot=b",null,10000000000,0,"active",0,null,{"guarantee_e8":10000000000}]],"policy"'),
        (']],"policy"', '],["bot=q",null,0,0,"active"]],"policy"'),
        ('["venue=*",80000000000', '["bot=x",null,0,0,"active"],["venue=*",80000000000'),
    ],
    ids=["a row emptied", "none", "a row left out", "one that keeps nothing", "one that is nothing", "one of its own"],
)
def test_verify_when_a_row_of_others_was_left_out_or_made_up_then_it_is_found(
    database_url: str, before: str, after: str
) -> None:
    with attacked(database_url) as (ledger, intruder, last):
        assert last.trace.count(before) == 1
        rewrite_last(intruder, last, last.trace.replace(before, after))
        assert found_at(ledger.verify()) == {last.seq}


@pytest.mark.parametrize("column", ["guarantee_e8", "max_position_e8"])
def test_verify_when_any_digit_of_a_limit_was_changed_then_its_scope_is_named(database_url: str, column: str) -> None:
    with attacked(database_url) as (ledger, intruder, _):
        statement = f"UPDATE scopes SET {column} = :value WHERE portfolio_id = 1 AND scope = 'bot=a'"
        ((before,),) = intruder.rows(f"SELECT {column} FROM scopes WHERE scope = 'bot=a'")
        text = str(before)
        changed: list[int | None] = [
            int(f"{text[:at]}{(int(digit) + 1) % 10}{text[at + 1 :]}") for at, digit in enumerate(text)
        ]
        for value in [*changed, before * 10, before // 10, None]:
            intruder.run(statement, value=value)
            findings = without_schema(ledger.verify()).findings
            assert findings, value
            assert any("bot=a" in finding.what for finding in findings), value
        intruder.run(statement, value=before)
        assert without_schema(ledger.verify()).ok


HIDDEN = {
    # what is changed before the decision, and put right afterwards; the reservation or move that gets too much
    "a guarantee lowered": ("guarantee_e8 = guarantee_e8 / 2", "guarantee_e8 = guarantee_e8 * 2", "bot=a"),
    "a guarantee hidden": ("guarantee_e8 = NULL", "guarantee_e8 = 300000000000", "bot=a"),
    "a guarantee zeroed": ("guarantee_e8 = 0", "guarantee_e8 = 300000000000", "bot=a"),
    "its use made up": ("held_e8 = 300000000000", "held_e8 = 0", "bot=a"),
    "a default cap raised": ("cap_e8 = cap_e8 * 3", "cap_e8 = cap_e8 / 3", "venue=*"),
    "a default cap hidden": ("cap_e8 = NULL", "cap_e8 = 80000000000", "venue=*"),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_verify_when_a_limit_was_hidden_from_one_decision_then_that_one_is_named(database_url: str, what: str) -> None:
    """In the end every row agrees with the decisions. Only what the one decision saw, or did not see, differs."""
    edit, put_right, scope = HIDDEN[what]
    statement = "UPDATE scopes SET {} WHERE portfolio_id = 1 AND scope = '{}'"
    with Ledger.open(database_url) as ledger:
        set_pools(ledger)
        for number in range(4):
            ledger.reserve(key=f"{number}", amount_usd=D(450), tags={"bot": "x"}, ttl_seconds=600)
        # 3100 of 5000 are free, 3000 of them kept; a venue may have 800.
        assert ledger.reserve(key="honest", amount_usd=D(900), **OUTSIDE).budget == 100
    with Intruder(database_url) as intruder:
        intruder.run(statement.format(edit, scope))
        with Ledger.open(database_url) as ledger:
            if scope != "bot=a":
                ledger.release(key="free", position_id="main-5")
            got = ledger.reserve(key="too much", amount_usd=D(850), **OUTSIDE)
        intruder.run(statement.format(put_right, scope))
    with Ledger.open(database_url) as ledger:
        found = ledger.verify().findings
    assert found, got
    assert (found[0].seq, scope in found[0].what) == (got.seq, True), found


def test_verify_when_a_guarantee_was_hidden_from_a_move_then_the_move_is_named(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        set_pools(ledger)
        first = position_of(ledger.reserve(key="1", amount_usd=D(50), tags={"bot": "x"}, ttl_seconds=600))
    with Intruder(database_url) as intruder:
        intruder.run("UPDATE scopes SET guarantee_e8 = NULL WHERE scope = 'bot=a'")
        with Ledger.open(database_url) as ledger:
            moved = ledger.retag(key="2", position_id=first, tags={"bot": "y"})
        intruder.run("UPDATE scopes SET guarantee_e8 = 300000000000 WHERE scope = 'bot=a'")
    with Ledger.open(database_url) as ledger:
        found = ledger.verify().findings
    assert [finding.seq for finding in found] == [moved.seq]
    assert "did not see the scope bot=a" in found[0].what
