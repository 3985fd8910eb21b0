"""Runs the reconciliation: takes the lease, inspects, records the run, applies its drifts, notifies observers."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

from sqlalchemy import Engine

from ledger_sizer.config import AppSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.account_activity import DriftActivity
from ledger_sizer.model.asset_policies import AssetRule
from ledger_sizer.model.caller import RECONCILE, calling_as
from ledger_sizer.model.choices import Trigger
from ledger_sizer.model.drift_outcomes import DRIFTS_MAX
from ledger_sizer.model.errors import Busy, Closed, LedgerError, Unavailable, WrongState
from ledger_sizer.model.reconciliation import Drift, Report
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.decided_policies import effective_policies, read_decided
from ledger_sizer.reconcile.drift_activity import AskedAccount, drift_activity
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
from ledger_sizer.reconcile.trust import Trust
from ledger_sizer.storage.clock import ClockGuard
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.leases import Lease, LeaseLost, acquire_lease, fenced, release_lease
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

LEASE_NAME = "reconcile"
INSPECTION_SHARE = 0.8
"""Share of `run_seconds_max` for the inspections. The rest is for writing before the lease ends."""

Observe = Callable[[Report], None]


class Reconciler:
    """Compares the ledger with its accounts. Several replicas may have one; only one of them runs at a time.

    inspector: fetches and compares (see `inspection`). clock: for tests; None reads the database's clock. observe:
    called with the report of every run, after it is recorded.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        inspector: Inspector,
        settings: AppSettings,
        *,
        clock: Clock | None = None,
        observe: Sequence[Observe] = (),
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self.inspector = inspector
        self._settings = settings
        self._clock = clock
        self._guard = ClockGuard(settings.ledger.clock_jump_seconds)
        self._observe = tuple(observe)
        self._run_lock = threading.Lock()
        self._trust = Trust(ledger, engine, settings.reconcile)
        self.operator = Operator(ledger, engine)

    @property
    def portfolios(self) -> list[str]:
        """The portfolios that have an account."""
        return sorted({account.portfolio for account in self.inspector.accounts})

    def asset_rules(self, portfolios: Sequence[str] | None = None) -> list[AssetRule]:
        """Return whose money each asset is: decided for these portfolios (None: for all), then from settings."""
        decided = read_decided(self._engine, portfolios)
        return [*decided, *effective_policies(self._settings.reconcile)]

    def run(self, trigger: Trigger = "demand", *, dry_run: bool = False) -> list[Report]:
        """Run once for every portfolio. A dry run only inspects.

        Raises `Busy` while another run is under way, here or in another replica; `LeaseLost` if this one took longer
        than `run_seconds_max` and another began; `Unavailable` without a database; `WrongState` without accounts.
        """
        if not self.inspector.accounts:
            raise WrongState("no exchange account is configured; set EXCHANGE_API_KEY and EXCHANGE_API_SECRET")
        with calling_as(RECONCILE):
            return self._run(trigger, dry_run=dry_run)

    def _run(self, trigger: Trigger, *, dry_run: bool) -> list[Report]:
        if dry_run:
            return [_report(inspection) for inspection in self._inspections(trigger, epoch=0)]
        if not self._run_lock.acquire(blocking=False):
            raise Busy("a reconciliation is under way here; ask again when it is done")
        try:
            return self._run_under_lease(trigger)
        finally:
            self._run_lock.release()

    def _run_under_lease(self, trigger: Trigger) -> list[Report]:
        lease = acquire_lease(self._engine, LEASE_NAME, secrets.token_hex(8), self._settings.reconcile.run_seconds_max)
        if lease is None:
            raise Busy("a reconciliation is under way in another process; ask again when it is done")
        try:
            with fenced(lease):
                return self._record_and_apply_all(trigger, lease)
        finally:
            release_lease(self._engine, lease)

    def _record_and_apply_all(self, trigger: Trigger, lease: Lease) -> list[Report]:
        """Record and apply every inspection. What one portfolio raises is raised after all the others."""
        reports: list[Report] = []
        failed: Exception | None = None
        for inspection in self._inspections(trigger, lease.epoch):
            try:
                reports.append(self._record_and_apply(inspection, lease))
            except (LeaseLost, Unavailable, Closed):
                raise  # it concerns all of them
            except Exception as error:
                log.exception("reconcile.broke", portfolio=inspection.run.portfolio)
                failed = failed or error
        if failed is not None:
            raise failed
        return reports

    def activity(self, drift_id: object) -> DriftActivity:
        """Ask the exchange what explains a drift. See `drift_activity`."""
        accounts = cast("Sequence[AskedAccount]", self.inspector.accounts)
        quote_assets = self._settings.reconcile.quote_assets
        return drift_activity(self._engine, accounts, drift_id, self._now_us, quote_assets)

    def begin_trust(self) -> None:
        """At start-up: let a portfolio that was never reconciled grant for one `stale_after_seconds`.

        Where that time has ended, a restart does not renew it: only a good run does.
        """
        with calling_as(RECONCILE):
            for portfolio in self.portfolios:
                self._trust.begin(portfolio, self._accounts_of(portfolio), self._now_us())

    # --- one portfolio after the other -----------------------------------------------------------

    def _inspections(self, trigger: Trigger, epoch: int) -> Iterator[Inspection]:
        """Inspect one portfolio after the other, lazily. Each gets an equal share of the time that is left."""
        deadline = time.monotonic() + INSPECTION_SHARE * self._settings.reconcile.run_seconds_max
        for left, portfolio in reversed(list(enumerate(reversed(self.portfolios), 1))):
            yield self._inspect(
                InspectionRequest(portfolio, trigger, epoch), max(deadline - time.monotonic(), 0) / left
            )

    def _inspect(self, request: InspectionRequest, seconds_max: float) -> Inspection:
        """Inspect one portfolio. A failed inspection is recorded as a run too, with everything unknown."""
        started_us = self._now_us()
        try:
            self._require_declared(request.portfolio)
            if request.epoch:
                self._trust.declare(request.portfolio, self._accounts_of(request.portfolio), started_us)
            return self.inspector.inspect(request, seconds_max)
        except InspectionFailed as error:
            log.error("reconcile.look_failed", portfolio=request.portfolio, error=str(error))
            reason = str(error)
        except LedgerError:
            raise
        except Exception as error:  # a defect met in one portfolio must not hide the others' drifts
            log.exception("reconcile.look_broke", portfolio=request.portfolio)
            reason = f"the inspection met a defect: {error!r}; see the log"
        return failed_inspection(request, self.inspector.accounts, started_us, self._now_us(), reason)

    def _accounts_of(self, portfolio: str) -> list[tuple[str, str]]:
        return [(one.venue, one.account) for one in self.inspector.accounts if one.portfolio == portfolio]

    def _require_declared(self, portfolio: str) -> None:
        """Raise `InspectionFailed` for an account of a portfolio that nobody declared: nothing of it can be counted."""
        if self._settings.ledger.portfolios != "declared":
            return
        with read_transaction(self._engine) as connection:
            if portfolio_id(connection, portfolio) is None:
                raise InspectionFailed(
                    f"there is no portfolio {portfolio!r}, and LEDGER_PORTFOLIOS=declared; begin it with its cap: "
                    f"ledger-sizer caps set {portfolio} CAP, or give the account the portfolio that it belongs to"
                )

    def _record_and_apply(self, inspection: Inspection, lease: Lease) -> Report:
        portfolio = inspection.run.portfolio
        settings = self._settings.reconcile
        changes = drifts.record_run(self._engine, lease, inspection.run, inspection.comparison, settings)
        effects = Effects(self._ledger, self._engine, portfolio)
        if inspection.external is not None:
            effects.sync_external_positions(changes.live, inspection.external)
        effects.freeze_and_thaw()
        effects.record_event("confirmed", [drift for drift in changes.live if drift.state == "confirmed"])
        was_confirmed = [drift for drift in changes.resolved if drift.sightings >= settings.confirmations]
        effects.record_event("resolved", was_confirmed)
        self._apply_policies(changes.live)
        run = replace(inspection.run, id=changes.run_id)
        self._trust.follow_equity(portfolio, inspection.looks, run.id, good=run.outcome == "good")
        if not effects.failed:
            # The run's times are of another process: one that began while the clock was wrong trusts that clock.
            self._trust.renew(portfolio, inspection.looks, run.id, min(run.started_us, self._now_us()))
        live = tuple(drifts.live_drifts(self._engine, portfolio))
        report = replace(
            _report(inspection),
            run=run,
            live=live,
            confirmed=tuple(changes.confirmed),
            resolved=tuple(changes.resolved),
        )
        log.info("reconcile.done", portfolio=portfolio, run=run.id, outcome=run.outcome, found=run.found)
        for observe in self._observe:
            observe(report)
        return report

    def _apply_policies(self, live: Sequence[Drift]) -> None:
        asked: dict[tuple[str, str], list[int]] = {}
        for drift in live:
            if drift.state != "confirmed" or drift.policy not in ("adopt", "close"):
                continue
            # A late fill of a live hold is no excess: its hold counts it. It can be adopted, and not closed.
            if drift.excess <= 0 and (drift.kind, drift.policy) != ("late_fill", "adopt"):
                continue
            if drift.policy == "close" and not self._exceeds_request(drift):
                continue
            asked.setdefault((drift.policy, f"policy_{drift.kind}={drift.policy}"), []).append(drift.id)
        for (policy, reason), ids in asked.items():
            for start in range(0, len(ids), DRIFTS_MAX):
                self._decide_by_policy(policy, ids[start : start + DRIFTS_MAX], reason)

    def _decide_by_policy(self, policy: str, ids: Sequence[int], reason: str) -> None:
        try:
            outcomes = self.operator.act_all(policy, ids, reason=reason)
        except LeaseLost:
            raise
        except LedgerError as error:
            log.warning("reconcile.policy_failed", drifts=ids, policy=policy, error=str(error))
            return
        for one in outcomes.items:
            if one.outcome == "refused":
                log.warning("reconcile.policy_failed", drift=one.drift_id, policy=policy, error=one.words)

    def _exceeds_request(self, drift: Drift) -> bool:
        """Whether the excess is larger than at the last close request. If not, it is the rest of that request."""
        if drift.requested is None:
            return True
        requested = drifts.close_requested_excess(self._engine, drift)
        with exact_arithmetic():
            return requested is not None and drift.excess > requested * (1 + self._settings.reconcile.tolerance)

    def _now_us(self) -> int:
        return time_us(self._engine, self._clock, self._guard)


def _report(inspection: Inspection) -> Report:
    return Report(inspection.run, tuple(inspection.comparison.findings))
