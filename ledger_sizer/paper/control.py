"""What no exchange lets you do on demand: deposits, manual closes, liquidations, price moves, faults.

The same actions over HTTP (`POST /paper/{venue}/{action}` with a JSON object) and from Python (`PaperControl`).
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import httpx

from ledger_sizer.paper.exchange import QUOTE, Account, PaperExchange, RequestRefused, Slot
from ledger_sizer.paper.faults import Fault, Faults
from ledger_sizer.paper.http import decimal_of, text_of
from ledger_sizer.paper.markets import Market

DEFAULT_KEY, DEFAULT_SECRET, DEFAULT_PASSPHRASE = "paper", "paper-secret", "paper-passphrase"
"""Credentials of the account that every venue begins with."""

Action = Callable[[PaperExchange, Faults, Mapping[str, Any]], object]


def state_of(book: PaperExchange, faults: Faults) -> dict[str, Any]:
    """What a venue really holds, also while it shows stale answers. Quantities in base units, below 0 is short."""
    return {
        "venue": book.venue,
        "prices": {base: text_of(price) for base, price in book.prices.items()},
        "fills_at_once": book.fills_at_once,
        "faults": [fault.kind for fault in faults.waiting],
        "accounts": {key: _account_state(account) for key, account in book.accounts.items()},
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
        "stale": account.frozen is not None,
        "wallets": wallets,
        "positions": positions,
        "open_orders": [order.id for order in account.orders.values() if order.state == "open"],
    }


def _account(book: PaperExchange, form: Mapping[str, Any]) -> Account:
    account = book.accounts.get(str(form.get("api_key", DEFAULT_KEY)))
    if account is None:
        raise RequestRefused("bad_request", f"{book.venue} has no account with the key {form.get('api_key')!r}")
    return account


def _swap(book: PaperExchange, form: Mapping[str, Any]) -> Market:
    market = book.markets.get(str(form.get("symbol")))
    if market is None or market.kind != "swap":
        known = ", ".join(symbol for symbol, found in book.markets.items() if found.kind == "swap")
        raise RequestRefused("bad_request", f"symbol {form.get('symbol')!r} is no perpetual here; there are {known}")
    return market


def _slot(account: Account, form: Mapping[str, Any]) -> Slot:
    side = form.get("side")
    if not account.hedged:
        return "net"
    if side not in ("long", "short"):
        raise RequestRefused("bad_request", f"side must be long or short in a hedge-mode account, got {side!r}")
    return "long" if side == "long" else "short"


def _open_account(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    given = form.get("balances", {QUOTE: "100000"})
    book.open_account(
        str(form["api_key"]),
        str(form.get("secret", DEFAULT_SECRET)),
        str(form.get("passphrase", DEFAULT_PASSPHRASE)),
        hedged=form.get("hedged") is True,
        balances={asset: decimal_of(given, asset) for asset in given},
    )


def _deposit(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    wallet = _account(book, form).wallet(str(form.get("wallet", "spot")))
    wallet[str(form.get("asset", QUOTE))] += decimal_of(form, "quantity")


def _open(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(book, form), _swap(book, form)
    if form.get("side") not in ("long", "short"):
        raise RequestRefused("bad_request", f"side must be long or short, got {form.get('side')!r}")
    quantity = decimal_of(form, "quantity")
    book.move_position(account, market, _slot(account, form), quantity if form["side"] == "long" else -quantity)


def _close(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(book, form), _swap(book, form)
    slot = _slot(account, form)
    held = account.positions.get((market.symbol, slot))
    if held is None:
        raise RequestRefused("bad_request", f"there is no position in {market.symbol}")
    quantity = decimal_of(form, "quantity") if "quantity" in form else abs(held.quantity)
    book.move_position(account, market, slot, quantity if held.quantity < 0 else -quantity)


def _liquidate(book: PaperExchange, faults: Faults, form: Mapping[str, Any]) -> None:
    """Close the position and take the margin it tied up."""
    account, market = _account(book, form), _swap(book, form)
    margin_before = account.margin(book.prices, book.markets)
    _close(book, faults, {name: value for name, value in form.items() if name != "quantity"})
    account.wallet("swap")[QUOTE] -= margin_before - account.margin(book.prices, book.markets)
    for order in account.orders.values():
        if order.market == market and order.state == "open":
            book.cancel(order)


def _flip(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(book, form), _swap(book, form)
    held = account.positions.get((market.symbol, "net"))
    if held is None:
        raise RequestRefused("bad_request", f"there is no one-way position in {market.symbol} to turn")
    book.move_position(account, market, "net", -2 * held.quantity)


def _price(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    book.move_price(str(form.get("asset")), decimal_of(form, "price"))


def _stale(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    book.freeze([_account(book, form)], stale=form.get("stale", True) is True)


def _fills(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    book.fills_at_once = form.get("at_once", True) is True
    if book.fills_at_once:
        book.fill_open_orders()


def _fill(book: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account = _account(book, form)
    order = book.order(account, str(form.get("order_id", "")))
    book.fill(account, order, decimal_of(form, "quantity") if "quantity" in form else order.quantity)


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
    "price": _price,
    "stale": _stale,
    "fills": _fills,
    "fill": _fill,
    "fault": _fault,
    "clear-faults": _clear_faults,
}
"""What `POST /paper/{venue}/{action}` can do."""


class PaperControl:
    """The control side of one venue and one account of a paper server. url: the server's, as it prints it.

    Every call raises `ValueError` with the server's words when it is refused.
    """

    def __init__(self, url: str, venue: str, api_key: str = DEFAULT_KEY) -> None:
        self._url = f"{url}/paper/{venue}"
        self.api_key = api_key

    def state(self) -> dict[str, Any]:
        """Prices, faults, and every account's wallets, positions and open orders, as they really are."""
        found: dict[str, Any] = httpx.get(self._url, trust_env=False).json()
        return found

    def open_account(
        self, *, hedged: bool = False, balances: Mapping[str, Decimal] | None = None, secret: str = DEFAULT_SECRET
    ) -> None:
        """Open the account this control is about. balances: units by asset, 100,000 USDT when None."""
        given = {} if balances is None else {"balances": {asset: str(units) for asset, units in balances.items()}}
        self._do("account", hedged=hedged, secret=secret, **given)

    def deposit(self, asset: str, quantity: Decimal, wallet: str = "spot") -> None:
        """Add units of an asset; below 0 withdraws. wallet: `spot` or `swap`, which only Binance keeps apart."""
        self._do("deposit", asset=asset, quantity=str(quantity), wallet=wallet)

    def open(self, symbol: str, side: str, quantity: Decimal) -> None:
        """Open or add to a position by hand, as somebody at the exchange's own screen would. Base units."""
        self._do("open", symbol=symbol, side=side, quantity=str(quantity))

    def close(self, symbol: str, quantity: Decimal | None = None, side: str | None = None) -> None:
        """Close a position by hand, or a part of it. side: in a hedge-mode account `long` or `short`."""
        self._do("close", symbol=symbol, quantity=quantity and str(quantity), side=side)

    def liquidate(self, symbol: str, side: str | None = None) -> None:
        """The exchange closes the position, cancels its orders and keeps its margin."""
        self._do("liquidate", symbol=symbol, side=side)

    def flip(self, symbol: str) -> None:
        """Turn a one-way position to the other side."""
        self._do("flip", symbol=symbol)

    def price(self, asset: str, price: Decimal) -> None:
        """Set an asset's price, USDT; orders that it reaches fill."""
        self._do("price", asset=asset, price=str(price))

    def stale(self, *, stale: bool = True) -> None:
        """Show balances and positions as they are now, whatever happens, until called with `stale=False`."""
        self._do("stale", stale=stale)

    def fills(self, *, at_once: bool) -> None:
        """Whether orders fill as they come, or stay open until `fill` or until this is switched on again."""
        self._do("fills", at_once=at_once)

    def fill(self, order_id: str, quantity: Decimal | None = None) -> None:
        """Fill an open order, or a part of it, in base units."""
        self._do("fill", order_id=order_id, quantity=quantity and str(quantity))

    def fault(self, kind: str, path: str = "", *, times: int | None = 1, seconds: float = 5) -> None:
        """Let the next `times` requests whose path contains `path` go wrong (see `faults.Fault`)."""
        self._do("fault", kind=kind, path=path, times=times, seconds=seconds)

    def clear_faults(self) -> None:
        """Forget the faults that wait."""
        self._do("clear-faults")

    def _do(self, action: str, **form: Any) -> None:
        kept = {name: value for name, value in form.items() if value is not None or name == "times"}
        answer = httpx.post(f"{self._url}/{action}", json={"api_key": self.api_key, **kept}, trust_env=False)
        if answer.is_error:
            raise ValueError(answer.json()["error"])
