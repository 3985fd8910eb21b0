"""Simulates random worlds of bots, a ledger and venues, with random delays and faults between them.

The venues' state is the truth. A bot reserves; its orders fill a little later, and it confirms later still; it closes
and then releases with a delay. In a clean world every message arrives. In any other, confirms get lost or come after
the hold expired, somebody closes or opens positions by hand, a venue liquidates, deposits arrive, and the venues show
outdated snapshots.

In a wide world hedges stand across two venues, one of which counts a coin in thousands. Every leg fills in parts, and
each part is told by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from typing import Any

from ledger_sizer import AppSettings, Decision, InstrumentInfo, Ledger, Leg, LegPlan, WrongState
from ledger_sizer.exchanges.snapshot import VenuePosition
from ledger_sizer.model.legs import OrderLeg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.reconciliation import Drift, Report
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from tests.support.accounts import WrittenAccount, balance
from tests.support.clock import FakeClock

D = Decimal
Shape = tuple[tuple[str, str, str], ...]
"""The legs of a hedge: venue, symbol and side."""

PRICES = {"BTC": D(100), "ETH": D(10), "PEPE": D("0.01"), "SOL": D(5), "XRP": D(1), "BNB": D(50), "ETHX": D(1)}
NARROW: dict[str, Shape] = {
    asset: (("bybit", f"{asset}/USDT", "buy"), ("bybit", f"{asset}/USDT:USDT", "sell")) for asset in ("BTC", "ETH")
}
WIDE: dict[str, Shape] = {
    "BTC": NARROW["BTC"],
    "ETH": (("bybit", "ETH/USDT:USDT", "buy"), ("okx", "ETH/USDT:USDT", "sell")),
    "PEPE": (("okx", "PEPE/USDT", "buy"), ("bybit", "1000PEPE/USDT:USDT", "sell")),
}
DELAYS = (0, 1, 5)
FILLED_AFTER = (0, 1, 40)
TTL_SECONDS = 60
CONFIRMATIONS = 2
GRACE_SECONDS = 2


def _unit(symbol: str) -> Decimal:
    return D(1000) if symbol.startswith("1000") else D(1)


def _by_hand(symbol: str) -> Decimal:
    """Return the coins that somebody moves at least. Less than 10 USD of a spot coin is dust."""
    return max(10 // PRICES[coin_of(symbol)], D(1))


def _market(venue: str, symbol: str) -> InstrumentInfo:
    return InstrumentInfo(symbol, D(1), D(10**6), D(1), multiplier=_unit(symbol), listed_as=f"{venue}:{symbol}")


class World:
    """One portfolio with its accounts. units: coins at the venues by venue and symbol, of perpetuals below 0 short.

    wide: several venues. shapes: the hedges that are traded. in_parts: legs fill in parts, told one by one.
    """

    counted: frozenset[str] = frozenset({"swap"})
    """The kinds of legs whose value `true_exposure` adds up."""

    def __init__(
        self, ledger: Ledger, engine: Any, clock: FakeClock, name: str, seed: int, *, clean: bool, wide: bool = False,
        shapes: dict[str, Shape] | None = None,
    ) -> None:  # fmt: skip
        self.ledger, self.clock, self.name, self.clean, self.wide = ledger, clock, name, clean, wide
        self.chance = random.Random(seed)
        self.shapes = shapes or (WIDE if wide else NARROW)
        self.units = {(venue, symbol): D(0) for shape in self.shapes.values() for venue, symbol, _ in shape}
        self.perps = [market for market in self.units if ":" in market[1]]
        self.coins = [market for market in self.units if ":" not in market[1]]
        self.accounts = [WrittenAccount(venue, portfolio=name) for venue in sorted({venue for venue, _ in self.units})]
        settings = self.settings
        inspector = LocalInspector(engine, self.accounts, settings, clock=clock)
        self.reconciler = Reconciler(ledger, engine, inspector, settings, clock=clock)
        self.later: list[tuple[Any, Callable[[], object]]] = []
        self.number = 0
        self.closing: set[str] = set()
        self.reports: list[Report] = []
        self.undercounted: list[str] = []
        self.overpromised: list[str] = []
        ledger.set_cap(key="cap", portfolio=name, cap=D(5000))
        self.show()

    @property
    def settings(self) -> AppSettings:
        """Settings of the reconciliation."""
        return self.ledger.settings

    def actions(self) -> list[Callable[[], object]]:
        """What happens in every world."""
        return [self.trade, self.trade, self.close, self.run, self.run]

    def faults(self) -> list[Callable[[], object]]:
        """What happens in a world that is not clean."""
        return [
            self.lose_a_close,
            self.close_by_hand,
            self.liquidate,
            self.open_by_hand,
            self.deposit,
            self.outdated_snapshot,
        ]

    def live(self, steps: int) -> None:
        """Make `steps` random actions."""
        for _ in range(steps):
            act = self.chance.choice(self.actions())
            if not self.clean and self.chance.random() < 0.25:
                act = self.chance.choice(self.faults())
            act()
            self.pass_time(self.chance.choice([0, 1, 3]))

    def come_to_rest(self) -> Report:
        """Let everything under way arrive or expire, and then run often enough to confirm what is left."""
        self.pass_time(2 * TTL_SECONDS)
        self.ledger.sweep(self.name)
        self.show()
        for _ in range(CONFIRMATIONS + 1):
            report = self.run()
        return report

    # --- the bots --------------------------------------------------------------------------------

    def _key(self) -> str:
        self.number += 1
        return f"k{self.number}"

    @property
    def balance_told(self) -> Decimal | None:
        """The balance that a bot tells when it reserves."""
        return D(self.chance.choice([100, 300, 1000]))

    def traded(self) -> list[str]:
        """Return the assets that bots trade."""
        return [*self.shapes]

    def trade(self) -> None:
        asset = self.chance.choice(self.traded())
        legs = [LegPlan(_market(venue, symbol), side) for venue, symbol, side in self.shapes[asset]]  # type: ignore[arg-type]
        decision = self.ledger.reserve(
            key=self._key(), portfolio=self.name, tags={}, price=PRICES[asset], legs=legs, ttl_seconds=TTL_SECONDS,
            available_balance=self.balance_told,
        )  # fmt: skip
        if not decision.granted:
            return
        self.granted(decision)
        if self.wide:
            for order in decision.legs:
                self._fill_in_parts(decision, order, PRICES[asset])
            return
        quantity = decision.quantity
        assert quantity is not None
        filled_after = self.chance.choice(FILLED_AFTER)
        self._after(filled_after, lambda: [self._fill(order, quantity) for order in decision.legs])
        delay = self._delay_of_confirm(filled_after)
        if delay is None:
            return
        key = self._key()
        self._after(delay, lambda: self.ledger.confirm(
            key=key, position_id=str(decision.position_id), quantity=quantity, price=PRICES[asset]
        ))  # fmt: skip

    def granted(self, decision: Decision) -> None:
        """Take note of what a bot was granted."""

    def _fill(self, order: OrderLeg, coins: Decimal) -> None:
        self._move(order.venue, order.symbol, coins if order.side == "buy" else -coins)

    def _move(self, venue: str, symbol: str, coins: Decimal) -> None:
        """Let an order of a bot change what a venue has. coins: below 0 sold."""
        self.units[venue, symbol] += coins

    def _fill_in_parts(self, decision: Decision, order: OrderLeg, price: Decimal) -> None:
        """Fill an order at once or in two parts, each told by itself."""
        unit, filled_after = _unit(order.symbol), 0
        first = order.quantity // unit // self.chance.choice([1, 2, 3]) * unit
        for part in filter(None, (first, order.quantity - first)):
            filled_after = max(filled_after, self.chance.choice(FILLED_AFTER))
            self._after(filled_after, partial(self._fill, order, part))
            delay = self._delay_of_confirm(filled_after)
            if delay is not None:
                leg = Leg(order.venue, order.symbol, order.kind, order.side, part, price)
                self._after(delay, partial(
                    self.ledger.confirm, key=self._key(), position_id=str(decision.position_id), quantity=part,
                    price=price, legs=[leg], rest="hold",
                ))  # fmt: skip

    def _delay_of_confirm(self, filled_after: int) -> int | None:
        """Return after how many seconds a fill is told; None where it is lost for good."""
        delay = filled_after + self.chance.choice(DELAYS)
        if not self.clean and self.chance.random() < 0.3:
            # The confirm is lost, or comes after the hold expired.
            return None if self.chance.random() < 0.5 else TTL_SECONDS + 30
        return delay

    def _own(self) -> list[Any]:
        page = self.ledger.positions(self.name, state="open", limit=1000)
        return [
            one for one in page
            if "external" not in one.tags and one.position_id not in self.closing and not one.pending
        ]  # fmt: skip

    def close(self) -> None:
        self._close(lost=False)

    def lose_a_close(self) -> None:
        self._close(lost=True)

    def _close(self, *, lost: bool) -> None:
        own = self._own()
        if not own:
            return
        position = self.chance.choice(own)
        for leg in position.legs:
            self._move(leg.venue, leg.symbol, -leg.filled if leg.side == "buy" else leg.filled)
        self.closing.add(position.position_id)
        if lost:
            return
        key, name = self._key(), position.position_id
        self._after(self.chance.choice(DELAYS), lambda: self.ledger.release(key=key, position_id=name))

    # --- what goes wrong -------------------------------------------------------------------------

    def close_by_hand(self) -> None:
        market = self.chance.choice(self.perps)
        units = min(abs(self.units[market]), self.chance.randint(1, 5) * _by_hand(market[1]))
        self.units[market] += units * (1 if self.units[market] < 0 else -1)

    def liquidate(self) -> None:
        self.units[self.chance.choice(self.perps)] = D(0)

    def open_by_hand(self) -> None:
        market = self.chance.choice(self.perps)
        self.units[market] += self.chance.choice([-7, -2, 3, 20]) * _by_hand(market[1])

    def deposit(self) -> None:
        market = self.chance.choice(self.coins)
        self.units[market] += self.chance.randint(1, 9) * _by_hand(market[1])

    def outdated_snapshot(self) -> None:
        """Show outdated snapshots as the current ones, to one run."""
        before = [(one.positions, one.balances) for one in self.accounts]
        self.trade()
        for account, (positions, balances) in zip(self.accounts, before, strict=True):
            account.positions, account.balances = positions, balances
        self._run()

    # --- time and runs ---------------------------------------------------------------------------

    def _after(self, seconds: int, act: Callable[[], object]) -> None:
        self.later.append((self.clock.now().timestamp() + seconds, act))
        self.pass_time(0)

    def pass_time(self, seconds: int) -> None:
        """Advance the clock, and execute what is due."""
        self.clock.advance(seconds)
        due = [one for one in self.later if one[0] <= self.clock.now().timestamp()]
        self.later = [one for one in self.later if one not in due]
        for _, act in due:
            try:
                act()
            except WrongState:
                assert not self.clean, "in a clean world everything fits"

    def show(self) -> None:
        """Make the accounts show the venues' current state, in each venue's units."""
        for account in self.accounts:
            mine = {symbol: coins for (venue, symbol), coins in self.units.items() if venue == account.venue and coins}
            account.positions = tuple(
                VenuePosition(
                    symbol, "long" if coins > 0 else "short", abs(coins) / _unit(symbol),
                    PRICES[coin_of(symbol)] * _unit(symbol),
                )
                for symbol, coins in mine.items() if ":" in symbol
            )  # fmt: skip
            held = [balance(coin_of(symbol), str(coins)) for symbol, coins in mine.items() if ":" not in symbol]
            account.balances = (balance("USDT", "1000000"), *held)

    def run(self) -> Report:
        """Make a scheduled run, at least 20 seconds after the previous one."""
        self.pass_time(20)
        self.show()
        report = self._run()
        exposure = self.ledger.exposure(self.name)
        counted = exposure.held + exposure.open
        if counted + self._just_moved_usd() < self.true_exposure:
            self.undercounted.append(f"run {len(self.reports)}: counts {counted} of {self.true_exposure} USD")
        return report

    def _just_moved_usd(self) -> Decimal:
        """Return the USD that the ledger moved so recently that a difference of that size is not judged in this run."""
        since_us = int(self.clock.now().timestamp() * 1_000_000) - GRACE_SECONDS * 1_000_000
        moved = [
            one
            for state in ("open", "closed") for one in self.ledger.positions(self.name, state=state, limit=1000)
            if one.updated_us > since_us and "external" not in one.tags
        ]  # fmt: skip
        return sum(
            (leg.filled * PRICES[coin_of(leg.symbol)] for one in moved for leg in one.legs if leg.kind in self.counted),
            D(0),
        )

    def _run(self) -> Report:
        (report,) = self.reconciler.run()
        self.reports.append(report)
        return report

    # --- what must be true -----------------------------------------------------------------------

    def alarms(self, drifts: Iterable[Drift]) -> list[Drift]:
        """Return the drifts of what is wrong: here all of them."""
        return list(drifts)

    @property
    def true_exposure(self) -> Decimal:
        """Value of the perpetuals at the venues, USD: a hedge of two counts once, by its larger side."""
        return sum(
            max(abs(self.units[venue, symbol]) for venue, symbol, _ in shape if ":" in symbol) * PRICES[asset]
            for asset, shape in self.shapes.items()
        )  # type: ignore[return-value]

    def unexplained(self, report: Report) -> list[str]:
        """Return the markets where the ledger's own positions differ from the venues without a drift."""
        ledger: dict[tuple[str, str, str], Decimal] = {}
        page = self.ledger.positions(self.name, state="open", limit=1000)
        for position in [one for one in page if "external" not in one.tags]:
            for leg in position.legs:
                subject = leg.symbol if leg.kind == "swap" else leg.symbol.partition("/")[0]
                market = (leg.venue, subject, "short" if leg.side == "sell" else "long")
                ledger[market] = ledger.get(market, D(0)) + leg.filled
        shown = {
            (venue, symbol if ":" in symbol else coin_of(symbol), "long" if coins > 0 else "short"): abs(coins)
            for (venue, symbol), coins in self.units.items() if coins
        }  # fmt: skip
        drifting = {(drift.venue, drift.subject, drift.side) for drift in report.live}
        differing = [market for market in {*ledger, *shown} if ledger.get(market, D(0)) != shown.get(market, D(0))]
        return [f"{one}: {ledger.get(one)} / {shown.get(one)}" for one in differing if one not in drifting]
