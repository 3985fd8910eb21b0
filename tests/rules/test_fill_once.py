"""The short way of the one fill that most positions get makes what the general way makes."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ledger_sizer import Leg
from ledger_sizer.model.domain import Position
from ledger_sizer.model.legs import LegFills
from ledger_sizer.model.tags import NO_TAGS
from ledger_sizer.rules.filling import fill_once, fill_position
from tests.support.ledgers import steady

D = Decimal
AMOUNTS = st.decimals(D("0.0001"), D(100_000), places=4)
MARKETS = [("BTC/USDT", "spot", "buy"), ("BTC/USDT:USDT", "swap", "sell"), ("BTC/USDC:USDC", "swap", "buy")]


@st.composite
def holds(draw: st.DrawFn) -> Position:
    markets = draw(st.lists(st.sampled_from(MARKETS), max_size=3, unique=True))
    planned, price = draw(AMOUNTS), draw(AMOUNTS)
    legs = tuple(
        Leg("bybit", symbol, kind, side, planned, None, fills=LegFills(planned, planned * price))  # type: ignore[arg-type]
        for symbol, kind, side in markets
    )
    return Position("main", 1, "held", NO_TAGS, 10**12, 0, planned if legs else None, None, legs, 1000)


@steady
@given(holds(), AMOUNTS, AMOUNTS, st.none() | AMOUNTS)
def test_fill_once_when_a_hold_fills_then_it_is_as_the_general_way_makes_it(
    hold: Position, quantity: Decimal, price: Decimal, spot_price: Decimal | None
) -> None:
    short = fill_once(hold, quantity, price, spot_price)
    assert short == fill_position(hold, quantity, quantity * price, spot_price=spot_price, keep_rest=False)
    assert (short.held_e8, short.pending, short.fills) == (0, False, None)
