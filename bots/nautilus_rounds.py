"""Rounds of nautilus: two strategies, one cap, at nautilus's own simulated exchange."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from bots.market_data import market_bars
from bots.nautilus_exposure import Exposure
from bots.rounds import Outcome, Round

CAP_USD = Decimal(1500)
SIZE_USD = Decimal(180)
BARS, BARS_SHORT = 1500, 200
STALL_SECONDS_MAX = 2.5
"""Twice the patience of a call, and some room for a busy machine: an event may lead to two calls."""

ROOT = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class Run:
    """One backtest. highest, looks: see `Exposure`. head: of the ledger's chain."""

    highest: Decimal
    looks: int
    orders: int
    denied: int
    head: str = ""
    decisions: int = 0
    faults: list[str] = field(default_factory=list)


def backtest(market: str, bars: int, *, with_ledger: bool) -> Run:
    """Run both strategies on the first bars of a market; compare ledger and exchange at the end."""
    from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
    from nautilus_trader.config import LoggingConfig
    from nautilus_trader.model.currencies import USDT
    from nautilus_trader.model.data import BarType
    from nautilus_trader.model.enums import AccountType, OmsType
    from nautilus_trader.model.objects import Money
    from nautilus_trader.test_kit.providers import TestInstrumentProvider
    from nautilus_trader.trading.strategy import Strategy

    from bots.nautilus_strategies import strategies_on
    from ledger_sizer.adapters.nautilus import DeskStrategy, ledger_of

    instruments = [TestInstrumentProvider.btcusdt_perp_binance(), TestInstrumentProvider.ethusdt_perp_binance()]
    markets = [(one, BarType.from_str(f"{one.id}-8-HOUR-LAST-EXTERNAL")) for one in instruments]
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
    try:
        engine.add_venue(
            instruments[0].venue, OmsType.NETTING, AccountType.MARGIN, [Money(100_000, USDT)],
            default_leverage=Decimal(10),
        )  # fmt: skip
        for (instrument, bar_type), coin in zip(markets, ("BTC", "ETH"), strict=True):
            engine.add_instrument(instrument)
            engine.add_data(list(islice(_bars_of(market, coin, instrument, bar_type), bars)))
        for strategy in strategies_on(DeskStrategy if with_ledger else Strategy, markets, SIZE_USD):
            engine.add_strategy(strategy)
        cache = engine.kernel.cache
        exposure = Exposure(cache)
        engine.kernel.msgbus.subscribe("events.order.*", exposure.look)
        if not with_ledger:
            engine.run()
            return Run(exposure.highest, exposure.looks, len(cache.orders()), 0)
        with ledger_of(engine, cap=CAP_USD) as ledger:
            engine.run()
            seq, head = ledger.heads()["main"]
            denied = [order for order in cache.orders() if order.status_string() == "DENIED"]
            run = Run(exposure.highest, exposure.looks, len(cache.orders()), len(denied), head, seq)
            run.faults += [] if ledger.verify().ok else ["the ledger does not verify"]
            run.faults += differences(ledger, cache)
            return run
    finally:
        engine.dispose()


def _bars_of(market: str, coin: str, instrument: Any, bar_type: Any) -> Iterator[Any]:
    from nautilus_trader.model.data import Bar

    volume = instrument.make_qty(100_000)
    for bar in market_bars(market):
        candle = next((one.perp for one in bar.quotes if one.key == ("binance", coin)), None)
        if candle is not None:
            ns = int(bar.time.timestamp()) * 10**9
            prices = [instrument.make_price(one) for one in (candle.open, candle.high, candle.low, candle.close)]
            yield Bar(bar_type, *prices, volume, ns, ns)


def differences(ledger: Any, cache: Any) -> list[str]:
    """Return where the ledger's positions are not those of the engine's portfolio, in words."""
    has = {
        (str(one.strategy_id), str(one.instrument_id.symbol).partition("USDT")[0] + "/USDT:USDT"): (
            one.quantity.as_decimal()
        )
        for one in cache.positions_open()
    }
    return compared(told_by(ledger), has)


def told_by(ledger: Any) -> dict[tuple[str, str], Decimal]:
    """Return the coins that are open in the ledger, by strategy and market."""
    told: dict[tuple[str, str], Decimal] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = ledger.positions(state="open", limit=1000, cursor=cursor or None)
        for one in page.items:
            key = one.tags["strategy"], one.tags["symbol"]
            told[key] = told.get(key, Decimal(0)) + one.quantity
        cursor = page.cursor
    return told


def compared(told: dict[tuple[str, str], Decimal], has: dict[tuple[str, str], Decimal]) -> list[str]:
    """Return where what is told is not what is, in words."""
    return [
        f"{key}: the ledger has {told.get(key, 0)}, the engine {has.get(key, 0)}"
        for key in sorted({*told, *has})
        if told.get(key) != has.get(key)
    ]


