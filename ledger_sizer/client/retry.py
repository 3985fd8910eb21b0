"""How long and how often the client asks again, as one piece of logic for the blocking and the awaitable face.

`retrying` is a generator that does no input or output itself: it yields `Send` and `Wait`, a face carries them out
and sends back what came of it. Only what is safe to repeat is repeated: every command carries its key, so asking again
settles what became of it, and a denial is an answer like any other.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ledger_sizer.client.endpoints import Call, Calls
from ledger_sizer.client.responses import ConnectionLost, Response, retry_after_seconds, worth_retrying
from ledger_sizer.model.errors import LedgerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send this call once, and report the `Response`, or that the connection was lost (`ConnectionLost`)."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Let so many seconds pass."""

    seconds: float


Outcome = Response | ConnectionLost | None
"""What a face reports: what came of a `Send`, None after a `Wait`."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to ask again and when to give up.

    attempts_max: how often a call is sent in all. give_up_seconds: no new attempt begins later than this after the
    first. pause_seconds: the first pause; it doubles each time up to pause_seconds_max, and up to half of it is taken
    off by chance, so that many bots do not come back at once. A service that names a longer pause (`Retry-After`) is
    obeyed, but never beyond pause_seconds_max.
    """

    attempts_max: int = 8
    give_up_seconds: float = 30.0
    pause_seconds: float = 0.05
    pause_seconds_max: float = 5.0

    def pause(self, attempt: int, asked_seconds: float | None, chance: float) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1). chance: a random number in [0, 1)."""
        own = min(self.pause_seconds * 2.0 ** min(attempt - 1, 32), self.pause_seconds_max) * (1 - chance / 2)
        return own if asked_seconds is None else min(max(asked_seconds * (1 + chance / 4), own), self.pause_seconds_max)


Steps = Generator[Send | Wait, Outcome, T]


def retrying(
    calls: Calls[T], patience: RetryPolicy, *, clock: Callable[[], float], chance: Callable[[], float]
) -> Steps[T]:
    """Everything one method of the client does: its calls, each until it is answered. Returns the method's result.

    clock: monotonic seconds. chance: a random number in [0, 1).
    """
    try:
        call = next(calls)
        while True:
            try:
                answer = yield from _until_answered(call, patience, clock, chance)
            except LedgerError as error:
                call = calls.throw(error)
            else:
                call = calls.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _until_answered(
    call: Call[Any], patience: RetryPolicy, clock: Callable[[], float], chance: Callable[[], float]
) -> Steps[Any]:
    """Send a call until it is answered, or until patience ends; then raise the last `LedgerError`."""
    began = clock()
    attempt = 1
    while True:
        outcome = yield Send(call)
        assert outcome is not None, "a Send is answered by a Response or by ConnectionLost"
        asked = None
        try:
            if isinstance(outcome, ConnectionLost):
                raise outcome.error(call.method, call.path)
            asked = retry_after_seconds(outcome)
            return call.read(outcome)
        except LedgerError as error:
            pause = patience.pause(attempt, asked, chance())
            out_of_time = clock() - began + pause > patience.give_up_seconds
            if attempt >= patience.attempts_max or out_of_time or not worth_retrying(outcome, error):
                raise
        yield Wait(pause)
        attempt += 1
