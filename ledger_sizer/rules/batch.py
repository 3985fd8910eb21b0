"""Decides a batch: many callers' commands against one state, in arrival order.

Every command gets its own answer: a `Decision`, or a `LedgerError` in its place. An invalid or denied command never
affects its neighbours. An atomic group takes effect as a whole or not at all.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ledger_sizer.model.caller import EMBEDDED, SYSTEM, Caller
from ledger_sizer.model.command_base import SYSTEM_KEY_PREFIX
from ledger_sizer.model.commands import EXPIRE, STEP_BACK, AnyCommand, Reserve
from ledger_sizer.model.decisions import Decision, DecisionRecord, Result
from ledger_sizer.model.denials import GROUP_DENIED
from ledger_sizer.model.errors import InternalError, InvalidRequest, KeyReused, LedgerError, NotFound
from ledger_sizer.model.names import DESK, position_id
from ledger_sizer.model.tags import NO_TAGS, PORTFOLIO_SCOPE, tags_of
from ledger_sizer.rules.decide import decide
from ledger_sizer.rules.guards import require_allowed, require_declared_before
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.positions import expire
from ledger_sizer.rules.repeats import BatchDenials
from ledger_sizer.rules.settling import SettleTask, steps
from ledger_sizer.rules.state import PortfolioState, Verdict
from ledger_sizer.rules.trace import group_text, trace_text

States = dict[str, PortfolioState]


class Fence(Protocol):
    """The lease under which a group is sent (see `storage.leases`). The group takes effect only while it is held."""

    @property
    def name(self) -> str:
        """Name of the lease."""

    @property
    def owner(self) -> str:
        """Holder of the lease when the group was sent."""

    @property
    def epoch(self) -> int:
        """Fencing token: the number of the lease's take-overs by then."""


class Group(NamedTuple):
    """Commands that were submitted together. `atomic`: all of them take effect, or none does.

    caller: who sends them.
    sweep: a portfolio whose expired holds are freed even without a command; the answer then lists the expiries.
    settle: a bot's book; the commands follow from the state, and the answer lists their decisions.
    fence: the lease that must be held in the transaction that commits the group.
    request_id: id of the request in the caller's log. Only the commit's log lines repeat it.
    """

    commands: Sequence[AnyCommand]
    atomic: bool = False
    sweep: str | None = None
    settle: SettleTask | None = None
    request_id: str | None = None
    fence: Fence | None = None
    caller: Caller = EMBEDDED


def decide_batch(
    states: States,
    groups: Sequence[Group],
    now_us: int,
    policy: Policy,
    own_hashes: frozenset[str] = frozenset(),
    denials: BatchDenials | None = None,
) -> list[list[Result]]:
    """Free expired holds, then answer every group. Changes `states`; the caller stores and commits them.

    own_hashes: hashes of decisions that an earlier attempt of this batch may have committed; such a decision is no
    replay. denials: those that may be given again in place of a new one; None records every denial.
    """
    # Each portfolio has a time of its own: one whose last decision lies ahead does not affect the others.
    for state in states.values():
        step_back(state, now_us)
    freed = {name: expire_due(state, state.decision_time(now_us)) for name, state in states.items()}
    results: list[list[Result]] = []
    for group in groups:
        if group.sweep is not None:
            results.append([record.decision() for record in freed.get(group.sweep, ())])
        elif group.settle is not None:
            results.append(_answer_settle(states, group, group.settle, now_us, policy))
        elif group.atomic:
            results.append(_answer_atomic(states, group, now_us, policy, own_hashes))
            if denials is not None:
                _note_all(denials, group, results[-1])
        else:
            results.append(
                [
                    _answer(states, command, now_us, policy, own_hashes, group.caller, denials)
                    for command in group.commands
                ]
            )
    return results


def log_fields_by_hash(groups: Sequence[Group], results: Sequence[Sequence[Result]]) -> dict[str, dict[str, str]]:
    """Return extra log fields by decision hash: the id of the request that caused it. An expiry has none."""
    return {
        result.record.hash: {"request_id": group.request_id}
        for group, answers in zip(groups, results, strict=True)
        if group.request_id is not None
        for result in answers
        if isinstance(result, Decision) and not result.replayed
    }


