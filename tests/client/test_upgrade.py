"""A client and a service of different versions: this client with a service of before, and the other way round.

`recorded/service_0_1.json` holds what a service answered that wrote `tags`, `request` and `trace` as texts. A small
real server gives these answers again. `CLIENT_0_1` is what the client of that version reads of a decision.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import NoneType
from typing import Any

import pytest

from ledger_sizer import NotFound, Release, Reserve
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.model.decisions import Decision, canonical_text, chain_hash
from tests.conftest import NewDatabase
from tests.support.interfaces import ASK, FAST_RETRIES, FILL, Interface, opened

D = Decimal
RECORDED = Path(__file__).parent / "recorded" / "service_0_1.json"
TAGS = {**ASK["tags"], "desk": 'ü€ 😀 "q" \\ / <&>'}
TEXTS = ("tags", "request", "trace")


@contextmanager
def _service_of_before() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve the recorded answers, each to the call that it was given to. Yields the address and the answers."""
    answers: list[dict[str, Any]] = json.loads(RECORDED.read_text())["answers"]
    left: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for answer in answers:
        left[answer["method"], answer["path"], answer["key"]].append(answer)
    unknown = {"status": 404, "content_type": "application/problem+json", "body": _UNKNOWN_PATH}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65_537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = left[self.command, self.path.partition("?")[0], self.headers.get("Idempotency-Key")]
            answer = asked.pop(0) if asked else unknown
            body = json.dumps(answer["body"]).encode()
            self.send_response(answer["status"])
            self.send_header("Content-Type", answer["content_type"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_UNKNOWN_PATH = {
    "type": "urn:ledger-sizer:problem:not_found", "title": "There is no such thing", "status": 404,
    "code": "not_found", "detail": "Not Found",
}  # fmt: skip


@pytest.fixture(params=["client", "async_client"])
async def before(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Interface, list[dict[str, Any]]]]:
    """Each of this version's clients, connected to a service of before; and that service's answers."""
    with _service_of_before() as (url, answers):
        if request.param == "client":
            with LedgerClient(url, patience=FAST_RETRIES) as client:
                yield Interface(request.param, client, None), answers  # type: ignore[arg-type]
        else:
            async with AsyncLedgerClient(url, patience=FAST_RETRIES) as client:
                yield Interface(request.param, client, None), answers  # type: ignore[arg-type]


async def _decisions(ledger: Interface) -> list[Decision]:
    """Ask what the recorded service was asked, and return the decisions in order."""
    group = [Reserve(key="s4", available_balance=D(50)), Reserve(key="s5", **ASK)]
    results = [
        await ledger.set_cap(key="cap", cap=D("2000.5")),
        await ledger.set_cap(key="cap/venue", scope="venue=bybit", cap=D(1500)),
        await ledger.reserve(key="a", **{**ASK, "tags": TAGS}),
        await ledger.reserve(key="a", **{**ASK, "tags": TAGS}),
        await ledger.extend(key="x", position_id="main-3", ttl_seconds=60),
        await ledger.confirm(key="f", position_id="main-3", **FILL),
        await ledger.release(key="part", position_id="main-3", quantity=D("0.008")),
        await ledger.reserve(key="low", min_notional_usd=D(5000)),
        await ledger.halt(key="halt", scope="venue=bybit", note="maintenance ☃"),
        *await ledger.submit(
            [
                Reserve(key="s1", **ASK),
                Release(key="s2", position_id="main-99"),
                Reserve(key="s3", available_balance=D(50)),
            ]
        ),
        *await ledger.submit(group, atomic=True),
        await ledger.release(key="exit", position_id="main-3"),
    ]
    return [one for one in results if isinstance(one, Decision)]


def _forms(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every decision in full of an answer, wherever it stands; a denied batch's once, among its results."""
    if isinstance(value, dict):
        if "held_change" in value:
            yield value
        value = [one for name, one in value.items() if not (name == "decision" and "results" in value)]
    if isinstance(value, list):
        for one in value:
            yield from _forms(one)


async def test_call_a_service_of_before_when_it_answers_texts_then_every_decision_is_what_it_recorded(
    before: tuple[Interface, list[dict[str, Any]]],
) -> None:
    client, answers = before
    decisions = await _decisions(client)
    asked = [one["body"] for one in answers if one["method"] != "GET"]
    for decision, form in zip(decisions, _forms(asked), strict=True):
        assert (decision.record.tags, decision.request, decision.trace) == tuple(form[name] for name in TEXTS)
    history = list(await client.history(ascending=True))
    assert history == [decision for decision in decisions if not decision.replayed]
    previous = "0" * 64
    for decision in history:
        previous = chain_hash(previous, canonical_text(decision.record))
        assert decision.hash == previous, "the texts are those that were hashed"
    assert (await client.overview()).detail.decisions.items == tuple(reversed(history))
    explained = await client.explain(3)
    assert explained.data["request"]["tags"] == TAGS
    assert (await client.exposure()).seq == 13
    assert (await client.position("main-3")).state == "closed"


CLIENT_0_1: dict[str, tuple[type, ...]] = {
    "portfolio": (str,), "seq": (int, NoneType), "command": (str,), "key": (str,), "outcome": (str,),
    "reason": (str, NoneType), "replayed": (bool,), "position_id": (str, NoneType), "budget": (str, NoneType),
    "quantity": (str, NoneType), "fraction": (str, NoneType), "raw_budget": (str, NoneType),
    "headroom_before": (str, NoneType), "exposure_before": (str,), "exposure_after": (str,),
    "binding": (str, NoneType), "expires_at": (str, NoneType), "decided_at": (str,), "hash": (str, NoneType),
    "held_change": (str,), "open_change": (str,), "tags": (object,), "request": (object,), "trace": (object,),
}  # fmt: skip
"""It needs all of these, passes `tags`, `request` and `trace` on as they are, and ignores names it does not know."""


def test_look_at_recorded_answers_when_read_as_the_client_of_before_does_then_its_rules_hold() -> None:
    """The rules below are those of that client: the service of its own version satisfies them."""
    forms = list(_forms(json.loads(RECORDED.read_text())["answers"]))
    assert len(forms) > 30
    assert [form for form in forms if _broken(form)] == []


def _broken(form: dict[str, Any]) -> list[str]:
    return [name for name, kinds in CLIENT_0_1.items() if name not in form or not isinstance(form[name], kinds)]


@pytest.mark.parametrize("engine_kind", ["sqlite"])
async def test_answer_a_client_of_before_when_it_reads_decisions_then_all_but_its_explain_still_works(
    new_database: NewDatabase, engine_kind: str
) -> None:
    """What that client cannot do with objects is to parse them as text. It says so with a `TypeError`."""
    bodies: list[Any] = []
    async with opened("client", new_database(engine_kind), None) as ledger:
        http = ledger.raw._http  # type: ignore[union-attr]
        http.event_hooks["response"].append(lambda response: bodies.append(json.loads(response.read())))
        await _decisions(ledger)
        await ledger.history()
        await ledger.overview()
        await ledger.decision(1)
        await ledger.reserve(key="dry", dry_run=True, **ASK)
    forms = list(_forms(bodies))
    assert len(forms) > 30
    assert [form for form in forms if _broken(form)] == []
    assert {type(form[name]) for form in forms for name in TEXTS} == {dict}
    with pytest.raises(TypeError, match="must be str"):
        json.loads(forms[0]["request"])


async def test_call_a_service_of_before_when_it_lacks_a_path_then_that_is_said_and_is_no_value(
    before: tuple[Interface, list[dict[str, Any]]],
) -> None:
    client, _ = before
    with pytest.raises(NotFound):
        await client.decision(99)
