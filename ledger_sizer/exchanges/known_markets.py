"""Instrument rules that need no exchange: spot and USDT-margined perpetual of BTC and ETH on three venues.

The figures come from the exchanges' public instrument endpoints (Binance `exchangeInfo`, Bybit `instruments-info`,
OKX `public/instruments`). Exchanges change them now and then; the replay and the demo's bots use this fixed set.
Quantities are in the exchange's own unit: base units, but contracts on OKX's perpetuals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.units import common_step

MarketKey = tuple[str, str]
"""(venue, coin), such as `("bybit", "BTC")`."""


@dataclass(frozen=True, slots=True)
class Market:
    """One coin on one venue: the two instruments of a delta-neutral position, and the step both accept (base units)."""

    venue: str
    coin: str
    spot: InstrumentInfo
    perp: InstrumentInfo
    step: Decimal = field(init=False)

    def __post_init__(self) -> None:
        spot_step = self.spot.base_units(self.spot.qty_step)
        perp_step = self.perp.base_units(self.perp.qty_step)
        object.__setattr__(self, "step", common_step(spot_step, perp_step))

    @property
    def key(self) -> MarketKey:
        """(venue, coin)."""
        return self.venue, self.coin


# venue, coin, kind: min_qty, max_qty, qty_step, min_notional, tick_size, contract_size
_RULES = """
binance BTC spot 0.00001 9000          0.00001    5   0.01 1
binance BTC perp 0.001   1000          0.001      100 0.1  1
binance ETH spot 0.0001  9000          0.0001     5   0.01 1
binance ETH perp 0.001   10000         0.001      20  0.01 1
bybit   BTC spot 0.001   100           0.0001     10  0.1  1
bybit   BTC perp 0.001   100           0.001      5   0.1  1
bybit   ETH spot 0.001   1000          0.00001    10  0.01 1
bybit   ETH perp 0.01    1000          0.01       5   0.01 1
okx     BTC spot 0.00001 9999999999    0.00000001 0   0.1  1
okx     BTC perp 0.01    100000000     0.01       0   0.1  0.01
okx     ETH spot 0.0001  999999999999  0.000001   0   0.01 1
okx     ETH perp 0.01    100000000     0.01       0   0.01 0.1
"""


def _markets() -> dict[MarketKey, Market]:
    instruments: dict[MarketKey, dict[str, InstrumentInfo]] = {}
    for line in _RULES.strip().splitlines():
        venue, coin, kind, *figures = line.split()
        symbol = f"{coin}/USDT" if kind == "spot" else f"{coin}/USDT:USDT"
        instruments.setdefault((venue, coin), {})[kind] = InstrumentInfo(symbol, *map(Decimal, figures))
    return {key: Market(*key, pair["spot"], pair["perp"]) for key, pair in instruments.items()}


MARKETS: Mapping[MarketKey, Market] = _markets()
"""Every market that a replay trades."""

VENUES = tuple(sorted({venue for venue, _ in MARKETS}))
