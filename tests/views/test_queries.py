"""Reads of exposure, positions, history and explanations: filters, errors, and pages while others write."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import (
    Decision,
    Denied,
    InvalidRequest,
    Ledger,
    NotFound,
    Page,
    Position,
)
from ledger_sizer.model.decisions import DECISION_FIELDS
from tests.support.clock import START, FakeClock
from tests.support.ledgers import BTC_PERP, BTC_SPOT, dynamic_settings, position_of, reserve_btc

D = Decimal

pytestmark = pytest.mark.settings(dynamic_settings())


# --- exposure ----------------------------------------------------------------------------------------------------


def test_read_exposure_when_several_scopes_count_then_the_whole_comes_first_and_each_has_its_row(
    ledger: Ledger,
) -> None:
    ledger.reserve(key="1", tags={"venue": "bybit", "symbol": "BTC"})
    ledger.reserve(key="2", tags={"venue": "okx", "symbol": "BTC"}, signal_score=D("0.5"))
    ledger.confirm(key="3", position_id="main-1", quantity=D(2), price=D(300))
    ledger.set_cap(key="4", scope="venue=okx", cap=D(700))
    ledger.halt(key="5", scope="symbol=BTC", mode="reducing")
    exposure = ledger.exposure("main")
    assert (exposure.portfolio, exposure.seq) == ("main", 5)
    assert [row.scope for row in exposure.scopes] == ["portfolio", "symbol=BTC", "venue=bybit", "venue=okx"]
    assert exposure.scopes[0] == exposure.whole
    assert (exposure.cap, exposure.held, exposure.open, exposure.exposure) == (5000, 650, 600, 1250)
    assert (exposure.headroom, exposure.overage, exposure.status) == (3750, 0, "active")
    rows = {row.scope: (row.cap, row.held, row.open, row.headroom, row.status) for row in exposure.scopes}
    assert rows["symbol=BTC"] == (None, 650, 600, None, "reducing")
    assert rows["venue=bybit"] == (None, 0, 600, None, "active")
    assert rows["venue=okx"] == (700, 650, 0, 50, "active")
    unused = exposure.scope("venue=nobody")
    assert (unused.cap, unused.exposure, unused.overage, unused.headroom) == (None, 0, 0, None)


@pytest.mark.parametrize("portfolio", ["", "a b", "-x", "x" * 65, "a/b", 7])
def test_read_when_the_portfolio_cannot_be_one_then_it_is_refused(ledger: Ledger, portfolio: Any) -> None:
    for read in (ledger.exposure, ledger.history, ledger.positions, ledger.verify, ledger.sweep):
        with pytest.raises(InvalidRequest, match="portfolio must be 1 to 64 letters") as refused:
            read(portfolio)
        assert refused.value.field == "portfolio"


# --- positions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def populated(ledger: Ledger, clock: FakeClock) -> Ledger:
    """Positions in every state, in two portfolios: main-1 .. main-6 and other-1."""
    for n in range(1, 7):
        tags = {"venue": ("bybit", "okx")[n % 2], "symbol": ("BTC", "ETH", "SOL")[n % 3]}
        ledger.reserve(key=f"{n}", tags=tags, signal_score=D(0), ttl_seconds=10 if n == 1 else 600)
    ledger.reserve(key="1", portfolio="other", tags={"venue": "bybit"})
    clock.advance(10)
    ledger.release(key="r2", position_id="main-2")
    for n in (3, 4):
        ledger.confirm(key=f"c{n}", position_id=f"main-{n}", quantity=D(1), price=D(100))
    ledger.release(key="r4", position_id="main-4")
    return ledger


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "main-1 main-2 main-3 main-4 main-5 main-6 other-1"),
        ({"portfolio": "main"}, "main-1 main-2 main-3 main-4 main-5 main-6"),
        ({"portfolio": "other"}, "other-1"),
        ({"state": "held"}, "main-5 main-6 other-1"),
        ({"state": "open"}, "main-3"),
        ({"state": "closed"}, "main-4"),
        ({"state": "released"}, "main-2"),
        ({"state": "expired"}, "main-1"),
        ({"state": "live"}, "main-3 main-5 main-6 other-1"),
        ({"tags": {"venue": "okx"}}, "main-1 main-3 main-5"),
        ({"tags": {"venue": "okx", "symbol": "BTC"}}, "main-3"),
        ({"tags": {"venue": "okx"}, "state": "live", "portfolio": "main"}, "main-3 main-5"),
        ({"tags": {"venue": "nobody"}}, ""),
        ({"tags": {"desk": "okx"}}, ""),
        ({"tags": {}}, "main-1 main-2 main-3 main-4 main-5 main-6 other-1"),
    ],
)
def test_list_positions_when_filtered_then_exactly_those_that_match_are_found(
    populated: Ledger, filters: dict[str, Any], found: str
) -> None:
    page = populated.positions(**filters)
    assert [position.position_id for position in page] == found.split()
    assert page.cursor is None
    for position in page:
        assert populated.position(position.position_id) == position


def test_list_positions_when_tags_hold_odd_characters_then_they_match_literally(ledger: Ledger) -> None:
    odd = ["a'b", 'a"b', "a%b", "a_b", "$.venue", "é鍵", "a\\b", "{}", "a b"]
    for n, value in enumerate(odd):
        ledger.reserve(key=f"{n}", tags={"note": value}, available_balance=D(1))
    for n, value in enumerate(odd, 1):
        assert [position.number for position in ledger.positions(tags={"note": value})] == [n], value


LISTS: list[dict[str, Any]] = [
    {"venue": ["bybit", "okx"], "symbol": "okx"},
    {"venue": "okx"},
    {"venue": ["okx2", "OKX", "ok"], "symbol": ["okx", "x"]},
    {"venues": ["okx", "bybit"], "desk": 'venue":"okx'},
    {"venue": ['a","okx","b', 'okx"', '\\"okx\\"', "okx]", '"venue":["okx"']},
    {"venue": ["é", "☃鍵"], "note": "okx"},
    {"venue": ["e\u0301", "ﬁ"]},
    {"venue": ['["okx"]', "[okx", "bybit", "kraken"]},
    {"venue": "é"},
]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"venue": "okx"}, "1 2"), ({"venue": "bybit"}, "1 8"), ({"venue": ["okx", "bybit"]}, "1"),
        ({"venue": ["okx"]}, "1 2"), ({"venue": "ok"}, "3"), ({"venue": "OKX"}, "3"), ({"venue": "o"}, ""),
        ({"symbol": "okx"}, "1 3"), ({"venues": "okx"}, "4"), ({"venue": 'okx"'}, "5"), ({"venue": 'a","okx","b'}, "5"),
        ({"venue": "é"}, "6 9"), ({"venue": "e\u0301"}, "7"), ({"venue": "☃鍵"}, "6"), ({"venue": "fi"}, ""),
        ({"venue": '"okx"'}, ""), ({"venue": "[okx"}, "8"), ({"venue": "kraken", "symbol": "okx"}, ""),
        ({"venue": "bybit", "symbol": "okx"}, "1"), ({"venue": '\\"okx\\"'}, "5"), ({"venue": "\\u00e9"}, ""),
        ({"venue": "%"}, ""), ({"venue": "bybit,okx"}, ""), ({"venue": '["bybit","okx"]'}, ""), ({"desk": "okx"}, ""),
    ],
)  # fmt: skip
def test_list_positions_when_tags_have_several_values_then_each_finds_them_and_nothing_that_looks_alike(
    ledger: Ledger, tags: dict[str, Any], found: str
) -> None:
    for n, given in enumerate(LISTS):
        ledger.reserve(key=f"{n}", tags=given, available_balance=D(1))
    assert [position.number for position in ledger.positions(tags=tags)] == [int(one) for one in found.split()]


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"state": "live "}, "state"),
        ({"state": "OPEN"}, "state"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": "10"}, "limit"),
        ({"cursor": "abc"}, "cursor"),
        ({"cursor": "5"}, "cursor"),
        ({"cursor": "1:2:3"}, "cursor"),
        ({"cursor": "1:-2"}, "cursor"),
        ({"cursor": 5}, "cursor"),
        ({"tags": "venue=bybit"}, "tags"),
        ({"tags": {"bad name": "x"}}, "tags"),
        ({"tags": {"x') --": "x"}}, "tags"),
        ({"tags": {'venue"."x': "x"}}, "tags"),
        ({"tags": {"venue": 1}}, "tags.venue"),
        ({"tags": {"venue": None}}, "tags.venue"),
    ],
)
def test_list_positions_when_a_filter_makes_no_sense_then_it_is_named(
    populated: Ledger, filters: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        populated.positions("main", **filters)
    assert refused.value.field == field


def test_page_positions_when_others_write_in_between_then_none_is_skipped_or_repeated(
    populated: Ledger, clock: FakeClock
) -> None:
    seen: list[Position] = []
    cursor, pages = None, 0
    while True:
        page = populated.positions(cursor=cursor, limit=2)
        seen += page
        pages += 1
        if page.cursor is None:
            break
        cursor = page.cursor
        if pages == 1:
            populated.release(key="between", position_id="main-5")
            populated.release(key="between/3", position_id="main-3")
        if pages == 2:
            populated.reserve(key="late", portfolio="other", tags={"venue": "okx"})
    assert [position.position_id for position in seen] == [*(f"main-{n}" for n in range(1, 7)), "other-1", "other-2"]
    assert pages == 4


@pytest.mark.parametrize("name", ["main-7", "main-0", "nobody-1", "main-123456789012345678"])
def test_read_position_when_there_is_none_then_it_is_not_found(populated: Ledger, name: str) -> None:
    with pytest.raises(NotFound, match=f"no position '{name}'"):
        populated.position(name)


@pytest.mark.parametrize(
    "name", ["", "main", "main-", "-1", "main-x", "main-1.0", "main-01", "main--", "main-²", "main-1 ", 7, None]
)
def test_read_position_when_the_name_cannot_be_one_then_it_is_refused(populated: Ledger, name: Any) -> None:
    for read in (populated.position, *([populated.explain] if isinstance(name, str) else [])):
        with pytest.raises(InvalidRequest, match="position_id must look like 'main-17'") as refused:
            read(name)
        assert refused.value.field == "position_id"


def test_read_position_when_the_portfolio_has_dashes_then_the_number_is_the_last_part(ledger: Ledger) -> None:
    decision = ledger.reserve(key="1", portfolio="desk-7.a_b-1")
    assert decision.position_id == "desk-7.a_b-1-1"
    assert ledger.position("desk-7.a_b-1-1").portfolio == "desk-7.a_b-1"
    ledger.release(key="2", position_id="desk-7.a_b-1-1")


# --- explanations ------------------------------------------------------------------------------------------------


def test_explain_when_granted_then_each_step_of_the_formula_is_told(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=bybit", cap=D(600))
    decision = reserve_btc(ledger, "1", signal_score=D("0.9"), available_balance=D(10000))
    explanation = ledger.explain(2)
    for step in (
        "main #2 reserve '1': granted 600 USD, quantity 0.012; bound by venue=bybit",
        "0.3 + (1 - 0.3) x score 0.9 = 0.93",
        "1000 USD x 0.93 = 930 USD",
        "Available balance: 10000 USD",
        "Scope portfolio: cap 5000, held 0, open 0, headroom 5000 USD",
        "Scope venue=bybit: cap 600, held 0, open 0, headroom 600 USD",
        "Scope symbol=BTC: no cap",
        "0.012 at the common step 0.001, worth 600 USD",
        "0 USD before, 600 USD after",
    ):
        assert step in explanation.text, explanation.text
    assert str(explanation) == explanation.text
    assert explanation.decision == decision
    data = explanation.data
    assert (data["outcome"], data["binding"], data["budget"], data["quantity"]) == (
        "granted",
        "venue=bybit",
        "600",
        "0.012",
    )
    assert (data["fraction"], data["raw_budget"], data["exposure_after"]) == ("0.93", "930", "600")
    assert data["request"]["signal_score"] == "0.9"
    assert {row["scope"]: row["headroom"] for row in data["scopes"]} == {
        "portfolio": "5000", "venue=bybit": "600", "symbol=BTC": None, "strategy=funding": None
    }  # fmt: skip
    assert data["hash"] == decision.hash
    assert ledger.explain("main-2").text == explanation.text


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"available_balance": D(0)}, "insufficient_balance. In words: there is no available balance to spend"),
        ({"min_notional_usd": D(5000)}, "what max_position_size_usd leaves is below the smallest order value"),
        ({"tags": {"venue": "halted"}}, "new reservations are halted in venue=halted"),
        ({"tags": {"venue": "reducing"}}, "venue=reducing is reducing"),
        ({"tags": {"venue": "full"}}, "the cap of venue=full leaves nothing"),
        (
            {"price": D(50_000_000), "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP},
            "what max_position_size_usd leaves buys less than the smallest quantity that every leg accepts",
        ),
    ],
)
def test_explain_when_denied_then_the_reason_is_told_in_words(
    ledger: Ledger, request_: dict[str, Any], words: str
) -> None:
    ledger.set_cap(key="1", scope="venue=full", cap=D(0))
    ledger.halt(key="2", scope="venue=halted")
    ledger.halt(key="3", scope="venue=reducing", mode="reducing")
    decision = ledger.reserve(key="4", **request_)
    explanation = ledger.explain(4)
    assert f"denied, {decision.reason}" in explanation.text
    assert words in explanation.text
    assert explanation.data["reason"] == decision.reason
    assert decision.binding is not None
    assert explanation.data["binding"] == decision.binding
    with pytest.raises(Denied, match=f"reserve '4' denied: {decision.reason} .bound by {decision.binding}."):
        decision.raise_for_denial()


def test_explain_when_any_verb_was_used_then_every_decision_can_be_explained(
    populated: Ledger, clock: FakeClock
) -> None:
    populated.adopt(key="a", quantity=D(1), price=D(1), note="found it")
    populated.set_cap(key="b", cap=D(1))
    populated.halt(key="c", note="stop")
    populated.extend(key="d", position_id="main-5")
    populated.resume(key="e")
    populated.freeze(key="f", note="drift-1")
    populated.reconciled(key="g", fresh_until=START)
    populated.thaw(key="h")
    populated.remark(key="i", about="drift-1", event="close_requested")
    populated.confirm(key="late", position_id="main-1", quantity=D(1), price=D(1))
    decisions = populated.history("main", ascending=True)
    assert {decision.command for decision in decisions} == {
        "reserve", "confirm", "release", "extend", "set_cap", "halt", "resume", "adopt", "freeze", "thaw",
        "reconciled", "remark", "expire",
    }  # fmt: skip
    explanations = [populated.explain(decision.seq or 0, "main") for decision in decisions]
    for decision, explanation in zip(decisions, explanations, strict=True):
        assert explanation.text.startswith(f"main #{decision.seq} {decision.command} ")
    assert "had expired before the fill" in explanations[-1].text
    assert explanations[-1].data["note"] == "late_fill"


def test_explain_when_the_seq_made_no_position_then_its_name_is_not_found(ledger: Ledger) -> None:
    ledger.set_cap(key="1", cap=D(0))
    ledger.reserve(key="2")
    for name in ("main-1", "main-2"):
        with pytest.raises(NotFound, match=name):
            ledger.explain(name)
    assert "denied" in ledger.explain(2).text


@pytest.mark.parametrize("seq", [2, 10**18 - 1])
def test_read_decision_when_there_is_none_then_it_is_not_found(ledger: Ledger, seq: int) -> None:
    ledger.reserve(key="1")
    for read in (ledger.decision, ledger.explain):
        with pytest.raises(NotFound, match=f"no decision {seq} in portfolio 'main'"):
            read(seq)
    with pytest.raises(NotFound):
        ledger.decision(1, "nobody")


@pytest.mark.parametrize("seq", [True, 1.0, "1", None, D(1), 0, -1, 10**18, 10**40])
def test_read_decision_when_the_seq_cannot_be_one_then_it_is_refused(ledger: Ledger, seq: Any) -> None:
    ledger.reserve(key="1")
    with pytest.raises(InvalidRequest, match="seq must be a whole number") as refused:
        ledger.decision(seq)
    assert refused.value.field == "seq"


# --- the shape of an answer --------------------------------------------------------------------------------------


def test_read_decision_when_stored_then_it_is_the_one_that_was_handed_out(populated: Ledger) -> None:
    handed = reserve_btc(populated, "x", signal_score=D("0.7"), ttl_seconds=30)
    assert handed.seq is not None
    stored = populated.decision(handed.seq)
    assert (stored, hash(stored)) == (handed, hash(handed))
    for name in DECISION_FIELDS:
        assert f"{name}={getattr(handed, name)!r}" in repr(stored)
    for name in ("budget", "granted", "record", "new_name"):
        with pytest.raises(AttributeError, match="a decision is final"):
            setattr(handed, name, 1)
    with pytest.raises(AttributeError, match="a decision is final"):
        del handed.record


def test_use_page_when_it_has_items_then_it_reads_like_a_sequence() -> None:
    page = Page((1, 2, 3), "3")
    assert (list(page), len(page), page[0], page[-1], page.cursor) == ([1, 2, 3], 3, 1, 3, "3")
    assert Page(()).cursor is None
    assert not Page(())


def test_log_decision_when_logging_is_on_then_each_has_one_line_with_its_figures(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ledger_sizer")
    reserve_btc(ledger, "1", signal_score=D("0.9"))
    ledger.reserve(key="2", available_balance=D(0))
    assert ledger.pending == 0
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    told = [line for line in lines if line["event"] == "decision"]
    assert [(line["seq"], line["outcome"], line["reason"]) for line in told] == [
        (1, "granted", None), (2, "denied", "insufficient_balance")
    ]  # fmt: skip
    assert (told[0]["budget_usd"], told[0]["quantity"], told[0]["binding"]) == ("900", "0.018", "signal_score")
    assert told[0]["exposure_after_usd"] == "900"


def stamps(decisions: Page[Decision]) -> list[datetime]:
    return [decision.decided_at for decision in decisions]


def test_read_times_when_a_clock_is_injected_then_they_are_aware_and_exact(ledger: Ledger, clock: FakeClock) -> None:
    clock.advance(D("0.123456"))
    decision = ledger.reserve(key="1", ttl_seconds=1)
    assert decision.decided_at == clock.now()
    assert decision.decided_at.utcoffset() == timedelta(0)
    position = ledger.position(position_of(decision))
    assert (position.opened_at, position.updated_at) == (clock.now(), clock.now())
    assert position.expires_at == clock.now() + timedelta(seconds=1)
    assert stamps(ledger.history("main")) == [clock.now()]
