"""What a person (or a policy in their name) decides about a drift. Each decision stands in the audit chain."""

import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, select

from ledger_sizer.batch import AnyCommand
from ledger_sizer.commands import Adopt, Release, Remark
from ledger_sizer.database import reading
from ledger_sizer.domain import Position
from ledger_sizer.errors import InvalidRequest, WrongState
from ledger_sizer.instruments import label_text
from ledger_sizer.ledger import Ledger
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.book import Book, Place, book_of, read_positions
from ledger_sizer.reconcile.effects import Effects, leg_of, note_of, release_of, tags_at
from ledger_sizer.reconcile.kinds import Drift
from ledger_sizer.records import Decision
from ledger_sizer.tables import ReconciliationRow
from ledger_sizer.units import exactly, positive

ACTIONS = ("adopt", "ignore", "close")


class Operator:
    """Decides about drifts. actor: who, as the audit chain will name them. reason: why, 1 to 300 characters.

    The ledger's commands come first and the drift's row second; asked again after a failure in between, with the same
    reason, the commands are replays and the row is written.
    """

    def __init__(self, ledger: Ledger, engine: Engine) -> None:
        self._ledger = ledger
        self._engine = engine

    def act(self, action: str, drift_id: int, *, actor: str, reason: str, price: Decimal | None = None) -> Drift:
        """`adopt`, `ignore` or `close` by name."""
        if action not in ACTIONS:
            raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}, got {action!r}", field="action")
        if action == "adopt":
            return self.adopt(drift_id, actor=actor, reason=reason, price=price)
        if price is not None:
            raise InvalidRequest(f"price is for adopt, not for {action}", field="price")
        return getattr(self, action)(drift_id, actor=actor, reason=reason)  # type: ignore[no-any-return]

    def adopt(self, drift_id: int, *, actor: str, reason: str, price: Decimal | None = None) -> Drift:
        """Make the ledger say what the exchange shows.

        More at the exchange: its excess becomes a position of the ledger, and is external no longer. Less there: the
        newest positions of that market are released until the ledger holds no more than the exchange.
        price: USD per base unit, where the exchange named none. Raises `WrongState` for a drift with nothing to adopt.
        """
        drift = self._live(drift_id)
        with exactly():
            missing = (drift.ledger_quantity or Decimal(0)) - (drift.venue_quantity or Decimal(0))
        if drift.excess > 0:
            commands = self._take_over(drift, price)
        elif drift.kind in ("missing_position", "quantity_differs", "side_flipped") and missing > 0:
            commands = self._give_up(drift, missing)
        else:
            raise WrongState(f"{drift.name} is {drift.kind}: there is nothing to adopt; ignore it, or wait for its end")
        return self._decide(drift, "adopted", commands, actor, reason, state="resolved")

    def ignore(self, drift_id: int, *, actor: str, reason: str) -> Drift:
        """Let the difference stand as it is: it counts no longer and freezes nothing, until it changes."""
        drift = self._live(drift_id)
        return self._decide(drift, "ignored", self._releases(drift), actor, reason, state="acknowledged")

    def close(self, drift_id: int, *, actor: str, reason: str) -> Drift:
        """Ask the orchestrator to close it at the exchange. It goes on counting until the exchange shows it gone."""
        drift = self._live(drift_id)
        if drift.excess <= 0:
            raise WrongState(
                f"{drift.name} is {drift.kind}: there is nothing more at the exchange that could be closed"
            )
        return self._decide(drift, "close_requested", [], actor, reason, requested="close")

    def _live(self, drift_id: int) -> Drift:
        drift = drifts.get(self._engine, drift_id)
        if drift.state == "resolved":
            raise WrongState(f"{drift.name} is resolved already: {drift.reason} ({drift.actor})")
        return drift

    def _positions(self, drift: Drift) -> list[Position]:
        return read_positions(self._engine, drift.portfolio, since_us=2**62)

    def _places(self, drift: Drift) -> list[Place]:
        """The accounts of the run that saw the drift last: by them alone its figures can be told again.

        What names no account stands in a venue's only one; with one account of two in mind it would seem to.
        """
        with reading(self._engine) as connection:
            query = select(ReconciliationRow.fetched).where(ReconciliationRow.id == drift.last_run)
            return [(one["venue"], one["account"]) for one in json.loads(connection.execute(query).scalar_one())]

    def _releases(self, drift: Drift) -> list[AnyCommand]:
        """Give up the external positions that count this drift."""
        book = _book(self._positions(drift), self._places(drift))
        return [release_of(position) for position in book.external.get(drift.market, ())]

    def _take_over(self, drift: Drift, price: Decimal | None) -> list[AnyCommand]:
        paid = drift.price if price is None else positive(price, "price")
        if paid is None:
            raise InvalidRequest(f"the exchange names no price for {drift.subject}; give one", field="price")
        adopt = Adopt(
            key=f"drift:{drift.id}:{drift.revision}:adopt", portfolio=drift.portfolio, quantity=drift.excess,
            price=paid, tags=tags_at(drift.market), legs=[leg_of(drift, paid)], note=drift.name,
        )  # fmt: skip
        return [*self._releases(drift), adopt]

    def _give_up(self, drift: Drift, missing: Decimal) -> list[AnyCommand]:
        """Release the newest positions that have a leg in this market, in part where that is enough."""
        places = self._places(drift)
        commands: list[AnyCommand] = []
        with exactly():
            for position in reversed(self._positions(drift)):
                if missing <= 0:
                    break
                if position.state != "open" or position.quantity is None:
                    continue
                held = _book([position], places).open.get(drift.market, Decimal(0))
                if held <= 0:
                    continue
                part = None if missing >= held else missing * position.quantity / held
                key = f"drift:{drift.id}:{drift.revision}:release:{position.number}"
                commands.append(Release(key=key, position_id=position.position_id, quantity=part))
                missing -= held
        return commands

    def _decide(
        self, drift: Drift, event: str, commands: list[AnyCommand], actor: str, reason: str, **changes: Any
    ) -> Drift:
        label_text(actor, "actor")
        label_text(reason, "reason", length_max=300)
        said = Remark(
            key=f"drift:{drift.id}:{drift.revision}:{event}", portfolio=drift.portfolio, about=drift.name, event=event,
            note=note_of(f"{actor}: {reason}"),
        )  # fmt: skip
        answers = self._ledger.submit([*commands, said], atomic=True)
        now_us = max(answer.record.decided_us for answer in answers if isinstance(answer, Decision))
        changes |= {"updated_us": now_us, **({"ended_us": now_us} if changes.get("state") == "resolved" else {})}
        states = ("open", "confirmed", "acknowledged")
        changes |= {"actor": actor, "reason": reason}
        after = drifts.change(self._engine, [drifts.Change(drift.id, changes, states)])
        Effects(self._ledger, self._engine, drift.portfolio).freeze_and_thaw([])
        return after[0] if after else drifts.get(self._engine, drift.id)


def _book(positions: Iterable[Position], places: Sequence[Place]) -> Book:
    """What the positions are at these accounts, whenever they moved."""
    return book_of(positions, places, seq_before=2**62, settled_us=2**62, expired_us=2**62)
