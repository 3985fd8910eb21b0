"""Implements Binance's REST formats: spot (/api), USDT- and coin-margined futures (/fapi, /dapi), a wallet for each."""

import hashlib
import hmac
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qs

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account, Position, RequestRefused, Slot, Wallet, now_ms
from ledger_sizer.paper.binance_orders import CONTRACT_TYPES, SPOT_TYPES, BinanceOrders
from ledger_sizer.paper.binance_quotes import BinanceQuotes, family_of
from ledger_sizer.paper.exchange import LEVERAGE_MAX, PaperExchange
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
from ledger_sizer.paper.options import binance_options
from ledger_sizer.paper.quotes import MAINTENANCE_RATE, TIER_NOTIONAL, liquidation_price
from ledger_sizer.paper.tickers import binance_tickers
from ledger_sizer.paper.told import binance_activity
from ledger_sizer.paper.transfers import binance_transfers

_CODES = {
    "key": (401, -2015, "Invalid API-key, IP, or permissions for action."),
    "signature": (400, -1022, "Signature for this request is not valid."),
    "passphrase": (401, -2015, "Invalid API-key, IP, or permissions for action."),
    "time": (400, -1021, "Timestamp for this request is outside of the recvWindow."),
    "rate_limit": (429, -1003, "Too many requests; current limit is 1200 request weight per 1 MINUTE."),
    "outage": (503, -1001, "Internal error; unable to process your request. Please try again."),
    "forbidden": (401, -2015, "Invalid API-key, IP, or permissions for action."),
    "maintenance": (503, 1, "System is under maintenance."),
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
    "would_trigger": (400, -2021, "Order would immediately trigger."),
    "no_change": (400, -4046, "No need to change margin type."),
    "mode_unchanged": (400, -4059, "No need to change position side."),
    "mode_in_use": (400, -4068, "Position side cannot be changed if there exists position."),
    "bad_request": (400, -1100, "Illegal characters found in a parameter."),
}


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
            ("GET", "/sapi/v1/system/status"): lambda _request: {"status": 0, "msg": "normal"},
            **BinanceQuotes(exchange).routes,
        }
        self.private: Mapping[tuple[str, str], Handler] = {
            ("GET", "/sapi/v1/margin/allPairs"): lambda _account, _request: [],
            ("GET", "/sapi/v1/margin/isolated/allPairs"): lambda _account, _request: [],
            ("GET", "/sapi/v1/margin/account"): self._margin_account,
            ("POST", "/sapi/v1/asset/get-funding-asset"): self._funding_assets,
            ("GET", "/api/v3/account"): self._spot_account,
            ("GET", "/fapi/v2/balance"): self._futures_balance,
            ("GET", "/fapi/v3/balance"): self._futures_balance,
            ("GET", "/fapi/v2/account"): self._futures_account,
            ("GET", "/fapi/v3/account"): self._futures_account,
            ("GET", "/fapi/v1/leverageBracket"): self._brackets,
            ("GET", "/fapi/v1/positionSide/dual"): lambda account, _request: {"dualSidePosition": account.hedged},
            ("GET", "/fapi/v2/positionRisk"): self._positions,
            ("GET", "/fapi/v3/positionRisk"): self._positions,
            ("GET", "/dapi/v1/balance"): self._futures_balance,
            ("GET", "/dapi/v1/account"): self._futures_account,
            ("GET", "/dapi/v2/leverageBracket"): self._brackets,
            ("GET", "/dapi/v1/positionRisk"): self._positions,
            ("GET", "/eapi/v1/position"): lambda account, _request: binance_options(account.visible()),
            ("POST", "/fapi/v1/positionSide/dual"): self._set_position_mode,
            ("GET", "/fapi/v1/multiAssetsMargin"): lambda _account, _request: {"multiAssetsMargin": False},
            ("GET", "/fapi/v1/symbolConfig"): self._symbol_config,
            ("GET", "/fapi/v1/accountConfig"): self._account_config,
            ("POST", "/fapi/v1/leverage"): self._set_leverage,
            ("POST", "/fapi/v1/marginType"): self._set_margin_mode,
            ("GET", "/fapi/v1/commissionRate"): self._commission_rate,
            ("GET", "/sapi/v1/asset/tradeFee"): self._trade_fees,
            ("GET", "/sapi/v1/capital/config/getall"): self._coins,
            **BinanceOrders(exchange, _refused).routes,
            **binance_activity(),
            **binance_transfers(),
        }

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
        """List the spot wallet; coins that were lent out are listed as `LD` and their name."""
        visible = account.visible()
        rows = self.exchange.balances(visible, "spot")
        rows |= {f"LD{asset}": (units, Decimal(0)) for asset, units in visible.wallet("earn").items() if units}
        balances = [
            {"asset": asset, "free": text_of(total - used), "locked": text_of(used)}
            for asset, (total, used) in sorted(rows.items())
        ]
        return {"accountType": "SPOT", "canTrade": True, "balances": balances, "updateTime": now_ms()}

    def _margin_account(self, account: Account, _request: ExchangeRequest) -> Any:
        """List the cross margin wallet; what is below 0 is a debt."""
        rows = [
            {"asset": asset, "free": text_of(max(total, Decimal(0))), "locked": "0", "interest": "0",
             "borrowed": text_of(max(-total, Decimal(0))), "netAsset": text_of(total)}
            for asset, (total, _used) in sorted(self.exchange.balances(account.visible(), "margin").items())
        ]  # fmt: skip
        return {"borrowEnabled": True, "tradeEnabled": True, "userAssets": rows}

    def _funding_assets(self, account: Account, _request: ExchangeRequest) -> Any:
        return [
            {"asset": asset, "free": text_of(total), "locked": "0", "freeze": "0", "withdrawing": "0"}
            for asset, (total, _used) in sorted(self.exchange.balances(account.visible(), "funding").items())
        ]

    def _futures_assets(self, account: Account, wallet: Wallet) -> list[dict[str, Any]]:
        visible, rows = account.visible(), []
        profits = self.exchange.unrealized(visible, wallet)
        for asset, (total, used) in sorted(self.exchange.balances(visible, wallet).items()):
            with exact_arithmetic():
                margin_balance, available = total + profits[asset], total + min(profits[asset], Decimal(0)) - used
            rows.append({
                "accountAlias": "paper", "asset": asset, "balance": text_of(total), "walletBalance": text_of(total),
                "marginBalance": text_of(margin_balance), "crossWalletBalance": text_of(total),
                "initialMargin": text_of(used), "maintMargin": "0", "unrealizedProfit": text_of(profits[asset]),
                "availableBalance": text_of(available), "updateTime": now_ms(),
            })  # fmt: skip
        return rows

    def _futures_balance(self, account: Account, request: ExchangeRequest) -> Any:
        return self._futures_assets(account, _futures_wallet(request))

    def _futures_account(self, account: Account, request: ExchangeRequest) -> Any:
        assets = self._futures_assets(account, _futures_wallet(request))
        return {"assets": assets, "positions": self._positions(account, request)}

    def _brackets(self, _account: Account, request: ExchangeRequest) -> Any:
        inverse = _futures_wallet(request) == "delivery"
        cap, floor = ("qtyCap", "qtyFloor") if inverse else ("notionalCap", "notionalFloor")
        bracket = {"bracket": 1, "initialLeverage": LEVERAGE_MAX, cap: TIER_NOTIONAL, floor: 0,
                   "maintMarginRatio": str(MAINTENANCE_RATE), "cum": 0}  # fmt: skip
        mine = (m for m in self.exchange.markets.values() if m.kind == "swap" and m.inverse == inverse)
        return [{"symbol": market.id, "brackets": [bracket]} for market in mine]

    def _set_position_mode(self, account: Account, request: ExchangeRequest) -> Any:
        hedged = str(request.arguments.get("dualSidePosition")).lower() == "true"
        if hedged == account.hedged:
            raise RequestRefused("mode_unchanged", "no change")
        self.exchange.set_hedged(account, hedged=hedged)
        return {"code": 200, "msg": "success"}

    def _set_leverage(self, account: Account, request: ExchangeRequest) -> Any:
        market = self.exchange.market(str(request.arguments.get("symbol")), "swap")
        leverage = decimal_of(request.arguments, "leverage")
        self.exchange.set_leverage(account, market, leverage)
        return {"symbol": market.id, "leverage": int(leverage), "maxNotionalValue": str(TIER_NOTIONAL)}

    def _set_margin_mode(self, account: Account, request: ExchangeRequest) -> Any:
        market = self.exchange.market(str(request.arguments.get("symbol")), "swap")
        isolated = request.arguments.get("marginType") == "ISOLATED"
        if isolated == account.is_isolated(market.symbol):
            raise RequestRefused("no_change", "no change")
        (account.isolated_markets.add if isolated else account.isolated_markets.discard)(market.symbol)
        return {"code": 200, "msg": "success"}

    def _symbol_config(self, account: Account, request: ExchangeRequest) -> Any:
        wanted = request.arguments.get("symbol")
        return [
            {"symbol": market.id, "marginType": "ISOLATED" if account.is_isolated(market.symbol) else "CROSSED",
             "isAutoAddMargin": False, "leverage": int(account.leverage(market.symbol)),
             "maxNotionalValue": str(TIER_NOTIONAL)}
            for market in self.exchange.markets.values() if family_of(market) == "fapi" and wanted in (None, market.id)
        ]  # fmt: skip

    def _account_config(self, account: Account, _request: ExchangeRequest) -> Any:
        return {"feeTier": 0, "canTrade": True, "dualSidePosition": account.hedged, "multiAssetsMargin": False}

    def _commission_rate(self, _account: Account, request: ExchangeRequest) -> Any:
        rate = text_of(self.exchange.fee_rates["swap"])
        return {"symbol": request.arguments.get("symbol"), "makerCommissionRate": rate, "takerCommissionRate": rate}

    def _trade_fees(self, _account: Account, request: ExchangeRequest) -> Any:
        wanted, rate = request.arguments.get("symbol"), text_of(self.exchange.fee_rates["spot"])
        return [
            {"symbol": market.id, "makerCommission": rate, "takerCommission": rate}
            for market in self.exchange.markets.values() if family_of(market) == "api" and wanted in (None, market.id)
        ]  # fmt: skip

    def _coins(self, _account: Account, _request: ExchangeRequest) -> Any:
        return [
            {"coin": coin, "name": coin, "isLegalMoney": False, "trading": True, "networkList": []}
            for coin in self.exchange.coins()
        ]

    def _positions(self, account: Account, request: ExchangeRequest) -> Any:
        inverse, rows = _futures_wallet(request) == "delivery", []
        for symbol, slot, isolated, position in account.visible().held():
            market = self.exchange.market_of(symbol)
            if market.inverse == inverse and request.arguments.get("symbol", market.id) == market.id:
                row = self._position(account, market, slot, position, isolated=isolated)
                if request.path.split("/")[2] == "v2":
                    row |= {"leverage": text_of(account.leverage(symbol)),
                            "marginType": "isolated" if isolated else "cross"}  # fmt: skip
                rows.append(row)
        return rows

    def _position(
        self, account: Account, market: Market, slot: Slot, position: Position, *, isolated: bool
    ) -> dict[str, Any]:
        mark = self.exchange.prices[market.base]
        with exact_arithmetic():
            notional, profit = (
                market.worth(position.quantity, mark), market.profit(position.quantity, position.entry_price, mark)
            )  # fmt: skip
            margin = abs(notional) / account.leverage(market.symbol)
            # A coin-margined position counts contracts.
            amount = contracts(market, position.quantity) if market.inverse else position.quantity
        own = text_of(margin) if isolated else "0"
        liquidation = liquidation_price(market, position, account.leverage(market.symbol), isolated=isolated)
        return {
            "symbol": market.id, "positionSide": "BOTH" if slot == "net" else slot.upper(),
            "positionAmt": text_of(amount), "entryPrice": text_of(position.entry_price),
            "breakEvenPrice": text_of(position.entry_price), "markPrice": text_of(mark),
            "unRealizedProfit": text_of(profit), "liquidationPrice": text_of(liquidation or Decimal(0)),
            "isolatedMargin": own,
            "notionalValue" if market.inverse else "notional": text_of(notional), "isolatedWallet": own,
            "marginAsset": market.base if market.inverse else market.quote,
            "initialMargin": text_of(margin), "maintMargin": "0", "positionInitialMargin": text_of(margin),
            "openOrderInitialMargin": "0", "adl": 0, "bidNotional": "0", "askNotional": "0", "updateTime": now_ms(),
        }  # fmt: skip


def _refused(refused: RequestRefused) -> dict[str, Any]:
    _, code, message = _CODES[refused.reason]
    return {"code": code, "msg": message}


def _futures_wallet(request: ExchangeRequest) -> Literal["swap", "delivery"]:
    return "delivery" if request.path.startswith("/dapi/") else "swap"


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
        "orderTypes": list(SPOT_TYPES if market.kind == "spot" else CONTRACT_TYPES), "filters": filters,
        "quantityPrecision": 8, "pricePrecision": 8,
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
