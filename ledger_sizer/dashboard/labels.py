"""Describes a decision in one line. `explain` gives all the reasons."""

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

from ledger_sizer.dashboard.formatting import clock, exact, money
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.units import usd
from ledger_sizer.rules.explain import reason_in_words


def decision_label(decision: Decision) -> str:
    """Return what the decision did, or why it was denied."""
    if decision.outcome == "denied":
        return reason_in_words(decision)
    return _LABELS.get(decision.command, _plain_label)(decision)


def actor_label(decision: Decision) -> str:
    """Return who sent the command, in short: the name of an API key without its id; empty where no record has it."""
    actor = decision.actor or ""
    return actor.split(":", 2)[2] if actor.startswith("api:") else actor


def _reserve_label(decision: Decision) -> str:
    size = "" if decision.quantity is None else f" for {exact(decision.quantity)}"
    binding = decision.binding or ""
    return f"{money(decision.budget)} held{size}, {_BINDING_LABELS.get(binding, f'bound by {binding}')}"


_BINDING_LABELS = {"signal_score": "sized by its score", "max_position_size_usd": "the most for one position"}
"""Labels of what sized a grant where no scope did."""


def _confirm_label(decision: Decision) -> str:
    late = ", after its hold had expired" if _trace(decision).get("note") == "late_fill" else ""
    return f"filled {exact(decision.quantity)}, counts {money(usd(decision.record.open_delta_e8))}{late}"


def _release_label(decision: Decision) -> str:
    size = "" if decision.quantity is None else f"closed {exact(decision.quantity)}, "
    return f"{size}{_freed_usd(decision)} given back"


def _extend_label(decision: Decision) -> str:
    return "" if decision.expires_at is None else f"hold now ends at {clock(decision.expires_at)}Z"


def _expire_label(decision: Decision) -> str:
    return f"hold ran out unconfirmed, {_freed_usd(decision)} given back"


def _adopt_label(decision: Decision) -> str:
    return f"took over {exact(decision.quantity)} found at the exchange, counts {_added_usd(decision)}"


def _set_cap_label(decision: Decision) -> str:
    cap = _request(decision).get("cap")
    change = "has no cap any more" if cap is None else f"capped at {money(Decimal(cap))}"
    return f"{decision.binding} {change}"


def _halt_label(decision: Decision) -> str:
    request = _request(decision)
    what = "reducing: positions may close, none may open" if request.get("mode") == "reducing" else "halted"
    return f"{decision.binding} {what}{_note(request)}"


def _plain_label(decision: Decision) -> str:
    """Label a verb that has no words of its own: what it is about."""
    return f"{decision.binding or decision.position_id or decision.portfolio}{_note(_request(decision))}"


def _resume_label(decision: Decision) -> str:
    return f"{decision.binding} active again{_note(_request(decision))}"


def _freeze_label(decision: Decision) -> str:
    return f"{decision.binding} frozen, it differs from the exchange{_note(_request(decision))}"


def _thaw_label(decision: Decision) -> str:
    return f"{decision.binding} no longer frozen{_note(_request(decision))}"


def _reconciled_label(decision: Decision) -> str:
    until = _request(decision).get("fresh_until")
    how_long = "without an end" if until is None else f"until {clock(datetime.fromisoformat(until))}Z"
    return f"{decision.binding} compared with the exchange, trusted {how_long}"


def _remark_label(decision: Decision) -> str:
    request = _request(decision)
    return f"{request['about']}: {request['event']}{_note(request)}"


def _step_back_label(decision: Decision) -> str:
    return f"time set back to the clock's, {clock(decision.decided_at)}Z: the decision before had a wrong time"


_LABELS = {
    "reserve": _reserve_label,
    "confirm": _confirm_label,
    "release": _release_label,
    "extend": _extend_label,
    "expire": _expire_label,
    "adopt": _adopt_label,
    "set_cap": _set_cap_label,
    "halt": _halt_label,
    "resume": _resume_label,
    "freeze": _freeze_label,
    "thaw": _thaw_label,
    "reconciled": _reconciled_label,
    "remark": _remark_label,
    "step_back": _step_back_label,
}
"""Labels of the verbs that have words of their own."""


def _freed_usd(decision: Decision) -> str:
    return money(usd(-(decision.record.held_delta_e8 + decision.record.open_delta_e8)))


def _added_usd(decision: Decision) -> str:
    return money(usd(decision.record.held_delta_e8 + decision.record.open_delta_e8))


def _note(request: dict[str, Any]) -> str:
    return f": {request['note']}" if request.get("note") else ""


def _request(decision: Decision) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(decision.request)
    return form


def _trace(decision: Decision) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(decision.trace)
    return form
