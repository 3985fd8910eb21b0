"""Tags of several values: a position counts in the scope of each, and is found by each."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Adopt, Decision, InvalidRequest, KeyReused, Ledger, Reserve
from ledger_sizer.model.tags import TAGS_LENGTH_MAX, tags_of
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, assert_verified, figures, position_of

D = Decimal
BOTH = {"venue": ["okx", "bybit"], "strategy": "funding"}
VENUES = ("venue=bybit", "venue=okx")


# --- scopes ----------------------------------------------------------------------------------------------------------


def test_reserve_when_a_tag_has_several_values_then_each_scope_counts_the_position_through_its_life(
    ledger: Ledger,
) -> None:
    held = ledger.reserve(key="1", tags=BOTH)
    ledger.reserve(key="2", tags={"venue": "okx"}, available_balance=D(300))
    assert [figures(ledger, scope) for scope in ("portfolio", *VENUES)] == [(1300, 0), (1000, 0), (1300, 0)]
    ledger.confirm(key="3", position_id=position_of(held), quantity=D(8), price=D(100))
    assert [figures(ledger, scope) for scope in ("portfolio", *VENUES)] == [(300, 800), (0, 800), (300, 800)]
    ledger.release(key="4", position_id=position_of(held), quantity=D(2))
    assert [figures(ledger, scope) for scope in VENUES] == [(0, 600), (300, 600)]
    assert_verified(ledger)
    ledger.release(key="5", position_id=position_of(held))
    assert [figures(ledger, scope) for scope in VENUES] == [(0, 0), (300, 0)]
    position = ledger.position(position_of(held))
    assert dict(position.tags) == {"strategy": "funding", "venue": ("bybit", "okx")}
    assert position.tags.values_of("venue") == ("bybit", "okx")
    assert_verified(ledger)


def test_reserve_when_one_of_several_scopes_is_full_or_halted_or_frozen_then_that_one_binds(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=okx", cap=D(400))
    assert ledger.reserve(key="1", tags=BOTH).budget == 400
    denied = ledger.reserve(key="2", tags=BOTH)
    assert (denied.reason, denied.binding) == ("cap_exceeded", "venue=okx")
    ledger.set_cap(key="uncap", scope="venue=okx", cap=None)
    for number, (verb, undo, reason) in enumerate((("halt", "resume", "halted"), ("freeze", "thaw", "unreconciled"))):
        for scope in VENUES:
            getattr(ledger, verb)(key=f"{verb}/{scope}", scope=scope)
            denied = ledger.reserve(key=f"3/{number}/{scope}", tags=BOTH)
            assert (denied.reason, denied.binding) == (reason, scope)
            getattr(ledger, undo)(key=f"{undo}/{scope}", scope=scope)
    assert ledger.reserve(key="4", tags=BOTH).budget == 1000
    assert_verified(ledger)


def test_adopt_when_a_tag_has_several_values_then_each_scope_has_its_overage(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=bybit", cap=D(100))
    ledger.adopt(key="1", tags=BOTH, quantity=D(3), price=D(50))
    rows = {row.scope: (row.open, row.overage) for row in ledger.exposure().scopes}
    assert (rows["venue=bybit"], rows["venue=okx"]) == ((150, 50), (150, 0))
    assert_verified(ledger)


def test_expire_when_a_tag_has_several_values_then_each_scope_is_free_again(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve(key="1", tags=BOTH, ttl_seconds=5)
    clock.advance(6)
    ledger.sweep()
    assert [figures(ledger, scope) for scope in ("portfolio", *VENUES)] == [(0, 0)] * 3
    assert_verified(ledger)


def test_reserve_when_dry_then_every_scope_of_a_tag_is_asked(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=okx", cap=D(400))
    assert ledger.reserve(key="1", tags=BOTH, dry_run=True).budget == 400
    ledger.halt(key="halt", scope="venue=bybit")
    assert ledger.reserve(key="1", tags=BOTH, dry_run=True).binding == "venue=bybit"


def test_reserve_when_the_legs_name_no_venue_and_the_tag_has_several_then_the_legs_have_none(ledger: Ledger) -> None:
    market = {"price": D(50_000), "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}
    both = ledger.reserve(key="1", tags=BOTH, **market)
    one = ledger.reserve(key="2", tags={"venue": ["okx"]}, **market)
    assert [leg.venue for leg in ledger.position(position_of(both)).legs] == ["", ""]
    assert [leg.venue for leg in ledger.position(position_of(one)).legs] == ["okx", "okx"]


def test_reserve_when_threads_race_over_two_venues_then_both_caps_are_filled_exactly(database_url: str) -> None:
    with Ledger.open(database_url) as ledger, ThreadPoolExecutor(8) as threads:
        for venue, cap in (("bybit", 300), ("okx", 200)):
            ledger.set_cap(key=venue, scope=f"venue={venue}", cap=D(cap))
        wanted: list[Any] = [BOTH, {"venue": "bybit"}, {"venue": ["okx"]}, {"venue": ("bybit", "okx", "kraken")}]
        answers = list(
            threads.map(
                lambda number: ledger.reserve(key=f"k{number}", tags=wanted[number % 4], available_balance=D(10)),
                range(500),
            )
        )
        granted = [one for one in answers if one.granted]
        assert {one.reason for one in answers} == {None, "cap_exceeded"}
        assert [ledger.exposure().scope(scope).headroom for scope in VENUES] == [0, 0]
        for venue, cap in (("bybit", 300), ("okx", 200)):
            tags = [ledger.position(position_of(one)).tags for one in granted]
            assert 10 * sum(venue in one.values_of("venue") for one in tags) == cap
        assert_verified(ledger)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [{"venue": ("bybit", "okx", "okx")}, {"venue": {"okx", "bybit"}}])
def test_reserve_when_sent_again_with_the_values_in_another_order_then_it_is_a_replay(
    ledger: Ledger, again: Any
) -> None:
    first = ledger.reserve(key="1", tags={"venue": ["okx", "bybit"]})
    second = ledger.reserve(key="1", tags=again)
    assert (second.replayed, second.seq) == (True, first.seq)
    with pytest.raises(KeyReused):
        ledger.reserve(key="1", tags={"venue": ["okx", "bybit", "kraken"]})
    with pytest.raises(KeyReused):
        ledger.reserve(key="1", tags={"venue": "okx"})


def test_reserve_when_a_list_has_one_value_then_it_is_the_request_with_the_text(ledger: Ledger) -> None:
    first = ledger.reserve(key="1", tags={"venue": "bybit"})
    second = ledger.reserve(key="1", tags={"venue": ["bybit", "bybit"]})
    assert (second.replayed, second.request) == (True, first.request)


@pytest.mark.parametrize("value", [[], ["a"] * 17, [["a"]], ["a", 5], [""], {"a": "b"}, b"a"])
def test_reserve_or_adopt_when_the_values_are_bad_then_nothing_is_recorded_and_the_key_is_free(
    ledger: Ledger, value: Any
) -> None:
    for call in (
        lambda tags: ledger.reserve(key="1", tags=tags),
        lambda tags: ledger.adopt(key="1", tags=tags, quantity=D(1), price=D(1)),
        lambda tags: ledger.reserve(key="1", tags=tags, dry_run=True),
    ):
        with pytest.raises(InvalidRequest) as refused:
            call({"venue": value})
        assert refused.value.field == "tags.venue"
    assert ledger.portfolios() == []
    assert ledger.reserve(key="1").replayed is False


# --- the longest -----------------------------------------------------------------------------------------------------


def test_adopt_when_tags_are_as_long_and_actors_as_wide_as_they_may_be_then_full_blocks_are_still_written(
    database_url: str, clock: FakeClock
) -> None:
    """History is searched by tags, and PostgreSQL indexes no more than 2704 bytes: every write would fail."""
    chance = random.Random(3)

    def noise(length: int) -> str:
        return "".join(chance.choices([chr(code) for code in range(33, 127) if chr(code) not in '"\\'], k=length))

    longest: dict[str, Any] = {f"t{n}": noise(128) for n in range(14)} | {"z": noise(84)}
    several: dict[str, Any] = {f"t{n}": [noise(7) for _ in range(16)] for n in range(11)}
    several |= {"y": noise(104), "z": noise(43)}
    assert [len(tags_of(tags).text) for tags in (longest, several)] == [TAGS_LENGTH_MAX] * 2
    client = "".join(chr(chance.randrange(0x20000, 0x2A000)) for _ in range(128))
    with Ledger.open(database_url, clock=clock, client=client) as ledger:
        marked = {5: longest, 6: several}
        for start in range(0, 1100, 500):
            answers = ledger.submit(
                [
                    Adopt(key=f"k{n}", quantity=D(1), price=D(1), tags=marked.get(n, {}))
                    for n in range(start, start + 500)
                ]
            )
            assert all(isinstance(one, Decision) for one in answers)
        assert ledger.decision(6).actor == f"embedded:{client}"
        assert ledger.reserve(key="on").granted
        assert_verified(ledger)


def test_reserve_when_it_counts_in_256_scopes_then_each_has_it(ledger: Ledger) -> None:
    tags = {f"t{n}": [f"v{value}" for value in range(16)] for n in range(16)}
    held, *_ = ledger.submit([Reserve(key="1", tags=tags), Reserve(key="2", tags={"t3": "v7"})])
    assert isinstance(held, Decision)
    assert held.granted
    rows = ledger.exposure().scopes
    assert len(rows) == 257
    assert {(row.scope, row.held) for row in rows if row.held != 1000} == {("portfolio", D(2000)), ("t3=v7", D(2000))}
    ledger.release(key="3", position_id=position_of(held))
    assert_verified(ledger)
