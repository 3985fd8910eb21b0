"""Tells what happened to an account in the three exchanges' formats: fills, forced orders, transfers, funding."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ledger_sizer.paper.accounts import Account
from ledger_sizer.paper.http import ExchangeRequest, Handler, contracts, text_of
from ledger_sizer.paper.journal import Movement, Trade
from ledger_sizer.paper.markets import Market

Routes = Mapping[tuple[str, str], Handler]


def _since(request: ExchangeRequest, name: str) -> int:
    return int(request.arguments.get(name) or 0)


def _trades(
    account: Account, request: ExchangeRequest, since: str, until: str, market_id: str, order_id: str = "orderId"
) -> list[Trade]:
    """Return the trades that a request is about. The arguments name its parameters."""
    wanted, order, begin = request.arguments.get(market_id), request.arguments.get(order_id), _since(request, since)
    end = _since(request, until)
    return [
        trade for trade in account.visible().journal.trades
        if begin <= trade.time_ms and (not end or trade.time_ms <= end)
        and wanted in (None, trade.market.id) and order in (None, trade.order_id)
    ]  # fmt: skip


def _client_id(account: Account, trade: Trade) -> str:
    """Return the client order id of the order of a trade, '' without one."""
    order = account.orders.get(trade.order_id)
    return order.client_id if order else ""


def _movements(account: Account, request: ExchangeRequest, since: str, kind: str, asset: str) -> list[Movement]:
    wanted, begin = request.arguments.get(asset), _since(request, since)
    return [
        one for one in account.visible().journal.movements
        if one.kind == kind and one.time_ms >= begin and wanted in (None, one.asset)
    ]  # fmt: skip


def _size(market: Market, quantity: Decimal) -> str:
    """Return the quantity as Binance and Bybit count it: contracts of a coin-margined market, else base units."""
    return text_of(abs(contracts(market, quantity) if market.inverse else quantity))


# --- Binance ---------------------------------------------------------------------------------------

BINANCE_WALLETS: Mapping[str, str] = {
    "spot": "MAIN",
    "swap": "UMFUTURE",
    "delivery": "CMFUTURE",
    "margin": "MARGIN",
    "funding": "FUNDING",
}
"""How a transfer names the wallets."""


def binance_activity() -> Routes:
    """Return Binance's private calls about what happened."""
    return {
        ("GET", "/api/v3/myTrades"): lambda account, request: _binance_trades(account, request, "spot"),
        ("GET", "/fapi/v1/userTrades"): lambda account, request: _binance_trades(account, request, "swap"),
        ("GET", "/dapi/v1/userTrades"): lambda account, request: _binance_trades(account, request, "swap"),
        ("GET", "/fapi/v1/forceOrders"): _binance_forced,
        ("GET", "/dapi/v1/forceOrders"): _binance_forced,
        ("GET", "/fapi/v1/income"): _binance_income,
        ("GET", "/dapi/v1/income"): _binance_income,
        ("GET", "/sapi/v1/asset/transfer"): _binance_transfers,
        ("GET", "/sapi/v1/capital/deposit/hisrec"): _binance_deposits,
        ("GET", "/sapi/v1/capital/withdraw/history"): _binance_withdrawals,
    }


def _binance_trades(account: Account, request: ExchangeRequest, kind: str) -> Any:
    rows = []
    for one in _trades(account, request, "startTime", "endTime", "symbol"):
        if one.market.kind != kind:
            continue
        bought = one.quantity > 0
        row = {
            "symbol": one.market.id, "id": one.id, "orderId": int(one.order_id), "price": text_of(one.price),
            "qty": _size(one.market, one.quantity), "quoteQty": text_of(abs(one.quantity) * one.price),
            "commission": text_of(one.fee), "commissionAsset": one.fee_asset, "time": one.time_ms,
        }  # fmt: skip
        rows.append(row | (
            {"isBuyer": bought, "isMaker": False, "isBestMatch": True, "orderListId": -1} if kind == "spot"
            else {"buyer": bought, "maker": False, "side": one.side.upper(), "positionSide": "BOTH", "realizedPnl": "0"}
        ))  # fmt: skip
    return rows


def _binance_forced(account: Account, request: ExchangeRequest) -> Any:
    cause = {"LIQUIDATION": "liquidation", "ADL": "deleveraging"}.get(str(request.arguments.get("autoCloseType")))
    return [
        {"orderId": int(one.order_id), "symbol": one.market.id, "status": "FILLED", "clientOrderId": "autoclose-1",
         "price": text_of(one.price), "avgPrice": text_of(one.price), "origQty": _size(one.market, one.quantity),
         "executedQty": _size(one.market, one.quantity), "cumQuote": text_of(abs(one.quantity) * one.price),
         "timeInForce": "IOC", "type": "LIMIT", "side": one.side.upper(), "positionSide": "BOTH",
         "time": one.time_ms, "updateTime": one.time_ms}
        for one in _trades(account, request, "startTime", "endTime", "symbol")
        if one.cause in (cause, *(("liquidation", "deleveraging") if cause is None else ()))
        and one.cause in ("liquidation", "deleveraging")
    ]  # fmt: skip


