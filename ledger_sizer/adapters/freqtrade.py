"""`DeskMixin`: a freqtrade strategy that asks the ledger before each entry, and declares its trades to it.

    from ledger_sizer.adapters.freqtrade import DeskMixin
    class Mine(DeskMixin, IStrategy): ...

It steps in where every entry passes, not in the strategy's callbacks: an entry may skip these (position adjustment, a
forced entry), a strategy may replace them, and freqtrade goes on with its own stake where one of them fails.

- `Wallets.validate_stake_amount`, the last step of sizing: asks for stake x leverage, and lowers the stake.
- `Exchange.create_order`: an entry order without a grant is not sent. Before it is sent the ledger is told that an
  order is out, so that its hold ends neither by time nor by a kill.
- `bot_loop_start`: declares the trades in freqtrade's database (`Desk.settle`). This alone makes the ledger right.
"""

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from freqtrade.enums import RunMode, TradingMode
from freqtrade.exceptions import ConfigurationError
from freqtrade.strategy import IStrategy

from ledger_sizer.adapters.connections import open_ledger
from ledger_sizer.adapters.desk import Desk
from ledger_sizer.adapters.freqtrade_entries import Entries
from ledger_sizer.adapters.freqtrade_settings import DeskSettings
from ledger_sizer.model.errors import LedgerError, Unavailable

log = logging.getLogger(__name__)

_LIVE = (RunMode.LIVE, RunMode.DRY_RUN)


class DeskMixin:
    """Stands before `IStrategy` in a strategy's bases. Does nothing in a backtest."""

    config: Any
    dp: Any
    wallets: Any
    custom_stake_amount: Any
    confirm_trade_entry: Any
    bot_loop_start: Any
    _desk_entries: Entries | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, IStrategy) and cls.__mro__.index(DeskMixin) > cls.__mro__.index(IStrategy):
            raise TypeError(f"write class {cls.__name__}(DeskMixin, IStrategy): DeskMixin must come first")

    def ft_bot_start(self, **kwargs: Any) -> None:
        """Connect to the ledger. Raises `ConfigurationError`, which ends the bot, for wrong settings."""
        # A copy of the strategy that only draws a chart has no wallets.
        if self.config.get("runmode") in _LIVE and self.wallets is not None:
            self._desk_begin()
        super().ft_bot_start(**kwargs)  # type: ignore[misc]

    def ft_bot_cleanup(self) -> None:
        """Declare the trades a last time, after freqtrade cancelled its orders."""
        super().ft_bot_cleanup()  # type: ignore[misc]
        entries, self._desk_entries = self._desk_entries, None
        if entries is not None:
            entries.settle()
            entries.desk.close()

    def _desk_begin(self) -> None:
        dry_run = self.config["runmode"] is RunMode.DRY_RUN
        exchange = self.dp._exchange
        try:
            settings = DeskSettings.of(self.config)
            _require_usable(settings)
            tags = settings.tags_of(self.config["exchange"]["name"], dry_run=dry_run)
            desk = Desk(
                settings.url, tags=tags, portfolio=settings.portfolio, api_key=settings.api_key,
                patience_seconds=settings.patience_seconds, repeat_seconds=settings.repeat_seconds,
            )  # fmt: skip
        except LedgerError as error:
            raise ConfigurationError(f"ledger_sizer: {error}") from error
        entries = Entries(desk, exchange, slippage=settings.slippage, dry_run=dry_run)
        self._desk_entries = entries
        noted = threading.local()
        self.custom_stake_amount = _noting_leverage(self.custom_stake_amount, noted)
        self.confirm_trade_entry = _giving_back(self.confirm_trade_entry, entries)
        self.bot_loop_start = _after(functools.partial(entries.settle, look=True), self.bot_loop_start)
        self.wallets.validate_stake_amount = _asking(self.wallets.validate_stake_amount, entries, noted)
        spot = self.config.get("trading_mode", TradingMode.SPOT) == TradingMode.SPOT
        exchange.create_order = _guarding(exchange.create_order, entries, spot=spot)
        log.info("The ledger at %s decides on the entries of bot %r", settings.shown_url, tags["bot"])


def _require_usable(settings: DeskSettings) -> None:
    """Raise what makes this ledger of no use for ever, such as a wrong key. One that is away may come back."""
    try:
        with open_ledger(settings.url, settings.api_key, patience_seconds=2) as ledger:
            ledger.exposure(settings.portfolio)
    except Unavailable as error:
        log.warning("The ledger at %s is away, no entries until it answers: %s", settings.shown_url, error)


def _noting_leverage(original: Callable[..., Any], noted: threading.local) -> Callable[..., Any]:
    """Return `custom_stake_amount`, which is told the leverage of a new trade, the sizing step after it is not."""

    @functools.wraps(original)
    def custom_stake_amount(*args: Any, **kwargs: Any) -> Any:
        noted.leverage = kwargs["pair"], kwargs["leverage"]
        return original(*args, **kwargs)

    return custom_stake_amount


def _asking(original: Callable[..., Any], entries: Entries, noted: threading.local) -> Callable[..., Any]:
    """Return `validate_stake_amount`, whose result is granted by the ledger; 0 stops the entry."""

    @functools.wraps(original)
    def validate_stake_amount(
        pair: str,
        stake_amount: float | None,
        min_stake_amount: float | None,
        max_stake_amount: float,
        trade_amount: float | None,
    ) -> float:
        stake = original(pair, stake_amount, min_stake_amount, max_stake_amount, trade_amount)
        told, noted.leverage = getattr(noted, "leverage", None), None
        if not stake:
            return 0
        leverage = told[1] if trade_amount is None and told and told[0] == pair else None
        return entries.ask(pair, stake, min_stake_amount or 0, leverage, new=trade_amount is None)

    return validate_stake_amount


def _guarding(original: Callable[..., Any], entries: Entries, *, spot: bool) -> Callable[..., Any]:
    """Return `create_order`, which sends an entry only under its grant."""

    @functools.wraps(original)
    def create_order(**kwargs: Any) -> Any:
        opens = kwargs["side"] == "buy" if spot else not kwargs.get("reduceOnly", False)
        return entries.send(original, kwargs) if opens else original(**kwargs)

    return create_order


def _giving_back(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    """Return `confirm_trade_entry`, after whose refusal the grant is given back at once."""

    @functools.wraps(original)
    def confirm_trade_entry(*args: Any, **kwargs: Any) -> Any:
        confirmed = original(*args, **kwargs)
        if not confirmed:
            entries.give_up(kwargs["pair"])
        return confirmed

    return confirm_trade_entry


def _after(first: Callable[[], Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback that begins with `first`."""

    @functools.wraps(original)
    def callback(*args: Any, **kwargs: Any) -> Any:
        first()
        return original(*args, **kwargs)

    return callback
