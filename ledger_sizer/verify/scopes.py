"""Verifies scopes: what each decision saw of a scope must be what the decisions before it left.

A decision's trace shows each of its scopes as the decision found it. So the trace reveals an edit of a scope's row
before the decision, even if the row was corrected afterwards.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from ledger_sizer.model.decisions import DecisionRecord, Fields
from ledger_sizer.model.domain import Position
from ledger_sizer.model.scope_settings import LATER, NO_SETTINGS, ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, is_default_scope, stored_tags
from ledger_sizer.rules.accounts import promised_after
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.trace import DEFAULT_CAP, read_scope
from ledger_sizer.storage.tables import ScopeRow
from ledger_sizer.storage.write_store import position_from_row
from ledger_sizer.verify.position_fold import FoldedPosition
from ledger_sizer.verify.positions import READ_ERRORS, Report, find_wrong_type

_SCOPES: Any = ScopeRow.__table__
_SEQ, _COMMAND = DecisionRecord._fields.index("seq"), DecisionRecord._fields.index("command")
_HELD, _OPEN = DecisionRecord._fields.index("held_delta_e8"), DecisionRecord._fields.index("open_delta_e8")
_TRACE, _TAGS = DecisionRecord._fields.index("trace"), DecisionRecord._fields.index("tags")
_DEPENDS_ON_OTHERS = ("reserve", "retag")
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode

_Values = tuple[ScopeSettings, int, int]
"""What a scope is set to, and its held and open, 1e-8 USD."""
_UNUSED: _Values = (NO_SETTINGS, 0, 0)


class ScopeCheck:
    """Verifies the scopes of one portfolio.

    whole: reading begins at the first decision. report: called with each finding.
    """

    def __init__(self, *, whole: bool, report: Report) -> None:
        self._whole = whole
        self._report = report
        self._expected: dict[str, _Values] = {}  # by scope: what the decisions so far left
        self._shared: set[str] = set()  # scopes that decisions must show which depend on them
        self.accounts: dict[str, ScopeState] = {}
        """The exchange accounts as the decisions before the last one left them."""
        self._said: tuple[int, Any] = (0, {})  # the last decision, and what accounts it says promised after it

    def add(self, record: Fields) -> None:
        """Check what one decision saw, and add what it changed. Decisions must come in order."""
        seq, held, opened = record[_SEQ], record[_HELD], record[_OPEN]
        try:
            trace = from_json(record[_TRACE])
            moved = _moved(trace["moved"], record) if "moved" in trace else None
            others = [self._seen(seq, row) for row in trace.get("others", ())]
            own = [self._seen(seq, row) for row in trace["scopes"]]
            looks = record[_COMMAND] in _DEPENDS_ON_OTHERS and "group" not in trace
            if looks and self._whole and (self._shared or others):
                self._check_others(seq, own, others)
            for name in own:
                settings, held_e8, open_e8 = self._expected[name]
                if moved is not None:
                    held, opened = moved[name]
                self._expected[name] = (settings, held_e8 + held, open_e8 + opened)
            if self.accounts or "promised" in trace:
                self.accounts = {name: self._account(name) for name in sorted(self.accounts)}
                self._said = (seq, trace.get("promised", {}))
            for name, promised_e8 in trace.get("promised", {}).items():
                settings, held_e8, open_e8 = self._expected.get(name, _UNUSED)
                self._expected[name] = (settings._replace(promised_e8=promised_e8), held_e8, open_e8)
            if "after" in trace:
                name, settings, held_e8, open_e8 = read_scope(trace["after"])
                self._expected[name] = (settings, held_e8, open_e8)
                if settings.guarantee_e8 is not None or trace.get("note") == DEFAULT_CAP:
                    self._shared.add(name)
                if settings.since_seq is not None and self._whole:
                    self.accounts[name] = self._account(name)
                else:
                    self.accounts.pop(name, None)
        except READ_ERRORS as error:
            self._report(seq, f"the trace of decision {seq} cannot be read: {error!r}")

    def _account(self, name: str) -> ScopeState:
        settings, held_e8, open_e8 = self._expected[name]
        return ScopeState(name, settings, held_e8, open_e8)

    def check_promise(self, changed: tuple[FoldedPosition | None, FoldedPosition] | None) -> None:
        """Check what the last decision says that accounts have promised after it.

        changed: its position before and after it; None where it changed none.
        """
        seq, said = self._said
        found: dict[str, int] = {}
        if changed is not None:
            before, after = changed
            known = None if before is None else _position(before)
            found = promised_after(self.accounts, self.accounts, known, _position(after))
        if said != found:
            self._report(seq, f"decision {seq} says that accounts promised {said!r:.200}; its position says {found}")

    def _seen(self, seq: int, row: Any) -> str:
        """Compare a scope as a decision saw it with what the decisions before left. Return its name."""
        name, settings, held_e8, open_e8 = read_scope(row)
        seen = (settings, held_e8, open_e8)
        expected = self._expected.get(name) or (self._initial(name, settings) if self._whole else seen)
        if seen != expected:
            self._report(seq, f"decision {seq} saw a scope {name} that {_text(seen)}; decided: {_text(expected)}")
        self._expected[name] = seen
        return name

    def _check_others(self, seq: int, own: Sequence[str], others: Sequence[str]) -> None:
        """Check that a decision saw every default cap and every guarantee that it depended on, and no other scope.

        A default cap that an older version set, as that of a value `*`, may have borne on it or not.
        """
        missing = {name for name in self._shared.difference(own, others) if self._bears_on(name, own)}
        pools = [name for name in others if self._expected[name][0].since_seq is None]  # the rest are accounts
        needless = {name for name in pools if name in own or not self._bears_on(name, own)}
        for name in sorted(missing | needless):
            saw = "saw" if name in needless else "did not see"
            self._report(seq, f"decision {seq} {saw} the scope {name}, which {_text(self._expected[name])}")

    def _bears_on(self, name: str, own: Sequence[str]) -> bool:
        """Return whether a request in the scopes `own` depended on another: its guarantee, or its default cap."""
        settings, held_e8, open_e8 = self._expected[name]
        if not is_default_scope(name):
            return (settings.guarantee_e8 or 0) > held_e8 + open_e8
        return settings.cap_e8 is not None and any(
            one.startswith(name[:-1]) and self._expected[one][0].cap_e8 is None for one in own
        )

    def _initial(self, name: str, seen: ScopeSettings) -> _Values:
        """Return a scope's values before its first decision. The portfolio's first cap came from settings."""
        return (ScopeSettings(cap_e8=seen.cap_e8), 0, 0) if name == PORTFOLIO_SCOPE else _UNUSED

    def finish(self, rows: Iterable[Any], held: Mapping[str, int], opened: Mapping[str, int]) -> None:
        """Compare each row's counters with the sums of position rows, its cap and status with the last decision."""
        seen = set()
        for row in rows:
            seen.add(row.scope)
            if (wrong := find_wrong_type(_SCOPES, row)) is not None:
                self._report(None, f"scope {row.scope} {wrong}")
                continue
            self._compare(row, held.get(row.scope, 0), opened.get(row.scope, 0))
        decided = {name for name, (settings, *_) in self._expected.items() if settings != NO_SETTINGS}
        for scope in sorted({*held, *opened, *decided} - seen):
            self._report(None, f"scope {scope} is missing")

    def _compare(self, row: Any, held_e8: int, open_e8: int) -> None:
        for name, counted, summed in (("held", row.held_e8, held_e8), ("open", row.open_e8, open_e8)):
            if counted != summed:
                self._report(None, f"scope {row.scope} counts {name} {counted}e-8 USD, its positions {summed}e-8")
        overage = 0 if row.cap_e8 is None else max(row.held_e8 + row.open_e8 - row.cap_e8, 0)
        if row.overage_e8 != overage:
            self._report(None, f"scope {row.scope} records overage {row.overage_e8}e-8 USD, it is {overage}e-8")
        expected = self._expected.get(row.scope)
        if expected is None:
            if self._whole and row.scope != PORTFOLIO_SCOPE:
                self._report(None, f"scope {row.scope} stands in no decision")
            return
        stored = ScopeSettings(*[getattr(row, name) for name in ScopeSettings._fields])
        if stored != expected[0]:
            found = _text((stored, row.held_e8, row.open_e8))
            self._report(None, f"scope {row.scope} {found}; decided: {_text(expected)}")


def _position(folded: FoldedPosition) -> Position:
    return position_from_row("", (0, *folded))


def _moved(before: Mapping[str, Any], record: Fields) -> dict[str, tuple[int, int]]:
    """Return how much more each scope holds and has open after a decision that gave its position other tags."""
    held, opened = before["held"], before["open"]
    changes: dict[str, tuple[int, int]] = {}
    for name in stored_tags(_encode(before["tags"])).scopes:
        changes[name] = (-held, -opened)
    for name in stored_tags(record[_TAGS]).scopes:
        from_held, from_open = changes.get(name, (0, 0))
        changes[name] = (from_held + held + record[_HELD], from_open + opened + record[_OPEN])
    return changes


def _text(values: _Values) -> str:
    settings, held_e8, open_e8 = values
    cap_e8, status, frozen, fresh_until_us = settings[:4]
    text = f"has {'no cap' if cap_e8 is None else f'cap {cap_e8}e-8'} and is {status}{', frozen' if frozen else ''}"
    text += "" if fresh_until_us is None else f", fresh until {fresh_until_us}"
    text += "".join(f", {name} {getattr(settings, name)}" for name in LATER)
    return f"{text}, held {held_e8}e-8, open {open_e8}e-8"
