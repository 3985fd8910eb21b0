"""Denial reasons of a reservation: each by itself, and which is reported where several hold."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo, Ledger
from ledger_sizer.model.denials import DENIAL_REASONS
from tests.support.ledgers import BTC_SPOT, TAGS, assert_verified, figures

pytestmark = pytest.mark.one_engine

D = Decimal
BIG_PERP = InstrumentInfo("BTC/USDT:USDT", D(1), D(50), D("0.001"))  # the smallest order costs 50,000 USD


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """Flat sizing (1000 USD a position, cap 5000), with a portfolio, which a halt needs."""
    ledger.set_cap(key="begin", cap=D(5000))
    return ledger


Request = dict[str, Any]
SITUATIONS: dict[str, Callable[[Ledger], Request]] = {}


def situation(function: Callable[[Ledger], Request]) -> Callable[[Ledger], Request]:
    SITUATIONS[function.__name__] = function
    return function


@situation
def halted(ledger: Ledger) -> Request:
    ledger.halt(key="halt", scope="symbol=BTC")
    return {}


@situation
def reducing(ledger: Ledger) -> Request:
    ledger.halt(key="reduce", scope="venue=bybit", mode="reducing")
    return {}


@situation
def unreconciled(ledger: Ledger) -> Request:
    ledger.freeze(key="freeze", scope="strategy=funding")
    return {}


@situation
def cap_exceeded(ledger: Ledger) -> Request:
    ledger.set_cap(key="cap", scope="strategy=funding", cap=D(0))
    return {}


@situation
def below_min_qty(_ledger: Ledger) -> Request:
    return {"price": D(50000), "spot_instrument": BTC_SPOT, "perp_instrument": BIG_PERP}


@situation
def below_min_notional(_ledger: Ledger) -> Request:
    return {"min_notional_usd": D("1000.01")}


@situation
def insufficient_balance(_ledger: Ledger) -> Request:
    return {"available_balance": D(0)}


BOUND_BY = {
    "halted": "symbol=BTC",
    "reducing": "venue=bybit",
    "unreconciled": "strategy=funding",
    "cap_exceeded": "strategy=funding",
    "below_min_qty": "max_position_size_usd",
    "below_min_notional": "max_position_size_usd",
    "insufficient_balance": "available_balance",
}


def test_list_denial_reasons_when_read_then_they_stand_in_the_documented_order() -> None:
    assert DENIAL_REASONS == (
        "halted", "reducing", "unreconciled", "cap_exceeded", "below_min_qty", "below_min_notional",
        "insufficient_balance", "group_denied",
    )  # fmt: skip
    # `group_denied` is only reported where none of the others holds.
    assert [*SITUATIONS] == [reason for reason in DENIAL_REASONS if reason != "group_denied"]


@pytest.mark.parametrize("reason", SITUATIONS)
def test_reserve_when_one_reason_holds_then_it_is_denied_for_it_and_the_binding_is_named(
    ledger: Ledger, reason: str
) -> None:
    assert ledger.reserve(key="before", tags=TAGS).granted
    held = figures(ledger)
    decision = ledger.reserve(key="1", tags=TAGS, **SITUATIONS[reason](ledger))
    assert (decision.outcome, decision.reason, decision.binding) == ("denied", reason, BOUND_BY[reason])
    assert figures(ledger) == held
    assert_verified(ledger)


@pytest.mark.parametrize(("first", "second"), list(combinations(SITUATIONS, 2)))
def test_reserve_when_two_reasons_hold_then_the_one_that_stands_first_is_given(
    ledger: Ledger, first: str, second: str
) -> None:
    request = SITUATIONS[second](ledger) | SITUATIONS[first](ledger)
    decision = ledger.reserve(key="1", tags=TAGS, **request)
    assert (decision.outcome, decision.reason) == ("denied", first)


def test_reserve_when_every_reason_holds_then_the_first_of_all_is_given(ledger: Ledger) -> None:
    request: Request = {}
    for arrange in SITUATIONS.values():
        request |= arrange(ledger)
    assert ledger.reserve(key="1", tags=TAGS, **request).reason == "halted"
