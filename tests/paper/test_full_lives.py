"""Positions at the paper venues from the first order to the last, with the real ccxt client, as a desk trades them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Decision, LegPlan
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.clock import FakeClock
from tests.support.paper_clients import PERP, SPOT
from tests.support.paper_desks import Fill, TradingDesk

pytestmark = pytest.mark.one_engine

D = Decimal
PERP_USDC = "BTC/USDC:USDC"
FIRST, MORE = D(50_000), D(52_000)
"""Prices of the first orders and of those that grow a position."""
PARTS = (D("0.003"), D("0.002"), D("0.004"))
"""Coins of the first two orders; the third is for the rest."""
DAY = 86_400


@pytest.fixture(scope="module")
def server() -> Iterator[PaperServer]:
    with PaperServer() as running:
        for venue, name in {"bybit": "BTCPERP", "binance": "BTCUSDC", "okx": "BTC-USDC-SWAP"}.items():
            PaperControl(running.url, venue).list_market(PERP_USDC, name, FIRST, D("0.001"))
        yield running


NewDesk = Callable[..., TradingDesk]


@pytest.fixture
def open_desk(
    server: PaperServer, database_url: str, clock: FakeClock, request: pytest.FixtureRequest
) -> Iterator[NewDesk]:
    """Open a desk with accounts at these venues."""
    desks: list[TradingDesk] = []

    def opened(*venues: str, on: PaperServer = server, **more: Any) -> TradingDesk:
        accounts = [(venue, "main") for venue in venues]
        desks.append(TradingDesk(database_url, clock, on, accounts, request.node.name, **more))
        desks[-1].price("BTC", FIRST)
        return desks[-1]

    yield opened
    for desk in desks:
        desk.close()


# How fills are told. Each gets the fills of all legs so far, in parts.

Part = Sequence[Fill]
Tell = Callable[[TradingDesk, str, Sequence[Part]], None]


def _sum(parts: Sequence[Part]) -> tuple[Decimal, Decimal]:
    """Return coins and average price of the last leg's fills."""
    with exact_arithmetic():
        coins = sum((part[-1].coins for part in parts), D(0))
        cost = sum((part[-1].cost for part in parts), D(0))
        return coins, (cost / coins).quantize(D("1e-18"))


def one_by_one(desk: TradingDesk, position_id: str, parts: Sequence[Part]) -> None:
    """Tell the newest fills, each leg's under a key of its own, and keep the rest."""
    for fill in parts[-1]:
        desk.ledger.confirm(
            key=f"{position_id}/{len(parts)}/{fill.leg.venue}/{fill.leg.symbol}", position_id=position_id,
            quantity=fill.coins, price=fill.price, legs=[fill.as_leg], rest="hold",
        )  # fmt: skip
        desk.require_no_drift()


def in_sum(desk: TradingDesk, position_id: str, parts: Sequence[Part]) -> None:
    """Tell how much is filled by now; twice, as a bot that is not sure does."""
    coins, price = _sum(parts)
    for again in ("", "/again"):
        key = f"{position_id}/{len(parts)}{again}"
        desk.ledger.fill(key=key, position_id=position_id, filled_quantity=coins, price=price)


def once(desk: TradingDesk, position_id: str, parts: Sequence[Part]) -> None:
    """Tell all fills of a grant in one confirm, after its last part."""
    if len(parts) % len(PARTS) == 0:
        coins, price = _sum(parts[-len(PARTS) :])
        desk.ledger.confirm(key=f"{position_id}/{len(parts)}", position_id=position_id, quantity=coins, price=price)


TELLS = (one_by_one, in_sum, once)

# What is traded: markets and sides, `{0}` and `{1}` are venues.

