"""One bot of the demonstration: it trades through the client library until it is told to stop, or dies.

    python -m ledger_sizer.demo.bots URL NAME LIFE SEED

Each bot has habits, most of them bad. What it does is up to its seed; when it happens is up to the machine.
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
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.units import floor_to_step

PORTFOLIO = "demo"
HOLD_TTL_SECONDS = 2
CRASH_CODE = 70
"""Exit code of a bot that crashed on purpose, without a word to anybody."""


@dataclass(frozen=True, slots=True)
class BotProfile:
    """What sets a bot apart. Times in seconds, chances in percent.

    fills_after: how long its orders take. stays: how long it keeps a position. fills_percent: how much of an order is
    filled. gives_up, crashes: how often an order fails, how often the bot dies while it holds capital.
    repeats: it sends every command twice, as if the first answer had got lost.
    """

    about: str
    fills_after: float = 0.15
    stays: float = 1.2
    fills_percent: int = 100
    gives_up: int = 0
    crashes: int = 0
    repeats: bool = False


BOTS = {
    "steady": BotProfile("fills at once, leaves in order"),
    "greedy": BotProfile("wants the most, keeps it long", stays=2.5),
    "slow": BotProfile("fills late, but in time: it extends its hold", fills_after=1.6),
    "late": BotProfile("fills after its hold expired", fills_after=HOLD_TTL_SECONDS + 0.4),
    "partial": BotProfile("gets a part of what it ordered", fills_percent=40),
    "doubtful": BotProfile("sends everything twice with the same key", repeats=True),
    "unlucky": BotProfile("its orders fail, so it releases", gives_up=60),
    "crashing": BotProfile("dies without releasing", crashes=35),
}
"""The eight bots."""

_PAIRS = {"BTC": (Decimal(50_000), Decimal("0.0001")), "ETH": (Decimal(2_500), Decimal("0.001"))}
_VENUES = ("okx", "binance", "kraken")
"""They trade in words only; at bybit somebody really does (see `trader`)."""


class Bot:
    """One life of one bot."""

    def __init__(self, client: LedgerClient, name: str, life: int, seed: int) -> None:
        self._client = client
        self._name = name
        self._habits = BOTS[name]
        self._life = life
        self._dice = Random(f"{seed}/{name}/{life}")
        self._trades = 0

    def live(self) -> None:
        """Tidy up after an earlier life, then trade for ever."""
        self._recover()
        log_line("ready")
        while True:
            self._trades += 1
            try:
                self._trade(f"{self._name}/{self._life}/{self._trades}")
            except LedgerError as error:
                # A real bot would decide for each case; the ledger is safe either way: what is held expires.
                log_line("error", code=error.code, message=str(error))
                self._rest(0.2)

    def _recover(self) -> None:
        """Close what an earlier life left open. What it left held ends by itself."""
        for position in self._client.positions(PORTFOLIO, state="open", tags={"strategy": self._name}):
            self._client.release(key=f"{position.position_id}/recovered", position_id=position.position_id)
            log_line("recovered")

    def _trade(self, key: str) -> None:
        """One trade: reserve, fill, stay, leave; or what the bot's habits make of it."""
        price, decision = self._reserve(key)
        if not decision.granted or decision.quantity is None:
            self._rest(0.3)
            return
        assert decision.position_id is not None, "a grant has a position"
        if self._chance(self._habits.crashes):
            log_line("crash")
            os._exit(CRASH_CODE)
        if self._chance(self._habits.gives_up):
            self._rest(self._habits.fills_after)
            self._send("release", key=f"{key}/failed", position_id=decision.position_id)
            return
        if self._habits.fills_after > HOLD_TTL_SECONDS / 2 and self._habits.fills_after < HOLD_TTL_SECONDS:
            self._send("extend", key=f"{key}/extend", position_id=decision.position_id, ttl_seconds=HOLD_TTL_SECONDS)
        self._rest(self._habits.fills_after)
        filled = self._filled(decision.quantity)
        position = self._send(
            "confirm", key=f"{key}/fill", position_id=decision.position_id, quantity=filled, price=price
        ).position_id
        self._rest(self._habits.stays)
        self._send("release", key=f"{key}/exit", position_id=position)

    def _reserve(self, key: str) -> tuple[Decimal, Decision]:
        symbol = self._dice.choice(sorted(_PAIRS))
        price, step = _PAIRS[symbol]
        rules = InstrumentInfo(f"{symbol}/USDT", step, Decimal(1_000), step, min_notional=Decimal(5))
        score = Decimal(100 if self._name == "greedy" else self._dice.randrange(20, 100)) / 100
        decision = self._send(
            "reserve",
            key=key,
            portfolio=PORTFOLIO,
            tags={"venue": self._dice.choice(_VENUES), "symbol": symbol, "strategy": self._name},
            signal_score=score,
            price=price,
            spot_instrument=rules,
            perp_instrument=rules,
            ttl_seconds=HOLD_TTL_SECONDS,
        )
        return price, decision

    def _send(self, verb: str, **arguments: Any) -> Decision:
        """One command; for a bot that doubts, twice, and the answers have to be the same."""
        decision: Decision = getattr(self._client, verb)(**arguments)
        if self._habits.repeats:
            again: Decision = getattr(self._client, verb)(**arguments)
            same = again.record == decision.record
            log_line("replayed" if again.replayed and same else "not replayed", key=decision.key)
        return decision

    def _filled(self, quantity: Decimal) -> Decimal:
        step = Decimal(1).scaleb(int(quantity.as_tuple().exponent))
        return max(floor_to_step(quantity * self._habits.fills_percent / 100, step), step)

    def _chance(self, percent: int) -> bool:
        return self._dice.randrange(100) < percent

    def _rest(self, seconds: float) -> None:
        time.sleep(seconds * self._dice.uniform(0.8, 1.2))


def log_line(event: str, **facts: str) -> None:
    """One line for the demonstration, written at once: the next moment may be the last."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    """Live one life."""
    url, name, life, seed = arguments
    signal.signal(signal.SIGTERM, _stop)
    with LedgerClient(url) as client:
        Bot(client, name, int(life), int(seed)).live()


if __name__ == "__main__":
    main(sys.argv[1:])
