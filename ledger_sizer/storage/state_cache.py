"""What a writer remembers of the portfolios it wrote, so that its next batch need not load them again.

The state a process's last batch left is the truth once that batch is stored, unless somebody else wrote since; and
that shows in the chain's head. Whoever decides on remembered state must have the database compare the head before
anything is written.
"""

from collections.abc import Iterable, Mapping

from ledger_sizer.rules.state import PortfolioState
from ledger_sizer.storage.write_store import PortfolioNeed

_CALM_MIN = 3
_POSITIONS_REMEMBERED_MAX = 10_000


class StateCache:
    """The portfolios as this process's batches left them, stored or on their way.

    A portfolio that somebody else wrote is not recalled until it was found some times in a row as this process had left
    it. Where several processes take turns on one portfolio, deciding before looking would often be in vain.

    failures: how often what was remembered turned out not to be stored; a decision taken before the last failure
    stands on nothing.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._calm: dict[str, int] = {}
        self._states: dict[str, PortfolioState] = {}

    def recall(self, needs: Mapping[str, PortfolioNeed], now_us: int) -> dict[str, PortfolioState] | None:
        """The remembered portfolios, where all that the batch needs of all of them is known; None otherwise.

        They are out of memory while they are decided upon; `keep` puts back what was decided.
        """
        known = all(
            self._calm.get(name, _CALM_MIN) >= _CALM_MIN
            and (state := self._states.get(name)) is not None
            and _answers(state, need, now_us)
            for name, need in needs.items()
        )
        if not known:
            return None
        return {name: self._states.pop(name) for name in needs}

    def foresee(self, needs: Mapping[str, PortfolioNeed]) -> None:
        """Add to a batch's needs the scopes of the positions it names, where their tags are remembered."""
        for name, need in needs.items():
            remembered = self._states.get(name)
            if remembered is not None:
                positions = remembered.positions
                need.scopes.update(*(positions[number].tags.scopes for number in need.numbers if number in positions))

    def doubt(self, names: Iterable[str]) -> None:
        """Somebody else wrote these portfolios: look before deciding until they are calm again."""
        self._calm.update(dict.fromkeys(names, 0))

    def keep(self, state: PortfolioState) -> None:
        """Remember a state as a batch leaves it, with what is still true of the one kept before."""
        before = self._states.get(state.name)
        if before is not None:
            unmoved = before.last_hash == state.loaded_hash
            self._calm[state.name] = self._calm.get(state.name, _CALM_MIN) + 1 if unmoved else 0
            if unmoved:
                _carry_over(before, state)  # before settling: what the batch ended must not come back
        held = [p.expires_us for n in state.dirty_positions if (p := state.positions[n]).state == "held"]
        state.begin_next_batch()
        state.next_expiry_us = min((us for us in (state.next_expiry_us, *held) if us is not None), default=None)
        if len(state.positions) > _POSITIONS_REMEMBERED_MAX:
            state.positions.clear()
        self._states[state.name] = state

    def fail(self) -> None:
        """Forget everything: a batch was not stored as it was decided, or may not have been."""
        self.failures += 1
        self._states.clear()


def _answers(state: PortfolioState, need: PortfolioNeed, now_us: int) -> bool:
    """Whether all that a batch needs of a portfolio is known without asking the database."""
    return (
        not need.sweeps
        and not need.fences
        and need.scopes <= state.scopes_known
        and need.numbers <= state.positions.keys()
        and (state.next_expiry_us is None or max(now_us, state.last_us) < state.next_expiry_us)
    )


def _carry_over(before: PortfolioState, after: PortfolioState) -> None:
    """Nobody else wrote in between, so what was known of other scopes and positions still holds."""
    before.scopes.update(after.scopes)
    before.scopes_known.update(after.scopes_known)
    before.positions.update(after.positions)
    after.scopes, after.scopes_known, after.positions = before.scopes, before.scopes_known, before.positions
