"""Rules of the reference model: each command as plain sums over a portfolio's positions. See `model.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil, floor, lcm
from typing import TYPE_CHECKING

from ledger_sizer import (
    Adopt,
    Confirm,
    Extend,
    Freeze,
    Halt,
    Reconciled,
    Release,
    Remark,
    Reserve,
    Resume,
    SetCap,
    Thaw,
)

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel

Command = Reserve | Confirm | Release | Extend | SetCap | Halt | Resume | Adopt | Freeze | Thaw | Reconciled | Remark
AboutPosition = Confirm | Release | Extend

WHOLE = "portfolio"
E8 = 10**8
USD_MAX = Fraction(2**63 - 1, E8)


def down(usd: Fraction) -> Fraction:
    """Round down to 1e-8 USD."""
    return Fraction(floor(usd * E8), E8)


def up(usd: Fraction) -> Fraction:
    """Round up to 1e-8 USD."""
    return Fraction(ceil(usd * E8), E8)


def scopes_of(tags: Mapping[str, str | Collection[str]]) -> tuple[str, ...]:
    """Return the scopes of a position with these tags, the whole portfolio first."""
    several = {name: {value} if isinstance(value, str) else {*value} for name, value in tags.items()}
    return (WHOLE, *(f"{name}={value}" for name in sorted(several) for value in sorted(several[name])))


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
class Holding:
    """A position of the model."""

    number: int
    state: str
    scopes: tuple[str, ...]
    held: Fraction = Fraction(0)
    open: Fraction = Fraction(0)
    quantity: Fraction | None = None
    price: Fraction | None = None
    expires_at: datetime | None = None
    origin: int | None = None

    @property
    def pending(self) -> bool:
        """Whether it may still fill. Held or open, a position is pending while it has an expiry."""
        return self.expires_at is not None


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


@dataclass(frozen=True)
class Refusal:
    """An error: nothing is recorded and the key stays unused."""

    code: str


class RefusedError(Exception):
    """Raised by a rule to return a refusal."""

    def __init__(self, code: str) -> None:
        self.refusal = Refusal(code)


def expiry_of(one: Holding) -> datetime:
    """Return the expiry of a pending position."""
    assert one.expires_at is not None, "every held dollar has an expiry"
    return one.expires_at


def free(one: Holding, ended: str) -> tuple[Holding, Fraction | None]:
    """Free a hold. What is open stays; without that the position is `ended`. Returns it, and the quantity it had."""
    freed = replace(one, held=Fraction(0), expires_at=None)
    return (freed, None) if one.state == "open" else (replace(freed, state=ended), one.quantity)


def _ttl(portfolio: PortfolioModel, command: Reserve | Extend) -> timedelta:
    if command.ttl_seconds is None:
        return portfolio.figures.ttl
    return timedelta(microseconds=int(Fraction(command.ttl_seconds) * 1_000_000))


def _reserve(portfolio: PortfolioModel, command: Reserve) -> tuple[Answer, Holding | None]:
    figures, scopes = portfolio.figures, scopes_of(command.tags)
    fraction, raw_binding = Fraction(1), "max_position_size_usd"
    if figures.enabled and command.signal_score is not None:
        spread = figures.max_fraction - figures.min_fraction
        fraction, raw_binding = figures.min_fraction + spread * Fraction(command.signal_score), "signal_score"
    raw = figures.position_max * fraction
    bounds = [(down(raw), raw_binding)]
    bounds += [
        (portfolio.caps[scope] - portfolio.exposure(scope), scope) for scope in scopes if scope in portfolio.caps
    ]
    if command.available_balance is not None:
        bounds.append((down(Fraction(command.available_balance)), "available_balance"))
    budget, binding = min(bounds, key=lambda bound: bound[0])  # the first of equals
    budget = max(budget, Fraction(0))
    quantity, small, bound_by = _match(command, budget)
    reasons = _reasons(portfolio, command, scopes, budget, small)
    answer = Answer("reserve", "granted", fraction=fraction, raw_budget=raw, binding=bound_by or binding)
    if reasons:
        reason, scope = reasons[0]
        return replace(answer, outcome="denied", reason=reason, binding=scope or binding), None
    expires_at = portfolio.now + _ttl(portfolio, command)
    held = Holding(portfolio.next_seq, "held", scopes, held=budget, quantity=quantity, expires_at=expires_at)
    return replace(answer, budget=budget, quantity=quantity, expires_at=expires_at), held


def _reasons(
    portfolio: PortfolioModel, command: Reserve, scopes: Sequence[str], budget: Fraction, small: str | None
) -> list[tuple[str, str | None]]:
    """Return every reason to deny, in order of precedence, with the scope or constraint that it names, if any."""
    found: list[tuple[str, str | None]] = []
    for status in ("halted", "reducing"):
        found += [(status, scope) for scope in scopes if portfolio.status(scope) == status][:1]
    found += [("unreconciled", scope) for scope in scopes if not portfolio.trusted(scope)][:1]
    headroom = {scope: portfolio.caps[scope] - portfolio.exposure(scope) for scope in scopes if scope in portfolio.caps}
    tightest = min(headroom, key=lambda scope: headroom[scope])
    if headroom[tightest] <= 0:
        found.append(("cap_exceeded", tightest))
    if small == "below_min_qty":
        found.append((small, None))
    poor = command.available_balance is not None and Fraction(command.available_balance) < Fraction(1, E8)
    asked = command.min_notional_usd
    if small == "below_min_notional" or (asked is not None and budget < Fraction(asked)) or (not budget and not poor):
        found.append(("below_min_notional", None))
    if not budget and poor:
        found.append(("insufficient_balance", "available_balance"))
    return found


def _match(command: Reserve, budget: Fraction) -> tuple[Fraction | None, str | None, str | None]:
    """Return a quantity both legs accept, the reason if there is none, and `max_qty` if that bound it."""
    if command.spot_instrument is None or command.perp_instrument is None or command.price is None:
        return None, None, None
    legs, price = (command.spot_instrument, command.perp_instrument), Fraction(command.price)
    step = _common_step([Fraction(leg.qty_step) * Fraction(leg.contract_size) for leg in legs])
    quantity, bound_by = floor(budget / price / step) * step, None
    most = min(Fraction(leg.max_qty) * Fraction(leg.contract_size) for leg in legs)
    if quantity > most:
        quantity, bound_by = floor(most / step) * step, "max_qty"
    if not quantity or quantity < max(Fraction(leg.min_qty) * Fraction(leg.contract_size) for leg in legs):
        return None, "below_min_qty", None
    if quantity * price < max(Fraction(leg.min_notional) for leg in legs):
        return None, "below_min_notional", None
    return quantity, None, bound_by


def _common_step(steps: Sequence[Fraction]) -> Fraction:
    whole = lcm(*(step.denominator for step in steps))
    return Fraction(lcm(*(int(step * whole) for step in steps)), whole)


def _found(portfolio: PortfolioModel, command: AboutPosition) -> Holding:
    if command.number not in portfolio.positions:
        raise RefusedError("not_found")
    return portfolio.positions[command.number]


def _fact(portfolio: PortfolioModel, scopes: Sequence[str], notional: Fraction, freed: Fraction) -> Fraction:
    """Return the notional of a fill. A fact is refused only where 64 bits of 1e-8 USD cannot count it."""
    counted = up(notional)
    if any(portfolio.exposure(scope) + freed + counted > USD_MAX for scope in scopes):
        raise RefusedError("invalid_request")
    return counted


def _confirm(portfolio: PortfolioModel, command: Confirm) -> tuple[Answer, Holding]:
    before = _found(portfolio, command)
    late = before.state == "expired"
    if late and any(one.origin == before.number for one in portfolio.positions.values()):
        raise RefusedError("wrong_state")
    if not late and before.state != "held":
        raise RefusedError("wrong_state")
    quantity, price = Fraction(command.quantity), Fraction(command.price)
    after = replace(
        before, state="open", held=Fraction(0), open=_fact(portfolio, before.scopes, quantity * price, -before.held),
        quantity=quantity, price=price,
        expires_at=None, number=portfolio.next_seq if late else before.number, origin=before.number if late else None,
    )  # fmt: skip
    return Answer("confirm", "applied", quantity=quantity), after


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
    assert before.price is not None
    closing = before.quantity if command.quantity is None else Fraction(command.quantity)
    left = before.quantity - closing
    if left < 0:
        raise RefusedError("invalid_request")
    after = before if command.quantity is not None else free(before, "released")[0]
    state = "open" if left else "held" if after.pending else "closed"
    after = replace(after, state=state, quantity=left, open=up(left * before.price))
    return Answer("release", "applied", quantity=closing), after


def _extend(portfolio: PortfolioModel, command: Extend) -> tuple[Answer, Holding]:
    before = _found(portfolio, command)
    if not before.pending:
        raise RefusedError("wrong_state")
    for scope in before.scopes:
        if portfolio.status(scope) == "halted":
            return Answer("extend", "denied", reason="halted", binding=scope, number=before.number), before
    after = replace(before, expires_at=max(expiry_of(before), portfolio.now + _ttl(portfolio, command)))
    answer = Answer("extend", "granted", budget=before.held, quantity=before.quantity, expires_at=after.expires_at)
    return answer, after


def _adopt(portfolio: PortfolioModel, command: Adopt) -> tuple[Answer, Holding]:
    quantity, price = Fraction(command.quantity), Fraction(command.price)
    scopes = scopes_of(command.tags)
    fact = _fact(portfolio, scopes, quantity * price, Fraction(0))
    found = Holding(portfolio.next_seq, "open", scopes, open=fact, quantity=quantity, price=price)
    return Answer("adopt", "applied", quantity=quantity), found


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
    Release: _release,
    Extend: _extend,
    Adopt: _adopt,
    SetCap: _set_cap,
    Halt: _set_status,
    Resume: _set_status,
    Freeze: _set_frozen,
    Thaw: _set_frozen,
    Reconciled: _reconciled,
    Remark: _remark,
}
