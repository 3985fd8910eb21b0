"""Makes happen to accounts and markets what only an exchange does: delisting, renaming, interest, deleveraging."""

from dataclasses import replace
from decimal import Decimal

from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account, Position, RequestRefused, Slot, Wallet, now_ms
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.markets import Market


def delist(exchange: PaperExchange, symbol: str) -> None:
    """End a market: it is listed no more and its orders are cancelled; coins and positions stay."""
    market = exchange.markets.pop(symbol, None)
    if market is None:
        raise RequestRefused("bad_request", f"{exchange.venue} lists no {symbol!r}")
    exchange.ended[symbol] = market
    for account in exchange.accounts.values():
        for order in account.orders.values():
            if order.market.symbol == symbol and order.state == "open":
                exchange.cancel(order)


def resize_contract(exchange: PaperExchange, symbol: str, size: Decimal) -> None:
    """Change what one contract counts; positions keep their base units, so their number of contracts changes."""
    market = exchange.markets.get(symbol)
    if market is None or market.kind != "swap" or size <= 0:
        raise RequestRefused("bad_request", f"no contract size above 0 of a listed contract: {symbol!r} {size}")
    if exchange.venue != "okx" and not market.inverse:
        raise RequestRefused("bad_request", f"{exchange.venue} counts base units in {symbol}, not contracts")
    exchange.markets[symbol] = replace(market, contract_size=size)


def rename(exchange: PaperExchange, old: str, new: str, ratio: Decimal) -> None:
    """Turn every unit of a coin into `ratio` units of a new one: coins, positions, prices. The old markets end."""
    markets = [market for market in exchange.markets.values() if market.base == old]
    if not markets or ratio <= 0:
        raise RequestRefused("bad_request", f"no market of {old!r}, or a ratio that is not above 0: {ratio}")
    with exact_arithmetic():
        exchange.prices[new] = exchange.prices[old] / ratio
        for market in markets:
            delist(exchange, market.symbol)
            renamed = _renamed(market, new, ratio)
            exchange.markets[renamed.symbol] = renamed
            for account in exchange.accounts.values():
                for book in (account.positions, account.isolated):
                    _move(book, market, renamed.symbol, ratio)
        for account in exchange.accounts.values():
            for wallet in {id(one): one for one in account.wallets.values()}.values():
                if old in wallet:
                    wallet[new] += wallet.pop(old) * ratio


def _renamed(market: Market, new: str, ratio: Decimal) -> Market:
    symbol, name = market.symbol.replace(market.base, new), market.id.replace(market.base, new, 1)
    if market.inverse:
        return replace(market, symbol=symbol, id=name, base=new)
    scaled = {
        field: getattr(market, field) * ratio
        for field in ("step", "min_qty", "max_qty", "max_market_qty", "contract_size")
        # A contract size of 1 says that the exchange counts base units.
        if field != "contract_size" or market.contract_size != 1
    }
    return replace(market, symbol=symbol, id=name, base=new, tick=market.tick / ratio, **scaled)


def _move(book: dict[tuple[str, Slot], Position], market: Market, symbol: str, ratio: Decimal) -> None:
    for key in [key for key in book if key[0] == market.symbol]:
        held = book.pop(key)
        quantity = held.quantity if market.inverse else held.quantity * ratio
        book[symbol, key[1]] = Position(quantity, held.entry_price / ratio)


def lend(account: Account, asset: str, quantity: Decimal) -> None:
    """Move units of the spot wallet to flexible earn; a negative quantity brings them back."""
    for wallet, change in ((account.wallet("spot"), -quantity), (account.wallet("earn"), quantity)):
        if wallet[asset] + change < 0:
            raise RequestRefused("bad_request", f"there are only {wallet[asset]} {asset}, {abs(change)} asked for")
    account.wallet("spot")[asset] -= quantity
    account.wallet("earn")[asset] += quantity


def pay_interest(account: Account, rate: Decimal, asset: str | None) -> None:
    """Add a fraction to the coins that were lent out, and to the debts of every wallet. asset: None for all."""
    with exact_arithmetic():
        for wallet in {id(one): one for one in account.wallets.values()}.values():
            for coin, units in wallet.items():
                if asset in (None, coin) and (units < 0 or wallet is account.wallet("earn")):
                    wallet[coin] += units * rate


def deleverage(
    exchange: PaperExchange, account: Account, symbol: str, slot: Slot, quantity: Decimal, *, isolated: bool
) -> None:
    """Reduce a position at the present price, as an exchange does to pay for others' losses."""
    held = (account.isolated if isolated else account.positions).get((symbol, slot))
    if held is None or not 0 < quantity <= abs(held.quantity):
        raise RequestRefused("bad_request", f"there is no position in {symbol} of {quantity} or more")
    signed = -quantity if held.quantity > 0 else quantity
    market = exchange.market_of(symbol)
    account.journal.trade(now_ms(), market, signed, exchange.prices[market.base], "deleveraging")
    exchange.move_position(account, market, slot, signed, isolated=isolated)


def transfer(account: Account, asset: str, quantity: Decimal, source: Wallet, target: Wallet) -> None:
    """Move units from one wallet of the account to another."""
    if quantity <= 0 or account.wallet(source)[asset] < quantity:
        raise RequestRefused(
            "bad_request", f"{source} has {account.wallet(source)[asset]} {asset}, {quantity} asked for"
        )
    with exact_arithmetic():
        account.wallet(source)[asset] -= quantity
        account.wallet(target)[asset] += quantity
    # Exchanges list the change of the trading wallet, which one that comes from funding raises.
    account.journal.move(now_ms(), "transfer", asset, quantity if source == "funding" else -quantity, source, target)


def pay_funding(exchange: PaperExchange, account: Account, market: Market, quantity: Decimal) -> None:
    """Pay funding of a market in its money: to the account, below 0 by it."""
    with exact_arithmetic():
        account.wallet(exchange.wallet_of(market))[market.money] += quantity
    account.journal.move(now_ms(), "funding", market.money, quantity, market=market)
