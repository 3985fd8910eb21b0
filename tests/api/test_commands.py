"""The HTTP contract of the commands, over a real socket, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.wire.problems import error_of
from ledger_sizer.wire.responses import decision_from_json, decision_to_json
from tests.support.services import Running, serving

SPOT = {"symbol": "BTC/USDT", "min_qty": "0.0001", "max_qty": "100", "qty_step": "0.0001", "min_notional": "5"}
PERP = {"symbol": "BTC/USDT:USDT", "min_qty": "0.001", "max_qty": "100", "qty_step": "0.001"}
FULL_REQUEST = {
    "tags": {"venue": "bybit", "symbol": "BTC"},
    "signal_score": "0.9",
    "price": "50000",
    "available_balance": "10000",
    "spot_instrument": SPOT,
    "perp_instrument": PERP,
    "ttl_seconds": 30,
}


@pytest.fixture
def service(database_url: str) -> Iterator[Running]:
    with serving(database_url) as running:
        yield running


def _problem(answer: Any, status: int, code: str) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"].endswith(code)
    return problem


def test_trade_when_reserved_confirmed_and_released_then_each_answer_is_the_ledgers_own(service: Running) -> None:
    reserved = service.post("/v1/reservations", "a", FULL_REQUEST)
    assert reserved.status_code == 201
    decision = reserved.json()
    assert (decision["outcome"], decision["granted"], decision["quantity"]) == ("granted", True, "0.02")
    assert decision["budget"] == "1000"
    assert reserved.headers["Location"] == f"/v1/positions/{decision['position_id']}"
    assert decision == decision_to_json(service.ledger.decision(1))
    path = f"/v1/positions/{decision['position_id']}"
    assert service.http.get(path).json()["state"] == "held"
    assert service.post(f"{path}/extend", "b", {"ttl_seconds": "90.5"}).json()["outcome"] == "granted"
    confirmed = service.post(f"{path}/confirm", "c", {"quantity": "0.018", "price": "50100", "spot_price": "50090"})
    assert (confirmed.status_code, confirmed.json()["outcome"]) == (200, "applied")
    assert service.http.get(path).json()["open"] == "901.8"
    assert service.post(f"{path}/release", "d", {"quantity": "0.008"}).status_code == 200
    assert service.post(f"{path}/release", "e").json()["exposure_after"] == "0"
    assert service.http.get(path).json()["state"] == "closed"
    assert service.ledger.verify().ok


def test_reserve_when_body_is_empty_then_it_is_a_flat_budget(service: Running) -> None:
    answer = service.http.post("/v1/reservations", headers={"Idempotency-Key": "a"})
    assert (answer.status_code, answer.json()["budget"], answer.json()["quantity"]) == (201, "1000", None)


def test_reserve_when_full_is_asked_then_request_and_trace_come_too(service: Running) -> None:
    answer = service.post("/v1/reservations?full=true", "a", FULL_REQUEST)
    assert decision_from_json(answer.json()) == service.ledger.decision(1)


def test_reserve_when_dry_run_then_200_and_nothing_is_held_or_recorded(service: Running) -> None:
    answer = service.post("/v1/reservations", "a", {"dry_run": True})
    assert (answer.status_code, answer.json()["granted"], answer.json()["seq"]) == (200, True, None)
    assert "Location" not in answer.headers
    assert service.ledger.portfolios() == []


def test_reserve_when_cap_leaves_nothing_then_409_with_the_whole_decision(service: Running) -> None:
    service.command("PUT", "/v1/portfolios/main/caps", "cap", {"cap": "0"})
    problem = _problem(service.post("/v1/reservations", "a", {}), 409, "cap_exceeded")
    assert decision_from_json(problem["decision"]) == service.ledger.decision(2)


def test_reserve_when_the_rest_is_kept_for_a_pool_then_the_problem_and_the_error_name_it(service: Running) -> None:
    caps = "/v1/portfolios/main/caps"
    service.command("PUT", caps, "cap", {"cap": "900"})
    service.command("PUT", caps, "pool", {"scope": "bot=a", "guarantee": "900", "max_position_usd": "50"})
    problem = _problem(service.post("/v1/reservations", "a", {"tags": {"bot": "b"}}), 409, "cap_exceeded")
    assert problem["decision"]["binding"] == "guarantee:bot=a"
    says = (
        "reserve 'a' denied: cap_exceeded (bound by guarantee:bot=a): the portfolio's cap, less what is kept for "
        "others (most of it for bot=a), leaves too little"
    )
    assert (problem["detail"], str(error_of(problem))) == (says, says)
    exposure = service.http.get("/v1/portfolios/main/exposure").json()
    pool = {"scope": "bot=a", "guaranteed": "900", "used": "0", "kept": "900", "lent_out": "0"}
    assert (exposure["pools"], exposure["shared"], exposure["defaults"]) == ([pool], "0", [])
    service.command("PUT", caps, "less", {"scope": "bot=a", "guarantee": None})
    assert service.ledger.exposure().scope("bot=a").max_position_usd == 50, "what is absent stays"
    assert service.ledger.exposure().pools == ()


@pytest.mark.parametrize("path", ["/v1/reservations", "/v1/reservations?full=true"])
def test_replay_when_granted_or_denied_then_the_same_answer_with_the_header(service: Running, path: str) -> None:
    for cap, status in (("5000", 201), ("0", 409)):
        service.command("PUT", "/v1/portfolios/main/caps", f"cap {cap}", {"cap": cap})
        first = service.post(path, f"key {cap}", FULL_REQUEST)
        service.command("PUT", "/v1/portfolios/main/caps", f"cap {cap} after", {"cap": "90000"})
        again = service.post(path, f"key {cap}", FULL_REQUEST)
        assert (first.status_code, again.status_code) == (status, status)
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        assert first.text.replace('"replayed":false', '"replayed":true') == again.text


def test_replay_when_service_was_restarted_then_the_same_answer(database_url: str) -> None:
    with serving(database_url) as service:
        first = service.post("/v1/reservations", "a", FULL_REQUEST).json()
    with serving(database_url) as service:
        again = service.post("/v1/reservations", "a", FULL_REQUEST)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert {**first, "replayed": True} == again.json()


def test_send_key_again_when_body_differs_then_422_idempotency_key_reused(service: Running) -> None:
    service.post("/v1/reservations", "a", FULL_REQUEST)
    problem = _problem(
        service.post("/v1/reservations", "a", {**FULL_REQUEST, "price": "50001"}), 422, "idempotency_key_reused"
    )
    assert problem["field"] == "key"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/reservations"),
        ("POST", "/v1/positions/main-1/confirm"),
        ("POST", "/v1/positions/main-1/release"),
        ("POST", "/v1/positions/main-1/extend"),
        ("POST", "/v1/positions"),
        ("PUT", "/v1/portfolios/main/caps"),
        ("POST", "/v1/portfolios/main/halt"),
        ("POST", "/v1/portfolios/main/resume"),
    ],
)
def test_send_command_when_key_is_missing_or_bad_then_422_that_names_it(
    service: Running, method: str, path: str
) -> None:
    body = {"quantity": "1", "price": "1"} if path.endswith(("confirm", "positions")) else {}
    body = {"cap": "1"} if path.endswith("caps") else body
    missing = _problem(service.command(method, path, None, body), 422, "invalid_request")
    assert missing["field"] == "Idempotency-Key"
    for key in ("x" * 201, "ledger:mine"):
        assert _problem(service.command(method, path, key, body), 422, "invalid_request")["field"] == "key"
    twice = service.http.request(method, path, json=body, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    _problem(twice, 422, "invalid_request")
    assert service.ledger.portfolios() == []


def test_send_command_when_position_is_unknown_or_its_state_is_wrong_then_404_and_409(service: Running) -> None:
    _problem(service.post("/v1/positions/main-1/release", "a"), 404, "not_found")
    position = service.post("/v1/reservations", "b").json()["position_id"]
    _problem(service.post("/v1/positions/main-99/release", "c"), 404, "not_found")
    service.post(f"/v1/positions/{position}/release", "d")
    _problem(service.post(f"/v1/positions/{position}/release", "e"), 409, "wrong_state")
    _problem(service.post("/v1/positions/nonsense/release", "f"), 422, "invalid_request")


def test_steer_when_halted_and_resumed_then_reservations_stop_and_go(service: Running) -> None:
    _problem(service.post("/v1/portfolios/nobody/halt", "a"), 404, "not_found")
    service.post("/v1/reservations", "first")
    assert service.post("/v1/portfolios/main/halt", "a", {"mode": "reducing", "note": "why"}).status_code == 200
    _problem(service.post("/v1/reservations", "b"), 409, "reducing")
    service.post("/v1/portfolios/main/halt", "c")
    _problem(service.post("/v1/reservations", "d"), 409, "halted")
    service.post("/v1/portfolios/main/resume", "e")
    assert service.post("/v1/reservations", "f").status_code == 201
    scoped = service.command("PUT", "/v1/portfolios/main/caps", "g", {"cap": "10", "scope": "venue=okx"})
    assert scoped.json()["binding"] == "venue=okx"
    assert service.command("PUT", "/v1/portfolios/main/caps", "h", {"cap": None, "scope": "venue=okx"}).is_success
    body = {"cap": None}
    assert _problem(service.command("PUT", "/v1/portfolios/main/caps", "i", body), 422, "invalid_request")["field"] == (
        "cap"
    )


def test_adopt_when_position_exists_at_the_exchange_then_it_is_recorded_whatever_the_cap(service: Running) -> None:
    service.command("PUT", "/v1/portfolios/main/caps", "a", {"cap": "10"})
    leg = {"venue": "okx", "symbol": "BTC", "kind": "swap", "side": "sell", "quantity": "0.5"}
    answer = service.post("/v1/positions", "b", {"quantity": "0.5", "price": "100", "legs": [leg]})
    assert (answer.status_code, answer.json()["outcome"]) == (200, "applied")
    assert service.http.get("/v1/portfolios/main/exposure").json()["overage"] == "40"


def test_send_batch_when_independent_then_one_status_for_each(service: Running) -> None:
    commands = [
        {"command": "reserve", "key": "1"},
        {"command": "release", "key": "2", "position_id": "main-1"},
        {"command": "release", "key": "3", "position_id": "main-1"},
        {"command": "set_cap", "key": "4", "cap": "0"},
        {"command": "reserve", "key": "5"},
        {"command": "reserve", "key": "1", "signal_score": "0.5"},
        {"command": "reserve", "key": "7", "price": 1.5},
        {"command": "release", "key": "8", "position_id": "nobody-1"},
        {"command": "reserve", "key": "1"},
    ]
    answer = service.http.post("/v1/batch", json={"commands": commands})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [201, 200, 409, 200, 409, 422, 422, 404, 201]
    codes = [result["problem"]["code"] for result in results if "problem" in result]
    assert codes == ["wrong_state", "cap_exceeded", "idempotency_key_reused", "invalid_request", "not_found"]
    assert results[4]["problem"]["decision"]["reason"] == "cap_exceeded"
    assert results[8]["decision"]["replayed"] is True
    assert service.ledger.verify().ok


def test_send_batch_when_atomic_then_all_or_none_and_a_denial_is_409(service: Running) -> None:
    service.command("PUT", "/v1/portfolios/main/caps", "cap", {"cap": "1500"})
    fits = {"commands": [{"command": "reserve", "key": "1"}], "atomic": True}
    assert service.http.post("/v1/batch", json=fits).json()["results"][0]["status"] == 201
    too_much = {
        "commands": [{"command": "reserve", "key": "2"}, {"command": "reserve", "key": "3"}],
        "atomic": True,
    }
    problem = _problem(service.http.post("/v1/batch", json=too_much), 409, "cap_exceeded")
    assert [result["problem"]["code"] for result in problem["results"]] == ["group_denied", "cap_exceeded"]
    assert service.ledger.exposure().held == 1000
    seq = service.ledger.exposure().seq
    for wrong in ({"command": "release", "key": "5", "position_id": "main-99"}, {"command": "reserve"}):
        answer = service.http.post(
            "/v1/batch", json={"commands": [{"command": "reserve", "key": "4"}, wrong], "atomic": True}
        )
        assert answer.status_code in (404, 422)
    assert service.ledger.exposure().seq == seq


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "commands"),
        ({"commands": []}, "commands"),
        ({"commands": {}}, "commands"),
        ({"commands": [{}] * 1001}, "commands"),
        ({"commands": [{}], "atomic": 1}, "atomic"),
        ({"commands": [{}], "x": 1}, "x"),
    ],
    ids=["none", "empty", "no list", "1001", "atomic", "unknown"],
)
def test_send_batch_when_it_is_wrong_itself_then_422(service: Running, body: Any, field: str) -> None:
    assert _problem(service.http.post("/v1/batch", json=body), 422, "invalid_request")["field"] == field


def test_send_batch_when_it_has_1000_commands_then_each_is_answered_in_order(service: Running) -> None:
    commands = [{"command": "reserve", "key": f"{n}", "portfolio": f"p{n % 3}"} for n in range(1000)]
    results = service.http.post("/v1/batch", json={"commands": commands}).json()["results"]
    assert [(r.get("decision") or r["problem"]["decision"])["key"] for r in results] == [c["key"] for c in commands]
    assert sum(result["status"] == 201 for result in results) == 15


def test_reserve_when_many_clients_compete_then_the_cap_is_filled_exactly(service: Running) -> None:
    def ask(number: int) -> int:
        return service.post("/v1/reservations", f"bot {number}", {"tags": {"venue": "bybit"}}).status_code

    service.command("PUT", "/v1/portfolios/main/caps", "cap", {"cap": "20500"})
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(ask, range(64)))
    assert statuses.count(201) == 21
    assert statuses.count(409) == 43
    exposure = service.ledger.exposure()
    assert exposure.held == Decimal(20500) == exposure.cap
    assert service.ledger.verify().ok


def test_send_request_id_when_plain_then_it_comes_back_and_else_a_new_one(service: Running) -> None:
    assert service.http.get("/healthz", headers={"X-Request-Id": "bot-1:17"}).headers["X-Request-Id"] == "bot-1:17"
    for bad in ("x" * 129, "a b", "{}", '"'):
        given = service.http.get("/healthz", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
        assert given != bad
        assert len(given) == 32


def test_read_problem_codes_when_document_lists_them_then_every_denial_is_there(service: Running) -> None:
    document = service.http.get("/openapi.json").json()
    codes = document["components"]["schemas"]["ProblemForm"]["properties"]["code"]["enum"]
    assert set(DENIAL_REASONS) < set(codes)
    assert "float" not in json.dumps(document["components"]["schemas"]["ReserveBody"])


def test_send_request_id_when_a_command_is_committed_then_the_log_of_its_decision_carries_it(
    service: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="ledger_sizer"):
        service.post("/v1/reservations", "one", headers={"X-Request-Id": "bot-1:17"})
        batch = {"commands": [{"command": "reserve", "key": "two"}, {"command": "reserve", "key": "three"}]}
        service.http.post("/v1/batch", json=batch, headers={"X-Request-Id": "bot-2:1"})
        service.ledger.reserve(key="four")
        service.post("/v1/reservations", "one", headers={"X-Request-Id": "bot-1:18"})
    lines = [line.msg for line in caplog.records if isinstance(line.msg, dict)]
    logged = {line["key"]: line.get("request_id") for line in lines if line["event"] == "decision"}
    assert logged == {"one": "bot-1:17", "two": "bot-2:1", "three": "bot-2:1", "four": None}
    assert [line["request_id"] for line in lines if line.get("key") == "one"] == ["bot-1:17"], "a replay logs nothing"
