"""How long an answer of the ledger is waited for: one timer for all who wait, where one each would cost them dearly."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ledger_sizer.model.errors import Unavailable

T = TypeVar("T")


class Deadline:
    """Lets nobody wait longer than `seconds`. All wait equally long, so whoever came first is late first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def of(self, answer: Coroutine[Any, Any, T]) -> T:
        """The answer, or `Unavailable`: it may still come, and the key settles what happened."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "only a task can wait"
        self._waiting[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        try:
            return await answer
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel() > 0:
                raise
            raise Unavailable(
                f"no answer within {self._seconds:g} s; retry with the same key, it settles what happened"
            ) from None
        finally:
            del self._waiting[task]
            self._late.discard(task)

    def _look(self) -> None:
        """Wake those whose time is over, and come back for the next."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, end in self._waiting.items():
            if end > loop.time():
                self._timer = loop.call_at(end, self._look)
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
