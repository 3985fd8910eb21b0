"""Positions that are open and still hold more, in both databases: stored, found by their expiry, swept and listed.

No verb makes such a position yet, so a rule of these tests does: its `confirm` keeps the rest of the hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import text

from ledger_sizer import Confirm, Ledger
from ledger_sizer.model.overview import OverviewQuery
from ledger_sizer.rules import decide
from ledger_sizer.rules.state import PortfolioState, Verdict
from ledger_sizer.rules.trace import trace_text
from ledger_sizer.service.metrics import ExposureCollector
from ledger_sizer.storage.database import downgrade, make_engine, upgrade
from ledger_sizer.storage.tables import PENDING
from tests.support.clock import FakeClock
from tests.support.ledgers import TAGS, assert_verified, figures, opened
from tests.support.old_ledgers import forget_callers

D = Decimal
HOLD = 10


def _confirm_and_keep_the_rest(state: PortfolioState, command: Confirm, *_: Any) -> Verdict:
    position = state.positions[command.number]
    filled_e8 = int(command.quantity * command.price * 10**8)
    after = position._replace(
        state="open", held_e8=position.held_e8 - filled_e8, open_e8=filled_e8,
        quantity=command.quantity, price=command.price,
    )  # fmt: skip
    trace = trace_text([state.scope(name) for name in after.tags.scopes])
    return Verdict(outcome="applied", position=after, tags=after.tags, quantity=str(command.quantity), trace=trace)


@pytest.fixture
def ledger(database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A ledger in which main-1 is open with 400 USD and holds 600 more for ten seconds."""
    monkeypatch.setitem(decide._RULES, Confirm, _confirm_and_keep_the_rest)  # type: ignore[index]
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="1", tags=TAGS, ttl_seconds=HOLD)
        ledger.confirm(key="2", position_id="main-1", quantity=D(4), price=D(100))
        assert figures(ledger) == (600, 400)
        yield ledger


@pytest.fixture(params=["same", "other"])
def writer(request: pytest.FixtureRequest, ledger: Ledger, database_url: str, clock: FakeClock) -> Iterator[Ledger]:
    """The ledger that has the position cached, or another one that must load it."""
    if request.param == "same":
        yield ledger
        return
    with opened(database_url, clock) as other:
        yield other


def test_sweep_when_the_rest_is_overdue_then_only_the_rest_is_freed(writer: Ledger, clock: FakeClock) -> None:
    position = writer.position("main-1")
    assert (position.state, position.held, position.open) == ("open", 600, 400)
    assert position.expires_at is not None
    clock.advance(HOLD - D("0.000001"))
    assert writer.sweep() == 0
    clock.advance(D("0.000001"))
    assert writer.sweep() == 1
    assert writer.decision(3).key == "ledger:expire:1:3"
    after = writer.position("main-1")
    assert (after.state, after.held, after.open, after.expires_at) == ("open", 0, 400, None)
    assert figures(writer) == figures(writer, "venue=bybit") == (0, 400)
    assert writer.sweep() == 0
    assert_verified(writer)


def test_reserve_when_the_rest_is_overdue_then_it_is_freed_before(writer: Ledger, clock: FakeClock) -> None:
    clock.advance(HOLD)
    assert writer.reserve(key="3", dry_run=True).exposure_before == 400
    assert writer.reserve(key="3").exposure_before == 400
    assert writer.position("main-1").state == "open"
    assert_verified(writer)


def test_extend_and_release_when_a_part_is_open_then_both_databases_store_it(writer: Ledger, clock: FakeClock) -> None:
    assert writer.extend(key="3", position_id="main-1", ttl_seconds=60).budget == 600
    clock.advance(HOLD)
    assert writer.sweep() == 0
    writer.release(key="4", position_id="main-1", quantity=D(1))
    assert figures(writer) == (600, 300)
    writer.release(key="5", position_id="main-1", held_only=True)
    assert figures(writer) == (0, 300)
    assert_verified(writer)
    writer.release(key="6", position_id="main-1")
    assert figures(writer) == (0, 0)
    assert_verified(writer)


def test_release_when_a_part_is_open_then_everything_is_over(writer: Ledger) -> None:
    writer.release(key="3", position_id="main-1")
    position = writer.position("main-1")
    assert (position.state, position.expires_at, figures(writer)) == ("closed", None, (0, 0))
    assert_verified(writer)


def test_list_when_a_part_is_open_then_the_state_is_open_and_the_hold_is_among_the_holds(ledger: Ledger) -> None:
    ledger.reserve(key="3", ttl_seconds=60)
    names = {state: [one.position_id for one in ledger.positions(state=state)] for state in ("held", "open", "live")}
    assert names == {"held": ["main-3"], "open": ["main-1"], "live": ["main-1", "main-3"]}
    detail = ledger.overview(OverviewQuery()).detail
    assert detail is not None
    assert [one.position_id for one in detail.held] == ["main-1", "main-3"]
    assert [one.position_id for one in detail.open] == ["main-1"]
    assert (detail.held_count, detail.open_count) == (2, 1)


def test_collect_metrics_when_only_an_open_position_holds_then_its_age_is_shown(
    ledger: Ledger, database_url: str
) -> None:
    engine = make_engine(database_url, read_only=True)
    families = {family.name: family for family in ExposureCollector(engine).collect()}
    engine.dispose()
    (sample,) = families["ledger_oldest_hold_age_seconds"].samples
    assert sample.labels == {"portfolio": "main"}


def test_downgrade_when_an_open_position_holds_then_it_is_refused_and_also_once_its_rest_is_gone(
    ledger: Ledger, database_url: str
) -> None:
    forget_callers(database_url)
    downgrade(database_url, "0009")
    with pytest.raises(CommandError, match="1 positions hold as only version 0009 and later can; release these"):
        downgrade(database_url, "0008")
    upgrade(database_url)
    assert figures(ledger) == (600, 400)
    ledger.release(key="3", position_id="main-1", held_only=True)
    ledger.close()
    with pytest.raises(CommandError, match="1 positions have several fills"):  # more of it may fill late
        downgrade(database_url, "0009")


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT * FROM positions WHERE portfolio_id = 1 AND {PENDING} AND expires_us <= 9",
        f"SELECT min(expires_us) FROM positions WHERE portfolio_id = 1 AND {PENDING} AND expires_us > 9",
        f"SELECT * FROM positions WHERE portfolio_id = 1 AND state = 'held' AND {PENDING}",
    ],
)
def test_plan_query_when_it_asks_for_holds_then_it_reads_the_index_of_expiries(database_url: str, query: str) -> None:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # an empty table is read as a whole unless that is forbidden
            connection.execute(text("SET enable_seqscan = off"))
            lines = connection.execute(text(f"EXPLAIN {query}")).scalars().all()
        else:
            lines = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {query}"))]
    engine.dispose()
    assert any("ix_positions_expiry" in line for line in lines), lines
