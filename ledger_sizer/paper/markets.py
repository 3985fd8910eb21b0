"""Defines the markets of the paper venues: a few pairs, with steps, minima and contract sizes per exchange.

The contract of PEPE counts thousands (`1000PEPE`) on Bybit and Binance, and contracts of 10,000,000 on OKX.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from ledger_sizer.model.units import exact_arithmetic

Venue = Literal["bybit", "binance", "okx"]
VENUES: tuple[Venue, ...] = ("bybit", "binance", "okx")
QUOTE = "USDT"
"""The money of all markets but coin-margined ones."""

PRICES = {
    "BTC": Decimal(50_000),
    "ETH": Decimal(2_500),
    "SOL": Decimal(150),
    "XRP": Decimal("0.5"),
    "LUNA": Decimal("0.0001"),
    "PEPE": Decimal("0.00001"),
    "1000PEPE": Decimal("0.01"),
}
"""Initial price of each asset, USDT per base unit. `1000PEPE` is the base of a contract; its price is set apart."""

INACTIVE = "LUNA"
"""The asset whose markets are suspended: they are listed, but orders are refused."""


@dataclass(frozen=True, slots=True)
class Market:
    """One market. Quantities in base units, prices in USDT.

    symbol: ccxt's unified name. id: the exchange's own. step, min_qty, max_qty: of a limit order; max_market_qty: of
    a market order. contract_size: base units per contract, 1 where the exchange counts base units. inverse: settled
    in the base asset; it can be held, but not ordered. Its quantities and contract size are USD. delivery_ms: when a
    dated future is delivered; else None. quote: what it is quoted and settled in, by name only: all money is USDT.
    """

    symbol: str
    id: str
    base: str
    kind: Literal["spot", "swap"]
    step: Decimal
    min_qty: Decimal
    max_qty: Decimal
    max_market_qty: Decimal
    min_notional: Decimal
    tick: Decimal
    contract_size: Decimal = Decimal(1)
    active: bool = True
    inverse: bool = False
    delivery_ms: int | None = None
    quote: str = "USDT"

    @property
    def money(self) -> str:
        """The asset in which margin, profit and loss are paid."""
        return self.base if self.inverse else QUOTE

    def worth(self, quantity: Decimal, price: Decimal) -> Decimal:
        """Return what a quantity is worth at a price, in `money`, with the quantity's sign."""
        return quantity / price if self.inverse else quantity * price

    def profit(self, quantity: Decimal, entry_price: Decimal, price: Decimal) -> Decimal:
        """Return the profit of a signed quantity since its entry, in `money`."""
        grown = self.worth(quantity, price) - self.worth(quantity, entry_price)
        return -grown if self.inverse else grown

    def average(self, first: Decimal, first_price: Decimal, second: Decimal, second_price: Decimal) -> Decimal:
        """Return the average entry price of two quantities on the same side, both above 0."""
        worth, quantity = self.worth(first, first_price) + self.worth(second, second_price), first + second
        return quantity / worth if self.inverse else worth / quantity


def markets_of(venue: Venue) -> tuple[Market, ...]:
    """Return all markets of one exchange.

    Spot and USDT perpetual of each asset, a dated USDT future of BTC, and one coin-margined perpetual.
    """
    with exact_arithmetic():
        found = [
            _market(venue, base, kind) for base in PRICES for kind in ("spot", "swap") if _lists(venue, base, kind)
        ]
        perpetual = next(market for market in found if market.symbol == "BTC/USDT:USDT")
    future = {"bybit": "BTCUSDT-27DEC30", "binance": "BTCUSDT_301227", "okx": "BTC-USDT-301227"}[venue]
    found.append(replace(perpetual, symbol="BTC/USDT:USDT-301227", id=future, delivery_ms=_DELIVERY_MS))
    inverse = {"bybit": "BTCUSD", "binance": "BTCUSD_PERP", "okx": "BTC-USD-SWAP"}[venue]
    usd = 1 if venue == "bybit" else 100
    return (
        *found,
        Market("BTC/USD:BTC", inverse, "BTC", "swap", Decimal(usd), Decimal(usd), Decimal(1_000_000 * usd),
               Decimal(100_000 * usd), Decimal(0), Decimal("0.1"), Decimal(usd), inverse=True),
    )  # fmt: skip


_DELIVERY_MS = 1_924_588_800_000
"""2030-12-27 08:00 UTC."""


def _lists(venue: Venue, base: str, kind: str) -> bool:
    """Whether an exchange lists a market of this asset: contracts of PEPE count thousands, but on OKX."""
    if base not in ("PEPE", "1000PEPE"):
        return True
    return (base == "PEPE") == (kind == "spot" or venue == "okx")


def _market(venue: Venue, base: str, kind: Literal["spot", "swap"]) -> Market:
    spot = kind == "spot"
    # The smallest order is worth about five cents to fifty, whatever the asset's price.
    unit = Decimal(1).scaleb(-PRICES[base].adjusted())
    step = unit * {"bybit": Decimal("0.1"), "binance": Decimal("0.1"), "okx": Decimal("0.001")}[venue]
    if not spot:
        step = unit * 10
    contract = unit * 100 if venue == "okx" and not spot else Decimal(1)
    return Market(
        symbol=f"{base}/USDT" if spot else f"{base}/USDT:USDT",
        id=(f"{base}-USDT" if spot else f"{base}-USDT-SWAP") if venue == "okx" else f"{base}USDT",
        base=base,
        kind=kind,
        step=step,
        min_qty=step,
        max_qty=unit * 10_000_000,
        max_market_qty=unit * 1_000_000,
        min_notional=Decimal(0) if venue == "okx" else Decimal(5),
        tick=PRICES[base].scaleb(-5).normalize() if PRICES[base] < 1 else Decimal("0.01"),
        contract_size=contract,
        active=base != INACTIVE,
    )
