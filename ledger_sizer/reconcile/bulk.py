"""Decides about many drifts of one portfolio: reads its ledger once, and commits in parts of bounded size."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from ledger_sizer.model.tags import NO_TAGS, Tags
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.adoption import PAIRED_KINDS, Adoption
from ledger_sizer.reconcile.closing import close_details, require_closable
from ledger_sizer.reconcile.deciding import (
    EVENTS,
    UNRESOLVED,
    WITH,
    changes_of,
    desk_remark,
    first_of,
    remark_of,
    require_same,
    require_tags_of,
)
from ledger_sizer.reconcile.effects import Effects
from ledger_sizer.reconcile.ledger_reads import find_decisions, read_with_late_fills
from ledger_sizer.reconcile.ledger_view import LedgerView
from ledger_sizer.reconcile.pairing import connected, holding_of, paired
from ledger_sizer.reconcile.planning import AdoptionPlanner, Plan
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.storage.tables import ReconciliationRow

_COMMIT = 15
"""Drifts of one commit. An adoption has about four commands, so that a commit has about 60: many drifts must not delay
reservations for long."""

_PAGE = 120
"""Drifts that are looked up and written together. When it dies before, their remarks tell what was decided."""

_ROUNDS_MAX = 3
"""How often the ledger is read again for drifts that a run changed meanwhile, or that wait for another one's commit."""

_REFUSALS = (WrongState, InvalidRequest, NotFound)
"""Errors that are about one drift. Any other is about all of them."""


@dataclass(slots=True)
class _Page:
    """Drifts that are looked up together, and written together when they are decided.

    now: as they are, by number. remarks: of their decisions. made_us: when those were decided, that are.
    """

    now: dict[int, Drift]
    remarks: dict[int, Remark]
    records: dict[str, DecisionRecord]
    holds: list[Position]
    made_us: dict[int, int] = field(default_factory=dict)
    done: dict[int, Plan] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)