SHAPES: dict[str, list[tuple[str, str]]] = {
    "perpetual and perpetual of one venue": [("{0}:" + PERP, "buy"), ("{0}:" + PERP_USDC, "sell")],
    "perpetual and perpetual of two venues": [("{0}:" + PERP, "buy"), ("{1}:" + PERP, "sell")],
    "spot": [("{0}:" + SPOT, "buy")],
    "perpetual sold": [("{0}:" + PERP, "sell")],
    "perpetual bought": [("{0}:" + PERP, "buy")],
    "spot and perpetual": [("{0}:" + SPOT, "buy"), ("{0}:" + PERP, "sell")],
    "spot and perpetual of two venues": [("{0}:" + SPOT, "buy"), ("{1}:" + PERP, "sell")],
    "three legs": [("{0}:" + SPOT, "buy"), ("{0}:" + PERP, "sell"), ("{1}:" + PERP, "sell")],
}


def _enter(
    desk: TradingDesk, key: str, tell: Tell, legs: Sequence[LegPlan], price: Decimal, parts: list[Part], **request: Any
) -> Decision:
    """Reserve, order every leg in parts, and tell the fills. Ledger and venues agree at each quiet moment."""
    granted = desk.ledger.reserve(key=key, price=price, legs=legs, ttl_seconds=DAY, **request)
    assert granted.quantity is not None, granted
    assert [f"{leg.venue}:{leg.symbol}" for leg in granted.legs] == [plan.instrument for plan in legs]
    assert {leg.quantity for leg in granted.legs} == {granted.quantity}
    desk.require_agreement()
    for coins in (*PARTS[:-1], granted.quantity - sum(PARTS[:-1])):
        parts.append([desk.order(leg, coins) for leg in granted.legs])
        desk.require_no_drift()  # filled and not told: in flight
        tell(desk, str(granted.position_id), parts)
        desk.require_no_drift()
    desk.require_agreement()
    return granted


def _leave(desk: TradingDesk, granted: Sequence[Decision]) -> None:
    """Close each grant with orders the other way."""
    for number, one in enumerate(granted):
        position = desk.ledger.position(str(one.position_id))
        assert position.state == "open"
        for leg in one.legs:
            desk.order(leg, back=True)
        last = number + 1 == len(granted)
        desk.ledger.release(
            key=f"exit/{number}", position_id=position.position_id, quantity=None if last else one.quantity
        )
        desk.require_agreement()
    assert desk.ledger.position(str(granted[0].position_id)).state == "closed"


LIVES = [
    pytest.param(kind, shape, pair, tell, id=f"{kind}-{shape}-{'-'.join(pair)}-{tell.__name__}")
    for row, shape in enumerate(SHAPES)
    for column, pair in enumerate((("bybit", "okx"), ("okx", "binance"), ("binance", "bybit")))
    for tell in (TELLS[(row + column) % 3],)
    for kind in (("sqlite", "postgresql") if column == row % 3 else ("sqlite",))
]
"""Each shape at each pair of venues, and told in each way. On PostgreSQL each shape at one pair, in turn."""


@pytest.mark.parametrize(("engine_kind", "shape", "venues", "tell"), LIVES)
def test_trade_when_a_position_is_filled_in_parts_grown_and_closed_then_ledger_and_venues_agree_throughout(
    engine_kind: str, open_desk: NewDesk, shape: str, venues: tuple[str, str], tell: Tell
) -> None:
    desk = open_desk(*venues)
    legs = [LegPlan(name.format(*venues), side) for name, side in SHAPES[shape]]  # type: ignore[arg-type]
    counted = max(sum(leg.side == side for leg in legs) for side in ("buy", "sell"))
    parts: list[Part] = []

    first = _enter(desk, "first", tell, legs, FIRST, parts, amount_usd=D(450) * counted)
    desk.require_open(first, D("0.009"), D(450) * counted)

    desk.price("BTC", MORE)
    more = _enter(desk, "more", tell, legs, MORE, parts, amount_usd=D(364) * counted, position_id=first.position_id)
    assert more.position_id == first.position_id
    desk.require_open(first, D("0.016"), D(450 + 364) * counted)
    assert desk.ledger.position(str(first.position_id)).cost == D(450 + 364)

    _leave(desk, [first, more])
    desk.require_flat()
