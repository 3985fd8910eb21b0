"""Converts ccxt's description of a market to the rules that sizing needs, in exact decimals, or to a refusal reason.

ccxt states precision in three ways (`precisionMode`): as a step (TICK_SIZE), as decimal places, as significant digits.
Limits may be missing. The maximum of a market order may be below that of a limit order. The lower one is taken, because
the exchange has to accept a granted quantity as either order type.

A multiplied contract (1000PEPE) counts its base as the exchange names it: one contract of contract size 1 is 1000 PEPE.
The multiplier is the factor in the name of the base.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, MarketRules
from ledger_sizer.model.market_names import parse_symbol, split_factor
from ledger_sizer.model.units import exact_arithmetic, parse_decimal

UNBOUNDED_QTY = Decimal(10**18)
"""Used where the exchange states no maximum."""

_AMOUNT_IN_BASE = frozenset({"apex", "deribit", "lighter", "weex"})
"""Exchanges whose orders and positions are in units of the base (of an inverse contract: in dollars), although ccxt
states a contract size too (read in ccxt 4.5.90)."""

_MARKET_BUY_TAKES_COST = frozenset({"btse", "cryptocom", "toobit"})
"""Exchanges where ccxt takes the cost of a spot market buy, and has no option that says so (read in ccxt 4.5.90)."""
_MARKET_BUY_TAKES_AMOUNT = frozenset({"woo"})
"""Exchanges whose option in ccxt says that a spot market buy takes its cost, where it takes an amount too."""


def market_rules_of(client: Any) -> list[MarketRules]:
    """Return the rules of every spot, swap and future market, by symbol. client: a ccxt client with loaded markets."""
    found = []
    for symbol in sorted(client.markets):
        market = client.markets[symbol]
        if market.get("spot") or market.get("swap") or market.get("future"):
            found.append(rules_of(client, market))
    return found


def contract_size_of(venue: str, market: dict[str, Any]) -> Decimal | None:
    """Return the units of the base, as the exchange names it, in one unit of its order quantity. None: not stated."""
    if not market.get("contract") or venue in _AMOUNT_IN_BASE:
        return Decimal(1)
    return _positive_decimal(market.get("contractSize"))


def named_base_of(market: dict[str, Any]) -> str:
    """Return the base as the exchange names it. ccxt writes Hyperliquid's kPEPE as KPEPE and keeps its name apart."""
    base, name = market["base"], market.get("baseName")
    if isinstance(name, str) and name.upper() == base and split_factor(name)[0] != 1:
        return name
    return str(base)


def _kind_of(market: dict[str, Any]) -> MarketKind:
    return "spot" if market.get("spot") else "swap" if market.get("swap") else "future"


def rules_of(client: Any, market: dict[str, Any]) -> MarketRules:
    """Return the rules of one market, or why they cannot be used. client: a ccxt client whose `number` is `str`."""
    kind = _kind_of(market)
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
    if not market.get("spot") and not market.get("linear"):
        raise InvalidRequest("neither a linear nor an inverse contract (quanto): its USD value is not linear")
    if market.get("quote") not in DOLLARS:
        raise InvalidRequest(f"quoted in {market.get('quote')}, not in a dollar currency")


def _instrument(client: Any, market: dict[str, Any]) -> InstrumentInfo:
    limits = market.get("limits") or {}
    amount, market_order = limits.get("amount") or {}, limits.get("market") or {}
    precision = market.get("precision") or {}
    maxima = [
        _positive_decimal(amount.get("max")),
        _positive_decimal(market_order.get("max")),
        *_order_maxima(client.id, market),
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
    contract = contract_size_of(client.id, market)
    if contract is None:
        raise InvalidRequest("the exchange states no contract size")
    tick = _step(client, market["symbol"], precision.get("price"), None)
    base = named_base_of(market)
    said = {} if parse_symbol(market["symbol"]) else {"quote": market["quote"], "settle": market.get("settle")}
    return InstrumentInfo(
        symbol=market["symbol"],
        min_qty=min_qty,
        max_qty=max_qty,
        qty_step=step,
        min_notional=_positive_decimal((limits.get("cost") or {}).get("min")) or Decimal(0),
        tick_size=tick or Decimal("0.01"),
        contract_size=contract,
        listed_as=f"{client.id}:{market['symbol']}",
        kind=_kind_of(market),
        base=base,
        **said,
        multiplier=Decimal(split_factor(base)[0]),
        max_notional=_max_notional(client.id, market),
        buys_by_cost=buys_by_cost(client, market),
    )


def _positive_decimal(value: Any) -> Decimal | None:
    """Parse a number above 0, else None. Raises `TypeError` for a float, which is inexact; ccxt is set to text."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        raise TypeError(f"a float came from ccxt: {value!r}")
    number = parse_decimal(value)
    return number if number > 0 else None


def _order_maxima(venue: str, market: dict[str, Any]) -> list[Decimal | None]:
    """Return the largest orders in the exchange's quantity unit, where only its raw response (`info`) has them."""
    info = market.get("info") or {}
    if venue == "bybit":
        lot = info.get("lotSizeFilter") or {}
        names = ("maxMktOrderQty", "maxMarketOrderQty", "maxLimitOrderQty")
        return [_positive_decimal(lot.get(name)) for name in names]
    if venue == "okx":
        # `maxMktSz` of a spot market is in USDT: see `_max_notional`.
        return [_positive_decimal(info.get(name)) for name in ("maxLmtSz", *(["maxMktSz"] * (not market.get("spot"))))]
    return []


def _max_notional(venue: str, market: dict[str, Any]) -> Decimal | None:
    """Return the largest order value in quote currency (USD); None where the exchange states none."""
    maxima = [_positive_decimal(((market.get("limits") or {}).get("cost") or {}).get("max"))]
    if venue == "okx":
        info = market.get("info") or {}
        maxima += [_positive_decimal(info.get(name)) for name in ("maxLmtAmt", "maxMktAmt")]
    return min([maximum for maximum in maxima if maximum], default=None)


def buys_by_cost(client: Any, market: dict[str, Any]) -> bool:
    """Whether ccxt takes the cost of a market buy here instead of an amount.

    Its option `createMarketBuyOrderRequiresPrice` says so, in the options or in those of `createOrder`: it wants a
    price to compute the cost from. It concerns spot markets. OKX has an option of its own for the unit.
    """
    if not market.get("spot") or client.id in _MARKET_BUY_TAKES_AMOUNT:
        return False
    if client.id == "okx":
        return bool(client.options.get("tgtCcy") == "quote_ccy")
    of_orders = client.options.get("createOrder")
    for options in (client.options, of_orders if isinstance(of_orders, dict) else {}):
        stated = options.get("createMarketBuyOrderRequiresPrice")
        if stated is not None:
            return stated is True
    return client.id in _MARKET_BUY_TAKES_COST


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
