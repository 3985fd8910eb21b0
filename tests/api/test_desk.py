"""The desk over HTTP: halting all portfolios at once, who may, and the chain `*` in every read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ledger_sizer import Denied
from ledger_sizer.client import Forbidden, LedgerClient
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.support.ledgers import assert_verified
from tests.support.services import Running, serving

ROLES: dict[str, tuple[str, list[str]]] = {
    "boss": ("admin", []),
    "bound": ("admin", ["main", "other"]),
    "bot": ("trade", []),
    "eye": ("read", []),
    "bound eye": ("read", ["main"]),
}


@pytest.fixture
def tokens(database_url: str) -> dict[str, str]:
    engine = make_engine(database_url)
    made = {name: create_key(engine, name, role, bound).token for name, (role, bound) in ROLES.items()}
    engine.dispose()
    return made


@pytest.fixture
def service(database_url: str, tokens: dict[str, str]) -> Iterator[Running]:
    assert tokens
    with serving(database_url, key_cache_seconds=300) as running:
        running.ledger.reserve(key="first")
        yield running


def _halt(service: Running, token: str, key: str, path: str = "/v1/portfolios/*/halt", **body: Any) -> Any:
    return service.post(path, key, body, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("desk", ["*", "%2A"])
def test_halt_desk_when_all_portfolios_are_named_then_nothing_is_granted_anywhere_until_it_is_resumed(
    service: Running, tokens: dict[str, str], desk: str
) -> None:
    done = _halt(service, tokens["boss"], "h", f"/v1/portfolios/{desk}/halt", note="all stop")
    assert (done.status_code, done.json()["portfolio"], done.json()["seq"]) == (200, "*", 1)
    with LedgerClient(service.url, tokens["bot"]) as bot:
        for portfolio in ("main", "new"):
            denied = bot.reserve(key="k", portfolio=portfolio)
            assert (denied.reason, denied.binding) == ("halted", "desk")
        assert bot.desk_status() == "halted"
        held = bot.release(key="r", position_id="main-1")
        assert held.outcome == "applied", "closes always pass"
    assert _halt(service, tokens["boss"], "m", "/v1/portfolios/main/resume").status_code == 200
    assert _reason(service, tokens["bot"], "2") == "halted", "resuming one portfolio does not lift it"
    assert _halt(service, tokens["boss"], "d", f"/v1/portfolios/{desk}/resume").status_code == 200
    assert _reason(service, tokens["bot"], "3") is None
    assert_verified(service.ledger)


def _reason(service: Running, token: str, key: str) -> str | None:
    with LedgerClient(service.url, token) as bot:
        return bot.reserve(key=key).reason


def test_read_desk_when_it_is_halted_then_who_when_and_why_are_told_to_keys_of_all_portfolios(
    service: Running, tokens: dict[str, str]
) -> None:
    def told(name: str) -> Any:
        answer = service.http.get("/v1/desk", headers={"Authorization": f"Bearer {tokens[name]}"})
        assert answer.status_code == 200
        return answer.json()

    assert told("eye") == {"status": "active", "seq": None, "since": None, "actor": None, "note": None}
    done = _halt(service, tokens["boss"], "h", mode="reducing", note="venue down").json()
    assert told("eye") == {
        "status": "reducing", "seq": 1, "since": done["decided_at"], "actor": done["actor"], "note": "venue down",
    }  # fmt: skip
    assert done["actor"].startswith("api:")
    assert told("bound eye") == {"status": "reducing", "seq": None, "since": None, "actor": None, "note": None}
    assert service.http.get("/v1/desk").status_code == 401


@pytest.mark.parametrize("name", ["bound", "bot", "eye"])
@pytest.mark.parametrize("verb", ["halt", "resume"])
def test_steer_desk_when_key_is_bound_or_no_admin_then_it_is_forbidden_in_words(
    service: Running, tokens: dict[str, str], name: str, verb: str
) -> None:
    refused = _halt(service, tokens[name], "h", f"/v1/portfolios/*/{verb}").json()
    batch = {"commands": [{"command": verb, "key": "b", "portfolio": "*"}]}
    headers = {"Authorization": f"Bearer {tokens[name]}"}
    many = service.http.post("/v1/batch", json=batch, headers=headers).json()
    for problem in (refused, many):
        assert (problem["status"], problem["code"]) == (403, "forbidden")
    if name == "bound":
        assert "bound to main, other, use one that is not bound" in refused["detail"]
        assert "bound to main, other, use one that is not bound" in many["detail"]
    with LedgerClient(service.url, tokens[name]) as client, pytest.raises(Forbidden):
        getattr(client, verb)(key="c", portfolio="*")
    assert service.ledger.desk_status() == "active"
    assert service.ledger.history("*").items == ()


def test_halt_desk_when_it_is_in_a_batch_then_the_commands_after_it_are_denied(
    service: Running, tokens: dict[str, str]
) -> None:
    batch = {
        "commands": [
            {"command": "halt", "key": "h", "portfolio": "*"},
            {"command": "reserve", "key": "r"},
        ]
    }
    headers = {"Authorization": f"Bearer {tokens['boss']}"}
    results = service.http.post("/v1/batch", json=batch, headers=headers).json()["results"]
    assert [one["status"] for one in results] == [200, 409]
    assert results[1]["problem"]["decision"]["binding"] == "desk"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/portfolios/*/freeze", {}),
        ("/v1/portfolios/*/halt", {"scope": "venue=bybit"}),
        ("/v1/reservations", {"portfolio": "*"}),
        ("/v1/positions", {"portfolio": "*", "quantity": "1", "price": "1"}),
    ],
)
def test_name_desk_when_the_command_is_not_about_all_portfolios_then_422_and_nothing_is_recorded(
    service: Running, tokens: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    refused = _halt(service, tokens["boss"], "h", path, **body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request"), refused.text
    assert refused.json()["field"] in ("portfolio", "scope")
    assert service.ledger.history("*").items == ()


def test_read_chain_of_the_desk_when_key_is_not_bound_then_every_read_has_it_and_no_list_of_portfolios(
    service: Running, tokens: dict[str, str]
) -> None:
    with LedgerClient(service.url, tokens["boss"]) as boss:
        halted = boss.halt(key="h", portfolio="*", note="all stop")
        boss.resume(key="r", portfolio="*")
    with LedgerClient(service.url, tokens["eye"]) as eye:
        assert [one.command for one in eye.history("*")] == ["resume", "halt"]
        assert eye.decision(1, "*") == halted
        assert eye.explain(1, "*").decision == halted
        assert eye.lookup("h", "*") == halted
        assert eye.heads()["*"] == service.ledger.heads("*")["*"]
        assert eye.portfolios() == ["main"]
        assert len(eye.overview().portfolios) == 1
    for path in ("/v1/decisions/*/1", "/v1/decisions/%2A/1", "/v1/decisions?portfolio=*"):
        for name, status in (("eye", 200), ("bound eye", 403)):
            headers = {"Authorization": f"Bearer {tokens[name]}"}
            assert service.http.get(path, headers=headers).status_code == status, (path, name)
    with LedgerClient(service.url, tokens["bound eye"]) as bound:
        assert [*bound.heads()] == ["main"]
    lines = service.http.get(
        "/v1/decisions?portfolio=*&ascending=true",
        headers={"Authorization": f"Bearer {tokens['eye']}", "Accept": "application/x-ndjson"},
    ).text.splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["h", "r"]
    report = service.ledger.verify("*")
    assert (report.ok, report.decisions, report.positions) == (True, 2, 0)


def test_watch_events_when_desk_is_halted_then_unbound_keys_see_it_and_can_resume_after_it(
    service: Running, tokens: dict[str, str]
) -> None:
    headers = {"Authorization": f"Bearer {tokens['eye']}"}
    with service.http.stream("GET", "/v1/events", headers=headers) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("id: ")) == "id: *:0,main:1"
        _halt(service, tokens["boss"], "h")
        assert next(line for line in lines if line.startswith("id: ")) == "id: *:1,main:1"
        assert json.loads(next(line for line in lines if line.startswith("data: "))[6:])["portfolio"] == "*"
    with service.http.stream("GET", "/v1/events?portfolio=*", headers=headers) as stream:
        assert next(line for line in stream.iter_lines() if line.startswith("id: ")) == "id: *:1"
    service.ledger.reserve(key="later")
    bound = {"Authorization": f"Bearer {tokens['bound eye']}"}
    for asks, last in ((headers, "*:1,main:1"), (bound, "main:1")):
        with service.http.stream("GET", "/v1/events", headers={**asks, "Last-Event-ID": last}) as stream:
            data = json.loads(next(line for line in stream.iter_lines() if line.startswith("data: "))[6:])
        assert (data["portfolio"], data["seq"]) == ("main", 2)


def test_raise_for_denial_when_desk_is_halted_then_the_error_names_the_desk(
    service: Running, tokens: dict[str, str]
) -> None:
    _halt(service, tokens["boss"], "h")
    with LedgerClient(service.url, tokens["bot"]) as bot, pytest.raises(Denied, match="bound by desk"):
        bot.reserve(key="k").raise_for_denial()
