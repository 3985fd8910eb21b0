"""A funding-rate arbitrage bot: buy spot and sell the perpetual while the funding rate pays for it.

    python examples/orchestrator.py                                   # a ledger of its own, in a file
    python examples/orchestrator.py --ledger http://127.0.0.1:8321    # the same bot against the service

Each cycle ranks the pairs by funding rate, reserves capital for each, places both legs at once, and confirms the fills.
Reserve always comes before the orders, confirm and release after the fills:

    reserve  ->  both orders  ->  filled:   confirm   (the fill counts from now on)
                                  refused:  release   (the hold goes back)
                                  unknown:  nothing   (the hold expires; a late fill may still be confirmed)
    signal gone  ->  both exit orders  ->  filled: release   (an exit that is only sent still ties up capital)
"""

import argparse
import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal

from paper_venue import Fill, Market, PaperVenue, Quote, Rejected, Side

from ledger_sizer import Decision, Ledger
from ledger_sizer.client import AsyncLedgerClient

ENTRY_RATE = Decimal("0.00005")  # per period; below it the fees exceed the funding
EXIT_RATE = Decimal("0.00002")
FULL_SCORE_RATE = Decimal("0.0002")  # at this rate and above the score is 1
UNWIND_ATTEMPTS = 10


@dataclass
class Trade:
    """One open position at the venue. open: base units still open in each leg."""

    key: str
    pair: str
    position_id: str
    open: dict[Market, Decimal]

    @property
    def quantity(self) -> Decimal:
        """Base units that tie up capital: the larger leg."""
        return max(self.open.values())


