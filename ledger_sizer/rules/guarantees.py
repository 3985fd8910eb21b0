"""Guarantees of a portfolio: which may be set, and whether a move of a position would take from one."""

from collections.abc import Sequence

from ledger_sizer.model.denials import GUARANTEE
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.model.units import usd_text
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.state import PortfolioState

GUARANTEES_MAX = 100
"""Most guarantees of a portfolio. Each request reads all of them, and its trace shows those that keep something."""


def require_guarantees_fit(state: PortfolioState, after: ScopeState) -> None:
    """Check a scope's new settings against the guarantees of the others. Raises `InvalidRequest`.

    Guarantees stand on one tag name, so that no dollar is guaranteed twice, and their sum is at most the portfolio's
    cap. A change that brings the two closer is allowed. There are at most `GUARANTEES_MAX`.
    """
    guarantees = {name: state.scopes[name].settings.guarantee_e8 or 0 for name in state.shared}
    cap_e8, total_e8 = state.scope(PORTFOLIO_SCOPE).cap_e8 or 0, sum(guarantees.values())
    before_e8 = total_e8 - cap_e8
    if after.name == PORTFOLIO_SCOPE:
        if after.settings.share_e8 is not None:
            return  # an equity may fall below the guarantees, which stay
        cap_e8 = after.cap_e8 or 0
    else:
        guarantees[after.name] = after.settings.guarantee_e8 or 0
        total_e8 = sum(guarantees.values())
    others = [name for name, guarantee_e8 in guarantees.items() if guarantee_e8 and name != after.name]
    dimension = f"{after.name.partition('=')[0]}="
    if guarantees.get(after.name) and others and not others[0].startswith(dimension):
        raise InvalidRequest(
            f"a guarantee of {after.name} does not go with that of {others[0]}: guarantees of a portfolio stand on one "
            f"tag name, or a dollar could be guaranteed twice; remove those of {others[0].partition('=')[0]} first",
            field="guarantee",
        )
    if guarantees.get(after.name) and len(others) >= GUARANTEES_MAX:
        raise InvalidRequest(
            f"portfolio {state.name!r} has {len(others)} guarantees, the most that it may have; remove one before "
            f"{after.name} gets its own",
            field="guarantee",
        )
    if total_e8 > cap_e8 and total_e8 - cap_e8 > before_e8:
        total, cap = usd_text(total_e8), usd_text(cap_e8)
        of = f"portfolio {state.name!r}"
        if after.name == PORTFOLIO_SCOPE:
            raise InvalidRequest(
                f"cap {cap} of {of} is below the sum of its guarantees, {total} USD ({_named(guarantees)}); lower the "
                "guarantees first, or give a higher cap",
                field="cap",
            )
        raise InvalidRequest(
            f"guarantee {usd_text(guarantees[after.name])} of {after.name} brings the sum of the guarantees of {of} to "
            f"{total} USD, above its cap {cap}; raise the cap, or lower a guarantee ({_named(guarantees)})",
            field="guarantee",
        )


def guarantee_taken(
    state: PortfolioState, left: Sequence[ScopeState], entered: Sequence[str], counts_e8: int
) -> str | None:
    """Return the bound that forbids a position to leave scopes for others; None where nothing does.

    A guaranteed scope that it leaves gets back what it does not use, which must be free. left: the scopes that it
    leaves. entered: the names of all its scopes afterwards. counts_e8: what it counts, 1e-8 USD.
    """
    rises = {
        scope.name: kept_e8
        for scope in left
        if (kept_e8 := max((scope.settings.guarantee_e8 or 0) - scope.exposure_e8 + counts_e8, 0)) > scope.kept_e8
    }
    if not rises:
        return None
    kept_e8 = sum(rises.get(one.name, one.kept_e8) for one in map(state.scope, state.shared) if one.name not in entered)
    headroom_e8 = state.scope(PORTFOLIO_SCOPE).headroom_e8
    if headroom_e8 is not None and kept_e8 > max(headroom_e8, 0):
        return f"{GUARANTEE}{max(rises, key=lambda name: rises[name])}"
    return None


def _named(guarantees: dict[str, int]) -> str:
    return ", ".join(f"{name} {usd_text(amount)}" for name, amount in guarantees.items() if amount)
