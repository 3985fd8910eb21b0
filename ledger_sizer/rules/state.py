"""In-memory state that a batch is decided on: the portfolios as loaded, plus the changes of the batch so far.

The store fills it, `decide` reads it, `apply` changes it, and the store saves the changes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ledger_sizer.model.caller import Caller
from ledger_sizer.model.choices import Outcome, Status
from ledger_sizer.model.decisions import GENESIS_HASH, DecisionRecord, chain_hash, fields_text
from ledger_sizer.model.domain import Position
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, Tags, is_default_scope
from ledger_sizer.rules.accounts import promised_after
from ledger_sizer.rules.scope_state import ScopeState

CLOCK_STEP_US_MAX = 60_000_000
"""A clock that reads earlier than a portfolio's last decision by up to this much is waited for: one minute."""


def decision_time(now_us: int, last_us: int) -> int:
    """Return the time of the next decision: the clock's, but not before the portfolio's last decision.

    now_us: the clock's reading. last_us: time of the last decision. A clock that is set back by up to
    `CLOCK_STEP_US_MAX` makes time stand still until it has caught up. Where the last decision is further ahead than
    that, its time came from a wrong reading, and the next decision takes the clock's: otherwise no hold would end, and
    no trust would be given, until the clock has caught up with the wrong reading. No hold ends early by it: an earlier
    time never makes a hold overdue.
    """
    return last_us if now_us < last_us <= now_us + CLOCK_STEP_US_MAX else now_us


@dataclass(slots=True, kw_only=True)
class Verdict:
    """Outcome of one command, and the changes to the state. Amounts in 1e-8 USD.

    position: the position after the command, None where it has none; a denied one is not changed. What the command adds
    to held and open, the expiry of a grant, and the position's times follow from it (see `PortfolioState.apply`).
    tags: of the position concerned, as it is after. unchanged: the position is only what the command was about.
    scope_after: the new state of a scope that the command changed.
    """

    outcome: Outcome
    trace: str
    reason: str | None = None
    position: Position | None = None
    unchanged: bool = False
    tags: Tags
    budget_e8: int | None = None
    quantity: str | None = None
    fraction: str | None = None
    raw_budget: str | None = None
    binding: str | None = None
    scope_after: ScopeState | None = None


