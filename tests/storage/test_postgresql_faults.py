"""PostgreSQL errors of a commit: the batch is retried, then fails with Busy or Unavailable, and is never denied."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ledger_sizer import Busy, LedgerError, Unavailable
from tests.support.gates import Gated, keys, one
from tests.support.ledgers import Intruder

pytestmark = pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)

ON_THE_WAY = pytest.mark.parametrize("warm_up", [0, 2], ids=["under the lock", "from remembered state"])
CONFLICT, LOST = (Busy, "contended"), (Unavailable, "away")
FAULTS = {
    "40001": CONFLICT,  # serialization_failure
    "40P01": CONFLICT,  # deadlock_detected
    "55P03": CONFLICT,  # lock_not_available
    "25P03": LOST,  # idle_in_transaction_session_timeout
    "25P04": LOST,  # transaction_timeout
    "57P01": LOST,  # admin_shutdown
}

TRAP = """
CREATE SEQUENCE sprung;
CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('sprung') <= {times} THEN {harm}; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER decisions_trap BEFORE INSERT ON decisions
    FOR EACH ROW WHEN (NEW.key = 'trapped') EXECUTE FUNCTION spring();
"""
"""Counts by a sequence, because a rollback does not undo `nextval`."""
ALWAYS = 1_000_000


@pytest.fixture
def intruder(database_url: str) -> Iterator[Intruder]:
    with Intruder(database_url) as intruder:
        yield intruder


@pytest.fixture
def desk(database_url: str) -> Iterator[Gated]:
    with Gated(database_url) as desk:
        yield desk


def trap(intruder: Intruder, harm: str, times: int) -> None:
    """Make the server do `harm` the first `times` times that the key `trapped` is inserted."""
    intruder.run(TRAP.format(harm=harm, times=times))


def sprung(intruder: Intruder) -> int:
    """Return how often the server was asked to insert the key `trapped`."""
    count: int = intruder.rows("SELECT last_value FROM sprung")[0][0]
    return count


@ON_THE_WAY
@pytest.mark.parametrize("sqlstate", FAULTS)
def test_reserve_when_the_server_fails_it_once_then_it_is_granted(
    desk: Gated, intruder: Intruder, sqlstate: str, warm_up: int
) -> None:
    trap(intruder, f"RAISE EXCEPTION 'trap' USING ERRCODE = '{sqlstate}'", times=1)
    ledger = desk.open()
    warm = [ledger.run(one(f"warm-up-{number}")).key for number in range(warm_up)]
    decision = ledger.run(one("trapped"))
    assert decision.granted
    assert not decision.replayed
    assert sprung(intruder) == 2
    assert keys(ledger) == [*warm, "trapped"]


@ON_THE_WAY
@pytest.mark.parametrize("sqlstate", FAULTS)
def test_reserve_when_the_server_always_fails_it_then_it_may_be_retried_and_nothing_is_recorded(
    desk: Gated, intruder: Intruder, sqlstate: str, warm_up: int
) -> None:
    trap(intruder, f"RAISE EXCEPTION 'trap' USING ERRCODE = '{sqlstate}'", times=ALWAYS)
    ledger = desk.open(retries_max=2)
    warm = [ledger.run(one(f"warm-up-{number}")).key for number in range(warm_up)]
    kind, why = FAULTS[sqlstate]
    with pytest.raises(LedgerError, match=f"(?s){why}.*with the same key") as caught:
        ledger.run(one("trapped"))
    assert type(caught.value) is kind
    assert caught.value.retryable
    assert not caught.value.granted
    assert sprung(intruder) == 3, "the bound: one try and two retries"
    assert ledger.run(one("next")).granted
    assert keys(ledger) == [*warm, "next"]


@pytest.mark.slow
@ON_THE_WAY
@pytest.mark.parametrize(("times", "outcome"), [(1, "granted"), (ALWAYS, "unavailable")])
def test_reserve_when_the_server_ends_a_transaction_that_takes_too_long_then_it_is_lost_and_not_refused(
    desk: Gated, intruder: Intruder, times: int, outcome: str, warm_up: int
) -> None:
    if int(intruder.rows("SHOW server_version_num")[0][0]) < 170_000:
        pytest.skip("the server has no transaction_timeout: PostgreSQL 17 brought it")
    trap(intruder, "PERFORM pg_sleep(3)", times)
    ledger = desk.open(busy_timeout_seconds=1, retries_max=1)
    warm = [ledger.run(one(f"warm-up-{number}")).key for number in range(warm_up)]
    try:
        answer = ledger.run(one("trapped")).outcome
    except LedgerError as error:
        answer = error.code
    assert answer == outcome
    assert ledger.run(one("next")).granted
    assert keys(ledger) == [*warm, *(["trapped"] if outcome == "granted" else []), "next"]
