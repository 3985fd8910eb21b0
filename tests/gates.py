"""A clock that can make a ledger's writer wait, so that a test decides what is in its queue when it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from ledger_sizer import Ledger
from tests.clocks import FakeClock

PATIENCE_SECONDS = 30


class GatedClock(FakeClock):
    """The writer looks at the clock once a batch; while the gate is closed it stands there."""

    def __init__(self) -> None:
        super().__init__()
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Event()

    def __call__(self) -> datetime:
        self._reached.set()
        assert self._open.wait(PATIENCE_SECONDS), "the gate was never opened"
        return super().__call__()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate for the length of a block."""
        self._reached.clear()
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def open(self) -> None:
        """Let the writer go on before the block ends."""
        self._open.set()

    def wait_reached(self) -> None:
        """Wait until the writer stands at the gate, with a batch in hand."""
        assert self._reached.wait(PATIENCE_SECONDS), "the writer did not come"


def wait_pending(ledger: Ledger, count: int) -> None:
    """Wait until so many commands are accepted and unanswered: their callers are other threads, on their way in."""
    deadline = threading.Event()
    for _ in range(PATIENCE_SECONDS * 1000):
        if ledger.pending == count:
            return
        deadline.wait(0.001)
    raise AssertionError(f"{ledger.pending} commands wait, not {count}")
