"""Decides reservations: a budget under every cap, what it buys, and why it is denied."""

from collections.abc import Iterator, Sequence
from operator import itemgetter

from ledger_sizer.model.command_base import ttl_us
from ledger_sizer.model.commands import Extend, Reserve
from ledger_sizer.model.denials import DESK_BINDING, FREE_BALANCE, PRECEDENCE
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, NotFound, WrongState
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.scope_settings import NO_SETTINGS
from ledger_sizer.model.tags import tags_of
from ledger_sizer.model.times import UNTIL_KNOWN_US
from ledger_sizer.model.units import decimal_text, usd, usd_ceil_e8
from ledger_sizer.rules.accounts import accounts_of, is_doubtful, places_of
from ledger_sizer.rules.bounds import Limits, balance_bounds, cap_bounds, match_within, position_bound
from ledger_sizer.rules.filling import grow_position, place_of
from ledger_sizer.rules.leg_sizing import Match, match_legs, planned_legs
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.state import PortfolioState, Verdict
from ledger_sizer.rules.trace import trace_text

_LEAST_USD = usd(1)  # less holds nothing


def reserve(state: PortfolioState, command: Reserve, now_us: int, policy: Policy) -> Verdict:
    """Grant min(raw budget, headroom of every scope, available balance), or deny with a reason."""
    growing = None if command.number is None else _growing(state, command)
    tags = command.position_tags if growing is None else growing.tags
    scopes = [state.scope(name) for name in tags.scopes]
    others = state.others(tags.scopes) if state.shared else ()
    raw = policy.sizing.raw_budget_of(
        command.signal_score, command.amount_usd, command.max_position_usd, position_bound(scopes)
    )
    own: Limits = [(raw.binding, raw.budget_e8)]
    if growing is not None:
        own.append((raw.most_binding, raw.most_e8 - growing.held_e8 - growing.open_e8))
    places = places_of(accounts_of(state.scopes, state.shared), tags, command.plans) if state.shared else []
    caps, balance = cap_bounds(scopes, others), balance_bounds(command.available_balance, places)
    binding, least_e8 = min([*own, *caps, *balance], key=itemgetter(1))
    budget_e8 = max(least_e8, 0)
    matched = None if command.plans is None else match_within(budget_e8, command.plans, places)
    objections = [*_objections(scopes, command, [*own, *balance], caps, budget_e8, binding, matched, now_us)]
    objections += [
        ("unreconciled", place.account.name) for place in places if is_doubtful(scopes[0], place.account, now_us)
    ]
    if state.desk_status != "active":
        objections.insert(0, (state.desk_status, DESK_BINDING))
    reason, objector = min(objections, key=lambda one: PRECEDENCE[one[0]]) if objections else (None, None)
    orders: tuple[Leg, ...] = ()
    quantity = None
    if matched is not None and reason is None:
        assert command.plans is not None and matched.notional_usd is not None
        quantity = matched.quantity
        orders = planned_legs(command.plans, matched.ordered, tags.only("venue") or "")
        budget_e8 = usd_ceil_e8(matched.notional_usd)
    verdict = Verdict(
        outcome="denied" if reason else "granted",
        reason=reason,
        tags=tags,
        fraction=raw.fraction_text,
        raw_budget=raw.budget_text,
        binding=objector or (matched and matched.binding) or binding,
        trace="",
    )
    if reason is not None:
        verdict.position = growing
    else:
        verdict.budget_e8 = budget_e8
        verdict.quantity = None if quantity is None else decimal_text(quantity)
        expires_us = lifetime_end_us(command, now_us, policy)
        if growing is None:
            # By place: by name it would take twice as long.
            verdict.position = Position(
                state.name, state.last_seq + 1, "held", tags, budget_e8, 0, quantity, None, orders, expires_us,
            )  # fmt: skip
        else:
            verdict.position = grow_position(growing, quantity, orders, budget_e8, expires_us)
            verdict.budget_e8 = verdict.position.held_e8 - growing.held_e8
    verdict.trace = trace_text(
        scopes, others=[*others, *(place.account for place in places)], desk_status=state.desk_status,
        policy=policy.text, match=matched,
        position=verdict.position, grows=growing, orders=() if growing is None else orders,
        entry=growing is not None and reason is None,
    )  # fmt: skip
    return verdict


