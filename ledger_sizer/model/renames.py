"""Types of a renamed coin: the decision about it, and the drifts that look like one."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class RenamedCoin:
    """What the decision that a coin has another name did.

    ratio: new coins for one old. positions: those that were renamed. released: external positions that counted the new
    coin as an excess, which the renamed ones explain. differences: where the last run does not fit, in words; only a
    forced decision has any.
    """

    portfolio: str
    coin: str
    asset: str
    ratio: Decimal
    positions: tuple[str, ...]
    released: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenameCandidate:
    """A coin that is missing where another one is too many. ratio: new coins for one old. drifts: their numbers."""

    coin: str
    asset: str
    ratio: Decimal
    drifts: tuple[int, ...]
