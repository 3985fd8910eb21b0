"""Types of an account snapshot: the positions and balances one exchange account showed at one moment.

A part that could not be fetched whole is None: unknown, never empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from ledger_sizer.exchanges.position_calls import is_of_family
from ledger_sizer.model.market_names import coins_of_symbol, split_factor
from ledger_sizer.model.units import exact_arithmetic, floor_to_step

_PRICE_DECIMALS = 18
_PRICE_UNITS = (Decimal(f"1E-{_PRICE_DECIMALS}"), Decimal("1E-36"))


def rounded_price(price: Decimal) -> Decimal | None:
    """Return a price with at most 18 decimals; one below that with at most 36, the most that a leg takes; else None.

    An average price need not end (152000 / 3), and an exchange may write more digits than it means.
    """
    if price > 0 and -price.as_tuple().exponent <= _PRICE_DECIMALS:  # type: ignore[operator]
        return price
    return next((floored for unit in _PRICE_UNITS if (floored := floor_to_step(price, unit)) > 0), None)


@dataclass(frozen=True, slots=True)
class VenuePosition:
    """One derivative position, in the exchange's unit of the base: one unit of `1000PEPE` is 1000 PEPE.

    symbol: ccxt's unified name, such as `BTC/USDT:USDT`. quantity: base units, above 0. entry_price, mark_price: USD
    per base unit, None where the exchange does not say. hedged: False where the exchange says that the symbol is in
    one-way mode, so that this is the net of all buys and sells. In hedge mode a symbol has two positions. multiplier:
    coins in one base unit; where it is not given, the factor in the symbol.

    The ledger counts coins: `coins`, and `coin_price`.
    """

    symbol: str
    side: Literal["long", "short"]
    quantity: Decimal
    entry_price: Decimal | None = None
    mark_price: Decimal | None = None
    hedged: bool = True
    multiplier: int | None = None

    @property
    def coins(self) -> Decimal:
        """The quantity in coins."""
        with exact_arithmetic():
            return self.quantity * self._factor

    @property
    def coin_price(self) -> Decimal | None:
        """The entry price, else the mark price, in USD per coin, rounded. None where the exchange says neither."""
        price = self.entry_price or self.mark_price
        if price is None:
            return None
        with exact_arithmetic():
            return rounded_price(price / self._factor)

    @property
    def _factor(self) -> int:
        return coins_of_symbol(self.symbol)[0] if self.multiplier is None else self.multiplier


@dataclass(frozen=True, slots=True)
class VenueBalance:
    """One asset of the account, in units of that asset. total = free + used.

    Where the asset's name has a factor, one unit is many coins: 1 of `1000SATS` is 1000 SATS. tradable: whether the
    exchange has an active spot market of it against a dollar. earns: the coin that it stands for while that coin is
    lent or staked (`BTC` of Binance's `LDBTC`); None where it is a coin itself.
    """

    asset: str
    free: Decimal
    used: Decimal
    total: Decimal
    tradable: bool = True
    earns: str | None = None

    @property
    def coin(self) -> str:
        """The coin: of `1000SATS` it is `SATS`; of coins that are lent, what they stand for."""
        return split_factor(self.asset if self.earns is None else self.earns)[1]

    @property
    def coins(self) -> Decimal:
        """The total in coins."""
        with exact_arithmetic():
            return self.total * split_factor(self.asset)[0]


@dataclass(frozen=True, slots=True)
class UnreadRow:
    """A position that the exchange lists and nobody can count: of an option, of a market that is not listed any more.

    symbol: its unified name where it is known, else the exchange's own. detail: why, as text.
    """

    symbol: str
    detail: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One account at one moment.

    venue: the exchange's id, the same as in position tags. account: its name in the settings. begun_us, taken_us: when
    the fetch began and ended. problems: the reason as text, for each part that is None and for what else went wrong.
    unread: positions that could not be counted, and coins whose balance could not be read; they are unknown, the others
    are not. not_asked: families of positions that the exchange has and that this account cannot be asked for, such as
    `option`. failed: families that were asked for in vain this time. prices: USD per coin, by coin, of the balances.
    unrealized_usd: profit and loss of the open positions that the balances do not include, USD.
    """

    venue: str
    account: str
    begun_us: int
    taken_us: int
    positions: tuple[VenuePosition, ...] | None
    balances: tuple[VenueBalance, ...] | None
    problems: tuple[str, ...] = ()
    unread: tuple[UnreadRow, ...] = ()
    not_asked: tuple[str, ...] = ()
    prices: Mapping[str, Decimal] = field(default_factory=dict)
    unrealized_usd: Decimal = Decimal(0)
    failed: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every part was fetched."""
        return self.positions is not None and self.balances is not None and not self.failed

    def covers(self, subject: str) -> bool:
        """Whether this tells of a market, or of a coin: what it does not show is then flat, else unknown."""
        families = () if "/" not in subject else (*self.not_asked, *self.failed)
        return not any(one.symbol == subject for one in self.unread) and not any(
            is_of_family(subject, family) for family in families
        )
