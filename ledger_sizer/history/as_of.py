"""Computes exposure as of any past decision, from the decisions alone.

held and open of a scope are the sums of the decisions' deltas. The database sums the live rows by tag set and returns
few rows, whatever the length of history. Archive files are read line by line. Cap and status are what the last command
about the scope (`trace.SCOPE_COMMANDS`) set. The portfolio's first cap came from settings; every decision records the
portfolio's cap as headroom + exposure. One scan, linear in the decisions up to that point, in constant memory.
"""

import json
from datetime import datetime

from sqlalchemy import Connection, func, select

from ledger_sizer.history.archive_files import ArchiveFiles, manifests
from ledger_sizer.history.history import Filters, History
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.names import SEQ_MAX
from ledger_sizer.model.scope_settings import NO_SETTINGS, ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, stored_tags
from ledger_sizer.model.times import to_us
from ledger_sizer.model.units import E8_MAX
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.trace import MOVED, SCOPE_COMMANDS, read_scope
from ledger_sizer.storage.tables import DecisionRow

_MOVES_AT_ONCE = 1000

AsOf = int | datetime
"""A seq (after that decision), or an aware datetime (after the last decision made by then)."""


def scopes_as_of(
    connection: Connection, portfolio_id: int, portfolio: str, moment: AsOf, files: ArchiveFiles
) -> tuple[int, list[ScopeState]]:
    """Return (seq, scopes after that decision, the whole portfolio first). `NotFound` before the first decision."""
    history = History(connection, portfolio_id, portfolio, files)
    last = history.find(Filters(until_us=_until_us(moment)), 1, _seq(moment), ascending=False, limit=1)
    if not last or (isinstance(moment, int) and last[0].seq != moment):
        raise NotFound(f"portfolio {portfolio!r} has no decision at or before {moment}")
    (end,) = last
    totals = _Totals()
    live_from = 1
    for manifest in manifests(connection, portfolio_id):
        live_from = manifest.to_seq + 1
        if manifest.from_seq <= end.seq:
            for entry in files.entries(portfolio, manifest):
                if entry.record.seq <= end.seq:
                    totals.add(entry.record)
    deltas = (
        select(DecisionRow.tags, func.sum(DecisionRow.held_delta_e8), func.sum(DecisionRow.open_delta_e8))
        .where(DecisionRow.portfolio_id == portfolio_id, DecisionRow.seq.between(live_from, end.seq))
        .where((DecisionRow.held_delta_e8 != 0) | (DecisionRow.open_delta_e8 != 0))
        .group_by(DecisionRow.tags)
    )
    for tags, held, opened in connection.execute(deltas):
        totals.add_deltas(tags, int(held), int(opened))
    moves = select(DecisionRow.tags, DecisionRow.trace).where(
        DecisionRow.portfolio_id == portfolio_id,
        DecisionRow.seq.between(live_from, end.seq),
        DecisionRow.binding == MOVED,
    )
    for tags, trace in connection.execute(moves, execution_options={"yield_per": _MOVES_AT_ONCE}):
        totals.move(tags, trace)
    for command in SCOPE_COMMANDS:
        for record in history.iterate(Filters(command=command, outcome="applied"), live_from, end.seq):
            totals.set_scope(record)
    return end.seq, totals.scopes(end)


def require_moment(moment: AsOf) -> None:
    """Raise `InvalidRequest` for what is neither a seq nor an aware datetime."""
    _until_us(moment)
    _seq(moment)


def _until_us(moment: AsOf) -> int | None:
    return to_us(moment, "as_of") + 1 if isinstance(moment, datetime) else None


def _seq(moment: object) -> int:
    if isinstance(moment, datetime):
        return E8_MAX
    if isinstance(moment, bool) or not isinstance(moment, int) or not 1 <= moment <= SEQ_MAX:
        raise InvalidRequest(
            f"as_of must be a seq from 1 or a datetime with a time zone, got {moment!r}", field="as_of"
        )
    return moment


class _Totals:
    """Counters and settings of each scope after the decisions added so far."""

    def __init__(self) -> None:
        self._counters: dict[str, list[int]] = {PORTFOLIO_SCOPE: [0, 0]}  # held and open, 1e-8 USD
        self._settings: dict[str, tuple[int, ScopeSettings]] = {}  # the seq of the last command, and what it set

    def add(self, record: DecisionRecord) -> None:
        if record.held_delta_e8 or record.open_delta_e8:
            self.add_deltas(record.tags, record.held_delta_e8, record.open_delta_e8)
        if record.binding == MOVED:
            self.move(record.tags, record.trace)
        if record.command in SCOPE_COMMANDS and record.outcome == "applied":
            self.set_scope(record)

    def add_deltas(self, tags: str, held: int, opened: int) -> None:
        for scope in stored_tags(tags).scopes:
            counters = self._counters.setdefault(scope, [0, 0])
            counters[0] += held
            counters[1] += opened

    def move(self, tags: str, trace: str) -> None:
        """Move what a position counted before a decision from the tags that it had to those that it has."""
        before = json.loads(trace)["moved"]
        self.add_deltas(json.dumps(before["tags"], separators=(",", ":")), -before["held"], -before["open"])
        self.add_deltas(tags, before["held"], before["open"])

    def set_scope(self, record: DecisionRecord) -> None:
        scope, settings, *_ = read_scope(json.loads(record.trace)["after"])
        if record.seq > self._settings.get(scope, (0,))[0]:
            self._settings[scope] = (record.seq, settings)

    def scopes(self, end: DecisionRecord) -> list[ScopeState]:
        """Return the whole portfolio first, then the other scopes by name."""
        assert end.headroom_e8 is not None, "a portfolio always has a cap"
        settings = {name: settings for name, (_, settings) in self._settings.items()}
        settings.setdefault(PORTFOLIO_SCOPE, ScopeSettings(cap_e8=end.headroom_e8 + end.exposure_e8))
        names = sorted({*self._counters, *settings}, key=lambda name: (name != PORTFOLIO_SCOPE, name))
        return [ScopeState(name, settings.get(name, NO_SETTINGS), *self._counters.get(name, (0, 0))) for name in names]
