"""Plans the adoptions of drifts that depend on each other: each sees what those before it are going to do. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from ledger_sizer.model.commands import Adopt, AnyCommand, Confirm, Release
from ledger_sizer.model.domain import Position
from ledger_sizer.model.drift_words import holds_named
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.reconciliation import Drift, Market
from ledger_sizer.model.tags import NO_TAGS, Tags
from ledger_sizer.model.tags import tags_of as valid_tags
from ledger_sizer.model.units import decimal_text, exact_arithmetic
from ledger_sizer.reconcile.adoption import Adoption
from ledger_sizer.reconcile.ledger_side import LedgerSide
from ledger_sizer.reconcile.ledger_view import LedgerView
from ledger_sizer.rules.filling import close_part

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one drift: its commands, or why there are none.

    later: it must wait for the commands of another. first: of the drifts that are adopted together, None if alone.
    """

    drift: Drift
    commands: tuple[AnyCommand, ...] = ()
    error: LedgerError | None = None
    later: bool = False
    first: Drift | None = None

    @property
    def words(self) -> str:
        """What its commands do; that nothing is left to do where there are none."""
        told = [text for command in self.commands if (text := _words_of(command))]
        if not told and self.first is not None:
            return f"with {self.first.name}, which it hedges"
        return ", ".join(told) or "nothing more to do in the ledger"


class AdoptionPlanner:
    """Plans the adoptions of one component of a view, after each other.

    live: drifts in its markets that are not resolved. holds: those that explain late fills, with their late fills.
    tags: of the positions that they become. tolerance: see `pairing.paired`; None pairs nothing.
    """

    def __init__(
        self,
        view: LedgerView,
        component: Sequence[Drift],
        live: Sequence[Drift],
        holds: Sequence[Position],
        tags: Tags = NO_TAGS,
        tolerance: Decimal | None = None,
    ) -> None:
        self._tags = tags
        self._tolerance = tolerance
        self._pairable = {one.id for one in component}
        self._taken: dict[int, Plan] = {}
        self._view = view
        self._component = component
        self._positions = view.positions_of(component)
        # A drift alone depends on nothing that is planned here.
        self._before = view.side_of(self._positions) if len(component) > 1 else LedgerSide()
        self._live = {one.id: one for one in live}
        self._holds = holds
        self._filling: set[str] = set()
        self._folded = 0

    def plans(self) -> Iterator[Plan]:
        """Return the plan of each drift, in order."""
        for drift in self._component:
            plan = self._taken.get(drift.id) or self._plan(drift)
            if plan.error is None and not plan.later:
                for command in plan.commands:
                    self._fold(command)
                self._live.pop(drift.id, None)
                self._filling.update(holds_named(drift.detail) if drift.kind == "late_fill" else ())
            yield plan

    def _plan(self, drift: Drift) -> Plan:
        if drift.kind == "late_fill" and not self._filling.isdisjoint(holds_named(drift.detail)):
            return Plan(drift, later=True)  # what a first fill makes of a hold only the ledger knows
        after = self._before if not self._folded else self._view.side_of(self._positions)
        now = self._as_of(drift, after.open)
        if now is not drift and not now.shortfall and drift.excess <= 0:
            return Plan(drift)  # what was decided before covers it
        live = [self._as_of(one, after.open) for one in self._live.values()]
        adoption = Adoption(
            now, self._positions, self._view.accounts, self._view.seen_us, live, self._holds, self._view.moves
        )  # fmt: skip
        try:
            group = [now]
            if self._tolerance is not None:
                group = adoption.together(self._tolerance, lambda one: one.id in self._pairable)
            commands = tuple(adoption.commands(drift.price, group, self._tolerance or ZERO, self._tags))
        except LedgerError as error:
            return Plan(drift, error=error)
        planned = {f"{one.portfolio}-{one.number}" for one in self._positions if one.number < 0}
        if any(isinstance(one, Release) and one.position_id in planned for one in commands):
            return Plan(drift, later=True)  # it releases what another one adopts first
        if len(group) == 1:
            return Plan(drift, commands)
        self._taken.update((one.id, Plan(one, first=group[0])) for one in group if one.id != drift.id)
        return Plan(drift, commands, first=group[0])

    def _as_of(self, drift: Drift, held_after: dict[Market, Decimal]) -> Drift:
        """Return a drift with the ledger's quantity after what is planned so far; unchanged if something else moved it.

        The exchange's quantity is what the run saw. Only shortfalls change: a planned adoption touches other markets
        by giving up what their drifts report missing.
        """
        if not self._folded or not drift.live or drift.market in self._before.settling:
            return drift
        before = self._before.open
        held, other = before.get(drift.market, ZERO), before.get(drift.market.opposite, ZERO)
        now, other_now = held_after.get(drift.market, ZERO), held_after.get(drift.market.opposite, ZERO)
        with exact_arithmetic():
            if drift.ledger_quantity == held:
                quantity = now
            elif drift.ledger_quantity == max(held - other, ZERO):
                quantity = max(now - other_now, ZERO)
            else:
                return drift
        return drift if quantity == drift.ledger_quantity else replace(drift, ledger_quantity=quantity)

    def _fold(self, command: AnyCommand) -> None:
        """Change the positions as a planned command will."""
        self._folded += 1
        if isinstance(command, Adopt):
            self._positions.append(_adopted(command, -self._folded))
            return
        if not isinstance(command, Release):
            return
        for place, position in enumerate(self._positions):
            if position.position_id == command.position_id:
                if command.quantity is None or command.quantity == position.quantity:
                    del self._positions[place]
                else:
                    self._positions[place] = close_part(position, command.quantity)
                return


def _adopted(command: Adopt, number: int) -> Position:
    """Return the position that an adoption will make. number: negative, because its own is not known yet."""
    return Position(
        command.portfolio, number, "open", valid_tags(command.tags), quantity=command.quantity, price=command.price,
        legs=tuple(command.legs or ()),
    )  # fmt: skip


def _words_of(command: AnyCommand) -> str:
    match command:
        case Release() if command.key.startswith("reconcile:"):
            return ""  # of the external position that counted it
        case Release():
            part = "" if command.quantity is None else f"{decimal_text(command.quantity)} of "
            return f"release {part}{command.position_id}"
        case Confirm():
            return f"confirm {decimal_text(command.quantity)} of {command.position_id}"
        case Adopt():
            legs = " and ".join(f"{leg.side} {decimal_text(leg.quantity)} {leg.symbol}" for leg in command.legs or ())
            return f"adopt {legs}"
    return ""
