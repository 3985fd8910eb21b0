"""Tags of several values over HTTP: JSON has a list, each value finds the position, and bad ones are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.services import Running, serving

JSON_LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture
def service(database_url: str) -> Iterator[Running]:
    with serving(database_url, heartbeat_seconds=1) as running:
        yield running


def test_look_when_a_tag_has_several_values_then_json_has_a_list_and_each_value_finds_it(service: Running) -> None:
    made = service.post("/v1/reservations", "pair", {"portfolio": "pairs", "tags": {"venue": ["okx", "é"], "a": ["b"]}})
    assert made.status_code == 201
    position = service.http.get(f"/v1/positions/{made.json()['position_id']}").json()
    assert position["tags"] == {"a": "b", "venue": ["okx", "é"]}
    again = service.post("/v1/reservations", "pair", {"portfolio": "pairs", "tags": {"venue": ["é", "okx"], "a": "b"}})
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    for tags, count in {
        ("venue=okx",): 1, ("venue=é",): 1, ("venue=é", "venue=okx"): 1, ("venue=é", "venue=x"): 0,
        ("venue=e\u0301",): 0, ("a=b",): 1, ("venue=ok",): 0,
    }.items():  # fmt: skip
        found = service.http.get("/v1/positions", params={"portfolio": "pairs", "tag": tags}).json()["items"]
        assert len(found) == count, tags
    wanted = {"strategy": ["funding", "é"], "venue": ["bybit", "okx"]}
    assert service.post("/v1/reservations", "s", {"portfolio": "listed", "tags": wanted}).status_code == 201
    for strategy, count in (("funding", 1), ("é", 1), ("fund", 0), ("okx", 0)):
        params = {"portfolio": "listed", "strategy": strategy, "full": "true"}
        items = service.http.get("/v1/decisions", params=params).json()["items"]
        assert [one["tags"] for one in items] == [wanted] * count
        lines = service.http.get("/v1/decisions", params=params, headers=JSON_LINES).text.splitlines()
        assert [json.loads(json.loads(line)["tags"]) for line in lines] == [wanted] * count


@pytest.mark.parametrize(
    "value", [[], ["a"] * 17, [["a"]], ["a", 5], [None], [""], {"a": "b"}, 5, None, True, ["a\u0000"]]
)
def test_reserve_when_the_values_of_a_tag_are_bad_then_422_names_it_and_the_key_is_free(
    service: Running, value: Any
) -> None:
    answer = service.post("/v1/reservations", "bad", {"portfolio": "bad", "tags": {"venue": value}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["field"] == "tags.venue"
    assert service.post("/v1/reservations", "bad", {"portfolio": "bad"}).status_code == 201
