"""`DeskMixin` in the real freqtrade bot, trading at the paper venue: each of its traps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("freqtrade", reason="freqtrade is not installed here; `make bots` has it")

from freqtrade.enums import RunMode
from freqtrade.exceptions import ConfigurationError, ExchangeError
from freqtrade.freqtradebot import FreqtradeBot
from freqtrade.persistence import Trade
from freqtrade.rpc import RPC
from freqtrade.strategy import IStrategy

from ledger_sizer import Ledger
from ledger_sizer.adapters.freqtrade import DeskMixin
from ledger_sizer.adapters.freqtrade_book import written_down
from ledger_sizer.adapters.freqtrade_settings import DeskSettings
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.freqtrade_bots import VENUE, configuration, running
from tests.support.ledgers import assert_verified

# The framework's own dependencies warn.
pytestmark = pytest.mark.filterwarnings("ignore")

D = Decimal
BTC = "BTC/USDT"
Make = Callable[..., FreqtradeBot]


@pytest.fixture
def venue() -> Iterator[PaperServer]:
    with PaperServer() as server:
        yield server


@pytest.fixture
def control(venue: PaperServer) -> PaperControl:
    return PaperControl(venue.url, VENUE)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger on real time with a cap of 60 USD, less than the bot's stake of 100."""
    with Ledger.open(url) as opened:
        opened.set_cap(key="cap", cap=D(60))
        yield opened
        assert_verified(opened)


@pytest.fixture
def make(tmp_path: Path, venue: PaperServer, url: str, ledger: Ledger) -> Iterator[Make]:
    """Start a bot; the one before it is cleaned up first."""
    opened: list[Any] = []

    def start(
        body: str = "", *, folder: str = "bot", desk: dict[str, Any] | None = None, **changes: Any
    ) -> FreqtradeBot:
        stop()
        block = {"url": url, "bot": "a", "patience_seconds": 20, "repeat_seconds": 0, **(desk or {})}
        context = running(configuration(tmp_path / folder, venue, body, ledger_sizer=block, **changes))
        bot = context.__enter__()
        opened.append(context)
        return bot

    def stop() -> None:
        while opened:
            opened.pop().__exit__(None, None, None)

    yield start
    stop()


def orders(venue: PaperServer, state: str | None = None) -> list[Any]:
    """Return the orders at the exchange."""
    account = venue.venues.dialects[VENUE].exchange.accounts["paper"]
    return [order for order in account.orders.values() if state in (None, order.state)]


def held(ledger: Ledger) -> Decimal:
    return ledger.exposure().whole.held


def opened(ledger: Ledger) -> Decimal:
    return ledger.exposure().whole.open


def loops(bot: FreqtradeBot, times: int = 3) -> None:
    """Run the bot's loop: it enters, then it sees the fill, then it declares it."""
    for _ in range(times):
        bot.process()


# Sizing.


