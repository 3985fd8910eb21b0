"""Reference model: the ledger's rules in plain Python, compared with the real ledger step by step.

It shares only the command types with the package. It has no database, counter, cache or scaled integer: money is an
exact fraction, and every exposure is summed from the positions when read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from ledger_sizer import Adopt, Confirm, Fill, Reconciled, Reserve, Retag, SetCap
from tests.lockstep.model_accounts import AccountModel, promise
from tests.lockstep.model_answers import (
    AboutPosition,
    Answer,
    Command,
    Figures,
    Refusal,
    RefusedError,
)
from tests.lockstep.model_guards import require_declared, require_own, require_tags, tags_under
from tests.lockstep.model_positions import WHOLE, Holding, Tags, expiry_of, free
from tests.lockstep.model_rules import RULES

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
Reply = Answer | Refusal


@dataclass(frozen=True)
class Group:
    """Commands sent together. bound: tags to which the sender's API key is bound."""

    commands: Sequence[Command]
    atomic: bool = False
    bound: Tags = ()
    sweep: str | None = None


@dataclass
class PortfolioModel:
    """One portfolio. now: the time of the current batch (see `set_time`)."""

    figures: Figures
    caps: dict[str, Fraction] = field(default_factory=dict)
    guarantees: dict[str, Fraction] = field(default_factory=dict)
    maxima: dict[str, Fraction] = field(default_factory=dict)
    shares: dict[str, Fraction] = field(default_factory=dict)
    accounts: dict[str, AccountModel] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    fresh_until: dict[str, datetime] = field(default_factory=dict)
    positions: dict[int, Holding] = field(default_factory=dict)
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    requests: dict[str, Command] = field(default_factory=dict)
    answer_by_key: dict[str, Answer] = field(default_factory=dict)
    last_at: datetime = LONG_AGO
    now: datetime = LONG_AGO

    def copy(self) -> PortfolioModel:
        """Return an independent copy."""
        return replace(
            self, caps=dict(self.caps), guarantees=dict(self.guarantees),
            maxima=dict(self.maxima), shares=dict(self.shares),
            accounts=dict(self.accounts), statuses=dict(self.statuses), frozen=set(self.frozen),
            fresh_until=dict(self.fresh_until), positions=dict(self.positions),
            answers=list(self.answers), requests=dict(self.requests), answer_by_key=dict(self.answer_by_key),
        )  # fmt: skip

    def exposure(self, scope: str = WHOLE) -> Fraction:
        """Return held + open of a scope, summed from the positions."""
        return self.held(scope) + self.open(scope)

    def held(self, scope: str = WHOLE) -> Fraction:
        """Return the USD in live reservations of a scope."""
        return sum((one.held for one in self.positions.values() if one.held and scope in one.scopes), Fraction(0))

    def open(self, scope: str = WHOLE) -> Fraction:
        """Return the USD in open positions of a scope."""
        return sum((one.open for one in self.positions.values() if one.open and scope in one.scopes), Fraction(0))

    def status(self, scope: str) -> str:
        """Return `active`, `reducing` or `halted`."""
        return self.statuses.get(scope, "active")

    def trusted(self, scope: str) -> bool:
        """Return True if the scope is known to agree with the exchange now."""
        return scope not in self.frozen and (scope not in self.fresh_until or self.now < self.fresh_until[scope])

    @property
    def next_seq(self) -> int:
        """Seq of the next decision."""
        return len(self.answers) + 1

    def record(
        self, key: str, answer: Answer, after: Holding | None = None, headroom: Fraction | None = None
    ) -> Answer:
        """Record a decision, in the order of seq. headroom: the old one, where the command has already changed it."""
        exposure = self.exposure()
        headroom = self.caps[WHOLE] - exposure if headroom is None else headroom
        if after is not None and answer.outcome != "denied":
            if not answer.unchanged:
                promise(self, self.positions.get(after.number), after)
            self.positions[after.number] = after
            answer = replace(answer, number=after.number)
        answer = replace(
            answer, seq=self.next_seq, decided_at=self.now, exposure_before=exposure, headroom_before=headroom,
            exposure_after=self.exposure(),
        )  # fmt: skip
        self.answers.append((key, answer))
        self.answer_by_key[key] = answer
        self.last_at = self.now
        return answer

    def set_time(self, clock: datetime) -> None:
        """Set the time of a batch: the clock's, or the last decision's where that is at most a minute ahead of it."""
        ahead = self.last_at - clock
        self.now = self.last_at if timedelta(0) < ahead <= timedelta(seconds=60) else clock
        if self.now < self.last_at:
            self.record(f"ledger:step_back:{self.next_seq}", Answer("step_back", "applied"))

    def has_due(self, clock: datetime) -> bool:
        """Return True if a hold is overdue by this clock."""
        return any(one.pending and expiry_of(one) <= clock for one in self.positions.values())

    def expire(self, first: int, commands: Sequence[Command]) -> list[Answer]:
        """Free the `first` of the overdue holds, oldest first, and those that the commands are about."""
        numbers = {one.number for one in commands if isinstance(one, AboutPosition | Reserve)}
        numbers |= {self.answer_by_key[one.key].number for one in commands if one.key in self.requests}
        filled = {one.number for one in commands if isinstance(one, Confirm | Fill)}
        numbers |= {one.number for one in self.positions.values() if one.origin in filled}
        due = [one for one in self.positions.values() if one.pending and expiry_of(one) <= self.now]
        due.sort(key=lambda one: (expiry_of(one), one.number))
        answers = []
        for one in [*due[:first], *(one for one in due[first:] if one.number in numbers)]:
            after, quantity = free(one, "expired")
            again = "" if one.state == "held" else f":{self.next_seq}"  # what is open may hold and expire again
            answer = Answer("expire", "applied", quantity=quantity)
            answers.append(self.record(f"ledger:expire:{one.number}{again}", answer, after))
        return answers

    def answer(self, command: Command, bound: Tags = ()) -> Reply:
        """Answer one command, or refuse it without a record. bound: the tags that its sender is bound to."""
        try:
            require_declared(self, command)
            if (
                bound
                and isinstance(command, Retag | Adopt | Reserve)
                and (command.verb == "retag" or not command.number)
            ):
                command = _changed(command, tags=tags_under(bound, command))
        except RefusedError as refused:
            return refused.refusal
        before = self.requests.get(command.key)
        if before is not None:
            if _body(before) != _body(command):
                return Refusal("idempotency_key_reused")
            return replace(self.answer_by_key[command.key], replayed=True)
        headroom = self.caps[WHOLE] - self.exposure()
        try:
            require_declared(self, command)
            require_own(self, command, bound)
            require_tags(self, command)
            answer, after = RULES[type(command)](self, command)
        except RefusedError as refused:
            return refused.refusal
        if after is not None and command.reference is not None and not answer.unchanged:
            after = replace(after, reference=command.reference)
        self.requests[command.key] = command
        return self.record(command.key, answer, after, headroom)

    def deny_in_group(self, command: Command, reply: Answer, cause: str) -> Answer:
        """Deny a command whose atomic group was denied. cause: key of the command that denied the group."""
        if command.key in self.requests:
            return replace(self.answer_by_key[command.key], replayed=True)
        own = reply if reply.outcome == "denied" else None
        about = command.number if isinstance(command, AboutPosition | Reserve) else None
        number = about if about in self.positions else None
        self.requests[command.key] = command
        answer = Answer(
            command.verb, "denied", number=number,
            reason=own.reason if own else "group_denied", binding=own.binding if own else cause,
            fraction=reply.fraction, raw_budget=reply.raw_budget,
        )  # fmt: skip
        return self.record(command.key, answer)


