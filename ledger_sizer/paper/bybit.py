"""Implements Bybit's v5 REST format: unified account, spot, linear perpetuals. Errors have HTTP 200 and a `retCode`."""

import hashlib
import hmac
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account, Position, RequestRefused, Slot, now_ms
from ledger_sizer.paper.bybit_orders import IDX, BybitOrders
from ledger_sizer.paper.bybit_quotes import bybit_quotes
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
from ledger_sizer.paper.quotes import liquidation_price, whole
from ledger_sizer.paper.tickers import bybit_tickers
from ledger_sizer.paper.told import bybit_activity
from ledger_sizer.paper.transfers import bybit_transfers

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
    "would_trigger": (110093, "expect Falling or Rising, but trigger_price is past the current price"),
    "no_change": (110043, "Set leverage not modified"),
    "mode_in_use": (110024, "You have existing position or open orders, so position mode cannot be switched"),
    "bad_request": (10001, "Request parameter error."),
}
_BLANK_FIELDS = ("side", "size", "avgPrice", "positionValue", "markPrice", "leverage", "unrealisedPnl", "positionIM",
                 "positionMM")  # fmt: skip
"""What an empty side of a hedge-mode market may leave out."""


class Bybit:
    """Serves one `PaperExchange` in this format."""

    def __init__(self, exchange: PaperExchange) -> None:
        self.exchange = exchange
        self.page_rows = PAGE_ROWS
        self.public: Mapping[tuple[str, str], PublicHandler] = {
            ("GET", "/v5/market/time"): self._time,
            ("GET", "/v5/market/instruments-info"): self._instruments,
            ("GET", "/v5/market/tickers"): self._tickers,
            **bybit_quotes(exchange, _success, _category),
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/v5/user/query-api"): lambda _account, _request: _success({"unified": 0, "uta": 1, "readOnly": 0}),
            ("GET", "/v5/account/info"): self._account_info,
            ("GET", "/v5/account/wallet-balance"): self._balance,
            ("GET", "/v5/asset/transfer/query-account-coins-balance"): self._funding_balance,
            ("GET", "/v5/position/list"): self._positions,
            ("POST", "/v5/position/set-leverage"): self._set_leverage,
            ("POST", "/v5/position/switch-mode"): self._set_position_mode,
            ("POST", "/v5/account/set-margin-mode"): self._set_margin_mode,
            ("GET", "/v5/account/fee-rate"): self._fee_rates,
            ("GET", "/v5/asset/coin/query-info"): self._coins,
            **BybitOrders(exchange, _success, _category, _refused).routes,
            **bybit_activity(_success, _category),
            **bybit_transfers(_success),
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

    def _account_info(self, account: Account, _request: ExchangeRequest) -> Any:
        mode = "ISOLATED_MARGIN" if account.isolated_all else "REGULAR_MARGIN"
        return _success({"unifiedMarginStatus": 6, "marginMode": mode})

    def _set_leverage(self, account: Account, request: ExchangeRequest) -> Any:
        market = self.exchange.market(str(request.arguments.get("symbol")), "swap")
        self.exchange.set_leverage(account, market, decimal_of(request.arguments, "buyLeverage"))
        return _success({})

    def _set_position_mode(self, account: Account, request: ExchangeRequest) -> Any:
        """Set it for the whole account, whatever market or coin is named. Mode 3 is hedge mode."""
        hedged = whole(request, "mode") == 3
        if hedged != account.hedged:
            self.exchange.set_hedged(account, hedged=hedged)
        return _success({})

    def _set_margin_mode(self, account: Account, request: ExchangeRequest) -> Any:
        account.isolated_all = request.arguments.get("setMarginMode") == "ISOLATED_MARGIN"
        return _success({"reasons": []})

    def _fee_rates(self, _account: Account, request: ExchangeRequest) -> Any:
        category, wanted = request.arguments.get("category", "linear"), request.arguments.get("symbol")
        rows = [
            {"symbol": market.id, "takerFeeRate": rate, "makerFeeRate": rate}
            for market in self.exchange.markets.values()
            for rate in [text_of(self.exchange.fee_rates[market.kind])]
            if _category(market) == category and wanted in (None, market.id)
        ]
        return _success({"category": category, "list": rows})

    def _coins(self, _account: Account, _request: ExchangeRequest) -> Any:
        rows = [{"name": coin, "coin": coin, "remainAmount": "0", "chains": []} for coin in self.exchange.coins()]
        return _success({"rows": rows})

    def _positions(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        rows = self._position_rows(account.visible(), arguments)
        if not rows and arguments.get("symbol") and arguments.get("category") != "option":
            # A market without a position is listed where it is asked for by name: its leverage is there.
            market = self.exchange.market(str(arguments["symbol"]), "swap")
            rows = [self._position(account.visible(), market, "net", Position(Decimal(0), Decimal(0)), isolated=False)]
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
                rows.append(self._position(visible, market, slot, position, isolated=isolated))
                if visible.blank_sides and slot != "net":
                    empty = dict.fromkeys(_BLANK_FIELDS, "")
                    rows.append({**rows[-1], **empty, "positionIdx": 3 - IDX[slot]})
        return rows

    def _position(
        self, account: Account, market: Market, slot: Slot, position: Position, *, isolated: bool
    ) -> dict[str, Any]:
        mark = self.exchange.prices[market.base]
        size, leverage = abs(position.quantity), account.leverage(market.symbol)
        side = "Buy" if position.quantity > 0 else "Sell" if position.quantity else ""
        with exact_arithmetic():
            profit = market.profit(position.quantity, position.entry_price, mark)
            value, margin = market.worth(size, position.entry_price), market.worth(size, mark) / leverage
        liquidation = liquidation_price(market, position, leverage, isolated=isolated)
        return {
            "positionIdx": IDX[slot], "symbol": market.id, "side": side,
            "size": text_of(size), "avgPrice": text_of(position.entry_price), "positionValue": text_of(value),
            "markPrice": text_of(mark), "leverage": text_of(leverage), "unrealisedPnl": text_of(profit),
            "positionIM": text_of(margin), "positionMM": "0",
            "liqPrice": "" if liquidation is None else text_of(liquidation), "positionStatus": "Normal",
            "tradeMode": int(isolated), "createdTime": str(now_ms()), "updatedTime": str(now_ms()),
        }  # fmt: skip


def _success(result: Any) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": now_ms()}


def _refused(refused: RequestRefused) -> dict[str, Any]:
    code, message = _CODES[refused.reason]
    return {"code": code, "msg": f"{message} ({refused})"}


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
