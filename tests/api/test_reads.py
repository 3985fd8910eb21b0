"""Read-only HTTP routes: listings, exports, events, health and metrics, on both databases."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ledger_sizer.api.response_models import ExplanationForm
from tests.conftest import NewDatabase
from tests.support.databases import ENGINE_KINDS
from tests.support.services import Running, eventually, serving

SUMS = ".".join("0" * 64)
JSON_LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture(scope="module", params=ENGINE_KINDS)
def service(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[Running]:
    """A service with a history, shared by the tests that only read; those that write use `own_service`."""
    with _with_history(module_database(request.param)) as running:
        yield running


@pytest.fixture
def own_service(database_url: str) -> Iterator[Running]:
    with _with_history(database_url) as running:
        yield running


@contextmanager
def _with_history(database_url: str) -> Iterator[Running]:
    with serving(database_url, heartbeat_seconds=1) as running:
        for number in range(7):
            running.post(
                "/v1/reservations",
                f"key {number}",
                {"tags": {"venue": "okx" if number % 2 else "bybit", "symbol": "BTC"}, "portfolio": "main"},
            )
        running.post("/v1/positions/main-1/release", "out")
        running.post("/v1/reservations", "elsewhere", {"portfolio": "alt"})
        yield running


def _all_pages(service: Running, path: str, **params: Any) -> list[Any]:
    items, cursor = [], None
    while True:
        page = service.http.get(path, params={**params, **({"cursor": cursor} if cursor else {})}).json()
        items += page["items"]
        cursor = page["cursor"]
        if cursor is None:
            return items


def test_get_exposure_when_paged_then_the_whole_stands_on_every_page(service: Running) -> None:
    path, rows, cursor = "/v1/portfolios/main/exposure", [], None
    while cursor is not None or not rows:
        page = service.http.get(path, params={"limit": 1, **({"cursor": cursor} if cursor else {})}).json()
        whole, *others = page["scopes"]
        assert (whole["scope"], whole["cap"], page["cap"], len(others)) == ("portfolio", "5000", "5000", 1)
        rows, cursor = [*rows, *(row["scope"] for row in others)], page["cursor"]
    assert rows == ["symbol=BTC", "venue=bybit", "venue=okx"]
    every = service.http.get(path).json()
    assert ([row["scope"] for row in every["scopes"]], every["cursor"]) == (["portfolio", *rows], None)
    of_one = service.http.get(path, params={"dimension": "venue", "as_of": "3"}).json()
    assert [row["scope"] for row in of_one["scopes"]] == ["portfolio", "venue=bybit", "venue=okx"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("limit", "10001"), ("cursor", "portfolio"), ("cursor", "venue"), ("cursor", "venue=\0"),
     ("dimension", "Venue"), ("dimension", "portfolio"), ("page", "2")],
)  # fmt: skip
def test_get_exposure_when_a_parameter_cannot_be_one_then_it_is_named(service: Running, name: str, value: str) -> None:
    answer = service.http.get("/v1/portfolios/main/exposure", params={name: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert name in answer.json()["field"]


def test_list_positions_when_paged_then_nothing_is_missed_or_repeated(service: Running) -> None:
    found = [position["position_id"] for position in _all_pages(service, "/v1/positions", limit=2)]
    assert found == [f"main-{n}" for n in range(1, 6)] + ["alt-1"]


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({"portfolio": "alt"}, 1),
        ({"portfolio": "main", "state": "live"}, 4),
        ({"portfolio": "main", "state": "released"}, 1),
        ({"tag": "venue=okx"}, 2),
        ({"tag": ["venue=okx", "symbol=BTC"]}, 2),
        ({"tag": ["venue=okx", "symbol=ETH"]}, 0),
    ],
)
def test_list_positions_when_filtered_then_only_those(service: Running, params: Any, count: int) -> None:
    assert len(service.http.get("/v1/positions", params=params).json()["items"]) == count


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({}, 8),
        ({"outcome": "denied"}, 2),
        ({"reason": "cap_exceeded"}, 2),
        ({"command": "release"}, 1),
        ({"symbol": "BTC", "outcome": "granted"}, 5),
        ({"strategy": "x"}, 0),
        ({"until": "2000-01-01T00:00:00Z"}, 0),
        ({"since": "2000-01-01T00:00:00+01:00"}, 8),
    ],
)
def test_list_decisions_when_filtered_then_only_those_on_pages_and_in_both_exports(
    service: Running, params: Any, count: int
) -> None:
    assert len(_all_pages(service, "/v1/decisions", limit=3, **params)) == count
    lines = service.http.get("/v1/decisions", params=params, headers=JSON_LINES).text.splitlines()
    rows = list(
        csv.DictReader(
            io.StringIO(service.http.get("/v1/decisions", params=params, headers={"Accept": "text/csv"}).text)
        )
    )
    assert [json.loads(line)["seq"] for line in lines] == [int(row["seq"]) for row in rows]
    assert len(rows) == count


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/positions?limit=0", "limit"),
        ("/v1/positions?limit=1001", "limit"),
        ("/v1/positions?cursor=x", "cursor"),
        ("/v1/positions?state=lost", "state"),
        ("/v1/positions?tag=x", "tag.0"),
        ("/v1/positions?" + "&".join(f"tag=a={number}" for number in range(17)), "tags.a"),
        ("/v1/positions?" + "&".join("tag=a=1" for _ in range(257)), "tag"),
        ("/v1/positions?tag=a=1&tag=a=", "tag.1"),
        ("/v1/positions?unknown=1", "unknown"),
        ("/v1/decisions?since=2026-01-01", "since"),
        ("/v1/decisions?since=2026-13-01T00:00:00Z", "since"),
        ("/v1/decisions?symbol=%00", "symbol"),
        ("/v1/decisions?portfolio=a%20b", "portfolio"),
        ("/v1/decisions/main/0", "seq"),
        ("/v1/decisions/main/99999999999999999999", "seq"),
        ("/v1/decisions/main/x", "seq"),
        ("/v1/events?unknown=1", "unknown"),
    ],
)
def test_look_when_parameter_is_wrong_then_422_that_names_it(service: Running, path: str, field: str) -> None:
    answer = service.http.get(path)
    assert (answer.status_code, answer.json().get("field")) == (422, field), answer.text


@pytest.mark.parametrize(
    "path",
    ["/v1/positions/main-99", "/v1/decisions/main/99", "/v1/decisions/x/1", "/v1/portfolios/x/exposure?as_of=1",
     "/v1/overview?portfolio=x"],
)  # fmt: skip
def test_look_when_there_is_no_such_thing_then_404(service: Running, path: str) -> None:
    assert (service.http.get(path).status_code, service.http.get(path).json()["code"]) == (404, "not_found")


def test_look_when_nobody_used_the_portfolio_yet_then_it_is_empty(service: Running) -> None:
    looks = [service.http.get(f"/v1/{path}").json() for path in ("positions?portfolio=x", "decisions?portfolio=x")]
    assert looks == [{"items": [], "cursor": None}] * 2
    found = service.http.get("/v1/portfolios/x/exposure").json()
    assert (found["seq"], found["scopes"][0]["cap"], len(found["scopes"])) == (0, "5000", 1)


def test_read_exposure_when_scopes_were_used_then_each_has_its_row(service: Running) -> None:
    exposure = service.http.get("/v1/portfolios/main/exposure").json()
    assert (exposure["cap"], exposure["held"], exposure["headroom"]) == ("5000", "4000", "1000")
    assert {row["scope"]: row["held"] for row in exposure["scopes"]} == {
        "portfolio": "4000", "symbol=BTC": "4000", "venue=bybit": "2000", "venue=okx": "2000",
    }  # fmt: skip


def test_export_when_history_has_many_pages_then_all_of_it_is_streamed(own_service: Running) -> None:
    commands = [{"command": "reserve", "key": f"more {n}", "tags": {"wish": f"{n}"}} for n in range(1000)]
    own_service.http.post("/v1/batch", json={"commands": commands})
    lines = own_service.http.get("/v1/decisions?ascending=true&full=true", headers=JSON_LINES).text.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 1009))


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("*/*", 200, "application/json"),
        ("text/*", 200, "text/csv; charset=utf-8"),
        ("text/csv;q=0.5, application/x-ndjson", 200, "application/x-ndjson"),
        ("text/html, */*;q=0.1", 200, "application/json"),
        ("text/html", 406, "application/problem+json"),
        ("application/json;q=0", 406, "application/problem+json"),
        (";;;,,q=x", 406, "application/problem+json"),
    ],
)
def test_list_decisions_when_accept_varies_then_the_wanted_form(
    service: Running, accept: str, status: int, kind: str
) -> None:
    answer = service.http.get("/v1/decisions", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, kind)


def test_watch_events_when_connection_is_lost_then_resuming_misses_and_repeats_nothing(service: Running) -> None:
    first = _events(service, 3, last="main:0,alt:0")
    assert [event["id"] for event in first] == ["*:0,alt:1,main:0", "*:0,alt:1,main:1", "*:0,alt:1,main:2"]
    rest = _events(service, 6, last=first[-1]["id"])
    assert [event["data"]["seq"] for event in rest] == [3, 4, 5, 6, 7, 8]
    assert rest[0]["data"] == service.http.get("/v1/decisions/main/3?full=false").json()


def test_watch_events_when_fresh_then_only_what_comes_even_before_a_first_event(own_service: Running) -> None:
    with own_service.http.stream("GET", "/v1/events", params={"portfolio": "main"}) as stream:
        lines = stream.iter_lines()
        start = next(line for line in lines if line.startswith("id: "))
        assert start == "id: main:8"
        assert next(line for line in lines if line.startswith(":")) == ": heartbeat"
        own_service.post("/v1/reservations", "not watched", {"portfolio": "alt"})
        own_service.post("/v1/reservations", "now")
        data = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
    assert (data["portfolio"], data["seq"], data["key"]) == ("main", 9, "now")


def test_watch_events_when_portfolio_is_made_later_then_it_is_seen_from_its_first_decision(
    own_service: Running,
) -> None:
    with own_service.http.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("id: "))
        own_service.post("/v1/reservations", "k", {"portfolio": "late"})
        assert next(line for line in lines if line.startswith("id: ")) == "id: *:0,alt:1,late:1,main:8"


def test_watch_events_when_another_replica_commits_then_they_come_too(own_service: Running) -> None:
    url = own_service.parts.settings.ledger.database_url
    with serving(url) as other, own_service.http.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("id: "))
        other.post("/v1/reservations", "from the other")
        data = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
    assert data["key"] == "from the other"


@pytest.mark.parametrize(
    "last",
    [
        "x",
        "main",
        "main:x",
        "main:-1",
        "main:1,,",
        "a b:1",
        "~",
        "~all~1~2~~0~0",
        f"~all~1~2~~x~{SUMS}",
        f"~all~1~2~a b~1~{SUMS}",
        "main:" + "9" * 19,
    ],
)
def test_watch_events_when_last_event_id_is_not_ours_then_422(service: Running, last: str) -> None:
    answer = service.http.get("/v1/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("main:9", "main:9, and the head of main is seq 8"),
        ("alt:1,main:999999", "main:999999, and the head of main is seq 8"),
        ("alt:2,main:8", "alt:2, and the head of alt is seq 1"),
        ("*:3,main:8", "*:3, and the head of * is seq 0"),
        ("nobody:1", "nobody:1, and there is no portfolio 'nobody'"),
        ("main:" + "9" * 18, "the head of main is seq 8"),
        (f"~all~1~2~main~9~{SUMS}", "main:9, and the head of main is seq 8"),
        (f"~all~1~2~nobody~1~{SUMS}", "nobody:1, and there is no portfolio 'nobody'"),
    ],
)
@pytest.mark.parametrize("params", [{}, {"portfolio": "main"}])
def test_watch_events_when_last_event_id_is_beyond_the_head_then_it_is_refused_with_the_head(
    service: Running, last: str, said: str, params: dict[str, str]
) -> None:
    """Such a stream would be silent, and lose what is decided up to there."""
    with service.http.stream("GET", "/v1/events", params=params, headers={"Last-Event-ID": last}, timeout=5) as answer:
        assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
        problem = json.loads(answer.read())
    assert (problem["code"], problem["field"]) == ("invalid_request", "Last-Event-ID")
    assert said in problem["detail"]
    assert "begin anew" in problem["detail"]


def test_watch_events_when_last_event_id_is_the_head_then_the_next_decision_comes(own_service: Running) -> None:
    for last in ("main:8", "alt:1,main:8", "later:0,main:8", "*:0,main:8"):
        with own_service.http.stream("GET", "/v1/events", headers={"Last-Event-ID": last}) as answer:
            assert answer.status_code == 200, answer.read()
            assert next(answer.iter_lines()).startswith("retry:")
    own_service.post("/v1/reservations", "ninth")
    assert [(event["data"]["key"], event["id"]) for event in _events(own_service, 1, "alt:1,main:8")] == [
        ("ninth", "*:0,alt:1,main:9")
    ]


def _events(service: Running, count: int, last: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    current: dict[str, Any] = {}
    with service.http.stream("GET", "/v1/events", headers={"Last-Event-ID": last}) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("event", "id", "data"):
                current[name] = json.loads(value) if name == "data" else value
            elif not line:
                if "data" in current:
                    found.append(current)
                current = {}
            if len(found) == count:
                break
    return found


def test_read_health_and_metrics_when_serving_then_a_trader_sees_what_to_watch(own_service: Running) -> None:
    assert own_service.http.get("/healthz").json()["status"] == "ok"
    assert own_service.http.get("/readyz").json() == {
        "status": "ready",
        "checks": {"database": "ok", "clock": "ok", "writes": "ok", "queue": "ok", "service": "ok"},
    }
    text = own_service.http.get("/metrics").text
    for line in (
        'ledger_exposure_usd{portfolio="main",scope="portfolio"} 4000.0',
        'ledger_headroom_usd{portfolio="main",scope="portfolio"} 1000.0',
        'ledger_held_usd{portfolio="main",scope="venue=okx"} 2000.0',
        'ledger_open_usd{portfolio="main",scope="portfolio"} 0.0',
        'ledger_overage_usd{portfolio="main",scope="portfolio"} 0.0',
        'ledger_decisions_total{command="reserve",outcome="granted",reason=""} 6.0',
        'ledger_decisions_total{command="reserve",outcome="denied",reason="cap_exceeded"} 2.0',
        "ledger_queue_depth 0.0",
        "ledger_database_up 1.0",
        "ledger_batch_size_count 9.0",
        "ledger_commit_seconds_count 9.0",
        'ledger_http_requests_total{method="POST",route="/v1/reservations",status="201"} 6.0',
    ):
        assert line in text, line
    assert 'ledger_oldest_hold_age_seconds{portfolio="main"}' in text


def test_sweep_when_nobody_writes_then_the_scheduler_frees_expired_holds(database_url: str) -> None:
    with serving(database_url, jobs=True) as service:
        service.post("/v1/reservations", "a", {"ttl_seconds": 1})
        eventually(lambda: service.http.get("/v1/positions/main-1").json()["state"] == "expired")
        text = service.http.get("/metrics").text
    assert "ledger_expiries_total 1.0" in text
    assert 'ledger_job_runs_total{job="sweep",result="done"}' in text
    assert "ledger_jobs_leader 1.0" in text


# Objects.


def test_get_decisions_when_full_then_tags_request_and_trace_are_objects_and_exports_have_the_hashed_texts(
    service: Running,
) -> None:
    names = ("tags", "request", "trace")
    page = service.http.get("/v1/decisions", params={"full": "true"}).json()["items"]
    one = service.http.get("/v1/decisions/main/1").json()
    listed = service.http.get("/v1/overview", params={"portfolio": "main"}).json()["detail"]["decisions"]["items"]
    for decision in (*page, one, *listed):
        recorded = service.ledger.decision(decision["seq"]).record
        assert [decision[name] for name in names] == [json.loads(getattr(recorded, name)) for name in names]
    assert one["request"] == {"command": "reserve", "tags": {"symbol": "BTC", "venue": "bybit"}}
    exported = service.http.get("/v1/decisions", params={"full": "true"}, headers=JSON_LINES).text.splitlines()
    for line in map(json.loads, exported):
        recorded = service.ledger.decision(line["seq"]).record
        assert [line[name] for name in names] == [getattr(recorded, name) for name in names]
    assert len(exported) == len(page) == 8


def test_get_explanation_when_there_is_a_decision_then_it_is_that_of_the_ledger(service: Running) -> None:
    found = service.ledger.explain(6)
    answer = service.http.get("/v1/decisions/main/6/explanation")
    assert (answer.status_code, answer.json()) == (200, {"text": found.text, **found.data})
    assert set(ExplanationForm.model_fields) == {"text", *found.data}, "the document has every field"
    assert answer.json()["request"]["tags"] == {"symbol": "BTC", "venue": "okx"}
    assert (answer.json()["outcome"], answer.json()["reason"]) == ("denied", "cap_exceeded")
    of_position = service.http.get("/v1/positions/main-2/explanation")
    assert of_position.json()["text"] == str(service.ledger.explain("main-2"))


@pytest.mark.parametrize(
    ("path", "status"),
    [("decisions/main/99", 404), ("decisions/nobody/1", 404), ("positions/main-99", 404), ("positions/main-6", 404),
     ("decisions/main/0", 422), ("decisions/main/x", 422), ("decisions/no name/1", 422), ("positions/main", 422)],
)  # fmt: skip
def test_get_explanation_when_there_is_no_such_thing_then_it_says_so(service: Running, path: str, status: int) -> None:
    answer = service.http.get(f"/v1/{path}/explanation")
    assert (answer.status_code, bool(answer.json()["detail"])) == (status, True), answer.text
