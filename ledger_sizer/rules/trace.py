"""Writes the trace of a decision: the input of the rules as canonical JSON. It is stored, hashed and read by `explain`.

{"scopes": [[name, cap_e8 | null, held_e8, open_e8, status], ...],     each scope before the command; one that is
                                    frozen or has a `fresh_until` adds: frozen (0 or 1), fresh_until_us | null;
                                    then an object of all later settings that differ from their default
 "desk": "halted",                   the desk's status, where it is not active
 "policy": {...}, "match": {...}, "legs": [...], "note": "late_fill", "after": [...],   where they apply
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
from ledger_sizer.model.instruments import Leg, legs_text
from ledger_sizer.model.scope_settings import LATER, NO_SETTINGS, ScopeSettings
from ledger_sizer.model.units import decimal_text
from ledger_sizer.rules.sizing import Match
from ledger_sizer.rules.state import ScopeState

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
    desk_status: Status = "active",
    policy: str | None = None,
    match: Match | None = None,
    legs: Sequence[Leg] = (),
    note: str | None = None,
    after: ScopeState | None = None,
    group: str | None = None,
) -> str:
    """Return the trace. Built by hand: every decision writes one, and a general encoder takes three times as long."""
    parts = [f'"scopes":[{_scope_rows(scopes)}]']
    if desk_status != "active":
        parts.append(f'"desk":"{desk_status}"')
    if policy is not None:
        parts.append(f'"policy":{policy}')
    if match is not None:
        figures = {"step": decimal_text(match.step), "raw_quantity": decimal_text(match.raw_quantity)}
        if match.notional_usd is not None:
            figures["notional_usd"] = decimal_text(match.notional_usd)
        if match.reason is not None:
            figures["reason"] = match.reason
        parts.append(f'"match":{_encode(figures)}')
    if legs:
        parts.append(f'"legs":{legs_text(legs)}')
    if note is not None:
        parts.append(f'"note":{_quoted(note)}')
    if after is not None:
        parts.append(f'"after":{_scope_rows([after])}')
    if group is not None:
        parts.append(f'"group":{group}')
    return "{" + ",".join(parts) + "}"


def group_text(tried: str, denied_by: DecisionRecord | None) -> str:
    """Return what the trace of a member of a denied group adds to the state that the group found and left.

    tried: the member's trace after the commands before it in the group. denied_by: the neighbour's denial; None for a
    member that was denied for a reason of its own.
    """
    if denied_by is None:
        return f'{{"tried":{tried}}}'
    neighbour = {name: getattr(denied_by, name) for name in ("portfolio", "key", "reason", "binding")}
    return f'{{"tried":{tried},"denied_by":{_encode(neighbour)}}}'