def step_back(state: PortfolioState, now_us: int) -> None:
    """Record that the portfolio's time goes back, where its last decision is far ahead of the clock.

    Between two such records time never runs backwards, which searches in the history rely on.
    """
    if state.decision_time(now_us) < state.last_us:
        key = f"{SYSTEM_KEY_PREFIX}{STEP_BACK}:{state.last_seq + 1}"
        verdict = Verdict(outcome="applied", tags=NO_TAGS, trace=trace_text([state.scope(PORTFOLIO_SCOPE)]))
        state.apply(STEP_BACK, key, '{"command":"step_back"}', verdict, now_us, SYSTEM)


def expire_due(state: PortfolioState, now_us: int) -> list[DecisionRecord]:
    """Record the expiry of every loaded hold that is overdue, the earliest expiry first."""
    if not state.may_expire:
        return []
    freed = []
    due = [position for position in state.positions.values() if position.is_due(now_us)]
    for position in sorted(due, key=lambda position: (position.expires_us or 0, position.number)):
        key = f"{SYSTEM_KEY_PREFIX}{EXPIRE}:{position.number}"
        if position.state != "held":
            key = f"{key}:{state.last_seq + 1}"  # what is open stays, and may hold and expire again
        verdict = expire(state, position, now_us)
        freed.append(state.apply(EXPIRE, key, '{"command":"expire"}', verdict, now_us, SYSTEM))
    return freed


def _answer(
    states: Mapping[str, PortfolioState],
    command: AnyCommand,
    now_us: int,
    policy: Policy,
    own_hashes: frozenset[str],
    caller: Caller,
    denials: BatchDenials | None = None,
) -> Result:
    state = states.get(command.portfolio)
    if state is None:
        return NotFound(f"no portfolio {command.portfolio!r}")
    now_us = state.decision_time(now_us)
    request = command.request_text()
    known = state.records.get(command.key)
    if known is not None:
        same = known.reference == command.reference and _same_request(known.request, request)
        if not same or not caller.owns(known.client):
            return _key_reused(known, caller)
        return known.decision(replayed=known.hash not in own_hashes)
    repeated = None if denials is None or denials.idle else denials.by_key(command, caller)
    if repeated is not None:
        asked, denial = repeated
        same = denial.reference == command.reference and _same_request(asked, request)
        return denial.decision(replayed=True) if same else _key_reused(denial, caller)
    verdict = _decided(state, command, now_us, policy, caller)
    if isinstance(verdict, LedgerError):
        return verdict
    if denials is not None and verdict.outcome == "denied":
        denial_again = denials.repeated(command, caller, request, verdict, now_us)
        if denial_again is not None:
            return denial_again.decision(replayed=True)
    record = state.apply(command.verb, command.key, request, verdict, now_us, caller, command.reference)
    if denials is not None and (verdict.outcome == "denied" or not denials.idle):
        denials.note(command, caller, record)
    if command.portfolio == DESK:
        for other in states.values():
            other.desk_status = state.scope(PORTFOLIO_SCOPE).status
    return record.decision()


def _decided(
    state: PortfolioState, command: AnyCommand, now_us: int, policy: Policy, caller: Caller
) -> Verdict | LedgerError:
    try:
        require_allowed(state, command, caller, policy)
        return decide(state, command, now_us, policy)
    except LedgerError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a defect, which the caller logs
        # A defect met by one command must not fail the batch. Rules are pure, so the state is unchanged.
        defect = InternalError(f"{command.verb} {command.key!r} met a defect and had no effect; see the log")
        defect.__cause__ = error
        defect.log_fields = {"command": command.verb, "key": command.key, "portfolio": command.portfolio}
        return defect


def _answer_settle(
    states: Mapping[str, PortfolioState], group: Group, task: SettleTask, now_us: int, policy: Policy
) -> list[Result]:
    """Decide one step after the other. One that is refused does not affect the others."""
    state = states.get(task.request.portfolio)
    if state is None:
        return []
    now_us = state.decision_time(now_us)
    results: list[Result] = []
    try:
        for key, command in steps(state, task, now_us):
            verdict = _decided(state, command, now_us, policy, group.caller)
            if isinstance(verdict, LedgerError):
                results.append(verdict)
                continue
            request = command.request_text()
            record = state.apply(command.verb, key, request, verdict, now_us, group.caller, command.reference)
            results.append(record.decision())
    except LedgerError as error:  # the book names a position that is not the bot's
        results.append(error)
    return results


