"""One run: take the lease, look at both sides, compare, record, act, tell."""

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Protocol

from sqlalchemy import Engine, select

from ledger_sizer.commands import Reconciled
from ledger_sizer.config import AppSettings
from ledger_sizer.database import database_now_us, reading
from ledger_sizer.domain import from_us, to_us
from ledger_sizer.errors import Busy, LedgerError, WrongState
from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.leases import Lease, acquire, give_up
from ledger_sizer.ledger import Ledger
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.book import Book, book_of, in_turns, read_head, read_positions
from ledger_sizer.reconcile.compare import Comparison, Measures, compare
from ledger_sizer.reconcile.effects import Effects
from ledger_sizer.reconcile.kinds import Drift, Finding, Run
from ledger_sizer.reconcile.operator import Operator
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

LEASE_NAME = "reconcile"
Trigger = Literal["start", "interval", "demand"]


class Account(Protocol):
    """An account at an exchange. venue: as positions are tagged. portfolio: whose positions stand in it."""

    venue: str
    account: str
    portfolio: str

    def snapshot(self, now_us: Callable[[], int]) -> Snapshot:
        """What stands there now. Never raises for what the exchange does."""


@dataclass(frozen=True, slots=True)
class Report:
    """A run, what it found, and what became of the drifts (nothing, in a dry run)."""

    run: Run
    findings: tuple[Finding, ...]
    live: tuple[Drift, ...] = ()
    confirmed: tuple[Drift, ...] = ()
    resolved: tuple[Drift, ...] = ()


Observe = Callable[[Report], None]


