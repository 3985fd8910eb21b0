"""Applies drifts to the ledger: counts excess, freezes and thaws. Only by commands, so the audit chain has all of it.

A run's commands are committed under its lease, or not at all. Everything here is idempotent: each key names its drift
or position, so that a repetition, or a run that finishes what a dead one began, changes nothing more.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter

from sqlalchemy import Engine

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.caller import RECONCILE, Caller, calling_as, reconcile_for
from ledger_sizer.model.choices import MarketKind
from ledger_sizer.model.commands import Adopt, AnyCommand, Freeze, Release, Remark, Thaw
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import LedgerError, NotFound
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import parse_symbol
from ledger_sizer.model.reconciliation import EXTERNAL, Drift, Market
from ledger_sizer.model.tags import EXTERNAL_TAG, PORTFOLIO_SCOPE
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.ledger_reads import find_decisions
from ledger_sizer.reconcile.pairing import Holding, holding_of
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

NOTE_LENGTH_MAX = 500
_THAW_KEY_PREFIX = "reconcile:thaw:"
"""Distinguishes automatic thaws from thaws by hand."""
_BATCH_MAX = 50
"""Commands per commit, so that many drifts do not delay reservations for long."""


def note_of(text: str) -> str:
    """Make a valid note of a command from any text: printable, and not too long."""
    return "".join(char if char.isprintable() else " " for char in text)[:NOTE_LENGTH_MAX] or "-"


def leg_of(one: Holding, *, account: str | None = None) -> Leg:
    """Return the leg of a holding. It is a sale of an asset where coins of the baseline were sold."""
    market = one.market
    said = parse_symbol(market.subject)
    derivative: MarketKind = "future" if said is not None and said.kind == "future" else "swap"
    return Leg(
        market.venue, market.subject, derivative if market.is_swap else "spot", "sell" if one.sold else "buy",
        one.coins, one.price, account=account,
    )  # fmt: skip


def tags_of(market: Market) -> dict[str, str]:
    """Return the tags of a position in this market."""
    return {"venue": market.venue, "account": market.account, "symbol": market.base}


class Effects:
    """Applies the drifts of one portfolio to the ledger. failed: number of submissions that the ledger rejected."""

    def __init__(self, ledger: Ledger, engine: Engine, portfolio: str) -> None:
        self._ledger = ledger
        self._engine = engine
        self._portfolio = portfolio
        self.failed = 0

    def sync_external_positions(self, live: Iterable[Drift], external: Mapping[Market, Sequence[Position]]) -> None:
        """Make exactly one external position count each live drift's excess.

        external: the external positions that are open now, by market.
        """
        new: list[Drift] = []
        counted = [drift for drift in live if drift.live and drift.excess > 0 and drift.price is not None]
        wanted = {drift.market: drift for drift in sorted(counted, key=attrgetter("excess"))}  # of several, the largest
        for market in sorted({*wanted, *external}, key=lambda one: (one.venue, one.account, one.subject, one.side)):
            drift, existing = wanted.get(market), external.get(market, ())
            if drift is not None and len(existing) == 1 and existing[0].quantity == drift.excess:
                if drift.position != existing[0].number:
                    self._store_positions({drift.id: existing[0].number})
            elif drift is not None and not existing:
                new.append(drift)
            else:
                self._replace_positions(existing, drift)
        for start in range(0, len(new), _BATCH_MAX):
            self._add_positions(new[start : start + _BATCH_MAX])

    def _replace_positions(self, existing: Sequence[Position], drift: Drift | None) -> None:
        """Replace the external positions of a market by one for the drift, or by none, in one commit."""
        commands: list[AnyCommand] = [release_of(position) for position in existing]
        claimed = [] if drift is None else self._claim_revisions([drift])
        if drift is not None and not claimed:
            return
        decisions = self._submit_atomic([*commands, *map(self._count_command, claimed)])
        if decisions and claimed:
            self._store_positions({claimed[0].id: decisions[-1].record.position})

    def _add_positions(self, new: Sequence[Drift]) -> None:
        """Add external positions for drifts that no position counts yet."""
        claimed = self._claim_revisions(new)
        results = self._submit_each(map(self._count_command, claimed))
        self._store_positions({
            drift.id: result.record.position
            for drift, result in zip(claimed, results, strict=True) if isinstance(result, Decision)
        })  # fmt: skip

    def _claim_revisions(self, about: Sequence[Drift]) -> list[Drift]:
        """Increment the revisions by compare-and-set. Returns the drifts where this run won, and so has to count."""
        return drifts.update_drifts(
            self._engine,
            [drifts.DriftUpdate(one.id, {"revision": one.revision + 1}, revision=one.revision) for one in about],
        )

    def _count_command(self, drift: Drift) -> Adopt:
        assert drift.price is not None, "only drifts with a price can be counted"
        return Adopt(
            key=f"reconcile:count:{drift.id}:{drift.revision}", portfolio=self._portfolio, quantity=drift.excess,
            price=drift.price, tags={**tags_of(drift.market), EXTERNAL_TAG: EXTERNAL},
            legs=[leg_of(holding_of(drift))],
            note=note_of(drift.title),
        )  # fmt: skip

    def _store_positions(self, positions: Mapping[int, int | None]) -> None:
        """Store the number of the external position of each drift, by drift id."""
        if positions:
            updates = [drifts.DriftUpdate(drift_id, {"position": number}) for drift_id, number in positions.items()]
            drifts.update_drifts(self._engine, updates)

    def freeze_and_thaw(self) -> None:
        """Freeze the scopes that live drifts require; thaw those that none requires any more."""
        found = drifts.freezing_drifts(self._engine, self._portfolio)
        if not found:
            return
        since = min(drift.opened_at for drift in found)
        frozen = self._freeze_for_live(since)
        left = {drift.id: [*drift.frozen_scopes] for drift in found}
        for scope, ended in _by_scope(drift for drift in found if not drift.freezes).items():
            if scope not in frozen:
                self._thaw(scope, ended, since, left)
            else:  # a denial there names the drift that froze it, which may be one of those that are over
                newest = max(one.id for one in ended)
                self._freeze([(frozen[scope], scope)], key_suffix=f":instead:{newest}")

    def _freeze_for_live(self, since: datetime) -> dict[str, Drift]:
        """Freeze the scopes that live drifts require. Returns the scopes that are frozen, each with the newest of them.

        A scope thawed by hand is not frozen again for the same drift. One that an automatic thaw ended is: that thaw
        came from a race, or the drift did not require the freeze then. since: when the oldest drift began; earlier
        thaws do not matter.
        """
        manual, automatic = self._newest_thaws(since)
        # Read after the thaws: a decision about a drift since then has thawed since then, and must not be undone here.
        freezing = _with_scopes(
            drift for drift in drifts.freezing_drifts(self._engine, self._portfolio) if drift.freezes
        )
        frozen: dict[str, Drift] = {}
        for (drift, scope), result in zip(freezing, self._freeze(freezing), strict=True):
            frozen_seq = result.record.seq if isinstance(result, Decision) else 2**63
            if manual.get(scope, 0) > frozen_seq:
                continue
            frozen[scope] = drift
            if (thawed_seq := automatic.get(scope, 0)) > frozen_seq:
                self._freeze([(drift, scope)], key_suffix=f":{thawed_seq}")
        return frozen

    def _newest_thaws(self, since: datetime) -> tuple[dict[str, int], dict[str, int]]:
        """Return the seq of the newest thaw by hand, and of the newest automatic thaw, each by scope."""
        manual: dict[str, int] = {}
        automatic: dict[str, int] = {}
        try:
            thaws = self._ledger.history(self._portfolio, command="thaw", outcome="applied", since=since, limit=1000)
        except NotFound:  # nobody used the portfolio yet
            return manual, automatic
        for thaw in thaws:
            newest = automatic if thaw.record.key.startswith(_THAW_KEY_PREFIX) else manual
            newest.setdefault(thaw.binding or "", thaw.record.seq)
        return manual, automatic

    def _freeze(self, about: Iterable[tuple[Drift, str]], key_suffix: str = "") -> list[Result]:
        return self._submit_each(
            Freeze(
                key=f"{_freeze_key(drift, scope)}{key_suffix}", portfolio=self._portfolio, scope=scope,
                note=note_of(drift.title),
            )
            for drift, scope in about
        )  # fmt: skip

    def _thaw(self, scope: str, ended: Sequence[Drift], since: datetime, left: dict[int, list[str]]) -> None:
        """Thaw a scope whose drifts no longer require the freeze. left: their scopes not thawed yet, by drift id."""
        _, automatic = self._newest_thaws(since)
        # Another run may have recorded one of these drifts without having frozen yet. Its freeze would then come after
        # this thaw, with no drift left to end it. Sending the freezes first makes that one a replay without effect.
        keys = {drift.id: _freeze_key(drift, scope) for drift in ended}
        sent = find_decisions(self._engine, self._portfolio, [*keys.values()])
        missing = [(drift, scope) for drift in ended if keys[drift.id] not in sent]
        if any(isinstance(result, LedgerError) for result in self._freeze(missing)):
            return
        newest = max(ended, key=lambda one: one.id)
        thaw = Thaw(
            key=f"{_THAW_KEY_PREFIX}{newest.id}{_place_of(scope, newest)}:{automatic.get(scope, 0)}",
            portfolio=self._portfolio, scope=scope, note=note_of(f"{newest.title} asks for it no more"),
        )  # fmt: skip
        with calling_as(_caller_ending(newest)):
            thawed = self._submit_atomic([thaw])
        if thawed:
            updates = []
            for one in ended:
                left[one.id].remove(scope)
                frozen_scope = ",".join(left[one.id]) or None
                updates.append(drifts.DriftUpdate(one.id, {"frozen_scope": frozen_scope}, (one.state,)))
            drifts.update_drifts(self._engine, updates)
            self._freeze_for_live(since)  # another process may have frozen it just before, for a drift unknown here

    def record_event(self, event: str, about: Iterable[Drift]) -> None:
        """Record in the chain, and so in the events, that drifts were confirmed or resolved; once for each."""
        self._submit_each(
            Remark(
                key=f"reconcile:{event}:{drift.id}", portfolio=self._portfolio, about=drift.name, event=event,
                note=note_of(drift.title),
            )
            for drift in about if drift.policy != "record"
        )  # fmt: skip

    def _submit_each(self, commands: Iterable[AnyCommand]) -> list[Result]:
        """Submit commands independently. Repeated ones are replays."""
        submitted, results = list(commands), []
        for start in range(0, len(submitted), _BATCH_MAX):
            results += self._ledger.submit(submitted[start : start + _BATCH_MAX])
        for command, result in zip(submitted, results, strict=True):
            if isinstance(result, LedgerError):
                self._handle_failure([command], result)
        return results

    def _submit_atomic(self, commands: Sequence[AnyCommand]) -> list[Decision]:
        """Submit all commands or none. An error is logged, and the next run tries again."""
        if not commands:
            return []
        try:
            results = self._ledger.submit(commands, atomic=True)
        except LedgerError as error:
            self._handle_failure(commands, error)
            return []
        return [result for result in results if isinstance(result, Decision)]

    def _handle_failure(self, commands: Sequence[AnyCommand], error: LedgerError) -> None:
        if isinstance(error, LeaseLost):
            raise error  # another run may be under way, and does whatever is left to do
        self.failed += 1
        log.warning("reconcile.command_failed", commands=[one.key for one in commands], error=str(error))


def release_of(position: Position) -> Release:
    """Return the release of an external position that is replaced, or whose excess is gone."""
    return Release(key=f"reconcile:release:{position.number}", position_id=position.position_id)


def _caller_ending(drift: Drift) -> Caller:
    """Return the caller of what follows from the end of a drift: who decided it, else the reconciliation.

    Versions that did not record actors name a person as they knew him, and themselves by two words.
    """
    decided = drift.state in ("resolved", "acknowledged") and drift.actor not in (None, "reconciliation", "policy")
    return reconcile_for(str(drift.actor)) if decided else RECONCILE


def _with_scopes(about: Iterable[Drift]) -> list[tuple[Drift, str]]:
    return [(drift, scope) for drift in about for scope in drift.frozen_scopes]


def _freeze_key(drift: Drift, scope: str) -> str:
    return f"reconcile:freeze:{drift.id}{_place_of(scope, drift)}"


def _place_of(scope: str, drift: Drift) -> str:
    """Return what tells the keys of a drift's several scopes apart; empty for one that froze one."""
    return "" if scope in (PORTFOLIO_SCOPE, f"venue={drift.venue}") else f":{scope}"


def _by_scope(about: Iterable[Drift]) -> dict[str, list[Drift]]:
    scopes: dict[str, list[Drift]] = {}
    for drift, scope in _with_scopes(about):
        scopes.setdefault(scope, []).append(drift)
    return scopes
