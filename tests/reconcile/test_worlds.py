"""Random worlds (see `tests.reconcile.worlds` and `real_worlds`).

No false alarm in clean ones, no difference unseen in the others, no dollar promised twice in any.

A few worlds run by default. To run 1,000 of them, or the 201st to the 300th:

    WORLDS=1000 make test TEST_WORKERS=0 ARGS=tests/reconcile/test_worlds.py
    WORLDS=200-300 make test TEST_WORKERS=0 ARGS=tests/reconcile/test_worlds.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import AppSettings, Ledger, ReconcileSettings, TradingSettings
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.reconcile.real_worlds import RealWorld
from tests.reconcile.worlds import CONFIRMATIONS, GRACE_SECONDS, World
from tests.support.clock import FakeClock

WORLDS = os.environ.get("WORLDS", "")
_FIRST, _, _END = WORLDS.rpartition("-")
seeds_of_worlds = pytest.mark.parametrize(
    "seeds",
    [range(int(_FIRST or 0), int(_END))]
    if WORLDS
    else [range(4), pytest.param(range(4, 16), marks=pytest.mark.extended)],
    ids=lambda seeds: f"{seeds.start}-{seeds.stop}",
)
STEPS = 30
in_worlds = pytest.mark.parametrize("kind", ["one-venue", "two-venues", "real-accounts"])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[tuple[Ledger, Any, FakeClock]]:
    """A ledger for many worlds, each with a portfolio of its own."""
    url = module_database(request.param)
    clock = FakeClock()
    settings = AppSettings(
        reconcile=ReconcileSettings(confirmations=CONFIRMATIONS, grace_seconds=GRACE_SECONDS, stale_after_seconds=None),
        trading=TradingSettings(max_position_size_usd=Decimal(1000)),
    )
    engine = make_engine(url)
    with Ledger.open(url, settings=settings, clock=clock) as ledger:
        yield ledger, engine, clock
        assert ledger.verify().ok
    engine.dispose()


def _world(place: tuple[Ledger, Any, FakeClock], kind: str, seed: int, *, clean: bool) -> World:
    name = f"{'clean' if clean else 'wild'}-{seed}-{kind}"
    if kind == "real-accounts":
        return RealWorld(*place, name, seed, clean=clean)
    return World(*place, name, seed, clean=clean, wide=kind == "two-venues")


@pytest.mark.slow
@pytest.mark.timeout(0 if WORLDS else 600)
@seeds_of_worlds
@in_worlds
def test_reconcile_when_worlds_are_clean_then_no_drift_is_ever_confirmed(
    place: tuple[Ledger, Any, FakeClock], seeds: range, kind: str
) -> None:
    for seed in seeds:
        world = _world(place, kind, seed, clean=True)
        world.live(STEPS)
        last = world.come_to_rest()
        false = world.alarms(one for report in world.reports for one in report.confirmed)
        assert (false, world.undercounted, world.overpromised) == ([], [], []), f"seed {seed}"
        assert (world.alarms(last.live), world.unexplained(last)) == ([], []), f"seed {seed}"
        assert world.ledger.exposure(world.name).open == world.true_exposure, f"seed {seed}"
        assert len(world.reports) >= 5, "a world without runs shows nothing"


@pytest.mark.slow
@pytest.mark.timeout(0 if WORLDS else 600)
@seeds_of_worlds
@in_worlds
def test_reconcile_when_worlds_go_wrong_then_they_agree_or_a_drift_says_why_and_the_cap_counts_it(
    place: tuple[Ledger, Any, FakeClock], seeds: range, kind: str
) -> None:
    kinds = set()
    for seed in seeds:
        world = _world(place, kind, seed, clean=False)
        world.live(STEPS)
        last = world.come_to_rest()
        assert (world.unexplained(last), world.undercounted, world.overpromised) == ([], [], []), f"seed {seed}"
        assert all(drift.state == "confirmed" for drift in last.live if drift.kind != "expired_hold"), f"seed {seed}"
        exposure = world.ledger.exposure(world.name)
        assert exposure.open + exposure.held >= world.true_exposure, f"seed {seed}"
        assert exposure.whole.frozen == any(one.frozen_scope for one in last.live), f"seed {seed}"
        assert world.ledger.verify(world.name).ok, f"seed {seed}"
        kinds |= {finding.kind for report in world.reports for finding in report.findings}
    common = {"unknown_position", "quantity_differs", "missing_position", "late_fill", "legs_unequal"}
    assert len(seeds) < 12 or kinds >= common
