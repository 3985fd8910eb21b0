"""What becomes of orders: unfilled, partly filled, replaced, lost; outages, kills, races."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("freqtrade", reason="freqtrade is not installed here; `make bots` has it")

from freqtrade.exceptions import ExchangeError
from freqtrade.persistence import Trade
from freqtrade.rpc import RPC, RPCException

from ledger_sizer import Ledger
from ledger_sizer.adapters.freqtrade_book import written_down
from ledger_sizer.paper import PaperControl, PaperServer
from tests.adapters.freqtrade_bot.conftest import Make
from tests.support.freqtrade_bots import held, loops, opened, orders

# The framework's own dependencies warn.
pytestmark = pytest.mark.filterwarnings("ignore")

D = Decimal
BTC = "BTC/USDT"


# Orders that do not fill.


def test_cancel_when_an_entry_is_unfilled_then_its_hold_is_freed_without_a_callback(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    control.fills(at_once=False)
    bot = make()
    bot.process()
    bot.strategy.ft_check_timed_out = lambda *_given: True
    [position] = ledger.positions("main", state="held").items
    assert (position.until_known, held(ledger)) == (True, D(60))
    bot.enter_positions = lambda _slots: 0
    loops(bot)
    assert (orders(venue, "open"), held(ledger)) == ([], D(0))


def test_settle_when_an_entry_is_partly_filled_then_the_part_is_open_and_the_rest_held(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    control.fills(at_once=False)
    bot = make()
    bot.process()
    control.fill(orders(venue)[0].id, D("0.0005"))
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(35), D(25))
    bot.strategy.ft_check_timed_out = lambda *_given: True
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(0), D(25))


def test_replace_when_an_entry_order_is_repriced_then_one_order_is_counted(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    control.fills(at_once=False)
    bot = make()
    bot.process()
    [trade] = Trade.get_open_trades()
    [order] = trade.open_orders
    bot.handle_replace_order(None, order, trade, 49000.0, True, "replace", replacing=True)
    assert [order.price for order in orders(venue, "open")] == [D(49000)]
    bot.process()
    assert held(ledger) + opened(ledger) <= 60
    assert orders(venue, "open")[0].quantity * 49000 <= held(ledger)


def test_settle_when_two_orders_of_a_pair_are_out_then_the_end_of_one_leaves_the_hold_of_the_other(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    control.fills(at_once=False)
    bot = make()
    bot.enter_positions = lambda _slots: 0
    for _ in range(2):  # as forced entries that come at the same time do
        bot.execute_entry(BTC, 25.0)
    control.fill(orders(venue)[1].id)
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(25), D(25))
    control.cancel(orders(venue)[0].id)
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(0), D(25))


# More of a trade, less of a trade.


@pytest.mark.parametrize("forced", [False, True], ids=["by the strategy", "by hand"])
def test_add_when_a_position_grows_then_the_ledger_is_asked_for_the_addition(
    make: Make, ledger: Ledger, venue: PaperServer, forced: bool
) -> None:
    adjust = "    def adjust_trade_position(self, **kwargs):\n        return 40.0\n"
    bot = make("" if forced else adjust, stake_amount=40)
    bot.process()
    if forced:
        loops(bot)
        RPC(bot)._rpc_force_entry(BTC, None, stake_amount=40.0)
    loops(bot)
    assert sum(order.quantity for order in orders(venue)) == D("0.0012")
    assert opened(ledger) == 60


def test_reduce_when_a_part_is_sold_then_it_is_free_again(make: Make, ledger: Ledger, venue: PaperServer) -> None:
    adjust = """
    def adjust_trade_position(self, trade, **kwargs):
        return None if trade.nr_of_successful_exits else -trade.stake_amount / 2
