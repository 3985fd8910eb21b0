"""Explains the scopes of a decision: what each was set to and counted, and what was kept for others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ledger_sizer.model.denials import GUARANTEE, MAX_POSITION
from ledger_sizer.model.tags import is_default_scope
from ledger_sizer.model.times import from_us, time_text
from ledger_sizer.model.units import usd_text
from ledger_sizer.rules.bounds import cap_bounds, headrooms
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.trace import read_scope

_NAMED_MAX = 3
"""Most guaranteed scopes that a denial names."""


class Scopes(NamedTuple):
    """The scopes that a decision was about, and the others that it depended on, as it found them.

    after: the scope that it set, as it left it.
    """

    own: Sequence[ScopeState]
    others: Sequence[ScopeState]
    after: ScopeState | None = None

    @classmethod
    def of(cls, trace: Mapping[str, Any]) -> "Scopes":
        """Read them from a trace."""
        own, others = [[_scope_state(row) for row in trace.get(name, ())] for name in ("scopes", "others")]
        return cls(own, others, _scope_state(trace["after"]) if "after" in trace else None)

    def left_by(self, binding: str | None) -> int | None:
        """Return what the cap of a scope, or the guarantees of others, left: 1e-8 USD; None where neither is meant."""
        found = dict(headrooms(self.own, self.others))
        if self.own and binding is not None and binding.startswith(GUARANTEE):
            found |= dict(cap_bounds(self.own, self.others))
        return found.get(binding or "")

    def data(self) -> list[dict[str, Any]]:
        """Return what each scope was set to and counted, USD as text."""
        left = dict(headrooms(self.own, self.others))
        return [_scope_data(scope, left.get(scope.name)) for scope in self.own]

    def data_of_after(self) -> dict[str, Any] | None:
        """Return what the decision left of the scope that it set, USD as text."""
        return None if self.after is None else _scope_data(self.after, self.after.headroom_e8)

    def data_of_others(self) -> list[dict[str, Any]]:
        """Return the default caps that applied, and what was kept for guaranteed scopes, USD as text."""
        return [
            {"scope": one.name, "cap": _usd(one.cap_e8)}
            if is_default_scope(one.name)
            else {
                "scope": one.name, "guarantee": _usd(one.settings.guarantee_e8), "exposure": usd_text(one.exposure_e8),
                "kept": usd_text(one.kept_e8),
            }
            for one in self.others
        ]  # fmt: skip


def scope_lines(
    own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], after: Mapping[str, Any] | None
) -> list[str]:
    """Say in words what `Scopes.data`, `Scopes.data_of_others` and `Scopes.data_of_after` return."""
    defaults = [f"The default {one['scope']}: cap {one['cap']} USD." for one in others if "cap" in one]
    kept = [
        f"Kept for {one['scope']}: {one['kept']} USD (guarantee {one['guarantee']}, of which it uses "
        f"{one['exposure']})."
        for one in others
        if "kept" in one
    ]
    set_to = [] if after is None else [_scope_line(after, " after it")]
    return [*map(_scope_line, own), *defaults, *kept, *set_to]


def too_little_words(scopes: Scopes, binding: str, enough: str) -> str | None:
    """Say what a cap or the guarantees of others left to a request, as the end of a sentence; None where unknown.

    binding: of the denial. enough: what was more than that.
    """
    left_e8 = scopes.left_by(binding)
    if left_e8 is None:
        return None
    left = f"leaves {usd_text(left_e8)} USD, less than {enough}" if left_e8 > 0 else "leaves nothing"
    if not binding.startswith(GUARANTEE):
        return f"{_cap_words(scopes, binding)} {left}"
    kept = sorted((one for one in scopes.others if one.kept_e8), key=lambda one: -one.kept_e8)
    total_e8 = sum(one.kept_e8 for one in kept)
    named = ", ".join(f"{one.name} {usd_text(one.kept_e8)}" for one in kept[:_NAMED_MAX])
    more = f", {len(kept) - _NAMED_MAX} more" if len(kept) > _NAMED_MAX else ""
    return (
        f"the portfolio has {usd_text(left_e8 + total_e8)} USD left and keeps {usd_text(total_e8)} USD for others "
        f"({named}{more}), which {left}"
    )


def move_words(scopes: Scopes, binding: str) -> str | None:
    """Say why a position cannot move to other scopes, as the end of a sentence; None where the trace does not tell."""
    own = {one.name: one for one in scopes.own}
    if binding.startswith(GUARANTEE) and (left := own.get(binding.removeprefix(GUARANTEE))) is not None:
        guarantee = _usd(left.settings.guarantee_e8)
        return f"others use too much to keep free what is guaranteed to {left.name} ({guarantee} USD) once it leaves"
    if binding.startswith(MAX_POSITION) and (entered := own.get(binding.removeprefix(MAX_POSITION))) is not None:
        most = _usd(entered.settings.max_position_e8)
        return f"{entered.name} allows positions of at most {most} USD, less than the position counts"
    return too_little_words(scopes, binding, "the position counts")


def _cap_words(scopes: Scopes, binding: str) -> str:
    """Name a cap, and the default that it is."""
    default = f"{binding.partition('=')[0]}=*"
    by_default = any(one.name == binding and one.cap_e8 is None for one in scopes.own)
    return f"the cap of {binding} (the default of {default})" if by_default else f"the cap of {binding}"


def _scope_state(row: list[Any]) -> ScopeState:
    name, settings, held_e8, open_e8 = read_scope(row)
    return ScopeState(name, settings, held_e8, open_e8)


def _scope_data(scope: ScopeState, headroom_e8: int | None) -> dict[str, Any]:
    settings = scope.settings
    cap_e8 = None if headroom_e8 is None else headroom_e8 + scope.exposure_e8
    return {
        "scope": scope.name,
        "cap": _usd(cap_e8),
        "by_default": cap_e8 is not None and settings.cap_e8 is None,
        "held": usd_text(scope.held_e8),
        "open": usd_text(scope.open_e8),
        "headroom": _usd(headroom_e8),
        "status": settings.status,
        "frozen": bool(settings.frozen),
        "fresh_until": None if settings.fresh_until_us is None else time_text(from_us(settings.fresh_until_us)),
        "guarantee": _usd(settings.guarantee_e8),
        "max_position_usd": _usd(settings.max_position_e8),
    }


def _scope_line(scope: Mapping[str, Any], when: str = "") -> str:
    counted = f"held {scope['held']}, open {scope['open']}"
    more = "" if scope["status"] == "active" else f", {scope['status']}"
    if scope["frozen"]:
        more += ", frozen by a drift"
    if scope["fresh_until"] is not None:
        more += f", trusted until {scope['fresh_until']}"
    if scope["guarantee"] is not None:
        more += f", guarantee {scope['guarantee']}"
    if scope["max_position_usd"] is not None:
        more += f", largest position {scope['max_position_usd']}"
    if scope["cap"] is None:
        return f"Scope {scope['scope']}{when}: no cap, {counted}{more}."
    cap = f"cap {scope['cap']}{' by default' if scope['by_default'] else ''}"
    return f"Scope {scope['scope']}{when}: {cap}, {counted}, headroom {scope['headroom']} USD{more}."


def _usd(amount_e8: int | None) -> str | None:
    return None if amount_e8 is None else usd_text(amount_e8)
