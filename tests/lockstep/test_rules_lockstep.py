"""The model and the pure rules in lockstep, without a database, so that many more histories fit into a test's time.

After every command it also computes each position from its decisions, as `verify` does, explains each decision and has
it audited. To run a campaign of new histories: `LOCKSTEP_EXAMPLES=20000` (see `test_lockstep`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from ledger_sizer import Decision, LedgerError
from ledger_sizer.ledger.groups import prepared
from ledger_sizer.model.caller import Caller
from ledger_sizer.model.decisions import Result
from ledger_sizer.model.times import to_us
from ledger_sizer.rules.batch import Group as RulesGroup
from ledger_sizer.rules.batch import decide_batch
from ledger_sizer.rules.explain import explain
from ledger_sizer.rules.guards import with_bound_tags
from ledger_sizer.rules.policy import Policy as RulesPolicy
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.write_store import position_row
from ledger_sizer.verify.position_fold import FoldedPosition, changes_position, fold_position
from tests.lockstep import random_commands
from tests.lockstep.auditor import Auditor
from tests.lockstep.beginnings import POLICIES, POOLS, Policy
from tests.lockstep.comparing import answers_equal, caller_of, holdings_equal
from tests.lockstep.model import Group, Model
from tests.lockstep.random_commands import CommandPlan
from tests.lockstep.test_lockstep import Lockstep

EXAMPLES = int(os.environ.get("LOCKSTEP_EXAMPLES", "0"))
SHRINK = "LOCKSTEP_SHRINK" in os.environ


class RulesInLockstep(Lockstep):
    """Sends every command to the rules and to the model, and compares."""

    def __init__(self) -> None:
        super().__init__({}, lambda _: None)
        self.states: dict[str, PortfolioState] = {}
        self.folded: dict[tuple[str, int], FoldedPosition | None] = {}

    @initialize(policy=st.sampled_from(POLICIES), pools=st.sampled_from([*POOLS]))
    def open(self, policy: Policy, pools: str) -> None:  # type: ignore[override]
        self.policy = policy
        self.rules = RulesPolicy.of(policy.settings())
        self.model = Model(policy.figures(), 10**9, fills_in_legs=False)
        self._begin(pools)

    def teardown(self) -> None:
        pass

    @rule()
    def close_and_reopen(self) -> None:  # type: ignore[override]
        pass

    @rule(plan=random_commands.RESERVES)
    def ask_a_dry_run(self, plan: CommandPlan) -> None:  # type: ignore[override]
        pass

    def _verify(self, who: int) -> None:
        pass

    def _sweep(self, who: int, name: str | None) -> None:  # noqa: ARG002 - one handle
        due = [one for one, portfolio in sorted(self.model.portfolios.items()) if portfolio.has_due(self.clock())]
        names = due if name is None else [name] if name in self.model.portfolios else []
        self.model.sweep(names, self.clock())
        for one in names:
            self._decide([RulesGroup([], sweep=one)], {one})

    def _send(self, groups: Sequence[Group], who: int) -> None:  # noqa: ARG002 - one handle
        note(f"{self.clock():%H:%M:%S.%f}: {groups}")
        callers = [caller_of(group) for group in groups]
        fit = [_fit(group, caller) for group, caller in zip(groups, callers, strict=True)]
        names = {command.portfolio for commands, _ in fit for command in commands}
        begun = {command.portfolio for commands, _ in fit for command in commands if command.creates}
        for name in begun - self.states.keys():
            self.states[name] = PortfolioState.begun(len(self.states), name, self.rules.new_portfolio_cap_e8)
        expected = self.model.batch(groups, self.clock())
        sent = [
            RulesGroup(commands, group.atomic, caller=caller)
            for group, (commands, _), caller in zip(groups, fit, callers, strict=True)
        ]
        given = self._decide(sent, names)
        for group, ours, (_, wrong), replies in zip(groups, given, fit, expected, strict=True):
            for place, error in sorted(wrong.items()):
                ours.insert(place, error)
            whole = next((one for one in ours if isinstance(one, LedgerError)), None) if group.atomic else None
            answers_equal("rules", group, whole or ours, replies)

    def _decide(self, groups: Sequence[RulesGroup], names: set[str]) -> list[list[Result]]:
        states = {name: self.states[name] for name in names if name in self.states}
        given = decide_batch(states, groups, to_us(self.clock()), self.rules)
        for answer in (one for group in given for one in group):
            assert isinstance(answer, Decision) or answer.code != "internal_error", answer.__cause__
        self.states |= states
        for name, state in list(states.items()):
            self._check_state(name, state)
            if not state.last_seq:
                del self.states[name]
        return given

    def _check_state(self, name: str, state: PortfolioState) -> None:
        auditor = self.auditors.setdefault(("rules", name), Auditor(name, Decimal(self.policy.cap)))
        for record, _ in state.new_decisions:
            explain(record.decision())
            auditor.follow(record.decision())
            if record.position is None or record.outcome == "denied" or not changes_position(record):
                continue
            place = (name, record.position)
            self.folded[place] = fold_position(self.folded.get(place), record)
        state.new_decisions.clear()
        positions = dict(sorted(state.positions.items()))
        for number, position in positions.items():
            stored = FoldedPosition(*position_row(1, position)[1:])
            assert self.folded[name, number] == stored, "verify computes another position"
        model = self.model.portfolios.get(name)
        if model is None:
            assert not positions
            return
        holdings_equal("rules", list(positions.values()), model)
        for scope in state.scopes.values():
            assert (Fraction(scope.held_e8, 10**8), Fraction(scope.open_e8, 10**8)) == (
                model.held(scope.name), model.open(scope.name),
            ), scope  # fmt: skip
            own = scope.settings
            limits = (own.cap_e8, own.guarantee_e8, own.max_position_e8, own.share_e8)
            assert [None if value is None else Fraction(value, 10**8) for value in limits] == [
                model.caps.get(scope.name), model.guarantees.get(scope.name), model.maxima.get(scope.name),
                model.shares.get(scope.name),
            ], scope  # fmt: skip
            account = model.accounts.get(scope.name)
            known = (own.since_seq, own.free_e8, own.promised_e8)
            assert known == (None, None, None) if account is None else known == (
                account.since, None if account.free is None else account.free * 10**8, account.promised * 10**8
            ), scope  # fmt: skip


def _fit(group: Group, caller: Caller) -> tuple[list[Any], dict[int, LedgerError]]:
    """Return the commands that a ledger would send to the rules, and its errors, by place."""
    try:
        return prepared(group.commands, lambda command: with_bound_tags(command, caller), atomic=group.atomic)
    except LedgerError as error:
        return [], dict.fromkeys(range(len(group.commands)), error)


def _examples() -> list[Any]:
    return [EXAMPLES] if EXAMPLES else [60, pytest.param(400, marks=pytest.mark.extended)]


@pytest.mark.timeout(0 if EXAMPLES else 600)
@pytest.mark.parametrize("examples", _examples())
def test_send_commands_when_model_and_rules_run_in_lockstep_then_answers_and_positions_are_equal(examples: int) -> None:
    run_state_machine_as_test(
        RulesInLockstep,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES and SHRINK else [Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
