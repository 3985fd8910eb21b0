"""JSON forms that only `--json` prints: a decision with its request, a cap, a verification's report."""

import json
from typing import TYPE_CHECKING

from ledger_sizer.wire.responses import Json, decision_to_json, scope_to_json

if TYPE_CHECKING:
    from ledger_sizer import Decision, ScopeExposure, VerifyReport


def decision_form(decision: "Decision") -> Json:
    """Return a decision as on the wire, with the request it answered."""
    return {**decision_to_json(decision), "request": json.loads(decision.request)}


def cap_form(portfolio: str, row: "ScopeExposure") -> Json:
    """Return one cap of one portfolio, with its exposure and headroom."""
    return {"portfolio": portfolio, **scope_to_json(row)}


def report_form(report: "VerifyReport") -> Json:
    """Return what a verification read and found."""
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