@dataclass
class Orchestrator:
    """One bot. It uses only methods that `Ledger` and `AsyncLedgerClient` both have."""

    ledger: Ledger | AsyncLedgerClient
    venue: PaperVenue
    portfolio: str = "main"
    trades: dict[str, Trade] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)

    async def cycle(self) -> None:
        """Trade one funding period: exit below `EXIT_RATE`, then enter from `ENTRY_RATE` on, best rate first."""
        quotes = {quote.pair: quote for quote in await self.venue.quotes()}
        leaving = [trade for trade in self.trades.values() if quotes[trade.pair].funding_rate < EXIT_RATE]
        await asyncio.gather(*[self.leave(trade) for trade in leaving])

        paying = [quote for quote in quotes.values() if quote.funding_rate >= ENTRY_RATE]
        paying.sort(key=lambda quote: (-quote.funding_rate, quote.pair))
        entering = []
        for quote in paying:
            if quote.pair not in self.trades:
                decision = await self.reserve(quote)  # sequentially, so that the best pair gets capital first
                if decision.granted:
                    entering.append(self.enter(decision, quote))
        await asyncio.gather(*entering)  # the orders of all pairs are sent concurrently

    async def reserve(self, quote: Quote) -> Decision:
        """Reserve capital for a pair. The key names the intent, so a repeated request gets the same answer."""
        spot, perp = self.venue.instruments(quote.pair)
        decision = await self.ledger.reserve_async(
            key=f"{self.venue.now:%Y%m%dT%H}/{quote.pair}",
            portfolio=self.portfolio,
            tags={"venue": self.venue.name, "symbol": quote.pair, "strategy": "funding"},
            signal_score=min(quote.funding_rate / FULL_SCORE_RATE, Decimal(1)),
            price=quote.perp_price,
            spot_instrument=spot,
            perp_instrument=perp,
            ttl_seconds=30,
        )
        size = f"{decision.quantity} {quote.pair}" if decision.granted else decision.reason
        self.note(f"reserve {decision.outcome}", f"{quote.pair} at {quote.funding_rate:.5%}: {size}")
        return decision

    async def enter(self, decision: Decision, quote: Quote) -> None:
        """Place both legs at once, unwind the excess of one leg, and confirm the matched quantity."""
        assert decision.quantity is not None and decision.position_id is not None
        spot, perp = await asyncio.gather(
            self.order(decision.key, quote.pair, "spot", "buy", decision.quantity),
            self.order(decision.key, quote.pair, "perp", "sell", decision.quantity),
        )
        matched = min(spot.quantity, perp.quantity)
        await asyncio.gather(
            self.unwind(decision.key, quote.pair, "spot", "sell", spot.quantity - matched),
            self.unwind(decision.key, quote.pair, "perp", "buy", perp.quantity - matched),
        )
        if not matched:
            await self.ledger.release_async(key=f"{decision.key}/unfilled", position_id=decision.position_id)
            self.note("released unfilled", quote.pair)
            return
        filled = await self.ledger.confirm_async(
            key=f"{decision.key}/fill",
            position_id=decision.position_id,
            quantity=matched,
            price=perp.price,
            spot_price=spot.price,
        )
        assert filled.position_id is not None  # a new id, if the reservation expired before the fill
        legs: dict[Market, Decimal] = {"spot": matched, "perp": matched}
        self.trades[quote.pair] = Trade(decision.key, quote.pair, filled.position_id, legs)
        self.note("entered", f"{matched} {quote.pair}; exposure {filled.exposure_after:.2f} USD")

    async def leave(self, trade: Trade) -> None:
        """Close both legs, and release the closed quantity; the rest is retried in the next cycle."""
        before = trade.quantity
        key = f"{trade.key}/exit/{self.venue.now:%Y%m%dT%H}"
        spot, perp = await asyncio.gather(
            self.order(key, trade.pair, "spot", "sell", trade.open["spot"]),
            self.order(key, trade.pair, "perp", "buy", trade.open["perp"]),
        )
        trade.open["spot"] -= spot.quantity
        trade.open["perp"] -= perp.quantity
        closed = before - trade.quantity
        if not closed:
            self.note("exit refused", trade.pair)
            return
        done = await self.ledger.release_async(
            key=key, position_id=trade.position_id, quantity=closed if trade.quantity else None
        )
        if not trade.quantity:
            del self.trades[trade.pair]
        self.note("left" if not trade.quantity else "left partly", f"{trade.pair}; {done.exposure_after:.2f} USD open")

    async def order(self, key: str, pair: str, market: Market, side: Side, quantity: Decimal) -> Fill:
        """Place one order. A refusal is a fill of 0; any other error is raised, and the hold expires."""
        try:
            return await self.venue.place(f"{key}/{market}", pair, market, side, quantity) if quantity else NOTHING
        except Rejected as rejection:
            self.note("order refused", str(rejection))
            return NOTHING

    async def unwind(self, key: str, pair: str, market: Market, side: Side, quantity: Decimal) -> None:
        """Close the excess of one leg, which would be unhedged."""
        for attempt in range(UNWIND_ATTEMPTS):
            if quantity:
                quantity -= (await self.order(f"{key}/unwind/{attempt}", pair, market, side, quantity)).quantity
        if quantity:
            raise RuntimeError(f"{quantity} {pair} {market} could not be unwound: a person has to look at it")

    def note(self, event: str, what: str) -> None:
        """Count an event and print it."""
        self.events[event] += 1
        print(f"{self.venue.now:%m-%d %H:%M}  {event:<17}  {what}")


NOTHING = Fill(Decimal(0), Decimal(0))


@asynccontextmanager
async def open_ledger(where: str) -> AsyncIterator[Ledger | AsyncLedgerClient]:
    """Open a ledger in this process, or a client of the service."""
    if where.startswith("http"):
        async with AsyncLedgerClient(where, api_key=os.environ.get("LEDGER_SIZER_API_KEY")) as client:
            yield client
    else:
        with Ledger.open(where) as ledger:
            yield ledger


async def main(where: str, cycles: int, seed: int) -> Orchestrator:
    """Trade `cycles` funding periods. Open positions stay open."""
    async with open_ledger(where) as ledger:
        bot = Orchestrator(ledger, PaperVenue(seed))
        for _ in range(cycles):
            await bot.cycle()
            bot.venue.next_period()
        return bot


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", default="sqlite:///orchestrator.db", help="database URL, or address of the service")
    parser.add_argument("--cycles", type=int, default=20, help="funding periods to trade (20)")
    parser.add_argument("--seed", type=int, default=7, help="of the paper market (7)")
    arguments = parser.parse_args()
    print(dict(asyncio.run(main(arguments.ledger, arguments.cycles, arguments.seed)).events))
