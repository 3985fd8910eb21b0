"""Simulates random worlds with accounts as desks have them: three venues, and much there that is not the bots'.

Fees are paid in a coin, coins are lent out and earn interest, a debt grows, dust of coins that nobody trades lies
about, rows cannot be read, a market changes its contract size or ends, a coin is renamed, a venue is in maintenance.
All of that is normal, so a clean world has it too. Every account has little money, so that its free balance binds what
is granted, and all orders of a venue spend from one wallet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from typing import Any

from ledger_sizer import AppSettings, Decision
from ledger_sizer.exchanges.snapshot import UnreadRow, VenueBalance, VenuePosition
from ledger_sizer.model.legs import OrderLeg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.reconciliation import Drift, Report
from tests.reconcile.worlds import PRICES, Shape, World, _unit
from tests.support.accounts import WrittenAccount
from tests.support.clock import FakeClock

D = Decimal
VENUES = ("binance", "bybit", "okx")
SHAPES: dict[str, Shape] = {
    "BTC": (("bybit", "BTC/USDT", "buy"), ("bybit", "BTC/USDT:USDT", "sell")),
    "ETH": (("bybit", "ETH/USDT:USDT", "buy"), ("okx", "ETH/USDT:USDT", "sell")),
    "PEPE": (("okx", "PEPE/USDT", "buy"), ("bybit", "1000PEPE/USDT:USDT", "sell")),
    "XRP": (("binance", "XRP/USDT", "buy"), ("okx", "XRP/USDT:USDT", "sell")),
    "SOL": (("binance", "SOL/USDT:USDT", "sell"),),
}
LENT = ("binance", "XRP/USDT")
"""The coins that are lent out now and then, as `LDXRP`."""
MORTAL = ("binance", "SOL/USDT:USDT")
"""The market that may end while a position is there."""
OLD_COIN, NEW_COIN, RATIO = "ETH", "ETHX", D(10)
"""The coin that is renamed once, and how many new ones an old one is."""
MONEY = D(2500)
"""USDT that each account begins with."""
STALE_SECONDS = 60
ASSETS = {"binance/*/BNB": "fees", "bybit/*/DOGE": "ignore"}
FEE_RATE = D("0.001")
EXPECTED_KINDS = frozenset({"fetch_failed", "unreadable"})
"""What is told in a clean world too: an account in maintenance, and rows that nobody can read."""


def _cost(order: OrderLeg, coins: Decimal) -> Decimal:
    """Return what an order needs of an account's money: a spot sale nothing."""
    return D(0) if order.kind == "spot" and order.side == "sell" else coins * PRICES[coin_of(order.symbol)]


def _of_coin(market: tuple[str, str]) -> tuple[str, str]:
    """Return the venue with the symbol of a contract, or with the coin of a spot market."""
    venue, symbol = market
    return venue, symbol if ":" in symbol else coin_of(symbol)


