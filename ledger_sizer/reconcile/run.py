"""One run: take the lease, look at both sides, compare, record, act, tell."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import Reconciled
from ledger_sizer.model.domain import from_us
from ledger_sizer.model.errors import Busy, LedgerError, WrongState
from ledger_sizer.model.reconciliation import Drift, Report, Trigger
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.effects import Effects
from ledger_sizer.reconcile.inspection import (
    Clock,
    Inspection,
    InspectionFailed,
    InspectionRequest,
    Inspector,
    failed_inspection,
    time_us,
)
from ledger_sizer.reconcile.operator import Operator
from ledger_sizer.storage.leases import Lease, LeaseLost, acquire_lease, fenced, release_lease
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

LEASE_NAME = "reconcile"
LOOK_SHARE = 0.8
"""Of `run_seconds_max`, for looking; the rest is for writing, before the lease ends."""


Observe = Callable[[Report], None]


class Reconciler:
    """Compares the ledger with its accounts. Several replicas may have one: one of them runs at a time.

    look: sees both sides (see `look`). clock: the time source of tests; None reads the database's, as `LookHere` does.
    observe: told of every run, after its record (see `alerts` and `metrics`).
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        look: Inspector,
        settings: AppSettings,
        *,
        clock: Clock | None = None,
        observe: Sequence[Observe] = (),
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self.look = look
        self._settings = settings
        self._clock = clock
        self._observe = tuple(observe)
        self._one_run = threading.Lock()
        self.operator = Operator(ledger, engine)

    @property
    def portfolios(self) -> list[str]:
        """The portfolios that have an account."""
        return sorted({account.portfolio for account in self.look.accounts})

    def run(self, trigger: Trigger = "demand", *, dry_run: bool = False) -> list[Report]:
        """Run once for every portfolio. A dry run only looks.

        Raises `Busy` while another run is under way, here or in another replica; `LeaseLost` when this one took
        longer than `run_seconds_max` and another began; `Unavailable` without a database; `WrongState`
        without accounts.
        """
        if not self.look.accounts:
            raise WrongState("no exchange account is configured; set EXCHANGE_API_KEY and EXCHANGE_API_SECRET")
        if dry_run:
            return [_report(seen) for seen in self._looks(trigger, epoch=0)]
        if not self._one_run.acquire(blocking=False):
            raise Busy("a reconciliation is under way here; ask again when it is done")
        try:
            return self._leased(trigger)
        finally:
            self._one_run.release()

    def _leased(self, trigger: Trigger) -> list[Report]:
        lease = acquire_lease(self._engine, LEASE_NAME, secrets.token_hex(8), self._settings.reconcile.run_seconds_max)
        if lease is None:
            raise Busy("a reconciliation is under way in another process; ask again when it is done")
        try:
            with fenced(lease):
                return [self._run(seen, lease) for seen in self._looks(trigger, lease.epoch)]
        finally:
            release_lease(self._engine, lease)

    def begin_trust(self) -> None:
        """At a start: a portfolio that was never reconciled is trusted for one `stale_after_seconds`, and no longer.

        One whose trust has ended gets none by restarting: only a good run gives it back.
        """
        for portfolio in self.portfolios:
            if not self._trust_ends(portfolio):
                self._trust(portfolio, self._now_us(), f"reconcile:start:{secrets.token_hex(8)}", "start")

    # --- one portfolio after the other -----------------------------------------------------------

    def _looks(self, trigger: Trigger, epoch: int) -> Iterator[Inspection]:
        """Look at each portfolio when it is asked for; those to come share the time that is left."""
        until = time.monotonic() + LOOK_SHARE * self._settings.reconcile.run_seconds_max
        for left, portfolio in reversed(list(enumerate(reversed(self.portfolios), 1))):
            yield self._seen(InspectionRequest(portfolio, trigger, epoch), max(until - time.monotonic(), 0) / left)

    def _seen(self, asked: InspectionRequest, seconds_max: float) -> Inspection:
        """Both sides and their comparison. A look that fails is a run too: everything is unknown then."""
        started_us = self._now_us()
        try:
            return self.look.look(asked, seconds_max)
        except InspectionFailed as error:
            log.error("reconcile.look_failed", portfolio=asked.portfolio, error=str(error))
            return failed_inspection(asked, self.look.accounts, started_us, self._now_us(), str(error))

    def _run(self, seen: Inspection, lease: Lease) -> Report:
        portfolio = seen.run.portfolio
        changes = drifts.record_run(self._engine, lease, seen.run, seen.comparison, self._settings.reconcile)
        effects = Effects(self._ledger, self._engine, portfolio)
        if seen.external is not None:
            effects.count(changes.live, seen.external)
        effects.freeze_and_thaw()
        effects.tell("confirmed", [drift for drift in changes.live if drift.state == "confirmed"])
        effects.tell("resolved", [drift for drift in changes.resolved if drift.sightings >= self._needed])
        self._carry_out_policies(changes.live)
        run = replace(seen.run, id=changes.run_id)
        # By hand alone, where nothing is scheduled, it would begin a trust that nobody prolongs.
        renewed = self._settings.reconcile.enabled or self._trust_ends(portfolio)
        if run.outcome == "good" and not effects.failed and renewed:
            self._trust(portfolio, run.started_us, f"reconcile:run:{run.id}", f"run {run.id}")
        live = tuple(drifts.live_drifts(self._engine, portfolio))
        report = replace(
            _report(seen), run=run, live=live, confirmed=tuple(changes.confirmed), resolved=tuple(changes.resolved)
        )
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
            if drift.policy == "close" and not self._exceeds_request(drift):
                continue
            try:
                self.operator.act(drift.policy, drift.id, actor="policy", reason=f"policy_{drift.kind}={drift.policy}")
            except LeaseLost:
                raise
            except LedgerError as error:
                log.warning("reconcile.policy_failed", drift=drift.id, policy=drift.policy, error=str(error))

    def _exceeds_request(self, drift: Drift) -> bool:
        """Whether more is there than whoever trades was asked to close; less is what is left of that request."""
        if drift.requested is None:
            return True
        asked = drifts.asked_to_close(self._engine, drift)
        with exact_arithmetic():
            return asked is not None and drift.excess > asked * (1 + self._settings.reconcile.tolerance)

    def _trust_ends(self, portfolio: str) -> bool:
        """Whether grants in the portfolio depend on a reconciliation that is not too old."""
        try:
            return self._ledger.exposure(portfolio).whole.fresh_until is not None
        except LedgerError:
            return False

    def _trust(self, portfolio: str, since_us: int, key: str, note: str) -> None:
        seconds = self._settings.reconcile.stale_after_seconds
        until = None if seconds is None else from_us(since_us + seconds * 1_000_000)
        try:
            self._ledger.run(Reconciled(key=key, portfolio=portfolio, fresh_until=until, note=note))
        except LeaseLost:
            raise
        except LedgerError as error:
            log.warning("reconcile.trust_failed", portfolio=portfolio, error=str(error))

    def _now_us(self) -> int:
        return time_us(self._engine, self._clock)


def _report(seen: Inspection) -> Report:
    return Report(seen.run, tuple(seen.comparison.findings))
