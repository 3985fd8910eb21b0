"""A decision in one line of words. `explain` tells the whole of it."""

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

from ledger_sizer.dashboard.formatting import clock, exact, money
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.units import usd
from ledger_sizer.rules.explain import reason_in_words


def decision_label(decision: Decision) -> str:
    """What was decided, and why."""
    if decision.outcome == "denied":
        return reason_in_words(decision)
    return _TOLD[decision.command](decision)


def _reserved(decision: Decision) -> str:
    size = "" if decision.quantity is None else f" for {exact(decision.quantity)}"
    binding = decision.binding or ""
    return f"{money(decision.budget)} held{size}, {_SIZED_BY.get(binding, f'bound by {binding}')}"


_SIZED_BY = {"signal_score": "sized by its score", "max_position_size_usd": "the most for one position"}
"""What decides where no scope does; everything else is told by its name."""


def _filled(decision: Decision) -> str:
    late = ", after its hold had expired" if _trace(decision).get("note") == "late_fill" else ""
    return f"filled {exact(decision.quantity)}, counts {money(usd(decision.record.open_delta_e8))}{late}"


def _released(decision: Decision) -> str:
    size = "" if decision.quantity is None else f"closed {exact(decision.quantity)}, "
    return f"{size}{_given_back(decision)} given back"


def _extended(decision: Decision) -> str:
    return "" if decision.expires_at is None else f"hold now ends at {clock(decision.expires_at)}Z"


def _expired(decision: Decision) -> str:
    return f"hold ran out unconfirmed, {_given_back(decision)} given back"


def _adopted(decision: Decision) -> str:
    return f"took over {exact(decision.quantity)} found at the exchange, counts {_taken(decision)}"


def _capped(decision: Decision) -> str:
    cap = _request(decision).get("cap")
    return f"{decision.binding} has no cap any more" if cap is None else f"{decision.binding} capped at {_usd(cap)}"


def _halted(decision: Decision) -> str:
    request = _request(decision)
    what = "reducing: positions may close, none may open" if request.get("mode") == "reducing" else "halted"
    return f"{decision.binding} {what}{_note(request)}"


def _resumed(decision: Decision) -> str:
    return f"{decision.binding} active again{_note(_request(decision))}"


def _frozen(decision: Decision) -> str:
    return f"{decision.binding} frozen, it differs from the exchange{_note(_request(decision))}"


def _thawed(decision: Decision) -> str:
    return f"{decision.binding} no longer frozen{_note(_request(decision))}"


def _trusted(decision: Decision) -> str:
    until = _request(decision).get("fresh_until")
    how_long = "without an end" if until is None else f"until {clock(datetime.fromisoformat(until))}Z"
    return f"{decision.binding} compared with the exchange, trusted {how_long}"


def _remarked(decision: Decision) -> str:
    request = _request(decision)
    return f"{request['about']}: {request['event']}{_note(request)}"


_TOLD = {
    "reserve": _reserved,
    "confirm": _filled,
    "release": _released,
    "extend": _extended,
    "expire": _expired,
    "adopt": _adopted,
    "set_cap": _capped,
    "halt": _halted,
    "resume": _resumed,
    "freeze": _frozen,
    "thaw": _thawed,
    "reconciled": _trusted,
    "remark": _remarked,
}
assert _TOLD.keys() == {*COMMANDS, "expire"}, "every verb needs words"


def _given_back(decision: Decision) -> str:
    return money(-usd(decision.record.held_delta_e8 + decision.record.open_delta_e8))


def _taken(decision: Decision) -> str:
    return money(usd(decision.record.held_delta_e8 + decision.record.open_delta_e8))


def _usd(text: str) -> str:
    return money(Decimal(text))


def _note(request: dict[str, Any]) -> str:
    return f": {request['note']}" if request.get("note") else ""


def _request(decision: Decision) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(decision.request)
    return form


def _trace(decision: Decision) -> dict[str, Any]:
    form: dict[str, Any] = json.loads(decision.trace)
    return form
