"""Checks the invariants of a ledger from outside: reads what it recorded, and recomputes all sums.

This is not `Ledger.verify`. It shares no code with it and follows the documented form of the chain. It also checks what
`verify` assumes: that no grant ever left a scope above the cap it had at that moment.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

from ledger_sizer import Decision, Ledger, Position
from ledger_sizer.model.domain import Exposure

FAR = datetime.max.replace(tzinfo=UTC)
FINAL = ("closed", "released", "expired")
WHOLE = "portfolio"


class Auditor:
    """Follows one portfolio. Each `check` reads what is new and checks it against all invariants."""

    def __init__(self, portfolio: str, cap_usd: Decimal) -> None:
        self.portfolio = portfolio
        self.decisions: list[Decision] = []
        self.positions: list[Position] = []
        self.by_key: dict[str, Decision] = {}
        self._caps: dict[str, Decimal] = {WHOLE: cap_usd}
        self._counted: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._hash = "0" * 64
        self._promised: dict[str | None, datetime] = {}
        self._final: dict[int, Position] = {}

    def check(self, ledger: Ledger) -> Exposure:
        """Check everything. Nobody may write meanwhile: each read is a snapshot of its own."""
        for decision in self._read_new(ledger):
            self._follow_chain(decision)
            self._follow_exposure(decision)
        self.positions = positions = self._read_positions(ledger)
        exposure = ledger.exposure(self.portfolio)
        assert exposure.seq == len(self.decisions), "the head is not the last decision"
        self._check_sums(exposure, positions)
        self._check_positions(positions)
        return exposure

    def _read_new(self, ledger: Ledger) -> list[Decision]:
        new: list[Decision] = []
        cursor: str | None = str(len(self.decisions))
        while cursor is not None:
            page = ledger.history(self.portfolio, ascending=True, cursor=cursor, limit=1000)
            new += page.items
            cursor = page.cursor
        return new

    def _read_positions(self, ledger: Ledger) -> list[Position]:
        page = ledger.positions(self.portfolio, limit=1000)
        positions = list(page.items)
        while page.cursor is not None:
            page = ledger.positions(self.portfolio, limit=1000, cursor=page.cursor)
            positions += page.items
        return positions

    def _follow_chain(self, decision: Decision) -> None:
        """Check the order: gapless seq, time runs back only where one says so, one effect per key, every hash."""
        assert decision.seq == len(self.decisions) + 1, f"seq {decision.seq} follows {len(self.decisions)}"
        assert decision.key not in self.by_key, f"key {decision.key} took effect twice"
        if self.decisions:
            ahead = self.decisions[-1].decided_at - decision.decided_at
            stepped = decision.command == "step_back"
            assert (ahead > timedelta(seconds=60)) == stepped, f"decision {decision.seq} is {ahead} before its past"
            assert stepped or ahead <= timedelta(0), f"decision {decision.seq} is {ahead} before its past"
        *fields, _ = ["\x1d" if field is None else str(field) for field in decision.record]
        while fields[-1] == "\x1d":
            fields.pop()
        self._hash = sha256("\x1f".join([self._hash, *fields]).encode()).hexdigest()
        assert decision.hash == self._hash, f"decision {decision.seq} breaks the chain"
        self.decisions.append(decision)
        self.by_key[decision.key] = decision

    def _follow_exposure(self, decision: Decision) -> None:
        """Check the cap: replay every scope's exposure and cap, and check each grant at its moment."""
        assert decision.exposure_before == self._counted[WHOLE], f"decision {decision.seq} saw another exposure"
        assert decision.headroom_before == self._caps[WHOLE] - self._counted[WHOLE]
        moved = decision.exposure_after - decision.exposure_before
        scopes = _scopes(json.loads(decision.record.tags))
        came_from = self._count(decision, scopes, moved)
        request = json.loads(decision.request)
        if decision.command == "set_cap" and decision.outcome == "applied":
            self._caps.pop(request["scope"], None)
            if "cap" in request:
                self._caps[request["scope"]] = Decimal(request["cap"])
        if decision.outcome == "denied":
            assert not moved, f"decision {decision.seq} was denied and moved {moved} USD"
        if decision.command == "reserve" and decision.granted:
            assert moved == decision.budget
            over = [scope for scope in scopes if scope in self._caps and self._counted[scope] > self._caps[scope]]
            assert not over, f"grant {decision.seq} leaves {over} above the cap"
        if decision.command == "retag" and decision.granted:
            self._check_retag(decision, {*scopes} - came_from)
        self._follow_expiry(decision)

    def _follow_expiry(self, decision: Decision) -> None:
        """Check that no hold ends before its time."""
        if decision.command == "expire":
            promised = self._promised[decision.position_id]
            assert decision.decided_at >= promised, f"position {decision.position_id} was freed early"
        if decision.granted and decision.command != "retag":
            expires_at = FAR if decision.until_known else decision.expires_at
            assert expires_at is not None
            if decision.command == "extend":
                assert expires_at >= self._promised[decision.position_id]
            self._promised[decision.position_id] = expires_at

    def _count(self, decision: Decision, scopes: list[str], moved: Decimal) -> set[str]:
        """Count what a decision moved. Returns the scopes that its position was in before."""
        came_from = json.loads(decision.trace).get("moved") if decision.binding == "tags" else None
        before = scopes if came_from is None else _scopes(came_from["tags"])
        counts = Decimal(0) if came_from is None else Decimal(came_from["held"] + came_from["open"]).scaleb(-8)
        for scope in before:
            self._counted[scope] -= counts
        for scope in scopes:
            self._counted[scope] += counts + moved
        return {*before}

    def _check_retag(self, decision: Decision, entered: set[str]) -> None:
        over = [scope for scope in entered & self._caps.keys() if self._counted[scope] > self._caps[scope]]
        assert not over, f"retag {decision.seq} leaves {over} above the cap"

    def _check_sums(self, exposure: Exposure, positions: list[Position]) -> None:
        """Check the sums: every counter is the sum of its positions."""
        held: defaultdict[str, Decimal] = defaultdict(Decimal)
        opened: defaultdict[str, Decimal] = defaultdict(Decimal)
        for position in positions:
            for scope in _scopes(dict(position.tags)):
                held[scope] += position.held
                opened[scope] += position.open
        rows = {row.scope: row for row in exposure.scopes}
        assert {scope for scope in held if held[scope] or opened[scope]} <= rows.keys(), "a scope has no row"
        for scope, row in rows.items():
            assert (row.held, row.open) == (held[scope], opened[scope]), f"scope {scope} does not count its positions"
            assert row.exposure == self._counted[scope], f"scope {scope} is not what its decisions add up to"
            assert row.cap == self._caps.get(scope), f"scope {scope} has a cap nobody set"
            assert row.overage == max(row.exposure - self._caps.get(scope, row.exposure), Decimal(0))

    def _check_positions(self, positions: list[Position]) -> None:
        """Check the positions: every held dollar has an expiry, and an ended position never changes again."""
        for position in positions:
            ends = position.expires_at is not None or position.until_known
            assert not position.held or ends, f"{position} would be held for ever"
            assert (position.open > 0) == (position.state == "open"), position
            assert position.state != "held" or ends, position
            before = self._final.get(position.number)
            assert before is None or position == before, f"{before} was final and became {position}"
            if position.state in FINAL:
                self._final[position.number] = position
        assert self._final.keys() <= {position.number for position in positions}, "a position is gone"


def _scopes(tags: dict[str, Any]) -> list[str]:
    each = {name: [value] if isinstance(value, str) else value for name, value in tags.items()}
    return [WHOLE, *(f"{name}={value}" for name, values in each.items() for value in values)]
