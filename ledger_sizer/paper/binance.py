"""Implements Binance's REST formats: spot (/api/v3) and USDT-margined futures (/fapi), each with its own wallet."""

import hashlib
import hmac
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qs

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.exchange import LEVERAGE, Account, Order, PaperExchange, Position, RequestRefused, Slot, now_ms
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
from ledger_sizer.paper.tickers import binance_tickers

_CODES = {
    "key": (401, -2015, "Invalid API-key, IP, or permissions for action."),
    "signature": (400, -1022, "Signature for this request is not valid."),
    "passphrase": (401, -2015, "Invalid API-key, IP, or permissions for action."),
    "time": (400, -1021, "Timestamp for this request is outside of the recvWindow."),
    "rate_limit": (429, -1003, "Too many requests; current limit is 1200 request weight per 1 MINUTE."),
    "outage": (503, -1001, "Internal error; unable to process your request. Please try again."),
    "insufficient": (400, -2010, "Account has insufficient balance for requested action."),
    "margin": (400, -2019, "Margin is insufficient."),
    "quantity": (400, -4005, "Quantity greater than max quantity."),
    "lot_size": (400, -1013, "Filter failure: LOT_SIZE"),
    "notional": (400, -1013, "Filter failure: NOTIONAL"),
    "duplicate": (400, -4116, "ClientOrderId is duplicated."),
    "unknown_symbol": (400, -1121, "Invalid symbol."),
    "unknown_order": (400, -2013, "Order does not exist."),
    "reduce_only": (400, -2022, "ReduceOnly Order is rejected."),
    "position_side": (400, -4061, "Order's position side does not match user's setting."),
    "inactive": (400, -1013, "Market is closed."),
    "bad_request": (400, -1100, "Illegal characters found in a parameter."),
}
_STATES = {"open": "NEW", "filled": "FILLED", "canceled": "CANCELED"}


