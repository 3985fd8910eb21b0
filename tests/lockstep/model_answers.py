"""What the reference model is asked and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from ledger_sizer import (
    AccountSeen,
    Adopt,
    Confirm,
    EquitySeen,
    Extend,
    Fill,
    Freeze,
    Halt,
    Reconciled,
    Release,
    Remark,
    Rename,
    Reprice,
    Reserve,
    Resume,
    Retag,
    SetCap,
    Thaw,
)
from tests.lockstep.model_positions import (
    NEVER,
)

if TYPE_CHECKING:
    from tests.lockstep.model import PortfolioModel


AboutPosition = Confirm | Fill | Release | Extend | Retag | Reprice | Rename
Administration = SetCap | Halt | Resume | Freeze | Thaw | Reconciled | AccountSeen | EquitySeen | Remark
Command = Reserve | AboutPosition | Adopt | Administration

PRECEDENCE = (
    "halted", "reducing", "unreconciled", "cap_exceeded", "below_min_qty", "below_min_notional",
    "insufficient_balance",
)  # fmt: skip
"""Reasons to deny; the first that holds is told."""


@dataclass(frozen=True)
class Figures:
    """The settings that decisions depend on. declared: whether a portfolio begins with a set_cap only."""

    enabled: bool
    min_fraction: Fraction
    max_fraction: Fraction
    position_max: Fraction
    cap: Fraction
    ttl: timedelta
    required: tuple[str, ...] = ()
    declared: bool = False


@dataclass(frozen=True)
class Answer:
    """Expected answer of the ledger."""

    command: str
    outcome: str
    seq: int | None = None
    reason: str | None = None
    binding: str | None = None
    number: int | None = None
    budget: Fraction | None = None
    quantity: Fraction | None = None
    fraction: Fraction | None = None
    raw_budget: Fraction | None = None
    headroom_before: Fraction = Fraction(0)
    exposure_before: Fraction = Fraction(0)
    exposure_after: Fraction = Fraction(0)
    expires_at: datetime | None = None
    decided_at: datetime | None = None
    replayed: bool = False
    unchanged: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Refusal:
    """An error: nothing is recorded and the key stays unused."""

    code: str


class RefusedError(Exception):
    """Raised by a rule to return a refusal."""

    def __init__(self, code: str) -> None:
        self.refusal = Refusal(code)


def lifetime_end(portfolio: PortfolioModel, command: Reserve | Extend) -> datetime:
    if command.until_known:
        return NEVER
    if command.ttl_seconds is None:
        return portfolio.now + portfolio.figures.ttl
    return portfolio.now + timedelta(microseconds=int(Fraction(command.ttl_seconds) * 1_000_000))


def shown(expires_at: datetime | None) -> datetime | None:
    return None if expires_at == NEVER else expires_at
