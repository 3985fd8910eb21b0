"""What bounds a budget besides its sizing. A grant is decided by it, and `explain` says by it what could be granted."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from operator import itemgetter

from ledger_sizer.model.denials import FREE_BALANCE, GUARANTEE, MAX_POSITION
from ledger_sizer.model.plans import Plan
from ledger_sizer.model.tags import is_default_scope
from ledger_sizer.model.units import E8_MAX, exact_arithmetic, floor_e8, usd
from ledger_sizer.rules.accounts import Place
from ledger_sizer.rules.leg_sizing import Match, match_legs
from ledger_sizer.rules.scope_state import ScopeState

Limits = list[tuple[str, int]]
"""The name and the amount of each bound, 1e-8 USD. The least binds, and of equals the first."""


def headrooms(scopes: Iterable[ScopeState], others: Sequence[ScopeState] = ()) -> Limits:
    """Return what the cap of each scope leaves: its own, or else the default of its tag name, which is among `others`.

    Below zero where facts exceeded the cap.
    """
    if not others:
        return [
            (scope.name, cap_e8 - scope.held_e8 - scope.open_e8)
            for scope in scopes
            if (cap_e8 := scope.settings.cap_e8) is not None
        ]
    defaults = {one.name[:-1]: one.cap_e8 for one in others if is_default_scope(one.name)}
    found = []
    for scope in scopes:
        cap_e8 = scope.cap_e8
        if cap_e8 is None:
            cap_e8 = defaults.get(scope.name[: scope.name.find("=") + 1])
        if cap_e8 is not None:
            found.append((scope.name, cap_e8 - scope.exposure_e8))
    return found


def cap_bounds(scopes: Sequence[ScopeState], others: Sequence[ScopeState]) -> Limits:
    """Return what the caps and the guarantees of others leave to a request.

    scopes: those of the request, the portfolio first. others: see `PortfolioState.others`. What is kept for others is
    less of the portfolio's headroom; the bound is named after the scope for which most is kept.
    """
    found = headrooms(scopes, others)
    kept = [(one.name, kept_e8) for one in others if (kept_e8 := one.kept_e8)]
    if kept and found[0][1] > 0:
        most, _ = max(kept, key=itemgetter(1))
        found.append((f"{GUARANTEE}{most}", found[0][1] - sum(kept_e8 for _, kept_e8 in kept)))
    return found


def balance_bounds(available_balance: Decimal | None, places: Iterable[Place] = ()) -> Limits:
    """Return what balances leave to a budget: the caller's, USD, also beyond 64 bits; below zero for a debt.

    places: the exchange accounts of the request, each with what is free there and not promised.
    """
    found = [] if available_balance is None else [("available_balance", floor_e8(available_balance))]
    for place in places:
        if (left_e8 := place.left_e8) is not None and place.share:
            with exact_arithmetic():
                found.append((FREE_BALANCE, min(floor_e8(usd(left_e8) / place.share), E8_MAX)))
    return found


def position_bound(scopes: Iterable[ScopeState]) -> tuple[str, int] | None:
    """Return the least that one of the scopes allows a position to be; None where none says so."""
    found = [
        (f"{MAX_POSITION}{scope.name}", most_e8)
        for scope in scopes
        if (most_e8 := scope.settings.max_position_e8) is not None
    ]
    return min(found, key=itemgetter(1)) if found else None


def match_within(budget_e8: int, plans: Sequence[Plan], places: Sequence[Place]) -> Match:
    """Return what a budget buys, its orders within what is free in every account.

    A fee in base rounds an order up to its step, so that the orders of a spot buy and a contract together may need a
    little more than the budget allows them: then the budget is less by that.
    """
    while True:
        matched = match_legs(usd(budget_e8), plans)
        over_e8 = 0
        for place in places:
            if matched.reason is None and place.share and (left_e8 := place.left_e8) is not None:
                over_e8 = max(over_e8, place.need_e8(plans, matched.ordered) - left_e8)
        if over_e8 <= 0:
            return matched
        budget_e8 = max(budget_e8 - over_e8, 0)
