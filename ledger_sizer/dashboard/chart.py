"""Draws exposure over time as SVG paths on a canvas of `WIDTH` x `HEIGHT` units, which the page stretches."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from ledger_sizer.dashboard.formatting import money
from ledger_sizer.model.overview import Detail, ExposurePoint
from ledger_sizer.model.units import exact_arithmetic

WIDTH = 1000
HEIGHT = 200
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Chart:
    """line, area, cap: SVG path data; empty where there is nothing to draw. ticks: labels from top to bottom.

    times: labels from left to right. description: for screen readers. exact_from: peaks between the points before it
    are not known yet; None when all are.
    """

    line: str
    area: str
    cap: str
    ticks: tuple[str, ...]
    times: tuple[str, ...]
    description: str
    exact_from: datetime | None


def chart(detail: Detail, until: datetime) -> Chart:
    """Return the chart of one portfolio up to `until`, where exposure and cap are the present ones."""
    since = detail.line.since
    now = detail.whole
    # The last decision is a point of the line, so exposure is the same now. The cap is not, if that decision set it.
    present = ExposurePoint(max(until, since), detail.seq, now.exposure, now.cap, now.exposure, now.exposure)
    points = _in_order([*detail.line.points, present], since)
    visible = [point for point in detail.line.points if point.at >= since] or [present]
    lowest, highest = min(point.low for point in visible), max(point.high for point in visible)
    top = _axis_top(max(max(point.high, point.cap or Decimal(0)) for point in points) or Decimal(1))
    line = _exposure_path(points, since, until, top)
    area = f"{line}V{HEIGHT}H{_x(points[0].at, since, until)}Z"
    description = (
        f"Exposure of {detail.name} since {since:%Y-%m-%d %H:%M} UTC: lowest {money(lowest)}, "
        f"highest {money(highest)}, now {money(now.exposure)} of {money(now.cap)} USD."
    )
    ticks = _money_labels(top)
    cap = _cap_path(points, since, until, top)
    return Chart(line, area, cap, ticks, _time_labels(since, until), description, detail.line.exact_from)


def _in_order(points: Sequence[ExposurePoint], since: datetime) -> list[ExposurePoint]:
    """Return the points, each at `since` or later, and none later than the one that follows it.

    A decision that a wrong clock dated into the future stands where the next one stands.
    """
    ordered = list(points)
    for number in range(len(ordered) - 1, -1, -1):
        at = ordered[number].at if number + 1 == len(ordered) else min(ordered[number].at, ordered[number + 1].at)
        ordered[number] = ordered[number]._replace(at=max(at, since))
    return ordered


def _exposure_path(points: list[ExposurePoint], since: datetime, until: datetime, top: Decimal) -> str:
    """Return a step line, with a stroke to the lowest and the highest value between two points."""
    path = [f"M{_x(points[0].at, since, until)} {_y(points[0].exposure, top)}"]
    for before, point in pairwise(points):
        path.append(f"H{_x(point.at, since, until)}")
        ends = (before.exposure, point.exposure)
        path += [f"V{_y(point.low, top)}"] if point.low < min(ends) else []
        path += [f"V{_y(point.high, top)}"] if point.high > max(ends) else []
        path.append(f"V{_y(point.exposure, top)}")
    return "".join(path)


def _cap_path(points: list[ExposurePoint], since: datetime, until: datetime, top: Decimal) -> str:
    """Return a step line on which a point's cap holds from the point before."""
    capped = [(_x(point.at, since, until), _y(point.cap, top)) for point in points if point.cap is not None]
    return "".join(f"V{y}H{x}" if number else f"M{x} {y}" for number, (x, y) in enumerate(capped))


def _x(at: datetime, since: datetime, until: datetime) -> int:
    span = (until - since).total_seconds()
    return round((at - since).total_seconds() / span * WIDTH) if span > 0 else 0


def _y(value: Decimal, top: Decimal) -> int:
    with exact_arithmetic():
        return HEIGHT - round(value / top * HEIGHT)


def _axis_top(value: Decimal) -> Decimal:
    """Return the top of the axis, at least 4 % above `value`: 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8 or 10 x 10^n."""
    with exact_arithmetic():
        power = Decimal(10) ** value.adjusted()
        wanted = value * Decimal("1.04") / power
        steps = ("1", "1.2", "1.6", "2", "2.4", "3.2", "4", "6", "8", "10", "12")
        return next(Decimal(step) for step in steps if Decimal(step) >= wanted) * power


def _money_labels(top: Decimal) -> tuple[str, ...]:
    with exact_arithmetic():
        return tuple(f"{top * number / _TICKS:,.0f}" for number in range(_TICKS, -1, -1))


def _time_labels(since: datetime, until: datetime) -> tuple[str, ...]:
    form = "%H:%M" if (until - since).total_seconds() <= 48 * 3600 else "%m-%d %H:%M"
    step = (until - since) / _TICKS
    return tuple(f"{since + step * number:{form}}" for number in range(_TICKS + 1))
