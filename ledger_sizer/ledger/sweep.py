"""Sweeps overdue holds slice by slice, each in a commit of its own, with portfolios in turns."""

import time
from collections.abc import Callable, Iterator, Sequence

from ledger_sizer.storage.write_store import expiries_per_portfolio

_REST_SECONDS_MAX = 0.1
"""Longest rest between two slices."""


def sweep_in_slices(names: Sequence[str], sweep_slice: Callable[[str], int]) -> Iterator[int]:
    """Free the overdue holds of these portfolios, and yield after each commit how many it freed.

    Each round frees a slice of every portfolio that has more to free, so that none waits for another's. Between two
    slices it rests for as long as the last one took: SQLite has no queue for its lock, and another process would hardly
    ever get it.

    sweep_slice: frees one slice of a portfolio in one commit, and returns how many holds that were.
    """
    rest_seconds = 0.0
    while names:
        with_more = []
        for name in names:
            time.sleep(rest_seconds)
            started = time.perf_counter()
            freed = sweep_slice(name)
            rest_seconds = min(time.perf_counter() - started, _REST_SECONDS_MAX)
            if freed >= expiries_per_portfolio(1):  # the writer takes a sweep alone, so this was a whole slice
                with_more.append(name)
            yield freed
        names = with_more
