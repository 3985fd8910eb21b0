"""Scheduled jobs: a long sweep keeps the lease, and ends when the service stops or another replica has the lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from ledger_sizer import Ledger, Reserve
from ledger_sizer.service.jobs import Jobs, sweep
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.storage.database import make_engine
from ledger_sizer.storage.write_store import EXPIRIES_MAX
from tests.support.clock import FakeClock
from tests.support.services import eventually

LEASE_SECONDS = 3


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def jobs(engine: Engine) -> Iterator[Jobs]:
    jobs = Jobs(engine, LEASE_SECONDS, Metrics())
    yield jobs
    jobs.stop()


@pytest.fixture
def held(ledger: Ledger, clock: FakeClock) -> int:
    """Return the USD in more overdue holds than three slices free."""
    ledger.set_cap(key="cap", cap=10**7)
    ledger.submit([Reserve(key=f"{n}", ttl_seconds=10) for n in range(3 * EXPIRIES_MAX + 1)])
    clock.advance(10)
    return held_usd(ledger)


def held_usd(ledger: Ledger) -> int:
    return int(ledger.exposure().held)


def test_sweep_when_the_service_stops_then_it_ends_after_the_slice_under_way(
    ledger: Ledger, held: int, jobs: Jobs
) -> None:
    def may_go_on() -> bool:
        jobs.stop()
        return jobs.may_go_on()

    sweep(ledger, may_go_on)
    assert held_usd(ledger) == held - EXPIRIES_MAX * 1000
    sweep(ledger, lambda: True)
    assert held_usd(ledger) == 0


def test_stop_when_a_job_is_under_way_then_it_is_told_to_end(jobs: Jobs) -> None:
    begun, steps = threading.Event(), []

    def work() -> None:
        while jobs.may_go_on():
            steps.append(1)
            begun.set()

    jobs.every("long", 3600, work)
    jobs.start()
    assert begun.wait(30)
    jobs.stop()
    assert not jobs.may_go_on()


def test_go_on_when_another_replica_has_the_lease_then_the_job_ends(engine: Engine, jobs: Jobs) -> None:
    assert jobs.may_go_on()
    other = Jobs(engine, LEASE_SECONDS, Metrics())
    assert not other.may_go_on()
    jobs.stop()
    eventually(other.may_go_on)
    other.stop()


def test_go_on_when_a_third_of_the_lease_has_passed_then_the_lease_is_prolonged(engine: Engine, jobs: Jobs) -> None:
    def until_us() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT until_us FROM leases")).scalar_one())

    assert jobs.may_go_on()
    first = until_us()
    eventually(lambda: jobs.may_go_on() and until_us() > first)
