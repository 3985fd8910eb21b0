"""Converts decisions, positions, exposure, heads and pages to JSON and back.

`..._from_json` restores from the output of `..._to_json` an object that is equal in every public property.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, TypeVar

from ledger_sizer.model.decisions import Decision, DecisionRecord, is_head
from ledger_sizer.model.domain import Exposure, Page, Position, ScopeExposure
from ledger_sizer.model.errors import InternalError, LedgerError
from ledger_sizer.model.instruments import leg_from_json, leg_to_json
from ledger_sizer.model.names import position_id, split_position_id
from ledger_sizer.model.tags import tags_of
from ledger_sizer.model.times import from_us, to_us
from ledger_sizer.model.units import USD_DECIMALS, decimal_text, exact_arithmetic, usd_text

Json = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")


def time_text(moment: datetime) -> str:
    """Format as ISO 8601 in UTC with a `Z`; in a query string the `+` of `+00:00` would become a blank."""
    return moment.isoformat().replace("+00:00", "Z")


@lru_cache(maxsize=1024)
def time_text_of(us: int) -> str:
    """Format microseconds like `time_text`. Cached, because all decisions of a commit have the same time."""
    return time_text(from_us(us))


def decision_to_json(decision: Decision, *, full: bool = False) -> Json:
    """Convert a decision. `full` adds the fields without which its place in the hash chain cannot be checked.

    `request` and `trace` are texts that hold JSON: exactly the characters that the audit chain hashes.
    """
    record = decision.record
    number = record.position
    after_e8 = record.exposure_e8 + record.held_delta_e8 + record.open_delta_e8
    form: Json = {
        "portfolio": record.portfolio,
        "seq": record.seq or None,
        "command": record.command,
        "key": record.key,
        "outcome": record.outcome,
        "reason": record.reason,
        "granted": record.outcome == "granted",
        "replayed": decision.replayed,
        "position_id": None if number is None else position_id(record.portfolio, number),
        "budget": _optional(usd_text, record.budget_e8),
        "quantity": record.quantity,
        "fraction": record.fraction,
        "raw_budget": record.raw_budget,
        "headroom_before": _optional(usd_text, record.headroom_e8),
        "exposure_before": usd_text(record.exposure_e8),
        "exposure_after": usd_text(after_e8),
        "binding": record.binding,
        "expires_at": _optional(time_text_of, record.expires_us),
        "decided_at": time_text_of(record.decided_us),
        "hash": record.hash or None,
    }
    if full:
        form["held_change"] = usd_text(record.held_delta_e8)
        form["open_change"] = usd_text(record.open_delta_e8)
        form["tags"] = record.tags
        form["request"] = record.request
        form["trace"] = record.trace
    return form


def decision_from_json(form: Mapping[str, Any]) -> Decision:
    """Convert the output of `decision_to_json` back.

    From the full form the decision equals the original, record and hash included. From the short form `request` and
    `trace` are empty texts; every other public property is there. Raises `InternalError` for any other form.
    """
    try:
        seq, portfolio = form["seq"] or 0, form["portfolio"]
        full_id = form["position_id"]
        before_e8 = _e8(form["exposure_before"])
        change_e8 = _e8(form["exposure_after"]) - before_e8
        record = DecisionRecord(
            portfolio=portfolio,
            seq=seq,
            command=form["command"],
            key=form["key"],
            outcome=form["outcome"],
            reason=form["reason"],
            position=None if full_id is None else split_position_id(full_id)[1],
            tags=form.get("tags", ""),
            budget_e8=_optional(_e8, form["budget"]),
            quantity=form["quantity"],
            fraction=form["fraction"],
            raw_budget=form["raw_budget"],
            held_delta_e8=_e8(form["held_change"]) if "held_change" in form else change_e8,
            open_delta_e8=_e8(form["open_change"]) if "open_change" in form else 0,
            headroom_e8=_optional(_e8, form["headroom_before"]),
            exposure_e8=before_e8,
            binding=form["binding"],
            expires_us=_optional(_us, form["expires_at"]),
            decided_us=_us(form["decided_at"]),
            request=form.get("request", ""),
            trace=form.get("trace", ""),
            hash=form["hash"] or "",
        )
        return record.decision(replayed=form["replayed"])
    except FORM_ERRORS as error:
        raise unreadable_form("decision", error) from None


def position_to_json(position: Position) -> Json:
    """A position with its legs."""
    return {
        "position_id": position.position_id,
        "portfolio": position.portfolio,
        "state": position.state,
        "tags": dict(position.tags),
        "held": decimal_text(position.held),
        "open": decimal_text(position.open),
        "notional": decimal_text(position.notional),
        "quantity": _optional(decimal_text, position.quantity),
        "price": _optional(decimal_text, position.price),
        "legs": [leg_to_json(leg) for leg in position.legs],
        "expires_at": _optional(time_text, position.expires_at),
        "opened_at": time_text(position.opened_at),
        "updated_at": time_text(position.updated_at),
        "updated_seq": position.updated_seq,
        "origin": None if position.origin is None else position_id(position.portfolio, position.origin),
    }


def position_from_json(form: Mapping[str, Any]) -> Position:
    """Convert the output of `position_to_json` back."""
    try:
        portfolio, number = split_position_id(form["position_id"])
        origin = form["origin"]
        return Position(
            portfolio=portfolio,
            number=number,
            state=form["state"],
            tags=tags_of(form["tags"]),
            held_e8=_e8(form["held"]),
            open_e8=_e8(form["open"]),
            quantity=_optional(Decimal, form["quantity"]),
            price=_optional(Decimal, form["price"]),
            legs=tuple(leg_from_json(leg) for leg in form["legs"]),
            expires_us=_optional(_us, form["expires_at"]),
            opened_us=_us(form["opened_at"]),
            updated_us=_us(form["updated_at"]),
            updated_seq=form["updated_seq"],
            origin=None if origin is None else split_position_id(origin)[1],
        )
    except FORM_ERRORS as error:
        raise unreadable_form("position", error) from None


def scope_to_json(row: ScopeExposure) -> Json:
    """One scope's cap and exposure."""
    return {
        "scope": row.scope,
        "cap": _optional(decimal_text, row.cap),
        "held": decimal_text(row.held),
        "open": decimal_text(row.open),
        "exposure": decimal_text(row.exposure),
        "headroom": _optional(decimal_text, row.headroom),
        "overage": decimal_text(row.overage),
        "status": row.status,
        "frozen": row.frozen,
        "fresh_until": _optional(time_text, row.fresh_until),
    }


