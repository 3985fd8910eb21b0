"""Group commit: everything that waits is answered with one commit.

There is no timer. While a commit runs, new work queues up and becomes the next batch, so a lone caller waits for
nobody and a crowd shares the price of the disk. Callers on an event loop hand over once per loop tick, and get all
their answers of a batch in one wake-up: the threads then meet once a batch, not once a command. A blocking caller
who finds the writer idle and the queue empty is its guest: it commits its own group on its own thread meanwhile, which
saves a lone caller both hand-overs.

A crowd that lasts is served in two halves: while one thread stores the first, another decides the second on what the
first will have left (a draft, see `committer`), and the callers of the batch before prepare their next commands.
"""

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from ledger_sizer.model.decisions import Result
from ledger_sizer.model.errors import Busy, Closed, InternalError, LedgerError
from ledger_sizer.rules.batch import Group
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

Answer = list[Result] | LedgerError
_LoopFuture = asyncio.Future[list[Result]]


_CROWD_MIN = 8
"""Commands that must wait for their commit to be worth a second thread; a few are stored where they were decided."""

_CROWDS_MIN = 3
"""A crowd that came once is answered with one commit; one that stays is served in halves."""

D = TypeVar("D")


class Answers(Protocol[D]):
    """What answers batches. `answer` never raises but for an interrupt; one thread drafts while another answers."""

    def draft(self, groups: Sequence[Group]) -> D | None:
        """Decide a batch before the one before is stored; None where that cannot be."""

    def answer(self, groups: Sequence[Group], draft: D | None = None) -> list[Answer]:
        """Store a draft of these groups, or answer them from the start."""


