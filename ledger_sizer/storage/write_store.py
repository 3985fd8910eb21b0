"""Defines the write store of a ledger, and converts between rows and state for both databases.

The stores use the driver's SQL, not the ORM: one round trip locks and loads a batch, another writes and commits it.
Column lists come from the models, so they follow a schema change.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.domain import Position
from ledger_sizer.model.fills import fills_of, fills_text
from ledger_sizer.model.legs import legs_of, legs_text
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, Tags, stored_tags, tag_texts
from ledger_sizer.model.units import decimal_text
from ledger_sizer.rules.batch import Fence, Group
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.settling import SettleTask
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow, PositionRow, ScopeRow

PORTFOLIO_COLUMNS = tuple(PortfolioRow.__table__.columns.keys())
SCOPE_COLUMNS = tuple(ScopeRow.__table__.columns.keys())
POSITION_COLUMNS = tuple(PositionRow.__table__.columns.keys())
DECISION_COLUMNS = tuple(DecisionRow.__table__.columns.keys())
_RARELY_SET = tuple(name for name in ScopeSettings._fields if name != "promised_e8")
COUNTERS = ("portfolio_id", "scope", "held_e8", "open_e8", "overage_e8", "promised_e8")
"""Columns that decisions about positions change (see `counters_row`)."""
SCOPE_CHANGE = (*COUNTERS, *_RARELY_SET)
"""Columns of a scope as a batch writes them (see `scope_row`)."""
assert set(SCOPE_CHANGE) == set(SCOPE_COLUMNS), "every setting has its column, and every column is written"
assert DECISION_COLUMNS[1:] == DecisionRecord._fields[1:], "the decisions table and the record must list one order"


EXPIRIES_MAX = 256
"""Overdue holds that one batch frees, beside those that its commands name: about as many as a batch has commands.

