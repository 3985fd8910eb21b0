"""From ccxt's description of a market to the rules that sizing needs, in exact figures; or a reason why it cannot be.

ccxt states precision in three ways (`precisionMode`): as a step (TICK_SIZE), as decimal places, as significant digits.
Limits may be missing. A market order may have a lower maximum than a limit order: the lower one is taken, because a
granted quantity has to be accepted whichever way it is sent.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, Kind, MarketRules

UNBOUNDED_QTY = Decimal(10) ** 18
"""Stands for a maximum that the exchange does not state."""

USD_QUOTES = frozenset({"USD", "USDT", "USDC", "USDE", "FDUSD", "BUSD", "DAI", "TUSD", "USD1"})
"""Quote currencies that count as dollars."""


def market_rules_of(client: Any) -> list[MarketRules]:
    """The rules of every spot and swap market of a ccxt client that has loaded its markets, by symbol."""
    found = []
    for symbol in sorted(client.markets):
        market = client.markets[symbol]
        if market.get("spot") or market.get("swap"):
            found.append(_rules(client, market))
    return found


def _rules(client: Any, market: dict[str, Any]) -> MarketRules:
    kind: Kind = "spot" if market.get("spot") else "swap"
    # ccxt leaves `active` empty where the exchange does not say; only a plain False closes a market.
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
    amount, at_market = limits.get("amount") or {}, limits.get("market") or {}
    precision = market.get("precision") or {}
    most = [_figure(amount.get("max")), _figure(at_market.get("max")), _market_order_max(client.id, market)]
    max_qty = min([figure for figure in most if figure], default=UNBOUNDED_QTY)
    step = _step(client, market["symbol"], precision.get("amount"), max_qty)
    if step is None:
        raise InvalidRequest("the exchange states no quantity step")
    # Some exchanges list 0 or nothing as the minimum: then nothing below one step can be ordered anyway.
    least = max(_figure(amount.get("min")) or Decimal(0), _figure(at_market.get("min")) or Decimal(0), step)
    contract = _figure(market.get("contractSize")) if market.get("contract") else Decimal(1)
    if contract is None:
        raise InvalidRequest("the exchange states no contract size")
    tick = _step(client, market["symbol"], precision.get("price"), None)
    return InstrumentInfo(
        symbol=market["symbol"],
        min_qty=least,
        max_qty=max_qty,
        qty_step=step,
        min_notional=_figure((limits.get("cost") or {}).get("min")) or Decimal(0),
        tick_size=tick or Decimal("0.01"),
        contract_size=contract,
        listed_as=f"{client.id}:{market['symbol']}",
    )


def _figure(value: Any) -> Decimal | None:
    """A figure above 0, None where there is none. ccxt is set to hand out text; a float is inexact, so it raises."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        raise TypeError(f"a float came from ccxt: {value!r}")
    figure = Decimal(value)
    return figure if figure > 0 else None


def _market_order_max(venue: str, market: dict[str, Any]) -> Decimal | None:
    """The largest market order, in the exchange's quantity unit, where ccxt leaves it in the exchange's own answer."""
    info = market.get("info") or {}
    if venue == "bybit":
        lot = info.get("lotSizeFilter") or {}
        return _figure(lot.get("maxMktOrderQty") or lot.get("maxMarketOrderQty"))
    if venue == "okx" and market.get("swap"):  # of a spot market it is stated in USDT
        return _figure(info.get("maxMktSz"))
    return None


def _step(client: Any, symbol: str, precision: Any, max_qty: Decimal | None) -> Decimal | None:
    """The step that ccxt's precision means, in whichever mode the exchange states it."""
    from ccxt import DECIMAL_PLACES, SIGNIFICANT_DIGITS

    if precision is None:
        return None
    if client.precisionMode == DECIMAL_PLACES:
        return Decimal(1).scaleb(-int(precision))
    if client.precisionMode == SIGNIFICANT_DIGITS:
        if max_qty is None:
            return Decimal(1).scaleb(1 - int(precision))  # the price step between 1 and 10
        return _significant_step(client, symbol, max_qty)
    return _figure(precision)


def _significant_step(client: Any, symbol: str, max_qty: Decimal) -> Decimal:
    """With significant digits the step grows with the quantity: the one at the largest order fits all below it.

    Some such exchanges still cut quantities to decimal places, so ccxt's own rounding is asked.
    """
    if max_qty < UNBOUNDED_QTY:
        return _step_at(client, symbol, max_qty.adjusted())
    step = _step_at(client, symbol, 9)
    if step != _step_at(client, symbol, 0):
        raise InvalidRequest("quantities have significant digits and no maximum, so no one step fits")
    return step


def _step_at(client: Any, symbol: str, magnitude: int) -> Decimal:
    """The last digit that is kept of a quantity of about 10 ** magnitude."""
    digits = Decimal("1." + "123456789" * 5).scaleb(magnitude)
    kept = Decimal(client.amount_to_precision(symbol, f"{digits:f}")).normalize()
    return Decimal(1).scaleb(int(kept.as_tuple().exponent))
