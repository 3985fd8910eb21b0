"""Explains why a decision came out as it did, in words and as data, from its record alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import sha256
from operator import itemgetter
from typing import Any

from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.denials import DESK_BINDING, reason_words
from ledger_sizer.model.errors import InvalidRequest, LedgerError
from ledger_sizer.model.instruments import instrument_from_json
from ledger_sizer.model.legs import plan_from_json
from ledger_sizer.model.plans import Plan, leg_plans
from ledger_sizer.model.tags import Tags, stored_tags
from ledger_sizer.model.times import time_text
from ledger_sizer.model.units import decimal_text, parse_decimal, usd_ceil_e8, usd_floor_e8, usd_text
from ledger_sizer.rules.accounts import Place, accounts_of, is_doubtful, places_of
from ledger_sizer.rules.bounds import balance_bounds, cap_bounds, match_within, position_bound
from ledger_sizer.rules.explain_position import Told, position_data, position_lines
from ledger_sizer.rules.explain_scopes import Scopes, move_words, scope_lines, too_little_words


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision came out as it did: `text` for people, `data` for programs (decimals as strings)."""

    decision: Decision
    text: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


def explain(decision: Decision) -> Explanation:
    """Explain a decision: the request, each step of the formula, each scope's headroom, the binding constraint.

    Also one of a version before, whose request would be refused today.
    """
    request, whole_trace = object_in(decision.request), object_in(decision.trace)
    group = whole_trace.get("group")
    trace = whole_trace if group is None else group["tried"]
    told = Told(decision, request, trace)
    found = Scopes.of(trace)
    scopes, others, after = found.data(), found.data_of_others(), None
    if decision.outcome == "applied":
        after = found.data_of_after()
    steps = _sizing_steps(decision, request, trace, found)
    largest = _largest_grantable(request, trace, found, stored_tags(decision.record.tags), decision.record.decided_us)
    version = _settings_version(trace.get("policy"))
    lines = [_headline(decision), *_group_lines(decision, group)]
    if decision.reference is not None:
        lines.append(f"Reference: {decision.reference}")
    lines += [step["words"] for step in steps]
    if "desk" in trace:
        lines.append(f"The desk is {trace['desk']}, and so is every portfolio.")
    lines += scope_lines(scopes, others, after)
    lines += _match_lines(decision, trace.get("match"))
    lines += position_lines(told)
    if largest is not None:
        lines.append(_largest_line(largest))
    if version is not None:
        lines.append(f"Settings version: {version}.")
    lines.append(
        f"Exposure of {decision.portfolio}: {_money(decision.exposure_before)} before, "
        f"{_money(decision.exposure_after)} after."
    )
    data = {
        "portfolio": decision.portfolio,
        "seq": decision.seq,
        "command": decision.command,
        "key": decision.key,
        "outcome": decision.outcome,
        "reason": decision.reason,
        "binding": decision.binding,
        "position_id": decision.position_id,
        "decided_at": time_text(decision.decided_at),
        "expires_at": None if decision.expires_at is None else time_text(decision.expires_at),
        "until_known": decision.until_known,
        "reference": decision.reference,
        "request": request,
        "fraction": _text(decision.fraction),
        "raw_budget": _text(decision.raw_budget),
        "budget": _text(decision.budget),
        "quantity": _text(decision.quantity),
        "steps": steps,
        "scopes": scopes,
        "others": others,
        "after": after,
        "largest_grantable": largest,
        "settings_version": version,
        "policy": trace.get("policy"),
        "match": trace.get("match"),
        "note": trace.get("note"),
        "group": None if group is None else {"denied_by": group.get("denied_by")},
        **position_data(told),
        "exposure_before": decimal_text(decision.exposure_before),
        "exposure_after": decimal_text(decision.exposure_after),
        "hash": decision.hash,
    }
    return Explanation(decision, "\n".join(lines), data)


