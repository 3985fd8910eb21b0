"""Tells whether a finding is a difference that is known already: acknowledged, or counted before. Pure."""

from decimal import Decimal
from typing import Any

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Finding
from ledger_sizer.model.units import exact_arithmetic

_DAY_US = 86_400 * 1_000_000


def is_unchanged(drift: Drift, finding: Finding, settings: ReconcileSettings) -> bool:
    """Whether a finding is still the acknowledged difference, whatever was traded beside it since."""
    with exact_arithmetic():
        was, now = sizes(drift, finding)
        if abs(was - now) <= settings.tolerance * max(abs(was), abs(now)):
            return True
        price = finding.price or drift.price
        return not drift.market.is_swap and price is not None and abs(was - now) * price < settings.dust_usd


def sizes(drift: Drift, finding: Finding) -> tuple[Decimal, Decimal]:
    """Return an acknowledged difference and a finding as what is to be compared: excess, else what differs."""
    if drift.excess > 0 and finding.excess > 0 and same_sign(drift, finding):
        return drift.excess, finding.excess
    was = (drift.venue_quantity or Decimal(0)) - (drift.ledger_quantity or Decimal(0))
    now = (finding.venue_quantity or Decimal(0)) - (finding.ledger_quantity or Decimal(0))
    return was, now


def counts_the_same(last: Drift, finding: Finding) -> bool:
    """Whether these are the same coins. They count at the first price, as a position does, whatever a ticker says."""
    return not finding.market.is_swap and finding.excess == last.excess and same_sign(last, finding)


def adds_no_excess(drift: Drift, finding: Finding) -> bool:
    """Whether a finding shows no more excess than was acknowledged, so that nothing new must be counted."""
    if finding.kind not in QUANTITY_KINDS:
        return False
    return finding.excess <= 0 or (same_sign(drift, finding) and finding.excess <= drift.excess)


def same_sign(drift: Drift, finding: Finding) -> bool:
    """Whether both are about bought coins, or both about coins sold from a baseline."""
    return ((drift.venue_quantity or 0) < 0) == ((finding.venue_quantity or 0) < 0)


def accepted_growth(drift: Drift, finding: Finding, now_us: int, settings: ReconcileSettings) -> dict[str, Any]:
    """Return the figures of an acknowledged drift of coins as they are accepted now; empty where they stay.

    Interest grows without an end. So once a day the present size is accepted, if it changed by little in USD too.
    """
    both = drift.excess > 0 and finding.excess > 0 and same_sign(drift, finding)
    if drift.market.is_swap or now_us - drift.updated_us < _DAY_US or (drift.excess > 0) != both:
        return {}
    with exact_arithmetic():
        was, now = sizes(drift, finding)
        if abs(was - now) * (finding.price or drift.price or Decimal(0)) > settings.interest_usd:
            return {}
        sign = -1 if both and (drift.venue_quantity or 0) < 0 else 1
        venue_quantity = (drift.venue_quantity or Decimal(0)) + sign * (now - was)
    return {"venue_quantity": venue_quantity, "excess": now if both else drift.excess}
