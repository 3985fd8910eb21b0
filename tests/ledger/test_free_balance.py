"""Free balance of exchange accounts: no two grants are promised the same dollar, whatever fills or ends meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, InvalidRequest, Ledger, Leg, LegPlan
from tests.support.clock import START, FakeClock
from tests.support.ledgers import assert_verified, opened

D = Decimal
MAIN = "account=bybit/main"
SPOT = InstrumentInfo("BTC/USDT", D("0.001"), D(100), D("0.001"), venue="bybit")
PERP = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(100), D("0.001"), venue="bybit")
FAR_PERP = InstrumentInfo("BTC/USDT:USDT", D("0.001"), D(100), D("0.001"), venue="okx")
PAIR: dict[str, Any] = {"price": D(100), "spot_instrument": SPOT, "perp_instrument": PERP}


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[Ledger]:
    """Cap 5000, at most 1000 a position; 900 USD are free in bybit/main, where contracts need a half."""
    with opened(database_url, clock) as ledger:
        ledger.set_cap(key="cap", cap=D(5000))
        ledger.account_seen(key="seen", scope=MAIN, free=D(900), margin_fraction=D("0.5"))
        yield ledger
        assert_verified(ledger)


def promised(ledger: Ledger, scope: str = MAIN) -> Decimal | None:
    return next(row.promised for row in ledger.exposure().scopes if row.scope == scope)


def test_reserve_when_a_hedge_is_asked_then_its_spot_counts_in_full_and_its_contract_by_its_margin(
    ledger: Ledger,
) -> None:
    first = ledger.reserve(key="a", **PAIR)
    assert (first.budget, first.quantity, first.binding) == (D(600), D(6), "free_balance"), "600 + 300 of 900"
    assert promised(ledger) == D(900)
    second = ledger.reserve(key="b", **PAIR)
    assert (second.granted, second.reason, second.binding) == (False, "below_min_qty", "free_balance")


@pytest.mark.parametrize(
    ("legs", "budget"),
    [
        ([LegPlan(SPOT, "buy")], D(900)),
        ([LegPlan(PERP, "sell")], D(1000)),
        ([LegPlan(SPOT, "sell")], D(1000)),
        ([LegPlan(PERP, "buy"), LegPlan(FAR_PERP, "sell")], D(1000)),
        ([LegPlan(SPOT, "buy", fee_rate=D("0.01")), LegPlan(PERP, "sell")], D("595.9")),
        (None, D(900)),
    ],
    ids=["spot", "contract", "sale", "two venues", "fee in coins", "without legs"],
)
def test_reserve_when_its_orders_need_money_then_no_more_than_is_free_is_promised(
    ledger: Ledger, legs: list[LegPlan] | None, budget: Decimal
) -> None:
    asked = {} if legs is None else {"legs": legs, "price": D(100)}
    granted = ledger.reserve(key="a", tags={"venue": "bybit"} if legs is None else {}, **asked)
    assert granted.budget == budget
    known = promised(ledger)
    assert known is not None
    assert known <= 900
    spent = sum((leg.quantity * 100 for leg in granted.legs if (leg.kind, leg.side) == ("spot", "buy")), D(0))
    margin = sum((leg.quantity * 50 for leg in granted.legs if leg.kind == "swap" and leg.venue == "bybit"), D(0))
    assert known == (900 if legs is None else spent + margin)


def test_promise_when_a_hold_ends_fills_or_closes_then_only_what_was_not_spent_comes_back(
    ledger: Ledger, clock: FakeClock
) -> None:
    held = ledger.reserve(key="a", amount_usd=D(300), **PAIR)
    assert promised(ledger) == D(450)
    ledger.confirm(key="fill", position_id=str(held.position_id), quantity=D(1), price=D(110), rest="hold")
    assert promised(ledger) == D(450) + D(10) + D(5), "what was filled stays promised, at its own price"
    ledger.release(key="rest", position_id=str(held.position_id), held_only=True)
    assert promised(ledger) == D(165), "one coin of each leg was bought"
    ledger.release(key="close", position_id=str(held.position_id))
    assert promised(ledger) == D(165), "what a close pays is seen by the next look"
    ledger.reserve(key="b", amount_usd=D(100), ttl_seconds=5, **PAIR)
    clock.advance(5)
    ledger.sweep()
    assert promised(ledger) == D(165)
    ledger.adopt(
        key="fact", quantity=D(2), price=D(100), tags={},
        legs=[Leg("bybit", "BTC/USDT", "spot", "buy", D(2), D(100))],
    )  # fmt: skip
    assert promised(ledger) == D(365), "a fact is spent money too"


def test_account_seen_when_grants_came_meanwhile_then_they_stay_promised(ledger: Ledger) -> None:
    ledger.reserve(key="a", amount_usd=D(200), legs=[LegPlan(SPOT, "buy")], price=D(100))
    ledger.reserve(key="after the look", amount_usd=D(100), legs=[LegPlan(SPOT, "buy")], price=D(100))
    ledger.account_seen(key="look", scope=MAIN, free=D(700), settled=D(200))
    row = next(row for row in ledger.exposure().scopes if row.scope == MAIN)
    assert (row.free_balance, row.promised) == (D(700), D(100))
    assert ledger.reserve(key="b", legs=[LegPlan(SPOT, "buy")], price=D(100)).budget == D(600)


def test_reserve_when_one_account_is_not_trusted_then_only_what_has_a_leg_there_is_denied(
    ledger: Ledger, clock: FakeClock
) -> None:
    until = START + timedelta(seconds=60)
    ledger.reconciled(key="portfolio", fresh_until=START + timedelta(days=1))
    ledger.account_seen(key="bybit", scope=MAIN, fresh_until=until)
    ledger.account_seen(key="okx", scope="account=okx/main", fresh_until=START + timedelta(days=1), free=D(9000))
    clock.advance(60)
    there = ledger.reserve(key="a", amount_usd=D(10), **PAIR)
    assert (there.reason, there.binding) == ("unreconciled", MAIN)
    across = [LegPlan(PERP, "buy"), LegPlan(FAR_PERP, "sell")]
    assert ledger.reserve(key="b", price=D(100), legs=across).reason == "unreconciled"
    assert ledger.reserve(key="c", amount_usd=D(100), legs=[LegPlan(FAR_PERP, "sell")], price=D(100)).granted
    assert ledger.reserve(key="d", tags={}).reason == "unreconciled", "it may be at any of them"
    ledger.reconciled(key="never mind", fresh_until=None)
    assert ledger.reserve(key="e", amount_usd=D(100), **PAIR).granted, "nobody asks for a reconciliation"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"legs": [LegPlan(SPOT, "buy")], "price": D(100)}, "legs.0.account"),
        ({"legs": [LegPlan(SPOT, "buy", account="third")], "price": D(100)}, "legs.0.account"),
        ({"tags": {"venue": "bybit"}}, "tags.account"),
        ({"tags": {"venue": "bybit", "account": "third"}}, "tags.account"),
    ],
)
def test_reserve_when_it_cannot_be_placed_then_it_is_refused_in_words_and_nothing_is_recorded(
    ledger: Ledger, asked: dict[str, Any], field: str
) -> None:
    ledger.account_seen(key="second", scope="account=bybit/second", free=D(50))
    before = ledger.exposure()
    with pytest.raises(InvalidRequest, match=r"bybit .*main, second.*give each leg its account") as refused:
        ledger.reserve(key="a", **asked)
    assert refused.value.field == field
    assert ledger.exposure() == before
    placed = ledger.reserve(key="a", legs=[LegPlan(SPOT, "buy", account="main")], price=D(100))
    assert placed.budget == D(900)
    assert ledger.reserve(key="b", tags={"venue": "bybit", "account": "second"}).budget == D(50)


def test_release_when_a_second_account_came_meanwhile_then_it_gives_back_to_the_first_alone(ledger: Ledger) -> None:
    held = ledger.reserve(key="a", amount_usd=D(300), legs=[LegPlan(SPOT, "buy")], price=D(100))
    plain = ledger.reserve(key="b", amount_usd=D(100), tags={})
    ledger.account_seen(key="second", scope="account=bybit/second", free=D(500))
    ledger.reserve(key="c", amount_usd=D(200), tags={"venue": "bybit", "account": "second"})
    for one in (held, plain):
        ledger.release(key=f"x{one.position_id}", position_id=str(one.position_id))
    assert (promised(ledger), promised(ledger, "account=bybit/second")) == (D(0), D(200))


def test_reserve_when_many_ask_at_once_then_the_wallet_is_never_promised_twice(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    granted: list[Decimal] = []
    lock = threading.Lock()

    def ask(of: Ledger, name: str) -> None:
        for number in range(12):
            decision = of.reserve(key=f"{name}/{number}", amount_usd=D(50), tags={"venue": "bybit", "bot": name})
            with lock:
                granted.append(decision.budget or D(0))

    with opened(database_url, clock) as other:
        threads = [
            threading.Thread(target=ask, args=(of, f"{place}-{n}"))
            for place, of in (("here", ledger), ("there", other)) for n in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(granted) == D(900)
    assert promised(ledger) == D(900)


def test_explain_when_the_balance_bound_it_then_it_says_so_and_what_could_be_had(ledger: Ledger) -> None:
    ledger.reserve(key="a", amount_usd=D(850), legs=[LegPlan(SPOT, "buy")], price=D(10))
    told = ledger.explain(ledger.reserve(key="b", legs=[LegPlan(SPOT, "buy")], price=D(10)).seq or 0)
    assert told.data["binding"] == "free_balance"
    assert told.data["largest_grantable"] == {"budget": "50", "quantity": "5", "binding": "free_balance"}