Such a slice takes some 30 ms. Without a bound, 20,000 that ended at once stopped every other writer for seconds.
"""


class PortfolioNeed:
    """What must be loaded of one portfolio for a batch.

    creates: its commands may create the portfolio. sweeps: the database must be asked for expired holds. keys:
    idempotency keys. numbers: of positions. origins: numbers of positions whose late fills are needed too. fences:
    leases that must be held. settle: a bot's book; all live positions with its tags are needed.
    """

    __slots__ = ("creates", "fences", "keys", "numbers", "origins", "scopes", "settle", "sweeps")

    def __init__(self, *, sweeps: bool = False) -> None:  # a dataclass takes three times as long
        self.creates = False
        self.sweeps = sweeps
        self.keys: set[str] = set()
        self.numbers: set[int] = set()
        self.origins: set[int] = set()
        self.scopes = {PORTFOLIO_SCOPE}
        self.fences: set[Fence] = set()
        self.settle: SettleTask | None = None


class StaleState(Exception):
    """A batch was decided on outdated cached state and must be decided again. Never leaves the ledger."""


class FenceLost(Exception):
    """A lease that the batch was sent under is not held any more; nothing was written. Never leaves the ledger."""


Row = tuple[Any, ...]


class PortfolioChanges(NamedTuple):
    """What a batch changes in one portfolio. A store makes rows of it (`position_row`, `counters_row`, `scope_row`).

    begins: the portfolio has no row yet, it is written with these first decisions. previous_hash: the chain's head when
    the batch was decided. decisions: each with its canonical text. Positions and scopes are as the batch leaves them.
    new_scopes: scopes without a row yet. counter_changes: scopes of which only counters change. scope_changes: scopes
    of which settings change too. desk_status: what the desk's status must still be; None where no decision depends on
    it.
    """

    portfolio_id: int
    portfolio: str
    begins: bool
    previous_hash: str
    last_seq: int
    last_hash: str
    last_us: int
    decisions: Sequence[tuple[DecisionRecord, str]]
    new_positions: Sequence[Position]
    changed_positions: Sequence[Position]
    new_scopes: Sequence[ScopeState]
    counter_changes: Sequence[ScopeState]
    scope_changes: Sequence[ScopeState]
    desk_status: str | None


def changes_of(state: PortfolioState) -> PortfolioChanges:
    """Collect the changes of a decided batch. Call it before `PortfolioState.begin_next_batch`, which forgets them."""
    new_positions: list[Position] = []
    changed_positions: list[Position] = []
    new_scopes: list[ScopeState] = []
    counter_changes: list[ScopeState] = []
    scope_changes: list[ScopeState] = []
    for number in state.dirty_positions:
        positions = new_positions if number > state.loaded_seq else changed_positions
        positions.append(state.positions[number])
    for name in state.dirty_scopes:
        scope = state.scopes[name].copy()  # the next batch goes on counting on it
        if scope.stored is None:
            new_scopes.append(scope)
        elif name in state.administered:
            scope_changes.append(scope)
        else:
            counter_changes.append(scope)
    return PortfolioChanges(
        state.id, state.name, state.begins, state.loaded_hash, state.last_seq, state.last_hash, state.last_us,
        tuple(state.new_decisions), new_positions, changed_positions, new_scopes, counter_changes, scope_changes,
        state.desk_status if state.asks_desk else None,
    )  # fmt: skip


def new_portfolio_row(change: PortfolioChanges) -> Row:
    """Return the row of a portfolio that begins: the columns of `PORTFOLIO_COLUMNS`. It is as old as its decisions."""
    created_us = change.decisions[0][0].decided_us
    return change.portfolio_id, change.portfolio, change.last_seq, change.last_hash, change.last_us, created_us


class WriteStore(Protocol):
    """One writing connection to a ledger's database. One thread at a time may use it.

    A batch is either locked and loaded by `begin` and then written, or decided on cached state (see `state_cache`) and
    written without a lock. In the second case nobody has looked up the commands' keys. So the write must fail, as
    `moved` or `stale`, if the chain's head is not the one the batch was decided against, or if a key was used before.

    The desk's status is not part of a portfolio. The write must fail, as `moved`, if it is not `desk_status` any more
    (see `PortfolioChanges`), and must commit before a change of the desk does, or after it and fail. A batch that
    changes the desk is always locked.
    """

    def clock_us(self) -> int | None:
        """Return the time for a batch that is decided without the database; never ahead of the database's clock.

        None where the database must be asked. Raises `ClockJumped`.
        """

    def begin(
        self, needs: dict[str, PortfolioNeed], now_us: int | None, new_cap_e8: int
    ) -> tuple[dict[str, PortfolioState], int]:
        """Lock the portfolios, load what the batch needs, and return both with the time in microseconds.

        Loads the overdue holds that the batch frees: a slice of each portfolio (see `expiries_per_portfolio`), and
        those that a command names, or whose reservation is sent again. Every process locks portfolios in the same
        order. A portfolio that may be created and does not exist gets an id; `write` stores it with its first decision.
        now_us: the injected clock's time; None takes the database's clock where several hosts share one. Raises
        `FenceLost` if a group's lease is not the present one any more, `ClockJumped` if the clock that it took jumped.
        """

    def write(self, changes: Sequence[PortfolioChanges], *, locked: bool) -> None:
        """Store the changes and commit. If it raises, the outcome may be unknown."""

    def rollback(self) -> None:
        """Roll the transaction back. Never raises."""

    def reset(self) -> None:
        """Drop the connection. The next use opens a new one."""

    def classify_error(self, error: Exception, *, locked: bool) -> str:
        """Classify an error of `begin` or `write`.

        `moved`: another writer changed the chain's head or the desk, or began the portfolio; decide again at once.
        `stale`: a key may have been used before, decide again at once. `conflict`: retry. `lost`: reconnect, then
        retry. `refused`: the data is rejected. `closed`: the error is the answer, until a person has acted. `damaged`:
        so is the database.
        """

    def close(self) -> None:
        """Close the connection."""


def expiries_per_portfolio(portfolios: int) -> int:
    """Return how many overdue holds of each portfolio a batch of so many portfolios frees: the earliest first."""
    return max(EXPIRIES_MAX // portfolios, 1)


def needs_of(groups: Sequence[Group]) -> dict[str, PortfolioNeed]:
    """Collect, by portfolio, what must be loaded for these groups."""
    needs = {group.sweep: PortfolioNeed(sweeps=True) for group in groups if group.sweep is not None}
    for task in [group.settle for group in groups if group.settle is not None]:
        settled = needs[task.request.portfolio] = PortfolioNeed()
        settled.settle = task
        settled.creates = any(entry.quantity for entry in task.request.entries.values())
        settled.numbers.update(task.numbers.values())
        settled.origins.update(settled.numbers)
        settled.scopes.update(task.tags.scopes, [f"symbol={market}" for market in task.request.entries])
    for group in groups:
        fence = group.fence
        for command in group.commands:
            need = needs.get(command.portfolio)
            if need is None:
                need = needs[command.portfolio] = PortfolioNeed()
            if fence is not None:
                need.fences.add(fence)
            need.keys.add(command.key)
            need.scopes.update(command.scopes)
            if command.number is not None:
                need.numbers.add(command.number)
                if command.fills_late:
                    need.origins.add(command.number)
            need.creates = need.creates or command.creates
    return needs


def tag_filter(tags: Tags) -> str:
    """Return what `tagged` takes as its parameter: for each tag the texts of `tag_texts`, as JSON arrays."""
    return json.dumps([tag_texts(name, value) for name, value in tags.pairs])


def changed_lately(state: PortfolioState, as_of_us: int) -> list[int]:
    """Return the numbers of the holds that are older than `as_of_us` and changed since: they may be granted anew."""
    return [
        number
        for number, position in state.positions.items()
        if position.pending and position.opened_us <= as_of_us < position.updated_us
    ]


def position_from_row(portfolio: str, row: Sequence[Any]) -> Position:
    """Build a position from its columns in table order."""
    (
        _, number, state, tags, held_e8, open_e8, quantity, price, legs, expires, opened, updated, seq, origin, fills,
        reference,
    ) = row  # fmt: skip
    return Position(
        portfolio, number, state, stored_tags(tags), held_e8, open_e8,
        None if quantity is None else Decimal(quantity), None if price is None else Decimal(price),
        legs_of(legs), expires, opened, updated, seq, origin, fills_of(fills), reference,
    )  # fmt: skip


def position_row(portfolio_id: int, position: Position) -> Row:
    """Return a position's columns in table order."""
    return (
        portfolio_id, position.number, position.state, position.tags.text, position.held_e8, position.open_e8,
        None if position.quantity is None else decimal_text(position.quantity),
        None if position.price is None else decimal_text(position.price),
        legs_text(position.legs), position.expires_us, position.opened_us, position.updated_us,
        position.updated_seq, position.origin, fills_text(position.fills), position.reference,
    )  # fmt: skip


