"""Runs the bot that trades at the paper venue, through the real ccxt client.

    python -m ledger_sizer.demo.venue_bot URL VENUE_URL SEED

It reserves, orders what each leg says (spot bought, the perpetual sold), confirms the fill, waits, closes both legs and
releases. It keeps one such position open. The ledger and the venue agree, except for injected drift. On SIGTERM it
closes its positions and exits.
"""

import signal
import sys
from decimal import Decimal
from random import Random
from threading import Event
from typing import Any, NamedTuple

from pydantic import SecretStr

from ledger_sizer.client import LedgerClient
from ledger_sizer.demo.bots import PORTFOLIO, log_line
from ledger_sizer.exchanges.client import make_client
from ledger_sizer.model.errors import InvalidRequest, LedgerError, NotFound
from ledger_sizer.model.exchange_account import ExchangeAccountSettings
from ledger_sizer.model.legs import OrderLeg
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper import PaperControl
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_SECRET

VENUE, NAME = "bybit", "trader"
KEPT, TRADED = "ETH", "BTC"
"""The coin in which it keeps a position open, and the coin that it trades repeatedly."""
HOLD_TTL_SECONDS = 10
HOLDING_SECONDS = 2.5


def spot_of(coin: str) -> str:
    """Return the name of a coin's spot market."""
    return f"{coin}/USDT"


def perp_of(coin: str) -> str:
    """Return the name of a coin's perpetual."""
    return f"{coin}/USDT:USDT"


class OpenPair(NamedTuple):
    """An open position. legs: as ordered, spot and perpetual. price: of the spot order, USD."""

    key: str
    position_id: str
    legs: tuple[OrderLeg, ...]
    price: Decimal


class VenueBot:
    """Trades one coin repeatedly, and keeps a position in another."""

    def __init__(self, client: LedgerClient, venue_url: str, seed: int, stop: Event) -> None:
        self._client = client
        self._control = PaperControl(venue_url, VENUE)
        self._exchange = make_client(
            ExchangeAccountSettings(
                id=VENUE, api_key=SecretStr(DEFAULT_KEY), api_secret=SecretStr(DEFAULT_SECRET), base_url=venue_url
            )
        )
        self._exchange.load_markets()
        self._random = Random(f"{seed}/{NAME}")
        self._stop = stop

    def run(self) -> None:
        """Trade until `stop` is set, then close the kept position."""
        log_line("ready")
        kept: OpenPair | None = None
        trades = 0
        while not self._stop.is_set():
            trades += 1
            key = f"{NAME}/{trades}"
            try:
                if kept is None:
                    kept = self._enter(key, KEPT, Decimal("0.3"))
                    continue
                entered = self._enter(key, TRADED, Decimal(f"{self._random.randrange(10, 40)}E-2"))
                if entered is not None:
                    self._stop.wait(self._random.uniform(0.8, 1.2) * HOLDING_SECONDS)
                    self._leave(entered)
            except (InvalidRequest, NotFound):
                self._stop.wait(0.2)  # the service has not loaded the market rules yet
            except LedgerError as error:
                log_line("error", code=error.code, message=str(error))
                self._stop.wait(0.2)
        if kept is not None:
            self._leave(kept)

    def _enter(self, key: str, coin: str, score: Decimal) -> OpenPair | None:
        """Reserve, order both legs, confirm. None when nothing was granted or an order failed."""
        price = Decimal(self._control.state()["prices"][coin])
        held = self._client.reserve(
            key=key, portfolio=PORTFOLIO, tags={"venue": VENUE, "symbol": coin, "strategy": NAME}, price=price,
            signal_score=score, spot_instrument=f"{VENUE}:{spot_of(coin)}",
            perp_instrument=f"{VENUE}:{perp_of(coin)}", ttl_seconds=HOLD_TTL_SECONDS,
        )  # fmt: skip
        if not held.granted or held.quantity is None:
            self._stop.wait(0.2)
            return None
        position = str(held.position_id)
        filled = self._order_both_legs(held.legs, price)
        if filled is None:
            self._client.release(key=f"{key}/failed", position_id=position)
            self._stop.wait(1)
            return None
        confirmed = self._client.confirm(
            key=f"{key}/fill", position_id=position, quantity=filled, price=price, spot_price=price
        )
        return OpenPair(key, str(confirmed.position_id), held.legs, price)

    def _order_both_legs(self, legs: tuple[OrderLeg, ...], price: Decimal) -> Decimal | None:
        """Buy spot, sell the perpetual, return the coins filled; None, with no leg left, when one was refused."""
        from ccxt import ExchangeError

        spot, perp = legs
        try:
            self._order(spot, "buy", price)
        except ExchangeError:
            return None
        try:
            return self._order(perp, "sell")
        except ExchangeError:
            self._order(spot, "sell", price)
            return None

    def _leave(self, entered: OpenPair) -> None:
        spot, perp = entered.legs
        self._order(perp, "buy")
        self._order(spot, "sell", entered.price)
        self._client.release(key=f"{entered.key}/exit", position_id=entered.position_id)
        log_line("traded")

    def _order(self, leg: OrderLeg, side: str, price: Decimal | None = None) -> Decimal:
        """Order a leg, by a limit order with a price, else by a market order; return the coins filled."""
        text, kind = f"{leg.order_amount:f}", "market" if price is None else "limit"
        sent = self._exchange.create_order(leg.symbol, kind, side, text, None if price is None else f"{price:f}")
        found: dict[str, Any] = self._exchange.fetch_order(sent["id"], leg.symbol, {"acknowledged": True})
        with exact_arithmetic():
            return Decimal(found["filled"]) * leg.quantity / leg.order_amount


def main(arguments: list[str]) -> None:
    """Trade until SIGTERM."""
    url, venue_url, seed = arguments
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with LedgerClient(url) as client:
        VenueBot(client, venue_url, int(seed), stop).run()


if __name__ == "__main__":
    main(sys.argv[1:])