def _binance_income(account: Account, request: ExchangeRequest) -> Any:
    return [
        {"symbol": one.market.id, "incomeType": "FUNDING_FEE", "income": text_of(one.quantity), "asset": one.asset,
         "info": "FUNDING_FEE", "time": one.time_ms, "tranId": one.id, "tradeId": ""}
        for one in _movements(account, request, "startTime", "funding", "asset")
        if one.market and request.arguments.get("symbol") in (None, one.market.id)
    ]  # fmt: skip


def _binance_transfers(account: Account, request: ExchangeRequest) -> Any:
    wanted = request.arguments.get("type")
    rows = [
        {"asset": one.asset, "amount": text_of(abs(one.quantity)), "status": "CONFIRMED", "tranId": one.id,
         "type": f"{BINANCE_WALLETS[one.source]}_{BINANCE_WALLETS[one.target]}", "timestamp": one.time_ms}
        for one in _movements(account, request, "startTime", "transfer", "asset")
    ]  # fmt: skip
    found = [row for row in rows if row["type"] == wanted]
    return {"total": len(found), "rows": found}


def _binance_deposits(account: Account, request: ExchangeRequest) -> Any:
    return [
        {"id": str(one.id), "amount": text_of(one.quantity), "coin": one.asset, "network": one.asset, "status": 1,
         "address": "paper", "txId": f"paper-{one.id}", "insertTime": one.time_ms, "transferType": 0}
        for one in _movements(account, request, "startTime", "deposit", "coin")
    ]  # fmt: skip


def _binance_withdrawals(account: Account, request: ExchangeRequest) -> Any:
    return [
        {"id": str(one.id), "amount": text_of(-one.quantity), "transactionFee": "0", "coin": one.asset, "status": 6,
         "address": "paper", "txId": f"paper-{one.id}", "network": one.asset, "transferType": 0,
         "applyTime": f"{datetime.fromtimestamp(one.time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"}
        for one in _movements(account, request, "startTime", "withdrawal", "coin")
    ]  # fmt: skip


# --- Bybit -----------------------------------------------------------------------------------------

_BYBIT_CAUSES = {"order": "Trade", "hand": "Trade", "liquidation": "BustTrade", "deleveraging": "AdlTrade"}


def bybit_activity(success: Callable[[Any], Any], category_of: Callable[[Market], str]) -> Routes:
    """Return Bybit's private calls about what happened."""

    def executions(account: Account, request: ExchangeRequest) -> Any:
        category, kind = request.arguments.get("category"), request.arguments.get("execType")
        if kind == "Funding":
            rows = [_bybit_funding(one) for one in _movements(account, request, "startTime", "funding", "coin")]
            rows = [row for row in rows if request.arguments.get("symbol") in (None, row["symbol"])]
        else:
            rows = [
                {**_bybit_execution(one), "orderLinkId": _client_id(account, one)}
                for one in _trades(account, request, "startTime", "endTime", "symbol")
                if category_of(one.market) == category and kind in (None, _BYBIT_CAUSES[one.cause])
                and request.arguments.get("orderLinkId") in (None, _client_id(account, one))
            ]  # fmt: skip
        return success({"category": category, "list": rows[::-1], "nextPageCursor": ""})

    def transfers(account: Account, request: ExchangeRequest) -> Any:
        rows = [
            {"transferId": str(one.id), "coin": one.asset, "amount": text_of(abs(one.quantity)), "status": "SUCCESS",
             "fromAccountType": "FUND" if one.source == "funding" else "UNIFIED",
             "toAccountType": "FUND" if one.target == "funding" else "UNIFIED", "timestamp": str(one.time_ms)}
            for one in _movements(account, request, "startTime", "transfer", "coin")
        ]  # fmt: skip
        return success({"list": rows, "nextPageCursor": ""})

    def deposits(account: Account, request: ExchangeRequest) -> Any:
        rows = [
            {"coin": one.asset, "chain": one.asset, "amount": text_of(one.quantity), "txID": f"paper-{one.id}",
             "status": 3, "toAddress": "paper", "tag": "", "depositFee": "0", "successAt": str(one.time_ms)}
            for one in _movements(account, request, "startTime", "deposit", "coin")
        ]  # fmt: skip
        return success({"rows": rows, "nextPageCursor": ""})

    def withdrawals(account: Account, request: ExchangeRequest) -> Any:
        rows = [
            {"coin": one.asset, "chain": one.asset, "amount": text_of(-one.quantity), "txID": f"paper-{one.id}",
             "status": "success", "toAddress": "paper", "tag": "", "withdrawFee": "0", "withdrawId": str(one.id),
             "createTime": str(one.time_ms), "updateTime": str(one.time_ms), "withdrawType": 0}
            for one in _movements(account, request, "startTime", "withdrawal", "coin")
        ]  # fmt: skip
        return success({"rows": rows, "nextPageCursor": ""})

    return {
        ("GET", "/v5/execution/list"): executions,
        ("GET", "/v5/asset/transfer/query-inter-transfer-list"): transfers,
        ("GET", "/v5/asset/deposit/query-record"): deposits,
        ("GET", "/v5/asset/withdraw/query-record"): withdrawals,
    }


