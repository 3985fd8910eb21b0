"""Whose call it was: a decision names the API key that asked, and an idempotency key belongs to that key's client."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier
from typing import Any

import httpx
import pytest

from ledger_sizer import InvalidRequest, KeyReused
from ledger_sizer.api.sessions import COOKIE
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.caller import caller_var
from ledger_sizer.service.api_keys import NewKey, create_key, revoke_key
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.support.ledgers import assert_verified
from tests.support.services import Running, serving
from tests.support.visitors import STEER, close_browsers, halt, keyed_service

D = Decimal
KEYS: dict[str, dict[str, Any]] = {
    "a": {"role": "trade"},
    "b": {"role": "trade"},
    "c1": {"role": "trade", "client": "bot-c"},
    "c2": {"role": "trade", "client": "bot-c"},
    "eye": {"role": "read"},
    "boss": {"role": "admin"},
    "bound": {"role": "admin", "portfolios": ["other"]},
}


class Callers:
    """A service with these API keys. `client(name)` is a client with one of them."""

    def __init__(self, service: Running, keys: dict[str, NewKey]) -> None:
        self.service = service
        self.keys = keys
        self._clients: list[LedgerClient] = []

    def client(self, name: str) -> LedgerClient:
        self._clients.append(LedgerClient(self.service.url, self.keys[name].token))
        return self._clients[-1]

    def actor(self, name: str) -> str:
        return f"api:{self.keys[name].key.key_id}:{name}"

    def headers(self, name: str, key: str | None = None) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.keys[name].token}",
            **({} if key is None else {"Idempotency-Key": key}),
        }

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def callers(database_url: str) -> Iterator[Callers]:
    engine = make_engine(database_url)
    keys = {name: create_key(engine, name, **given) for name, given in KEYS.items()}
    engine.dispose()
    with serving(database_url, key_cache_seconds=300) as service:
        made = Callers(service, keys)
        yield made
        made.close()


# Whose key.


def test_reserve_when_another_client_used_the_key_then_it_is_refused_and_both_trades_are_counted(
    callers: Callers,
) -> None:
    a, b = callers.client("a"), callers.client("b")
    ask: dict[str, Any] = {"key": "20260101T00/BTC", "tags": {"symbol": "BTC"}, "available_balance": D(1000)}
    one = a.reserve(**ask)
    with pytest.raises(KeyReused, match="belongs to another client") as refused:
        b.reserve(**ask)
    assert (refused.value.seq, refused.value.position_id) == (None, None)
    two = b.reserve(**{**ask, "key": "b/20260101T00/BTC"})
    assert one.position_id != two.position_id
    b.confirm(key="fill", position_id=two.position_id, quantity=D(1), price=D(900))
    a.confirm(key="a/fill", position_id=one.position_id, quantity=D(1), price=D(905))
    assert callers.service.ledger.exposure().scope("portfolio").open == 1805
    told = {decision.key: (decision.actor, decision.client) for decision in callers.service.ledger.history()}
    own = {name: (callers.actor(name), callers.keys[name].key.key_id) for name in "ab"}
    assert told == {
        "20260101T00/BTC": own["a"], "b/20260101T00/BTC": own["b"], "fill": own["b"], "a/fill": own["a"],
    }  # fmt: skip
    assert_verified(callers.service.ledger)


def test_reserve_when_api_keys_are_of_one_client_then_they_share_keys_also_after_one_is_revoked(
    callers: Callers, database_url: str
) -> None:
    first = callers.client("c1").reserve(key="k")
    engine = make_engine(database_url)
    revoke_key(engine, callers.keys["c1"].key.key_id)
    again = callers.client("c2").reserve(key="k")
    assert (again.replayed, again.position_id, again.client) == (True, first.position_id, "bot-c")
    assert again.actor == callers.actor("c1"), "the decision stays that of the first"
    assert callers.client("c2").lookup("k") == first
    # A bot whose first API key had no client goes on under that key's id.
    old = callers.client("a").reserve(key="old")
    successor = create_key(engine, "a-2", "trade", client=callers.keys["a"].key.key_id)
    engine.dispose()
    with serving(database_url) as later, LedgerClient(later.url, successor.token) as client:
        assert client.reserve(key="old").position_id == old.position_id


@pytest.mark.parametrize(
    ("name", "told"),
    [("a", ("main", 1, "main-1")), ("b", None), ("boss", ("main", 1, "main-1"))],
)
def test_reuse_key_when_request_differs_then_the_decision_is_told_to_its_client_and_to_admins(
    callers: Callers, name: str, told: tuple[str, int, str] | None
) -> None:
    callers.client("a").reserve(key="k")
    http = callers.service.http
    one = http.post("/v1/reservations", json={"available_balance": "5"}, headers=callers.headers(name, "k")).json()
    batch = {"commands": [{"command": "reserve", "key": "k", "available_balance": "5"}]}
    many = http.post("/v1/batch", json=batch, headers=callers.headers(name)).json()["results"][0]["problem"]
    for problem in (one, many):
        assert (problem["status"], problem["code"], problem["field"]) == (422, "idempotency_key_reused", "key")
        assert (problem.get("seq"), problem.get("position_id")) == ((None, None) if told is None else told[1:])
        assert ("seq" in problem) == (told is not None)
        assert ("main-1" in str(problem)) == (told is not None)
    with pytest.raises(KeyReused) as error:
        callers.client(name).reserve(key="k", available_balance=D(5))
    assert (error.value.seq, error.value.position_id) == ((None, None) if told is None else told[1:])


def test_reuse_key_when_it_got_no_position_then_seq_alone_is_told(callers: Callers) -> None:
    callers.client("a").reserve(key="k", min_notional_usd=D(9000))
    with pytest.raises(KeyReused) as error:
        callers.client("a").reserve(key="k")
    assert (error.value.seq, error.value.position_id) == (1, None)


@pytest.mark.parametrize(
    ("name", "finds"), [("a", True), ("b", False), ("c1", False), ("eye", True), ("boss", True), ("bound", False)]
)
def test_look_up_when_key_is_anothers_then_only_those_who_see_all_find_it(
    callers: Callers, name: str, finds: bool
) -> None:
    made = callers.client("a").reserve(key="k")
    callers.client("a").reserve(key="other")
    get = callers.service.http.get
    decisions = get("/v1/decisions", params={"key": "k"}, headers=callers.headers(name))
    positions = get("/v1/positions", params={"key": "k", "portfolio": "main"}, headers=callers.headers(name))
    lines = get("/v1/decisions", params={"key": "k"}, headers={**callers.headers(name), "Accept": "text/csv"})
    if name == "bound":
        assert {answer.status_code for answer in (decisions, positions, lines)} == {403}
        return
    assert [one["seq"] for one in decisions.json()["items"]] == ([1] if finds else [])
    assert [one["position_id"] for one in positions.json()["items"]] == (["main-1"] if finds else [])
    assert len(lines.text.splitlines()) == 1 + finds
    assert callers.client(name).lookup("k") == (made if finds else None)
    assert len(callers.client(name).history(actor=callers.actor("a"))) == 2, "who asked is no secret"


def test_create_key_when_client_is_wrong_then_it_is_refused_by_name(callers: Callers, database_url: str) -> None:
    engine = make_engine(database_url)
    for wrong in ("", "x" * 129, "a\x1fb", 7):
        with pytest.raises(InvalidRequest, match="client") as refused:
            create_key(engine, "x", "trade", client=wrong)  # type: ignore[arg-type]
        assert refused.value.field == "client"
    engine.dispose()


# Who asked.


def test_ask_without_api_keys_when_on_loopback_then_the_caller_is_local(database_url: str) -> None:
    with serving(database_url) as service:
        service.post("/v1/reservations", "k")
        service.http.post("/v1/batch", json={"commands": [{"command": "reserve", "key": "b"}]})
        assert {(one.actor, one.client) for one in service.ledger.history()} == {("local", "local")}
        service.ledger.reserve(key="own")
        assert service.ledger.lookup("own").actor == "embedded:embedded", "no request is being served"
        assert service.http.get("/v1/decisions", params={"key": "own"}).json()["items"], "local callers are admins"


def test_send_on_one_connection_when_api_keys_take_turns_then_each_decision_names_its_own(callers: Callers) -> None:
    expected = []
    with httpx.Client(base_url=callers.service.url, limits=httpx.Limits(max_connections=1)) as http:
        for number in range(12):
            name = ("a", "b", "boss")[number % 3]
            body = {"commands": [{"command": "reserve", "key": f"{number}", "available_balance": "1"}]}
            if number % 2:
                answer = http.post("/v1/batch", json=body, headers=callers.headers(name))
            else:
                sent = {"available_balance": "1"}
                answer = http.post("/v1/reservations", json=sent, headers=callers.headers(name, f"{number}"))
            assert answer.status_code in (200, 201)
            http.get("/healthz")
            expected.append(callers.actor(name))
    found = callers.service.ledger.history(ascending=True)
    assert [decision.actor for decision in found] == expected


def test_pipeline_requests_when_api_keys_differ_then_none_inherits_the_caller_before(callers: Callers) -> None:
    names = ["a", "b", "boss", "c1"] * 5
    parts = []
    for number, name in enumerate(names):
        headers = {**callers.headers(name, f"{number}"), "Host": "x", "Content-Type": "application/json"}
        if number == len(names) - 1:
            headers["Connection"] = "close"
        body = b'{"available_balance":"1"}'
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        parts.append(f"POST /v1/reservations HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        # It asks nobody for a key, between two requests that do.
        parts.append(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" if number < len(names) - 1 else b"")
    host, _, port = callers.service.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"".join(parts))
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    assert len(re.findall(rb"HTTP/1.1 201", received)) == len(names)
    found = callers.service.ledger.history(ascending=True)
    assert {decision.key: decision.actor for decision in found} == {
        f"{number}": callers.actor(name) for number, name in enumerate(names)
    }


def test_pipeline_request_when_it_needs_no_key_then_no_caller_is_left_from_the_one_before(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    refusal = callers.service.app.middleware_stack._refusal

    def noting(path: str) -> Any:
        seen.append(caller_var.get())
        return refusal(path)

    monkeypatch.setattr(callers.service.app.middleware_stack, "_refusal", noting)
    test_pipeline_requests_when_api_keys_differ_then_none_inherits_the_caller_before(callers)
    assert set(seen) == {None}
    assert len(seen) > 30


def test_send_at_once_when_api_keys_differ_then_each_decision_names_its_own(callers: Callers) -> None:
    names = ("a", "b", "c1", "boss")
    start = Barrier(8)
    # One pool of connections, shared by all keys.
    with httpx.Client(base_url=callers.service.url, timeout=60) as http:

        def send(number: int) -> None:
            start.wait()
            for turn in range(20):
                name = names[(number + turn) % 4]
                sent = http.post(
                    "/v1/reservations",
                    json={"available_balance": "1"},
                    headers=callers.headers(name, f"{name}/{number}/{turn}"),
                )
                assert sent.status_code == 201

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, range(8)))
    found = callers.service.ledger.history(limit=1000)
    counted = Counter((decision.key.partition("/")[0], decision.actor) for decision in found)
    assert counted == {(name, callers.actor(name)): 40 for name in names}


def test_watch_events_when_another_key_asks_meanwhile_then_neither_changes_the_other(callers: Callers) -> None:
    with callers.service.http.stream("GET", "/v1/events", headers=callers.headers("eye")) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("id: "))
        callers.client("a").reserve(key="k")
        data = next(line for line in lines if line.startswith("data: "))
    assert f'"actor":"{callers.actor("a")}"' in data
    assert callers.client("b").reserve(key="b").actor == callers.actor("b")


def test_halt_on_the_dashboard_when_the_cookie_holds_the_key_then_the_decision_names_it(
    new_database: NewDatabase,
) -> None:
    with keyed_service(new_database("sqlite")) as keyed:
        keyed.service.ledger.reserve(key="first")
        browser = keyed.signed_in("admin")
        assert browser.http.cookies.get(COOKIE) == keyed.keys["admin"].token
        assert browser.submit("/steer/main", halt("h"), page=STEER).status_code == 303
        key_id = keyed.keys["admin"].key.key_id
        (halted,) = keyed.service.ledger.history(command="halt")
        assert (halted.actor, halted.client) == (f"api:{key_id}:admin at the desk", key_id)
    close_browsers()


def test_adopt_when_role_is_trade_then_a_fill_that_the_ledger_lacks_is_recorded(callers: Callers) -> None:
    bot = callers.client("a")
    held = bot.reserve(key="k", available_balance=D(50))
    bot.release(key="k/r", position_id=held.position_id)
    adopted = bot.adopt(key="k/late", quantity=D(50), price=D(1))
    assert (adopted.outcome, adopted.actor) == ("applied", callers.actor("a"))
    assert callers.service.ledger.exposure().scope("portfolio").open == 50
