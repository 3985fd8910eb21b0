"""What happened to a paper account, as exchanges tell it afterwards: trades, deposits, transfers, funding payments."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from ledger_sizer.paper.markets import Market

Cause = Literal["order", "hand", "liquidation", "deleveraging"]
"""Why a trade happened: an order through the API, a person at the website, or the exchange itself."""

MovementKind = Literal["deposit", "withdrawal", "transfer", "funding"]


@dataclass(frozen=True, slots=True)
class Trade:
    """One trade. quantity: base units (USD of an inverse market), below 0 when sold. price: USDT per base unit."""

    id: int
    time_ms: int
    market: Market
    quantity: Decimal
    price: Decimal
    order_id: str
    fee: Decimal
    fee_asset: str
    cause: Cause

    @property
    def side(self) -> Literal["buy", "sell"]:
        """Whether it bought or sold."""
        return "buy" if self.quantity > 0 else "sell"


@dataclass(frozen=True, slots=True)
class Movement:
    """Units of an asset that came or went without a trade. quantity: below 0 when they went.

    source, target: wallets of a transfer. market: of a funding payment.
    """

    id: int
    time_ms: int
    kind: MovementKind
    asset: str
    quantity: Decimal
    source: str = ""
    target: str = ""
    market: Market | None = None


@dataclass(slots=True)
class Journal:
    """The trades and movements of one account, oldest first."""

    trades: list[Trade] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)

    def trade(
        self, time_ms: int, market: Market, quantity: Decimal, price: Decimal, cause: Cause, order_id: str = "",
        fee: Decimal = Decimal(0), fee_asset: str = "",
    ) -> None:  # fmt: skip
        """Add a trade. One without an order gets an order of its own."""
        number = len(self.trades) + 1
        name = order_id or f"9{number:06d}"
        self.trades.append(Trade(number, time_ms, market, quantity, price, name, fee, fee_asset or market.money, cause))

    def move(
        self, time_ms: int, kind: MovementKind, asset: str, quantity: Decimal, source: str = "", target: str = "",
        market: Market | None = None,
    ) -> None:  # fmt: skip
        """Add a movement."""
        number = len(self.movements) + 1
        self.movements.append(Movement(number, time_ms, kind, asset, quantity, source, target, market))
