"""Rules of the reference model: each command as plain sums over a portfolio's positions. See `model.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from ledger_sizer import (
    AccountSeen,
    Adopt,
    Confirm,
    EquitySeen,
    Extend,
    Fill,
    Freeze,
    Halt,
    Leg,
    Reconciled,
    Release,
    Remark,
    Rename,
    Reprice,
    Reserve,
    Resume,
    Retag,
    SetCap,
    Thaw,
)
from tests.lockstep.model_positions import (
    USD_MAX,
    Holding,
    LegHolding,
    close,
    coin_of,
    expiry_of,
    fill,
    free,
    pairs_of,
    rename,
    reprice,
    values_of,
)

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel

from tests.lockstep.model_accounts import account_seen, equity_seen
from tests.lockstep.model_answers import PRECEDENCE, AboutPosition, Answer, RefusedError, lifetime_end, shown
from tests.lockstep.model_pools import reasons_to_stay, set_cap
from tests.lockstep.model_reservations import reserve

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
    """Return a position that counts also at the venues that a fill names."""
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
    after = _at_venues(after, _named(command.legs, price) or ())
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
    return _filled(portfolio, "fill", quantity, before, after)


def _adopt(portfolio: PortfolioModel, command: Adopt) -> tuple[Answer, Holding]:
    quantity, price = Fraction(command.quantity), Fraction(command.price)
    empty = Holding(portfolio.next_seq, "held", pairs_of(command.tags.items()))
    after = fill(empty, quantity, quantity * price, hold=False, named=_named(command.legs, price))
    after = _at_venues(after, _named(command.legs, price) or ())
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
    after = replace(before, expires_at=max(expiry_of(before), lifetime_end(portfolio, command)))
    answer = Answer(
        "extend", "granted", budget=before.held, quantity=before.quantity, expires_at=shown(after.expires_at)
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
    counts, reasons = before.held + before.open, reasons_to_stay(portfolio, before, after)
    for scope in after.scopes:
        if scope in before.scopes:
            continue
        if portfolio.status(scope) != "active":
            reasons.append((portfolio.status(scope), scope))
        if not portfolio.trusted(scope):
            reasons.append(("unreconciled", scope))
    if reasons:
        reason, scope = min(reasons, key=lambda one: PRECEDENCE.index(one[0]))
        return Answer("retag", "denied", reason=reason, binding=scope, number=before.number), before
    answer = Answer(
        "retag", "granted", budget=counts, quantity=before.quantity, expires_at=shown(before.expires_at),
        binding="tags" if before.tags != after.tags else None, number=before.number,
    )  # fmt: skip
    return answer, _fact(portfolio, before, after)


def _reprice(portfolio: PortfolioModel, command: Reprice) -> tuple[Answer, Holding]:
    before = _found(portfolio, command)
    if before.state != "open":
        raise RefusedError("wrong_state")
    after = reprice(before, Fraction(command.price))
    return Answer("reprice", "applied", quantity=after.quantity), _fact(portfolio, before, after)


def _rename(portfolio: PortfolioModel, command: Rename) -> tuple[Answer, Holding]:
    """Give a coin another name. What the position counts is the same, in the scope of the new name."""
    before = _found(portfolio, command)
    if not before.live:
        raise RefusedError("wrong_state")
    of_tags = [value for value in values_of(before.tags, "symbol")]
    names = {coin_of(leg.symbol) for leg in before.legs} or {coin_of(value) for value in of_tags}
    coin = command.coin or (next(iter(names)) if len(names) == 1 else None)
    ratio = Fraction(command.ratio)
    nothing_changes = coin == command.asset and ratio == 1
    if coin not in names or nothing_changes or (ratio != 1 and len(names) > 1):
        raise RefusedError("invalid_request")
    after = rename(before, coin, command.asset, ratio)
    markets = {(leg.venue, leg.symbol, leg.kind, leg.side, leg.account) for leg in after.legs}
    if len(markets) < len(after.legs):
        raise RefusedError("invalid_request")
    binding = "tags" if before.tags != after.tags else None
    return Answer("rename", "applied", quantity=after.quantity, binding=binding), _fact(portfolio, before, after)


# --- administration ----------------------------------------------------------------------------------------------


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
    Reserve: reserve,
    Confirm: _confirm,
    Fill: _fill,
    Release: _release,
    Extend: _extend,
    Retag: _retag,
    Reprice: _reprice,
    Rename: _rename,
    Adopt: _adopt,
    SetCap: set_cap,
    Halt: _set_status,
    Resume: _set_status,
    Freeze: _set_frozen,
    Thaw: _set_frozen,
    Reconciled: _reconciled,
    AccountSeen: account_seen,
    EquitySeen: equity_seen,
    Remark: _remark,
}
