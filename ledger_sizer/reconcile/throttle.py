"""Yields items, and sleeps 1 ms after each 0.5 ms of work, so that the writer thread gets the interpreter."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# The p99 latency of commands depends on the length of a stretch of work, however rare stretches are: with stretches of
# 5 ms, two commands that take 5 ms are as slow as beside an inspection that never sleeps.
_WORK_SECONDS, _REST_SECONDS = 0.0005, 0.001


def throttled(items: Iterable[T]) -> Iterator[T]:
    """Yield the items, and sleep whenever the caller's work on them has taken half a millisecond."""
    started = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - started > _WORK_SECONDS:
            time.sleep(_REST_SECONDS)
            started = time.perf_counter()
