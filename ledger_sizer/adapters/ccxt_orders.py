"""Reads ccxt's orders: what an order may open, what of it filled, and which order bears a client order id.

Everything here is exact: a float that ccxt computed is read by its shortest text. Quantities are coins and prices USD
per coin, unless they are called amounts: these are in the unit of the exchange's orders.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from ledger_sizer.exchanges.market_rules import buys_by_cost, contract_size_of, named_base_of
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.choices import MarketKind, Side
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.units import exact_arithmetic, parse_decimal

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OnExchange:
    """Call this method of the exchange."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OnLedger:
    """Call this method of the ledger."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Steps = Generator[OnExchange | OnLedger, Any, T]
"""What to call, one after the other; the generator gets the answers, or their errors, and returns a T."""


# --- client order ids --------------------------------------------------------------------------------------------

_ID_NAMES = (
    "clientOrderId", "clOrdId", "orderLinkId", "newClientOrderId", "clientOid", "client_oid", "client_order_id",
    "clientOrderID", "cloid", "cl_ord_id", "text",
)  # fmt: skip
"""The names under which ccxt's exchanges take a client order id."""

_DIGITS = 32
"""Letters a to f and digits: within the rules of Bybit (36 of A-Za-z0-9_-), Binance (36 of A-Za-z0-9_-./:), OKX (32 of
A-Za-z0-9), Kraken (32 hexadecimal digits) and all whose rules are wider."""
_DIGITS_AT = {"gate": 28, "gateio": 28}
_NUMBERS_AT = {
    "backpack": 9, "bitfinex": 13, "dydx": 9, "htx": 18, "huobi": 18, "lighter": 13, "ndax": 18, "woo": 18,
    "woofipro": 18,
}  # fmt: skip
"""Exchanges that take a number, and of how many decimal digits."""


def client_order_id(venue: str, *parts: object, owner: str = "") -> str:
    """Return the client order id of an intent at a venue: of the same parts always the same.

    owner: a text whose mark begins the id, so that the owner's orders are recognised (`is_owned`).
    """
    digest = sha256("\x1f".join((owner, *map(str, parts))).encode()).hexdigest()
    if venue in _NUMBERS_AT:
        lowest = 10 ** (_NUMBERS_AT[venue] - 1)
        return str(lowest + int(digest, 16) % (9 * lowest))
    kept = ((_mark(owner) if owner else "") + digest)[: _DIGITS_AT.get(venue, _DIGITS)]
    return f"0x{kept}" if venue == "hyperliquid" else kept


def is_owned(venue: str, client_id: str, owner: str) -> bool:
    """Whether a client order id has the owner's mark. A number has no room for one."""
    return venue not in _NUMBERS_AT and client_id.removeprefix("0x").startswith(_mark(owner))


def _mark(owner: str) -> str:
    return sha256(owner.encode()).hexdigest()[:8]


def given_client_id(params: Mapping[str, Any]) -> str | None:
    """Return the client order id that the caller gave, under whatever name; None without one."""
    return next((str(params[name]) for name in _ID_NAMES if params.get(name)), None)


def told_client_id(order: Mapping[str, Any]) -> str:
    """Return the client order id in an order of ccxt's; empty without one."""
    return str(order.get("clientOrderId") or "").removeprefix("t-")  # Gate puts "t-" before it


def find_steps(venue: str, symbol: str, client_id: str) -> Steps[dict[str, Any] | None]:
    """Ask an exchange for the order with this client order id. Returns None where it has none.

    Raises ccxt's errors where the exchange does not answer. Where it cannot be asked for an id, its open and its
    recent orders are searched.
    """
    import ccxt

    if venue.startswith("bybit"):
        for method in ("fetch_open_orders", "fetch_canceled_and_closed_orders"):
            found = yield OnExchange(method, (symbol, None, None, {"orderLinkId": client_id}))
            if order := _of_id(found, client_id):
                return order
        return None
    try:
        found = yield OnExchange("fetch_order", ("", symbol, {"clientOrderId": client_id}))
    except ccxt.OrderNotFound:
        return None
    except (ccxt.NotSupported, ccxt.ArgumentsRequired, ccxt.BadRequest, ccxt.InvalidOrder):
        found = None
    if found and (order := _of_id([found], client_id)):
        return order
    listed = yield from recent_orders(symbol, None)
    return _of_id(listed, client_id)