def _bybit_execution(one: Trade) -> dict[str, Any]:
    return {
        "symbol": one.market.id, "orderId": one.order_id, "side": one.side.capitalize(),
        "execId": f"paper-{one.id}", "execPrice": text_of(one.price), "execQty": text_of(abs(one.quantity)),
        "execValue": text_of(abs(one.quantity) * one.price), "execFee": text_of(one.fee), "feeRate": "0",
        "feeCurrency": one.fee_asset, "execTime": str(one.time_ms), "execType": _BYBIT_CAUSES[one.cause],
        "isMaker": False, "orderType": "Market", "closedSize": "0", "leavesQty": "0",
    }  # fmt: skip


def _bybit_funding(one: Movement) -> dict[str, Any]:
    """Return a funding payment: its fee is above 0 when it was paid."""
    assert one.market is not None
    return {
        "symbol": one.market.id, "orderId": f"funding-{one.id}", "side": "Buy", "execId": f"funding-{one.id}",
        "execPrice": "0", "execQty": "0", "execValue": "0", "execFee": text_of(-one.quantity), "feeRate": "0.0001",
        "execTime": str(one.time_ms), "execType": "Funding", "isMaker": False,
    }  # fmt: skip


# --- OKX -------------------------------------------------------------------------------------------

_OKX_WALLETS = {"funding": "6"}
_OKX_CODES = {"order": ("1", "2"), "hand": ("1", "2"), "liquidation": ("104", "105"), "deleveraging": ("125", "126")}
"""`subType` of a buy and of a sell: of a forced one, that of closing a short and of closing a long swapped by OKX."""


def okx_activity(success: Callable[[list[Any]], Any], type_of: Callable[[Market], str]) -> Routes:
    """Return OKX's private calls about what happened."""

    def fills(account: Account, request: ExchangeRequest) -> Any:
        return success([
            {**_okx_fill(one, type_of(one.market)), "clOrdId": _client_id(account, one)}
            for one in reversed(_trades(account, request, "begin", "end", "instId", "ordId"))
            if request.arguments.get("instType") in (None, type_of(one.market))
        ])  # fmt: skip

    def bills(account: Account, request: ExchangeRequest) -> Any:
        kind = {"1": "transfer", "8": "funding"}.get(str(request.arguments.get("type")), "")
        return success([_okx_bill(one, type_of) for one in _movements(account, request, "begin", kind, "ccy")])

    def deposits(account: Account, request: ExchangeRequest) -> Any:
        return success([
            {"ccy": one.asset, "amt": text_of(one.quantity), "txId": f"paper-{one.id}", "ts": str(one.time_ms),
             "state": "2", "depId": str(one.id), "from": "", "to": "paper", "chain": one.asset}
            for one in _movements(account, request, "before", "deposit", "ccy")
        ])  # fmt: skip

    def withdrawals(account: Account, request: ExchangeRequest) -> Any:
        return success([
            {"ccy": one.asset, "amt": text_of(-one.quantity), "fee": "0", "txId": f"paper-{one.id}",
             "ts": str(one.time_ms), "state": "2", "wdId": str(one.id), "from": "", "to": "paper", "chain": one.asset}
            for one in _movements(account, request, "before", "withdrawal", "ccy")
        ])  # fmt: skip

    return {
        ("GET", "/api/v5/trade/fills-history"): fills,
        ("GET", "/api/v5/account/bills-archive"): bills,
        ("GET", "/api/v5/asset/deposit-history"): deposits,
        ("GET", "/api/v5/asset/withdrawal-history"): withdrawals,
    }


def _okx_fill(one: Trade, kind: str) -> dict[str, Any]:
    return {
        "instType": kind, "instId": one.market.id, "tradeId": str(one.id), "ordId": one.order_id,
        "billId": str(one.id), "subType": _OKX_CODES[one.cause][one.side == "sell"], "tag": "",
        "fillPx": text_of(one.price), "fillSz": text_of(abs(contracts(one.market, one.quantity))), "side": one.side,
        "posSide": "net", "execType": "T", "feeCcy": one.fee_asset, "fee": text_of(-one.fee), "ts": str(one.time_ms),
    }  # fmt: skip


def _okx_bill(one: Movement, type_of: Callable[[Market], str]) -> dict[str, Any]:
    market = one.market
    return {
        "billId": str(one.id), "ccy": one.asset, "balChg": text_of(one.quantity), "sz": text_of(one.quantity),
        "bal": "0", "type": "8" if market else "1", "subType": "173" if market else "11", "ts": str(one.time_ms),
        "instId": market.id if market else "", "instType": type_of(market) if market else "", "pnl": "0", "fee": "0",
        "from": "" if market else _OKX_WALLETS.get(one.source, "18"),
        "to": "" if market else _OKX_WALLETS.get(one.target, "18"), "posBalChg": "0", "ordId": "",
    }  # fmt: skip
