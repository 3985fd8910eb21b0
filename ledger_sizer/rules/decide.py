"""Decides one command: a pure function from the state, the command and the time to a verdict.

No database, no clock, no logging: `now_us` is an argument, so that a backtest decides with the same code. A verb that
does not fit the position's state raises an error and leaves no record. A refusal to grant is a verdict.

Where several reasons to deny hold, the first in the order of `denials.DENIALS` is reported.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from ledger_sizer.model.command_base import Command, ScopeCommand
from ledger_sizer.model.commands import (
    Adopt,
    Confirm,
    Extend,
    Fill,
    Release,
    Remark,
    Rename,
    Reprice,
    Reserve,
    Retag,
    SetCap,
)
from ledger_sizer.model.tags import NO_TAGS, PORTFOLIO_SCOPE, is_default_scope
from ledger_sizer.rules import positions
from ledger_sizer.rules.guarantees import require_guarantees_fit
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.reservations import reserve
from ledger_sizer.rules.state import PortfolioState, Verdict
from ledger_sizer.rules.trace import DEFAULT_CAP, SCOPE_COMMANDS, trace_text


def decide(state: PortfolioState, command: Command, now_us: int, policy: Policy) -> Verdict:
    """Decide one command against the state after its predecessor. Changes nothing.

    Raises `NotFound`, `WrongState` or `InvalidRequest` where the command does not fit the state; such a command
    leaves no decision and its key stays unused.
    """
    return _RULES[type(command)](state, command, now_us, policy)


# --- administration --------------------------------------------------------------------------------------------


def _change_scope(state: PortfolioState, command: ScopeCommand, _now_us: int, _policy: Policy) -> Verdict:
    before = state.scope(command.scope)
    after = replace(before, settings=command.settings_after(before.settings, state.last_seq + 1))
    if type(command) is SetCap and (after.shared or state.shared):
        require_guarantees_fit(state, after)
    note = DEFAULT_CAP if is_default_scope(after.name) else None
    return Verdict(
        outcome="applied", tags=NO_TAGS, binding=after.name, scope_after=after,
        trace=trace_text([before], after=after, note=note),
    )  # fmt: skip


def _remark(state: PortfolioState, command: Remark, _now_us: int, _policy: Policy) -> Verdict:
    return Verdict(
        outcome="applied", tags=NO_TAGS, binding=command.about, trace=trace_text([state.scope(PORTFOLIO_SCOPE)])
    )


_RULES: Mapping[type[Command], Callable[..., Verdict]] = {
    Reserve: reserve,
    Confirm: positions.confirm,
    Fill: positions.fill,
    Release: positions.release,
    Extend: positions.extend,
    Retag: positions.retag,
    Reprice: positions.reprice,
    Rename: positions.rename,
    Adopt: positions.adopt,
    Remark: _remark,
    **dict.fromkeys(SCOPE_COMMANDS.values(), _change_scope),
}
