"""Reservations of the reference model: how much is granted, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from ledger_sizer import (
    Reserve,
)
from tests.lockstep.model_accounts import doubted, purses, size_within
from tests.lockstep.model_pools import Room, largest_position, rooms
from tests.lockstep.model_positions import (
    E8,
    Holding,
    down,
    expiry_of,
    grow,
    pairs_of,
    scopes_of,
    up,
    values_of,
)
from tests.lockstep.model_sizing import Sized, planned_legs, plans_of, size, with_legs

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel

from tests.lockstep.model_answers import PRECEDENCE, Answer, Figures, RefusedError, lifetime_end, shown


def reserve(portfolio: PortfolioModel, command: Reserve) -> tuple[Answer, Holding | None]:
    growing = None if command.position_id is None else _growing(portfolio, command)
    plans = plans_of(command)
    tags = growing.tags if growing is not None else with_legs(pairs_of(command.tags.items()), plans)
    scopes = scopes_of(tags)
    largest = largest_position(portfolio, scopes) or (portfolio.figures.position_max, "max_position_size_usd")
    ask = _asked(portfolio.figures, command, *largest)
    limits = [(down(ask.budget), ask.binding)]
    if growing is not None:
        limits.append((down(ask.most) - growing.held - growing.open, ask.most_binding))
    caps = rooms(portfolio, scopes)
    wallets = purses(portfolio, tags, plans)
    balances = [(room, "free_balance") for one in wallets if (room := one.budget(plans)) is not None]
    own = [*limits]
    if command.available_balance is not None:
        own.append((down(Fraction(command.available_balance)), "available_balance"))
        limits = [*limits, *caps, own[-1]]
    else:
        limits = [*limits, *caps]
    limits, own = [*limits, *balances], [*own, *balances]
    budget, binding = min(limits, key=lambda bound: bound[0])  # the first of equals
    budget = max(budget, Fraction(0))
    sized = size_within(plans, budget, wallets)
    reasons = _reasons(portfolio, command, scopes, caps, budget, _too_small(command, budget, sized), binding)
    reasons += [("unreconciled", scope) for scope in doubted(portfolio, wallets)]
    about = sized.bound_by or binding
    if about in [name for _, name in caps] and _too_small(command, budget, sized):
        uncapped = max(min(bound[0] for bound in own), Fraction(0))
        if not _too_small(command, uncapped, size(plans, uncapped)):
            reasons.append(("cap_exceeded", about))
    answer = Answer(
        "reserve", "granted", fraction=ask.fraction, raw_budget=ask.raw, binding=about,
        number=None if growing is None else growing.number,
    )  # fmt: skip
    if reasons:
        reason, scope = min(reasons, key=lambda one: PRECEDENCE.index(one[0]))
        return replace(answer, outcome="denied", reason=reason, binding=scope or about), growing
    expires_at = lifetime_end(portfolio, command)
    orders = planned_legs(plans, sized.ordered, values_of(tags, "venue"))
    granted = budget if sized.worth is None else up(sized.worth)
    if growing is None:
        after = Holding(
            portfolio.next_seq, "held", tags, held=granted, quantity=sized.quantity, unfilled=sized.quantity,
            legs=orders, expires_at=expires_at,
        )  # fmt: skip
    else:
        later = max(expires_at, expiry_of(growing)) if growing.pending else expires_at
        after = grow(replace(growing, expires_at=later), sized.quantity, orders, granted)
        granted = after.held - growing.held
    return replace(answer, budget=granted, quantity=sized.quantity, expires_at=shown(after.expires_at)), after


@dataclass(frozen=True)
class _Ask:
    fraction: Fraction | None
    raw: Fraction
    budget: Fraction
    binding: str
    most: Fraction
    most_binding: str


def _asked(figures: Figures, command: Reserve, most: Fraction, most_binding: str) -> _Ask:
    """Return what a reservation asks for before any cap. most: of its scopes; its own maximum only lowers it."""
    if command.max_position_usd is not None and Fraction(command.max_position_usd) < most:
        most, most_binding = Fraction(command.max_position_usd), "max_position_usd"
    if command.amount_usd is not None:
        amount = Fraction(command.amount_usd)
        return _Ask(
            None, amount, min(amount, most), "amount_usd" if amount <= most else most_binding, most, most_binding
        )
    fraction, binding = Fraction(1), most_binding
    if figures.enabled and command.signal_score is not None:
        spread = figures.max_fraction - figures.min_fraction
        fraction, binding = figures.min_fraction + spread * Fraction(command.signal_score), "signal_score"
    return _Ask(fraction, most * fraction, most * fraction, binding, most, most_binding)


def _growing(portfolio: PortfolioModel, command: Reserve) -> Holding:
    """Return the position that is to grow: live, with the tags that are named and the same legs."""
    one = portfolio.positions.get(command.number or 0)
    if one is None:
        raise RefusedError("not_found")
    if not one.live:
        raise RefusedError("wrong_state")
    plans = plans_of(command)
    asked = planned_legs(plans, [Fraction(1) for _ in plans], values_of(one.tags, "venue"))
    same = len(asked) == len(one.legs) and all(any(leg.fits(order) for leg in one.legs) for order in asked)
    given = pairs_of(command.tags.items())
    venues = [pair for pair in with_legs(given, plans) if pair[0] == "venue"]
    if not {*given, *venues} <= {*one.tags} or not same:
        raise RefusedError("invalid_request")
    return one


def _reasons(
    portfolio: PortfolioModel,
    command: Reserve,
    scopes: Sequence[str],
    caps: Sequence[Room],
    budget: Fraction,
    small: str | None,
    binding: str,
) -> list[tuple[str, str | None]]:
    """Return every reason to deny, with the scope or constraint that it names, if any."""
    found: list[tuple[str, str | None]] = []
    for status in ("halted", "reducing"):
        found += [(status, scope) for scope in scopes if portfolio.status(scope) == status][:1]
    found += [("unreconciled", scope) for scope in scopes if not portfolio.trusted(scope)][:1]
    room, tightest = min(caps, key=lambda bound: bound[0])
    if not budget and room <= 0:
        found.append(("cap_exceeded", tightest))
    if small is not None:
        found.append((small, None))
    poor = command.available_balance is not None and Fraction(command.available_balance) < Fraction(1, E8)
    if not budget and poor:
        found.append(("insufficient_balance", "available_balance"))
    elif not budget and binding == "free_balance":
        found.append(("insufficient_balance", "free_balance"))
    elif not budget:
        found.append(("below_min_notional", None))
    return found


def _too_small(command: Reserve, budget: Fraction, sized: Sized) -> str | None:
    if sized.small is not None:
        return sized.small
    worth = budget if sized.worth is None else sized.worth
    asked = command.min_notional_usd
    return "below_min_notional" if asked is not None and worth < Fraction(asked) else None
