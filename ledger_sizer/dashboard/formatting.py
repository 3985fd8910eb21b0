"""Formats money, quantities, times and tags for the dashboard and for `ledger-sizer top`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_UP, Decimal
from typing import NamedTuple

from ledger_sizer.model import drift_words
from ledger_sizer.model.domain import Position, ScopeExposure
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.overview import share_of_cap
from ledger_sizer.model.pools import Pool
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.units import decimal_text, exact_arithmetic

NONE = "\N{EN DASH}"
UNTIL_KNOWN = "until known"
_CENT = Decimal("0.01")
_TAGS_WITHOUT_NAMES = ("venue", "symbol", "strategy")


def money(value: Decimal | None) -> str:
    """Format USD to the nearest cent: `1,234.50`."""
    return NONE if value is None else f"{_cents(value, ROUND_HALF_EVEN):,}"


def money_floor(value: Decimal | None) -> str:
    """Format USD to the cent, rounded down: headroom never looks larger than it is."""
    return NONE if value is None else f"{_cents(value, ROUND_DOWN):,}"


def _cents(value: Decimal, rounding: str) -> Decimal:
    with exact_arithmetic():
        return value.quantize(_CENT, rounding)


def exact(value: Decimal | None) -> str:
    """Format a price or a quantity with every digit: `50,100.5`."""
    if value is None:
        return NONE
    text = decimal_text(value)
    whole, _, fraction = text.removeprefix("-").partition(".")
    sign = "-" if text.startswith("-") else ""  # of -0.5 the whole part has none
    return f"{sign}{int(whole):,}" + (f".{fraction}" if fraction else "")


def percent(scope: ScopeExposure) -> str:
    """Format the part of its cap that a scope uses, rounded up: a full cap never looks like a free one."""
    used = percent_of_cap(scope)
    return NONE if used is None else f"{used}%"


def percent_of_cap(scope: ScopeExposure) -> Decimal | None:
    """Return the exposure in percent of the cap, rounded up to 0.1. None without a cap, or with one of zero."""
    if not scope.cap:
        return None
    with exact_arithmetic():
        return (scope.exposure / scope.cap * 100).quantize(Decimal("0.1"), ROUND_UP)


def bar(scope: ScopeExposure, width: int) -> tuple[int, int]:
    """Return the lengths of the open and the held part of a bar of `width` units.

    A part that is not empty has at least one unit. The bar is full exactly where there is no headroom.
    """
    with exact_arithmetic():
        used, opened = (int(share_of_cap(part, scope) * width) for part in (scope.exposure, scope.open))
    some_open, some_held = int(scope.open > 0), int(scope.held > 0)
    used = width if scope.headroom == 0 else min(max(used, some_open + some_held), width - 1)
    opened = min(max(opened, some_open), used - some_held)
    return opened, used - opened if scope.exposure else 0


class PoolBar(NamedTuple):
    """Lengths of the parts of a pool's bar, from left to right.

    used: of its guarantee. above: used above the guarantee. kept: the part of the guarantee that is kept free for it.
    lent_out: the part that should be, and that others use.
    """

    used: int
    above: int
    kept: int
    lent_out: int


def pool_bar(pool: Pool, scale: Decimal, width: int) -> PoolBar:
    """Return the bar of a pool, where `scale` USD are `width` units. A part that is not empty has at least one unit."""
    with exact_arithmetic():
        used = min(pool.used, pool.guaranteed)
        parts = (used, pool.used - used, pool.kept - pool.lent_out, pool.lent_out)
        lengths = [max(int(part / scale * width), 1) if part else 0 for part in parts]
    excess = max(sum(lengths) - width, 0)
    lengths[lengths.index(max(lengths))] -= excess
    return PoolBar(*lengths)


def pools_scale(pools: Sequence[Pool]) -> Decimal:
    """Return the USD of a full bar, the same for all pools: the most that one is guaranteed, or uses."""
    return max((max(pool.guaranteed, pool.used) for pool in pools), default=Decimal(0)) or Decimal(1)


def status_label(scope: ScopeExposure, now: datetime) -> str:
    """Return what a new reservation meets in this scope: `active`, or the status that denies it."""
    return "unreconciled" if scope.status == "active" and scope.unreconciled(now) else scope.status


def drift_actions(drift: Drift) -> tuple[str, ...]:
    """Return the actions to offer for a drift. Leaves out those without an effect, which would be refused."""
    return tuple(action for action in ("adopt", "ignore", "close") if drift_words.applies(action, drift))


def clock(moment: datetime) -> str:
    """Format the time of day in UTC: `21:04:09`."""
    return f"{moment.astimezone(UTC):%H:%M:%S}"


def moment(value: datetime) -> str:
    """Format date and time in UTC: `2026-01-31 21:04:09Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def seconds_left(position: Position, now: datetime) -> float | None:
    """Return the seconds until the hold expires, 0 when its time is over; None where it never ends by time."""
    return None if position.expires_at is None else max((position.expires_at - now).total_seconds(), 0.0)


def time_left(position: Position, now: datetime) -> str:
    """Format how long the hold lasts: its time left, or `until known` where it never ends by time."""
    left = seconds_left(position, now)
    return UNTIL_KNOWN if left is None else duration(left)


def leg_quantity(leg: Leg) -> str:
    """Format the coins of a leg: those that filled, and of how many where more may fill."""
    if not leg.unfilled:
        return exact(leg.filled)
    with exact_arithmetic():
        return f"{exact(leg.filled)} of {exact(leg.filled + leg.unfilled)}"


def leg_terms(leg: Leg) -> str:
    """Format the rest of a leg: its kind, entry price, venue and account."""
    price = "" if leg.price is None else f" at {exact(leg.price)}"
    return ", ".join(part for part in (f"{leg.kind}{price}", leg.venue, leg.account) if part)


def short(text: str | None, length: int = 40) -> str:
    """Shorten a text of the caller to `length` characters."""
    return NONE if text is None else text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def duration(seconds: float) -> str:
    """Format seconds in two units at most: `42 s`, `3 min 05 s`, `2 h 10 min`, `5 d 3 h`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def tags(position: Position) -> str:
    """Format the tags: the values of venue, symbol and strategy, then other tags with their names."""
    known = [", ".join(position.tags.values_of(name)) for name in _TAGS_WITHOUT_NAMES if name in position.tags]
    others = [f"{name}={value}" for name, value in position.tags.pairs if name not in _TAGS_WITHOUT_NAMES]
    return " · ".join([*known, *others]) or NONE
