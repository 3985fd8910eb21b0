"""Working in short stretches with rests between them, beside a ledger that must answer at once."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# A look that works for 5 ms at a time makes a pair of 5 ms that meets it as slow as one beside a look that never rests,
# however seldom it works: what the slowest hundredth of the pairs feels is how long a stretch is.
_WORK_SECONDS, _REST_SECONDS = 0.0005, 0.001


def throttled(items: Iterable[T]) -> Iterator[T]:
    """The items, with a rest whenever work on them has taken half a millisecond."""
    rested = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - rested > _WORK_SECONDS:
            time.sleep(_REST_SECONDS)
            rested = time.perf_counter()
