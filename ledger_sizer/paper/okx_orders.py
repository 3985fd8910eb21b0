"""Takes, lists, changes and cancels orders in OKX's format.

A stop order is an algo order, which has calls of its own, and becomes an order when its price comes.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Literal

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import LEVERAGE, Account, Order, RequestRefused, Side, Slot, Trigger
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import ExchangeRequest, Handler, contracts, decimal_of, require_plain, text_of
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.quotes import limit_of, whole

_STATES = {"open": "live", "filled": "filled", "canceled": "canceled"}
_SLOTS: Mapping[str, Slot] = {"long": "long", "short": "short"}
_MARKET_TYPES = ("market", "optimal_limit_ioc")
_IN_FORCE = {"post_only": "PO", "ioc": "IOC", "fok": "FOK"}
_TYPES = {in_force: name for name, in_force in _IN_FORCE.items()}
_TRIGGERS = {"sl": ("slTriggerPx", "slOrdPx"), "tp": ("tpTriggerPx", "tpOrdPx"), "trigger": ("triggerPx", "orderPx")}
"""What starts an algo order, and the limit that it has then; -1 for none."""


class OkxOrders:
    """OKX's calls about orders. routes: handlers by (method, path).

    refused_row: the row of an order that is not accepted, in a call about several.
    """

    def __init__(
        self, exchange: PaperExchange, success: Callable[[list[Any]], Any], type_of: Callable[[Market], str],
        refused_row: Callable[[RequestRefused], dict[str, Any]],
    ) -> None:  # fmt: skip
        self._exchange, self._success, self._type_of, self._refused_row = exchange, success, type_of, refused_row
        names: dict[tuple[str, str], Handler] = {
            ("POST", "order"): lambda account, request: success([self._place(account, request.arguments)]),
            ("POST", "batch-orders"): lambda account, request: self._several(account, request, self._place),
            ("POST", "cancel-order"): lambda account, request: success([self._cancel(account, request.arguments)]),
            ("POST", "cancel-batch-orders"): lambda account, request: self._several(account, request, self._cancel),
            ("POST", "amend-order"): lambda account, request: success([self._amend(account, request.arguments)]),
            ("GET", "order"): lambda account, request: success([self._row(self._named(account, request.arguments))]),
            ("GET", "orders-pending"): lambda account, request: self._listed(account, request, ("open",)),
            ("GET", "orders-history"): lambda account, request: self._listed(account, request, ("filled", "canceled")),
            ("POST", "order-algo"): lambda account, request: success([self._place_algo(account, request.arguments)]),
            ("POST", "cancel-algos"): lambda account, request: self._several(account, request, self._cancel_algo),
            ("GET", "order-algo"): lambda account, request: success([_algo_row(
                self._named_algo(account, request.arguments), type_of
            )]),
            ("GET", "orders-algo-pending"): lambda account, request: self._listed_algos(account, request, ("live",)),
            ("GET", "orders-algo-history"): lambda account, request: self._listed_algos(
                account, request, ("effective", "canceled")
            ),
        }  # fmt: skip
        names["GET", "orders-history-archive"] = names["GET", "orders-history"]
        self.routes = {(method, f"/api/v5/trade/{name}"): handler for (method, name), handler in names.items()}

    def _several(
        self, account: Account, request: ExchangeRequest, act: Callable[[Account, Mapping[str, Any]], dict[str, Any]]
    ) -> Any:
        """Do each independently: code 0 when all were accepted, 2 when some, 1 when none."""
        rows = []
        for arguments in request.document:
            try:
                rows.append(act(account, arguments))
            except RequestRefused as refused:
                rows.append(self._refused_row(refused))
        accepted = sum(row["sCode"] == "0" for row in rows)
        return {"code": "0" if accepted == len(rows) else "2" if accepted else "1", "msg": "", "data": rows}

    # --- orders ----------------------------------------------------------------------------------

    def _place(self, account: Account, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = str(arguments.get("ordType"))
        at_market = name in _MARKET_TYPES
        order = self._placed(
            account, arguments, None if at_market else decimal_of(arguments, "px"), None,
            client_id=str(arguments.get("clOrdId", "")), in_force=_IN_FORCE.get(name, "GTC"),
        )  # fmt: skip
        return {"ordId": order.id, "clOrdId": order.client_id, "tag": "", "sCode": "0", "sMsg": ""}

    def _placed(
        self, account: Account, arguments: Mapping[str, Any], price: Decimal | None, trigger: Trigger | None, *,
        client_id: str, in_force: str,
    ) -> Order:  # fmt: skip
        require_plain(arguments, "attachAlgoOrds")
        instrument = str(arguments.get("instId"))
        kind: Literal["spot", "swap"] = "spot" if instrument.count("-") == 1 else "swap"
        market = self._exchange.market(instrument, kind)
        side: Side = "buy" if arguments.get("side") == "buy" else "sell"
        with exact_arithmetic():
            quantity = decimal_of(arguments, "sz") * market.contract_size
            if kind == "spot" and price is None and side == "buy" and arguments.get("tgtCcy") != "base_ccy":
                quantity = quantity / self._exchange.prices[market.base] // market.step * market.step
        return self._exchange.place(
            account, market, side, "market" if price is None else "limit", quantity, price=price,
            slot=_SLOTS.get(str(arguments.get("posSide")), "net"),
            reduce_only=str(arguments.get("reduceOnly", "")).lower() == "true",
            client_id=client_id, time_in_force=in_force, trigger=trigger,
            isolated=kind == "swap" and arguments.get("tdMode") == "isolated",
        )  # fmt: skip

    def _named(self, account: Account, arguments: Mapping[str, Any]) -> Order:
        order = self._exchange.order(account, arguments.get("ordId"), arguments.get("clOrdId"))
        if order.trigger and not order.triggered:
            raise RequestRefused("unknown_order", "an algo order that did not start is no order")
        return order

    def _cancel(self, account: Account, arguments: Mapping[str, Any]) -> dict[str, Any]:
        order = self._named(account, arguments)
        self._exchange.cancel(order)
        return {"ordId": order.id, "clOrdId": order.client_id, "sCode": "0", "sMsg": ""}

    def _amend(self, account: Account, arguments: Mapping[str, Any]) -> dict[str, Any]:
        order = self._named(account, arguments)
        if order.state != "open":
            raise RequestRefused("unknown_order", f"order {order.id} is {order.state}")
        price = decimal_of(arguments, "newPx") if "newPx" in arguments else None
        with exact_arithmetic():
            size = decimal_of(arguments, "newSz") * order.market.contract_size if "newSz" in arguments else None
        self._exchange.change(account, order, size, price, None)
        return {"ordId": order.id, "clOrdId": order.client_id, "sCode": "0", "sMsg": ""}

    def _matching(self, account: Account, request: ExchangeRequest) -> list[Order]:
        wanted, kind = request.arguments.get("instId"), request.arguments.get("instType")
        begin, end = whole(request, "begin") or 0, whole(request, "end")
        return [
            order for order in reversed(account.orders.values())
            if wanted in (None, order.market.id) and kind in (None, self._type_of(order.market))
            and begin <= order.created_ms and (end is None or order.created_ms <= end)
        ]  # fmt: skip

    def _listed(self, account: Account, request: ExchangeRequest, states: tuple[str, ...]) -> Any:
        wanted, limit = request.arguments.get("state"), limit_of(request, 100, 100)
        found = [one for one in self._matching(account, request) if not one.trigger or one.triggered]
        rows = [self._row(one) for one in found if one.state in states and wanted in (None, _state(one))]
        return self._success(rows[:limit])

    def _row(self, order: Order) -> dict[str, Any]:
        with exact_arithmetic():
            size, filled = contracts(order.market, order.quantity), contracts(order.market, order.filled)
        return {
            "instId": order.market.id, "instType": self._type_of(order.market), "ordId": order.id,
            "clOrdId": order.client_id, "ordType": _TYPES.get(order.time_in_force, order.kind), "side": order.side,
            "posSide": order.slot, "sz": text_of(size), "px": "" if order.price is None else text_of(order.price),
            "accFillSz": text_of(filled), "avgPx": text_of(order.average) if order.filled else "",
            "state": _state(order), "fee": text_of(-order.fee), "feeCcy": order.fee_asset,
            "tgtCcy": "base_ccy" if order.market.kind == "spot" else "", "reduceOnly": str(order.reduce_only).lower(),
            "cTime": str(order.created_ms), "uTime": str(order.updated_ms), "fillTime": str(order.updated_ms),
            "lever": str(LEVERAGE), "algoId": order.id if order.trigger else "",
        }  # fmt: skip

    # --- algo orders -----------------------------------------------------------------------------

    def _place_algo(self, account: Account, arguments: Mapping[str, Any]) -> dict[str, Any]:
        labels = [label for label, (name, _) in _TRIGGERS.items() if arguments.get(name)]
        if len(labels) != 1:
            raise RequestRefused("bad_request", "an algo order needs one trigger price, and two are not simulated")
        (label,) = labels
        trigger_name, limit_name = _TRIGGERS[label]
        start, limit = decimal_of(arguments, trigger_name), decimal_of(arguments, limit_name)
        market_id = str(arguments.get("instId"))
        kind: Literal["spot", "swap"] = "spot" if market_id.count("-") == 1 else "swap"
        present = self._exchange.prices[self._exchange.market(market_id, kind).base]
        above = start > present if label == "trigger" else (arguments.get("side") == "buy") == (label == "sl")
        client_id = str(arguments.get("algoClOrdId", arguments.get("clOrdId", "")))
        order = self._placed(
            account, arguments, None if limit == -1 else limit, Trigger(start, above, label), client_id=client_id,
            in_force="GTC",
        )  # fmt: skip
        return {"algoId": order.id, "algoClOrdId": client_id, "clOrdId": client_id, "sCode": "0", "sMsg": "", "tag": ""}

    def _named_algo(self, account: Account, arguments: Mapping[str, Any]) -> Order:
        order = self._exchange.order(account, arguments.get("algoId"), arguments.get("algoClOrdId"))
        if order.trigger is None:
            raise RequestRefused("unknown_order", "no such algo order")
        return order

    def _cancel_algo(self, account: Account, arguments: Mapping[str, Any]) -> dict[str, Any]:
        order = self._named_algo(account, arguments)
        if not order.waits:
            raise RequestRefused("unknown_order", f"algo order {order.id} has started or is cancelled")
        self._exchange.cancel(order)
        return {"algoId": order.id, "algoClOrdId": order.client_id, "sCode": "0", "sMsg": ""}

    def _listed_algos(self, account: Account, request: ExchangeRequest, states: tuple[str, ...]) -> Any:
        kind, wanted, named = (request.arguments.get(name) for name in ("ordType", "state", "algoId"))
        found = [one for one in self._matching(account, request) if one.trigger and named in (None, one.id)]
        rows = [
            _algo_row(one, self._type_of) for one in found
            if _algo_state(one) in states and wanted in (None, _algo_state(one))
        ]  # fmt: skip
        return self._success([row for row in rows if kind in (None, row["ordType"])])


def _state(order: Order) -> str:
    return "partially_filled" if order.state == "open" and order.filled else _STATES[order.state]


def _algo_state(order: Order) -> str:
    return "effective" if order.triggered else "live" if order.state == "open" else "canceled"


def _algo_row(order: Order, type_of: Callable[[Market], str]) -> dict[str, Any]:
    assert order.trigger is not None, "an algo order has a trigger"
    trigger_name, limit_name = _TRIGGERS[order.trigger.label]
    with exact_arithmetic():
        size = text_of(contracts(order.market, order.quantity))
    row = {name: "" for names in _TRIGGERS.values() for name in names if name != "orderPx"} | {"ordPx": ""}
    limit = "-1" if order.price is None else text_of(order.price)
    return {
        **row, "algoId": order.id, "algoClOrdId": order.client_id, "clOrdId": "", "instId": order.market.id,
        "instType": type_of(order.market), "side": order.side, "posSide": order.slot, "sz": size,
        "ordType": "trigger" if order.trigger.label == "trigger" else "conditional", "state": _algo_state(order),
        trigger_name: text_of(order.trigger.price), limit_name.replace("orderPx", "ordPx"): limit,
        "reduceOnly": str(order.reduce_only).lower(), "ordId": order.id if order.triggered else "",
        "actualPx": text_of(order.average) if order.filled else "", "cTime": str(order.created_ms),
        "uTime": str(order.updated_ms), "triggerTime": str(order.updated_ms) if order.triggered else "",
        "tgtCcy": "base_ccy" if order.market.kind == "spot" else "", "lever": str(LEVERAGE),
    }  # fmt: skip