class Model:
    """All portfolios. Answers a batch of groups: frees overdue holds first, then answers each group in order.

    slice_size: how many overdue holds a batch frees, in equal parts of its portfolios. fills_in_legs: whether a
    reservation of more that names no legs gets those of its position, as a ledger does before it decides.
    """

    def __init__(self, figures: Figures, slice_size: int, *, fills_in_legs: bool = True) -> None:
        self.figures = figures
        self.fills_in_legs = fills_in_legs
        self.slice_size = slice_size
        self.portfolios: dict[str, PortfolioModel] = {}

    def batch(self, groups: Sequence[Group], now: datetime) -> list[list[Reply]]:
        """Answer the groups of one batch. What its sender may not ask never reaches the others."""
        wrong = [_forbidden(group) for group in groups]
        fit = [
            replace(
                group, commands=[_under(group.bound, one) for at, one in enumerate(group.commands) if at not in bad]
            )
            for group, bad in zip(groups, wrong, strict=True)
        ]
        replies = self._batch(fit, now)
        for answers, bad in zip(replies, wrong, strict=True):
            for at, refusal in sorted(bad.items()):
                answers.insert(at, refusal)
        return replies

    def _batch(self, groups: Sequence[Group], now: datetime) -> list[list[Reply]]:
        if self.fills_in_legs:
            groups = [replace(group, commands=[self._with_legs(one) for one in group.commands]) for group in groups]
        commands = [command for group in groups for command in group.commands]
        for command in commands:
            if isinstance(command, Reserve | SetCap | Adopt | Reconciled) and command.portfolio not in self.portfolios:
                self.portfolios[command.portfolio] = PortfolioModel(self.figures, {WHOLE: self.figures.cap})
        names = {command.portfolio for command in commands} | {group.sweep for group in groups if group.sweep}
        freed: dict[str, list[Answer]] = {}
        for name in names & self.portfolios.keys():
            portfolio = self.portfolios[name]
            portfolio.set_time(now)
            own = [command for command in commands if command.portfolio == name]
            freed[name] = portfolio.expire(max(self.slice_size // len(names), 1), own)
        replies = [list(freed.get(group.sweep, [])) if group.sweep else self._group(group) for group in groups]
        # A portfolio begins with its first decision: one whose commands all erred is none.
        self.portfolios = {name: one for name, one in self.portfolios.items() if one.answers}
        return replies

    def _with_legs(self, command: Command) -> Command:
        """Return a reservation of more with the legs that its position was reserved with, where it names none."""
        portfolio = self.portfolios.get(command.portfolio)
        if not isinstance(command, Reserve) or command.number is None or command.markets or portfolio is None:
            return command
        one = portfolio.positions.get(command.number)
        if one is None:
            return command
        key, _ = portfolio.answers[(one.origin or one.number) - 1]
        first = portfolio.requests.get(key)
        if not isinstance(first, Reserve):
            return command
        legs = None if first.legs is None else [replace(leg, price=None) for leg in first.legs]
        fee = first.spot_fee_rate if command.spot_fee_rate is None else command.spot_fee_rate
        return _changed(
            command, legs=legs, spot_instrument=first.spot_instrument, perp_instrument=first.perp_instrument,
            spot_fee_rate=fee,
        )  # fmt: skip

    def sweep(self, names: Sequence[str], now: datetime) -> int:
        """Free all overdue holds of these portfolios, a slice of each at a time, and return how many they were."""
        freed = 0
        while names:
            slices = {name: len(self.batch([Group([], sweep=name)], now)[0]) for name in names}
            freed += sum(slices.values())
            names = [name for name in names if slices[name] == self.slice_size]
        return freed

    def _group(self, group: Group) -> list[Reply]:
        if not group.atomic:
            return [self._one(self.portfolios, command, group.bound) for command in group.commands]
        trial = {name: portfolio.copy() for name, portfolio in self.portfolios.items()}
        replies = [self._one(trial, command, group.bound) for command in group.commands]
        refusals = [one for one in replies if isinstance(one, Refusal)]
        if refusals:
            return [one if isinstance(one, Refusal) else refusals[0] for one in replies]
        pairs = [
            (command, one) for command, one in zip(group.commands, replies, strict=True) if isinstance(one, Answer)
        ]
        denials = [(one.reason == "group_denied", command.key) for command, one in pairs if one.outcome == "denied"]
        if not denials:
            self.portfolios = trial
            return replies
        _, cause = min(denials, key=lambda denial: denial[0])  # the first with a reason of its own
        return [self.portfolios[command.portfolio].deny_in_group(command, one, cause) for command, one in pairs]

    @staticmethod
    def _one(portfolios: dict[str, PortfolioModel], command: Command, bound: Tags) -> Reply:
        portfolio = portfolios.get(command.portfolio)
        return Refusal("not_found") if portfolio is None else portfolio.answer(command, bound)

    def dry_run(self, command: Reserve, now: datetime) -> Reply:
        """Return the answer to a dry run of a reservation. Records nothing."""
        trial = Model(self.figures, self.slice_size, fills_in_legs=self.fills_in_legs)
        trial.portfolios = {name: portfolio.copy() for name, portfolio in self.portfolios.items()}
        ((reply,),) = trial.batch([Group([with_key(command, "a key nobody used")])], now)
        return reply if isinstance(reply, Refusal) else replace(reply, seq=None, number=None)


def _forbidden(group: Group) -> dict[int, Refusal]:
    """Return refusals of commands whose tags contradict their sender's, by place; of an atomic group for all."""
    found = {}
    for place, command in enumerate(group.commands):
        try:
            _under(group.bound, command)
        except RefusedError as refused:
            found[place] = refused.refusal
    return dict.fromkeys(range(len(group.commands)), next(iter(found.values()))) if found and group.atomic else found


def _under(bound: Tags, command: Command) -> Command:
    """Return a command with the tags that its sender is bound to, where it gives tags."""
    gives = isinstance(command, Retag | Adopt) or (isinstance(command, Reserve) and command.number is None)
    return _changed(command, tags=tags_under(bound, command)) if bound and gives else command


def _body(command: Command) -> Command:
    """Return the request without its key, for comparison."""
    return with_key(command, "-")


def with_key(command: Command, key: str) -> Command:
    """Return the same request under another key."""
    return _changed(command, key=key)


def _changed(command: Command, **changes: Any) -> Command:
    values = {one.name: getattr(command, one.name) for one in fields(command) if one.init}
    return type(command)(**{**values, **changes})
