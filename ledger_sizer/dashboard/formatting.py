"""Money, quantities, times and tags as a desk reads them: few digits, always the same number of them."""

from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_UP, Decimal

from ledger_sizer.model.domain import Position, ScopeExposure
from ledger_sizer.model.overview import DriftLine, share_of_cap
from ledger_sizer.model.units import decimal_text, exact_arithmetic

NONE = "\N{EN DASH}"
_CENT = Decimal("0.01")
_ADOPTABLE = ("missing_position", "quantity_differs", "side_flipped")
_FAMILIAR = ("venue", "symbol", "strategy")


def money(value: Decimal | None) -> str:
    """USD to the cent: `1,234.50`."""
    return NONE if value is None else f"{_cents(value, ROUND_HALF_EVEN):,}"


def money_floor(value: Decimal | None) -> str:
    """USD to the cent, rounded down: headroom never looks larger than it is."""
    return NONE if value is None else f"{_cents(value, ROUND_DOWN):,}"


def _cents(value: Decimal, rounding: str) -> Decimal:
    with exact_arithmetic():
        return value.quantize(_CENT, rounding)


def exact(value: Decimal | None) -> str:
    """A price or a quantity with every digit it has: `50,100.5`."""
    if value is None:
        return NONE
    whole, _, fraction = decimal_text(value).partition(".")
    return f"{int(whole):,}" + (f".{fraction}" if fraction else "")


def percent(scope: ScopeExposure) -> str:
    """Which part of its cap a scope uses, rounded up: a full cap never looks like a free one."""
    used = percent_of_cap(scope)
    return NONE if used is None else f"{used}%"


def percent_of_cap(scope: ScopeExposure) -> Decimal | None:
    """Return the exposure in percent of the cap, rounded up to 0.1. None without a cap, or with one of zero."""
    if not scope.cap:
        return None
    with exact_arithmetic():
        return (scope.exposure / scope.cap * 100).quantize(Decimal("0.1"), ROUND_UP)


def bar(scope: ScopeExposure, width: int) -> tuple[int, int]:
    """Lengths of the open and the held part on a bar of `width` units.

    What exists is at least one unit long, and the bar is full exactly where there is no headroom.
    """
    used = int(share_of_cap(scope.exposure, scope) * width)
    used = width if scope.headroom == 0 else min(max(used, bool(scope.open) + bool(scope.held)), width - 1)
    opened = max(int(share_of_cap(scope.open, scope) * width), bool(scope.open))
    opened = min(opened, used - bool(scope.held))
    return opened, used - opened if scope.exposure else 0


def status_label(scope: ScopeExposure, now: datetime) -> str:
    """What a new reservation meets in this scope: `active`, or the first thing that denies it."""
    stale = scope.fresh_until is not None and scope.fresh_until <= now
    return "unreconciled" if scope.status == "active" and (scope.frozen or stale) else scope.status


def drift_actions(drift: DriftLine) -> tuple[str, ...]:
    """What may be decided about a drift: what has no effect, and would be refused, is not offered."""
    fewer = (drift.ledger_quantity or Decimal(0)) > (drift.venue_quantity or Decimal(0))
    adoptable = drift.excess > 0 or (drift.kind in _ADOPTABLE and fewer)
    counts = drift.state != "acknowledged"
    offered = (("adopt", adoptable), ("ignore", counts), ("close", counts and drift.excess > 0))
    return tuple(action for action, wanted in offered if wanted)


def clock(moment: datetime) -> str:
    """Time of day in UTC: `21:04:09`."""
    return f"{moment.astimezone(UTC):%H:%M:%S}"


def moment(value: datetime) -> str:
    """Date and time in UTC: `2026-01-31 21:04:09Z`."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def seconds_left(position: Position, now: datetime) -> float:
    """Seconds until the hold ends by itself, 0 when its time is over."""
    return 0.0 if position.expires_at is None else max((position.expires_at - now).total_seconds(), 0.0)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`, `5 d 3 h`: two units at most."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def tags(position: Position) -> str:
    """The tags' values, venue, symbol and strategy first; other dimensions with their names."""
    known = [position.tags[name] for name in _FAMILIAR if name in position.tags]
    others = [f"{name}={value}" for name, value in position.tags.items() if name not in _FAMILIAR]
    return " · ".join([*known, *others]) or NONE
