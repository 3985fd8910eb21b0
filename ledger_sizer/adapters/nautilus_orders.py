"""Reads nautilus's instruments, orders and positions: what an order opens, what that costs in USD, what the book has.

All of it is Decimal. Only the averages that nautilus keeps as floats are converted, once, where they are read.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from nautilus_trader.model.enums import InstrumentClass, OmsType, OrderSide, PositionSide, PriceType
from nautilus_trader.model.identifiers import PositionId
from nautilus_trader.model.instruments import Instrument
from nautilus_trader.model.orders import Order

from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.units import exact_arithmetic, floor_e8, usd, usd_ceil_e8

_OPTIONS = (InstrumentClass.OPTION, InstrumentClass.OPTION_SPREAD, InstrumentClass.BINARY_OPTION)
OPEN_SIDE = {OrderSide.BUY: PositionSide.LONG, OrderSide.SELL: PositionSide.SHORT}
"""The side of what an order of a side opens."""

ZERO = Decimal(0)


def market_of(instrument: Instrument) -> str:
    """Return the market's name in the ledger: ccxt's (`BTC/USDT:USDT`) where it has a base, else nautilus's symbol."""
    base = instrument.get_base_currency()
    if base is None:
        return str(instrument.id.symbol)
    pair = f"{base.code}/{instrument.quote_currency.code}"
    if instrument.instrument_class == InstrumentClass.SPOT:
        return pair
    contract = f"{pair}:{instrument.get_settlement_currency().code}"
    expires = getattr(instrument, "expiration_utc", None)
    return contract if expires is None else f"{contract}-{expires:%y%m%d}"


def venue_of(instrument: Instrument) -> str:
    """Return the value of the tag `venue`: nautilus's venue in lower case, as ccxt names exchanges."""
    return str(instrument.id.venue).lower()


def not_countable(instrument: Instrument) -> str | None:
    """Return why the exposure of a market is not coins x price in USD; None where it is."""
    if instrument.is_inverse:
        return f"{instrument.id} is inverse: its value in USD is not linear in its price"
    if instrument.instrument_class in _OPTIONS:
        return f"{instrument.id} is an option: its exposure is not its quantity x its price"
    quote, settle = instrument.quote_currency.code, instrument.get_settlement_currency().code
    if quote not in DOLLARS or settle not in DOLLARS:
        return f"{instrument.id} is quoted in {quote} and settled in {settle}; the ledger counts USD"
    return None


def coins_of(instrument: Instrument, quantity: Decimal) -> Decimal:
    """Return the coins (or shares, ounces) of a quantity of contracts."""
    with exact_arithmetic():
        coins: Decimal = quantity * instrument.multiplier.as_decimal()
    return coins


def order_quantity(order: Order, price: Decimal) -> Decimal:
    """Return an order's quantity in its instrument's units, also where it is given in the quote currency."""
    quantity: Decimal = order.quantity.as_decimal()
    return _average(quantity, price) if order.is_quote_quantity else quantity


def price_of(order: Order, cache: Any) -> Decimal | None:
    """Return the price at which an order is expected to fill, the higher where two are possible; None if unknown.

    A limit buy fills at its price or below, a limit sale at its price or above, where the market is.
    """
    own = order.price if order.has_price else order.trigger_price if order.has_trigger_price else None
    known = [] if own is None else [own.as_decimal()]
    if own is None or order.side == OrderSide.SELL:
        known.append(_market_price(order, cache))
    return max((price for price in known if price is not None), default=None)


def _market_price(order: Order, cache: Any) -> Decimal | None:
    first = PriceType.ASK if order.side == OrderSide.BUY else PriceType.BID
    for kind in (first, PriceType.LAST, PriceType.MID, PriceType.MARK):
        price = cache.price(order.instrument_id, kind)
        if price is not None:
            found: Decimal = price.as_decimal()
            return found
    return None


def notional_usd(instrument: Instrument, quantity: Decimal, price: Decimal) -> Decimal:
    """Return quantity x multiplier x price, USD, rounded up to 1e-8."""
    with exact_arithmetic():
        return usd(usd_ceil_e8(quantity * instrument.multiplier.as_decimal() * price))


def above(amount_usd: Decimal, fraction: Decimal) -> Decimal:
    """Return an amount raised by a fraction, rounded up to 1e-8 USD."""
    with exact_arithmetic():
        return usd(usd_ceil_e8(amount_usd * (1 + fraction)))


def below(amount_usd: Decimal, fraction: Decimal) -> Decimal:
    """Return the amount that `above` raises to at most `amount_usd`."""
    with exact_arithmetic():
        return usd(floor_e8(amount_usd / (1 + fraction)))


def part_of(amount_usd: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """Return `amount_usd` x part / whole, rounded down to 1e-8 USD."""
    with exact_arithmetic():
        return usd(floor_e8(amount_usd * part / whole))


def facing(order: Order, positions: Iterable[Any], position_id: PositionId | None, oms: OmsType) -> list[Any]:
    """Return the positions of its strategy and market that an order closes before it opens anything.

    position_id: the position it was submitted for.
    """
    against = [one for one in positions if one.side != OPEN_SIDE[order.side]]
    if position_id is not None:
        return [one for one in against if one.id == position_id]
    if oms == OmsType.HEDGING or (oms == OmsType.UNSPECIFIED and not all(map(_is_netted, against))):
        return []  # an order without a position opens one of its own
    return against


def _is_netted(position: Any) -> bool:
    """Whether nautilus nets this position: its name is then made of its market and its strategy."""
    return str(position.id) == f"{position.instrument_id}-{position.strategy_id}"


def filled_of(orders: Iterable[Order]) -> tuple[Decimal, Decimal]:
    """Return how much of some orders has filled, and at which average price (0 where nothing has)."""
    filled = [(one.filled_qty.as_decimal(), Decimal(str(one.avg_px))) for one in orders if one.filled_qty > 0]
    with exact_arithmetic():
        quantity = sum((one for one, _ in filled), ZERO)
        cost = sum((one * price for one, price in filled), ZERO)
    return quantity, _average(cost, quantity) if quantity else ZERO


Book = dict[str, tuple[Decimal, Decimal, str]]
"""Coins, average entry price in USD and side, by market."""


def book_of(positions: Iterable[tuple[Any, Instrument]]) -> Book:
    """Return what some open positions are together: long and short of a market both count."""
    sides: dict[str, dict[str, Decimal]] = {}
    costs: dict[str, Decimal] = {}
    with exact_arithmetic():
        for one, instrument in positions:
            market, side = market_of(instrument), "buy" if one.side == PositionSide.LONG else "sell"
            coins = coins_of(instrument, one.quantity.as_decimal())
            by_side = sides.setdefault(market, {})
            by_side[side] = by_side.get(side, ZERO) + coins
            costs[market] = costs.get(market, ZERO) + coins * Decimal(str(one.avg_px_open))
        sums = {market: sum(by_side.values(), ZERO) for market, by_side in sides.items()}
    return {
        market: (sums[market], _average(costs[market], sums[market]), max(sorted(by_side), key=by_side.__getitem__))
        for market, by_side in sides.items()
    }


def _average(cost: Decimal, coins: Decimal) -> Decimal:
    """Return a quotient with 18 decimals at most: one that does not terminate is no exact number."""
    with exact_arithmetic():
        average: Decimal = round(cost / coins, 18).normalize()
    return average
