"""Simulates one exchange: prices, accounts with wallets and positions, orders and fills. Knows nothing of HTTP.

There is one price per asset and no order book: a market order fills at once, a limit order when the price reaches it.
Quantities are base units and money is USDT, as Decimal.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Literal, NamedTuple

from ledger_sizer.model.units import exact_arithmetic, floor_to_step
from ledger_sizer.paper.accounts import (
    Account,
    Order,
    Position,
    RequestRefused,
    Side,
    Slot,
    Trigger,
    Wallet,
    now_ms,
)
from ledger_sizer.paper.candles import Prices
from ledger_sizer.paper.markets import PRICES, QUOTE, Market, Venue, markets_of

LEVERAGE_MAX = 100
FUNDING_RATE = Decimal("0.0001")
"""The funding rate of a contract for which none was set."""


class HeldBack(NamedTuple):
    """Orders that stay open until they are filled one by one. None: of every kind, side or market."""

    kind: str | None = None
    side: str | None = None
    symbol: str | None = None

    def has(self, order: Order) -> bool:
        """Whether it holds back this order."""
        wanted = (order.kind, order.side, order.market.symbol)
        return all(ours in (None, theirs) for ours, theirs in zip(self, wanted, strict=True))


class PaperExchange:
    """One paper exchange. Fee rates are fractions of a fill; a spot buy pays its fee in the base asset.

    ended: markets that are listed no more, in which positions may be left. maintenance: private calls are refused.
    held_back: orders that do not fill by themselves. rejections: why the next orders are refused, one reason each.
    fee_rates: by kind of market. funding_rates: by symbol, FUNDING_RATE where none was set.
    """

    def __init__(
        self, venue: Venue, *, spot_fee_rate: Decimal = Decimal(0), swap_fee_rate: Decimal = Decimal(0)
    ) -> None:
        self.venue = venue
        self.markets = {market.symbol: market for market in markets_of(venue)}
        self.prices = Prices(PRICES)
        self.accounts: dict[str, Account] = {}
        self.ended: dict[str, Market] = {}
        self.unified = venue != "binance"
        self.held_back: list[HeldBack] = []
        self.rejections: list[str] = []
        self.funding_rates: dict[str, Decimal] = {}
        self.maintenance = False
        self.fee_rates = {"spot": spot_fee_rate, "swap": swap_fee_rate}
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

    @property
    def fills_at_once(self) -> bool:
        """Whether orders that the price reaches fill by themselves, all of them."""
        return not self.held_back

    def funding_rate(self, market: Market) -> Decimal:
        """Return the present funding rate of a contract, a fraction per funding interval."""
        return self.funding_rates.get(market.symbol, FUNDING_RATE)

    def coins(self) -> list[str]:
        """Return the coins that markets here are of or quoted in."""
        return sorted({coin for market in self.markets.values() for coin in (market.base, market.quote)})

    def set_leverage(self, account: Account, market: Market, leverage: Decimal) -> None:
        """Set the leverage of a contract. Raises `RequestRefused` outside 1 to LEVERAGE_MAX, and for no change."""
        if not 1 <= leverage <= LEVERAGE_MAX or market.kind != "swap":
            raise RequestRefused("bad_request", f"leverage of {market.symbol} must be 1 to {LEVERAGE_MAX}")
        if account.leverage(market.symbol) == leverage and self.venue == "bybit":
            raise RequestRefused("no_change", "leverage not modified")
        account.leverages[market.symbol] = leverage

    def set_hedged(self, account: Account, *, hedged: bool) -> None:
        """Set hedge or one-way mode. Raises `RequestRefused` when the account has positions or open contract orders."""
        orders = [one for one in account.orders.values() if one.state == "open" and one.market.kind == "swap"]
        if account.held() or orders:
            raise RequestRefused("mode_in_use", "there are positions or orders")
        account.hedged = hedged

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
                market.worth(abs(one.quantity), self.prices[market.base]) / account.leverage(market.symbol)
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
        time_in_force: str = "GTC",
        trigger: Trigger | None = None,
        isolated: bool = False,
    ) -> Order:
        """Accept an order, and fill it if it can be filled now. Raises `RequestRefused` when it is not accepted."""
        if self.rejections:
            raise RequestRefused(self.rejections.pop(0), "rejected")
        self._require_rules(account, market, side, kind, quantity, price, slot, client_id)
        if trigger and trigger.reached(self.prices[market.base]):
            raise RequestRefused("would_trigger", f"the price {self.prices[market.base]} is past {trigger.price}")
        held = account.book(isolated=isolated).get((market.symbol, slot))
        if market.kind == "swap" and reduce_only:
            quantity = self._reducible_quantity(market, held, side, quantity)
        elif not reduce_only:
            reach = trigger.price if trigger else self.prices[market.base]
            reach = price if kind == "limit" and price is not None else reach
            self._require_funds(account, market, held, side, slot, quantity, reach)
        order = Order(
            str(next(self._order_ids)), client_id, market, side, kind, quantity, price, slot, reduce_only,
            created_ms=now_ms(), updated_ms=now_ms(), time_in_force=time_in_force, trigger=trigger, isolated=isolated,
        )  # fmt: skip
        account.orders[order.id] = order
        if not order.waits and kind == "limit":
            order.expired = time_in_force in ("IOC", "FOK", "PO") and self._is_reached(order) == (time_in_force == "PO")
        if order.expired:
            self.cancel(order)
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

    def _reducible_quantity(self, market: Market, held: Position | None, side: Side, quantity: Decimal) -> Decimal:
        if held is None or (held.quantity > 0) == (side == "buy"):
            raise RequestRefused("reduce_only", f"there is nothing to reduce in {market.symbol}")
        return min(quantity, abs(held.quantity))

    def _require_funds(
        self, account: Account, market: Market, held: Position | None, side: Side, slot: Slot, quantity: Decimal,
        price: Decimal,
    ) -> None:  # fmt: skip
        with exact_arithmetic():
            if market.kind == "swap":
                signed_quantity = held.quantity if held else Decimal(0)
                after = signed_quantity + (quantity if side == "buy" else -quantity)
                more = max(abs(after) - abs(signed_quantity), Decimal(0))
                needed, asset = more * price / account.leverage(market.symbol), QUOTE
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

    def change(
        self, account: Account, order: Order, quantity: Decimal | None, price: Decimal | None, trigger: Decimal | None
    ) -> None:
        """Change an open order's quantity, limit or trigger. Raises `RequestRefused`."""
        quantity = order.quantity if quantity is None else quantity
        limit = order.price if price is None else price
        if quantity <= order.filled or floor_to_step(quantity, order.market.step) != quantity:
            raise RequestRefused("lot_size", f"quantity {quantity} is filled or no multiple of {order.market.step}")
        order.quantity, order.price, order.updated_ms = quantity, limit, now_ms()
        if order.trigger and trigger is not None:
            order.trigger = order.trigger._replace(price=trigger)
        self._fill_if_reached(account, order)

    def _is_reached(self, order: Order) -> bool:
        """Whether the present price fills an order."""
        price = self.prices[order.market.base]
        return (
            order.price is None or order.kind == "market"
            or (price <= order.price if order.side == "buy" else price >= order.price)
        )  # fmt: skip

    def _fill_if_reached(self, account: Account, order: Order) -> None:
        if order.waits and order.trigger and order.trigger.reached(self.prices[order.market.base]):
            self.start(account, order)
        if order.state != "open" or order.waits or any(one.has(order) for one in self.held_back):
            return
        if self._is_reached(order):
            self.fill(account, order, order.quantity - order.filled)

    def start(self, account: Account, order: Order) -> None:
        """Turn a stop order into the order that it holds."""
        order.triggered, order.updated_ms = True, now_ms()
        self._fit(account, order)

    def _fit(self, account: Account, order: Order) -> None:
        """Make an order that may only reduce no larger than its position; it ends when there is nothing to reduce."""
        if not order.reduce_only or order.market.kind != "swap":
            return
        held = account.book(isolated=order.isolated).get((order.market.symbol, order.slot))
        with exact_arithmetic():
            try:
                left = self._reducible_quantity(order.market, held, order.side, order.quantity - order.filled)
                order.quantity = order.filled + left
            except RequestRefused:
                self.cancel(order)

    def fill(self, account: Account, order: Order, quantity: Decimal) -> None:
        """Fill `quantity` base units of an order, at most what is left of it: at the present price, or at its limit."""
        self._fit(account, order)
        if order.state != "open":
            return
        price = self.prices[order.market.base]
        if order.price is not None and not self._is_reached(order):
            price = order.price
        quantity = min(quantity, order.quantity - order.filled)
        with exact_arithmetic():
            cost = quantity * price
            order.filled += quantity
            order.cost += cost
            order.updated_ms = now_ms()
            order.state = "filled" if order.filled == order.quantity else "open"
            signed_quantity = quantity if order.side == "buy" else -quantity
            rate = self.fee_rates[order.market.kind]
            wallet = account.wallet(self.wallet_of(order.market))
            if order.market.kind == "spot":
                wallet[order.market.base] += signed_quantity
                wallet[QUOTE] -= cost if order.side == "buy" else -cost
                order.fee_asset = order.market.base if order.side == "buy" else QUOTE
                fee = (quantity if order.side == "buy" else cost) * rate
            else:
                self.move_position(account, order.market, order.slot, signed_quantity, price, isolated=order.isolated)
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
        self, account: Account, market: Market, slot: Slot, signed_quantity: Decimal, price: Decimal | None = None,
        *, isolated: bool = False,
    ) -> None:  # fmt: skip
        """Add to, reduce or turn a derivative position; book the profit or loss. price: the present one."""
        price, book = price or self.prices[market.base], account.book(isolated=isolated)
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
