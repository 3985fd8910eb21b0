"""Whoever meddles in the demonstration: every kind of drift, at a real paper venue, found by the real service."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer.client import LedgerClient
from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.demo.drift_injection import MEDDLING
from ledger_sizer.demo.processes import Service
from ledger_sizer.demo.venue import settings_at, trading, venue_in
from ledger_sizer.demo.venue_bot import KEPT, NAME
from ledger_sizer.model.reconciliation import KINDS

pytest.importorskip("ccxt")

SECONDS_MAX = 240
"""It takes 40 s, most of it waiting; a machine with other work gets its time."""


@pytest.mark.timeout(SECONDS_MAX + 60)
def test_meddle_when_every_turn_was_taken_then_each_kind_of_drift_was_found_and_cleared(tmp_path: Path) -> None:
    with venue_in(tmp_path) as venue_url:
        assert venue_url is not None
        service = Service(tmp_path, settings_at(venue_url))
        try:
            service.wait_until_ready()
            with LedgerClient(service.url) as client:
                client.set_cap(key="cap", portfolio=PORTFOLIO, cap=Decimal(4_000))
                with trading(client, venue_url, tmp_path, seed=7) as meddler:
                    assert meddler is not None
                    deadline = time.monotonic() + SECONDS_MAX
                    while len(meddler.injected) < len(MEDDLING) and time.monotonic() < deadline:
                        meddler.tick()
                        time.sleep(0.1)
                injected = meddler.injected
                scopes = {scope.scope: scope for scope in client.exposure(PORTFOLIO).scopes}
                drifts = client.drifts(PORTFOLIO, state="live")
        finally:
            service.end()
    assert sorted(one.kind for one in injected) == sorted(KINDS)
    for one in injected:
        assert one.drift is not None, one
        assert one.cleared, one
    assert not scopes["venue=bybit"].frozen, "what froze was thawed"
    assert scopes["external=exchange"].open == 0, "nothing counts any more that is not the ledger's"
    assert drifts.items == ()
    assert scopes[f"symbol={KEPT}"].open == 0, "the trader left what it kept, when it was told to stop"
    assert scopes[f"strategy={NAME}"].open == scopes["strategy=meddler"].open == 0


def test_list_meddling_when_a_kind_is_added_then_somebody_does_it() -> None:
    assert {one.kind for one in MEDDLING} == set(KINDS)
    assert len(MEDDLING) == len(KINDS)
