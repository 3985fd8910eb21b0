"""What a key bound to portfolios, and a caller without a key, must not learn about others and about the database."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from ledger_sizer.service import metrics, scope_metrics
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine, upgrade
from tests.conftest import NewDatabase
from tests.support.databases import PostgresServer
from tests.support.services import Process, Running, serving


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
    assert 'portfolio="*"' not in everything, "the desk is no portfolio"
    assert ("ledger_desk_stopped 0.0" in told, "ledger_desk_stopped 0.0" in everything) == (True, True)
    service.ledger.halt(key="stop", portfolio="*")
    assert "ledger_desk_stopped 1.0" in _metrics(service, tokens["alpha"])
    service.ledger.resume(key="go", portfolio="*")
    for name in ("ledger_new_thing", "ledger_new_total", "ledger_decisions_total", 'portfolio="beta"'):
        assert name in everything, name


def test_read_metrics_when_others_have_more_scopes_than_a_scrape_shows_then_the_own_ones_are_all_there(
    service: Running, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope_metrics, "SCOPES_MAX", 2)
    told = _metrics(service, tokens["alpha"])
    assert set(re.findall(r'ledger_held_usd{portfolio="alpha",scope="([^"]+)"}', told)) == {"portfolio", "venue=okx"}
    assert "ledger_scopes_left_out 0.0" in told


# Foreign pages.

FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_send_change_when_a_foreign_page_asks_for_it_without_keys_then_403_and_nothing_is_done(
    new_database: NewDatabase, headers: dict[str, str]
) -> None:
    with serving(new_database("sqlite")) as service:
        service.ledger.reserve(key="first")
        before = service.ledger.exposure().seq
        for method, path, body in (
            ("POST", "/v1/reconciliations", None),
            ("POST", "/v1/reservations", {}),
            ("POST", "/v1/batch", {"commands": [{"command": "reserve", "key": "b"}]}),
            ("POST", "/v1/positions/main-1/release", None),
            ("PUT", "/v1/portfolios/main/caps", {"cap": "1"}),
        ):
            answer = service.http.request(method, path, json=body, headers={"Idempotency-Key": path, **headers})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        assert service.ledger.exposure().seq == before
        assert service.http.get("/v1/portfolios", headers=headers).status_code == 200, "reading changes nothing"


def test_send_change_when_the_caller_is_no_foreign_page_then_it_is_done(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite")) as service:
        own = [{}, {"Origin": service.url}, {"Origin": service.url, "Sec-Fetch-Site": "same-origin"}]
        for number, headers in enumerate([*own, {"Sec-Fetch-Site": "none"}]):
            assert service.post("/v1/reservations", f"{number}", headers=headers).status_code == 201, headers


def test_send_change_when_it_has_a_key_then_its_origin_does_not_matter(
    service: Running, tokens: dict[str, str]
) -> None:
    engine = make_engine(str(service.parts.reads.url.render_as_string(hide_password=False)))
    token = create_key(engine, "bot", "trade").token
    engine.dispose()
    headers = {"Authorization": f"Bearer {token}", "Origin": "https://desk.example", "Sec-Fetch-Site": "cross-site"}
    assert service.post("/v1/reservations", "far", headers=headers).status_code == 201


# The database's address.


def test_call_when_the_database_is_away_then_only_the_log_has_its_address(
    durable_postgres: PostgresServer, tmp_path: Path
) -> None:
    """Also without a key: `/readyz` is open to all, and so is the outage of every other path."""
    upgrade(durable_postgres.url)
    engine = make_engine(durable_postgres.url)
    token = create_key(engine, "bot", "admin").token
    engine.dispose()
    url = make_url(durable_postgres.url)
    secrets = [str(part) for part in (url.host or url.query.get("host"), url.port, url.database) if part]
    assert secrets
    names = {"LEDGER_RETRIES_MAX": "1", "LEDGER_BUSY_TIMEOUT_SECONDS": "1", "SERVICE_KEY_CACHE_SECONDS": "1"}
    process = Process(durable_postgres.url, tmp_path, **names)
    try:
        process.ready()
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{process.url}/v1/portfolios", headers=headers).status_code == 200
        durable_postgres.crash()
        told = []
        for _ in range(2):  # first with cached keys, then also the keys cannot be read
            for method, path in (
                ("GET", "/v1/portfolios"), ("POST", "/v1/reservations"), ("POST", "/v1/batch"), ("GET", "/readyz"),
                ("GET", "/"), ("GET", "/metrics"),
            ):  # fmt: skip
                body = {"commands": [{"command": "reserve", "key": "b"}]} if path == "/v1/batch" else {}
                sent = None if method == "GET" else body
                answer = httpx.request(
                    method, process.url + path, json=sent, headers={**headers, "Idempotency-Key": "k"}, timeout=60
                )
                told.append(f"{path} {answer.status_code} {answer.text}")
            time.sleep(1.1)
        assert sum(" 503 " in one for one in told) >= 8, told
        for one in told:
            for secret in (*secrets, "postgresql", "127.0.0.1", "socket"):
                assert secret not in one, one
        assert secrets[0] in process.log()
    finally:
        process.close()
