"""Pools: the guaranteed scopes of a portfolio, what each uses, and what others still leave to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from ledger_sizer.model.units import exact_arithmetic

if TYPE_CHECKING:
    from ledger_sizer.model.domain import ScopeExposure


@dataclass(frozen=True, slots=True)
class DefaultCap:
    """The cap of every value of a tag name that has none of its own. scope: such as `venue=*`. cap: USD."""

    scope: str
    cap: Decimal


@dataclass(frozen=True, slots=True)
class Pool:
    """A guaranteed scope, USD.

    guaranteed: its guarantee. used: its exposure, which may be more. kept: what requests outside of it must leave for
    it, guaranteed - used, never below 0. lent_out: the part of `kept` that it could not have now, because others use
    it: facts, or grants of before the guarantee. No grant lends out what is guaranteed.
    """

    scope: str
    guaranteed: Decimal
    used: Decimal
    kept: Decimal
    lent_out: Decimal


def pools_of(headroom: Decimal | None, scopes: Iterable["ScopeExposure"]) -> tuple[Pool, ...]:
    """Return the pools among these scopes, in their order.

    headroom: of the portfolio, USD; None without a cap. scopes: all guaranteed ones of the portfolio; others are passed
    over. A pool could have the headroom less what is kept for the other pools, but at most what is kept for it.
    """
    guaranteed = [(scope, scope.guarantee) for scope in scopes if scope.guarantee is not None]
    with exact_arithmetic():
        total = sum((scope.kept for scope, _ in guaranteed), Decimal(0))
        return tuple(
            Pool(scope.scope, guarantee, scope.exposure, scope.kept, _lent_out(headroom, total, scope.kept))
            for scope, guarantee in guaranteed
        )


def left_to_all(headroom: Decimal | None, pools: Iterable[Pool]) -> Decimal | None:
    """Return what a request outside of every pool could have of the portfolio, USD; None without a cap."""
    if headroom is None:
        return None
    with exact_arithmetic():
        return max(headroom - sum((pool.kept for pool in pools), Decimal(0)), Decimal(0))


def _lent_out(headroom: Decimal | None, total: Decimal, kept: Decimal) -> Decimal:
    """Return what a pool lacks. total: kept for all pools, this one included."""
    if headroom is None:
        return Decimal(0)
    return kept - min(max(headroom - (total - kept), Decimal(0)), kept)