def recent_orders(symbol: str, since_ms: int | None) -> Steps[list[dict[str, Any]]]:
    """List the open and the recent orders of a market, as far as the exchange lists them. Raises ccxt's errors."""
    import ccxt

    listed: list[dict[str, Any]] = []
    methods = ("fetch_open_orders", "fetch_canceled_and_closed_orders", "fetch_closed_orders", "fetch_canceled_orders")
    refusal = None
    for method in methods:
        try:
            listed += yield OnExchange(method, (symbol, None if method == "fetch_open_orders" else since_ms))
        except ccxt.NotSupported as error:
            refusal = error
            continue
        if method == "fetch_canceled_and_closed_orders":
            return listed
    if not listed and refusal is not None:
        listed += yield OnExchange("fetch_orders", (symbol, since_ms))
    return listed


def _of_id(orders: Any, client_id: str) -> dict[str, Any] | None:
    wanted = client_id.removeprefix("t-")
    return next((order for order in orders or () if told_client_id(order) == wanted), None)


# --- what an order may open --------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What `create_order` was called with."""

    symbol: str
    kind: str
    side: Side
    amount: Any
    price: Any
    params: Mapping[str, Any]


class Size(NamedTuple):
    """What an order can open: an amount in the exchange's unit, at a price in USD per coin."""

    amount: Decimal
    price: Decimal
    rules: InstrumentInfo

    @property
    def usd(self) -> Decimal:
        """The most that it costs, USD, rounded up."""
        with exact_arithmetic():
            cost = self.amount * self.rules.unit * self.price
            return cost.quantize(Decimal("1e-8"), rounding="ROUND_UP")


def number(value: Any) -> Decimal | None:
    """Return a number of ccxt's or of its user exactly; None for none."""
    return None if value is None or value == "" else parse_decimal(str(value))


def unit_of(venue: str, market: Mapping[str, Any]) -> Decimal:
    """Return the coins in one unit of the exchange's orders. Raises `InvalidRequest`."""
    size = contract_size_of(venue, {**market, "contractSize": _text(market.get("contractSize"))})
    if size is None:
        raise InvalidRequest(f"{market['symbol']}: the exchange states no contract size", field="symbol")
    with exact_arithmetic():
        return size * split_factor(named_base_of(dict(market)))[0]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def kind_of(market: Mapping[str, Any]) -> MarketKind:
    """Return which kind of market it is. Raises `InvalidRequest` for options and what is no market of coins."""
    for kind in ("spot", "swap", "future"):
        if market.get(kind):
            return kind
    raise InvalidRequest(f"{market['symbol']} is neither spot nor a future: the ledger cannot count it", field="symbol")


def reduces(asked: Asked, kind: MarketKind) -> bool | None:
    """Whether an order can only close. None: it depends on what is open; False: it says that it opens."""
    params = asked.params
    if any(str(params.get(name)).lower() == "true" for name in ("reduceOnly", "reduce_only", "closePosition")):
        return True
    if kind == "spot":
        borrows = any(params.get(name) for name in ("marginMode", "isLeverage", "margin", "leverage"))
        return asked.side == "sell" and not borrows
    slot = str(params.get("positionSide") or params.get("posSide") or "").lower()
    slot = {"1": "long", "2": "short"}.get(str(params.get("positionIdx")), slot)
    if slot in ("long", "short"):
        return (slot == "long") == (asked.side == "sell")
    return False if params.get("hedged") else None


def size_of(client: Any, market: Mapping[str, Any], asked: Asked, ticker: Mapping[str, Any], slippage: Decimal) -> Size:
    """Return what an order can open. ticker: of its market, where the order needs it (`needs_ticker`), else empty.

    Raises `InvalidRequest` for a market whose value in USD is not its quantity x price, and for an order without a
    figure to count it by.
    """
    kind, amount = kind_of(market), number(asked.amount)
    if market.get("inverse") or (kind != "spot" and not market.get("linear")) or market.get("quote") not in DOLLARS:
        raise InvalidRequest(
            f"{asked.symbol}: only spot and linear contracts that are quoted in a dollar currency can be counted",
            field="symbol",
        )
    cost = _cost(client, market, asked, amount)
    named_price = number(asked.price) if asked.kind == "limit" or cost is not None else None
    price = _price(asked, ticker, slippage, named_price)
    factor = split_factor(named_base_of(dict(market)))[0]
    size = unit_of(client.id, market)
    with exact_arithmetic():
        if cost is not None:
            amount = (cost / price * factor / size).quantize(Decimal("1e-12"))
        if amount is None or amount <= 0:
            raise InvalidRequest(f"amount must be above 0, got {asked.amount!r}", field="amount")
        # One step is the whole order: it is granted as it is, or denied.
        rules = InstrumentInfo(
            asked.symbol, amount, amount, amount, contract_size=size / factor, multiplier=Decimal(factor),
            listed_as=f"{client.id}:{asked.symbol}", kind=kind, base=named_base_of(dict(market)),
            buys_by_cost=cost is not None,
        )  # fmt: skip
        return Size(amount, price / factor, rules)


