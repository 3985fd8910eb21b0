"""Runs one bot of the demonstration: it trades through the client library until SIGTERM, or crashes on purpose.

    python -m ledger_sizer.demo.bots URL NAME RUN SEED

Each bot has a profile, mostly of bad behaviour. The seed decides what it does; the machine decides when.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from types import FrameType
from typing import Any

from ledger_sizer.client import LedgerClient
from ledger_sizer.exchanges.known_markets import MARKETS, Market
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.units import exact_arithmetic, floor_to_step

PORTFOLIO = "demo"
HOLD_TTL_SECONDS = 2
CRASH_CODE = 70
"""Exit code of a bot that crashed on purpose."""


@dataclass(frozen=True, slots=True)
class BotProfile:
    """Behaviour of one bot.

    fill_seconds: until an order fills. holding_seconds: until a position is closed. filled_percent: part of an order
    that is filled. failed_order_percent, crash_percent: chance per trade that the order fails, or that the bot crashes
    while it holds capital. sends_twice: sends every command twice, as if the first answer had got lost.
    """

    about: str
    fill_seconds: float = 0.15
    holding_seconds: float = 1.2
    filled_percent: int = 100
    failed_order_percent: int = 0
    crash_percent: int = 0
    sends_twice: bool = False


BOTS = {
    "steady": BotProfile("fills at once, leaves in order"),
    "greedy": BotProfile("wants the most, keeps it long", holding_seconds=2.5),
    "slow": BotProfile("fills late, but in time: it extends its hold", fill_seconds=1.6),
    "late": BotProfile("fills after its hold expired", fill_seconds=HOLD_TTL_SECONDS + 0.4),
    "partial": BotProfile("gets a part of what it ordered", filled_percent=40),
    "doubtful": BotProfile("sends everything twice with the same key", sends_twice=True),
    "unlucky": BotProfile("its orders fail, so it releases", failed_order_percent=60),
    "crashing": BotProfile("dies without releasing", crash_percent=35),
}
"""The eight bots."""

_PRICES = {"BTC": Decimal(50_000), "ETH": Decimal(2_500)}
_VENUES = ("okx", "binance")
"""These bots place no orders. Orders are placed on bybit only (see `venue_bot`)."""


class Bot:
    """One run of one bot. run_number: 1 for the first process of this name, 2 after a restart."""

    def __init__(self, client: LedgerClient, name: str, run_number: int, seed: int) -> None:
        self._client = client
        self._name = name
        self._profile = BOTS[name]
        self._run_number = run_number
        self._random = Random(f"{seed}/{name}/{run_number}")
        self._trades = 0

    def run(self) -> None:
        """Close what an earlier run left open, then trade for ever."""
        self._recover()
        log_line("ready")
        while True:
            self._trades += 1
            try:
                self._trade(f"{self._name}/{self._run_number}/{self._trades}")
            except LedgerError as error:
                # A real bot would handle each case. The ledger is safe without it: holds expire.
                log_line("error", code=error.code, message=str(error))
                self._sleep(0.2)

    def _recover(self) -> None:
        """Close positions that an earlier run left open. Its holds expire by themselves."""
        for position in self._client.positions(PORTFOLIO, state="open", tags={"strategy": self._name}):
            self._client.release(key=f"{position.position_id}/recovered", position_id=position.position_id)
            log_line("recovered")

    def _trade(self, key: str) -> None:
        """Run one trade: reserve, confirm, hold the position, release; or as the profile says."""
        market = MARKETS[self._random.choice(_VENUES), self._random.choice(sorted(_PRICES))]
        price = _PRICES[market.coin]
        decision = self._reserve(key, market, price)
        if not decision.granted or decision.quantity is None:
            self._sleep(0.3)
            return
        assert decision.position_id is not None, "a grant has a position"
        if self._chance(self._profile.crash_percent):
            log_line("crash")
            os._exit(CRASH_CODE)
        if self._chance(self._profile.failed_order_percent):
            self._sleep(self._profile.fill_seconds)
            self._send("release", key=f"{key}/failed", position_id=decision.position_id)
            return
        if self._profile.fill_seconds > HOLD_TTL_SECONDS / 2 and self._profile.fill_seconds < HOLD_TTL_SECONDS:
            self._send("extend", key=f"{key}/extend", position_id=decision.position_id, ttl_seconds=HOLD_TTL_SECONDS)
        self._sleep(self._profile.fill_seconds)
        with exact_arithmetic():
            share = decision.quantity * self._profile.filled_percent / 100
        filled = max(floor_to_step(share, market.step), market.step)
        position = self._send(
            "confirm", key=f"{key}/fill", position_id=decision.position_id, quantity=filled, price=price
        ).position_id
        self._sleep(self._profile.holding_seconds)
        self._send("release", key=f"{key}/exit", position_id=position)

    def _reserve(self, key: str, market: Market, price: Decimal) -> Decision:
        score = Decimal(f"{100 if self._name == 'greedy' else self._random.randrange(20, 100)}E-2")
        return self._send(
            "reserve",
            key=key,
            portfolio=PORTFOLIO,
            tags={"venue": market.venue, "symbol": market.coin, "strategy": self._name},
            signal_score=score,
            price=price,
            spot_instrument=market.spot,
            perp_instrument=market.perp,
            ttl_seconds=HOLD_TTL_SECONDS,
        )

    def _send(self, verb: str, **arguments: Any) -> Decision:
        """Send one command. With `sends_twice` send it again, and log whether both answers are the same."""
        decision: Decision = getattr(self._client, verb)(**arguments)
        if self._profile.sends_twice:
            again: Decision = getattr(self._client, verb)(**arguments)
            same = again.record == decision.record
            log_line("replayed" if again.replayed and same else "not replayed", key=decision.key)
        return decision

    def _chance(self, percent: int) -> bool:
        return self._random.randrange(100) < percent

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds * self._random.uniform(0.8, 1.2))


def log_line(event: str, **facts: str) -> None:
    """Write one line for the demonstration. Flushed at once, because the bot may be killed at any time."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    """Run one bot."""
    url, name, run_number, seed = arguments
    signal.signal(signal.SIGTERM, _stop)
    with LedgerClient(url) as client:
        Bot(client, name, int(run_number), int(seed)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
