"""Executes the actions of `POST /paper/{venue}/{action}`: deposits, manual trades, delistings, price moves, faults."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ledger_sizer.model.market_names import parse_symbol
from ledger_sizer.paper import events
from ledger_sizer.paper.accounts import WALLETS, Account, Order, Position, RequestRefused, Slot, now_ms
from ledger_sizer.paper.control import DEFAULT_KEY, DEFAULT_PASSPHRASE, DEFAULT_SECRET
from ledger_sizer.paper.exchange import HeldBack, PaperExchange
from ledger_sizer.paper.faults import Fault, Faults
from ledger_sizer.paper.http import decimal_of, text_of
from ledger_sizer.paper.journal import Cause
from ledger_sizer.paper.markets import QUOTE, Market

REJECTIONS = ("insufficient", "margin", "quantity", "notional", "inactive")
"""Why an exchange may refuse an order that it could accept."""

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
        if name in ("spot", "swap") or any(wallet.values())
    }
    positions = []
    for symbol, slot, isolated, held in account.held():
        row = {
            "symbol": symbol,
            "slot": slot,
            "quantity": text_of(held.quantity),
            "entry_price": text_of(held.entry_price),
        }
        positions.append(row | {"margin": "isolated"} if isolated else row)
    return {
        "hedged": account.hedged,
        "stale": account.stale_copy is not None,
        "wallets": wallets,
        "positions": positions,
        "open_orders": [order.id for order in account.orders.values() if order.state == "open"],
        "orders": [_order_state(order) for order in account.orders.values() if order.state == "open"],
    }


def _order_state(order: Order) -> dict[str, Any]:
    return {
        "id": order.id, "client_id": order.client_id, "symbol": order.market.symbol, "side": order.side,
        "kind": order.kind, "quantity": text_of(order.quantity), "filled": text_of(order.filled),
        "price": None if order.price is None else text_of(order.price), "reduce_only": order.reduce_only,
        "trigger": text_of(order.trigger.price) if order.trigger and order.waits else None,
    }  # fmt: skip


def _account(exchange: PaperExchange, form: Mapping[str, Any]) -> Account:
    account = exchange.accounts.get(str(form.get("api_key", DEFAULT_KEY)))
    if account is None:
        raise RequestRefused("bad_request", f"{exchange.venue} has no account with the key {form.get('api_key')!r}")
    return account


def _swap(exchange: PaperExchange, form: Mapping[str, Any]) -> Market:
    symbol = str(form.get("symbol"))
    market = exchange.markets.get(symbol) or exchange.ended.get(symbol)
    if market and market.kind == "spot" and exchange.venue == "okx" and _isolated(form):
        return market  # a margin trade, which OKX lists among the positions
    if market is None or market.kind != "swap":
        known = ", ".join(symbol for symbol, found in exchange.markets.items() if found.kind == "swap")
        raise RequestRefused("bad_request", f"symbol {form.get('symbol')!r} is no perpetual here; there are {known}")
    return market


def _isolated(form: Mapping[str, Any]) -> bool:
    margin = form.get("margin", "cross")
    if margin not in ("cross", "isolated"):
        raise RequestRefused("bad_request", f"margin must be cross or isolated, got {margin!r}")
    return bool(margin == "isolated")


def _held(account: Account, market: Market, slot: Slot, form: Mapping[str, Any]) -> Position:
    held = (account.isolated if _isolated(form) else account.positions).get((market.symbol, slot))
    if held is None:
        raise RequestRefused("bad_request", f"there is no position in {market.symbol}")
    return held


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
    name = form.get("wallet", "spot")
    if name not in WALLETS:
        raise RequestRefused("bad_request", f"no wallet {name!r}; there are {', '.join(WALLETS)}")
    account, asset, quantity = _account(exchange, form), str(form.get("asset", QUOTE)), decimal_of(form, "quantity")
    account.wallet(name)[asset] += quantity
    account.journal.move(now_ms(), "deposit" if quantity > 0 else "withdrawal", asset, quantity, target=name)


def _transfer(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    source, target = form.get("source"), form.get("target")
    if source not in WALLETS or target not in WALLETS or source == target:
        raise RequestRefused("bad_request", f"source and target must be two of {', '.join(WALLETS)}")
    account = _account(exchange, form)
    events.transfer(account, str(form.get("asset", QUOTE)), decimal_of(form, "quantity"), source, target)


def _funding(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    events.pay_funding(exchange, _account(exchange, form), _swap(exchange, form), decimal_of(form, "quantity"))


def _move(
    exchange: PaperExchange, account: Account, market: Market, slot: Slot, signed: Decimal, cause: Cause = "hand",
    *, isolated: bool = False,
) -> None:  # fmt: skip
    exchange.move_position(account, market, slot, signed, isolated=isolated)
    account.journal.trade(now_ms(), market, signed, exchange.prices[market.base], cause)


def _open(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    if form.get("side") not in ("long", "short"):
        raise RequestRefused("bad_request", f"side must be long or short, got {form.get('side')!r}")
    quantity = decimal_of(form, "quantity")
    signed = quantity if form["side"] == "long" else -quantity
    _move(exchange, account, market, _slot(account, form), signed, isolated=_isolated(form))


def _close(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any], cause: Cause = "hand") -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    slot = _slot(account, form)
    held = _held(account, market, slot, form)
    quantity = decimal_of(form, "quantity") if "quantity" in form else abs(held.quantity)
    signed = quantity if held.quantity < 0 else -quantity
    _move(exchange, account, market, slot, signed, cause, isolated=_isolated(form))


def _liquidate(exchange: PaperExchange, faults: Faults, form: Mapping[str, Any]) -> None:
    """Close the position, take its margin, and cancel the market's open orders."""
    account, market = _account(exchange, form), _swap(exchange, form)
    wallet = exchange.wallet_of(market)
    margin_before = exchange.margins(account, wallet)[market.money]
    _close(exchange, faults, {name: value for name, value in form.items() if name != "quantity"}, "liquidation")
    account.wallet(wallet)[market.money] -= margin_before - exchange.margins(account, wallet)[market.money]
    for order in account.orders.values():
        if order.market == market and order.state == "open":
            exchange.cancel(order)