def lifetime_end_us(command: Reserve | Extend, now_us: int, policy: Policy) -> int:
    """Return when the hold ends."""
    if command.until_known:
        return UNTIL_KNOWN_US
    return now_us + (policy.hold_ttl_us if command.ttl_seconds is None else ttl_us(command.ttl_seconds))


def _growing(state: PortfolioState, command: Reserve) -> Position:
    """Return the position that a reservation asks more of. Raises where it cannot have more, or not of these legs."""
    assert command.number is not None
    position = state.positions.get(command.number)
    if position is None:
        raise NotFound(f"no position {command.position_id!r}")
    if not position.live:
        raise WrongState(
            f"cannot reserve more of {position.position_id}: {position.state} since seq {position.updated_seq}; "
            "reserve without position_id for a new one"
        )
    plans = command.plans or ()
    asked = planned_legs(plans, [_LEAST_USD] * len(plans), position.tags.only("venue") or "")
    places = {place for leg in asked if (place := _place_in(position, leg)) is not None}
    if not len(places) == len(asked) == len(position.legs):
        raise InvalidRequest(
            f"the legs are not those of {position.position_id}: asked {_named(asked)}, it has "
            f"{_named(position.legs)}; more of a position is of the same legs",
            field="legs",
        )
    # Also the venues of the legs: what is bought at a venue must count there, and a growth moves no position.
    given = tags_of(command.tags).having("venue", command.position_tags.values_of("venue"))
    if any(not set(given.values_of(name)) <= set(position.tags.values_of(name)) for name in given):
        raise InvalidRequest(
            f"tags {dict(given)!r} are not those of {position.position_id}, {dict(position.tags)!r}; leave tags out",
            field="tags",
        )
    return position


def _place_in(position: Position, leg: Leg) -> int | None:
    """Return the place of a leg that is asked more of; None where the position has none of that market and account."""
    place = place_of(position.legs, leg)
    return place if place is not None and position.legs[place].account == leg.account else None


def _named(legs: Sequence[Leg]) -> str:
    """Say legs in words, in order."""
    words = [
        f"{leg.side} {leg.venue}{':' if leg.venue else ''}{leg.symbol}{f' in {leg.account}' if leg.account else ''}"
        for leg in legs
    ]
    return ", ".join(sorted(words)) or "none"


def _objections(
    scopes: list[ScopeState], command: Reserve, own: Limits, caps: Limits, budget_e8: int, binding: str,
    matched: Match | None, now_us: int,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield every reason to deny, each with the scope or constraint that it is about, in any order of the reasons.

    own, caps: what bounds the budget, apart from the caps and by them. binding: of the budget, which is what a quantity
    or an order value that is too small is about.
    """
    for scope in scopes:
        if scope.settings != NO_SETTINGS:  # which is quick, and true of few
            if scope.status != "active":
                yield scope.status, scope.name
            if scope.unreconciled(now_us):
                yield "unreconciled", scope.name
    if budget_e8 <= 0:
        name, fullest_e8 = min(caps, key=itemgetter(1))
        if fullest_e8 <= 0:
            yield "cap_exceeded", name
    small = _too_small(command, budget_e8, matched)
    if small is not None:
        about = matched.binding if matched is not None and matched.binding else binding
        if about == binding and any(name == binding for name, _ in caps) and _is_fit(command, own):
            yield "cap_exceeded", binding  # what the headroom left is too small, and more would do
        yield small, about
    if budget_e8 <= 0 and command.available_balance is not None and command.available_balance < _LEAST_USD:
        yield "insufficient_balance", "available_balance"
    elif budget_e8 <= 0 and binding == FREE_BALANCE:
        yield "insufficient_balance", FREE_BALANCE
    elif budget_e8 <= 0:
        yield "below_min_notional", binding


def _too_small(command: Reserve, budget_e8: int, matched: Match | None) -> str | None:
    """Return the reason for which what a budget buys is too small; None where it is not."""
    if matched is not None and matched.reason:
        return matched.reason
    if command.min_notional_usd is None:
        return None
    worth = usd(budget_e8) if matched is None or matched.notional_usd is None else matched.notional_usd
    return "below_min_notional" if worth < command.min_notional_usd else None


def _is_fit(command: Reserve, own: Limits) -> bool:
    """Return True if the request would pass its minima were it not for the caps."""
    budget_e8 = max(min(amount for _, amount in own), 0)
    matched = None if command.plans is None else match_legs(usd(budget_e8), command.plans)
    return _too_small(command, budget_e8, matched) is None
