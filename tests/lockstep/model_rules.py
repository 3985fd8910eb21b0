"""Rules of the reference model: each command as plain sums over a portfolio's positions. See `model.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from ledger_sizer import (
    Adopt,
    Confirm,
    Extend,
    Fill,
    Freeze,
    Halt,
    Leg,
    Reconciled,
    Release,
    Remark,
    Reprice,
    Reserve,
    Resume,
    Retag,
    SetCap,
    Thaw,
)
from tests.lockstep.model_positions import (
    E8,
    NEVER,
    USD_MAX,
    WHOLE,
    Holding,
    LegHolding,
    Tags,
    close,
    down,
    expiry_of,
    fill,
    free,
    grow,
    pairs_of,
    reprice,
    scopes_of,
    up,
    values_of,
)
from tests.lockstep.model_sizing import PlannedLeg, Sized, planned_legs, plans_of, size

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel

AboutPosition = Confirm | Fill | Release | Extend | Retag | Reprice
Administration = SetCap | Halt | Resume | Freeze | Thaw | Reconciled | Remark
Command = Reserve | AboutPosition | Adopt | Administration

PRECEDENCE = (
    "halted", "reducing", "unreconciled", "cap_exceeded", "below_min_qty", "below_min_notional",
    "insufficient_balance",
)  # fmt: skip
"""Reasons to deny; the first that holds is told."""


@dataclass(frozen=True)
class Figures:
    """The settings that decisions depend on."""

    enabled: bool
    min_fraction: Fraction
    max_fraction: Fraction
    position_max: Fraction
    cap: Fraction
    ttl: timedelta


@dataclass(frozen=True)
class Answer:
    """Expected answer of the ledger."""

    command: str
    outcome: str
    seq: int | None = None
    reason: str | None = None
    binding: str | None = None
    number: int | None = None
    budget: Fraction | None = None
    quantity: Fraction | None = None
    fraction: Fraction | None = None
    raw_budget: Fraction | None = None
    headroom_before: Fraction = Fraction(0)
    exposure_before: Fraction = Fraction(0)
    exposure_after: Fraction = Fraction(0)
    expires_at: datetime | None = None
    decided_at: datetime | None = None
    replayed: bool = False
    unchanged: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Refusal:
    """An error: nothing is recorded and the key stays unused."""

    code: str


class RefusedError(Exception):
    """Raised by a rule to return a refusal."""

    def __init__(self, code: str) -> None:
        self.refusal = Refusal(code)


def _lifetime_end(portfolio: PortfolioModel, command: Reserve | Extend) -> datetime:
    if command.until_known:
        return NEVER
    if command.ttl_seconds is None:
        return portfolio.now + portfolio.figures.ttl
    return portfolio.now + timedelta(microseconds=int(Fraction(command.ttl_seconds) * 1_000_000))


def _shown(expires_at: datetime | None) -> datetime | None:
    return None if expires_at == NEVER else expires_at


# --- reservations ------------------------------------------------------------------------------------------------


def _reserve(portfolio: PortfolioModel, command: Reserve) -> tuple[Answer, Holding | None]:
    growing = None if command.position_id is None else _growing(portfolio, command)
    plans = plans_of(command)
    tags = growing.tags if growing is not None else _with_legs(pairs_of(command.tags.items()), plans)
    scopes = scopes_of(tags)
    ask = _asked(portfolio.figures, command)
    limits = [(down(ask.budget), ask.binding)]
    if growing is not None:
        limits.append((down(ask.most) - growing.held - growing.open, ask.most_binding))
    caps = [(portfolio.caps[scope] - portfolio.exposure(scope), scope) for scope in scopes if scope in portfolio.caps]
    own = [*limits]
    if command.available_balance is not None:
        own.append((down(Fraction(command.available_balance)), "available_balance"))
        limits = [*limits, *caps, own[-1]]
    else:
        limits = [*limits, *caps]
    budget, binding = min(limits, key=lambda bound: bound[0])  # the first of equals
    budget = max(budget, Fraction(0))
    sized = size(plans, budget)
    reasons = _reasons(portfolio, command, scopes, budget, _too_small(command, budget, sized))
    about = sized.bound_by or binding
    if about in scopes and _too_small(command, budget, sized):
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
    expires_at = _lifetime_end(portfolio, command)
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
    return replace(answer, budget=granted, quantity=sized.quantity, expires_at=_shown(after.expires_at)), after


@dataclass(frozen=True)
class _Ask:
    fraction: Fraction | None
    raw: Fraction
    budget: Fraction
    binding: str
    most: Fraction
    most_binding: str


def _asked(figures: Figures, command: Reserve) -> _Ask:
    """Return what a reservation asks for before any cap. Its own maximum only lowers that of the settings."""
    most, most_binding = figures.position_max, "max_position_size_usd"
    if command.max_position_usd is not None and Fraction(command.max_position_usd) < most:
        most, most_binding = Fraction(command.max_position_usd), "max_position_usd"
    if command.amount_usd is not None:
        amount = Fraction(command.amount_usd)
        return _Ask(None, amount, min(amount, most), "amount_usd" if amount <= most else most_binding, most, most_binding)
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
    own = _with_legs(given, plans)
    if not {*own} <= {*one.tags} or not same:
        raise RefusedError("invalid_request")
    return one


def _with_legs(tags: Tags, plans: Sequence[PlannedLeg]) -> Tags:
    """Return the tags with `venue` and `symbol` of the legs, where they are not given."""
    found = {*tags}
    if not values_of(tags, "venue"):
        found |= {("venue", plan.venue) for plan in plans if plan.venue}
    if plans and not values_of(tags, "symbol"):
        found.add(("symbol", "BTC"))  # the asset of all legs here
    return tuple(sorted(found))


def _reasons(
    portfolio: PortfolioModel, command: Reserve, scopes: Sequence[str], budget: Fraction, small: str | None
) -> list[tuple[str, str | None]]:
    """Return every reason to deny, with the scope or constraint that it names, if any."""
    found: list[tuple[str, str | None]] = []
    for status in ("halted", "reducing"):
        found += [(status, scope) for scope in scopes if portfolio.status(scope) == status][:1]
    found += [("unreconciled", scope) for scope in scopes if not portfolio.trusted(scope)][:1]
    headroom = {scope: portfolio.caps[scope] - portfolio.exposure(scope) for scope in scopes if scope in portfolio.caps}
    tightest = min(headroom, key=lambda scope: headroom[scope])
    if not budget and headroom[tightest] <= 0:
        found.append(("cap_exceeded", tightest))
    if small is not None:
        found.append((small, None))
    poor = command.available_balance is not None and Fraction(command.available_balance) < Fraction(1, E8)
    if not budget:
        found.append(("insufficient_balance", "available_balance") if poor else ("below_min_notional", None))
    return found


def _too_small(command: Reserve, budget: Fraction, sized: Sized) -> str | None:
    if sized.small is not None:
        return sized.small
    worth = budget if sized.worth is None else sized.worth
    asked = command.min_notional_usd
    return "below_min_notional" if asked is not None and worth < Fraction(asked) else None


# --- fills -------------------------------------------------------------------------------------------------------


def _found(portfolio: PortfolioModel, command: AboutPosition) -> Holding:
    if command.number not in portfolio.positions:
        raise RefusedError("not_found")
    return portfolio.positions[command.number]


def _fact(portfolio: PortfolioModel, before: Holding | None, after: Holding) -> Holding:
    """Return a position after a fact, which is refused only where 64 bits of 1e-8 USD cannot count it."""
    added = after.held + after.open - (before.held + before.open if before is not None else 0)
    if added > 0 and any(portfolio.exposure(scope) + added > USD_MAX for scope in after.scopes):
        raise RefusedError("invalid_request")
    return after


def _late(portfolio: PortfolioModel, number: int) -> list[Holding]:
    return [one for _, one in sorted(portfolio.positions.items()) if one.origin == number]


def _new_late(portfolio: PortfolioModel, ended: Holding) -> Holding:
    legs = tuple(LegHolding(leg.venue, leg.symbol, leg.kind, leg.side, leg.account) for leg in ended.legs)
    return Holding(portfolio.next_seq, "held", ended.tags, legs=legs, origin=ended.number)


def _named(legs: Sequence[Leg] | None, price: Fraction) -> list[LegHolding] | None:
    """Return the legs that a fill names. One without a price has that of the fill."""
    if legs is None:
        return None
    coins = [Fraction(leg.quantity) for leg in legs]
    prices = [price if leg.price is None else Fraction(leg.price) for leg in legs]
    return [
        LegHolding(leg.venue, leg.symbol, leg.kind, leg.side, leg.account, filled=filled, cost=filled * paid)
        for leg, filled, paid in zip(legs, coins, prices, strict=True)
    ]


def _at_venues(one: Holding, legs: Sequence[LegHolding]) -> Holding:
    """Return a position that counts also at the venues where it filled."""
    return replace(one, tags=tuple(sorted({*one.tags, *(("venue", leg.venue) for leg in legs if leg.venue)})))


def _confirm(portfolio: PortfolioModel, command: Confirm) -> tuple[Answer, Holding]:
    one = _found(portfolio, command)
    target: Holding | None = one if one.fillable else None
    if target is None:
        if one.state == "open" or (one.state == "closed" and not one.more):
            raise RefusedError("wrong_state")
        late = _late(portfolio, one.number)
        target = next((entry for entry in late if entry.fillable), None)
        if target is None and late and not late[-1].more:
            raise RefusedError("wrong_state")
    before, target = target, target or _new_late(portfolio, one)
    quantity, price = Fraction(command.quantity), Fraction(command.price)
    after = fill(
        target, quantity, quantity * price, hold=command.rest == "hold", named=_named(command.legs, price),
        spot_price=None if command.spot_price is None else Fraction(command.spot_price),
    )  # fmt: skip
    after = _at_venues(after, [*(_named(command.legs, price) or ()), *(leg for leg in after.legs if leg.filled)])
    return _filled(portfolio, "confirm", quantity, before, after)


def _filled(
    portfolio: PortfolioModel, verb: str, quantity: Fraction, before: Holding | None, after: Holding
) -> tuple[Answer, Holding]:
    moved = before is not None and before.tags != after.tags
    return Answer(verb, "applied", quantity=quantity, binding="tags" if moved else None), _fact(
        portfolio, before, after
    )


def _fill(portfolio: PortfolioModel, command: Fill) -> tuple[Answer, Holding]:
    one = _found(portfolio, command)
    entries = [one, *_late(portfolio, one.number)]
    quantity = Fraction(command.filled_quantity) - sum(entry.filled for entry in entries)
    if quantity <= 0:
        return Answer("fill", "applied", quantity=Fraction(0), unchanged=True), entries[-1]
    cost = Fraction(command.filled_quantity) * Fraction(command.price) - sum(entry.filled_usd for entry in entries)
    if cost <= 0:
        cost = quantity * Fraction(command.price)
    before = next((entry for entry in reversed(entries) if entry.live), None)
    after = fill(before or _new_late(portfolio, one), quantity, cost, hold=command.rest == "hold")
    return _filled(portfolio, "fill", quantity, before, _at_venues(after, [leg for leg in after.legs if leg.filled]))


def _adopt(portfolio: PortfolioModel, command: Adopt) -> tuple[Answer, Holding]:
    quantity, price = Fraction(command.quantity), Fraction(command.price)
    empty = Holding(portfolio.next_seq, "held", pairs_of(command.tags.items()))
    after = fill(empty, quantity, quantity * price, hold=False, named=_named(command.legs, price))
    after = _at_venues(after, after.legs)
    return Answer("adopt", "applied", quantity=after.quantity), _fact(portfolio, None, after)


# --- releases, longer holds, other scopes and prices -------------------------------------------------------------


def _release(portfolio: PortfolioModel, command: Release) -> tuple[Answer, Holding]:
    before = _found(portfolio, command)
    if command.held_only and not before.pending:
        raise RefusedError("wrong_state")
    if command.held_only or before.state == "held":
        if command.quantity is not None:
            raise RefusedError("invalid_request")
        after, quantity = free(before, "released")
        return Answer("release", "applied", quantity=quantity), after
    if before.state != "open":
        raise RefusedError("wrong_state")
    assert before.quantity is not None
    closing = before.quantity if command.quantity is None else Fraction(command.quantity)
    if closing > before.quantity:
        raise RefusedError("invalid_request")
    freed = free(before, "released")[0] if command.quantity is None and before.pending else before
    return Answer("release", "applied", quantity=closing), close(freed, closing)


def _extend(portfolio: PortfolioModel, command: Extend) -> tuple[Answer, Holding]:
    before = _found(portfolio, command)
    if not before.pending:
        raise RefusedError("wrong_state")
    for scope in before.scopes:
        if portfolio.status(scope) == "halted" and not command.until_known:
            return Answer("extend", "denied", reason="halted", binding=scope, number=before.number), before
    after = replace(before, expires_at=max(expiry_of(before), _lifetime_end(portfolio, command)))
    answer = Answer(
        "extend", "granted", budget=before.held, quantity=before.quantity, expires_at=_shown(after.expires_at)
    )
    return answer, after


def _retag(portfolio: PortfolioModel, command: Retag) -> tuple[Answer, Holding]:
    """Move a position. The scopes that it newly enters grant it, as they would a reservation of that size."""
    before = _found(portfolio, command)
    if not before.live:
        raise RefusedError("wrong_state")
    tags = pairs_of(command.tags.items())
    for name in ("venue", "symbol"):
        if not values_of(tags, name):
            tags = tuple(sorted((*tags, *((name, value) for value in values_of(before.tags, name)))))
    after = replace(before, tags=tags)
    counts, reasons = before.held + before.open, []
    for scope in after.scopes:
        if scope in before.scopes:
            continue
        if portfolio.status(scope) != "active":
            reasons.append((portfolio.status(scope), scope))
        if not portfolio.trusted(scope):
            reasons.append(("unreconciled", scope))
        if scope in portfolio.caps and portfolio.exposure(scope) + counts > portfolio.caps[scope]:
            reasons.append(("cap_exceeded", scope))
    if reasons:
        reason, scope = min(reasons, key=lambda one: PRECEDENCE.index(one[0]))
        return Answer("retag", "denied", reason=reason, binding=scope, number=before.number), before
    answer = Answer(
        "retag", "granted", budget=counts, quantity=before.quantity, expires_at=_shown(before.expires_at),
        binding="tags" if before.tags != after.tags else None, number=before.number,
    )  # fmt: skip
    return answer, _fact(portfolio, before, after)


def _reprice(portfolio: PortfolioModel, command: Reprice) -> tuple[Answer, Holding]:
    before = _found(portfolio, command)
    if before.state != "open":
        raise RefusedError("wrong_state")
    after = reprice(before, Fraction(command.price))
    return Answer("reprice", "applied", quantity=after.quantity), _fact(portfolio, before, after)


# --- administration ----------------------------------------------------------------------------------------------


def _set_cap(portfolio: PortfolioModel, command: SetCap) -> tuple[Answer, None]:
    if command.cap is None:
        portfolio.caps.pop(command.scope, None)
    else:
        portfolio.caps[command.scope] = down(Fraction(command.cap))
    return Answer("set_cap", "applied", binding=command.scope), None


def _set_status(portfolio: PortfolioModel, command: Halt | Resume) -> tuple[Answer, None]:
    portfolio.statuses[command.scope] = command.mode if isinstance(command, Halt) else "active"
    return Answer(command.verb, "applied", binding=command.scope), None


def _set_frozen(portfolio: PortfolioModel, command: Freeze | Thaw) -> tuple[Answer, None]:
    if isinstance(command, Freeze):
        portfolio.frozen.add(command.scope)
    else:
        portfolio.frozen.discard(command.scope)
    return Answer(command.verb, "applied", binding=command.scope), None


def _reconciled(portfolio: PortfolioModel, command: Reconciled) -> tuple[Answer, None]:
    if command.fresh_until is None:
        portfolio.fresh_until.pop(command.scope, None)
    else:
        portfolio.fresh_until[command.scope] = command.fresh_until
    return Answer("reconciled", "applied", binding=command.scope), None


def _remark(_pot: PortfolioModel, command: Remark) -> tuple[Answer, None]:
    return Answer("remark", "applied", binding=command.about), None


RULES: dict[type, Callable[..., tuple[Answer, Holding | None]]] = {
    Reserve: _reserve,
    Confirm: _confirm,
    Fill: _fill,
    Release: _release,
    Extend: _extend,
    Retag: _retag,
    Reprice: _reprice,
    Adopt: _adopt,
    SetCap: _set_cap,
    Halt: _set_status,
    Resume: _set_status,
    Freeze: _set_frozen,
    Thaw: _set_frozen,
    Reconciled: _reconciled,
    Remark: _remark,
}
