"""A funding-rate arbitrage bot: buy spot and sell the perpetual while the funding rate pays for it.

    python examples/orchestrator.py                                   # a ledger of its own, in a file
    python examples/orchestrator.py --ledger http://127.0.0.1:8321    # the same bot against the service

Each cycle ranks the pairs by funding rate, reserves capital for each, places both legs at once, and confirms the fills.
Reserve always comes before the orders, confirm and release after the fills:

    reserve  ->  both orders  ->  filled:   confirm   (the fill counts from now on)
                                  refused:  release   (the hold goes back)
                                  unknown:  nothing   (the hold expires; a late fill may still be confirmed)
    signal gone  ->  both exit orders  ->  filled: release   (an exit that is only sent still ties up capital)

Kill it at any moment and start it again: it goes through the cycle once more. Its keys and order ids are made from what
it wants, so what was done before is found and not done twice, at whatever price.
"""

import argparse
import asyncio
import inspect
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from paper_venue import Fill, Market, PaperVenue, Quote, Rejected, Side

from ledger_sizer import Decision, KeyReused, Ledger, NotFound
from ledger_sizer.client import AsyncLedgerClient

ENTRY_RATE = Decimal("0.00005")  # per period; below it the fees exceed the funding
EXIT_RATE = Decimal("0.00002")
FULL_SCORE_RATE = Decimal("0.0002")  # at this rate and above the score is 1
UNWIND_ATTEMPTS = 10


@dataclass
class Trade:
    """One open position at the venue. counted: the base units for which the ledger ties up capital."""

    pair: str
    position_id: str
    counted: Decimal


@dataclass
class Orchestrator:
    """One bot. It uses only methods that `Ledger` and `AsyncLedgerClient` both have."""

    ledger: Ledger | AsyncLedgerClient
    venue: PaperVenue
    portfolio: str = "main"
    trades: dict[str, Trade] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)

    async def recover(self) -> None:
        """Find the trades of an earlier run. `reserve` finds its holds, which may be filled by now."""
        mine = {"state": "open", "tags": {"strategy": "funding"}}
        with suppress(NotFound):  # nothing was asked for in this portfolio yet
            for position in await done(self.ledger.positions(self.portfolio, **mine)):
                pair = position.tags["symbol"]
                self.trades[pair] = Trade(pair, position.position_id, position.quantity)

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
        key = f"{self.venue.now:%Y%m%dT%H}/{quote.pair}"
        try:
            decision = await self.ledger.reserve_async(
                key=key,
                portfolio=self.portfolio,
                tags={"venue": self.venue.name, "symbol": quote.pair, "strategy": "funding"},
                signal_score=min(quote.funding_rate / FULL_SCORE_RATE, Decimal(1)),
                price=quote.perp_price,
                spot_instrument=spot,
                perp_instrument=perp,
                ttl_seconds=30,
            )
        except KeyReused:  # asked before a restart, when the price was another
            decision = await done(self.ledger.lookup(key, self.portfolio))
        size = f"{decision.quantity} {quote.pair}" if decision.granted else decision.reason
        self.note(f"reserve {decision.outcome}", f"{quote.pair} at {quote.funding_rate:.5%}: {size}")
        return decision

    async def enter(self, decision: Decision, quote: Quote) -> None:
        """Place both legs at once, unwind the excess of one leg, and confirm the matched quantity."""
        assert decision.quantity is not None and decision.position_id is not None
        hold = await done(self.ledger.position(decision.position_id))
        if hold.state not in ("held", "expired"):
            return  # an earlier run came to its end
        # Without a hold nothing new is ordered. What an earlier run ordered is a fact.
        order = self.order if hold.state == "held" else self.ordered
        bought, sold = decision.legs  # order_amount is in the exchange's own unit
        spot, perp = await asyncio.gather(
            order(decision.key, quote.pair, "spot", "buy", bought.order_amount),
            order(decision.key, quote.pair, "perp", "sell", sold.order_amount),
        )
        matched = min(spot.quantity, perp.quantity)
        await asyncio.gather(
            self.unwind(decision.key, quote.pair, "spot", "sell", spot.quantity - matched),
            self.unwind(decision.key, quote.pair, "perp", "buy", perp.quantity - matched),
        )
        if not matched:
            if hold.state == "held":
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
        self.trades[quote.pair] = Trade(quote.pair, filled.position_id, matched)
        self.note("entered", f"{matched} {quote.pair}; exposure {filled.exposure_after:.2f} USD")

    async def leave(self, trade: Trade) -> None:
        """Close both legs, and release what is closed; the rest is retried in the next cycle."""
        key = f"{trade.position_id}/exit/{self.venue.now:%Y%m%dT%H}"
        open_ = await self.venue.balance(trade.pair)
        await asyncio.gather(
            self.order(key, trade.pair, "spot", "sell", open_["spot"]),
            self.order(key, trade.pair, "perp", "buy", open_["perp"]),
        )
        # The larger leg ties up capital. What the venue shows counts, whichever run of the bot sent the orders.
        left = max((await self.venue.balance(trade.pair)).values())
        if left == trade.counted:
            self.note("exit refused", trade.pair)
            return
        closed = trade.counted - left
        answer = await self.ledger.release_async(
            key=key, position_id=trade.position_id, quantity=closed if left else None
        )
        trade.counted = left
        if not left:
            del self.trades[trade.pair]
        self.note("left partly" if left else "left", f"{trade.pair}; {answer.exposure_after:.2f} USD open")

    async def order(self, key: str, pair: str, market: Market, side: Side, quantity: Decimal) -> Fill:
        """Place one order. A refusal is a fill of 0; any other error is raised, and the hold expires."""
        try:
            return await self.venue.place(f"{key}/{market}", pair, market, side, quantity) if quantity else NOTHING
        except Rejected as rejection:
            self.note("order refused", str(rejection))
            return NOTHING

    async def ordered(self, key: str, _pair: str, market: Market, _side: Side, _quantity: Decimal) -> Fill:
        """Return the fill of an order that an earlier run may have sent."""
        return await self.venue.find(f"{key}/{market}") or NOTHING

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


async def done(read: Any) -> Any:
    """Return what was read: `Ledger` reads at once, `AsyncLedgerClient` is awaited."""
    return await read if inspect.isawaitable(read) else read


@asynccontextmanager
async def open_ledger(where: str) -> AsyncIterator[Ledger | AsyncLedgerClient]:
    """Open a ledger in this process, or a client of the service."""
    if where.startswith("http"):
        async with AsyncLedgerClient(where, api_key=os.environ.get("LEDGER_SIZER_API_KEY")) as client:
            yield client
    else:
        with Ledger.open(where) as ledger:
            yield ledger


async def main(where: str, cycles: int, seed: int, venue_file: Path) -> Orchestrator:
    """Trade `cycles` funding periods. Open positions stay open, for the next run."""
    async with open_ledger(where) as ledger:
        bot = Orchestrator(ledger, PaperVenue(seed, file=venue_file))
        await bot.recover()
        for _ in range(cycles):
            await bot.cycle()
            bot.venue.next_period()
        return bot


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", default="sqlite:///orchestrator.db", help="database URL, or address of the service")
    parser.add_argument("--cycles", type=int, default=20, help="funding periods to trade (20)")
    parser.add_argument("--seed", type=int, default=7, help="of the paper market (7)")
    parser.add_argument("--venue", type=Path, default=Path("paper-venue.jsonl"), help="file of the paper market")
    given = parser.parse_args()
    print(dict(asyncio.run(main(given.ledger, given.cycles, given.seed, given.venue)).events))