class PortfolioState:
    """One portfolio: chain head, the scopes and positions that the batch needs, and the records of its keys.

    desk_status: the desk's, as it was when the portfolio was loaded; `asks_desk`: whether a new decision depends on it,
    so that it must still be so when the decision is stored.
    loaded_seq, loaded_hash: the head before the batch. scopes_known: names whose row, or absence, is known. shared:
    names of all shared scopes (see `ScopeState.shared`) of the portfolio, in order; these are always loaded.
    granted_lately: numbers of positions that were granted more, or longer, after the book of a settle was read; loaded
    for that alone.
    next_expiry_us: no hold outside `positions` expires before this time; if it has passed, more holds are overdue than
    were loaded. may_expire: whether `positions` may have
    overdue holds; False for a cached state, which is used only while it has none.
    """

    __slots__ = (
        "administered",
        "asks_desk",
        "desk_status",
        "dirty_positions",
        "dirty_scopes",
        "granted_lately",
        "id",
        "last_hash",
        "last_seq",
        "last_us",
        "late_fills",
        "loaded_hash",
        "loaded_seq",
        "may_expire",
        "name",
        "new_decisions",
        "next_expiry_us",
        "positions",
        "records",
        "scopes",
        "scopes_known",
        "shared",
    )

    def __init__(self, id_: int, name: str, last_seq: int, last_hash: str, last_us: int) -> None:
        self.id = id_
        self.name = name
        self.last_seq = last_seq
        self.last_hash = last_hash
        self.last_us = last_us
        self.scopes: dict[str, ScopeState] = {}
        self.positions: dict[int, Position] = {}
        self.late_fills: dict[int, list[int]] = {}
        self.records: dict[str, DecisionRecord] = {}
        self.new_decisions: list[tuple[DecisionRecord, str]] = []
        self.dirty_scopes: set[str] = set()
        self.dirty_positions: set[int] = set()
        self.administered: set[str] = set()
        self.scopes_known: set[str] = set()
        self.shared: tuple[str, ...] = ()
        self.next_expiry_us: int | None = None
        self.may_expire = True
        self.desk_status: Status = "active"
        self.asks_desk = False
        self.granted_lately: set[int] = set()
        self.loaded_seq = last_seq
        self.loaded_hash = last_hash

    @classmethod
    def begun(cls, id_: int, name: str, cap_e8: int) -> "PortfolioState":
        """Return a portfolio that is not stored yet. Its rows are written with its first decision, or not at all.

        cap_e8: of the whole, 1e-8 USD.
        """
        state = cls(id_, name, 0, GENESIS_HASH, 0)
        state.scopes[PORTFOLIO_SCOPE] = ScopeState(PORTFOLIO_SCOPE, ScopeSettings(cap_e8=cap_e8))
        state.dirty_scopes.add(PORTFOLIO_SCOPE)
        return state

    @property
    def begins(self) -> bool:
        """Whether the batch is the portfolio's first: it has no rows yet."""
        return self.loaded_seq == 0 and self.scope(PORTFOLIO_SCOPE).stored is None

    def decision_time(self, now_us: int) -> int:
        """Return the time of the portfolio's next decision (see `decision_time`)."""
        return decision_time(now_us, self.last_us)

    def scope(self, name: str) -> ScopeState:
        """Return a scope by name. An unused scope counts nothing and has no cap."""
        found = self.scopes.get(name)
        return ScopeState(name) if found is None else found

    def others(self, names: Sequence[str]) -> list[ScopeState]:
        """Return the scopes besides these that a request in these depends on, by name.

        They are the default caps of scopes that have none of their own, and the guaranteed scopes that keep something.
        """
        found = []
        for name in self.shared:
            scope = self.scopes[name]
            if name in names:
                continue
            if is_default_scope(name):
                without = (one for one in names if one.startswith(name[:-1]) and self.scope(one).cap_e8 is None)
                if scope.cap_e8 is not None and any(without):
                    found.append(scope)
            elif scope.kept_e8:
                found.append(scope)
        return found

    def add_scope(self, scope: ScopeState) -> None:
        """Add a scope as it is loaded, or as it is set to."""
        self.scopes[scope.name] = scope
        if scope.shared != (scope.name in self.shared):
            names = {*self.shared, scope.name} if scope.shared else {*self.shared} - {scope.name}
            self.shared = tuple(sorted(names))

    def add_position(self, position: Position) -> None:
        """Add a position, and index it by the ended one that it fills late."""
        self.positions[position.number] = position
        if position.origin is not None:
            late = self.late_fills.setdefault(position.origin, [])
            if position.number not in late:
                late.append(position.number)
                late.sort()

    def fork(self) -> "PortfolioState":
        """Return an independent copy, for commands that must all succeed or change nothing."""
        copy = PortfolioState(self.id, self.name, self.last_seq, self.last_hash, self.last_us)
        copy.scopes = {name: scope.copy() for name, scope in self.scopes.items()}
        copy.positions = dict(self.positions)
        copy.late_fills = {origin: [*late] for origin, late in self.late_fills.items()}
        copy.records = dict(self.records)
        copy.new_decisions = list(self.new_decisions)
        copy.dirty_scopes = set(self.dirty_scopes)
        copy.dirty_positions = set(self.dirty_positions)
        copy.administered = set(self.administered)
        copy.scopes_known = self.scopes_known
        copy.shared = self.shared
        copy.next_expiry_us = self.next_expiry_us
        copy.may_expire = self.may_expire
        copy.desk_status, copy.asks_desk = self.desk_status, self.asks_desk
        copy.loaded_seq, copy.loaded_hash = self.loaded_seq, self.loaded_hash
        return copy

    def apply(
        self,
        verb: str,
        key: str,
        request: str,
        verdict: Verdict,
        now_us: int,
        caller: Caller,
        reference: str | None = None,
    ) -> DecisionRecord:
        """Change the state by a verdict and append its decision to the chain. Return the record."""
        whole = self.scope(PORTFOLIO_SCOPE)
        exposure_e8, headroom_e8 = whole.exposure_e8, whole.headroom_e8
        seq = self.last_seq + 1
        tags, position, granted = verdict.tags, verdict.position, verdict.outcome == "granted"
        held = opened = 0
        if position is not None and verdict.outcome != "denied" and not verdict.unchanged:
            before = self.positions.get(position.number)
            held, opened = self._put_position(position, before, seq, now_us, reference)
            if before is not None and before.tags is not tags and before.tags.text != tags.text:
                self._move_counters(before, position, granting=granted)
            elif held or opened:
                self._add_to_counters(tags.scopes, held, opened, granting=granted)
                if granted and self.shared:
                    self._assert_shared(tags.scopes)
            if self.shared:
                self._promise(before, position, verdict, granting=granted and held > 0)
        if verdict.scope_after is not None:
            self._change_scope(verdict.scope_after)
        if verdict.outcome != "applied":
            self.asks_desk = True
        fields = (
            self.name,
            seq,
            verb,
            key,
            verdict.outcome,
            verdict.reason,
            None if position is None else position.number,
            tags.text,
            verdict.budget_e8,
            verdict.quantity,
            verdict.fraction,
            verdict.raw_budget,
            held,
            opened,
            headroom_e8,
            exposure_e8,
            verdict.binding,
            position.expires_us if granted and position is not None else None,
            now_us,
            request,
            verdict.trace,
            caller.actor,
            caller.client,
            reference,
        )
        text = fields_text(fields)
        digest = chain_hash(self.last_hash, text)
        record = DecisionRecord(*fields, digest)
        self.last_seq, self.last_hash, self.last_us = seq, digest, now_us
        self.new_decisions.append((record, text))
        self.records[key] = record
        return record

    def _put_position(
        self, position: Position, before: Position | None, seq: int, now_us: int, reference: str | None
    ) -> tuple[int, int]:
        """Store a position as decision `seq` leaves it. Return how much more is held and open than before, 1e-8 USD."""
        number, held, opened = position.number, position.held_e8, position.open_e8
        opened_us = now_us
        if reference is not None:
            position = position.changed(reference=reference)
        if before is not None:
            held, opened, opened_us = held - before.held_e8, opened - before.open_e8, before.opened_us
        self.add_position(position.stamped(opened_us, now_us, seq))
        self.dirty_positions.add(number)
        return held, opened

    def _promise(self, before: Position | None, after: Position, verdict: Verdict, *, granting: bool) -> None:
        """Change what accounts have promised of their free balance, and say so in the trace."""
        promised = promised_after(self.scopes, self.shared, before, after)
        for name, promised_e8 in promised.items():
            scope = self.scopes[name]
            free_e8, known_e8 = scope.settings.free_e8, scope.settings.promised_e8 or 0
            within = free_e8 is None or promised_e8 <= max(free_e8, known_e8)
            assert within or not granting, f"{self.name}: {name} would promise more than is free"
            scope.settings = scope.settings._replace(promised_e8=promised_e8)
            self.dirty_scopes.add(name)
        if promised:
            verdict.trace = f'{{"promised":{json.dumps(promised, separators=(",", ":"))},{verdict.trace[1:]}'

    def _change_scope(self, after: ScopeState) -> None:
        """Set what a scope is set to. Its counters stay: only positions change them."""
        scope = self.scopes.get(after.name) or ScopeState(after.name)
        scope.settings = after.settings
        self.add_scope(scope)
        self.dirty_scopes.add(after.name)
        self.administered.add(after.name)

    def begin_next_batch(self) -> None:
        """Treat the batch as stored: forget its changes, and keep what the next batch may need: no ended position."""
        for name in self.dirty_scopes:
            scope = self.scopes[name]
            scope.stored = (scope.held_e8, scope.open_e8)
        for number in self.dirty_positions:
            position = self.positions[number]
            if not position.live:
                del self.positions[number]
        self.scopes_known.update(self.scopes)
        self.late_fills.clear()
        self.records.clear()
        self.new_decisions.clear()
        self.dirty_scopes.clear()
        self.dirty_positions.clear()
        self.administered.clear()
        self.granted_lately.clear()
        self.asks_desk = False
        self.loaded_seq, self.loaded_hash = self.last_seq, self.last_hash
        self.may_expire = False

    def _move_counters(self, before: Position, after: Position, *, granting: bool) -> None:
        """Change the counters of the scopes that a position leaves, enters and stays in."""
        left, entered = set(before.tags.scopes), set(after.tags.scopes)
        self._add_to_counters(tuple(left - entered), -before.held_e8, -before.open_e8, granting=False)
        self._add_to_counters(tuple(entered - left), after.held_e8, after.open_e8, granting=granting)
        held, opened = after.held_e8 - before.held_e8, after.open_e8 - before.open_e8
        self._add_to_counters(tuple(left & entered), held, opened, granting=granting and held + opened > 0)

    def _add_to_counters(self, names: tuple[str, ...], held: int, opened: int, *, granting: bool) -> None:
        """Change the counters of every scope of a position. The asserts are the last check of the cap invariant."""
        for name in names:
            scope = self.scopes.get(name)
            if scope is None:
                scope = self.scopes[name] = ScopeState(name)
            scope.held_e8 += held
            scope.open_e8 += opened
            assert scope.held_e8 >= 0 and scope.open_e8 >= 0, f"{self.name}: {name} would count below zero"
            cap_e8 = scope.settings.cap_e8
            within_cap = cap_e8 is None or scope.held_e8 + scope.open_e8 <= cap_e8
            assert within_cap or not granting, f"{self.name}: {name} would be over its cap"
        self.dirty_scopes.update(names)

    def _assert_shared(self, names: tuple[str, ...]) -> None:
        """Assert that a grant in these scopes left what is kept for others, and is within the default caps."""
        others = self.others(names)
        kept_e8 = sum(one.kept_e8 for one in others)
        headroom_e8 = self.scopes[PORTFOLIO_SCOPE].headroom_e8
        assert headroom_e8 is not None and headroom_e8 >= kept_e8, f"{self.name}: {names} would use what is kept"
        for default in others:
            for name in names:
                if is_default_scope(default.name) and name.startswith(default.name[:-1]):
                    scope, cap_e8 = self.scopes[name], default.cap_e8
                    within = scope.cap_e8 is not None or cap_e8 is None or scope.exposure_e8 <= cap_e8
                    assert within, f"{self.name}: {name} would be over the default cap"
