"""The positions of a portfolio, read once and kept current, for decisions about many drifts after each other."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Engine, bindparam, select

from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_words import holds_named
from ledger_sizer.model.reconciliation import Drift, Market
from ledger_sizer.reconcile.ledger_reads import MOVED_BY, read_head, read_ledger, read_moves
from ledger_sizer.reconcile.ledger_side import LedgerSide, ledger_side_of
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.lookups import portfolio_id
from ledger_sizer.storage.tables import DecisionRow, PositionRow
from ledger_sizer.storage.write_store import position_from_row
from ledger_sizer.views.attribution import AccountKey, AccountResolver, known_since

_BATCH_ROWS = 100


class LedgerView:
    """Positions of a portfolio, and what moved them since a run began.

    seen_us: when that run began. accounts: those that it compared; a position that names no account is at its venue's
    only one.
    """

    def __init__(self, engine: Engine, portfolio: str, seen_us: int, accounts: Sequence[AccountKey]) -> None:
        self._engine = engine
        self._portfolio = portfolio
        self.seen_us = seen_us
        self._head = read_head(engine, portfolio)  # before the positions: what is decided meanwhile is read again
        positions, scopes = read_ledger(engine, portfolio, since_us=seen_us)
        self.accounts = AccountResolver(accounts, known_since(scopes))
        self.moves = read_moves(engine, portfolio, positions, settled_us=seen_us - 1, sighted_us=seen_us - 1)
        self._own: set[int] = set()
        self._positions: dict[int, Position] = {}
        self._by_market: dict[Market, set[int]] = {}
        self._drifts: dict[Market, list[Drift]] = {}
        self._groups = _Groups()
        for position in positions:
            self._add(position)

    def skip(self, seqs: Collection[int]) -> None:
        """Do not read these decisions of the caller's own: they finished their component."""
        self._own |= {*seqs}

    def refresh(self) -> None:
        """Read what was decided since the last time: the positions that changed, and what moved them."""
        columns = (DecisionRow.seq, DecisionRow.position, DecisionRow.command, DecisionRow.quantity,
                   DecisionRow.decided_us)  # fmt: skip
        with read_transaction(self._engine) as connection:
            owner = portfolio_id(connection, self._portfolio)
            query = select(*columns).where(DecisionRow.portfolio_id == owner, DecisionRow.seq > self._head)
            since = connection.execute(query.order_by(DecisionRow.seq)).all()
            decided = [row for row in since if row.seq not in self._own]
            changed = sorted({row.position for row in decided if row.position is not None})
            by_number = select(PositionRow.__table__).where(
                PositionRow.portfolio_id == owner, PositionRow.number.in_(bindparam("numbers", expanding=True))
            )
            for start in range(0, len(changed), _BATCH_ROWS):
                for row in connection.execute(by_number, {"numbers": changed[start : start + _BATCH_ROWS]}):
                    self._add(position_from_row(self._portfolio, row))
        self.moves.asked.update(changed)
        self._head = since[-1].seq if since else self._head
        self._own.clear()
        for seq, number, command, quantity, decided_us in decided:
            if number is not None and command in MOVED_BY and quantity not in (None, "0"):
                self.moves.last[number] = (seq, decided_us)

    def _add(self, position: Position) -> None:
        self._positions[position.number] = position
        markets = [market for _, market in self.accounts.legs(position) if market is not None]
        for market in markets:
            self._by_market.setdefault(market, set()).add(position.number)
            self._groups.join(market, market.opposite)
        for market in markets[1:]:
            self._groups.join(markets[0], market)

    def join(self, markets: Iterable[Market]) -> None:
        """Let what is in these markets be decided together."""
        first, *others = markets
        for market in others:
            self._groups.join(first, market)

    def components(self, found: Iterable[Drift]) -> list[list[Drift]]:
        """Group the drifts whose adoptions may depend on each other, in the order of their numbers.

        Those of the same market or its other side, of markets that one position is in, and late fills of one hold.
        """
        found = [*found]
        for drift in found:
            self._groups.join(drift.market, drift.market.opposite)
            for name in holds_named(drift.detail) if drift.kind == "late_fill" else ():
                self._groups.join(drift.market, name)
        grouped: dict[Any, list[Drift]] = {}
        for drift in found:
            grouped.setdefault(self._groups.root(drift.market), []).append(drift)
        return [*grouped.values()]

    def keep_near(self, live: Iterable[Drift]) -> None:
        """Keep these drifts, for `near`."""
        self._drifts = {}
        for drift in live:
            self._drifts.setdefault(drift.market, []).append(drift)

    def near(self, component: Sequence[Drift]) -> list[Drift]:
        """Return the kept drifts in the markets of a component, by number."""
        markets = self._groups.members(component[0].market)
        return sorted((one for market in markets for one in self._drifts.get(market, ())), key=lambda one: one.id)

    def positions_of(self, component: Sequence[Drift]) -> list[Position]:
        """Return the positions in the markets of a component, oldest first."""
        markets = self._groups.members(component[0].market)
        numbers: set[int] = set().union(*(self._by_market.get(market, ()) for market in markets))
        return [self._positions[number] for number in sorted(numbers)]

    def side_of(self, positions: Sequence[Position]) -> LedgerSide:
        """Sum up positions, as an adoption does: `settling` has whatever moved since the run began."""
        return ledger_side_of(
            positions, self.accounts, seq_before=2**62, settled_us=self.seen_us - 1, expired_us=2**62, moves=self.moves
        )


class _Groups:
    """Disjoint sets of markets and names."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}
        self._members: dict[Any, list[Any]] = {}

    def root(self, one: Any) -> Any:
        parent = self._parent.setdefault(one, one)
        while parent != self._parent[parent]:
            parent = self._parent[parent]
        return parent

    def members(self, one: Any) -> list[Any]:
        root = self.root(one)
        found: list[Any] = self._members.get(root, [root])
        return found

    def join(self, one: Any, other: Any) -> None:
        kept, gone = self.root(one), self.root(other)
        if kept == gone:
            return
        mine, theirs = self._members.pop(kept, [kept]), self._members.pop(gone, [gone])
        if len(mine) < len(theirs):
            kept, gone, mine, theirs = gone, kept, theirs, mine
        mine += theirs
        self._members[kept] = mine
        self._parent[gone] = kept