class _Ticket:
    """A group on its way through the queue, and whom to tell."""

    __slots__ = ("future", "group", "loop")

    def __init__(
        self, group: Group, future: "Future[list[Result]] | _LoopFuture", loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.group = group
        self.future = future
        self.loop = loop


_Answered = tuple[list[_Ticket], list[Answer]]


class Writer(Generic[D]):
    """A bounded queue, the thread that empties it, and a second one that stores for a crowd."""

    def __init__(
        self, answers: Answers[D], *, batch_size_max: int, queue_size_max: int, name: str, on_stop: Callable[[], None]
    ) -> None:
        self._answers = answers
        self._on_stop = on_stop
        self._batch_size_max = batch_size_max
        self._queue_size_max = queue_size_max
        self._queue: deque[_Ticket] = deque()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._pending = 0  # commands accepted and not yet answered
        self._waiting = 0  # those of them in the queue
        self._idle = False
        self._guest: tuple[int] | None = None  # the caller that commits now, by its thread; one tuple for each call
        self._jobs: SimpleQueue[tuple[list[_Ticket], D] | None] = SimpleQueue()
        self._storing = 0  # drafts handed to the second thread whose callers were not told yet
        self._crowd = 0  # commands that were unanswered at a time, lately
        self._crowds = 0  # batches in a row that a crowd waited for
        self._stored: list[_Answered] = []
        self._closing = False
        self._pid = os.getpid()
        self._outboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Ticket]] = (
            weakref.WeakKeyDictionary()
        )
        self._latest: tuple[asyncio.AbstractEventLoop | None, list[_Ticket]] = (None, [])
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._second = threading.Thread(target=self._run_second, name=f"{name}-store", daemon=True)
        self._second.start()
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
        self.require_own_process()
        size, guest = _size(group), (threading.get_ident(),)
        future: Future[list[Result]] | None = None
        try:
            with self._lock:
                self._admit(size)
                # Ctrl-C strikes where something is called. Nothing is, between counting a guest and knowing it.
                self._pending += size
                if self._idle and not self._storing and self._guest is None and not self._queue:
                    self._guest = guest
                else:
                    future = Future()
                    self._enqueue([_Ticket(group, future, None)])
                    if self._idle:
                        self._ready.notify()
            if future is not None:
                return future.result()
            (answer,) = self._work([group])
        finally:
            with self._lock:
                if self._guest is guest:
                    self._guest = None
                    self._pending -= size
                    if self._queue or self._closing:
                        self._ready.notify()
        if isinstance(answer, LedgerError):
            raise answer
        return answer

    def submit_async(self, group: Group) -> _LoopFuture:
        """Queue a group from a coroutine; it is handed over at the end of the loop's tick, with its neighbours."""
        loop = asyncio.get_running_loop()
        future: _LoopFuture = loop.create_future()
        self.require_own_process()
        size = _size(group)
        with self._lock:
            self._admit(size)
            self._pending += size
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
            self._enqueue(outbox)
            outbox.clear()
            if self._idle:
                self._ready.notify()

    def _enqueue(self, tickets: Sequence[_Ticket]) -> None:
        self._queue.extend(tickets)
        self._waiting += _size_of(tickets)
        self._crowd = max(self._crowd, self._pending)

    def require_own_process(self) -> None:
        """To be asked before the lock, which another thread may have held when the process forked."""
        if self._pid != os.getpid():
            raise Closed("this ledger was opened before the process forked; open it in each process")

    def _admit(self, size: int) -> None:
        if self._closing:
            raise Closed("the ledger is closed; open it again")
        if self._guest is not None and self._guest[0] == threading.get_ident():
            raise Busy("this thread is inside a call to the ledger, as a signal handler may be; call again after it")
        if size > self._queue_size_max:
            raise Busy(f"a group of {size} commands can never fit a queue of {self._queue_size_max}; send it in parts")
        if self._pending + size > self._queue_size_max:
            raise Busy(
                f"{self._pending} commands wait, the queue holds {self._queue_size_max}; retry with the same key"
            )

    def close(self, timeout_seconds: float) -> bool:
        """Refuse new work, answer what was accepted, stop. True when everything was answered in time.

        What could not be answered in time gets `Closed`, never silence; its outcome is settled by its key.
        """
        if not self.own_process:
            return True  # its threads did not come along, and its lock may be held for ever
        with self._lock:
            self._closing = True
            self._ready.notify()
        self._hand_over_own_loop()
        self._thread.join(timeout_seconds)
        with self._lock:
            left = list(self._queue)
            self._queue.clear()
            self._pending -= _size_of(left)
            self._waiting = 0
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
        while (batch := self._next_batch()) is not None:
            crowd = self._storing > 0 or _size_of(batch) >= _CROWD_MIN
            draft = self._answers.draft(_groups(batch)) if crowd else None
            if draft is not None:
                self._storing += 1
                self._jobs.put((batch, draft))
                continue
            while self._storing:
                self._tell(self._wait_stored())
            self._tell([(batch, self._work(_groups(batch)))])
        self._jobs.put(None)
        self._second.join()
        self._on_stop()

    def _run_second(self) -> None:
        """Store one draft after the other. Nothing here gives the interpreter away between two of them."""
        while (job := self._jobs.get()) is not None:
            batch, draft = job
            answers = self._work(_groups(batch), draft)
            with self._lock:
                self._stored.append((batch, answers))
                self._ready.notify()

    def _next_batch(self) -> list[_Ticket] | None:
        """Tell what was stored, wait for work and take it. None when closing and everything was answered."""
        while True:
            with self._lock:
                while not self._stored and not self._can_take:
                    if self._closing:
                        self._forget_dead_loops()
                        if not self._pending:
                            return None
                    self._idle = True
                    # While closing, an event loop may still owe us an outbox; look again rather than wait for ever.
                    self._ready.wait(0.05 if self._closing else None)
                    self._idle = False
                stored = self._take_stored()
                batch = self._take() if self._can_take else None
            self._tell(stored)
            if batch is not None:
                return batch

    @property
    def _can_take(self) -> bool:
        """One draft may be stored while another waits for it. A small one costs nearly as much as a large one, so a
        batch beside another is worth it only when about half of the crowd is there; else it gathers meanwhile.
        """
        if not self._queue or self._guest is not None:
            return False
        return not self._storing or (self._storing == 1 and 3 * self._waiting >= self._crowd)

    def _wait_stored(self) -> list[_Answered]:
        with self._lock:
            while not self._stored:
                self._ready.wait()
            return self._take_stored()

    def _take_stored(self) -> list[_Answered]:
        stored, self._stored = self._stored, []
        self._storing -= len(stored)
        return stored

    def _tell(self, answered: Sequence[_Answered]) -> None:
        """Hand out the answers of batches that are done."""
        for batch, answers in answered:
            with self._lock:
                self._pending -= _size_of(batch)
            _deliver(batch, answers)

    def _work(self, groups: Sequence[Group], draft: D | None = None) -> list[Answer]:
        try:
            return self._answers.answer(groups, draft)
        except BaseException as error:
            if self._guest is not None and not isinstance(error, Exception):
                raise  # Ctrl-C in a guest's thread is the guest's own
            log.exception("ledger.batch_failed")
            return [InternalError(f"the batch met a defect: {error!r}; retry with the same key")] * len(groups)

    def _forget_dead_loops(self) -> None:
        """A loop that was closed will never hand its outbox over, and nobody waits for the answers."""
        for loop, outbox in list(self._outboxes.items()):
            if loop.is_closed() and outbox:
                self._pending -= _size_of(outbox)
                outbox.clear()

    def _take(self) -> list[_Ticket]:
        """What waits, up to batch_size_max commands (a larger group goes alone, whole); of a lasting crowd one half."""
        self._crowds = self._crowds + 1 if self._crowd >= 2 * _CROWD_MIN else 0
        size_max = self._batch_size_max
        if self._crowds >= _CROWDS_MIN:
            size_max = min((self._crowd + 1) // 2, size_max)
        self._crowd -= self._crowd // 16
        batch = [self._queue.popleft()]
        size = _size(batch[0].group)
        while self._queue and size + _size(self._queue[0].group) <= size_max:
            batch.append(self._queue.popleft())
            size += _size(batch[-1].group)
        self._waiting -= size
        return batch


def _groups(batch: Sequence[_Ticket]) -> list[Group]:
    return [ticket.group for ticket in batch]


def _size(group: Group) -> int:
    return max(len(group.commands), 1)


def _size_of(tickets: Sequence[_Ticket]) -> int:
    return sum([_size(ticket.group) for ticket in tickets])


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
