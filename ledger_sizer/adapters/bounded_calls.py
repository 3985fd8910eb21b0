"""Runs calls on one thread, and lets each caller wait for a bounded time only."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class NoAnswer(Exception):
    """The call did not end in time. Where it had begun it ends later, unseen."""


class BoundedCalls:
    """Calls in the order in which they are asked for, one at a time.

    patience_seconds: how long a caller waits, queueing included; None: as long as it takes, and the call runs on the
    caller's thread. A call that has not begun when its caller gives up never runs. So one call that hangs keeps each
    caller for the patience, and leaves nothing behind but itself.
    """

    def __init__(self, patience_seconds: float | None, name: str) -> None:
        self.patience_seconds = patience_seconds
        self.overdue = False
        """Whether the caller of the call that runs now has given up. The call itself may ask, too."""
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        if patience_seconds is not None:
            self._thread.start()

    def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises. Raises `NoAnswer`."""
        if self.patience_seconds is None:
            with self._lock:
                return work()
        if not self._thread.is_alive():  # closed, or in a forked process
            raise NoAnswer
        future: Future[T] = Future()
        self._queue.put((future, work))
        try:
            wait([future], timeout=self.patience_seconds)
        finally:  # also on Ctrl-C
            if not future.cancel():
                with self._lock:
                    self.overdue = self.overdue or self._running is future
        if future.cancelled() or not future.done():
            raise NoAnswer
        return future.result()

    def close(self) -> None:
        """End the thread after the calls that are queued; wait for it no longer than a caller does."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(self.patience_seconds)

    def _run(self) -> None:
        while (queued := self._queue.get()) is not None:
            future, work = queued
            with self._lock:  # a caller that gives up now finds it running, or it never runs
                if not future.set_running_or_notify_cancel():
                    continue
                self._running = future
            error: BaseException | None = None
            result: Any = None
            try:
                result = work()
            except BaseException as failure:  # noqa: BLE001 - it is the caller's
                error = failure
            with self._lock:
                self._running, self.overdue = None, False
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
