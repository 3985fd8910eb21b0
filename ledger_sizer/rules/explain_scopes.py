"""Explains the scopes of a decision: what each was set to and counted, and what was kept for others."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ledger_sizer.model.denials import DENIALS, DESK_BINDING, GROUP_DENIED
from ledger_sizer.model.tags import is_default_scope
from ledger_sizer.model.times import from_us, time_text
from ledger_sizer.model.units import usd_text
from ledger_sizer.rules.bounds import GUARANTEE, MAX_POSITION, cap_bounds, headrooms
from ledger_sizer.rules.state import ScopeState
from ledger_sizer.rules.trace import read_scope


class Scopes(NamedTuple):
    """The scopes that a decision was about, and the others that it depended on, as it found them."""

    own: Sequence[ScopeState]
    others: Sequence[ScopeState]

    @classmethod
    def of(cls, trace: Mapping[str, Any]) -> "Scopes":
        """Read them from a trace."""
        own, others = [[_scope_state(row) for row in trace.get(name, ())] for name in ("scopes", "others")]
        return cls(own, others)

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


def scope_lines(own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in words what `Scopes.data` and `Scopes.data_of_others` return."""
    defaults = [f"The default {one['scope']}: cap {one['cap']} USD." for one in others if "cap" in one]
    kept = [
        f"Kept for {one['scope']}: {one['kept']} USD (guarantee {one['guarantee']}, of which it uses "
        f"{one['exposure']})."
        for one in others
        if "kept" in one
    ]
    return [*map(_scope_line, own), *defaults, *kept]


def reason_words(reason: str, binding: str | None) -> str:
    """Return a denial's reason as the end of a sentence."""
    _, words = DENIALS.get(reason, ("", reason))
    if reason == GROUP_DENIED:
        # Decisions of earlier versions name no neighbour.
        return words.format(binding=repr(binding)) if binding is not None else words.partition(":")[0]
    if reason == "cap_exceeded":
        return words.format(binding=bound_words(binding))
    return words.format(binding="the desk" if binding == DESK_BINDING else binding)


def bound_words(binding: str | None) -> str:
    """Return a cap, a guarantee or a maximum that bound a request, in words. binding: of its decision."""
    if binding is not None and binding.startswith(GUARANTEE):
        return f"the portfolio's cap, less what is guaranteed to others (most to {binding.removeprefix(GUARANTEE)}),"
    if binding is not None and binding.startswith(MAX_POSITION):
        return f"the largest position of {binding.removeprefix(MAX_POSITION)}"
    return f"the cap of {binding}"


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


def _scope_line(scope: Mapping[str, Any]) -> str:
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
        return f"Scope {scope['scope']}: no cap, {counted}{more}."
    cap = f"cap {scope['cap']}{' by default' if scope['by_default'] else ''}"
    return f"Scope {scope['scope']}: {cap}, {counted}, headroom {scope['headroom']} USD{more}."


def _usd(amount_e8: int | None) -> str | None:
    return None if amount_e8 is None else usd_text(amount_e8)
