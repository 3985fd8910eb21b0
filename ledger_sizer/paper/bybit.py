"""Implements Bybit's v5 REST format: unified account, spot, linear perpetuals. Errors have HTTP 200 and a `retCode`."""

import hashlib
import hmac
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import LEVERAGE, Account, Order, Position, RequestRefused, Slot, now_ms
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import (
    TIME_WINDOW_MS,
    ExchangeRequest,
    ExchangeResponse,
    Handler,
    PublicHandler,
    decimal_of,
    text_of,
)
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.options import bybit_options
from ledger_sizer.paper.tickers import bybit_tickers
from ledger_sizer.paper.told import bybit_activity

PAGE_ROWS = 200
"""Maximum number of positions in one response."""

_CODES = {
    "key": (10003, "API key is invalid."),
    "signature": (10004, "error sign! please check your signature generation algorithm."),
    "passphrase": (10003, "API key is invalid."),
    "time": (10002, "invalid request, please check your server timestamp or recv_window param"),
    "rate_limit": (10006, "Too many visits. Exceeded the API Rate Limit."),
    "outage": (10016, "Server error."),
    "forbidden": (10005, "Permission denied, please check your API key permissions."),
    "maintenance": (10016, "Service is under maintenance. Please try again later."),
    "insufficient": (170131, "Insufficient balance."),
    "margin": (110007, "ab not enough for new order"),
    "quantity": (10001, "Qty invalid"),
    "lot_size": (170137, "Order quantity has too many decimals."),
    "notional": (170140, "Order value exceeded lower limit."),
    "duplicate": (110072, "OrderLinkedID is duplicate"),
    "unknown_symbol": (10001, "params error: symbol invalid"),
    "unknown_order": (110001, "order not exists or too late to cancel"),
    "reduce_only": (110017, "current position is zero, cannot fix reduce-only order qty"),
    "position_side": (10001, "position idx not match position mode"),
    "inactive": (110074, "This contract is not live"),
    "bad_request": (10001, "Request parameter error."),
}
_IDX: Mapping[Slot, int] = {"net": 0, "long": 1, "short": 2}
_BLANK_FIELDS = ("side", "size", "avgPrice", "positionValue", "markPrice", "leverage", "unrealisedPnl", "positionIM",
                 "positionMM")  # fmt: skip
"""What an empty side of a hedge-mode market may leave out."""
_STATES = {"open": "New", "filled": "Filled", "canceled": "Cancelled"}


