"""A live node of nautilus without a network: `python -m bots.nautilus_node LEDGER_URL SECONDS REPORT`.

Quotes come from a data client that makes them up, orders go to nautilus's own sandbox. Two strategies trade busily,
each in both markets; with a fourth argument, `quiet`, they only start. The report, a file of JSON, is written twice a
second, and once more at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from nautilus_trader.adapters.sandbox.config import SandboxExecutionClientConfig
from nautilus_trader.adapters.sandbox.factory import SandboxLiveExecClientFactory
from nautilus_trader.common.providers import InstrumentProvider
from nautilus_trader.config import LiveDataClientConfig, LiveExecEngineConfig, LoggingConfig, TradingNodeConfig
from nautilus_trader.live.data_client import LiveMarketDataClient
from nautilus_trader.live.factories import LiveDataClientFactory
from nautilus_trader.live.node import TradingNode
from nautilus_trader.model.data import QuoteTick
from nautilus_trader.model.enums import OrderSide
from nautilus_trader.model.identifiers import ClientId, Venue
from nautilus_trader.test_kit.providers import TestInstrumentProvider

from bots.nautilus_exposure import Exposure
from ledger_sizer.adapters.nautilus import DeskConfig, DeskStrategy

VENUE = "BINANCE"
MARKETS = (
    (TestInstrumentProvider.btcusdt_perp_binance(), 60_000.0),
    (TestInstrumentProvider.ethusdt_perp_binance(), 3_000.0),
)
SIZE_USD = 180
QUOTE_SECONDS = 0.02


class MadeUpQuotes(LiveMarketDataClient):  # type: ignore[misc]
    """Sends quotes of a random walk, the same each time, from when the first strategy subscribes."""

    quoting = False

    async def _connect(self) -> None:
        pass

    async def _disconnect(self) -> None:
        self.quoting = False

    async def _subscribe_quote_ticks(self, _command: Any) -> None:
        if not self.quoting:
            self.quoting = True
            self.create_task(self._quote())

    async def _quote(self) -> None:
        walk = random.Random(1)
        prices = [price for _, price in MARKETS]
        while self.quoting:
            for number, (instrument, _) in enumerate(MARKETS):
                prices[number] *= 1 + walk.gauss(0, 0.0005)
                bid, ask = instrument.make_price(prices[number]), instrument.make_price(prices[number] * 1.0001)
                size, now = instrument.make_qty(100), self._clock.timestamp_ns()
                self._handle_data(QuoteTick(instrument.id, bid, ask, size, size, now, now))
            await asyncio.sleep(QUOTE_SECONDS)


class MadeUpQuotesFactory(LiveDataClientFactory):  # type: ignore[misc]
    """Makes the data client."""

    @staticmethod
    def create(loop: Any, name: str, config: Any, msgbus: Any, cache: Any, clock: Any) -> MadeUpQuotes:
        """Return the client."""
        return MadeUpQuotes(
            loop=loop, client_id=ClientId(name), venue=Venue(VENUE), msgbus=msgbus, cache=cache, clock=clock,
            instrument_provider=InstrumentProvider(), config=config,
        )  # fmt: skip


class Busy(DeskStrategy):
    """Buys at the market, rests bids, cancels them, takes half off, closes all: every few quotes something else."""

    def on_start(self) -> None:
        """Begin."""
        self.quotes = 0
        if "quiet" in sys.argv:
            return
        for instrument, _ in MARKETS:
            self.subscribe_quote_ticks(instrument.id)

    def on_stop(self) -> None:
        """Leave all as it is."""

    def on_quote_tick(self, tick: QuoteTick) -> None:
        """Do what is next."""
        self.quotes += 1
        instrument, what = self.cache.instrument(tick.instrument_id), self.quotes % 97
        quantity = instrument.make_qty(SIZE_USD / float(tick.bid_price))
        if what % 12 == 1:
            self.submit_order(self.order_factory.market(instrument.id, OrderSide.BUY, quantity))
        elif what % 12 == 5:
            price = instrument.make_price(float(tick.bid_price) * 0.9995)
            self.submit_order(self.order_factory.limit(instrument.id, OrderSide.BUY, quantity, price))
        elif what == 50:
            self.cancel_all_orders(instrument.id)
        elif what in (70, 96):
            for position in self.cache.positions_open(instrument_id=instrument.id, strategy_id=self.id):
                self.close_position(position)


async def _run(node: TradingNode, seconds: float, report: Path) -> None:
    exposure = Exposure(node.cache)
    node.kernel.msgbus.subscribe("events.order.*", exposure.look)
    running = asyncio.ensure_future(node.run_async())
    begun, stall = time.monotonic(), 0.0
    while time.monotonic() - begun < seconds:
        before = time.monotonic()
        await asyncio.sleep(0.05)
        stall = max(stall, time.monotonic() - before - 0.05)
        if int((before - begun) * 2) != int((time.monotonic() - begun) * 2):
            _write(report, node.cache, exposure, stall)
    await node.stop_async()
    with suppress(asyncio.CancelledError):
        await running
    _write(report, node.cache, exposure, stall)


def _write(report: Path, cache: Any, exposure: Exposure, stall: float) -> None:
    """Write the report in one step, so that its reader never sees half of it."""
    statuses = [order.status_string() for order in cache.orders()]
    found = {
        "highest_usd": str(exposure.highest),
        "looks": exposure.looks,
        "orders": len(statuses),
        "denied": statuses.count("DENIED"),
        "filled": statuses.count("FILLED"),
        "longest_stall_seconds": round(stall, 3),
        "resting_usd": str(exposure.resting()),
        "open": [
            [str(one.strategy_id), str(one.instrument_id.symbol).partition("USDT")[0], str(one.quantity.as_decimal())]
            for one in cache.positions_open()
        ],
    }
    fresh = report.with_suffix(".new")
    fresh.write_text(json.dumps(found))
    fresh.replace(report)


def main() -> None:
    """Run the node."""
    url, seconds, report = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    sandbox = SandboxExecutionClientConfig(venue=VENUE, starting_balances=["100000 USDT"], default_leverage=Decimal(10))
    node = TradingNode(
        TradingNodeConfig(
            trader_id="BOT-001",
            logging=LoggingConfig(log_level=os.environ.get("NAUTILUS_LOG", "WARNING")),
            exec_engine=LiveExecEngineConfig(reconciliation=False),
            data_clients={VENUE: LiveDataClientConfig()},
            exec_clients={VENUE: sandbox},
            timeout_post_stop=0.5,
            timeout_disconnection=2.0,
        ),
        loop=loop,
    )
    node.add_data_client_factory(VENUE, MadeUpQuotesFactory)
    node.add_exec_client_factory(VENUE, SandboxLiveExecClientFactory)
    for number in (1, 2):
        config = DeskConfig(order_id_tag=f"{number:03}", desk_ledger=url, desk_settle_seconds=5.0)
        node.trader.add_strategy(Busy(config))
    for instrument, _ in MARKETS:
        node.cache.add_instrument(instrument)
    node.build()
    loop.run_until_complete(_run(node, seconds, report))
    node.dispose()


if __name__ == "__main__":
    main()
