"""Tests the drift injection: the real service finds every kind of drift at a real paper venue."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer.client import LedgerClient
from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.demo.drift_injection import INJECTIONS
from ledger_sizer.demo.processes import Service
from ledger_sizer.demo.venue import running_venue, running_venue_bot, service_settings
from ledger_sizer.demo.venue_bot import KEPT, NAME
from ledger_sizer.model.choices import DRIFT_KINDS
from tests.support.services import eventually

pytest.importorskip("ccxt")

SECONDS_MAX = 240
INJECTED = {*DRIFT_KINDS} - {"interest"}
"""The test takes 40 s, mostly waiting; this leaves time for a busy machine."""


@pytest.mark.extended
@pytest.mark.timeout(SECONDS_MAX + 60)
def test_meddle_when_every_turn_was_taken_then_each_kind_of_drift_was_found_and_cleared(tmp_path: Path) -> None:
    with running_venue(tmp_path) as venue_url:
        assert venue_url is not None
        service = Service(tmp_path, service_settings(venue_url))
        try:
            service.wait_until_ready()
            with LedgerClient(service.url) as client:
                client.set_cap(key="cap", portfolio=PORTFOLIO, cap=Decimal(4_000))
                with running_venue_bot(client, venue_url, tmp_path, seed=7) as injector:
                    assert injector is not None
                    deadline = time.monotonic() + SECONDS_MAX
                    while len(injector.injected) < len(INJECTIONS) and time.monotonic() < deadline:
                        injector.tick()
                        time.sleep(0.1)
                injected = injector.injected
                scopes = {scope.scope: scope for scope in client.exposure(PORTFOLIO).scopes}
                # A run may have looked between a trade's two legs. The next one, a second later, finds them both.
                eventually(lambda: client.drifts(PORTFOLIO, state="live").items == ())
        finally:
            service.stop()
    assert sorted(one.kind for one in injected) == sorted(INJECTED)
    for one in injected:
        assert one.drift is not None, one
        assert one.cleared, one
    assert not scopes["venue=bybit"].frozen, "what froze was thawed"
    assert scopes["external=exchange"].open == 0, "nothing counts any more that is not the ledger's"
    assert scopes[f"symbol={KEPT}"].open == 0, "the trader left what it kept, when it was told to stop"
    assert scopes[f"strategy={NAME}"].open == scopes["strategy=meddler"].open == 0


def test_list_meddling_when_a_kind_is_added_then_somebody_does_it() -> None:
    assert {one.kind for one in INJECTIONS} == INJECTED
    assert len(INJECTIONS) == len(INJECTED)
