"""Random orders of two nautilus strategies: never above the cap, and in the end the ledger equals the portfolio."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("nautilus_trader", reason="nautilus_trader is not installed; `make bots` has it")

from nautilus_trader.examples.algorithms.twap import TWAPExecAlgorithm
from nautilus_trader.model.enums import OmsType, OrderType, PositionSide, TimeInForce, TriggerType
from nautilus_trader.model.identifiers import ExecAlgorithmId

from bots.nautilus_exposure import Exposure
from ledger_sizer.adapters.nautilus import ENDPOINT, ledger_of
from tests.support.nautilus_engines import BTCUSDT, BUY, SELL, Gate, Scripted, engine_of

CAP = Decimal(1500)
TICKS, BUSY_TICKS = 240, 160


class Restless(Scripted):
    """Does some of everything at every tick, then cancels all and waits until its last budget has ended."""

    def __init__(self, seed: int, *, hedging: bool) -> None:
        super().__init__({})
        self.random, self.hedging = random.Random(seed), hedging

    def on_quote_tick(self, tick: Any) -> None:
        self.ticks += 1
        if self.ticks < BUSY_TICKS:
            for _ in range(self.random.randint(0, 3)):
                self.random.choice(ACTIONS)(self, self.random.choice([BUY, SELL]), int(tick.bid_price))
        elif self.ticks in (BUSY_TICKS + 5, BUSY_TICKS + 15):
            self.cancel_all_orders(BTCUSDT.id)
        elif self.ticks == TICKS - 5:
            self.desk_budget(BTCUSDT.id, Decimal("0.01"))  # the ledger hears of the book, where it was away

    def coins(self, most: int = 50) -> Any:
        return BTCUSDT.make_qty(Decimal(self.random.randint(1, most)) / 1000)

    def near(self, side: Any, bid: int, most: int = 30) -> Any:
        """A price below the market for a buy, above it for a sale."""
        away = self.random.randint(2, most)
        return BTCUSDT.make_price(bid - away if side == BUY else bid + away)

    @property
    def own(self) -> tuple[list[Any], list[Any]]:
        """Its open positions and orders."""
        return self.cache.positions_open(strategy_id=self.id), self.cache.orders_open(strategy_id=self.id)


def bid_or_offer(s: Restless, side: Any, bid: int) -> None:
    expiry = {"time_in_force": TimeInForce.GTD, "expire_time": s.clock.utc_now() + timedelta(seconds=5)}
    emulated = {"emulation_trigger": TriggerType.BID_ASK}
    more = s.random.choice([{}, {}, expiry, emulated])
    s.submit_order(s.order_factory.limit(BTCUSDT.id, side, s.coins(), s.near(side, bid), **more))


def take(s: Restless, side: Any, _bid: int) -> None:
    algorithm = {
        "exec_algorithm_id": ExecAlgorithmId("TWAP"),
        "exec_algorithm_params": {"horizon_secs": 3, "interval_secs": 1},
    }
    s.submit_order(s.order_factory.market(BTCUSDT.id, side, s.coins(), **s.random.choice([{}, {}, algorithm])))


def stop(s: Restless, side: Any, bid: int) -> None:
    trigger = s.near(SELL if side == BUY else BUY, bid)
    s.submit_order(s.order_factory.stop_market(BTCUSDT.id, side, s.coins(), trigger_price=trigger))


def bracket(s: Restless, side: Any, bid: int) -> None:
    other = SELL if side == BUY else BUY
    stop_price, target = s.near(side, bid), s.near(other, bid)
    orders = s.order_factory.bracket(BTCUSDT.id, side, s.coins(), sl_trigger_price=stop_price, tp_price=target)
    s.submit_order_list(orders)


def reduce(s: Restless, _side: Any, _bid: int) -> None:
    for one in s.own[0][:1]:
        side = SELL if one.side == PositionSide.LONG else BUY
        part = max(one.quantity.as_decimal() * s.random.randint(1, 10) / 10, Decimal("0.001"))
        order = s.order_factory.market(BTCUSDT.id, side, BTCUSDT.make_qty(part), reduce_only=True)
        s.submit_order(order, one.id if s.hedging else None)


def modify(s: Restless, _side: Any, _bid: int) -> None:
    for one in s.own[1]:
        if one.order_type == OrderType.LIMIT and not one.is_reduce_only and one.parent_order_id is None:
            s.modify_order(one, BTCUSDT.make_qty(one.filled_qty.as_decimal() + s.coins().as_decimal()))
            return


def size_by_grant(s: Restless, side: Any, bid: int) -> None:
    usd = s.desk_budget(BTCUSDT.id, Decimal(s.random.randint(50, 900)))
    if usd > 50 and s.random.random() < 0.7:
        quantity = BTCUSDT.make_qty(usd / (bid + 1), round_down=True)
        s.submit_order(s.order_factory.market(BTCUSDT.id, side, quantity))


def leave(s: Restless, _side: Any, _bid: int) -> None:
    s.cancel_all_orders(BTCUSDT.id)
    if s.random.random() < 0.3:
        s.close_all_positions(BTCUSDT.id)


ACTIONS: list[Callable[[Restless, Any, int], None]] = [
    bid_or_offer, bid_or_offer, take, take, stop, bracket, reduce, modify, size_by_grant, leave,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("oms", [OmsType.NETTING, OmsType.HEDGING], ids=["netting", "hedging"])
@pytest.mark.parametrize("cuts", [False, True], ids=["steady", "cut off at times"])
def test_random_orders_when_all_is_done_then_the_ledger_equals_the_portfolio(
    seed: int, oms: OmsType, cuts: bool
) -> None:
    chance, price, prices = random.Random(seed), 10_000, []
    for _ in range(TICKS):
        price += chance.randint(-4, 4)  # less than the slippage that is asked for
        prices.append(price)
    hedging = oms == OmsType.HEDGING
    strategies = [Restless(2 * seed + number, hedging=hedging) for number in range(2)]
    with engine_of(*strategies, prices=prices, oms=oms, size=chance.choice([1, 100])) as engine:
        engine.add_exec_algorithm(TWAPExecAlgorithm())
        cache, bus = engine.kernel.cache, engine.kernel.msgbus
        ledger = ledger_of(engine, cap=CAP)
        gate, exposure, highest = Gate(ledger), Exposure(cache), [Decimal(0)]
        bus.send(ENDPOINT, gate)

        def look(event: Any) -> None:
            exposure.look(event)
            averaged = sum(one.quantity.as_decimal() * Decimal(str(one.avg_px_open)) for one in cache.positions_open())
            highest[0] = max(highest[0], averaged if hedging else exposure.open)

        def cut(_tick: Any) -> None:
            busy = strategies[0].ticks < BUSY_TICKS
            gate.cut = cuts and busy and (gate.cut if chance.random() < 0.95 else not gate.cut)

        bus.subscribe("events.order.*", look)
        bus.subscribe("data.quotes.*", cut, 20)
        engine.run()
        engine_has: dict[str, Decimal] = {}
        for one in cache.positions_open():
            name = str(one.strategy_id)
            engine_has[name] = engine_has.get(name, Decimal(0)) + one.quantity.as_decimal()
        assert len(cache.orders()) > 200
        assert not cache.orders_open()
    ledger.sweep()
    told: dict[str, Decimal] = {}
    for one in ledger.positions(state="open", limit=1000):
        told[one.tags["strategy"]] = told.get(one.tags["strategy"], Decimal(0)) + one.quantity
    assert told == engine_has
    assert ledger.exposure().whole.held == 2 * Decimal("0.01001")  # the last budget of each, with its slippage
    assert highest[0] <= CAP
    assert highest[0] > CAP / 2
    assert any(strategy.denials for strategy in strategies)
    assert ledger.verify().ok
