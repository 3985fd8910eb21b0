"""Writes the trace of a decision: the input of the rules as canonical JSON. It is stored, hashed and read by `explain`.

{"promised": {"account=bybit/main": promised_e8},   what accounts have promised after it, where it changed that
 "scopes": [[name, cap_e8 | null, held_e8, open_e8, status], ...],     each scope before the command; one that is
                                    frozen or has a `fresh_until` adds: frozen (0 or 1), fresh_until_us | null;
                                    then an object of all later settings that differ from their default
 "others": [...],                   rows of scopes besides these that the decision depended on, where there are any:
                                    default caps that applied, guaranteed scopes that keep something, and the
                                    exchange accounts of the request
 "desk": "halted",                   the desk's status, where it is not active
 "policy": {...}, "match": {...},    where they apply; so the rest:
 "moved": {"tags": {...}, "held": held_e8, "open": open_e8},   the tags that the position had before, and what it
                                    counted in their scopes; without it, the tags are the decision's
 "entry": {"quantity": ..., "price": ..., "expires_us": ..., "fills": {...}},   of the position after the decision
 "grows": {"held": held_e8, "open": open_e8},   what a position counted that more is asked of
 "orders": [...],                   of more of a position: the legs of this grant
 "legs": [...],                     of the position after the decision
 "note": "default",                 of a `set_cap` of a default cap
 "note": "late_fill", "ended": "expired", "after": [...],   ended: the state of the position that it filled late
 "group": {"tried": trace, "denied_by": {...}}}     of a member of a denied group: see `group_text`
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ledger_sizer.model.choices import Status
from ledger_sizer.model.command_base import ScopeCommand
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.fills import fills_text
from ledger_sizer.model.legs import Leg, legs_text
from ledger_sizer.model.scope_settings import LATER, NO_SETTINGS, ScopeSettings
from ledger_sizer.model.units import decimal_text
from ledger_sizer.rules.leg_sizing import Match
from ledger_sizer.rules.scope_state import ScopeState

MOVED = "tags"
"""The `binding` of a decision that moved its position to other scopes: its trace has `moved`."""

DEFAULT_CAP = "default"
"""The `note` of a decision that set a default cap. To versions before it, `venue=*` was the scope of a venue `*`."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode
_quoted = lru_cache(maxsize=8192)(_encode)


SCOPE_COMMANDS = {name: command for name, command in COMMANDS.items() if issubclass(command, ScopeCommand)}
"""Commands that change a scope, except its counters, by verb; their trace shows the scope `after` the change."""


def _scope_rows(scopes: Sequence[ScopeState]) -> str:
    rows = []
    for scope in scopes:
        cap, rest = _settings_text(scope.settings)
        rows.append(f"[{_quoted(scope.name)},{cap},{scope.held_e8},{scope.open_e8},{rest}]")
    return ",".join(rows)


@lru_cache(maxsize=8192)
def _settings_text(settings: ScopeSettings) -> tuple[str, str]:
    """Return what stands before and after the counters in the row of a scope with these settings."""
    cap_e8, status, frozen, fresh_until_us = settings[:4]
    rest = f'"{status}"'
    named = {name: value for name in LATER if (value := getattr(settings, name)) != getattr(NO_SETTINGS, name)}
    if frozen or fresh_until_us is not None or named:
        rest += f",{frozen:d},{'null' if fresh_until_us is None else fresh_until_us}"
    return "null" if cap_e8 is None else str(cap_e8), f"{rest},{_encode(named)}" if named else rest


def read_scope(row: Sequence[Any]) -> tuple[str, ScopeSettings, int, int]:
    """Return a scope's name, settings, held and open (1e-8 USD) from its row in a trace. Raises `ValueError`."""
    name, cap_e8, held_e8, open_e8, status, *rest = row
    if not rest:
        return str(name), ScopeSettings(cap_e8, status), held_e8, open_e8
    frozen, fresh_until_us, *later = rest
    named = later[0] if later else {}
    if len(later) > 1 or not named.keys() <= set(LATER):
        raise ValueError(f"{row!r:.100} is no scope")
    return str(name), ScopeSettings(cap_e8, status, frozen, fresh_until_us, **named), held_e8, open_e8


def trace_text(
    scopes: Sequence[ScopeState],
    *,
    others: Sequence[ScopeState] = (),
    desk_status: Status = "active",
    policy: str | None = None,
    match: Match | None = None,
    position: Position | None = None,
    moved_from: Position | None = None,
    entry: bool = False,
    grows: Position | None = None,
    orders: Sequence[Leg] = (),
    note: str | None = None,
    ended: str | None = None,
    after: ScopeState | None = None,
    group: str | None = None,
) -> str:
    """Return the trace. Built by hand: every decision writes one, and a general encoder takes three times as long.

    position: as the decision leaves it; entry: whether its figures are written, and not only its legs. moved_from: the
    position before, where its tags were others. grows: the position before, where more of it is asked. ended: the
    state of the position that a late fill is of.
    """
    parts = [f'"scopes":[{_scope_rows(scopes)}]' + (f',"others":[{_scope_rows(others)}]' if others else "")]
    if desk_status != "active":
        parts.append(f'"desk":"{desk_status}"')
    if policy is not None:
        parts.append(f'"policy":{policy}')
    if match is not None:
        parts.append(f'"match":{_match_text(match)}')
    if moved_from is not None:
        parts.append(
            f'"moved":{{"tags":{moved_from.tags.text},"held":{moved_from.held_e8},"open":{moved_from.open_e8}}}'
        )
    if entry and position is not None:
        parts.append(f'"entry":{_entry_text(position)}')
    if grows is not None:
        parts.append(f'"grows":{{"held":{grows.held_e8},"open":{grows.open_e8}}}')
    if orders:
        parts.append(f'"orders":{legs_text(orders)}')
    if position is not None and position.legs:
        parts.append(f'"legs":{legs_text(position.legs)}')
    if note is not None:
        parts.append(f'"note":{_quoted(note)}' + (f',"ended":"{ended}"' if ended is not None else ""))
    if after is not None:
        parts.append(f'"after":{_scope_rows([after])}')
    if group is not None:
        parts.append(f'"group":{group}')
    return "{" + ",".join(parts) + "}"


def _match_text(match: Match) -> str:
    text = f'{{"step":"{decimal_text(match.step)}","raw_quantity":"{decimal_text(match.raw_quantity)}"'
    if match.notional_usd is not None:
        text += f',"notional_usd":"{decimal_text(match.notional_usd)}"'
    if match.binding is not None:
        text += f',"binding":"{match.binding}"'
    if match.reason is not None:
        text += f',"reason":"{match.reason}"'
    return f"{text}}}"


def _entry_text(position: Position) -> str:
    quantity, price = [
        "null" if value is None else f'"{decimal_text(value)}"' for value in (position.quantity, position.price)
    ]
    expires_us = "null" if position.expires_us is None else position.expires_us
    fills = fills_text(position.fills) or "null"
    return f'{{"quantity":{quantity},"price":{price},"expires_us":{expires_us},"fills":{fills}}}'


def group_text(tried: str, denied_by: DecisionRecord | None) -> str:
    """Return what the trace of a member of a denied group adds to the state that the group found and left.

    tried: the member's trace after the commands before it in the group. denied_by: the neighbour's denial; None for a
    member that was denied for a reason of its own.
    """
    if denied_by is None:
        return f'{{"tried":{tried}}}'
    neighbour = {name: getattr(denied_by, name) for name in ("portfolio", "key", "reason", "binding")}
    return f'{{"tried":{tried},"denied_by":{_encode(neighbour)}}}'
