"""Caches the portfolios that a writer wrote, so that its next batch need not load them again.

Once a batch is stored, the state it left is what the database has, unless another writer wrote since. That shows in
the chain's head. A batch decided on cached state must therefore be written as compare-and-set on the head.
"""

from collections.abc import Iterable, Mapping

from ledger_sizer.model.names import DESK
from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.write_store import PortfolioNeed

_UNCONTENDED_MIN = 3
_POSITIONS_MAX = 10_000


class StateCache:
    """The portfolios as this writer's batches left them, stored or about to be stored.

    After another writer changed a portfolio, the cache does not return it until `_UNCONTENDED_MIN` batches in a row
    found it as this writer had left it. Where writers take turns on a portfolio, cached state would often be outdated.

    generation: counts how often the cache was dropped because a batch was not stored. A draft of an earlier generation
    was decided on state that the database may not have.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._uncontended: dict[str, int] = {}  # by portfolio: batches in a row without another writer
        self._states: dict[str, PortfolioState] = {}

    def take(self, needs: Mapping[str, PortfolioNeed], now_us: int) -> dict[str, PortfolioState] | None:
        """Remove the portfolios from the cache and return them; None unless all that the batch needs of them is cached.

        The desk counts as not cached: a batch that changes it is always locked. The caller decides the batch on the
        portfolios and returns them by `put`.
        """
        if DESK in needs:
            return None
        for name, need in needs.items():
            state = self._states.get(name)
            contended = self._uncontended.get(name, _UNCONTENDED_MIN) < _UNCONTENDED_MIN
            if contended or state is None or not _covers(state, need, now_us):
                return None
        return {name: self._states.pop(name) for name in needs}

    def add_cached_scopes(self, needs: Mapping[str, PortfolioNeed]) -> None:
        """Add to a batch's needs the scopes of its positions, as far as cached: it saves PostgreSQL a round trip."""
        for name, need in needs.items():
            state = self._states.get(name)
            if state is not None:
                positions = state.positions
                need.scopes.update(*(positions[number].tags.scopes for number in need.numbers if number in positions))

    def mark_contended(self, names: Iterable[str]) -> None:
        """Note that another writer changed these portfolios: load them until they are uncontended again."""
        self._uncontended.update(dict.fromkeys(names, 0))

    def put(self, state: PortfolioState) -> None:
        """Cache a state as a batch leaves it, with what is still true of the state cached before."""
        if state.may_expire:
            _forget_ended(state)  # a cached state has none, and would take longer to search
        before = self._states.get(state.name)
        if before is not None:
            unchanged = before.last_hash == state.loaded_hash
            self._uncontended[state.name] = self._uncontended.get(state.name, _UNCONTENDED_MIN) + 1 if unchanged else 0
            if unchanged:
                _carry_over(before, state)  # before `settle`, or positions that the batch ended would come back
        changed = [state.positions[number] for number in state.dirty_positions]
        expiries = [one.expires_us for one in changed if one.expires_us is not None and one.live]
        state.begin_next_batch()
        if expiries:
            known = state.next_expiry_us
            state.next_expiry_us = min(expiries) if known is None else min(known, *expiries)
        if len(state.positions) > _POSITIONS_MAX:
            state.positions.clear()
        self._states[state.name] = state

    def clear(self) -> None:
        """Drop everything: a batch was not stored as it was decided, or may not have been."""
        self.generation += 1
        self._states.clear()


def _covers(state: PortfolioState, need: PortfolioNeed, now_us: int) -> bool:
    """Whether a cached state has all that a batch needs of the portfolio."""
    return (
        not need.sweeps
        and not need.fences
        and need.settle is None
        and need.scopes <= state.scopes_known
        and need.numbers <= state.positions.keys()
        and (state.next_expiry_us is None or state.decision_time(now_us) < state.next_expiry_us)
    )


def _forget_ended(state: PortfolioState) -> None:
    """Drop the ended positions that were loaded: what was loaded with them, as their late fills, is not cached."""
    positions, dirty = state.positions, state.dirty_positions
    for number in [number for number, one in positions.items() if not one.live and number not in dirty]:
        del positions[number]


def _carry_over(before: PortfolioState, after: PortfolioState) -> None:
    """Copy the other scopes and positions of the state before: they are still true, as nobody else wrote in between."""
    before.scopes.update(after.scopes)
    before.scopes_known.update(after.scopes_known)
    before.positions.update(after.positions)
    after.scopes, after.scopes_known, after.positions = before.scopes, before.scopes_known, before.positions
