"""Looking at both sides: fetch the accounts, read the ledger, compare. Nothing is written here.

`LocalInspector` does it in the caller's thread, `apart.LookApart` in a process of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, Protocol

from sqlalchemy import Engine, select

from ledger_sizer.config import AppSettings
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.domain import Position, to_us
from ledger_sizer.model.reconciliation import Drift, Market, Run, Trigger
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.compare import Comparison, Measures, compare
from ledger_sizer.reconcile.ledger_side import (
    LedgerSide,
    last_prices,
    ledger_side_of,
    read_budgets,
    read_head,
    read_parts,
    read_positions,
)
from ledger_sizer.storage.database import database_now_us, read_transaction

Clock = Callable[[], datetime]


class InspectionFailed(Exception):
    """Nothing was seen, of either side; the message says why. What was known stays as it was."""


class NamedAccount(Protocol):
    """Which account at which exchange. venue: as positions are tagged. portfolio: whose positions stand in it."""

    venue: str
    account: str
    portfolio: str


class Account(NamedAccount, Protocol):
    """An account that can be looked at."""

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """What stands there now. Never raises for what the exchange does."""


@dataclass(frozen=True, slots=True)
class InspectionRequest:
    """What a look is for. epoch: of the run's lease, 0 for a dry run."""

    portfolio: str
    trigger: Trigger
    epoch: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look brought. run: its record to be, without a number.

    external: the positions that count what only the exchange knew; None where the ledger was not read.
    """

    run: Run
    comparison: Comparison
    external: Mapping[Market, Sequence[Position]] | None


class Inspector(Protocol):
    """Whoever looks."""

    @property
    def accounts(self) -> Sequence[NamedAccount]:
        """The accounts that are looked at."""

    def look(self, asked: InspectionRequest, seconds_max: float) -> Inspection:
        """Look at the accounts of a portfolio and at its positions.

        Raises `InspectionFailed` where nothing could be seen within `seconds_max`, `Unavailable` without a database.
        """


class LocalInspector:
    """Looks in the caller's thread. The time-outs of the accounts are all that bounds it.

    clock: the time source of tests; None reads the database's clock, which all replicas share.
    """

    def __init__(
        self, engine: Engine, accounts: Sequence[Account], settings: AppSettings, *, clock: Clock | None = None
    ) -> None:
        self.accounts = tuple(accounts)
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._traded_at: dict[str, dict[str, Decimal | None]] = {}

    def look(self, asked: InspectionRequest, seconds_max: float = 0) -> Inspection:  # noqa: ARG002 - see the class
        """See `Inspector`."""
        accounts = [account for account in self.accounts if account.portfolio == asked.portfolio]
        settings = self._settings.reconcile
        seq_before = read_head(self._engine, asked.portfolio)
        started_us = self._now_us()
        with ThreadPoolExecutor(max_workers=min(len(accounts), 8)) as pool:
            snapshots = list(pool.map(lambda account: account.snapshot(self._now_us), accounts))
        expired_us = started_us - settings.expired_seconds * 1_000_000
        # Read again after the fetch: what moved meanwhile is in these rows and is not judged.
        positions = read_positions(self._engine, asked.portfolio, since_us=expired_us)
        settled_us = started_us - settings.grace_seconds * 1_000_000
        book = ledger_side_of(
            positions,
            [(account.venue, account.account) for account in accounts],
            seq_before=seq_before,
            settled_us=settled_us,
            expired_us=expired_us,
            now_us=self._now_us(),
            budgets_usd=read_budgets(self._engine, asked.portfolio, positions),
            parts=read_parts(self._engine, asked.portfolio, positions, settled_us),
        )
        live = drifts.live_drifts(self._engine, asked.portfolio)
        book.known = _beyond_ledger(live)
        book.known_since_us = {one.market: one.opened_us for one in reversed(live) if one.excess > 0}
        book.accepted = _beyond_ledger(drift for drift in live if drift.state == "acknowledged")
        prices = self._last_prices(asked.portfolio, book, snapshots)
        comparison = compare(book, snapshots, _measures(self._settings, started_us, prices))
        run = _run(asked, snapshots, comparison, started_us, self._now_us())
        return Inspection(run, comparison, book.external)

    def _last_prices(
        self, portfolio: str, book: LedgerSide, snapshots: Sequence[Snapshot]
    ) -> Mapping[str, Decimal | None]:
        """The last price known of every asset: of this look, of one before, or of an old position.

        Old positions are gone through once for each asset in a process, whatever comes of it.
        """
        known = self._traded_at.setdefault(portfolio, {})
        known |= book.prices
        if self._settings.reconcile.dust_usd:
            shown = {balance.asset for one in snapshots for balance in one.balances or ()}
            if unknown := shown - known.keys() - set(self._settings.reconcile.quote_assets):
                known |= dict.fromkeys(unknown) | last_prices(self._engine, portfolio, unknown)
        return known

    def _now_us(self) -> int:
        return time_us(self._engine, self._clock)


def failed_inspection(
    asked: InspectionRequest, accounts: Sequence[NamedAccount], started_us: int, now_us: int, why: str
) -> Inspection:
    """What a look that failed brought: that every account of the portfolio is unknown."""
    snapshots = [
        Snapshot(one.venue, one.account, started_us, now_us, None, None, (why,))
        for one in accounts if one.portfolio == asked.portfolio
    ]  # fmt: skip
    comparison = compare(LedgerSide(), snapshots, Measures(ledger_known=False))
    return Inspection(_run(asked, snapshots, comparison, started_us, now_us), comparison, None)


def time_us(engine: Engine, clock: Clock | None) -> int:
    """The time by `clock`, or by the database's where there is none."""
    if clock is not None:
        return to_us(clock())
    with read_transaction(engine) as connection:
        return int(connection.execute(select(database_now_us())).scalar_one())


