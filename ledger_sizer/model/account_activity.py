"""What happened in an exchange account: fills, transfers, liquidations, funding payments; and what they explain."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import exact_arithmetic

EventKind = Literal["fill", "liquidation", "transfer", "deposit", "withdrawal", "funding"]
EventSide = Literal["buy", "sell", "in", "out"]


@dataclass(frozen=True, slots=True)
class AccountEvent:
    """One thing that happened in an account.

    happened_us: microseconds since the epoch. subject: the market's unified name, or the asset. quantity: coins, above
    0; of a funding payment units of its asset, which `subject` names. price: USD per coin, None where there is none.
    order: the exchange's id of the order of a fill. fee: units of `fee_asset`. detail: what else the exchange says.
    elsewhere: whether it happened in a wallet that is not compared with the ledger.
    """

    kind: EventKind
    happened_us: int
    subject: str
    side: EventSide
    quantity: Decimal
    price: Decimal | None = None
    id: str = ""
    order: str = ""
    fee: Decimal | None = None
    fee_asset: str = ""
    detail: str = ""
    elsewhere: bool = False

    @property
    def happened_at(self) -> datetime:
        """When it happened."""
        return from_us(self.happened_us)

    def change(self, coin: str) -> Decimal:
        """Return the change of the position, or of the balance of `coin`, in coins."""
        with exact_arithmetic():
            moved = self.quantity if self.side in ("buy", "in") else -self.quantity
            paid = (
                self.fee if self.fee is not None and self.fee_asset == coin and ":" not in self.subject else Decimal(0)
            )
            return moved - paid


@dataclass(frozen=True, slots=True)
class Activity:
    """What an account tells of one market or asset since a time: events by time, and what it did not tell, as text."""

    since_us: int
    events: tuple[AccountEvent, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DriftActivity:
    """The events of a drift's market since the last good run before it, and whether they explain it.

    difference: coins that the exchange shows beyond the ledger, bought above 0, sold below. told: the part of the
    events that the ledger's own fills and closes of that time account for. unexplained: what of the difference the rest
    does not explain; None where nothing is known. text: the explanation in a line.
    """

    drift_id: int
    since: datetime
    until: datetime
    difference: Decimal
    told: Decimal
    unexplained: Decimal | None
    text: str
    events: tuple[AccountEvent, ...]
    problems: tuple[str, ...]
