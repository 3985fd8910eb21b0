"""What `--json` prints beyond the wire's own forms: the request beside a decision, caps, a verification's report."""

import json
from typing import TYPE_CHECKING

from ledger_sizer.wire.responses import Json, decision_to_json, scope_to_json

if TYPE_CHECKING:
    from ledger_sizer import Decision, ScopeExposure, VerifyReport


def decision_form(decision: "Decision") -> Json:
    """A decision as on the wire, with the request it answered."""
    return {**decision_to_json(decision), "request": json.loads(decision.request)}


def cap_form(portfolio: str, row: "ScopeExposure") -> Json:
    """One cap of one portfolio, with what it leaves."""
    return {"portfolio": portfolio, **scope_to_json(row)}


def report_form(report: "VerifyReport") -> Json:
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
