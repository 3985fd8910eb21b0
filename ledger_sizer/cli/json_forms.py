"""JSON forms that only `--json` prints: a decision with its request, a cap."""

import json

from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import ScopeExposure
from ledger_sizer.wire.codec import Json
from ledger_sizer.wire.responses import decision_to_json, scope_to_json


def decision_form(decision: Decision) -> Json:
    """Return a decision as on the wire, with the request it answered."""
    return {**decision_to_json(decision), "request": json.loads(decision.request)}


def cap_form(portfolio: str, row: ScopeExposure) -> Json:
    """Return one cap of one portfolio, with its exposure and headroom."""
    return {"portfolio": portfolio, **scope_to_json(row)}
