"""What HTTP tells of legs and fills: the forms are those of the OpenAPI document, and the clients read all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from ledger_sizer import Decision, Ledger, Position
from ledger_sizer.api.response_models import DecisionForm, ExplanationForm, PositionForm
from ledger_sizer.client import LedgerClient
from ledger_sizer.wire.responses import decision_from_json, decision_to_json, position_from_json
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS
from tests.support.ledgers import dynamic_settings
from tests.support.lives import live_through_fills
from tests.support.services import Running, serving

D = Decimal


@pytest.fixture(scope="module", params=ENGINE_KINDS)
def service(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[Running]:
    url, clock = module_database(request.param), FakeClock()
    with Ledger.open(url, settings=dynamic_settings(), clock=clock) as ledger:
        live_through_fills(ledger, clock)
    with serving(url, ledger={"sweep_interval_seconds": 3600}) as running:
        yield running


def test_get_decision_when_it_is_about_legs_and_fills_then_its_form_is_the_documented_one(service: Running) -> None:
    for full in ("true", "false"):
        answer = service.http.get("/v1/decisions", params={"portfolio": "main", "limit": 1000, "full": full}).json()
        for form in answer["items"]:
            DecisionForm.model_validate(form)
    seqs = [form["seq"] for form in answer["items"]]
    for seq in seqs:
        ExplanationForm.model_validate(service.http.get(f"/v1/decisions/main/{seq}/explanation").json())


def test_get_position_when_it_fills_in_parts_then_its_form_is_the_documented_one_and_reads_back(
    service: Running,
) -> None:
    forms = service.http.get("/v1/positions", params={"limit": 1000}).json()["items"]
    for form in forms:
        PositionForm.model_validate(form)
    assert [position_from_json(form) for form in forms] == _shown(service.ledger)
    spot = next(form for form in forms if form["position_id"] == "main-31")
    assert {name: spot[name] for name in ("until_known", "expires_at", "filled", "unfilled", "cost", "state")} == {
        "until_known": True, "expires_at": None, "filled": "7", "unfilled": "5.83", "cost": "49.11", "state": "open"
    }  # fmt: skip
    assert spot["legs"][0]["by_cost"] is True
    first = next(form for form in forms if form["position_id"] == "main-1")
    assert (first["reference"], first["legs"][1]["account"], first["legs"][1]["unit"]) == ("t7", "sub", "10000")


def _shown(ledger: Ledger) -> list[Position]:
    """Return all positions as they are told: an ended hold has no expiry any more."""
    return [one if one.pending else one.changed(expires_us=None) for one in ledger.positions(limit=1000)]


def test_read_decision_when_its_form_is_short_then_it_has_the_legs(service: Running) -> None:
    params = {"portfolio": "main", "limit": 1000, "full": "false"}
    short = [decision_from_json(form) for form in service.http.get("/v1/decisions", params=params).json()["items"]]
    for decision, known in zip(short, service.ledger.history("main", limit=1000), strict=True):
        assert (decision.legs, decision.until_known, decision.expires_at) == (
            known.legs, known.until_known, known.expires_at
        )  # fmt: skip
        assert decision.trace == ""
    assert [leg.order_amount for leg in short[-1].legs] == [93_000, 9300]


def test_read_by_client_when_positions_fill_in_parts_then_it_is_what_the_ledger_has(service: Running) -> None:
    with LedgerClient(service.url) as client:
        assert [*client.positions(limit=1000)] == _shown(service.ledger)
        history = client.history("main", limit=1000)
        assert history == service.ledger.history("main", limit=1000)
        assert [one.legs for one in history] == [one.legs for one in service.ledger.history("main", limit=1000)]
        for seq in (1, 2, 10, 24):
            assert client.explain(seq).data == service.ledger.explain(seq).data
        assert b"".join(client.export("main")) == b"".join(service.ledger.export("main"))


def test_read_events_when_decisions_are_about_fills_then_each_is_told_with_its_legs(service: Running) -> None:
    seen: list[Any] = []
    last = service.ledger.exposure("main").seq
    headers = {"Last-Event-ID": "main:0"}
    with httpx.stream("GET", f"{service.url}/v1/events", params={"portfolio": "main"}, headers=headers) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                if seen[-1]["seq"] == last:
                    break
    known = [decision_to_json(one) for one in service.ledger.history("main", limit=1000, ascending=True)]
    assert seen == known
    assert {form["command"] for form in seen} >= {"fill", "retag", "reprice", "expire"}


FIELDS_OF_NOW = ("until_known", "legs", "reference")


def test_read_decision_when_the_service_is_of_before_then_what_it_lacks_is_not_there(service: Running) -> None:
    decision = service.ledger.decision(1)
    form = decision_to_json(decision)
    before = decision_from_json({name: value for name, value in form.items() if name not in FIELDS_OF_NOW})
    assert (before.legs, before.until_known, before.reference, before.granted) == ((), False, None, True)
    full = decision_to_json(decision, full=True)
    again = decision_from_json({name: value for name, value in full.items() if name not in FIELDS_OF_NOW})
    assert again.legs == decision.legs, "the trace has them"


def test_read_position_when_the_service_is_of_before_then_what_it_lacks_is_not_there(service: Running) -> None:
    form = service.http.get("/v1/positions/main-1").json()
    new = ("cost", "filled", "unfilled", "until_known", "fills", "reference")
    legs = [
        {name: leg[name] for name in ("venue", "symbol", "kind", "side", "quantity", "price")} for leg in form["legs"]
    ]
    before = position_from_json({**{name: value for name, value in form.items() if name not in new}, "legs": legs})
    assert (before.fills, before.reference, before.until_known) == (None, None, False)
    assert before.cost == D("24000000") * D("0.000010291666666666"), "as nearly as its price says"
    assert [leg.account for leg in before.legs] == [None, None]


def test_read_decision_when_the_service_is_newer_then_unknown_names_of_an_order_are_left_out(
    service: Running,
) -> None:
    decision: Decision = service.ledger.decision(1)
    form = decision_to_json(decision)
    for leg in form["legs"]:
        leg["time_in_force"] = "IOC"
    assert decision_from_json(form).legs == decision.legs
