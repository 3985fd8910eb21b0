"""What both databases share for writing: what a batch needs, and how rows become state and back.

The writer's SQL is the driver's own, not the ORM's: one round trip loads and locks a batch, another writes and
commits it. Columns come from the models, so a schema change cannot drift past this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from ledger_sizer.model.command_base import PositionCommand
from ledger_sizer.model.commands import Adopt, Confirm, Reconciled, Reserve, SetCap
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.instruments import legs_of, legs_text
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, stored_tags, tags_of
from ledger_sizer.model.units import decimal_text
from ledger_sizer.rules.batch import Fence, Group
from ledger_sizer.rules.state import PortfolioState, ScopeState
from ledger_sizer.storage.tables import DecisionRow, PositionRow, ScopeRow

SCOPE_COLUMNS = tuple(ScopeRow.__table__.columns.keys())
POSITION_COLUMNS = tuple(PositionRow.__table__.columns.keys())
DECISION_COLUMNS = tuple(DecisionRow.__table__.columns.keys())
assert DECISION_COLUMNS[1:] == DecisionRecord._fields[1:], "the decisions table and the record must list one order"


@dataclass(slots=True)
class PortfolioNeed:
    """What a batch needs of one portfolio.

    creates: whether its commands may bring the portfolio into being. sweeps: whether the database must be asked for
    expired holds, also those of others. fences: leases that must be held.
    """

    creates: bool = False
    sweeps: bool = False
    keys: set[str] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    scopes: set[str] = field(default_factory=lambda: {PORTFOLIO_SCOPE})
    fences: set[Fence] = field(default_factory=set)


class StaleState(Exception):
    """A batch decided on remembered state must be decided again on what the database has. Never leaves the ledger."""


class FenceLost(Exception):
    """A lease under which the batch was sent has passed to another; nothing was written. Never leaves the ledger."""


Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a batch changes of one portfolio, ready to be stored. Positions and scopes are rows (see `count_row`).

    before: the hash of the chain's head it was decided against. decisions: each with its canonical text.
    named: scopes whose row is new. counted: those whose counters move. administered: those that change otherwise.
    """

    portfolio_id: int
    portfolio: str
    before: str
    last_seq: int
    last_hash: str
    last_us: int
    decisions: Sequence[tuple[DecisionRecord, str]]
    made: Sequence[Row]
    moved: Sequence[Row]
    named: Sequence[Row]
    counted: Sequence[Row]
    administered: Sequence[Row]


def changes_of(state: PortfolioState) -> Changes:
    """The changes of a decided batch, before `PortfolioState.begin_next_batch` forgets which they are."""
    rows: dict[str, list[Row]] = {name: [] for name in ("made", "moved", "named", "counted", "administered")}
    for number in state.dirty_positions:
        row = position_row(state.id, state.positions[number])
        rows["made" if number > state.loaded_seq else "moved"].append(row)
    for name in state.dirty_scopes:
        scope = state.scopes[name]
        kind = "named" if scope.stored is None else "administered" if name in state.administered else "counted"
        rows[kind].append(count_row(state.id, scope))
    return Changes(
        state.id, state.name, state.loaded_hash, state.last_seq, state.last_hash, state.last_us,
        decisions=tuple(state.new_decisions), **rows,
    )  # fmt: skip


