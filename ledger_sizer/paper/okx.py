"""Implements OKX's v5 REST format: one trading account, spot, swaps. Swap sizes are contracts (0.01 BTC for BTC)."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account, Position, RequestRefused, Slot, now_ms
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.http import (
    TIME_WINDOW_MS,
    ExchangeRequest,
    ExchangeResponse,
    Handler,
    PublicHandler,
    contracts,
    decimal_of,
    text_of,
)
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.okx_orders import OkxOrders
from ledger_sizer.paper.okx_quotes import OkxQuotes
from ledger_sizer.paper.options import okx_options
from ledger_sizer.paper.quotes import liquidation_price
from ledger_sizer.paper.tickers import okx_tickers
from ledger_sizer.paper.told import okx_activity
from ledger_sizer.paper.transfers import okx_transfers

_CODES = {
    "key": (401, "50111", "Invalid OK-ACCESS-KEY"),
    "signature": (401, "50113", "Invalid Sign"),
    "passphrase": (401, "50105", "Request header OK-ACCESS-PASSPHRASE incorrect."),
    "time": (401, "50102", "Timestamp request expired"),
    "rate_limit": (429, "50011", "Too Many Requests"),
    "outage": (503, "50026", "System error. Try again later"),
    "forbidden": (401, "50120", "This API key doesn't have permission to use this function"),
    "maintenance": (503, "50001", "Service temporarily unavailable. Try again later"),
    "bad_request": (400, "51000", "Parameter error"),
    "mode_in_use": (200, "59000", "Your settings failed as you have positions or open orders."),
    "unknown_symbol": (200, "51001", "Instrument ID does not exist"),
    "unknown_order": (200, "51603", "Order does not exist"),
}
"""HTTP status, code and message of a refused request."""
_ORDER_CODES = {
    "insufficient": ("51008", "Order failed. Insufficient account balance."),
    "margin": ("51008", "Order failed. Insufficient account balance."),
    "quantity": ("51020", "Order quantity must be equal to or greater than the minimum order quantity."),
    "lot_size": ("51121", "Order quantity must be a multiple of the lot size."),
    "notional": ("51020", "Order amount is too small."),
    "duplicate": ("51016", "Client order ID already exists."),
    "reduce_only": ("51169", "Order failed because you do not have any positions to close."),
    "position_side": ("51000", "Parameter posSide error"),
    "would_trigger": ("51280", "The trigger price is past the last price"),
    "inactive": ("51028", "Contract under delivery."),
    "unknown_symbol": ("51001", "Instrument ID does not exist"),
    "unknown_order": ("51400", "Cancellation failed as the order does not exist."),
    "bad_request": ("51000", "Parameter error"),
}
"""Code and message of a refused order, returned inside a response with HTTP 200."""


class Okx:
    """Serves one `PaperExchange` in this format."""

    def __init__(self, exchange: PaperExchange) -> None:
        self.exchange = exchange
        self.public: Mapping[tuple[str, str], PublicHandler] = {
            ("GET", "/api/v5/public/time"): lambda _request: _success([{"ts": str(now_ms())}]),
            ("GET", "/api/v5/public/instruments"): self._instruments,
            ("GET", "/api/v5/market/ticker"): self._ticker,
            ("GET", "/api/v5/market/tickers"): self._tickers,
            **OkxQuotes(exchange, _success, _type).routes,
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/api/v5/account/config"): self._config,
            ("GET", "/api/v5/account/balance"): self._balance,
            ("GET", "/api/v5/asset/balances"): self._funding_balance,
            ("GET", "/api/v5/account/positions"): self._positions,
            ("POST", "/api/v5/account/set-leverage"): self._set_leverage,
            ("GET", "/api/v5/account/leverage-info"): self._leverage,
            ("POST", "/api/v5/account/set-position-mode"): self._set_position_mode,
            ("GET", "/api/v5/account/trade-fee"): self._trade_fee,
            ("GET", "/api/v5/asset/currencies"): self._currencies,
            **OkxOrders(exchange, _success, _type, _refused_row).routes,
            **okx_activity(_success, _type),
            **okx_transfers(_success),
        }

    def account(self, request: ExchangeRequest) -> Account:
        """Authenticate: HMAC-SHA256 (base64) of time, method, path with query, and body."""
        account = self.exchange.accounts.get(request.header("OK-ACCESS-KEY"))
        if account is None:
            raise RequestRefused("key", "unknown key")
        if account.passphrase != request.header("OK-ACCESS-PASSPHRASE"):
            raise RequestRefused("passphrase", "wrong passphrase")
        sent = request.header("OK-ACCESS-TIMESTAMP")
        target = f"{request.path}?{request.query}" if request.query else request.path
        payload = f"{sent}{request.method}{target}{request.body}"
        digest = hmac.new(account.secret.encode(), payload.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(base64.b64encode(digest).decode(), request.header("OK-ACCESS-SIGN")):
            raise RequestRefused("signature", "wrong signature")
        try:
            sent_ms = datetime.fromisoformat(sent).timestamp() * 1000
        except ValueError:
            raise RequestRefused("time", "no time") from None
        if abs(sent_ms - now_ms()) > TIME_WINDOW_MS:
            raise RequestRefused("time", "request too old")
        return account

    def refusal(self, refused: RequestRefused, path: str) -> ExchangeResponse:
        """Return the error. A refused order has code 1 and the reason in `data`; other errors have their own code."""
        if refused.reason in _ORDER_CODES and (refused.reason not in _CODES or path.endswith("/cancel-order")):
            return ExchangeResponse(200, {"code": "1", "msg": "All operations failed", "data": [_refused_row(refused)]})
        status, code, message = _CODES[refused.reason]
        return ExchangeResponse(status, {"code": code, "msg": f"{message} ({refused})", "data": []})

    def _config(self, account: Account, _request: ExchangeRequest) -> Any:
        mode = "long_short_mode" if account.hedged else "net_mode"
        return _success([{"acctLv": "2", "posMode": mode, "uid": account.api_key}])

    def _instruments(self, request: ExchangeRequest) -> Any:
        kind = request.arguments.get("instType")
        return _success([_instrument(market) for market in self.exchange.markets.values() if _type(market) == kind])

    def _ticker(self, request: ExchangeRequest) -> Any:
        for market in self.exchange.markets.values():
            if market.id == request.arguments.get("instId"):
                return _success(okx_tickers(self.exchange, _type(market), [market]))
        raise RequestRefused("unknown_symbol", "no such market")

    def _tickers(self, request: ExchangeRequest) -> Any:
        kind = str(request.arguments.get("instType"))
        markets = [market for market in self.exchange.markets.values() if _type(market) == kind]
        return _success(okx_tickers(self.exchange, kind, markets))

    def _balance(self, account: Account, _request: ExchangeRequest) -> Any:
        details, visible = [], account.visible()
        profits = self.exchange.unrealized(visible, "spot")
        for asset, (total, used) in sorted(self.exchange.balances(visible, "spot").items()):
            with exact_arithmetic():
                equity = total + profits[asset]
                free = text_of(max(equity - used, Decimal(0)))
            details.append({
                "ccy": asset, "eq": text_of(equity), "cashBal": text_of(total), "availEq": free, "availBal": free,
                "frozenBal": text_of(used), "upl": text_of(profits[asset]), "liab": text_of(max(-total, Decimal(0))),
                "interest": "0", "uTime": str(now_ms()),
            })  # fmt: skip
        return _success([{"details": details, "uTime": str(now_ms())}])

    def _funding_balance(self, account: Account, _request: ExchangeRequest) -> Any:
        return _success([
            {"ccy": asset, "bal": text_of(total), "availBal": text_of(total), "frozenBal": "0"}
            for asset, (total, _used) in sorted(self.exchange.balances(account.visible(), "funding").items())
        ])  # fmt: skip

    def _set_leverage(self, account: Account, request: ExchangeRequest) -> Any:
        market = self.exchange.market(str(request.arguments.get("instId")), "swap")
        self.exchange.set_leverage(account, market, decimal_of(request.arguments, "lever"))
        return self._leverage(account, request)

    def _leverage(self, account: Account, request: ExchangeRequest) -> Any:
        """Tell a market's leverage, which is the same in both margin modes here."""
        market = self.exchange.market(str(request.arguments.get("instId")), "swap")
        mode, sides = request.arguments.get("mgnMode"), ("long", "short") if account.hedged else ("net",)
        return _success([
            {"instId": market.id, "mgnMode": mode, "posSide": side, "lever": text_of(account.leverage(market.symbol))}
            for side in sides
        ])  # fmt: skip

    def _set_position_mode(self, account: Account, request: ExchangeRequest) -> Any:
        mode = request.arguments.get("posMode")
        if (mode == "long_short_mode") != account.hedged:
            self.exchange.set_hedged(account, hedged=not account.hedged)
        return _success([{"posMode": mode}])

    def _trade_fee(self, _account: Account, request: ExchangeRequest) -> Any:
        spot = request.arguments.get("instType") == "SPOT"
        rate = text_of(-self.exchange.fee_rates["spot" if spot else "swap"])
        names = ("maker", "taker") if spot else ("makerU", "takerU")
        return _success([{"instType": request.arguments.get("instType"), **dict.fromkeys(names, rate)}])

    def _currencies(self, _account: Account, _request: ExchangeRequest) -> Any:
        return _success([
            {"ccy": coin, "name": coin, "chain": f"{coin}-{coin}", "canDep": True, "canWd": True}
            for coin in self.exchange.coins()
        ])  # fmt: skip

    def _positions(self, account: Account, request: ExchangeRequest) -> Any:
        visible, wanted, kind = account.visible(), request.arguments.get("instId"), request.arguments.get("instType")
        rows = [
            self._position(visible, self.exchange.market_of(symbol), slot, position, isolated=isolated)
            for symbol, slot, isolated, position in visible.held()
        ] + okx_options(visible)
        return _success([
            row for row in rows
            if (not wanted or row["instId"] in wanted.split(",")) and kind in (None, row["instType"])
        ])  # fmt: skip

    def _position(
        self, account: Account, market: Market, slot: Slot, position: Position, *, isolated: bool
    ) -> dict[str, Any]:
        leverage = account.leverage(market.symbol)
        mark = self.exchange.prices[market.base]
        signed = position.quantity if slot == "net" else abs(position.quantity)
        with exact_arithmetic():
            size = contracts(market, signed)
            profit, worth = (
                market.profit(position.quantity, position.entry_price, mark), market.worth(abs(position.quantity), mark)
            )  # fmt: skip
            usd, margin = worth * mark if market.inverse else worth, text_of(worth / leverage)
        liquidation = liquidation_price(market, position, leverage, isolated=isolated)
        row = {
            "instId": market.id, "instType": _type(market), "mgnMode": "isolated" if isolated else "cross",
            "posId": f"{market.id}-{slot}{'-isolated' * isolated}", "posSide": slot, "pos": text_of(size),
            "avgPx": text_of(position.entry_price), "markPx": text_of(mark), "lever": text_of(leverage),
            "notionalUsd": text_of(usd), "upl": text_of(profit), "imr": "" if isolated else margin,
            "margin": margin if isolated else "", "mmr": "0",
            "liqPx": "" if liquidation is None else text_of(liquidation),
            "ccy": market.base if market.inverse else market.quote, "cTime": str(now_ms()), "uTime": str(now_ms()),
        }  # fmt: skip
        if market.kind != "spot":
            return row
        # A margin trade holds the coins it bought, or the money it sold them for.
        long = position.quantity > 0
        held, owed = text_of(abs(position.quantity)), text_of(abs(position.quantity) * position.entry_price)
        return {
            **row, "instType": "MARGIN", "pos": held if long else owed, "posCcy": market.base if long else market.quote,
            "liab": f"-{owed if long else held}", "liabCcy": market.quote if long else market.base,
        }  # fmt: skip


