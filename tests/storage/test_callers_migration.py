"""Migration 0010: old decisions keep their hashes and verify, and an older version can neither write nor come back."""

from __future__ import annotations

from decimal import Decimal

import pytest
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger_sizer import Ledger
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import downgrade, make_engine, upgrade
from ledger_sizer.storage.tables import DecisionRow
from tests.support.clock import FakeClock
from tests.support.edited_ledgers import Scene, without_schema
from tests.support.ledgers import Intruder, assert_verified, dynamic_settings, opened, position_of, reserve_btc
from tests.support.old_ledgers import downgrade_as_old, forget_callers

D = Decimal


@pytest.fixture
def upgraded(empty_database_url: str, clock: FakeClock) -> str:
    """A ledger that lived at migration 0009, upgraded to this version."""
    upgrade(empty_database_url)
    with Ledger.open(empty_database_url, settings=dynamic_settings(), clock=clock) as ledger:
        _live_as_before(ledger, clock)
    downgrade_as_old(empty_database_url, "0009")
    upgrade(empty_database_url)
    return empty_database_url


def _live_as_before(ledger: Ledger, clock: FakeClock) -> None:
    """Record what that version could: no fill in parts, no reference of a position, one value a tag."""
    ledger.set_cap(key="cap", scope="venue=bybit", cap=D(4000))
    filled, held = [position_of(reserve_btc(ledger, key, ttl_seconds=600)) for key in ("a", "b")]
    ledger.confirm(key="fill", position_id=filled, quantity=D("0.01"), price=D(50_000))
    ledger.extend(key="longer", position_id=held, ttl_seconds=900)
    ledger.release(key="free", position_id=held)
    ledger.reserve(key="plain", ttl_seconds=900)
    ledger.reserve(key="no", available_balance=D(0))
    ledger.halt(key="halt", note="feed is stale")
    ledger.resume(key="go on")
    ledger.adopt(key="found", quantity=D(2), price=D(30), tags={"symbol": "ETH"})
    clock.advance(1)


def test_upgrade_when_decisions_are_old_then_they_verify_and_go_on_in_the_new_form(
    upgraded: str, clock: FakeClock
) -> None:
    with opened(upgraded, clock) as ledger:
        before = ledger.verify()
        assert before.ok
        old = ledger.history(limit=1000)
        assert {(one.actor, one.client, one.reference) for one in old} == {(None, None, None)}
        replayed = ledger.reserve(key="plain", ttl_seconds=900)
        assert (replayed.replayed, replayed.actor) == (True, None), "an old decision is everybody's"
        new = ledger.reserve(key="new", reference="order 1")
        assert (new.actor, new.client, new.reference) == ("embedded:embedded", "embedded", "order 1")
        assert_verified(ledger)
        assert ledger.verify().decisions == before.decisions + 1
        assert [one.key for one in ledger.history(actor="embedded:embedded")] == ["new"]


@pytest.mark.parametrize("column", ["actor", "client", "reference"])
def test_verify_when_a_field_was_added_to_an_old_decision_then_it_is_named(upgraded: str, column: str) -> None:
    with Ledger.open(upgraded) as ledger, Intruder(upgraded) as intruder:
        intruder.take_guards_down()
        intruder.run(f"UPDATE decisions SET {column} = 'x' WHERE portfolio_id = 1 AND seq = 5")
        first = without_schema(ledger.verify()).first
        assert first is not None
        assert (first.portfolio, first.seq) == ("main", 5)


@pytest.mark.parametrize("column", ["actor", "client", "reference"])
def test_verify_when_a_field_was_taken_from_a_new_decision_then_it_is_named(
    database_url: str, clock: FakeClock, column: str
) -> None:
    scene = Scene(database_url)
    seq = scene.ledger.lookup("plain").seq  # type: ignore[union-attr]
    table = DecisionRow.__table__
    with scene.edited(table, {"portfolio_id": 1, "seq": seq}, column, None) as report:  # type: ignore[arg-type]
        assert report.first is not None
        assert (report.first.portfolio, report.first.seq) == ("main", seq)
    scene.close()


def test_downgrade_when_decisions_name_their_actor_then_it_is_refused_and_nothing_is_lost(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="k")
    with pytest.raises(CommandError, match="1 decisions name their actor, which only version 0010 and later can read"):
        downgrade(database_url, "0009")
    with opened(database_url, clock) as ledger:
        assert ledger.reserve(key="k").replayed
        assert_verified(ledger)


def test_downgrade_when_api_keys_name_a_client_then_it_is_refused(database_url: str) -> None:
    engine = make_engine(database_url)
    create_key(engine, "bot", "trade")
    with engine.begin() as connection:
        connection.execute(text("UPDATE api_keys SET client = 'bots'"))
    engine.dispose()
    forget_callers(database_url)
    with pytest.raises(CommandError, match="1 API keys name their client"):
        downgrade(database_url, "0009")


def test_write_when_the_process_is_of_an_older_version_then_the_database_refuses_it(
    database_url: str, clock: FakeClock
) -> None:
    """A process that was started before the upgrade would not see that the desk is halted."""
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="k")
    engine = make_engine(database_url)
    columns = [column.name for column in DecisionRow.__table__.columns if column.name not in ("actor", "client")]
    copied = ", ".join(
        {"seq": "2", "key": "'old'", "decided_us": "4102444800000000"}.get(name, name) for name in columns
    )
    with pytest.raises(DBAPIError, match="older than the database"), engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO decisions ({', '.join(columns)}) SELECT {copied} FROM decisions WHERE portfolio_id = 1")
        )
    engine.dispose()
