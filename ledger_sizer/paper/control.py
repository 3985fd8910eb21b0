"""Controls the paper venue: deposits, manual trades, liquidations, price moves, faults.

The actions are called over HTTP (`POST /paper/{venue}/{action}` with a JSON object) or from Python (`PaperControl`).
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import httpx

from ledger_sizer.model.market_names import parse_symbol
from ledger_sizer.paper.exchange import QUOTE, Account, PaperExchange, RequestRefused, Slot
from ledger_sizer.paper.faults import Fault, Faults
from ledger_sizer.paper.http import decimal_of, text_of
from ledger_sizer.paper.markets import Market

DEFAULT_KEY, DEFAULT_SECRET, DEFAULT_PASSPHRASE = "paper", "paper-secret", "paper-passphrase"
"""Credentials of each venue's initial account."""

Action = Callable[[PaperExchange, Faults, Mapping[str, Any]], object]


def state_of(exchange: PaperExchange, faults: Faults) -> dict[str, Any]:
    """Return a venue's true state, even while it serves stale data. Quantities in base units, negative for a short."""
    return {
        "venue": exchange.venue,
        "prices": {base: text_of(price) for base, price in exchange.prices.items()},
        "fills_at_once": exchange.fills_at_once,
        "faults": [fault.kind for fault in faults.pending],
        "accounts": {key: _account_state(account) for key, account in exchange.accounts.items()},
    }


def _account_state(account: Account) -> dict[str, Any]:
    wallets = {
        name: {asset: text_of(units) for asset, units in wallet.items() if units}
        for name, wallet in account.wallets.items()
    }
    positions = [
        {
            "symbol": symbol,
            "slot": slot,
            "quantity": text_of(held.quantity),
            "entry_price": text_of(held.entry_price),
        }
        for (symbol, slot), held in account.positions.items()
    ]
    return {
        "hedged": account.hedged,
        "stale": account.stale_copy is not None,
        "wallets": wallets,
        "positions": positions,
        "open_orders": [order.id for order in account.orders.values() if order.state == "open"],
    }


def _account(exchange: PaperExchange, form: Mapping[str, Any]) -> Account:
    account = exchange.accounts.get(str(form.get("api_key", DEFAULT_KEY)))
    if account is None:
        raise RequestRefused("bad_request", f"{exchange.venue} has no account with the key {form.get('api_key')!r}")
    return account


def _swap(exchange: PaperExchange, form: Mapping[str, Any]) -> Market:
    market = exchange.markets.get(str(form.get("symbol")))
    if market is None or market.kind != "swap":
        known = ", ".join(symbol for symbol, found in exchange.markets.items() if found.kind == "swap")
        raise RequestRefused("bad_request", f"symbol {form.get('symbol')!r} is no perpetual here; there are {known}")
    return market


def _slot(account: Account, form: Mapping[str, Any]) -> Slot:
    side = form.get("side")
    if not account.hedged:
        return "net"
    if side not in ("long", "short"):
        raise RequestRefused("bad_request", f"side must be long or short in a hedge-mode account, got {side!r}")
    return "long" if side == "long" else "short"


