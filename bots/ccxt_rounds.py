"""Bots on ccxt at the paper venue, killed at random: the cap holds at the exchange, and a new start mends all.

They are the two examples, and a bot on `DeskExchange` that opens, closes and cancels at random.

Two bots share one cap over the service. They are killed (SIGKILL) and started again, the exchange loses answers and
fails, the service is away for a while. All the time the account is compared with the cap. In the end one more start
of each bot has to leave the ledger equal to the exchange, no hold behind and no coin without its hedge. As a control
the same bots run with a ledger of their own each: together they exceed the cap.
"""

import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from bots.rounds import Outcome, Round
from campaign.processes import environment
from campaign.services import Service
from ledger_sizer.client import LedgerClient
from ledger_sizer.paper import PaperControl, PaperServer
from ledger_sizer.paper.control import DEFAULT_KEY

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
COINS = ("BTC", "ETH", "SOL")
BOTS = ("a", "b")
CAP = Decimal(1000)
USD = Decimal(300)
SEED = 17
PAYS, COSTS = Decimal("0.0003"), Decimal(0)
WINDOW_SECONDS = 0.5
END_SECONDS = 120
LAST = 3
"""Cycles of a last start."""


class Shape(NamedTuple):
    """What runs. legs: the markets of each coin, (venue, quote). paying: the venue whose funding rates move.

    hedged: whether the two legs of a coin are one position; else each is one. accounts: by name; all bots use the
    first, or each the one of its own name.
    """

    script: str
    venues: tuple[str, ...]
    legs: tuple[tuple[str, str], tuple[str, str]]
    paying: str
    hedged: bool = True
    accounts: tuple[str, ...] = (DEFAULT_KEY,)


SPOT_PERP = Shape("spot_perp.py", ("bybit",), (("bybit", "/USDT"), ("bybit", "/USDT:USDT")), "bybit")
DESK = Shape("bots.ccxt_desk_bot", SPOT_PERP.venues, SPOT_PERP.legs, "bybit", hedged=False, accounts=BOTS)
PERP_PERP = Shape("perp_perp.py", ("bybit", "binance"), (("bybit", "/USDT:USDT"), ("binance", "/USDT:USDT")), "binance")


@dataclass
class Venues:
    """The paper venues of a shape, and the most that was ever open there, USD."""

    shape: Shape
    server: PaperServer
    most: Decimal = Decimal(0)
    controls: dict[str, PaperControl] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.controls = {venue: PaperControl(self.server.url, venue) for venue in self.shape.venues}
        for venue in self.shape.venues:
            for coin in COINS:
                self.controls[venue].funding_rate(f"{coin}/USDT:USDT", COSTS)
            for account in self.shape.accounts:
                if account != DEFAULT_KEY:
                    PaperControl(self.server.url, venue, account).open_account()

    def coins(self) -> dict[tuple[str, str], Decimal]:
        """Return the coins of each market, (venue, symbol), in all accounts, below zero for shorts."""
        found: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        for venue, control in self.controls.items():
            accounts = control.state()["accounts"]
            for account in [accounts[name] for name in self.shape.accounts]:
                for coin in COINS:
                    found[venue, f"{coin}/USDT"] += Decimal(account["wallets"]["spot"].get(coin, "0"))
                    found[venue, f"{coin}/USDT:USDT"] += Decimal(0)
                for position in account["positions"]:
                    found[venue, position["symbol"]] += Decimal(position["quantity"])
        return found

    def resting(self) -> Decimal:
        """Return what the open orders may still cost, USD."""
        exchange = self.server.venues.dialects["bybit"].exchange
        orders = [order for name in self.shape.accounts for order in exchange.accounts[name].orders.values()]
        left = [(one.quantity - one.filled) * (one.price or 0) for one in orders if one.state == "open"]
        return sum(left, Decimal(0))

    def look(self) -> None:
        """Note what is open now at the venue's prices: of a hedged coin the larger leg, else both."""
        coins, prices = self.coins(), self.controls[self.shape.venues[0]].state()["prices"]
        open_usd = Decimal(0)
        for coin in COINS:
            legs = [abs(coins[venue, coin + quote]) for venue, quote in self.shape.legs]
            open_usd += (max(legs) if self.shape.hedged else sum(legs)) * Decimal(prices[coin])
        self.most = max(self.most, open_usd)

    def move(self, chance: random.Random) -> None:
        """Let the funding of a coin begin or cease to pay."""
        rate = chance.choice((PAYS, PAYS, COSTS))
        self.controls[self.shape.paying].funding_rate(f"{chance.choice(COINS)}/USDT:USDT", rate)

    def fail(self, chance: random.Random) -> str:
        """Inject a fault into one of the next calls about orders; return its kind."""
        kind = chance.choice(("lost_answer", "lost_answer", "timeout", "outage", "rate_limit"))
        control = self.controls[chance.choice(self.shape.venues)]
        control.fault(kind, "order", seconds=0.1)
        return kind


