"""Strategies of nautilus at its own simulated exchange, with the ledger of the backtest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("nautilus_trader", reason="nautilus_trader is not installed; `make bots` has it")

from nautilus_trader.model.enums import OmsType, TimeInForce
from nautilus_trader.test_kit.providers import TestInstrumentProvider

from ledger_sizer import Ledger
from ledger_sizer.adapters.nautilus import ledger_of
from tests.support.nautilus_engines import BTCUSDT, BUY, SELL, Scripted, engine_of


def run(steps: Mapping[int, Any], *, ticks: int = 10, cap: int = 1500, **engine: Any) -> tuple[Scripted, Ledger]:
    """Run one strategy on quotes of 10,000 USD; return it and the ledger after the last tick."""
    strategy = Scripted(steps, engine.pop("instrument_of_strategy", BTCUSDT), engine.pop("config", None))
    with engine_of(strategy, prices=engine.pop("prices", [10_000] * ticks), **engine) as backtest:
        ledger = ledger_of(backtest, cap=Decimal(cap))
        backtest.run()
        return strategy, ledger


def held_and_open(ledger: Ledger) -> tuple[Decimal, Decimal]:
    whole = ledger.exposure().whole
    return whole.held, whole.open


def test_submit_when_the_cap_is_reached_then_the_order_is_denied_and_never_at_the_exchange() -> None:
    strategy, ledger = run({0: lambda s: s.market(BUY, "0.1"), 1: lambda s: s.market(BUY, "0.1")})
    assert strategy.denials == ["ledger: cap_exceeded (portfolio); 1001.1001 USD were asked for"]
    submitted = [event for event in strategy.heard if type(event).__name__ == "OrderSubmitted"]
    assert len(submitted) == 1
    assert strategy.portfolio.net_position(BTCUSDT.id) == Decimal("0.1")
    assert held_and_open(ledger) == (0, Decimal("1000.1"))


def test_run_when_repeated_then_chain_and_times_are_the_backtests() -> None:
    steps = {
        0: lambda s: s.market(BUY, "0.05"),
        1: lambda s: s.limit(BUY, "0.05", 9_900),
        2: lambda s: s.cancel_all_orders(BTCUSDT.id),
        3: lambda s: s.desk_budget(BTCUSDT.id, Decimal(100)),
        4: lambda s: s.close_all_positions(BTCUSDT.id),
    }
    heads = []
    for _ in range(2):
        _, ledger = run(steps)
        assert ledger.verify().ok
        heads.append(ledger.heads())
    assert heads[0] == heads[1]
    first, last = [ledger.history(ascending=order, limit=2).items[order] for order in (True, False)]
    assert first.decided_at == datetime(2024, 1, 1, tzinfo=UTC)
    assert last.decided_at == datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=4)


def test_close_when_halted_then_it_passes_and_only_entries_are_denied() -> None:
    def halt(strategy: Scripted) -> None:
        ledger.halt(key="halt")
        strategy.close_all_positions(BTCUSDT.id)
        strategy.market(BUY, "0.01")

    strategy = Scripted({0: lambda s: s.market(BUY, "0.1"), 1: halt})
    with engine_of(strategy, prices=[10_000] * 5) as engine:
        ledger = ledger_of(engine, cap=Decimal(1500))
        engine.run()
        assert [reason.split()[1] for reason in strategy.denials] == ["halted"]
        assert strategy.portfolio.is_completely_flat()
    assert held_and_open(ledger) == (0, 0)


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(lambda s: s.cancel_all_orders(BTCUSDT.id), id="cancelled"),
        pytest.param(lambda s: s.limit(BUY, "0.01", 10_005, post_only=True), id="rejected"),
        pytest.param(lambda s: s.limit(BUY, "0.01", 9_000, time_in_force=TimeInForce.IOC), id="immediate or cancel"),
        pytest.param(
            lambda s: s.limit(
                BUY, "0.01", 9_000, time_in_force=TimeInForce.GTD, expire_time=s.clock.utc_now() + timedelta(seconds=3)
            ),
            id="expired",
        ),
    ],
)
def test_order_when_it_ends_unfilled_then_its_hold_is_free(last: Any) -> None:
    _, ledger = run({0: lambda s: s.limit(BUY, "0.01", 9_000), 2: last, 5: lambda s: s.cancel_all_orders(BTCUSDT.id)})
    assert held_and_open(ledger) == (0, 0)
    assert all(one.state == "released" for one in ledger.positions().items)


def test_order_when_it_rests_longer_than_a_hold_lives_then_it_stays_held() -> None:
    _, ledger = run({0: lambda s: s.limit(BUY, "0.1", 9_000)}, ticks=200)
    assert held_and_open(ledger) == (900, 0)


def test_fill_when_partial_then_the_rest_stays_held_until_the_cancel() -> None:
    seen = []
    steps = {
        0: lambda s: s.limit(BUY, "0.1", 9_999),
        3: lambda _: seen.append(held_and_open(ledger)),
        4: lambda s: s.cancel_all_orders(BTCUSDT.id),
    }
    strategy = Scripted(steps)
    instrument = BTCUSDT
    with engine_of(strategy, prices=[10_000, 9_998, 10_000, 10_000, 10_000, 10_000], size=1) as engine:
        ledger = ledger_of(engine, cap=Decimal(1500))
        engine.run()
        filled = strategy.portfolio.net_position(instrument.id)
    assert seen
    assert held_and_open(ledger) == (0, filled * 9_999)


def test_order_when_it_turns_a_position_then_only_what_opens_is_asked() -> None:
    seen = []
    strategy, ledger = run(
        {
            0: lambda s: s.market(BUY, "0.1"),
            1: lambda s: s.market(SELL, "0.2"),  # adds nothing
            2: lambda s: seen.append(s.portfolio.net_position(BTCUSDT.id)),
            3: lambda s: s.market(BUY, "0.24"),  # adds 401 USD
            4: lambda s: s.market(SELL, "0.3"),  # would add 201
        }
    )
    assert seen == [Decimal("-0.1")]
    assert [reason.split()[1] for reason in strategy.denials] == ["cap_exceeded"]
    assert strategy.portfolio.net_position(BTCUSDT.id) == Decimal("0.14")
    assert held_and_open(ledger) == (0, Decimal("1400.14"))
    (position,) = ledger.positions(state="open").items
    assert [(leg.symbol, leg.side) for leg in position.legs] == [("BTC/USDT:USDT", "buy")]


def test_two_closing_orders_when_only_one_can_close_then_the_second_is_asked() -> None:
    strategy, _ = run(
        {
            0: lambda s: s.market(BUY, "0.1"),
            1: lambda s: (s.limit(SELL, "0.1", 11_000), s.limit(SELL, "0.1", 12_000)),
        }
    )
    assert strategy.denials == ["ledger: cap_exceeded (portfolio); 1200 USD were asked for"]


def test_opposite_order_when_hedging_then_it_opens_unless_it_names_its_position() -> None:
    def both(strategy: Scripted) -> None:
        strategy.market(SELL, "0.1")
        (position,) = strategy.cache.positions_open(strategy_id=strategy.id)
        strategy.market(SELL, "0.1", position_id=position.id)

    strategy, ledger = run({0: lambda s: s.market(BUY, "0.1"), 1: both}, oms=OmsType.HEDGING)
    assert len(strategy.denials) == 1
    assert strategy.cache.positions_open(strategy_id=strategy.id) == []
    assert held_and_open(ledger) == (0, 0)


def test_market_when_its_value_is_not_linear_in_dollars_then_entries_are_refused() -> None:
    inverse = TestInstrumentProvider.xbtusd_bitmex()
    strategy, ledger = run({0: lambda s: s.market(BUY, "100")}, instrument=inverse, instrument_of_strategy=inverse)
    assert strategy.denials == ["ledger: BTC/USD.BITMEX is inverse: its value in USD is not linear in its price"]
    assert not ledger.positions().items


def test_budget_when_less_is_left_then_an_order_of_its_size_is_admitted() -> None:
    budgets = []

    def by_grant(strategy: Scripted) -> None:
        budgets.append(strategy.desk_budget(BTCUSDT.id, Decimal(1000)))
        if budgets[-1] > 10_001 * BTCUSDT.size_increment:
            strategy.market(BUY, str(BTCUSDT.make_qty(budgets[-1] / 10_001, round_down=True)))

    strategy, ledger = run({0: lambda s: s.market(BUY, "0.1"), 1: by_grant, 2: by_grant})
    assert strategy.denials == []
    assert 499 < budgets[0] < 500
    held, opened = held_and_open(ledger)
    assert 0 < held < 10  # what no order used, until it expires
    assert 1490 < opened < 1500


def test_modify_when_it_costs_more_than_is_left_then_the_order_stays() -> None:
    def modify(quantity: str) -> Any:
        return lambda s: s.modify_order(s.cache.orders_open(strategy_id=s.id)[0], BTCUSDT.make_qty(Decimal(quantity)))

    strategy, ledger = run({0: lambda s: s.limit(BUY, "0.1", 9_000), 1: modify("0.12"), 2: modify("0.2")})
    (order,) = strategy.cache.orders_open(strategy_id=strategy.id)
    assert order.quantity == BTCUSDT.make_qty(Decimal("0.12"))
    held, _ = held_and_open(ledger)
    assert 1080 <= held < 1082


def test_bracket_when_its_entry_is_granted_then_its_exits_are_not_asked() -> None:
    def bracket(quantity: str) -> Any:
        def submit(s: Scripted) -> None:
            orders = s.order_factory.bracket(
                BTCUSDT.id, BUY, BTCUSDT.make_qty(Decimal(quantity)),
                sl_trigger_price=BTCUSDT.make_price(9_000), tp_price=BTCUSDT.make_price(11_000),
            )  # fmt: skip
            s.submit_order_list(orders)

        return submit

    strategy, ledger = run({0: bracket("0.1"), 1: bracket("0.1")}, prices=[10_000] * 5 + [11_001] * 3)
    assert len(strategy.denials) == 3
    assert strategy.portfolio.is_completely_flat()
    assert held_and_open(ledger) == (0, 0)
