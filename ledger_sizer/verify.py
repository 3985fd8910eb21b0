"""Verification: is the ledger what its decisions say, and are the decisions those that were made?

Three readings of one snapshot, in constant memory:

1. the chain: every decision in order, its seq gapless, its hash recomputed from its predecessor's; the head last;
2. the positions: each row against the decisions about it, folded in order (a merge of two sorted streams);
3. the scopes: each counter against the sum of its position rows, each cap and status against the last decision
   that saw it.

Nothing is repaired. A finding names the first decision, by seq, that the wrong row concerns.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from ledger_sizer.command_base import portfolio_name
from ledger_sizer.database import shown
from ledger_sizer.domain import Finding, Position, VerifyReport, position_id
from ledger_sizer.errors import LedgerError, NotFound, Unavailable
from ledger_sizer.fold import fold
from ledger_sizer.records import GENESIS_HASH, DecisionRecord, canonical_text, chain_hash
from ledger_sizer.store import position_of, record_of
from ledger_sizer.tables import DecisionRow, PortfolioRow, PositionRow, ScopeRow
from ledger_sizer.tags import PORTFOLIO_SCOPE
from ledger_sizer.trace import reconciliation_of

Progress = Callable[[int, int], None]
"""Called with (decisions done, decisions in all)."""

_CHUNK = 2000
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, LedgerError)
"""What reading a row that somebody edited may raise."""
_FINDINGS_MAX = 100
_ABOUT_A_SCOPE = ("set_cap", "halt", "resume", "freeze", "thaw", "reconciled")

_Settled = tuple[int | None, str, int, int | None]
"""What decisions made of a scope: cap_e8, status, frozen, fresh_until_us."""


def verify(engine: Engine, portfolio: str | None = None, progress: Progress | None = None) -> VerifyReport:
    """Verify one portfolio, or all. Raises `NotFound` for one that does not exist, `Unavailable` without a database."""
    try:
        return _verify(engine, portfolio, progress)
    except DBAPIError as error:
        raise Unavailable(f"cannot read {shown(engine.url)}: {str(error.orig).strip()}") from None


def _verify(engine: Engine, portfolio: str | None, progress: Progress | None) -> VerifyReport:
    # One snapshot for all three readings, so that a busy ledger is not seen half moved.
    snapshot = engine.execution_options(isolation_level=_snapshot_level(engine))
    with snapshot.connect() as connection, connection.begin():
        query = select(PortfolioRow.__table__).order_by(PortfolioRow.id)
        if portfolio is not None:
            query = query.where(PortfolioRow.name == portfolio_name(portfolio))
        heads = connection.execute(query).all()
        if portfolio is not None and not heads:
            raise NotFound(f"no portfolio {portfolio!r}")
        total = sum(head.last_seq for head in heads)
        findings: list[Finding] = []
        decisions = positions = 0
        for head in heads:
            check = _PortfolioCheck(connection, head)
            for done in check.chain():
                if progress is not None:
                    progress(decisions + done, total)
            check.positions()
            check.scopes()
            decisions += check.decision_count
            positions += check.position_count
            findings += check.findings
        if portfolio is None:
            findings += _orphans(connection)
        return VerifyReport(
            tuple(findings), decisions, positions, {head.name: (head.last_seq, head.last_hash) for head in heads}
        )


def _orphans(connection: Connection) -> list[Finding]:
    """Rows whose portfolio's own row is gone."""
    findings = []
    for row in (DecisionRow, PositionRow, ScopeRow):
        owner = select(PortfolioRow.id).where(PortfolioRow.id == row.portfolio_id).exists()
        found = connection.execute(select(row.portfolio_id).where(~owner).limit(1)).scalar()
        if found is not None:
            what = f"{row.__tablename__} of a portfolio whose own row is missing"
            findings.append(Finding(f"(id {found})", None, what))
    return findings


def _snapshot_level(engine: Engine) -> str:
    return "SERIALIZABLE" if engine.dialect.name == "sqlite" else "REPEATABLE READ"


