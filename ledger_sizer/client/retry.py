"""Retries with exponential back-off, shared by the sync and the async client.

`with_retries` is a generator that does no I/O: it yields `Send` and `Wait`; a client executes them and sends back the
outcome. Repeating a command is safe because it carries its idempotency key: the repeat learns the first attempt's
outcome. A denial is a final answer and is not retried.
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
    """Send this call once, and report the `Response` or the `ConnectionLost`."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep for `seconds`."""

    seconds: float


Outcome = Response | ConnectionLost | None
"""What a client reports: the outcome of a `Send`; None after a `Wait`."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to retry and when to give up.

    attempts_max: how often a call is sent in all. give_up_seconds: no attempt begins later than this after the first.
    pause_seconds: the first pause. It doubles each time up to pause_seconds_max. Random jitter takes off up to half of
    it, so that many bots do not retry at once. A longer `Retry-After` of the service is obeyed, up to
    pause_seconds_max.
    """

    attempts_max: int = 8
    give_up_seconds: float = 30.0
    pause_seconds: float = 0.05
    pause_seconds_max: float = 5.0

    def pause(self, attempt: int, asked_seconds: float | None, chance: float) -> float:
        """Return the seconds to wait after failed attempt number `attempt` (from 1).

        asked_seconds: the service's `Retry-After`, None without one. chance: a random number in [0, 1).
        """
        own = min(self.pause_seconds * 2.0 ** min(attempt - 1, 32), self.pause_seconds_max) * (1 - chance / 2)
        return own if asked_seconds is None else min(max(asked_seconds * (1 + chance / 4), own), self.pause_seconds_max)


Steps = Generator[Send | Wait, Outcome, T]


def with_retries(
    calls: Calls[T], policy: RetryPolicy, *, clock: Callable[[], float], chance: Callable[[], float]
) -> Steps[T]:
    """Run the calls of one client method, each with retries. Returns the method's result.

    clock: monotonic seconds. chance: a random number in [0, 1).
    """
    try:
        call = next(calls)
        while True:
            try:
                answer = yield from _call_with_retries(call, policy, clock, chance)
            except LedgerError as error:
                call = calls.throw(error)
            else:
                call = calls.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _call_with_retries(
    call: Call[Any], policy: RetryPolicy, clock: Callable[[], float], chance: Callable[[], float]
) -> Steps[Any]:
    """Send a call until it has a final answer, or raise the last `LedgerError` where the policy gives up."""
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
            pause = policy.pause(attempt, asked, chance())
            out_of_time = clock() - began + pause > policy.give_up_seconds
            if attempt >= policy.attempts_max or out_of_time or not worth_retrying(outcome, error):
                raise
        yield Wait(pause)
        attempt += 1
