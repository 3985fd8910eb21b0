"""A funding-rate bot across two exchanges: buys the perpetual where funding costs less, sells it where it pays more.

    python -m ledger_sizer.paper --port 8400                                  # venues with play money
    python examples/perp_perp.py --paper http://127.0.0.1:8400                # the bot, its ledger in a file
    python examples/perp_perp.py --paper ... --ledger http://127.0.0.1:8321   # the same bot against the service

Kill it at any moment, and start it again: `HedgeBot.resume` brings to an end what was begun.
"""

from decimal import Decimal

from hedge_bot import HedgeBot
from running import Look, run

ENTRY_DIFFERENCE = Decimal("0.0001")  # of the funding rates, per period of 8 hours
EXIT_DIFFERENCE = Decimal("0.00002")


async def cycle(bot: HedgeBot, look: Look) -> None:
    """Leave what does not pay any more, then enter what pays best first: capital goes to the first request."""
    held = {position.tags["symbol"]: position for position in await bot.resume()}
    rates = {(coin, venue): await bot.rate(venue, f"{coin}/USDT:USDT") for coin in look.coins for venue in look.venues}
    for coin, position in held.items():
        bought, sold = (leg.venue for leg in position.legs)
        if rates[coin, sold] - rates[coin, bought] < EXIT_DIFFERENCE:
            await bot.leave(position)

    def ends(coin: str) -> tuple[Decimal, str, str]:
        low, high = sorted(look.venues, key=lambda venue: rates[coin, venue])[:: len(look.venues) - 1]
        return rates[coin, high] - rates[coin, low], low, high

    for coin in sorted(look.coins, key=lambda one: -ends(one)[0]):
        difference, low, high = ends(coin)
        if coin not in held and difference >= ENTRY_DIFFERENCE:
            legs = [await bot.plan(low, f"{coin}/USDT:USDT", "buy"), await bot.plan(high, f"{coin}/USDT:USDT", "sell")]
            await bot.enter(f"{look.period}/{coin}", coin, look.usd, legs)


if __name__ == "__main__":
    run(cycle, __doc__, strategy="perp-perp", venues="bybit,binance")