def _open_account(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    given = form.get("balances", {QUOTE: "100000"})
    exchange.open_account(
        str(form["api_key"]),
        str(form.get("secret", DEFAULT_SECRET)),
        str(form.get("passphrase", DEFAULT_PASSPHRASE)),
        hedged=form.get("hedged") is True,
        balances={asset: decimal_of(given, asset) for asset in given},
    )


def _deposit(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    wallet = _account(exchange, form).wallet(str(form.get("wallet", "spot")))
    wallet[str(form.get("asset", QUOTE))] += decimal_of(form, "quantity")


def _open(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    if form.get("side") not in ("long", "short"):
        raise RequestRefused("bad_request", f"side must be long or short, got {form.get('side')!r}")
    quantity = decimal_of(form, "quantity")
    exchange.move_position(account, market, _slot(account, form), quantity if form["side"] == "long" else -quantity)


def _close(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    slot = _slot(account, form)
    held = account.positions.get((market.symbol, slot))
    if held is None:
        raise RequestRefused("bad_request", f"there is no position in {market.symbol}")
    quantity = decimal_of(form, "quantity") if "quantity" in form else abs(held.quantity)
    exchange.move_position(account, market, slot, quantity if held.quantity < 0 else -quantity)


def _liquidate(exchange: PaperExchange, faults: Faults, form: Mapping[str, Any]) -> None:
    """Close the position, take its margin, and cancel the market's open orders."""
    account, market = _account(exchange, form), _swap(exchange, form)
    margin_before = account.margin(exchange.prices, exchange.markets)
    _close(exchange, faults, {name: value for name, value in form.items() if name != "quantity"})
    account.wallet("swap")[QUOTE] -= margin_before - account.margin(exchange.prices, exchange.markets)
    for order in account.orders.values():
        if order.market == market and order.state == "open":
            exchange.cancel(order)


def _flip(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    held = account.positions.get((market.symbol, "net"))
    if held is None:
        raise RequestRefused("bad_request", f"there is no one-way position in {market.symbol} to turn")
    exchange.move_position(account, market, "net", -2 * held.quantity)


def _list(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    """List a market, or list it anew with other rules."""
    names = parse_symbol(str(form.get("symbol")))
    if names is None or names.kind == "future":
        raise RequestRefused("bad_request", f"symbol {form.get('symbol')!r} is no spot or perpetual of ccxt's form")
    step, price = decimal_of(form, "step"), decimal_of(form, "price")
    if step <= 0 or price <= 0:
        raise RequestRefused("bad_request", f"step and price must be above 0, got {step} and {price}")
    otherwise = {"max_qty": step * 10_000_000, "min_notional": Decimal(0), "contract_size": Decimal(1)}
    given = {name: decimal_of(form, name) if name in form else value for name, value in otherwise.items()}
    exchange.markets[str(form["symbol"])] = Market(
        str(form["symbol"]), str(form["id"]), names.base, "spot" if names.kind == "spot" else "swap", step, step,
        max_qty=given["max_qty"], max_market_qty=given["max_qty"], min_notional=given["min_notional"],
        tick=price.scaleb(-5).normalize(), contract_size=given["contract_size"], quote=names.quote,
    )  # fmt: skip
    exchange.prices[names.base] = price


def _price(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.move_price(str(form.get("asset")), decimal_of(form, "price"))


def _stale(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.set_stale([_account(exchange, form)], stale=form.get("stale", True) is True)


def _fills(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.fills_at_once = form.get("at_once", True) is True
    if exchange.fills_at_once:
        exchange.fill_open_orders()


def _fill(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account = _account(exchange, form)
    order = exchange.order(account, str(form.get("order_id", "")))
    exchange.fill(account, order, decimal_of(form, "quantity") if "quantity" in form else order.quantity)


def _fault(_book: PaperExchange, faults: Faults, form: Mapping[str, Any]) -> None:
    faults.inject(Fault(form.get("kind", ""), str(form.get("path", "")), form.get("times", 1), form.get("seconds", 5)))


def _clear_faults(_book: PaperExchange, faults: Faults, _form: Mapping[str, Any]) -> None:
    faults.clear()


ACTIONS: Mapping[str, Action] = {
    "account": _open_account,
    "deposit": _deposit,
    "open": _open,
    "close": _close,
    "liquidate": _liquidate,
    "flip": _flip,
    "list": _list,
    "price": _price,
    "stale": _stale,
    "fills": _fills,
    "fill": _fill,
    "fault": _fault,
    "clear-faults": _clear_faults,
}
"""The actions of `POST /paper/{venue}/{action}`."""


class PaperControl:
    """Controls one venue and one account of a paper server. url: the server's, as it prints it.

    Every action raises `ValueError` with the server's message when it is refused.
    """

    def __init__(self, url: str, venue: str, api_key: str = DEFAULT_KEY) -> None:
        self.venue = venue
        self._url = f"{url}/paper/{venue}"
        self.api_key = api_key

    def state(self) -> dict[str, Any]:
        """Return the true state: prices, faults, and every account's wallets, positions and open orders."""
        state: dict[str, Any] = httpx.get(self._url, trust_env=False).json()
        return state

    def open_account(
        self, *, hedged: bool = False, balances: Mapping[str, Decimal] | None = None, secret: str = DEFAULT_SECRET
    ) -> None:
        """Open this control's account. balances: units by asset, 100,000 USDT when None."""
        given = {} if balances is None else {"balances": {asset: str(units) for asset, units in balances.items()}}
        self._post("account", hedged=hedged, secret=secret, **given)

    def deposit(self, asset: str, quantity: Decimal, wallet: str = "spot") -> None:
        """Add units of an asset; a negative quantity withdraws. wallet: `spot` or `swap`, separate on Binance only."""
        self._post("deposit", asset=asset, quantity=str(quantity), wallet=wallet)

    def open(self, symbol: str, side: str, quantity: Decimal) -> None:
        """Open or add to a position by hand, as a user of the exchange's website would. quantity: base units."""
        self._post("open", symbol=symbol, side=side, quantity=str(quantity))

    def close(self, symbol: str, quantity: Decimal | None = None, side: str | None = None) -> None:
        """Close a position by hand, or a part of it. side: `long` or `short`, in a hedge-mode account only."""
        self._post("close", symbol=symbol, quantity=quantity and str(quantity), side=side)

    def liquidate(self, symbol: str, side: str | None = None) -> None:
        """Liquidate: the exchange closes the position, cancels the market's orders and keeps the margin."""
        self._post("liquidate", symbol=symbol, side=side)

    def flip(self, symbol: str) -> None:
        """Turn a one-way position to the opposite side, same size."""
        self._post("flip", symbol=symbol)

    def list_market(self, symbol: str, market_id: str, price: Decimal, step: Decimal, **more: Decimal) -> None:
        """List a market by ccxt's name and the exchange's own. Its base has this price from now on.

        step: base units, also the smallest order. more: `max_qty`, `contract_size` (base units), `min_notional` (USDT).
        """
        given = {name: str(value) for name, value in {"price": price, "step": step, **more}.items()}
        self._post("list", symbol=symbol, id=market_id, **given)

    def price(self, asset: str, price: Decimal) -> None:
        """Set an asset's price, USDT, and fill the orders that it reaches."""
        self._post("price", asset=asset, price=str(price))

    def stale(self, *, stale: bool = True) -> None:
        """Serve the present balances and positions until called with `stale=False`, whatever changes."""
        self._post("stale", stale=stale)

    def fills(self, *, at_once: bool) -> None:
        """Fill orders at once, or keep them open until `fill` or until this is switched on again."""
        self._post("fills", at_once=at_once)

    def fill(self, order_id: str, quantity: Decimal | None = None) -> None:
        """Fill an open order, or `quantity` base units of it."""
        self._post("fill", order_id=order_id, quantity=quantity and str(quantity))

    def fault(self, kind: str, path: str = "", *, times: int | None = 1, seconds: float = 5) -> None:
        """Inject a fault into the next `times` requests whose path contains `path` (see `faults.Fault`)."""
        self._post("fault", kind=kind, path=path, times=times, seconds=seconds)

    def clear_faults(self) -> None:
        """Remove all pending faults."""
        self._post("clear-faults")

    def _post(self, action: str, **form: Any) -> None:
        kept = {name: value for name, value in form.items() if value is not None or name == "times"}
        response = httpx.post(f"{self._url}/{action}", json={"api_key": self.api_key, **kept}, trust_env=False)
        if response.is_error:
            raise ValueError(response.json()["error"])
