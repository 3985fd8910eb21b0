"""Tests of the metrics of scopes and pools: guarantees, default caps, and what a scrape leaves out."""

from __future__ import annotations

import pytest

from ledger_sizer.service import scope_metrics
from ledger_sizer.service.metrics import ExposureCollector
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.ledgers import lend_out, opened


def scraped(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what a scrape shows: by metric the values by labels."""
    engine = make_engine(url)
    found = {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in ExposureCollector(engine).collect()
    }
    engine.dispose()
    return found


def test_scrape_when_there_are_pools_and_default_caps_then_each_has_its_own_gauge(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        lend_out(ledger)
        ledger.reserve(key="alone", portfolio="other", tags={"venue": "bybit"})
    shown = scraped(database_url)
    a, b = ("main", "bot=a"), ("main", "bot=b")
    assert shown["ledger_guarantee_usd"] == {a: 2_000, b: 1_500}
    assert shown["ledger_guarantee_kept_usd"] == {a: 1_500, b: 1_500}
    assert shown["ledger_guarantee_lent_out_usd"] == {a: 400, b: 400}
    assert shown["ledger_shared_usd"] == {("main",): 0}
    assert shown["ledger_max_position_usd"] == {a: 600}
    assert shown["ledger_exposure_usd"][a] == 500
    bybit, okx = ("main", "venue=bybit"), ("main", "venue=okx")
    assert shown["ledger_default_cap_usd"] == {("main", "venue=*"): 3_000}
    assert (shown["ledger_cap_usd"][bybit], shown["ledger_cap_usd"][okx]) == (3_000, 900)
    assert (shown["ledger_headroom_usd"][bybit], shown["ledger_overage_usd"][bybit]) == (2_100, 0)
    assert shown["ledger_cap_by_default"] == {bybit: 1}
    assert ("other", "venue=bybit") not in shown["ledger_cap_usd"], "the default is of another portfolio"
    rows = {labels for name, family in shown.items() if name != "ledger_default_cap_usd" for labels in family}
    assert ("main", "venue=*") not in rows, "it looks like an empty scope"


def test_scrape_when_there_are_more_scopes_than_it_shows_then_pools_are_not_left_out(
    database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope_metrics, "SCOPES_MAX", 2)
    with opened(database_url, clock) as ledger:
        lend_out(ledger)
    shown = scraped(database_url)
    assert {scope for _, scope in shown["ledger_exposure_usd"]} == {"portfolio", "bot=d", "bot=a", "bot=b"}
    assert shown["ledger_guarantee_lent_out_usd"] == {("main", "bot=a"): 400, ("main", "bot=b"): 400}
    assert shown["ledger_scopes_left_out"] == {(): 3}, "bot=c and two venues; a default is no scope"
