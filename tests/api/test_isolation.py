"""What a key bound to portfolios, and a caller without a key, must not learn about others and about the database."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from ledger_sizer.service import metrics
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.support.services import Running, serving


@pytest.fixture
def tokens(database_url: str) -> Iterator[dict[str, str]]:
    """Keys that read: `all` sees all portfolios, `alpha` only its own."""
    engine = make_engine(database_url)
    yield {
        "all": create_key(engine, "all", "read").token,
        "alpha": create_key(engine, "alpha", "read", ["alpha"]).token,
    }
    engine.dispose()


@pytest.fixture
def service(database_url: str, tokens: dict[str, str]) -> Iterator[Running]:
    """A service whose portfolio `beta` trades what `alpha` must not know of."""
    assert tokens
    with serving(database_url) as running:
        for number in range(3):
            running.ledger.reserve(key=f"{number}", portfolio="beta", tags={"symbol": f"SECRET{number}"})
        running.ledger.reserve(key="k", portfolio="alpha")
        running.ledger.set_cap(key="c", portfolio="alpha", scope="venue=okx", cap=5)
        yield running


def _metrics(service: Running, token: str) -> str:
    answer = service.http.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    return answer.text


def test_read_metrics_when_key_is_bound_then_nothing_tells_of_other_portfolios(
    service: Running, tokens: dict[str, str]
) -> None:
    Gauge("ledger_new_thing", "Of a later version.", ["portfolio"], registry=service.parts.metrics.registry).labels(
        "beta"
    ).set(1)
    Gauge("ledger_new_total", "Of a later version.", registry=service.parts.metrics.registry).set(1)
    told = _metrics(service, tokens["alpha"])
    assert "beta" not in told
    assert "SECRET" not in told
    assert 'ledger_held_usd{portfolio="alpha",scope="portfolio"} 1000.0' in told
    assert 'ledger_oldest_hold_age_seconds{portfolio="alpha"}' in told
    families = {family.name for family in text_string_to_metric_families(told) if family.samples}
    labelled = {
        family.name
        for family in text_string_to_metric_families(told)
        if any("portfolio" in sample.labels for sample in family.samples)
    }
    assert families - labelled == metrics.ABOUT_NO_PORTFOLIO - {"ledger_job_runs"}, "no job ran here"
    everything = _metrics(service, tokens["all"])
    for name in ("ledger_new_thing", "ledger_new_total", "ledger_decisions_total", 'portfolio="beta"'):
        assert name in everything, name


def test_read_metrics_when_others_have_more_scopes_than_a_scrape_shows_then_the_own_ones_are_all_there(
    service: Running, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SCOPES_MAX", 2)
    told = _metrics(service, tokens["alpha"])
    assert set(re.findall(r'ledger_held_usd{portfolio="alpha",scope="([^"]+)"}', told)) == {"portfolio", "venue=okx"}
    assert "ledger_scopes_left_out 0.0" in told
