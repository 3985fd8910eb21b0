"""What a batch decides against: the locked portfolios as they are now, and what the batch has changed so far.

Pure memory. The store fills it, `rules` reads it, `apply` moves it forward, the store saves what moved.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from ledger_sizer.commands import tag_scopes
from ledger_sizer.domain import PORTFOLIO_SCOPE, Outcome, Position, Status
from ledger_sizer.records import DecisionRecord, canonical_text, chain_hash

_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode


@lru_cache(maxsize=8192)
def _tag_forms(items: tuple[tuple[str, str], ...]) -> tuple[str, tuple[str, ...]]:
    tags = dict(items)
    return _encode(tags), tag_scopes(tags)


def tags_text(tags: Mapping[str, str]) -> str:
    """Canonical JSON of a position's tags."""
    return _tag_forms(tuple(sorted(tags.items())))[0]


def scopes_of(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the scopes these tags count in, the portfolio first."""
    return _tag_forms(tuple(sorted(tags.items())))[1]


@dataclass(slots=True)
class ScopeState:
    """A scope's cap and counters, in 1e-8 USD."""

    name: str
    cap_e8: int | None = None
    held_e8: int = 0
    open_e8: int = 0
    status: Status = "active"

    @property
    def exposure_e8(self) -> int:
        """held + open."""
        return self.held_e8 + self.open_e8

    @property
    def headroom_e8(self) -> int | None:
        """cap - exposure; below zero when facts went over the cap; None without a cap."""
        return None if self.cap_e8 is None else self.cap_e8 - self.held_e8 - self.open_e8

    @property
    def overage_e8(self) -> int:
        """What stands above the cap."""
        return 0 if self.cap_e8 is None else max(self.held_e8 + self.open_e8 - self.cap_e8, 0)


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What `rules` decided about one command: the answer, and how the state moves. Amounts in 1e-8 USD.

    position: the position after the command, None where it has none. tags: of the position concerned.
    scope_after: the scope an administrator's command changed.
    """

    outcome: Outcome
    trace: str
    reason: str | None = None
    position: Position | None = None
    tags: Mapping[str, str]
    budget_e8: int | None = None
    quantity: str | None = None
    fraction: str | None = None
    raw_budget: str | None = None
    held_delta_e8: int = 0
    open_delta_e8: int = 0
    binding: str | None = None
    expires_us: int | None = None
    scope_after: ScopeState | None = None


class PortfolioState:
    """One locked portfolio: chain head, the scopes and positions the batch needs, and the keys it was asked with."""

    __slots__ = (
        "dirty_positions",
        "dirty_scopes",
        "id",
        "last_hash",
        "last_seq",
        "last_us",
        "late_fills",
        "name",
        "positions",
        "records",
        "scopes",
        "sealed",
    )

    def __init__(self, id_: int, name: str, last_seq: int, last_hash: str, last_us: int) -> None:
        self.id = id_
        self.name = name
        self.last_seq = last_seq
        self.last_hash = last_hash
        self.last_us = last_us
        self.scopes: dict[str, ScopeState] = {}
        self.positions: dict[int, Position] = {}
        self.late_fills: dict[int, int] = {}
        self.records: dict[str, DecisionRecord] = {}
        self.sealed: list[tuple[DecisionRecord, str]] = []
        self.dirty_scopes: set[str] = set()
        self.dirty_positions: set[int] = set()

    def scope(self, name: str) -> ScopeState:
        """The scope of that name; one that nobody used yet counts nothing and has no cap."""
        found = self.scopes.get(name)
        return ScopeState(name) if found is None else found

    def add_position(self, position: Position) -> None:
        """Know a position, and which expired one it fills late."""
        self.positions[position.number] = position
        if position.origin is not None:
            self.late_fills[position.origin] = position.number

    def fork(self) -> "PortfolioState":
        """An independent copy, for commands that must all succeed or leave no trace."""
        copy = PortfolioState(self.id, self.name, self.last_seq, self.last_hash, self.last_us)
        copy.scopes = {name: replace(scope) for name, scope in self.scopes.items()}
        copy.positions = dict(self.positions)
        copy.late_fills = dict(self.late_fills)
        copy.records = dict(self.records)
        copy.sealed = list(self.sealed)
        copy.dirty_scopes = set(self.dirty_scopes)
        copy.dirty_positions = set(self.dirty_positions)
        return copy

    def apply(self, verb: str, key: str, request: str, verdict: Verdict, now_us: int) -> DecisionRecord:
        """Move the state forward by a verdict and seal its decision into the chain. Returns the record."""
        whole = self.scope(PORTFOLIO_SCOPE)
        exposure_e8, headroom_e8 = whole.exposure_e8, whole.headroom_e8
        tags, scope_names = _tag_forms(tuple(sorted(verdict.tags.items())))
        held, opened = verdict.held_delta_e8, verdict.open_delta_e8
        if held or opened:
            for name in scope_names:
                scope = self.scopes.get(name)
                if scope is None:
                    scope = self.scopes[name] = ScopeState(name)
                scope.held_e8 += held
                scope.open_e8 += opened
                assert scope.held_e8 >= 0 and scope.open_e8 >= 0, f"{self.name}: {name} would count below zero"
                assert verdict.outcome != "granted" or not scope.overage_e8, f"{self.name}: {name} over its cap"
                self.dirty_scopes.add(name)
        if verdict.scope_after is not None:
            self.scopes[verdict.scope_after.name] = verdict.scope_after
            self.dirty_scopes.add(verdict.scope_after.name)
        position = verdict.position
        if position is not None and verdict.outcome != "denied":
            self.add_position(position)
            self.dirty_positions.add(position.number)
        draft = DecisionRecord(
            self.name,
            self.last_seq + 1,
            verb,
            key,
            verdict.outcome,
            verdict.reason,
            None if position is None else position.number,
            tags,
            verdict.budget_e8,
            verdict.quantity,
            verdict.fraction,
            verdict.raw_budget,
            held,
            opened,
            headroom_e8,
            exposure_e8,
            verdict.binding,
            verdict.expires_us,
            now_us,
            request,
            verdict.trace,
            "",
        )
        return self._seal(draft)

    def _seal(self, draft: DecisionRecord) -> DecisionRecord:
        text = canonical_text(draft)
        record = draft._replace(hash=chain_hash(self.last_hash, text))
        self.last_seq, self.last_hash, self.last_us = record.seq, record.hash, record.decided_us
        self.sealed.append((record, text))
        self.records[record.key] = record
        return record
