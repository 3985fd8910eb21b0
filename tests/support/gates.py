"""Ledgers whose writer waits when a test says so, and the callers that queue up meanwhile."""

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

PATIENCE_SECONDS = 30
CAP = Decimal(500)
ONE = Decimal(1)


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


class Gated:
    """Ledgers on one database and one gated clock; opened when asked for, closed at the end."""

    def __init__(self, url: str) -> None:
        self.gate = GatedClock()
        self._url = url
        self._opened: list[Ledger] = []

    def open(self, **settings: Any) -> Ledger:
        """A ledger with a cap of 500 USD, and these settings of its writer."""
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
    """A reservation of one dollar."""
    return Reserve(key=key, available_balance=ONE, ttl_seconds=3600, **request)


def keys(ledger: Ledger) -> list[str]:
    """All keys that were recorded, in order; and the books add up."""
    auditor = Auditor("main", CAP)
    auditor.check(ledger)
    assert ledger.verify().findings == ()
    return [decision.key for decision in auditor.decisions]


@contextmanager
def commits_watched(ledger: Ledger, note: Callable[[int], object]) -> Iterator[None]:
    """Tell `note` the number of decisions in each commit as the store is asked for it, on the thread that asks."""
    store: Any = ledger._store
    write = store.write

    def noted(changes: Any, *, locked: bool) -> None:
        note(sum(len(change.decisions) for change in changes))
        write(changes, locked=locked)

    store.write = noted
    try:
        yield
    finally:
        store.write = write


@contextmanager
def commits_counted(ledger: Ledger) -> Iterator[list[int]]:
    """The number of decisions in each commit."""
    sizes: list[int] = []
    with commits_watched(ledger, sizes.append):
        yield sizes


class Callers:
    """Threads that each wait for one answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(64)
        self.answers: dict[str, Future[Decision]] = {}

    def ask(self, *commands: Any) -> None:
        """Ask from one thread each, and wait until all are accepted."""
        expected = self._ledger.pending + len(commands)
        for command in commands:
            self.answers[command.key] = self._threads.submit(self._ledger.run, command)
        wait_pending(self._ledger, expected)

    def outcomes(self) -> dict[str, str]:
        """How each was answered: the outcome, or the error's code."""
        told = {}
        for key, answer in self.answers.items():
            error = answer.exception(30)
            assert error is None or isinstance(error, LedgerError), error
            told[key] = answer.result().outcome if error is None else error.code
        return told
