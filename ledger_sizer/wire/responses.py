"""Converts decisions, explanations, positions, exposure and heads to JSON and back.

`..._from_json` restores from the output of `..._to_json` an object that is equal in every public property.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, TypeVar, get_args

from ledger_sizer.model.choices import Status
from ledger_sizer.model.decisions import Decision, DecisionRecord, is_head
from ledger_sizer.model.domain import Exposure, ExposurePage, Position, ScopeExposure
from ledger_sizer.model.fills import fills_of_json, fills_to_json
from ledger_sizer.model.legs import Leg, order_from_json, order_to_json, stored_leg_from_json, stored_leg_to_json
from ledger_sizer.model.names import position_id, split_position_id
from ledger_sizer.model.pools import DefaultCap, Pool
from ledger_sizer.model.times import UNTIL_KNOWN_US, from_us, time_text
from ledger_sizer.model.units import usd_text
from ledger_sizer.rules.explain import Explanation
from ledger_sizer.wire.codec import FORM_ERRORS, PAIRS, Codec, Json, Pair, e8_of, optional, unreadable_form, us_of

T = TypeVar("T")
U = TypeVar("U")


@lru_cache(maxsize=1024)
def time_text_of(us: int) -> str:
    """Format microseconds like `time_text`. Cached, because all decisions of a commit have the same time."""
    return time_text(from_us(us))


def decision_to_json(decision: Decision, *, full: bool = False) -> Json:
    """Convert a decision. `full` adds the fields without which its place in the hash chain cannot be checked.

    A remark has its `request` in the short form too: what it says stands nowhere else.
    Of these `tags`, `request` and `trace` are objects, their names in the order of the texts that the chain hashes.
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
        "expires_at": None if decision.until_known else _optional(time_text_of, record.expires_us),
        "until_known": decision.until_known,
        "decided_at": time_text_of(record.decided_us),
        "actor": record.actor,
        "client": record.client,
        "reference": record.reference,
        "hash": record.hash or None,
        "legs": [order_to_json(leg) for leg in decision.legs],
    }
    if full:
        form["held_change"] = usd_text(record.held_delta_e8)
        form["open_change"] = usd_text(record.open_delta_e8)
        form["tags"] = _object_of(record.tags)
        form["request"] = _object_of(record.request)
        form["trace"] = _object_of(record.trace)
    elif record.command == "remark" and record.request:
        form["request"] = _object_of(record.request)
    return form


