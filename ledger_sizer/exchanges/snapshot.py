"""Types of an account snapshot: the positions and balances one exchange account showed at one moment.

A part that could not be fetched whole is None: unknown, never empty.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal


@dataclass(frozen=True, slots=True)
class VenuePosition:
    """One derivative position. symbol: ccxt's unified name, such as `BTC/USDT:USDT`. quantity: base units, above 0.

    entry_price, mark_price: USD per base unit, None where the exchange does not say. hedged: False where the exchange
    says that the symbol is in one-way mode, so that this is the net of all buys and sells. In hedge mode a symbol has
    two positions.
    """

    symbol: str
    side: Literal["long", "short"]
    quantity: Decimal
    entry_price: Decimal | None = None
    mark_price: Decimal | None = None
    hedged: bool = True


@dataclass(frozen=True, slots=True)
class VenueBalance:
    """One asset of the account, in units of that asset. total = free + used."""

    asset: str
    free: Decimal
    used: Decimal
    total: Decimal


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One account at one moment.

    venue: the exchange's id, the same as in position tags. account: its name in the settings. begun_us, taken_us: when
    the fetch began and ended. problems: for each part that is None, the reason as text.
    """

    venue: str
    account: str
    begun_us: int
    taken_us: int
    positions: tuple[VenuePosition, ...] | None
    balances: tuple[VenueBalance, ...] | None
    problems: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every part was fetched."""
        return self.positions is not None and self.balances is not None
