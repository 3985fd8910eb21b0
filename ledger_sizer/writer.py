"""Group commit: one thread that takes everything waiting and answers it with one commit.

There is no timer. While a commit runs, new work queues up and becomes the next batch, so a lone caller waits for
nobody and a crowd shares the price of the disk. Callers on an event loop hand over once per loop tick, and get all
their answers of a batch in one wake-up: the two threads then meet once a batch, not once a command. A blocking caller
who finds the writer idle and the queue empty is its guest: it commits its own group on its own thread meanwhile, which
saves a lone caller both hand-overs.
"""

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ledger_sizer.batch import Group, Result
from ledger_sizer.errors import Busy, Closed, InternalError, LedgerError
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

Answer = list[Result] | LedgerError
Process = Callable[[Sequence[Group]], list[Answer]]
_LoopFuture = asyncio.Future[list[Result]]


class _Ticket:
    """A group on its way through the queue, and whom to tell."""

    __slots__ = ("future", "group", "loop")

    def __init__(
        self, group: Group, future: "Future[list[Result]] | _LoopFuture", loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.group = group
        self.future = future
        self.loop = loop


class Writer:
    """A bounded queue and the thread that empties it. `process` answers a batch and never raises."""

    def __init__(
        self, process: Process, *, batch_size_max: int, queue_size_max: int, name: str, on_stop: Callable[[], None]
    ) -> None:
        self._process = process
        self._on_stop = on_stop
        self._batch_size_max = batch_size_max
        self._queue_size_max = queue_size_max
        self._queue: deque[_Ticket] = deque()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._pending = 0
        self._idle = False
        self._guest: int | None = None  # the caller's thread that commits now
        self._closing = False
        self._pid = os.getpid()
        self._outboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Ticket]] = (
            weakref.WeakKeyDictionary()
        )
        self._latest: tuple[asyncio.AbstractEventLoop | None, list[_Ticket]] = (None, [])
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def own_process(self) -> bool:
        """False in a process forked from the one that opened it."""
        return self._pid == os.getpid()

    @property
    def pending(self) -> int:
        """Commands accepted and not yet answered."""
        return self._pending

    def answer(self, group: Group) -> list[Result]:
        """Answer a group for a blocking caller. Raises `Busy` when the queue is full and `Closed` after `close`."""
        future: Future[list[Result]] | None = None
        with self._lock:
            self._admit(group)
            if self._idle and self._guest is None and not self._queue:
                self._guest = threading.get_ident()
            else:
                future = Future()
                self._queue.append(_Ticket(group, future, None))
                if self._idle:
                    self._ready.notify()
        return self._answer_as_guest(group) if future is None else future.result()

    def _answer_as_guest(self, group: Group) -> list[Result]:
        try:
            (answer,) = self._work([group])
        finally:
            with self._lock:
                self._guest = None
                self._pending -= _size(group)
                if self._queue or self._closing:
                    self._ready.notify()
        if isinstance(answer, LedgerError):
            raise answer
        return answer

    def submit_async(self, group: Group) -> _LoopFuture:
        """Queue a group from a coroutine; it is handed over at the end of the loop's tick, with its neighbours."""
        loop = asyncio.get_running_loop()
        future: _LoopFuture = loop.create_future()
        with self._lock:
            self._admit(group)
        latest = self._latest  # one tuple: two loops in two threads may swap it at any moment
        if latest[0] is not loop:
            latest = self._latest = (loop, self._outboxes.setdefault(loop, []))
        outbox = latest[1]
        if not outbox:
            loop.call_soon(self._hand_over, outbox)
        outbox.append(_Ticket(group, future, loop))
        return future

    def _hand_over(self, outbox: list[_Ticket]) -> None:
        with self._lock:
            self._queue.extend(outbox)
            outbox.clear()
            if self._idle:
                self._ready.notify()

    def _admit(self, group: Group) -> None:
        size = _size(group)
        if self._closing:
            raise Closed("the ledger is closed; open it again")
        if self._pid != os.getpid():
            raise Closed("this ledger was opened before the process forked; open it in each process")
        if self._guest == threading.get_ident():
            raise Busy("this thread is inside a call to the ledger, as a signal handler may be; call again after it")
        if size > self._queue_size_max:
            raise Busy(f"a group of {size} commands can never fit a queue of {self._queue_size_max}; send it in parts")
        if self._pending + size > self._queue_size_max:
            raise Busy(
                f"{self._pending} commands wait, the queue holds {self._queue_size_max}; retry with the same key"
            )
        self._pending += size

    def close(self, timeout_seconds: float) -> bool:
        """Refuse new work, answer what was accepted, stop. True when everything was answered in time.

        What could not be answered in time gets `Closed`, never silence; its outcome is settled by its key.
        """
        with self._lock:
            self._closing = True
            self._ready.notify()
        self._hand_over_own_loop()
        if self._pid == os.getpid():
            self._thread.join(timeout_seconds)
        with self._lock:
            left = list(self._queue)
            self._queue.clear()
            self._pending -= sum(_size(ticket.group) for ticket in left)
            self._ready.notify()
        _deliver(left, [Closed("the ledger closed before it came to this command; nothing was recorded")] * len(left))
        return not self._thread.is_alive()

    def _hand_over_own_loop(self) -> None:
        """Called on a loop's own thread, that loop cannot run its hand-over while we wait; other loops can."""
        try:
            outbox = self._outboxes.get(asyncio.get_running_loop())
        except RuntimeError:
            return
        if outbox:
            self._hand_over(outbox)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue or self._guest is not None:
                    if self._closing:
                        self._forget_dead_loops()
                    if self._closing and not self._pending:
                        break
                    self._idle = True
                    # While closing, an event loop may still owe us an outbox; look again rather than wait for ever.
                    self._ready.wait(0.05 if self._closing else None)
                    self._idle = False
                if not self._queue:  # closing, and everything was answered
                    break
                batch, size = self._take()
            answers = self._work([ticket.group for ticket in batch])
            with self._lock:
                self._pending -= size
            _deliver(batch, answers)
        self._on_stop()

    def _work(self, groups: Sequence[Group]) -> list[Answer]:
        try:
            return self._process(groups)
        except BaseException as error:
            if self._guest is not None and not isinstance(error, Exception):
                raise  # Ctrl-C in a guest's thread is the guest's own
            log.exception("ledger.batch_failed")
            return [InternalError(f"the batch met a defect: {error!r}; retry with the same key")] * len(groups)

    def _forget_dead_loops(self) -> None:
        """A loop that was closed will never hand its outbox over, and nobody waits for the answers."""
        for loop, outbox in list(self._outboxes.items()):
            if loop.is_closed() and outbox:
                self._pending -= sum(_size(ticket.group) for ticket in outbox)
                outbox.clear()

    def _take(self) -> tuple[list[_Ticket], int]:
        """Everything that waits, up to batch_size_max commands (a larger group goes alone, whole)."""
        batch = [self._queue.popleft()]
        size = _size(batch[0].group)
        while self._queue and size + _size(self._queue[0].group) <= self._batch_size_max:
            ticket = self._queue.popleft()
            size += _size(ticket.group)
            batch.append(ticket)
        return batch, size


def _size(group: Group) -> int:
    return max(len(group.commands), 1)


def _deliver(batch: Sequence[_Ticket], answers: Sequence[Answer]) -> None:
    """Hand each caller its own answer: threads at once, each event loop in one wake-up."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_LoopFuture, Answer]]] = {}
    for ticket, answer in zip(batch, answers, strict=True):
        if isinstance(ticket.future, Future):
            _settle(ticket.future, answer)
        elif ticket.loop is not None:
            by_loop.setdefault(ticket.loop, []).append((ticket.future, answer))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_all, settled)
        except RuntimeError:
            log.warning("ledger.loop_gone", answers=len(settled))


def _settle_all(settled: list[tuple[_LoopFuture, Answer]]) -> None:
    for future, answer in settled:
        if not future.done():
            _settle(future, answer)


def _settle(future: "Future[list[Result]] | _LoopFuture", answer: Answer) -> None:
    if isinstance(answer, LedgerError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
