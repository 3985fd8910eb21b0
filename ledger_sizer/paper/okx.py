"""Implements OKX's v5 REST format: one trading account, spot, swaps. Swap sizes are contracts (0.01 BTC for BTC)."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
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
    contracts,
    decimal_of,
    text_of,
)
from ledger_sizer.paper.markets import Market
from ledger_sizer.paper.options import okx_options
from ledger_sizer.paper.tickers import okx_tickers
from ledger_sizer.paper.told import okx_activity

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
    "inactive": ("51028", "Contract under delivery."),
    "unknown_symbol": ("51001", "Instrument ID does not exist"),
    "unknown_order": ("51400", "Cancellation failed as the order does not exist."),
    "bad_request": ("51000", "Parameter error"),
}
"""Code and message of a refused order, returned inside a response with HTTP 200."""
_STATES = {"open": "live", "filled": "filled", "canceled": "canceled"}


class Okx:
    """Serves one `PaperExchange` in this format."""

    def __init__(self, exchange: PaperExchange) -> None:
        self.exchange = exchange
        self.public: Mapping[tuple[str, str], PublicHandler] = {
            ("GET", "/api/v5/public/time"): lambda _request: _success([{"ts": str(now_ms())}]),
            ("GET", "/api/v5/public/instruments"): self._instruments,
            ("GET", "/api/v5/market/ticker"): self._ticker,
            ("GET", "/api/v5/market/tickers"): self._tickers,
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/api/v5/account/config"): self._config,
            ("GET", "/api/v5/account/balance"): self._balance,
            ("GET", "/api/v5/asset/balances"): self._funding_balance,
            ("GET", "/api/v5/account/positions"): self._positions,
            ("POST", "/api/v5/trade/order"): self._create,
            ("POST", "/api/v5/trade/batch-orders"): self._create_batch,
            ("POST", "/api/v5/trade/cancel-order"): self._cancel,
            ("GET", "/api/v5/trade/order"): self._order,
            **okx_activity(_success, _type),
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

    def _positions(self, account: Account, request: ExchangeRequest) -> Any:
        visible, wanted, kind = account.visible(), request.arguments.get("instId"), request.arguments.get("instType")
        rows = [
            self._position(self.exchange.market_of(symbol), slot, position, isolated=isolated)
            for symbol, slot, isolated, position in visible.held()
        ] + okx_options(visible)
        return _success([
            row for row in rows
            if (not wanted or row["instId"] in wanted.split(",")) and kind in (None, row["instType"])
        ])  # fmt: skip

    def _position(self, market: Market, slot: Slot, position: Position, *, isolated: bool) -> dict[str, Any]:
        mark = self.exchange.prices[market.base]
        signed = position.quantity if slot == "net" else abs(position.quantity)
        with exact_arithmetic():
            size = contracts(market, signed)
            profit, worth = (
                market.profit(position.quantity, position.entry_price, mark), market.worth(abs(position.quantity), mark)
            )  # fmt: skip
            usd, margin = worth * mark if market.inverse else worth, text_of(worth / LEVERAGE)
        row = {
            "instId": market.id, "instType": _type(market), "mgnMode": "isolated" if isolated else "cross",
            "posId": f"{market.id}-{slot}{'-isolated' * isolated}", "posSide": slot, "pos": text_of(size),
            "avgPx": text_of(position.entry_price), "markPx": text_of(mark), "lever": str(LEVERAGE),
            "notionalUsd": text_of(usd), "upl": text_of(profit), "imr": "" if isolated else margin,
            "margin": margin if isolated else "", "mmr": "0", "liqPx": "",
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

    def _create(self, account: Account, request: ExchangeRequest) -> Any:
        return _success([self._place(account, request.arguments)])

    def _create_batch(self, account: Account, request: ExchangeRequest) -> Any:
        """Place each order independently: code 0 when all were accepted, 2 when some, 1 when none."""
        rows = []
        for arguments in request.document:
            try:
                rows.append(self._place(account, arguments))
            except RequestRefused as refused:
                rows.append(_refused_row(refused))
        accepted = sum(row["sCode"] == "0" for row in rows)
        return {"code": "0" if accepted == len(rows) else "2" if accepted else "1", "msg": "", "data": rows}

    def _place(self, account: Account, arguments: Mapping[str, Any]) -> dict[str, Any]:
        instrument = str(arguments.get("instId"))
        kind: Literal["spot", "swap"] = "spot" if instrument.count("-") == 1 else "swap"
        market = self.exchange.market(instrument, kind)
        side: Literal["buy", "sell"] = "buy" if arguments.get("side") == "buy" else "sell"
        is_market = arguments.get("ordType") == "market"
        with exact_arithmetic():
            quantity = decimal_of(arguments, "sz") * market.contract_size
            if kind == "spot" and is_market and side == "buy" and arguments.get("tgtCcy") != "base_ccy":
                quantity = quantity / self.exchange.prices[market.base] // market.step * market.step
        slot: Slot = {"long": "long", "short": "short"}.get(str(arguments.get("posSide")), "net")  # type: ignore[assignment]
        order = self.exchange.place(
            account, market, side, "market" if is_market else "limit", quantity,
            price=None if is_market else decimal_of(arguments, "px"), slot=slot,
            reduce_only=str(arguments.get("reduceOnly", "")).lower() == "true",
            client_id=str(arguments.get("clOrdId", "")),
        )  # fmt: skip
        return {"ordId": order.id, "clOrdId": order.client_id, "tag": "", "sCode": "0", "sMsg": ""}

    def _cancel(self, account: Account, request: ExchangeRequest) -> Any:
        order = self.exchange.order(account, request.arguments.get("ordId"), request.arguments.get("clOrdId"))
        self.exchange.cancel(order)
        return _success([{"ordId": order.id, "clOrdId": order.client_id, "sCode": "0", "sMsg": ""}])

    def _order(self, account: Account, request: ExchangeRequest) -> Any:
        order = self.exchange.order(account, request.arguments.get("ordId"), request.arguments.get("clOrdId"))
        return _success([_order(order)])


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


def _order(order: Order) -> dict[str, Any]:
    with exact_arithmetic():
        size, filled = contracts(order.market, order.quantity), contracts(order.market, order.filled)
    state = "partially_filled" if order.state == "open" and order.filled else _STATES[order.state]
    return {
        "instId": order.market.id, "instType": _type(order.market), "ordId": order.id,
        "clOrdId": order.client_id, "ordType": order.kind, "side": order.side, "posSide": order.slot,
        "sz": text_of(size), "px": "" if order.price is None else text_of(order.price), "accFillSz": text_of(filled),
        "avgPx": text_of(order.average) if order.filled else "", "state": state, "fee": text_of(-order.fee),
        "feeCcy": order.fee_asset, "tgtCcy": "base_ccy" if order.market.kind == "spot" else "",
        "reduceOnly": str(order.reduce_only).lower(), "cTime": str(order.created_ms), "uTime": str(order.updated_ms),
        "fillTime": str(order.updated_ms), "lever": str(LEVERAGE),
    }  # fmt: skip
