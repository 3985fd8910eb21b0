"""Inline callers: a blocking caller that finds the writer idle commits on its own thread. Interrupts and waiting."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from types import FrameType
from typing import Any

import pytest

from ledger_sizer import Busy, Ledger
from tests.support.clock import START
from tests.support.ledgers import assert_verified


class EventfulClock:
    """A clock that runs a callback once, in the thread that reads it: the one that commits."""

    def __init__(self) -> None:
        self.event: Callable[[], None] | None = None

    def __call__(self) -> datetime:
        event, self.event = self.event, None
        if event is not None:
            event()
        return START


@contextmanager
def at_rest(url: str, clock: EventfulClock) -> Iterator[Ledger]:
    """A ledger with one decision, whose writer waits for work."""
    with Ledger.open(url, clock=clock) as ledger:
        ledger.reserve(key="first")
        while not ledger._writer._idle:
            time.sleep(0.001)
        yield ledger


def test_reserve_when_the_writer_is_idle_then_the_callers_own_thread_commits(database_url: str) -> None:
    clock, seen = EventfulClock(), []
    with at_rest(database_url, clock) as ledger:
        clock.event = lambda: seen.append(threading.get_ident())
        assert ledger.reserve(key="mine").granted
    assert seen == [threading.get_ident()]


def test_reserve_when_ctrl_c_interrupts_the_commit_then_the_ledger_goes_on_and_the_key_settles_it(
    database_url: str,
) -> None:
    clock = EventfulClock()
    with at_rest(database_url, clock) as ledger:
        clock.event = lambda: signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(key="interrupted")
        assert ledger.pending == 0
        assert ledger.reserve(key="interrupted").granted
        assert [decision.key for decision in ledger.history().items] == ["interrupted", "first"]
        assert_verified(ledger)


def interrupt_at_call(ledger: Ledger, key: str, number: int) -> bool:
    """Reserve, with Ctrl-C as the writer's code enters its nth function, where Python checks for signals.

    Return True if it got that far.
    """
    calls = count()

    def strike(frame: FrameType, event: str, _argument: Any) -> None:
        if (
            event == "call"
            and frame.f_code.co_filename.endswith("ledger_sizer/ledger/writer.py")
            and next(calls) == number
        ):
            raise KeyboardInterrupt

    traced = sys.gettrace()
    sys.settrace(strike)
    try:
        ledger.reserve(key=key)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(traced)
    return False


def test_reserve_when_ctrl_c_strikes_at_any_call_then_the_writer_waits_for_no_guest_who_is_gone(
    database_url: str,
) -> None:
    with at_rest(database_url, EventfulClock()) as ledger:
        number = 0
        while interrupt_at_call(ledger, f"interrupted-{number}", number):
            assert (ledger._writer._inline_caller, ledger.pending) == (None, 0), f"after call {number}"
            assert not ledger.reserve(key=f"after-{number}").replayed
            while not ledger._writer._idle:
                time.sleep(0.001)
            number += 1
        assert number > 2, "the writer's code was entered"
        assert_verified(ledger)


def test_reserve_when_a_signal_handler_calls_inside_a_commit_then_it_is_busy_instead_of_waiting_for_ever(
    database_url: str,
) -> None:
    clock, refused = EventfulClock(), []

    def handler(_signal: int, _frame: object) -> None:
        with pytest.raises(Busy, match="inside a call") as caught:
            ledger.reserve(key="handler")
        refused.append(caught.value)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with at_rest(database_url, clock) as ledger:
            clock.event = lambda: signal.raise_signal(signal.SIGUSR1)
            assert ledger.reserve(key="outer").granted
            assert len(refused) == 1
            assert ledger.reserve(key="handler").granted
            assert_verified(ledger)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_reserve_when_others_come_while_a_guest_commits_then_they_wait_for_it_and_are_answered(
    database_url: str,
) -> None:
    clock = EventfulClock()
    with at_rest(database_url, clock) as ledger:
        others = [threading.Thread(target=ledger.reserve, kwargs={"key": f"other-{n}"}) for n in range(4)]

        def crowd() -> None:
            for other in others:
                other.start()
            while ledger.pending < 1 + len(others):
                pass

        clock.event = crowd
        assert ledger.reserve(key="guest").granted
        for other in others:
            other.join(30)
        assert [d.key for d in ledger.history(limit=1000).items][-2:] == ["guest", "first"]
        assert len(ledger.history().items) == 6
        assert_verified(ledger)
