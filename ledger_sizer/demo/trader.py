"""The bot of the demonstration that trades at the paper venue, with the real ccxt client and real order forms.

    python -m ledger_sizer.demo.trader URL VENUE_URL SEED

It reserves, buys spot and sells the perpetual against it, confirms what was filled, stays, closes both and releases:
the ledger and the venue agree all the time, but for what somebody else does in its account. Told to stop, it first
leaves the trade it is in.
"""

import signal
import sys
from decimal import Decimal
from random import Random
from threading import Event
from typing import Any

from pydantic import SecretStr

from ledger_sizer.client import LedgerClient
from ledger_sizer.config import ExchangeAccountSettings
from ledger_sizer.demo.bots import PORTFOLIO, tell
from ledger_sizer.errors import InvalidRequest, LedgerError, NotFound
from ledger_sizer.exchanges.client import make_client
from ledger_sizer.paper import PaperControl
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET
from ledger_sizer.records import Decision

VENUE, NAME = "bybit", "trader"
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"
HOLD_TTL_SECONDS = 10
STAYS_SECONDS = 2.5


class Trader:
    """Trades one pair, again and again."""

    def __init__(self, client: LedgerClient, venue_url: str, seed: int, stop: Event) -> None:
        self._client = client
        self._control = PaperControl(venue_url, VENUE)
        self._exchange = make_client(
            ExchangeAccountSettings(
                id=VENUE, api_key=SecretStr(DEFAULT_KEY), api_secret=SecretStr(DEFAULT_SECRET), base_url=venue_url
            )
        )
        self._exchange.load_markets()
        self._dice = Random(f"{seed}/{NAME}")
        self._stop = stop

    def live(self) -> None:
        """Trade until told to stop."""
        tell("ready")
        trades = 0
        while not self._stop.is_set():
            trades += 1
            try:
                self._trade(f"{NAME}/{trades}")
            except (InvalidRequest, NotFound):
                self._stop.wait(0.2)  # the service has not loaded the market rules yet
            except LedgerError as error:
                tell("error", code=error.code, message=str(error))
                self._stop.wait(0.2)

    def _trade(self, key: str) -> None:
        price = Decimal(self._control.state()["prices"]["BTC"])
        held = self._client.reserve(
            key=key, portfolio=PORTFOLIO, tags={"venue": VENUE, "symbol": "BTC", "strategy": NAME}, price=price,
            signal_score=Decimal(self._dice.randrange(10, 40)) / 100, spot_instrument=f"{VENUE}:{SPOT}",
            perp_instrument=f"{VENUE}:{PERP}", ttl_seconds=HOLD_TTL_SECONDS,
        )  # fmt: skip
        if not held.granted or held.quantity is None:
            self._stop.wait(0.2)
            return
        self._order(SPOT, "buy", held.quantity, price)
        filled = self._order(PERP, "sell", held.quantity)
        position = self._confirmed(key, held, filled, price)
        self._stop.wait(self._dice.uniform(0.8, 1.2) * STAYS_SECONDS)
        self._order(PERP, "buy", filled)
        self._order(SPOT, "sell", filled, price)
        self._client.release(key=f"{key}/exit", position_id=position)
        tell("traded")

    def _confirmed(self, key: str, held: Decision, filled: Decimal, price: Decimal) -> str:
        confirmed = self._client.confirm(
            key=f"{key}/fill", position_id=str(held.position_id), quantity=filled, price=price, spot_price=price
        )
        return str(confirmed.position_id)

    def _order(self, symbol: str, side: str, quantity: Decimal, price: Decimal | None = None) -> Decimal:
        """Send an order, at a limit where a price is given; base units that were filled."""
        text, kind = f"{quantity:f}", "market" if price is None else "limit"
        sent = self._exchange.create_order(symbol, kind, side, text, None if price is None else f"{price:f}")
        found: dict[str, Any] = self._exchange.fetch_order(sent["id"], symbol, {"acknowledged": True})
        return Decimal(found["filled"])


def main(arguments: list[str]) -> None:
    """Trade until SIGTERM."""
    url, venue_url, seed = arguments
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with LedgerClient(url) as client:
        Trader(client, venue_url, int(seed), stop).live()


if __name__ == "__main__":
    main(sys.argv[1:])
