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
from typing import Any

from sqlalchemy import Connection, Engine, select

from ledger_sizer.commands import portfolio_name
from ledger_sizer.domain import Finding, Position, VerifyReport
from ledger_sizer.errors import NotFound
from ledger_sizer.fold import fold
from ledger_sizer.records import GENESIS_HASH, DecisionRecord, canonical_text, chain_hash
from ledger_sizer.store import position_of, record_of
from ledger_sizer.tables import DecisionRow, PortfolioRow, PositionRow, ScopeRow

Progress = Callable[[int, int], None]
"""Called with (decisions done, decisions in all)."""

_CHUNK = 2000
_FINDINGS_MAX = 100


def verify(engine: Engine, portfolio: str | None = None, progress: Progress | None = None) -> VerifyReport:
    """Verify one portfolio, or all. Raises `NotFound` for a portfolio that does not exist."""
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
            findings += sorted(check.findings, key=lambda finding: (finding.seq is None, finding.seq or 0))
        return VerifyReport(
            tuple(findings), decisions, positions, {head.name: (head.last_seq, head.last_hash) for head in heads}
        )


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
        self._held: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._last_seen: dict[str, tuple[int, str]] = {}
        self._last_change: dict[str, tuple[int, str]] = {}

    def _found(self, seq: int | None, what: str) -> None:
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(Finding(self._head.name, seq, what))

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
        if (self._head.last_seq, self._head.last_hash) != (expected_seq - 1, previous):
            self._found(
                min(self._head.last_seq, expected_seq - 1) + 1 if self._head.last_seq != expected_seq - 1 else None,
                f"the portfolio's head says {self._head.last_seq} decisions ending in {self._head.last_hash[:12]}, "
                f"the chain has {expected_seq - 1} ending in {previous[:12]}",
            )
        yield self.decision_count

    def _remember(self, record: DecisionRecord) -> None:
        """Keep, per set of tags, the last trace: it shows each scope's cap and status at that time."""
        if record.command in ("set_cap", "halt", "resume") and record.outcome == "applied":
            self._last_change[str(record.binding)] = (record.seq, record.trace)
        else:
            self._last_seen[record.tags] = (record.seq, record.trace)

    def positions(self) -> None:
        """Merge the positions with the decisions about them, both sorted by the position's number."""
        query = (
            select(PositionRow.__table__).where(PositionRow.portfolio_id == self._head.id).order_by(PositionRow.number)
        )
        rows = (position_of(self._head.name, row) for row in self._stream(query))
        records = self._records(DecisionRow.position, DecisionRow.seq, positions_only=True)
        expected = _folded(records)
        row, told = next(rows, None), next(expected, None)
        while row is not None or told is not None:
            if told is None or (row is not None and row.number < told.number):
                assert row is not None
                self._count(row)
                self._found(row.number, f"position {row.position_id} stands in no decision")
                row = next(rows, None)
            elif row is None or told.number < row.number:
                self._found(told.number, f"position {told.position_id} is missing")
                told = next(expected, None)
            else:
                self._count(row)
                if row != told:
                    self._found(row.number, f"position {row.position_id} {_difference(row, told)}")
                row, told = next(rows, None), next(expected, None)

    def _count(self, position: Position) -> None:
        self.position_count += 1
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
            cap, status = settled.get(row.scope, (row.cap_e8, row.status))
            if (row.cap_e8, row.status) != (cap, status):
                self._found(
                    None, f"scope {row.scope} has cap {row.cap_e8}e-8 and is {row.status}; decided: {cap}e-8, {status}"
                )
        for scope in sorted({*self._held, *self._open} - seen):
            self._found(None, f"scope {scope} is missing, positions count in it")

    def _settled_scopes(self) -> dict[str, tuple[int | None, str]]:
        """Cap and status of each scope as the latest decision that mentions it left them."""
        latest: dict[str, tuple[int, int | None, str]] = {}
        for seq, trace in self._last_seen.values():
            for name, cap_e8, _, _, status in json.loads(trace).get("scopes", ()):
                if seq > latest.get(name, (0,))[0]:
                    latest[name] = (seq, cap_e8, status)
        for seq, trace in self._last_change.values():
            name, cap_e8, _, _, status = json.loads(trace)["after"]
            if seq > latest.get(name, (0,))[0]:
                latest[name] = (seq, cap_e8, status)
        return {name: (cap_e8, status) for name, (_, cap_e8, status) in latest.items()}


def _folded(records: Iterable[DecisionRecord]) -> Iterator[Position]:
    """The position each run of decisions about one number leads to."""
    position: Position | None = None
    for record in records:
        if position is not None and record.position != position.number:
            yield position
            position = None
        position = fold(position, record)
    if position is not None:
        yield position


def _difference(row: Position, told: Position) -> str:
    """The first field in which a row differs from what its decisions say."""
    for name in Position._fields:
        if getattr(row, name) != getattr(told, name):
            return f"has {name} {getattr(row, name)!r}, its decisions say {getattr(told, name)!r}"
    return "differs from its decisions"
