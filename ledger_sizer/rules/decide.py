"""Decides one command: a pure function from the state, the command and the time to a verdict.

No database, no clock, no logging: `now_us` is an argument, so that a backtest decides with the same code. A verb that
does not fit the position's state raises an error and leaves no record. A refusal to grant is a verdict.

Where several reasons to deny hold, the first in the order of `denials.DENIALS` is reported.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from operator import itemgetter
from typing import Literal

from ledger_sizer.model.command_base import Command, ScopeCommand, ttl_us
from ledger_sizer.model.commands import (
    Adopt,
    Confirm,
    Extend,
    Release,
    Remark,
    Reserve,
)
from ledger_sizer.model.denials import DESK_BINDING, PRECEDENCE
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, NotFound, WrongState
from ledger_sizer.model.instruments import Leg
from ledger_sizer.model.scope_settings import NO_SETTINGS
from ledger_sizer.model.tags import NO_TAGS, PORTFOLIO_SCOPE, Tags, tags_of
from ledger_sizer.model.units import E8_MAX, decimal_text, exact_arithmetic, notional_e8, usd
from ledger_sizer.rules.bounds import bounds
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.sizing import Match, gross_of_spot_fee, match_quantity, net_of_spot_fee
from ledger_sizer.rules.state import PortfolioState, ScopeState, Verdict
from ledger_sizer.rules.trace import SCOPE_COMMANDS, trace_text

_LEAST_USD = usd(1)  # less holds nothing


def decide(state: PortfolioState, command: Command, now_us: int, policy: Policy) -> Verdict:
    """Decide one command against the state after its predecessor. Changes nothing.

    Raises `NotFound`, `WrongState` or `InvalidRequest` where the command does not fit the state; such a command
    leaves no decision and its key stays unused.
    """
    return _RULES[type(command)](state, command, now_us, policy)


# --- reserve ---------------------------------------------------------------------------------------------------


def _reserve(state: PortfolioState, command: Reserve, now_us: int, policy: Policy) -> Verdict:
    """Grant min(raw budget, headroom of every scope, available balance), or deny with a reason."""
    tags = tags_of(command.tags)
    scopes = [state.scope(name) for name in tags.scopes]
    raw = policy.sizing.raw_budget_of(command.signal_score)
    limits = [(raw.binding, raw.budget_e8), *bounds(scopes, command.available_balance)]
    binding, least_e8 = min(limits, key=itemgetter(1))
    budget_e8 = max(least_e8, 0)
    matched = _match_budget(command, budget_e8, policy)
    objections = [*_objections(scopes, command, budget_e8, binding, matched, now_us)]
    if state.desk_status != "active":
        objections.insert(0, (state.desk_status, DESK_BINDING))
    reason, objector = min(objections, key=lambda one: PRECEDENCE[one[0]]) if objections else (None, None)
    quantity = matched.quantity if matched is not None and reason is None else None
    legs = _planned_legs(command, quantity)
    verdict = Verdict(
        outcome="denied" if reason else "granted",
        reason=reason,
        tags=tags,
        fraction=raw.fraction_text,
        raw_budget=raw.budget_text,
        binding=objector or (matched and matched.binding) or binding,
        trace=trace_text(scopes, desk_status=state.desk_status, policy=policy.text, match=matched, legs=legs),
    )
    if reason is None:
        verdict.budget_e8 = budget_e8
        verdict.quantity = None if quantity is None else decimal_text(quantity)
        # By place: by name it would take twice as long.
        verdict.position = Position(
            state.name, state.last_seq + 1, "held", tags, budget_e8, 0, quantity, None, legs,
            now_us + _lifetime_us(command, policy),
        )  # fmt: skip
    return verdict


def _match_budget(command: Reserve, budget_e8: int, policy: Policy) -> Match | None:
    if command.rules is None or command.price is None:
        return None
    spend = min(usd(budget_e8), policy.sizing.max_position_size_usd)
    if command.spot_fee_rate:
        spend = net_of_spot_fee(spend, command.price, command.rules[0], command.spot_fee_rate)
    return match_quantity(spend, command.price, command.rules)


def _objections(
    scopes: list[ScopeState], command: Reserve, budget_e8: int, binding: str, matched: Match | None, now_us: int
) -> Iterator[tuple[str, str]]:
    """Yield every reason to deny, each with the scope or constraint that it is about, in any order of the reasons.

    binding: of the budget, which is what a quantity or an order value that is too small is about.
    """
    for scope in scopes:
        if scope.settings != NO_SETTINGS:  # which is quick, and true of few
            if scope.status != "active":
                yield scope.status, scope.name
            if scope.unreconciled(now_us):
                yield "unreconciled", scope.name
    if budget_e8 <= 0:
        full = [(headroom, scope.name) for scope in scopes if (headroom := scope.headroom_e8) is not None]
        fullest_e8, name = min(full, key=itemgetter(0), default=(1, ""))
        if fullest_e8 <= 0:
            yield "cap_exceeded", name
    if matched is not None and matched.reason:
        yield matched.reason, binding
    if command.min_notional_usd is not None and usd(budget_e8) < command.min_notional_usd:
        yield "below_min_notional", binding
    if budget_e8 <= 0 and command.available_balance is not None and command.available_balance < _LEAST_USD:
        yield "insufficient_balance", "available_balance"
    elif budget_e8 <= 0:
        yield "below_min_notional", binding


def _planned_legs(command: Reserve, quantity: Decimal | None) -> tuple[Leg, ...]:
    if quantity is None or command.rules is None:
        return ()
    spot, perp = command.rules
    venue = tags_of(command.tags).only("venue") or ""
    ordered = gross_of_spot_fee(quantity, spot, command.spot_fee_rate) if command.spot_fee_rate else quantity
    return (
        Leg(spot.venue or venue, spot.symbol, "spot", "buy", ordered),
        Leg(perp.venue or venue, perp.symbol, "swap", "sell", quantity),
    )


# --- positions -------------------------------------------------------------------------------------------------


def _require_position(state: PortfolioState, command: Confirm | Release | Extend) -> Position:
    found = state.positions.get(command.number)
    if found is None:
        raise NotFound(f"no position {command.position_id!r}")
    return found


def _confirm(state: PortfolioState, command: Confirm, _now_us: int, _policy: Policy) -> Verdict:
    """Record a fill. It is a fact: no cap can refuse it, and it is recorded also after the hold expired."""
    position = _require_position(state, command)
    if position.state == "expired":
        return _late_fill(state, command, position)
    position.require("held", "confirm")
    after = position.changed(
        state="open", held_e8=0, expires_us=None, legs=_filled_legs(position.legs, command),
        open_e8=_added_e8(state, position.tags, command, freed_e8=position.held_e8),
        quantity=command.quantity, price=command.price,
    )  # fmt: skip
    return _applied(state, after)


def _late_fill(state: PortfolioState, command: Confirm, expired: Position) -> Verdict:
    """Record the fill of an expired hold as a new position with the hold as its origin. The hold stays expired."""
    known = state.late_fills.get(expired.number)
    if known is not None:
        raise WrongState(
            f"cannot confirm {expired.position_id}: its late fill is recorded already, as {state.name}-{known}"
        )
    late = Position(
        portfolio=state.name, number=state.last_seq + 1, state="open", tags=expired.tags, origin=expired.number,
        open_e8=_added_e8(state, expired.tags, command), quantity=command.quantity, price=command.price,
        legs=_filled_legs(expired.legs, command),
    )  # fmt: skip
    return _applied(state, late, note="late_fill")


def _adopt(state: PortfolioState, command: Adopt, _now_us: int, _policy: Policy) -> Verdict:
    tags = tags_of(command.tags)
    found = Position(
        portfolio=state.name, number=state.last_seq + 1, state="open", tags=tags,
        open_e8=_added_e8(state, tags, command), quantity=command.quantity, price=command.price,
        legs=tuple(command.legs or ()),
    )  # fmt: skip
    return _applied(state, found, note="adopted")


def _release(state: PortfolioState, command: Release, _now_us: int, _policy: Policy) -> Verdict:
    """Close what is open and free the hold. `quantity` closes of what is open, `held_only` frees only the hold."""
    position = _require_position(state, command)
    if command.held_only:
        position.require_pending("release the hold of")
    if command.held_only or position.state == "held":
        if command.quantity is not None:
            raise InvalidRequest(
                f"quantity is for closing part of an open position; {position.position_id} is held: release all of it",
                field="quantity",
            )
        return _free(state, position, "released")
    position.require("open", "release")
    assert position.quantity is not None and position.price is not None, "an open position has a fill"
    closing = position.quantity if command.quantity is None else command.quantity
    if closing > position.quantity:
        raise InvalidRequest(
            f"cannot close {decimal_text(closing)} of {position.position_id}: "
            f"only {decimal_text(position.quantity)} is open",
            field="quantity",
        )
    with exact_arithmetic():
        left = position.quantity - closing
        legs = position.legs if left == 0 else _scaled_legs(position, position.quantity, left)
    held_e8, expires_us = (0, None) if command.quantity is None else (position.held_e8, position.expires_us)
    after = position.changed(
        state="open" if left else "closed" if expires_us is None else "held",
        held_e8=held_e8, expires_us=expires_us, open_e8=notional_e8(left, position.price) if left else 0,
        quantity=left, legs=legs,
    )  # fmt: skip
    verdict = _applied(state, after)
    verdict.quantity = decimal_text(closing)
    return verdict


def _extend(state: PortfolioState, command: Extend, now_us: int, policy: Policy) -> Verdict:
    """Extend a hold, never shorten it. A longer hold is a new risk, so a halted scope denies it."""
    position = _require_position(state, command)
    position.require_pending("extend")
    scopes = [state.scope(name) for name in position.tags.scopes]
    halted = next((scope.name for scope in scopes if scope.status == "halted"), None)
    if state.desk_status == "halted":
        halted = DESK_BINDING
    if halted is not None:
        return Verdict(
            outcome="denied", reason="halted", position=position, tags=position.tags, binding=halted,
            trace=trace_text(scopes, desk_status=state.desk_status),
        )  # fmt: skip
    expires_us = max(position.expires_us or 0, now_us + _lifetime_us(command, policy))
    return Verdict(
        outcome="granted", position=position.changed(expires_us=expires_us), tags=position.tags,
        budget_e8=position.held_e8, trace=trace_text(scopes, desk_status=state.desk_status),
        quantity=None if position.quantity is None else decimal_text(position.quantity),
    )  # fmt: skip


def _lifetime_us(command: Reserve | Extend, policy: Policy) -> int:
    return policy.hold_ttl_us if command.ttl_seconds is None else ttl_us(command.ttl_seconds)


def expire(state: PortfolioState, position: Position, now_us: int) -> Verdict:
    """Free an overdue hold. Raise AssertionError before its expiry: a hold is never freed early."""
    assert position.is_due(now_us)
    return _free(state, position, "expired")


def _free(state: PortfolioState, position: Position, ended: Literal["released", "expired"]) -> Verdict:
    """Free a hold. What is open stays as it is; without that, the position is `ended`."""
    if position.state == "open":
        verdict = _applied(state, position.changed(held_e8=0, expires_us=None))
        verdict.quantity = None  # nothing is closed
        return verdict
    expires_us = position.expires_us if ended == "expired" else None
    return _applied(state, position.changed(state=ended, held_e8=0, expires_us=expires_us))


def _applied(state: PortfolioState, after: Position, note: str | None = None) -> Verdict:
    scopes = [state.scope(name) for name in after.tags.scopes]
    return Verdict(
        outcome="applied",
        position=after,
        tags=after.tags,
        quantity=None if after.quantity is None else decimal_text(after.quantity),
        trace=trace_text(scopes, legs=after.legs, note=note),
    )


def _added_e8(state: PortfolioState, tags: Tags, fact: Confirm | Adopt, freed_e8: int = 0) -> int:
    """Return the notional that a fact adds, 1e-8 USD. Refuse it only where a counter would exceed 64 bits."""
    added = notional_e8(fact.quantity, fact.price)
    for name in tags.scopes:
        if state.scope(name).exposure_e8 - freed_e8 + added > E8_MAX:
            raise InvalidRequest(
                f"quantity {decimal_text(fact.quantity)} x price {decimal_text(fact.price)}: "
                f"exposure of {name} would not fit",
                field="quantity",
            )
    return added


def _filled_legs(planned: tuple[Leg, ...], command: Confirm) -> tuple[Leg, ...]:
    if command.legs is not None:
        return tuple(command.legs)
    spot_price = command.spot_price if command.spot_price is not None else command.price
    return tuple(
        replace(leg, quantity=command.quantity, price=spot_price if leg.kind == "spot" else command.price)
        for leg in planned
    )


def remaining_leg_quantity(leg: Leg, quantity: Decimal, left: Decimal) -> Decimal:
    """Return a leg's base units after a close leaves `left` of its position's `quantity`: the same share.

    Rounded down to 1e-18. A leg of the position's own quantity gets exactly `left`.
    """
    if leg.quantity == quantity:
        return left
    with exact_arithmetic():
        return (leg.quantity * (left / quantity)).quantize(Decimal("1e-18"))


def _scaled_legs(position: Position, quantity: Decimal, left: Decimal) -> tuple[Leg, ...]:
    """Return the legs after a partial close."""
    scaled = []
    for leg in position.legs:
        units = remaining_leg_quantity(leg, quantity, left)
        if units > 0:
            scaled.append(replace(leg, quantity=units))
    return tuple(scaled)


# --- administration --------------------------------------------------------------------------------------------


def _change_scope(state: PortfolioState, command: ScopeCommand, _now_us: int, _policy: Policy) -> Verdict:
    before = state.scope(command.scope)
    after = replace(before, settings=before.settings._replace(**command.changes()))
    return Verdict(
        outcome="applied", tags=NO_TAGS, binding=after.name, scope_after=after, trace=trace_text([before], after=after)
    )


def _remark(state: PortfolioState, command: Remark, _now_us: int, _policy: Policy) -> Verdict:
    return Verdict(
        outcome="applied", tags=NO_TAGS, binding=command.about, trace=trace_text([state.scope(PORTFOLIO_SCOPE)])
    )


_RULES: Mapping[type[Command], Callable[..., Verdict]] = {
    Reserve: _reserve,
    Confirm: _confirm,
    Release: _release,
    Extend: _extend,
    Adopt: _adopt,
    Remark: _remark,
    **dict.fromkeys(SCOPE_COMMANDS.values(), _change_scope),
}
