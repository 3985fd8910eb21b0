"""Types of the net view: what a portfolio, or the desk, has of each coin over all its accounts."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import exact_arithmetic

_CENTS = Decimal("1E-8")


def net_of(bought: Decimal, sold: Decimal) -> Decimal:
    """Return the net of two sides, exact."""
    with exact_arithmetic():
        return bought - sold


def is_hedged(bought: Decimal, sold: Decimal, tolerance: Decimal) -> bool:
    """Whether two sides differ by no more than a part `tolerance` of the larger one."""
    with exact_arithmetic():
        return abs(bought - sold) <= tolerance * max(bought, sold)


@dataclass(frozen=True, slots=True)
class NetPlace:
    """One coin at one account, in coins.

    account: empty where the ledger does not know it. bought, sold: filled and open in the ledger. external: the part of
    the net that only the exchange showed. shown_long, shown_short: what the last run saw there; None where it did not.
    """

    venue: str
    account: str
    bought: Decimal
    sold: Decimal
    external: Decimal
    shown_long: Decimal | None = None
    shown_short: Decimal | None = None

    @property
    def net(self) -> Decimal:
        """Bought less sold."""
        return net_of(self.bought, self.sold)

    @property
    def shown(self) -> Decimal | None:
        """The net that the last run saw."""
        if self.shown_long is None or self.shown_short is None:
            return None
        return net_of(self.shown_long, self.shown_short)


@dataclass(frozen=True, slots=True)
class NetAsset:
    """One coin over all accounts, in coins.

    asset: empty for positions that name no coin. bought, sold, external: as in `NetPlace`. without_legs: coins of
    positions that name no legs, whose side and account are not known; they are in no other figure. price: average entry
    price of the side that the net is on, USD per coin. exchange_price: the last that the reconciliation saw; None where
    it saw none. shown: the net that the last run saw; None unless it saw every account of the coin. hedged: whether
    the sides are equal within `TRADING_DELTA_DRIFT_TOLERANCE`, in the ledger and as the last run saw them. naked_us:
    since when they are not, microseconds: the last fill or close that made them differ. accounts: where it is.
    """

    asset: str
    bought: Decimal
    sold: Decimal
    external: Decimal
    without_legs: Decimal
    price: Decimal | None
    exchange_price: Decimal | None
    shown: Decimal | None
    hedged: bool
    naked_us: int | None
    accounts: tuple[NetPlace, ...]

    @property
    def net(self) -> Decimal:
        """Bought less sold."""
        return net_of(self.bought, self.sold)

    @property
    def net_usd(self) -> Decimal | None:
        """The net at the positions' own price, USD."""
        return _usd(self.net, self.price)

    @property
    def exchange_usd(self) -> Decimal | None:
        """The net at the last price that the reconciliation saw, USD."""
        return _usd(self.net, self.exchange_price)

    @property
    def naked_usd(self) -> Decimal:
        """USD that are not hedged, without a sign: the larger of the ledger's net and what the last run saw."""
        if self.hedged:
            return Decimal(0)
        coins = max(abs(self.net), abs(self.shown or Decimal(0)))
        return _usd(coins, self.exchange_price or self.price) or Decimal(0)

    @property
    def naked_since(self) -> datetime | None:
        """Since when its sides differ; None while it is hedged."""
        return None if self.naked_us is None else from_us(self.naked_us)


@dataclass(frozen=True, slots=True)
class Net:
    """The coins of a portfolio, or of the desk (`*`): naked ones first, the largest first.

    run_us: when the run whose sight is shown began, microseconds; of several portfolios the oldest. None without one.
    """

    portfolio: str
    run_us: int | None
    assets: tuple[NetAsset, ...]

    @property
    def run_at(self) -> datetime | None:
        """When the run began whose sight is shown."""
        return None if self.run_us is None else from_us(self.run_us)

    @property
    def naked_usd(self) -> Decimal:
        """USD of all coins that are not hedged."""
        with exact_arithmetic():
            return sum((one.naked_usd for one in self.assets), Decimal(0))


def _usd(coins: Decimal, price: Decimal | None) -> Decimal | None:
    if price is None:
        return None
    with exact_arithmetic():
        return (coins * price).quantize(_CENTS).normalize() + 0
