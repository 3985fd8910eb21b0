"""A desk whose connection fails at random, a bot that is killed at random: nothing is told that is not held.

Whatever was lost, one settlement after the last fault makes the ledger equal the bot's book.
"""

from __future__ import annotations

import random
from decimal import ROUND_DOWN, Decimal
from typing import Any

import pytest

from ledger_sizer import Ledger
from ledger_sizer.adapters.desk import BACK_OFF_SECONDS, Desk
from ledger_sizer.client import LedgerClient
from ledger_sizer.client.retry import RetryPolicy
from tests.support.clock import FakeClock
from tests.support.fault_proxy import FaultProxy, answered, cut_after, cut_before, pass_through
from tests.support.ledgers import assert_verified
from tests.support.services import served

D = Decimal
MARKETS = ("BTC/USDT", "ETH/USDT", "SOL/USDT")
PRICES = {"BTC/USDT": D(50000), "ETH/USDT": D(2500), "SOL/USDT": D(150)}
CAP = D(1000)
STEPS = 120
OUTAGE = answered(503, b'{"type": "about:blank", "title": "x", "status": 503, "code": "unavailable", "detail": "away"}')
IMPATIENT = RetryPolicy(attempts_max=2, pause_seconds=0.001, pause_seconds_max=0.001)


class Bot:
    """Opens and closes at an exchange that fills at once. Says its book whenever something changed, and at times."""

    def __init__(self, proxy: FaultProxy, ledger: Ledger, clock: FakeClock, chance: random.Random) -> None:
        self.proxy, self.ledger, self.clock, self.chance = proxy, ledger, clock, chance
        self.seconds = 0.0
        self.book: dict[str, Decimal] = {}
        self.asks = self.granted = 0
        self.start()

    def start(self) -> None:
        """Begin a life: nothing is remembered but what the exchange shows."""
        self.client = LedgerClient(self.proxy.url, patience=IMPATIENT)
        self.desk = Desk(
            self.client, tags={"bot": "a"}, patience_seconds=30.0, repeat_seconds=3, clock=lambda: self.seconds
        )
        self.settle()

    def stop(self) -> None:
        """End a life without a word."""
        self.desk.close()
        self.client.close()

    def settle(self) -> bool:
        return self.desk.settle({market: (coins, PRICES[market]) for market, coins in self.book.items()})

    def open(self) -> None:
        market = self.chance.choice(MARKETS)
        self.asks += 1
        name = f"order-{self.asks}" if self.chance.random() < 0.4 else None
        usd = self.desk.ask(market, self.chance.choice((20, 80, 300)), at_least=10, wish=name)
        if not usd:
            return
        self.granted += 1
        held = sum(one.held for one in self.ledger.positions("main", state="held", tags={"symbol": market}))
        assert usd <= held, "what is told is held"
        if self.chance.random() < 0.3:
            self.desk.release(market, wish=name)  # the exchange refused it
        elif self.chance.random() < 0.8:
            coins = (usd / PRICES[market]).quantize(D("1e-8"), ROUND_DOWN)
            self.book[market] = self.book.get(market, D(0)) + coins
            if self.chance.random() < 0.2:
                self.stop()
                self.start()
            else:
                self.settle()

    def close(self) -> None:
        if self.book:
            del self.book[self.chance.choice(sorted(self.book))]
            self.settle()

    def pass_time(self) -> None:
        seconds = self.chance.choice((1, BACK_OFF_SECONDS, 70))
        self.seconds += seconds
        self.clock.advance(seconds)

    def break_or_mend(self) -> None:
        fault = self.chance.choice((cut_before, cut_after, OUTAGE, pass_through, pass_through))
        self.proxy.always(fault)

    def live(self) -> None:
        actions: list[Any] = [self.open] * 6 + [self.close, self.settle, self.pass_time, self.pass_time]
        for _ in range(STEPS):
            if self.chance.random() < 0.2:
                self.break_or_mend()
            self.chance.choice(actions)()
            exposure = self.ledger.exposure()
            assert exposure.exposure <= CAP
            assert exposure.overage == 0


@pytest.mark.one_engine
@pytest.mark.parametrize("seed", range(3))
def test_live_when_calls_are_lost_and_the_bot_is_killed_then_in_the_end_the_ledger_equals_its_book(
    database_url: str, clock: FakeClock, seed: int
) -> None:
    with served(database_url, clock=clock) as service, FaultProxy(service.port) as proxy:
        service.ledger.set_cap(key="cap", cap=CAP)
        bot = Bot(proxy, service.ledger, clock, random.Random(seed))
        bot.live()
        proxy.always(pass_through)
        bot.seconds += BACK_OFF_SECONDS
        clock.advance(70)
        assert bot.settle()
        opened: dict[str, Decimal] = {}
        for position in service.ledger.positions("main", state="live"):
            assert not position.pending
            market = str(position.tags["symbol"])
            opened[market] = opened.get(market, D(0)) + (position.quantity or 0)
        assert opened == bot.book
        assert bot.granted > 5
        assert_verified(service.ledger)
        bot.stop()
