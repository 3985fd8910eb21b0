"""The stored form of a decision and the audit chain that links decisions.

A record's canonical text is its fields in order, joined by 0x1F, with 0x1D standing for "none" (control characters
are refused in every input, so the text is unambiguous). The chain is

    hash(n) = SHA-256( hash(n - 1) + 0x1F + text(n) )      hash(0) = 64 zeros

so that changing, dropping or reordering any field of any decision changes every later hash.
"""

from decimal import Decimal
from hashlib import sha256
from typing import NamedTuple

from ledger_sizer.domain import Decision, Outcome, from_us, position_id
from ledger_sizer.units import usd

GENESIS_HASH = "0" * 64
FIELD_SEPARATOR = "\x1f"
NONE_MARK = "\x1d"


class DecisionRecord(NamedTuple):
    """One row of the audit chain, in column order. `exposure_e8` and `headroom_e8` are the portfolio's, before."""

    portfolio: str
    seq: int
    command: str
    key: str
    outcome: Outcome
    reason: str | None
    position: int | None
    tags: str
    budget_e8: int | None
    quantity: str | None
    fraction: str | None
    raw_budget: str | None
    held_delta_e8: int
    open_delta_e8: int
    headroom_e8: int | None
    exposure_e8: int
    binding: str | None
    expires_us: int | None
    decided_us: int
    request: str
    trace: str
    hash: str

    def logged(self) -> dict[str, object]:
        """What a log line says of the decision."""
        return {
            "portfolio": self.portfolio,
            "seq": self.seq,
            "command": self.command,
            "key": self.key,
            "outcome": self.outcome,
            "reason": self.reason,
            "position": self.position,
            "budget_usd": None if self.budget_e8 is None else str(usd(self.budget_e8)),
            "quantity": self.quantity,
            "binding": self.binding,
            "exposure_after_usd": str(usd(self.exposure_e8 + self.held_delta_e8 + self.open_delta_e8)),
        }

    def decision(self, *, replayed: bool = False) -> Decision:
        """The record as its caller sees it."""
        return Decision(
            portfolio=self.portfolio,
            seq=self.seq or None,
            command=self.command,
            key=self.key,
            outcome=self.outcome,
            reason=self.reason,
            position_id=None if self.position is None else position_id(self.portfolio, self.position),
            budget=None if self.budget_e8 is None else usd(self.budget_e8),
            quantity=None if self.quantity is None else Decimal(self.quantity),
            fraction=None if self.fraction is None else Decimal(self.fraction),
            raw_budget=None if self.raw_budget is None else Decimal(self.raw_budget),
            headroom_before=None if self.headroom_e8 is None else usd(self.headroom_e8),
            exposure_before=usd(self.exposure_e8),
            exposure_after=usd(self.exposure_e8 + self.held_delta_e8 + self.open_delta_e8),
            binding=self.binding,
            expires_at=None if self.expires_us is None else from_us(self.expires_us),
            decided_at=from_us(self.decided_us),
            request=self.request,
            trace=self.trace,
            hash=self.hash or None,
            replayed=replayed,
        )


def canonical_text(record: DecisionRecord) -> str:
    """The text the chain hashes: every field but the hash itself."""
    return FIELD_SEPARATOR.join(
        [NONE_MARK if part is None else part if type(part) is str else str(part) for part in record[:-1]]
    )


def chain_hash(previous: str, text: str) -> str:
    """The hash of a record whose canonical text is `text` and whose predecessor's hash is `previous`."""
    return sha256(f"{previous}{FIELD_SEPARATOR}{text}".encode()).hexdigest()
