"""The list of all rounds, each a function on a `Stage` with the fault it injects and the promise it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from campaign.stage import Stage

MODULES = (
    "service_rounds",
    "postgresql_rounds",
    "network_rounds",
    "file_rounds",
    "load_rounds",
    "clock_rounds",
    "failover_rounds",
    "patroni_rounds",
)

Play = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Round:
    """One round. short: also in the campaign of CI. The function's docstring is its fault, in one line."""

    name: str
    play: Play
    short: bool

    @property
    def fault(self) -> str:
        """What is broken, in one line."""
        return str(self.play.__doc__).partition("\n")[0]


_ROUNDS: dict[str, Round] = {}


def campaign_round(*, short: bool = False) -> Callable[[Play], Play]:
    """Register a function as a round that is called like it, with dashes."""

    def register(play: Play) -> Play:
        name = play.__name__.replace("_", "-")
        _ROUNDS[name] = Round(name, play, short)
        return play

    return register


def all_rounds() -> dict[str, Round]:
    """Return every round by its name, in the order in which they run."""
    for module in MODULES:
        import_module(f"campaign.{module}")  # registers its rounds
    return dict(sorted(_ROUNDS.items(), key=lambda named: MODULES.index(named[1].play.__module__.rpartition(".")[2])))
