"""A database that cannot be reached is `Unavailable` for everything that opens it, never an error of its driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from ledger_sizer import Unavailable
from ledger_sizer.exchanges.instrument_cache import record_rules
from ledger_sizer.service.api_keys import create_key, list_keys, revoke_key
from ledger_sizer.storage.database import Conflict, make_engine, read_transaction, write_transaction
from ledger_sizer.storage.leases import Lease, acquire_lease, release_lease
from ledger_sizer.views.watermarks import read_watermarks

USES: dict[str, Callable[[Engine], object]] = {
    "create_key": lambda engine: create_key(engine, "bot", "trade"),
    "list_keys": list_keys,
    "revoke_key": lambda engine: revoke_key(engine, "0" * 12),
    "read_watermarks": read_watermarks,
    "acquire_lease": lambda engine: acquire_lease(engine, "jobs", "me", 10),
    "release_lease": lambda engine: release_lease(engine, Lease("jobs", "me", 1)),
    "record_rules": lambda engine: record_rules(engine, "bybit", [], 0),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """An engine on a database that is not there."""
    address = {"sqlite": f"sqlite:///{tmp_path}/none/ledger.db", "postgresql": "postgresql://nobody@127.0.0.1:1/none"}
    return make_engine(address[request.param])


@pytest.mark.parametrize("name", USES)
def test_use_when_the_database_is_away_then_unavailable(away: Engine, name: str) -> None:
    with pytest.raises(Unavailable, match="cannot "):
        USES[name](away)


def test_write_when_another_process_was_first_then_conflict_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "one.db"
    file.touch()
    engine = make_engine(f"sqlite:///{file}")
    with write_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE one (number INTEGER PRIMARY KEY)"))
    with pytest.raises(Conflict, match=r"cannot count: UNIQUE"), write_transaction(engine, "count") as connection:
        connection.execute(text("INSERT INTO one VALUES (1), (2), (1)"))
    with read_transaction(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM one")).scalar() == 0


def test_read_when_every_connection_is_in_use_then_unavailable(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/one.db", pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect(), pytest.raises(Unavailable, match="QueuePool"), read_transaction(engine):
        pytest.fail("there is a connection")
