"""The JSON forms of what the ledger answers: decimals as strings, times in ISO 8601, absent values as null."""

import json
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ledger_sizer.domain import position_id
from ledger_sizer.units import plain

if TYPE_CHECKING:
    from ledger_sizer import Decision, Exposure, Position, ScopeExposure, VerifyReport

Form = dict[str, Any]


def number(value: Decimal | None) -> str | None:
    """A decimal as its shortest exact text."""
    return None if value is None else plain(value)


def time(value: datetime | None) -> str | None:
    """A time as ISO 8601 with its zone."""
    return None if value is None else value.isoformat()


def decision_form(decision: "Decision") -> Form:
    """A decision, with the request it answered."""
    return {
        "portfolio": decision.portfolio,
        "seq": decision.seq,
        "command": decision.command,
        "key": decision.key,
        "outcome": decision.outcome,
        "reason": decision.reason,
        "granted": decision.granted,
        "replayed": decision.replayed,
        "position_id": decision.position_id,
        "budget": number(decision.budget),
        "quantity": number(decision.quantity),
        "fraction": number(decision.fraction),
        "raw_budget": number(decision.raw_budget),
        "headroom_before": number(decision.headroom_before),
        "exposure_before": number(decision.exposure_before),
        "exposure_after": number(decision.exposure_after),
        "binding": decision.binding,
        "expires_at": time(decision.expires_at),
        "decided_at": time(decision.decided_at),
        "hash": decision.hash,
        "request": json.loads(decision.request),
    }


def position_form(position: "Position") -> Form:
    """A position with its legs."""
    return {
        "position_id": position.position_id,
        "portfolio": position.portfolio,
        "state": position.state,
        "tags": dict(position.tags),
        "held": number(position.held),
        "open": number(position.open),
        "notional": number(position.notional),
        "quantity": number(position.quantity),
        "price": number(position.price),
        "legs": [
            {
                "venue": leg.venue,
                "symbol": leg.symbol,
                "kind": leg.kind,
                "side": leg.side,
                "quantity": number(leg.quantity),
                "price": number(leg.price),
            }
            for leg in position.legs
        ],
        "expires_at": time(position.expires_at),
        "opened_at": time(position.opened_at),
        "updated_at": time(position.updated_at),
        "updated_seq": position.updated_seq,
        "origin": None if position.origin is None else position_id(position.portfolio, position.origin),
    }


def scope_form(row: "ScopeExposure") -> Form:
    """One scope's cap and exposure."""
    return {
        "scope": row.scope,
        "cap": number(row.cap),
        "held": number(row.held),
        "open": number(row.open),
        "exposure": number(row.exposure),
        "headroom": number(row.headroom),
        "overage": number(row.overage),
        "status": row.status,
    }


def exposure_form(exposure: "Exposure") -> Form:
    """A portfolio's exposure: the figures of the whole, then every scope."""
    whole = scope_form(exposure.whole)
    del whole["scope"]
    scopes = [scope_form(row) for row in exposure.scopes]
    return {"portfolio": exposure.portfolio, "seq": exposure.seq, **whole, "scopes": scopes}


def cap_form(portfolio: str, row: "ScopeExposure") -> Form:
    """One cap of one portfolio, with what it leaves."""
    return {"portfolio": portfolio, **scope_form(row)}


def report_form(report: "VerifyReport") -> Form:
    """What a verification read and found."""
    findings = [
        {"portfolio": finding.portfolio, "seq": finding.seq, "what": finding.what} for finding in report.findings
    ]
    return {
        "ok": report.ok,
        "decisions": report.decisions,
        "positions": report.positions,
        "heads": {name: {"seq": seq, "hash": head} for name, (seq, head) in report.heads.items()},
        "first": findings[0] if findings else None,
        "findings": findings,
    }
