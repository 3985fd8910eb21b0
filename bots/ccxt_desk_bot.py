"""A bot on `DeskExchange` that knows nothing of the ledger: it opens, closes, cancels at random, and keeps nothing.

    python -m bots.ccxt_desk_bot LEDGER PAPER NAME SECONDS

NAME is its account too. It asks the exchange what there is to close or to cancel. With 0 seconds it only finds what an
earlier run left behind.
"""

import random
import sys
import time
from typing import Any

import ccxt

from ledger_sizer.adapters.ccxt import DeskExchange
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.paper import ccxt_config
from ledger_sizer.paper.control import DEFAULT_SECRET

COINS = {"BTC": 0.002, "ETH": 0.04, "SOL": 0.6}
"""What one order trades: about 100 USD."""


def act(exchange: Any, chance: random.Random) -> None:
    """Do one thing: open or close in one of the markets, or cancel what rests."""
    coin = chance.choice([*COINS])
    amount, spot, perp = COINS[coin], f"{coin}/USDT", f"{coin}/USDT:USDT"
    what = chance.choice(("buy", "buy", "rest", "sell", "short", "short", "cover", "cancel", "look"))
    if what == "buy":
        exchange.create_order(spot, "market", "buy", amount)
    elif what == "rest":
        exchange.create_order(spot, "limit", "buy", amount, exchange.fetch_ticker(spot)["last"] * 0.9)
    elif what == "sell":
        if exchange.fetch_balance()["total"].get(coin, 0) >= amount:
            exchange.create_market_sell_order(spot, amount)
    elif what == "short":
        exchange.create_order(perp, "market", "sell", amount)
    elif what == "cover":
        exchange.create_order(perp, "market", "buy", amount, None, {"reduceOnly": True})
    elif what == "cancel":
        for order in exchange.fetch_open_orders(spot)[:1]:
            if order["status"] == "open":
                exchange.cancel_order(order["id"], spot)
    else:
        exchange.fetch_open_orders(spot)


def main() -> None:
    """Act until the time is over."""
    ledger, paper, name, seconds = sys.argv[1:5]
    keys = {"apiKey": name, "secret": DEFAULT_SECRET}
    client = ccxt.bybit({**ccxt_config("bybit", paper), **keys, "timeout": 2000})
    exchange = DeskExchange(client, ledger, tags={"bot": name}, slippage=0, window_seconds=0.5)
    chance = random.Random()
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            act(exchange, chance)
        except (ccxt.BaseError, LedgerError) as error:
            sys.stderr.write(f"{type(error).__name__}: {str(error).partition('?')[0][:200]}\n")
    if not float(seconds):
        time.sleep(0.6)  # what is not found now was never taken
        exchange.catch_up()
    exchange.close()


if __name__ == "__main__":
    main()
