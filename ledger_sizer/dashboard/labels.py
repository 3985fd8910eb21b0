"""Describes a decision in one line. `explain` gives all the reasons."""

from datetime import datetime
from decimal import Decimal

from ledger_sizer.dashboard.formatting import UNTIL_KNOWN, clock, exact, money
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.denials import GUARANTEE, MAX_POSITION
from ledger_sizer.model.drift_words import closing_words
from ledger_sizer.model.units import usd
from ledger_sizer.rules.explain import object_in, reason_in_words
from ledger_sizer.rules.explain_position import Form, Told
from ledger_sizer.rules.trace import read_scope


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
    more = " more" if _request(decision).get("position_id") else ""
    size = "" if decision.quantity is None else f" for {exact(decision.quantity)}"
    binding = decision.binding or ""
    until = f", {UNTIL_KNOWN}" if decision.until_known else ""
    return f"{money(decision.budget)}{more} held{size}, {_bound_label(binding)}{until}"


def _bound_label(binding: str) -> str:
    """Return what sized a grant."""
    if binding.startswith(GUARANTEE):
        return f"bound by what is kept for others, most for {binding.removeprefix(GUARANTEE)}"
    if binding.startswith(MAX_POSITION):
        return f"the most for one position of {binding.removeprefix(MAX_POSITION)}"
    return _BINDING_LABELS.get(binding, f"bound by {binding}")


_BINDING_LABELS = {
    "signal_score": "sized by its score",
    "amount_usd": "as much as it asked for",
    "max_position_size_usd": "the most for one position",
    "max_position_usd": "its own most for one position",
    "max_qty": "the most of one order",
    "max_notional": "the most of one order",
    "free_balance": "what is free in the exchange account",
}
"""Labels of what sized a grant where no scope did."""


def _fill_label(decision: Decision) -> str:
    told = _told(decision)
    if told.trace.get("note") == "known":
        return "filled as known already, nothing changed"
    request, after = told.request, told.after
    in_all = f", {exact(Decimal(request['filled_quantity']))} in all" if "filled_quantity" in request else ""
    rest = ""
    if after is not None and after.pending:
        rest = ", the rest stays held" if after.unfilled is None else f", {exact(after.unfilled)} to fill"
    counts = f"counts {money(told.open_change)}"
    return f"filled {exact(decision.quantity)}{in_all}, {counts}{_moved_words(told)}{rest}{_late_words(told)}"


def _late_words(told: Told) -> str:
    if told.trace.get("note") != "late_fill":
        return ""
    ended = told.trace.get("ended", "expired")
    if ended == "closed":
        return ", after its position was closed"
    return f", after its hold had {'been released' if ended == 'released' else 'expired'}"


def _moved_words(told: Told) -> str:
    left, entered = told.scopes_left, told.scopes_entered
    return (f", no more in {left}" if left else "") + (f", now in {entered}" if entered else "")


def _release_label(decision: Decision) -> str:
    closed = f"closed {exact(decision.quantity)}, " if decision.record.open_delta_e8 else ""
    return f"{closed}{_freed_usd(decision)} given back"


def _extend_label(decision: Decision) -> str:
    if decision.until_known:
        return "held until the fate of its order is known"
    return "" if decision.expires_at is None else f"hold now ends at {clock(decision.expires_at)}Z"


def _expire_label(decision: Decision) -> str:
    what = "hold ran out unconfirmed" if _told(decision).after is None else "the rest of its hold ran out"
    return f"{what}, {_freed_usd(decision)} given back"


def _retag_label(decision: Decision) -> str:
    told = _told(decision)
    return f"{decision.position_id}{_moved_words(told) or ' has its tags already'}{_note(told.request)}"


def _reprice_label(decision: Decision) -> str:
    told = _told(decision)
    change = told.open_change
    how = "no more than before" if not change else f"{money(change.copy_abs())} {'more' if change > 0 else 'less'}"
    return f"{decision.position_id} counts {exact(Decimal(told.request['price']))} a coin, {how}{_note(told.request)}"