class Bybit:
    """Serves one `PaperExchange` in this format."""

    def __init__(self, exchange: PaperExchange) -> None:
        self.exchange = exchange
        self.page_rows = PAGE_ROWS
        self.public: Mapping[tuple[str, str], PublicHandler] = {
            ("GET", "/v5/market/time"): self._time,
            ("GET", "/v5/market/instruments-info"): self._instruments,
            ("GET", "/v5/market/tickers"): self._tickers,
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/v5/user/query-api"): lambda _account, _request: _success({"unified": 0, "uta": 1, "readOnly": 0}),
            ("GET", "/v5/account/info"): lambda _account, _request: _success({"unifiedMarginStatus": 6}),
            ("GET", "/v5/account/wallet-balance"): self._balance,
            ("GET", "/v5/asset/transfer/query-account-coins-balance"): self._funding_balance,
            ("GET", "/v5/position/list"): self._positions,
            ("POST", "/v5/order/create"): self._create,
            ("POST", "/v5/order/cancel"): self._cancel,
            ("GET", "/v5/order/realtime"): self._orders,
            ("GET", "/v5/order/history"): self._orders,
            **bybit_activity(_success, _category),
        }

    def account(self, request: ExchangeRequest) -> Account:
        """Authenticate: HMAC-SHA256 (hex) of time, key, window, and body (POST) or query."""
        account = self.exchange.accounts.get(request.header("X-BAPI-API-KEY"))
        if account is None:
            raise RequestRefused("key", "unknown key")
        sent, window = request.header("X-BAPI-TIMESTAMP"), request.header("X-BAPI-RECV-WINDOW")
        payload = f"{sent}{account.api_key}{window}{request.body if request.method == 'POST' else request.query}"
        expected = hmac.new(account.secret.encode(), payload.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, request.header("X-BAPI-SIGN")):
            raise RequestRefused("signature", "wrong signature")
        if not sent.isdigit() or abs(int(sent) - now_ms()) > TIME_WINDOW_MS:
            raise RequestRefused("time", "request too old")
        return account

    def refusal(self, refused: RequestRefused, _path: str) -> ExchangeResponse:
        """Return the error with status 200, its `retCode` and the reason."""
        code, message = _CODES[refused.reason]
        return ExchangeResponse(200, {**_success({}), "retCode": code, "retMsg": f"{message} ({refused})"})

    def _time(self, _request: ExchangeRequest) -> Any:
        return _success({"timeSecond": str(now_ms() // 1000), "timeNano": str(now_ms() * 1_000_000)})

    def _instruments(self, request: ExchangeRequest) -> Any:
        category = request.arguments.get("category")
        if request.arguments.get("status") == "PreLaunch" or category == "option":
            return _success({"category": category, "list": [], "nextPageCursor": ""})
        rows = [_instrument(market) for market in self.exchange.markets.values() if _category(market) == category]
        return _success({"category": category, "list": rows, "nextPageCursor": ""})

    def _tickers(self, request: ExchangeRequest) -> Any:
        category = str(request.arguments.get("category"))
        markets = [market for market in self.exchange.markets.values() if _category(market) == category]
        rows = bybit_tickers(self.exchange, category, request.arguments.get("symbol"), markets)
        return _success({"category": category, "list": rows})

    def _balance(self, account: Account, _request: ExchangeRequest) -> Any:
        coins, visible = [], account.visible()
        profits = self.exchange.unrealized(visible, "spot")
        for asset, (total, used) in sorted(self.exchange.balances(visible, "spot").items()):
            with exact_arithmetic():
                equity = total + profits[asset]
            coins.append({"coin": asset, "walletBalance": text_of(total), "equity": text_of(equity), "locked": "0",
                          "totalPositionIM": text_of(used), "totalOrderIM": "0", "accruedInterest": "0",
                          "borrowAmount": text_of(max(-total, Decimal(0))),
                          "unrealisedPnl": text_of(profits[asset])})  # fmt: skip
        return _success({"list": [{"accountType": "UNIFIED", "coin": coins}]})

    def _funding_balance(self, account: Account, _request: ExchangeRequest) -> Any:
        rows = [
            {"coin": asset, "walletBalance": text_of(total), "transferBalance": text_of(total), "bonus": "0"}
            for asset, (total, _used) in sorted(self.exchange.balances(account.visible(), "funding").items())
        ]
        return _success({"accountType": "FUND", "memberId": "1", "balance": rows})

    def _positions(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        rows = self._position_rows(account.visible(), arguments)
        begin, limit = int(arguments.get("cursor") or 0), min(int(arguments.get("limit") or 20), self.page_rows)
        more = begin + limit < len(rows)
        result = {"category": arguments.get("category"), "list": rows[begin : begin + limit]}
        return _success({**result, "nextPageCursor": str(begin + limit) if more else ""})

    def _position_rows(self, visible: Account, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        category = arguments.get("category")
        if category == "option":
            return bybit_options(visible)
        rows = []
        for symbol, slot, isolated, position in visible.held():
            market = self.exchange.market_of(symbol)
            settle = market.base if market.inverse else market.quote
            wanted = (category, arguments.get("settleCoin", settle), arguments.get("symbol", market.id))
            if wanted == (_category(market), settle, market.id):
                rows.append(self._position(market, slot, position, isolated=isolated))
                if visible.blank_sides and slot != "net":
                    empty = dict.fromkeys(_BLANK_FIELDS, "")
                    rows.append({**rows[-1], **empty, "positionIdx": 3 - _IDX[slot]})
        return rows

    def _position(self, market: Market, slot: Slot, position: Position, *, isolated: bool) -> dict[str, Any]:
        mark = self.exchange.prices[market.base]
        size = abs(position.quantity)
        with exact_arithmetic():
            profit = market.profit(position.quantity, position.entry_price, mark)
            value, margin = market.worth(size, position.entry_price), market.worth(size, mark) / LEVERAGE
        return {
            "positionIdx": _IDX[slot], "symbol": market.id, "side": "Buy" if position.quantity > 0 else "Sell",
            "size": text_of(size), "avgPrice": text_of(position.entry_price), "positionValue": text_of(value),
            "markPrice": text_of(mark), "leverage": str(LEVERAGE), "unrealisedPnl": text_of(profit),
            "positionIM": text_of(margin), "positionMM": "0", "liqPrice": "", "positionStatus": "Normal",
            "tradeMode": int(isolated), "createdTime": str(now_ms()), "updatedTime": str(now_ms()),
        }  # fmt: skip

    def _create(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        kind: Literal["spot", "swap"] = "spot" if arguments.get("category") == "spot" else "swap"
        market = self.exchange.market(str(arguments.get("symbol")), kind)
        side: Literal["buy", "sell"] = "buy" if arguments.get("side") == "Buy" else "sell"
        is_market = arguments.get("orderType") == "Market"
        quantity = decimal_of(arguments, "qty")
        if kind == "spot" and is_market and side == "buy" and arguments.get("marketUnit") != "baseCoin":
            with exact_arithmetic():
                quantity = quantity / self.exchange.prices[market.base] // market.step * market.step
        slots: dict[int, Slot] = {0: "net", 1: "long", 2: "short"}
        order = self.exchange.place(
            account, market, side, "market" if is_market else "limit", quantity,
            price=None if is_market else decimal_of(arguments, "price"),
            slot=slots.get(int(arguments.get("positionIdx", 0)), "net"),
            reduce_only=arguments.get("reduceOnly") is True, client_id=str(arguments.get("orderLinkId", "")),
        )  # fmt: skip
        return _success({"orderId": order.id, "orderLinkId": order.client_id})

    def _cancel(self, account: Account, request: ExchangeRequest) -> Any:
        order = self.exchange.order(account, request.arguments.get("orderId"), request.arguments.get("orderLinkId"))
        self.exchange.cancel(order)
        return _success({"orderId": order.id, "orderLinkId": order.client_id})

    def _orders(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        rows = [
            _order(order)
            for order in account.orders.values()
            if order.market.kind == ("spot" if arguments.get("category") == "spot" else "swap")
            and arguments.get("orderId", order.id) == order.id
            and arguments.get("orderLinkId", order.client_id) == order.client_id
            and arguments.get("symbol", order.market.id) == order.market.id
        ]
        return _success({"category": arguments.get("category"), "list": rows, "nextPageCursor": ""})


def _success(result: Any) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": now_ms()}


def _category(market: Market) -> str:
    return "spot" if market.kind == "spot" else "inverse" if market.inverse else "linear"


def _instrument(market: Market) -> dict[str, Any]:
    row: dict[str, Any] = {
        "symbol": market.id, "status": "Trading" if market.active else "Closed", "baseCoin": market.base,
        "quoteCoin": "USD" if market.inverse else market.quote, "priceFilter": {"tickSize": text_of(market.tick)},
    }  # fmt: skip
    bounds = {"minOrderQty": text_of(market.min_qty), "maxOrderQty": text_of(market.max_qty)}
    if market.kind == "spot":
        market_qty_max = text_of(market.max_market_qty)
        return {**row, "marginTrading": "utaOnly", "lotSizeFilter": {
            **bounds, "basePrecision": text_of(market.step), "quotePrecision": "0.0000001",
            "maxLimitOrderQty": bounds["maxOrderQty"], "maxMarketOrderQty": market_qty_max,
            "minOrderAmt": text_of(market.min_notional), "maxOrderAmt": "4000000",
        }}  # fmt: skip
    perpetual = "InversePerpetual" if market.inverse else "LinearPerpetual"
    dated = "InverseFutures" if market.inverse else "LinearFutures"
    contract = dated if market.delivery_ms else perpetual
    settle = market.base if market.inverse else market.quote
    return {**row, "contractType": contract, "settleCoin": settle, "fundingInterval": 480,
            "deliveryTime": str(market.delivery_ms or 0),
            "leverageFilter": {"minLeverage": "1", "maxLeverage": "100", "leverageStep": "0.01"},
            "lotSizeFilter": {**bounds, "qtyStep": text_of(market.step),
                              "maxMktOrderQty": text_of(market.max_market_qty),
                              "minNotionalValue": text_of(market.min_notional)}}  # fmt: skip


def _order(order: Order) -> dict[str, Any]:
    with exact_arithmetic():
        left = order.quantity - order.filled
    state = "PartiallyFilled" if order.state == "open" and order.filled else _STATES[order.state]
    row: dict[str, Any] = {
        "orderId": order.id, "orderLinkId": order.client_id, "symbol": order.market.id, "orderStatus": state,
        "side": order.side.capitalize(), "orderType": order.kind.capitalize(), "qty": text_of(order.quantity),
        "price": text_of(order.price or Decimal(0)), "avgPrice": text_of(order.average) if order.filled else "",
        "cumExecQty": text_of(order.filled), "cumExecValue": text_of(order.cost), "leavesQty": text_of(left),
        "cumExecFee": text_of(order.fee), "cumFeeDetail": {order.fee_asset: text_of(order.fee)},
        "timeInForce": "IOC" if order.kind == "market" else "GTC", "reduceOnly": order.reduce_only,
        "positionIdx": _IDX[order.slot], "createdTime": str(order.created_ms), "updatedTime": str(order.updated_ms),
    }  # fmt: skip
    return {**row, "marketUnit": "baseCoin"} if order.market.kind == "spot" else {**row, "tpslMode": ""}
