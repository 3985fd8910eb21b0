"""What `explain` says of legs and their fills, and of records that would be refused today."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, InstrumentInfo, Ledger
from ledger_sizer.rules.explain import Explanation, explain, reason_in_words
from ledger_sizer.wire.responses import explanation_to_json
from tests.conftest import NewDatabase
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS
from tests.support.ledgers import dynamic_settings, reserve_btc
from tests.support.lives import live_through_fills

D = Decimal


@pytest.fixture(scope="module", params=ENGINE_KINDS)
def told(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[dict[str, Explanation]]:
    """The explanations of a life of fills, by key."""
    clock = FakeClock()
    with Ledger.open(module_database(request.param), settings=dynamic_settings(), clock=clock) as ledger:
        live_through_fills(ledger, clock)
        yield {one.key: ledger.explain(one.seq or 0) for one in ledger.history("main", limit=1000)}


WORDS = {
    "grant": [
        "Reference: t7",
        "Order 1: buy 1000PEPE/USDT:USDT (swap at bybit): amount 93000 of 1000 coins each, 93000000 coins, "
        "sized at 0.00001 USD a coin.",
        "Order 2: sell PEPE/USDT:USDT (swap at okx, account sub): amount 9300 of 10000 coins each, 93000000 coins, ",
        "Held until 2026-01-01T00:01:00Z.",
        "Largest grantable then: 1000 USD, quantity 100000000; bound by max_position_size_usd.",
    ],
    "part": [
        "Filled: 20000000 coins at 0.0000101 USD a coin. 202 USD more open, 200 USD less held.",
        "main-1 has 20000000 coins open at 0.0000101 USD a coin on average, which cost 202 USD.",
        "The rest, 73000000 coins, stays held until 2026-01-01T00:01:00Z.",
    ],
    "fill": ["Filled: 10000000 coins beyond what was known, 30000000 in all at 0.0000103 USD a coin on average."],
    "known": ["Reference: o9", "The fill of main-1 was known already: nothing changed."],
    "unknown": ["The hold never ends by time, because the fate of an order is not known"],
    "more": [
        "The position counts 939 USD of that already.",
        "More of main-1, which counted 939 USD: it now has 30000000 coins filled, and 67000000 coins to fill.",
        "Order 1: buy 1000PEPE/USDT:USDT (swap at bybit): amount 4000 of 1000 coins each, 4000000 coins",
        "Largest grantable then: 61 USD, quantity 6100000; bound by max_position_size_usd.",
    ],
    "most": ["Amount asked for: 400 USD.", "granted 21 USD, quantity 2100000; bound by max_position_size_usd."],
    "no more": [
        "denied, below_min_qty. In words: what max_position_size_usd leaves buys less than the smallest quantity "
        "that every leg accepts.",
        "Legs asked for: buy 1000PEPE/USDT:USDT, sell PEPE/USDT:USDT.",
        "Largest grantable then: 0 USD; bound by max_position_size_usd.",
    ],
    "price": [
        "It counts 0.000012 USD a coin from now on. 51 USD more open.",
        "What it cost stays: 309 USD.",
    ],
    "tags": ["main-1 has other tags: it left strategy=funding, and it counts in desk=x, desk=y, strategy=basis"],
    "no room": [
        "denied, cap_exceeded. In words: the cap of desk=z leaves 10 USD, less than the position counts.",
        "It would have entered desk=z.",
    ],
    "rest": ["The hold was freed. 691 USD less held.", "main-1 has 30000000 coins open"],
    "close part": ["Closed: 7000000 coins. 84 USD less open.", "which cost 236.9 USD."],
    "after all": ["main-1 has 24000000 coins open", "which cost 247 USD.", "Nothing is held for it any more."],
    "plain amount": [
        "The most for one position: 200 USD, by max_position_usd.",
        "Amount asked for: 300 USD.",
        "Largest grantable then: 200 USD; bound by max_position_usd.",
    ],
    "late released": ["The hold of main-16 had been released before the fill: the fill is a fact"],
    "late expired": [
        "The hold of main-21 had expired before the fill: the fill is a fact",
        "Leg that filled: sell 10000000 coins, PEPE/USDT:USDT (swap at okx) at 0.0000102 USD a coin.",
    ],
    "ledger:expire:19:22": [
        "The hold ran out of time. 750 USD less held.",
        "What was filled stays: main-19 has 0.005 coins open",
    ],
    "elsewhere": ["A leg filled elsewhere than planned: it counts in venue=deribit from now on."],
    "smaller": [
        "The most for one position: 500 USD, by max_position_usd.",
        "Raw budget: 500 USD x 0.65 = 325 USD.",
        "The hold never ends by time",
        "Largest grantable then: 500 USD; bound by max_position_usd.",
    ],
    "too little": [
        "denied, cap_exceeded. In words: the cap of strategy=tiny leaves 30 USD, less than the smallest order needs.",
        "Largest grantable then: 0 USD; bound by strategy=tiny.",
    ],
    "cut": [
        "granted 88.488 USD, quantity 72000; bound by max_qty.",
        "Quantity: 72000 at the common step 10, worth 88.488 USD; max_qty allows no more.",
        "Largest grantable then: 88.488 USD, quantity 72000; bound by max_qty.",
    ],
    "cut below": [
        "denied, below_min_notional. In words: what max_qty leaves is below the smallest order value.",
        "Quantity: one worth 88.488 USD; max_qty allows no more.",
        "Legs asked for: buy XCN/USDT, sell XCN/USDT:USDT.",
    ],
}


@pytest.mark.parametrize("key", WORDS)
def test_explain_when_legs_filled_in_parts_then_the_words_say_what_happened(
    told: dict[str, Explanation], key: str
) -> None:
    for words in WORDS[key]:
        assert words in told[key].text, told[key].text


@pytest.mark.parametrize("key", ["cut", "cut below"])
def test_explain_when_a_maximum_cut_it_then_exactly_one_bound_is_named(told: dict[str, Explanation], key: str) -> None:
    bounds = [line for line in told[key].text.splitlines() if "bound by" in line or "leaves" in line]
    assert all("max_qty" in line for line in bounds)
    assert "max_position_size_usd" not in told[key].text


def test_explain_when_legs_were_granted_then_the_data_has_what_to_order(told: dict[str, Explanation]) -> None:
    data = told["grant"].data
    assert data["legs"] == [
        {"venue": "bybit", "account": None, "symbol": "1000PEPE/USDT:USDT", "kind": "swap", "side": "buy",
         "quantity": "93000000", "price": "0.00001", "order_amount": "93000", "order_cost": None},
        {"venue": "okx", "account": "sub", "symbol": "PEPE/USDT:USDT", "kind": "swap", "side": "sell",
         "quantity": "93000000", "price": "0.00001", "order_amount": "9300", "order_cost": None},
    ]  # fmt: skip
    assert (data["reference"], data["until_known"], data["expires_at"]) == ("t7", False, "2026-01-01T00:01:00Z")
    assert (data["held_change"], data["open_change"], data["position"], data["moved"]) == ("930", "0", None, None)
    assert told["known"].data["legs"] == []


def test_explain_when_a_fill_is_one_of_several_then_the_data_has_the_position_after_it(
    told: dict[str, Explanation],
) -> None:
    part = told["part"].data
    assert part["position"] == {
        "quantity": "20000000", "price": "0.0000101", "cost": "202", "filled": "20000000", "unfilled": "73000000",
        "expires_at": "2026-01-01T00:01:00Z", "until_known": False,
    }  # fmt: skip
    assert (part["held_change"], part["open_change"]) == ("-200", "202")
    grown = told["more"].data["position"]
    assert (grown["filled"], grown["unfilled"], grown["expires_at"], grown["until_known"]) == (
        "30000000", "67000000", None, True
    )  # fmt: skip
    closed = told["close part"].data["position"]
    assert (closed["quantity"], closed["cost"], closed["filled"]) == ("23000000", "236.9", "30000000")


def test_explain_when_it_counts_elsewhere_then_the_data_has_both_tags(told: dict[str, Explanation]) -> None:
    assert told["tags"].data["moved"] == {
        "from": {"strategy": "funding", "symbol": "PEPE", "venue": ["bybit", "okx"]},
        "to": {"desk": ["x", "y"], "strategy": "basis", "symbol": "PEPE", "venue": ["bybit", "okx"]},
    }
    assert told["elsewhere"].data["moved"]["to"]["venue"] == "deribit"
    assert told["no room"].data["moved"] is None


def test_explain_when_a_fill_was_late_then_the_data_says_of_what(told: dict[str, Explanation]) -> None:
    assert told["late released"].data["late_fill_of"] == {"position_id": "main-16", "state": "released"}
    assert told["late expired"].data["late_fill_of"] == {"position_id": "main-21", "state": "expired"}
    assert told["part"].data["late_fill_of"] is None


def test_explain_when_there_is_any_decision_then_its_data_is_json_and_replayed_as_it_was_granted(
    told: dict[str, Explanation],
) -> None:
    for key, one in told.items():
        json.dumps(explanation_to_json(one))
        decision, largest = one.decision, one.data["largest_grantable"]
        if decision.command == "reserve" and decision.granted:
            assert decision.budget is not None
            assert D(largest["budget"]) >= decision.budget, key
            if decision.binding == largest["binding"]:
                assert (largest["budget"], largest["quantity"]) == (one.data["budget"], one.data["quantity"]), key


# --- records of versions before ----------------------------------------------------------------------------------


def _as_before(decision: Decision, **request: Any) -> Decision:
    """Return a decision with another recorded request, as a version before could have recorded it."""
    form = {**json.loads(decision.request), **request}
    trace = {name: value for name, value in json.loads(decision.trace).items() if name != "legs"}
    record = decision.record
    return Decision(record._replace(request=json.dumps(form), trace=json.dumps(trace)))


ETH_PERP = {"symbol": "ETH/USDT:USDT", "min_qty": "0.001", "max_qty": "50", "qty_step": "0.001"}
REFUSED = {
    "two assets": {"perp_instrument": ETH_PERP},
    "two spot markets": {"perp_instrument": {**ETH_PERP, "symbol": "BTC/USDC"}},
    "swapped": {"spot_instrument": ETH_PERP, "perp_instrument": {**ETH_PERP, "symbol": "BTC/USDT"}},
    "multiplied": {"perp_instrument": {**ETH_PERP, "symbol": "1000BTC/USDT:USDT"}},
    "inverse": {"perp_instrument": {**ETH_PERP, "symbol": "BTC/USD:BTC"}},
    "of a name": {"perp_instrument": {**ETH_PERP, "listed_as": "bybit:BTC/USDT:USDT"}},
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_explain_when_the_pair_would_be_refused_today_then_it_is_sized_as_it_was(
    ledger: Ledger, request_: dict[str, Any]
) -> None:
    old = _as_before(reserve_btc(ledger, "k"), **request_)
    found = explain(old)
    assert found.data["largest_grantable"] == {
        "budget": "1000", "quantity": "0.02", "binding": "max_position_size_usd"
    }  # fmt: skip
    assert found.data["legs"] == []


@pytest.mark.parametrize(
    "request_", [{"perp_instrument": {"symbol": "x"}}, {"perp_instrument": 7}, {"legs": [{"side": "hold"}]}]
)
def test_explain_when_the_markets_cannot_be_read_then_the_rest_is_still_told(
    ledger: Ledger, request_: dict[str, Any]
) -> None:
    found = explain(_as_before(reserve_btc(ledger, "k"), **request_))
    assert found.data["largest_grantable"]["quantity"] is None
    assert "Raw budget: 1000 USD x 1 = 1000 USD." in found.text


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "[" * 100_000])
def test_explain_when_the_record_is_damaged_then_what_is_left_is_told(ledger: Ledger, text: str) -> None:
    decision = reserve_btc(ledger, "k")
    found = explain(Decision(decision.record._replace(request=text, trace=text)))
    assert found.text.startswith(f"main #{decision.seq} reserve 'k': granted 1000 USD, quantity 0.02")


def test_explain_when_a_late_fill_is_of_a_version_before_then_its_hold_had_expired(
    ledger: Ledger, clock: FakeClock
) -> None:
    made = ledger.reserve(key="k", ttl_seconds=5)
    clock.advance(10)
    late = ledger.confirm(key="late", position_id=made.position_id or "", quantity=D(1), price=D(1))
    trace = {name: value for name, value in json.loads(late.trace).items() if name != "ended"}
    found = explain(Decision(late.record._replace(trace=json.dumps(trace))))
    assert f"The hold of {made.position_id} had expired before the fill" in found.text


def test_say_reason_when_the_decision_lacks_its_trace_then_the_words_claim_no_figure(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=x", cap=D(30))
    denied = reserve_btc(ledger, "k", tags={"venue": "x"})
    assert reason_in_words(denied) == "the cap of venue=x leaves 30 USD, less than the smallest order needs"
    short = Decision(denied.record._replace(request="", trace=""))
    assert reason_in_words(short) == "the cap of venue=x leaves too little"


def test_explain_when_the_request_has_a_minimum_then_the_cap_is_compared_with_that(ledger: Ledger) -> None:
    ledger.set_cap(key="cap", scope="venue=x", cap=D(300))
    denied = reserve_btc(ledger, "k", tags={"venue": "x"}, min_notional_usd=D(400))
    assert (denied.reason, denied.binding) == ("cap_exceeded", "venue=x")
    found = ledger.explain(denied.seq or 0)
    assert "leaves 300 USD, less than the smallest order needs, or the request wants at least" in found.text
    assert found.data["largest_grantable"] == {"budget": "300", "quantity": "0.006", "binding": "venue=x"}


def test_explain_when_a_market_takes_the_cost_of_a_buy_then_the_order_says_so(ledger: Ledger) -> None:
    spot = InstrumentInfo("BTC/USDT", D("0.0001"), D(100), D("0.0001"), D(10), buys_by_cost=True)
    found = ledger.explain(reserve_btc(ledger, "k", spot_instrument=spot).seq or 0)
    assert "Order 1: buy BTC/USDT (spot at bybit): its cost, 1000 USD, for 0.02 coins, sized at" in found.text
    assert found.data["legs"][0]["order_cost"] == "1000"


def test_explain_when_more_of_a_plain_budget_is_asked_then_what_it_counts_is_told(ledger: Ledger) -> None:
    made = ledger.reserve(key="a", amount_usd=D(600))
    more = ledger.explain(ledger.reserve(key="b", position_id=made.position_id, amount_usd=D(600)).seq or 0)
    assert f"More of {made.position_id}, which counted 600 USD." in more.text
    assert more.data["largest_grantable"]["budget"] == "400"
    none = ledger.reserve(key="c", position_id=made.position_id, amount_usd=D(600))
    assert not none.granted
    assert ledger.explain(none.seq or 0).data["largest_grantable"]["budget"] == "0"
