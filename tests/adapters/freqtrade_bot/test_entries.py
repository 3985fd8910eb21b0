"""What an entry asks for, and how the bot starts."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("freqtrade", reason="freqtrade is not installed here; `make bots` has it")

from freqtrade.enums import RunMode
from freqtrade.exceptions import ConfigurationError
from freqtrade.freqtradebot import FreqtradeBot
from freqtrade.persistence import Trade
from freqtrade.rpc import RPC
from freqtrade.strategy import IStrategy

from ledger_sizer import Ledger
from ledger_sizer.adapters.freqtrade import DeskMixin
from ledger_sizer.adapters.freqtrade_settings import DeskSettings
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.paper import PaperServer
from tests.adapters.freqtrade_bot.conftest import Make
from tests.support.freqtrade_bots import VENUE, configuration, held, loops, opened, orders, running

# The framework's own dependencies warn.
pytestmark = pytest.mark.filterwarnings("ignore")

D = Decimal
BTC = "BTC/USDT"


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
    bot = make(order_types=types, entry_pricing=pricing, desk={"slippage": 0.5})
    bot.process()
    assert held(ledger) == 60
    assert sum(order.quantity for order in orders(venue)) * 50000 == 40
    loops(bot)
    assert (held(ledger), opened(ledger)) == (D(0), D(40))


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
