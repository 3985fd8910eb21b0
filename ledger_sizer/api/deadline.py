"""Timeout for the ledger's answers. All waiting requests share one timer, because one each would slow them down."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ledger_sizer.model.errors import Unavailable

T = TypeVar("T")


class Deadline:
    """Times out each wait after `seconds`. All waits are equally long, so they time out in the order they began."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for(self, answer: Coroutine[Any, Any, T]) -> T:
        """Await the answer. Raises `Unavailable` after the timeout: the command may still take effect."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "only a task can wait"
        self._deadlines[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._cancel_late)
        try:
            return await answer
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel() > 0:
                raise
            words = f"no answer within {self._seconds:g} s; retry with the same key, it settles what happened"
            raise Unavailable(words, told=words) from None
        finally:
            del self._deadlines[task]
            self._late.discard(task)

    def _cancel_late(self) -> None:
        """Cancel the tasks whose time is over, and set the timer for the next one."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, end in self._deadlines.items():
            if end > loop.time():
                self._timer = loop.call_at(end, self._cancel_late)
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
