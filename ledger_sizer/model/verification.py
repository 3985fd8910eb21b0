"""Types of a verification: what it read, and what it found."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One error that `verify` found. seq: the decision it concerns. what: a description."""

    portfolio: str
    seq: int | None
    what: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of `verify`. findings: in order of seq. decisions, positions: how many it read.

    heads: (seq, hash) by portfolio.
    """

    findings: tuple[Finding, ...]
    decisions: int
    positions: int
    heads: Mapping[str, tuple[int, str]]

    @property
    def ok(self) -> bool:
        """True when there are no findings."""
        return not self.findings

    @property
    def first(self) -> Finding | None:
        """The finding with the lowest seq."""
        return self.findings[0] if self.findings else None
