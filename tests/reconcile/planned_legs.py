"""Reserves, confirms and adopts positions of any legs, for the tests of reconciliation."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ledger_sizer import InstrumentInfo, Leg, LegPlan
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.reconciliation import Drift
from tests.support.accounts import PERP, Desk, long, short
from tests.support.ledgers import BTC_PRICE, position_of

D = Decimal
TAGS = {"strategy": "perp-perp"}


def rules(venue: str, symbol: str = PERP, step: str = "0.001") -> InstrumentInfo:
    return InstrumentInfo(symbol, D(step), D(1000), D(step), listed_as=f"{venue}:{symbol}")


def plans(*legs: tuple[str, str]) -> list[LegPlan]:
    """Return plans of the perpetual, as (venue, side) or (venue/account, side)."""
    return [
        LegPlan(rules(place.partition("/")[0]), side, account=place.partition("/")[2] or None)  # type: ignore[arg-type]
        for place, side in legs
    ]  # fmt: skip


def reserve(desk: Desk, key: str, legs: Sequence[LegPlan], usd: int = 1000, **more: Any) -> Decision:
    wish = {"tags": TAGS, "price": BTC_PRICE, "amount_usd": D(usd), "ttl_seconds": 5000, **more}
    if wish.get("until_known"):
        del wish["ttl_seconds"]
    return desk.ledger.reserve(key=key, legs=legs, **wish)


def confirm(desk: Desk, position: str, quantity: str = "0.02", **more: Any) -> None:
    key = f"confirm/{position}/{desk.ledger.exposure('main').seq}"
    desk.ledger.confirm(key=key, position_id=position, quantity=D(quantity), price=BTC_PRICE, **more)


def leg(venue: str, side: str, quantity: str = "0.02", symbol: str = PERP) -> Leg:
    kind = "swap" if ":" in symbol else "spot"
    return Leg(venue, symbol, kind, side, D(quantity), BTC_PRICE)  # type: ignore[arg-type]


def told(drifts: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Return kind, subject and state of drifts, without those of holds that only ended."""
    return sorted((one.kind, one.subject, one.state) for one in drifts if one.kind != "expired_hold")


def adopt_all(desk: Desk, drifts: Sequence[Drift]) -> None:
    for drift in drifts:
        if drift.kind != "legs_unequal":
            desk.reconciler.operator.adopt(drift.id, reason="as it is", price=BTC_PRICE)


def open_pair(desk: Desk, key: str = "pair") -> str:
    """Open 0.02 BTC long at bybit and short at okx, known to both exchanges."""
    held = position_of(reserve(desk, key, plans(("bybit", "buy"), ("okx", "sell"))))
    confirm(desk, held)
    desk.accounts[0].shows(long("0.02"))
    desk.accounts[1].shows(short("0.02"))
    return held


def opened(desk: Desk) -> list[Position]:
    page = desk.ledger.positions("main", state="open", limit=100)
    return [one for one in page if "external" not in one.tags]
