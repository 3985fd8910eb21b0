"""Errors of `DeskExchange`. Each is one of this package's and one of ccxt's, so that a bot handles it as it is used to.

OrderDenied        Denied, ccxt.InsufficientFunds         the ledger grants no money for the order
OrderEnded         WrongState, ccxt.InvalidOrder          the named wish was ended before
DeskUnavailable    Unavailable, ccxt.ExchangeNotAvailable the ledger is away: no order was sent
FateUnknown        Unavailable, ccxt.RequestTimeout       the wish was sent, and its order may be on its way
"""

from typing import TYPE_CHECKING

import ccxt

from ledger_sizer.model.errors import Denied, Unavailable, WrongState

if TYPE_CHECKING:
    from ledger_sizer.model.decisions import Decision


class OrderDenied(Denied, ccxt.InsufficientFunds):  # type: ignore[misc]
    """The ledger denied the order; it was not sent. `decision` says why, `reason` in one word."""

    def __reduce__(self) -> "tuple[type[OrderDenied], tuple[Decision]]":
        return OrderDenied, (self.decision,)


class OrderEnded(WrongState, ccxt.InvalidOrder):  # type: ignore[misc]
    """The hold of this wish was freed or filled before. Place a new order under a new name."""


class DeskUnavailable(Unavailable, ccxt.ExchangeNotAvailable):  # type: ignore[misc]
    """The ledger is away, so no order was sent. Place it again in a moment."""


class FateUnknown(Unavailable, ccxt.RequestTimeout):  # type: ignore[misc]
    """An order of this wish was sent and not answered. Ask again in a moment: it is looked up, never sent twice."""
