"""Rounds of nautilus: two strategies, one cap, at nautilus's own simulated exchange."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from bots.market_data import market_bars
from bots.rounds import Outcome, Round

CAP_USD = Decimal(1500)
SIZE_USD = Decimal(180)
BARS, BARS_SHORT = 1500, 200


@dataclass(slots=True)
class Exposure:
    """What is at risk at the simulated exchange, from its own events, looked at after every one.

    What closes, closes the oldest entry first, as in the ledger. (nautilus averages instead: after a partial close its
    figure is a little higher or lower.) highest: the most that was open and could still open, USD. looks: how often.
    """

    cache: Any
    entries: dict[Any, list[tuple[Decimal, Decimal]]] = field(default_factory=dict)
    highest: Decimal = Decimal(0)
    looks: int = 0

    def look(self, event: Any) -> None:
        """Take in a fill; sum up all entries that are open, and what orders may still open, at their limit."""
        if type(event).__name__ == "OrderFilled":
            signed = event.last_qty.as_decimal() * (1 if event.is_buy else -1)
            self._fill((event.instrument_id, event.strategy_id), signed, event.last_px.as_decimal())
        worth = sum((abs(coins) * price for key in self.entries.values() for coins, price in key), Decimal(0))
        orders = {one.client_order_id: one for one in (*self.cache.orders_open(), *self.cache.orders_inflight())}
        for order in orders.values():  # one that is being cancelled is in both lists
            net = sum((one for one, _ in self.entries.get((order.instrument_id, order.strategy_id), ())), Decimal(0))
            against = abs(net) if (net > 0) != order.is_buy else Decimal(0)
            if not order.is_reduce_only and order.has_price:
                worth += max(order.leaves_qty.as_decimal() - against, Decimal(0)) * order.price.as_decimal()
        self.highest = max(self.highest, worth)
        self.looks += 1

    def _fill(self, key: Any, coins: Decimal, price: Decimal) -> None:
        entries = self.entries.setdefault(key, [])
        while coins and entries and (entries[0][0] > 0) != (coins > 0):
            oldest, paid = entries.pop(0)
            left = oldest + coins
            if (left > 0) == (oldest > 0) and left:
                entries.insert(0, (left, paid))
            coins = left if (left > 0) == (coins > 0) else Decimal(0)
        if coins:
            entries.append((coins, price))


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
    told: dict[tuple[str, str], Decimal] = {}
    cursor = None
    while True:
        page = ledger.positions(state="open", limit=1000, cursor=cursor)
        for one in page.items:
            key = one.tags["strategy"], one.tags["symbol"]
            told[key] = told.get(key, Decimal(0)) + one.quantity
        cursor = page.cursor
        if cursor is None:
            break
    has = {}
    for one in cache.positions_open():
        coin = str(one.instrument_id.symbol).partition("USDT")[0]
        has[str(one.strategy_id), f"{coin}/USDT:USDT"] = one.quantity.as_decimal()
    return [
        f"{key}: the ledger has {told.get(key, 0)}, the engine {has.get(key, 0)}"
        for key in sorted({*told, *has})
        if told.get(key) != has.get(key)
    ]


def backtest_round(_folder: Path, short: bool) -> Outcome:
    """Two strategies in one engine: with the ledger twice, and once without it."""
    from bots.market_data import best_market

    bars, market = BARS_SHORT if short else BARS, best_market()
    alone = backtest(market, bars, with_ledger=False)
    first, second = (backtest(market, bars, with_ledger=True) for _ in range(2))
    faults = list(first.faults)
    if first.highest > CAP_USD:
        faults.append(f"{first.highest:.2f} USD at the exchange, above the cap of {CAP_USD}")
    if alone.highest <= CAP_USD:
        faults.append(f"without the ledger only {alone.highest:.2f} USD: the strategies do not want enough")
    if first.head != second.head:
        faults.append("two equal runs wrote different chains")
    figures = {
        "market": market,
        "highest without the ledger, USD": f"{alone.highest:,.2f}",
        "highest with it, USD (cap 1,500)": f"{first.highest:,.2f}",
        "looks at the exchange": f"{first.looks:,}",
        "orders (denied)": f"{first.orders:,} ({first.denied:,})",
        "decisions": f"{first.decisions:,}",
        "chain heads of two runs": "equal" if first.head == second.head else "different",
    }
    return Outcome(not faults, figures, "; ".join(faults))


ROUNDS = [Round("nautilus-backtest", ("nautilus_trader",), backtest_round)]
