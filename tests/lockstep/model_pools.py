"""Pools of the reference model: caps and their defaults, what is kept for guaranteed scopes, the largest position.

From the documented rules alone. A scope without a cap of its own has the default of its dimension (`venue=*`). A
request leaves to each guaranteed scope that it is not in what that scope lacks of its guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from ledger_sizer import SetCap
from ledger_sizer.model.arguments import NOT_GIVEN
from tests.lockstep.model_answers import Answer, RefusedError
from tests.lockstep.model_positions import WHOLE, Holding, down

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel

Room = tuple[Fraction, str]
"""USD that are left (below zero: overage), and the name of what leaves no more."""


def name_of(scope: str) -> str:
    """Return the tag name of a scope."""
    return scope.partition("=")[0]


def cap_of(portfolio: PortfolioModel, scope: str) -> Fraction | None:
    """Return a scope's own cap, else the default of its dimension."""
    return portfolio.caps.get(scope, portfolio.caps.get(f"{name_of(scope)}=*"))


def kept_from(portfolio: PortfolioModel, scopes: Sequence[str]) -> dict[str, Fraction]:
    """Return what a request in these scopes must leave, by guaranteed scope that it is not in."""
    lacks = {scope: sure - portfolio.exposure(scope) for scope, sure in portfolio.guarantees.items()}
    return {scope: usd for scope, usd in sorted(lacks.items()) if usd > 0 and scope not in scopes}


def rooms(portfolio: PortfolioModel, scopes: Sequence[str]) -> list[Room]:
    """Return what each capped scope of a request leaves, in order, and at last what the guarantees of others leave."""
    found = [
        (cap - portfolio.exposure(scope), scope) for scope in scopes if (cap := cap_of(portfolio, scope)) is not None
    ]
    kept = kept_from(portfolio, scopes)
    room, _ = found[0]  # the portfolio's
    if kept and room > 0:
        found.append((room - sum(kept.values()), f"guarantee:{max(kept, key=lambda one: kept[one])}"))
    return found


def largest_position(portfolio: PortfolioModel, scopes: Sequence[str]) -> Room | None:
    """Return the most that one position in these scopes may be: the smallest of theirs."""
    own = [(portfolio.maxima[scope], f"max_position_usd:{scope}") for scope in scopes if scope in portfolio.maxima]
    return min(own, key=lambda one: one[0]) if own else None


def reasons_to_stay(portfolio: PortfolioModel, before: Holding, after: Holding) -> list[tuple[str, str]]:
    """Return why the money leaves a position no room in the scopes that it would enter."""
    counts, found = before.held + before.open, []
    entered = [scope for scope in after.scopes if scope not in before.scopes]
    for scope in entered:
        cap = cap_of(portfolio, scope)
        if cap is not None and portfolio.exposure(scope) + counts > cap:
            found.append(("cap_exceeded", scope))
    largest = largest_position(portfolio, entered)
    if largest is not None and counts > largest[0]:
        found.append(("cap_exceeded", largest[1]))
    moved = portfolio.copy()
    moved.positions[after.number] = after
    kept = kept_from(moved, after.scopes)
    lost = {scope: usd for scope, usd in kept.items() if scope in before.scopes and counts}
    if lost and moved.exposure() + sum(kept.values()) > moved.caps[WHOLE]:
        found.append(("cap_exceeded", f"guarantee:{max(lost, key=lambda one: lost[one])}"))
    return found


def set_cap(portfolio: PortfolioModel, command: SetCap) -> tuple[Answer, None]:
    """Set what is given, remove what is given as None, leave the rest."""
    caps, guarantees, maxima = dict(portfolio.caps), dict(portfolio.guarantees), dict(portfolio.maxima)
    shares = dict(portfolio.shares)
    for given, settings in (
        (command.cap, caps), (command.guarantee, guarantees), (command.max_position_usd, maxima)
    ):  # fmt: skip
        if given is None:
            settings.pop(command.scope, None)
        elif given is not NOT_GIVEN:
            settings[command.scope] = down(Fraction(given))
    if command.cap is not NOT_GIVEN or command.share_of_equity is None:
        shares.pop(command.scope, None)
    if command.share_of_equity not in (None, NOT_GIVEN):
        share = down(Fraction(command.share_of_equity))
        followed = portfolio.caps.get(command.scope, Fraction(0)) if command.scope in shares else Fraction(0)
        caps[command.scope] = down(followed * share / shares.get(command.scope, Fraction(1)))
        shares[command.scope] = share
    over = sum(guarantees.values()) - caps[WHOLE]
    closer = over <= sum(portfolio.guarantees.values()) - portfolio.caps[WHOLE]
    follows = command.scope == WHOLE and WHOLE in shares
    if len({name_of(scope) for scope, usd in guarantees.items() if usd}) > 1 or (
        over > 0 and not closer and not follows
    ):
        raise RefusedError("invalid_request")
    portfolio.caps, portfolio.guarantees, portfolio.maxima, portfolio.shares = caps, guarantees, maxima, shares
    return Answer("set_cap", "applied", binding=command.scope), None
