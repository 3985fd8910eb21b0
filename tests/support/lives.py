"""A life that no older version could live: legs at two venues, fills one by one, growth, other tags, another price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ledger_sizer import Decision, InstrumentInfo, Ledger, Leg, LegPlan
from tests.support.clock import FakeClock
from tests.support.ledgers import position_of, reserve_btc

D = Decimal

BYBIT_PEPE = InstrumentInfo(
    "1000PEPE/USDT:USDT", D(100), D(10**7), D(100), D(5), venue="bybit", multiplier=D(1000)
)  # fmt: skip
OKX_PEPE = InstrumentInfo("PEPE/USDT:USDT", D(1), D(10**7), D(1), D(5), contract_size=D(10_000), venue="okx")
PEPE_PRICE = D("0.00001")
PEPE = [LegPlan(BYBIT_PEPE, "buy"), LegPlan(OKX_PEPE, "sell", account="sub")]
BY_COST = InstrumentInfo("ETC/USDT", D("0.01"), D(10**6), D("0.01"), D(1), venue="gate", buys_by_cost=True)
XCN_SPOT = InstrumentInfo("XCN/USDT", D("0.01"), D(10**9), D("0.01"), D(1))
XCN_PERP = InstrumentInfo("XCN/USDT:USDT", D(10), D(72_000), D(10), D(5))
XCN = {"price": D("0.001229"), "spot_instrument": XCN_SPOT, "perp_instrument": XCN_PERP}
"""A pair whose contract takes 72,000 coins in one order: 88.488 USD."""


def reserve_pepe(ledger: Ledger, key: str, **request: Any) -> Decision:
    """Reserve with a bought perpetual of thousands and one sold in contracts of 10,000, each at its own venue."""
    return ledger.reserve(key=key, **{"legs": PEPE, "price": PEPE_PRICE, **request})


def live_through_fills(ledger: Ledger, clock: FakeClock, portfolio: str = "main") -> dict[str, Decision]:
    """Record every verb and form of legs and fills; returns the decisions by key. Needs dynamic sizing."""
    made: dict[str, Decision] = {}

    def keep(decision: Decision) -> str:
        made[decision.key] = decision
        return decision.position_id or ""

    where = {"portfolio": portfolio}
    one = keep(
        reserve_pepe(ledger, "grant", signal_score=D("0.9"), tags={"strategy": "funding"}, reference="t7", **where)
    )
    keep(ledger.confirm(key="part", position_id=one, quantity=D(20_000_000), price=D("0.0000101"), rest="hold"))
    fill = {"filled_quantity": D(30_000_000), "price": D("0.0000103")}
    keep(ledger.fill(key="fill", position_id=one, **fill))
    keep(ledger.fill(key="known", position_id=one, reference="o9", **fill))
    keep(ledger.extend(key="unknown", position_id=one, until_known=True))
    keep(reserve_pepe(ledger, "more", position_id=one, amount_usd=D(40)))
    keep(reserve_pepe(ledger, "most", position_id=one, amount_usd=D(400)))
    keep(reserve_pepe(ledger, "no more", position_id=one, amount_usd=D(400)))
    keep(ledger.reprice(key="price", position_id=one, price=D("0.000012"), note="month end"))
    keep(ledger.retag(key="tags", position_id=one, tags={"strategy": "basis", "desk": ["x", "y"]}))
    keep(ledger.set_cap(key="cap", scope="desk=z", cap=D(10), **where))
    keep(ledger.retag(key="no room", position_id=one, tags={"strategy": "basis", "desk": "z"}))
    keep(ledger.release(key="rest", position_id=one, held_only=True))
    keep(ledger.release(key="close part", position_id=one, quantity=D(7_000_000)))
    keep(ledger.confirm(key="after all", position_id=one, quantity=D(1_000_000), price=D("0.0000101")))

    plain = keep(
        ledger.reserve(key="plain amount", amount_usd=D(300), max_position_usd=D(200), tags={"venue": "okx"}, **where)
    )
    keep(ledger.release(key="gave back", position_id=plain))
    keep(ledger.confirm(key="late released", position_id=plain, quantity=D(3), price=D("33.3")))

    short = keep(reserve_btc(ledger, "overdue", ttl_seconds=10, tags={"strategy": "funding"}, **where))
    keep(ledger.confirm(key="overdue part", position_id=short, quantity=D("0.005"), price=D(50_000), rest="hold"))
    other = keep(reserve_pepe(ledger, "to expire", ttl_seconds=10, amount_usd=D(100), **where))
    clock.advance(20)
    filled = Leg("okx", "PEPE/USDT:USDT", "swap", "sell", D(10_000_000), D("0.0000102"), account="sub")
    keep(
        ledger.confirm(
            key="late expired", position_id=other, quantity=D(10_000_000), price=D("0.0000102"), legs=[filled]
        )
    )
    elsewhere = Leg("deribit", "BTC/USDT:USDT", "swap", "sell", D("0.003"), D(50_010))
    keep(ledger.confirm(key="elsewhere", position_id=short, quantity=D("0.003"), price=D(50_010), legs=[elsewhere]))

    keep(ledger.reserve(key="smaller", signal_score=D("0.5"), max_position_usd=D(500), until_known=True, **where))
    keep(ledger.set_cap(key="tiny", scope="strategy=tiny", cap=D(30), **where))
    keep(reserve_btc(ledger, "too little", tags={"strategy": "tiny"}, **where))
    keep(ledger.reserve(key="cut", **XCN, **where))
    keep(ledger.reserve(key="cut below", **XCN, **where, min_notional_usd=D(500)))
    bought = keep(
        ledger.reserve(key="spot", price=D(7), legs=[LegPlan(BY_COST, "buy", fee_rate=D("0.001"))], amount_usd=D(90),
                       until_known=True, **where)
    )  # fmt: skip
    keep(ledger.confirm(key="spot part", position_id=bought, quantity=D(3), price=D("7.01"), rest="hold"))
    keep(ledger.confirm(key="spot more", position_id=bought, quantity=D(4), price=D("7.02"), rest="hold"))
    whole = keep(ledger.reserve(key="repriced", amount_usd=D(50), until_known=True, **where))
    keep(ledger.confirm(key="repriced part", position_id=whole, quantity=D(3), price=D(7), rest="hold"))
    keep(ledger.confirm(key="repriced more", position_id=whole, quantity=D(4), price=D(8), rest="hold"))
    keep(ledger.reprice(key="repriced now", position_id=whole, price=D(6)))
    keep(ledger.release(key="repriced close", position_id=whole, quantity=D(1)))
    pair = keep(reserve_btc(ledger, "held pair", ttl_seconds=900, signal_score=D(0), reference="held", **where))
    assert pair
    return made


def position_of_key(made: dict[str, Decision], key: str) -> str:
    """Return the position of one of these decisions."""
    return position_of(made[key])