def exposure_to_json(exposure: Exposure) -> Json:
    """A portfolio's exposure: the whole portfolio, then every scope."""
    whole = scope_to_json(exposure.whole)
    del whole["scope"]
    scopes = [scope_to_json(row) for row in exposure.scopes]
    return {"portfolio": exposure.portfolio, "seq": exposure.seq, **whole, "scopes": scopes}


def scope_from_json(form: Mapping[str, Any]) -> ScopeExposure:
    """Convert the output of `scope_to_json` back."""
    return ScopeExposure(
        form["scope"],
        _optional(Decimal, form["cap"]),
        Decimal(form["held"]),
        Decimal(form["open"]),
        form["status"],
        form["frozen"],
        _optional(datetime.fromisoformat, form["fresh_until"]),
    )


def exposure_from_json(form: Mapping[str, Any]) -> Exposure:
    """Convert the output of `exposure_to_json` back."""
    try:
        return Exposure(form["portfolio"], form["seq"], tuple(scope_from_json(row) for row in form["scopes"]))
    except FORM_ERRORS as error:
        raise unreadable_form("exposure", error) from None


def heads_to_json(heads: Mapping[str, tuple[int, str]]) -> Json:
    """Chain heads, in the format of the service's response and of a file of trusted heads."""
    return {"heads": {name: {"seq": seq, "hash": head} for name, (seq, head) in heads.items()}}


def heads_from_json(form: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Convert the output of `heads_to_json` back."""
    try:
        found = {name: (head["seq"], head["hash"]) for name, head in form["heads"].items()}
    except FORM_ERRORS as error:
        raise unreadable_form("list of chain heads", error) from None
    for seq, head in found.values():
        if not is_head(seq, head):
            raise unreadable_form("list of chain heads", ValueError(f"seq {seq!r}, hash {head!r}"))
    return found


def page_to_json(page: Page[T], item_to_json: Callable[[T], Json]) -> Json:
    """One page of a listing: `items`, and the `cursor` of the next page (null after the last)."""
    return {"items": [item_to_json(item) for item in page.items], "cursor": page.cursor}


def page_from_json(form: Mapping[str, Any], item_from_json: Callable[[Mapping[str, Any]], T]) -> Page[T]:
    """Convert the output of `page_to_json` back."""
    try:
        return Page(tuple(item_from_json(item) for item in form["items"]), form["cursor"])
    except FORM_ERRORS as error:
        raise unreadable_form("page", error) from None


FORM_ERRORS = (KeyError, TypeError, ValueError, AttributeError, InvalidOperation, LedgerError)
"""The exceptions that parsing a malformed form raises."""


def unreadable_form(what: str, error: Exception) -> InternalError:
    """Return the error for a form that no service of this package wrote."""
    return InternalError(f"this is no {what} of a ledger-sizer service: {type(error).__name__} {error}")


def _optional(convert: Callable[[T], U], value: T | None) -> U | None:
    return None if value is None else convert(value)


def _e8(text: str) -> int:
    """Convert USD text to whole units of 1e-8 USD. Raises `ValueError` for more than 8 decimals."""
    with exact_arithmetic():
        scaled = Decimal(text).scaleb(USD_DECIMALS)
        whole = int(scaled)
    if whole != scaled:
        raise ValueError(f"{text!r} has more than {USD_DECIMALS} decimals")
    return whole


def _us(text: str) -> int:
    return to_us(datetime.fromisoformat(text))
