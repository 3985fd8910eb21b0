"""Simulates random worlds of bots, a ledger and a venue, with random delays and faults between them.

The venue's state is the truth. A bot reserves; its orders fill a little later, and it confirms later still; it closes
and then releases with a delay. In a clean world every message arrives. In any other, confirms get lost or come after
the hold expired, somebody closes or opens positions by hand, the venue liquidates, deposits arrive, and the venue shows
outdated snapshots.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ledger_sizer import InstrumentInfo, Ledger, WrongState
from ledger_sizer.exchanges.snapshot import VenuePosition
from ledger_sizer.model.reconciliation import Report
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from tests.support.accounts import WrittenAccount, balance
from tests.support.clock import FakeClock

D = Decimal
PRICES = {"BTC": D(100), "ETH": D(10)}
DELAYS = (0, 1, 5)
FILLED_AFTER = (0, 1, 40)
TTL_SECONDS = 60
CONFIRMATIONS = 2
GRACE_SECONDS = 2


def perp(asset: str) -> str:
    return f"{asset}/USDT:USDT"


def _market(symbol: str) -> InstrumentInfo:
    return InstrumentInfo(symbol, D(1), D(1000), D(1))


class World:
    """One portfolio and one account. net: perpetuals at the venue by asset, below 0 short. spot: coins by asset."""

    def __init__(self, ledger: Ledger, engine: Any, clock: FakeClock, name: str, seed: int, *, clean: bool) -> None:
        self.ledger, self.clock, self.name, self.clean = ledger, clock, name, clean
        self.chance = random.Random(seed)
        self.net = dict.fromkeys(PRICES, D(0))
        self.spot = dict.fromkeys(PRICES, D(0))
        self.account = WrittenAccount(portfolio=name)
        inspector = LocalInspector(engine, [self.account], ledger.settings, clock=clock)
        self.reconciler = Reconciler(ledger, engine, inspector, ledger.settings, clock=clock)
        self.later: list[tuple[Any, Callable[[], object]]] = []
        self.number = 0
        self.closing: set[str] = set()
        self.reports: list[Report] = []
        self.undercounted: list[str] = []
        ledger.set_cap(key="cap", portfolio=name, cap=D(5000))
        self.show()

    def live(self, steps: int) -> None:
        """Make `steps` random actions."""
        faults = [
            self.lose_a_close,
            self.close_by_hand,
            self.liquidate,
            self.open_by_hand,
            self.deposit,
            self.outdated_snapshot,
        ]
        for _ in range(steps):
            act = self.chance.choice([self.trade, self.trade, self.close, self.run, self.run])
            if not self.clean and self.chance.random() < 0.25:
                act = self.chance.choice(faults)
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

    def trade(self) -> None:
        asset = self.chance.choice([*PRICES])
        decision = self.ledger.reserve(
            key=self._key(), portfolio=self.name, tags={"venue": "bybit", "symbol": asset}, price=PRICES[asset],
            available_balance=D(self.chance.choice([100, 300, 1000])), spot_instrument=_market(f"{asset}/USDT"),
            perp_instrument=_market(perp(asset)), ttl_seconds=TTL_SECONDS,
        )  # fmt: skip
        if not decision.granted:
            return
        quantity = decision.quantity
        assert quantity is not None

        def fill() -> None:
            self.net[asset] -= quantity
            self.spot[asset] += quantity

        filled_after = self.chance.choice(FILLED_AFTER)
        self._after(filled_after, fill)
        key, delay = self._key(), filled_after + self.chance.choice(DELAYS)
        if not self.clean and self.chance.random() < 0.3:
            if self.chance.random() < 0.5:
                return  # the confirm is lost for good
            delay = TTL_SECONDS + 30  # the confirm comes after the hold expired
        self._after(delay, lambda: self.ledger.confirm(
            key=key, position_id=str(decision.position_id), quantity=quantity, price=PRICES[asset]
        ))  # fmt: skip

    def _own(self) -> list[Any]:
        page = self.ledger.positions(self.name, state="open", limit=1000)
        return [one for one in page if "external" not in one.tags and one.position_id not in self.closing]

    def close(self) -> None:
        self._close(lost=False)

    def lose_a_close(self) -> None:
        self._close(lost=True)

    def _close(self, *, lost: bool) -> None:
        own = self._own()
        if not own:
            return
        position = self.chance.choice(own)
        asset = position.tags["symbol"]
        self.net[asset] += position.quantity
        self.spot[asset] -= position.quantity
        self.closing.add(position.position_id)
        if lost:
            return
        key, name = self._key(), position.position_id
        self._after(self.chance.choice(DELAYS), lambda: self.ledger.release(key=key, position_id=name))

    # --- what goes wrong -------------------------------------------------------------------------

    def close_by_hand(self) -> None:
        asset = self.chance.choice([*PRICES])
        self.net[asset] += min(abs(self.net[asset]), D(self.chance.randint(1, 5))) * (1 if self.net[asset] < 0 else -1)

    def liquidate(self) -> None:
        self.net[self.chance.choice([*PRICES])] = D(0)

    def open_by_hand(self) -> None:
        self.net[self.chance.choice([*PRICES])] += D(self.chance.choice([-7, -2, 3, 20]))

    def deposit(self) -> None:
        self.spot[self.chance.choice([*PRICES])] += D(self.chance.randint(1, 9))

    def outdated_snapshot(self) -> None:
        """Show an outdated snapshot as the current one, to one run."""
        before = (self.account.positions, self.account.balances)
        self.trade()
        self.account.positions, self.account.balances = before
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
        """Make the account show the venue's current state."""
        self.account.positions = tuple(
            VenuePosition(perp(asset), "long" if net > 0 else "short", abs(net), PRICES[asset])
            for asset, net in self.net.items() if net
        )  # fmt: skip
        held = [balance(asset, str(units)) for asset, units in self.spot.items() if units]
        self.account.balances = (balance("USDT", "1000000"), *held)

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
        return sum((leg.quantity * PRICES[one.tags["symbol"]] for one in moved for leg in one.legs[1:]), D(0))

    def _run(self) -> Report:
        (report,) = self.reconciler.run()
        self.reports.append(report)
        return report

    # --- what must be true -----------------------------------------------------------------------

    @property
    def true_exposure(self) -> Decimal:
        """Value of the perpetuals at the venue, USD."""
        return sum((abs(net) * PRICES[asset] for asset, net in self.net.items()), D(0))

    def unexplained(self, report: Report) -> list[str]:
        """Return the markets where the ledger's own positions differ from the venue without a drift."""
        ledger: dict[tuple[str, str], Decimal] = {}
        page = self.ledger.positions(self.name, state="open", limit=1000)
        for position in [one for one in page if "external" not in one.tags]:
            for leg in position.legs:
                subject = leg.symbol if leg.kind == "swap" else leg.symbol.partition("/")[0]
                side = "short" if leg.side == "sell" else "long"
                ledger[subject, side] = ledger.get((subject, side), D(0)) + leg.quantity
        shown = {(perp(a), "long" if net > 0 else "short"): abs(net) for a, net in self.net.items() if net}
        shown |= {(asset, "long"): units for asset, units in self.spot.items() if units}
        drifting = {(drift.subject, drift.side) for drift in report.live}
        differing = [market for market in {*ledger, *shown} if ledger.get(market, D(0)) != shown.get(market, D(0))]
        return [f"{one}: {ledger.get(one)} / {shown.get(one)}" for one in differing if one not in drifting]
