"""Two orders as one position, and what is left of them after a crash: the part that both examples share.

    reserve, until_known  ->  both orders  ->  legs made equal  ->  confirm, or release where nothing filled
                              both exit orders, until filled    ->  release

Every step has a name: the idempotency key at the ledger, the client order id at the exchange. Names are made of what
is wanted, never of when it was tried. So whoever does a step, this life of the bot or the next, finds whether it was
done. A hold is written before its orders and never ends by time: no clock frees the money of an order that may be
live. `resume` does, which asks the exchange.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import ccxt

from ledger_sizer import Decision, KeyReused, Leg, LegPlan, Position
from ledger_sizer.adapters.ccxt import client_order_id, find_order, outcome_unknown, seen_of, unit_of
from ledger_sizer.exchanges.market_rules import rules_of

Side = Literal["buy", "sell"]
TRIES = 3
LOOK_SECONDS = 0.2


class Fill(NamedTuple):
    """Coins that an order filled, without a fee paid in coins, at their average price in USD per coin."""

    coins: Decimal
    price: Decimal | None


class HedgeBot:
    """The positions of one bot. ledger: a `Ledger` or an `AsyncLedgerClient`. tags: of this bot alone, `{"bot": "a"}`.

    exchanges: of ccxt.async_support, by venue. window_seconds: how long an exchange may take an order after it was sent
    (its receive window).
    """

    def __init__(
        self, ledger: Any, exchanges: dict[str, Any], tags: dict[str, str], window_seconds: float = 10,
        portfolio: str = "main",
    ) -> None:  # fmt: skip
        self.ledger, self.exchanges, self.tags = ledger, exchanges, tags
        self.window_seconds, self.portfolio = window_seconds, portfolio
        self.leaving: set[str] | None = None
        """Positions whose exit began; None until `resume` has asked the exchange for those of an earlier run."""

    async def resume(self) -> list[Position]:
        """Bring to an end what was begun, by this run or by one that was killed. Return what is open."""
        live = await self._positions("live")
        if live if self.leaving is None else any(one.pending or one.position_id in self.leaving for one in live):
            await asyncio.sleep(self.window_seconds)  # an order that was sent may still be on its way
        if self.leaving is None:
            self.leaving = {one.position_id for one in live if not one.pending and await self._exit_began(one)}
        for position in live:
            if position.pending:
                await self._complete(await done(self.ledger.decision(position.number, self.portfolio)), send=False)
            elif position.position_id in self.leaving:
                await self.leave(position)
        return await self._positions("open")

    async def enter(self, wish: str, coin: str, usd: Decimal, legs: Sequence[LegPlan]) -> Decision:
        """Reserve what a wish may have, and place its orders. A wish that was asked before is not asked again."""
        key = f"{'/'.join(self.tags.values())}/{wish}"
        try:
            decision = await self.ledger.reserve_async(
                key=key, portfolio=self.portfolio, tags={**self.tags, "symbol": coin}, amount_usd=usd, legs=legs,
                until_known=True, reference=key,
            )  # fmt: skip
        except KeyReused:  # asked before at another price; `resume` has completed it
            return await done(self.ledger.lookup(key, self.portfolio))
        if not decision.replayed:
            note(f"{coin} reserve {decision.outcome}", decision.budget if decision.granted else decision.reason)
            if decision.granted:
                await self._complete(decision, send=True)
        return decision

    async def leave(self, position: Position) -> bool:
        """Close both legs, and release the position when nothing of it is left. False: the next cycle goes on.

        Its reference, the key of its wish, names the exit orders.
        """
        if self.leaving is not None:
            self.leaving.add(position.position_id)
        left = await together([
            self._trade_back(f"{position.reference}/exit/{number}", leg, leg.quantity)
            for number, leg in enumerate(position.legs)
        ])  # fmt: skip
        if not any(left):
            await self.ledger.release_async(key=f"{position.reference}/exit", position_id=position.position_id)
        note("left" if not any(left) else "exit unfinished", position.reference)
        return not any(left)

    async def rate(self, venue: str, symbol: str) -> Decimal:
        """Return the funding rate of a perpetual: the fraction that a short earns per period."""
        return Decimal((await self.exchanges[venue].fetch_funding_rate(symbol))["fundingRate"])

    async def plan(self, venue: str, symbol: str, side: Side) -> LegPlan:
        """Return a leg with the exchange's own rules, at its present price."""
        exchange = self.exchanges[venue]
        rules = rules_of(exchange, exchange.market(symbol))
        if rules.instrument is None:
            raise RuntimeError(f"{venue} {symbol} cannot be traded: {rules.refused}")
        return LegPlan(rules.instrument, side, Decimal((await exchange.fetch_ticker(symbol))["last"]))

    async def _complete(self, decision: Decision, *, send: bool) -> None:
        """Make the legs equal and tell the ledger. send: place the entry orders; else they are only looked for.

        What a killed run did not send is never sent later: the other leg may have been traded back already.
        """
        names = [f"{decision.key}/{number}" for number in range(len(decision.legs))]
        fills = await together([
            self._placed(name, leg, leg.order_amount) if send else self._find(name, leg)
            for name, leg in zip(names, decision.legs, strict=True)
        ])  # fmt: skip
        fills = [fill or Fill(Decimal(0), None) for fill in fills]
        matched = min(fill.coins for fill in fills)
        left = await together([
            self._trade_back(f"{name}/excess", leg, fill.coins - matched)
            for name, leg, fill in zip(names, decision.legs, fills, strict=True)
        ])  # fmt: skip
        if any(left):
            raise RuntimeError(f"{decision.key}: {left} coins are without a hedge, and could not be traded back")
        if not matched:
            await self.ledger.release_async(key=f"{decision.key}/unfilled", position_id=decision.position_id)
            note("released unfilled", decision.key)
            return
        filled = zip(decision.legs, fills, strict=True)
        await self.ledger.confirm_async(
            key=f"{decision.key}/fill", position_id=decision.position_id, quantity=matched, price=fills[-1].price,
            legs=[Leg(one.venue, one.symbol, one.kind, one.side, matched, fill.price) for one, fill in filled],
        )  # fmt: skip
        note("entered", f"{matched} {decision.key}")

    async def _trade_back(self, name: str, leg: Any, coins: Decimal) -> Decimal:
        """Trade back so many coins of a leg. Return what is left; less than one step of the market is nothing."""
        market = self.exchanges[leg.venue].market(leg.symbol)
        unit, step = unit_of(leg.venue, market), Decimal(market["precision"]["amount"])
        back = Leg(leg.venue, leg.symbol, leg.kind, "sell" if leg.side == "buy" else "buy", coins)
        tries = filled_orders = 0
        while amount := coins / unit // step * step:
            fill = await self._find(f"{name}/{filled_orders}", back)
            if fill is None:
                if tries == TRIES:
                    return coins
                tries += 1
                fill = await self._placed(f"{name}/{filled_orders}", back, amount, reduces=True)
            if fill is not None:  # a refused order leaves its name free
                filled_orders += 1
                coins -= fill.coins
        return Decimal(0)

    async def _exit_began(self, position: Position) -> bool:
        legs = enumerate(position.legs)
        return any([await self._find(f"{position.reference}/exit/{number}/0", leg) for number, leg in legs])

    async def _placed(self, name: str, leg: Any, amount: Decimal, *, reduces: bool = False) -> Fill | None:
        """Place an order; return what it filled. None where the exchange refused it, or never got it."""
        params: dict[str, Any] = {"clientOrderId": client_order_id(leg.venue, self.portfolio, name)}
        if reduces and leg.kind != "spot":
            params["reduceOnly"] = True
        try:
            await self.exchanges[leg.venue].create_order(leg.symbol, "market", leg.side, str(amount), None, params)
        except ccxt.BaseError as error:
            note("order failed", f"{name}: {type(error).__name__}")
            return await self._find(name, leg, wait=outcome_unknown(error))
        return await self._find(name, leg, wait=True)

    async def _find(self, name: str, leg: Any, *, wait: bool = False) -> Fill | None:
        """Return what the order of this name filled, once it is over; None where the exchange has none.

        wait: until it appears, as long as the exchange may take it. Raises ccxt's errors where it does not answer.
        """
        exchange = self.exchanges[leg.venue]
        market, client_id = exchange.market(leg.symbol), client_order_id(leg.venue, self.portfolio, name)
        for _ in range(int(self.window_seconds / LOOK_SECONDS) + 1):
            order = await find_order(exchange, leg.symbol, client_id)
            if order is not None:
                seen = seen_of({"side": leg.side, **order}, market, unit_of(leg.venue, market))
                if seen.final:
                    return Fill(seen.filled or Decimal(0), seen.price)
            elif not wait:
                return None
            await asyncio.sleep(LOOK_SECONDS)
        if order is None:
            return None
        raise TimeoutError(f"{name} is still open at {leg.venue}")

    async def _positions(self, state: str) -> list[Position]:
        return [*await done(self.ledger.positions(self.portfolio, state=state, tags=self.tags, limit=1000))]


async def together(work: Sequence[Awaitable[Any]]) -> list[Any]:
    """Wait for all of it, also where a part fails; then raise its error."""
    answers = await asyncio.gather(*work, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


async def done(read: Any) -> Any:
    """Return what was read: `Ledger` reads at once, `AsyncLedgerClient` is awaited."""
    return await read if inspect.isawaitable(read) else read


def note(event: str, what: object) -> None:
    """Print what happened."""
    print(f"{event:<24}  {what}", flush=True)