@dataclass
class Bots:
    """The processes of a round. ledgers: where each bot's ledger is."""

    venues: Venues
    folder: Path
    ledgers: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *, cycles: int = 0) -> subprocess.Popen[bytes]:
        """Start a bot, or start it again. cycles: of its life; 0: for ever."""
        shape, paper = self.venues.shape, self.venues.server.url
        if not shape.hedged:
            seconds = {0: 3600, LAST: 0}.get(cycles, cycles)
            command = ["-m", shape.script, self.ledgers[name], paper, name, str(seconds)]
        else:
            command = [
                str(EXAMPLES / shape.script), "--ledger", self.ledgers[name], "--bot", name, "--paper", paper,
                "--venues", ",".join(shape.venues), "--coins", ",".join(COINS), "--usd", str(USD), "--seconds", "0.1",
                "--period", "2", "--window", str(WINDOW_SECONDS), "--cycles", str(cycles),
            ]  # fmt: skip
        command = [sys.executable, *command]
        with (self.folder / f"bot-{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=environment(LEDGER_CLIENT="bots", PYTHONPATH=EXAMPLES.parent),
            )
        self.running[name] = process
        return process

    def kill(self, name: str) -> None:
        """Kill a bot with SIGKILL."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """Kill those that run."""
        for name in [*self.running]:
            self.kill(name)


@contextmanager
def _opened(shape: Shape) -> Iterator[Venues]:
    with PaperServer() as server:
        yield Venues(shape, server)


def _disturbed(venues: Venues, bots: Bots, service: Service, seconds: float, chance: random.Random) -> dict[str, int]:
    """Kill, lose answers and stop the service for so long; return how often each happened."""
    happened = {"kills": 0, "lost or failed answers": 0, "service away": 0}
    end = time.monotonic() + seconds
    away_at, back_at = time.monotonic() + seconds * 0.4, time.monotonic() + seconds * 0.6
    next_kill = next_move = 0.0
    while time.monotonic() < end:
        venues.look()
        now = time.monotonic()
        if now >= next_move:
            next_move = now + 0.7
            venues.move(chance)
            if chance.random() < 0.5:
                venues.fail(chance)
                happened["lost or failed answers"] += 1
        if now >= next_kill:
            if next_kill:
                name = chance.choice(BOTS)
                bots.kill(name)
                bots.start(name)
                happened["kills"] += 1
            next_kill = now + chance.uniform(4.0, 8.0)
        if away_at <= now < back_at and not happened["service away"]:
            service.kill()
            happened["service away"] = 1
        elif now >= back_at and happened["service away"] == 1:
            service.start()
            happened["service away"] = 2
        time.sleep(0.02)
    if happened["service away"] == 1:
        service.start()
    happened["service away"] = 1
    return happened


def _settled(venues: Venues, bots: Bots) -> None:
    """Kill all bots once more, and let one last start of each bring to an end what was begun."""
    bots.close()
    for control in venues.controls.values():
        control.clear_faults()
    for process in [bots.start(name, cycles=LAST) for name in BOTS]:
        process.wait(END_SECONDS)
    bots.running.clear()


def _differences(venues: Venues, ledger: LedgerClient) -> list[str]:
    """Return what of the ledger is not as it is at the exchange, and what has no hedge."""
    wrong = []
    held = sum((one.held for one in ledger.positions("main", state="live", limit=1000)), Decimal(0))
    if held != venues.resting():
        wrong.append(f"{held} USD are held, and orders of {venues.resting()} rest")
    known: dict[tuple[str, str], Decimal] = dict.fromkeys(venues.coins(), Decimal(0))
    for position in ledger.positions("main", state="live", limit=1000):
        for leg in position.legs if position.state == "open" else ():
            known[leg.venue, leg.symbol] += leg.quantity if leg.side == "buy" else -leg.quantity
    wrong += [
        f"{market}: {coins} at the exchange, {known[market]} in the ledger"
        for market, coins in venues.coins().items()
        if coins != known[market]
    ]
    for coin in COINS if venues.shape.hedged else ():
        net = sum(venues.coins()[venue, coin + quote] for venue, quote in venues.shape.legs)
        wrong += [f"{net} {coin} have no hedge"] if net else []
    return wrong


def _shared(shape: Shape, folder: Path, seconds: float) -> tuple[Venues, dict[str, int], dict[str, int], list[str]]:
    """Run the bots under one cap, disturbed. Return the venues, what happened, positions by state, what is wrong."""
    chance = random.Random(SEED)
    with ExitStack() as stack:
        venues = stack.enter_context(_opened(shape))
        service = Service(f"sqlite:///{folder / 'ledger.db'}", folder)
        stack.callback(service.kill)
        service.start()
        url = f"http://127.0.0.1:{service.port}"
        ledger = stack.enter_context(LedgerClient(url))
        ledger.set_cap(key="cap", cap=CAP)
        bots = Bots(venues, folder, dict.fromkeys(BOTS, url))
        stack.callback(bots.close)
        for name in BOTS:
            bots.start(name)
        happened = _disturbed(venues, bots, service, seconds, chance)
        _settled(venues, bots)
        venues.look()
        states: dict[str, int] = {}
        for position in ledger.positions("main", limit=1000):
            states[position.state] = states.get(position.state, 0) + 1
        wrong = _differences(venues, ledger)
        wrong += [] if ledger.verify().ok else ["verify found the ledger's records wrong"]
        return venues, happened, states, wrong


def _apart(shape: Shape, folder: Path) -> Decimal:
    """Run the bots with a ledger of their own each, under the same cap. Return the most that was open, USD."""
    with _opened(shape) as venues:
        for coin in COINS:
            venues.controls[shape.paying].funding_rate(f"{coin}/USDT:USDT", PAYS)
        bots = Bots(venues, folder, {name: f"sqlite:///{folder / f'own-{name}.db'}" for name in BOTS})
        for process in [bots.start(name, cycles=10) for name in BOTS]:
            process.wait(END_SECONDS)
        venues.look()
        return venues.most


def _round(shape: Shape, folder: Path, *, short: bool) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    venues, happened, states, wrong = _shared(shape, folder, 12 if short else 60)
    without = _apart(shape, folder)
    if venues.most > CAP:
        wrong.append(f"{venues.most} USD were open above the cap of {CAP}")
    if without <= CAP:
        wrong.append(f"the control stayed at {without} USD: it shows nothing")
    if not states.get("open", 0) + states.get("closed", 0):
        wrong.append("no position was ever opened")
    figures: dict[str, Any] = {
        "cap": CAP, "most open at the exchange": f"{venues.most:.2f}", "with a ledger each": f"{without:.2f}",
        **happened, "positions": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
    }  # fmt: skip
    return Outcome(not wrong, {name: str(value) for name, value in figures.items()}, "; ".join(wrong))


ROUNDS = [
    Round("ccxt, DeskExchange", ("ccxt",), lambda folder, short: _round(DESK, folder, short=short)),
    Round("ccxt, spot-perp", ("ccxt",), lambda folder, short: _round(SPOT_PERP, folder, short=short)),
    Round("ccxt, perp-perp", ("ccxt",), lambda folder, short: _round(PERP_PERP, folder, short=short)),
]