class Bulk:
    """One decision about many drifts of one portfolio. action: `adopt`, `ignore` or `close`.

    tags, pair: of an adoption, see `Operator.adopt`.
    """

    def __init__(
        self, ledger: Ledger, engine: Engine, portfolio: str, action: str, reason: str, *, tags: Tags = NO_TAGS,
        pair: bool = True, dry_run: bool,
    ) -> None:  # fmt: skip
        self._tags = tags
        self._tolerance = ledger.settings.trading.delta_drift_tolerance if pair else None
        self._hedges: dict[int, tuple[int, ...]] = {}
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
            self._pages(None, [[drift] for drift in found], progress)
            return
        self._live = {one.id: one for one in drifts.live_drifts(self._engine, self._portfolio)}
        by_run: dict[int, list[Drift]] = {}
        for drift in found:
            by_run.setdefault(drift.last_run, []).append(drift)
        for run_id, of_run in sorted(by_run.items()):
            view = self._view_of(run_id)
            view.keep_near(self._live.values())
            self._pages(view, view.components(self._with_hedges(view, of_run)), progress)

    def _with_hedges(self, view: LedgerView, found: Sequence[Drift]) -> Sequence[Drift]:
        """Return drifts of one run and those that hedge them, which are adopted together.

        A policy decides about nothing that it would not adopt by itself.
        """
        if self._action != "adopt" or self._tolerance is None:
            return found
        run_id = found[0].last_run
        live = [one for one in self._live.values() if one.live and one.last_run == run_id]
        if self._caller == RECONCILE:
            live = [one for one in live if (one.state, one.policy) == ("confirmed", "adopt")]
        by_market = {
            one.market: one for one in (*live, *found)
            if one.kind in PAIRED_KINDS and one.excess > 0
        }  # fmt: skip
        wanted = {one.id: one for one in found}
        for group in connected(paired(map(holding_of, by_market.values()), self._tolerance)):
            members = {by_market[one.market].id: by_market[one.market] for piece in group for one in piece}
            if len(members) > 1 and not members.keys().isdisjoint(wanted):
                view.join(one.market for one in members.values())
                self._hedges.update(dict.fromkeys(members, tuple(members)))
                wanted |= members
        return [wanted[number] for number in sorted(wanted)]

    def _view_of(self, run_id: int) -> LedgerView:
        query = select(ReconciliationRow.fetched, ReconciliationRow.started_us).where(ReconciliationRow.id == run_id)
        with read_transaction(self._engine) as connection:
            fetched, seen_us = connection.execute(query).one()
        accounts = [(one["venue"], one["account"]) for one in json.loads(fetched)]
        return LedgerView(self._engine, self._portfolio, seen_us, accounts)

    def _pages(
        self, view: LedgerView | None, components: Iterable[list[Drift]], progress: Callable[[int], None]
    ) -> None:
        for several in _together(components, _PAGE):
            page = self._page_of([drift for component in several for drift in component])
            for few in _together(several, _COMMIT):
                self._decide(page, view, few)
            self._record(page)
            progress(len(self._outcomes))

    def _page_of(self, asked: Sequence[Drift]) -> _Page:
        now = {drift.id: drift for drift in drifts.read_drifts(self._engine, [drift.id for drift in asked])}
        remarks = {drift.id: self._remark_of(drift) for drift in now.values()}
        records = find_decisions(self._engine, self._portfolio, [one.key for one in remarks.values()])
        return _Page(now, remarks, records, self._holds_of(asked))

    # --- one commit ------------------------------------------------------------------------------

    def _decide(
        self,
        page: _Page,
        view: LedgerView | None,
        components: Sequence[Sequence[Drift]],
        *,
        again: bool = False,
        whole: bool = True,
    ) -> None:
        """Decide about components in one commit; if it is refused, about each in its own, down to single drifts.

        again: whether this is planned a second time. whole: whether the components are complete.
        """
        plans = self._plan(page, view, components)
        ready = [plan for plan in plans if plan.error is None and not plan.later]
        if self._dry_run:
            self._foretell(page, [plan for plan in plans if plan.error is None])
        else:
            try:
                seqs = self._submit(page, ready)
                if view is not None and whole:
                    view.skip(seqs)
            except LeaseLost:
                raise
            except _REFUSALS as error:
                self._decide_apart(page, view, components, error, again=again)
                return
        for plan in plans:
            if plan.error is not None:
                self._refuse(plan.drift, plan.error)

    def _decide_apart(
        self,
        page: _Page,
        view: LedgerView | None,
        components: Sequence[Sequence[Drift]],
        error: LedgerError,
        *,
        again: bool,
    ) -> None:
        """Decide about each component by itself, on the ledger as it is now; then about each drift of one."""
        if len(components) > 1 or not again:
            for component in components:
                self._decide(page, view, [component], again=True)
            return
        if len(smaller := self._hedges_apart(components[0])) > 1:
            for hedge in smaller:
                self._decide(page, view, [hedge], again=True, whole=False)
            return
        keys = [page.remarks[drift.id].key for drift in components[0]]
        page.records.update(find_decisions(self._engine, self._portfolio, keys))
        for drift in components[0]:
            known = self._plan_known(page, page.now[drift.id])
            if known is None or known.error is not None:
                self._refuse(drift, error)
            else:
                page.done[drift.id] = known  # a concurrent call made the same decision

    def _hedges_apart(self, component: Sequence[Drift]) -> list[list[Drift]]:
        """Return single drifts, and those of a hedge together: one side alone would count beside the other."""
        found: dict[tuple[int, ...], list[Drift]] = {}
        for drift in component:
            found.setdefault(self._hedges.get(drift.id, (drift.id,)), []).append(drift)
        return [*found.values()]

    def _plan(self, page: _Page, view: LedgerView | None, components: Sequence[Sequence[Drift]]) -> list[Plan]:
        """Plan on the present ledger, for the drifts that are as they were when the round began."""
        if view is not None:
            view.refresh()
        plans: list[Plan] = []
        for component in components:
            pending = []
            for drift in component:
                now = page.now[drift.id]
                known = self._plan_known(page, now)
                if known is not None:
                    plans.append(known)
                elif _is_same(drift, now):
                    pending.append(now)
                else:
                    plans.append(Plan(drift, later=True))  # a run saw it again: read again, and decide on that
            if pending:
                plans += self._plan_component(view, pending, page.holds)
        return plans

    def _plan_known(self, page: _Page, drift: Drift) -> Plan | None:
        """Return the plan of a drift that is decided already, None of any other."""
        remark = page.remarks[drift.id]
        record = page.records.get(remark.key)
        if record is not None:
            if self._caller == RECONCILE and record.actor == RECONCILE.actor:
                # A policy names its kind as the reason, and two of a hedge may be of two kinds.
                remark = remark_of(drift, self._event, drift.reason or self._reason)
            try:
                page.made_us[drift.id] = require_same(record, remark, self._caller.actor)
                require_tags_of(self._engine, drift, first_of(record), self._tags)
            except WrongState as error:
                return Plan(drift, error=error)
            page.repeated.add(drift.id)
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
            return AdoptionPlanner(view, component, live, holds, self._tags, self._tolerance).plans()
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

    def _submit(self, page: _Page, ready: Sequence[Plan]) -> set[int]:
        """Commit the plans that are not carried out yet. Returns the seqs of the decisions."""
        seqs = set()
        commands: list[AnyCommand] = []
        new = [plan.drift.id for plan in ready if plan.drift.id not in page.made_us]
        for plan in ready:
            if plan.drift.id not in page.made_us:
                remark = page.remarks[plan.drift.id]
                if plan.first is not None:
                    remark = remark_of(plan.drift, self._event, self._reason, {WITH: plan.first.name})
                by_person = [] if self._caller == RECONCILE else [desk_remark(remark)]
                commands += [*plan.commands, *by_person, remark]
        if commands:
            with calling_as(self._caller):
                results = self._ledger.submit(commands, atomic=True)
            records = [result.record for result in results if isinstance(result, Decision)]
            page.made_us.update(dict.fromkeys(new, max(record.decided_us for record in records)))
            seqs = {record.seq for record in records if record.portfolio == self._portfolio}
        page.done.update((plan.drift.id, plan) for plan in ready)
        return seqs

    def _foretell(self, page: _Page, plans: Iterable[Plan]) -> None:
        """Tell what would be done; for one that waits for another, what would be done without that one."""
        for plan in plans:
            repeated = plan.drift.id in page.repeated
            words = "decided before" if repeated else self._words(plan)
            outcome: OutcomeOfDrift = "repeated" if repeated else "planned"
            self._outcomes[plan.drift.id] = DriftOutcome(plan.drift.id, outcome, words, drift=plan.drift)

    def _record(self, page: _Page) -> None:
        """Write the rows of what is decided: with one statement, where all was decided at once."""
        if not page.done:
            return
        at_us = max(page.made_us[one] for one in page.done)
        new = [
            drifts.DriftUpdate(
                one, changes_of(self._event, self._caller.actor, self._reason,
                                page.made_us[one] if one in page.repeated else at_us), UNRESOLVED,
            )
            for one in page.done
        ]  # fmt: skip
        now = page.now | {drift.id: drift for drift in drifts.update_drifts(self._engine, new)}
        for number, plan in page.done.items():
            repeated = number in page.repeated
            words = "decided before" if repeated else self._words(plan)
            outcome: OutcomeOfDrift = "repeated" if repeated else "done"
            self._outcomes[number] = DriftOutcome(number, outcome, words, drift=now[number])
            self._live.pop(number, None)

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


def _together(components: Iterable[list[Drift]], drifts_min: int) -> Iterator[list[list[Drift]]]:
    """Put components together until they have so many drifts."""
    several: list[list[Drift]] = []
    for component in components:
        several.append(component)
        if sum(map(len, several)) >= drifts_min:
            yield several
            several = []
    if several:
        yield several
