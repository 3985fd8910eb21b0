"""Verifying scopes: what a decision saw of a scope must be what the decisions before it left.

A decision's trace shows each of its scopes as it found them. An edit of a scope's row between two decisions is thus
told by the second, also where the row was put right again since.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, select

from ledger_sizer.model.decisions import DecisionRecord, Fields
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.storage.tables import ScopeRow
from ledger_sizer.verify.positions import UNREADABLE, misfit

_SCOPES: Any = ScopeRow.__table__
_SEQ = DecisionRecord._fields.index("seq")
_HELD, _OPEN = DecisionRecord._fields.index("held_delta_e8"), DecisionRecord._fields.index("open_delta_e8")
_TRACE = DecisionRecord._fields.index("trace")
_PLAIN = 5
"""Columns of a scope in a trace that is neither frozen nor has an end of trust (see `trace`)."""


_Told = list[Any]
"""A scope as decisions tell it: cap_e8, held_e8, open_e8, status, frozen, fresh_until_us."""
_UNTOUCHED: _Told = [None, 0, 0, "active", 0, None]


class ScopeCheck:
    """The scopes of one portfolio, followed through its decisions.

    whole: the reading begins at the first decision. found: is told of what is wrong, with the seq where there is one.
    """

    def __init__(
        self, connection: Connection, portfolio_id: int, *, whole: bool, found: Callable[[int | None, str], None]
    ) -> None:
        self._connection = connection
        self._id = portfolio_id
        self._whole = whole
        self._found = found
        self._told: dict[str, _Told] = {}

    def tell(self, record: Fields) -> None:
        """One decision, in order."""
        seq, held, opened = record[_SEQ], record[_HELD], record[_OPEN]
        try:
            trace = from_json(record[_TRACE])
            for row in trace["scopes"]:
                name, seen = str(row[0]), _told(row)
                known = self._told.get(name) or (self._first(name, seen) if self._whole else seen)
                if seen != known:
                    self._found(seq, f"decision {seq} saw a scope {name} that {_text(seen)}; decided: {_text(known)}")
                seen[1] += held
                seen[2] += opened
                self._told[name] = seen
            if "after" in trace:
                self._told[str(trace["after"][0])] = _told(trace["after"])
        except UNREADABLE as error:
            self._found(seq, f"the trace of decision {seq} cannot be read: {error!r}")

    def _first(self, name: str, seen: _Told) -> _Told:
        """How a scope begins; the whole portfolio has the cap of the settings then."""
        return [seen[0], *_UNTOUCHED[1:]] if name == PORTFOLIO_SCOPE else _UNTOUCHED

    def finish(self, held: Mapping[str, int], opened: Mapping[str, int]) -> None:
        """Compare each row's counters with the position rows' sums, its cap and status with the last decision."""
        query = select(_SCOPES).where(ScopeRow.portfolio_id == self._id).order_by(ScopeRow.scope)
        seen = set()
        for row in self._connection.execute(query):
            seen.add(row.scope)
            if (wrong := misfit(_SCOPES, row)) is not None:
                self._found(None, f"scope {row.scope} {wrong}")
                continue
            self._compare(row, held.get(row.scope, 0), opened.get(row.scope, 0))
        decided = {name for name, told in self._told.items() if _settings(told) != _settings(_UNTOUCHED)}
        for scope in sorted({*held, *opened, *decided} - seen):
            self._found(None, f"scope {scope} is missing")

    def _compare(self, row: Any, held_e8: int, open_e8: int) -> None:
        for name, counted, summed in (("held", row.held_e8, held_e8), ("open", row.open_e8, open_e8)):
            if counted != summed:
                self._found(None, f"scope {row.scope} counts {name} {counted}e-8 USD, its positions {summed}e-8")
        overage = 0 if row.cap_e8 is None else max(row.held_e8 + row.open_e8 - row.cap_e8, 0)
        if row.overage_e8 != overage:
            self._found(None, f"scope {row.scope} records overage {row.overage_e8}e-8 USD, it is {overage}e-8")
        told = self._told.get(row.scope)
        if told is None:
            if self._whole and row.scope != PORTFOLIO_SCOPE:
                self._found(None, f"scope {row.scope} stands in no decision")
            return
        stored = [row.cap_e8, row.held_e8, row.open_e8, row.status, row.frozen, row.fresh_until_us]
        if _settings(stored) != _settings(told):
            self._found(None, f"scope {row.scope} {_text(stored)}; decided: {_text(told)}")


def _told(row: list[Any]) -> _Told:
    """A scope from its row in a trace."""
    told = row[1:] if len(row) > _PLAIN else [*row[1:], 0, None]
    if len(told) != len(_UNTOUCHED):
        raise ValueError(f"{row!r:.100} is no scope")
    return told


def _settings(told: _Told) -> _Told:
    """What administrators and the reconciliation made of it; the rest are counters."""
    return [told[0], *told[3:]]


def _text(told: _Told) -> str:
    cap_e8, held_e8, open_e8, status, frozen, fresh_until_us = told
    text = f"has {'no cap' if cap_e8 is None else f'cap {cap_e8}e-8'} and is {status}{', frozen' if frozen else ''}"
    text += "" if fresh_until_us is None else f", fresh until {fresh_until_us}"
    return f"{text}, held {held_e8}e-8, open {open_e8}e-8"
