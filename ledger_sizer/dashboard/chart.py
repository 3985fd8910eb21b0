"""The line of exposure as SVG paths on a canvas of `WIDTH` x `HEIGHT` units, stretched by the page."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from ledger_sizer.dashboard.figures import money
from ledger_sizer.overview import Detail
from ledger_sizer.units import exactly

WIDTH = 1000
HEIGHT = 200
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Chart:
    """line, area, cap: SVG path data; empty where there is nothing to draw. ticks: labels from top to bottom.

    times: labels from left to right. words: what the chart shows, for those who do not see it.
    """

    line: str
    area: str
    cap: str
    ticks: tuple[str, ...]
    times: tuple[str, ...]
    words: str
    every: int


def chart(detail: Detail, until: datetime) -> Chart:
    """The chart of one portfolio up to `until`, when exposure and cap are those of now."""
    since = detail.line.since
    points = [(max(point.at, since), point.exposure, point.cap) for point in detail.line.points]
    # The last decision of all stands in the line, so the present is its exposure; the cap may be newer than it.
    points.append((max(until, since), detail.whole.exposure, detail.whole.cap))
    seen = [point.exposure for point in detail.line.points if point.at >= since] or [detail.whole.exposure]
    highest = max(max(exposure, cap or Decimal(0)) for _, exposure, cap in points) or Decimal(1)
    top = _round_up(highest)
    scaled = [
        (_x(at, since, until), _y(exposure, top), None if cap is None else _y(cap, top)) for at, exposure, cap in points
    ]
    line = _steps([(x, y) for x, y, _ in scaled], later=False)
    area = f"{line}V{HEIGHT}H{scaled[0][0]}Z"
    cap = _steps([(x, y) for x, _, y in scaled if y is not None], later=True)
    words = (
        f"Exposure of {detail.name} since {since:%Y-%m-%d %H:%M} UTC: lowest {money(min(seen))}, "
        f"highest {money(max(seen))}, now {money(detail.whole.exposure)} of {money(detail.whole.cap)} USD."
    )
    ticks = tuple(f"{top * number / _TICKS:,.0f}" for number in range(_TICKS, -1, -1))
    return Chart(line, area, cap, ticks, _times(since, until), words, detail.line.every)


def _steps(points: list[tuple[int, int]], *, later: bool) -> str:
    """A line that keeps each value until the next one. later: the value of a point held since the point before."""
    if not points:
        return ""
    path = [f"M{points[0][0]} {points[0][1]}"]
    for (_, _), (x, y) in pairwise(points):
        path.append(f"V{y}H{x}" if later else f"H{x}V{y}")
    return "".join(path)


def _x(at: datetime, since: datetime, until: datetime) -> int:
    span = (until - since).total_seconds()
    return round((at - since).total_seconds() / span * WIDTH) if span > 0 else 0


def _y(value: Decimal, top: Decimal) -> int:
    with exactly():
        return HEIGHT - round(value / top * HEIGHT)


def _round_up(value: Decimal) -> Decimal:
    """The next round figure that leaves a little air above: 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8 or 10 times a power."""
    with exactly():
        power = Decimal(10) ** value.adjusted()
        wanted = value * Decimal("1.04") / power
        steps = ("1", "1.2", "1.6", "2", "2.4", "3.2", "4", "6", "8", "10", "12")
        return next(Decimal(step) for step in steps if Decimal(step) >= wanted) * power


def _times(since: datetime, until: datetime) -> tuple[str, ...]:
    form = "%H:%M" if (until - since).total_seconds() <= 48 * 3600 else "%m-%d %H:%M"
    step = (until - since) / _TICKS
    return tuple(f"{since + step * number:{form}}" for number in range(_TICKS + 1))
