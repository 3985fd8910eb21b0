"""Decides what happens to positions: fills, closes, longer holds, other scopes, another price or name."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from ledger_sizer.model.commands import Adopt, Confirm, Extend, Fill, Release, Rename, Reprice, Retag
from ledger_sizer.model.denials import DESK_BINDING, PRECEDENCE
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, NotFound, WrongState
from ledger_sizer.model.legs import Leg, LegFills
from ledger_sizer.model.tags import Tags, tags_of
from ledger_sizer.model.units import E8_MAX, decimal_text, exact_arithmetic
from ledger_sizer.rules.bounds import headrooms, position_bound
from ledger_sizer.rules.filling import (
    close_part,
    fill_once,
    fill_position,
    filled_so_far,
    free_rest,
    reprice_position,
)
from ledger_sizer.rules.guarantees import guarantee_taken
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.renaming import coin_to_rename, rename_position
from ledger_sizer.rules.reservations import lifetime_end_us
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.state import PortfolioState, Verdict
from ledger_sizer.rules.trace import MOVED, trace_text

PositionRequest = Confirm | Fill | Release | Extend | Retag | Reprice | Rename
_ENDED_HOLD = ("expired", "released")


def _require_position(state: PortfolioState, command: PositionRequest) -> Position:
    found = state.positions.get(command.number)
    if found is None:
        raise NotFound(f"no position {command.position_id!r}")
    return found


# --- fills -------------------------------------------------------------------------------------------------------


def confirm(state: PortfolioState, command: Confirm, _now_us: int, _policy: Policy) -> Verdict:
    """Record a fill. It is a fact: no cap can refuse it, and it is recorded also after its hold is over."""
    position = _require_position(state, command)
    filled = _position_to_fill(state, position)
    if filled is None:
        known = state.late_fills.get(position.number)
        if known and not _may_fill_again(state.positions[known[-1]]):
            raise WrongState(
                f"cannot confirm {position.position_id}: its late fill is recorded already, as {state.name}-{known[-1]}"
            )
        filled = _late_position(state, position)
    simple = command.legs is None and filled.state == "held" and filled.fills is None
    if simple and command.rest is None:
        after = fill_once(filled, command.quantity, command.price, command.spot_price)
        return _filled(state, filled, after, command.quantity, simple=True)
    with exact_arithmetic():
        cost = command.quantity * command.price
    after = fill_position(
        filled, command.quantity, cost, spot_price=command.spot_price, legs=command.legs,
        keep_rest=command.rest == "hold",
    )  # fmt: skip
    after = after.changed(tags=_with_venues(after.tags, command.legs))
    return _filled(state, filled, after, command.quantity, simple=simple)


def fill(state: PortfolioState, command: Fill, _now_us: int, _policy: Policy) -> Verdict:
    """Record what is filled beyond what is known: as a first fill, a further one, a late one, or a new position."""
    position = _require_position(state, command)
    entries = [position, *[state.positions[number] for number in state.late_fills.get(position.number, ())]]
    for entry in entries:
        if entry.filled is None:
            raise WrongState(
                f"cannot fill {entry.position_id}: it was closed by a version that did not keep how much had filled; "
                "record what is new with adopt"
            )
    with exact_arithmetic():
        known = [filled_so_far(entry) for entry in entries]
        quantity = command.filled_quantity - sum(filled for filled, _ in known)
        cost = command.filled_quantity * command.price - sum(usd for _, usd in known)
        if quantity <= 0:
            return _unchanged(state, entries[-1])
        # An average price that fell below what its parts allow is no price of the new part.
        cost = cost if cost > 0 else quantity * command.price
    filled = next((entry for entry in reversed(entries) if entry.live), None)
    if filled is None:
        filled = _late_position(state, position)
    after = fill_position(filled, quantity, cost, keep_rest=command.rest == "hold")
    return _filled(state, filled, after, quantity, simple=False)


def _position_to_fill(state: PortfolioState, position: Position) -> Position | None:
    """Return the live position that a confirmed fill belongs to; None where it makes a late position.

    Raises `WrongState` where nothing may fill any more: the rest of the hold was freed by the last fill.
    """
    if position.pending or (position.state == "open" and _may_fill_again(position)):
        return position
    if position.state in _ENDED_HOLD or (position.state == "closed" and _may_fill_again(position)):
        late = [state.positions[number] for number in state.late_fills.get(position.number, ())]
        return next((one for one in late if one.pending or (one.state == "open" and _may_fill_again(one))), None)
    position.require("held", "confirm")
    raise AssertionError("a held position is pending")


def _may_fill_again(position: Position) -> bool:
    return position.fills is not None and position.fills.more


def _late_position(state: PortfolioState, ended: Position) -> Position:
    """Return the position that a late fill of an ended one makes, before the fill. The ended one stays as it is."""
    legs = tuple([_unfilled_leg(leg) for leg in ended.legs])
    return Position(
        state.name, state.last_seq + 1, "held", ended.tags, 0, 0, None, None, legs, None, origin=ended.number,
    )  # fmt: skip


def _unfilled_leg(leg: Leg) -> Leg:
    return Leg(
        leg.venue, leg.symbol, leg.kind, leg.side, Decimal(0), None, account=leg.account, unit=leg.unit,
        by_cost=leg.by_cost, fills=LegFills(),
    )  # fmt: skip


def _filled(state: PortfolioState, before: Position, after: Position, quantity: Decimal, *, simple: bool) -> Verdict:
    """Return the verdict of a fill. simple: the request says quantity and price of the position after it."""
    ended = None
    if before.origin is not None and before.number > state.last_seq:
        ended = state.positions[before.origin].state
    verdict = _applied(state, before, after, note=ended and "late_fill", ended=ended, entry=not simple)
    verdict.quantity = decimal_text(quantity)
    return verdict


def adopt(state: PortfolioState, command: Adopt, _now_us: int, _policy: Policy) -> Verdict:
    """Record a position that the ledger lacks."""
    number = state.last_seq + 1
    empty = Position(state.name, number, "held", tags_of(command.tags), 0, 0, None, None, (), None)
    with exact_arithmetic():
        cost = command.quantity * command.price
    after = fill_position(empty, command.quantity, cost, legs=command.legs, keep_rest=False)
    after = after.changed(tags=_with_venues(after.tags, command.legs))
    return _applied(
        state, after.changed(held_e8=0, open_e8=0), after, note="adopted", entry=after.quantity != command.quantity
    )


def _with_venues(tags: Tags, legs: Sequence[Leg] | None) -> Tags:
    """Return the tags with the venues where a fact says that its legs are. The batch loaded the scopes of these."""
    venues = [leg.venue for leg in legs or () if leg.venue]
    try:
        return tags.having("venue", venues) if venues else tags
    except InvalidRequest:  # tags that long fit no index; a fact is recorded all the same, without the venue
        return tags


def _unchanged(state: PortfolioState, position: Position) -> Verdict:
    """Return the verdict of a fill that was known already."""
    scopes = [state.scope(name) for name in position.tags.scopes]
    return Verdict(
        outcome="applied", position=position, unchanged=True, tags=position.tags, quantity="0",
        trace=trace_text(scopes, note="known"),
    )  # fmt: skip


# --- releases ----------------------------------------------------------------------------------------------------


def release(state: PortfolioState, command: Release, _now_us: int, _policy: Policy) -> Verdict:
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
    assert position.quantity is not None, "an open position has a fill"
    closing = position.quantity if command.quantity is None else command.quantity
    if closing > position.quantity:
        raise InvalidRequest(
            f"cannot close {decimal_text(closing)} of {position.position_id}: "
            f"only {decimal_text(position.quantity)} is open",
            field="quantity",
        )
    closed = position if command.quantity is not None or not position.pending else free_rest(position)
    verdict = _applied(state, position, close_part(closed, closing))
    verdict.quantity = decimal_text(closing)
    return verdict


def expire(state: PortfolioState, position: Position, now_us: int) -> Verdict:
    """Free an overdue hold. Raise AssertionError before its expiry: a hold is never freed early."""
    assert position.is_due(now_us)
    return _free(state, position, "expired")


def _free(state: PortfolioState, position: Position, ended: Literal["released", "expired"]) -> Verdict:
    """Free a hold. What is open stays as it is; without that, the position is `ended`."""
    if position.state == "open":
        verdict = _applied(state, position, free_rest(position))
        verdict.quantity = None  # nothing is closed
        return verdict
    expires_us = position.expires_us if ended == "expired" else None
    return _applied(state, position, position.changed(state=ended, held_e8=0, expires_us=expires_us))


# --- holds, scopes and prices ------------------------------------------------------------------------------------


def extend(state: PortfolioState, command: Extend, now_us: int, policy: Policy) -> Verdict:
    """Extend a hold, never shorten it. A longer hold is a new risk, so a halted scope denies it.

    That the fate of an order is not known is a fact, which no halt denies.
    """
    position = _require_position(state, command)
    position.require_pending("extend")
    scopes = [state.scope(name) for name in position.tags.scopes]
    halted = next((scope.name for scope in scopes if scope.status == "halted"), None)
    if state.desk_status == "halted":
        halted = DESK_BINDING
    if halted is not None and not command.until_known:
        return Verdict(
            outcome="denied", reason="halted", position=position, tags=position.tags, binding=halted,
            trace=trace_text(scopes, desk_status=state.desk_status),
        )  # fmt: skip
    expires_us = max(position.expires_us or 0, lifetime_end_us(command, now_us, policy))
    return Verdict(
        outcome="granted", position=position.changed(expires_us=expires_us), tags=position.tags,
        budget_e8=position.held_e8, trace=trace_text(scopes, desk_status=state.desk_status),
        quantity=None if position.quantity is None else decimal_text(position.quantity),
    )  # fmt: skip


def retag(state: PortfolioState, command: Retag, now_us: int, _policy: Policy) -> Verdict:
    """Move a position to other scopes, where those that it newly enters have room and grant it."""
    position = _require_position(state, command)
    if not position.live:
        raise WrongState(f"cannot retag {position.position_id}: {position.state} since seq {position.updated_seq}")
    tags = tags_of(command.tags)
    for name in ("venue", "symbol"):
        if not tags.values_of(name):
            tags = tags.having(name, position.tags.values_of(name))
    entered = [state.scope(name) for name in tags.scopes if name not in position.tags.scopes]
    others = state.others(_both(position.tags, tags)) if state.shared else ()
    counts = position.held_e8 + position.open_e8
    objections: list[tuple[str, str]] = [(state.desk_status, DESK_BINDING)] if state.desk_status != "active" else []
    for scope in entered:
        if scope.status != "active":
            objections.append((scope.status, scope.name))
        if scope.unreconciled(now_us):
            objections.append(("unreconciled", scope.name))
    objections += [("cap_exceeded", name) for name, left_e8 in headrooms(entered, others) if left_e8 < counts]
    most = position_bound(entered)
    if most is not None and most[1] < counts:
        objections.append(("cap_exceeded", most[0]))
    left = [state.scope(name) for name in position.tags.scopes if name not in tags.scopes]
    taken = guarantee_taken(state, left, tags.scopes, counts) if state.shared else None
    if taken is not None:
        objections.append(("cap_exceeded", taken))
    if objections:
        reason, binding = min(objections, key=lambda one: PRECEDENCE[one[0]])
        scopes = [state.scope(name) for name in _both(position.tags, tags)]
        return Verdict(
            outcome="denied", reason=reason, binding=binding, position=position, tags=position.tags,
            trace=trace_text(scopes, others=others, desk_status=state.desk_status),
        )  # fmt: skip
    verdict = _applied(state, position, position.changed(tags=tags), entry=True, others=others)
    verdict.outcome, verdict.budget_e8 = "granted", counts
    return verdict


def reprice(state: PortfolioState, command: Reprice, _now_us: int, _policy: Policy) -> Verdict:
    """Count an open position at another price from now on. A fact: no cap can refuse it."""
    position = _require_position(state, command)
    position.require("open", "reprice")
    return _applied(state, position, reprice_position(position, command.price), entry=True)


def rename(state: PortfolioState, command: Rename, _now_us: int, _policy: Policy) -> Verdict:
    """Give a position's coin another name. A fact: it counts what it counted, in the scope of the new name."""
    position = _require_position(state, command)
    if not position.live:
        raise WrongState(f"cannot rename {position.position_id}: {position.state} since seq {position.updated_seq}")
    coin = coin_to_rename(position, command.coin, command.ratio)
    if coin == command.asset and command.ratio == 1:
        raise InvalidRequest(
            f"{position.position_id} has {coin} already: at a ratio of 1 nothing changes", field="asset"
        )
    return _applied(state, position, rename_position(position, coin, command.asset, command.ratio), entry=True)


