"""A writer without threads: each blocking caller answers its own group, and each event loop those of one tick.

For a ledger in memory. Its commits wait for nothing, so a thread for them would only cost time.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ledger_sizer.ledger.writer import (
    INSIDE_A_CALL,
    Answer,
    BatchProcessor,
    LoopFuture,
    answer_batch,
    require_process,
    set_results,
)
from ledger_sizer.model.decisions import Result
from ledger_sizer.model.errors import Busy, Closed, LedgerError
from ledger_sizer.rules.batch import Group


class InlineWriter:
    """What `Writer` does, in the callers' own threads. Coroutines of one tick are one batch, as there."""

    alive = True
    """It has no threads that could end."""

    def __init__(self, processor: BatchProcessor[Any], *, on_stop: Callable[[], None]) -> None:
        self._processor = processor
        self._on_stop = on_stop
        self._lock = threading.RLock()  # a signal handler in the thread that holds it must not wait for itself
        self._answering = False
        self._closed = False
        self._pid = os.getpid()
        self._outboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[tuple[Group, LoopFuture]]] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def own_process(self) -> bool:
        """False in a process forked from the one that opened the ledger."""
        return self._pid == os.getpid()

    @property
    def pending(self) -> int:
        """Groups that are not answered yet."""
        loops = [loop for ref in self._outboxes.keyrefs() if (loop := ref()) is not None]  # others change it meanwhile
        return int(self._answering) + sum([len(self._outboxes.get(loop, ())) for loop in loops])

    def require_own_process(self) -> None:
        """Raise `Closed` in a forked child."""
        require_process(self._pid)

    def answer(self, group: Group) -> list[Result]:
        """Answer a group. Raises `Closed` after `close`."""
        (answer,) = self._answers([group])
        if isinstance(answer, LedgerError):
            raise answer
        return answer

    def submit_async(self, group: Group) -> LoopFuture:
        """Answer a group of a coroutine at the end of the loop's tick, with its neighbours."""
        loop = asyncio.get_running_loop()
        self.require_own_process()
        self._require_open()
        outbox = self._outboxes.setdefault(loop, [])
        if not outbox:
            loop.call_soon(self._answer_outbox, loop)
        future: LoopFuture = loop.create_future()
        outbox.append((group, future))
        return future

    def _answer_outbox(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._outboxes.pop(loop, None)
        if not waiting:
            return
        try:
            answers = self._answers([group for group, _ in waiting])
        except LedgerError as error:
            answers = [error] * len(waiting)
        set_results([(future, answer) for (_, future), answer in zip(waiting, answers, strict=True)])

    def _answers(self, groups: Sequence[Group]) -> list[Answer]:
        require_process(self._pid)  # before the lock, which another thread may have held at the fork
        with self._lock:
            if self._answering:
                raise Busy(INSIDE_A_CALL)
            self._require_open()
            self._answering = True
            try:
                return answer_batch(self._processor, groups, interrupts=True)
            finally:
                self._answering = False

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("the ledger is closed; open it again")

    def close(self, timeout_seconds: float) -> bool:
        """Answer what was accepted, and refuse new work. Return True if the present group ended within this time."""
        if not self.own_process:
            return True
        with suppress(RuntimeError):  # no loop runs here
            self._answer_outbox(asyncio.get_running_loop())
        self._closed = True
        if not self._lock.acquire(timeout=timeout_seconds):
            return False
        try:
            self._on_stop()
        finally:
            self._lock.release()
        return True
