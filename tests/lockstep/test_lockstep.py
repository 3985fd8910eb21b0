"""The model and ledgers on SQLite, on PostgreSQL and in memory in lockstep: the same commands, answers and hashes.

Two handles on each database take turns, so that each makes the other's cached state stale. After every step all
invariants are checked from outside. By default the same few dozen histories run each time. To run a campaign of new
histories, which also shrinks failures:

    LOCKSTEP_EXAMPLES=2000 make test TEST_WORKERS=0 ARGS=tests/lockstep/test_lockstep.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from ledger_sizer import Decision, Ledger, LedgerError, NotFound, Reserve
from ledger_sizer.model.decisions import Result
from ledger_sizer.model.domain import Exposure
from ledger_sizer.rules.explain import explain
from ledger_sizer.storage.write_store import EXPIRIES_MAX
from tests.conftest import NewDatabase
from tests.lockstep import random_commands
from tests.lockstep.auditor import Auditor
from tests.lockstep.beginnings import POLICIES, POOLS, Policy
from tests.lockstep.command_maker import CommandMaker
from tests.lockstep.comparing import (
    answers_equal,
    answers_of,
    as_reply,
    fraction_of,
    holdings_equal,
    plain,
)
from tests.lockstep.model import Group, Model
from tests.lockstep.model_pools import cap_of
from tests.lockstep.model_positions import Tags
from tests.lockstep.random_commands import CommandPlan
from tests.support.clock import FakeClock
from tests.support.databases import ENGINE_KINDS

EXAMPLES = int(os.environ.get("LOCKSTEP_EXAMPLES", "0"))
STEPS = 30
SLICE_SIZES = (1, 2, EXPIRIES_MAX)
"""Overdue holds that a batch frees: so few that a history of 30 steps has more, and as in production."""
KINDS = (*ENGINE_KINDS, "memory")
RUNS = count()


Counters = dict[str, tuple[Decimal | None, ...]]


class Lockstep(CommandMaker):
    """Sends every command to both databases and to the model, and compares."""

    def __init__(
        self, urls: dict[str, str], set_slice_size: Callable[[int], None], archives: Path | None = None
    ) -> None:
        super().__init__(next(RUNS))
        self.urls = urls
        self.archives = archives
        self.seen: dict[tuple[str, str, int], Counters] = {}
        self.set_slice_size = set_slice_size
        self.clock = FakeClock()
        self.handles: dict[str, list[Ledger]] = {}
        self.auditors: dict[tuple[str, str], Auditor] = {}
        self.sound = False

    @initialize(
        policy=st.sampled_from(POLICIES), slice_size=st.sampled_from(SLICE_SIZES), pools=st.sampled_from([*POOLS])
    )
    def open(self, policy: Policy, slice_size: int, pools: str) -> None:
        self.policy = policy
        self.set_slice_size(slice_size)
        self.settings = policy.settings()
        self.model = Model(policy.figures(), slice_size)
        for kind in ENGINE_KINDS:
            self.handles[kind] = [self._opened(kind), self._opened(kind)]
        self.handles["memory"] = [Ledger.in_memory(settings=self.settings, clock=self.clock)] * 2
        self._begin(pools)
        self.sound = True

    def _begin(self, pools: str) -> None:
        plans = POOLS[pools]
        if plans and self.policy.portfolios == "declared":
            plans = [*POOLS["declared"], *plans]
        if plans:
            self._send([self._group(plans, atomic=False)], 0)

    def _opened(self, kind: str) -> Ledger:
        own = self.settings.ledger.model_copy(update={"archive_dir": str(self.archives and self.archives / kind)})
        settings = self.settings.model_copy(update={"ledger": own})
        return Ledger.open(self.urls[kind], settings=settings, clock=self.clock)

    def teardown(self) -> None:
        self.clock.advance(10_000_000)  # beyond every expiry, so that no hold is left for a sweep of the next history
        try:
            if self.sound:
                for name in sorted(self.model.portfolios):
                    self._sweep(0, name)
                self._verify(1)
                self._look_back()
                if self.run % 5 == 0:
                    self._archive()
                    self._verify(0)
                    self._look_back()
        finally:
            for ledger in {ledger for pair in self.handles.values() for ledger in pair}:
                ledger.sweep()
                ledger.close()

    def _look_back(self) -> None:
        """Check that the exposure as of a past decision is what was seen then, and that each decision is explained."""
        for (kind, name, seq), seen in sorted(self.seen.items())[:: max(len(self.seen) // 12, 1)]:
            assert _counters(self.handles[kind][0].exposure(name, as_of=seq)) == seen, f"{kind}: as of {name} {seq}"
        for (_, name), auditor in self.auditors.items():
            for decision in auditor.decisions:
                assert explain(decision).decision.seq == decision.seq, name

    def _archive(self) -> None:
        """Move a part of the history into files."""
        before = self.clock() - timedelta(days=self.settings.ledger.key_window_days + 1)
        for kind in ENGINE_KINDS:
            for name in sorted(self.model.portfolios):
                self.handles[kind][1].archive(before, portfolio=name)

    # Commands of callers.

    @rule(plan=random_commands.RESERVES, who=st.integers(0, 1))
    def reserve(self, plan: CommandPlan, who: int) -> None:
        self._send([Group([self._command(plan)])], who)

    @rule(plan=random_commands.LIVES, who=st.integers(0, 1))
    def continue_a_life(self, plan: CommandPlan, who: int) -> None:
        self._send([Group([self._command(plan)])], who)

    @rule(plan=random_commands.ADMINISTRATION, who=st.integers(0, 1))
    def administer(self, plan: CommandPlan, who: int) -> None:
        self._send([Group([self._command(plan)])], who)

    @rule(plan=random_commands.POOL_MOVES, who=st.integers(0, 1))
    def move_between_pools(self, plan: CommandPlan, who: int) -> None:
        self._send([Group([self._command(plan)])], who)

    @rule(plan=random_commands.RECONCILIATION, who=st.integers(0, 1))
    def reconcile(self, plan: CommandPlan, who: int) -> None:
        self._send([Group([self._command(plan)])], who)

    @rule(plan=st.one_of(random_commands.AGAIN, random_commands.REUSE), who=st.integers(0, 1))
    def use_a_key_again(self, plan: CommandPlan, who: int) -> None:
        self._send([Group([self._command(plan)])], who)

    @rule(group=random_commands.GROUPS, who=st.integers(0, 1))
    def submit_a_group(self, group: tuple[list[CommandPlan], bool], who: int) -> None:
        self._send([self._group(*group)], who)

    @rule(group=random_commands.BOUND_GROUPS, bound=st.sampled_from(random_commands.BOUND), who=st.integers(0, 1))
    def submit_under_a_bound_key(self, group: tuple[list[CommandPlan], bool], bound: Tags, who: int) -> None:
        self._send([replace(self._group(*group), bound=bound)], who)

    @rule(
        groups=st.lists(random_commands.GROUPS, min_size=2, max_size=3),
        bound=st.sampled_from([(), (), *random_commands.BOUND]),
        who=st.integers(0, 1),
    )
    def submit_groups_at_once(self, groups: list[tuple[list[CommandPlan], bool]], bound: Tags, who: int) -> None:
        made = [self._group(*group) for group in groups]
        made[0] = replace(made[0], bound=bound)
        # Its position's legs are read first, so that it may reach the writer after the others.
        late = [
            one
            for group in made
            for one in group.commands
            if isinstance(one, Reserve) and one.number is not None and not one.markets
        ]
        if not late:
            self._send(made, who)

    @rule(plan=random_commands.RESERVES, who=st.integers(0, 1))
    def ask_a_dry_run(self, plan: CommandPlan, who: int) -> None:
        command = self._command(plan)
        assert isinstance(command, Reserve)
        self.sent.pop()
        expected = self.model.dry_run(command, self.clock())
        for kind in KINDS:
            request = {one.name: getattr(command, one.name) for one in command.arguments if one.name != "dry_run"}
            try:
                given: Result = self.handles[kind][who].reserve(**request, dry_run=True)
            except LedgerError as error:
                given = error
            assert as_reply(given) == expected, f"{kind}, dry run"
            assert isinstance(given, LedgerError) or given.hash is None

    # Other events.

    @rule(seconds=random_commands.ADVANCES)
    def let_time_pass(self, seconds: str) -> None:
        self.clock.advance(Decimal(seconds))

    @rule(holds=random_commands.SHORT_HOLDS, group=random_commands.LATE_GROUPS, who=st.integers(0, 1))
    def let_many_holds_end_before_a_group(
        self, holds: list[CommandPlan], group: tuple[list[CommandPlan], bool], who: int
    ) -> None:
        self._send([self._group(holds, atomic=False)], who)
        self.clock.advance(10)
        self._send([self._group(*group)], who)

    @rule(seconds=random_commands.ADVANCES, who=st.integers(0, 1), portfolio=st.sampled_from(["a", "b", None]))
    def let_time_pass_and_sweep(self, seconds: str, who: int, portfolio: str | None) -> None:
        self.clock.advance(Decimal(seconds))
        self._sweep(who, None if portfolio is None else self._portfolio_name(portfolio))

    @rule(who=st.integers(0, 1))
    def close_and_reopen(self, who: int) -> None:
        for kind in ENGINE_KINDS:
            self.handles[kind][who].close()
            self.handles[kind][who] = self._opened(kind)

    @rule(who=st.integers(0, 1))
    def verify(self, who: int) -> None:
        self._verify(who)

    # Sending to all three, and comparing.

    def _send(self, groups: Sequence[Group], who: int) -> None:
        note(f"{self.clock():%H:%M:%S.%f} handle {who}: {groups}")
        self.sound = False
        expected = self.model.batch(groups, self.clock())
        given = {kind: answers_of(self.handles[kind][who], groups) for kind in KINDS}
        for kind in KINDS:
            for group, ours, replies in zip(groups, given[kind], expected, strict=True):
                answers_equal(kind, group, ours, replies)
        plainly = [[plain(one) for one in given[kind]] for kind in KINDS]
        assert plainly[0] == plainly[1] == plainly[2]
        self._check({command.portfolio for group in groups for command in group.commands}, 1 - who)
        for kind in KINDS:
            self._check_recorded(kind, [one for group in given[kind] if isinstance(group, list) for one in group])
        self.sound = True

    def _check_recorded(self, kind: str, answers: Sequence[Result]) -> None:
        """Acknowledged means durable: the other handle reads what this one answered."""
        for one in answers:
            if isinstance(one, Decision):
                assert self.auditors[kind, one.portfolio].by_key[one.key].record == one.record

    def _sweep(self, who: int, name: str | None) -> None:
        self.sound = False
        if name is not None and name not in self.model.portfolios:
            for kind in KINDS:
                with pytest.raises(NotFound, match=name):
                    self.handles[kind][who].sweep(name)
            self.sound = True
            return
        # A sweep of all looks for holds that are due first: it does not touch the other portfolios.
        due = [one for one, portfolio in sorted(self.model.portfolios.items()) if portfolio.has_due(self.clock())]
        names = due if name is None else [name]
        expected = self.model.sweep(names, self.clock())
        for kind in KINDS:
            assert self.handles[kind][who].sweep(name) == expected, f"{kind}: holds freed by a sweep"
        self._check(set(names), 1 - who)
        self.sound = True

    def _verify(self, who: int) -> None:
        self.sound = False
        for name in self.model.portfolios:
            reports = [self.handles[kind][who].verify(name) for kind in KINDS]
            assert [report.findings for report in reports] == [(), (), ()]
            assert reports[0] == reports[1] == reports[2]
        self.sound = True

    def _check(self, names: set[str], who: int) -> None:
        """Check every invariant on both databases, and that both equal the model."""
        for name in sorted(names & self.model.portfolios.keys()):
            portfolio, seen = self.model.portfolios[name], []
            for kind in KINDS:
                auditor = self.auditors.setdefault((kind, name), Auditor(name, Decimal(self.policy.cap)))
                known = len(auditor.decisions)
                exposure = auditor.check(self.handles[kind][who])
                self.seen[kind, name, exposure.seq] = _counters(exposure)
                recorded = [(one.key, as_reply(one)) for one in auditor.decisions[known:]]
                assert recorded == portfolio.answers[known:], f"{kind}: recorded"
                for row in exposure.scopes:
                    assert fraction_of(row.held) == portfolio.held(row.scope), f"{kind}: {row}"
                    assert fraction_of(row.open) == portfolio.open(row.scope), f"{kind}: {row}"
                    assert fraction_of(row.cap) == cap_of(portfolio, row.scope), f"{kind}: {row}"
                    assert fraction_of(row.guarantee) == portfolio.guarantees.get(row.scope), f"{kind}: {row}"
                    assert fraction_of(row.max_position_usd) == portfolio.maxima.get(row.scope), f"{kind}: {row}"
                    assert row.status == portfolio.status(row.scope), f"{kind}: {row}"
                    assert row.frozen == (row.scope in portfolio.frozen), f"{kind}: {row}"
                    assert row.fresh_until == portfolio.fresh_until.get(row.scope), f"{kind}: {row}"
                holdings_equal(kind, auditor.positions, portfolio)
                seen.append((exposure, auditor.positions, auditor.decisions[-1:]))
            assert seen[0] == seen[1] == seen[2], "the ledgers differ"


def _counters(exposure: Exposure) -> Counters:
    """Return the rows of scopes that count something or are set to something: counters and limits."""
    return {
        row.scope: (row.held, row.open, row.cap, row.guarantee, row.max_position_usd)
        for row in exposure.scopes
        if row.exposure
        or row.guarantee is not None
        or row.max_position_usd is not None
        or (row.cap and not row.cap_from)
    }


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 1200)
@pytest.mark.parametrize("examples", [EXAMPLES] if EXAMPLES else [25, pytest.param(60, marks=pytest.mark.extended)])
def test_send_commands_when_model_and_every_ledger_run_in_lockstep_then_answers_are_equal(
    examples: int, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_slice_size = partial(monkeypatch.setattr, "ledger_sizer.storage.write_store.EXPIRIES_MAX")
    urls = {kind: new_database(kind) for kind in ENGINE_KINDS}
    run_state_machine_as_test(
        lambda: Lockstep(urls, set_slice_size, tmp_path),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            # Shrinking a failure takes minutes: a campaign does it, the default run only reports the failure.
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
