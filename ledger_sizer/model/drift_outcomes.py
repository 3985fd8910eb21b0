"""What became of each drift in a decision about many."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.units import exact_arithmetic

OutcomeOfDrift = Literal["done", "repeated", "planned", "refused"]

DRIFTS_MAX = 10_000
"""Most drifts that one decision names."""


@dataclass(frozen=True, slots=True)
class DriftOutcome:
    """What became of one drift.

    outcome: `done`; `repeated`, if the same decision was made before; `planned` in a dry run; or `refused`. words: what
    was done, or is refused and why. error: code of the refusal, None without one. drift: as it is now; None if there is
    none of this number.
    """

    drift_id: int
    outcome: OutcomeOfDrift
    words: str
    error: str | None = None
    drift: Drift | None = None

    @property
    def usd(self) -> Decimal | None:
        """What its difference is worth, USD."""
        return None if self.drift is None else self.drift.usd


@dataclass(frozen=True, slots=True)
class DriftOutcomes:
    """The outcomes of a decision about many drifts, in the order of their numbers."""

    items: tuple[DriftOutcome, ...]

    @property
    def refused(self) -> int:
        """How many were refused."""
        return sum(one.outcome == "refused" for one in self.items)

    @property
    def usd(self) -> Decimal:
        """What those are worth together that were not refused, USD, as far as they have a price."""
        with exact_arithmetic():
            return sum((one.usd or Decimal(0) for one in self.items if one.outcome != "refused"), Decimal(0))


def outcomes_of(items: Sequence[DriftOutcome]) -> DriftOutcomes:
    """Return these outcomes in the order of their numbers."""
    return DriftOutcomes(tuple(sorted(items, key=lambda one: one.drift_id)))
