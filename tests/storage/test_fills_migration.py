"""Migration 0011: positions of before keep all they had, and an older version cannot come back to what it lacks."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from alembic.util import CommandError

from ledger_sizer import Ledger
from ledger_sizer.storage.database import downgrade, upgrade
from tests.support.clock import FakeClock
from tests.support.ledgers import Intruder, assert_verified, opened

D = Decimal


def _fill_in_parts(ledger: Ledger) -> None:
    made = ledger.reserve(key="a")
    ledger.confirm(key="b", position_id=made.position_id or "", quantity=D(1), price=D(7), rest="hold")


USES = {
    "fills": _fill_in_parts,
    "reference": lambda ledger: ledger.reserve(key="a", reference="order 7"),
    "values": lambda ledger: ledger.reserve(key="a", tags={"venue": ["bybit", "okx"]}),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_downgrade_when_positions_need_the_new_columns_then_it_is_refused_and_nothing_is_lost(
    database_url: str, clock: FakeClock, use: Any
) -> None:
    with opened(database_url, clock) as ledger:
        use(ledger)
        before = [*ledger.positions()]
    with pytest.raises(CommandError, match="1 positions have several fills, a reference, other tags or another price"):
        downgrade(database_url, "0010")
    with opened(database_url, clock) as ledger:
        assert [*ledger.positions()] == before
        assert_verified(ledger)


def test_upgrade_when_decisions_of_before_have_references_then_their_positions_get_the_last(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        one = ledger.reserve(key="a", reference="first", ttl_seconds=600).position_id or ""
        ledger.extend(key="b", position_id=one, ttl_seconds=900, reference="second")
        ledger.halt(key="h")
        ledger.extend(key="denied", position_id=one, ttl_seconds=900, reference="third")
        ledger.resume(key="r")
        other = ledger.reserve(key="c", reference="ended").position_id or ""
        ledger.release(key="d", position_id=other)
        ledger.adopt(key="e", quantity=D(1), price=D(7))
        before = [*ledger.positions()]
    assert [position.reference for position in before] == ["second", "ended", None]
    with Intruder(database_url) as intruder:
        _as_at_0010(intruder)
    downgrade(database_url, "0010")
    upgrade(database_url)
    with opened(database_url, clock) as ledger:
        assert [*ledger.positions()] == before
        assert_verified(ledger)
        ledger.release(key="f", position_id=one)


def _as_at_0010(intruder: Intruder) -> None:
    """Take the references from the positions, which version 0010 did not keep there."""
    if intruder.dialect == "postgresql":
        intruder.run("ALTER TABLE positions DISABLE TRIGGER USER")
        intruder.run("UPDATE positions SET reference = NULL")
        intruder.run("ALTER TABLE positions ENABLE TRIGGER USER")
        return
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'positions'"
    triggers = intruder.rows(query)
    for name, _ in triggers:
        intruder.run(f"DROP TRIGGER {name}")
    intruder.run("UPDATE positions SET reference = NULL")
    for _, definition in triggers:
        intruder.run(definition)
