"""The write store of a ledger in memory: what was committed, as objects, and a SQLite database in memory for reads.

Writing needs no SQL: a commit adds a batch to the journal, and the journal to the books. Before a read begins, what is
new in the books is stored in the database in one transaction, so that every query, `verify` and export works as on a
file. Both end with the process, or with `close`.
"""

import threading
from bisect import insort
from collections import deque
from collections.abc import Sequence

from sqlalchemy import Engine

from ledger_sizer.model.choices import Status
from ledger_sizer.model.command_base import SYSTEM_KEY_PREFIX
from ledger_sizer.model.decisions import GENESIS_HASH
from ledger_sizer.model.domain import Position
from ledger_sizer.model.names import DESK
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, Tags
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.settling import carries_all
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.clock import ClockGuard
from ledger_sizer.storage.memory_database import MemoryDatabase
from ledger_sizer.storage.sqlite_sql import execute_statements
from ledger_sizer.storage.tables import DESK_ID
from ledger_sizer.storage.write_store import (
    FenceLost,
    PortfolioChanges,
    PortfolioNeed,
    StaleState,
    changed_lately,
    changes_of,
    expiries_per_portfolio,
)


class _Book(PortfolioState):
    """All of one portfolio: every record by key, every position, every scope.

    The loaded head, the new decisions and what is dirty are those of the database for reads: what it does not have yet.
    live: numbers of the live positions. expiries: (expires_us, number) of every pending position, in order; and of some
    that are pending no more, or end at another time.
    """

    __slots__ = ("expiries", "live")

    def __init__(self, id_: int, name: str) -> None:
        super().__init__(id_, name, 0, GENESIS_HASH, 0)
        self.expiries: list[tuple[int, int]] = []
        self.live: set[int] = set()

    def add(self, change: PortfolioChanges) -> None:
        """Add a committed batch. To add it again, after an interrupt in the middle, does no harm."""
        seq_before = change.last_seq - len(change.decisions)
        self.new_decisions[seq_before - self.loaded_seq :] = change.decisions
        for record, _ in change.decisions:
            self.records[record.key] = record
        for position in change.new_positions:
            self._put(position)
        for position in change.changed_positions:
            self._put(position)
        scopes, dirty = self.scopes, self.dirty_scopes
        for scope in change.counter_changes:
            known = scopes[scope.name]
            known.held_e8, known.open_e8, known.settings = scope.held_e8, scope.open_e8, scope.settings
            dirty.add(scope.name)
        if change.new_scopes or change.scope_changes:
            for scope in (*change.new_scopes, *change.scope_changes):
                before = scopes.get(scope.name)
                scope.stored = None if before is None else before.stored
                self.add_scope(scope)
                dirty.add(scope.name)
            self.administered.update([scope.name for scope in change.scope_changes])
        self.last_us, self.last_seq, self.last_hash = change.last_us, change.last_seq, change.last_hash

    def _put(self, position: Position) -> None:
        if position.origin is None:
            self.positions[position.number] = position
        else:
            self.add_position(position)
        self.dirty_positions.add(position.number)
        (self.live.add if position.live else self.live.discard)(position.number)
        if position.expires_us is not None and position.pending:
            self._add_expiry((position.expires_us, position.number))

    def _add_expiry(self, entry: tuple[int, int]) -> None:
        expiries = self.expiries
        if not expiries or expiries[-1] < entry:
            expiries.append(entry)
        else:
            insort(expiries, entry)

    def first_due(self, until_us: int, count: int) -> tuple[list[Position], int | None]:
        """Return the first positions whose hold is overdue, at most `count`, and when the next hold after them ends."""
        due: list[Position] = []
        next_us, outdated, previous = None, 0, None
        for entry in self.expiries:
            position = self.positions[entry[1]]
            if not position.pending or position.expires_us != entry[0] or entry == previous:
                outdated += not due  # as long as all before it are
                continue
            previous = entry
            if entry[0] > until_us or len(due) == count:
                next_us = entry[0]
                break
            due.append(position)
        del self.expiries[:outdated]
        return due, next_us

    def of_tags(self, tags: Tags) -> list[Position]:
        """Return the live positions that have all these tags."""
        live = [self.positions[number] for number in self.live]
        return [position for position in live if carries_all(position.tags, tags)]

    def granted_since(self, as_of_us: int, numbers: Sequence[int]) -> set[int]:
        """Return those of these positions that a caller was granted more of, or longer, after this time."""
        found: set[int] = set()
        if numbers:
            for record in reversed(self.records.values()):
                if record.decided_us <= as_of_us:
                    break
                granted = record.command in ("reserve", "extend") and record.outcome == "granted"
                if (
                    granted
                    and not record.key.startswith(SYSTEM_KEY_PREFIX)
                    and record.position is not None
                    and record.position in numbers
                ):
                    found.add(record.position)
        return found

    def mark_stored(self) -> None:
        """Note that the database for reads has everything."""
        for name in self.dirty_scopes:
            scope = self.scopes[name]
            scope.stored = (scope.held_e8, scope.open_e8)
        self.loaded_seq, self.loaded_hash = self.last_seq, self.last_hash
        self.new_decisions = []
        self.dirty_scopes.clear()
        self.dirty_positions.clear()
        self.administered.clear()