def _note_all(denials: BatchDenials, group: Group, results: Sequence[Result]) -> None:
    """Note what is recorded for an atomic group, whose denials are recorded always."""
    for command, result in zip(group.commands, results, strict=True):
        if isinstance(result, Decision) and not result.replayed:
            denials.note(command, group.caller, result.record)


def _key_reused(known: DecisionRecord, caller: Caller) -> KeyReused:
    """Return the error for a key of another request, or of another client, whose decision only an admin may see."""
    own = caller.owns(known.client)
    if not own and not caller.sees_all:
        return KeyReused(f"key {known.key!r} belongs to another client; use a key of your own")
    whose = "" if own else f" of client {known.client!r}"
    return KeyReused(
        f"key {known.key!r} was used before for another request{whose} (seq {known.seq}, {known.command}); "
        "use a new key for a new request",
        seq=known.seq,
        position_id=None if known.position is None else position_id(known.portfolio, known.position),
    )


def _same_request(known: str, sent: str) -> bool:
    """Return True if a key is sent again with the request that it was first sent with.

    A named instrument is compared by its name: its rules may have changed between a request and its retry.
    """
    return known == sent or ('"listed_as":' in sent and _with_instrument_names(known) == _with_instrument_names(sent))


def _with_instrument_names(request: str) -> Any:
    form = json.loads(request)
    for places in (form, *form.get("legs", ())):
        for name in ("spot_instrument", "perp_instrument", "instrument"):
            rules = places.get(name)
            if isinstance(rules, dict) and "listed_as" in rules:
                places[name] = rules["listed_as"]
    return form


def _answer_atomic(
    states: States, group: Group, now_us: int, policy: Policy, own_hashes: frozenset[str]
) -> list[Result]:
    """Answer all or none. An error answers all and nothing is recorded; a denial denies all, recorded for each."""
    commands, caller = group.commands, group.caller
    names = {command.portfolio for command in commands if command.portfolio in states}
    forks = {name: states[name].fork() for name in names}
    results = [_answer(forks, command, now_us, policy, own_hashes, caller) for command in commands]
    failed = next((result for result in results if isinstance(result, LedgerError)), None)
    if failed is not None:
        return [result if isinstance(result, LedgerError) else failed for result in results]
    if not any(result.outcome == "denied" for result in results):
        states.update(forks)
        return results
    cause = causing_denial(results)
    assert cause is not None
    try:
        require_declared_before([states[name] for name in names], policy, f"{cause.key!r}: {cause.reason}")
    except InvalidRequest as error:
        return [error for _ in results]
    return [
        _deny_in_group(states[command.portfolio], command, result.record, cause.record, now_us, own_hashes, caller)
        for command, result in zip(commands, results, strict=True)
        if isinstance(result, Decision)
    ]


def causing_denial(results: Sequence[Result]) -> Decision | None:
    """Return the decision that denied a group: its first denial with a reason of its own. None where all pass.

    An earlier group's `group_denied` counts where there is no other.
    """
    denials = [result for result in results if isinstance(result, Decision) and result.outcome == "denied"]
    return next((denial for denial in denials if denial.reason != GROUP_DENIED), denials[0] if denials else None)


def _deny_in_group(
    state: PortfolioState,
    command: AnyCommand,
    tried: DecisionRecord,
    cause: DecisionRecord,
    now_us: int,
    own_hashes: frozenset[str],
    caller: Caller,
) -> Result:
    """Deny one command of a denied group: for its own reason, or as `group_denied`, bound by the neighbour's key.

    tried: its decision after the commands before it in the group, which had no effect. cause: the denial that denied
    the group.
    """
    known = state.records.get(command.key)
    if known is not None:
        return known.decision(replayed=known.hash not in own_hashes)
    own = tried.outcome == "denied"
    position = None if command.number is None else state.positions.get(command.number)
    asked = command.position_tags if isinstance(command, Reserve) else tags_of(getattr(command, "tags", NO_TAGS))
    tags = asked if position is None else position.tags
    verdict = Verdict(
        outcome="denied",
        reason=tried.reason if own else GROUP_DENIED,
        binding=tried.binding if own else cause.key,
        position=position,
        tags=tags,
        fraction=tried.fraction,
        raw_budget=tried.raw_budget,
        trace=trace_text(
            [state.scope(name) for name in tags.scopes], group=group_text(tried.trace, None if own else cause)
        ),
    )
    now_us = state.decision_time(now_us)
    return state.apply(
        command.verb, command.key, command.request_text(), verdict, now_us, caller, command.reference
    ).decision()
