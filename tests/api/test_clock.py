"""The service when the clock jumps: commands get 503, `/readyz` says why, `/healthz` asks for a restart; metrics."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ledger_sizer import Ledger
from tests.support.clock import FakeClock
from tests.support.ledgers import position_of
from tests.support.services import Running, serving
from tests.support.wrong_clocks import WrongClock

HOUR = 3600
TEN_YEARS = 3650 * 86_400


@pytest.fixture
def clock(database_url: str) -> Iterator[WrongClock]:
    clock = WrongClock(database_url)
    yield clock
    clock.close()


@pytest.fixture
def service(database_url: str, clock: WrongClock) -> Iterator[Running]:
    with serving(database_url) as service:
        clock.apply_to(service.ledger._guard)
        yield service


def metric(service: Running, name: str) -> dict[str, float]:
    """Return the values of a metric by portfolio ('' without one)."""
    families = text_string_to_metric_families(service.http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels.get("portfolio", ""): sample.value for sample in samples}


def test_serve_when_the_clock_jumps_then_checks_and_metrics_say_so_until_it_is_right(
    service: Running, clock: WrongClock
) -> None:
    assert service.post("/v1/reservations", "first").status_code == 201
    clock.jump(-HOUR)
    ready = service.http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["clock"].startswith("the clock jumped back by 3,600 s, so nothing is decided")
    assert ready.json()["checks"]["database"] == "ok"
    refused = service.post("/v1/reservations", "next")
    assert refused.status_code == 503
    assert "the clock jumped back by 3,600 s" in refused.json()["detail"]
    assert refused.headers["Retry-After"]
    assert metric(service, "ledger_clock_jump_seconds")[""] == pytest.approx(-HOUR, abs=30)
    clock.jump(0)
    assert service.http.get("/readyz").json()["checks"]["clock"] == "ok"
    assert metric(service, "ledger_clock_jump_seconds") == {"": 0}
    assert service.post("/v1/reservations", "next").status_code == 201


def test_serve_when_a_jump_stood_for_a_minute_then_healthz_asks_for_a_restart(
    service: Running, clock: WrongClock
) -> None:
    clock.jump(HOUR)
    for _ in range(2):
        assert service.http.get("/readyz").status_code == 503
        assert service.http.get("/healthz").status_code == 200
        clock.wait(29)
    clock.wait(2)
    assert service.http.get("/healthz").status_code == 200, "nobody looked since"
    assert service.http.get("/readyz").status_code == 503
    health = service.http.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (503, "restart")
    assert "if its new time is right, restart the service" in health.json()["checks"]["clock"]
    clock.jump(0)
    assert service.http.get("/readyz").status_code == 200
    assert service.http.get("/healthz").status_code == 200


def test_read_metrics_when_decisions_were_made_while_the_clock_was_ahead_then_they_show_how_far_and_the_holds(
    database_url: str,
) -> None:
    wrong = FakeClock(datetime.now(UTC) + timedelta(seconds=TEN_YEARS))
    with Ledger.open(database_url, clock=wrong) as ledger:
        stuck = ledger.reserve(key="stuck", available_balance=Decimal(10), ttl_seconds=60)
    with serving(database_url) as service:
        assert metric(service, "ledger_clock_ahead_seconds")[""] == pytest.approx(TEN_YEARS, abs=60)
        assert metric(service, "ledger_holds_ahead") == {"main": 1}
        assert service.post("/v1/reservations", "right").status_code == 201
        assert metric(service, "ledger_clock_ahead_seconds") == {"": 0}
        assert metric(service, "ledger_holds_ahead") == {"main": 1}
        assert service.post(f"/v1/positions/{position_of(stuck)}/release", "end").status_code == 200
        assert metric(service, "ledger_holds_ahead") == {"main": 0}
        assert service.ledger.verify().ok
