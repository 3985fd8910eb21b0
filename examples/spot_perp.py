"""A funding-rate bot at one exchange: buys spot and sells the perpetual while the funding rate pays for it.

    python -m ledger_sizer.paper --port 8400                                  # a venue with play money
    python examples/spot_perp.py --paper http://127.0.0.1:8400                # the bot, its ledger in a file
    python examples/spot_perp.py --paper ... --ledger http://127.0.0.1:8321   # the same bot against the service

Kill it at any moment, and start it again: `HedgeBot.resume` brings to an end what was begun.
"""

from decimal import Decimal

from hedge_bot import HedgeBot
from running import Look, run

ENTRY_RATE = Decimal("0.00005")  # per period of 8 hours; below it the fees exceed the funding
EXIT_RATE = Decimal("0.00002")


async def cycle(bot: HedgeBot, look: Look) -> None:
    """Leave what does not pay any more, then enter what pays best first: capital goes to the first request."""
    (venue,) = look.venues
    held = {position.tags["symbol"]: position for position in await bot.resume()}
    rates = {coin: await bot.rate(venue, f"{coin}/USDT:USDT") for coin in look.coins}
    for coin in look.coins:
        if coin in held and rates[coin] < EXIT_RATE:
            await bot.leave(held[coin])
    for coin in sorted(look.coins, key=lambda one: -rates[one]):
        if coin not in held and rates[coin] >= ENTRY_RATE:
            legs = [await bot.plan(venue, f"{coin}/USDT", "buy"), await bot.plan(venue, f"{coin}/USDT:USDT", "sell")]
            await bot.enter(f"{look.period}/{coin}", coin, look.usd, legs)


if __name__ == "__main__":
    run(cycle, __doc__, strategy="spot-perp", venues="bybit")