def needs_ticker(asked: Asked) -> bool:
    """Whether the price of an order is the market's: a sell at a lower limit fills at the market's."""
    return asked.kind != "limit" or asked.side == "sell" or asked.price is None


def _price(asked: Asked, ticker: Mapping[str, Any], slippage: Decimal, named: Decimal | None) -> Decimal:
    """Return the highest price that counts: of the order, of its trigger, of the market."""
    best = ticker.get("ask" if asked.side == "buy" else "bid")
    last = ticker.get("last") or ticker.get("close")
    triggers = [asked.params.get(name) for name in ("triggerPrice", "stopPrice", "stopLossPrice", "takeProfitPrice")]
    found = [one for one in map(number, (best, last, *triggers)) if one]
    with exact_arithmetic():
        if found and asked.side == "buy":
            found = [max(found) * (1 + slippage)]
        if asked.kind == "limit" and asked.side == "buy" and named:
            found = []
        found += [named] if named else []
    if not found:
        raise InvalidRequest(f"{asked.symbol}: neither the order nor the ticker has a price", field="price")
    return max(found)


def _cost(client: Any, market: Mapping[str, Any], asked: Asked, amount: Decimal | None) -> Decimal | None:
    """Return the USD that a market buy of coins is given instead of an amount; None where it is given an amount."""
    params = asked.params
    if asked.side != "buy" or asked.kind != "market" or not market.get("spot"):
        return None
    named = number(params.get("cost")) or number(params.get("quoteOrderQty"))
    if named is not None or amount is None:
        return named
    requires = params.get("createMarketBuyOrderRequiresPrice", client.options.get("createMarketBuyOrderRequiresPrice"))
    if params.get("tgtCcy") == "quote_ccy" or requires is False:
        return amount
    price = number(asked.price)
    if price is not None and buys_by_cost(client, dict(market)):
        with exact_arithmetic():
            return amount * price
    return None


# --- what filled -------------------------------------------------------------------------------------------------

_FINAL = frozenset({"closed", "canceled", "cancelled", "expired", "rejected"})


class Seen(NamedTuple):
    """What an order shows: coins filled so far, at their average price; None where it does not say. final: it ended."""

    filled: Decimal | None
    price: Decimal | None
    final: bool


def seen_of(order: Mapping[str, Any], market: Mapping[str, Any], unit: Decimal) -> Seen:
    """Read an order of ccxt's. A fee that a spot buy paid in coins is not among the coins it filled."""
    amount, average = number(order.get("filled")), number(order.get("average")) or None
    status = order.get("status")
    final = status in _FINAL
    if amount is None or (not amount and status == "closed"):
        # Closed with nothing filled: the answer of an exchange that tells an order's figures later.
        return Seen(None, None, final=False)
    cost = number(order.get("cost"))
    with exact_arithmetic():
        if average is None and cost and amount and not market.get("contract"):
            average = cost / amount
        filled = amount * unit
        price = (average or number(order.get("price")) or Decimal(0)) * _named_units(market)
        if market.get("spot") and order.get("side") == "buy":
            filled -= _fee_in(order, market["base"])
        return Seen(filled, price or None, final)


def _named_units(market: Mapping[str, Any]) -> Decimal:
    """Return what turns a price of the base as it is named into one of a coin: 0.001 for 1000PEPE."""
    return 1 / Decimal(split_factor(named_base_of(dict(market)))[0])


def _fee_in(order: Mapping[str, Any], coin: str) -> Decimal:
    fees = order.get("fees") or [order.get("fee")]
    paid = [number(fee.get("cost")) for fee in fees if fee and fee.get("currency") == coin]
    return sum([one for one in paid if one], Decimal(0))