def _applied(
    state: PortfolioState, before: Position, after: Position, *, note: str | None = None, ended: str | None = None,
    entry: bool = False, others: Sequence[ScopeState] = (),
) -> Verdict:  # fmt: skip
    """Return the verdict of a fact. entry: whether the trace tells the figures after it, as the request does not."""
    scopes = [state.scope(name) for name in _both(before.tags, after.tags)]
    _require_counters_fit(state, before, after)
    moved = before.tags is not after.tags and before.tags.text != after.tags.text and before.number <= state.last_seq
    return Verdict(
        outcome="applied",
        position=after,
        tags=after.tags,
        quantity=None if after.quantity is None else decimal_text(after.quantity),
        binding=MOVED if moved else None,
        trace=trace_text(
            scopes, others=others, position=after, moved_from=before if moved else None, note=note, ended=ended,
            entry=entry or after.fills is not None or before.fills is not None,
        ),
    )  # fmt: skip


def _both(before: Tags, after: Tags) -> tuple[str, ...]:
    """Return the scopes of both tags, each once."""
    return after.scopes if before is after else tuple(dict.fromkeys((*after.scopes, *before.scopes)))


def _require_counters_fit(state: PortfolioState, before: Position, after: Position) -> None:
    """Raise `InvalidRequest` where a counter would exceed 64 bits: the only fact that is refused."""
    added = after.held_e8 + after.open_e8 - before.held_e8 - before.open_e8
    if added <= 0:
        return
    for name in after.tags.scopes:
        if state.scope(name).exposure_e8 + added > E8_MAX:
            raise InvalidRequest(
                f"quantity x price of {after.position_id}: the exposure of {name} would not fit", field="quantity"
            )