def backtest_round(_folder: Path, short: bool) -> Outcome:
    """Two strategies in one engine: once without the ledger, and with it in two processes."""
    from bots.market_data import best_market

    bars, market = BARS_SHORT if short else BARS, best_market()
    alone = backtest(market, bars, with_ledger=False)
    first = backtest(market, bars, with_ledger=True)
    again = f"from bots.nautilus_rounds import backtest; print(backtest({market!r}, {bars}, with_ledger=True).head)"
    other = {**os.environ, "PYTHONHASHSEED": "17"}  # another process, whose sets have another order
    second = subprocess.run(
        [sys.executable, "-c", again], cwd=ROOT, env=other, capture_output=True, text=True, check=True
    )
    faults = list(first.faults)
    if first.highest > CAP_USD:
        faults.append(f"{first.highest:.2f} USD at the exchange, above the cap of {CAP_USD}")
    if alone.highest <= CAP_USD:
        faults.append(f"without the ledger only {alone.highest:.2f} USD: the strategies do not want enough")
    equal = first.head == second.stdout.strip()
    if not equal:
        faults.append("two equal runs wrote different chains")
    figures = {
        "market": market,
        "highest without the ledger, USD": f"{alone.highest:,.2f}",
        "highest with it, USD (cap 1,500)": f"{first.highest:,.2f}",
        "looks at the exchange": f"{first.looks:,}",
        "orders (denied)": f"{first.orders:,} ({first.denied:,})",
        "decisions": f"{first.decisions:,}",
        "chain heads of two processes": "equal" if equal else "different",
    }
    return Outcome(not faults, figures, "; ".join(faults))


def live_round(folder: Path, short: bool) -> Outcome:
    """A live node in nautilus's sandbox, and the real service: that is frozen and killed; then the node is killed."""
    from campaign.processes import frozen
    from campaign.services import Service
    from ledger_sizer.client import LedgerClient

    service = Service(f"sqlite:///{folder / 'ledger.db'}", folder).start()
    url = f"http://127.0.0.1:{service.port}"
    faults = []
    try:
        with LedgerClient(url) as client:
            client.set_cap(key="cap", cap=CAP_USD, max_position_usd=CAP_USD)
            with _node(url, 14 if short else 40, folder / "first.json") as node:
                time.sleep(4)
                with frozen([service.pid]):
                    time.sleep(2 if short else 6)
                time.sleep(1 if short else 8)
                service.kill()
                time.sleep(1 if short else 6)
                service.start()
                node.wait(60)
            first = json.loads((folder / "first.json").read_text())
            faults += _unlike(client, first)
            with _node(url, 600, folder / "killed.json") as node:
                time.sleep(6)
                node.kill()
            left = client.exposure().whole
            with _node(url, 4, folder / "last.json", "quiet") as node:  # the sandbox died with its node: all is flat
                node.wait(60)
            faults += _unlike(client, json.loads((folder / "last.json").read_text()))
            killed = json.loads((folder / "killed.json").read_text())
    finally:
        service.stop()
    highest = max(Decimal(one["highest_usd"]) for one in (first, killed))
    if highest > CAP_USD:
        faults.append(f"{highest:.2f} USD at the exchange, above the cap of {CAP_USD}")
    stall = first["longest_stall_seconds"]
    if stall > STALL_SECONDS_MAX:
        faults.append(f"the node's event loop stood still for {stall} s")
    if not left.held + left.open:
        faults.append("the killed node left nothing to settle")
    figures = {
        "highest at the exchange, USD (cap 1,500)": f"{highest:,.2f}",
        "orders (denied)": f"{first['orders']:,} ({first['denied']:,})",
        "longest stall of the event loop, s": f"{stall:.2f}",
        "held and open after kill -9, USD": f"{left.held:,.2f} and {left.open:,.2f}",
    }
    return Outcome(not faults, figures, "; ".join(faults))


@contextmanager
def _node(url: str, seconds: float, report: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node during a `with` block."""
    command = [sys.executable, "-m", "bots.nautilus_node", url, str(seconds), str(report), *more]
    with report.with_suffix(".log").open("wb") as log:
        node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        try:
            yield node
        finally:
            node.kill()
            node.wait(30)


def _unlike(client: Any, node: dict[str, Any]) -> list[str]:
    """Return where the ledger is not as the node told at its end, in words."""
    has = {(strategy, f"{coin}/USDT:USDT"): Decimal(quantity) for strategy, coin, quantity in node["open"]}
    held, resting = client.exposure().whole.held, Decimal(node["resting_usd"])
    return compared(told_by(client), has) + ([] if held == resting else [f"{held} USD held, {resting} rest"])


ROUNDS = [
    Round("nautilus-backtest", ("nautilus_trader",), backtest_round),
    Round("nautilus-live", ("nautilus_trader",), live_round),
]
