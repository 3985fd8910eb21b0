"""Strategies of the freqtrade rounds: they want to be in every market, always, and change their minds often.

`EagerAlone` stands by itself, `Eager` and `EagerShort` ask the ledger. Settings are in the configuration's `eager`.
"""

from datetime import timedelta

from freqtrade.strategy import IStrategy

from ledger_sizer.adapters.freqtrade import DeskMixin


class EagerAlone(IStrategy):
    """Enters at once unless `idle`, adds once, takes a part off once, leaves: after these seconds, 0 for never."""

    INTERFACE_VERSION = 3
    timeframe = "1m"
    minimal_roi = {"0": 10}
    stoploss = -0.5
    startup_candle_count = 1
    process_only_new_candles = False
    use_exit_signal = True
    position_adjustment_enable = True

    def populate_indicators(self, dataframe, metadata):
        return dataframe

    def populate_entry_trend(self, dataframe, metadata):
        eager = int(not self.config["eager"].get("idle", False))
        dataframe.loc[:, ["enter_long", "enter_short"]] = (eager * (not self.can_short), eager * self.can_short)
        return dataframe

    def populate_exit_trend(self, dataframe, metadata):
        return dataframe

    def leverage(self, *args, **kwargs):
        return self.config["eager"].get("leverage", 1.0)

    def adjust_trade_position(self, trade, current_time, **kwargs):
        if trade.has_open_orders:
            return None
        if self._is_due("add", trade, current_time) and trade.nr_of_successful_entries == 1:
            return self.config["eager"]["add_stake"], "more"
        if self._is_due("reduce", trade, current_time) and trade.nr_of_successful_exits == 0:
            return -trade.stake_amount / 2, "less"
        return None

    def custom_exit(self, pair, trade, current_time, *args, **kwargs):
        return "enough" if self._is_due("leave", trade, current_time) else None

    def _is_due(self, what, trade, current_time):
        seconds = self.config["eager"].get(what, 0)
        return seconds and current_time - trade.open_date_utc > timedelta(seconds=seconds)


class Eager(DeskMixin, EagerAlone):
    """The same with the ledger."""


class EagerShort(Eager):
    """Sells short instead."""

    can_short = True
