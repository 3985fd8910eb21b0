"""What a process remembers changes no answer: one ledger and several in turns decide alike, hash for hash."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from ledger_sizer import (
    Adopt,
    AppSettings,
    Confirm,
    Decision,
    DynamicSizingSettings,
    Extend,
    Halt,
    Ledger,
    LedgerError,
    LedgerSettings,
    Release,
    Reserve,
    Resume,
    SetCap,
    TradingSettings,
    WrongState,
)
from ledger_sizer.model.commands import AnyCommand
from tests.conftest import EngineKind, NewDatabase
from tests.support.clock import FakeClock
from tests.support.ledgers import assert_verified

D = Decimal
SETTINGS = AppSettings(
    sizing=DynamicSizingSettings(max_portfolio_exposure=D(1000)),
    trading=TradingSettings(max_position_size_usd=D(150)),
    ledger=LedgerSettings(hold_ttl_seconds=20),
)
TAGS: tuple[dict[str, str], ...] = ({}, {"venue": "bybit"}, {"venue": "okx", "symbol": "BTC"})
SCOPES = ("portfolio", "venue=bybit", "venue=okx", "symbol=BTC")
STEPS = 150


class Step(NamedTuple):
    """The clock moves, then a group is sent."""

    seconds: int
    commands: Sequence[AnyCommand]
    atomic: bool


class Player:
    """Makes random groups about the positions that there are. Repeats some commands, and confirms expired holds."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sent: list[AnyCommand] = []
        self._made: list[str] = []

    def step(self) -> Step:
        size = self._random.choice([1, 1, 1, 2, 3, 4])
        commands = [self._command() for _ in range(size)]
        return Step(self._random.choice([0, 0, 0, 0, 1, 5, 21]), commands, self._random.random() < 0.5)

    def note(self, answers: Sequence[Any]) -> None:
        """Note which positions there are now."""
        made = [one for one in answers if isinstance(one, Decision) and one.command in ("reserve", "adopt", "confirm")]
        self._made += [one.position_id for one in made if one.position_id is not None and not one.replayed]

    def _command(self) -> AnyCommand:
        pick, key = self._random.choice, f"key-{len(self._sent)}"
        if self._sent and self._random.random() < 0.15:
            return pick(self._sent)
        portfolio = pick("aab")
        kind = self._random.random()
        # Mostly of the newest positions, so that the same is met again, from memory.
        about = pick(self._made[-12:]) if self._made else f"{portfolio}-1"
        if kind < 0.35 or not self._made:
            command: AnyCommand = Reserve(
                key=key, portfolio=portfolio, tags=pick(TAGS), available_balance=D(pick([20, 70, 150])),
                min_notional_usd=pick([None, D(60), D(9000)]), ttl_seconds=pick([3, 20, 400]),
            )  # fmt: skip
        elif kind < 0.65:
            about = pick(self._made[-12:-6] or self._made)  # which may have expired
            command = Confirm(key=key, position_id=about, quantity=D(pick([1, 2])), price=D(pick([30, 70])))
        elif kind < 0.8:
            command = Release(key=key, position_id=about, quantity=pick([None, None, D(1)]))
        elif kind < 0.87:
            command = Extend(key=key, position_id=about, ttl_seconds=pick([3, 60]))
        elif kind < 0.91:
            command = Adopt(key=key, portfolio=portfolio, tags=pick(TAGS), quantity=D(1), price=D(40))
        elif kind < 0.95:
            command = SetCap(key=key, portfolio=portfolio, scope=pick(SCOPES), cap=D(pick([100, 400, 1000])))
        else:
            verb: Any = pick([Halt, Resume, Resume])
            command = verb(key=key, portfolio=portfolio, scope=pick(SCOPES))
        self._sent.append(command)
        return command


def send(ledger: Ledger, step: Step) -> list[Any]:
    """Return the answers of a step in a form that can be compared."""
    try:
        return [*ledger.submit(step.commands, atomic=step.atomic)]
    except LedgerError as error:
        return [error]


def plain(answers: Sequence[Any]) -> list[Any]:
    return [one if isinstance(one, Decision) else (type(one), str(one)) for one in answers]


def in_turns(ledgers: Sequence[Ledger], turn: int) -> Iterator[Ledger]:
    """Yield who sends each step: each ledger sends `turn` steps at a time."""
    while True:
        for ledger in ledgers:
            yield from [ledger] * turn


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, *(pytest.param(seed, marks=pytest.mark.extended) for seed in range(4, 12))])
def test_submit_when_one_ledger_or_several_in_turns_decide_then_chains_are_equal_hash_for_hash(
    new_database: NewDatabase, engine_kind: EngineKind, seed: int
) -> None:
    player, steps, played = Player(seed), [], []
    for count, turn in ((1, 1), (2, 1), (2, 7), (3, 4)):
        clock, url, answers = FakeClock(), new_database(engine_kind), []
        with ExitStack() as stack:
            ledgers = [stack.enter_context(Ledger.open(url, settings=SETTINGS, clock=clock)) for _ in range(count)]
            for place, who in zip(range(STEPS), in_turns(ledgers, turn), strict=False):
                if len(steps) == place:
                    steps.append(player.step())
                clock.advance(steps[place].seconds)
                given = send(who, steps[place])
                player.note(given)
                answers.append(plain(given))
            assert_verified(ledgers[0])
            played.append((answers, [ledgers[0].heads(name) for name in ledgers[0].portfolios()]))
    for other in played[1:]:
        for place, (ours, theirs) in enumerate(zip(played[0][0], other[0], strict=True)):
            assert ours == theirs, f"step {place}: {steps[place]}"
        assert played[0][1] == other[1]


def test_submit_atomic_when_a_late_fill_is_doubled_beside_a_denial_then_it_is_refused_from_memory_too(
    ledger: Ledger, clock: FakeClock
) -> None:
    ledger.reserve(key="r", ttl_seconds=10)
    clock.advance(10)
    late = ledger.confirm(key="f", position_id="main-1", quantity=D(1), price=D(10))
    denied = [
        Confirm(key="again", position_id="main-1", quantity=D(1), price=D(10)),
        Reserve(key="too much", min_notional_usd=D(9_000)),
    ]
    for group in (denied, denied[::-1]):
        with pytest.raises(WrongState, match=f"its late fill is recorded already, as {late.position_id}"):
            ledger.submit(group, atomic=True)
        assert ledger.exposure().seq == 3, "the reservation, its expiry and its late fill"
    assert_verified(ledger)
