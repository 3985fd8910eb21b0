"""Ledgers whose writer thread a test can block, and callers that queue up meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from ledger_sizer import Decision, Ledger, LedgerError, Reserve
from tests.lockstep.auditor import Auditor
from tests.support.clock import FakeClock
from tests.support.programs import settings_of

TIMEOUT_SECONDS = 30
CAP = Decimal(500)
ONE = Decimal(1)


class GatedClock(FakeClock):
    """A clock that blocks its reader while the gate is closed. The writer reads it once per batch."""

    def __init__(self) -> None:
        super().__init__()
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Event()

    def __call__(self) -> datetime:
        self._reached.set()
        assert self._open.wait(TIMEOUT_SECONDS), "the gate was never opened"
        return super().__call__()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate for the length of a `with` block."""
        self._reached.clear()
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def open(self) -> None:
        """Open the gate before the block ends."""
        self._open.set()

    def wait_reached(self) -> None:
        """Wait until the writer blocks at the gate with a batch."""
        assert self._reached.wait(TIMEOUT_SECONDS), "the writer did not come"


def wait_pending(ledger: Ledger, count: int) -> None:
    """Wait until `count` commands of other threads are accepted and not yet answered."""
    deadline = threading.Event()
    for _ in range(TIMEOUT_SECONDS * 1000):
        if ledger.pending == count:
            return
        deadline.wait(0.001)
    raise AssertionError(f"{ledger.pending} commands wait, not {count}")


class Gated:
    """Opens ledgers on one database and one gated clock, and closes them at the end."""

    def __init__(self, url: str) -> None:
        self.gate = GatedClock()
        self._url = url
        self._opened: list[Ledger] = []

    def open(self, **settings: Any) -> Ledger:
        """Open a ledger with a cap of 500 USD and these `LedgerSettings`."""
        self._opened.append(Ledger.open(self._url, settings=settings_of(**settings), clock=self.gate))
        return self._opened[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.gate.open()
        for ledger in self._opened:
            ledger.close()


def one(key: str, **request: Any) -> Reserve:
    """Return the command to reserve 1 USD."""
    return Reserve(key=key, available_balance=ONE, ttl_seconds=3600, **request)


def keys(ledger: Ledger) -> list[str]:
    """Return all recorded keys in order, after checking the invariants and the audit."""
    auditor = Auditor("main", CAP)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return [decision.key for decision in auditor.decisions]


@contextmanager
def watch_commits(ledger: Ledger, note: Callable[[int], object]) -> Iterator[None]:
    """Call `note` with the number of decisions of each commit, before the write and on the writing thread."""
    store: Any = ledger._store
    write = store.write

    def noting_write(changes: Any, *, locked: bool) -> None:
        note(sum(len(change.decisions) for change in changes))
        write(changes, locked=locked)

    store.write = noting_write
    try:
        yield
    finally:
        store.write = write


@contextmanager
def count_commits(ledger: Ledger) -> Iterator[list[int]]:
    """Yield a list that gets the number of decisions of each commit."""
    sizes: list[int] = []
    with watch_commits(ledger, sizes.append):
        yield sizes


class Callers:
    """Threads that each send one command and wait for its answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(64)
        self.answers: dict[str, Future[Decision]] = {}

    def ask(self, *commands: Any) -> None:
        """Send each command from its own thread, and wait until all are accepted."""
        expected = self._ledger.pending + len(commands)
        for command in commands:
            self.answers[command.key] = self._threads.submit(self._ledger.run, command)
        wait_pending(self._ledger, expected)

    def outcomes(self) -> dict[str, str]:
        """Return for each key the outcome, or the error's code. Waits for all answers."""
        outcomes = {}
        for key, answer in self.answers.items():
            error = answer.exception(30)
            assert error is None or isinstance(error, LedgerError), error
            outcomes[key] = answer.result().outcome if error is None else error.code
        return outcomes
