"""Takes, lists, changes and cancels orders in Bybit's format, stop orders among them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account, Order, RequestRefused, Slot, Trigger
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, Handler, decimal_of, require_plain, text_of
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.quotes import limit_of, whole

IDX: Mapping[Slot, int] = {"net": 0, "long": 1, "short": 2}
_SLOTS: Mapping[int, Slot] = {0: "net", 1: "long", 2: "short"}
_STATES = {"open": "New", "filled": "Filled", "canceled": "Cancelled"}
_IN_FORCE = {"GTC": "GTC", "IOC": "IOC", "FOK": "FOK", "PostOnly": "PO"}


class BybitOrders:
    """Bybit's calls about orders. routes: handlers by (method, path).

    refused: code and message of an order that is not accepted, in a call about several.
    """

    def __init__(
        self, exchange: PaperExchange, success: Callable[[Any], Any], category_of: Callable[[Market], str],
        refused: Callable[[RequestRefused], dict[str, Any]],
    ) -> None:  # fmt: skip
        self._exchange, self._success, self._category_of, self._refused = exchange, success, category_of, refused
        self.routes: Mapping[tuple[str, str], Handler] = {
            ("POST", "/v5/order/create"): self._create,
            ("POST", "/v5/order/cancel"): self._cancel,
            ("POST", "/v5/order/cancel-all"): self._cancel_all,
            ("POST", "/v5/order/amend"): self._amend,
            ("POST", "/v5/order/create-batch"): lambda account, request: self._several(account, request, self._create),
            ("POST", "/v5/order/cancel-batch"): lambda account, request: self._several(account, request, self._cancel),
            ("GET", "/v5/order/realtime"): self._realtime,
            ("GET", "/v5/order/history"): self._history,
        }

    def _create(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        require_plain(arguments, "stopLoss", "takeProfit", "trailingStop")
        kind: Literal["spot", "swap"] = "spot" if arguments.get("category") == "spot" else "swap"
        market = self._exchange.market(str(arguments.get("symbol")), kind)
        side: Literal["buy", "sell"] = "buy" if arguments.get("side") == "Buy" else "sell"
        is_market = arguments.get("orderType") == "Market"
        quantity = decimal_of(arguments, "qty")
        if kind == "spot" and is_market and side == "buy" and arguments.get("marketUnit") != "baseCoin":
            with exact_arithmetic():
                quantity = quantity / self._exchange.prices[market.base] // market.step * market.step
        order = self._exchange.place(
            account, market, side, "market" if is_market else "limit", quantity,
            price=None if is_market else decimal_of(arguments, "price"),
            slot=_SLOTS.get(int(arguments.get("positionIdx", 0)), "net"),
            reduce_only=str(arguments.get("reduceOnly", "")).lower() == "true",
            client_id=str(arguments.get("orderLinkId", "")),
            time_in_force=_IN_FORCE.get(str(arguments.get("timeInForce", "GTC")), "GTC"),
            trigger=trigger_of(arguments, self._exchange.prices[market.base]),
            isolated=kind == "swap" and account.is_isolated(market.symbol),
        )  # fmt: skip
        return self._success({"orderId": order.id, "orderLinkId": order.client_id})

    def _several(self, account: Account, request: ExchangeRequest, act: Handler) -> Any:
        """Do each order of a request by itself: what became of it is told beside its row."""
        document, rows, codes = request.document, [], []
        for item in document.get("request", []):
            one = replace(request, body=json.dumps({"category": document.get("category"), **item}))
            names = {name: str(item.get(name, "")) for name in ("symbol", "orderId", "orderLinkId")}
            try:
                rows.append({**names, **act(account, one)["result"]})
                codes.append({"code": 0, "msg": "OK"})
            except RequestRefused as refused:
                rows.append(names)
                codes.append(self._refused(refused))
        return {**self._success({"list": rows}), "retExtInfo": {"list": codes}}

    def _named(self, account: Account, request: ExchangeRequest) -> Order:
        order = self._exchange.order(account, request.arguments.get("orderId"), request.arguments.get("orderLinkId"))
        if order.state != "open":
            raise RequestRefused("unknown_order", f"order {order.id} is {order.state}")
        return order

    def _cancel(self, account: Account, request: ExchangeRequest) -> Any:
        order = self._named(account, request)
        self._exchange.cancel(order)
        return self._success({"orderId": order.id, "orderLinkId": order.client_id})

    def _cancel_all(self, account: Account, request: ExchangeRequest) -> Any:
        found = [order for order in self._matching(account, request) if order.state == "open"]
        for order in found:
            self._exchange.cancel(order)
        return self._success(
            {"list": [{"orderId": one.id, "orderLinkId": one.client_id} for one in found], "success": "1"}
        )

    def _amend(self, account: Account, request: ExchangeRequest) -> Any:
        order, arguments = self._named(account, request), request.arguments
        changed = {name: decimal_of(arguments, name) for name in ("qty", "price", "triggerPrice") if name in arguments}
        self._exchange.change(account, order, changed.get("qty"), changed.get("price"), changed.get("triggerPrice"))
        return self._success({"orderId": order.id, "orderLinkId": order.client_id})

    def _matching(self, account: Account, request: ExchangeRequest) -> list[Order]:
        arguments = request.arguments
        category, stops = arguments.get("category"), arguments.get("orderFilter") in ("StopOrder", "tpslOrder")
        return [
            order for order in account.orders.values()
            if self._category_of(order.market) == category
            and arguments.get("orderId", order.id) == order.id
            and arguments.get("orderLinkId", order.client_id) == order.client_id
            and arguments.get("symbol", order.market.id) == order.market.id
            and arguments.get("settleCoin", order.market.quote) == order.market.quote
            and ("orderFilter" not in arguments or stops == (order.trigger is not None))
        ]  # fmt: skip

    def _realtime(self, account: Account, request: ExchangeRequest) -> Any:
        """List open orders; one that is asked for by its name, whatever became of it."""
        by_name = "orderId" in request.arguments or "orderLinkId" in request.arguments
        found = [one for one in self._matching(account, request) if by_name or one.state == "open"]
        return self._listed(found, request)

    def _history(self, account: Account, request: ExchangeRequest) -> Any:
        wanted = request.arguments.get("orderStatus")
        begin, end = whole(request, "startTime") or 0, whole(request, "endTime")
        return self._listed([
            one for one in self._matching(account, request)
            if one.state != "open" and wanted in (None, _STATES[one.state])
            and begin <= one.created_ms and (end is None or one.created_ms <= end)
        ], request)  # fmt: skip

    def _listed(self, found: list[Order], request: ExchangeRequest) -> Any:
        rows = [_order(order) for order in reversed(found)]
        begin, limit = whole(request, "cursor") or 0, limit_of(request, 20, 50)
        cursor = str(begin + limit) if begin + limit < len(rows) else ""
        return self._success({
            "category": request.arguments.get("category"), "list": rows[begin : begin + limit],
            "nextPageCursor": cursor,
        })  # fmt: skip


def trigger_of(arguments: Mapping[str, Any], price: Decimal) -> Trigger | None:
    """Return what starts a stop order, None for another order. Without a direction it is the one of the distance."""
    if not arguments.get("triggerPrice"):
        return None
    trigger = decimal_of(arguments, "triggerPrice")
    direction = str(arguments.get("triggerDirection", "1" if trigger > price else "2"))
    return Trigger(trigger, above=direction == "1")


def _state(order: Order) -> str:
    if order.waits:
        return "Untriggered"
    if order.state == "open":
        return "PartiallyFilled" if order.filled else "New"
    return (
        "Deactivated" if order.state == "canceled" and order.trigger and not order.triggered else _STATES[order.state]
    )


def _order(order: Order) -> dict[str, Any]:
    with exact_arithmetic():
        left = order.quantity - order.filled if order.state == "open" else Decimal(0)
    trigger = order.trigger
    row: dict[str, Any] = {
        "orderId": order.id, "orderLinkId": order.client_id, "symbol": order.market.id, "orderStatus": _state(order),
        "side": order.side.capitalize(), "orderType": order.kind.capitalize(), "qty": text_of(order.quantity),
        "price": text_of(order.price or Decimal(0)), "avgPrice": text_of(order.average) if order.filled else "",
        "cumExecQty": text_of(order.filled), "cumExecValue": text_of(order.cost), "leavesQty": text_of(left),
        "cumExecFee": text_of(order.fee), "cumFeeDetail": {order.fee_asset: text_of(order.fee)},
        "timeInForce": "IOC" if order.kind == "market" else {"PO": "PostOnly"}.get(*[order.time_in_force] * 2),
        "reduceOnly": order.reduce_only, "positionIdx": IDX[order.slot], "createdTime": str(order.created_ms),
        "updatedTime": str(order.updated_ms), "stopOrderType": "Stop" if trigger else "",
        "triggerPrice": text_of(trigger.price) if trigger else "",
        "triggerDirection": (1 if trigger.above else 2) if trigger else 0,
    }  # fmt: skip
    return {**row, "marketUnit": "baseCoin"} if order.market.kind == "spot" else {**row, "tpslMode": ""}
