"""Checks the invariants of a ledger from outside: reads what it recorded, and recomputes all sums.

This is not `Ledger.verify`. It shares no code with it and follows the documented form of the chain. It also checks what
`verify` assumes: that no grant ever left a scope above the cap it had at that moment, or took what was kept for others.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from hashlib import sha256
from typing import Any

from ledger_sizer import Decision, Ledger, Position
from ledger_sizer.model.domain import Exposure

FAR = datetime.max.replace(tzinfo=UTC)
FINAL = ("closed", "released", "expired")
WHOLE = "portfolio"
E8 = Decimal("1e-8")
LIMITS = ("cap", "guarantee", "max_position_usd", "share_of_equity")
"""What set_cap sets of a scope."""


class Auditor:
    """Follows one portfolio. Each `check` reads what is new and checks it against all invariants."""

    def __init__(self, portfolio: str, cap_usd: Decimal) -> None:
        self.portfolio = portfolio
        self.decisions: list[Decision] = []
        self.positions: list[Position] = []
        self.by_key: dict[str, Decision] = {}
        self._limits: dict[str, dict[str, Decimal]] = {name: {} for name in LIMITS}
        self._limits["cap"][WHOLE] = cap_usd
        self._sizes: defaultdict[int | None, Decimal] = defaultdict(Decimal)
        self._counted: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._hash = "0" * 64
        self._promised: dict[str | None, datetime] = {}
        self._final: dict[int, Position] = {}
        self._free: dict[str, Decimal | None] = {}
        self._below = False  # the cap followed the equity below the guarantees

    def check(self, ledger: Ledger) -> Exposure:
        """Check everything. Nobody may write meanwhile: each read is a snapshot of its own."""
        for decision in self._read_new(ledger):
            self.follow(decision)
        self.positions = positions = self._read_positions(ledger)
        exposure = ledger.exposure(self.portfolio)
        assert exposure.seq == len(self.decisions), "the head is not the last decision"
        self._check_sums(exposure, positions)
        self._check_positions(positions)
        return exposure

    def follow(self, decision: Decision) -> None:
        """Check the next decision against all before it."""
        self._follow_chain(decision)
        self._follow_exposure(decision)

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
        """Check the cap: replay every scope's exposure and limits, and check each grant at its moment."""
        assert decision.exposure_before == self._counted[WHOLE], f"decision {decision.seq} saw another exposure"
        assert decision.headroom_before == self._limits["cap"][WHOLE] - self._counted[WHOLE]
        trace = json.loads(decision.trace)
        self._check_seen(decision, trace)
        moved = decision.exposure_after - decision.exposure_before
        scopes = _scopes(json.loads(decision.record.tags))
        came_from = self._count(decision, trace, scopes, moved)
        if decision.command == "set_cap" and decision.outcome == "applied":
            self._set_limits(json.loads(decision.request))
        if decision.command == "equity_seen":
            self._follow_equity(json.loads(decision.request))
        self._follow_accounts(decision, trace)
        if decision.outcome == "denied":
            assert not moved, f"decision {decision.seq} was denied and moved {moved} USD"
        if decision.command == "reserve" and decision.granted:
            assert moved == decision.budget
            self._check_room(decision, scopes, self._kept_from(scopes))
        if decision.command == "retag" and decision.granted:
            entered = [scope for scope in scopes if scope not in came_from]
            kept = self._kept_from(scopes)
            self._check_room(decision, entered, kept if kept.keys() & came_from else {})
        self._follow_expiry(decision)

    def _check_seen(self, decision: Decision, trace: dict[str, Any]) -> None:
        """Check that the trace shows scopes as they were, and each scope that decided and is not the request's own."""
        if "group" in trace:
            return  # what it shows was tried after the commands before it, which had no effect
        for name, cap_e8, held_e8, open_e8, *rest in trace["scopes"] + trace.get("others", []):
            later = rest[3] if len(rest) > 3 else {}
            settings = (cap_e8, *(later.get(f"{what}_e8") for what in ("guarantee", "max_position", "share")))
            seen = dict(zip(LIMITS, settings, strict=True))
            for limit, value in seen.items():
                expected = self._limits[limit].get(name)
                assert (None if value is None else Decimal(value).scaleb(-8)) == expected, f"{decision.seq}: {name}"
            assert Decimal(held_e8 + open_e8).scaleb(-8) == self._counted[name], f"{decision.seq}: {name}"
        if decision.command == "reserve":
            scopes = [row[0] for row in trace["scopes"]]
            caps = self._limits["cap"]
            defaults = {_default_of(scope) for scope in scopes if scope not in caps} & caps.keys()
            shown = [row[0] for row in trace.get("others", []) if "since_seq" not in (row[7:] or [{}])[0]]
            assert sorted(shown) == sorted({*defaults, *self._kept_from(scopes)}), f"decision {decision.seq}: {shown}"

    def _set_limits(self, request: dict[str, Any]) -> None:
        """Set what a request gives; null removes. One that gives nothing else removes the cap."""
        if not any(limit in request for limit in LIMITS):
            request["cap"] = None
        scope, shares, caps = request["scope"], self._limits["share_of_equity"], self._limits["cap"]
        if request.get("share_of_equity") is not None:
            share = Decimal(request["share_of_equity"]).quantize(E8, ROUND_DOWN)
            known = caps.get(scope, Decimal(0)) if scope in shares else Decimal(0)
            request["cap"] = str((known * share / shares.get(scope, Decimal(1))).quantize(E8, ROUND_DOWN))
        elif "cap" in request:
            request["share_of_equity"] = None
        for limit in LIMITS:
            if limit in request:
                self._limits[limit].pop(request["scope"], None)
            if request.get(limit) is not None:
                self._limits[limit][request["scope"]] = Decimal(request[limit]).quantize(E8, ROUND_DOWN)
        guarantees = self._limits["guarantee"]
        assert len({scope.partition("=")[0] for scope, usd in guarantees.items() if usd}) <= 1, (
            f"guarantees on two names: {guarantees}"
        )
        followed = WHOLE in shares or self._below
        self._below = followed and sum(guarantees.values()) > caps[WHOLE]
        assert followed or sum(guarantees.values()) <= caps[WHOLE], f"guarantees above the cap: {guarantees}"

    def _follow_equity(self, request: dict[str, Any]) -> None:
        """Set the cap that follows from an equity. It may fall below the guarantees, which stay."""
        scope = request["scope"]
        share = self._limits["share_of_equity"][scope]
        self._limits["cap"][scope] = (Decimal(request["equity"]) * share).quantize(E8, ROUND_DOWN)

    def _follow_accounts(self, decision: Decision, trace: dict[str, Any]) -> None:
        """Check that no grant promises more of an account than is free there and was not promised."""
        for scope, promised_e8 in trace.get("promised", {}).items():
            promised, free = Decimal(promised_e8).scaleb(-8), self._free.get(scope)
            if decision.command == "reserve" and free is not None:
                assert promised <= free, f"grant {decision.seq} promises {promised} of {free} free in {scope}"
        if decision.command == "account_seen":
            request = json.loads(decision.request)
            if request.get("gone"):
                self._free.pop(request["scope"], None)
            elif "free" in request:
                free = request["free"]
                self._free[request["scope"]] = None if free is None else Decimal(free).quantize(E8, ROUND_DOWN)

    def _cap_of(self, scope: str) -> Decimal | None:
        """Return a scope's own cap, else the default of its tag name."""
        caps = self._limits["cap"]
        return caps.get(scope, caps.get(_default_of(scope)))

    def _kept_from(self, scopes: Collection[str]) -> dict[str, Decimal]:
        """Return what guaranteed scopes that are not among these lack of their guarantees."""
        lacks = {scope: usd - self._counted[scope] for scope, usd in self._limits["guarantee"].items()}
        return {scope: usd for scope, usd in lacks.items() if usd > 0 and scope not in scopes}

    def _check_room(self, decision: Decision, entered: Collection[str], kept: dict[str, Decimal]) -> None:
        """Check what a grant leaves: no scope that it enters above its cap, and what is kept for others."""
        caps = self._limits["cap"]
        for scope in entered:
            cap = self._cap_of(scope)
            assert cap is None or self._counted[scope] <= cap, f"grant {decision.seq} leaves {scope} above the cap"
            size, largest = self._sizes[decision.record.position], self._limits["max_position_usd"].get(scope)
            assert largest is None or size <= largest, f"grant {decision.seq} is larger than {scope} allows"
        if kept:
            left = caps[WHOLE] - self._counted[WHOLE]
            assert left >= sum(kept.values()), f"grant {decision.seq} takes what is kept: {left} left of {kept}"

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

    def _count(self, decision: Decision, trace: dict[str, Any], scopes: list[str], moved: Decimal) -> set[str]:
        """Count what a decision moved. Returns the scopes that its position was in before."""
        came_from = trace.get("moved") if decision.binding == "tags" else None
        before = scopes if came_from is None else _scopes(came_from["tags"])
        counts = Decimal(0) if came_from is None else Decimal(came_from["held"] + came_from["open"]).scaleb(-8)
        for scope in before:
            self._counted[scope] -= counts
        for scope in scopes:
            self._counted[scope] += counts + moved
        self._sizes[decision.record.position] += moved
        return {*before}

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
            own, cap = self._limits["cap"].get(scope), self._cap_of(scope)
            assert (row.cap, row.cap_from) == (cap, _default_of(scope) if own is None and cap is not None else None), (
                row
            )
            guarantee, largest, share = (self._limits[name].get(scope) for name in LIMITS[1:])
            assert (row.guarantee, row.max_position_usd, row.share_of_equity) == (guarantee, largest, share), row
            assert row.overage == (Decimal(0) if cap is None else max(row.exposure - cap, Decimal(0)))
        self._check_pools(exposure)

    def _check_pools(self, exposure: Exposure) -> None:
        """Check that guaranteed scopes and default caps are shown as they are."""
        caps, kept = self._limits["cap"], self._kept_from(())
        shown = {pool.scope: (pool.guaranteed, pool.used, pool.kept) for pool in exposure.pools}
        assert shown == {
            scope: (usd, self._counted[scope], kept.get(scope, Decimal(0)))
            for scope, usd in self._limits["guarantee"].items()
        }
        defaults = {default.scope: default.cap for default in exposure.defaults}
        assert defaults == {scope: cap for scope, cap in caps.items() if scope.endswith("=*")}
        left = caps[WHOLE] - self._counted[WHOLE] - sum(kept.values())
        assert exposure.shared == max(left, Decimal(0)), f"{exposure.shared} are said to be left to all"

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


def _default_of(scope: str) -> str:
    return f"{scope.partition('=')[0]}=*"


def _scopes(tags: dict[str, Any]) -> list[str]:
    each = {name: [value] if isinstance(value, str) else value for name, value in tags.items()}
    return [WHOLE, *(f"{name}={value}" for name, values in each.items() for value in values)]
