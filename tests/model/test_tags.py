"""Tags: one value or several, their canonical text, their scopes, and values that are added."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_sizer import Adopt, InvalidRequest, Reserve
from ledger_sizer.model.tags import (
    ANY_VALUE,
    NO_TAGS,
    PORTFOLIO_SCOPE,
    TAGS_LENGTH_MAX,
    Tags,
    scope_name,
    stored_tags,
    tags_from_json,
    tags_of,
    text_has_tag,
)
from ledger_sizer.wire.requests import BODIES, validated
from tests.support.interfaces import Name

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True).filter(lambda name: name != PORTFOLIO_SCOPE)
VALUES = st.text(min_size=1, max_size=128).filter(
    lambda text: text.isprintable() and text != ANY_VALUE
) | st.sampled_from(
    [
        "bybit",
        "okx",
        '"',
        "\\",
        '\\"',
        '","',
        '":["',
        "[",
        "]",
        "é",
        "e\u0301",
        "☃",
        "\u017f",
        "s",
        "=",
        "a=b",
        "\U0001f600",
    ]
)
SEVERAL = st.lists(VALUES, min_size=1, max_size=16)
GIVEN = st.dictionaries(NAMES, VALUES | SEVERAL | SEVERAL.map(tuple) | SEVERAL.map(frozenset), max_size=16)
TAGS = GIVEN.filter(lambda given: len(json.dumps(given, default=list)) <= TAGS_LENGTH_MAX)


def _deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


# --- several values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_make_tags_when_a_tag_has_several_values_then_each_is_a_scope(kind: Any) -> None:
    tags = tags_of({"venue": kind(["okx", "bybit"]), "strategy": "funding"})
    assert tags.scopes == (PORTFOLIO_SCOPE, "strategy=funding", "venue=bybit", "venue=okx")
    assert tags["venue"] == ("bybit", "okx")
    assert tags["strategy"] == "funding"
    assert tags.text == '{"strategy":"funding","venue":["bybit","okx"]}'
    assert tags.to_json() == {"strategy": "funding", "venue": ["bybit", "okx"]}


@pytest.mark.parametrize("given", [["bybit"], ("bybit",), {"bybit"}, ["bybit", "bybit"], [Name.BYBIT, "bybit"]])
def test_make_tags_when_a_list_has_one_value_then_it_is_the_same_as_the_text(given: Any) -> None:
    assert tags_of({"venue": given}).text == tags_of({"venue": "bybit"}).text == '{"venue":"bybit"}'
    assert type(tags_of({"venue": given})["venue"]) is str


def test_make_tags_when_only_order_and_repetition_differ_then_they_are_equal() -> None:
    one, other = tags_of({"b": ["y", "x", "y"], "a": "1"}), tags_of({"a": "1", "b": ("x", "y")})
    assert one == other
    assert hash(one) == hash(other)
    assert one.text == other.text
    assert (
        Reserve(key="k", tags=one).request_text() == Reserve(key="k", tags={"b": ["x", "y"], "a": "1"}).request_text()
    )


def test_make_tags_when_the_list_changes_afterwards_then_they_do_not() -> None:
    venues = ["bybit", "okx"]
    tags = tags_of({"venue": venues})
    venues.append("kraken")
    assert tags.values_of("venue") == ("bybit", "okx")
    assert tags_of({"venue": venues}).values_of("venue") == ("bybit", "kraken", "okx")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "no value"), ((), "no value"), (set(), "no value"), (["a"] * 17, "at most 16 values, got 17"),
        ([["a"]], "must be text, got list"), (["a", 5], "must be text, got int"), (["a", None], "must be text"),
        ([""], "1 to 128"), (["a", "b\x1f"], "control"), ({"a": "b"}, "must be text, got dict"),
        (b"a", "must be text, got bytes"), (range(2), "must be text, got range"), (iter("ab"), "must be text"),
        ([["a"] * 10_000], "must be text"), ([_deep(100_000)], "must be text"), ([{"a"}], "must be text, got set"),
    ],
)  # fmt: skip
def test_make_tags_when_a_list_of_values_is_bad_then_the_tag_is_named(value: Any, words: str) -> None:
    for make in (tags_of, lambda tags: Reserve(key="k", tags=tags), lambda tags: _adopted(tags).tags):
        with pytest.raises(InvalidRequest, match=words) as refused:
            make({"strategy": "funding", "venue": value})
        assert refused.value.field == "tags.venue"
        assert len(str(refused.value)) < 300


def _adopted(tags: Any) -> Adopt:
    return Adopt(key="k", quantity=1, price=1, tags=tags)  # type: ignore[arg-type]


def test_make_reserve_when_the_external_tag_has_several_values_then_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="external"):
        Reserve(key="k", tags={"external": ["exchange", "x"]})


# --- more values -----------------------------------------------------------------------------------------------------


def test_add_values_when_the_tag_is_absent_or_has_some_then_it_has_all_of_them() -> None:
    tags = tags_of({"strategy": "funding"})
    assert tags.having("venue", ["bybit"]).text == '{"strategy":"funding","venue":"bybit"}'
    both = tags.having("venue", ["okx", "bybit"])
    assert both.text == tags.having("venue", "bybit").having("venue", "okx").text
    assert both.values_of("venue") == ("bybit", "okx")
    assert both.only("venue") is None
    assert both.only("strategy") == "funding"
    assert tags.values_of("venue") == ()
    assert NO_TAGS.having("a", ()) is NO_TAGS
    assert both.having("venue", ["okx"]) is both
    assert both.having("venue", {"bybit"}) is both
    assert tags.having("venue", ("okx", "bybit")) is tags.having("venue", ("okx", "bybit")), "cached"


def test_add_values_when_there_are_many_already_then_no_bound_holds() -> None:
    full = tags_of({f"t{n}": [f"v{value}" for value in range(16)] for n in range(16)})
    more = full.having("venue", "okx").having("symbol", "BTC").having("t0", ["w"])
    assert len(more) == 18
    assert len(more.values_of("t0")) == 17
    assert stored_tags(more.text) == more
    assert tags_from_json(json.loads(json.dumps(more.to_json()))) == more
    assert tags_of(more) is more
    with pytest.raises(InvalidRequest, match="at most 16"):
        tags_of(dict(more))


def test_make_tags_when_they_are_too_long_altogether_then_they_are_refused() -> None:
    longest = {f"t{n}": "x" * 128 for n in range(14)} | {"z": "x" * 84}
    tags = tags_of(longest)
    assert len(tags.text) == TAGS_LENGTH_MAX
    assert tags_of(tags) is tags
    for make in (lambda: tags_of({**longest, "z": "x" * 85}), lambda: tags.having("t0", ["y"])):
        with pytest.raises(InvalidRequest, match="2000 characters") as refused:
            make()
        assert refused.value.field == "tags"
    longer = {**longest, "z": "x" * 85}
    assert tags_from_json(longer).text == json.dumps(longer, separators=(",", ":"), sort_keys=True), (
        "an older ledger took them"
    )


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [{"venue": 5}, {"venue": []}, {"Venue": "x"}, {"venue": [["a"]]}, ["venue"], None, "x"]
)
def test_read_tags_when_they_are_damaged_then_they_are_refused(form: Any) -> None:
    with pytest.raises(InvalidRequest):
        tags_from_json(form)


@given(TAGS)
def test_write_tags_when_they_are_random_then_text_json_and_scopes_come_back(given: dict[str, Any]) -> None:
    tags = tags_of(given)
    assert stored_tags(tags.text) == tags == tags_from_json(json.loads(json.dumps(tags.to_json())))
    assert stored_tags(tags.text).scopes == tags.scopes
    assert tags_of(dict(tags)).text == tags.text == tags_of(tags.to_json()).text
    assert tags.text.isascii()
    wanted = {(name, one) for name, value in given.items() for one in ([value] if isinstance(value, str) else value)}
    assert set(tags.pairs) == wanted
    assert len(tags.pairs) == len(wanted)
    assert tags.scopes == (PORTFOLIO_SCOPE, *[f"{name}={value}" for name, value in sorted(wanted)])
    assert [scope_name(scope) for scope in tags.scopes] == [*tags.scopes]
    assert json.loads(tags.text) == tags.to_json()


@given(TAGS)
def test_send_tags_when_they_are_random_then_the_body_gives_the_same_command(given: dict[str, Any]) -> None:
    command = Reserve(key="k", tags=given)
    body = validated(BODIES["reserve"], {"tags": json.loads(json.dumps(tags_of(given).to_json()))})
    assert body.to_command("k") == command
    assert body.to_command("k").request_text() == command.request_text()


@given(TAGS, NAMES, VALUES)
def test_search_a_text_for_a_tag_when_both_are_random_then_only_its_own_values_are_found(
    given: dict[str, Any], name: str, value: str
) -> None:
    tags = tags_of(given)
    assert all(text_has_tag(tags.text, *pair) for pair in tags.pairs)
    assert text_has_tag(tags.text, name, value) is ((name, value) in tags.pairs)
    for given_name, given_value in tags.pairs:
        assert text_has_tag(tags.text, given_name, value) is ((given_name, value) in tags.pairs)
        assert text_has_tag(tags.text, name, given_value) is ((name, given_value) in tags.pairs)


def test_read_stored_tags_when_they_have_one_value_each_then_their_text_is_as_it_always_was() -> None:
    assert tags_of({"venue": "bybit", "symbol": "BTC"}).text == '{"symbol":"BTC","venue":"bybit"}'
    assert isinstance(stored_tags('{"venue":"bybit"}'), Tags)
    assert stored_tags('{"venue":"a\\":[b"}')["venue"] == 'a":[b'
