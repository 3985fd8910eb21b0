"""Drives closed-loop callers, and computes throughput and latency percentiles.

Every caller is one thread or coroutine that sends a request, waits for the answer, and sends the next. The latency of
each call is kept, and percentiles are nearest rank over all of them.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter_ns, process_time_ns
from typing import Any, NamedTuple, Protocol

NS_PER_SECOND = 1_000_000_000
NS_PER_MS = 1_000_000
CONNECT_TIMEOUT_SECONDS = 60.0


class BenchmarkError(Exception):
    """The run cannot start, or a cell failed its check."""


class Pair(NamedTuple):
    """One reserve and its release, as times of one monotonic clock."""

    begun_ns: int
    reserved_ns: int
    released_ns: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Duration of a cell's warm-up and measurement, in seconds."""

    warmup_seconds: float
    measured_seconds: float


class Caller(Protocol):
    """One synchronous caller with its own connection."""

    def reserve(self, key: str, /) -> Any: ...

    def release(self, key: str, handle: Any, /) -> None: ...


class AsyncCaller(Protocol):
    """One asynchronous caller; many of them share an event loop."""

    async def reserve(self, key: str, /) -> Any: ...

    async def release(self, key: str, handle: Any, /) -> None: ...


@dataclass(slots=True)
class Window:
    """The measured time of a cell. It starts when the last caller is connected and the warm-up is over."""

    pace: Pace
    start_ns: int = 0
    end_ns: int = 0
    cpu_begun_ns: int = 0

    def open(self) -> None:
        self.cpu_begun_ns = process_time_ns()
        self.start_ns = perf_counter_ns() + round(self.pace.warmup_seconds * NS_PER_SECOND)
        self.end_ns = self.start_ns + round(self.pace.measured_seconds * NS_PER_SECOND)


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one cell. Latencies cover every pair that ran at any time of the window.

    cpu_us_per_command: CPU time of this process, warm-up included; None where another process does the work. It says
    more than throughput on a machine that others use too.
    """

    pairs: int
    pairs_per_second: float
    pair_p50_ms: float
    pair_p99_ms: float
    pair_max_ms: float
    call_p50_ms: float
    call_p99_ms: float
    cpu_us_per_command: float | None


@dataclass(slots=True)
class Samples:
    """The pairs of one cell, of all callers together. commands: all that were answered, in the warm-up too."""

    window: Window
    pairs: list[Pair] = field(default_factory=list)
    commands: int = 0
    cpu_ns: int = 0

    def add(self, loops: Iterable[tuple[list[Pair], int]]) -> Samples:
        """Add the results of all callers' loops, once they have ended."""
        self.cpu_ns = process_time_ns() - self.window.cpu_begun_ns
        for pairs, turns in loops:
            self.pairs.extend(pairs)
            self.commands += 2 * turns
        return self

    def figures(self) -> Figures:
        """Compute the figures. Throughput counts pairs that ended in the window; later ones still count as latency."""
        ended = sum(1 for pair in self.pairs if pair.released_ns <= self.window.end_ns)
        if ended == 0:
            raise BenchmarkError("no pair ended inside the measured window; measure longer with --seconds")
        whole = sorted(pair.released_ns - pair.begun_ns for pair in self.pairs)
        calls = sorted(
            [pair.reserved_ns - pair.begun_ns for pair in self.pairs]
            + [pair.released_ns - pair.reserved_ns for pair in self.pairs]
        )
        return Figures(
            pairs=ended,
            pairs_per_second=ended / self.window.pace.measured_seconds,
            pair_p50_ms=percentile_ms(whole, 0.50),
            pair_p99_ms=percentile_ms(whole, 0.99),
            pair_max_ms=whole[-1] / NS_PER_MS,
            call_p50_ms=percentile_ms(calls, 0.50),
            call_p99_ms=percentile_ms(calls, 0.99),
            cpu_us_per_command=self.cpu_ns / 1000 / self.commands if self.commands else None,
        )


def percentile_ms(ordered_ns: Sequence[int], share: float) -> float:
    """Nearest-rank percentile of an ascending sequence of nanoseconds, in milliseconds."""
    rank = max(1, math.ceil(share * len(ordered_ns)))
    return ordered_ns[rank - 1] / NS_PER_MS


def run_threads(open_caller: Callable[[], AbstractContextManager[Caller]], callers: int, pace: Pace) -> Samples:
    """Drive `callers` threads, each inside its own `open_caller()`, until the window closes."""
    samples = Samples(Window(pace))
    ready = threading.Barrier(callers, action=samples.window.open)

    def work(number: int) -> tuple[list[Pair], int]:
        try:
            with open_caller() as caller:
                ready.wait(CONNECT_TIMEOUT_SECONDS)
                return _loop(caller, number, samples.window)
        except BaseException:
            ready.abort()
            raise

    with ThreadPoolExecutor(max_workers=callers) as pool:
        futures = [pool.submit(work, number) for number in range(callers)]
    failures = [error for future in futures if (error := future.exception()) is not None]
    if failures:
        # The other threads only report the broken barrier: raise the error that broke it.
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return samples.add(future.result() for future in futures)


def _loop(caller: Caller, number: int, window: Window) -> tuple[list[Pair], int]:
    pairs: list[Pair] = []
    for turn in count():
        begun_ns = perf_counter_ns()
        if begun_ns >= window.end_ns:
            return pairs, turn
        handle = caller.reserve(f"{number}/{turn}")
        reserved_ns = perf_counter_ns()
        caller.release(f"{number}/{turn}/exit", handle)
        released_ns = perf_counter_ns()
        if released_ns >= window.start_ns:
            pairs.append(Pair(begun_ns, reserved_ns, released_ns))
    raise AssertionError("counting never ends")


async def run_tasks(make_caller: Callable[[], AsyncCaller], callers: int, pace: Pace) -> Samples:
    """Drive `callers` coroutines of the running event loop until the window closes."""
    samples = Samples(Window(pace))
    samples.window.open()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_loop_async(make_caller(), n, samples.window)) for n in range(callers)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return samples.add(task.result() for task in tasks)


async def _loop_async(caller: AsyncCaller, number: int, window: Window) -> tuple[list[Pair], int]:
    pairs: list[Pair] = []
    for turn in count():
        begun_ns = perf_counter_ns()
        if begun_ns >= window.end_ns:
            return pairs, turn
        handle = await caller.reserve(f"{number}/{turn}")
        reserved_ns = perf_counter_ns()
        await caller.release(f"{number}/{turn}/exit", handle)
        released_ns = perf_counter_ns()
        if released_ns >= window.start_ns:
            pairs.append(Pair(begun_ns, reserved_ns, released_ns))
    raise AssertionError("counting never ends")
