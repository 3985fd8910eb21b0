"""What a venue publishes of a market, free of formats: order book, public trades, funding rates, the last day.

The order book has the present price on both sides, and the next ticks behind it.
"""

from decimal import Decimal
from typing import NamedTuple

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Position, now_ms
from ledger_sizer.paper.candles import HISTORY_BEGINS_MS, UNITS_MS, Candle, candles
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, contracts, text_of
from ledger_sizer.paper.markets import Market

FUNDING_MS = 8 * UNITS_MS["h"]
"""Funding is due at 0, 8 and 16 o'clock UTC."""
MAINTENANCE_RATE = Decimal("0.005")
"""The maintenance margin of every contract, a fraction of its value."""
TIER_NOTIONAL = 1_000_000_000
"""Every contract has one tier, up to this value."""

_LEVEL_UNITS = 1_000_000
"""Smallest orders in each level of the order book."""


class PublicTrade(NamedTuple):
    """A trade of others. quantity: as the exchange counts it."""

    id: int
    time_ms: int
    price: str
    quantity: str
    side: str


def whole(request: ExchangeRequest, name: str) -> int | None:
    """Return an argument as a whole number; None when it is missing or is none."""
    text = str(request.arguments.get(name, ""))
    return int(text) if text.lstrip("-").isdigit() else None


def limit_of(request: ExchangeRequest, usual: int, largest: int, name: str = "limit") -> int:
    """Return how many rows a request asks for."""
    return max(1, min(whole(request, name) or usual, largest))


def candles_of(
    exchange: PaperExchange, market: Market, count: int, unit: str, *, since_ms: int | None, until_ms: int | None,
    limit: int,
) -> list[Candle]:  # fmt: skip
    """Return candles of a market, oldest first (see `candles`)."""
    return candles(exchange.prices, market.base, count, unit, since_ms=since_ms, until_ms=until_ms, limit=limit)


def last_day(exchange: PaperExchange, market: Market) -> Candle:
    """Return the newest 24 hours as one candle."""
    present = now_ms()
    day = candles_of(exchange, market, 1, "h", since_ms=None, until_ms=present, limit=24)
    with exact_arithmetic():
        return Candle(
            day[0].begin_ms, day[0].opening, max(one.high for one in day), min(one.low for one in day),
            day[-1].closing, sum((one.volume for one in day), Decimal(0)),
            sum((one.turnover for one in day), Decimal(0)), present,
        )  # fmt: skip


def book(exchange: PaperExchange, market: Market, depth: int) -> tuple[list[list[str]], list[list[str]]]:
    """Return bids and asks, best first: price, and quantity as the exchange counts it."""
    price = exchange.prices[market.base]
    with exact_arithmetic():
        units = text_of(contracts(market, market.step * _LEVEL_UNITS))
        bids = [price - level * market.tick for level in range(depth)]
        asks = [price + level * market.tick for level in range(depth)]
    return [[text_of(one), units] for one in bids if one > 0], [[text_of(one), units] for one in asks]


def public_trades(exchange: PaperExchange, market: Market, limit: int) -> list[PublicTrade]:
    """Return one trade of each of the last minutes, oldest first."""
    with exact_arithmetic():
        units = text_of(contracts(market, market.step * 100))
    return [
        PublicTrade(one.begin_ms // 60_000, one.begin_ms, text_of(one.opening), units,
                    "buy" if one.closing >= one.opening else "sell")
        for one in candles_of(exchange, market, 1, "m", since_ms=None, until_ms=None, limit=limit)
    ]  # fmt: skip


def open_interest(market: Market) -> str:
    """Return what others hold of a contract, as the exchange counts it: always the same."""
    with exact_arithmetic():
        return text_of(contracts(market, market.step * _LEVEL_UNITS))


def next_funding_ms() -> int:
    """Return when funding is due next."""
    return (now_ms() // FUNDING_MS + 1) * FUNDING_MS


def funding_times(since_ms: int | None, until_ms: int | None, limit: int) -> list[int]:
    """Return at most `limit` past times of funding, oldest first: the first from `since_ms` on, or the newest."""
    last = min(now_ms(), until_ms if until_ms is not None else now_ms()) // FUNDING_MS
    first = last - limit + 1
    if since_ms is not None:
        first = -(-max(since_ms, HISTORY_BEGINS_MS) // FUNDING_MS)
    return [number * FUNDING_MS for number in range(first, min(first + limit, last + 1))]


def liquidation_price(market: Market, position: Position, leverage: Decimal, *, isolated: bool) -> Decimal | None:
    """Return where an exchange would take an isolated USDT position; None for another. It is told only."""
    if not isolated or market.inverse or market.kind != "swap":
        return None
    with exact_arithmetic():
        distance = position.entry_price * (1 / leverage - MAINTENANCE_RATE)
        return round(position.entry_price + (-distance if position.quantity > 0 else distance), 8)