def _beyond_ledger(live: Iterable[Drift]) -> dict[Market, Decimal]:
    """What drifts say that the exchange showed beyond the ledger, base units by market."""
    beyond: dict[Market, Decimal] = {}
    for drift in live:
        if drift.excess > 0:
            beyond[drift.market] = max(drift.excess, beyond.get(drift.market, Decimal(0)))
    return beyond


def _measures(settings: AppSettings, started_us: int, prices: Mapping[str, Decimal | None]) -> Measures:
    stale = settings.reconcile.stale_after_seconds
    return Measures(
        tolerance=settings.reconcile.tolerance,
        delta_tolerance=settings.trading.delta_drift_tolerance,
        quote_assets=frozenset(settings.reconcile.quote_assets),
        baselines=dict(settings.reconcile.baselines),
        dust_usd=settings.reconcile.dust_usd,
        last_prices=prices,
        stale_us=0 if stale is None else started_us - stale * 1_000_000,
    )


def _run(
    asked: InspectionRequest, snapshots: Sequence[Snapshot], comparison: Comparison, started_us: int, now_us: int
) -> Run:
    return Run(
        id=0, portfolio=asked.portfolio, trigger=asked.trigger, outcome=_outcome(snapshots), started_us=started_us,
        finished_us=max(now_us, started_us), epoch=asked.epoch,
        fetched=tuple(_fetched(snapshot) for snapshot in snapshots), found=_found(comparison),
    )  # fmt: skip


def _outcome(snapshots: Sequence[Snapshot]) -> Literal["good", "partial", "failed"]:
    if all(snapshot.whole for snapshot in snapshots):
        return "good"
    known = any(one.positions is not None or one.balances is not None for one in snapshots)
    return "partial" if known else "failed"


def _fetched(snapshot: Snapshot) -> dict[str, object]:
    return {
        "venue": snapshot.venue,
        "account": snapshot.account,
        "positions": None if snapshot.positions is None else len(snapshot.positions),
        "balances": None if snapshot.balances is None else len(snapshot.balances),
        "milliseconds": (snapshot.taken_us - snapshot.begun_us) // 1000,
        "problems": list(snapshot.problems),
    }


def _found(comparison: Comparison) -> dict[str, int]:
    found = dict(comparison.counts)
    for finding in comparison.findings:
        found[finding.kind] = found.get(finding.kind, 0) + 1
    return found
