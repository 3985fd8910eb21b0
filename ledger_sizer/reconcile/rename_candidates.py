"""Finds drifts that look like a renamed coin: one is gone at an account, and another is there in its place. Pure."""

from collections.abc import Iterable
from decimal import Decimal

from ledger_sizer.model.reconciliation import Drift, Market
from ledger_sizer.model.renames import RenameCandidate
from ledger_sizer.model.units import exact_arithmetic

_ROUND = Decimal("1e-12")
_RATIO_TOLERANCE = Decimal("0.001")
"""Largest relative difference of the ratios in two markets that are one rename."""

_Shape = tuple[str, str, str, str]
"""Account, what stands after the coin in the market's name, and side."""


def rename_candidates(live: Iterable[Drift]) -> list[RenameCandidate]:
    """Return the coins that were missing wherever another one was found, in one ratio, ordered by name.

    live: drifts of one portfolio; those that are not live are left out. One coin may have several candidates.
    """
    missing: dict[str, dict[_Shape, Drift]] = {}
    found: dict[str, dict[_Shape, Drift]] = {}
    for drift in live:
        if drift.live and drift.kind == "missing_position":
            missing.setdefault(drift.market.base, {})[_shape_of(drift.market)] = drift
        elif drift.live and drift.kind == "unknown_position":
            found.setdefault(drift.market.base, {})[_shape_of(drift.market)] = drift
    candidates = []
    for coin, gone in sorted(missing.items()):
        for asset, there in sorted(found.items()):
            ratio = _ratio_of(gone, there) if gone.keys() == there.keys() else None
            if ratio is not None:
                numbers = tuple(sorted(drift.id for drift in (*gone.values(), *there.values())))
                candidates.append(RenameCandidate(coin, asset, ratio, numbers))
    return candidates


def _shape_of(market: Market) -> _Shape:
    _, slash, rest = market.subject.partition("/")
    return market.venue, market.account, f"{slash}{rest}", market.side


def _ratio_of(gone: dict[_Shape, Drift], there: dict[_Shape, Drift]) -> Decimal | None:
    """Return how many coins are there for one that is gone; None where that differs, or where a sign does."""
    ratios = []
    with exact_arithmetic():
        for shape, drift in gone.items():
            held, shown = drift.ledger_quantity or Decimal(0), there[shape].venue_quantity or Decimal(0)
            if held * shown <= 0:
                return None
            ratios.append(shown / held)
        if max(ratios) - min(ratios) > _RATIO_TOLERANCE * max(ratios):
            return None
        whole = ratios[0].quantize(Decimal(1))
        near = whole and abs(ratios[0] - whole) <= _RATIO_TOLERANCE * whole
        return whole if near else ratios[0].quantize(_ROUND).normalize() or None