def test_enter_when_the_grant_is_smaller_then_the_stake_is_lowered_to_it(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    bot = make()
    loops(bot)
    assert [order.quantity for order in orders(venue)] == [D("0.0012")]
    assert (held(ledger), opened(ledger)) == (D(0), D(60))
    [position] = ledger.positions("main", state="open").items
    assert dict(position.tags) == {"bot": "a", "symbol": BTC, "venue": VENUE}
    assert (position.legs[0].symbol, position.legs[0].side) == (BTC, "buy")


@pytest.mark.parametrize(
    "body",
    [
        "    def custom_stake_amount(self, **kwargs):\n        return 200.0\n",
        "    def custom_stake_amount(self, **kwargs):\n        raise RuntimeError('a fault of the strategy')\n",
        "    def confirm_trade_entry(self, **kwargs):\n        raise RuntimeError('a fault of the strategy')\n",
    ],
    ids=["own stake", "stake raises", "confirm raises"],
)
def test_enter_when_the_strategy_has_callbacks_of_its_own_then_the_ledger_still_decides(
    make: Make, ledger: Ledger, venue: PaperServer, body: str
) -> None:
    make(body).process()
    assert [order.quantity for order in orders(venue)] == [D("0.0012")]


def test_enter_when_the_exchange_minimum_is_above_the_grant_then_no_order_is_sent(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    ledger.set_cap(key="small", cap=D(4))
    make().process()
    assert orders(venue) == []
    assert held(ledger) == 0


def test_enter_when_freqtrade_raises_the_stake_to_the_minimum_then_the_raised_stake_is_asked_for(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    bot = make()
    least = bot.exchange.get_min_pair_stake_amount(BTC, 50000.0, -0.5, 1.0)
    assert least is not None
    ledger.set_cap(key="small", cap=D(str(least)) - D("0.01"))
    bot.execute_entry(BTC, least * 0.9)
    assert orders(venue) == []
    ledger.set_cap(key="large", cap=D(60))
    assert bot.execute_entry(BTC, least * 0.9)
    assert held(ledger) >= D(str(least))


def test_enter_when_the_strategy_refuses_then_the_grant_is_given_back_at_once(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    make("    def confirm_trade_entry(self, **kwargs):\n        return False\n").process()
    assert (orders(venue), held(ledger)) == ([], D(0))


def test_enter_when_an_order_goes_to_market_then_its_slippage_is_held_too(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    types = {"entry": "market", "exit": "limit", "stoploss": "market", "stoploss_on_exchange": False}
    pricing = {"price_side": "other", "use_order_book": True, "order_book_top": 1}
    bot = make(order_types=types, entry_pricing=pricing, desk={"slippage": 0.2})
    bot.process()
    assert held(ledger) == 60
    assert sum(order.quantity for order in orders(venue)) * 50000 <= 50
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(0), D(50))


# Contracts.


@pytest.mark.parametrize("can_short", [False, True], ids=["long", "short"])
def test_enter_when_leveraged_then_stake_times_leverage_is_counted(
    make: Make, ledger: Ledger, venue: PaperServer, can_short: bool
) -> None:
    body = "    def leverage(self, **kwargs):\n        return 3.0\n"
    bot = make(body, trading_mode="futures", can_short=can_short)
    ledger.set_cap(key="cap-250", cap=D(250))
    loops(bot)
    assert opened(ledger) == 250
    [position] = ledger.positions("main", state="open").items
    assert (position.legs[0].symbol, position.legs[0].side) == ("BTC/USDT:USDT", "sell" if can_short else "buy")
    assert Trade.get_open_trades()[0].stake_amount == pytest.approx(250 / 3)


def test_force_enter_when_it_brings_its_own_leverage_then_that_is_counted(
    make: Make, ledger: Ledger, venue: PaperServer
) -> None:
    ledger.set_cap(key="cap-150", cap=D(150))
    bot = make(trading_mode="futures")
    RPC(bot)._rpc_force_entry("ETH/USDT:USDT", None, leverage=5.0)
    assert [order.quantity * order.price for order in orders(venue)] == [150]


def test_settle_when_a_market_is_named_by_thousands_then_coins_are_counted(make: Make, ledger: Ledger) -> None:
    bot = make(trading_mode="futures")
    RPC(bot)._rpc_force_entry("1000PEPE/USDT:USDT", None)
    bot.enter_positions = lambda _slots: 0
    loops(bot, 2)
    [position] = ledger.positions("main", state="open").items
    assert (position.quantity, opened(ledger)) == (D(6_000_000), D(60))


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
    with suppress(Exception):
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
        with suppress(Exception):
            rpc._rpc_force_entry(("BTC/USDT", "ETH/USDT", "SOL/USDT", "XRP/USDT")[number % 4], None)
        Trade.session.remove()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(force, range(10)))
    total = sum(order.quantity * order.price for order in orders(venue))
    assert D(50) <= total <= D(60)
    bot.enter_positions = lambda _slots: 0
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(0), total)


# Starting.


def test_settle_when_another_bot_has_positions_then_they_are_left_alone(make: Make, ledger: Ledger) -> None:
    ledger.adopt(key="b", quantity=D("0.0002"), price=D(50000), tags={"bot": "b", "symbol": BTC})
    bot = make()
    loops(bot)
    assert opened(ledger) == 60
    assert {position.tags["bot"] for position in ledger.positions("main", state="open").items} == {"a", "b"}


def test_start_when_it_is_a_dry_run_then_its_book_is_not_the_live_bots(make: Make, ledger: Ledger) -> None:
    loops(make(stake_amount=20))
    bot = make(runmode=RunMode.DRY_RUN, folder="dry", stake_amount=20, dry_run_wallet=1000)
    loops(bot)
    found = {position.tags["bot"]: position.quantity for position in ledger.positions("main", state="open").items}
    assert set(found) == {"a", "a-dry-run"}


def test_start_when_it_is_a_backtest_then_the_ledger_is_not_needed(tmp_path: Path, venue: PaperServer) -> None:
    config = configuration(tmp_path / "bot", venue)
    config["runmode"] = RunMode.BACKTEST

    class Mine(DeskMixin, IStrategy):
        timeframe = "1m"

        def populate_indicators(self, dataframe: Any, _metadata: Any) -> Any:
            return dataframe

    Mine(config).ft_bot_start()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (None, 'lacks "ledger_sizer"'),
        ({"url": "http://127.0.0.1:1"}, "ledger_sizer.bot is missing"),
        ({"url": "http://127.0.0.1:1", "bot": "a", "bott": 1}, "ledger_sizer.bott is unknown"),
        ({"url": "ftp://x", "bot": "a"}, "ftp"),
        ({"url": "http://127.0.0.1:1", "bot": "a", "patience_seconds": "1"}, "patience_seconds must be a number"),
        ({"url": "http://127.0.0.1:1", "bot": "a", "tags": {"bot": "b"}}, "tags must be an object"),
        ({"url": "http://127.0.0.1:1", "bot": "a", "usd_coins": ["USDC"]}, "lacks the stake currency"),
        ({"url": "http://127.0.0.1:1", "bot": "a", "portfolio": "no such name!"}, "portfolio"),
    ],
)
def test_start_when_a_setting_is_wrong_then_the_bot_ends_and_says_which(
    tmp_path: Path, venue: PaperServer, block: dict[str, Any] | None, said: str
) -> None:
    config = configuration(tmp_path / "bot", venue, **({} if block is None else {"ledger_sizer": block}))
    with pytest.raises(ConfigurationError, match=said):
        FreqtradeBot(config)


def test_start_when_the_ledger_is_away_then_the_bot_starts_and_buys_nothing(tmp_path: Path, venue: PaperServer) -> None:
    block = {"url": "http://127.0.0.1:1", "bot": "a"}
    with running(configuration(tmp_path / "bot", venue, ledger_sizer=block)) as bot:
        bot.process()
    assert orders(venue) == []


def test_subclass_when_the_mixin_stands_second_then_it_is_refused() -> None:
    with pytest.raises(TypeError, match="DeskMixin must come first"):
        type("Mine", (IStrategy, DeskMixin), {})


def test_settings_when_shown_then_the_api_key_is_not() -> None:
    config = {"stake_currency": "USDT", "ledger_sizer": {"url": "http://x", "bot": "a", "api_key": "secret-key"}}
    assert "secret-key" not in repr(DeskSettings.of(config))
    with pytest.raises(InvalidRequest):
        DeskSettings.of({"ledger_sizer": []})