class Reconciler:
    """Compares the ledger with its accounts. Several replicas may have one: one of them runs at a time.

    clock: the time source of tests; None reads the database's clock, which all replicas share.
    observe: told of every run, after its record (see `alerts` and `metrics`).
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        accounts: Sequence[Account],
        settings: AppSettings,
        *,
        clock: Callable[[], datetime] | None = None,
        observe: Sequence[Observe] = (),
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._accounts = tuple(accounts)
        self._settings = settings
        self._clock = clock
        self._observe = tuple(observe)
        self._one_run = threading.Lock()
        self.operator = Operator(ledger, engine)

    @property
    def portfolios(self) -> list[str]:
        """The portfolios that have an account."""
        return sorted({account.portfolio for account in self._accounts})

    def run(self, trigger: Trigger = "demand", *, dry_run: bool = False) -> list[Report]:
        """Run once for every portfolio. A dry run only looks.

        Raises `Busy` while another run is under way, here or in another replica; `LeaseLost` when this one took
        longer than `run_seconds_max` and another began; `Unavailable` without a database; `WrongState`
        without accounts.
        """
        if not self._accounts:
            raise WrongState("no exchange account is configured; set EXCHANGE_API_KEY and EXCHANGE_API_SECRET")
        if dry_run:
            return [self._look(portfolio, trigger)[0] for portfolio in self.portfolios]
        if not self._one_run.acquire(blocking=False):
            raise Busy("a reconciliation is under way here; ask again when it is done")
        try:
            return self._leased(trigger)
        finally:
            self._one_run.release()

    def _leased(self, trigger: Trigger) -> list[Report]:
        lease = acquire(self._engine, LEASE_NAME, secrets.token_hex(8), self._settings.reconcile.run_seconds_max)
        if lease is None:
            raise Busy("a reconciliation is under way in another process; ask again when it is done")
        try:
            return [self._run(portfolio, trigger, lease) for portfolio in self.portfolios]
        finally:
            give_up(self._engine, lease)

    def begin_trust(self) -> None:
        """At a start: a portfolio that was never reconciled is trusted for one `stale_after_seconds`, and no longer.

        One whose trust has ended gets none by restarting: only a good run gives it back.
        """
        for portfolio in self.portfolios:
            try:
                known = self._ledger.exposure(portfolio).whole.fresh_until is not None
            except LedgerError:
                known = False
            if not known:
                self._trust(portfolio, self._now_us(), f"reconcile:start:{secrets.token_hex(8)}", "start")

    # --- one portfolio ---------------------------------------------------------------------------

    def _run(self, portfolio: str, trigger: Trigger, lease: Lease) -> Report:
        seen, book, comparison = self._look(portfolio, trigger, lease)
        changes = drifts.record(self._engine, lease, seen.run, comparison, self._settings.reconcile)
        effects = Effects(self._ledger, self._engine, portfolio)
        effects.count(changes.live, book.external)
        effects.freeze_and_thaw(changes.live)
        effects.tell("confirmed", [drift for drift in changes.live if drift.state == "confirmed"])
        effects.tell("resolved", [drift for drift in changes.resolved if drift.sightings >= self._needed])
        self._carry_out_policies(changes.live)
        run = replace(seen.run, id=changes.run_id)
        if run.outcome == "good" and not effects.failed:
            self._trust(portfolio, run.started_us, f"reconcile:run:{run.id}", f"run {run.id}")
        live = tuple(drifts.live(self._engine, portfolio))
        report = Report(run, seen.findings, live, tuple(changes.confirmed), tuple(changes.resolved))
        log.info("reconcile.done", portfolio=portfolio, run=run.id, outcome=run.outcome, found=run.found)
        for observe in self._observe:
            observe(report)
        return report

    @property
    def _needed(self) -> int:
        return self._settings.reconcile.confirmations

    def _carry_out_policies(self, live: Sequence[Drift]) -> None:
        for drift in live:
            if drift.state != "confirmed" or drift.excess <= 0 or drift.policy not in ("adopt", "close"):
                continue
            if drift.policy == "close" and drift.requested is not None:
                continue
            try:
                self.operator.act(drift.policy, drift.id, actor="policy", reason=f"policy_{drift.kind}={drift.policy}")
            except LedgerError as error:
                log.warning("reconcile.policy_failed", drift=drift.id, policy=drift.policy, error=str(error))

    def _look(self, portfolio: str, trigger: Trigger, lease: Lease | None = None) -> tuple[Report, Book, Comparison]:
        """Both sides and their comparison; nothing is written."""
        accounts = [account for account in self._accounts if account.portfolio == portfolio]
        settings = self._settings.reconcile
        seq_before = read_head(self._engine, portfolio)
        started_us = self._now_us()
        with ThreadPoolExecutor(max_workers=min(len(accounts), 8)) as pool:
            snapshots = list(pool.map(lambda account: account.snapshot(self._now_us), accounts))
        expired_us = started_us - settings.expired_seconds * 1_000_000
        # Read again after the fetch: what moved meanwhile is in these rows and is not judged.
        positions = read_positions(self._engine, portfolio, since_us=expired_us)
        book = book_of(
            in_turns(positions),
            [(account.venue, account.account) for account in accounts],
            seq_before=seq_before,
            settled_us=started_us - settings.grace_seconds * 1_000_000,
            expired_us=expired_us,
        )
        comparison = compare(book, snapshots, self._measures(started_us), in_turns)
        run = Run(
            id=0, portfolio=portfolio, trigger=trigger, outcome=_outcome(snapshots), started_us=started_us,
            finished_us=max(self._now_us(), started_us), epoch=0 if lease is None else lease.epoch,
            fetched=tuple(_fetched(snapshot) for snapshot in snapshots), found=_found(comparison),
        )  # fmt: skip
        return Report(run, tuple(comparison.findings)), book, comparison

    def _measures(self, started_us: int) -> Measures:
        settings = self._settings.reconcile
        stale = settings.stale_after_seconds
        return Measures(
            tolerance=settings.tolerance,
            delta_tolerance=self._settings.trading.delta_drift_tolerance,
            quote_assets=frozenset(settings.quote_assets),
            baselines=dict(settings.baselines),
            stale_us=0 if stale is None else started_us - stale * 1_000_000,
        )

    def _trust(self, portfolio: str, since_us: int, key: str, note: str) -> None:
        seconds = self._settings.reconcile.stale_after_seconds
        until = None if seconds is None else from_us(since_us + seconds * 1_000_000)
        try:
            self._ledger.run(Reconciled(key=key, portfolio=portfolio, fresh_until=until, note=note))
        except LedgerError as error:
            log.warning("reconcile.trust_failed", portfolio=portfolio, error=str(error))

    def _now_us(self) -> int:
        if self._clock is not None:
            return to_us(self._clock())
        with reading(self._engine) as connection:
            return int(connection.execute(select(database_now_us())).scalar_one())


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
