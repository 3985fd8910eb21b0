"""Whatever a bot failed to tell, a settle brings the ledger to its book: random bots against a model of their exchange.

Callbacks come, come twice, come late or never. Bots are killed, the ledger is away, books are stale. After each settle
the ledger has what the exchange has, and holds only what may still fill.
"""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any

import pytest

from ledger_sizer import AppSettings, DynamicSizingSettings, InstrumentInfo, Ledger, LedgerError, LegPlan, Position
from tests.conftest import NewDatabase
from tests.lockstep.auditor import Auditor
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS
from tests.support.ledgers import assert_verified
from tests.support.processes import Fleet

D = Decimal
ZERO = D(0)
MARKETS = ("BTC/USDT", "ETH/USDT:USDT", "XRP/USDT")
TTL = 60
PAIR_LEGS = [
    LegPlan(InstrumentInfo(f"{venue}:SOL/USDT:USDT", D("0.1"), D(1000), D("0.1"), kind="swap"), side)  # type: ignore[arg-type]
    for venue, side in (("bybit", "buy"), ("okx", "sell"))
]


@dataclass
class Order:
    """An entry order at the exchange. name: its market, or the id of its position of two legs."""

    name: str
    position: str
    left: Decimal
    price: Decimal
    filled: Decimal = ZERO
    cost: Decimal = ZERO


@dataclass
class Bot:
    """A bot with its own tags, its exchange account, and callbacks that may be lost, late or doubled."""

    tags: dict[str, str]
    random: Random
    ledger: Ledger
    clock: FakeClock
    open: dict[str, list[Decimal]] = field(default_factory=lambda: defaultdict(lambda: [D(0), D(0)]))
    orders: list[Order] = field(default_factory=list)
    late: list[Any] = field(default_factory=list)
    away: int = 0
    calls: int = 0

    def step(self) -> None:
        self.away = max(self.away - 1, 0)
        act = self.random.choice(
            [self.ask, self.ask, self.fill, self.fill, self.fill, self.cancel, self.exit, self.be_late, self.wait,
             self.settle, self.settle_a_stale_book, self.lose_the_ledger, self.die]
        )  # fmt: skip
        act()

    def ask(self) -> None:
        if self.away:
            return
        self.calls += 1
        request: dict[str, Any] = {
            "key": f"{self.tags['bot']}/{self.calls}",
            "amount_usd": D(self.random.randint(20, 90)),
        }
        price = D(self.random.randint(8, 12))
        if pair := self.random.random() < 0.3:
            request |= {"tags": self.tags, "price": price, "legs": PAIR_LEGS}
        else:
            request |= {"tags": {**self.tags, "symbol": self.random.choice(MARKETS)}}
        granted = self.ledger.reserve(ttl_seconds=self.random.choice([5, 30, 3600]), **request)
        if granted.position_id and self.random.random() < 0.9:  # or the answer was lost, and no order made
            quantity = granted.quantity or (granted.budget / price).quantize(D("0.01"))
            name = granted.position_id if pair else request["tags"]["symbol"]
            self.orders.append(Order(name, granted.position_id, quantity, price))

    def fill(self) -> None:
        if not self.orders:
            return
        order = self.random.choice(self.orders)
        part = self.random.choice([order.left, max((order.left / 3).quantize(D("0.01")), D("0.01"))])
        price = order.price * self.random.choice([D(1), D("1.004"), D("0.99")])
        order.left, order.filled, order.cost = order.left - part, order.filled + part, order.cost + part * price
        opened = self.open[order.name]
        opened[0], opened[1] = opened[0] + part, opened[1] + part * price
        if order.left <= 0:
            self.orders.remove(order)
        self.calls += 1
        key = f"{order.position}/{self.calls}"
        if self.random.random() < 0.5:
            self.tell(self.ledger.confirm, key=key, position_id=order.position, quantity=part, price=price, rest="hold")
        else:
            average = (order.cost / order.filled).quantize(D("1e-12"))
            self.tell(
                self.ledger.fill, key=key, position_id=order.position, filled_quantity=order.filled, price=average
            )

    def cancel(self) -> None:
        if self.orders:
            order = self.orders.pop(self.random.randrange(len(self.orders)))
            self.tell(self.ledger.release, key=f"{order.position}/cancel", position_id=order.position, held_only=True)

    def exit(self) -> None:
        names = [name for name, (quantity, _) in self.open.items() if quantity]
        if not names:
            return
        name = self.random.choice(names)
        quantity, cost = self.open[name]
        closing = self.random.choice([quantity, max((quantity / 2).quantize(D("0.01")), D("0.01"))])
        self.open[name] = [quantity - closing, cost * (quantity - closing) / quantity]
        positions = [one for one in self.positions() if one.state == "open" and name in (one.position_id, _market(one))]
        if positions:
            self.calls += 1
            close = {
                "position_id": positions[0].position_id,
                "quantity": min(closing, positions[0].quantity or closing),
            }
            self.tell(self.ledger.release, key=f"{name}/exit/{self.calls}", **close)

    def tell(self, verb: Any, **request: Any) -> None:
        """Call the ledger as a bot's callback does: once, twice, later, or not at all. Errors are swallowed."""
        chance = self.random.random()
        if chance < 0.2 or self.away:
            return
        call = partial(_swallowing, verb, request)
        if chance < 0.35:
            self.late.append(call)
            return
        call()
        if chance < 0.5:
            call()

    def be_late(self) -> None:
        if self.late and not self.away:
            self.late.pop(self.random.randrange(len(self.late)))()

    def wait(self) -> None:
        self.clock.advance(self.random.choice([1, 10, 61]))

    def lose_the_ledger(self) -> None:
        self.away = self.random.randint(1, 6)

    def die(self) -> None:
        """Lose what is not on the disk: callbacks that did not come yet. Then start again."""
        self.late.clear()
        self.settle()

    def book(self) -> dict[str, tuple[Decimal, Decimal]]:
        opened = [(name, *figures) for name, figures in self.open.items() if figures[0]]
        return {name: (quantity, (cost / quantity).quantize(D("1e-12"))) for name, quantity, cost in opened}

    def settle_a_stale_book(self) -> None:
        book, resting, read_at = self.book(), [order.name for order in self.orders], self.clock.now()
        self.clock.advance(1)
        self.ask()
        newer = {one.position_id for one in self.positions() if one.opened_at > read_at}
        self.settled(book, resting, read_at)
        assert newer <= {one.position_id for one in self.positions()}, "a stale book frees no hold that is younger"

    def settle(self) -> None:
        self.settled(self.book(), [order.name for order in self.orders], None)
        self.check()

    def settled(self, book: dict[str, tuple[Decimal, Decimal]], resting: list[str], as_of: datetime | None) -> None:
        if not self.away:
            self.ledger.settle(self.tags, book, resting, as_of=as_of)
            assert self.ledger.settle(self.tags, book, resting, as_of=as_of) == []

    def check(self) -> None:
        """Compare with the exchange."""
        if self.away:
            return
        found: dict[str, Decimal] = defaultdict(D)
        resting, now = {order.name for order in self.orders}, self.clock.now()
        for one in self.positions():
            if one.state == "open":
                found[self.name_of(one)] += one.quantity or 0
            young = (now - one.opened_at).total_seconds() < TTL
            assert not one.pending or young or self.name_of(one) in resting, one
            assert not (one.pending and self.name_of(one) in resting) or one.until_known
        assert found == {name: quantity for name, (quantity, _) in self.open.items() if quantity}

    def positions(self) -> list[Position]:
        return [*self.ledger.positions(state="live", tags=self.tags, limit=1000)]

    def name_of(self, position: Position) -> str:
        late = None if position.origin is None else f"main-{position.origin}"
        known = {*self.open, *(order.name for order in self.orders)}
        return next((one for one in (position.position_id, late) if one in known), None) or _market(position)


