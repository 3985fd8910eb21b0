"""Exchange accounts whose snapshots a test sets by hand, and reconcilers over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine

from ledger_sizer import AppSettings, Ledger, LedgerSettings, Leg, ReconcileSettings, TradingSettings
from ledger_sizer.exchanges.snapshot import Snapshot, UnreadRow, VenueBalance, VenuePosition
from ledger_sizer.model.reconciliation import Drift, Report
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile.inspection import LocalInspector
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.ledgers import BTC_PRICE, TAGS, position_of

D = Decimal
PERP = "BTC/USDT:USDT"


class WrittenAccount:
    """An exchange account that returns the positions and balances a test has set. None: the request failed."""

    def __init__(self, venue: str = "bybit", account: str = "main", portfolio: str = "main") -> None:
        self.venue, self.account, self.portfolio = venue, account, portfolio
        self.positions: tuple[VenuePosition, ...] | None = ()
        self.balances: tuple[VenueBalance, ...] | None = (balance("USDT", "100000"),)
        self.unread: tuple[UnreadRow, ...] = ()
        self.prices: dict[str, Decimal] = {}
        self.on_fetch: Callable[[], object] = lambda: None
        self.age_us = 0

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        begun_us = now_us() - self.age_us
        self.on_fetch()
        problems = tuple(f"{name}: no answer" for name in ("positions", "balances") if getattr(self, name) is None)
        return Snapshot(
            self.venue, self.account, begun_us, begun_us, self.positions, self.balances, problems,
            unread=self.unread, prices=self.prices,
        )  # fmt: skip

    def shows(self, *positions: VenuePosition, **assets: str) -> None:
        """Set the positions, and the balances as `BTC="0.5"`. There is always enough USDT."""
        self.positions = positions
        self.balances = tuple(balance(asset, units) for asset, units in {"USDT": "100000", **assets}.items())


def balance(asset: str, free: str, used: str = "0") -> VenueBalance:
    with exact_arithmetic():
        return VenueBalance(asset, D(free), D(used), D(free) + D(used))


def short(quantity: str, symbol: str = PERP, price: str | None = "50000") -> VenuePosition:
    return VenuePosition(symbol, "short", D(quantity), None if price is None else D(price))


def long(quantity: str, symbol: str = PERP, price: str | None = "50000") -> VenuePosition:
    return VenuePosition(symbol, "long", D(quantity), None if price is None else D(price))


class Desk:
    """A ledger, its accounts and a reconciler on the test's clock. The clock advances a minute before each run."""

    def __init__(
        self, url: str, clock: FakeClock, accounts: Iterable[Any] = (), *, position_usd: int = 1_000,
        ledger: dict[str, Any] | None = None, **reconcile: Any,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.settings = AppSettings(
            reconcile=ReconcileSettings(**{"enabled": True, **reconcile}),
            trading=TradingSettings(max_position_size_usd=D(position_usd)),
            ledger=LedgerSettings(**(ledger or {})),
        )
        self.ledger = Ledger.open(url, settings=self.settings, clock=clock)
        self.engine: Engine = make_engine(url)
        self.accounts = list(accounts) or [WrittenAccount()]
        inspector = LocalInspector(self.engine, self.accounts, self.settings, clock=clock)
        self.reconciler = Reconciler(self.ledger, self.engine, inspector, self.settings, clock=clock)

    @property
    def account(self) -> Any:
        return self.accounts[0]

    def run(self, times: int = 1, seconds: int = 60) -> Report:
        """Run `times` times, and return the last report."""
        for _ in range(times):
            self.clock.advance(seconds)
            (report,) = self.reconciler.run()
        return report

    def close(self) -> None:
        self.ledger.close()
        self.engine.dispose()


def make_drift(url: str) -> None:
    """Record drifts 1 (a perpetual), 2 and 3 (coins) that the ledger does not have, and policy 1, about the third."""
    desk = Desk(url, FakeClock(datetime.now(UTC)))
    desk.account.shows(long("2", "ETH/USDT:USDT", "2000"), BNB="2", KCS="1")
    assert [drift.id for drift in desk.run().live if drift.excess] == [1, 2, 3]
    desk.reconciler.operator.act("ignore", 3, reason="not ours", asset=True)
    desk.close()


def besides_naked(report: Report) -> list[Drift]:
    """Return the live drifts but those about positions of which one side is not hedged."""
    return [drift for drift in report.live if (drift.kind, drift.part) != ("legs_unequal", "ledger")]


NewDesk = Callable[..., Desk]
"""Opens a desk with these accounts and reconciliation settings."""


def hedged_desks(new_desk: NewDesk, first: Callable[[Desk], object], cap_usd: int) -> NewDesk:
    """Return `new_desk` with a hedged position of 0.02 BTC, which `first` records and the account shows too."""

    def opened(accounts: Sequence[WrittenAccount] = (), **reconcile: Any) -> Desk:
        desk = new_desk(accounts, **reconcile)
        desk.ledger.set_cap(key="cap", cap=D(cap_usd))
        first(desk)
        desk.account.shows(short("0.02"), BTC="0.02")
        return desk

    return opened


def adopt(desk: Desk, key: str, quantity: str = "0.02") -> str:
    """Adopt a hedged BTC position into the ledger, and return its id."""
    legs = [
        Leg("bybit", "BTC/USDT", "spot", "buy", D(quantity), BTC_PRICE),
        Leg("bybit", PERP, "swap", "sell", D(quantity), BTC_PRICE),
    ]
    return position_of(desk.ledger.adopt(key=key, quantity=D(quantity), price=BTC_PRICE, tags=TAGS, legs=legs))
