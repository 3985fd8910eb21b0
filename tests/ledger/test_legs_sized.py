"""What a reservation with legs holds, what bound it, and why it is denied."""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_UP, Context, Decimal, localcontext
from typing import Any

import pytest

from ledger_sizer import Decision, InstrumentInfo, Ledger, LegPlan
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.ledgers import BTC_PERP, BTC_SPOT, assert_verified, dynamic_settings, figures, position_of
from tests.support.paper_clients import account_at, now_us, trader_at

D = Decimal
XCN_SPOT = InstrumentInfo("XCN/USDT", D("0.01"), D(10**9), D("0.01"), D(1))
XCN_PERP = InstrumentInfo("XCN/USDT:USDT", D(10), D(72000), D(10), D(5))
XCN = {"price": D("0.001229"), "spot_instrument": XCN_SPOT, "perp_instrument": XCN_PERP}
"""The exchange takes 72,000 XCN in one order: 88.488 USD."""

BTC = {"price": D(50000), "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}
OKX_BTC = InstrumentInfo("BTC/USDT:USDT", D(1), D(10**6), D(1), contract_size=D("0.01"), venue="okx")
SCORED = pytest.mark.settings(dynamic_settings())
D_MAX = D("92233720368")


def worth(decision: Decision, price: Decimal) -> Decimal:
    assert decision.quantity is not None
    return decision.quantity * price


# --- what is held ------------------------------------------------------------------------------------------------


def test_reserve_when_a_maximum_cuts_the_grant_then_only_that_is_held(ledger: Ledger) -> None:
    for number in range(1, 6):
        decision = ledger.reserve(key=f"{number}", **XCN)
        assert (decision.quantity, decision.budget, decision.binding) == (72000, D("88.488"), "max_qty")
        assert worth(decision, D("0.001229")) == decision.budget
        assert figures(ledger) == (number * D("88.488"), 0)
    assert_verified(ledger)


def test_reserve_when_a_maximum_cuts_it_below_min_notional_then_it_is_denied(ledger: Ledger) -> None:
    decision = ledger.reserve(key="1", min_notional_usd=D(500), **XCN)
    assert (decision.reason, decision.binding) == ("below_min_notional", "max_qty")
    assert figures(ledger) == (0, 0)
    assert ledger.reserve(key="2", min_notional_usd=D("88.488"), **XCN).granted
    assert not ledger.reserve(key="3", min_notional_usd=D("88.4880001"), **XCN).granted


def test_reserve_when_a_maximum_is_below_the_common_step_then_it_is_named(ledger: Ledger) -> None:
    small, coarse = InstrumentInfo("A/USDT", D(1), D(5), D(1)), InstrumentInfo("A/USDT:USDT", D(10), D(500), D(10))
    decision = ledger.reserve(key="1", price=D(1), spot_instrument=small, perp_instrument=coarse)
    assert (decision.reason, decision.binding) == ("below_min_qty", "max_qty")


def test_reserve_when_the_largest_order_value_cuts_it_then_it_is_named(ledger: Ledger) -> None:
    perp = replace(BTC_PERP, max_notional=D(420))
    decision = ledger.reserve(key="1", **{**BTC, "perp_instrument": perp})
    assert (decision.quantity, decision.budget, decision.binding) == (D("0.008"), 400, "max_notional")
    assert figures(ledger) == (400, 0)


def test_reserve_when_the_step_is_coarse_then_what_it_leaves_is_not_held(ledger: Ledger) -> None:
    coarse = replace(BTC_PERP, qty_step=D("0.009"), min_qty=D("0.009"))
    decision = ledger.reserve(key="1", **{**BTC, "perp_instrument": coarse})
    assert (decision.quantity, decision.budget, decision.binding) == (D("0.018"), 900, "max_position_size_usd")
    assert decision.raw_budget == 1000
    assert figures(ledger) == (900, 0)


def test_reserve_when_a_notional_has_more_than_8_decimals_then_it_is_held_rounded_up(ledger: Ledger) -> None:
    decision = ledger.reserve(key="1", legs=[LegPlan(BTC_PERP, "sell", price=D("50000.0000000001"))])
    assert (decision.quantity, decision.budget) == (D("0.019"), D("950.00000001"))
    assert decision.legs[0].price == D("50000.0000000001")


def test_reserve_when_the_threads_decimal_context_was_changed_then_orders_are_the_same(ledger: Ledger) -> None:
    legs = [LegPlan(BTC_PERP, "buy", price=D("50000.12345678")), LegPlan(OKX_BTC, "sell", price=D("50001.98765432"))]
    exact = ledger.reserve(key="1", legs=legs)
    with localcontext(Context(prec=3, rounding=ROUND_UP)):
        decision = ledger.reserve(key="2", legs=legs)
        assert decision.legs == exact.legs
    assert decision.budget == exact.budget == D("500.01987655"), "0.01 x 50001.98765432 and rounded up"


# --- why it is denied --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["portfolio", "strategy=a"])
def test_reserve_when_what_a_cap_leaves_fails_a_minimum_then_it_is_cap_exceeded(ledger: Ledger, scope: str) -> None:
    ledger.set_cap(key="cap", scope=scope, cap=D(49))
    asked: dict[str, Any] = {"tags": {"strategy": "a"}}
    for number, request in enumerate([BTC, {"min_notional_usd": D(50)}, {"min_notional_usd": D(50), **BTC}]):
        decision = ledger.reserve(key=f"{number}", **asked, **request)
        assert (decision.reason, decision.binding) == ("cap_exceeded", scope)
    least = ledger.reserve(key="least", **asked, **{**BTC, "perp_instrument": replace(BTC_PERP, min_notional=D(60))})
    assert (least.reason, least.binding) == ("cap_exceeded", scope)


@pytest.mark.parametrize(
    ("request_", "reason", "binding"),
    [
        ({"min_notional_usd": D(2000)}, "below_min_notional", "portfolio"),
        ({"amount_usd": D(10), **BTC}, "below_min_qty", "amount_usd"),
        ({"max_position_usd": D(10), **BTC}, "below_min_qty", "max_position_usd"),
        ({"available_balance": D(10), **BTC}, "below_min_qty", "available_balance"),
        ({"available_balance": D(60), **BTC, "min_notional_usd": D(55)}, "below_min_notional", "available_balance"),
        ({"available_balance": D(-1)}, "insufficient_balance", "available_balance"),
        ({"amount_usd": D("1E-9")}, "below_min_notional", "amount_usd"),
    ],
)
def test_reserve_when_more_room_would_not_help_then_it_is_not_the_caps_fault(
    ledger: Ledger, request_: dict[str, Any], reason: str, binding: str
) -> None:
    ledger.set_cap(key="cap", cap=D(100))
    decision = ledger.reserve(key="1", **request_)
    assert (decision.reason, decision.binding) == (reason, binding)
    assert figures(ledger) == (0, 0)


# --- amounts and maxima of one's own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "cap", "budget", "binding"),
    [
        ({"amount_usd": D(250)}, 5000, "250", "amount_usd"),
        ({"amount_usd": D("0.123456789")}, 5000, "0.12345678", "amount_usd"),
        ({"amount_usd": D(1000)}, 5000, "1000", "amount_usd"),
        ({"amount_usd": D(1001)}, 5000, "1000", "max_position_size_usd"),
        ({"amount_usd": D_MAX}, 5000, "1000", "max_position_size_usd"),
        ({"amount_usd": D(250)}, 100, "100", "portfolio"),
        ({"amount_usd": D(250), "available_balance": D(80)}, 100, "80", "available_balance"),
        ({"amount_usd": D(700), "max_position_usd": D(600)}, 5000, "600", "max_position_usd"),
        ({"signal_score": D("0.5"), "max_position_usd": D(500)}, 5000, "325", "signal_score"),
        ({"signal_score": D("0.5"), "max_position_usd": D(5000)}, 5000, "650", "signal_score"),
        ({"signal_score": D("0.5"), "max_position_usd": D(500)}, 300, "300", "portfolio"),
        ({"max_position_usd": D(500)}, 5000, "500", "max_position_usd"),
        ({"max_position_usd": D(1000)}, 5000, "1000", "max_position_size_usd"),
        ({"max_position_usd": D(10) ** 29}, 5000, "1000", "max_position_size_usd"),
        ({"amount_usd": D(999), **BTC}, 5000, "950", "amount_usd"),
        ({"signal_score": D("0.5"), "max_position_usd": D(500), **BTC}, 5000, "300", "signal_score"),
    ],
)
@SCORED
def test_reserve_when_the_bot_says_how_much_then_it_is_cut_like_any_budget(
    ledger: Ledger, request_: dict[str, Any], cap: int, budget: str, binding: str
) -> None:
    ledger.set_cap(key="cap", cap=D(cap))
    tried = ledger.reserve(key="1", dry_run=True, **request_)
    decision = ledger.reserve(key="1", **request_)
    assert (decision.granted, decision.budget, decision.binding) == (True, D(budget), binding)
    assert (tried.budget, tried.binding, tried.legs) == (decision.budget, binding, decision.legs)
    assert figures(ledger) == (D(budget), 0)
    assert_verified(ledger)


