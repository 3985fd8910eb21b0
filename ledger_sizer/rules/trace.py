"""Writes the trace of a decision: the input of the rules as canonical JSON. It is stored, hashed and read by `explain`.

{"scopes": [[name, cap_e8 | null, held_e8, open_e8, status], ...],     each scope before the command; one that is
                                    frozen or has a `fresh_until` adds: frozen (0 or 1), fresh_until_us | null
 "policy": {...}, "match": {...}, "legs": [...], "note": "late_fill", "after": [...]}  where they apply
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ledger_sizer.model.instruments import Leg, legs_text
from ledger_sizer.model.units import decimal_text
from ledger_sizer.rules.sizing import Match
from ledger_sizer.rules.state import ScopeState

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode
_quoted = lru_cache(maxsize=8192)(_encode)


def _scope_rows(scopes: Sequence[ScopeState]) -> str:
    return ",".join(
        [
            f"[{_quoted(scope.name)},{'null' if scope.cap_e8 is None else scope.cap_e8},"
            f'{scope.held_e8},{scope.open_e8},"{scope.status}"{_reconciliation_fields(scope)}]'
            for scope in scopes
        ]
    )


def _reconciliation_fields(scope: ScopeState) -> str:
    if not scope.frozen and scope.fresh_until_us is None:
        return ""
    return f",{scope.frozen:d},{'null' if scope.fresh_until_us is None else scope.fresh_until_us}"


SCOPE_COMMANDS = ("set_cap", "halt", "resume", "freeze", "thaw", "reconciled")
"""Commands that change a scope, except its counters; their trace shows the scope `after` the change."""


def reconciliation_of(row: Sequence[Any]) -> tuple[int, int | None]:
    """Return (frozen, fresh_until_us) of a scope's row in a trace."""
    return (row[5], row[6]) if len(row) > 5 else (0, None)


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