class WriteStore(Protocol):
    """One writing connection to a ledger's database. One thread at a time uses it.

    A batch is either loaded and locked by `begin` and then written, or decided on what is remembered (see `memory`)
    and written without a lock. Then nobody has looked for the commands' keys: the write must refuse it as `moved` or
    `stale` if the chain's head is not the one it was decided against, or if a key was used before.
    """

    def clock_us(self) -> int:
        """The time by which a batch is decided without asking the database; never ahead of the database's clock."""

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Lock the portfolios in one order everywhere, load what the batch needs, tell the time.

        Raises `FenceLost` where a lease that a group was sent under is not the present one any more.
        now_us: the injected clock's time; None asks the database's clock where several hosts share one.
        """

    def write(self, changes: Sequence[Changes], *, locked: bool) -> None:
        """Store what changed and commit. When this raises, the outcome may be unknown."""

    def rollback(self) -> None:
        """End the transaction without effect; never raises."""

    def reset(self) -> None:
        """Drop the connection; the next use makes a new one."""

    def fault(self, error: Exception, *, locked: bool) -> str:
        """`moved` or `stale` (decide again at once; somebody else wrote, or a key was used before), `conflict` (try
        again), `lost` (reconnect first) or `refused` (the data).
        """

    def close(self) -> None:
        """Give the connection back."""


def needs_of(groups: Sequence[Group]) -> dict[str, PortfolioNeed]:
    """Collect, per portfolio, the keys, positions and scopes these groups are about."""
    needs = {group.sweep: PortfolioNeed(sweeps=True) for group in groups if group.sweep is not None}
    for group, command in [(one, command) for one in groups for command in one.commands]:
        need = needs.get(command.portfolio)
        if need is None:
            need = needs[command.portfolio] = PortfolioNeed()
        if group.fence is not None:
            need.fences.add(group.fence)
        need.keys.add(command.key)
        if isinstance(command, PositionCommand):
            need.numbers.add(command.number)
            if isinstance(command, Confirm):
                need.late.add(command.number)
            continue
        need.creates = need.creates or isinstance(command, Reserve | SetCap | Adopt | Reconciled)
        if isinstance(command, Reserve):
            need.scopes.update(tags_of(command.tags).scopes)
        elif (tags := getattr(command, "tags", None)) is not None:
            need.scopes.update(tags_of(tags).scopes)
        elif (scope := getattr(command, "scope", None)) is not None:
            need.scopes.add(scope)
    return needs


def position_of(portfolio: str, row: Sequence[Any]) -> Position:
    """A position from its columns in table order."""
    (_, number, state, tags, held_e8, open_e8, quantity, price, legs, expires, opened, updated, seq, origin) = row
    return Position(
        portfolio, number, state, stored_tags(tags), held_e8, open_e8,
        None if quantity is None else Decimal(quantity), None if price is None else Decimal(price),
        legs_of(legs), expires, opened, updated, seq, origin,
    )  # fmt: skip


def position_row(portfolio_id: int, position: Position) -> tuple[Any, ...]:
    """A position's columns in table order."""
    return (
        portfolio_id, position.number, position.state, position.tags.text, position.held_e8, position.open_e8,
        None if position.quantity is None else decimal_text(position.quantity),
        None if position.price is None else decimal_text(position.price),
        legs_text(position.legs), position.expires_us, position.opened_us, position.updated_us,
        position.updated_seq, position.origin,
    )  # fmt: skip


def scope_of(row: Sequence[Any]) -> ScopeState:
    """A scope from its columns in table order."""
    _, name, cap_e8, held_e8, open_e8, _, status, frozen, fresh_until_us = row
    return ScopeState(name, cap_e8, held_e8, open_e8, status, bool(frozen), fresh_until_us, (held_e8, open_e8))


def count_row(portfolio_id: int, scope: ScopeState) -> Row:
    """How a scope's row moves. Counters move by their difference, so that a row somebody edited stays wrong for
    `verify` to find, and the CHECK on it can refuse the batch.
    """
    held, opened = scope.stored or (0, 0)
    return (
        portfolio_id, scope.name, scope.held_e8 - held, scope.open_e8 - opened, scope.overage_e8,
        scope.cap_e8, scope.status, int(scope.frozen), scope.fresh_until_us,
    )  # fmt: skip


def record_of(portfolio: str, row: Sequence[Any]) -> DecisionRecord:
    """A decision's record from its columns in table order."""
    return DecisionRecord(portfolio, *row[1:])