@SCORED
def test_reserve_when_an_amount_is_asked_then_it_is_the_raw_budget_without_a_fraction(ledger: Ledger) -> None:
    decision = ledger.reserve(key="1", amount_usd=D(1200))
    assert (decision.raw_budget, decision.fraction, decision.budget) == (1200, None, 1000)


# --- at an exchange ----------------------------------------------------------------------------------------------


def test_reserve_when_the_venue_counts_contracts_then_its_order_amount_is_what_was_granted(
    ledger: Ledger, database_url: str
) -> None:
    """A contract of the paper OKX is 1000 XRP: an order of as many contracts as coins would be 1000 times too much."""
    from ledger_sizer.exchanges.instrument_refresh import refresh_rules
    from ledger_sizer.storage.database import make_engine

    with PaperServer() as server:
        account, bot = account_at("okx", server.url), trader_at("okx", server.url)
        PaperControl(server.url, "okx").deposit("USDT", D(10**6))
        engine = make_engine(database_url)
        refresh_rules(engine, account)
        engine.dispose()
        decision = ledger.reserve(
            key="1", price=D("0.5"), spot_instrument="okx:XRP/USDT", perp_instrument="okx:XRP/USDT:USDT"
        )
        contract = next(leg for leg in decision.legs if leg.kind == "swap")
        assert (decision.quantity, contract.quantity, contract.order_amount) == (2000, 2000, 2)
        bot.create_order(contract.symbol, "market", contract.side, float(contract.order_amount))
        (position,) = account.snapshot(now_us).positions
        assert position.quantity == decision.quantity
    ledger.confirm(key="2", position_id=position_of(decision), quantity=decision.quantity, price=D("0.5"))
    assert_verified(ledger)