def _market(position: Position) -> str:
    if len(position.legs) == 1:
        return position.legs[0].symbol
    return position.tags.only("symbol") or position.position_id if not position.legs else position.position_id


def _swallowing(verb: Any, request: dict[str, Any]) -> None:
    with suppress(LedgerError):
        verb(**request)


def play(url: str | None, seeds: range) -> str:
    """Let two bots trade once for each seed, check that they end right, and return the hash of the chain's head.

    url: of the ledger; None for one in memory.
    """
    clock = FakeClock()
    settings = AppSettings(sizing=DynamicSizingSettings(max_portfolio_exposure=D(400)))
    opened = Ledger.in_memory(settings=settings, clock=clock) if url is None else None
    with opened or Ledger.open(url, settings=settings, clock=clock) as ledger:
        for seed in seeds:
            random = Random(seed)
            tags = {"bot": f"a{seed}", "venue": "bybit"}, {"bot": f"b{seed}"}
            bots = [Bot(one, random, ledger, clock) for one in tags]
            for _ in range(100):
                random.choice(bots).step()
            for bot in bots:
                bot.away = 0
                bot.orders.clear()
            clock.advance(2 * TTL)
            for bot in bots:
                bot.settle()
                assert not any(one.pending for one in bot.positions())
                bot.open.clear()
                bot.settle()
                assert bot.positions() == []
        Auditor("main", D(400)).check(ledger)
        assert_verified(ledger)
        return ledger.heads()["main"][1]


@pytest.mark.slow
def test_settle_when_bots_lose_double_and_delay_what_they_tell_then_the_ledger_ends_as_their_books(
    new_database: NewDatabase,
) -> None:
    play(new_database("sqlite"), range(100, 130))
    heads = {play(url, range(8)) for url in (None, *map(new_database, ENGINE_KINDS))}
    assert len(heads) == 1, "hash for hash on both engines and in memory"


def test_settle_when_many_ask_at_once_then_what_is_missing_is_adopted_once(database_url: str) -> None:
    book = {f"C{number}/USDT": (D(1), D(1)) for number in range(40)}
    start, answers = threading.Barrier(6), []

    def ask(ledger: Ledger) -> None:
        start.wait()
        answers.append(ledger.settle({"bot": "a"}, book))

    with Ledger.open(database_url) as one, Ledger.open(database_url) as other:
        threads = [threading.Thread(target=ask, args=(ledger,)) for ledger in (one, other) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(len, answers)) == [0, 0, 0, 0, 0, 40], "one batch made them all"
        assert one.exposure().open == 40
        assert_verified(one)


def test_settle_when_its_process_is_killed_at_any_moment_then_each_book_counts_whole_or_not_at_all(
    database_url: str,
) -> None:
    markets = [f"C{number}/USDT" for number in range(30)]
    for killed_after in (1, 2, 3):
        with Fleet("settle_books", database_url, [{"markets": markets}]) as fleet:
            fleet.release()
            (bot,) = fleet.bots
            for _ in range(killed_after):
                bot.read()
            bot.signal(signal.SIGKILL)
            assert bot.end() == -signal.SIGKILL
        with Ledger.open(database_url) as ledger:
            opened = [one.quantity for one in ledger.positions(state="open", limit=1000)]
            assert (len(opened), sum(opened, D(0))) in {(0, 0), (30, 30), (60, 60)}
            ledger.settle({"bot": "a"}, {market: (D(2), D(1)) for market in markets})
            assert ledger.exposure().open == 60
            assert_verified(ledger)