class _PortfolioCheck:
    """The three readings of one portfolio, and what they found."""

    def __init__(self, connection: Connection, head: Any) -> None:
        self._connection = connection
        self._head = head
        self.findings: list[Finding] = []
        self.decision_count = 0
        self.position_count = 0
        self._last_us = 0
        self._held: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._last_seen: dict[str, tuple[int, str]] = {}
        self._last_change: dict[str, tuple[int, str]] = {}

    def _found(self, seq: int | None, what: str) -> None:
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(Finding(self._head.name, seq, what))

    def _name(self, number: int) -> str:
        return position_id(self._head.name, number)

    def _records(self, *order: Any, **where: Any) -> Iterator[DecisionRecord]:
        query = select(DecisionRow.__table__).where(DecisionRow.portfolio_id == self._head.id).order_by(*order)
        if where.get("positions_only"):
            query = query.where(DecisionRow.position.is_not(None))
        for row in self._stream(query):
            yield record_of(self._head.name, row)

    def _stream(self, query: Any) -> Iterator[Sequence[Any]]:
        result = self._connection.execution_options(yield_per=_CHUNK).execute(query)
        for rows in result.partitions():
            yield from rows

    def chain(self) -> Iterator[int]:
        """Read every decision in order; yields how many were read, now and then."""
        previous, expected_seq, broken = GENESIS_HASH, 1, False
        for record in self._records(DecisionRow.seq):
            if record.seq != expected_seq:
                self._found(expected_seq, f"decision {expected_seq} is missing; the next one is {record.seq}")
            elif not broken and chain_hash(previous, canonical_text(record)) != record.hash:
                self._found(record.seq, f"decision {record.seq} is not the one that was made: its hash does not match")
                broken = True  # one edit breaks every later link unless they were rewritten too; report it once
            else:
                broken = False
            previous, expected_seq = record.hash, record.seq + 1
            self.decision_count += 1
            self._remember(record)
            if self.decision_count % _CHUNK == 0:
                yield self.decision_count
        if self._head.last_us != self._last_us:
            self._found(None, f"the portfolio's time is {self._head.last_us}, its last decision's {self._last_us}")
        if (self._head.last_seq, self._head.last_hash) != (expected_seq - 1, previous):
            self._found(
                min(self._head.last_seq, expected_seq - 1) + 1 if self._head.last_seq != expected_seq - 1 else None,
                f"the portfolio's head says {self._head.last_seq} decisions ending in {self._head.last_hash[:12]}, "
                f"the chain has {expected_seq - 1} ending in {previous[:12]}",
            )
        yield self.decision_count

    def _remember(self, record: DecisionRecord) -> None:
        """Keep, per set of tags, the last trace: it shows each scope's cap and status at that time."""
        self._last_us = record.decided_us
        if record.command in _ABOUT_A_SCOPE and record.outcome == "applied":
            self._last_change[str(record.binding)] = (record.seq, record.trace)
        else:
            self._last_seen[record.tags] = (record.seq, record.trace)

    def positions(self) -> None:
        """Merge the positions with the decisions about them, both sorted by the position's number."""
        query = (
            select(PositionRow.__table__).where(PositionRow.portfolio_id == self._head.id).order_by(PositionRow.number)
        )
        rows = self._readable(query)
        records = self._records(DecisionRow.position, DecisionRow.seq, positions_only=True)
        expected = self._folded(records)
        row, told = next(rows, None), next(expected, None)
        while row is not None or told is not None:
            if told is None or (row is not None and row[0] < told[0]):
                assert row is not None
                self._found(row[0], f"position {self._name(row[0])} stands in no decision")
                row = next(rows, None)
            elif row is None or told[0] < row[0]:
                self._found(told[0], f"position {self._name(told[0])} is missing")
                told = next(expected, None)
            else:
                if row[1] is not None and told[1] is not None and row[1] != told[1]:
                    self._found(row[0], f"position {row[1].position_id} {_difference(row[1], told[1])}")
                row, told = next(rows, None), next(expected, None)

    def _readable(self, query: Any) -> Iterator[tuple[int, Position | None]]:
        """The stored positions by number; one that cannot be read is a finding and comes as None."""
        for row in self._stream(query):
            self.position_count += 1
            try:
                position = position_of(self._head.name, row)
            except _UNREADABLE as error:
                self._found(row[1], f"position {self._name(row[1])} cannot be read: {error!r}")
                yield row[1], None
                continue
            self._count(position)
            yield position.number, position

    def _folded(self, records: Iterable[DecisionRecord]) -> Iterator[tuple[int, Position | None]]:
        """The position each run of decisions about one number leads to; None where they cannot be read."""
        for number, run in groupby(records, key=lambda record: record.position):
            assert number is not None, "only decisions about positions are read here"
            position: Position | None = None
            seq = 0
            try:
                for record in run:
                    seq = record.seq
                    position = fold(position, record)
            except _UNREADABLE as error:
                self._found(seq, f"decision {seq} about position {self._name(number)} cannot be read: {error!r}")
                yield number, None
                continue
            if position is not None:
                yield number, position

    def _count(self, position: Position) -> None:
        if position.held_e8 or position.open_e8:
            for scope in position.tags.scopes:
                self._held[scope] = self._held.get(scope, 0) + position.held_e8
                self._open[scope] = self._open.get(scope, 0) + position.open_e8

    def scopes(self) -> None:
        """Compare each scope's counters with the position rows, its cap and status with the last decisions."""
        settled = self._settled_scopes()
        query = select(ScopeRow).where(ScopeRow.portfolio_id == self._head.id).order_by(ScopeRow.scope)
        seen = set()
        for row in self._connection.execute(query.with_only_columns(ScopeRow.__table__)):
            seen.add(row.scope)
            for name, counted, summed in (
                ("held", row.held_e8, self._held.get(row.scope, 0)),
                ("open", row.open_e8, self._open.get(row.scope, 0)),
            ):
                if counted != summed:
                    self._found(None, f"scope {row.scope} counts {name} {counted}e-8 USD, its positions {summed}e-8")
            overage = 0 if row.cap_e8 is None else max(row.held_e8 + row.open_e8 - row.cap_e8, 0)
            if row.overage_e8 != overage:
                self._found(None, f"scope {row.scope} records overage {row.overage_e8}e-8 USD, it is {overage}e-8")
            if row.scope not in settled and row.scope != PORTFOLIO_SCOPE:
                self._found(None, f"scope {row.scope} stands in no decision")
            stored = (row.cap_e8, row.status, row.frozen, row.fresh_until_us)
            made = settled.get(row.scope, stored)
            if stored != made:
                self._found(None, f"scope {row.scope} {_settled_text(stored)}; decided: {_settled_text(made)}")
        decided = {name for name, made in settled.items() if made != (None, "active", 0, None)}
        for scope in sorted({*self._held, *self._open, *decided} - seen):
            self._found(None, f"scope {scope} is missing")

    def _scopes_told(self, seq: int, text: str) -> list[tuple[str, _Settled]]:
        """Each scope as a trace shows it: before the decision, or after it where it changed it."""
        try:
            trace = json.loads(text)
            rows = [trace["after"]] if "after" in trace else trace["scopes"]
            return [(row[0], (row[1], row[4], *reconciliation_of(row))) for row in rows]
        except _UNREADABLE as error:
            self._found(seq, f"the trace of decision {seq} cannot be read: {error!r}")
            return []

    def _settled_scopes(self) -> dict[str, _Settled]:
        """What the latest decision that mentions a scope left of it."""
        latest: dict[str, tuple[int, _Settled]] = {}
        for seq, trace in (*self._last_seen.values(), *self._last_change.values()):
            for name, made in self._scopes_told(seq, trace):
                if seq > latest.get(name, (0,))[0]:
                    latest[name] = (seq, made)
        return {name: made for name, (_, made) in latest.items()}


def _settled_text(made: _Settled) -> str:
    cap_e8, status, frozen, fresh_until_us = made
    text = f"has cap {cap_e8}e-8 and is {status}{', frozen' if frozen else ''}"
    return text if fresh_until_us is None else f"{text}, fresh until {fresh_until_us}"


def _difference(row: Position, told: Position) -> str:
    """The first field in which a row differs from what its decisions say."""
    for name in Position._fields:
        if getattr(row, name) != getattr(told, name):
            return f"has {name} {getattr(row, name)!r}, its decisions say {getattr(told, name)!r}"
    return "differs from its decisions"