class RealWorld(World):
    """One portfolio at three venues.

    extra: units of what is nobody's position, by venue and asset. lent, interest: coins of `LENT` that stand under
    their earn name. down_until: when a venue's maintenance ends. unread_until: when a market can be read again. seen:
    of what each market last showed, what the ledger counted. unseen: what somebody traded there since.

    money: USDT at each venue, of which contracts block their value. orders: what is not filled of each order that was
    granted, by the order's identity. looked: when each account was read whole last, and what was free there then.
    spent: what orders took since. overpromised: grants that money did not cover, or at an account that was not trusted.
    """

    counted = frozenset({"spot", "swap"})

    def __init__(self, ledger: Any, engine: Any, clock: FakeClock, name: str, seed: int, *, clean: bool) -> None:
        self.extra = {
            ("binance", "BNB"): D(5), ("binance", "LDUSDT"): D(1000), ("binance", "OLD0"): D("0.0004"),
            ("bybit", "DOGE"): D(-100),
        }  # fmt: skip
        self.lent = self.interest = D(0)
        self.down_until: dict[str, float] = {}
        self.unread_until: dict[tuple[str, str], float] = {}
        self.options: set[str] = set()
        self.ended: set[tuple[str, str]] = set()
        self.seen: dict[tuple[str, str], Decimal] = {}
        self.unseen: dict[tuple[str, str], Decimal] = {}
        self.money = dict.fromkeys(VENUES, MONEY)
        self.orders: dict[int, tuple[str, OrderLeg, Decimal]] = {}
        self.looked: dict[str, tuple[float, Decimal]] = {}
        self.spent = dict.fromkeys(VENUES, D(0))
        self.misled = False
        super().__init__(ledger, engine, clock, name, seed, clean=clean, wide=True, shapes=SHAPES)
        self.run()

    @property
    def settings(self) -> AppSettings:
        """Those of the ledger, and whose money the assets are."""
        base = self.ledger.settings
        own = {"assets": ASSETS, "enabled": True, "stale_after_seconds": STALE_SECONDS}
        return base.model_copy(update={"reconcile": base.reconcile.model_copy(update=own)})

    @property
    def balance_told(self) -> None:
        """Bots do not tell any: the free balance of the accounts binds them."""

    @property
    def now(self) -> float:
        """Seconds of the clock."""
        return self.clock.now().timestamp()

    # --- what happens ----------------------------------------------------------------------------

    def actions(self) -> list[Callable[[], object]]:
        """Trades and runs, and what accounts do by themselves."""
        return [*super().actions(), self.trade, self.close, self.run, self.happen, self.happen]

    def happen(self) -> None:
        """Let one thing happen that no strategy made."""
        self.chance.choice([
            self.earn_interest, self.lend, self.redeem, self.maintain, self.hide_a_market, self.hold_an_option,
            self.drop_dust, self.end_a_market, self.top_up, self.rename_a_coin,
        ])()  # fmt: skip

    def earn_interest(self) -> None:
        self.interest += self.lent / 1000
        for name in (("binance", "LDUSDT"), ("bybit", "DOGE")):
            self.extra[name] *= D("1.001")

    def lend(self) -> None:
        coins = min(self.units[LENT], self._known().get(_of_coin(LENT), D(0))) // 2
        if coins > 0:
            self.units[LENT] -= coins
            self.lent += coins

    def redeem(self) -> None:
        self.units[LENT] += self.lent
        self.lent = D(0)

    def maintain(self) -> None:
        """Begin a venue's maintenance: every call fails for a while. One venue at a time."""
        if all(end <= self.now for end in self.down_until.values()):
            self.down_until[self.chance.choice(VENUES)] = self.now + self.chance.choice([30, 150])

    def hide_a_market(self) -> None:
        """Let the row of a market be unreadable, as while its contract size changes."""
        held = [market for market in self.perps if self.units[market] and market not in self.ended]
        if held:
            self.unread_until[self.chance.choice(held)] = self.now + self.chance.choice([30, 100])

    def hold_an_option(self) -> None:
        self.options ^= {self.chance.choice(VENUES)}

    def drop_dust(self) -> None:
        self.extra[self.chance.choice(VENUES), f"DUST{self.number}"] = D("0.01")

    def end_a_market(self) -> None:
        """End a market, rarely, while no order is out there: nobody can read its row or trade there any more."""
        if self.chance.random() < 0.3 and not self.ended and self._is_still("SOL"):
            self.run()
            self.ended.add(MORTAL)
            self.unread_until[MORTAL] = float("inf")

    def traded(self) -> list[str]:
        """Return the assets whose markets are all there."""
        return [asset for asset, legs in self.shapes.items() if not self.ended & {(at, name) for at, name, _ in legs}]

    def rename_a_coin(self) -> None:
        """Give a coin another name, while no order of it is out; the operator says so after the next run."""
        if OLD_COIN not in self.shapes or not self._is_still(OLD_COIN):
            return
        shape = self.shapes[OLD_COIN]
        self.shapes = {asset: legs for asset, legs in self.shapes.items() if asset != OLD_COIN}
        self.shapes[NEW_COIN] = tuple((at, symbol.replace(OLD_COIN, NEW_COIN), side) for at, symbol, side in shape)
        for market in [(venue, symbol) for venue, symbol, _ in shape]:
            renamed = (market[0], market[1].replace(OLD_COIN, NEW_COIN))
            self.units[renamed] = self.units.pop(market) * RATIO
            self.perps[self.perps.index(market)] = renamed
            self.seen.pop(market, None)
            self.unseen.pop(market, None)
        self.run()
        if any(coin_of(leg.symbol) == OLD_COIN for one in self._open() for leg in one.legs):
            self.reconciler.operator.rename(
                OLD_COIN, NEW_COIN, ratio=RATIO, portfolio=self.name, reason="announced", force=not self.clean
            )

    def _is_still(self, coin: str) -> bool:
        """Whether no order of a coin is out, nothing of it is told late, and its venues can be read."""
        markets = [(venue, symbol) for venue, symbol, _ in self.shapes[coin]]
        mine = [one for one in self._open("held", "open") if one.tags.get("symbol") == coin]
        late = any(left for _, order, left in self.orders.values() if coin_of(order.symbol) == coin)
        return (
            not late and not any(one.pending or one.position_id in self.closing for one in mine)
            and not any(self._is_down(market[0]) or self._is_unread(market) for market in markets)
        )  # fmt: skip

    def _open(self, *states: str) -> list[Any]:
        """Return the ledger's positions in these states, else the open ones."""
        wanted = states or ("open",)
        return [one for state in wanted for one in self.ledger.positions(self.name, state=state, limit=1000)]

    def top_up(self) -> None:
        self.money[self.chance.choice(VENUES)] += 50

    def _move(self, venue: str, symbol: str, coins: Decimal) -> None:
        """Let an order fill. Fees are paid from the stock of BNB; coins that are sold are redeemed first."""
        if (venue, symbol) == LENT and coins < 0:
            self.redeem()
        super()._move(venue, symbol, coins)
        seen = self.seen.get((venue, symbol), D(0))
        if seen * coins < 0:  # what is closed is to be seen no more, whatever is opened there afterwards
            self.seen[venue, symbol] = seen + coins if abs(coins) < abs(seen) else D(0)
        if ":" not in symbol:
            self.money[venue] -= coins * PRICES[coin_of(symbol)]
        if venue == "binance":
            self.extra[venue, "BNB"] -= abs(coins) * PRICES[coin_of(symbol)] * FEE_RATE / PRICES["BNB"]

    # --- money -----------------------------------------------------------------------------------

    def free(self, venue: str) -> Decimal:
        """Return what is free at a venue, USDT: contracts block their value."""
        used = (abs(coins) * PRICES[coin_of(symbol)] for (at, symbol), coins in self.units.items()
                if at == venue and ":" in symbol)  # fmt: skip
        return self.money[venue] - sum(used, D(0))

    def granted(self, decision: Decision) -> None:
        """Check that what live orders may spend, and what was spent since the last look, was free at that look."""
        for order in decision.legs:
            self.orders[id(order)] = (str(decision.position_id), order, order.quantity)
        for venue in {str(order.venue) for order in decision.legs}:
            at, free = self.looked[venue]
            promised = self._promised(venue) + self.spent[venue]
            if promised > free and not self.misled:
                self.overpromised.append(f"{decision.position_id}: {venue} promises {promised} of {free} USDT")
            if self.now >= at + STALE_SECONDS:
                self.overpromised.append(f"{decision.position_id}: {venue} was not read for {self.now - at} seconds")

    def _promised(self, venue: str) -> Decimal:
        """Return what orders of live holds may still spend at a venue, USDT."""
        live = {one.position_id for one in self._open("held", "open") if one.pending}
        return sum((
            _cost(order, left) for position_id, order, left in self.orders.values()
            if order.venue == venue and position_id in live
        ), D(0))  # fmt: skip

    def _fill(self, order: OrderLeg, coins: Decimal) -> None:
        """Fill an order, and spend what it costs."""
        position_id, _, left = self.orders[id(order)]
        self.orders[id(order)] = (position_id, order, left - coins)
        self.spent[str(order.venue)] += _cost(order, coins)
        super()._fill(order, coins)

    # --- what goes wrong -------------------------------------------------------------------------

    def faults(self) -> list[Callable[[], object]]:
        """Those of every world, an exchange that reduces a position, and money that is taken out."""
        by_hand = [self.close_by_hand, self.liquidate, self.open_by_hand, self.deposit, self.deleverage]
        noted = [partial(self._by_hand, act) for act in by_hand]
        return [*noted, self.lose_a_close, self.outdated_snapshot, self.withdraw]

    def _by_hand(self, act: Callable[[], object]) -> None:
        """Let somebody trade, and note it as something that nobody saw yet."""
        before = dict(self.units)
        act()
        for market, coins in before.items():
            self.unseen[market] = self.unseen.get(market, D(0)) + self.units[market] - coins

    def withdraw(self) -> None:
        self.money[self.chance.choice(VENUES)] -= 100

    def outdated_snapshot(self) -> None:
        """Show outdated snapshots: what is free there is wrong until the next run."""
        self.misled = True
        super().outdated_snapshot()

    def deleverage(self) -> None:
        market = self.chance.choice(self.perps)
        self.units[market] -= self.units[market] // (2 * _unit(market[1])) * _unit(market[1])

    # --- what the accounts show ------------------------------------------------------------------

    def _is_down(self, venue: str) -> bool:
        return self.down_until.get(venue, 0) > self.now

    def _is_unread(self, market: tuple[str, str]) -> bool:
        return self.unread_until.get(market, 0) > self.now

    def show(self) -> None:
        """Make the accounts show what they would answer now."""
        for account in self.accounts:
            if self._is_down(account.venue):
                account.positions = account.balances = None
            else:
                self._show(account)

    def _show(self, account: WrittenAccount) -> None:
        venue = account.venue
        mine = {symbol: coins for (at, symbol), coins in self.units.items() if at == venue}
        unread = {symbol for symbol in mine if mine[symbol] and self._is_unread((venue, symbol))}
        account.positions = tuple(
            VenuePosition(
                symbol, "long" if coins > 0 else "short", abs(coins) / _unit(symbol),
                PRICES[coin_of(symbol)] * _unit(symbol),
            )
            for symbol, coins in mine.items() if ":" in symbol and coins and symbol not in unread
        )  # fmt: skip
        options = (UnreadRow("BTC/USD:BTC-301227-60000-C", "an option"),) if venue in self.options else ()
        account.unread = (*(UnreadRow(symbol, "the market is not listed") for symbol in sorted(unread)), *options)
        held = {coin_of(symbol): coins for symbol, coins in mine.items() if ":" not in symbol}
        account.balances = tuple(
            VenueBalance(asset, units, D(0), units, tradable=asset in PRICES or asset == "DOGE", earns=earns)
            for asset, units, earns in self._balances(venue, held) if units
        )  # fmt: skip
        free, money = self.free(venue), self.money[venue]
        account.balances += (VenueBalance("USDT", free, money - free, money),)
        account.prices = {asset: PRICES[asset] for asset in held if held[asset]}

    def _balances(self, venue: str, held: dict[str, Decimal]) -> list[tuple[str, Decimal, str | None]]:
        rows: list[tuple[str, Decimal, str | None]] = [(asset, units, None) for asset, units in held.items()]
        if venue == LENT[0]:
            rows.append(("LDXRP", self.lent + self.interest, "XRP"))
        rows += [
            (asset, units, asset[2:] if asset.startswith("LD") else None)
            for (at, asset), units in self.extra.items() if at == venue
        ]  # fmt: skip
        return rows

    def come_to_rest(self) -> Report:
        """End what passes by itself, and come to rest."""
        self.down_until.clear()
        self.unread_until = {market: end for market, end in self.unread_until.items() if market in self.ended}
        return super().come_to_rest()

    def run(self) -> Report:
        """Make a run, and note what the ledger counted of what it saw."""
        # Only orders that fill in this very moment, between the look and the end of the run, would be missed.
        report = super().run()
        self.misled = False
        known = self._known(external=True)
        for venue in VENUES:
            if not self._is_down(venue):
                self.looked[venue], self.spent[venue] = (self.now, self.free(venue)), D(0)
        for market, coins in self.units.items():
            if not self._is_down(market[0]) and not self._is_unread(market):
                self.unseen.pop(market, None)
                self.seen[market] = min(abs(coins), abs(known.get(_of_coin(market), D(0)))).copy_sign(coins)
        return report

    # --- what must be true -----------------------------------------------------------------------

    def alarms(self, drifts: Iterable[Drift]) -> list[Drift]:
        """Return the drifts of what is wrong; some tell what is normal."""
        return [one for one in drifts if one.kind not in EXPECTED_KINDS]

    @property
    def true_exposure(self) -> Decimal:
        """Value of what stands at the venues, USD, of each coin its larger side.

        Where nobody can look, it is the smaller of what is there and what the ledger counted when somebody could.
        """
        sides: dict[tuple[str, bool], Decimal] = {}
        for (venue, symbol), units in self._there().items():
            coins = units
            if self._is_down(venue) or self._is_unread((venue, symbol)):
                seen = self.seen.get((venue, symbol), D(0))
                coins = min(coins, seen, coins - self.unseen.get((venue, symbol), D(0)), key=abs)
                coins = D(0) if coins * seen <= 0 else coins
            side = (coin_of(symbol), coins > 0)
            sides[side] = sides.get(side, D(0)) + abs(coins)
        return sum((
            max(sides.get((asset, side), D(0)) for side in (True, False)) * PRICES[asset] for asset in self.shapes
        ), D(0))  # fmt: skip

    def _known(self, *, external: bool = False) -> dict[tuple[str, str], Decimal]:
        """Return the coins that the ledger has, as `_of_coin` names markets, below 0 short.

        external: also what no bot told.
        """
        found: dict[tuple[str, str], Decimal] = {}
        for one in self._open():
            for leg in one.legs if external or "external" not in one.tags else ():
                market = _of_coin((str(leg.venue), leg.symbol))
                coins = leg.filled if leg.side == "buy" else -leg.filled
                found[market] = found.get(market, D(0)) + coins
        return found

    def _there(self) -> dict[tuple[str, str], Decimal]:
        """Return the coins at the venues; lent ones as far as the ledger misses them, what is beyond counts nowhere."""
        lent = min(self.lent, max(self._known().get(_of_coin(LENT), D(0)) - self.units[LENT], D(0)))
        return self.units | {LENT: self.units[LENT] + lent}

    def unexplained(self, report: Report) -> list[str]:
        """Return the markets where the ledger differs from the venues without a drift; not those that are unread."""
        hidden = {f"('{venue}', '{symbol}'" for venue, symbol in self.ended}
        true, self.units = self.units, self._there()
        found = super().unexplained(report)
        self.units = true
        return [one for one in found if not any(one.startswith(name) for name in hidden)]
