"""What the sizers take in place of the ledger's own settings and position sizer: any object with these fields."""

from collections.abc import Callable
from decimal import Decimal
from typing import Protocol, TypeVar

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentLike

T = TypeVar("T")


class TradingLike(Protocol):
    """`TradingSettings`, or settings of a bot's own with its field."""

    @property
    def max_position_size_usd(self) -> Decimal:
        """Most one position may cost, USD."""


class DynamicSizingLike(Protocol):
    """`DynamicSizingSettings`, or settings of a bot's own with its fields."""

    @property
    def enabled(self) -> bool:
        """Whether the score scales the budget."""

    @property
    def min_allocation_fraction(self) -> Decimal:
        """Fraction of the maximum at score 0."""

    @property
    def max_allocation_fraction(self) -> Decimal:
        """Fraction of the maximum at score 1."""

    @property
    def max_portfolio_exposure(self) -> Decimal:
        """Cap, USD."""


class MatchingSizer(Protocol):
    """`PositionSizer`, or a sizer of a bot's own in its place."""

    def calculate_matching_quantity(
        self,
        *,
        price: Decimal,
        available_balance: Decimal,
        spot_instrument: InstrumentLike,
        perp_instrument: InstrumentLike,
    ) -> Decimal | None:
        """Return a quantity both legs accept, in base units; None where nothing valid fits."""


def setting_of(settings: object, name: str, check: Callable[[object, str], T]) -> T:
    """Return a checked field of a settings object of any class."""
    if not hasattr(settings, name):
        raise InvalidRequest(
            f"the settings ({type(settings).__name__}) have no {name}; give them that field", field=name
        )
    return check(getattr(settings, name), name)
