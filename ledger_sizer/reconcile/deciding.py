"""The record of a decision about a drift: its remarks, and whether it was made before."""

import json
from collections.abc import Mapping
from typing import Any

from ledger_sizer.model.commands import AnyCommand, Remark
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import WrongState
from ledger_sizer.model.names import DESK
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.reconcile.effects import note_of

UNRESOLVED = ("open", "confirmed", "acknowledged")
"""States in which a drift can be decided."""

EVENTS = {"adopt": "adopted", "ignore": "ignored", "close": "close_requested"}
"""The event of each action, as the chain records it."""

_DESK_EVENTS = {"close_requested": "closed"}
"""What the desk's chain calls a decision, where its name differs: `closed` is decided, in the portfolio it is asked."""


def remark_of(drift: Drift, event: str, reason: str, details: Mapping[str, str] | None = None) -> Remark:
    """Return the remark that records a decision. Its key names the drift and its revision, so it is made once."""
    return Remark(
        key=f"drift:{drift.id}:{drift.revision}:{event}", portfolio=drift.portfolio, about=drift.name, event=event,
        note=reason, details=details,
    )  # fmt: skip


def desk_remark(remark: Remark) -> Remark:
    """Return the desk's record of a person's decision. The order of a close request is for those who trade."""
    details = None if remark.event == "close_requested" else remark.details
    return Remark(
        key=remark.key, portfolio=DESK, about=remark.about, event=_DESK_EVENTS.get(remark.event, remark.event),
        note=note_of(f"{remark.portfolio}: {remark.note}"), details=details,
    )  # fmt: skip


def changes_of(event: str, actor: str, reason: str, decided_us: int) -> dict[str, Any]:
    """Return how a decision changes the row of its drift."""
    changes: dict[str, Any] = {"actor": actor, "reason": reason, "updated_us": decided_us}
    if event in ("adopted", "asset_policy"):
        return changes | {"state": "resolved", "ended_us": decided_us}
    return changes | ({"state": "acknowledged"} if event == "ignored" else {"requested": "close"})


def require_same(record: DecisionRecord, remark: AnyCommand, actor: str) -> int:
    """Return when this decision was made. Raises `WrongState` if another actor made it, or for another reason.

    The details of a close request are not compared: price and quantity of a drift may have changed since.
    """
    made, sent = json.loads(record.request), json.loads(remark.request_text())
    if made["event"] == "close_requested":
        made, sent = made | {"details": None}, sent | {"details": None}
    same = (record.actor, made) == (actor, sent)
    if record.actor is None:  # by a version that named who in the note, and nowhere else
        same = made["note"].endswith(f": {sent['note']}")
    if not same:
        by = made["note"] if record.actor is None else f"{record.actor}: {made['note']}"
        raise WrongState(f"{made['about']}: {made['event'].replace('_', ' ')} already by {by}")
    return record.decided_us
