"""What drifts do to the ledger, through its commands alone, so that the audit chain tells all of it.

A run's commands are committed under its lease, or not at all. Everything here brings the ledger to a state that the
drifts describe, and every key names what it is about: doing it twice, or finishing what a run that died began, changes
nothing more.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import Adopt, AnyCommand, Freeze, Release, Remark, Thaw
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import LedgerError, NotFound
from ledger_sizer.model.instruments import Leg
from ledger_sizer.model.reconciliation import EXTERNAL, Drift, Market
from ledger_sizer.model.tags import EXTERNAL_TAG
from ledger_sizer.reconcile import drifts
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

NOTE_LENGTH_MAX = 500
_THAW = "reconcile:thaw:"
"""What the keys of thaws begin with that are not by hand."""
_TOGETHER_MAX = 50
"""Commands in one commit: a crowd of drifts must not make reservations wait for long."""


def note_of(text: str) -> str:
    """Text as a command's note takes it: printable, and not too long."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:NOTE_LENGTH_MAX] or "-"


def leg_of(drift: Drift, price: Decimal | None = None) -> Leg:
    """The leg that a drift's excess is. Of an asset the exchange may show less than none: its baseline was sold."""
    market = drift.market
    sold = market.side == "short" if market.is_swap else (drift.venue_quantity or 0) < 0
    return Leg(
        market.venue, market.subject, "swap" if market.is_swap else "spot", "sell" if sold else "buy", drift.excess,
        drift.price if price is None else price,
    )  # fmt: skip


def tags_at(market: Market) -> dict[str, str]:
    """Tags of a position at this place in this market."""
    return {"venue": market.venue, "account": market.account, "symbol": market.base}


