"""What a writer remembers of the portfolios it wrote, so that its next batch need not load them again.

The state a process's last commit left is still the truth unless somebody else wrote since, and that shows in the
chain's head: whoever decides on remembered state must have the database compare the head before anything is written.
"""

from collections.abc import Mapping

from ledger_sizer.state import PortfolioState
from ledger_sizer.store import PortfolioNeed

_POSITIONS_REMEMBERED_MAX = 10_000


class Memory:
    """The portfolios as their last commits left them.

    calm_min: how often in a row a portfolio must be found as this process left it before it is recalled. Where
    several processes take turns on one portfolio, deciding before looking would often be in vain.
    """

    def __init__(self, *, calm_min: int) -> None:
        self._calm_min = calm_min
        self._calm: dict[str, int] = {}
        self._states: dict[str, PortfolioState] = {}
        self._recalled: tuple[str, ...] = ()

    def recall(self, needs: Mapping[str, PortfolioNeed], now_us: int) -> dict[str, PortfolioState] | None:
        """The remembered portfolios, where all that the batch needs of all of them is known; None otherwise.

        They are out of memory while they are decided upon: only a commit makes them true again.
        """
        known = all(
            self._calm.get(name, self._calm_min) >= self._calm_min
            and (state := self._states.get(name)) is not None
            and _answers(state, need, now_us)
            for name, need in needs.items()
        )
        if not known:
            return None
        self._recalled = tuple(needs)
        return {name: self._states.pop(name) for name in needs}

    def glance(self, name: str) -> PortfolioState | None:
        """What is remembered of a portfolio, to guess what a batch will need; it may be out of date."""
        return self._states.get(name)

    def put_back(self, state: PortfolioState) -> None:
        """Remember a portfolio that a batch recalled and did not move."""
        self._states[state.name] = state

    def doubt(self) -> None:
        """Somebody else wrote the portfolios recalled last: look before deciding until they are calm again."""
        self._calm.update(dict.fromkeys(self._recalled, 0))

    def keep(self, state: PortfolioState) -> None:
        """Remember a committed state, with what is still true of the one kept before."""
        before = self._states.get(state.name)
        if before is not None:
            unmoved = before.last_hash == state.loaded_hash
            self._calm[state.name] = self._calm.get(state.name, self._calm_min) + 1 if unmoved else 0
            if unmoved:
                _carry_over(before, state)  # before settling: what the batch ended must not come back
        held = [p.expires_us for n in state.dirty_positions if (p := state.positions[n]).state == "held"]
        state.settle()
        state.next_expiry_us = min((us for us in (state.next_expiry_us, *held) if us is not None), default=None)
        if len(state.positions) > _POSITIONS_REMEMBERED_MAX:
            state.positions.clear()
        self._states[state.name] = state

    def clear(self) -> None:
        """Forget everything, as after a lost connection."""
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
