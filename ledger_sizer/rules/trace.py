"""Writes the trace of a decision: the input of the rules as canonical JSON. It is stored, hashed and read by `explain`.

{"scopes": [[name, cap_e8 | null, held_e8, open_e8, status], ...],     each scope before the command; one that is
                                    frozen or has a `fresh_until` adds: frozen (0 or 1), fresh_until_us | null;
                                    then an object of all later settings that differ from their default
 "policy": {...}, "match": {...}, "legs": [...], "note": "late_fill", "after": [...]}  where they apply
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ledger_sizer.model.command_base import ScopeCommand
from ledger_sizer.model.commands import COMMANDS
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
        cap_e8, status, frozen, fresh_until_us = scope.settings[:4]
        cap = "null" if cap_e8 is None else cap_e8
        more = "" if not frozen and fresh_until_us is None and not LATER else _rare_settings(scope.settings)
        rows.append(f'[{_quoted(scope.name)},{cap},{scope.held_e8},{scope.open_e8},"{status}"{more}]')
    return ",".join(rows)


def _rare_settings(settings: ScopeSettings) -> str:
    """Return the end of a row: what is set of the settings that few scopes have."""
    named = {name: value for name in LATER if (value := getattr(settings, name)) != getattr(NO_SETTINGS, name)}
    if not settings.frozen and settings.fresh_until_us is None and not named:
        return ""
    until = "null" if settings.fresh_until_us is None else settings.fresh_until_us
    return f",{settings.frozen:d},{until}{f',{_encode(named)}' if named else ''}"


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
    policy: str | None = None,
    match: Match | None = None,
    legs: Sequence[Leg] = (),
    note: str | None = None,
    after: ScopeState | None = None,
) -> str:
    """Return the trace. Built by hand: every decision writes one, and a general encoder takes three times as long."""
    parts = [f'"scopes":[{_scope_rows(scopes)}]']
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
    return "{" + ",".join(parts) + "}"