"""
    bot = make(adjust)
    loops(bot, 5)
    assert opened(ledger) == 30


def test_settle_when_an_exit_is_partly_filled_then_what_is_sold_is_free(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    bot = make()
    bot.process()
    control.fills(at_once=False)
    RPC(bot)._rpc_force_exit("all")
    control.fill(orders(venue, "open")[0].id, D("0.0006"))
    loops(bot)
    assert opened(ledger) == 30


# Outages, kills, races.


def test_enter_when_the_ledger_is_away_then_nothing_is_bought_and_exits_go_on(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    bot = make()
    bot.process()
    bot.strategy._desk_entries.desk.close()
    with pytest.raises(RPCException, match="Failed to enter position"):
        RPC(bot)._rpc_force_entry("ETH/USDT", None)
    RPC(bot)._rpc_force_exit("all")
    assert [(order.market.symbol, order.side) for order in orders(venue)] == [(BTC, "buy"), (BTC, "sell")]


def test_create_order_when_nothing_was_granted_then_it_is_not_sent(make: Make, venue: PaperServer) -> None:
    bot = make()
    with pytest.raises(Exception, match="granted no entry"):
        bot.exchange.create_order(pair=BTC, ordertype="limit", side="buy", amount=0.001, rate=50000.0, leverage=1.0)
    assert orders(venue) == []


@pytest.mark.parametrize("arrives", [True, False], ids=["it arrived", "it never arrived"])
def test_create_order_when_its_answer_is_lost_then_it_is_held_until_its_fate_is_known(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl, arrives: bool
) -> None:
    control.fills(at_once=False)
    bot = make()
    control.fault("lost_answer" if arrives else "timeout", "order/create", seconds=0.3)
    with suppress(ExchangeError):
        bot.execute_entry(BTC, 100.0)
    assert (Trade.get_open_trades(), held(ledger)) == ([], D(60))
    bot.strategy._desk_entries._entries[0].look_at = 0.0
    bot.strategy._desk_entries.settle(look=True)
    assert held(ledger) == (60 if arrives else 0)


def test_settle_when_freqtrade_fails_after_its_order_then_the_hold_ends_only_with_the_order(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    control.fills(at_once=False)
    bot = make()
    fees, bot.exchange.get_fee = bot.exchange.get_fee, lambda **_given: 1 / 0
    with pytest.raises(ZeroDivisionError):
        bot.execute_entry(BTC, 100.0)
    bot.exchange.get_fee = fees
    bot.enter_positions = lambda _slots: 0
    loops(bot)
    assert (Trade.get_open_trades(), held(ledger)) == ([], D(60))
    control.cancel(orders(venue)[0].id)
    bot.strategy._desk_entries._entries[0].look_at = 0.0
    loops(bot, 2)
    assert held(ledger) == 0


@pytest.mark.parametrize("arrives", [True, False], ids=["after the order", "before the order"])
def test_restart_when_killed_at_the_order_then_the_hold_ends_only_with_the_order(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl, arrives: bool
) -> None:
    class Killed(BaseException):
        """As SIGKILL: nothing that follows runs."""

    control.fills(at_once=False)
    bot = make()
    sends = bot.exchange._api.create_order

    def sends_and_dies(*given: Any) -> None:
        if arrives:
            sends(*given)
        raise Killed

    bot.exchange._api.create_order = sends_and_dies
    with pytest.raises(Killed):
        bot.process()
    bot.strategy._desk_entries = None  # no last settlement either
    bot = make()
    bot.enter_positions = lambda _slots: 0
    bot.process()
    assert held(ledger) == (60 if arrives else 0)
    if arrives:
        control.cancel(orders(venue)[0].id)
        bot.strategy._desk_entries._entries[0].look_at = 0.0
        bot.process()
        assert held(ledger) == 0


def test_restart_when_killed_with_an_order_out_then_its_hold_follows_the_order(
    make: Make, ledger: Ledger, venue: PaperServer, control: PaperControl
) -> None:
    control.fills(at_once=False)
    bot = make()
    bot.process()
    bot.strategy._desk_entries = None  # as SIGKILL: no last settlement
    control.fill(orders(venue)[0].id, D("0.0005"))
    bot = make()
    bot.process()
    assert (held(ledger), opened(ledger)) == (D(35), D(25))
    control.fill(orders(venue)[0].id)
    loops(bot, 2)
    assert (held(ledger), opened(ledger)) == (D(0), D(60))
    assert written_down() == []


def test_restart_when_positions_are_open_then_they_stay_counted_once(make: Make, ledger: Ledger) -> None:
    make().process()
    for _ in range(2):
        loops(make())
    assert (held(ledger), opened(ledger)) == (D(0), D(60))


def test_force_enter_when_ten_come_at_once_then_the_cap_holds(make: Make, ledger: Ledger, venue: PaperServer) -> None:
    bot = make(stake_amount=25)
    rpc = RPC(bot)

    def force(number: int) -> None:
        with suppress(RPCException):  # denied
            rpc._rpc_force_entry(("BTC/USDT", "ETH/USDT", "SOL/USDT", "XRP/USDT")[number % 4], None)
        Trade.session.remove()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(force, range(10)))
    total = sum(order.quantity * order.price for order in orders(venue))
    assert D(50) <= total <= D(60)
    bot.enter_positions = lambda _slots: 0
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(0), total)
