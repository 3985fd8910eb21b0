"""`throttled` leaves nothing out, and the caller sleeps longer than it works."""

import time

from ledger_sizer.reconcile.throttle import throttled


def test_throttled_when_iterated_then_every_item_comes_once_and_in_order() -> None:
    assert list(throttled(iter(range(10_000)))) == list(range(10_000))
    assert list(throttled([])) == []


def test_throttled_when_the_work_takes_long_then_half_of_the_time_and_more_is_rest() -> None:
    begun, worked = time.perf_counter(), 0.0
    for _ in throttled(range(20)):
        started = time.perf_counter()
        while time.perf_counter() - started < 0.001:
            pass
        worked += time.perf_counter() - started
    # A sleep may last longer than asked, never shorter. So may a stretch of work, on a busy machine.
    assert time.perf_counter() - begun - worked >= 20 * 0.001
