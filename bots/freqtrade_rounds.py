"""Rounds with real freqtrade processes, trading live at the paper venue: two bots, four pairs, a cap of 300 USD."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from bots.freqtrade_bots import COINS, VENUE, Bot, Watch
from bots.rounds import Outcome, Round
from campaign.services import Service
from ledger_sizer import Ledger
from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.paper.accounts import Account

D = Decimal
CAP = D(300)
NAMES = ("a", "b")
SPOT: dict[str, Any] = {}
FUTURES = {"trading_mode": "futures", "stake_amount": 40}
RESTLESS = {"add": 3, "add_stake": 20, "reduce": 6, "leave": 12}
EQUAL_SECONDS_MAX = 90.0
"""How long ledger and exchange may take to become equal: a hold of unknown fate needs a minute."""


@dataclass
class Stage:
    """The venue, the ledger's service and the bots of one round."""

    folder: Path
    venue: PaperServer
    ledger: Ledger
    service: Service
    watch: Watch
    bots: dict[str, Bot] = field(default_factory=dict)

    def control(self, name: str = "a") -> PaperControl:
        """Return the control of a bot's account."""
        return PaperControl(self.venue.url, VENUE, name)

    def account(self, name: str) -> Account:
        """Return a bot's account."""
        return self.venue.venues.dialects[VENUE].exchange.accounts[name]

    def start(self, strategy: str, settings: Mapping[str, Any], *, asks: bool = True) -> None:
        """Start both bots and wait until they trade."""
        for name in NAMES:
            desk = {"url": f"http://127.0.0.1:{self.service.port}", "bot": name, "repeat_seconds": 1}
            given = {**settings, **({"ledger_sizer": desk} if asks else {})}
            self.bots[name] = Bot(name, self.folder, self.venue.url, strategy, given).start()
        for bot in self.bots.values():
            bot.wait_until_running()

    def at_exchange(self) -> dict[tuple[str, str], Decimal]:
        """Return coins by bot and market, as they are at the exchange."""
        return {
            (name, symbol): coins
            for name in NAMES
            for symbol, (coins, _) in self.watch.book(self.account(name)).items()
            if coins
        }

    def in_ledger(self) -> dict[tuple[str, str], Decimal]:
        """Return coins by bot and market, as the ledger has them."""
        found: dict[tuple[str, str], Decimal] = {}
        for position in self.ledger.positions("main", state="open", limit=1000).items:
            key = str(position.tags["bot"]), position.legs[0].symbol
            found[key] = found.get(key, D(0)) + (position.quantity or D(0))
        return found

    def difference(self) -> str:
        """Return where ledger and exchange differ, in words; nothing where they are equal."""
        exchange, ledger = self.at_exchange(), self.in_ledger()
        seen, counted = self.watch.exposure(), self.ledger.exposure().whole.exposure
        if exchange == ledger and abs(seen - counted) < D("0.01"):
            return ""
        return f"exchange {_text(exchange)} {seen:.2f} USD, ledger {_text(ledger)} {counted:.2f} USD"

    def settle_down(self) -> str:
        """Let no bot begin anything new, and wait until ledger and exchange are equal; return how they differ."""
        control = self.control()
        control.clear_faults()
        control.fills(at_once=True)
        for bot in self.bots.values():
            bot.call("POST", "stopentry")
        deadline = time.monotonic() + EQUAL_SECONDS_MAX
        while (difference := self.difference()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return difference

    def figures(self) -> dict[str, str]:
        """Return what was measured."""
        trades = sum(len(self.account(name).journal.trades) for name in NAMES)
        orders = sum(len(self.account(name).orders) for name in NAMES)
        return {
            "most at the exchange": f"{self.watch.most:.2f} USD",
            "orders": str(orders),
            "fills": str(trades),
            "looks": str(self.watch.changes),
        }


def _text(coins: Mapping[tuple[str, str], Decimal]) -> str:
    return ", ".join(f"{bot}:{symbol}={quantity}" for (bot, symbol), quantity in sorted(coins.items())) or "nothing"


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Set up a round: a venue, a ledger with a cap, its service. Ends the bots afterwards, each by its id."""
    url = f"sqlite:///{folder}/ledger.db"
    with PaperServer(swap_fee_rate=D("0.0005")) as venue, Ledger.open(url) as ledger:
        ledger.set_cap(key="cap", cap=CAP)
        service = Service(url, folder).start()
        one = Stage(folder, venue, ledger, service, Watch(venue.venues.dialects[VENUE].exchange))
        for name in NAMES:
            one.control(name).open_account()
        try:
            yield one
        finally:
            for bot in one.bots.values():
                bot.stop()
            service.stop()


def _outcome(one: Stage, difference: str = "", **more: str) -> Outcome:
    above = f"{one.watch.most} USD at the exchange, the cap is {CAP}: {one.watch.then}" if one.watch.most > CAP else ""
    verified = one.ledger.verify()
    why = "; ".join(text for text in (above, difference, "" if verified.ok else str(verified)) if text)
    return Outcome(not why, {**one.figures(), **more}, why)


def without_ledger(folder: Path, short: bool) -> Outcome:
    """Shows what the bots do without the ledger: together they go far beyond the cap."""
    with stage(folder) as one:
        one.start("EagerAlone", SPOT, asks=False)
        time.sleep(5 if short else 20)
        above = one.watch.most > CAP
        return Outcome(above, one.figures(), "" if above else "the control experiment stayed below the cap")


def restless(folder: Path, short: bool, **settings: Any) -> Outcome:
    """Adds, reduces and leaves, while orders fill late, in parts or not at all, through kills and an outage."""
    seconds = 30.0 if short else 240.0
    with stage(folder) as one:
        one.start(settings.pop("strategy", "Eager"), {"eager": {**RESTLESS, **settings.pop("eager", {})}, **settings})
        with _whims_of_the_market(one):
            forced = _force_entries(one)
            _kill_and_restart(one, times=1 if short else 6, seconds=seconds / 2)
            _service_away(one, 8.0 if short else 30.0)
            time.sleep(seconds / 2)
            forced += _force_entries(one)
        return _outcome(one, one.settle_down(), forced=str(forced))


def restless_futures(folder: Path, short: bool) -> Outcome:
    """The same with contracts at a leverage of 3, where a stake is a third of its exposure."""
    return restless(folder, short, **FUTURES, eager={"leverage": 3.0})


def restless_shorts(folder: Path, short: bool) -> Outcome:
    """The same, selling short."""
    return restless(folder, short, **FUTURES, eager={"leverage": 3.0}, strategy="EagerShort")


@contextmanager
def _whims_of_the_market(one: Stage) -> Iterator[None]:
    """Hold orders back, fill some of them and a part of others, during the block.

    Prices stay: after a partial exit freqtrade counts what is left at the average price, the ledger at its own.
    """
    over = threading.Event()
    chance = random.Random(17)

    def whims() -> None:
        control = one.control()
        control.fills(at_once=False)
        while not over.wait(0.4):
            with suppress(ValueError, httpx.HTTPError):
                _fill_some(one, chance)

    thread = threading.Thread(target=whims)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _fill_some(one: Stage, chance: random.Random) -> None:
    for name in NAMES:
        for order in list(one.account(name).orders.values()):
            if order.state == "open" and not order.waits and chance.random() < 0.3:
                left = order.quantity - order.filled
                part = (left / 2 / order.market.step).to_integral_value(rounding="ROUND_FLOOR") * order.market.step
                one.control(name).fill(order.id, part if part and chance.random() < 0.5 else None)


def _kill_and_restart(one: Stage, *, times: int, seconds: float) -> None:
    """Kill one bot after the other in the midst of its work, and start each again."""
    for number in range(times):
        time.sleep(seconds / times)
        bot = one.bots[NAMES[number % 2]]
        bot.kill()
        time.sleep(1)
        bot.start().wait_until_running()


def _service_away(one: Stage, seconds: float) -> None:
    one.service.kill()
    time.sleep(seconds)
    one.service.start()


def _force_entries(one: Stage) -> int:
    """Force ten entries at once through the REST API of each bot; return how many came through."""

    def force(number: int) -> int:
        bot = one.bots[NAMES[number % 2]]
        futures = bot.settings.get("trading_mode") == "futures"
        pair = f"{COINS[number // 2 % len(COINS)]}/USDT{':USDT' if futures else ''}"
        with suppress(httpx.HTTPError):
            side = "short" if bot.strategy == "EagerShort" else "long"
            bot.call("POST", "forceenter", pair=pair, side=side)
            return 1
        return 0

    with ThreadPoolExecutor(20) as pool:
        return sum(pool.map(force, range(20)))


def forced_entries(folder: Path, _short: bool) -> Outcome:
    """Ten entries at once through the REST API of each bot, whose strategy itself wants nothing."""
    with stage(folder) as one:
        one.start("Eager", {"eager": {"idle": True}, "stake_amount": 50})
        forced = _force_entries(one)
        difference = one.settle_down()
        full = sum([D(50) for _ in range(forced)], D(0)) >= CAP
        return _outcome(one, difference or ("" if full else "the cap was not reached"), forced=str(forced))


def stop_losses(folder: Path, _short: bool, *, on_exchange: bool = False, **settings: Any) -> Outcome:
    """Lets prices fall by a tenth, so that every stop loss of 5 % sells."""
    types = {"entry": "limit", "exit": "limit", "stoploss": "market", "stoploss_on_exchange": on_exchange}
    with stage(folder) as one:
        one.start("Eager", {"stoploss": -0.05, "order_types": types, **settings})
        _wait_for(lambda: bool(one.at_exchange()) and not one.difference(), 30)
        time.sleep(5)
        for bot in one.bots.values():
            bot.call("POST", "stopentry")
        for coin in COINS:
            price = one.venue.venues.dialects[VENUE].exchange.prices[coin]
            one.control().price(coin, price * D("0.9"))
        _wait_for(lambda: not one.at_exchange(), 30)
        left = one.at_exchange()
        return _outcome(one, one.settle_down() or ("" if not left else f"not sold: {_text(left)}"))


def stop_losses_on_exchange(folder: Path, short: bool) -> Outcome:
    """The same with contracts, and stop orders that rest at the exchange."""
    return stop_losses(folder, short, on_exchange=True, **FUTURES)


def _wait_for(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.2)


_NEEDS = ("freqtrade",)
ROUNDS = [
    Round("freqtrade without the ledger", _NEEDS, without_ledger),
    Round("freqtrade, spot, restless", _NEEDS, restless),
    Round("freqtrade, futures at 3x, restless", _NEEDS, restless_futures),
    Round("freqtrade, short at 3x, restless", _NEEDS, restless_shorts),
    Round("freqtrade, forced entries", _NEEDS, forced_entries),
    Round("freqtrade, stop loss", _NEEDS, stop_losses),
    Round("freqtrade, stop loss on exchange", _NEEDS, stop_losses_on_exchange),
]
