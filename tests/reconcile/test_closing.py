"""A request to close carries what a bot needs to place the order, in the event, the history and the words."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InstrumentInfo
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.exchanges.instrument_cache import record_rules
from ledger_sizer.model.instruments import MarketRules
from ledger_sizer.wire.responses import decision_to_json
from tests.support.accounts import PERP, Desk, NewDesk, long, short
from tests.support.ledgers import figures

pytestmark = pytest.mark.one_engine

D = Decimal


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    desk = new_desk(confirmations=1, baselines={"bybit/main/ETH": D(3)})
    desk.ledger.set_cap(key="cap", cap=D(1_000_000))
    return desk


def rules(symbol: str, kind: str, step: str, **more: str) -> MarketRules:
    given = {name: D(value) for name, value in more.items()}
    info = InstrumentInfo(symbol, D(step), D(10**6), D(step), D(5), listed_as=f"bybit:{symbol}", **given)  # type: ignore[arg-type]
    return MarketRules("bybit", symbol, kind, True, info)  # type: ignore[arg-type]


def closed(desk: Desk, subject: str) -> dict[str, Any]:
    """Ask to close the drift of this market; return the details of the event."""
    (drift,) = [one for one in desk.run().live if one.subject == subject and one.excess > 0]
    desk.reconciler.operator.act("close", drift.id, reason="not ours")
    said = desk.ledger.history("main", command="remark")[0]
    event = json.loads(json.dumps(decision_to_json(said)))["request"]
    assert (event["event"], event["about"]) == ("close_requested", drift.name)
    details: dict[str, Any] = event["details"]
    return details


def test_close_when_the_rules_are_known_then_the_order_is_in_the_unit_that_its_market_takes(desk: Desk) -> None:
    """A contract is 0.01 BTC: 0.0375 BTC are 3.75 contracts, and one trades whole ones."""
    record_rules(desk.engine, "bybit", [rules(PERP, "swap", "1", contract_size="0.01")], 1)
    desk.account.shows(short("0.0375"), ETH="3")
    assert closed(desk, PERP) == {
        "venue": "bybit", "account": "main", "symbol": PERP, "side": "short", "quantity": "0.0375", "price": "50000",
        "usd": "1875", "order_side": "buy", "order_symbol": PERP, "order_amount": "3",
    }  # fmt: skip
    said = desk.ledger.history("main", command="remark")[0]
    assert decision_label(said) == (
        f"drift-1: close_requested, buy 0.0375 {PERP} at bybit/main, 1,875.00 USD: not ours"
    )
    assert figures(desk.ledger) == (0, D(1875)), "it counts until it is gone"


def test_close_when_coins_were_sold_from_a_stock_then_they_are_bought_back_in_a_market_against_dollars(
    desk: Desk,
) -> None:
    record_rules(desk.engine, "bybit", [rules("ETH/USDC", "spot", "0.1"), rules("BTC/USDT", "spot", "0.1")], 1)
    desk.account.shows(long("1", "ETH/USDT:USDT", "2000"), ETH="1.95")
    assert closed(desk, "ETH") == {
        "venue": "bybit", "account": "main", "symbol": "ETH", "side": "short", "quantity": "1.05", "price": "2000",
        "usd": "2100", "order_side": "buy", "order_symbol": "ETH/USDC", "order_amount": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("known", "more"),
    [
        ([], {}),
        ([rules(PERP, "swap", "1")], {"order_symbol": PERP, "order_refused": "below the smallest order, 1"}),
    ],
    ids=["unknown", "too_small"],
)
def test_close_when_no_order_can_be_given_then_the_rest_is_told(
    desk: Desk, known: list[MarketRules], more: dict[str, str]
) -> None:
    if known:
        record_rules(desk.engine, "bybit", known, 1)
    desk.account.shows(long("0.4"), ETH="3")
    details = closed(desk, PERP)
    assert {name: text for name, text in details.items() if name.startswith("order_")} == {"order_side": "sell", **more}


def test_close_when_the_price_changed_before_a_retry_then_it_is_the_same_request(desk: Desk) -> None:
    desk.account.shows(long("0.4"), ETH="3")
    closed(desk, PERP)
    desk.account.shows(long("0.4", price="51000"), ETH="3")
    desk.run()
    done = desk.reconciler.operator.act("close", 1, reason="not ours")
    assert (done.requested, done.price) == ("close", D(51000))