class Binance:
    """Serves one `PaperExchange` in this format."""

    def __init__(self, exchange: PaperExchange) -> None:
        self.exchange = exchange
        self.public: Mapping[tuple[str, str], PublicHandler] = {
            ("GET", "/api/v3/time"): lambda _request: {"serverTime": now_ms()},
            ("GET", "/fapi/v1/time"): lambda _request: {"serverTime": now_ms()},
            ("GET", "/api/v3/exchangeInfo"): lambda _request: self._rules("spot", inverse=False),
            ("GET", "/fapi/v1/exchangeInfo"): lambda _request: self._rules("swap", inverse=False),
            ("GET", "/dapi/v1/exchangeInfo"): lambda _request: self._rules("swap", inverse=True),
            ("GET", "/api/v3/ticker/24hr"): partial(binance_tickers, exchange),
            ("GET", "/fapi/v1/ticker/24hr"): partial(binance_tickers, exchange),
            ("GET", "/dapi/v1/ticker/24hr"): partial(binance_tickers, exchange),
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/sapi/v1/margin/allPairs"): lambda _account, _request: [],
            ("GET", "/sapi/v1/margin/isolated/allPairs"): lambda _account, _request: [],
            ("GET", "/api/v3/account"): self._spot_account,
            ("GET", "/fapi/v2/balance"): self._futures_balance,
            ("GET", "/fapi/v3/balance"): self._futures_balance,
            ("GET", "/fapi/v2/account"): self._futures_account,
            ("GET", "/fapi/v3/account"): self._futures_account,
            ("GET", "/fapi/v1/leverageBracket"): self._brackets,
            ("GET", "/fapi/v1/positionSide/dual"): lambda account, _request: {"dualSidePosition": account.hedged},
            ("GET", "/fapi/v2/positionRisk"): self._positions,
            ("GET", "/fapi/v3/positionRisk"): self._positions,
        }
        for path in ("/api/v3/order", "/fapi/v1/order"):
            self.private = {
                **self.private, ("POST", path): self._create, ("GET", path): self._order, ("DELETE", path): self._cancel
            }  # fmt: skip

    def account(self, request: ExchangeRequest) -> Account:
        """Authenticate: HMAC-SHA256 (hex) of everything before `signature`, in the body or the query."""
        account = self.exchange.accounts.get(request.header("X-MBX-APIKEY"))
        if account is None:
            raise RequestRefused("key", "unknown key")
        payload, _, signature = (request.body or request.query).rpartition("&signature=")
        expected = hmac.new(account.secret.encode(), payload.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            raise RequestRefused("signature", "wrong signature")
        sent = parse_qs(payload).get("timestamp", [""])[0]
        if not sent.isdigit() or abs(int(sent) - now_ms()) > TIME_WINDOW_MS:
            raise RequestRefused("time", "request too old")
        return account

    def refusal(self, refused: RequestRefused, _path: str) -> ExchangeResponse:
        """Return an HTTP error with `code` and `msg`. ccxt matches some by their exact text, so nothing is added."""
        status, code, message = _CODES[refused.reason]
        return ExchangeResponse(status, {"code": code, "msg": message})

    def _rules(self, kind: Literal["spot", "swap"], *, inverse: bool) -> Any:
        rows = [_instrument(m) for m in self.exchange.markets.values() if m.kind == kind and m.inverse == inverse]
        return {"timezone": "UTC", "serverTime": now_ms(), "rateLimits": [], "symbols": rows}

    def _spot_account(self, account: Account, _request: ExchangeRequest) -> Any:
        balances = [
            {"asset": asset, "free": text_of(total - used), "locked": text_of(used)}
            for asset, (total, used) in sorted(self.exchange.balances(account.visible(), "spot").items())
        ]
        return {"accountType": "SPOT", "canTrade": True, "balances": balances, "updateTime": now_ms()}

    def _futures_assets(self, account: Account) -> list[dict[str, Any]]:
        return [
            {"accountAlias": "paper", "asset": asset, "balance": text_of(total), "walletBalance": text_of(total),
             "marginBalance": text_of(total), "crossWalletBalance": text_of(total), "initialMargin": text_of(used),
             "maintMargin": "0", "unrealizedProfit": "0", "availableBalance": text_of(total - used),
             "updateTime": now_ms()}
            for asset, (total, used) in sorted(self.exchange.balances(account.visible(), "swap").items())
        ]  # fmt: skip

    def _futures_balance(self, account: Account, _request: ExchangeRequest) -> Any:
        return self._futures_assets(account)

    def _futures_account(self, account: Account, request: ExchangeRequest) -> Any:
        return {"assets": self._futures_assets(account), "positions": self._positions(account, request)}

    def _brackets(self, _account: Account, _request: ExchangeRequest) -> Any:
        bracket = {"bracket": 1, "initialLeverage": LEVERAGE, "notionalCap": 10**9, "notionalFloor": 0,
                   "maintMarginRatio": "0.004", "cum": 0}  # fmt: skip
        linear = (m for m in self.exchange.markets.values() if m.kind == "swap" and not m.inverse)
        return [{"symbol": market.id, "brackets": [bracket]} for market in linear]

    def _positions(self, account: Account, request: ExchangeRequest) -> Any:
        return [
            self._position(self.exchange.markets[symbol], slot, position)
            for (symbol, slot), position in sorted(account.visible().positions.items())
            if request.arguments.get("symbol", self.exchange.markets[symbol].id) == self.exchange.markets[symbol].id
        ]

    def _position(self, market: Market, slot: Slot, position: Position) -> dict[str, Any]:
        mark = self.exchange.prices[market.base]
        with exact_arithmetic():
            notional, profit = position.quantity * mark, (mark - position.entry_price) * position.quantity
            margin = abs(notional) / LEVERAGE
        return {
            "symbol": market.id, "positionSide": "BOTH" if slot == "net" else slot.upper(),
            "positionAmt": text_of(position.quantity), "entryPrice": text_of(position.entry_price),
            "breakEvenPrice": text_of(position.entry_price), "markPrice": text_of(mark),
            "unRealizedProfit": text_of(profit), "liquidationPrice": "0", "isolatedMargin": "0",
            "notional": text_of(notional), "marginAsset": market.quote, "isolatedWallet": "0",
            "initialMargin": text_of(margin), "maintMargin": "0", "positionInitialMargin": text_of(margin),
            "openOrderInitialMargin": "0", "adl": 0, "bidNotional": "0", "askNotional": "0", "updateTime": now_ms(),
        }  # fmt: skip

    def _create(self, account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        kind = _kind(request)
        market = self.exchange.market(str(arguments.get("symbol")), kind)
        side: Literal["buy", "sell"] = "buy" if arguments.get("side") == "BUY" else "sell"
        is_market = arguments.get("type") == "MARKET"
        if "quantity" not in arguments and "quoteOrderQty" in arguments:
            with exact_arithmetic():
                quantity = decimal_of(arguments, "quoteOrderQty") / self.exchange.prices[market.base]
                quantity = quantity // market.step * market.step
        else:
            quantity = decimal_of(arguments, "quantity")
        slots: dict[str, Slot] = {"LONG": "long", "SHORT": "short"}
        order = self.exchange.place(
            account, market, side, "market" if is_market else "limit", quantity,
            price=None if is_market else decimal_of(arguments, "price"),
            slot=slots.get(str(arguments.get("positionSide")), "net"),
            reduce_only=str(arguments.get("reduceOnly", "")).lower() == "true",
            client_id=str(arguments.get("newClientOrderId", "")),
        )  # fmt: skip
        return _order(order)

    def _order(self, account: Account, request: ExchangeRequest) -> Any:
        return _order(
            self.exchange.order(account, request.arguments.get("orderId"), request.arguments.get("origClientOrderId"))
        )

    def _cancel(self, account: Account, request: ExchangeRequest) -> Any:
        order = self.exchange.order(
            account, request.arguments.get("orderId"), request.arguments.get("origClientOrderId")
        )
        self.exchange.cancel(order)
        return _order(order)


def _kind(request: ExchangeRequest) -> Literal["spot", "swap"]:
    return "spot" if request.path.startswith("/api/") else "swap"


def _instrument(market: Market) -> dict[str, Any]:
    state = "TRADING" if market.active else "BREAK"
    bounds = {"minQty": text_of(market.min_qty), "maxQty": text_of(market.max_qty), "stepSize": text_of(market.step)}
    filters: list[dict[str, Any]] = [
        {"filterType": "PRICE_FILTER", "minPrice": text_of(market.tick), "maxPrice": "10000000",
         "tickSize": text_of(market.tick)},
        {"filterType": "LOT_SIZE", **bounds},
        {"filterType": "MARKET_LOT_SIZE", **bounds, "maxQty": text_of(market.max_market_qty)},
    ]  # fmt: skip
    notional = text_of(market.min_notional)
    row: dict[str, Any] = {
        "symbol": market.id, "baseAsset": market.base, "quoteAsset": "USD" if market.inverse else market.quote,
        "orderTypes": ["LIMIT", "MARKET"], "filters": filters, "quantityPrecision": 8, "pricePrecision": 8,
        "baseAssetPrecision": 8, "quotePrecision": 8,
    }  # fmt: skip
    if market.kind == "spot":
        filters.append({"filterType": "NOTIONAL", "minNotional": notional, "applyMinToMarket": True})
        return {**row, "status": state, "isSpotTradingAllowed": True, "isMarginTradingAllowed": False,
                "permissions": [], "permissionSets": [["SPOT"]]}  # fmt: skip
    filters.append({"filterType": "MIN_NOTIONAL", "notional": notional})
    row |= {"contractType": "CURRENT_QUARTER" if market.delivery_ms else "PERPETUAL",
            "deliveryDate": market.delivery_ms or 4133404800000, "onboardDate": 1600000000000,
            "marginAsset": market.base if market.inverse else market.quote,
            "pair": f"{market.base}{market.quote}"}  # fmt: skip
    if market.inverse:
        return {**row, "contractStatus": state, "contractSize": int(market.contract_size)}
    return {**row, "status": state}


def _order(order: Order) -> dict[str, Any]:
    state = "PARTIALLY_FILLED" if order.state == "open" and order.filled else _STATES[order.state]
    cost, average = text_of(order.cost), text_of(order.average)
    row: dict[str, Any] = {
        "symbol": order.market.id, "orderId": int(order.id), "clientOrderId": order.client_id, "status": state,
        "side": order.side.upper(), "type": order.kind.upper(), "origQty": text_of(order.quantity),
        "price": text_of(order.price or Decimal(0)), "executedQty": text_of(order.filled), "timeInForce": "GTC",
        "time": order.created_ms, "updateTime": order.updated_ms,
    }  # fmt: skip
    if order.market.kind == "swap":
        return {**row, "avgPrice": average, "cumQuote": cost, "reduceOnly": order.reduce_only,
                "positionSide": "BOTH" if order.slot == "net" else order.slot.upper(),
                "origType": row["type"]}  # fmt: skip
    fill = {"price": average, "qty": text_of(order.filled), "commission": text_of(order.fee),
            "commissionAsset": order.fee_asset, "tradeId": int(order.id)}  # fmt: skip
    fills = [fill] if order.filled else []
    return {**row, "cummulativeQuoteQty": cost, "transactTime": order.updated_ms, "fills": fills}
