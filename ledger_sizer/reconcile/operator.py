"""What a person (or a policy in their name) decides about a drift. Each decision stands in the audit chain."""

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, select

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import AnyCommand, Remark
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.errors import InvalidRequest, KeyReused, WrongState
from ledger_sizer.model.instruments import label_text
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.units import positive
from ledger_sizer.reconcile import drifts
from ledger_sizer.reconcile.adoption import Adoption
from ledger_sizer.reconcile.effects import Effects, note_of
from ledger_sizer.reconcile.ledger_side import read_positions
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import DecisionRow, PortfolioRow, ReconciliationRow

ACTIONS = ("adopt", "ignore", "close")


class Operator:
    """Decides about drifts. actor: who, as the audit chain will name them. reason: why, 1 to 300 characters.

    The ledger's commands come first, in one commit with a remark that names the decision, and the drift's row second.
    Asked again after a failure in between, with the same reason, the remark says that it is decided, and the row is
    written. Asked again with another reason it is refused with `WrongState`.
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
        newest positions of that market are released until the ledger holds no more than the exchange; so are those of
        the side that flipped.
        price: USD per base unit, where the exchange named none. Raises `WrongState` for a drift with nothing to adopt,
        and where the ledger moved since the run that saw it: what is to be done then, only another run can tell.
        """
        drift = self._live(drift_id)
        paid = drift.price if price is None else positive(price, "price")

        def commands() -> list[AnyCommand]:
            return self._adoption(drift).commands(paid)

        return self._decide(drift, "adopted", commands, actor, reason, state="resolved")

    def ignore(self, drift_id: int, *, actor: str, reason: str) -> Drift:
        """Let the difference stand as it is: it counts no longer and freezes nothing, until it changes."""
        drift = self._live(drift_id)

        def commands() -> list[AnyCommand]:
            return self._adoption(drift).releases()

        return self._decide(drift, "ignored", commands, actor, reason, state="acknowledged")

    def close(self, drift_id: int, *, actor: str, reason: str) -> Drift:
        """Ask the orchestrator to close it at the exchange. It goes on counting until the exchange shows it gone.

        Raises `WrongState` where it was ignored, because then it does not count, and where nothing is to be closed.
        """
        drift = self._live(drift_id)
        if drift.state == "acknowledged":
            raise WrongState(
                f"{drift.name} was ignored by {drift.actor} ({drift.reason}) and counts no longer, so its closing "
                "cannot be requested; adopt it and close the position, or close it at the exchange: then it is resolved"
            )
        if drift.excess <= 0:
            raise WrongState(
                f"{drift.name} is {drift.kind}: there is nothing more at the exchange that could be closed"
            )
        return self._decide(drift, "close_requested", list, actor, reason, requested="close")

    def _live(self, drift_id: int) -> Drift:
        drift = drifts.get_drift(self._engine, drift_id)
        if drift.state == "resolved":
            raise WrongState(f"{drift.name} is resolved already: {drift.reason} ({drift.actor})")
        return drift

    def _adoption(self, drift: Drift) -> Adoption:
        """The ledger beside the drift, as it is now."""
        query = select(ReconciliationRow.fetched, ReconciliationRow.started_us)
        with read_transaction(self._engine) as connection:
            fetched, seen_us = connection.execute(query.where(ReconciliationRow.id == drift.last_run)).one()
        places = [(one["venue"], one["account"]) for one in json.loads(fetched)]
        live = drifts.live_drifts(self._engine, drift.portfolio)
        return Adoption(drift, read_positions(self._engine, drift.portfolio, since_us=seen_us), places, seen_us, live)

    def _decide(
        self, drift: Drift, event: str, commands: Callable[[], list[AnyCommand]], actor: str, reason: str,
        **changes: Any,
    ) -> Drift:  # fmt: skip
        label_text(actor, "actor")
        label_text(reason, "reason", length_max=300)
        said = Remark(
            key=f"drift:{drift.id}:{drift.revision}:{event}", portfolio=drift.portfolio, about=drift.name, event=event,
            note=note_of(f"{actor}: {reason}"),
        )  # fmt: skip
        decided_us = self._decided_us(said) or self._say([*commands(), said])
        changes |= {"actor": actor, "reason": reason, "updated_us": decided_us}
        changes |= {"ended_us": decided_us} if changes.get("state") == "resolved" else {}
        drifts.change_drifts(self._engine, [drifts.Change(drift.id, changes, ("open", "confirmed", "acknowledged"))])
        Effects(self._ledger, self._engine, drift.portfolio).freeze_and_thaw()
        return drifts.get_drift(self._engine, drift.id)

    def _say(self, commands: Sequence[AnyCommand]) -> int:
        """Carry out a decision, the remark that names it last. Returns when it was decided."""
        try:
            answers = self._ledger.submit(commands, atomic=True)
        except KeyReused:
            decided_us = self._decided_us(commands[-1])
            if decided_us is None:
                raise
            return decided_us  # by the same, at the same moment
        return max(answer.record.decided_us for answer in answers if isinstance(answer, Decision))

    def _decided_us(self, said: AnyCommand) -> int | None:
        """When the same decision was made, None if it was not. Raises `WrongState` where it was for another reason."""
        query = select(DecisionRow.request, DecisionRow.decided_us).join(
            PortfolioRow, PortfolioRow.id == DecisionRow.portfolio_id
        )
        with read_transaction(self._engine) as connection:
            row = connection.execute(
                query.where(PortfolioRow.name == said.portfolio, DecisionRow.key == said.key)
            ).one_or_none()
        if row is None:
            return None
        if row.request != said.request_text():
            before = json.loads(row.request)
            raise WrongState(f"{before['about']}: {before['event'].replace('_', ' ')} already by {before['note']}")
        return int(row.decided_us)