def _success(rows: list[Any]) -> dict[str, Any]:
    return {"code": "0", "msg": "", "data": rows}


def _refused_row(refused: RequestRefused) -> dict[str, Any]:
    code, message = _ORDER_CODES[refused.reason]
    return {"ordId": "", "clOrdId": "", "sCode": code, "sMsg": f"{message} ({refused})"}


def _type(market: Market) -> str:
    return "SPOT" if market.kind == "spot" else "FUTURES" if market.delivery_ms else "SWAP"


def _instrument(market: Market) -> dict[str, Any]:
    state = "live" if market.active else "suspend"
    with exact_arithmetic():
        step, qty_min, qty_max, market_qty_max = (
            text_of(contracts(market, quantity))
            for quantity in (market.step, market.min_qty, market.max_qty, market.max_market_qty)
        )
    row: dict[str, Any] = {
        "instId": market.id, "state": state, "lotSz": step, "minSz": qty_min, "maxLmtSz": qty_max,
        "tickSz": text_of(market.tick), "listTime": "1600000000000", "lever": "10", "ruleType": "normal",
        "maxLmtAmt": "20000000", "maxMktAmt": "1000000",
    }  # fmt: skip
    if market.kind == "spot":
        # OKX limits a spot market order in USDT, not in the base asset.
        return {**row, "instType": "SPOT", "baseCcy": market.base, "quoteCcy": market.quote, "maxMktSz": "1000000",
                "uly": "", "settleCcy": "", "ctVal": ""}  # fmt: skip
    pair = market.id.rpartition("-")[0]
    value = text_of(market.contract_size)
    if market.inverse:
        row |= {"lotSz": "1", "minSz": "1", "maxLmtSz": "1000000"}
    return {**row, "instType": _type(market), "baseCcy": "", "quoteCcy": "", "uly": pair,
            "expTime": str(market.delivery_ms or ""), "maxMktAmt": "", "instFamily": pair,
            "settleCcy": market.base if market.inverse else market.quote, "ctVal": value, "ctMult": "1",
            "ctType": "inverse" if market.inverse else "linear", "maxMktSz": market_qty_max}  # fmt: skip
