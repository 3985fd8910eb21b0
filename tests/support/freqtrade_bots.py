"""Runs the real freqtrade bot in the test's process, at the paper venue: each `process()` is one round of its loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from freqtrade.configuration import Configuration
from freqtrade.enums import RunMode
from freqtrade.freqtradebot import FreqtradeBot
from freqtrade.persistence import Trade

from ledger_sizer import Ledger
from ledger_sizer.paper import PaperServer
from ledger_sizer.paper.client_config import ccxt_config

VENUE = "bybit"

_STRATEGY = """
from freqtrade.strategy import IStrategy
from ledger_sizer.adapters.freqtrade import DeskMixin

class Mine(DeskMixin, IStrategy):
    INTERFACE_VERSION = 3
    timeframe = "1m"
    minimal_roi = {{"0": 10}}
    stoploss = -0.5
    startup_candle_count = 1
    process_only_new_candles = False
    position_adjustment_enable = True
    can_short = {can_short}

    def populate_indicators(self, dataframe, metadata):
        return dataframe

    def populate_entry_trend(self, dataframe, metadata):
        dataframe.loc[:, "enter_short" if self.can_short else "enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe, metadata):
        return dataframe
"""


def configuration(folder: Path, venue: PaperServer, body: str = "", **changes: Any) -> dict[str, Any]:
    """Return the configuration of a bot whose strategy has `body` as further methods, and write its files.

    can_short: of the strategy; runmode: LIVE unless given. The rest of `changes` goes into the configuration.
    """
    can_short, runmode = changes.pop("can_short", False), changes.pop("runmode", RunMode.LIVE)
    futures = changes.get("trading_mode") == "futures"
    pricing = {"price_side": "same", "use_order_book": True, "order_book_top": 1}
    config = {
        "dry_run": runmode == RunMode.DRY_RUN, "max_open_trades": 4, "stake_currency": "USDT", "stake_amount": 100,
        "margin_mode": "isolated" if futures else "", "initial_state": "running", "force_entry_enable": True,
        "unfilledtimeout": {"entry": 10, "exit": 10, "unit": "minutes"},
        "entry_pricing": pricing, "exit_pricing": pricing, "pairlists": [{"method": "StaticPairList"}],
        "order_types": {"entry": "limit", "exit": "limit", "stoploss": "market", "stoploss_on_exchange": False},
        "exchange": {
            "name": VENUE, "key": "paper", "secret": "paper-secret", "enable_ws": False,
            "ccxt_config": ccxt_config(VENUE, venue.url),
            "pair_whitelist": [f"BTC/USDT{':USDT' if futures else ''}"],
        },
        **changes,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(_STRATEGY.format(can_short=can_short) + body)
    (folder / "config.json").write_text(json.dumps(config))
    arguments = {
        "config": [str(folder / "config.json")], "strategy": "Mine", "strategy_path": str(folder),
        "user_data_dir": str(folder), "db_url": f"sqlite:///{folder}/trades.sqlite",
    }  # fmt: skip
    made: dict[str, Any] = Configuration(arguments, runmode).get_config()
    return made


@contextmanager
def running(config: dict[str, Any]) -> Iterator[FreqtradeBot]:
    """Run a bot that the test drives. It is cleaned up at the end as after Ctrl-C."""
    bot = FreqtradeBot(config)
    try:
        bot.startup()
        yield bot
    finally:
        bot.cleanup()
        Trade.session.remove()


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
