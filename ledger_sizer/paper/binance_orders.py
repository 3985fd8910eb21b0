"""Takes, lists, changes and cancels orders in Binance's formats.

A stop order of spot is an order like others; one of futures is an algo order, which has calls of its own, and becomes
an order when its price comes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account, Order, RequestRefused, Side, Slot, Trigger
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, Handler, decimal_of, text_of
from ledger_sizer.paper.quotes import limit_of, whole

SPOT_TYPES = ("LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT")
CONTRACT_TYPES = ("LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET")
_MARKET_TYPES = ("MARKET", "STOP_MARKET", "TAKE_PROFIT_MARKET", "STOP_LOSS")
"""Order types without a limit; `TAKE_PROFIT` has one in futures only."""
_SLOTS: Mapping[str, Slot] = {"LONG": "long", "SHORT": "short"}
_IN_FORCE = {"GTC": "GTC", "IOC": "IOC", "FOK": "FOK", "GTX": "PO"}


def kind_of(request: ExchangeRequest) -> Literal["spot", "swap"]:
    """Return which kind of market a path is about."""
    return "spot" if request.path.startswith("/api/") else "swap"


class BinanceOrders:
    """Binance's calls about orders. routes: handlers by (method, path).

    refused: code and message of an order that is not accepted, in a call about several.
    """

    def __init__(self, exchange: PaperExchange, refused: Callable[[RequestRefused], dict[str, Any]]) -> None:
        self._exchange, self._refused = exchange, refused
        self.routes: dict[tuple[str, str], Handler] = {
            ("POST", "/api/v3/order/cancelReplace"): self._replace,
            ("PUT", "/fapi/v1/order"): self._change,
            ("POST", "/fapi/v1/algoOrder"): self._create,
            ("GET", "/fapi/v1/algoOrder"): self._order,
            ("DELETE", "/fapi/v1/algoOrder"): self._cancel,
            ("GET", "/fapi/v1/openAlgoOrders"): self._open,
            ("GET", "/fapi/v1/allAlgoOrders"): self._all,
            ("DELETE", "/fapi/v1/algoOpenOrders"): self._cancel_all,
            ("DELETE", "/api/v3/openOrders"): self._cancel_all,
            ("DELETE", "/fapi/v1/allOpenOrders"): self._cancel_all,
            ("GET", "/fapi/v1/openOrder"): self._order,
            ("POST", "/fapi/v1/batchOrders"): self._create_several,
            ("DELETE", "/fapi/v1/batchOrders"): self._cancel_several,
        }
        for base in ("/api/v3", "/fapi/v1"):
            self.routes |= {
                ("POST", f"{base}/order"): self._create, ("GET", f"{base}/order"): self._order,
                ("DELETE", f"{base}/order"): self._cancel, ("GET", f"{base}/openOrders"): self._open,
                ("GET", f"{base}/allOrders"): self._all,
            }  # fmt: skip

    def _create(self, account: Account, request: ExchangeRequest) -> Any:
        arguments, kind = request.arguments, kind_of(request)
        market = self._exchange.market(str(arguments.get("symbol")), kind)
        side: Side = "buy" if arguments.get("side") == "BUY" else "sell"
        name = str(arguments.get("type"))
        at_market = name in _MARKET_TYPES or (name == "TAKE_PROFIT" and kind == "spot")
        if "quantity" not in arguments and "quoteOrderQty" in arguments:
            with exact_arithmetic():
                quantity = decimal_of(arguments, "quoteOrderQty") / self._exchange.prices[market.base]
                quantity = quantity // market.step * market.step
        else:
            quantity = decimal_of(arguments, "quantity")
        in_force = "PO" if name == "LIMIT_MAKER" else _IN_FORCE.get(str(arguments.get("timeInForce")), "GTC")
        order = self._exchange.place(
            account, market, side, "market" if at_market else "limit", quantity,
            price=None if at_market else decimal_of(arguments, "price"),
            slot=_SLOTS.get(str(arguments.get("positionSide")), "net"),
            reduce_only=str(arguments.get("reduceOnly", "")).lower() == "true",
            client_id=str(arguments.get("newClientOrderId", arguments.get("clientAlgoId", ""))),
            time_in_force=in_force, trigger=_trigger(arguments, side),
            isolated=kind == "swap" and account.is_isolated(market.symbol),
        )  # fmt: skip
        return _row(request)(order)

    def _create_several(self, account: Account, request: ExchangeRequest) -> Any:
        return self._several(account, request, self._create, json.loads(request.arguments.get("batchOrders", "[]")))

    def _cancel_several(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        name = "orderId" if "orderidlist" in arguments else "origClientOrderId"
        ids = json.loads(arguments.get("orderidlist", arguments.get("origClientOrderIdList", "[]")))
        orders = [{"symbol": arguments.get("symbol"), name: str(one)} for one in ids]
        return self._several(account, request, self._cancel, orders)

    def _several(
        self, account: Account, request: ExchangeRequest, act: Handler, orders: list[dict[str, Any]]
    ) -> list[Any]:
        """Do each order of a request by itself. An order that is not accepted is a row with code and message."""
        rows = []
        for item in orders:
            try:
                rows.append(act(account, replace(request, query="", body=json.dumps(item))))
            except RequestRefused as refused:
                rows.append(self._refused(refused))
        return rows

    def _named(self, account: Account, request: ExchangeRequest) -> Order:
        arguments = request.arguments
        ids = (arguments.get("orderId"), arguments.get("origClientOrderId"))
        if _is_algo(request):
            ids = (arguments.get("algoId"), arguments.get("clientAlgoId"))
        order = self._exchange.order(account, *ids)
        if order not in self._matching(account, request):
            raise RequestRefused("unknown_order", "no such order")
        return order

    def _matching(self, account: Account, request: ExchangeRequest) -> list[Order]:
        """Return the orders that a call is about: algo orders, or others."""
        wanted, kind, algo = request.arguments.get("symbol"), kind_of(request), _is_algo(request)
        return [
            order for order in account.orders.values()
            if order.market.kind == kind and wanted in (None, order.market.id)
            and (kind == "spot" or (order.trigger is not None if algo else not order.trigger or order.triggered))
        ]  # fmt: skip

    def _order(self, account: Account, request: ExchangeRequest) -> Any:
        return _row(request)(self._named(account, request))

    def _cancel(self, account: Account, request: ExchangeRequest) -> Any:
        order = self._named(account, request)
        self._exchange.cancel(order)
        return {**_row(request)(order), "code": "200", "msg": "success"} if _is_algo(request) else _row(request)(order)

    def _is_open(self, order: Order, request: ExchangeRequest) -> bool:
        return order.waits if _is_algo(request) else order.state == "open"

    def _open(self, account: Account, request: ExchangeRequest) -> Any:
        found = [one for one in self._matching(account, request) if self._is_open(one, request)]
        return [_row(request)(one) for one in found]

    def _all(self, account: Account, request: ExchangeRequest) -> Any:
        begin, end = whole(request, "startTime") or 0, whole(request, "endTime")
        first, limit = whole(request, "orderId") or 0, limit_of(request, 500, 1000)
        found = [
            one for one in self._matching(account, request)
            if begin <= one.created_ms and (end is None or one.created_ms <= end) and int(one.id) >= first
        ]  # fmt: skip
        found = found[:limit] if "startTime" in request.arguments or first else found[-limit:]
        return [_row(request)(one) for one in found]

    def _cancel_all(self, account: Account, request: ExchangeRequest) -> Any:
        found = [one for one in self._matching(account, request) if self._is_open(one, request)]
        for order in found:
            self._exchange.cancel(order)
        if kind_of(request) == "swap":
            return {"code": "200", "msg": "The operation of cancel all open order is done."}
        if not found:
            raise RequestRefused("unknown_order", "no open orders")
        return [_row(request)(one) for one in found]

    def _change(self, account: Account, request: ExchangeRequest) -> Any:
        order = self._named(account, request)
        quantity, price = decimal_of(request.arguments, "quantity"), decimal_of(request.arguments, "price")
        self._exchange.change(account, order, quantity, price, None)
        return _row(request)(order)

    def _replace(self, account: Account, request: ExchangeRequest) -> Any:
        """Cancel a spot order and place another in its place."""
        old = self._exchange.order(
            account, request.arguments.get("cancelOrderId"), request.arguments.get("cancelOrigClientOrderId")
        )
        self._exchange.cancel(old)
        answers = {"cancelResponse": _row(request)(old), "newOrderResponse": self._create(account, request)}
        return {"cancelResult": "SUCCESS", "newOrderResult": "SUCCESS", **answers}


def _is_algo(request: ExchangeRequest) -> bool:
    return "lgo" in request.path.rpartition("/")[2]


def _row(request: ExchangeRequest) -> Callable[[Order], dict[str, Any]]:
    return _algo_row if _is_algo(request) else _order_row


def _trigger(arguments: Mapping[str, Any], side: Side) -> Trigger | None:
    """Return what starts a stop order. A sale with a stop loss waits for a lower price, to take a profit a higher."""
    name = next((name for name in ("stopPrice", "triggerPrice") if arguments.get(name)), None)
    if name is None:
        return None
    profit = str(arguments.get("type")).startswith("TAKE_PROFIT")
    return Trigger(decimal_of(arguments, name), above=(side == "buy") != profit)


def _type(order: Order) -> str:
    """Return the order's type as Binance names it."""
    at_market, trigger, spot = order.kind == "market", order.trigger, order.market.kind == "spot"
    if trigger is None:
        return "LIMIT_MAKER" if spot and order.time_in_force == "PO" else order.kind.upper()
    if trigger.above == (order.side == "buy"):
        return ("STOP_LOSS" if at_market else "STOP_LOSS_LIMIT") if spot else "STOP_MARKET" if at_market else "STOP"
    plain = at_market if spot else not at_market
    return "TAKE_PROFIT" if plain else "TAKE_PROFIT_LIMIT" if spot else "TAKE_PROFIT_MARKET"


