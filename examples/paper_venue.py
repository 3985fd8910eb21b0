"""Simulates a venue for the example: spot and perpetual markets, orders that take time, fill partly, or are refused.

Prices, funding rates and order outcomes depend on the seed alone, so a run can be repeated. Time is simulated:
`next_period` moves it to the next funding time; only an order's delay takes real time. Like a real venue it keeps its
orders (in a file, if there is one) while the bot is down, and executes an order id once.
"""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from ledger_sizer import InstrumentInfo

START = datetime(2026, 1, 1, tzinfo=UTC)
FUNDING_PERIOD = timedelta(hours=8)
TICK = Decimal("0.01")

Market = Literal["spot", "perp"]
Side = Literal["buy", "sell"]


@dataclass(frozen=True)
class Quote:
    """A pair's quote. Prices in USD per base unit; funding_rate: fraction per period that the short perpetual earns."""

    pair: str
    spot_price: Decimal
    perp_price: Decimal
    funding_rate: Decimal


@dataclass(frozen=True)
class Fill:
    """Filled quantity of an order in base units, and its average price in USD."""

    quantity: Decimal
    price: Decimal


class Rejected(Exception):
    """The venue refused the order: nothing was bought or sold."""


class PaperVenue:
    """One venue. holdings: the trader's base units by (pair, market), negative for shorts. period: counts from 0."""

    name = "paper"

    def __init__(
        self,
        seed: int = 7,
        prices: dict[str, Decimal] | None = None,
        *,
        delay_seconds: float = 0.01,
        rejected_percent: int = 8,
        partial_percent: int = 20,
        file: Path | None = None,
    ) -> None:
        """seed: of prices, rates and outcomes. prices: base prices, USD by pair. The percentages are of all orders.

        file: what happened, one JSON object a line; None keeps it in memory.
        """
        self.holdings: defaultdict[tuple[str, Market], Decimal] = defaultdict(Decimal)
        self._orders: dict[str, Fill] = {}
        self._file = file
        self._seed = seed
        self._prices = prices or {
            "BTC": Decimal(50_000),
            "ETH": Decimal(3_000),
            "SOL": Decimal(150),
            "XRP": Decimal(2),
            "ADA": Decimal("0.5"),
        }
        self._delay_seconds = delay_seconds
        self._rejected_percent = rejected_percent
        self._partial_percent = partial_percent
        self.period = 0
        for line in file.read_text().splitlines() if file and file.exists() else ():
            self._happened(**json.loads(line))

    def instruments(self, pair: str) -> tuple[InstrumentInfo, InstrumentInfo]:
        """Return the rules of a pair's spot market and perpetual: steps worth about 1 USD and 5 USD."""
        step = Decimal(1).scaleb(-self._prices[pair].adjusted())
        spot = InstrumentInfo(f"{pair}/USDT", step, 1_000_000 * step, step, min_notional=Decimal(5))
        perp = InstrumentInfo(f"{pair}/USDT:USDT", 5 * step, 1_000_000 * step, 5 * step, min_notional=Decimal(5))
        return spot, perp

    @property
    def now(self) -> datetime:
        """The simulated time."""
        return START + self.period * FUNDING_PERIOD

    def next_period(self) -> None:
        """Move to the next funding time."""
        self._note(period=self.period + 1)

    async def quotes(self) -> list[Quote]:
        """Return the present quotes of all pairs."""
        await asyncio.sleep(0)
        return [self._quote(pair) for pair in self._prices]

    async def balance(self, pair: str) -> dict[Market, Decimal]:
        """Return the account's base units in both markets of a pair: bought in spot, sold in the perpetual."""
        await asyncio.sleep(0)
        return {"spot": self.holdings[pair, "spot"], "perp": -self.holdings[pair, "perp"]}

    async def find(self, order_id: str) -> Fill | None:
        """Return the fill of an order, 0 for one that was refused; None for one that was never sent."""
        await asyncio.sleep(0)
        return self._orders.get(order_id)

    async def place(self, order_id: str, pair: str, market: Market, side: Side, quantity: Decimal) -> Fill:
        """Send a market order (immediate or cancel) and return its fill, full or partial. Raises `Rejected`.

        An id that was sent before is not executed again: it has the outcome of then.
        """
        await asyncio.sleep(self._delay_seconds * self._draw(100, "delay", order_id) / 100)
        if order_id not in self._orders:
            self._note(
                order_id=order_id, pair=pair, market=market, **self._outcome(order_id, pair, market, side, quantity)
            )
        fill = self._orders[order_id]
        if not fill.quantity:
            raise Rejected(f"{order_id}: insufficient margin")
        return fill

    def _outcome(self, order_id: str, pair: str, market: Market, side: Side, quantity: Decimal) -> dict[str, Any]:
        """Return what an order buys, base units (below zero: sells), and its price, as text."""
        outcome = self._draw(100, "fate", order_id)
        if outcome < self._rejected_percent:
            return {"bought": "0", "price": "0"}
        if outcome < self._rejected_percent + self._partial_percent:
            step = self.instruments(pair)[market == "perp"].qty_step
            quantity = max(quantity * self._draw(80, "part", order_id) // (100 * step), Decimal(1)) * step
        quote = self._quote(pair)
        slippage = TICK * self._draw(5, "slippage", order_id) * (1 if side == "buy" else -1)
        price = max((quote.spot_price if market == "spot" else quote.perp_price) + slippage, TICK)
        return {"bought": str(quantity if side == "buy" else -quantity), "price": str(price)}

    def _note(self, **event: Any) -> None:
        """Let something happen, and keep it in the file."""
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(event) + "\n")
        self._happened(**event)

    def _happened(self, period: int | None = None, **order: Any) -> None:
        if period is not None:
            self.period = period
            return
        bought = Decimal(order["bought"])
        self.holdings[order["pair"], order["market"]] += bought
        self._orders[order["order_id"]] = Fill(abs(bought), Decimal(order["price"]))

    def _quote(self, pair: str) -> Quote:
        spot = self._prices[pair] * (9_500 + self._draw(1_000, pair, self.period)) / 10_000
        perp = spot * (10_000 + self._draw(20, "basis", pair, self.period)) / 10_000
        # Rates are autocorrelated: each is the mean of three draws, two of them shared with the previous period.
        draws = [self._draw(120, "rate", pair, self.period + number) - 40 for number in range(3)]
        return Quote(pair, spot.quantize(TICK), perp.quantize(TICK), Decimal(sum(draws)) / 300_000)

    def _draw(self, below: int, *parts: object) -> int:
        """Return an integer in [0, below), a hash of the seed and `parts`."""
        digest = blake2b("/".join(map(str, (self._seed, *parts))).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") * below >> 64
