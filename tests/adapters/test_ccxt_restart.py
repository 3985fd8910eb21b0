"""`DeskExchange` after a restart, and wishes that are asked again."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from tests.support.ccxt_desks import At
from tests.support.paper_clients import PERP, SPOT, VENUES

pytestmark = pytest.mark.one_engine

D = Decimal
Open = Callable[..., At]


@pytest.mark.parametrize("venue", VENUES)
async def test_restart_when_orders_were_out_then_what_became_of_them_is_asked_for(at: Open, venue: str) -> None:
    here = at(venue)
    first = here.open()
    here.control.fills(at_once=False)
    first.create_order(SPOT, "limit", "buy", 0.004, 50000)
    first.create_order(SPOT, "limit", "buy", 0.006, 40000)
    assert here.figures() == (440, 0)
    here.control.fill(here.orders[0].id)
    here.open().catch_up()
    assert here.figures() == (240, 200)


async def test_restart_when_a_close_was_not_told_then_it_is_found_among_the_recent_orders(at: Open) -> None:
    here = at()
    first = here.open()
    first.create_order(SPOT, "market", "buy", 0.01)
    here.control.fills(at_once=False)
    first.create_order(SPOT, "market", "sell", 0.004)
    assert here.figures() == (0, 500)
    here.control.fills(at_once=True)
    for _ in range(2):
        here.open().catch_up()
        assert here.figures() == (0, 300), "it is told once"


async def test_wish_when_it_is_asked_again_after_a_restart_then_it_gets_its_order(at: Open) -> None:
    here = at()
    wish = {"wish": "20260101T08/BTC"}
    first = here.open().create_order(SPOT, "market", "buy", 0.01, None, wish)
    here.control.price("BTC", D(50100))
    again = here.open().create_order(SPOT, "market", "buy", 0.01, None, wish)
    assert again["id"] == first["id"]
    assert len(here.orders) == 1
    assert here.figures() == (0, 500)


async def test_close_when_its_wish_is_asked_again_after_a_restart_then_it_is_told_once(at: Open) -> None:
    here = at()
    here.open().create_order(SPOT, "market", "buy", 0.01)
    wish = {"wish": "20260101T16/BTC/exit"}
    for _ in range(2):
        here.open().create_order(SPOT, "market", "sell", 0.004, None, wish)
        assert here.figures() == (0, 300)
    assert len(here.orders) == 2


async def test_order_when_it_was_found_and_rests_then_the_same_call_is_another_order(at: Open) -> None:
    here = at()
    exchange = here.open(window_seconds=60)
    exchange.load_markets()
    here.control.fault("lost_answer", "order/create", seconds=0.05)
    for number in (1, 2):
        exchange.create_order(SPOT, "limit", "buy", 0.005, 40000)
        assert len(here.orders) == number
    assert here.figures() == (400, 0)


async def test_settle_when_the_account_changed_by_hand_then_the_ledger_follows(at: Open) -> None:
    here = at()
    exchange = here.open()
    exchange.create_order(SPOT, "market", "buy", 0.01)
    exchange.create_order(PERP, "market", "sell", 0.005)
    here.control.close(PERP, D("0.002"))
    here.control.deposit("BTC", D("-0.01"))
    exchange.settle()
    assert here.figures() == (0, 150)
    assert exchange.settle() == []
