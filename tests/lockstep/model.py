"""A second opinion: the ledger's rules told again in plain Python, to be compared with the real one step by step.

Nothing here is shared with the package but the shape of a command. There is no database, no counter, no cache and no
scaled integer: money is an exact fraction, and every exposure is summed anew from the positions when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from fractions import Fraction

from ledger_sizer import Adopt, Reconciled, Reserve, SetCap
from tests.lockstep.model_rules import (
    RULES,
    WHOLE,
    AboutPosition,
    Answer,
    Command,
    Figures,
    Holding,
    Refusal,
    RefusedError,
    expiry_of,
)

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
Told = Answer | Refusal


@dataclass(frozen=True)
class Group:
    """Commands sent together."""

    commands: Sequence[Command]
    atomic: bool = False
    sweep: str | None = None


@dataclass
class Pot:
    """One portfolio. `now` is the time of the batch in hand, never before that of the last decision."""

    figures: Figures
    caps: dict[str, Fraction] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    fresh_until: dict[str, datetime] = field(default_factory=dict)
    positions: dict[int, Holding] = field(default_factory=dict)
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    asked: dict[str, Command] = field(default_factory=dict)
    told: dict[str, Answer] = field(default_factory=dict)
    last_at: datetime = LONG_AGO
    now: datetime = LONG_AGO

    def copy(self) -> Pot:
        """An independent copy."""
        return replace(
            self, caps=dict(self.caps), statuses=dict(self.statuses), frozen=set(self.frozen),
            fresh_until=dict(self.fresh_until), positions=dict(self.positions),
            answers=list(self.answers), asked=dict(self.asked), told=dict(self.told),
        )  # fmt: skip

    def exposure(self, scope: str = WHOLE) -> Fraction:
        """held + open of a scope, summed from the positions."""
        return self.held(scope) + self.open(scope)

    def held(self, scope: str = WHOLE) -> Fraction:
        """USD in live reservations of a scope."""
        return sum((one.held for one in self.positions.values() if scope in one.scopes), Fraction(0))

    def open(self, scope: str = WHOLE) -> Fraction:
        """USD in open positions of a scope."""
        return sum((one.open for one in self.positions.values() if scope in one.scopes), Fraction(0))

    def status(self, scope: str) -> str:
        """`active`, `reducing` or `halted`."""
        return self.statuses.get(scope, "active")

    def trusted(self, scope: str) -> bool:
        """Whether the scope is known to agree with the exchange now."""
        return scope not in self.frozen and (scope not in self.fresh_until or self.now < self.fresh_until[scope])

    @property
    def next_seq(self) -> int:
        """The seq the next decision gets."""
        return len(self.answers) + 1

    def record(
        self, key: str, answer: Answer, after: Holding | None = None, headroom: Fraction | None = None
    ) -> Answer:
        """Take a decision over, in the order of seq. headroom: where the command itself has changed it already."""
        exposure = self.exposure()
        headroom = self.caps[WHOLE] - exposure if headroom is None else headroom
        if after is not None and answer.outcome != "denied":
            self.positions[after.number] = after
            answer = replace(answer, number=after.number)
        answer = replace(
            answer, seq=self.next_seq, decided_at=self.now, exposure_before=exposure, headroom_before=headroom,
            exposure_after=self.exposure(),
        )  # fmt: skip
        self.answers.append((key, answer))
        self.told[key] = answer
        self.last_at = self.now
        return answer

    def expire(self) -> list[Answer]:
        """Free what is due, oldest first."""
        due = [one for one in self.positions.values() if one.state == "held" and expiry_of(one) <= self.now]
        return [
            self.record(
                f"ledger:expire:{one.number}",
                Answer("expire", "applied", quantity=one.quantity),
                replace(one, state="expired", held=Fraction(0), expires_at=None),
            )
            for one in sorted(due, key=lambda one: (expiry_of(one), one.number))
        ]

    def answer(self, command: Command) -> Told:
        """Answer one command, or refuse it without a trace."""
        before = self.asked.get(command.key)
        if before is not None:
            if _body(before) != _body(command):
                return Refusal("idempotency_key_reused")
            return replace(self.told[command.key], replayed=True)
        headroom = self.caps[WHOLE] - self.exposure()
        try:
            answer, after = RULES[type(command)](self, command)
        except RefusedError as refused:
            return refused.refusal
        self.asked[command.key] = command
        return self.record(command.key, answer, after, headroom)

    def deny_in_group(self, command: Command, told: Told) -> Answer:
        """The denial of a command whose atomic group was denied."""
        if command.key in self.asked:
            return replace(self.told[command.key], replayed=True)
        own = told if isinstance(told, Answer) and told.outcome == "denied" else None
        number = command.number if isinstance(command, AboutPosition) and command.number in self.positions else None
        self.asked[command.key] = command
        answer = Answer(
            command.verb, "denied", number=number,
            reason=own.reason if own else "group_denied", binding=own.binding if own else None,
        )  # fmt: skip
        return self.record(command.key, answer)


class Model:
    """All portfolios, and how a batch of groups is answered: what is due is freed first, then each in its turn."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.pots: dict[str, Pot] = {}

    def batch(self, groups: Sequence[Group], now: datetime) -> list[list[Told]]:
        """Answer the groups that reached the ledger together."""
        commands = [command for group in groups for command in group.commands]
        for command in commands:
            if isinstance(command, Reserve | SetCap | Adopt | Reconciled) and command.portfolio not in self.pots:
                self.pots[command.portfolio] = Pot(self.figures, {WHOLE: self.figures.cap})
        names = {command.portfolio for command in commands} | {group.sweep for group in groups if group.sweep}
        freed: dict[str, list[Answer]] = {}
        for name in names & self.pots.keys():
            pot = self.pots[name]
            pot.now = max(now, pot.last_at)
            freed[name] = pot.expire()
        return [list(freed.get(group.sweep, [])) if group.sweep else self._group(group) for group in groups]

    def _group(self, group: Group) -> list[Told]:
        if not group.atomic:
            return [self._one(self.pots, command) for command in group.commands]
        tried = {name: pot.copy() for name, pot in self.pots.items()}
        told = [self._one(tried, command) for command in group.commands]
        refusals = [one for one in told if isinstance(one, Refusal)]
        if refusals:
            return [one if isinstance(one, Refusal) else refusals[0] for one in told]
        if all(isinstance(one, Answer) and one.outcome != "denied" for one in told):
            self.pots = tried
            return told
        pairs = zip(group.commands, told, strict=True)
        return [self.pots[command.portfolio].deny_in_group(command, one) for command, one in pairs]

    @staticmethod
    def _one(pots: dict[str, Pot], command: Command) -> Told:
        pot = pots.get(command.portfolio)
        return Refusal("not_found") if pot is None else pot.answer(command)

    def dry_run(self, command: Reserve, now: datetime) -> Answer:
        """What a reservation would be answered, with nothing recorded."""
        aside = Model(self.figures)
        aside.pots = {name: pot.copy() for name, pot in self.pots.items()}
        ((told,),) = aside.batch([Group([with_key(command, "a key nobody used")])], now)
        assert isinstance(told, Answer), "a reservation is granted or denied"
        return replace(told, seq=None, number=None)


def _body(command: Command) -> Command:
    """A command as something to compare with another: all it asks, without its key."""
    return with_key(command, "-")


def with_key(command: Command, key: str) -> Command:
    """The same request under another key."""
    asked = {one.name: getattr(command, one.name) for one in fields(command) if one.init}
    return type(command)(**{**asked, "key": key})
