"""Decides about many drifts of one portfolio: reads its ledger once, and commits in parts of bounded size."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine, select

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.caller import RECONCILE, calling_as, reconcile_for
from ledger_sizer.model.commands import AnyCommand, Remark
from ledger_sizer.model.decisions import Decision, DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_outcomes import DriftOutcome, OutcomeOfDrift
from ledger_sizer.model.drift_words import holds_named
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError, NotFound, WrongState
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.adoption import Adoption
from ledger_sizer.reconcile.closing import close_details, require_closable
from ledger_sizer.reconcile.deciding import (
    EVENTS,
    UNRESOLVED,
    changes_of,
    desk_remark,
    find_decisions,
    remark_of,
    require_same,
)
from ledger_sizer.reconcile.effects import Effects
from ledger_sizer.reconcile.ledger_reads import read_with_late_fills
from ledger_sizer.reconcile.ledger_view import LedgerView
from ledger_sizer.reconcile.planning import AdoptionPlanner, Plan
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.storage.tables import ReconciliationRow

_PART = 12
"""Drifts of one commit. An adoption has about four commands, so that a commit has about 50: many drifts must not delay
reservations for long."""

_ROUNDS_MAX = 3
"""How often the ledger is read again for drifts that a run changed meanwhile, or that wait for another one's commit."""

_REFUSALS = (WrongState, InvalidRequest, NotFound)
"""Errors that are about one drift. Any other is about all of them."""


@dataclass(slots=True)
class _Part:
    """Components that are decided in one commit, as far as they got."""

    plans: list[Plan] = field(default_factory=list)
    remarks: dict[int, Remark] = field(default_factory=dict)
    made_us: dict[int, int] = field(default_factory=dict)

    @property
    def open(self) -> list[Plan]:
        """The plans to carry out."""
        return [plan for plan in self.plans if plan.error is None and not plan.later]


