"""Strategies of nautilus at its own simulated exchange, with the ledger of the backtest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nautilus_trader", reason="nautilus_trader is not installed; `make bots` has it")

from nautilus_trader.core.uuid import UUID4
from nautilus_trader.examples.algorithms.twap import TWAPExecAlgorithm
from nautilus_trader.model.enums import ContingencyType, OmsType, TimeInForce, TriggerType
from nautilus_trader.model.identifiers import ExecAlgorithmId
from nautilus_trader.model.orders import LimitOrder
from nautilus_trader.test_kit.providers import TestInstrumentProvider

from ledger_sizer import InvalidRequest, Ledger
from ledger_sizer.adapters.nautilus import ENDPOINT, DeskConfig, ledger_of
from tests.support.nautilus_engines import BTCUSDT, BUY, SELL, Gate, Scripted, engine_of, found_open


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


def test_modify_when_an_exit_outgrows_its_position_then_the_rest_is_asked() -> None:
    def exit_of(quantity: str) -> Any:
        return lambda s: s.modify_order(s.cache.orders_open(strategy_id=s.id)[0], BTCUSDT.make_qty(Decimal(quantity)))

    strategy, ledger = run(
        {
            0: lambda s: s.market(BUY, "0.05"),
            1: lambda s: s.limit(SELL, "0.05", 11_000),
            2: exit_of("0.06"),  # would open 110 USD
            3: exit_of("0.25"),  # would open 2,200
        }
    )
    (order,) = strategy.cache.orders_open(strategy_id=strategy.id)
    assert order.quantity == BTCUSDT.make_qty(Decimal("0.06"))
    assert held_and_open(ledger) == (110, Decimal("500.05"))


@pytest.mark.parametrize(("cap", "held"), [(700, 550), (501, 0)], ids=["granted", "cancelled"])
def test_exit_when_its_position_is_closed_by_another_order_then_it_is_asked_for_or_cancelled(
    cap: int, held: int
) -> None:
    strategy, ledger = run(
        {
            0: lambda s: s.market(BUY, "0.05"),
            1: lambda s: s.limit(SELL, "0.05", 11_000),  # not reduce-only: it would open a short position
            2: lambda s: s.close_all_positions(BTCUSDT.id),
        },
        cap=cap,
    )
    assert len(strategy.cache.orders_open(strategy_id=strategy.id)) == (1 if held else 0)
    assert held_and_open(ledger) == (held, 0)


@pytest.mark.parametrize(
    "order",
    [
        lambda s: s.order_factory.trailing_stop_market(
            BTCUSDT.id, BUY, BTCUSDT.make_qty(Decimal("0.2")), trailing_offset=Decimal(50)
        ),
        lambda s: s.order_factory.stop_market(
            BTCUSDT.id, BUY, BTCUSDT.make_qty(Decimal("0.2")), trigger_price=BTCUSDT.make_price(10_100)
        ),
        lambda s: s.order_factory.market(BTCUSDT.id, BUY, BTCUSDT.make_qty(2000), quote_quantity=True),
    ],
    ids=["trailing stop", "stop", "quantity in USD"],
)
def test_order_when_its_price_is_not_its_own_then_it_is_asked_at_what_is_known(order: Any) -> None:
    strategy, _ = run({0: lambda s: s.submit_order(order(s))})
    (reason,) = strategy.denials
    asked = Decimal(reason.split()[3])
    assert 2_000 <= asked <= 2_025


def test_run_when_repeated_on_the_ledger_of_an_earlier_one_then_nothing_is_granted_twice() -> None:
    strategy = Scripted({0: lambda s: s.market(BUY, "0.05"), 1: lambda s: s.close_all_positions(BTCUSDT.id)})
    with engine_of(strategy, prices=[10_000] * 4) as engine:
        ledger_of(engine, cap=Decimal(1500))
        engine.run()
        assert strategy.denials == []
        engine.reset()
        engine.run()
        assert "call ledger_of(engine)" in strategy.denials[0]
        ledger_of(engine, cap=Decimal(1500))
        engine.reset()
        strategy.heard.clear()
        engine.run()
        assert strategy.denials == []


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


def test_exit_when_linked_to_another_then_neither_is_asked() -> None:
    def exits(s: Scripted) -> None:
        names = [s.order_factory.generate_client_order_id() for _ in range(2)]
        for name, other, price in zip(names, reversed(names), (11_000, 12_000), strict=True):
            s.submit_order(
                LimitOrder(
                    s.trader_id, s.id, BTCUSDT.id, name, SELL, BTCUSDT.make_qty(Decimal("0.1")),
                    BTCUSDT.make_price(price), UUID4(), s.clock.timestamp_ns(),
                    contingency_type=ContingencyType.OCO, linked_order_ids=[other],
                )
            )  # fmt: skip

    strategy, _ = run({0: lambda s: s.market(BUY, "0.1"), 1: exits})
    assert strategy.denials == []


def test_order_of_an_algorithm_when_it_fills_in_parts_then_they_use_its_hold() -> None:
    def slices(s: Scripted) -> None:
        twap = {"horizon_secs": 4, "interval_secs": 1}
        s.market(BUY, "0.1", exec_algorithm_id=ExecAlgorithmId("TWAP"), exec_algorithm_params=twap)

    seen = []
    strategy = Scripted({1: slices, 3: lambda _: seen.append(held_and_open(ledger))})
    with engine_of(strategy, prices=[10_000] * 20) as engine:
        engine.add_exec_algorithm(TWAPExecAlgorithm())
        ledger = ledger_of(engine, cap=Decimal(1500))
        engine.run()
        assert strategy.portfolio.net_position(BTCUSDT.id) == Decimal("0.1")
    assert seen[0][0] > 0
    assert seen[0][1] > 0
    assert held_and_open(ledger) == (0, Decimal("1000.1"))
    assert len(ledger.positions()) == 1


def test_order_when_emulated_then_it_is_held_from_its_submission() -> None:
    seen = []
    steps = {
        0: lambda s: s.limit(BUY, "0.1", 9_500, emulation_trigger=TriggerType.BID_ASK),
        2: lambda _: seen.append(held_and_open(ledger)),
    }
    strategy = Scripted(steps)
    with engine_of(strategy, prices=[10_000] * 4 + [9_400] * 3) as engine:
        ledger = ledger_of(engine, cap=Decimal(1500))
        engine.run()
    assert seen == [(950, 0)]
    assert held_and_open(ledger) == (0, Decimal("940.1"))


def test_ledger_when_away_then_entries_are_denied_closes_pass_and_the_book_is_told_later() -> None:
    def cut(value: bool) -> Any:
        return lambda _: setattr(gate, "cut", value)

    steps = {
        0: lambda s: (s.market(BUY, "0.05"), s.limit(BUY, "0.03", 9_900), s.limit(BUY, "0.03", 9_000)),
        1: cut(True),
        2: lambda s: s.market(SELL, "0.02"),
        3: lambda s: s.market(BUY, "0.01"),
        5: lambda s: s.cancel_order(s.cache.orders_open(strategy_id=s.id)[-1]),
        6: cut(False),
        14: lambda s: s.market(BUY, "0.01"),
    }
    strategy = Scripted(steps)
    # The bid at 9,900 fills while the line is cut.
    with engine_of(strategy, prices=[10_000] * 4 + [9_899] + [10_000] * 20) as engine:
        ledger = ledger_of(engine, cap=Decimal(1500))
        gate = Gate(ledger)
        engine.kernel.msgbus.send(ENDPOINT, gate)
        engine.run()
        net = strategy.portfolio.net_position(BTCUSDT.id)
    assert [reason[:20] for reason in strategy.denials] == ["ledger: the ledger i"]
    assert net == Decimal("0.05") - Decimal("0.02") + Decimal("0.03") + Decimal("0.01")
    assert sum(one.quantity or 0 for one in ledger.positions(state="open")) == net
    assert ledger.exposure().whole.held == 0
    assert ledger.verify().ok


def test_start_when_nautilus_found_positions_of_no_strategy_then_no_more_than_these_stay_open() -> None:
    first, again = Scripted({0: lambda s: s.market(BUY, "0.05")}), Scripted({})
    with engine_of(first, prices=[10_000] * 3) as engine:
        ledger = ledger_of(engine, cap=Decimal(1500))
        engine.run()
        with engine_of(again, prices=[10_000] * 3) as restarted:
            found_open(restarted, "0.03")
            ledger_of(restarted).close()
            restarted.kernel.msgbus.send(ENDPOINT, ledger)
            restarted.run()
        assert held_and_open(ledger) == (0, Decimal("0.03") * 10_001)


def test_backtest_when_no_ledger_is_given_then_it_does_not_start() -> None:
    strategy = Scripted({}, config=DeskConfig(desk_ledger="sqlite:///ledger.db"))
    with engine_of(strategy, prices=[10_000]) as engine, pytest.raises(InvalidRequest, match="ledger_of"):
        engine.run()


def test_page_when_its_example_is_run_then_the_cap_holds(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parent.parent.parent / "docs" / "bots" / "nautilus.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[-1]
    exec(compile(code, str(page), "exec"), {"__name__": "example"})
    granted, highest = capsys.readouterr().out.splitlines()
    assert granted.startswith("7 granted, verified: True")
    assert 1_300 < Decimal(highest.split()[1]) <= 1_500
