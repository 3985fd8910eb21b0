"""What drifts do to the ledger, through its commands alone, so that the audit chain tells all of it.

A run's commands are committed under its lease, or not at all. Everything here brings the ledger to a state that the drifts describe, and every key names the drift or position it is
about: doing it twice, or finishing what a run that died began, changes nothing more.
"""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Engine

from ledger_sizer.batch import AnyCommand
from ledger_sizer.commands import Adopt, Freeze, Release, Remark, Thaw
from ledger_sizer.domain import Position
from ledger_sizer.errors import LedgerError
from ledger_sizer.instruments import Leg
from ledger_sizer.leases import LeaseLost
from ledger_sizer.ledger import Ledger
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.kinds import EXTERNAL, Drift, Market
from ledger_sizer.records import Decision
from ledger_sizer.tags import EXTERNAL_TAG
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

NOTE_LENGTH_MAX = 500
_SUBMIT_MAX = 500


def note_of(text: str) -> str:
    """Text as a command's note takes it: printable, and not too long."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:NOTE_LENGTH_MAX] or "-"


def leg_of(drift: Drift, price: object = None) -> Leg:
    """The leg that a drift's excess is."""
    market = drift.market
    kind = "swap" if market.is_swap else "spot"
    side = "buy" if market.side == "long" else "sell"
    return Leg(market.venue, market.subject, kind, side, drift.excess, drift.price if price is None else price)  # type: ignore[arg-type]


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
        wanted = {drift.market: drift for drift in live if drift.live and drift.excess > 0 and drift.price is not None}
        for market in sorted({*wanted, *external}, key=lambda one: (one.venue, one.account, one.subject, one.side)):
            drift, there = wanted.get(market), external.get(market, ())
            if drift is not None and len(there) == 1 and there[0].quantity == drift.excess:
                if drift.position != there[0].number:
                    drifts.set_fields(self._engine, drift.id, "open", "confirmed", position=there[0].number)
                continue
            self._replace(there, drift)

    def _replace(self, there: Sequence[Position], drift: Drift | None) -> None:
        commands: list[AnyCommand] = [release_of(position) for position in there]
        if drift is None:
            self._submit(commands)
            return
        # Counted once under each revision: whoever raised it counts, and another run that meant to finds it raised.
        newer = drifts.set_fields(
            self._engine, drift.id, "open", "confirmed", revision_before=drift.revision, revision=drift.revision + 1
        )
        if newer is None or newer.price is None:
            return
        adopt = Adopt(
            key=f"reconcile:count:{newer.id}:{newer.revision}", portfolio=self._portfolio, quantity=newer.excess,
            price=newer.price, tags={**tags_at(newer.market), EXTERNAL_TAG: EXTERNAL}, legs=[leg_of(newer)],
            note=note_of(newer.title),
        )  # fmt: skip
        answers = self._submit([*commands, adopt])
        if answers:
            number = answers[-1].record.position
            drifts.set_fields(self._engine, newer.id, "open", "confirmed", position=number)

    def freeze_and_thaw(self, live: Iterable[Drift]) -> None:
        """Freeze what a live drift names; thaw what none does any more."""
        self._say(
            Freeze(
                key=f"reconcile:freeze:{drift.id}", portfolio=self._portfolio, scope=drift.frozen_scope,
                note=note_of(drift.title),
            )
            for drift in live if drift.live and drift.frozen_scope is not None
        )  # fmt: skip
        for scope, over in _by_scope(drifts.to_thaw(self._engine, self._portfolio)).items():
            newest = max(over, key=lambda one: one.id)
            note = note_of(f"{newest.title}; {newest.state}")
            thaw = Thaw(key=f"reconcile:thaw:{newest.id}", portfolio=self._portfolio, scope=scope, note=note)
            if self._submit([thaw]):
                for drift in over:
                    drifts.set_fields(self._engine, drift.id, "resolved", "acknowledged", frozen_scope=None)

    def tell(self, event: str, about: Iterable[Drift]) -> None:
        """Say in the chain, and so in the events, that drifts were confirmed or resolved; of each once."""
        self._say(
            Remark(
                key=f"reconcile:{event}:{drift.id}", portfolio=self._portfolio, about=drift.name, event=event,
                note=note_of(drift.title),
            )
            for drift in about if drift.policy != "record"
        )  # fmt: skip

    def _say(self, commands: Iterable[AnyCommand]) -> None:
        """Each for itself; those that were said before are replays."""
        asked = list(commands)
        for start in range(0, len(asked), _SUBMIT_MAX):
            for command, result in zip(asked[start:], self._ledger.submit(asked[start : start + _SUBMIT_MAX])):  # noqa: B905
                if isinstance(result, LedgerError):
                    self._failed([command], result)

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
