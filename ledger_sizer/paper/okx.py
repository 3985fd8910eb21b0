"""OKX's v5 REST format: one trading account, spot and swaps. Swap sizes are contracts, 0.01 BTC each for BTC."""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.exchange import LEVERAGE, Account, Order, PaperExchange, Position, RequestRefused, Slot
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

_CODES = {
    "key": (401, "50111", "Invalid OK-ACCESS-KEY"),
    "signature": (401, "50113", "Invalid Sign"),
    "passphrase": (401, "50105", "Request header OK-ACCESS-PASSPHRASE incorrect."),
    "time": (401, "50102", "Timestamp request expired"),
    "rate_limit": (429, "50011", "Too Many Requests"),
    "outage": (503, "50001", "Service temporarily unavailable. Try again later"),
    "bad_request": (400, "51000", "Parameter error"),
    "unknown_symbol": (200, "51001", "Instrument ID does not exist"),
    "unknown_order": (200, "51603", "Order does not exist"),
}
"""HTTP status, code and words of a refused request."""
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
"""Code and words of a refused order, which stand inside an answer that is otherwise whole."""
_STATES = {"open": "live", "filled": "filled", "canceled": "canceled"}


class Okx:
    """The dialect of one book."""

    def __init__(self, book: PaperExchange) -> None:
        self.book = book
        self.public: Mapping[tuple[str, str], PublicHandler] = {
            ("GET", "/api/v5/public/time"): lambda _call: _whole([{"ts": str(_now())}]),
            ("GET", "/api/v5/public/instruments"): self._instruments,
            ("GET", "/api/v5/market/ticker"): self._ticker,
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/api/v5/account/config"): self._config,
            ("GET", "/api/v5/account/balance"): self._balance,
            ("GET", "/api/v5/account/positions"): self._positions,
            ("POST", "/api/v5/trade/order"): self._create,
            ("POST", "/api/v5/trade/batch-orders"): self._create_batch,
            ("POST", "/api/v5/trade/cancel-order"): self._cancel,
            ("GET", "/api/v5/trade/order"): self._order,
        }

    def account(self, call: ExchangeRequest) -> Account:
        """HMAC-SHA256 (base64) of time, method, path with query, and body."""
        account = self.book.accounts.get(call.header("OK-ACCESS-KEY"))
        if account is None:
            raise RequestRefused("key", "unknown key")
        if account.passphrase != call.header("OK-ACCESS-PASSPHRASE"):
            raise RequestRefused("passphrase", "wrong passphrase")
        sent = call.header("OK-ACCESS-TIMESTAMP")
        target = f"{call.path}?{call.query}" if call.query else call.path
        payload = f"{sent}{call.method}{target}{call.body}"
        digest = hmac.new(account.secret.encode(), payload.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(base64.b64encode(digest).decode(), call.header("OK-ACCESS-SIGN")):
            raise RequestRefused("signature", "wrong signature")
        try:
            sent_ms = datetime.fromisoformat(sent).timestamp() * 1000
        except ValueError:
            raise RequestRefused("time", "no time") from None
        if abs(sent_ms - _now()) > TIME_WINDOW_MS:
            raise RequestRefused("time", "request too old")
        return account

    def refusal(self, refused: RequestRefused, path: str) -> ExchangeResponse:
        """A refused order has code 1 and the reason inside `data`; everything else a code of its own."""
        if refused.reason in _ORDER_CODES and (refused.reason not in _CODES or path.endswith("/cancel-order")):
            return ExchangeResponse(200, {"code": "1", "msg": "All operations failed", "data": [_refused_row(refused)]})
        status, code, message = _CODES[refused.reason]
        return ExchangeResponse(status, {"code": code, "msg": f"{message} ({refused})", "data": []})

    def _config(self, account: Account, _call: ExchangeRequest) -> Any:
        mode = "long_short_mode" if account.hedged else "net_mode"
        return _whole([{"acctLv": "2", "posMode": mode, "uid": account.api_key}])

    def _instruments(self, call: ExchangeRequest) -> Any:
        kind = {"SPOT": "spot", "SWAP": "swap"}.get(str(call.arguments.get("instType")))
        return _whole([_instrument(market) for market in self.book.markets.values() if market.kind == kind])

    def _ticker(self, call: ExchangeRequest) -> Any:
        for market in self.book.markets.values():
            if market.id == call.arguments.get("instId"):
                price = text_of(self.book.prices[market.base])
                return _whole([{"instId": market.id, "last": price, "bidPx": price, "askPx": price, "ts": str(_now())}])
        raise RequestRefused("unknown_symbol", "no such market")

    def _balance(self, account: Account, _call: ExchangeRequest) -> Any:
        details = [
            {"ccy": asset, "eq": text_of(total), "cashBal": text_of(total), "availEq": text_of(total - used),
             "availBal": text_of(total - used), "frozenBal": text_of(used), "uTime": str(_now())}
            for asset, (total, used) in sorted(self.book.balances(account.shown(), "spot").items())
        ]  # fmt: skip
        return _whole([{"details": details, "uTime": str(_now())}])

    def _positions(self, account: Account, call: ExchangeRequest) -> Any:
        wanted = call.arguments.get("instId")
        return _whole([
            self._position(self.book.markets[symbol], slot, position)
            for (symbol, slot), position in sorted(account.shown().positions.items())
            if not wanted or self.book.markets[symbol].id in wanted.split(",")
        ])  # fmt: skip

    def _position(self, market: Market, slot: Slot, position: Position) -> dict[str, Any]:
        mark = self.book.prices[market.base]
        signed = position.quantity if slot == "net" else abs(position.quantity)
        with exact_arithmetic():
            size, value = contracts(market, signed), abs(position.quantity) * mark
            profit, margin = (mark - position.entry_price) * position.quantity, value / LEVERAGE
        return {
            "instId": market.id, "instType": "SWAP", "mgnMode": "cross", "posId": f"{market.id}-{slot}",
            "posSide": slot, "pos": text_of(size), "avgPx": text_of(position.entry_price), "markPx": text_of(mark),
            "lever": str(LEVERAGE), "notionalUsd": text_of(value), "upl": text_of(profit), "imr": text_of(margin),
            "mmr": "0", "liqPx": "", "ccy": "USDT", "cTime": str(_now()), "uTime": str(_now()),
        }  # fmt: skip

    def _create(self, account: Account, call: ExchangeRequest) -> Any:
        return _whole([self._placed(account, call.arguments)])

    def _create_batch(self, account: Account, call: ExchangeRequest) -> Any:
        """Each order for itself: code 0 when all were taken, 2 when some were, 1 when none was."""
        rows = []
        for asked in call.document:
            try:
                rows.append(self._placed(account, asked))
            except RequestRefused as refused:
                rows.append(_refused_row(refused))
        taken = sum(row["sCode"] == "0" for row in rows)
        return {"code": "0" if taken == len(rows) else "2" if taken else "1", "msg": "", "data": rows}

    def _placed(self, account: Account, asked: Mapping[str, Any]) -> dict[str, Any]:
        instrument = str(asked.get("instId"))
        kind: Literal["spot", "swap"] = "swap" if instrument.endswith("-SWAP") else "spot"
        market = self.book.market(instrument, kind)
        side: Literal["buy", "sell"] = "buy" if asked.get("side") == "buy" else "sell"
        is_market = asked.get("ordType") == "market"
        with exact_arithmetic():
            quantity = decimal_of(asked, "sz") * market.contract_size
            if kind == "spot" and is_market and side == "buy" and asked.get("tgtCcy") != "base_ccy":
                quantity = quantity / self.book.prices[market.base] // market.step * market.step
        slot: Slot = {"long": "long", "short": "short"}.get(str(asked.get("posSide")), "net")  # type: ignore[assignment]
        order = self.book.place(
            account, market, side, "market" if is_market else "limit", quantity,
            price=None if is_market else decimal_of(asked, "px"), slot=slot,
            reduce_only=str(asked.get("reduceOnly", "")).lower() == "true", client_id=str(asked.get("clOrdId", "")),
        )  # fmt: skip
        return {"ordId": order.id, "clOrdId": order.client_id, "tag": "", "sCode": "0", "sMsg": ""}

    def _cancel(self, account: Account, call: ExchangeRequest) -> Any:
        order = self.book.order(account, call.arguments.get("ordId"), call.arguments.get("clOrdId"))
        self.book.cancel(order)
        return _whole([{"ordId": order.id, "clOrdId": order.client_id, "sCode": "0", "sMsg": ""}])

    def _order(self, account: Account, call: ExchangeRequest) -> Any:
        order = self.book.order(account, call.arguments.get("ordId"), call.arguments.get("clOrdId"))
        return _whole([_order(order)])


def _now() -> int:
    return int(time.time() * 1000)


def _whole(rows: list[Any]) -> dict[str, Any]:
    return {"code": "0", "msg": "", "data": rows}


def _refused_row(refused: RequestRefused) -> dict[str, Any]:
    code, message = _ORDER_CODES[refused.reason]
    return {"ordId": "", "clOrdId": "", "sCode": code, "sMsg": f"{message} ({refused})"}


def _instrument(market: Market) -> dict[str, Any]:
    state = "live" if market.active else "suspend"
    with exact_arithmetic():
        step, least, most, most_market = (
            text_of(contracts(market, quantity))
            for quantity in (market.step, market.min_qty, market.max_qty, market.max_market_qty)
        )
    row: dict[str, Any] = {
        "instId": market.id, "state": state, "lotSz": step, "minSz": least, "maxLmtSz": most,
        "tickSz": text_of(market.tick), "listTime": "1600000000000", "lever": "10", "ruleType": "normal",
        "maxLmtAmt": "20000000", "maxMktAmt": "1000000",
    }  # fmt: skip
    if market.kind == "spot":
        # OKX bounds a spot market order in USDT, not in the base asset.
        return {**row, "instType": "SPOT", "baseCcy": market.base, "quoteCcy": "USDT", "maxMktSz": "1000000",
                "uly": "", "settleCcy": "", "ctVal": ""}  # fmt: skip
    pair = market.id.removesuffix("-SWAP")
    value = text_of(Decimal(100) if market.inverse else market.contract_size)
    if market.inverse:
        row |= {"lotSz": "1", "minSz": "1", "maxLmtSz": "1000000"}
    return {**row, "instType": "SWAP", "baseCcy": "", "quoteCcy": "", "uly": pair, "instFamily": pair,
            "settleCcy": market.base if market.inverse else "USDT", "ctVal": value, "ctMult": "1",
            "ctType": "inverse" if market.inverse else "linear", "maxMktSz": most_market}  # fmt: skip


def _order(order: Order) -> dict[str, Any]:
    with exact_arithmetic():
        size, filled = contracts(order.market, order.quantity), contracts(order.market, order.filled)
    state = "partially_filled" if order.state == "open" and order.filled else _STATES[order.state]
    return {
        "instId": order.market.id, "instType": "SWAP" if order.market.kind == "swap" else "SPOT", "ordId": order.id,
        "clOrdId": order.client_id, "ordType": order.kind, "side": order.side, "posSide": order.slot,
        "sz": text_of(size), "px": "" if order.price is None else text_of(order.price), "accFillSz": text_of(filled),
        "avgPx": text_of(order.average) if order.filled else "", "state": state, "fee": text_of(-order.fee),
        "feeCcy": order.fee_asset, "tgtCcy": "base_ccy" if order.market.kind == "spot" else "",
        "reduceOnly": str(order.reduce_only).lower(), "cTime": str(order.created_ms), "uTime": str(order.updated_ms),
        "fillTime": str(order.updated_ms), "lever": str(LEVERAGE),
    }  # fmt: skip