def _object_of(text: str) -> Any:
    """Return the object in a recorded text; the text itself where it holds none, so that a damaged row can be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if type(found) is dict else text


_canonical = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


def _text_of(form: object) -> str:
    """Return the recorded text of an object. Exports and older services give the text itself.

    All recorded texts are compact ASCII JSON, so writing the object in its own order gives the same characters.
    """
    if isinstance(form, str):
        return form
    if isinstance(form, dict):
        return _canonical(form)
    raise TypeError(f"{form!r:.40} is no object")


def decision_from_json(form: Mapping[str, Any]) -> Decision:
    """Convert the output of `decision_to_json` back.

    From the full form the decision equals the original, record and hash included. From the short form `trace` is an
    empty text, and `request` but for a remark; every other public property is there. Raises `InternalError` for any
    other form.
    """
    try:
        seq, portfolio = form["seq"] or 0, form["portfolio"]
        full_id = form["position_id"]
        before_e8 = e8_of(form["exposure_before"])
        change_e8 = e8_of(form["exposure_after"]) - before_e8
        record = DecisionRecord(
            portfolio=portfolio,
            seq=seq,
            command=form["command"],
            key=form["key"],
            outcome=form["outcome"],
            reason=form["reason"],
            position=None if full_id is None else split_position_id(full_id)[1],
            tags=_text_of(form.get("tags", "")),
            budget_e8=_optional(e8_of, form["budget"]),
            quantity=form["quantity"],
            fraction=form["fraction"],
            raw_budget=form["raw_budget"],
            held_delta_e8=e8_of(form["held_change"]) if "held_change" in form else change_e8,
            open_delta_e8=e8_of(form["open_change"]) if "open_change" in form else 0,
            headroom_e8=_optional(e8_of, form["headroom_before"]),
            exposure_e8=before_e8,
            binding=form["binding"],
            expires_us=UNTIL_KNOWN_US if form.get("until_known") else _optional(us_of, form["expires_at"]),
            decided_us=us_of(form["decided_at"]),
            request=_text_of(form.get("request", "")),
            trace=_text_of(form.get("trace", "")),
            actor=form.get("actor"),
            client=form.get("client"),
            reference=form.get("reference"),
            hash=form["hash"] or "",
        )
        orders = None if record.trace else tuple(order_from_json(leg) for leg in form.get("legs", ()))
        return Decision(record, form["replayed"], orders)
    except FORM_ERRORS as error:
        raise unreadable_form("decision", error) from None


def explanation_to_json(found: Explanation) -> Json:
    """Convert an explanation: its data, and its `text` for people."""
    return {"text": found.text, **found.data}


PAIRS[Decision] = Pair(partial(decision_to_json, full=True), decision_from_json)
PAIRS[Leg] = Pair(stored_leg_to_json, stored_leg_from_json)

number_of = optional(lambda id_text: split_position_id(id_text)[1])
"""Returns the number of a position by its name, None for None."""

POSITION = Codec(
    Position,
    "position_id portfolio state tags held open notional quantity price cost filled unfilled legs expires_at"
    " until_known opened_at updated_at updated_seq origin fills reference",
    docs={
        "origin": "The ended position whose late fill this is.",
        "cost": "USD that the open quantity cost, exact.",
        "filled": "Coins filled by all entries, closes not subtracted.",
        "unfilled": "Coins granted and not filled; null for a plain budget.",
        "until_known": "The hold never ends by time.",
        "fills": "What quantity and price do not say.",
        "reference": "The last that a decision about it gave.",
    },
    write={
        "origin": lambda found: None if found.origin is None else position_id(found.portfolio, found.origin),
        "fills": lambda found: fills_to_json(found.fills),
    },
    read={
        "number": lambda form: number_of(form["position_id"]),
        "expires_us": lambda form: UNTIL_KNOWN_US if form.get("until_known") else _optional(us_of, form["expires_at"]),
        "fills": lambda form: fills_of_json(form.get("fills")),
        "reference": lambda form: form.get("reference"),
        "origin": lambda form: number_of(form["origin"]),
    },
    types={"origin": str | None},
)
position_to_json, position_from_json = POSITION.to_json, POSITION.from_json

_FIGURES = (
    "cap held open exposure headroom overage status frozen fresh_until max_position_usd share_of_equity frozen_note"
)
_FIGURE_DOCS = {
    "frozen": "New reservations are denied because of a drift.",
    "fresh_until": "From then on they are denied because nobody compared since.",
    "max_position_usd": "Most one position may be, instead of the settings' maximum; null where that counts.",
    "share_of_equity": "The fraction of the accounts' equity that the cap follows; null where it follows none.",
    "frozen_note": "Why it is frozen, such as the drift that froze it.",
    "free_balance": "Of an exchange account: what was free when it was seen last.",
    "promised": "Of an exchange account: what grants and fills used of its free balance since.",
    "cap": "The cap that counts: its own, else the default of its tag name.",
    "cap_from": "The scope of that default, like `venue=*`; null where the cap is its own.",
    "guarantee": "What the scope can always have.",
    "kept": "What requests outside of the scope must leave for it: guarantee less exposure, at least 0.",
}
POOL = Codec(
    Pool,
    docs={
        "guaranteed": "Its guarantee.",
        "used": "Its exposure, which may be more.",
        "kept": "What requests outside of it must leave for it.",
        "lent_out": "The part of `kept` that it could not have now, because others use it.",
    },
)
DEFAULT_CAP = Codec(DefaultCap)
SCOPE = Codec(
    ScopeExposure,
    f"scope {_FIGURES} cap_from guarantee kept free_balance promised",
    _FIGURE_DOCS,
    later="max_position_usd cap_from guarantee share_of_equity frozen_note free_balance promised",
)
FIGURES = Codec(ScopeExposure, _FIGURES, {name: text for name, text in _FIGURE_DOCS.items() if name != "cap"})
EXPOSURE = Codec(
    Exposure,
    f"portfolio seq {_FIGURES} shared pools defaults scopes",
    {
        **FIGURES.docs,
        "shared": "What a request outside of every pool could still have.",
        "pools": "Every guaranteed scope, on every page.",
        "defaults": "Every default cap, on every page.",
    },
    later="pools defaults",
)
scope_to_json, scope_from_json = SCOPE.to_json, SCOPE.from_json
exposure_to_json, exposure_from_json = EXPOSURE.to_json, EXPOSURE.from_json


def exposure_page_to_json(page: ExposurePage) -> Json:
    """A page of exposure, in the form of an exposure."""
    return {**exposure_to_json(page.exposure), "cursor": page.cursor}


def exposure_page_from_json(form: Mapping[str, Any]) -> ExposurePage:
    """Convert the output of `exposure_page_to_json` back. Services of before pages had one without a cursor."""
    cursor = form.get("cursor")
    if not isinstance(cursor, str | None):
        raise unreadable_form("exposure", ValueError(f"cursor {cursor!r}"))
    return ExposurePage(exposure_from_json(form), cursor)


def desk_to_json(status: Status, change: Decision | None) -> Json:
    """Convert the desk's status, and what is known of the halt or resume that set it."""
    record = None if change is None else change.record
    return {
        "status": status,
        "seq": record and record.seq,
        "since": record and time_text_of(record.decided_us),
        "actor": record and record.actor,
        "note": record and json.loads(record.request).get("note"),
    }


def desk_status_from_json(form: Mapping[str, Any]) -> Status:
    """Return the status in the output of `desk_to_json`."""
    if form.get("status") not in get_args(Status):
        raise unreadable_form("desk", ValueError(f"status {form.get('status')!r}"))
    status: Status = form["status"]
    return status


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


def _optional(convert: Callable[[T], U], value: T | None) -> U | None:
    return None if value is None else convert(value)