def _flip(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    held = account.positions.get((market.symbol, "net"))
    if held is None:
        raise RequestRefused("bad_request", f"there is no one-way position in {market.symbol} to turn")
    _move(exchange, account, market, "net", -2 * held.quantity)


def _list(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    """List a market, or list it anew with other rules."""
    symbol = str(form.get("symbol"))
    names = parse_symbol(symbol)
    if names is None:
        raise RequestRefused("bad_request", f"symbol {symbol!r} is no spot, perpetual or dated market of ccxt's form")
    step, price = decimal_of(form, "step"), decimal_of(form, "price")
    if step <= 0 or price <= 0:
        raise RequestRefused("bad_request", f"step and price must be above 0, got {step} and {price}")
    otherwise = {"max_qty": step * 10_000_000, "min_notional": Decimal(0), "contract_size": Decimal(1)}
    given = {name: decimal_of(form, name) if name in form else value for name, value in otherwise.items()}
    exchange.markets[symbol] = Market(
        symbol, str(form["id"]), names.base, "spot" if names.kind == "spot" else "swap", step, step,
        max_qty=given["max_qty"], max_market_qty=given["max_qty"], min_notional=given["min_notional"],
        tick=price.scaleb(-5).normalize(), contract_size=given["contract_size"], quote=names.quote,
        inverse=names.settle == names.base, delivery_ms=_delivery_ms(symbol) if names.kind == "future" else None,
    )  # fmt: skip
    exchange.ended.pop(symbol, None)
    exchange.prices[names.base] = price


def _delivery_ms(symbol: str) -> int:
    """Return when a dated market is delivered: at 08:00 UTC of its date."""
    day = datetime.strptime(symbol.rpartition("-")[2], "%y%m%d").replace(hour=8, tzinfo=UTC)
    return int(day.timestamp()) * 1000


def _delist(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    events.delist(exchange, str(form.get("symbol")))


def _contract_size(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    events.resize_contract(exchange, str(form.get("symbol")), decimal_of(form, "size"))


def _rename(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    ratio = decimal_of(form, "ratio") if "ratio" in form else Decimal(1)
    events.rename(exchange, str(form["old"]), str(form["new"]), ratio)


def _lend(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    events.lend(_account(exchange, form), str(form["asset"]), decimal_of(form, "quantity"))


def _interest(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    events.pay_interest(_account(exchange, form), decimal_of(form, "rate"), form.get("asset"))


def _fee_asset(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    asset = form.get("asset")
    if asset is not None and asset not in exchange.prices:
        raise RequestRefused("bad_request", f"{asset!r} has no price here: list a market of it first")
    _account(exchange, form).fee_asset = asset


def _option(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    options, name = _account(exchange, form).options, str(form["id"])
    options[name] = options.get(name, Decimal(0)) + decimal_of(form, "contracts")
    if not options[name]:
        del options[name]


def _deleverage(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account, market = _account(exchange, form), _swap(exchange, form)
    events.deleverage(
        exchange, account, market.symbol, _slot(account, form), decimal_of(form, "quantity"), isolated=_isolated(form)
    )


def _blank_sides(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    _account(exchange, form).blank_sides = form.get("on", True) is True


def _maintenance(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.maintenance = form.get("on", True) is True


def _price(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.move_price(str(form.get("asset")), decimal_of(form, "price"))


def _stale(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.set_stale([_account(exchange, form)], stale=form.get("stale", True) is True)


def _fills(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    if form.get("at_once", True) is True:
        exchange.held_back.clear()
        exchange.fill_open_orders()
    else:
        exchange.held_back.append(HeldBack(form.get("kind"), form.get("side"), form.get("symbol")))


def _reject(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    reason, times = str(form.get("reason", "insufficient")), int(form.get("times", 1))
    if reason not in REJECTIONS:
        raise RequestRefused("bad_request", f"reason must be one of {', '.join(REJECTIONS)}, got {reason!r}")
    exchange.rejections.extend([reason] * times)


def _cancel(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.cancel(exchange.order(_account(exchange, form), str(form.get("order_id", ""))))


def _funding_rate(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    exchange.funding_rates[_swap(exchange, form).symbol] = decimal_of(form, "rate")


def _fill(exchange: PaperExchange, _faults: Faults, form: Mapping[str, Any]) -> None:
    account = _account(exchange, form)
    order = exchange.order(account, str(form.get("order_id", "")))
    if order.state != "open":
        raise RequestRefused("unknown_order", f"order {order.id} is {order.state}")
    exchange.fill(account, order, decimal_of(form, "quantity") if "quantity" in form else order.quantity)


def _fault(_book: PaperExchange, faults: Faults, form: Mapping[str, Any]) -> None:
    faults.inject(Fault(
        form.get("kind", ""), str(form.get("path", "")), form.get("times", 1), form.get("seconds", 5),
        str(form.get("method", "")),
    ))  # fmt: skip


def _clear_faults(_book: PaperExchange, faults: Faults, _form: Mapping[str, Any]) -> None:
    faults.clear()


ACTIONS: Mapping[str, Action] = {
    "account": _open_account,
    "deposit": _deposit,
    "transfer": _transfer,
    "funding": _funding,
    "open": _open,
    "close": _close,
    "liquidate": _liquidate,
    "flip": _flip,
    "deleverage": _deleverage,
    "option": _option,
    "lend": _lend,
    "interest": _interest,
    "fee-asset": _fee_asset,
    "blank-sides": _blank_sides,
    "list": _list,
    "delist": _delist,
    "rename": _rename,
    "contract-size": _contract_size,
    "maintenance": _maintenance,
    "price": _price,
    "stale": _stale,
    "fills": _fills,
    "fill": _fill,
    "cancel": _cancel,
    "reject": _reject,
    "funding-rate": _funding_rate,
    "fault": _fault,
    "clear-faults": _clear_faults,
}
"""The actions of `POST /paper/{venue}/{action}`."""
