"""One decision of every verb, for the words that tell of each."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from ledger_sizer import Ledger, Leg
from tests.support.clock import START, FakeClock


def one_of_each(ledger: Ledger, clock: FakeClock) -> list[Any]:
    """Return one decision of each verb, and of what the ledger does by itself."""
    ledger.set_cap(key="1", portfolio="main", cap=Decimal(9_000))
    cap = ledger.set_cap(key="2", portfolio="main", scope="venue=bybit", cap=None)
    held = ledger.reserve(key="3")
    extended = ledger.extend(key="4", position_id="main-3", ttl_seconds=90)
    filled = ledger.confirm(key="5", position_id="main-3", quantity=Decimal("0.01"), price=Decimal(50_000))
    closed = ledger.release(key="6", position_id="main-3", quantity=Decimal("0.01"))
    ledger.reserve(key="7")
    clock.advance(61)
    ledger.sweep()
    (expired,) = ledger.history(command="expire")
    legs = [Leg("okx", "ETH", "spot", "buy", Decimal(1))]
    until: datetime = START + timedelta(hours=2)
    other = str(ledger.reserve(key="10", amount_usd=Decimal(100), tags={"symbol": "A"}).position_id)
    return [
        cap, held, extended, filled, closed, expired,
        ledger.fill(key="11", position_id=other, filled_quantity=Decimal(3), price=Decimal(10)),
        ledger.retag(key="12", position_id=other, tags={"symbol": "B", "desk": "x"}, note="moved"),
        ledger.reprice(key="13", position_id=other, price=Decimal(12), note="month end"),
        ledger.rename(key="name", position_id=other, asset="S", ratio=Decimal(24_000), note="split"),
        ledger.adopt(key="8", quantity=Decimal(1), price=Decimal(2_000), legs=legs),
        ledger.halt(key="h", portfolio="main", scope="venue=okx", mode="reducing", note="maintenance"),
        ledger.resume(key="r", portfolio="main", scope="venue=okx"),
        ledger.freeze(key="f", portfolio="main", note="drift-1"),
        ledger.thaw(key="t", portfolio="main"),
        ledger.reconciled(key="c", portfolio="main", fresh_until=until),
        ledger.account_seen(key="16", scope="account=okx/main", free=Decimal(900), fresh_until=until),
        _equity_seen(ledger),
        ledger.remark(key="14", portfolio="main", about="drift-1", event="close_requested", note="by hand"),
        _step_back(ledger, clock),
    ]  # fmt: skip


def _equity_seen(ledger: Ledger) -> Any:
    ledger.set_cap(key="17", scope="bot=e", share_of_equity=Decimal("0.5"))
    return ledger.equity_seen(key="18", scope="bot=e", equity=Decimal(800), note="run 7")


def _step_back(ledger: Ledger, clock: FakeClock) -> Any:
    clock.advance(-62)
    ledger.reserve(key="15")
    (decision,) = ledger.history(command="step_back")
    return decision
