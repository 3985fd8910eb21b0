"""Defines accounts, positions and orders of a paper exchange. Knows nothing of HTTP.

Quantities are base units and money is USDT, as Decimal.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple, get_args

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.journal import Journal
from ledger_sizer.paper.markets import QUOTE, Market

LEVERAGE = 10
"""A derivative position needs margin of its worth / leverage, in the market's money. This is the leverage of a market
for which none was set."""

Side = Literal["buy", "sell"]
Wallet = Literal["spot", "swap", "delivery", "margin", "funding", "earn"]
WALLETS: tuple[Wallet, ...] = get_args(Wallet)
"""Wallets of an account. A unified one has one of the first four kinds; `earn` has coins that were lent out."""
Slot = Literal["net", "long", "short"]
"""Position slot: a one-way account has one position per market (`net`), a hedge-mode account one per direction."""


def now_ms() -> int:
    """Return the present time, Unix milliseconds."""
    return int(time.time() * 1000)


class RequestRefused(Exception):
    """The venue refuses a request. reason: one of a few words that each exchange maps to its own code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Position:
    """A derivative position. quantity: base units (USD of an inverse market), negative for a short.

    entry_price: average, USDT per base unit.
    """

    quantity: Decimal
    entry_price: Decimal


class Trigger(NamedTuple):
    """What starts a stop order: a price at or above (`above`), or at or below, USDT. label: its own name."""

    price: Decimal
    above: bool
    label: str = ""

    def reached(self, price: Decimal) -> bool:
        """Whether this price starts the order."""
        return price >= self.price if self.above else price <= self.price


@dataclass(slots=True)
class Order:
    """One order and its fills: `filled` base units for `cost` USDT, `fee` in `fee_asset`.

    time_in_force: GTC, IOC, FOK, or PO (post only). trigger: of a stop order, which waits until `triggered`.
    isolated: whether it changes the position with margin of its own. expired: it was cancelled because nobody could
    fill it as it asked for.
    """

    id: str
    client_id: str
    market: Market
    side: Side
    kind: Literal["market", "limit"]
    quantity: Decimal
    price: Decimal | None
    slot: Slot
    reduce_only: bool
    created_ms: int
    updated_ms: int
    time_in_force: str = "GTC"
    trigger: Trigger | None = None
    triggered: bool = False
    isolated: bool = False
    expired: bool = False
    state: Literal["open", "filled", "canceled"] = "open"
    filled: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    fee: Decimal = Decimal(0)
    fee_asset: str = QUOTE

    @property
    def waits(self) -> bool:
        """Whether it is a stop order whose price has not come yet."""
        return self.state == "open" and self.trigger is not None and not self.triggered

    @property
    def average(self) -> Decimal:
        """Average fill price; 0 before the first fill."""
        with exact_arithmetic():
            return (self.cost / self.filled).normalize() if self.filled else Decimal(0)


@dataclass(slots=True)
class Account:
    """One account.

    wallets: units by asset, below 0 for a debt; the same wallet for all markets where the exchange unifies them.
    isolated: positions with margin of their own, beside those in `positions`; of a spot market: margin trades at OKX.
    options: contracts by the exchange's own name. leverages: by symbol, LEVERAGE where none was set. isolated_markets,
    isolated_all: where new orders make isolated positions, by symbol (Binance) and everywhere (Bybit). fee_asset: pays
    the fees while there is enough of it. blank_sides: list the empty side of a hedged market with blank fields (Bybit).
    journal: what happened. stale_copy: what the owner sees while stale data is served.
    """

    api_key: str
    secret: str
    passphrase: str
    hedged: bool
    wallets: dict[str, defaultdict[str, Decimal]]
    positions: dict[tuple[str, Slot], Position] = field(default_factory=dict)
    isolated: dict[tuple[str, Slot], Position] = field(default_factory=dict)
    options: dict[str, Decimal] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    leverages: dict[str, Decimal] = field(default_factory=dict)
    isolated_markets: set[str] = field(default_factory=set)
    isolated_all: bool = False
    fee_asset: str | None = None
    blank_sides: bool = False
    journal: Journal = field(default_factory=Journal)
    stale_copy: "Account | None" = None

    def visible(self) -> "Account":
        """Return what its owner sees: this account, or an old copy while stale data is served."""
        return self.stale_copy or self

    def wallet(self, kind: Wallet) -> defaultdict[str, Decimal]:
        """Return the wallet of this kind."""
        unified = self.wallets["spot"] is self.wallets["swap"]
        if unified and kind in ("delivery", "margin"):
            kind = "spot"
        return self.wallets.setdefault(kind, defaultdict(Decimal))

    def leverage(self, symbol: str) -> Decimal:
        """Return the leverage of a market."""
        return self.leverages.get(symbol, Decimal(LEVERAGE))

    def is_isolated(self, symbol: str) -> bool:
        """Whether new orders of a market make isolated positions."""
        return self.isolated_all or symbol in self.isolated_markets

    def book(self, *, isolated: bool) -> "dict[tuple[str, Slot], Position]":
        """Return the positions of one margin mode."""
        return self.isolated if isolated else self.positions

    def held(self) -> list[tuple[str, Slot, bool, Position]]:
        """Return all positions, sorted: symbol, slot, whether it is isolated, position."""
        books = ((False, self.positions), (True, self.isolated))
        return sorted(
            ((symbol, slot, isolated, one) for isolated, book in books for (symbol, slot), one in book.items()),
            key=lambda found: found[:3],
        )

    def reserved(self, kind: str) -> defaultdict[str, Decimal]:
        """Return the units that open orders of one kind of market block, by asset."""
        used: defaultdict[str, Decimal] = defaultdict(Decimal)
        with exact_arithmetic():
            for order in self.orders.values():
                left = order.quantity - order.filled
                if order.state != "open" or order.market.kind != kind:
                    continue
                if kind == "swap":
                    if not order.reduce_only:
                        used[QUOTE] += left * (order.price or 0) / self.leverage(order.market.symbol)
                elif order.side == "sell":
                    used[order.market.base] += left
                else:
                    used[QUOTE] += left * (order.price or 0)
        return used
