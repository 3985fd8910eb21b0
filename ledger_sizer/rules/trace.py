"""The trace of a decision: what it saw, as canonical JSON that is stored, hashed and read by `explain`.

{"scopes": [[name, cap_e8 | null, held_e8, open_e8, status], ...],     each scope before the command; one that is
                                       frozen or has an end of trust adds: frozen (0 or 1), fresh_until_us | null
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


def _rows(scopes: Sequence[ScopeState]) -> str:
    return ",".join(
        [
            f"[{_quoted(scope.name)},{'null' if scope.cap_e8 is None else scope.cap_e8},"
            f'{scope.held_e8},{scope.open_e8},"{scope.status}"{_reconciliation(scope)}]'
            for scope in scopes
        ]
    )


def _reconciliation(scope: ScopeState) -> str:
    if not scope.frozen and scope.fresh_until_us is None:
        return ""
    return f",{scope.frozen:d},{'null' if scope.fresh_until_us is None else scope.fresh_until_us}"


ABOUT_A_SCOPE = ("set_cap", "halt", "resume", "freeze", "thaw", "reconciled")
"""Commands that change what stands of a scope besides its counters; their trace shows it `after`."""


def reconciliation_of(row: Sequence[Any]) -> tuple[int, int | None]:
    """(frozen, fresh_until_us) of a scope's row in a trace."""
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
    """Write the trace. Built by hand because every decision pays for it and a general encoder costs thrice as much."""
    parts = [f'"scopes":[{_rows(scopes)}]']
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
        parts.append(f'"after":{_rows([after])}')
    return "{" + ",".join(parts) + "}"