def object_in(text: str) -> dict[str, Any]:
    """Return the object in a recorded text; an empty one where it holds none, so that a damaged row can be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if type(found) is dict else {}


def reason_in_words(decision: Decision) -> str:
    """Return the denial reason as the end of a sentence; empty for a decision that was not denied."""
    reason, binding = decision.reason or "", decision.binding
    if reason == "unreconciled":
        return reason_words(reason, binding, decision.frozen_note)
    if reason != "cap_exceeded" or binding is None:
        return reason_words(reason, binding)
    trace = object_in(decision.trace)
    scopes = Scopes.of(trace["group"]["tried"] if "group" in trace else trace)
    enough = "the smallest order needs"
    if decision.command == "reserve" and "min_notional_usd" in object_in(decision.request):
        enough = "the smallest order needs, or the request wants at least"
    found = move_words(scopes, binding) if decision.command == "retag" else too_little_words(scopes, binding, enough)
    return found or reason_words(reason, binding)


def _headline(decision: Decision) -> str:
    where = f"{decision.portfolio} #{decision.seq} {decision.command} {decision.key!r}"
    if decision.outcome == "denied":
        return f"{where}: denied, {decision.reason}. In words: {reason_in_words(decision)}."
    if decision.command == "reserve":
        size = "" if decision.quantity is None else f", quantity {decimal_text(decision.quantity)}"
        return f"{where}: granted {_money(decision.budget)}{size}; bound by {decision.binding}."
    return f"{where}: {decision.outcome}."


def _group_lines(decision: Decision, group: Mapping[str, Any] | None) -> list[str]:
    """Say who denied the group, and what the figures of a member of a denied group are."""
    if group is None:
        return []
    line = "It was sent in an atomic group that was denied; the figures are those after the commands before it there."
    by = group.get("denied_by")
    if by is None:
        return [line]
    where = "" if by["portfolio"] == decision.portfolio else f" in {by['portfolio']}"
    words = reason_words(by["reason"], by["binding"])
    return [f"Denied by its neighbour {by['key']!r}{where}: {by['reason']}. In words: {words}.", line]


def _sizing_steps(
    decision: Decision, request: dict[str, Any], trace: dict[str, Any], scopes: Scopes
) -> list[dict[str, Any]]:
    """Return each step of the sizing: its name, its figure, and its derivation in words."""
    policy = trace.get("policy")
    if policy is None:
        return []
    most, whose = _most_of_one(request, policy, scopes)
    asked = request.get("amount_usd")
    if asked is not None:
        steps = [{"step": "amount_usd", "value": asked, "words": f"Amount asked for: {asked} USD."}]
    else:
        line = _fraction_words(decision, request, policy)
        fraction, raw = _text(decision.fraction), _text(decision.raw_budget)
        steps = [
            {"step": "fraction", "value": fraction, "words": line},
            {"step": "raw_budget", "value": raw, "words": f"Raw budget: {most} USD x {fraction} = {raw} USD."},
        ]
    if asked is not None or whose != "max_position_size_usd":
        words = f"The most for one position: {most} USD, by {whose}."
        steps.insert(0, {"step": whose, "value": most, "words": words})
    if "grows" in trace:
        counts = usd_text(trace["grows"]["held"] + trace["grows"]["open"])
        words = f"The position counts {counts} USD of that already."
        steps.append({"step": "counts_already", "value": counts, "words": words})
    if "available_balance" in request:
        balance = request["available_balance"]
        steps.append({"step": "available_balance", "value": balance, "words": f"Available balance: {balance} USD."})
    return steps


def _fraction_words(decision: Decision, request: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    score = request.get("signal_score")
    if policy["enabled"] and score is not None:
        low, high = policy["min_allocation_fraction"], policy["max_allocation_fraction"]
        return f"Fraction: {low} + ({high} - {low}) x score {score} = {_text(decision.fraction)}."
    why = "the request has no score" if policy["enabled"] else "dynamic sizing is off"
    return f"Flat size: {why}, so the fraction is 1."


def _most_of_one(request: Mapping[str, Any], policy: Mapping[str, Any], scopes: Scopes) -> tuple[str, str]:
    """Return the most that one position may be, USD, and what says so: a scope or the settings, or the request."""
    most, whose, own = policy["max_position_size_usd"], "max_position_size_usd", request.get("max_position_usd")
    of_scopes = position_bound(scopes.own)
    if of_scopes is not None:
        whose, most = of_scopes[0], usd_text(of_scopes[1])
    if own is not None and parse_decimal(own) < parse_decimal(most):
        return own, "max_position_usd"
    return most, whose


def _largest_grantable(
    request: dict[str, Any], trace: Mapping[str, Any], scopes: Scopes, tags: Tags, decided_us: int
) -> dict[str, Any] | None:
    """Return the largest budget (USD) and quantity that any score could have been granted; None unless a reservation.

    It is the least of: the per-position maximum less what the position counts already, the headroom of every scope,
    what the guarantees of others leave of the portfolio's, the available balance, what is free in the exchange
    accounts, what the legs accept; and 0 where the
    desk or a scope is not active, or a scope not reconciled, or where that is too little for the legs. `binding` names
    the one that decided. The request's own `min_notional_usd` and `amount_usd` are ignored, so that the figure shows
    what they would have had to be.
    """
    policy = trace.get("policy")
    if policy is None:
        return None
    # A scope that grants nothing is as good as full.
    own = [
        replace(scope, settings=scope.settings._replace(cap_e8=scope.exposure_e8))
        if scope.status != "active" or scope.unreconciled(decided_us)
        else scope
        for scope in scopes.own
    ]
    balance = Decimal(request["available_balance"]) if "available_balance" in request else None
    most, whose = _most_of_one(request, policy, scopes)
    grows = trace.get("grows", {})
    most_e8 = usd_floor_e8(parse_decimal(most)) - grows.get("held", 0) - grows.get("open", 0)
    desk = [(DESK_BINDING, 0)] if "desk" in trace else []
    plans = _plans_in(request)
    places = _places(tags, plans, scopes)
    doubtful = [(one.account.name, 0) for one in places if is_doubtful(scopes.own[0], one.account, decided_us)]
    bounds = [*cap_bounds(own, scopes.others), *balance_bounds(balance, places)]
    limits = [(whose, most_e8), *desk, *doubtful, *bounds]
    budget_e8, binding = min(((max(amount, 0), name) for name, amount in limits), key=itemgetter(0))
    quantity = None
    if budget_e8 and plans:
        matched = match_within(budget_e8, plans, places)
        quantity, binding = matched.quantity, matched.binding or binding
        budget_e8 = 0 if matched.notional_usd is None else usd_ceil_e8(matched.notional_usd)
    return {"budget": usd_text(budget_e8), "quantity": _text(quantity), "binding": binding}


def _places(tags: Tags, plans: Sequence[Plan], scopes: Scopes) -> list[Place]:
    """Return the exchange accounts that a reservation used, as it saw them."""
    seen = {scope.name: scope for scope in scopes.others}
    try:
        return places_of(accounts_of(seen, seen), tags, plans or None)
    except InvalidRequest:  # the record was edited: no reservation is decided that cannot be placed
        return []


def _plans_in(request: Mapping[str, Any]) -> tuple[Plan, ...]:
    """Return the legs that a recorded reservation asked for; none where they cannot be read.

    Versions before recorded pairs that are refused today, such as BTC with ETH. They are sized as they were then.
    """
    price = Decimal(request["price"]) if "price" in request else None
    try:
        if "legs" in request:
            return leg_plans([plan_from_json(form) for form in request["legs"]], price)
        if price is None or "spot_instrument" not in request:
            return ()
        spot, perp = [instrument_from_json(request[name]) for name in ("spot_instrument", "perp_instrument")]
    except (LedgerError, KeyError, TypeError, AttributeError):
        return ()
    fee_rate = Decimal(request["spot_fee_rate"]) if "spot_fee_rate" in request else None
    return (
        Plan(spot, "buy", spot.kind or "spot", price, fee_rate or None, None),
        Plan(perp, "sell", perp.kind or "swap", price, None, None),
    )


def _largest_line(largest: Mapping[str, Any]) -> str:
    size = "" if largest["quantity"] is None else f", quantity {largest['quantity']}"
    return f"Largest grantable then: {largest['budget']} USD{size}; bound by {largest['binding']}."


def _settings_version(policy: Mapping[str, Any] | None) -> str | None:
    """Return a short hash of the settings that applied; equal settings have equal hashes everywhere."""
    if policy is None:
        return None
    text = json.dumps(policy, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:12]


def _match_lines(decision: Decision, match: Mapping[str, str] | None) -> list[str]:
    """Say the quantity with its worth, and whether a maximum of the legs cut it."""
    if match is None:
        return []
    step = f"at the common step {match['step']}"
    worth, cut = match.get("notional_usd"), match.get("binding")
    if worth is None:
        return [f"Quantity: {match['raw_quantity']} {step}: not valid."]
    if cut is None:
        return [f"Quantity: {match['raw_quantity']} {step}, worth {worth} USD."]
    # A denied reservation records no quantity.
    left = "one" if decision.quantity is None else f"{decimal_text(decision.quantity)} {step},"
    return [f"Quantity: {left} worth {worth} USD; {cut} allows no more."]


def _text(value: Decimal | None) -> str | None:
    return None if value is None else decimal_text(value)


def _money(value: Decimal | None) -> str:
    return "nothing" if value is None else f"{decimal_text(value)} USD"
