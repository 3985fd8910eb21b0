"""Group commit: answers all waiting commands with one commit.

There is no timer. While a commit runs, new work queues up and becomes the next batch. So a single caller waits for
nobody, and concurrent callers share the cost of the disk write. Coroutines hand over their commands once per event loop
tick and get all answers of a batch in one wake-up, so that the threads synchronise once per batch, not once per
command. A blocking caller that finds the writer idle and the queue empty is served inline: it commits its group on its
own thread, which saves two thread switches.

Under sustained concurrency batches are pipelined in two halves. While one thread stores the first half, another decides
the second on the state that the first will leave (a draft, see `committer`), and the callers of the batch before
prepare their next commands.
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
LoopFuture = asyncio.Future[list[Result]]


_PIPELINE_COMMANDS_MIN = 8
"""Commands in a batch that are worth the second thread; fewer are stored by the thread that decided them."""

_BUSY_BATCHES_MIN = 3
"""Busy batches in a row before batches are halved. A single burst is answered with one commit."""

INSIDE_A_CALL = "this thread is inside a call to the ledger, as a signal handler may be; call again after it"

D = TypeVar("D")


class BatchProcessor(Protocol[D]):
    """What the writer needs to answer batches (see `Committer`). One thread may draft while another answers."""

    def draft(self, groups: Sequence[Group]) -> D | None:
        """Decide a batch while the previous one is being stored; None where that is impossible."""

    def answer(self, groups: Sequence[Group], draft: D | None = None) -> list[Answer]:
        """Store a draft of these groups, or decide and store them. Raise only on an interrupt."""


class _QueuedGroup:
    """A group in the queue, and the future that gets its answer. loop: the future's event loop; None for a thread."""

    __slots__ = ("future", "group", "loop")

    def __init__(
        self, group: Group, future: "Future[list[Result]] | LoopFuture", loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.group = group
        self.future = future
        self.loop = loop


_AnsweredBatch = tuple[list[_QueuedGroup], list[Answer]]


class Writer(Generic[D]):
    """A bounded queue, the thread that empties it, and a second thread that stores drafts."""

    def __init__(
        self,
        processor: BatchProcessor[D],
        *,
        batch_size_max: int,
        queue_size_max: int,
        name: str,
        on_stop: Callable[[], None],
    ) -> None:
        self._processor = processor
        self._on_stop = on_stop
        self._batch_size_max = batch_size_max
        self._queue_size_max = queue_size_max
        self._queue: deque[_QueuedGroup] = deque()
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._pending = 0  # commands accepted and not yet answered
        self._queued_commands = 0  # those of them that are in the queue
        self._idle = False
        self._inline_caller: tuple[int] | None = None  # thread of the inline call; each call has its own tuple
        self._store_queue: SimpleQueue[tuple[list[_QueuedGroup], D] | None] = SimpleQueue()
        self._storing = 0  # drafts given to the store thread and not yet delivered to their callers
        self._concurrency = 0  # recent maximum of commands pending at once
        self._busy_batches = 0  # batches in a row at high concurrency
        self._stored: list[_AnsweredBatch] = []
        self._closing = False
        self._pid = os.getpid()
        self._outboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_QueuedGroup]] = (
            weakref.WeakKeyDictionary()
        )
        self._last_outbox: tuple[asyncio.AbstractEventLoop | None, list[_QueuedGroup]] = (None, [])
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._store_thread = threading.Thread(target=self._run_store_thread, name=f"{name}-store", daemon=True)
        self._store_thread.start()
        self._thread.start()

    @property
    def own_process(self) -> bool:
        """False in a process forked from the one that opened the ledger."""
        return self._pid == os.getpid()

    @property
    def alive(self) -> bool:
        """Whether both threads run. They end only after `close`, or by a defect."""
        return self._thread.is_alive() and self._store_thread.is_alive()

    @property
    def pending(self) -> int:
        """Commands accepted and not yet answered."""
        return self._pending

    def answer(self, group: Group) -> list[Result]:
        """Answer a group for a blocking caller. Raises `Busy` when the queue is full and `Closed` after `close`."""
        self.require_own_process()
        size, this_call = _command_count(group), (threading.get_ident(),)
        future: Future[list[Result]] | None = None
        try:
            with self._lock:
                self._admit(size)
                # Ctrl-C is raised at calls only: there is none between counting the commands and noting their caller.
                self._pending += size
                if self._idle and not self._storing and self._inline_caller is None and not self._queue:
                    self._inline_caller = this_call
                else:
                    future = Future()
                    self._enqueue([_QueuedGroup(group, future, None)])
                    if self._idle:
                        self._ready.notify()
            if future is not None:
                return future.result()
            (answer,) = self._process([group])
        finally:
            with self._lock:
                if self._inline_caller is this_call:
                    self._inline_caller = None
                    self._pending -= size
                    if self._queue or self._closing:
                        self._ready.notify()
        if isinstance(answer, LedgerError):
            raise answer
        return answer

    def submit_async(self, group: Group) -> LoopFuture:
        """Queue a group from a coroutine. It enters the queue at the end of the loop's tick, with its neighbours."""
        loop = asyncio.get_running_loop()
        future: LoopFuture = loop.create_future()
        self.require_own_process()
        size = _command_count(group)
        with self._lock:
            self._admit(size)
            self._pending += size
        latest = self._last_outbox  # read once as a tuple: a loop in another thread may replace it at any time
        if latest[0] is not loop:
            latest = self._last_outbox = (loop, self._outboxes.setdefault(loop, []))
        outbox = latest[1]
        if not outbox:
            loop.call_soon(self._flush_outbox, outbox)
        outbox.append(_QueuedGroup(group, future, loop))
        return future

    def _flush_outbox(self, outbox: list[_QueuedGroup]) -> None:
        with self._lock:
            self._enqueue(outbox)
            outbox.clear()
            if self._idle:
                self._ready.notify()

    def _enqueue(self, queued_groups: Sequence[_QueuedGroup]) -> None:
        self._queue.extend(queued_groups)
        self._queued_commands += _total_commands(queued_groups)
        self._concurrency = max(self._concurrency, self._pending)

    def require_own_process(self) -> None:
        """Raise `Closed` in a forked child. Call before locking: another thread may have held the lock at the fork."""
        require_process(self._pid)

    def _admit(self, size: int) -> None:
        if self._closing:
            raise Closed("the ledger is closed; open it again")
        if self._inline_caller is not None and self._inline_caller[0] == threading.get_ident():
            raise Busy(INSIDE_A_CALL)
        if size > self._queue_size_max:
            raise Busy(f"a group of {size} commands can never fit a queue of {self._queue_size_max}; send it in parts")
        if self._pending + size > self._queue_size_max:
            raise Busy(
                f"{self._pending} commands wait, the queue holds {self._queue_size_max}; retry with the same key"
            )

    def close(self, timeout_seconds: float) -> bool:
        """Refuse new work, answer what was accepted, stop. Return True if everything was answered in time.

        Commands still queued then get `Closed`, so that no caller waits for ever.
        """
        if not self.own_process:
            return True  # a fork has none of the threads, and the lock may be held for ever
        with self._lock:
            self._closing = True
            self._ready.notify()
        self._flush_own_outbox()
        self._thread.join(timeout_seconds)
        with self._lock:
            left = list(self._queue)
            self._queue.clear()
            self._pending -= _total_commands(left)
            self._queued_commands = 0
            self._ready.notify()
        _deliver(left, [Closed("the ledger closed before it came to this command; nothing was recorded")] * len(left))
        return not self._thread.is_alive()

    def _flush_own_outbox(self) -> None:
        """Flush the outbox of the loop that `close` runs on, which cannot flush it while we wait. Other loops can."""
        try:
            outbox = self._outboxes.get(asyncio.get_running_loop())
        except RuntimeError:
            return
        if outbox:
            self._flush_outbox(outbox)

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            pipeline = self._storing > 0 or _total_commands(batch) >= _PIPELINE_COMMANDS_MIN
            draft = self._processor.draft(_groups(batch)) if pipeline else None
            if draft is not None:
                self._storing += 1
                self._store_queue.put((batch, draft))
                continue
            while self._storing:
                self._deliver_batches(self._wait_stored())
            self._deliver_batches([(batch, self._process(_groups(batch)))])
        self._store_queue.put(None)
        self._store_thread.join()
        self._on_stop()

    def _run_store_thread(self) -> None:
        """Store one draft after the other. Nothing here yields the interpreter between two of them."""
        while (item := self._store_queue.get()) is not None:
            batch, draft = item
            answers = self._process(_groups(batch), draft)
            with self._lock:
                self._stored.append((batch, answers))
                self._ready.notify()

    def _next_batch(self) -> list[_QueuedGroup] | None:
        """Deliver what was stored, wait for work and take it. None when closing and everything was answered."""
        while True:
            with self._lock:
                while not self._stored and not self._can_take:
                    if self._closing:
                        self._drop_closed_loops()
                        if not self._pending:
                            return None
                    self._idle = True
                    # While closing, an event loop may still have an outbox to flush: poll, do not wait for ever.
                    self._ready.wait(0.05 if self._closing else None)
                    self._idle = False
                stored = self._take_stored()
                batch = self._take_batch() if self._can_take else None
            self._deliver_batches(stored)
            if batch is not None:
                return batch

    @property
    def _can_take(self) -> bool:
        """True if the next batch may be taken: at most one draft may wait while another is being stored.

        A small commit costs nearly as much as a large one. So while a draft is being stored, the next batch is taken
        only when about half of the concurrent commands are queued.
        """
        if not self._queue or self._inline_caller is not None:
            return False
        return not self._storing or (self._storing == 1 and 3 * self._queued_commands >= self._concurrency)

    def _wait_stored(self) -> list[_AnsweredBatch]:
        with self._lock:
            while not self._stored:
                self._ready.wait()
            return self._take_stored()

    def _take_stored(self) -> list[_AnsweredBatch]:
        stored, self._stored = self._stored, []
        self._storing -= len(stored)
        return stored

    def _deliver_batches(self, answered: Sequence[_AnsweredBatch]) -> None:
        """Deliver the answers of finished batches."""
        for batch, answers in answered:
            with self._lock:
                self._pending -= _total_commands(batch)
            _deliver(batch, answers)

    def _process(self, groups: Sequence[Group], draft: D | None = None) -> list[Answer]:
        # Ctrl-C in an inline caller's thread is meant for the caller.
        return answer_batch(self._processor, groups, draft, interrupts=self._inline_caller is not None)

    def _drop_closed_loops(self) -> None:
        """Drop the outboxes of closed loops: they are never flushed, and nobody waits for the answers."""
        for loop, outbox in list(self._outboxes.items()):
            if loop.is_closed() and outbox:
                self._pending -= _total_commands(outbox)
                outbox.clear()

    def _take_batch(self) -> list[_QueuedGroup]:
        """Take up to batch_size_max queued commands, half of them when busy.

        A larger group is taken alone, whole. So is a sweep: it frees as many holds as a batch has commands. And so is a
        settle: nobody knows before how many commands it makes.
        """
        self._busy_batches = self._busy_batches + 1 if self._concurrency >= 2 * _PIPELINE_COMMANDS_MIN else 0
        size_max = self._batch_size_max
        if self._busy_batches >= _BUSY_BATCHES_MIN:
            size_max = min((self._concurrency + 1) // 2, size_max)
        self._concurrency -= self._concurrency // 16
        batch = [self._queue.popleft()]
        size = _command_count(batch[0].group)
        while self._queue and batch[0].group.commands and self._queue[0].group.commands:
            next_size = _command_count(self._queue[0].group)
            if size + next_size > size_max:
                break
            batch.append(self._queue.popleft())
            size += next_size
        self._queued_commands -= size
        return batch


def answer_batch(
    processor: BatchProcessor[D], groups: Sequence[Group], draft: D | None = None, *, interrupts: bool
) -> list[Answer]:
    """Return the processor's answers; in place of each an `InternalError` if it met a defect.

    interrupts: raise what ends the program, such as Ctrl-C.
    """
    try:
        return processor.answer(groups, draft)
    except BaseException as error:
        if interrupts and not isinstance(error, Exception):
            raise
        log.exception("ledger.batch_failed")
        told = "the batch met a defect; retry with the same key"
        return [InternalError(f"{told}: {error!r}", told=told)] * len(groups)


def require_process(pid: int) -> None:
    """Raise `Closed` in a process forked from this one."""
    if pid != os.getpid():
        raise Closed("this ledger was opened before the process forked; open it in each process")


def _groups(batch: Sequence[_QueuedGroup]) -> list[Group]:
    return [queued.group for queued in batch]


def _command_count(group: Group) -> int:
    return max(len(group.commands), 1)


def _total_commands(queued_groups: Sequence[_QueuedGroup]) -> int:
    return sum([_command_count(queued.group) for queued in queued_groups])


def _deliver(batch: Sequence[_QueuedGroup], answers: Sequence[Answer]) -> None:
    """Give each caller its answer: threads at once, each event loop in one wake-up."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[LoopFuture, Answer]]] = {}
    for queued, answer in zip(batch, answers, strict=True):
        if isinstance(queued.future, Future):
            _set_result(queued.future, answer)
        elif queued.loop is not None:
            by_loop.setdefault(queued.loop, []).append((queued.future, answer))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(set_results, settled)
        except RuntimeError:
            log.warning("ledger.loop_gone", answers=len(settled))


def set_results(settled: list[tuple[LoopFuture, Answer]]) -> None:
    """Give the futures of one event loop their answers. A cancelled one gets none."""
    for future, answer in settled:
        if not future.done():
            _set_result(future, answer)


def _set_result(future: "Future[list[Result]] | LoopFuture", answer: Answer) -> None:
    if isinstance(answer, LedgerError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