def scope_from_row(row: Sequence[Any]) -> ScopeState:
    """Build a scope from its columns in table order."""
    name, held_e8, open_e8, *settings = _OF_SCOPE(row)
    return ScopeState(name, ScopeSettings(*settings), held_e8, open_e8, (held_e8, open_e8))


_OF_SCOPE = itemgetter(*map(SCOPE_COLUMNS.index, ("scope", "held_e8", "open_e8", *ScopeSettings._fields)))


def counters_row(portfolio_id: int, scope: ScopeState) -> Row:
    """Return the change of a scope's counters, `COUNTERS`: differences, 1e-8 USD; the overage and what is promised.

    Adding a difference never corrects a row that somebody edited. `verify` then finds it, or a CHECK fails the batch.
    """
    held, opened = scope.stored or (0, 0)
    promised_e8 = scope.settings.promised_e8
    return (portfolio_id, scope.name, scope.held_e8 - held, scope.open_e8 - opened, scope.overage_e8, promised_e8)


def scope_row(portfolio_id: int, scope: ScopeState) -> Row:
    """Return the change of a scope's counters and its settings: the columns of `SCOPE_CHANGE`."""
    settings = [getattr(scope.settings, name) for name in _RARELY_SET]
    return (*counters_row(portfolio_id, scope), *[int(one) if type(one) is bool else one for one in settings])


def record_from_row(portfolio: str, row: Sequence[Any]) -> DecisionRecord:
    """Build a decision's record from its columns in table order."""
    return DecisionRecord(portfolio, *row[1:])


def drift_from_row(row: Any) -> Drift:
    """Build a drift from its row."""
    values = dict(row._mapping)
    for name in ("ledger_quantity", "venue_quantity", "excess", "price"):
        values[name] = None if values[name] is None else Decimal(values[name])
    values["excess"] = values["excess"] or Decimal(0)
    return Drift(**values)
