"""One drift in full: what it means, what the ledger has there, what happened to it, what to do next."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from ledger_sizer.model.drift_words import Step, difference_words, meaning, next_steps
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.tags import Tags


@dataclass(frozen=True, slots=True)
class DriftPosition:
    """A position of the ledger that a drift is about.

    quantity: coins in the drift's market, sold coins of an asset below zero; None of a hold without any. opened_by: the
    actor of the decision that made it; None where that is archived.
    """

    position_id: str
    state: str
    side: str
    quantity: Decimal | None
    tags: Tags
    opened_at: datetime
    opened_by: str | None


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """One decision in the portfolio's chain that is about a drift. event: of a remark what happened, else the verb."""

    seq: int
    decided_at: datetime
    actor: str | None
    event: str
    note: str | None


@dataclass(frozen=True, slots=True)
class DriftReport:
    """A drift in full.

    frozen_at: when it froze its scopes, if that is not archived. first_run_at, last_run_at: when the runs ended that
    saw it first and last. positions: open ones of the ledger in its market, on both sides, the newest first, at most
    100; positions_left_out counts the rest. holds: those that may explain it. events: oldest first; archived ones are
    left out.
    """

    drift: Drift
    frozen_at: datetime | None = None
    first_run_at: datetime | None = None
    last_run_at: datetime | None = None
    positions: tuple[DriftPosition, ...] = ()
    positions_left_out: int = 0
    holds: tuple[DriftPosition, ...] = ()
    events: tuple[DriftEvent, ...] = field(default=())

    @property
    def meaning(self) -> str:
        """What its kind means."""
        return meaning(self.drift)

    @property
    def difference(self) -> str:
        """The difference in coins and USD, in words; empty without quantities."""
        return difference_words(self.drift)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What can be done about it now, the most likely first."""
        return next_steps(self.drift)