def _rename_label(decision: Decision) -> str:
    request = _told(decision).request
    ratio = exact(Decimal(request.get("ratio", "1")))
    return f"{decision.position_id} is of {request['asset']} now, {ratio} for one{_note(request)}"


def _adopt_label(decision: Decision) -> str:
    return f"took over {exact(decision.quantity)} found at the exchange, counts {_added_usd(decision)}"


def _set_cap_label(decision: Decision) -> str:
    request = _request(decision)
    # A cap that is removed alone is not in the request.
    given = request if request.keys() & _LIMIT_LABELS.keys() else {**request, "cap": None}
    changes = [
        f"has no {name} any more" if given[argument] is None else f"{verb} {_limit(argument, given[argument])}"
        for argument, (name, verb) in _LIMIT_LABELS.items()
        if argument in given
    ]
    return f"{decision.binding} {', '.join(changes)}{_note(request)}"


def _limit(argument: str, value: str) -> str:
    return value if argument == "share_of_equity" else money(Decimal(value))


_LIMIT_LABELS = {
    "cap": ("cap", "capped at"),
    "guarantee": ("guarantee", "guaranteed"),
    "max_position_usd": ("largest position", "largest position"),
    "share_of_equity": ("share of equity", "following the equity by"),
}
"""How `set_cap` is told, by argument: what is removed, and what stands before an amount that is set."""


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


def _account_seen_label(decision: Decision) -> str:
    request = _request(decision)
    if request.get("gone") == "True":
        return f"{decision.binding} is no account of the portfolio any more{_note(request)}"
    free = request.get("free")
    words = [] if free is None else [f"{money(Decimal(free))} free"]
    if (until := request.get("fresh_until")) is not None:
        words.append(f"trusted until {clock(datetime.fromisoformat(until))}Z")
    return f"{', '.join([f'{decision.binding} seen', *words])}{_note(request)}"


def _equity_seen_label(decision: Decision) -> str:
    request = _request(decision)
    _, settings, *_ = read_scope(object_in(decision.trace)["after"])
    equity = money(Decimal(request["equity"]))
    return (
        f"{decision.binding} capped at {money(usd(settings.cap_e8 or 0))}, which follows the equity of {equity}"
        f"{_note(request)}"
    )


def _remark_label(decision: Decision) -> str:
    request = _request(decision)
    closing = closing_words(request.get("details") or {})
    return f"{request['about']}: {request['event']}{f', {closing}' if closing else ''}{_note(request)}"


def _step_back_label(decision: Decision) -> str:
    return f"time set back to the clock's, {clock(decision.decided_at)}Z: the decision before had a wrong time"


_LABELS = {
    "reserve": _reserve_label,
    "confirm": _fill_label,
    "fill": _fill_label,
    "release": _release_label,
    "extend": _extend_label,
    "expire": _expire_label,
    "retag": _retag_label,
    "reprice": _reprice_label,
    "rename": _rename_label,
    "adopt": _adopt_label,
    "set_cap": _set_cap_label,
    "halt": _halt_label,
    "resume": _resume_label,
    "freeze": _freeze_label,
    "thaw": _thaw_label,
    "reconciled": _reconciled_label,
    "account_seen": _account_seen_label,
    "equity_seen": _equity_seen_label,
    "remark": _remark_label,
    "step_back": _step_back_label,
}
"""Labels of the verbs that have words of their own."""


def _freed_usd(decision: Decision) -> str:
    return money(usd(-(decision.record.held_delta_e8 + decision.record.open_delta_e8)))


def _added_usd(decision: Decision) -> str:
    return money(usd(decision.record.held_delta_e8 + decision.record.open_delta_e8))


def _note(request: Form) -> str:
    return f": {request['note']}" if request.get("note") else ""


def _request(decision: Decision) -> Form:
    return _told(decision).request


def _told(decision: Decision) -> Told:
    return Told(decision, object_in(decision.request), object_in(decision.trace))
