"""Why a decision came out as it did, in words and as data, from the decision alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ledger_sizer.domain import from_us
from ledger_sizer.records import Decision
from ledger_sizer.units import plain, usd


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision came out as it did: `text` for people, `data` for programs (decimals as strings)."""

    decision: Decision
    text: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


_REASONS = {
    "halted": "new reservations are halted in {binding}",
    "reducing": "{binding} is reducing: positions may close, none may open",
    "unreconciled": "{binding} is not known to agree with the exchange, so nothing new is granted there",
    "cap_exceeded": "the cap of {binding} leaves nothing",
    "below_min_qty": "what {binding} leaves buys less than the smallest quantity both legs accept",
    "below_min_notional": "what {binding} leaves is below the smallest order value",
    "insufficient_balance": "there is no available balance to spend",
    "group_denied": "another command of its atomic group was denied",
}


def explain(decision: Decision) -> Explanation:
    """Explain a decision: what was asked, each step of the formula, each scope's headroom, what decided."""
    request = json.loads(decision.request)
    trace = json.loads(decision.trace)
    scopes = [_scope(row) for row in trace.get("scopes", ())]
    lines = [_headline(decision)]
    lines += _formula(decision, request, trace)
    lines += [_scope_line(scope) for scope in scopes]
    lines += _match(trace.get("match"))
    if trace.get("note") == "late_fill":
        lines.append("The hold had expired before the fill: the fill is a fact, so it was recorded as a new position.")
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
        "decided_at": decision.decided_at.isoformat().replace("+00:00", "Z"),
        "request": request,
        "fraction": _text(decision.fraction),
        "raw_budget": _text(decision.raw_budget),
        "budget": _text(decision.budget),
        "quantity": _text(decision.quantity),
        "scopes": scopes,
        "policy": trace.get("policy"),
        "match": trace.get("match"),
        "note": trace.get("note"),
        "exposure_before": plain(decision.exposure_before),
        "exposure_after": plain(decision.exposure_after),
        "hash": decision.hash,
    }
    return Explanation(decision, "\n".join(lines), data)


def reason_in_words(decision: Decision) -> str:
    """Why a decision was denied, as the end of a sentence; empty for one that was not."""
    reason = decision.reason or ""
    return _REASONS.get(reason, reason).format(binding=decision.binding)


def _headline(decision: Decision) -> str:
    where = f"{decision.portfolio} #{decision.seq} {decision.command} {decision.key!r}"
    if decision.outcome == "denied":
        return f"{where}: denied, {decision.reason}. In words: {reason_in_words(decision)}."
    if decision.command == "reserve":
        size = "" if decision.quantity is None else f", quantity {plain(decision.quantity)}"
        return f"{where}: granted {_money(decision.budget)}{size}; bound by {decision.binding}."
    return f"{where}: {decision.outcome}."


def _formula(decision: Decision, request: dict[str, Any], trace: dict[str, Any]) -> list[str]:
    policy = trace.get("policy")
    if policy is None:
        return []
    most = policy["max_position_size_usd"]
    score = request.get("signal_score")
    if policy["enabled"] and score is not None:
        low, high = policy["min_allocation_fraction"], policy["max_allocation_fraction"]
        line = f"Fraction: {low} + ({high} - {low}) x score {score} = {_text(decision.fraction)}."
    else:
        why = "the request has no score" if policy["enabled"] else "dynamic sizing is off"
        line = f"Flat size: {why}, so the fraction is 1."
    lines = [line, f"Raw budget: {most} USD x {_text(decision.fraction)} = {_text(decision.raw_budget)} USD."]
    if "available_balance" in request:
        lines.append(f"Available balance: {request['available_balance']} USD.")
    return lines


def _scope(row: list[Any]) -> dict[str, Any]:
    name, cap_e8, held_e8, open_e8, status = row[:5]
    frozen, fresh_until_us = row[5:] or (0, None)
    headroom = None if cap_e8 is None else plain(usd(cap_e8 - held_e8 - open_e8))
    return {
        "scope": name,
        "cap": None if cap_e8 is None else plain(usd(cap_e8)),
        "held": plain(usd(held_e8)),
        "open": plain(usd(open_e8)),
        "headroom": headroom,
        "status": status,
        "frozen": bool(frozen),
        "fresh_until": None if fresh_until_us is None else from_us(fresh_until_us).isoformat().replace("+00:00", "Z"),
    }


def _scope_line(scope: dict[str, Any]) -> str:
    counted = f"held {scope['held']}, open {scope['open']}"
    status = "" if scope["status"] == "active" else f", {scope['status']}"
    if scope["frozen"]:
        status += ", frozen by a drift"
    if scope["fresh_until"] is not None:
        status += f", trusted until {scope['fresh_until']}"
    if scope["cap"] is None:
        return f"Scope {scope['scope']}: no cap, {counted}{status}."
    return f"Scope {scope['scope']}: cap {scope['cap']}, {counted}, headroom {scope['headroom']} USD{status}."


def _match(match: dict[str, str] | None) -> list[str]:
    if match is None:
        return []
    line = f"Quantity: {match['raw_quantity']} at the common step {match['step']}"
    return [f"{line}, worth {match['notional_usd']} USD." if "notional_usd" in match else f"{line}: not valid."]


def _text(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)


def _money(value: Decimal | None) -> str:
    return "nothing" if value is None else f"{plain(value)} USD"