class Effects:
    """Carries out, for one portfolio, what its drifts ask for. `failed`: commands that the ledger did not take."""

    def __init__(self, ledger: Ledger, engine: Engine, portfolio: str) -> None:
        self._ledger = ledger
        self._engine = engine
        self._portfolio = portfolio
        self.failed = 0

    def count(self, live: Iterable[Drift], external: Mapping[Market, Sequence[Position]]) -> None:
        """Let every live drift's excess be counted by one external position, and by nothing else."""
        new: list[Drift] = []
        wanted = {drift.market: drift for drift in live if drift.live and drift.excess > 0 and drift.price is not None}
        for market in sorted({*wanted, *external}, key=lambda one: (one.venue, one.account, one.subject, one.side)):
            drift, there = wanted.get(market), external.get(market, ())
            if drift is not None and len(there) == 1 and there[0].quantity == drift.excess:
                if drift.position != there[0].number:
                    self._note_positions({drift.id: there[0].number})
            elif drift is not None and not there:
                new.append(drift)
            else:
                self._replace(there, drift)
        for start in range(0, len(new), _TOGETHER_MAX):
            self._add(new[start : start + _TOGETHER_MAX])

    def _replace(self, there: Sequence[Position], drift: Drift | None) -> None:
        """Count a market otherwise than until now; no moment lies between the old figure and the new one."""
        commands: list[AnyCommand] = [release_of(position) for position in there]
        raised = [] if drift is None else self._raised([drift])
        if drift is not None and not raised:
            return
        answers = self._submit([*commands, *map(self._counting, raised)])
        if answers and raised:
            self._note_positions({raised[0].id: answers[-1].record.position})

    def _add(self, new: Sequence[Drift]) -> None:
        """Count what was not counted yet."""
        raised = self._raised(new)
        answers = self._say(map(self._counting, raised))
        self._note_positions({
            drift.id: answer.record.position
            for drift, answer in zip(raised, answers, strict=True) if isinstance(answer, Decision)
        })  # fmt: skip

    def _raised(self, about: Sequence[Drift]) -> list[Drift]:
        """Counted once under each revision: whoever raised it counts, and another run that meant to finds it raised."""
        return drifts.change_drifts(
            self._engine,
            [drifts.Change(one.id, {"revision": one.revision + 1}, revision=one.revision) for one in about],
        )

    def _counting(self, drift: Drift) -> Adopt:
        assert drift.price is not None, "asked for drifts that can be counted"
        return Adopt(
            key=f"reconcile:count:{drift.id}:{drift.revision}", portfolio=self._portfolio, quantity=drift.excess,
            price=drift.price, tags={**tags_at(drift.market), EXTERNAL_TAG: EXTERNAL}, legs=[leg_of(drift)],
            note=note_of(drift.title),
        )  # fmt: skip

    def _note_positions(self, positions: Mapping[int, int | None]) -> None:
        if positions:
            noted = [drifts.Change(drift_id, {"position": number}) for drift_id, number in positions.items()]
            drifts.change_drifts(self._engine, noted)

    def freeze_and_thaw(self) -> None:
        """Freeze what live drifts ask for; thaw what none asks for any more."""
        found = drifts.freezing_drifts(self._engine, self._portfolio)
        if not found:
            return
        since = min(drift.opened_at for drift in found)
        standing = self._freeze_for_live(since)
        for scope, over in _by_scope(drift for drift in found if not drift.freezes).items():
            if scope not in standing:
                self._thaw(scope, over, since)

    def _freeze_for_live(self, since: datetime) -> set[str]:
        """Freeze what live drifts ask for; the scopes that are frozen for them.

        What a person thawed stays thawed for a drift. What another thaw overtook, or ended while the drift did not ask,
        is frozen again. since: when the oldest drift began; no earlier thaw matters.
        """
        by_hand, by_runs = self._newest_thaws(since)
        # Read after the thaws: who decided about a drift since has thawed since, and nothing is frozen again for it.
        asking = [drift for drift in drifts.freezing_drifts(self._engine, self._portfolio) if drift.freezes]
        standing = set()
        for drift, answer in zip(asking, self._freeze(asking), strict=True):
            scope = drift.frozen_scope or ""
            froze = answer.record.seq if isinstance(answer, Decision) else 2**63
            if by_hand.get(scope, 0) > froze:
                continue
            standing.add(scope)
            if (thawed := by_runs.get(scope, 0)) > froze:
                self._freeze([drift], again=f":{thawed}")
        return standing

    def _newest_thaws(self, since: datetime) -> tuple[dict[str, int], dict[str, int]]:
        """By scope the seq of its newest thaw by hand, and of the newest one that was sent here."""
        by_hand: dict[str, int] = {}
        by_runs: dict[str, int] = {}
        try:
            thaws = self._ledger.history(self._portfolio, command="thaw", since=since, limit=1000)
        except NotFound:  # nobody used the portfolio yet
            return by_hand, by_runs
        for thaw in thaws:
            newest = by_runs if thaw.record.key.startswith(_THAW) else by_hand
            newest.setdefault(thaw.binding or "", thaw.record.seq)
        return by_hand, by_runs

    def _freeze(self, about: Iterable[Drift], again: str = "") -> list[Result]:
        return self._say(
            Freeze(
                key=f"reconcile:freeze:{drift.id}{again}", portfolio=self._portfolio,
                scope=drift.frozen_scope or "", note=note_of(drift.title),
            )
            for drift in about
        )  # fmt: skip

    def _thaw(self, scope: str, over: Sequence[Drift], since: datetime) -> None:
        """End the freezes of drifts that ask for them no more."""
        _, by_runs = self._newest_thaws(since)
        # A run may have recorded one of them and not frozen yet. What is sent first is a replay for it, and freezes
        # nothing after the thaw, when no drift would be left to end it.
        if any(isinstance(answer, LedgerError) for answer in self._freeze(over)):
            return
        newest = max(over, key=lambda one: one.id)
        thaw = Thaw(
            key=f"{_THAW}{newest.id}:{by_runs.get(scope, 0)}", portfolio=self._portfolio, scope=scope,
            note=note_of(f"{newest.title} asks for it no more"),
        )  # fmt: skip
        if self._submit([thaw]):
            thawed = [drifts.Change(one.id, {"frozen_scope": None}, (one.state,)) for one in over]
            drifts.change_drifts(self._engine, thawed)
            self._freeze_for_live(since)  # another process may have frozen it just before, for a drift unknown here

    def tell(self, event: str, about: Iterable[Drift]) -> None:
        """Say in the chain, and so in the events, that drifts were confirmed or resolved; of each once."""
        self._say(
            Remark(
                key=f"reconcile:{event}:{drift.id}", portfolio=self._portfolio, about=drift.name, event=event,
                note=note_of(drift.title),
            )
            for drift in about if drift.policy != "record"
        )  # fmt: skip

    def _say(self, commands: Iterable[AnyCommand]) -> list[Result]:
        """Each for itself; those that were said before are replays."""
        asked, results = list(commands), []
        for start in range(0, len(asked), _TOGETHER_MAX):
            results += self._ledger.submit(asked[start : start + _TOGETHER_MAX])
        for command, result in zip(asked, results, strict=True):
            if isinstance(result, LedgerError):
                self._failed([command], result)
        return results

    def _submit(self, commands: Sequence[AnyCommand]) -> list[Decision]:
        """All or none; an error is logged and left to the next run."""
        if not commands:
            return []
        try:
            results = self._ledger.submit(commands, atomic=True)
        except LedgerError as error:
            self._failed(commands, error)
            return []
        return [result for result in results if isinstance(result, Decision)]

    def _failed(self, commands: Sequence[AnyCommand], error: LedgerError) -> None:
        if isinstance(error, LeaseLost):
            raise error  # another run may be under way: whatever this one still meant to do is that one's now
        self.failed += 1
        log.warning("reconcile.command_failed", commands=[one.key for one in commands], error=str(error))


def release_of(position: Position) -> Release:
    """Give up an external position: it is counted otherwise from now on, or not there any more."""
    return Release(key=f"reconcile:release:{position.number}", position_id=position.position_id)


def _by_scope(found: Iterable[Drift]) -> dict[str, list[Drift]]:
    scopes: dict[str, list[Drift]] = {}
    for drift in found:
        scopes.setdefault(drift.frozen_scope or "", []).append(drift)
    return scopes
