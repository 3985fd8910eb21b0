"""Bounds what a denial that repeats writes: it is recorded a few times, and then once in an interval.

A wish is what a caller goes on asking for: client, portfolio, verb, tags or position, and markets, whatever the key,
price, score and balance. Every command is decided on the present state. Where that denies a wish for the reason and the
binding of its last recorded denial, and the wish has used up its allowance, the caller gets that denial again and
nothing is recorded. A grant, another reason and another binding are recorded at once.

The memory is one process's, and only of what is committed. A denial from it writes nothing, so nothing would refuse one
that was decided on outdated state: it is given only where the state was loaded under the database's lock, or where the
same batch records it.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ledger_sizer.model.caller import Caller
from ledger_sizer.model.command_base import PositionCommand
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.tags import NO_TAGS, tags_of
from ledger_sizer.rules.state import Verdict

RECORDED_IN_A_ROW = 50
"""Denials of a wish that are recorded however close they are. One more is allowed each interval, up to so many."""

WISHES_MAX = 10_000
KEYS_MAX = 10_000

Wish = tuple[str, str, str, str, object]
"""Actor, client, portfolio, verb, and what it is about."""

Key = tuple[str, str, str]
"""Client, portfolio and idempotency key of a command."""


def wish_of(command: AnyCommand, caller: Caller) -> Wish:
    """Return the wish that a command states."""
    if isinstance(command, PositionCommand):
        return (*caller[:2], command.portfolio, command.verb, command.number)
    markets = command.markets if isinstance(command, Reserve) else ()
    names = [one if isinstance(one, str) else (one.venue, one.symbol) for one in markets]
    about = (command.number, tags_of(getattr(command, "tags", NO_TAGS)).text, *names)
    return (*caller[:2], command.portfolio, command.verb, about)


class _Denial(NamedTuple):
    """The last recorded denial of a wish. spent_us: an interval after now for each denial beyond the allowance's."""

    record: DecisionRecord
    spent_us: int


class DenialMemory:
    """The last committed denials by wish, and the keys that were answered with one of them; both bounded.

    seconds: the interval in which a wish's denial is recorded once more; 0 records every denial.
    """

    def __init__(self, seconds: int) -> None:
        self.interval_us = seconds * 1_000_000
        self.denials: dict[Wish, _Denial] = {}
        self.keys: dict[Key, tuple[str, DecisionRecord]] = {}
        """Request and denial by key."""
        self._spent_us_max = 0

    def idle(self, now_us: int) -> bool:
        """Whether no command at all may get a remembered denial."""
        return not self.keys and not self.any_used_up(now_us)

    def may_repeat(self, commands: Iterable[tuple[AnyCommand, Caller]], now_us: int) -> bool:
        """Whether one of the commands may get a remembered denial, for which its state must be loaded."""
        any_used_up = self.any_used_up(now_us)
        return any(
            (caller.client, command.portfolio, command.key) in self.keys
            or (any_used_up and self.used_up(self.denials.get(wish_of(command, caller)), now_us))
            for command, caller in commands
        )

    def any_used_up(self, now_us: int) -> bool:
        """Whether any wish may have used up its allowance. Mostly none has, and then no wish need be looked up."""
        return self._spent_us_max - now_us > (RECORDED_IN_A_ROW - 1) * self.interval_us

    def used_up(self, denial: _Denial | None, now_us: int) -> bool:
        """Whether a wish has used up its allowance of recorded denials."""
        return denial is not None and denial.spent_us - now_us > (RECORDED_IN_A_ROW - 1) * self.interval_us

    def spent_us(self, denial: _Denial | None, now_us: int) -> int:
        """Return the `spent_us` of a wish whose denial is recorded once more."""
        spent_us = now_us if denial is None else max(denial.spent_us, now_us)
        return min(spent_us, now_us + (RECORDED_IN_A_ROW - 1) * self.interval_us) + self.interval_us

    def keep(self, batch: "BatchDenials") -> None:
        """Remember what a batch that is committed by now adds."""
        for wish, denial in batch.denials.items():
            self.denials.pop(wish, None)  # the newest stand last
            if denial is not None:
                self.denials[wish] = denial
                self._spent_us_max = max(self._spent_us_max, denial.spent_us)
        self.keys.update(batch.keys)
        while len(self.denials) > WISHES_MAX:
            del self.denials[next(iter(self.denials))]
        while len(self.keys) > KEYS_MAX:
            del self.keys[next(iter(self.keys))]


class BatchDenials:
    """What a batch sees of the memory, and what it adds once it is committed (see `DenialMemory.keep`).

    locked: its state was loaded under the database's lock. denials: by wish; None after a grant. keys: those answered
    with a denial that was recorded before, with request and answer. idle: nothing is remembered; then only a denial
    concerns it.
    """

    def __init__(self, memory: DenialMemory, *, locked: bool) -> None:
        self._memory = memory
        self._locked = locked
        self.denials: dict[Wish, _Denial | None] = {}
        self.keys: dict[Key, tuple[str, DecisionRecord]] = {}
        self.idle = not (memory.denials or memory.keys)

    @property
    def any(self) -> bool:
        """Whether it adds something to the memory."""
        return bool(self.denials or self.keys)

    def by_key(self, command: AnyCommand, caller: Caller) -> tuple[str, DecisionRecord] | None:
        """Return request and answer of a key that was answered with a denial recorded before; None if it was not."""
        if not self.keys and not self._memory.keys:
            return None
        key = (caller.client, command.portfolio, command.key)
        return self.keys.get(key) or (self._memory.keys.get(key) if self._locked else None)

    def repeated(
        self, command: AnyCommand, caller: Caller, request: str, verdict: Verdict, now_us: int
    ) -> DecisionRecord | None:
        """Return the denial to give again, with the command's key and reference; None to record the verdict."""
        wish = wish_of(command, caller)
        denial = self.denials.get(wish)
        if wish not in self.denials and self._locked:
            denial = self._memory.denials.get(wish)
        if denial is None or not self._memory.used_up(denial, now_us):
            return None
        record = denial.record
        if (record.reason, record.binding) != (verdict.reason, verdict.binding) or record.decided_us > now_us:
            return None
        answer = record._replace(key=command.key, reference=command.reference)
        self.keys[caller.client, command.portfolio, command.key] = (request, answer)
        return answer

    def note(self, command: AnyCommand, caller: Caller, record: DecisionRecord) -> None:
        """Note what the batch records for a command."""
        if not self._memory.interval_us:
            return
        if record.outcome == "denied":
            wish = wish_of(command, caller)
            before = self.denials[wish] if wish in self.denials else self._memory.denials.get(wish)
            self.denials[wish] = _Denial(record, self._memory.spent_us(before, record.decided_us))
            self.idle = False
        elif record.outcome == "granted" and (self.denials or self._memory.any_used_up(record.decided_us)):
            # Elsewhere the next denial is recorded anyway.
            self.denials[wish_of(command, caller)] = None