class MemoryStore:
    """The write store of a ledger in memory. See `WriteStore`. No other process writes, so nothing is ever locked."""

    def __init__(self, guard: ClockGuard) -> None:
        self._guard = guard
        self._lock = threading.RLock()
        """Guards the books: a reader stores what is new while another thread writes."""
        desk = _Book(DESK_ID, DESK)
        desk.add_scope(ScopeState(PORTFOLIO_SCOPE, ScopeSettings(cap_e8=0), stored=(0, 0)))
        self._books = {DESK: desk}
        self._journal: deque[Sequence[PortfolioChanges]] = deque()
        """Committed batches that the books may lack: an interrupt may have ended the call that added them."""
        self._database = MemoryDatabase(self._store_for_reads)

    @property
    def engines(self) -> tuple[Engine, Engine]:
        """The engines of the database for reads: one that writes, and one that only reads."""
        return self._database.write_engine, self._database.read_engine

    def clock_us(self) -> int:
        """Return this machine's clock."""
        return self._guard.wall_us()

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Return copies of what the batch needs. See `WriteStore`."""
        if now_us is None:
            now_us = self.clock_us()
        if any(need.fences for need in needs.values()):
            raise FenceLost  # nobody else works on this ledger, so there are no leases
        with self._lock:
            self._add_journal()
            states, expiries_max, new_id = {}, expiries_per_portfolio(len(needs)), len(self._books)
            for name in sorted(needs):
                book = self._books.get(name)
                if book is not None:
                    states[name] = _loaded(book, needs[name], now_us, expiries_max)
                elif needs[name].creates:
                    states[name] = PortfolioState.begun(new_id, name, new_cap_e8)
                    new_id += 1
                if name in states:
                    states[name].desk_status = self._desk_status
        return states, now_us

    def write(self, changes: Sequence[PortfolioChanges], *, locked: bool) -> None:
        """Add the changes to the journal: from then on they are committed. See `WriteStore`."""
        with self._lock:
            if self._journal:
                self._add_journal()
            if not locked:
                for change in changes:
                    self._require_unchanged(change)
            self._journal.append(changes)
            self._add_journal()

    def _require_unchanged(self, change: PortfolioChanges) -> None:
        """Raise `StaleState` if a batch was decided on outdated state, or on a key that was used before."""
        book = self._books.get(change.portfolio)
        if book is None or book.last_hash != change.previous_hash:
            raise StaleState("the chain moved on")
        if change.desk_status is not None and change.desk_status != self._desk_status:
            raise StaleState("the desk's status changed")
        for record, _ in change.decisions:
            if record.key in book.records:
                raise StaleState("a key was used before")

    @property
    def _desk_status(self) -> Status:
        return self._books[DESK].scopes[PORTFOLIO_SCOPE].status

    def _add_journal(self) -> None:
        journal = self._journal
        while journal:
            for change in journal[0]:
                book = self._books.get(change.portfolio)
                if book is None:
                    book = self._books[change.portfolio] = _Book(change.portfolio_id, change.portfolio)
                book.add(change)
            journal.popleft()

    def _store_for_reads(self) -> None:
        """Store what is new in the database for reads, in one transaction. Waits for reads without the lock."""
        with self._lock:
            self._add_journal()
            if not self._changed:
                return
        with self._database.writing() as connection, self._lock:
            changed = self._changed
            for book in changed:
                execute_statements(connection, changes_of(book))
            try:
                connection.execute("COMMIT")
            finally:
                if not connection.in_transaction:  # also where Ctrl-C came as the commit ended
                    for book in changed:
                        book.mark_stored()

    @property
    def _changed(self) -> list[_Book]:
        """The books of which the database for reads lacks something."""
        return [book for book in self._books.values() if book.new_decisions]

    def rollback(self) -> None:
        """Do nothing: what was not written is nowhere."""

    def reset(self) -> None:
        """Do nothing: there is no connection."""

    def classify_error(self, error: Exception, *, locked: bool) -> str:  # noqa: ARG002 - see `WriteStore`
        """Return `refused`: no other writer, no file and no server can fail, so the error is a defect."""
        return "refused"

    def close(self) -> None:
        """Drop everything."""
        self._database.close()
        with self._lock:
            self._books.clear()
            self._journal.clear()


def _loaded(book: _Book, need: PortfolioNeed, now_us: int, expiries_max: int) -> PortfolioState:
    """Return a state with copies of what a batch needs of a portfolio."""
    state = PortfolioState(book.id, book.name, book.last_seq, book.last_hash, book.last_us)
    state.records = {key: book.records[key] for key in need.keys if key in book.records}
    positions, state.next_expiry_us = book.first_due(state.decision_time(now_us), expiries_max)
    numbers = need.numbers | {record.position for record in state.records.values() if record.position is not None}
    for origin in need.origins:
        numbers.update(book.late_fills.get(origin, ()))
    positions += [book.positions[number] for number in numbers if number in book.positions]
    if need.settle is not None:
        positions += book.of_tags(need.settle.tags)
    scopes = set(need.scopes)
    for position in positions:
        state.add_position(position)
        scopes.update(position.tags.scopes)
    for name in (*scopes, *book.shared):
        scope = book.scopes.get(name)
        if scope is not None:
            counters = scope.held_e8, scope.open_e8
            state.add_scope(ScopeState(name, scope.settings, *counters, stored=counters))
    state.scopes_known = scopes
    if need.settle is not None:
        as_of_us = need.settle.as_of_us(state.decision_time(now_us))
        state.granted_lately = book.granted_since(as_of_us, changed_lately(state, as_of_us))
    return state
