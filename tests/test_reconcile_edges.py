"""Edges of the comparison and of a drift's life: what turns into another kind, small parts, empty balances, two venues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

import pytest

from ledger_sizer import InstrumentInfo, Leg
from ledger_sizer.reconcile.kinds import Drift
from tests.accounts import PERP, Desk, WrittenAccount, balance, long, short
from tests.clocks import FakeClock
from tests.desk import BTC_PRICE, TAGS, figures, position_of, reserve_btc

D = Decimal
Open = Callable[..., Desk]
ETH_PERP = "ETH/USDT:USDT"
ETH = {
    "tags": {**TAGS, "symbol": "ETH"},
    "price": D(2000),
    "spot_instrument": InstrumentInfo("ETH/USDT", D("0.01"), D(100), D("0.01")),
    "perp_instrument": InstrumentInfo(ETH_PERP, D("0.01"), D(100), D("0.01")),
}


@pytest.fixture
def opened(database_url: str, clock: FakeClock) -> Iterator[Open]:
    """A desk over these accounts, with a hedged position of 0.02 BTC at 50,000 USD that both sides know."""
    desks: list[Desk] = []

    def opened(accounts: Sequence[WrittenAccount] = (), **reconcile: object) -> Desk:
        desk = Desk(database_url, clock, accounts, **reconcile)
        desks.append(desk)
        desk.ledger.set_cap(key="cap", cap=D(5_000_000))
        adopt(desk, "first", "0.02")
        desk.account.shows(short("0.02"), BTC="0.02")
        return desk

    yield opened
    for desk in desks:
        desk.close()


def adopt(desk: Desk, key: str, quantity: str) -> str:
    """A hedged position that the ledger has from now on."""
    legs = [
        Leg("bybit", "BTC/USDT", "spot", "buy", D(quantity), BTC_PRICE),
        Leg("bybit", PERP, "swap", "sell", D(quantity), BTC_PRICE),
    ]
    return position_of(desk.ledger.adopt(key=key, quantity=D(quantity), price=BTC_PRICE, tags=TAGS, legs=legs))


def found(drifts: Sequence[Drift]) -> dict[tuple[str, str], tuple[str, str, Decimal]]:
    """Kind, state and excess of what differs in quantity, by subject and side."""
    return {(one.subject, one.side): (one.kind, one.state, one.excess) for one in drifts if one.part != "ledger"}


def is_frozen(desk: Desk) -> bool:
    return desk.ledger.exposure("main").whole.frozen


# --- a drift that turns into another kind -----------------------------------------------------------


def test_reconcile_when_a_confirmed_drift_turns_into_another_kind_then_what_it_froze_stays_frozen(
    opened: Open,
) -> None:
    desk = opened()
    held = position_of(reserve_btc(desk.ledger, "eth", ttl_seconds=5000, **ETH))
    desk.account.shows(short("0.02"), short("30.5", ETH_PERP, "2000"), BTC="0.02", ETH="0.5")
    (unknown,) = desk.run(2).live
    assert (unknown.kind, unknown.state) == ("unknown_position", "confirmed")
    desk.ledger.confirm(key="c", position_id=held, quantity=D("0.5"), price=D(2000))
    report = desk.run()
    assert found(report.live)[ETH_PERP, "short"] == ("quantity_differs", "confirmed", D(30))
    assert is_frozen(desk), "30 ETH are there that nobody knows, as before"
    assert [one.reason for one in report.resolved] == ["it is quantity_differs now"]
    desk.account.shows(short("0.02"), short("0.5", ETH_PERP, "2000"), BTC="0.02", ETH="0.5")
    desk.run()
    assert not is_frozen(desk)


def test_reconcile_when_a_late_fill_is_too_old_to_be_one_then_it_counts_on_at_its_last_price(opened: Open) -> None:
    desk = opened()
    reserve_btc(desk.ledger, "eth", ttl_seconds=5, **ETH)
    desk.clock.advance(6)
    desk.ledger.sweep()
    desk.account.shows(short("0.02"), short("0.5", ETH_PERP, "2000"), BTC="0.02", ETH="0.5")
    desk.run(2)
    desk.account.shows(short("0.02"), BTC="0.02", ETH="0.5")  # nothing tells a price any more
    desk.run(2)
    report = desk.run(seconds=3600)
    assert found(report.live) == {("ETH", "long"): ("unknown_position", "confirmed", D("0.5"))}
    assert figures(desk.ledger, "external=exchange") == (D(0), D(1000))
    assert is_frozen(desk)


def test_reconcile_when_a_confirmed_drift_is_seen_beside_a_trade_then_its_end_is_told_too(opened: Open) -> None:
    desk = opened()
    held = position_of(reserve_btc(desk.ledger, "second", ttl_seconds=3000))
    desk.account.shows(short("0.05"), BTC="0.04")
    desk.run(2)
    desk.ledger.confirm(key="c", position_id=held, quantity=D("0.02"), price=BTC_PRICE)
    (drift,) = [one for one in desk.run().live if one.kind == "quantity_differs"]
    desk.account.shows(short("0.04"), BTC="0.04")
    desk.run()
    said = [one for one in desk.ledger.history(command="remark") if one.binding == drift.name]
    events = [desk.ledger.explain(one.seq or 0).data["request"]["event"] for one in said]
    assert sorted(events) == ["confirmed", "resolved"]
