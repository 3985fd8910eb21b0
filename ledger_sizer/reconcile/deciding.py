"""The record of a decision about a drift: its remarks, and whether it was made before."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from ledger_sizer.model.commands import AnyCommand, Remark
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import WrongState
from ledger_sizer.model.names import DESK
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.tags import Tags, tags_from_json
from ledger_sizer.reconcile.adopted_tags import FILLED_IN
from ledger_sizer.reconcile.drifts import get_drift
from ledger_sizer.reconcile.effects import note_of
from ledger_sizer.reconcile.ledger_reads import find_decisions

UNRESOLVED = ("open", "confirmed", "acknowledged")
"""States in which a drift can be decided."""

EVENTS = {"adopt": "adopted", "ignore": "ignored", "close": "close_requested"}
"""The event of each action, as the chain records it."""

WITH = "with"
"""Name of the detail of a decision about several drifts: the first of them."""

ASSET_POLICY = "asset_policy"
"""The event of a decision about an asset."""

_DESK_EVENTS = {"close_requested": "closed"}
"""What the desk's chain calls a decision, where its name differs: `closed` is decided, in the portfolio it is asked."""


def remark_of(drift: Drift, event: str, reason: str, details: Mapping[str, str] | None = None) -> Remark:
    """Return the remark that records a decision. Its key names the drift and its revision, so it is made once."""
    return Remark(
        key=f"drift:{drift.id}:{drift.revision}:{event}", portfolio=drift.portfolio, about=drift.name, event=event,
        note=reason, details=details,
    )  # fmt: skip


def desk_remark(remark: Remark) -> Remark:
    """Return the desk's record of a person's decision. Of its details it has a policy."""
    return Remark(
        key=remark.key, portfolio=DESK, about=remark.about, event=_DESK_EVENTS.get(remark.event, remark.event),
        note=note_of(f"{remark.portfolio}: {remark.note}"),
        details=remark.details if "policy" in (remark.details or {}) else None,
    )  # fmt: skip


def changes_of(event: str, actor: str, reason: str, decided_us: int) -> dict[str, Any]:
    """Return how a decision changes the row of its drift."""
    changes: dict[str, Any] = {"actor": actor, "reason": reason, "updated_us": decided_us}
    if event in ("adopted", ASSET_POLICY):
        return changes | {"state": "resolved", "ended_us": decided_us}
    return changes | ({"state": "acknowledged"} if event == "ignored" else {"requested": "close"})


def require_same(record: DecisionRecord, remark: AnyCommand, actor: str) -> int:
    """Return when this decision was made. Raises `WrongState` if another actor made it, or for another reason.

    Of the details only a policy is compared: the price and the quantity of a drift may have changed since.
    """
    made, sent = (_compared(json.loads(text)) for text in (record.request, remark.request_text()))
    # An old version named who in the note, and nowhere else.
    same = (record.actor, made) == (actor, sent)
    if record.actor is None:
        same = made["note"].endswith(f": {sent['note']}")
    if not same:
        by = made["note"] if record.actor is None else f"{record.actor}: {made['note']}"
        raise WrongState(f"{made['about']}: {made['event'].replace('_', ' ')} already by {by}")
    return record.decided_us


def _compared(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "details": (request.get("details") or {}).get("policy")}


def first_of(record: DecisionRecord) -> int | None:
    """Return the number of the first of the drifts that a decision is about; None where it is about one."""
    name = (json.loads(record.request).get("details") or {}).get(WITH)
    return None if name is None else int(name.rpartition("-")[2])


def remarks_of(
    group: Sequence[Drift], event: str, reason: str, details: Mapping[str, str] | None = None
) -> list[Remark]:
    """Return the remarks of a decision about a group of drifts: each tells with which other it was decided."""
    if len(group) > 1:
        details = {**(details or {}), WITH: group[0].name}
    return [remark_of(one, event, reason, details) for one in group]


def require_unresolved(drift: Drift) -> None:
    """Raise `WrongState` for a drift that is over."""
    if drift.state == "resolved":
        raise WrongState(f"{drift.name} is resolved already: {drift.reason} ({drift.actor})")


def require_tags_of(engine: Engine, drift: Drift, first: int | None, tags: Tags) -> None:
    """Raise `WrongState` where an adopted drift became a position without some of these tags.

    first: the drift that its position is named by, if not this one.
    """
    owner = drift if first is None else get_drift(engine, first)
    key = f"drift:{owner.id}:{owner.revision}:adopt"  # see `adoption.adoption_key`
    adopted = find_decisions(engine, drift.portfolio, [key]).get(key)
    more = [name for name in tags if name not in FILLED_IN]
    if adopted is None or not more:
        return
    has = tags_from_json(json.loads(adopted.request).get("tags", {}))
    if any(not {*tags.values_of(name)} <= {*has.values_of(name)} for name in more):
        raise WrongState(
            f"{drift.name} is adopted already, with the tags {', '.join(has.scopes[1:])}; give its position other ones "
            "with: ledger-sizer retag"
        )