class Bulk:
    """One decision about many drifts of one portfolio. action: `adopt`, `ignore` or `close`."""

    def __init__(
        self, ledger: Ledger, engine: Engine, portfolio: str, action: str, reason: str, *, dry_run: bool
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._portfolio = portfolio
        self._action = action
        self._event = EVENTS[action]
        self._reason = reason
        self._dry_run = dry_run
        self._caller = reconcile_for(ledger.caller.actor)
        self._outcomes: dict[int, DriftOutcome] = {}
        self._live: dict[int, Drift] = {}

    def run(self, ids: Sequence[int], progress: Callable[[int], None]) -> list[DriftOutcome]:
        """Decide about these drifts of the portfolio. progress: called with how many are decided."""
        left = sorted(ids)
        for _ in range(_ROUNDS_MAX):
            if left:
                self._round(left, progress)
                left = [one for one in left if one not in self._outcomes]
        busy = Busy("runs changed it again and again meanwhile; decide again")
        for drift in drifts.read_drifts(self._engine, left):
            self._refuse(drift, busy)
        if not self._dry_run:
            with calling_as(RECONCILE):
                Effects(self._ledger, self._engine, self._portfolio).freeze_and_thaw()
        return [*self._outcomes.values()]

    def _round(self, ids: Sequence[int], progress: Callable[[int], None]) -> None:
        found = drifts.read_drifts(self._engine, ids)
        if self._action == "close":
            for start in range(0, len(found), _PART):
                self._decide(None, [[drift] for drift in found[start : start + _PART]])
                progress(len(self._outcomes))
            return
        self._live = {one.id: one for one in drifts.live_drifts(self._engine, self._portfolio)}
        by_run: dict[int, list[Drift]] = {}
        for drift in found:
            by_run.setdefault(drift.last_run, []).append(drift)
        for run_id, of_run in sorted(by_run.items()):
            view = self._view_of(run_id)
            view.keep_near(self._live.values())
            for part in _parts(view.components(of_run)):
                self._decide(view, part)
                progress(len(self._outcomes))

    def _view_of(self, run_id: int) -> LedgerView:
        query = select(ReconciliationRow.fetched, ReconciliationRow.started_us).where(ReconciliationRow.id == run_id)
        with read_transaction(self._engine) as connection:
            fetched, seen_us = connection.execute(query).one()
        accounts = [(one["venue"], one["account"]) for one in json.loads(fetched)]
        return LedgerView(self._engine, self._portfolio, seen_us, accounts)

    # --- one commit ------------------------------------------------------------------------------

    def _decide(self, view: LedgerView | None, components: Sequence[Sequence[Drift]]) -> None:
        """Decide about components in one commit; if it is refused, about each in its own, down to single drifts."""
        part = self._plan(view, components)
        for plan in part.plans:
            if plan.error is not None:
                self._refuse(plan.drift, plan.error)
        if self._dry_run:
            self._foretell(part)
            return
        try:
            decided_us = self._submit(part)
        except LeaseLost:
            raise
        except _REFUSALS as error:
            self._decide_apart(view, components, error)
            return
        self._record(part, decided_us)

    def _decide_apart(self, view: LedgerView | None, components: Sequence[Sequence[Drift]], error: LedgerError) -> None:
        """Decide about each component by itself, or about each drift of one; refuse a single one."""
        smaller = components if len(components) > 1 else [[drift] for drift in components[0]]
        if len(smaller) > 1:
            for component in smaller:
                if left := [drift for drift in component if drift.id not in self._outcomes]:
                    self._decide(view, [left])
            return
        part = self._plan(view, components)
        if part.made_us:
            self._record(part, 0)  # a concurrent call made the same decision
        else:
            self._refuse(components[0][0], error)

    def _foretell(self, part: _Part) -> None:
        for plan in part.plans:
            if plan.error is None:
                repeated = plan.drift.id in part.made_us
                words = "decided before" if repeated else self._words(plan)
                outcome: OutcomeOfDrift = "repeated" if repeated else "planned"
                self._outcomes[plan.drift.id] = DriftOutcome(plan.drift.id, outcome, words, drift=plan.drift)

    def _plan(self, view: LedgerView | None, components: Sequence[Sequence[Drift]]) -> _Part:
        """Plan on the present ledger, for the drifts that are as they were when the round began."""
        asked = [drift for component in components for drift in component]
        now = {drift.id: drift for drift in drifts.read_drifts(self._engine, [drift.id for drift in asked])}
        part = _Part(remarks={one.id: self._remark_of(now[one.id]) for one in asked})
        records = find_decisions(self._engine, self._portfolio, [one.key for one in part.remarks.values()])
        if view is not None:
            view.refresh()
        holds = self._holds_of(asked)
        for component in components:
            pending = []
            for drift in component:
                known = self._plan_known(part, now[drift.id], records)
                if known is not None:
                    part.plans.append(known)
                elif _is_same(drift, now[drift.id]):
                    pending.append(now[drift.id])
                else:
                    part.plans.append(Plan(drift, later=True))  # a run saw it again: read again, and decide on that
            if pending:
                part.plans += self._plan_component(view, pending, holds)
        return part

    def _plan_known(self, part: _Part, drift: Drift, records: dict[str, DecisionRecord]) -> Plan | None:
        """Return the plan of a drift that is decided already, None of any other."""
        remark = part.remarks[drift.id]
        record = records.get(remark.key)
        if record is not None:
            try:
                part.made_us[drift.id] = require_same(record, remark, self._caller.actor)
            except WrongState as error:
                return Plan(drift, error=error)
            return Plan(drift)
        if drift.state == "resolved":
            return Plan(drift, error=WrongState(f"{drift.name} is resolved already: {drift.reason} ({drift.actor})"))
        return None

    def _plan_component(
        self, view: LedgerView | None, component: Sequence[Drift], holds: Sequence[Position]
    ) -> Iterable[Plan]:
        if view is None:
            return map(_plan_close, component)
        if self._action == "adopt":
            live = [one for one in view.near(component) if one.id in self._live]
            return AdoptionPlanner(view, component, live, holds).plans()
        positions = view.positions_of(component)
        return [
            Plan(one, tuple(Adoption(one, positions, view.accounts, view.seen_us, []).releases())) for one in component
        ]

    def _holds_of(self, found: Iterable[Drift]) -> list[Position]:
        names = {name for drift in found if drift.kind == "late_fill" for name in holds_named(drift.detail)}
        if not names or self._action != "adopt":
            return []
        numbers = [int(name.rpartition("-")[2]) for name in names]
        return read_with_late_fills(self._engine, self._portfolio, numbers)

    def _remark_of(self, drift: Drift) -> Remark:
        closing = self._action == "close" and drift.excess > 0
        return remark_of(drift, self._event, self._reason, close_details(self._engine, drift) if closing else None)

    def _submit(self, part: _Part) -> int:
        """Commit the plans that are not carried out yet. Returns the time of the decision, 0 without any."""
        commands: list[AnyCommand] = []
        for plan in part.open:
            if plan.drift.id not in part.made_us:
                remark = part.remarks[plan.drift.id]
                by_person = [] if self._caller == RECONCILE else [desk_remark(remark)]
                commands += [*plan.commands, *by_person, remark]
        if not commands:
            return 0
        with calling_as(self._caller):
            results = self._ledger.submit(commands, atomic=True)
        return max(result.record.decided_us for result in results if isinstance(result, Decision))

    def _record(self, part: _Part, decided_us: int) -> None:
        """Write the rows of what is decided."""
        decided = {plan.drift.id: plan for plan in part.open}
        updates = [
            drifts.DriftUpdate(
                one, changes_of(self._event, self._caller.actor, self._reason, part.made_us.get(one, decided_us)),
                UNRESOLVED,
            )
            for one in decided
        ]  # fmt: skip
        drifts.update_drifts(self._engine, updates)
        for drift in drifts.read_drifts(self._engine, [*decided]):
            repeated = drift.id in part.made_us
            words = "decided before" if repeated else self._words(decided[drift.id])
            self._outcomes[drift.id] = DriftOutcome(drift.id, "repeated" if repeated else "done", words, drift=drift)
        for one in decided:
            self._live.pop(one, None)

    def _words(self, plan: Plan) -> str:
        if self._action == "adopt":
            return plan.words
        return "counts no longer, until it changes" if self._action == "ignore" else "asked to close it"

    def _refuse(self, drift: Drift, error: LedgerError) -> None:
        self._outcomes[drift.id] = DriftOutcome(drift.id, "refused", str(error), error.code, drift)


def _plan_close(drift: Drift) -> Plan:
    try:
        require_closable(drift)
    except WrongState as error:
        return Plan(drift, error=error)
    return Plan(drift)


def _is_same(drift: Drift, now: Drift) -> bool:
    return (drift.state, drift.revision, drift.last_run) == (now.state, now.revision, now.last_run)


def _parts(components: Iterable[list[Drift]]) -> Iterable[list[list[Drift]]]:
    """Put components together until they have enough drifts for a commit."""
    part: list[list[Drift]] = []
    for component in components:
        part.append(component)
        if sum(map(len, part)) >= _PART:
            yield part
            part = []
    if part:
        yield part
