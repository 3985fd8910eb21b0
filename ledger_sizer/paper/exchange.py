"""Simulates one exchange: prices, accounts with wallets and positions, orders and fills. Knows nothing of HTTP.

There is one price per asset and no order book: a market order fills at once, a limit order when the price reaches it.
Quantities are base units and money is USDT, as Decimal.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Literal

from ledger_sizer.model.units import exact_arithmetic, floor_to_step
from ledger_sizer.paper.accounts import LEVERAGE, Account, Order, Position, RequestRefused, Side, Slot, Wallet, now_ms
from ledger_sizer.paper.markets import PRICES, QUOTE, Market, Venue, markets_of


class PaperExchange:
    """One paper exchange. Fee rates are fractions of a fill; a spot buy pays its fee in the base asset.

    ended: markets that are listed no more, in which positions may be left. maintenance: private calls are refused.
    """

    def __init__(
        self, venue: Venue, *, spot_fee_rate: Decimal = Decimal(0), swap_fee_rate: Decimal = Decimal(0)
    ) -> None:
        self.venue = venue
        self.markets = {market.symbol: market for market in markets_of(venue)}
        self.prices = dict(PRICES)
        self.accounts: dict[str, Account] = {}
        self.ended: dict[str, Market] = {}
        self.unified = venue != "binance"
        self.fills_at_once = True
        self.maintenance = False
        self._fee_rates = {"spot": spot_fee_rate, "swap": swap_fee_rate}
        self._order_ids = itertools.count(1_000_001)

    # --- accounts --------------------------------------------------------------------------------

    def open_account(
        self, api_key: str, secret: str, passphrase: str, *, hedged: bool, balances: dict[str, Decimal]
    ) -> Account:
        """Open an account with `balances` in each of its wallets. Raises `RequestRefused` when the key is taken."""
        if api_key in self.accounts:
            raise RequestRefused("bad_request", f"{self.venue} has an account with the key {api_key!r} already")
        spot = defaultdict(Decimal, balances)
        wallets = {"spot": spot, "swap": spot if self.unified else defaultdict(Decimal, balances)}
        account = self.accounts[api_key] = Account(api_key, secret, passphrase, hedged, wallets)
        return account

    def market_of(self, symbol: str) -> Market:
        """Return a listed or an ended market."""
        return self.markets.get(symbol) or self.ended[symbol]

    def wallet_of(self, market: Market) -> Wallet:
        """Return which wallet pays for a market."""
        return "spot" if market.kind == "spot" else "delivery" if market.inverse else "swap"

    def margins(self, account: Account, wallet: Wallet) -> defaultdict[str, Decimal]:
        """Return the margin of the positions that a wallet carries, by asset."""
        with exact_arithmetic():
            return self._sums(account, wallet, lambda market, one: (
                market.worth(abs(one.quantity), self.prices[market.base]) / LEVERAGE
            ))  # fmt: skip

    def unrealized(self, account: Account, wallet: Wallet) -> defaultdict[str, Decimal]:
        """Return the profit and loss of the positions that a wallet carries, by asset."""
        with exact_arithmetic():
            return self._sums(account, wallet, lambda market, one: (
                market.profit(one.quantity, one.entry_price, self.prices[market.base])
            ))  # fmt: skip

    def _sums(
        self, account: Account, wallet: Wallet, value_of: Callable[[Market, Position], Decimal]
    ) -> defaultdict[str, Decimal]:
        sums: defaultdict[str, Decimal] = defaultdict(Decimal)
        for symbol, _, _, position in account.held():
            market = self.market_of(symbol)
            if account.wallet(self.wallet_of(market)) is account.wallet(wallet):
                sums[market.money] += value_of(market, position)
        return sums

    def balances(self, account: Account, kind: Wallet) -> dict[str, tuple[Decimal, Decimal]]:
        """Return a wallet's units: asset to (total, used)."""
        used = self.margins(account, kind)
        for orders in ("spot", "swap") if self.unified and kind != "funding" else (kind,):
            for asset, units in account.reserved(orders).items():
                used[asset] += units
        wallet = account.wallet(kind)
        return {asset: (wallet.get(asset, Decimal(0)), used[asset]) for asset in {*wallet, *used}}

    def free(self, account: Account, kind: Literal["spot", "swap"], asset: str) -> Decimal:
        """Return the units of an asset that can be spent."""
        total, used = self.balances(account, kind).get(asset, (Decimal(0), Decimal(0)))
        return total - used

    # --- orders ----------------------------------------------------------------------------------

    def market(self, market_id: str, kind: Literal["spot", "swap"]) -> Market:
        """Find a market by the exchange's own name. Raises `RequestRefused`."""
        for market in self.markets.values():
            if market.id == market_id and market.kind == kind:
                return market
        raise RequestRefused("unknown_symbol", f"no {kind} market {market_id!r}")

    def place(
        self,
        account: Account,
        market: Market,
        side: Side,
        kind: Literal["market", "limit"],
        quantity: Decimal,
        *,
        price: Decimal | None = None,
        slot: Slot = "net",
        reduce_only: bool = False,
        client_id: str = "",
    ) -> Order:
        """Accept an order, and fill it if it can be filled now. Raises `RequestRefused` when it is not accepted."""
        self._require_rules(account, market, side, kind, quantity, price, slot, client_id)
        if market.kind == "swap":
            quantity = self._reducible_quantity(account, market, side, slot, quantity) if reduce_only else quantity
        reach = price if kind == "limit" and price is not None else self.prices[market.base]
        if not reduce_only:
            self._require_funds(account, market, side, slot, quantity, reach)
        created_ms = now_ms()
        order_id = str(next(self._order_ids))
        order = Order(
            order_id, client_id, market, side, kind, quantity, price, slot, reduce_only, created_ms, created_ms
        )
        account.orders[order.id] = order
        self._fill_if_reached(account, order)
        return order

    def _require_rules(
        self,
        account: Account,
        market: Market,
        side: Side,
        kind: str,
        quantity: Decimal,
        price: Decimal | None,
        slot: Slot,
        client_id: str,
    ) -> None:
        if not market.active or market.inverse:
            raise RequestRefused("inactive", f"{market.symbol} is not open for trading")
        if side not in ("buy", "sell") or (kind == "limit" and (price is None or price <= 0)):
            raise RequestRefused("bad_request", "an order needs a side, and a limit order a price")
        if market.kind == "swap" and (slot == "net") == account.hedged:
            raise RequestRefused("position_side", f"position side {slot} does not fit the account's position mode")
        qty_max = market.max_market_qty if kind == "market" else market.max_qty
        if not market.min_qty <= quantity <= qty_max:
            raise RequestRefused("quantity", f"quantity {quantity} is not between {market.min_qty} and {qty_max}")
        if floor_to_step(quantity, market.step) != quantity:
            raise RequestRefused("lot_size", f"quantity {quantity} is no multiple of {market.step}")
        with exact_arithmetic():
            if quantity * (price or self.prices[market.base]) < market.min_notional:
                raise RequestRefused("notional", f"order value is below {market.min_notional} {QUOTE}")
        if client_id and any(order.client_id == client_id for order in account.orders.values()):
            raise RequestRefused("duplicate", f"client order id {client_id!r} was used before")

    def _reducible_quantity(
        self, account: Account, market: Market, side: Side, slot: Slot, quantity: Decimal
    ) -> Decimal:
        held = account.positions.get((market.symbol, slot))
        if held is None or (held.quantity > 0) == (side == "buy"):
            raise RequestRefused("reduce_only", f"there is nothing to reduce in {market.symbol}")
        return min(quantity, abs(held.quantity))

    def _require_funds(
        self, account: Account, market: Market, side: Side, slot: Slot, quantity: Decimal, price: Decimal
    ) -> None:
        with exact_arithmetic():
            if market.kind == "swap":
                held = account.positions.get((market.symbol, slot))
                signed_quantity = held.quantity if held else Decimal(0)
                after = signed_quantity + (quantity if side == "buy" else -quantity)
                needed, asset = max(abs(after) - abs(signed_quantity), Decimal(0)) * price / LEVERAGE, QUOTE
                if (slot == "long" and after < 0) or (slot == "short" and after > 0):
                    raise RequestRefused("reduce_only", f"the {slot} position of {market.symbol} is smaller than that")
            else:
                needed, asset = (quantity * price, QUOTE) if side == "buy" else (quantity, market.base)
        if needed > self.free(account, market.kind, asset):
            raise RequestRefused(
                "margin" if market.kind == "swap" else "insufficient", f"not enough {asset}: {needed} needed"
            )

    def order(self, account: Account, order_id: str | None, client_id: str | None = None) -> Order:
        """Find an order by either id. Raises `RequestRefused`."""
        for order in account.orders.values():
            if (order_id and order.id == order_id) or (client_id and order.client_id == client_id):
                return order
        raise RequestRefused("unknown_order", f"no order {order_id or client_id!r}")

    def cancel(self, order: Order) -> None:
        """Cancel an open order. Raises `RequestRefused` when it is not open."""
        if order.state != "open":
            raise RequestRefused("unknown_order", f"order {order.id} is {order.state}")
        order.state = "canceled"
        order.updated_ms = now_ms()

    def _fill_if_reached(self, account: Account, order: Order) -> None:
        price = self.prices[order.market.base]
        reached = (
            order.price is None or order.kind == "market"
            or (price <= order.price if order.side == "buy" else price >= order.price)
        )  # fmt: skip
        if order.state == "open" and reached and self.fills_at_once:
            self.fill(account, order, order.quantity - order.filled)

    def fill(self, account: Account, order: Order, quantity: Decimal) -> None:
        """Fill `quantity` base units of an order at the present price, at most what is left of it."""
        price = self.prices[order.market.base]
        quantity = min(quantity, order.quantity - order.filled)
        with exact_arithmetic():
            cost = quantity * price
            order.filled += quantity
            order.cost += cost
            order.updated_ms = now_ms()
            order.state = "filled" if order.filled == order.quantity else "open"
            signed_quantity = quantity if order.side == "buy" else -quantity
            rate = self._fee_rates[order.market.kind]
            wallet = account.wallet(self.wallet_of(order.market))
            if order.market.kind == "spot":
                wallet[order.market.base] += signed_quantity
                wallet[QUOTE] -= cost if order.side == "buy" else -cost
                order.fee_asset = order.market.base if order.side == "buy" else QUOTE
                fee = (quantity if order.side == "buy" else cost) * rate
            else:
                self.move_position(account, order.market, order.slot, signed_quantity)
                fee = cost * rate
            paid = account.fee_asset and cost * rate / self.prices[account.fee_asset]
            if account.fee_asset and paid and wallet[account.fee_asset] >= paid:
                order.fee_asset, fee = account.fee_asset, paid
            wallet[order.fee_asset] -= fee
            order.fee += fee
        account.journal.trade(
            order.updated_ms, order.market, signed_quantity, price, "order", order.id, fee, order.fee_asset
        )

    def move_position(
        self, account: Account, market: Market, slot: Slot, signed_quantity: Decimal, *, isolated: bool = False
    ) -> None:
        """Add to, reduce or turn a derivative position at the present price; book the profit or loss in the wallet."""
        price, book = self.prices[market.base], account.isolated if isolated else account.positions
        held = book.get((market.symbol, slot)) or Position(Decimal(0), price)
        with exact_arithmetic():
            after = held.quantity + signed_quantity
            entry = price
            if held.quantity and (held.quantity > 0) == (signed_quantity > 0):
                entry = market.average(abs(held.quantity), held.entry_price, abs(signed_quantity), price)
            elif held.quantity:
                closed = min(abs(signed_quantity), abs(held.quantity)) * (1 if held.quantity > 0 else -1)
                wallet = account.wallet(self.wallet_of(market))
                wallet[market.money] += market.profit(closed, held.entry_price, price)
                entry = held.entry_price if (after > 0) == (held.quantity > 0) else price
        book.pop((market.symbol, slot), None)
        if after:
            book[market.symbol, slot] = Position(after, entry)

    # --- the market ------------------------------------------------------------------------------

    def move_price(self, base: str, price: Decimal) -> None:
        """Set an asset's price, USDT, and fill the orders it reaches. Raises `RequestRefused` for an unknown asset."""
        if base not in self.prices or price <= 0:
            raise RequestRefused("bad_request", f"no price above 0 of a known asset: {base} {price}")
        self.prices[base] = price
        self.fill_open_orders()

    def fill_open_orders(self) -> None:
        """Fill every open order that the present price reaches."""
        for account in self.accounts.values():
            for order in list(account.orders.values()):
                self._fill_if_reached(account, order)

    def set_stale(self, accounts: Iterable[Account], *, stale: bool) -> None:
        """Serve these accounts' present state from now on (stale), or their true state again."""
        for account in accounts:
            account.stale_copy = None
            if stale:
                account.stale_copy = copy.deepcopy(account)
