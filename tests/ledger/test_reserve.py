"""Reserve: budget, binding constraint, denial, and a dry run that records nothing."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import (
    AppSettings,
    Denied,
    InstrumentInfo,
    InvalidRequest,
    Ledger,
    LedgerSettings,
    TradingSettings,
)
from tests.support.clock import FakeClock
from tests.support.ledgers import (
    BTC_PERP,
    TAGS,
    assert_verified,
    dynamic_settings,
    figures,
    opened,
    position_of,
    reserve_btc,
)

pytestmark = [pytest.mark.one_engine, pytest.mark.settings(dynamic_settings())]

D = Decimal
BIG_PERP = InstrumentInfo("BTC/USDT:USDT", D(1), D(50), D("0.001"))  # the smallest order costs 50,000 USD


def test_reserve_when_it_fits_then_every_figure_of_the_grant_is_told(ledger: Ledger, clock: FakeClock) -> None:
    decision = reserve_btc(ledger, "cycle-17/BTC", signal_score=D("0.9"), available_balance=D(10000), ttl_seconds=30)
    assert (decision.outcome, decision.reason, decision.granted) == ("granted", None, True)
    assert (decision.command, decision.key, decision.portfolio) == ("reserve", "cycle-17/BTC", "main")
    assert (decision.seq, decision.position_id, decision.replayed) == (1, "main-1", False)
    assert (decision.fraction, decision.raw_budget, decision.budget) == (D("0.93"), D(930), D(900))
    assert decision.quantity == D("0.018")
    assert decision.headroom_before == 5000
    assert (decision.exposure_before, decision.exposure_after) == (D(0), D(900))
    assert decision.binding == "signal_score"
    assert decision.decided_at == clock.now()
    assert decision.expires_at == clock.now() + timedelta(seconds=30)
    assert decision.hash is not None
    assert len(bytes.fromhex(decision.hash)) == 32
    assert decision.raise_for_denial() is decision


def test_reserve_when_granted_then_what_its_orders_cost_is_held_in_the_portfolio_and_every_tag(ledger: Ledger) -> None:
    decision = reserve_btc(ledger, "1", signal_score=D("0.9"))
    for scope in ("portfolio", "venue=bybit", "symbol=BTC", "strategy=funding"):
        assert figures(ledger, scope) == (D(900), D(0)), scope
    position = ledger.position(position_of(decision))
    assert (position.state, position.held, position.open) == ("held", D(900), D(0))
    assert (position.quantity, position.price) == (D("0.018"), None)
    assert dict(position.tags) == TAGS
    assert [(leg.venue, leg.symbol, leg.kind, leg.side, leg.quantity, leg.price) for leg in position.legs] == [
        ("bybit", "BTC/USDT", "spot", "buy", D("0.018"), None),
        ("bybit", "BTC/USDT:USDT", "swap", "sell", D("0.018"), None),
    ]


@pytest.mark.parametrize("scope", ["portfolio", "venue=bybit", "symbol=BTC", "strategy=funding", "desk_2=a=b, c"])
def test_reserve_when_one_scopes_cap_is_tightest_then_it_grants_that_and_names_it(ledger: Ledger, scope: str) -> None:
    tags = {**TAGS, "desk_2": "a=b, c"}
    names = ["portfolio", *(f"{name}={value}" for name, value in tags.items())]
    for name in names:
        cap = D(700) if name == scope else D(900)
        ledger.set_cap(key=f"cap/{name}", scope=name, cap=cap)
    decision = ledger.reserve(key="1", tags=tags, signal_score=D(1))
    assert (decision.granted, decision.budget, decision.binding) == (True, D(700), scope)
    assert decision.raw_budget == 1000
    again = ledger.reserve(key="2", tags=tags, signal_score=D(1))
    assert (again.reason, again.binding, again.budget) == ("cap_exceeded", scope, None)
    other = ledger.reserve(key="3", tags={"venue": "okx"}, signal_score=D(1))
    assert other.granted is (scope != "portfolio")
    assert_verified(ledger)


@pytest.mark.parametrize(
    ("caps", "binding"),
    [
        ({"portfolio": 930}, "signal_score"),  # the cap does not bind
        ({"venue=bybit": 930}, "signal_score"),
        ({"portfolio": 800, "venue=bybit": 800}, "portfolio"),
        ({"venue=bybit": 800, "symbol=BTC": 800}, "symbol=BTC"),
    ],
)
def test_reserve_when_two_constraints_leave_the_same_then_the_first_of_them_is_named(
    ledger: Ledger, caps: dict[str, int], binding: str
) -> None:
    """The order is: the formula, the portfolio, its tags by name, the balance."""
    for scope, cap in caps.items():
        ledger.set_cap(key=scope, scope=scope, cap=D(cap))
    least = D(min(caps.values()))
    decision = ledger.reserve(key="1", tags=TAGS, signal_score=D("0.9"), available_balance=least)
    assert (decision.budget, decision.binding) == (least, binding)


def test_reserve_when_the_cap_fills_up_then_the_last_grant_is_what_is_left_and_then_nothing(ledger: Ledger) -> None:
    granted = [ledger.reserve(key=f"{n}", tags=TAGS, signal_score=D("0.9")) for n in range(6)]
    assert [decision.budget for decision in granted] == [D(930)] * 5 + [D(350)]
    assert [decision.binding for decision in granted] == ["signal_score"] * 5 + ["portfolio"]
    assert [decision.headroom_before for decision in granted] == [D(5000 - 930 * n) for n in range(6)]
    denied = ledger.reserve(key="7", tags=TAGS, signal_score=D(0))
    assert (denied.outcome, denied.reason, denied.binding) == ("denied", "cap_exceeded", "portfolio")
    assert (denied.budget, denied.quantity, denied.position_id, denied.expires_at) == (None,) * 4
    assert (denied.exposure_before, denied.exposure_after, denied.headroom_before) == (D(5000), D(5000), D(0))
    exposure = ledger.exposure()
    assert (exposure.held, exposure.headroom, exposure.overage) == (D(5000), D(0), D(0))


@pytest.mark.parametrize(
    ("balance", "budget", "binding"),
    [
        ("10000", "930", "signal_score"),
        ("930", "930", "signal_score"),
        ("929.99999999", "929.99999999", "available_balance"),
        ("123.456789019", "123.45678901", "available_balance"),  # a hold is whole 1e-8 USD, never above the balance
        ("0.00000001", "0.00000001", "available_balance"),
        ("99999999999999999999", "930", "signal_score"),  # beyond 64 bits, and it does not bind
    ],
)
def test_reserve_when_the_balance_varies_then_the_hold_never_exceeds_it(
    ledger: Ledger, balance: str, budget: str, binding: str
) -> None:
    decision = ledger.reserve(key="1", signal_score=D("0.9"), available_balance=D(balance))
    assert (decision.budget, decision.binding) == (D(budget), binding)
    assert ledger.exposure().held == D(budget)


@pytest.mark.parametrize("balance", ["0", "-1", "-99999999999999999999", "0.000000009"])
def test_reserve_when_there_is_no_balance_then_it_is_denied_for_that(ledger: Ledger, balance: str) -> None:
    decision = ledger.reserve(key="1", available_balance=D(balance))
    assert (decision.reason, decision.binding) == ("insufficient_balance", "available_balance")
    assert figures(ledger) == (0, 0)


def test_reserve_when_the_formula_has_more_than_8_decimals_then_the_budget_is_rounded_down(ledger: Ledger) -> None:
    decision = ledger.reserve(key="1", signal_score=D("0.1234567891234"))
    assert decision.raw_budget == D("386.41975238638")
    assert decision.budget == D("386.41975238")
    assert decision.binding == "signal_score"


@pytest.mark.parametrize(
    ("least", "cap", "budget", "reason"),
    [
        ("930", None, "930", None),
        ("930.00000001", None, None, "below_min_notional"),
        ("500", "500", "500", None),
        ("500", "499.99999999", None, "cap_exceeded"),
        ("0", "499.99999999", "499.99999999", None),
    ],
)
def test_reserve_when_the_grant_would_be_cut_below_min_notional_then_it_is_denied(
    ledger: Ledger, least: str, cap: str | None, budget: str | None, reason: str | None
) -> None:
    if cap is not None:
        ledger.set_cap(key="cap", scope="venue=bybit", cap=D(cap))
    decision = ledger.reserve(key="1", tags=TAGS, signal_score=D("0.9"), min_notional_usd=D(least))
    assert (decision.budget, decision.reason) == (None if budget is None else D(budget), reason)
    assert decision.binding == ("signal_score" if cap is None else "venue=bybit")
    assert figures(ledger) == (D(budget or 0), 0)


@pytest.mark.parametrize(
    ("perp", "balance", "reason"),
    [
        (BIG_PERP, "10000", "below_min_qty"),
        (BTC_PERP, "49.99", "below_min_qty"),
        (InstrumentInfo("BTC-PERP", D(0), D(50), D("0.001"), D("900.01")), "10000", "below_min_notional"),
    ],
)
def test_reserve_when_no_valid_quantity_exists_then_nothing_is_held_and_the_reason_says_why(
    ledger: Ledger, perp: InstrumentInfo, balance: str, reason: str
) -> None:
    decision = reserve_btc(ledger, "1", signal_score=D("0.9"), available_balance=D(balance), perp_instrument=perp)
    assert (decision.outcome, decision.reason, decision.granted) == ("denied", reason, False)
    assert (decision.quantity, decision.position_id) == (None, None)
    assert figures(ledger) == (0, 0)
    assert len(ledger.positions("main")) == 0
    assert [found.seq for found in ledger.history("main")] == [1], "a denial is recorded like a grant"
    with pytest.raises(Denied, match=reason) as denied:
        decision.raise_for_denial()
    assert (denied.value.decision, denied.value.reason) == (decision, reason)


def test_reserve_when_max_qty_bounds_the_quantity_then_it_is_named_and_only_that_is_held(ledger: Ledger) -> None:
    spot = InstrumentInfo("BTC/USDT", D("0.001"), D("0.01"), D("0.001"))
    decision = reserve_btc(ledger, "1", signal_score=D(1), spot_instrument=spot)
    assert (decision.quantity, decision.binding, decision.budget) == (D("0.01"), "max_qty", D(500))


@pytest.mark.parametrize("request_", [{}, {"price": D(50000)}, {"signal_score": D("0.5"), "ttl_seconds": 5}])
def test_reserve_when_there_are_no_instruments_then_it_is_a_plain_hold_of_the_budget(
    ledger: Ledger, request_: dict[str, Any]
) -> None:
    decision = ledger.reserve(key="1", tags=TAGS, **request_)
    assert decision.granted
    assert decision.quantity is None
    position = ledger.position(position_of(decision))
    assert (position.quantity, position.legs, position.held) == (None, (), decision.budget)


@pytest.mark.parametrize("request_", [{}, {"tags": {}}])
def test_reserve_when_there_are_no_tags_then_the_portfolio_alone_counts_it(
    ledger: Ledger, request_: dict[str, Any]
) -> None:
    decision = ledger.reserve(key="1", signal_score=D("0.5"), **request_)
    assert decision.budget == 650
    assert [(row.scope, row.held) for row in ledger.exposure().scopes] == [("portfolio", D(650))]


def test_reserve_when_there_is_no_score_or_sizing_is_off_then_it_is_sized_flat(
    ledger: Ledger, database_url: str, clock: FakeClock
) -> None:
    unscored = ledger.reserve(key="1")
    assert (unscored.fraction, unscored.budget, unscored.binding) == (D(1), D(1000), "max_position_size_usd")
    with opened(database_url, clock) as flat:
        scored = flat.reserve(key="2", signal_score=D("0.1"))
    assert (scored.fraction, scored.budget, scored.binding) == (D(1), D(1000), "max_position_size_usd")


def test_reserve_when_a_ttl_is_left_out_then_the_settings_default_is_used(database_url: str, clock: FakeClock) -> None:
    settings = AppSettings(ledger=LedgerSettings(hold_ttl_seconds=17), trading=TradingSettings())
    with opened(database_url, clock, settings) as ledger:
        assert ledger.reserve(key="1").expires_at == clock.now() + timedelta(seconds=17)


@pytest.mark.parametrize(
    ("ttl", "microseconds"), [(1, 1_000_000), (D("0.000001"), 1), (0.5, 500_000), (D("12.3456789"), 12_345_678)]
)
def test_reserve_when_a_ttl_is_given_then_it_counts_from_the_decision(
    ledger: Ledger, clock: FakeClock, ttl: Any, microseconds: int
) -> None:
    assert ledger.reserve(key="1", ttl_seconds=ttl).expires_at == clock.now() + timedelta(microseconds=microseconds)


# --- dry runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["0.9", "0"])
def test_dry_run_when_asked_then_it_answers_like_the_real_one_and_leaves_no_trace(ledger: Ledger, score: str) -> None:
    ledger.set_cap(key="cap", scope="venue=bybit", cap=D(500))
    before = ledger.exposure()
    dry = reserve_btc(ledger, "1", signal_score=D(score), dry_run=True)
    assert (dry.seq, dry.hash, dry.position_id, dry.granted) == (None, None, None, True)
    assert ledger.exposure() == before
    assert len(ledger.history("main")) == 1
    assert len(ledger.positions("main")) == 0
    real = reserve_btc(ledger, "1", signal_score=D(score))
    assert not real.replayed, "a dry run must not use up its key"
    alike = ("outcome", "budget", "quantity", "fraction", "raw_budget", "binding", "headroom_before", "expires_at")
    assert [getattr(dry, name) for name in alike] == [getattr(real, name) for name in alike]
    assert (dry.exposure_before, dry.exposure_after) == (real.exposure_before, real.exposure_after)


def test_dry_run_when_it_would_be_denied_then_it_says_why(ledger: Ledger) -> None:
    ledger.set_cap(key="begin", cap=D(5000))
    ledger.halt(key="halt", scope="venue=bybit")
    dry = reserve_btc(ledger, "1", dry_run=True)
    assert (dry.outcome, dry.reason, dry.binding) == ("denied", "halted", "venue=bybit")


def test_dry_run_when_the_portfolio_does_not_exist_then_it_is_not_made(ledger: Ledger) -> None:
    dry = ledger.reserve(key="1", portfolio="new", signal_score=D("0.9"), dry_run=True)
    assert (dry.budget, dry.headroom_before) == (D(930), D(5000))
    assert ledger.portfolios() == []
    assert ledger.exposure("new").seq == 0


def test_dry_run_when_a_hold_is_over_then_it_counts_as_free(ledger: Ledger, clock: FakeClock) -> None:
    ledger.set_cap(key="cap", cap=D(1000))
    assert ledger.reserve(key="1", tags=TAGS, ttl_seconds=10).granted
    assert ledger.reserve(key="2", dry_run=True).reason == "cap_exceeded"
    clock.advance(10)
    dry = ledger.reserve(key="2", dry_run=True)
    assert (dry.budget, dry.exposure_before) == (D(1000), D(0))
    assert ledger.exposure().held == 1000, "it freed nothing itself"


# --- caps of a portfolio -----------------------------------------------------------------------------------------


def test_reserve_when_a_portfolio_is_new_then_its_cap_comes_from_the_settings_and_stays(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock, dynamic_settings(max_portfolio_exposure=D("100.000000019"))) as ledger:
        assert ledger.reserve(key="1").budget == D("100.00000001")
    with opened(database_url, clock, dynamic_settings(max_portfolio_exposure=D(9000))) as ledger:
        assert ledger.exposure().cap == D("100.00000001"), "the settings are for new portfolios only"
        assert ledger.reserve(key="2").reason == "cap_exceeded"
        assert ledger.reserve(key="2", portfolio="other").budget == 1000
        assert ledger.exposure("other").cap == 9000
        ledger.set_cap(key="cap", cap=D(300))
    with opened(database_url, clock) as ledger:
        assert ledger.exposure().cap == 300
        assert ledger.portfolios() == ["main", "other"]


async def test_reserve_async_when_awaited_then_it_is_the_same_as_blocking(ledger: Ledger) -> None:
    first = await ledger.reserve_async(key="1", tags=TAGS, signal_score=D("0.9"))
    assert (first.budget, first.seq) == (D(930), 1)
    assert ledger.reserve(key="1", tags=TAGS, signal_score=D("0.9")).replayed
    dry = await ledger.reserve_async(key="2", dry_run=True)
    assert (dry.seq, dry.budget) == (None, D(1000))
    with pytest.raises(InvalidRequest, match="signal_score"):
        await ledger.reserve_async(key="3", signal_score=D(2))
