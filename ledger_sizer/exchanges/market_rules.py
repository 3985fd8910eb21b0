"""Converts ccxt's description of a market to the rules that sizing needs, in exact decimals, or to a refusal reason.

ccxt states precision in three ways (`precisionMode`): as a step (TICK_SIZE), as decimal places, as significant digits.
Limits may be missing. The maximum of a market order may be below that of a limit order. The lower one is taken, because
the exchange has to accept a granted quantity as either order type.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, MarketRules
from ledger_sizer.model.units import exact_arithmetic, parse_decimal

UNBOUNDED_QTY = Decimal(10**18)
"""Used where the exchange states no maximum."""

USD_QUOTES = frozenset({"USD", "USDT", "USDC", "USDE", "FDUSD", "BUSD", "DAI", "TUSD", "USD1"})
"""Quote currencies that count as dollars."""


def market_rules_of(client: Any) -> list[MarketRules]:
    """Return the rules of every spot and swap market, by symbol. client: a ccxt client with its markets loaded."""
    found = []
    for symbol in sorted(client.markets):
        market = client.markets[symbol]
        if market.get("spot") or market.get("swap"):
            found.append(_rules(client, market))
    return found


def _rules(client: Any, market: dict[str, Any]) -> MarketRules:
    kind: MarketKind = "spot" if market.get("spot") else "swap"
    # ccxt sets `active` to None where the exchange does not say. Only False means closed.
    active = market.get("active") is not False
    symbol = market["symbol"]
    try:
        _require_usable(market)
        return MarketRules(client.id, symbol, kind, active, _instrument(client, market))
    except (InvalidRequest, InvalidOperation, KeyError, TypeError) as error:
        return MarketRules(client.id, symbol, kind, active, None, str(error) or type(error).__name__)


def _require_usable(market: dict[str, Any]) -> None:
    if market.get("inverse"):
        raise InvalidRequest("inverse contract: it is settled in its base asset, so its USD value is not linear")
    if market.get("swap") and not market.get("linear"):
        raise InvalidRequest("neither a linear nor an inverse contract (quanto): its USD value is not linear")
    if market.get("quote") not in USD_QUOTES:
        raise InvalidRequest(f"quoted in {market.get('quote')}, not in a dollar currency")


def _instrument(client: Any, market: dict[str, Any]) -> InstrumentInfo:
    limits = market.get("limits") or {}
    amount, market_order = limits.get("amount") or {}, limits.get("market") or {}
    precision = market.get("precision") or {}
    maxima = [
        _positive_decimal(amount.get("max")),
        _positive_decimal(market_order.get("max")),
        _market_order_max(client.id, market),
    ]
    max_qty = min([maximum for maximum in maxima if maximum], default=UNBOUNDED_QTY)
    step = _step(client, market["symbol"], precision.get("amount"), max_qty)
    if step is None:
        raise InvalidRequest("the exchange states no quantity step")
    # Some exchanges state 0 or no minimum. Nothing below one step can be ordered there either.
    min_qty = max(
        _positive_decimal(amount.get("min")) or Decimal(0),
        _positive_decimal(market_order.get("min")) or Decimal(0),
        step,
    )
    contract = _positive_decimal(market.get("contractSize")) if market.get("contract") else Decimal(1)
    if contract is None:
        raise InvalidRequest("the exchange states no contract size")
    tick = _step(client, market["symbol"], precision.get("price"), None)
    return InstrumentInfo(
        symbol=market["symbol"],
        min_qty=min_qty,
        max_qty=max_qty,
        qty_step=step,
        min_notional=_positive_decimal((limits.get("cost") or {}).get("min")) or Decimal(0),
        tick_size=tick or Decimal("0.01"),
        contract_size=contract,
        listed_as=f"{client.id}:{market['symbol']}",
    )


def _positive_decimal(value: Any) -> Decimal | None:
    """Parse a number above 0, else None. Raises `TypeError` for a float, which is inexact; ccxt is set to text."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        raise TypeError(f"a float came from ccxt: {value!r}")
    number = parse_decimal(value)
    return number if number > 0 else None


def _market_order_max(venue: str, market: dict[str, Any]) -> Decimal | None:
    """Return the largest market order in the exchange's quantity unit, where only its raw response (`info`) has it."""
    info = market.get("info") or {}
    if venue == "bybit":
        lot = info.get("lotSizeFilter") or {}
        return _positive_decimal(lot.get("maxMktOrderQty") or lot.get("maxMarketOrderQty"))
    if venue == "okx" and market.get("swap"):  # for spot markets it is in USDT
        return _positive_decimal(info.get("maxMktSz"))
    return None


def _step(client: Any, symbol: str, precision: Any, max_qty: Decimal | None) -> Decimal | None:
    """Convert ccxt's precision to a step, for each `precisionMode`."""
    from ccxt import DECIMAL_PLACES, SIGNIFICANT_DIGITS

    if precision is None:
        return None
    if client.precisionMode == DECIMAL_PLACES:
        return _last_digit(int(precision))
    if client.precisionMode == SIGNIFICANT_DIGITS:
        if max_qty is None:
            return _last_digit(int(precision) - 1)  # the price step between 1 and 10
        return _significant_step(client, symbol, max_qty)
    return _positive_decimal(precision)


def _significant_step(client: Any, symbol: str, max_qty: Decimal) -> Decimal:
    """Return the step at the largest order. It grows with the quantity, so this one is valid for all smaller orders.

    Some of these exchanges truncate to decimal places all the same, so ccxt's own rounding is used.
    """
    if max_qty < UNBOUNDED_QTY:
        return _step_at(client, symbol, max_qty.adjusted())
    step = _step_at(client, symbol, 9)
    if step != _step_at(client, symbol, 0):
        raise InvalidRequest("quantities have significant digits and no maximum, so no one step fits")
    return step


def _step_at(client: Any, symbol: str, magnitude: int) -> Decimal:
    """Return the last digit that ccxt keeps of a quantity of about 10 ** magnitude."""
    with exact_arithmetic():  # which also takes back what ccxt does to the thread's context
        digits = Decimal("1." + "123456789" * 5).scaleb(magnitude)
        kept = client.amount_to_precision(symbol, f"{digits:f}")
    with exact_arithmetic():
        return _last_digit(-int(parse_decimal(kept).normalize().as_tuple().exponent))


def _last_digit(places: int) -> Decimal:
    """Return one unit of the last of so many decimal places; below zero, of a place before the point."""
    return Decimal(f"1E{-places}")
