"""Exposure as it stood at any past decision, from the decisions alone.

held and open of a scope are sums of what decisions moved, so they are summed: by the database over the live rows, a
few distinct tag sets coming back whatever the length, and over archive files line by line. A cap or a status is what
the last command about it (`trace.SCOPE_COMMANDS`) made it; the portfolio's first cap came from settings, and every
decision records it as headroom + exposure. One scan, linear in the decisions up to that point, in constant memory.
"""

import json
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, func, select

from ledger_sizer.history.archive_files import ArchiveFiles, manifests
from ledger_sizer.history.history import Filters, History
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.domain import to_us
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, stored_tags
from ledger_sizer.model.units import E8_MAX
from ledger_sizer.rules.state import ScopeState
from ledger_sizer.rules.trace import SCOPE_COMMANDS, reconciliation_of
from ledger_sizer.storage.tables import DecisionRow

AsOf = int | datetime
"""A seq (after that decision), or an aware datetime (after the last decision made by then)."""


def scopes_as_of(
    connection: Connection, portfolio_id: int, portfolio: str, moment: AsOf, files: ArchiveFiles
) -> tuple[int, list[ScopeState]]:
    """(seq, the scopes after that decision, the whole first). Raises `NotFound` before the first decision."""
    history = History(connection, portfolio_id, portfolio, files)
    last = history.find(Filters(until_us=_until_us(moment)), 1, _seq(moment), ascending=False, limit=1)
    if not last or (isinstance(moment, int) and last[0].seq != moment):
        raise NotFound(f"portfolio {portfolio!r} has no decision at or before {moment}")
    (end,) = last
    sums = _Sums()
    live_from = 1
    for manifest in manifests(connection, portfolio_id):
        live_from = manifest.to_seq + 1
        if manifest.from_seq <= end.seq:
            for entry in files.entries(portfolio, manifest):
                if entry.record.seq <= end.seq:
                    sums.hear(entry.record)
    moving = (
        select(DecisionRow.tags, func.sum(DecisionRow.held_delta_e8), func.sum(DecisionRow.open_delta_e8))
        .where(DecisionRow.portfolio_id == portfolio_id, DecisionRow.seq.between(live_from, end.seq))
        .where((DecisionRow.held_delta_e8 != 0) | (DecisionRow.open_delta_e8 != 0))
        .group_by(DecisionRow.tags)
    )
    for tags, held, opened in connection.execute(moving):
        sums.move(tags, int(held), int(opened))
    for command in SCOPE_COMMANDS:
        for record in history.each(Filters(command=command, outcome="applied"), live_from, end.seq):
            sums.steer(record)
    return end.seq, sums.scopes(end)


def _until_us(moment: AsOf) -> int | None:
    if not isinstance(moment, datetime):
        return None
    if moment.tzinfo is None:
        raise InvalidRequest(f"as_of must be a seq or a datetime with a time zone, got {moment!r}", field="as_of")
    return to_us(moment) + 1


def _seq(moment: object) -> int:
    if isinstance(moment, datetime):
        return E8_MAX
    if isinstance(moment, bool) or not isinstance(moment, int) or not 1 <= moment <= E8_MAX:
        raise InvalidRequest(
            f"as_of must be a seq from 1 or a datetime with a time zone, got {moment!r}", field="as_of"
        )
    return moment


class _Sums:
    """What the decisions heard so far add up to. steered: the seq of a scope's last change, and what it left."""

    def __init__(self) -> None:
        self._moved: dict[str, list[int]] = {PORTFOLIO_SCOPE: [0, 0]}
        self._steered: dict[str, tuple[int, ScopeState]] = {}

    def hear(self, record: DecisionRecord) -> None:
        if record.held_delta_e8 or record.open_delta_e8:
            self.move(record.tags, record.held_delta_e8, record.open_delta_e8)
        if record.command in SCOPE_COMMANDS and record.outcome == "applied":
            self.steer(record)

    def move(self, tags: str, held: int, opened: int) -> None:
        for scope in stored_tags(tags).scopes:
            counters = self._moved.setdefault(scope, [0, 0])
            counters[0] += held
            counters[1] += opened

    def steer(self, record: DecisionRecord) -> None:
        row = json.loads(record.trace)["after"]
        frozen, fresh_until_us = reconciliation_of(row)
        if record.seq > self._steered.get(row[0], (0,))[0]:
            left = ScopeState(row[0], row[1], status=row[4], frozen=bool(frozen), fresh_until_us=fresh_until_us)
            self._steered[left.name] = (record.seq, left)

    def scopes(self, end: DecisionRecord) -> list[ScopeState]:
        """The whole first, then the others by name."""
        assert end.headroom_e8 is not None, "a portfolio always has a cap"
        first = ScopeState(PORTFOLIO_SCOPE, end.headroom_e8 + end.exposure_e8)
        left = {PORTFOLIO_SCOPE: first, **{name: scope for name, (_, scope) in self._steered.items()}}
        names = sorted({*self._moved, *left}, key=lambda name: (name != PORTFOLIO_SCOPE, name))
        found = []
        for name in names:
            held, opened = self._moved.get(name, (0, 0))
            found.append(replace(left.get(name, ScopeState(name)), held_e8=held, open_e8=opened))
        return found