def _state(order: Order) -> str:
    if order.state == "open":
        return "PARTIALLY_FILLED" if order.filled else "NEW"
    if order.state == "canceled":
        return "EXPIRED" if order.expired else "CANCELED"
    return "FILLED"


def _order_row(order: Order) -> dict[str, Any]:
    cost, average = text_of(order.cost), text_of(order.average)
    row: dict[str, Any] = {
        "symbol": order.market.id, "orderId": int(order.id), "clientOrderId": order.client_id, "status": _state(order),
        "side": order.side.upper(), "type": _type(order), "origQty": text_of(order.quantity),
        "price": text_of(order.price or Decimal(0)), "executedQty": text_of(order.filled),
        "timeInForce": "GTX" if order.time_in_force == "PO" else order.time_in_force,
        "stopPrice": text_of(order.trigger.price) if order.trigger else "0", "time": order.created_ms,
        "updateTime": order.updated_ms,
    }  # fmt: skip
    if order.market.kind == "swap":
        # The order that an algo order becomes is a plain one.
        return {**row, "type": order.kind.upper(), "avgPrice": average, "cumQuote": cost,
                "reduceOnly": order.reduce_only, "origType": _type(order),
                "positionSide": "BOTH" if order.slot == "net" else order.slot.upper()}  # fmt: skip
    fill = {"price": average, "qty": text_of(order.filled), "commission": text_of(order.fee),
            "commissionAsset": order.fee_asset, "tradeId": int(order.id)}  # fmt: skip
    fills = [fill] if order.filled else []
    return {**row, "cummulativeQuoteQty": cost, "transactTime": order.updated_ms, "fills": fills}


def _algo_row(order: Order) -> dict[str, Any]:
    assert order.trigger is not None, "an algo order has a trigger"
    state = "NEW" if order.waits else "FINISHED" if order.triggered else "CANCELED"
    return {
        "algoId": int(order.id), "clientAlgoId": order.client_id, "algoType": "CONDITIONAL", "orderType": _type(order),
        "symbol": order.market.id, "side": order.side.upper(), "timeInForce": "GTC", "algoStatus": state,
        "positionSide": "BOTH" if order.slot == "net" else order.slot.upper(), "quantity": text_of(order.quantity),
        "triggerPrice": text_of(order.trigger.price), "price": text_of(order.price or Decimal(0)),
        "actualOrderId": order.id if order.triggered else "", "actualPrice": text_of(order.average),
        "workingType": "CONTRACT_PRICE", "closePosition": False, "reduceOnly": order.reduce_only,
        "createTime": order.created_ms, "updateTime": order.updated_ms,
        "triggerTime": order.updated_ms if order.triggered else 0,
    }  # fmt: skip
